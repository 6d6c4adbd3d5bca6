//! Glow as a model: inverse, log-determinant, total mass, gradients, sampling, presets.

use surprisal::autograd;
use surprisal::bijections::{Bijection, Chain, FlowStep, Memory, Mixing};
use surprisal::data::Dataset;
use surprisal::data::{Prepare, Transform};
use surprisal::models::flow::glow::{GLOW, Glow, GlowConfig};
use surprisal::models::{Batch, Kind, Model, SampleOptions};
use surprisal::nn::{Init, ParamStore};
use surprisal::ops::coupling::Coupling;
use surprisal::ops::linalg::log_abs_det;
use surprisal::ops::normal_logp::normal_logp;
use surprisal::random::Philox;
use surprisal::testing::{jacobian, max_error};
use surprisal::{DType, Tensor};

fn tiny(shape: [usize; 3], levels: usize, prepare: Vec<Transform>) -> GlowConfig {
    GlowConfig {
        shape,
        levels,
        depth: 2,
        hidden: 4,
        coupling: Coupling::Sigmoid,
        invertible: Mixing::Dense,
        memory: Memory::Store,
        prepare: Prepare::new(prepare).expect("valid transforms"),
    }
}

/// The parameters moved off their start, where couplings do nothing.
fn stir(params: &ParamStore, spread: f64) {
    let mut rng = Philox::new(9);
    for (_, param) in params.iter() {
        let value = param.get().detach();
        let noise = rng.normal(value.shape(), value.dtype()).affine(spread, 0.0);
        param.set(&(&value + &noise));
    }
}

fn glow(config: GlowConfig, dtype: DType) -> Glow {
    let glow = Glow::new(config, dtype, &mut Philox::new(1)).expect("a valid configuration");
    stir(glow.params(), 0.1);
    glow
}

fn bytes(n: usize, shape: [usize; 3]) -> Tensor {
    let [h, w, c] = shape;
    Philox::new(4).randint(0, 256, [n, h, w, c]).cast(DType::U8)
}

fn presets() -> impl Iterator<Item = (&'static str, serde_json::Value)> {
    let parse = |text| toml::from_str::<serde_json::Value>(text).expect("a preset is TOML");
    GLOW.presets.iter().map(move |&(name, text)| (name, parse(text)))
}

#[test]
fn glow28_is_the_reference_architecture() {
    let (name, config) = presets().next().expect("a first preset");
    assert_eq!(name, "glow28");
    let model = (GLOW.build)(&config, &mut Philox::new(1)).expect("the preset builds");
    assert_eq!(model.params().count(), 433_056);
    assert_eq!(model.config(), config, "a preset names every key");
    let shape = |name: &str| model.params().get(name).expect(name).get().shape().to_vec();
    assert_eq!(shape("top.0.loc"), [4]);
    assert_eq!(shape("top.7.weight"), [4, 4]);
    assert_eq!(shape("top.3.net.0.weight"), [3, 3, 2, 128]);
    assert_eq!(shape("bottom.3.net.2.weight"), [1, 1, 128, 128]);
    assert_eq!(shape("bottom.7.net.4.weight"), [3, 3, 128, 8]);
    assert_eq!(shape("bottom.7.net.4.bias"), [8]);
}

#[test]
fn every_preset_names_every_key_and_builds() {
    for (name, config) in presets().skip(1) {
        let model = (GLOW.build)(&config, &mut Philox::new(1)).expect(name);
        assert_eq!(model.config(), config, "{name}");
    }
}

#[test]
fn impossible_configurations_are_refused() {
    let base = presets().next().expect("a preset").1;
    for (key, value, names) in [
        ("shape", serde_json::json!([30, 28, 1]), "multiples of 4"),
        ("shape", serde_json::json!([0, 28, 1]), "shape (height) is 0"),
        ("depth", serde_json::json!(1_000_000_000), "depth is 1000000000"),
        ("coupling", serde_json::json!("cubic"), "cubic"),
        ("prepare", serde_json::json!([{ "kind": "standardise", "mean": [0.0], "std": [1.0] }]), "784"),
    ] {
        let mut config = base.clone();
        config[key] = value;
        let error = (GLOW.build)(&config, &mut Philox::new(1)).map(|_| ()).expect_err(key);
        assert!(error.to_string().contains(names), "{error} should name {names}");
    }
}

#[test]
fn decode_inverts_encode() {
    for (coupling, invertible) in [
        (Coupling::Sigmoid, Mixing::Dense),
        (Coupling::Exp, Mixing::Plu),
        (Coupling::Tanh, Mixing::Dense),
        (Coupling::Additive, Mixing::Plu),
    ] {
        for (dtype, allowed) in [(DType::F64, 1e-11), (DType::F32, 2e-5)] {
            let config = GlowConfig { coupling, invertible, ..tiny([8, 4, 3], 2, vec![]) };
            let glow = glow(config, dtype);
            let x = Philox::new(2).normal([3, 8, 4, 3], dtype);
            let (latents, logdet) = glow.encode(&x);
            assert_eq!(logdet.shape(), [3]);
            for (z, shape) in latents.iter().zip(glow.latent_shapes(3)) {
                assert_eq!(z.shape(), shape);
            }
            let error = max_error(&[glow.decode(&latents)], &[x]);
            assert!(error < allowed, "{coupling:?} {invertible:?} {dtype:?}: off by {error:e}");
        }
    }
}

#[test]
fn the_log_determinant_is_that_of_the_jacobian() {
    let glow = glow(tiny([4, 4, 1], 2, vec![]), DType::F64);
    let x = Philox::new(3).normal([1, 4, 4, 1], DType::F64);
    let flat = |x: &Tensor| {
        let (latents, _) = glow.encode(x);
        let rows: Vec<Tensor> = latents.iter().map(|z| z.reshape([1, z.len()])).collect();
        surprisal::ops::shape::concat(&rows.iter().collect::<Vec<_>>(), 1)
    };
    let (want, got) = (log_abs_det(&jacobian(&x, flat)).item(), glow.encode(&x).1.item());
    assert!((want - got).abs() < 1e-7, "log-det {got}, Jacobian {want}");
}

/// The sum of a density over a grid, which for smooth densities that vanish at its edge converges like a spectrum.
fn mass(d: usize, per_axis: usize, edge: f64, log_density: impl Fn(&Tensor) -> Tensor) -> f64 {
    let step = 2.0 * edge / per_axis as f64;
    let n = per_axis.pow(d as u32);
    let point = |i: usize, k: usize| (i / per_axis.pow(k as u32) % per_axis) as f64 * step - edge;
    let batches = (0..n).step_by(1 << 14).map(|first| {
        let b = (n - first).min(1 << 14);
        let x = Tensor::from_fn([b, d], |e| point(first + e / d, e % d));
        log_density(&x).to_f64_vec().into_iter().map(f64::exp).sum::<f64>()
    });
    batches.sum::<f64>() * step.powi(d as i32)
}

#[test]
fn two_dimensions_hold_mass_one() {
    let (mut params, mut rng) = (ParamStore::default(), Philox::new(6));
    let mut init = Init::new(&mut params, &mut rng, DType::F64);
    let mut step = |k: usize| {
        Box::new(FlowStep::new(&mut init.sub(k), 2, 4, Coupling::Tanh, Mixing::Dense)) as Box<dyn Bijection>
    };
    let flow = Chain { parts: (0..3).map(&mut step).collect() };
    stir(&params, 0.3);
    let total = mass(2, 160, 16.0, |x| {
        let (z, logdet) = flow.forward(&x.reshape([x.shape()[0], 1, 1, 2]));
        &normal_logp(&z) + &logdet
    });
    assert!((total - 1.0).abs() < 1e-4, "the mass is {total}");
}

#[test]
fn a_four_dimensional_glow_holds_mass_one() {
    let glow = glow(tiny([2, 2, 1], 1, vec![]), DType::F64);
    let total = mass(4, 24, 9.0, |x| glow.log_prob_continuous(&x.reshape([x.shape()[0], 2, 2, 1])));
    assert!((total - 1.0).abs() < 1e-3, "the mass is {total}");
}

#[test]
fn every_parameter_has_a_gradient_whatever_is_kept() {
    let shape = [8, 8, 1];
    for invertible in [Mixing::Dense, Mixing::Plu] {
        let prepare = vec![Transform::Dequantise, Transform::Logit { alpha: 0.05 }];
        let grads = |memory| {
            let glow = glow(GlowConfig { memory, invertible, ..tiny(shape, 2, prepare.clone()) }, DType::F64);
            let nats = glow.log_prob(&Batch::new(bytes(3, shape)), &mut Philox::new(5)).nats;
            let leaves: Vec<Tensor> = glow.params().iter().map(|(_, p)| p.get()).collect();
            let grads = autograd::backward(nats.mean_all(), &leaves.iter().collect::<Vec<_>>());
            for ((name, _), grad) in glow.params().iter().zip(&grads) {
                assert!(grad.to_f64_vec().iter().any(|g| *g != 0.0), "{name} has no gradient");
            }
            grads
        };
        let error = max_error(&grads(Memory::Rebuild), &grads(Memory::Store));
        assert!(error < 1e-8, "{invertible:?}: rebuilt activations change the gradient by {error:e}");
    }
}

#[test]
fn log_prob_is_that_of_the_bytes() {
    let shape = [4, 4, 1];
    let glow = glow(tiny(shape, 1, vec![Transform::Dequantise]), DType::F32);
    let x = bytes(2, shape);
    let got = glow.log_prob(&Batch::new(x.clone()), &mut Philox::new(5));
    assert_eq!(got.kind, Kind::LowerBound);
    let noise = Philox::new(5).uniform(x.shape(), DType::F32);
    let continuous = (&x.cast(DType::F32) + &noise).affine(1.0 / 256.0, 0.0);
    let want = glow.log_prob_continuous(&continuous).affine(1.0, -16.0 * 256f64.ln());
    assert!(max_error(&[got.nats], &[want]) < 1e-5);
}

#[test]
fn samples_repeat_with_the_seed_and_stay_bytes() {
    let shape = [8, 8, 3];
    let glow = glow(tiny(shape, 2, vec![Transform::Dequantise]), DType::F32);
    let sample = |seed, temperature| {
        let options = SampleOptions { temperature, ..SampleOptions::default() };
        glow.sample(5, &options, &mut Philox::new(seed)).expect("an unconditional sample")
    };
    let x = sample(1, 1.0);
    assert_eq!((x.shape(), x.dtype()), (&[5, 8, 8, 3][..], DType::U8));
    assert_eq!(x.as_bytes(), sample(1, 1.0).as_bytes());
    assert_ne!(x.as_bytes(), sample(2, 1.0).as_bytes());
    let cold = sample(1, 0.0);
    assert_eq!(cold.as_bytes()[..192], cold.as_bytes()[192..384], "without noise all samples are alike");
    assert!(
        glow.sample(1, &SampleOptions { label: Some(3), ..SampleOptions::default() }, &mut Philox::new(1))
            .is_err()
    );
}

#[test]
fn initialisation_from_data_standardises_the_latents() {
    let shape = [8, 8, 1];
    let config = tiny(shape, 2, vec![Transform::Dequantise]);
    let glow = Glow::new(config, DType::F32, &mut Philox::new(1)).expect("a valid configuration");
    let batch = Batch::new(bytes(64, shape));
    let before = glow.log_prob(&batch, &mut Philox::new(2)).nats.mean_all().item();
    let train = Dataset::new("bytes", batch.x.clone());
    glow.init_from(&train, &batch, &mut Philox::new(2));
    let after = glow.log_prob(&batch, &mut Philox::new(2)).nats.mean_all().item();
    assert!(after > before, "log p went from {before} to {after}");
    let log_scale = glow.params().get("top.0.log_scale").expect("the first actnorm").get();
    assert!(log_scale.to_f64_vec().iter().all(|s| *s > 0.5), "uniform bytes have a deviation of 0.29");
}
