//! In-degree in the kNN graph (Hautamäki, Kärkkäinen & Fränti 2004, "ODIN").
//!
//! ```text
//! score(x) = −#{reference rows y : |x − y| ≤ d_k(y)} + d/(1 + d)
//! ```
//! The number of reference rows that have x, or would have it, among their k nearest; d_k(y) is the distance of y's k-th
//! neighbour, d that of x's, which orders rows of the same in-degree. A row of the reference reaches itself. A reference
//! of one row has no graph: only d counts.

use super::{DetectorInfo, Index, Method, Scaling, Table, boxed, defaults, knn};
use crate::error::Result;
use crate::random::Philox;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub(super) static KNN_INDEGREE: DetectorInfo = DetectorInfo {
    name: "knn_indegree",
    family: "neighbours",
    summary: "how few rows have the row among their k nearest (Hautamäki et al. 2004)",
    scaling: Scaling::Standard,
    settings: defaults::<InDegree>,
    build: boxed::<InDegree>,
};

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
struct InDegree {
    index: Index,
    k: usize,
    /// d_k² of each reference row.
    squares: Vec<f64>,
}

impl Method for InDegree {
    const INFO: &'static DetectorInfo = &KNN_INDEGREE;
    const DEVICES: bool = true;
    type Settings = Settings;

    fn fit(settings: &Settings, reference: &Table, _: &Philox) -> Result<Self> {
        knn::at_least_one(settings.neighbours)?;
        let index = Index::new(reference.clone());
        let found = index.nearest_others(settings.neighbours);
        let radius = |i: usize| found.distances(i).last().map_or(0.0, |d| d * d);
        let squares = (0..reference.rows()).map(radius).collect();
        Ok(Self { index, k: found.k.max(1), squares })
    }

    fn score(&self, x: &Table) -> Vec<f64> {
        let counts = self.index.reached_by(x, &self.squares);
        let found = self.index.nearest(x, self.k);
        let one = |(i, count): (usize, &u32)| {
            let d = found.distances(i)[found.k - 1];
            d / (1.0 + d) - *count as f64
        };
        counts.iter().enumerate().map(one).collect()
    }

    fn columns(&self) -> Option<usize> {
        let (points, n) = (self.index.points(), self.squares.len());
        (n > 0 && points.rows() == n && self.k > 0).then_some(points.columns())
    }
}
