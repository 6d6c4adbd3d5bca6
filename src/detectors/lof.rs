//! Local outlier factor (Breunig, Kriegel, Ng & Sander 2000).
//!
//! ```text
//! reach(x, y) = max(|x − y|, d_k(y))              d_k(y): distance of y's k-th neighbour in the reference
//! lrd(x) = 1 / (mean over x's k neighbours y of reach(x, y) + 1e-10)
//! score(x) = mean over x's k neighbours y of lrd(y) / lrd(x)
//! ```
//! About 1 where x lies as densely as its neighbours, larger where they lie more densely. Neighbours of a reference row
//! are other rows; a new row's may include a copy of itself, as with scikit-learn's `novelty=True`. A reference of
//! one row has no densities: the score is then |x − y|.

use super::{DetectorInfo, Index, Method, Scaling, Table, boxed, defaults, knn};
use crate::cpu::par;
use crate::error::Result;
use crate::random::Philox;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub(super) static LOF: DetectorInfo = DetectorInfo {
    name: "lof",
    family: "neighbours",
    summary: "local outlier factor: density of the neighbours over that of the row (Breunig et al. 2000)",
    scaling: Scaling::Standard,
    settings: defaults::<Lof>,
    build: boxed::<Lof>,
};

/// Rows of a task.
const ROWS: usize = 1024;

#[derive(Serialize, Deserialize)]
struct Settings {
    /// k.
    neighbours: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { neighbours: 20 }
    }
}

#[derive(Serialize, Deserialize)]
struct Lof {
    index: Index,
    /// Neighbours of each reference row; 0 for a reference of one row.
    k: usize,
    /// d_k of each reference row.
    radius: Vec<f64>,
    /// lrd of each reference row.
    density: Vec<f64>,
}

impl Method for Lof {
    const INFO: &'static DetectorInfo = &LOF;
    const DEVICES: bool = true;
    type Settings = Settings;

    fn fit(settings: &Settings, reference: &Table, _: &Philox) -> Result<Self> {
        knn::at_least_one(settings.neighbours)?;
        let index = Index::new(reference.clone());
        let found = index.nearest_others(settings.neighbours);
        let k = found.k;
        if k == 0 {
            return Ok(Self { index, k, radius: vec![0.0], density: vec![1.0] });
        }
        let n = reference.rows();
        let radius: Vec<f64> = (0..n).map(|i| found.distances(i)[k - 1]).collect();
        let density = each(n, |i| density(&radius, found.distances(i), found.indices(i)));
        Ok(Self { index, k, radius, density })
    }

    fn score(&self, x: &Table) -> Vec<f64> {
        let found = self.index.nearest(x, self.k.max(1));
        let one = |i: usize| {
            let (distances, neighbours) = (found.distances(i), found.indices(i));
            if self.k == 0 {
                return distances[0];
            }
            let around: f64 = neighbours.iter().map(|&j| self.density[j as usize]).sum();
            around / neighbours.len() as f64 / density(&self.radius, distances, neighbours)
        };
        each(x.rows(), one)
    }

    fn columns(&self) -> Option<usize> {
        let (points, n) = (self.index.points(), self.radius.len());
        (points.rows() == n && self.density.len() == n && self.k < n).then_some(points.columns())
    }
}

/// `f` of every row, in parallel.
fn each(rows: usize, f: impl Fn(usize) -> f64 + Send + Sync) -> Vec<f64> {
    let mut out = vec![0.0; rows];
    par::chunks_mut(&mut out, ROWS, |chunk, out| {
        out.iter_mut().enumerate().for_each(|(i, o)| *o = f(chunk * ROWS + i));
    });
    out
}

/// lrd of a row with these neighbours.
fn density(radius: &[f64], distances: &[f64], neighbours: &[u32]) -> f64 {
    let reach = distances.iter().zip(neighbours).map(|(&d, &j)| d.max(radius[j as usize]));
    1.0 / (reach.sum::<f64>() / distances.len() as f64 + 1e-10)
}
