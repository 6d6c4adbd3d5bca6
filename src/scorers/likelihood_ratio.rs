//! Likelihood ratio against a background model: what is left of the surprisal once the background is explained.
//!
//! ```text
//! score(x) = −(log p(x) − log p₀(x))        nats per example
//! ```
//! p₀ is a model of the same family, trained on mutated inputs and with weight decay (Ren et al. 2019, "Likelihood
//! ratios for out-of-distribution detection", arXiv:1906.02845) or, as `train --background` does it for images, for few
//! steps, so that it learns the population-wide statistics (smoothness, empty borders, GC content) but not what is
//! special to the reference; these cancel in the ratio. Below 0 the model explains x better than the background does.
//! Likelihoods with an unknown constant are refused, since they have no such zero.

use super::{Evidence, NORMALISED, Need, Plain, ScorerInfo};
use crate::error::Result;

/// The registry's line.
pub static LIKELIHOOD_RATIO: ScorerInfo = ScorerInfo {
    name: "likelihood_ratio",
    family: "ratio",
    summary: "log-likelihood ratio against a background model, in nats (Ren et al. 2019)",
    unit: "nats",
    accepts: NORMALISED,
    needs: &[Need::Background],
    uses: &[],
    build: || Plain::boxed(&LIKELIHOOD_RATIO, ratio),
};

fn ratio(evidence: &Evidence) -> Result<Vec<f64>> {
    let background = evidence.background.iter().flatten();
    Ok(evidence.nats.iter().zip(background).map(|(l, l0)| l0 - l).collect())
}
