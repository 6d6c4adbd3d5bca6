//! Takes every registered bijection through the same checks: inverse, log-determinant against the Jacobian,
//! gradients of every parameter, and the same gradients when activations are rebuilt.

use std::sync::Arc;
use surprisal::autograd;
use surprisal::bijections::{BIJECTIONS, BatchNorm, Bijection, Memory, reversible};
use surprisal::nn::{Init, Param, ParamStore};
use surprisal::random::Philox;
use surprisal::testing::max_error;
use surprisal::{DType, Tensor};

/// Builds each bijection in f64 for each of its shapes, with parameters moved off their (often trivial) start.
fn each(check: impl Fn(&str, &Arc<dyn Bijection>, &ParamStore, &[usize])) {
    for info in BIJECTIONS {
        for shape in info.shapes {
            let (mut store, mut rng) = (ParamStore::default(), Philox::new(3));
            let bijection: Arc<dyn Bijection> =
                (info.build)(&mut Init::new(&mut store, &mut rng, DType::F64), shape).into();
            for (_, param) in store.iter() {
                let value = param.get();
                let noise = rng.normal(value.shape(), DType::F64).affine(0.1, 0.0);
                param.set(&(&value.detach() + &noise));
            }
            check(&format!("{} {shape:?}", info.name), &bijection, &store, shape);
        }
    }
}

fn batch(b: usize, shape: &[usize]) -> Tensor {
    Philox::new(5).normal([&[b], shape].concat(), DType::F64)
}

#[test]
fn inverses_invert() {
    each(|name, bijection, _, shape| {
        let x = batch(3, shape);
        let (y, logdet) = bijection.forward(&x);
        assert_eq!(logdet.shape(), [3], "{name}: the log-determinant is (B,)");
        let error = max_error(&[bijection.inverse(&y)], &[x]);
        assert!(error < 1e-10, "{name}: the inverse is off by {error:e}");
    });
}

#[test]
fn log_determinants_are_those_of_the_jacobian() {
    each(|name, bijection, _, shape| {
        let x = batch(2, shape);
        let logdet = bijection.forward(&x).1.to_f64_vec();
        for (b, logdet) in logdet.into_iter().enumerate() {
            let one = x.narrow(0, b, 1);
            let jacobian = surprisal::testing::jacobian(&one, |x| bijection.forward(x).0);
            let numeric = surprisal::ops::linalg::log_abs_det(&jacobian).item();
            assert!((logdet - numeric).abs() < 1e-7, "{name}: log-det {logdet}, Jacobian {numeric}");
        }
    });
}

/// Gradients of a random projection with respect to x and every parameter, by the chosen way.
fn grads(bijection: &Arc<dyn Bijection>, x: &Tensor, memory: Memory) -> Vec<Tensor> {
    let x = x.requires_grad();
    let (y, logdet) = reversible(bijection, &x, memory);
    let mut rng = Philox::new(7);
    let weights = [rng.normal(y.shape(), DType::F64), rng.normal(logdet.shape(), DType::F64)];
    let loss = &(&y * &weights[0]).sum_all() + &(&logdet * &weights[1]).sum_all();
    let params: Vec<Tensor> = bijection.params().iter().map(Param::get).collect();
    let mut wrt = vec![&x];
    wrt.extend(&params);
    autograd::backward(loss, &wrt)
}

#[test]
fn every_parameter_has_a_gradient() {
    each(|name, bijection, store, shape| {
        let trained = store.trainable().count();
        assert_eq!(bijection.params().len(), trained, "{name}: params() lists every parameter");
        let grads = grads(bijection, &batch(3, shape), Memory::Store);
        for ((param, _), grad) in store.trainable().zip(&grads[1..]) {
            assert!(grad.to_f64_vec().iter().any(|g| *g != 0.0), "{name}: {param} has no gradient");
        }
    });
}

#[test]
fn rebuilt_activations_give_the_same_gradients() {
    each(|name, bijection, _, shape| {
        let x = batch(3, shape);
        let error = max_error(&grads(bijection, &x, Memory::Rebuild), &grads(bijection, &x, Memory::Store));
        assert!(error < 1e-9, "{name}: gradients differ by {error:e}");
    });
}

/// Mean 3 and deviation 2 leave as `bias` and e^log_scale; what is recorded is remembered, what is only looked at is
/// not.
#[test]
fn batch_norm_remembers_what_it_trains_on() {
    let (mut store, mut rng) = (ParamStore::default(), Philox::new(1));
    let norm = BatchNorm::new(&mut Init::new(&mut store, &mut rng, DType::F64), 2);
    let x = batch(4000, &[2]).affine(2.0, 3.0);
    let kept = |name: &str| store.get(name).unwrap().get().to_f64_vec();
    let close = |found: Vec<f64>, wanted: f64, by: f64| found.iter().all(|f| (f - wanted).abs() < by);
    let (y, logdet) = autograd::no_grad(|| norm.training(&x));
    assert!(
        close(y.mean(&[0]).to_f64_vec(), 0.0, 1e-9) && close(y.square().mean(&[0]).to_f64_vec(), 1.0, 1e-4)
    );
    assert!(close(logdet.to_f64_vec(), -2.0 * 2f64.ln(), 0.1), "two channels divided by about 2");
    assert_eq!((kept("mean"), kept("variance")), (vec![0.0; 2], vec![1.0; 2]), "only looked at");
    for _ in 0..100 {
        norm.training(&x);
    }
    assert!(close(kept("mean"), 3.0, 0.15) && close(kept("variance"), 4.0, 0.3), "{:?}", kept("variance"));
    let (evaluated, _) = norm.forward(&x);
    assert!(max_error(&[evaluated], &[y]) < 1e-3, "the remembered statistics are those of the batch");
}
