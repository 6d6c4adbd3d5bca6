//! Principal components (Shyu, Chen, Sarinnapakorn & Chang 2003; Aggarwal 2015), in PyOD's form.
//!
//! ```text
//! score(x) = Σ_k |z − v_k| / r_k
//! ```
//! z: x standardised by the reference, v_k its principal directions (sign: the entry of largest magnitude is
//! positive), r_k the share of the variance along v_k, so small components weigh most. A share below 1e-16 counts as
//! that: if the reference lies in a subspace the score is essentially the distance from its mean, and stays finite.

use super::linalg::{self, dot};
use super::{DetectorInfo, Method, NoSettings, Scaling, Table, boxed, defaults};
use crate::cpu::gemm::{Epilogue, Mat, gemm};
use crate::cpu::par;
use crate::error::Result;
use crate::random::Philox;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub(super) static PCA: DetectorInfo = DetectorInfo {
    name: "pca",
    family: "covariance",
    summary: "distances to the principal directions, small components weighing most (Shyu et al. 2003)",
    scaling: Scaling::Standard,
    settings: defaults::<Pca>,
    build: boxed::<Pca>,
};

/// The least share of the variance.
const LEAST: f64 = 1e-16;
/// Rows per task.
const ROWS: usize = 128;

#[derive(Serialize, Deserialize)]
struct Pca {
    mean: Vec<f64>,
    /// Standard deviations; 1 for a constant column.
    std: Vec<f64>,
    /// (K, D) directions.
    directions: Table,
    /// 1/r_k, each.
    weights: Vec<f64>,
    /// Weight of the directions that the reference does not determine, all together; they are taken to be orthogonal
    /// to every row.
    rest: f64,
}

impl Method for Pca {
    const INFO: &'static DetectorInfo = &PCA;
    type Settings = NoSettings;

    fn fit(_: &NoSettings, reference: &Table, _: &Philox) -> Result<Self> {
        let (n, d) = (reference.rows(), reference.columns());
        let mean = reference.mean();
        let mut std = vec![0.0; d];
        for row in reference.iter() {
            std.iter_mut().zip(row).zip(&mean).for_each(|((s, x), m)| *s += (x - m) * (x - m));
        }
        let floor = |m: f64| (10.0 * f64::EPSILON * m).powi(2);
        std.iter_mut().zip(&mean).for_each(|(s, &m)| {
            let variance = *s / n as f64;
            *s = if variance <= floor(m) { 1.0 } else { variance.sqrt() };
        });
        let z = standardised(reference, &mean, &std);
        let (variances, directions) = if n < d { by_rows(&z) } else { by_columns(&z) };
        let total: f64 = variances.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        let weights: Vec<f64> = variances.iter().map(|v| 1.0 / (v / total).max(LEAST)).collect();
        let rest = (n.min(d) - directions.rows()) as f64 / LEAST;
        Ok(Self { mean, std, directions, weights, rest })
    }

    fn score(&self, x: &Table) -> Vec<f64> {
        let z = standardised(x, &self.mean, &self.std);
        let (d, k) = (z.columns(), self.directions.rows());
        let mut out = vec![0.0; x.rows()];
        par::chunks_mut(&mut out, ROWS, |chunk, out| {
            let rows = &z.values()[chunk * ROWS * d..][..out.len() * d];
            let mut products = vec![0.0; out.len() * k];
            let directions = Mat::t(self.directions.values(), d);
            gemm(
                out.len(),
                k,
                d,
                Mat::new(rows, d),
                directions,
                &mut products,
                k.max(1),
                &Epilogue::default(),
            );
            for ((o, z), products) in
                out.iter_mut().zip(rows.chunks_exact(d)).zip(products.chunks_exact(k.max(1)))
            {
                let square = 1.0 + dot(z, z);
                let distance = |p: &f64| (square - 2.0 * p).max(0.0).sqrt();
                let known: f64 = products.iter().zip(&self.weights).map(|(p, w)| distance(p) * w).sum();
                *o = known + self.rest * square.sqrt();
            }
        });
        out
    }

    fn columns(&self) -> Option<usize> {
        let (d, k) = (self.mean.len(), self.directions.rows());
        let positive = self.std.iter().chain(&self.weights).all(|&x| x > 0.0 && x.is_finite());
        let fits = self.std.len() == d && self.directions.columns() == d && self.weights.len() == k;
        (fits && k > 0 && positive && self.rest >= 0.0 && self.rest.is_finite()).then_some(d)
    }
}

fn standardised(x: &Table, mean: &[f64], std: &[f64]) -> Table {
    Table::from_rows(x.rows(), x.columns(), |i, out| {
        let cells = x.row(i).iter().zip(mean).zip(std);
        out.iter_mut().zip(cells).for_each(|(o, ((x, m), s))| *o = (x - m) / s);
    })
}

/// Variances and directions, the largest first, from the (D, D) covariance.
fn by_columns(z: &Table) -> (Vec<f64>, Table) {
    let d = z.columns();
    let (values, vectors) = linalg::eigen(linalg::covariance(z, &z.mean()), d);
    let directions = Table::from_rows(d, d, |k, row| {
        row.copy_from_slice(&vectors[(d - 1 - k) * d..][..d]);
        orient(row);
    });
    (values.into_iter().rev().map(|v| v.max(0.0)).collect(), directions)
}

/// The same for fewer rows than columns. Directions of no variance are left out, at least one is kept.
fn by_rows(z: &Table) -> (Vec<f64>, Table) {
    let (values, directions) = linalg::by_rows(z, &z.mean());
    let directions = Table::from_rows(directions.rows(), z.columns(), |k, row| {
        row.copy_from_slice(directions.row(k));
        orient(row);
    });
    (values, directions)
}

/// Makes the entry of largest magnitude positive.
fn orient(v: &mut [f64]) {
    let largest = v.iter().fold(0.0f64, |m, &x| if x.abs() > m.abs() { x } else { m });
    if largest < 0.0 {
        v.iter_mut().for_each(|x| *x = -*x);
    }
}
