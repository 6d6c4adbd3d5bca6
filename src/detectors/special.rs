//! Special functions in f64: ln Γ, ψ, and the χ² distribution.

/// ln Γ(x) for x > 0: Stirling's series from x + 8 on (Abramowitz & Stegun 6.1.41).
pub(super) fn ln_gamma(x: f64) -> f64 {
    let shift: f64 = (0..8).map(|i| (x + i as f64).ln()).sum();
    let z = x + 8.0;
    let series = 1.0 / (12.0 * z) - 1.0 / (360.0 * z.powi(3)) + 1.0 / (1260.0 * z.powi(5))
        - 1.0 / (1680.0 * z.powi(7));
    (z - 0.5) * z.ln() - z + 0.5 * std::f64::consts::TAU.ln() + series - shift
}

/// ψ(x) = d ln Γ/dx for x > 0: the asymptotic series from x + 8 on (6.3.18).
pub(super) fn digamma(x: f64) -> f64 {
    let shift: f64 = (0..8).map(|i| 1.0 / (x + i as f64)).sum();
    let z = x + 8.0;
    let square = 1.0 / (z * z);
    let series = square * (1.0 / 12.0 - square * (1.0 / 120.0 - square * (1.0 / 252.0 - square / 240.0)));
    z.ln() - 0.5 / z - series - shift
}

/// P(χ²_k ≤ x).
pub(super) fn chi2(x: f64, k: usize) -> f64 {
    let (a, x) = (k as f64 / 2.0, x / 2.0);
    if x <= 0.0 {
        return 0.0;
    }
    let front = (a * x.ln() - x - ln_gamma(a)).exp();
    if x < a + 1.0 {
        // Σ x^n Γ(a)/Γ(a + 1 + n) (6.5.29).
        let (mut term, mut sum, mut at) = (1.0 / a, 1.0 / a, a);
        while term > sum * 1e-17 {
            at += 1.0;
            term *= x / at;
            sum += term;
        }
        front * sum
    } else {
        // The continued fraction of the upper tail (6.5.31), by Lentz's method.
        let mut b = x + 1.0 - a;
        let (mut c, mut d) = (1e300, 1.0 / b);
        let mut fraction = d;
        for i in 1..10_000 {
            let factor = -(i as f64) * (i as f64 - a);
            b += 2.0;
            d = 1.0 / (factor * d + b);
            c = b + factor / c;
            fraction *= d * c;
            if (d * c - 1.0).abs() < 1e-16 {
                break;
            }
        }
        1.0 - front * fraction
    }
}

/// The x with P(χ²_k ≤ x) = p, by bisection.
pub(super) fn chi2_quantile(p: f64, k: usize) -> f64 {
    let (mut low, mut high) = (0.0, k as f64);
    while chi2(high, k) < p && high < 1e9 {
        high *= 2.0;
    }
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        if chi2(middle, k) < p { low = middle } else { high = middle }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SciPy 1.17.1: `chi2.cdf`, `chi2.ppf`, `gammaln`, `digamma`.
    #[test]
    fn equal_scipy() {
        let near = |found: f64, expected: f64| {
            assert!(
                (found - expected).abs() < 1e-11 * expected.abs().max(1.0),
                "{found}, expected {expected}"
            );
        };
        near(chi2(1.0, 1), 0.682_689_492_137_085_9);
        near(chi2(5.0, 10), 0.108_821_981_085_848_77);
        near(chi2(20.0, 10), 0.970_747_311_923_038_9);
        near(chi2_quantile(0.975, 1), 5.023_886_187_314_888);
        near(chi2_quantile(0.975, 10), 20.483_177_350_807_388);
        near(chi2_quantile(0.5, 60), 59.334_666_276_442_46);
        near(ln_gamma(0.1), 2.252712651734206);
        near(ln_gamma(30.5), 72.9534711841694);
        near(digamma(0.1), -10.423754940411076);
        near(digamma(30.5), 3.401243668961661);
    }
}
