//! The hierarchical variational autoencoder.

use serde_json::{Value, json};
use surprisal::autograd;
use surprisal::models::latent::hvae::{Config, Hvae};
use surprisal::models::{Batch, Model, SampleOptions, Statistic};
use surprisal::random::Philox;
use surprisal::{DType, Tensor};

fn config(changes: &[(&str, Value)]) -> Config {
    let mut config = json!({
        "shape": [6], "channels": [], "hidden": [8, 6, 4], "latents": [3, 2, 2], "likelihood": "bernoulli",
        "levels": 2, "components": 1, "free_bits": 0.0, "importance": 16
    });
    changes.iter().for_each(|(key, value)| config[*key] = value.clone());
    serde_json::from_value(config).expect("a configuration")
}

fn hvae(changes: &[(&str, Value)]) -> Hvae {
    Hvae::new(config(changes), DType::F64, &mut Philox::new(1)).expect("a valid configuration")
}

/// Images of 4x4 pixels with a latent at 2x2 and one at a single pixel, below two vectors.
fn with_maps(changes: &[(&str, Value)]) -> Hvae {
    let shape = [
        ("shape", json!([4, 4, 1])),
        ("channels", json!([3, 5])),
        ("maps", json!([2, 1])),
        ("hidden", json!([6, 4])),
        ("latents", json!([2, 2])),
    ];
    hvae(&[&shape, changes].concat())
}

/// The first 256 patterns of 16 bits.
fn pixels() -> Tensor {
    Tensor::from_fn([256, 4, 4, 1], |i| (((i / 16) >> (i % 16)) & 1) as u8)
}

/// All 64 binary vectors of 6 bits.
fn all_bits() -> Tensor {
    Tensor::from_fn([64, 6], |i| (((i / 6) >> (i % 6)) & 1) as u8)
}

#[test]
fn the_estimates_of_all_inputs_sum_to_one() {
    let model = hvae(&[("importance", json!(3000))]);
    let nats = autograd::no_grad(|| model.log_prob(&Batch::new(all_bits()), &mut Philox::new(2))).nats;
    let mass: f64 = nats.to_f64_vec().iter().map(|l| l.exp()).sum();
    assert!((mass - 1.0).abs() < 0.02, "mass {mass}");
}

#[test]
fn the_objective_bounds_the_likelihood_and_its_kl_is_right() {
    for (x, model) in [(all_bits(), hvae as fn(&[(&str, Value)]) -> Hvae), (pixels(), with_maps)] {
        bounds(&Batch::new(x), model);
    }
}

/// Without free bits E[objective] = −E[ln w], in closed form on one side and by sampling on the other.
fn bounds(x: &Batch, hvae: fn(&[(&str, Value)]) -> Hvae) {
    let model = hvae(&[("importance", json!(1))]);
    let mean = |x: Tensor| x.mean_all().item();
    let (mut closed, mut sampled) = (0.0, 0.0);
    for seed in 0..400 {
        autograd::no_grad(|| {
            closed -= mean(model.objective(x, &mut Philox::new(seed))) / 400.0;
            sampled += mean(model.log_prob(x, &mut Philox::new(seed + 1000)).nats) / 400.0;
        });
    }
    let bound = hvae(&[("importance", json!(1000))]);
    let truth = mean(autograd::no_grad(|| bound.log_prob(x, &mut Philox::new(1))).nats);
    assert!((closed - sampled).abs() < 0.03 && closed < truth + 0.02, "{closed} {sampled} {truth}");
}

#[test]
fn free_bits_hold_the_objective_up() {
    let x = Batch::new(all_bits());
    let at = |free: f64| {
        let model = hvae(&[("free_bits", json!(free))]);
        autograd::no_grad(|| model.objective(&x, &mut Philox::new(1))).mean_all().item()
    };
    // Three layers that use almost nothing count as their allowance.
    assert!((at(50.0) - at(40.0) - 30.0).abs() < 1e-9 && at(0.0) < at(40.0) - 100.0);
}

#[test]
fn a_prior_in_place_of_the_posterior_costs_what_the_layer_knew() {
    let model = hvae(&[]);
    let x = all_bits();
    for k in [1, 2] {
        let llr = model.llr(&x, k, 400, &mut Philox::new(3));
        // A fresh model's layers know little, and what they know is worth less than their KL.
        let size = llr.abs().mean_all().item();
        assert!(llr.shape() == [64] && size < 0.3, "k = {k}: a mean of {size} nats");
    }
    let found = Statistic::LlrK.of(&model, &Batch::new(x), &mut Philox::new(4)).expect("offered");
    assert_eq!(found.shape(), [64, 1]);
    assert!(!Statistic::Regret.offered_by(&model));
    let (model, x) = (with_maps(&[]), pixels());
    assert!(model.llr(&x, 3, 2, &mut Philox::new(3)).to_f64_vec().iter().all(|r| r.is_finite()));
    // Of the four layers two keep the grid: those are what the scorer leaves out.
    let found = Statistic::LlrK.of(&model, &Batch::new(x.clone()), &mut Philox::new(4)).expect("offered");
    assert_eq!(found.to_f64_vec(), model.llr(&x, 2, 16, &mut Philox::new(4)).to_f64_vec());
}

#[test]
fn maps_keep_the_grid_of_their_convolution() {
    let model = with_maps(&[]);
    let shape =
        |name: &str| model.params().get(name).unwrap_or_else(|| panic!("{name}")).get().shape().to_vec();
    // 3x3; features of the encoder and from above, two numbers for each map.
    assert_eq!(shape("grids.0.posterior.weight"), [3, 3, 6, 4]);
    assert_eq!(shape("grids.1.prior.weight"), [3, 3, 5, 2]);
    assert_eq!(shape("layers.0.posterior.weight"), [12, 4]);
    let drawn = model.sample(3, &SampleOptions::default(), &mut Philox::new(1)).expect("samples");
    assert_eq!(drawn.shape(), [3, 4, 4, 1]);
}

#[test]
fn impossible_configurations_are_errors() {
    let bad = [
        ("hidden", json!([3])),
        ("latents", json!([0, 1, 1])),
        ("free_bits", json!(-1.0)),
        ("maps", json!([4])),
    ];
    let wide = [("shape", json!([4, 4, 1])), ("channels", json!([60000])), ("maps", json!([8]))];
    let error = Hvae::new(config(&wide), DType::F32, &mut Philox::new(1)).err().expect("too wide");
    assert!(error.to_string().contains("parameters"), "{error}");
    for (key, value) in bad {
        let config = config(&[(key, value)]);
        let error = Hvae::new(config, DType::F32, &mut Philox::new(1)).err().expect(key);
        assert!(error.to_string().contains("hvae"), "{error}");
    }
}
