//! The three-sigma rule (Shewhart 1931), over all columns.
//!
//! ```text
//! score(x) = max_j |x_j − μ_j| / σ_j
//! ```
//! In standard deviations of the reference: above 3 is what the rule calls an anomaly. A column that is constant in the
//! reference says nothing.

use super::{DetectorInfo, Method, NoSettings, Scaling, Table, boxed, defaults};
use crate::error::Result;
use crate::random::Philox;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub(super) static THREE_SIGMA: DetectorInfo = DetectorInfo {
    name: "three_sigma",
    family: "columns",
    summary: "largest deviation of a column in standard deviations; the rule cuts at 3 (Shewhart 1931)",
    scaling: Scaling::Standard,
    settings: defaults::<ThreeSigma>,
    build: boxed::<ThreeSigma>,
};

#[derive(Serialize, Deserialize)]
struct ThreeSigma {
    /// (centre, scale) of each column; scale 0: says nothing.
    columns: Vec<(f64, f64)>,
}

impl Method for ThreeSigma {
    const INFO: &'static DetectorInfo = &THREE_SIGMA;
    type Settings = NoSettings;

    fn fit(_: &NoSettings, reference: &Table, _: &Philox) -> Result<Self> {
        let columns = reference.map_columns(|x| {
            let n = x.len() as f64;
            let mean = x.iter().sum::<f64>() / n;
            let constant = x.iter().all(|&v| v == x[0]);
            let std = (x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n).sqrt();
            (mean, if constant { 0.0 } else { std })
        });
        Ok(Self { columns })
    }

    fn score(&self, x: &Table) -> Vec<f64> {
        x.map(x.columns(), |row| largest(&self.columns, row))
    }

    fn columns(&self) -> Option<usize> {
        Some(self.columns.len()).filter(|&n| n > 0)
    }
}

/// max_j |x_j − centre_j| / scale_j over the columns whose scale is not 0.
pub(super) fn largest(columns: &[(f64, f64)], row: &[f64]) -> f64 {
    let deviation = |(x, (centre, scale)): (&f64, &(f64, f64))| {
        if *scale > 0.0 { ((x - centre).abs() / scale).min(f64::MAX) } else { 0.0 }
    };
    row.iter().zip(columns).map(deviation).fold(0.0, f64::max)
}
