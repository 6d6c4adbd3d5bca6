//! Negative log-likelihood: how surprising the model finds an observation.
//!
//! ```text
//! score(x) = −log p(x)        nats per example
//! ```
//! Bishop 1994, "Novelty detection and neural network validation". It is the score that fails on natural images:
//! models give simple images of another kind a *higher* likelihood than their own (Nalisnick et al. 2019, "Do deep
//! generative models know what they don't know?", arXiv:1810.09136). It accepts every [`Kind`]: a bound shifts the
//! score by its gap, an unknown constant shifts all scores alike and leaves their order.

use super::{ANY_KIND, Evidence, Fit, Scorer, ScorerInfo};
use crate::error::Result;
use serde_json::Value;

/// The registry's line.
pub static NLL: ScorerInfo = ScorerInfo {
    name: "nll",
    family: "likelihood",
    summary: "negative log-likelihood in nats, the raw surprisal (Bishop 1994)",
    unit: "nats",
    accepts: ANY_KIND,
    needs_background: false,
    needs_images: false,
    build: || Box::new(Nll::default()),
};

/// −log p(x).
#[derive(Debug, Clone, Default)]
pub struct Nll {
    fit: Option<Fit>,
}

impl Scorer for Nll {
    fn fit(&mut self, reference: &Evidence) -> Result<()> {
        self.fit = Some(Fit::new(&NLL, reference)?);
        Ok(())
    }

    fn score(&self, evidence: &Evidence) -> Result<Vec<f64>> {
        super::fitted(&self.fit, &NLL)?.check(&NLL, evidence)?;
        Ok(evidence.nats.iter().map(|l| -l).collect())
    }

    fn state(&self) -> Result<Value> {
        super::save(&self.fit, &NLL)
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        self.fit = Some(super::load(&NLL, state)?);
        Ok(())
    }
}
