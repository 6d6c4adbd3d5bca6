//! Mahalanobis distance (Mahalanobis 1936).
//!
//! ```text
//! score(x) = (x − μ)ᵀ Σ⁻¹ (x − μ)
//! ```
//! μ, Σ: mean and covariance of the reference. Where Σ is singular its pseudo-inverse is taken, so directions in
//! which the reference does not vary say nothing; a reference of one row scores 0 everywhere.

use super::linalg::Whitening;
use super::{DetectorInfo, Method, NoSettings, Scaling, Table, boxed, defaults};
use crate::error::Result;
use crate::random::Philox;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub(super) static MAHALANOBIS: DetectorInfo = DetectorInfo {
    name: "mahalanobis",
    family: "covariance",
    summary: "squared distance from the mean in units of the covariance (Mahalanobis 1936)",
    scaling: Scaling::Standard,
    settings: defaults::<Mahalanobis>,
    build: boxed::<Mahalanobis>,
};

#[derive(Serialize, Deserialize)]
struct Mahalanobis {
    white: Whitening,
}

impl Method for Mahalanobis {
    const INFO: &'static DetectorInfo = &MAHALANOBIS;
    type Settings = NoSettings;

    fn fit(_: &NoSettings, reference: &Table, _: &Philox) -> Result<Self> {
        Ok(Self { white: Whitening::of(reference) })
    }

    fn score(&self, x: &Table) -> Vec<f64> {
        self.white.squared(x)
    }

    fn columns(&self) -> Option<usize> {
        self.white.columns()
    }
}
