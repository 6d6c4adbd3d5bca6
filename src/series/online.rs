//! Bayesian linear regression that learns one step at a time and forgets slowly.
//!
//! ```text
//! x | w, σ² ~ N(wᵀf, σ²)      w | σ² ~ N(m, σ² P)      1/σ² ~ Gamma(a, b)
//! before:  x ~ Student-t with ν = 2a, mean mᵀf, scale² = b/a (1 + fᵀPf)
//! after:   k = Pf / (λ + fᵀPf),  m += k e,  P = (P − k (Pf)ᵀ) / λ,  a = λa + ½,  b = λb + ½ e² / (1 + fᵀPf)
//! ```
//! The conjugate normal-gamma model (West & Harrison 1997, "Bayesian forecasting and dynamic models", chapter 4) with
//! discount λ: a step counts half after ln 2 / (1 − λ) further steps. The Student-t has the tails that an estimated
//! variance must have, so the surprisal grows with the logarithm of a jump and one outlier does not blind the model.

/// The model of one column.
#[derive(Debug, Clone)]
pub struct OnlineRegression {
    mean: Vec<f64>,
    /// P, row by row.
    spread: Vec<f64>,
    shape: f64,
    rate: f64,
    discount: f64,
    /// Pf, kept to save an allocation per step.
    gain: Vec<f64>,
}

/// Variance of the weights before anything was seen, in squared units of the data.
const PRIOR_SPREAD: f64 = 10.0;
/// P is not inflated beyond this trace: directions that are never seen would grow without bound.
const MOST_SPREAD: f64 = 1e3;

impl OnlineRegression {
    /// A model of `features` weights that remembers about `memory` steps; the data is expected in units of its own
    /// spread.
    ///
    /// # Panics
    /// When `features` is 0 or `memory` is not above 1.
    #[track_caller]
    pub fn new(features: usize, memory: f64) -> Self {
        assert!(features > 0 && memory > 1.0, "OnlineRegression: {features} features, memory {memory}");
        let mut spread = vec![0.0; features * features];
        (0..features).for_each(|i| spread[i * features + i] = PRIOR_SPREAD);
        let gain = vec![0.0; features];
        Self { mean: gain.clone(), spread, shape: 2.0, rate: 0.2, discount: 1.0 - 1.0 / memory, gain }
    }

    /// ln p(mode) − ln p(x) in nats, ≥ 0: how much less likely `x` is than the best guess, by the steps before; then
    /// learns it.
    ///
    /// # Panics
    /// When there are not as many features as weights.
    #[track_caller]
    pub fn observe(&mut self, features: &[f64], x: f64) -> f64 {
        let d = self.mean.len();
        assert_eq!(features.len(), d, "OnlineRegression: features for {d} weights");
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        for (gain, row) in self.gain.iter_mut().zip(self.spread.chunks_exact(d)) {
            *gain = dot(row, features);
        }
        let doubt = dot(features, &self.gain).max(0.0);
        let error = x - dot(&self.mean, features);
        let (nu, scale) = (2.0 * self.shape, self.rate / self.shape * (1.0 + doubt));
        let surprisal = 0.5 * (nu + 1.0) * (error * error / scale / nu).ln_1p();

        let total = self.discount + doubt;
        self.mean.iter_mut().zip(&self.gain).for_each(|(m, g)| *m += g / total * error);
        let trace: f64 = (0..d).map(|i| self.spread[i * d + i]).sum();
        let inflate = if trace < MOST_SPREAD { 1.0 / self.discount } else { 1.0 };
        for i in 0..d {
            // The product is symmetric, and computed so: rounding cannot tear the two halves apart.
            for j in 0..=i {
                let value = (self.spread[i * d + j] - self.gain[i] * self.gain[j] / total) * inflate;
                (self.spread[i * d + j], self.spread[j * d + i]) = (value, value);
            }
        }
        self.shape = self.discount * self.shape + 0.5;
        // The floor keeps a constant column from making its first change infinitely surprising.
        self.rate = self.discount * self.rate + 0.5 * error * error / (1.0 + doubt) + 1e-12;
        surprisal
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Philox;
    use crate::tensor::DType;

    /// Without forgetting the weights are those of ridge regression on all steps.
    #[test]
    fn equals_ridge_regression() {
        let z = Philox::new(1).normal([400], DType::F64);
        let z = z.as_slice::<f64>();
        let mut model = OnlineRegression::new(2, 1e12);
        let (mut a, mut b) = ([[0.1, 0.0], [0.0, 0.1]], [0.0, 0.0]);
        for t in 0..200 {
            let (f, x) = ([1.0, z[t]], 3.0 - 2.0 * z[t] + 0.1 * z[200 + t]);
            model.observe(&f, x);
            for i in 0..2 {
                (0..2).for_each(|j| a[i][j] += f[i] * f[j]);
                b[i] += f[i] * x;
            }
        }
        let det = a[0][0] * a[1][1] - a[0][1] * a[1][0];
        let w = [(a[1][1] * b[0] - a[0][1] * b[1]) / det, (a[0][0] * b[1] - a[1][0] * b[0]) / det];
        assert!(
            (model.mean[0] - w[0]).abs() < 1e-6 && (model.mean[1] - w[1]).abs() < 1e-6,
            "{:?} {w:?}",
            model.mean
        );
        // The estimated variance is that of the noise.
        let variance = model.rate / model.shape;
        assert!((0.007..0.02).contains(&variance), "{variance}");
    }

    #[test]
    fn follows_a_level_and_stays_finite() {
        let mut model = OnlineRegression::new(3, 500.0);
        let features = |t: usize| [1.0, (t as f64 / 50.0).sin(), (t as f64 / 50.0).cos()];
        let step = |model: &mut OnlineRegression, t: usize, level: f64| {
            model.observe(&features(t), level + features(t)[1])
        };
        assert!((0..3000).all(|t| step(&mut model, t, 0.0).is_finite()));
        let jump = step(&mut model, 3000, 5.0);
        assert!(jump > 20.0, "{jump}");
        let settled = (3001..9000).map(|t| step(&mut model, t, 5.0)).last().unwrap();
        assert!(settled < 3.0, "{settled}");
        // A constant column for ever, then a change, then the largest number.
        let mut constant = OnlineRegression::new(1, 100.0);
        assert!((0..100_000).all(|_| constant.observe(&[1.0], 0.0).is_finite()));
        assert!(constant.observe(&[1.0], 1.0) > 100.0);
        assert!(constant.observe(&[1.0], 1e100).is_finite());
    }
}
