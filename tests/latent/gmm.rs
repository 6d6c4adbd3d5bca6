//! The Gaussian mixture.

use serde_json::{Value, json};
use surprisal::data::Dataset;
use surprisal::models::latent::gmm::{Config, Gmm};
use surprisal::models::{Batch, Kind, Model, SampleOptions};
use surprisal::random::Philox;
use surprisal::{DType, Tensor};

fn config(changes: &[(&str, Value)]) -> Config {
    let mut config = json!({
        "shape": [2], "components": 3, "covariance": "full", "select": "none", "floor": 1e-6, "prior": 0.0,
        "restarts": 2, "iterations": 200, "tolerance": 1e-6
    });
    changes.iter().for_each(|(key, value)| config[*key] = value.clone());
    serde_json::from_value(config).expect("a configuration")
}

fn gmm(changes: &[(&str, Value)]) -> Gmm {
    Gmm::new(config(changes), &mut Philox::new(1)).expect("a valid configuration")
}

fn solved(changes: &[(&str, Value)], rows: &Tensor) -> (Gmm, Vec<f64>) {
    let model = gmm(&[changes, &[("shape", json!([rows.shape()[1]]))]].concat());
    let trace = model.solve(&Dataset::new("rows", rows.clone()), &mut Philox::new(2)).expect("fits");
    (model, trace.expect("a mixture solves itself"))
}

fn nats(model: &Gmm, rows: &Tensor) -> Vec<f64> {
    let found = model.log_prob(&Batch::new(rows.clone()), &mut Philox::new(0));
    assert_eq!(found.kind, Kind::Exact);
    found.nats.to_f64_vec()
}

/// Three heaps of 200 rows with weights 1 : 1 : 1, correlated, in very different units.
fn heaps() -> Tensor {
    let z = Philox::new(3).normal([600, 2], DType::F64);
    let z = z.as_slice::<f64>();
    Tensor::from_fn([600, 2], |i| {
        let (row, a, b) = (i / 2, z[i / 2 * 2], z[i / 2 * 2 + 1]);
        let (cx, cy) = [(0.0, 0.0), (8.0, 0.0), (0.0, 8.0)][row % 3];
        if i % 2 == 0 { (cx + a) as f32 } else { 1000.0 * (cy + 0.8 * a + 0.6 * b) as f32 }
    })
}

#[test]
fn heaps_are_recovered_and_bic_counts_them() {
    for covariance in ["full", "tied", "diagonal"] {
        let (_, trace) = solved(&[("covariance", json!(covariance))], &heaps());
        assert!(trace.windows(2).all(|w| w[1] < w[0] + 1e-6), "{covariance}: {trace:?}");
    }
    let (model, trace) = solved(&[("select", json!("bic")), ("components", json!(6))], &heaps());
    assert_eq!(model.components(), 3);
    // The heaps have one form: tied matrices are enough, and the density is that of the simpler model.
    let forms = [("select", json!("bic_forms")), ("components", json!(6))];
    let (chosen, _) = solved(&forms, &heaps());
    let (tied, _) = solved(&[("covariance", json!("tied")), ("components", json!(3))], &heaps());
    assert_eq!(chosen.components(), 3);
    let gap = nats(&chosen, &heaps())
        .iter()
        .zip(nats(&tied, &heaps()))
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max);
    assert!(gap < 0.05, "{gap} nats apart");
    // Entropy: ln 3 + 1 + ln 2π + ½ ln |Σ|, of which ln 0.6 + ln 1000.
    let entropy = 3f64.ln() + 1.0 + std::f64::consts::TAU.ln() + 600f64.ln();
    assert!((trace[trace.len() - 1] - entropy).abs() < 0.08, "{} nats for {entropy}", trace[trace.len() - 1]);
    let shares = model.log_responsibilities(&heaps()).exp().to_f64_vec();
    let own = |row: usize| shares[row * 6..][..6].iter().position(|s| *s > 0.99);
    assert!((3..600).all(|row| own(row).is_some() && own(row) == own(row % 3)));
}

#[test]
fn the_density_integrates_to_one_and_is_that_of_the_samples() {
    for covariance in ["full", "tied", "diagonal"] {
        let (model, _) = solved(&[("covariance", json!(covariance))], &heaps());
        let side = 200;
        let (dx, dy) = (24.0 / side as f64, 24_000.0 / side as f64);
        let grid = Tensor::from_fn([side * side, 2], |i| {
            let (x, y) = (i / 2 / side, i / 2 % side);
            if i % 2 == 0 { (-8.0 + dx * x as f64) as f32 } else { (-8000.0 + dy * y as f64) as f32 }
        });
        let mass: f64 = nats(&model, &grid).iter().map(|l| l.exp() * dx * dy).sum();
        assert!((mass - 1.0).abs() < 1e-3, "{covariance}: mass {mass}");
        let samples = model.sample(4000, &SampleOptions::default(), &mut Philox::new(5)).expect("samples");
        let mean = |l: Vec<f64>| l.iter().sum::<f64>() / l.len() as f64;
        let (own, data) = (mean(nats(&model, &samples)), mean(nats(&model, &heaps())));
        assert!((own - data).abs() < 0.1, "{covariance}: samples {own}, data {data}");
    }
}

#[test]
fn degenerate_tables_give_finite_densities() {
    let z = Philox::new(3).normal([12, 4], DType::F64);
    let z = z.as_slice::<f64>();
    // 12 rows of 8 columns: a constant, a duplicate, huge and tiny units.
    let rows = Tensor::from_fn([12, 8], |i| {
        let (row, column) = (i / 8, i % 8);
        match column {
            0 => 3.0,
            1 | 2 => z[row * 4],
            3 => 1e12 * z[row * 4 + 1],
            4 => 1e-12 * z[row * 4 + 2],
            _ => z[row * 4 + 3] + column as f64,
        }
    });
    let same = Tensor::full(2.5, [5, 3], DType::F32);
    for covariance in ["full", "tied", "diagonal"] {
        for (rows, components) in [(&rows, 5), (&rows, 20), (&same, 4)] {
            let (model, trace) =
                solved(&[("covariance", json!(covariance)), ("components", json!(components))], rows);
            assert!(trace.iter().all(|x| x.is_finite()));
            assert!(nats(&model, rows).iter().all(|l| l.is_finite()), "{covariance} {components}");
            let strange = Tensor::full(1e4, rows.shape(), rows.dtype());
            assert!(nats(&model, &strange)[0] < nats(&model, rows)[0]);
            assert!(model.params().iter().all(|(_, p)| p.get().to_f64_vec().iter().all(|x| x.is_finite())));
        }
    }
}

#[test]
fn what_is_not_finite_is_named() {
    let rows = Tensor::from_slice(&[1.0f32, 2.0, f32::INFINITY, 4.0], [2, 2]);
    let error = gmm(&[]).solve(&Dataset::new("rows", rows), &mut Philox::new(2)).expect_err("infinite");
    assert!(error.to_string().contains("rows: row 1, column 0: inf"), "{error}");
}

#[test]
fn impossible_configurations_are_errors() {
    for (key, value) in [
        ("components", json!(0)),
        ("floor", json!(0.0)),
        ("prior", json!(-1.0)),
        ("iterations", json!(0)),
        ("shape", json!([1 << 20])),
    ] {
        let error = Gmm::new(config(&[(key, value)]), &mut Philox::new(1)).err().expect("refused");
        assert!(error.to_string().contains(key), "{error}");
    }
}
