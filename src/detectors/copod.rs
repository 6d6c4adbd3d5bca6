//! Copula-based outlier detection (Li, Zhao, Botta, Ionescu & Hu 2020).
//!
//! ```text
//! score(x) = Σ_j max(½ (−log P(y_j ≤ x_j) − log P(y_j ≥ x_j)), −log of the tail that the skewness of column j points to)
//! ```
//! As in PyOD, the maximum is taken per column. For the probabilities see [`super::tails`].

use super::tails::{self, Settings, Tails};
use super::{DetectorInfo, Method, Scaling, Table, boxed, defaults};
use crate::error::Result;
use crate::random::Philox;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub(super) static COPOD: DetectorInfo = DetectorInfo {
    name: "copod",
    family: "columns",
    summary: "sum over columns of the empirical tail surprisal that the skewness points to (Li et al. 2020)",
    scaling: Scaling::Standard,
    settings: defaults::<Copod>,
    build: boxed::<Copod>,
};

#[derive(Serialize, Deserialize)]
struct Copod {
    pooled: bool,
    columns: Vec<Tails>,
}

impl Method for Copod {
    const INFO: &'static DetectorInfo = &COPOD;
    type Settings = Settings;

    fn fit(settings: &Settings, reference: &Table, _: &Philox) -> Result<Self> {
        Ok(Self { pooled: settings.pooled, columns: Tails::of(reference) })
    }

    fn score(&self, x: &Table) -> Vec<f64> {
        tails::score(&self.columns, x, self.pooled, |t| t.skewed.max((t.left + t.right) / 2.0))
    }

    fn columns(&self) -> Option<usize> {
        tails::columns(&self.columns)
    }
}
