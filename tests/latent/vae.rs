//! The variational autoencoder.

use serde_json::{Value, json};
use surprisal::autograd;
use surprisal::cpu::buffer;
use surprisal::data::Dataset;
use surprisal::models::latent::vae::{Config, INFO, Vae};
use surprisal::models::{Batch, Kind, MODELS, Model, SampleOptions, config};
use surprisal::random::Philox;
use surprisal::{DType, Tensor};

fn config(changes: &[(&str, Value)]) -> Config {
    let mut config = json!({
        "shape": [6], "channels": [], "hidden": [8], "latent": 2, "likelihood": "bernoulli", "levels": 2,
        "components": 1, "objective": "elbo", "samples": 1, "importance": 64
    });
    changes.iter().for_each(|(key, value)| config[*key] = value.clone());
    serde_json::from_value(config).expect("a configuration")
}

fn vae(changes: &[(&str, Value)]) -> Vae {
    Vae::new(config(changes), DType::F64, &mut Philox::new(1)).expect("a valid configuration")
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len() as f64
}

#[test]
fn vae28_is_the_reference_architecture() {
    let recipe = config::find(MODELS, "vae28").expect("a preset");
    let model = recipe.build().expect("builds");
    // nn.Conv2d(1, 32, 4), (32, 64, 4), Linear(3136, 256), (256, 64); (32, 256), (256, 3136), ConvTranspose2d(64,
    // 32, 4), (32, 1, 4)
    let conv = |i: usize, o: usize| 16 * i * o;
    let expected = [
        ("enc.0", conv(1, 32), 32),
        ("enc.2", conv(32, 64), 64),
        ("enc.5", 3136 * 256, 256),
        ("enc.7", 256 * 64, 64),
        ("dec.0", 32 * 256, 256),
        ("dec.2", 256 * 3136, 3136),
        ("dec.5", conv(64, 32), 32),
        ("dec.7", conv(32, 1), 1),
    ];
    for (name, weights, biases) in expected {
        let len = |part: &str| model.params().get(&format!("{name}.{part}")).map(|p| p.get().len());
        assert_eq!((len("weight"), len("bias")), (Some(weights), Some(biases)), "{name}");
    }
    assert_eq!(model.params().count(), 1_700_609);
    for (preset, _) in INFO.presets {
        config::find(MODELS, preset).expect("a preset").build().expect("builds");
    }
}

/// All 64 binary vectors of 6 bits.
fn all_bits() -> Tensor {
    Tensor::from_fn([64, 6], |i| (((i / 6) >> (i % 6)) & 1) as u8)
}

#[test]
fn the_estimates_of_all_inputs_sum_to_one() {
    let model = vae(&[]);
    let found = model.importance(&all_bits(), 4000, &mut Philox::new(2));
    let mass: f64 = found.nats.iter().map(|l| l.exp()).sum();
    let error: f64 = found.nats.iter().zip(&found.standard_error).map(|(l, e)| (l.exp() * e).powi(2)).sum();
    assert!(
        (mass - 1.0).abs() < 5.0 * error.sqrt() + 1e-9 && error.sqrt() < 0.02,
        "{mass} ± {}",
        error.sqrt()
    );
    assert_eq!(model.log_prob(&Batch::new(all_bits()), &mut Philox::new(2)).kind, Kind::LowerBound);
}

#[test]
fn more_samples_tighten_the_bound_and_the_standard_error_covers() {
    let model = vae(&[("latent", json!(3))]);
    let x = all_bits();
    let at = |k, seed| model.importance(&x, k, &mut Philox::new(seed));
    let truth = at(40_000, 0);
    let elbo = -mean(
        &autograd::no_grad(|| model.objective(&Batch::new(x.clone()), &mut Philox::new(3))).to_f64_vec(),
    );
    let means: Vec<f64> =
        [1, 8, 64].map(|k| mean(&(0..20).map(|s| mean(&at(k, s).nats)).collect::<Vec<_>>())).to_vec();
    assert!(elbo < mean(&truth.nats) && means[0] < means[1] && means[1] < means[2], "{elbo} {means:?}");
    assert!((means[2] - mean(&truth.nats)).abs() < 0.02);
    let many = at(256, 5);
    let rows = many.nats.iter().zip(&truth.nats).zip(&many.standard_error);
    let inside = rows.filter(|((a, b), e)| (**a - **b).abs() < 2.5 * **e).count();
    assert!(inside >= 60, "{inside} of 64 within 2.5 standard errors");
    assert!(many.effective.iter().all(|e| *e > 1.0 && *e <= 256.0 + 1e-6));
}

/// Peak bytes of vae28's importance sampling of 4 images with `samples` samples each.
fn peak(samples: usize) -> usize {
    let recipe = config::find(MODELS, "vae28").expect("a preset");
    let config = serde_json::from_value(recipe.config.clone()).expect("its configuration");
    let model = Vae::new(config, DType::F32, &mut Philox::new(1)).expect("builds");
    let x = Philox::new(4).randint(0, 256, [4, 28, 28, 1]).cast(DType::U8);
    let before = buffer::live_bytes();
    buffer::reset_peak();
    let found = model.importance(&x, samples, &mut Philox::new(5));
    assert!(found.nats.iter().all(|n| n.is_finite()));
    buffer::peak_bytes() - before
}

#[test]
fn memory_does_not_grow_with_the_samples() {
    const ALONE: &str = "SURPRISAL_TEST_ALONE";
    if std::env::var(ALONE).is_err() {
        // The peak is that of the whole process, so this test wants one of its own.
        let program = std::env::current_exe().expect("the test's program");
        let name = "vae::memory_does_not_grow_with_the_samples";
        let run = std::process::Command::new(program).args(["--exact", name]).env(ALONE, "1").output();
        let output = run.expect("starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let (few, many) = (peak(64), peak(640));
    assert!(many as f64 <= 1.2 * few as f64, "{few} bytes for 64 samples, {many} for 640");
}

/// `cargo test --release --test latent -- --ignored --nocapture vae::memory_table` prints the table of
/// benches/results/memory.md.
#[test]
#[ignore = "prints a table"]
fn memory_table() {
    println!("| samples per image | peak, MiB |\n|---|---|");
    for samples in [1, 16, 64, 256, 1024, 4096] {
        println!("| {samples} | {:.1} |", peak(samples) as f64 / f64::from(1 << 20));
    }
}

/// The mean gradient of the encoder over many draws, and the summed variance of its elements.
fn encoder_gradient(objective: &str, draws: u64) -> (Vec<f64>, f64) {
    let model = vae(&[("objective", json!(objective)), ("samples", json!(16))]);
    let leaves: Vec<Tensor> =
        model.params().trainable().filter(|(n, _)| n.starts_with("enc")).map(|(_, p)| p.get()).collect();
    let leaves: Vec<&Tensor> = leaves.iter().collect();
    let x = Batch::new(all_bits().narrow(0, 20, 4));
    let (mut sum, mut squares) = (Vec::new(), Vec::new());
    for seed in 0..draws {
        let loss = model.objective(&x, &mut Philox::new(seed)).mean_all();
        let flat: Vec<f64> = autograd::backward(loss, &leaves).iter().flat_map(|g| g.to_f64_vec()).collect();
        sum.resize(flat.len(), 0.0);
        squares.resize(flat.len(), 0.0);
        for ((s, q), g) in sum.iter_mut().zip(&mut squares).zip(&flat) {
            (*s, *q) = (*s + g / draws as f64, *q + g * g / draws as f64);
        }
    }
    let variance = sum.iter().zip(&squares).map(|(s, q)| q - s * s).sum();
    (sum, variance)
}

#[test]
fn doubly_reparameterised_gradients_agree_on_average_and_vary_less() {
    let draws = 1500;
    let ((iwae, iwae_variance), (dreg, dreg_variance)) =
        (encoder_gradient("iwae", draws), encoder_gradient("dreg", draws));
    let distance: f64 = iwae.iter().zip(&dreg).map(|(a, b)| (a - b).powi(2)).sum();
    let expected = (iwae_variance + dreg_variance) / draws as f64;
    assert!(distance < 4.0 * expected, "squared distance {distance}, {expected} expected from noise");
    assert!(dreg_variance < 0.7 * iwae_variance, "variance {dreg_variance} against {iwae_variance}");
}

#[test]
fn the_decoder_has_the_same_gradient_under_both() {
    let gradient = |objective: &str| {
        let model = vae(&[("objective", json!(objective)), ("samples", json!(5))]);
        let leaves: Vec<Tensor> =
            model.params().trainable().filter(|(n, _)| n.starts_with("dec")).map(|(_, p)| p.get()).collect();
        let loss = model.objective(&Batch::new(all_bits()), &mut Philox::new(3)).mean_all();
        autograd::backward(loss, &leaves.iter().collect::<Vec<_>>())
    };
    assert!(surprisal::testing::max_error(&gradient("iwae"), &gradient("dreg")) < 1e-12);
}

#[test]
fn every_likelihood_trains_scores_and_samples() {
    for (shape, channels, likelihood, components) in [
        (json!([8, 8, 1]), json!([3, 4]), "bernoulli", 1),
        (json!([8, 8, 1]), json!([3]), "logistic", 1),
        (json!([8, 8, 3]), json!([4]), "logistic", 3),
        (json!([8, 4, 3]), json!([]), "logistic", 1),
        (json!([8, 8, 2]), json!([3]), "gaussian", 1),
    ] {
        let model = vae(&[
            ("shape", shape.clone()),
            ("channels", channels),
            ("likelihood", json!(likelihood)),
            ("levels", json!(256)),
            ("components", json!(components)),
            ("importance", json!(3)),
        ]);
        let sizes: Vec<usize> = serde_json::from_value(shape).expect("a shape");
        let x = Philox::new(4).randint(0, 256, [&[2], &sizes[..]].concat()).cast(DType::U8);
        let leaves: Vec<(String, Tensor)> =
            model.params().trainable().map(|(n, p)| (n.to_string(), p.get())).collect();
        let loss = model.objective(&Batch::new(x.clone()), &mut Philox::new(2)).mean_all();
        let grads = autograd::backward(loss, &leaves.iter().map(|(_, t)| t).collect::<Vec<_>>());
        for ((name, _), g) in leaves.iter().zip(&grads) {
            assert!(g.to_f64_vec().iter().any(|g| *g != 0.0), "{likelihood}: {name} has no gradient");
        }
        let found = autograd::no_grad(|| model.log_prob(&Batch::new(x), &mut Philox::new(2)));
        let kind = if likelihood == "bernoulli" { Kind::Unnormalised } else { Kind::LowerBound };
        assert!(found.kind == kind && found.nats.to_f64_vec().iter().all(|n| n.is_finite()));
        let samples = model.sample(5, &SampleOptions::default(), &mut Philox::new(1)).expect("samples");
        assert_eq!((samples.shape(), samples.dtype()), (&[&[5], &sizes[..]].concat()[..], DType::U8));
    }
}

#[test]
fn a_recorded_log_prob_is_the_same_number() {
    let model = vae(&[]);
    let x = Batch::new(all_bits());
    let recorded = model.log_prob(&x, &mut Philox::new(7)).nats;
    let plain = autograd::no_grad(|| model.log_prob(&x, &mut Philox::new(7))).nats;
    assert!(surprisal::testing::max_error(&[recorded.detach()], &[plain]) < 1e-12);
    assert!(recorded.var().is_some());
}

/// Rows on a noisy circle in very different units, and a constant column.
fn circle(n: usize) -> Tensor {
    let u = Philox::new(3).uniform([n], DType::F64);
    let e = Philox::new(4).normal([n, 2], DType::F64);
    let (u, e) = (u.as_slice::<f64>(), e.as_slice::<f64>());
    Tensor::from_fn([n, 3], |i| {
        let (row, angle) = (i / 3, u[i / 3] * std::f64::consts::TAU);
        match i % 3 {
            0 => (angle.cos() + 0.1 * e[2 * row]) as f32,
            1 => (1000.0 * (angle.sin() + 0.1 * e[2 * row + 1])) as f32,
            _ => 7.0,
        }
    })
}

#[test]
fn a_table_is_learned_in_its_own_units() {
    let changes = [
        ("shape", json!([3])),
        ("hidden", json!([32])),
        ("likelihood", json!("gaussian")),
        ("levels", json!(256)),
    ];
    let model = Vae::new(config(&changes), DType::F32, &mut Philox::new(1)).expect("builds");
    let train = Dataset::new("circle", circle(1000));
    let options =
        surprisal::train::FitOptions { steps: Some(600), batch: 100, lr: 3e-3, ..Default::default() };
    surprisal::train::fit(&model, &train, None, &options, &mut ()).expect("trains");
    let nats = |x: &Tensor| model.importance(x, 200, &mut Philox::new(1)).nats;
    let odd = Tensor::from_slice(&[0.0f32, 3000.0, 7.0, 1.0, 0.0, 8.0], [2, 3]);
    let (normal, odd) = (nats(&train.values), nats(&odd));
    let mut sorted = normal.clone();
    sorted.sort_by(f64::total_cmp);
    assert!(odd.iter().all(|o| *o < sorted[50]), "{odd:?} against {} at 5%", sorted[50]);
    let samples = model.sample(300, &SampleOptions::default(), &mut Philox::new(2)).expect("samples");
    let radius: Vec<f64> = samples.to_f64_vec().chunks(3).map(|r| r[0].hypot(r[1] / 1000.0)).collect();
    assert!((mean(&radius) - 1.0).abs() < 0.2, "samples lie at radius {}", mean(&radius));
}

#[test]
fn refitting_the_posterior_never_lowers_the_bound() {
    let model = vae(&[]);
    let found = model.refit(&all_bits(), 100, 0.05, 8, &mut Philox::new(1));
    assert!(found.before.iter().zip(&found.after).all(|(b, a)| a >= b));
    let gain = mean(&found.after) - mean(&found.before);
    let truth = mean(&model.importance(&all_bits(), 4000, &mut Philox::new(1)).nats);
    assert!(
        gain > 1e-3 && mean(&found.after) < truth + 0.1,
        "gain {gain}, {} of {truth}",
        mean(&found.after)
    );
}

#[test]
fn impossible_configurations_are_errors() {
    for (key, value) in [
        ("latent", json!(0)),
        ("levels", json!(7)),
        ("samples", json!(0)),
        ("shape", json!([2, 2])),
        ("channels", json!([3])),
        ("hidden", json!([1 << 20])),
        ("components", json!(0)),
    ] {
        assert!(Vae::new(config(&[(key, value)]), DType::F32, &mut Philox::new(1)).is_err(), "{key}");
    }
}
