//! Two scores of the same rows: is one really better?
//!
//! ```text
//! V₁₀(i) = (#{reference < x_i} + ½ #{=}) / n       V₀₁(j) = (#{others > y_j} + ½ #{=}) / m       AUROC = mean V₁₀ = mean V₀₁
//! Var(A − B) = var_i(V₁₀ᴬ − V₁₀ᴮ) / m + var_j(V₀₁ᴬ − V₀₁ᴮ) / n
//! ```
//! DeLong, DeLong & Clarke-Pearson 1988, "Comparing the areas under two or more correlated receiver operating
//! characteristic curves". Differences of the placements row by row take the correlation of the two scores into account,
//! so the interval of the difference is often much narrower than the two intervals suggest.

use super::Comparison;
use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// The difference of two AUROCs on the same rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// AUROC of the first minus that of the second.
    pub difference: f64,
    /// Lower end of its 95% interval.
    pub low: f64,
    /// Upper end of its 95% interval.
    pub high: f64,
    /// Two-sided p-value of "no difference", by the normal approximation; 1 when the two rank all rows alike.
    pub p_value: f64,
}

impl Paired {
    /// Compares two scores of the same rows in the same order.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] when the numbers of rows differ or a set has fewer than two.
    pub fn new(a: &Comparison, b: &Comparison) -> Result<Self> {
        let (rows, other) = (a.rows(), b.rows());
        if rows != other || rows.0 < 2 || rows.1 < 2 {
            let message =
                format!("a paired comparison of {rows:?} and {other:?} rows; expected the same, 2 at least");
            return Err(Error::new(ErrorKind::Data, message));
        }
        let ((a10, a01), (b10, b01)) = (a.placements(), b.placements());
        let spread = |a: &[f64], b: &[f64]| {
            let n = a.len() as f64;
            let mean = a.iter().zip(b).map(|(a, b)| a - b).sum::<f64>() / n;
            a.iter().zip(b).map(|(a, b)| (a - b - mean).powi(2)).sum::<f64>() / ((n - 1.0) * n)
        };
        let std = (spread(&a10, &b10) + spread(&a01, &b01)).sqrt();
        let difference = a.auroc() - b.auroc();
        let p_value = if std > 0.0 { erfc(difference.abs() / std / std::f64::consts::SQRT_2) } else { 1.0 };
        let half = 1.959_963_985 * std;
        Ok(Self { difference, low: difference - half, high: difference + half, p_value })
    }
}

/// The complementary error function for x ≥ 0, relative error below 1.2e-7 (Numerical Recipes, `erfcc`).
fn erfc(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.5 * x);
    let terms = [
        -1.26551223,
        1.00002368,
        0.37409196,
        0.09678418,
        -0.18628806,
        0.27886807,
        -1.13520398,
        1.48851587,
        -0.82215223,
        0.17087277,
    ];
    let poly = terms.iter().rev().fold(0.0, |sum, c| sum * t + c);
    t * (-x * x + poly).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Philox;
    use crate::tensor::DType;

    /// On many pairs of equally good, correlated scores the p-value is uniform: 5% fall below 0.05.
    #[test]
    fn is_calibrated() {
        let (n, trials) = (80, 600);
        let mut below = 0;
        for trial in 0..trials {
            let z = Philox::new(trial).normal([3, 2 * n], DType::F64);
            let z = z.as_slice::<f64>();
            let score = |k: usize| -> Vec<f64> {
                (0..2 * n).map(|i| z[i] + 0.7 * z[k * 2 * n + i] + if i >= n { 1.0 } else { 0.0 }).collect()
            };
            let compare = |s: &[f64]| Comparison::new(&s[..n], &s[n..]).unwrap();
            let (a, b) = (compare(&score(1)), compare(&score(2)));
            let paired = Paired::new(&a, &b).unwrap();
            assert!((paired.difference - (a.auroc() - b.auroc())).abs() < 1e-12);
            below += (paired.p_value < 0.05) as usize;
        }
        let rate = below as f64 / trials as f64;
        // Four standard deviations of the binomial.
        assert!((rate - 0.05).abs() < 0.036, "{rate}");
    }

    #[test]
    fn edges() {
        let c = |a: &[f64], b: &[f64]| Comparison::new(a, b).unwrap();
        let same = c(&[0.0, 1.0, 2.0], &[1.0, 3.0]);
        let paired = Paired::new(&same, &same).unwrap();
        assert_eq!((paired.difference, paired.p_value), (0.0, 1.0));
        assert!(Paired::new(&same, &c(&[0.0, 1.0], &[1.0, 3.0])).is_err());
        for (x, y) in [(0.0, 1.0), (1.0, 0.157299207), (3.0, 2.20904970e-5)] {
            assert!((erfc(x) / y - 1.0).abs() < 2e-7, "{x}");
        }
    }
}
