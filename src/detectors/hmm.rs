//! Hidden Markov model: score(x) = −log p(x) of [`crate::models::latent::hmm`], in nats.
//!
//! A row is a series: its columns are the steps, one number each, so their order matters. Four states with Gaussian
//! emissions; fewer if there are fewer numbers.

use super::likelihood::Likelihood;
use super::{DetectorInfo, Method, Scaling, Table, boxed, defaults, setting};
use crate::error::Result;
use crate::random::Philox;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub(super) static HMM: DetectorInfo = DetectorInfo {
    name: "hmm",
    family: "density",
    summary: "-log p of a hidden Markov model over the columns as steps of a series (Rabiner 1989)",
    scaling: Scaling::Standard,
    settings: defaults::<Hmm>,
    build: boxed::<Hmm>,
};

#[derive(Serialize, Deserialize)]
struct Settings {
    /// Hidden states.
    states: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { states: 4 }
    }
}

#[derive(Serialize, Deserialize)]
struct Hmm {
    likelihood: Likelihood,
}

impl Method for Hmm {
    const INFO: &'static DetectorInfo = &HMM;
    type Settings = Settings;

    fn fit(settings: &Settings, reference: &Table, rng: &Philox) -> Result<Self> {
        if settings.states == 0 {
            return Err(setting("states = 0; expected at least 1"));
        }
        let states = settings.states.min(reference.values().len());
        let set = [format!("states={states}"), "train.validation=0".into()];
        let likelihood = Likelihood::fit("hmm", &[1], &set, reference, rng, &mut ())?;
        Ok(Self { likelihood })
    }

    fn score(&self, x: &Table) -> Vec<f64> {
        self.likelihood.score(x)
    }

    fn columns(&self) -> Option<usize> {
        self.likelihood.columns()
    }
}
