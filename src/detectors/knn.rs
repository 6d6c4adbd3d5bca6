//! Distance to the nearest neighbours.
//!
//! ```text
//! score(x) = |x − y_(k)|                largest, the default (Ramaswamy, Rastogi & Shim 2000)
//!          = mean or median of the k    (Angiulli & Pizzuti 2002)
//! ```
//! y_(1), y_(2), ... are the reference rows by their distance from x. A row that is itself in the reference is its own
//! nearest neighbour, as in PyOD's `decision_function`. With fewer than k rows all are taken.

use super::{DetectorInfo, Index, Method, Scaling, Table, boxed, defaults, setting};
use crate::error::Result;
use crate::random::Philox;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub(super) static KNN: DetectorInfo = DetectorInfo {
    name: "knn",
    family: "neighbours",
    summary: "distance to the k-th nearest neighbour, or mean or median over k (Ramaswamy et al. 2000)",
    scaling: Scaling::Standard,
    settings: defaults::<Knn>,
    build: boxed::<Knn>,
};

/// What is made of the k distances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Aggregate {
    Largest,
    Mean,
    Median,
}

#[derive(Clone, Serialize, Deserialize)]
struct Settings {
    /// k.
    neighbours: usize,
    method: Aggregate,
}

impl Default for Settings {
    fn default() -> Self {
        Self { neighbours: 5, method: Aggregate::Largest }
    }
}

#[derive(Serialize, Deserialize)]
struct Knn {
    settings: Settings,
    index: Index,
}

impl Method for Knn {
    const INFO: &'static DetectorInfo = &KNN;
    const DEVICES: bool = true;
    type Settings = Settings;

    fn fit(settings: &Settings, reference: &Table, _: &Philox) -> Result<Self> {
        at_least_one(settings.neighbours)?;
        Ok(Self { settings: settings.clone(), index: Index::new(reference.clone()) })
    }

    fn score(&self, x: &Table) -> Vec<f64> {
        let found = self.index.nearest(x, self.settings.neighbours);
        let one = |d: &[f64]| match self.settings.method {
            Aggregate::Largest => d[d.len() - 1],
            Aggregate::Mean => d.iter().sum::<f64>() / d.len() as f64,
            Aggregate::Median => (d[(d.len() - 1) / 2] + d[d.len() / 2]) / 2.0,
        };
        (0..x.rows()).map(|i| one(found.distances(i))).collect()
    }

    fn columns(&self) -> Option<usize> {
        let points = self.index.points();
        (points.rows() > 0 && self.settings.neighbours > 0).then_some(points.columns())
    }
}

/// Whether `k` neighbours can be asked for.
pub(super) fn at_least_one(k: usize) -> Result<()> {
    if k == 0 { Err(setting("neighbours = 0; expected at least 1")) } else { Ok(()) }
}
