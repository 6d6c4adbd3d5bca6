//! Gaps between values, and the models that smooth them: the kernel density, and mixtures with `blur`.

use serde_json::json;
use surprisal::cpu::cholesky;
use surprisal::data::{Dataset, grain};
use surprisal::models::latent::{gmm, parzen};
use surprisal::models::{Batch, Model};
use surprisal::random::Philox;
use surprisal::{DType, Tensor};

fn kernels(rows: &Tensor, blur: bool) -> parzen::Parzen {
    let [n, d] = rows.dims();
    let config = parzen::Config { shape: [d], rows: n, neighbours: 5, least: 0.01, blur };
    let model = parzen::Parzen::new(config, &mut Philox::new(1)).expect("a possible configuration");
    solve(&model, rows);
    model
}

fn solve(model: &dyn Model, rows: &Tensor) {
    let data = Dataset::new("rows", rows.clone());
    model.solve(&data, &mut Philox::new(2)).expect("rows to learn from").expect("its own algorithm");
}

fn nats(model: &dyn Model, x: &[f64], d: usize) -> Vec<f64> {
    let x = Tensor::from_slice(x, [x.len() / d, d]);
    model.log_prob(&Batch::new(x), &mut Philox::new(0)).nats.to_f64_vec()
}

#[test]
fn gaps_are_those_of_most_cells() {
    // Counts with an outlier, a constant, halves, a column with missing cells.
    let rows = [
        [0.0, 7.0, 0.5, f64::NAN],
        [0.0, 7.0, 1.0, 2.0],
        [1.0, 7.0, 1.5, f64::NAN],
        [2.0, 7.0, 1.5, 5.0],
        [90.0, 7.0, 1.0, f64::NAN],
    ];
    let values = Tensor::from_slice(&rows.concat(), [5, 4]);
    assert_eq!(grain::gaps(&values), [1.0, 0.0, 0.5, 3.0]);
    assert_eq!(grain::blur(&values, &[2.0, 1.0, 0.1, 3.0]), [0.25, 0.0, 0.5, 0.5]);
    let of = |n: usize| grain::gaps(&Philox::new(1).normal([n, 1], DType::F64))[0];
    assert!(of(100) > 3.0 * of(1000) && of(1000) > 0.0, "finer samples of a continuum have smaller gaps");
}

/// Of 2,000 normal numbers: within .05 nats of their density on average.
#[test]
fn kernels_find_a_normal() {
    let model = kernels(&Philox::new(3).normal([2000, 1], DType::F64), true);
    let fresh = Philox::new(4).normal([2000, 1], DType::F64).to_f64_vec();
    let truth = |x: f64| -0.5 * x * x - 0.918_938_533_204_672_8;
    let lost: Vec<f64> = nats(&model, &fresh, 1).iter().zip(&fresh).map(|(l, x)| truth(*x) - l).collect();
    let lost = lost.iter().sum::<f64>() / 2000.0;
    assert!((-0.01..0.05).contains(&lost), "{lost} nats");
}

/// Counts have no wells between them with `blur`, and deep ones without.
#[test]
fn counts_are_smoothed() {
    let rows = Philox::new(5).randint(0, 4, [400, 1]).cast(DType::F64);
    let depth = |model: &dyn Model| {
        let nats = nats(model, &[1.0, 1.5, 2.0], 1);
        nats[0].max(nats[2]) - nats[1]
    };
    let mixture = |blur: bool| {
        let config = json!({
            "shape": [1], "components": 4, "covariance": "full", "select": "none", "floor": 1e-4, "blur": blur,
            "prior": 0.0, "restarts": 3, "iterations": 100, "tolerance": 1e-6
        });
        let config = serde_json::from_value(config).expect("a configuration");
        let model = gmm::Gmm::new(config, &mut Philox::new(1)).expect("a possible configuration");
        solve(&model, &rows);
        model
    };
    let [smooth, rough] = [true, false].map(|blur| depth(&kernels(&rows, blur)));
    assert!(smooth < 0.3 && rough > 3.0, "kernels: {smooth} and {rough}");
    let [smooth, rough] = [true, false].map(|blur| depth(&mixture(blur)));
    assert!(smooth < 0.3 && rough > 3.0, "mixture: {smooth} and {rough}");
}

#[test]
fn one_row_and_equal_rows_have_finite_densities() {
    for rows in [Tensor::ones([1, 3], DType::F64), Tensor::ones([7, 3], DType::F64)] {
        let found = nats(&kernels(&rows, true), &[1.0, 1.0, 1.0, 5.0, 1.0, -1e4], 3);
        assert!(found[0] > found[1] && found.iter().all(|l| l.is_finite()), "{found:?}");
    }
}

#[test]
fn impossible_kernels_are_errors() {
    let good = parzen::Config { shape: [2], rows: 10, neighbours: 5, least: 0.01, blur: true };
    for (bad, key) in [
        (parzen::Config { shape: [0], ..good.clone() }, "shape"),
        (parzen::Config { rows: 0, ..good.clone() }, "rows"),
        (parzen::Config { neighbours: 0, ..good.clone() }, "neighbours"),
        (parzen::Config { least: 0.0, ..good.clone() }, "least"),
    ] {
        let error = parzen::Parzen::new(bad, &mut Philox::new(1)).err().expect("refused");
        assert!(error.to_string().contains(key), "{error}");
    }
}

/// The matrices of wide tables are factorised in blocks.
#[test]
fn factors_of_wide_matrices() {
    let n = 150;
    let b = Philox::new(6).normal([n, n], DType::F64);
    let product = |a: &[f64], b: &[f64]| -> Vec<f64> {
        (0..n * n).map(|ij| (0..n).map(|k| a[ij / n * n + k] * b[k * n + ij % n]).sum()).collect()
    };
    let transposed = |a: &[f64]| -> Vec<f64> { (0..n * n).map(|ij| a[ij % n * n + ij / n]).collect() };
    let b = b.as_slice::<f64>();
    let mut a = product(b, &transposed(b));
    (0..n).for_each(|i| a[i * n + i] += 1.0);
    let mut l = a.clone();
    assert!(cholesky::factor(&mut l, n));
    let far = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
    assert!(far(&product(&l, &transposed(&l)), &a) < 1e-10);
    let one: Vec<f64> = (0..n * n).map(|ij| f64::from(ij / n == ij % n)).collect();
    assert!(far(&product(&cholesky::invert_lower(&l, n), &l), &one) < 1e-10);
    a[n * n - 1] = -1.0;
    assert!(!cholesky::factor(&mut a, n));
}
