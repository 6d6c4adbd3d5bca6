//! Checks that any op, model or bijection can be taken through; the tests of this crate loop over registries
//! with them, and so can yours.

use crate::autograd;
#[cfg(any(feature = "emulate", feature = "cuda"))]
use crate::cuda::Device;
use crate::ops::CaseFn;
use crate::random::Philox;
use crate::tensor::{DType, Tensor};

/// The device that tests of devices run on: the emulated one in a build that has it, else the first GPU. `None`,
/// with a word on stderr, where there is neither.
///
/// # Panics
/// Where there is neither, if the variable REQUIRE_GPU is set.
#[cfg(any(feature = "emulate", feature = "cuda"))]
pub fn device() -> Option<Device> {
    let device = if cfg!(feature = "emulate") { Device::Emulated } else { Device::Cuda(0) };
    match device.check() {
        Ok(()) => Some(device),
        Err(e) if std::env::var_os("REQUIRE_GPU").is_some() => panic!("{e}"),
        Err(e) => {
            eprintln!("skipped: {e}");
            None
        }
    }
}

/// Σ <outputs, weights> with the outputs as f64.
fn weighted_sum(outputs: &[Tensor], weights: &[Tensor]) -> Tensor {
    let mut total = Tensor::scalar(0.0, weights[0].dtype());
    for (y, w) in outputs.iter().zip(weights) {
        total = &total + &(y * w).sum_all();
    }
    total
}

fn normals(seed: u64, like: &[Tensor], dtype: DType) -> Vec<Tensor> {
    let mut rng = Philox::new(seed);
    like.iter().map(|t| rng.normal(t.shape(), dtype)).collect()
}

fn dot(a: &[Tensor], b: &[Tensor]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| a.to_f64_vec().iter().zip(b.to_f64_vec()).map(|(x, y)| x * y).sum::<f64>())
        .sum()
}

/// The largest |a − b| / (1 + |b|) over all elements of all tensors; NaN counts as infinite.
///
/// # Panics
/// When shapes differ.
pub fn max_error(a: &[Tensor], b: &[Tensor]) -> f64 {
    assert_eq!(a.len(), b.len(), "a different number of outputs");
    let mut worst = 0.0f64;
    for (a, b) in a.iter().zip(b) {
        assert_eq!(a.shape(), b.shape(), "outputs differ in shape");
        for (x, y) in a.to_f64_vec().into_iter().zip(b.to_f64_vec()) {
            let error =
                if x == y || (x.is_nan() && y.is_nan()) { 0.0 } else { (x - y).abs() / (1.0 + y.abs()) };
            worst = worst.max(if error.is_nan() { f64::INFINITY } else { error });
        }
    }
    worst
}

/// Compares the gradient of a random projection of `f`'s outputs, along a random direction, with central
/// differences in f64; returns the relative error. `f` must be deterministic and differentiable nearby.
pub fn gradient_error(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Vec<Tensor>) -> f64 {
    let leaves: Vec<Tensor> = inputs.iter().map(lift).collect();
    let outputs = f(&leaves);
    let weights = normals(11, &outputs, DType::F64);
    let wrt: Vec<&Tensor> = leaves.iter().filter(|t| t.dtype() == DType::F64).collect();
    let loss = weighted_sum(&outputs, &weights);
    let grads = autograd::backward(loss, &wrt);
    let direction = normals(12, &wrt.iter().map(|t| (*t).clone()).collect::<Vec<_>>(), DType::F64);
    let analytic = dot(&grads, &direction);
    let numeric =
        directional(inputs, &direction, |x| autograd::no_grad(|| weighted_sum(&f(x), &weights).item()));
    (analytic - numeric).abs() / (1.0 + numeric.abs())
}

/// As [`gradient_error`] for the second derivative: the gradient of <gradient, direction>.
pub fn second_order_error(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Vec<Tensor>) -> f64 {
    let weights = normals(11, &autograd::no_grad(|| f(inputs)), DType::F64);
    let floats: Vec<Tensor> = inputs.iter().filter(|t| t.dtype() == DType::F64).cloned().collect();
    let projection = normals(13, &floats, DType::F64);
    let slope = |x: &[Tensor], create_graph: bool| -> (Vec<Tensor>, Tensor) {
        autograd::higher_order(|| {
            let leaves: Vec<Tensor> = x.iter().map(lift).collect();
            let wrt: Vec<&Tensor> = leaves.iter().filter(|t| t.dtype() == DType::F64).collect();
            let loss = weighted_sum(&f(&leaves), &weights);
            let one = Tensor::scalar(1.0, DType::F64);
            let grads = autograd::grad(&[&loss], &[&one], &wrt, create_graph);
            let known: Vec<(Tensor, Tensor)> =
                grads.into_iter().zip(&projection).filter_map(|(g, p)| g.map(|g| (g, p.clone()))).collect();
            let (grads, projection): (Vec<_>, Vec<_>) = known.into_iter().unzip();
            let slope = if grads.is_empty() {
                Tensor::scalar(0.0, DType::F64)
            } else {
                weighted_sum(&grads, &projection)
            };
            (leaves, slope)
        })
    };
    let (leaves, value) = slope(inputs, true);
    let wrt: Vec<&Tensor> = leaves.iter().filter(|t| t.dtype() == DType::F64).collect();
    let grads = autograd::backward(value, &wrt);
    let direction = normals(12, &floats, DType::F64);
    let analytic = dot(&grads, &direction);
    let numeric = directional(inputs, &direction, |x| slope(x, false).1.item());
    (analytic - numeric).abs() / (1.0 + numeric.abs())
}

fn lift(t: &Tensor) -> Tensor {
    if t.dtype() == DType::F64 { t.requires_grad() } else { t.clone() }
}

/// The fourth-order central difference of `f` along `direction` (over the f64 inputs).
fn directional(inputs: &[Tensor], direction: &[Tensor], f: impl Fn(&[Tensor]) -> f64) -> f64 {
    const H: f64 = 1e-4;
    let at = |h: f64| {
        let mut d = direction.iter();
        let moved: Vec<Tensor> = inputs
            .iter()
            .map(|t| {
                if t.dtype() == DType::F64 {
                    t + &d.next().expect("a direction per input").affine(h, 0.0)
                } else {
                    t.clone()
                }
            })
            .collect();
        f(&moved)
    };
    (8.0 * (at(H) - at(-H)) - (at(2.0 * H) - at(-2.0 * H))) / (12.0 * H)
}

/// Inputs of a case with the floating-point ones converted.
pub fn cast_inputs(inputs: &[Tensor], dtype: DType) -> Vec<Tensor> {
    inputs.iter().map(|t| if t.dtype() == DType::F64 { t.cast(dtype) } else { t.clone() }).collect()
}

/// Outputs of `f` and the gradients of a fixed random projection of them (none when `order` is 0), with the
/// floating-point inputs in `dtype`, on the device of [`crate::Device::run`].
pub fn outputs_and_grads(
    inputs: &[Tensor],
    order: u8,
    f: &CaseFn,
    dtype: DType,
) -> (Vec<Tensor>, Vec<Tensor>) {
    let lift = |t: &Tensor| {
        if t.dtype() == DType::F64 { t.cast(dtype).placed().requires_grad() } else { t.clone().placed() }
    };
    let inputs: Vec<Tensor> = inputs.iter().map(lift).collect();
    let outputs = f(&inputs);
    let kept = outputs.iter().map(Tensor::detach).collect();
    if order == 0 {
        return (kept, Vec::new());
    }
    let mut rng = Philox::new(11);
    let weights: Vec<Tensor> = outputs.iter().map(|y| rng.normal(y.shape(), y.dtype())).collect();
    let wrt: Vec<&Tensor> = inputs.iter().filter(|t| t.var().is_some()).collect();
    let (outputs, weights): (Vec<&Tensor>, Vec<&Tensor>) =
        (outputs.iter().collect(), weights.iter().collect());
    let grads = autograd::grad(&outputs, &weights, &wrt, false);
    let or_zeros = |(g, w): (Option<Tensor>, &&Tensor)| g.unwrap_or_else(|| w.zeros_like());
    (kept, grads.into_iter().zip(&wrt).map(or_zeros).collect())
}

/// The Jacobian (D, D) of `f` at one example `x` (1, ...) of D numbers, in f64 by fourth-order central
/// differences; row i is output i.
///
/// # Panics
/// When f's output has another number of elements.
pub fn jacobian(x: &Tensor, f: impl Fn(&Tensor) -> Tensor) -> Tensor {
    const H: f64 = 1e-4;
    let d = x.len();
    let mut columns = Vec::with_capacity(d * d);
    for j in 0..d {
        let unit = |h: f64| Tensor::from_fn(x.shape(), |i| if i == j { h } else { 0.0 });
        let at = |h: f64| autograd::no_grad(|| f(&(x + &unit(h)))).to_f64_vec();
        let (a, b, c, e) = (at(H), at(-H), at(2.0 * H), at(-2.0 * H));
        assert_eq!(a.len(), d, "jacobian: {} outputs of {d} inputs", a.len());
        columns.extend((0..d).map(|i| (8.0 * (a[i] - b[i]) - (c[i] - e[i])) / (12.0 * H)));
    }
    Tensor::from_slice(&columns, [d, d]).permute(&[1, 0])
}
