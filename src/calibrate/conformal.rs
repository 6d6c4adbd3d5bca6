//! Split-conformal calibration: from a score to a p-value, from a false-alarm rate to a threshold.
//!
//! ```text
//! p(x) = (1 + #{reference scores ≥ score(x)}) / (n + 1)          flagged at level α  ⟺  p(x) ≤ α
//! ```
//! When x and the n reference rows are exchangeable, and neither trained the model nor fitted the scorer,
//! P(p(x) ≤ α) ≤ α for every α, whatever the model and the score (Vovk, Gammerman & Shafer 2005, "Algorithmic learning
//! in a random world"; Laxhammar & Falkman 2010). The promise holds on average over reference sets; given one set
//! of n rows the rate of false alarms scatters around α with a standard deviation of about √(α (1 − α) / n).

use super::Reference;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::Evidence;
use crate::scorers::{self, SCORERS, Scorer, ScorerInfo};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The reference scores of one scorer, and what the scorer learned: enough to judge new scores, now or from a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Raw")]
pub struct Calibration {
    scorer: String,
    state: Value,
    /// At least one.
    reference: Reference,
}

/// A calibration as a file has it: nothing about it is known.
#[derive(Deserialize)]
struct Raw {
    scorer: String,
    state: Value,
    reference: Vec<f64>,
}

impl TryFrom<Raw> for Calibration {
    type Error = Error;

    fn try_from(raw: Raw) -> Result<Self> {
        let found = Self::sorted(raw.scorer, raw.state, raw.reference)?;
        found.scorer()?;
        Ok(found)
    }
}

impl Calibration {
    /// Calibrates the fitted `scorer`, registered as `name`, by its scores of reference rows that it was not
    /// fitted on.
    ///
    /// # Errors
    /// Without scores, with a score that is not finite, or when the scorer is not fitted.
    pub fn new(name: &str, scorer: &dyn Scorer, reference: &[f64]) -> Result<Self> {
        Self::sorted(name.to_owned(), scorer.state()?, reference.to_vec())
    }

    fn sorted(scorer: String, state: Value, reference: Vec<f64>) -> Result<Self> {
        if reference.is_empty() {
            return Err(Error::new(
                ErrorKind::Data,
                format!("calibration of \"{scorer}\": no reference scores"),
            ));
        }
        let place = |e: Error| e.at(format_args!("calibration of \"{scorer}\""));
        let reference = Reference::new(reference).map_err(place)?;
        Ok(Self { scorer, state, reference })
    }

    /// The registry's name of the scorer.
    pub fn name(&self) -> &str {
        &self.scorer
    }

    /// n, the number of reference scores.
    pub fn rows(&self) -> usize {
        self.reference.rows()
    }

    /// The scorer as it was when calibrated.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when no such scorer is registered, [`ErrorKind::Model`] when the saved state is not one
    /// of this scorer.
    pub fn scorer(&self) -> Result<Box<dyn Scorer>> {
        let mut scorer = (scorers::find(&self.scorer)?.build)();
        scorer.restore(&self.state)?;
        Ok(scorer)
    }

    /// [`Reference::p_value`].
    pub fn p_value(&self, score: f64) -> f64 {
        self.reference.p_value(score)
    }

    /// [`Reference::smoothed_p_value`].
    pub fn smoothed_p_value(&self, score: f64, u: f64) -> f64 {
        self.reference.smoothed_p_value(score, u)
    }

    /// [`Reference::smallest_alpha`].
    pub fn smallest_alpha(&self) -> f64 {
        self.reference.smallest_alpha()
    }

    /// [`Reference::threshold`].
    ///
    /// # Errors
    /// Those of [`Reference::threshold`].
    pub fn threshold(&self, alpha: f64) -> Result<f64> {
        self.reference.threshold(alpha)
    }

    /// The share of `scores` that is flagged at `alpha`: of reference rows the measured false-alarm rate, of
    /// anomalies the detection rate.
    ///
    /// # Errors
    /// Those of [`Self::threshold`].
    pub fn flagged(&self, scores: &[f64], alpha: f64) -> Result<f64> {
        let threshold = self.threshold(alpha)?;
        Ok(scores.iter().filter(|s| **s > threshold).count() as f64 / scores.len().max(1) as f64)
    }
}

/// Every scorer of `wanted` that accepts this evidence, fitted on its first half and calibrated by its second; scorers
/// that need more rows than there are, are left out.
///
/// # Errors
/// Those of fitting and scoring.
pub fn calibrate(evidence: &Evidence, wanted: &dyn Fn(&ScorerInfo) -> bool) -> Result<Vec<Calibration>> {
    let n = evidence.len();
    let (first, second) = (evidence.rows(0..n / 2), evidence.rows(n / 2..n));
    let mut out = Vec::new();
    for info in SCORERS.iter().filter(|info| wanted(info) && info.applies(evidence).is_ok()) {
        let mut scorer = (info.build)();
        if n / 2 >= scorer.rows_per_score() {
            scorer.fit(&first)?;
            out.push(Calibration::new(info.name, &*scorer, &scorer.score(&second)?)?);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Philox;
    use crate::tensor::DType;

    fn calibration(reference: &[f64]) -> Calibration {
        Calibration::sorted("nll".into(), Value::Null, reference.to_vec()).unwrap()
    }

    #[test]
    fn p_values_by_hand() {
        let c = calibration(&[3.0, 1.0, 2.0, 2.0]);
        for (score, p) in [(0.0, 1.0), (1.0, 1.0), (1.5, 0.8), (2.0, 0.8), (2.5, 0.4), (3.0, 0.4), (3.5, 0.2)]
        {
            assert_eq!(c.p_value(score), p, "score {score}");
        }
        assert_eq!((c.smoothed_p_value(2.0, 0.0), c.smoothed_p_value(2.0, 1.0)), (0.2, 0.8));
        assert!(c.p_value(f64::NAN).is_nan());
        assert_eq!(c.p_value(f64::INFINITY), 0.2);
    }

    #[test]
    fn threshold_and_p_value_agree() {
        for n in [1, 2, 9, 10, 19, 99, 100, 299] {
            let c = calibration(&(0..n).map(|i| (i / 2) as f64).collect::<Vec<_>>());
            let levels = (1..=n).map(|k| k as f64 / (n + 1) as f64).chain([0.05, 0.1, 0.3, 0.5, 0.7, 0.999]);
            for alpha in levels.filter(|&a| a >= c.smallest_alpha()) {
                let threshold = c.threshold(alpha).unwrap();
                for score in (-1..=2 * n).map(|s| s as f64 / 4.0) {
                    assert_eq!(
                        score > threshold,
                        c.p_value(score) <= alpha,
                        "n {n} alpha {alpha} score {score}"
                    );
                }
            }
        }
    }

    #[test]
    fn says_how_many_rows_an_alpha_takes() {
        let c = calibration(&[0.0; 99]);
        assert_eq!(c.smallest_alpha(), 0.01);
        assert!(c.threshold(0.01).is_ok());
        let message = c.threshold(0.001).unwrap_err().to_string();
        assert!(message.contains("99 reference rows") && message.contains("999 rows"), "{message}");
        for alpha in [0.0, 1.0, -0.1, f64::NAN] {
            assert_eq!(c.threshold(alpha).unwrap_err().kind(), ErrorKind::Usage);
        }
        assert!(Calibration::sorted("nll".into(), Value::Null, vec![]).is_err());
        assert!(Calibration::sorted("nll".into(), Value::Null, vec![0.0, f64::NAN]).is_err());
    }

    /// Over many reference sets the false-alarm rate at α = k/(n + 1) is exactly α; 4 standard deviations of the
    /// binomial, and for ties (rounded scores) at most that.
    #[test]
    fn marginally_valid() {
        let (n, trials) = (39, 20_000);
        let scores = Philox::new(7).normal([trials, n + 1], DType::F64);
        for (round, alphas) in [(false, [0.025, 0.1, 0.5]), (true, [0.025, 0.1, 0.5])] {
            for alpha in alphas {
                let flagged = scores.as_slice::<f64>().chunks(n + 1).filter(|row| {
                    let row: Vec<f64> = row.iter().map(|x| if round { x.round() } else { *x }).collect();
                    calibration(&row[1..]).p_value(row[0]) <= alpha
                });
                let (rate, spread) = (
                    flagged.count() as f64 / trials as f64,
                    4.0 * (alpha * (1.0 - alpha) / trials as f64).sqrt(),
                );
                assert!(rate <= alpha + spread, "alpha {alpha}: {rate}");
                assert!(round || rate >= alpha - spread, "alpha {alpha}: {rate}");
            }
        }
    }
}
