//! Effective sample size: how much would seeing x change what the ensemble believes about its parameters?
//!
//! ```text
//! w_m = p(x | θ_m) / Σ_k p(x | θ_k)        score(x) = −1 / Σ_m w_m²        between −M and −1
//! ```
//! The posterior p(θ | D ∪ {x}) gives the members the weights w. If all agree on x nothing changes and the effective
//! sample size 1/Σ w² is M; if a few members would take over, x is informative and so unlike the data. Daxberger &
//! Hernández-Lobato 2019, "Bayesian variational autoencoders for unsupervised out-of-distribution detection",
//! arXiv:1912.05651. In high dimension
//! members differ by many nats and the score saturates at −1: ties are then broken by the logarithm of the second
//! largest weight, which is below any double's resolution of the sum.

use super::ensemble::per_row;
use super::{NORMALISED, Need, Plain, ScorerInfo};

/// The registry's line.
pub static ESS: ScorerInfo = ScorerInfo {
    name: "ess",
    family: "ensemble",
    summary: "minus the effective sample size of an ensemble reweighted by p(x) (Daxberger & Hernandez-Lobato 2019)",
    unit: "members",
    accepts: NORMALISED,
    needs: &[Need::Members],
    uses: &[],
    build: || Plain::boxed(&ESS, |evidence| Ok(per_row(evidence, disagreement))),
};

fn disagreement(nats: &[f64]) -> f64 {
    let top = nats.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
    let weights = || nats.iter().map(|l| (l - top).exp());
    let (sum, squares) = weights().fold((0.0, 0.0), |(s, q), w| (s + w, q + w * w));
    let ess = sum * sum / squares;
    // Strictly increasing in the lead of the best member, and smaller than any visible difference in the ESS.
    let lead = nats.iter().filter(|l| **l < top).map(|l| top - l).fold(f64::INFINITY, f64::min);
    let lead = if lead.is_finite() { lead } else { 0.0 };
    -ess + 1e-9 * lead / (1.0 + lead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        assert_eq!(disagreement(&[-3.0, -3.0, -3.0]), -3.0);
        // Weights 2/3 and 1/3: 1 / (4/9 + 1/9) = 1.8.
        let two = disagreement(&[-5.0, -5.0 - 2f64.ln()]);
        assert!((two + 1.8).abs() < 1e-8, "{two}");
        assert!(disagreement(&[-100.0, -300.0]) > disagreement(&[-100.0, -200.0]), "beyond saturation");
    }
}
