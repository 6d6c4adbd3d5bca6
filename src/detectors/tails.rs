//! Empirical tail probabilities of columns, for the copula-based detectors.
//!
//! A row's tails are those of the reference and the row itself, (1 + #{y ≤ x}) / (n + 1), independent of what else is
//! scored with it. PyOD's `decision_function` joins all rows to be scored with the reference before it counts (tails and
//! skewness), so many anomalies scored together hide each other; `pooled = true` does the same.

use super::Table;
use crate::cpu::par;
use serde::{Deserialize, Serialize};

/// The sorted reference column and the sign of its skewness.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Tails {
    sorted: Vec<f64>,
    /// −1, 0 or 1.
    skew: i8,
}

/// −log of the tail probabilities of one value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Surprise {
    /// −log P(y ≤ x).
    pub left: f64,
    /// −log P(y ≥ x).
    pub right: f64,
    /// The tail that the column's skewness points to: left if negative, right if positive, both if 0.
    pub skewed: f64,
}

impl Tails {
    /// Of every column of `reference`.
    pub fn of(reference: &Table) -> Vec<Self> {
        reference.map_columns(|x| Self::of_column(x.to_vec()))
    }

    fn of_column(mut x: Vec<f64>) -> Self {
        x.sort_unstable_by(f64::total_cmp);
        Self { skew: skew(&x), sorted: x }
    }

    /// Of the columns of the reference and `x` together.
    pub fn joined(columns: &[Self], x: &Table) -> Vec<Self> {
        let mut out: Vec<Self> = Vec::with_capacity(columns.len());
        out.extend(columns.iter().enumerate().map(|(j, own)| {
            let mut all = own.sorted.clone();
            all.extend(x.column(j));
            Self::of_column(all)
        }));
        out
    }

    /// Whether a restored column can be used.
    fn fits(&self) -> bool {
        !self.sorted.is_empty()
            && self.sorted.is_sorted()
            && self.sorted.iter().all(|x| x.is_finite())
            && (-1..=1).contains(&self.skew)
    }

    /// Numbers of reference values below `x`, and not above it.
    fn counts(&self, x: f64) -> (usize, usize) {
        let below = self.sorted.partition_point(|&y| y < x);
        // Ties are few as a rule: look ahead in steps that double.
        let mut step = 1;
        while below + step <= self.sorted.len() && self.sorted[below + step - 1] <= x {
            step *= 2;
        }
        let (from, to) = (below + step / 2, (below + step).min(self.sorted.len()));
        (below, from + self.sorted[from..to].partition_point(|&y| y <= x))
    }
}

/// The sign of the third central moment; 0 for a column that is constant up to rounding.
fn skew(x: &[f64]) -> i8 {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let moment = |k: i32| x.iter().map(|v| (v - mean).powi(k)).sum::<f64>() / n;
    let (second, third) = (moment(2), moment(3));
    let rounding = (f64::EPSILON * mean.abs()).powi(2);
    if second <= rounding || third == 0.0 { 0 } else { third.signum() as i8 }
}

/// The settings of detectors on tails.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Settings {
    /// Count the rows to be scored as part of the reference, as PyOD does.
    pub pooled: bool,
}

/// Rows whose sums are made together, column by column, so that one sorted column is searched at a time.
const ROWS: usize = 512;

/// The sum over columns of `f` of the tails of each cell.
pub(super) fn score(
    columns: &[Tails],
    x: &Table,
    pooled: bool,
    f: impl Fn(Surprise) -> f64 + Send + Sync,
) -> Vec<f64> {
    let joined = if pooled { Tails::joined(columns, x) } else { Vec::new() };
    let columns = if pooled { &joined } else { columns };
    // A row that is not among the values already counts as one more.
    let (n, more) = (columns.iter().map(|c| c.sorted.len()).max().unwrap_or(0), !pooled as usize);
    let surprise: Vec<f64> = (0..=n).map(|count| -((more + count) as f64 / (n + more) as f64).ln()).collect();
    let mut out = vec![0.0; x.rows()];
    par::chunks_mut(&mut out, ROWS, |chunk, out| {
        for (j, tails) in columns.iter().enumerate() {
            for (i, o) in out.iter_mut().enumerate() {
                let (below, up_to) = tails.counts(x.row(chunk * ROWS + i)[j]);
                let (left, right) = (surprise[up_to], surprise[n - below]);
                let skewed = match tails.skew {
                    -1 => left,
                    1 => right,
                    _ => left + right,
                };
                *o += f(Surprise { left, right, skewed });
            }
        }
    });
    out
}

/// The number of columns, or `None` when restored ones cannot be used.
pub(super) fn columns(columns: &[Tails]) -> Option<usize> {
    let n = columns.first()?.sorted.len();
    columns.iter().all(|c| c.sorted.len() == n && c.fits()).then_some(columns.len())
}
