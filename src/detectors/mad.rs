//! Median absolute deviation (Iglewicz & Hoaglin 1993), over all columns.
//!
//! ```text
//! score(x) = max_j 0.6745 |x_j − median_j| / MAD_j          MAD_j = median over the reference of |y_j − median_j|
//! ```
//! The modified z-score: above 3.5 is what its authors call an anomaly. Where more than half of a column is one value,
//! MAD is 0 and the mean absolute deviation stands in, |x_j − median_j| / (1.2533 MeanAD_j), as they propose; a
//! column that is constant in the reference says nothing.

use super::{DetectorInfo, Method, NoSettings, Scaling, Table, boxed, defaults, three_sigma};
use crate::error::Result;
use crate::random::Philox;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub(super) static MAD: DetectorInfo = DetectorInfo {
    name: "mad",
    family: "columns",
    summary: "largest deviation of a column from its median in median absolute deviations (Iglewicz & Hoaglin 1993)",
    scaling: Scaling::Standard,
    settings: defaults::<Mad>,
    build: boxed::<Mad>,
};

#[derive(Serialize, Deserialize)]
struct Mad {
    /// (median, scale) of each column; scale 0: says nothing.
    columns: Vec<(f64, f64)>,
}

impl Method for Mad {
    const INFO: &'static DetectorInfo = &MAD;
    type Settings = NoSettings;

    fn fit(_: &NoSettings, reference: &Table, _: &Philox) -> Result<Self> {
        let columns = reference.map_columns(|x| {
            let middle = median(x.to_vec());
            let deviations: Vec<f64> = x.iter().map(|v| (v - middle).abs()).collect();
            let mean = deviations.iter().sum::<f64>() / x.len() as f64;
            let mad = median(deviations);
            (middle, if mad > 0.0 { mad / 0.6745 } else { 1.253_314 * mean })
        });
        Ok(Self { columns })
    }

    fn score(&self, x: &Table) -> Vec<f64> {
        x.map(x.columns(), |row| three_sigma::largest(&self.columns, row))
    }

    fn columns(&self) -> Option<usize> {
        Some(self.columns.len()).filter(|&n| n > 0)
    }
}

/// The median of at least one number; the mean of the two in the middle of an even count.
pub(super) fn median(mut x: Vec<f64>) -> f64 {
    let (middle, odd) = (x.len() / 2, x.len() % 2 == 1);
    let (below, &mut upper, _) = x.select_nth_unstable_by(middle, f64::total_cmp);
    if odd { upper } else { (below.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v)) + upper) / 2.0 }
}
