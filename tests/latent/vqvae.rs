//! The vector-quantised autoencoder.

use serde_json::{Value, json};
use surprisal::autograd;
use surprisal::data::Dataset;
use surprisal::models::latent::vqvae::{Config, VqVae};
use surprisal::models::{Batch, Kind, Model, SampleOptions};
use surprisal::random::Philox;
use surprisal::{DType, Tensor};

fn vqvae(changes: &[(&str, Value)]) -> VqVae {
    let mut config = json!({
        "shape": [4, 4, 1], "channels": [4], "codes": 4, "width": 3, "commitment": 0.25, "decay": 0.9,
        "likelihood": "bernoulli", "levels": 2, "components": 1, "prior_channels": 4, "prior_depth": 1
    });
    changes.iter().for_each(|(key, value)| config[*key] = value.clone());
    let config: Config = serde_json::from_value(config).expect("a configuration");
    VqVae::new(config, DType::F64, &mut Philox::new(1)).expect("a valid configuration")
}

/// All 65,536 binary images of 4 by 4, in order.
fn all_images() -> Tensor {
    Tensor::from_fn([1 << 16, 4, 4, 1], |i| (((i / 16) >> (i % 16)) & 1) as u8)
}

#[test]
fn the_bound_leaves_out_the_other_codes() {
    let model = vqvae(&[]);
    let found = autograd::no_grad(|| model.log_prob(&Batch::new(all_images()), &mut Philox::new(2)));
    let mass: f64 = found.nats.to_f64_vec().iter().map(|l| l.exp()).sum();
    assert!(found.kind == Kind::LowerBound && mass > 0.0 && mass < 1.0, "mass {mass}");
}

#[test]
fn training_uses_the_codebook_and_lowers_the_bound() {
    let model = vqvae(&[("shape", json!([8, 8, 1])), ("codes", json!(8))]);
    // Horizontal or vertical bars.
    let bars = Philox::new(3).randint(0, 16, [256]);
    let bars = bars.as_slice::<i32>();
    let x = Tensor::from_fn([256, 8, 8, 1], |i| {
        let (bar, row, column) = (bars[i / 64], i / 8 % 8, i % 8);
        u8::from(if bar < 8 { row == bar as usize } else { column == bar as usize - 8 })
    });
    let data = Dataset::new("bars", x.clone());
    let mean = || {
        autograd::no_grad(|| model.log_prob(&Batch::new(x.clone()), &mut Philox::new(2)))
            .nats
            .mean_all()
            .item()
    };
    let before = mean();
    let options =
        surprisal::train::FitOptions { steps: Some(400), batch: 64, lr: 5e-3, ..Default::default() };
    surprisal::train::fit(&model, &data, None, &options, &mut ()).expect("trains");
    let after = mean();
    assert!(after > before + 15.0, "from {before} to {after} nats");
    let mut used = model.indices(&x, &mut Philox::new(1)).as_slice::<u8>().to_vec();
    used.sort_unstable();
    used.dedup();
    assert!(used.len() >= 4, "codes in use: {used:?}");
    let samples = model.sample(7, &SampleOptions::default(), &mut Philox::new(4)).expect("samples");
    assert_eq!(samples.shape(), [7, 8, 8, 1]);
}

#[test]
fn gradients_pass_straight_through() {
    let model = vqvae(&[("shape", json!([8, 8, 1])), ("prior_channels", json!(16))]);
    let x = Batch::new(Philox::new(5).randint(0, 2, [16, 8, 8, 1]).cast(DType::U8));
    let leaves: Vec<Tensor> = model.params().trainable().map(|(_, p)| p.get()).collect();
    let book = model.params().get("codebook.entries").expect("a buffer");
    let before = book.get();
    let grads = autograd::backward(
        model.objective(&x, &mut Philox::new(1)).mean_all(),
        &leaves.iter().collect::<Vec<_>>(),
    );
    for ((name, _), g) in model.params().trainable().zip(&grads) {
        assert!(g.to_f64_vec().iter().any(|g| *g != 0.0), "{name} has no gradient");
    }
    assert!(book.get().as_bytes() != before.as_bytes(), "the codebook follows in training");
    let now = book.get();
    autograd::no_grad(|| model.objective(&x, &mut Philox::new(1)));
    assert!(book.get().as_bytes() == now.as_bytes(), "and rests otherwise");
}

#[test]
fn impossible_configurations_are_errors() {
    for (key, value) in [
        ("codes", json!(1)),
        ("codes", json!(257)),
        ("decay", json!(1.0)),
        ("commitment", json!(-1.0)),
        ("channels", json!([])),
        ("shape", json!([5, 4, 1])),
        ("prior_channels", json!(3)),
    ] {
        let mut config = json!({
            "shape": [4, 4, 1], "channels": [4], "codes": 4, "width": 3, "commitment": 0.25, "decay": 0.9,
            "likelihood": "bernoulli", "levels": 2, "components": 1, "prior_channels": 4, "prior_depth": 1
        });
        config[key] = value;
        let config: Config = serde_json::from_value(config).expect("a configuration");
        assert!(VqVae::new(config, DType::F32, &mut Philox::new(1)).is_err(), "{key}");
    }
}
