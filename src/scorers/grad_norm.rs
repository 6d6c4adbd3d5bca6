//! Gradient norms: how far one step of training on x would move each layer, against what is usual.
//!
//! ```text
//! f_j(x) = ln ‖∂ log p(x) / ∂θ_j‖²        z_j = (f_j − μ_j) / σ_j        score(x) = (1/J) Σ_j z_j²
//! ```
//! θ_j are the J parameter tensors, μ_j and σ_j the mean and standard deviation of f_j over the reference. It is the
//! score function's size in a layer-wise diagonal approximation of the Fisher information metric, two-sided, and does
//! not depend on how the model is parameterised within a layer's scale. Dauncey et al. 2024, "Approximations to the
//! Fisher information metric of deep generative models for out-of-distribution detection", arXiv:2403.01485; after
//! Nguyen et al. 2019 (gradients of a VAE) and the typicality test of Nalisnick et al. 2019. One backward pass per
//! example: it costs about three times the likelihood, without the gain of batches.

use super::{ANY_KIND, Evidence, Fitted, Learn, Need, ScorerInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::models::Statistic;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub static GRAD_NORM: ScorerInfo = ScorerInfo {
    name: "grad_norm",
    family: "gradient",
    summary: "log gradient norms per layer against their reference, two-sided (Dauncey et al. 2024)",
    unit: "squared deviations",
    accepts: ANY_KIND,
    needs: &[Need::Statistic(Statistic::GradNorm)],
    uses: &[],
    build: Fitted::<Layers>::boxed,
};

/// Mean and standard deviation of each layer's log norm.
#[derive(Serialize, Deserialize)]
struct Layers {
    mean: Vec<f64>,
    std: Vec<f64>,
}

/// Below this a layer's log norm counts as constant; a thousandth of a nat is no difference in size.
const SMALLEST_STD: f64 = 1e-3;

impl Learn for Layers {
    const INFO: &'static ScorerInfo = &GRAD_NORM;

    fn learn(reference: &Evidence) -> Result<Self> {
        let layers = &reference.statistics[&Statistic::GradNorm];
        let mean: Vec<f64> = layers.iter().map(|f| f.iter().sum::<f64>() / f.len() as f64).collect();
        let std = layers.iter().zip(&mean).map(|(f, m)| {
            (f.iter().map(|x| (x - m).powi(2)).sum::<f64>() / f.len() as f64).sqrt().max(SMALLEST_STD)
        });
        Ok(Self { std: std.collect(), mean })
    }

    fn judge(&self, evidence: &Evidence) -> Result<Vec<f64>> {
        let layers = &evidence.statistics[&Statistic::GradNorm];
        if layers.len() != self.mean.len() {
            let (name, found, wanted) = (&evidence.data().name, layers.len(), self.mean.len());
            let message =
                format!("{name}: gradient norms of {found} parameters, \"grad_norm\" was fitted on {wanted}");
            return Err(Error::new(ErrorKind::Data, message));
        }
        let mut scores = vec![0.0; evidence.len()];
        for ((f, mean), std) in layers.iter().zip(&self.mean).zip(&self.std) {
            for (score, f) in scores.iter_mut().zip(f) {
                *score += ((f - mean) / std).powi(2) / layers.len() as f64;
            }
        }
        Ok(scores)
    }

    fn check(&self) -> std::result::Result<(), &'static str> {
        let positive = self.std.iter().all(|s| *s >= SMALLEST_STD);
        if positive && self.std.len() == self.mean.len() && !self.mean.is_empty() {
            Ok(())
        } else {
            Err("expected a mean and a positive standard deviation per layer")
        }
    }
}
