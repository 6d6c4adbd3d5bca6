//! Is the stream still like the reference? A conformal test martingale.
//!
//! ```text
//! p_t = (#{r > s_t} + u (1 + #{r = s_t})) / (n + 1),   u uniform
//! R_t = (1 + R_{t−1}) f(p_t)         f_ε(p) = ε p^(ε−1)  and its mirror f_ε(1 − p)         alarm ⟺ mean of R_t over f ≥ c
//! ```
//! While the rows are exchangeable with a large reference the smoothed p-values are independent and uniform, and each f
//! is a fair bet, E f = 1 (the power martingales of Vovk, Nouretdinov & Gammerman 2003, "Testing exchangeability
//! on-line"). R_t adds up the capital of gamblers who start at every moment (Shiryaev-Roberts), so it need not win back
//! what was lost before a change; R_t − t is a martingale, and so the mean time to a false alarm is at least c, by
//! optional stopping (Vovk et al. 2021, "Retrain or not retrain: conformal test martingales for change-point
//! detection"). The bets are for small and for large p-values and for five ε, so none is chosen.

use crate::error::{Error, ErrorKind, Result};

/// ε of the bets.
const POWERS: [f64; 5] = [0.3, 0.5, 0.7, 0.85, 0.95];
/// Keeps one p-value of 0 from ending the game.
const SMALLEST: f64 = 1e-9;

/// A drift alarm on a stream of smoothed p-values.
#[derive(Debug, Clone)]
pub struct Drift {
    /// c.
    bound: f64,
    /// R of each bet.
    bets: [f64; 2 * POWERS.len()],
}

impl Drift {
    /// Alarms at growth by the factor `c`: on a stream that does not drift, false alarms are at least `c` rows apart in
    /// the mean.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when `c` is not above 1.
    pub fn new(c: f64) -> Result<Self> {
        if !(c > 1.0 && c.is_finite()) {
            let message = format!("drift: expected a number of rows above 1 between false alarms, got {c}");
            return Err(Error::new(ErrorKind::Usage, message));
        }
        Ok(Self { bound: c, bets: [0.0; 2 * POWERS.len()] })
    }

    /// Takes the smoothed p-value of the next row; whether the stream has drifted by now. After an alarm it starts anew.
    ///
    /// # Panics
    /// When `p` is not in [0, 1].
    #[track_caller]
    pub fn observe(&mut self, p: f64) -> bool {
        assert!((0.0..=1.0).contains(&p), "Drift::observe: a p-value of {p}");
        let (low, high) = (p.max(SMALLEST), (1.0 - p).max(SMALLEST));
        for (i, (bet, power)) in self.bets.iter_mut().zip(POWERS.iter().chain(&POWERS)).enumerate() {
            let p = if i < POWERS.len() { low } else { high };
            *bet = (1.0 + *bet) * power * p.powf(power - 1.0);
        }
        let alarm = self.level() >= self.bound;
        if alarm {
            self.bets = [0.0; 2 * POWERS.len()];
        }
        alarm
    }

    /// The mean of R_t: near its bound c an alarm is near.
    pub fn level(&self) -> f64 {
        self.bets.iter().sum::<f64>() / self.bets.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Philox;
    use crate::tensor::DType;

    #[test]
    fn alarms_on_drift_and_rarely_without() {
        let rows = 20_000;
        let (mut alarms, c) = (0, 1000.0);
        for seed in 0..5 {
            let u = Philox::new(seed).uniform_open([rows], DType::F64);
            let mut drift = Drift::new(c).unwrap();
            alarms += u.as_slice::<f64>().iter().filter(|p| drift.observe(**p)).count();
        }
        assert!(alarms <= 5 * rows / c as usize, "{alarms} false alarms in {} rows", 5 * rows);
        // p-values of scores that moved: too small, too large.
        for (power, name) in [(2.0, "small"), (0.5, "large")] {
            let mut drift = Drift::new(c).unwrap();
            let u = Philox::new(9).uniform_open([500], DType::F64);
            let when = u.as_slice::<f64>().iter().position(|u| drift.observe(u.powf(power)));
            assert!(when.is_some_and(|t| t < 150), "{name}: {when:?}");
        }
        assert!(Drift::new(1.0).is_err());
    }

    /// Each bet is fair: E f(p) = 1 for a uniform p.
    #[test]
    fn bets_are_fair() {
        for power in POWERS {
            let n = 2_000_000;
            let mean = (0..n).map(|i| power * ((i as f64 + 0.5) / n as f64).powf(power - 1.0)).sum::<f64>()
                / n as f64;
            assert!((mean - 1.0).abs() < 0.02, "{power}: {mean}");
        }
    }
}
