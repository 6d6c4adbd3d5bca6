//! Reference scores in order: ranks, p-values and thresholds, whoever gave the scores.

use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// Finite scores of n ≥ 0 reference rows, ascending. Without rows every p-value is 1 and no threshold can be promised.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<f64>")]
pub struct Reference(Vec<f64>);

impl TryFrom<Vec<f64>> for Reference {
    type Error = Error;

    fn try_from(scores: Vec<f64>) -> Result<Self> {
        Self::new(scores)
    }
}

impl Reference {
    /// Sorts the scores.
    ///
    /// # Errors
    /// [`ErrorKind::NonFinite`] naming the first score that is not finite.
    pub fn new(mut scores: Vec<f64>) -> Result<Self> {
        if let Some(row) = scores.iter().position(|s| !s.is_finite()) {
            let message = format!("row {row}: the reference score is {}", scores[row]);
            return Err(Error::new(ErrorKind::NonFinite, message));
        }
        scores.sort_by(f64::total_cmp);
        Ok(Self(scores))
    }

    /// n.
    pub fn rows(&self) -> usize {
        self.0.len()
    }

    /// p of one score, between 1/(n + 1) and 1: small = more anomalous than nearly all of the reference. A NaN score
    /// has no p-value (NaN).
    pub fn p_value(&self, score: f64) -> f64 {
        self.smoothed_p_value(score, 1.0)
    }

    /// The p-value with ties broken by `u`, uniform in [0, 1]: for exchangeable rows it is exactly uniform, as
    /// martingales need it.
    pub fn smoothed_p_value(&self, score: f64, u: f64) -> f64 {
        if score.is_nan() {
            return f64::NAN;
        }
        let from = self.0.partition_point(|r| *r < score);
        let above = self.0.partition_point(|r| *r <= score);
        let (greater, equal) = (self.rows() - above, above - from);
        (greater as f64 + u * (1 + equal) as f64) / (self.rows() + 1) as f64
    }

    /// The smallest false-alarm rate that n reference rows can promise, 1/(n + 1).
    pub fn smallest_alpha(&self) -> f64 {
        1.0 / (self.rows() + 1) as f64
    }

    /// t such that `score > t` ⟺ `p_value(score) <= alpha`: the k-th largest reference score, k = ⌊α (n + 1)⌋.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when `alpha` is not in (0, 1), or below [`Self::smallest_alpha`] (says how many rows it
    /// would take).
    pub fn threshold(&self, alpha: f64) -> Result<f64> {
        if !(alpha > 0.0 && alpha < 1.0) {
            let message = format!("alpha: expected a false-alarm rate between 0 and 1, got {alpha}");
            return Err(Error::new(ErrorKind::Usage, message));
        }
        let (n, smallest) = (self.rows(), self.smallest_alpha());
        if alpha < smallest {
            let needed = (1.0 / alpha).ceil() - 1.0;
            return Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "alpha: {n} reference rows can promise a false-alarm rate of {smallest:.2e} at best, got {alpha}; \
                     this takes {needed} rows"
                ),
            ));
        }
        // The largest k with k/(n + 1) <= alpha in the arithmetic of `p_value`; alpha (n + 1) may round either way.
        let fits = |k: usize| k as f64 / (n + 1) as f64 <= alpha;
        let guess = (alpha * (n + 1) as f64) as usize;
        let k = (guess.saturating_sub(1)..=guess + 1).rev().find(|&k| fits(k)).unwrap_or(1).clamp(1, n);
        Ok(self.0[n - k])
    }
}
