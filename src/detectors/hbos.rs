//! Histogram-based outlier score (Goldstein & Dengel 2012).
//!
//! ```text
//! score(x) = −Σ_j log2(density_j(x_j) + α)         density_j: the column's histogram of B equal bins, area 1
//! ```
//! A value outside the histogram by at most `tolerance` bin widths counts as in the last bin, one farther away as in the
//! emptiest. A column that is constant in the reference says nothing.

use super::{DetectorInfo, Method, Scaling, Table, boxed, defaults, setting};
use crate::error::Result;
use crate::random::Philox;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub(super) static HBOS: DetectorInfo = DetectorInfo {
    name: "hbos",
    family: "columns",
    summary: "sum over columns of -log2 of a histogram's density (Goldstein & Dengel 2012)",
    scaling: Scaling::Standard,
    settings: defaults::<Hbos>,
    build: boxed::<Hbos>,
};

#[derive(Serialize, Deserialize)]
struct Settings {
    /// B.
    bins: usize,
    /// α, in units of the density.
    alpha: f64,
    /// In bin widths.
    tolerance: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { bins: 10, alpha: 0.1, tolerance: 0.5 }
    }
}

#[derive(Serialize, Deserialize)]
struct Hbos {
    tolerance: f64,
    columns: Vec<Histogram>,
}

#[derive(Serialize, Deserialize)]
struct Histogram {
    /// Edges of the bins, ascending, one more than bins; none in a constant column.
    edges: Vec<f64>,
    /// −log2(density + α) of each bin.
    surprise: Vec<f64>,
    /// The largest of these.
    most: f64,
}

impl Method for Hbos {
    const INFO: &'static DetectorInfo = &HBOS;
    type Settings = Settings;

    fn fit(settings: &Settings, reference: &Table, _: &Philox) -> Result<Self> {
        let &Settings { bins, alpha, tolerance } = settings;
        let fits =
            (2..=1 << 16).contains(&bins) && alpha > 0.0 && alpha <= 1.0 && (0.0..=1.0).contains(&tolerance);
        if !fits {
            return Err(setting(format!(
                "bins = {bins}, alpha = {alpha}, tolerance = {tolerance}; expected 2 to 65536 bins, alpha in (0, 1], \
                 tolerance in [0, 1]"
            )));
        }
        let columns = reference.map_columns(|x| Histogram::new(x, bins, alpha));
        Ok(Self { tolerance, columns })
    }

    fn score(&self, x: &Table) -> Vec<f64> {
        x.map(4 * x.columns(), |row| {
            row.iter().zip(&self.columns).map(|(&x, h)| h.at(x, self.tolerance)).sum()
        })
    }

    fn columns(&self) -> Option<usize> {
        let fits = |h: &Histogram| {
            let (edges, bins) = (h.edges.len(), h.surprise.len());
            (edges == 0 || (bins > 0 && edges == bins + 1))
                && h.edges.is_sorted()
                && h.surprise.iter().all(|s| s.is_finite())
        };
        (!self.columns.is_empty() && self.columns.iter().all(fits)).then_some(self.columns.len())
    }
}

impl Histogram {
    fn new(x: &[f64], bins: usize, alpha: f64) -> Self {
        let low = x.iter().fold(f64::INFINITY, |m, &v| m.min(v));
        let high = x.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v));
        let width = (high - low) / bins as f64;
        if width <= 0.0 {
            return Self { edges: Vec::new(), surprise: Vec::new(), most: 0.0 };
        }
        let mut edges: Vec<f64> = (0..bins).map(|i| low + i as f64 * width).collect();
        edges.push(high);
        let mut counts = vec![0u64; bins];
        // A value on an edge lies above it, but the last bin includes its upper edge.
        let place = |v: f64| edges.partition_point(|&e| e <= v).clamp(1, bins) - 1;
        x.iter().for_each(|&v| counts[place(v)] += 1);
        let scale = 1.0 / (x.len() as f64 * width);
        let surprise: Vec<f64> = counts.iter().map(|&c| -(c as f64 * scale + alpha).log2()).collect();
        let most = surprise.iter().fold(f64::NEG_INFINITY, |m, &s| m.max(s));
        Self { edges, surprise, most }
    }

    /// −log2(density + α) at `x`; unlike in the counts, and as in PyOD, an edge belongs to the bin below it.
    fn at(&self, x: f64, tolerance: f64) -> f64 {
        let bins = self.surprise.len();
        let [first, second, ..] = self.edges[..] else { return 0.0 };
        let (before, last) = (self.edges[bins - 1], self.edges[bins]);
        match self.edges.partition_point(|&e| e < x) {
            0 if first - x <= (second - first) * tolerance => self.surprise[0],
            n if n == bins + 1 && x - last <= (last - before) * tolerance => self.surprise[bins - 1],
            n if n == 0 || n == bins + 1 => self.most,
            n => self.surprise[n - 1],
        }
    }
}
