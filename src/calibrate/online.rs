//! False-discovery rate of a stream: each row is decided when it comes, and at every moment at most a share q of the
//! alarms so far is expected to be false.
//!
//! ```text
//! LORD++:   α_t = w₀ γ_t + (q − w₀) γ_{t−τ₁} + q Σ_{j≥2} γ_{t−τ_j}          alarm ⟺ p_t ≤ α_t
//! SAFFRON:  the same wealth, spent only on candidates (p_t ≤ λ):
//!           α_t = min(λ, w₀' γ_{t−C₀} + (q' − w₀') γ_{t−τ₁−C₁} + q' Σ_{j≥2} γ_{t−τ_j−C_j}),  primes: times (1 − λ)
//! ```
//! τ_j are the times of the alarms so far, C_j the candidates since τ_j, w₀ = q/2, γ a sequence that sums to 1. LORD++:
//! Ramdas et al. 2017, "Online control of the false discovery rate with decaying memory"; SAFFRON: Ramdas et al. 2018
//! (λ = 1/2, γ_j ∝ j^(−1.6), cut off after 10,000 terms, before which each alarm is forgotten). Valid for independent
//! p-values; rows that repeat each other raise more alarms together.
//!
//! α_t falls between alarms, below any p-value that few reference rows can reach: see [`OnlineFdr::level`].

use crate::error::{Error, ErrorKind, Result};

/// Which rule spends the error budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnlineRule {
    /// LORD++: careful, best when anomalies are rare.
    Lord,
    /// SAFFRON: bolder, best when anomalies are frequent and strong.
    Saffron,
}

/// Terms of γ: what an alarm earns is spent within so many rows.
const TERMS: usize = 10_000;
const LAMBDA: f64 = 0.5;

/// Decides a stream of p-values.
#[derive(Debug, Clone)]
pub struct OnlineFdr {
    rule: OnlineRule,
    q: f64,
    gamma: Vec<f64>,
    /// Budget that the start and each alarm brought, and how many terms of it have been used.
    grants: Vec<(f64, usize)>,
    alarms: u64,
}

impl OnlineFdr {
    /// A stream whose false-discovery rate is to stay below `q`.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when `q` is not in (0, 1).
    pub fn new(rule: OnlineRule, q: f64) -> Result<Self> {
        if !(q > 0.0 && q < 1.0) {
            let message = format!("fdr: expected a false-discovery rate between 0 and 1, got {q}");
            return Err(Error::new(ErrorKind::Usage, message));
        }
        // γ ∝ ln(max(j, 2)) / (j e^√(ln j)) is that of the LORD paper (Javanmard & Montanari 2018).
        let term = |j: usize| match (rule, j as f64) {
            (OnlineRule::Lord, j) => j.max(2.0).ln() / (j * j.ln().sqrt().exp()),
            (OnlineRule::Saffron, j) => j.powf(-1.6),
        };
        let sum: f64 = (1..=TERMS).map(term).sum();
        let gamma = (1..=TERMS).map(|j| term(j) / sum).collect();
        Ok(Self { rule, q, gamma, grants: vec![(q / 2.0, 0)], alarms: 0 })
    }

    /// α_t for the row that comes next.
    pub fn level(&self) -> f64 {
        let paid = |(budget, at): &(f64, usize)| budget * self.gamma[*at];
        let sum: f64 = self.grants.iter().map(paid).sum();
        match self.rule {
            OnlineRule::Lord => sum,
            OnlineRule::Saffron => LAMBDA.min((1.0 - LAMBDA) * sum),
        }
    }

    /// Whether the next row, with this p-value, is an alarm.
    ///
    /// # Panics
    /// When `p` is NaN.
    #[track_caller]
    pub fn decide(&mut self, p: f64) -> bool {
        assert!(!p.is_nan(), "OnlineFdr::decide: a p-value of NaN");
        let alarm = p <= self.level();
        // SAFFRON does not pay for rows that are no candidates.
        if self.rule == OnlineRule::Lord || p > LAMBDA {
            self.grants.iter_mut().for_each(|(_, at)| *at += 1);
        }
        self.grants.retain(|(_, at)| *at < TERMS);
        if alarm {
            let budget = if self.alarms == 0 { self.q / 2.0 } else { self.q };
            self.grants.push((budget, 0));
            self.alarms += 1;
        }
        alarm
    }

    /// Alarms so far.
    pub fn alarms(&self) -> u64 {
        self.alarms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Philox;
    use crate::tensor::DType;

    #[test]
    fn levels_by_hand() {
        let mut lord = OnlineFdr::new(OnlineRule::Lord, 0.1).unwrap();
        let gamma = lord.gamma.clone();
        assert!((gamma.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert_eq!(lord.level(), 0.05 * gamma[0]);
        assert!(!lord.decide(0.9) && lord.level() == 0.05 * gamma[1]);
        assert!(lord.decide(0.0));
        assert_eq!(lord.level(), 0.05 * gamma[2] + 0.05 * gamma[0]);
        assert!(lord.decide(0.0));
        assert_eq!(lord.level(), 0.05 * gamma[3] + 0.05 * gamma[1] + 0.1 * gamma[0]);
        assert!(OnlineFdr::new(OnlineRule::Saffron, 1.5).is_err());
    }

    /// Streams of 1,000 rows, a tenth of them anomalies: the mean share of false alarms is at most q, and both rules
    /// find most anomalies.
    #[test]
    fn keep_their_promise_on_streams() {
        for rule in [OnlineRule::Lord, OnlineRule::Saffron] {
            let (mut rate, mut found, trials) = (0.0, 0, 200);
            for trial in 0..trials {
                let mut fdr = OnlineFdr::new(rule, 0.2).unwrap();
                let u = Philox::new(trial).uniform_open([1000], DType::F64);
                let mut wrong = 0;
                for (i, &u) in u.as_slice::<f64>().iter().enumerate() {
                    let anomaly = i % 10 == 3;
                    let alarm = fdr.decide(if anomaly { u * 1e-4 } else { u });
                    wrong += (alarm && !anomaly) as u64;
                }
                rate += wrong as f64 / fdr.alarms().max(1) as f64 / trials as f64;
                found += fdr.alarms() - wrong;
            }
            assert!(rate < 0.21, "{rule:?}: {rate}");
            assert!(found > 90 * trials, "{rule:?} found {found}");
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut fdr = OnlineFdr::new(OnlineRule::Lord, 0.1).unwrap();
        (0..3 * TERMS).for_each(|i| assert_eq!(fdr.decide((i % 7) as f64), i % 7 == 0 && fdr.alarms() > 0));
        assert!(fdr.grants.len() <= TERMS / 7 + 1);
        let mut quiet = OnlineFdr::new(OnlineRule::Saffron, 0.1).unwrap();
        (0..2 * TERMS).for_each(|_| assert!(!quiet.decide(0.9)));
        assert_eq!(quiet.level(), 0.0, "a budget that is spent");
    }
}
