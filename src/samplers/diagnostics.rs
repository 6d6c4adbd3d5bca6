//! Whether chains can be trusted: R-hat and effective sample size (Gelman et al., "Bayesian data analysis", 3rd ed.,
//! sections 11.4 and 11.5; Geyer 1992 for where the autocorrelations are cut off).

use crate::tensor::Tensor;

/// Of one number of x.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Diagnosis {
    /// √(total variance / variance within half-chains): near 1 when chains agree, above 1.01 they do not.
    pub rhat: f64,
    /// How many independent draws would estimate the mean as well.
    pub ess: f64,
}

/// R-hat and effective size of every number of draws (N, C, ...), each chain cut into halves.
///
/// # Panics
/// With fewer than 4 draws.
#[track_caller]
pub fn diagnose(draws: &Tensor) -> Vec<Diagnosis> {
    let [n, c] = [draws.shape()[0], draws.shape()[1]];
    assert!(n >= 4, "diagnose: {n} draws; expected at least 4");
    let d = draws.len() / (n * c);
    let values = draws.to_f64_vec();
    let half = n / 2;
    (0..d)
        .map(|j| {
            let chain = |k: usize, from: usize| -> Vec<f64> {
                (from..from + half).map(|i| values[(i * c + k) * d + j]).collect()
            };
            let halves: Vec<Vec<f64>> = (0..c).flat_map(|k| [chain(k, 0), chain(k, n - half)]).collect();
            of(&halves)
        })
        .collect()
}

fn of(chains: &[Vec<f64>]) -> Diagnosis {
    let (m, n) = (chains.len() as f64, chains[0].len());
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let means: Vec<f64> = chains.iter().map(|x| mean(x)).collect();
    // Autocovariances of every chain around its own mean, averaged over the chains.
    let covariance = |lag: usize| {
        let of = |(x, m): (&Vec<f64>, &f64)| {
            (0..n - lag).map(|i| (x[i] - m) * (x[i + lag] - m)).sum::<f64>() / n as f64
        };
        chains.iter().zip(&means).map(of).sum::<f64>() / m
    };
    let within = covariance(0) * n as f64 / (n as f64 - 1.0);
    let centre = mean(&means);
    let between = means.iter().map(|x| (x - centre).powi(2)).sum::<f64>() / (m - 1.0);
    let total = within * (n as f64 - 1.0) / n as f64 + between;
    if total <= 0.0 {
        return Diagnosis { rhat: 1.0, ess: m * n as f64 };
    }
    let correlation = |lag: usize| 1.0 - (within - covariance(lag)) / total;
    // Sums of neighbouring pairs are positive and fall; noise takes over where they no longer do.
    let (mut sum, mut before) = (0.0, f64::INFINITY);
    for lag in (0..n - 1).step_by(2) {
        let pair = (if lag == 0 { 1.0 } else { correlation(lag) }) + correlation(lag + 1);
        if pair <= 0.0 {
            break;
        }
        before = pair.min(before);
        sum += before;
    }
    let time = (2.0 * sum - 1.0).max(1.0 / (m * n as f64).log10());
    Diagnosis { rhat: (total / within).sqrt(), ess: m * n as f64 / time }
}
