//! The hierarchical variational autoencoder.

use serde_json::{Value, json};
use surprisal::autograd;
use surprisal::models::latent::hvae::{Config, Hvae};
use surprisal::models::{Batch, Model, Statistic};
use surprisal::random::Philox;
use surprisal::{DType, Tensor};

fn hvae(changes: &[(&str, Value)]) -> Hvae {
    let mut config = json!({
        "shape": [6], "channels": [], "hidden": [8, 6, 4], "latents": [3, 2, 2], "likelihood": "bernoulli",
        "levels": 2, "components": 1, "free_bits": 0.0, "importance": 16
    });
    changes.iter().for_each(|(key, value)| config[*key] = value.clone());
    let config: Config = serde_json::from_value(config).expect("a configuration");
    Hvae::new(config, DType::F64, &mut Philox::new(1)).expect("a valid configuration")
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
    // Without free bits E[objective] = −E[ln w], in closed form on one side and by sampling on the other.
    let model = hvae(&[("importance", json!(1))]);
    let x = Batch::new(all_bits());
    let mean = |x: Tensor| x.mean_all().item();
    let (mut closed, mut sampled) = (0.0, 0.0);
    for seed in 0..400 {
        autograd::no_grad(|| {
            closed -= mean(model.objective(&x, &mut Philox::new(seed))) / 400.0;
            sampled += mean(model.log_prob(&x, &mut Philox::new(seed + 1000)).nats) / 400.0;
        });
    }
    let bound = hvae(&[("importance", json!(1000))]);
    let truth = mean(autograd::no_grad(|| bound.log_prob(&x, &mut Philox::new(1))).nats);
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
    let llr = model.llr(&x, 2000, &mut Philox::new(3));
    assert_eq!(llr.shape(), [64, 2]);
    // With enough samples both are log p(x): the ratio is 0 in the limit, for a model whose layers know little.
    let size = llr.abs().mean_all().item();
    assert!(size < 0.15, "a mean of {size} nats");
    let few = model.llr(&x, 1, &mut Philox::new(3)).to_f64_vec();
    assert!(few.iter().all(|r| r.is_finite()));
    let found = Statistic::LlrK.of(&model, &Batch::new(x), &mut Philox::new(4)).expect("offered");
    assert_eq!(found.shape(), [64, 2]);
    assert!(!Statistic::Regret.offered_by(&model));
}

#[test]
fn impossible_configurations_are_errors() {
    for (key, value) in [("hidden", json!([3])), ("latents", json!([0, 1, 1])), ("free_bits", json!(-1.0))] {
        let mut config = json!({
            "shape": [6], "channels": [], "hidden": [8, 6, 4], "latents": [3, 2, 2], "likelihood": "bernoulli",
            "levels": 2, "components": 1, "free_bits": 0.0, "importance": 16
        });
        config[key] = value;
        let config: Config = serde_json::from_value(config).expect("a configuration");
        assert!(Hvae::new(config, DType::F32, &mut Philox::new(1)).is_err(), "{key}");
    }
}
