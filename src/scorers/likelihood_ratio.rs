//! Likelihood ratio against a background model: what is left of the surprisal once the background is explained.
//!
//! ```text
//! score(x) = −(log p(x) − log p₀(x))        nats per example
//! ```
//! p₀ is a model of the same family, trained on mutated inputs and with weight decay, so that it learns the
//! population-wide statistics (smoothness, empty borders) but not what is special to the reference; these cancel in
//! the ratio. Ren et al. 2019, "Likelihood ratios for out-of-distribution detection", arXiv:1906.02845. Below 0 the
//! model explains x better than the background does. Likelihoods with an unknown constant are refused, since they
//! have no such zero.

use super::{Evidence, Fit, NORMALISED, Scorer, ScorerInfo};
use crate::error::Result;
use serde_json::Value;

/// The registry's line.
pub static LIKELIHOOD_RATIO: ScorerInfo = ScorerInfo {
    name: "likelihood_ratio",
    family: "ratio",
    summary: "log-likelihood ratio against a background model, in nats (Ren et al. 2019)",
    unit: "nats",
    accepts: NORMALISED,
    needs_background: true,
    needs_images: false,
    build: || Box::new(LikelihoodRatio::default()),
};

/// −(log p(x) − log p₀(x)).
#[derive(Debug, Clone, Default)]
pub struct LikelihoodRatio {
    fit: Option<Fit>,
}

impl Scorer for LikelihoodRatio {
    fn fit(&mut self, reference: &Evidence) -> Result<()> {
        self.fit = Some(Fit::new(&LIKELIHOOD_RATIO, reference)?);
        Ok(())
    }

    fn score(&self, evidence: &Evidence) -> Result<Vec<f64>> {
        super::fitted(&self.fit, &LIKELIHOOD_RATIO)?.check(&LIKELIHOOD_RATIO, evidence)?;
        let background = evidence.background.into_iter().flatten();
        Ok(evidence.nats.iter().zip(background).map(|(l, l0)| l0 - l).collect())
    }

    fn state(&self) -> Result<Value> {
        super::save(&self.fit, &LIKELIHOOD_RATIO)
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        self.fit = Some(super::load(&LIKELIHOOD_RATIO, state)?);
        Ok(())
    }
}
