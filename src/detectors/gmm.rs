//! Gaussian mixture: score(x) = −log p(x) of [`crate::models::latent::gmm`], in nats.
//!
//! Five components with full covariances, as PyOD's benchmarks set it; fewer if there are fewer rows.

use super::likelihood::Likelihood;
use super::{DetectorInfo, Method, Scaling, Table, boxed, defaults, setting};
use crate::error::Result;
use crate::random::Philox;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub(super) static GMM: DetectorInfo = DetectorInfo {
    name: "gmm",
    family: "density",
    summary: "-log p of a Gaussian mixture by expectation maximisation (Dempster, Laird & Rubin 1977)",
    scaling: Scaling::Standard,
    settings: defaults::<Gmm>,
    build: boxed::<Gmm>,
};

#[derive(Serialize, Deserialize)]
struct Settings {
    /// K.
    components: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { components: 5 }
    }
}

#[derive(Serialize, Deserialize)]
struct Gmm {
    likelihood: Likelihood,
}

impl Method for Gmm {
    const INFO: &'static DetectorInfo = &GMM;
    type Settings = Settings;

    fn fit(settings: &Settings, reference: &Table, rng: &Philox) -> Result<Self> {
        if settings.components == 0 {
            return Err(setting("components = 0; expected at least 1"));
        }
        let components = settings.components.min(reference.rows());
        let set = [format!("components={components}"), "train.validation=0".into()];
        let likelihood = Likelihood::fit("gmm_5", &[], &set, reference, rng, &mut ())?;
        Ok(Self { likelihood })
    }

    fn score(&self, x: &Table) -> Vec<f64> {
        self.likelihood.score(x)
    }

    fn columns(&self) -> Option<usize> {
        self.likelihood.columns()
    }
}
