//! Empirical-cumulative-distribution outlier detection (Li, Zhao, Hu, Botta, Ionescu & Chen 2022).
//!
//! ```text
//! score(x) = Σ_j max(−log P(y_j ≤ x_j), −log P(y_j ≥ x_j), −log of the tail that the skewness of column j points to)
//! ```
//! As in PyOD, the maximum is taken per column. For the probabilities see [`super::tails`].

use super::tails::{self, Settings, Tails};
use super::{DetectorInfo, Method, Scaling, Table, boxed, defaults};
use crate::error::Result;
use crate::random::Philox;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub(super) static ECOD: DetectorInfo = DetectorInfo {
    name: "ecod",
    family: "columns",
    summary: "sum over columns of the larger empirical tail surprisal (Li et al. 2022)",
    scaling: Scaling::Standard,
    settings: defaults::<Ecod>,
    build: boxed::<Ecod>,
};

#[derive(Serialize, Deserialize)]
struct Ecod {
    pooled: bool,
    columns: Vec<Tails>,
}

impl Method for Ecod {
    const INFO: &'static DetectorInfo = &ECOD;
    type Settings = Settings;

    fn fit(settings: &Settings, reference: &Table, _: &Philox) -> Result<Self> {
        Ok(Self { pooled: settings.pooled, columns: Tails::of(reference) })
    }

    fn score(&self, x: &Table) -> Vec<f64> {
        tails::score(&self.columns, x, self.pooled, |t| t.left.max(t.right).max(t.skewed))
    }

    fn columns(&self) -> Option<usize> {
        tails::columns(&self.columns)
    }
}
