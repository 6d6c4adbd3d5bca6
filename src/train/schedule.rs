//! Learning-rate schedules.

use serde::{Deserialize, Serialize};

/// The curve after the warmup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Curve {
    /// 1.
    Constant,
    /// From 1 down to `floor` along half a cosine over the rest of the training (Loshchilov & Hutter 2017).
    Cosine,
    /// `rate^(t / every)`, down to `floor` (PixelCNN++: rate 0.999995, every 1).
    Exponential,
    /// `rate^⌊t / every⌋`, down to `floor`.
    Step,
}

/// The factor on the learning rate as a function of the step.
///
/// With `t` steps after the warmup:
/// ```text
/// factor(s) = (s + 1) / (warmup + 1)    for s < warmup
///             curve(s − warmup)         from there on
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// The curve after the warmup.
    pub curve: Curve,
    /// Steps of linear increase.
    pub warmup: u64,
    /// Factor per `every` steps, for `exponential` and `step`.
    pub rate: f64,
    /// Steps per factor `rate`.
    pub every: u64,
    /// The smallest factor after the warmup.
    pub floor: f64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { curve: Curve::Constant, warmup: 0, rate: 0.5, every: 1000, floor: 0.0 }
    }
}

impl Schedule {
    /// The factor at `step` (from 0) of `total` steps.
    pub fn factor(&self, step: u64, total: u64) -> f64 {
        if step < self.warmup {
            return (step + 1) as f64 / (self.warmup + 1) as f64;
        }
        let (t, every) = ((step - self.warmup) as f64, self.every.max(1) as f64);
        match self.curve {
            Curve::Constant => 1.0,
            Curve::Cosine => {
                let part = (t / total.saturating_sub(self.warmup).max(1) as f64).min(1.0);
                self.floor + (1.0 - self.floor) * 0.5 * (1.0 + (std::f64::consts::PI * part).cos())
            }
            Curve::Exponential => self.rate.powf(t / every).max(self.floor),
            Curve::Step => self.rate.powf((t / every).floor()).max(self.floor),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves() {
        let warm = Schedule { warmup: 4, curve: Curve::Cosine, floor: 0.1, ..Default::default() };
        let factors: Vec<f64> = (0..14).map(|s| warm.factor(s, 14)).collect();
        assert!(factors[..5].is_sorted() && factors[4] == 1.0, "{factors:?}");
        assert!(factors[4..].is_sorted_by(|a, b| a > b), "{factors:?}");
        approx::assert_abs_diff_eq!(warm.factor(9, 14), 0.55, epsilon = 1e-12);
        assert_eq!(warm.factor(1000, 14), 0.1);
        let step = Schedule { curve: Curve::Step, rate: 0.5, every: 10, ..Default::default() };
        assert_eq!([step.factor(9, 0), step.factor(10, 0), step.factor(29, 0)], [1.0, 0.5, 0.25]);
        let exponential = Schedule { curve: Curve::Exponential, ..step };
        approx::assert_abs_diff_eq!(exponential.factor(20, 0), 0.25, epsilon = 1e-12);
        assert_eq!(Schedule::default().factor(7, 10), 1.0);
    }
}
