//! Posterior predictive of an ensemble: the surprisal under the mean of its members' densities.
//!
//! ```text
//! score(x) = −log p(x | D),   p(x | D) ≈ (1/M) Σ_m p(x | θ_m)        nats per example
//! ```
//! M models trained from different seeds stand for draws from the posterior p(θ | D) (Lakshminarayanan et al. 2017,
//! "Simple and scalable predictive uncertainty estimation using deep ensembles", arXiv:1612.01474; for densities Choi
//! et al. 2018, arXiv:1810.01392). The mean is taken of densities, so the best member decides where they differ much.
//! Members with unknown constants of their own cannot be compared and are refused.

use super::{Evidence, NORMALISED, Need, Plain, ScorerInfo};
use crate::error::Result;

/// The registry's line.
pub static ENSEMBLE: ScorerInfo = ScorerInfo {
    name: "ensemble",
    family: "ensemble",
    summary: "surprisal under the mean density of an ensemble, in nats (Lakshminarayanan et al. 2017)",
    unit: "nats",
    accepts: NORMALISED,
    needs: &[Need::Members],
    uses: &[],
    build: || Plain::boxed(&ENSEMBLE, predictive),
};

fn predictive(evidence: &Evidence) -> Result<Vec<f64>> {
    Ok(per_row(evidence, |nats| {
        let top = nats.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
        let mean = nats.iter().map(|l| (l - top).exp()).sum::<f64>() / nats.len() as f64;
        -(top + mean.ln())
    }))
}

/// `f` of the log-likelihoods of each row under all members.
pub(super) fn per_row(evidence: &Evidence, f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut row = vec![0.0; 1 + evidence.members.len()];
    (0..evidence.len())
        .map(|i| {
            row[0] = evidence.nats[i];
            row[1..].iter_mut().zip(&evidence.members).for_each(|(x, member)| *x = member[i]);
            f(&row)
        })
        .collect()
}
