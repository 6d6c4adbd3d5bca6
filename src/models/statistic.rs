//! What some models can tell about an observation beside log p.

use super::{Batch, Model};
use crate::autograd;
use crate::ops::shape::concat;
use crate::random::Philox;
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// A statistic of an observation under a model: one number per example, or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistic {
    /// ln ‖∂ log p(x) / ∂θ_j‖², one number per parameter tensor θ_j. Every model has it.
    GradNorm,
    /// log p(x) in nats with every batch-normalisation layer in training mode: it uses the mean and variance of the
    /// batch instead of those that it remembers (Song et al. 2019).
    BatchNorm,
    /// Likelihood regret in nats: the bound with the posterior of this x optimised, minus the bound with the encoder's
    /// posterior (Xiao et al. 2020).
    Regret,
    /// LLR^{>k} in nats: the bound minus the bound whose lowest k latent layers are drawn from the conditional prior
    /// (Havtorn et al. 2021).
    LlrK,
    /// What log p(x) is the sum of, in nats. Of flows: the log-density of each part of the latent, and the
    /// log-determinants. Of variational models: E ln p(x | z), and of each layer of latents either −KL or E ln p(z) and
    /// the entropy of q(z | x); their sum is the evidence lower bound.
    Terms,
    /// max_t −log p(x_t | x_<t) in nats, of models whose likelihood is a product over positions.
    WorstStep,
}

/// The statistics that a model offers beside those that every model has; see [`Model::statistics`].
pub trait Statistics {
    /// Which ones.
    fn offered(&self) -> &'static [Statistic];

    /// One of those offered, (B,) or (B, S) floats.
    ///
    /// # Panics
    /// When `which` is not offered.
    fn compute(&self, which: Statistic, batch: &Batch, rng: &mut Philox) -> Tensor;
}

impl Statistic {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::GradNorm, Self::BatchNorm, Self::Regret, Self::LlrK, Self::Terms, Self::WorstStep];

    /// In words, for messages and the keys of caches.
    pub fn name(self) -> &'static str {
        match self {
            Self::GradNorm => "gradient norms",
            Self::BatchNorm => "log-likelihoods in batch-norm training mode",
            Self::Regret => "likelihood regret",
            Self::LlrK => "hierarchical likelihood ratios",
            Self::Terms => "terms of log p",
            Self::WorstStep => "most surprising steps",
        }
    }

    /// Whether it costs no more than log p.
    pub fn is_cheap(self) -> bool {
        self == Self::Terms
    }

    /// Whether `model` can tell it.
    pub fn offered_by(self, model: &dyn Model) -> bool {
        match self {
            Self::GradNorm => true,
            Self::WorstStep => factorises(model),
            _ => model.statistics().is_some_and(|s| s.offered().contains(&self)),
        }
    }

    /// Its value for every example of `batch`: (B,) or (B, S); `None` when `model` does not offer it.
    pub fn of(self, model: &dyn Model, batch: &Batch, rng: &mut Philox) -> Option<Tensor> {
        match self {
            _ if !self.offered_by(model) => None,
            Self::GradNorm => Some(grad_norms(model, batch, rng)),
            Self::WorstStep => worst_steps(model, batch, rng),
            _ => model.statistics().map(|s| s.compute(self, batch, rng)),
        }
    }
}

/// (B, T) from T terms (B,).
pub(super) fn table(terms: &[Tensor]) -> Tensor {
    let columns: Vec<Tensor> = terms.iter().map(|t| t.reshape([t.len(), 1])).collect();
    concat(&columns.iter().collect::<Vec<_>>(), 1)
}

/// Whether the likelihood is a product over positions: asked of one example of zeros.
fn factorises(model: &dyn Model) -> bool {
    let input = model.input();
    let Some(&dtype) = input.dtypes.first() else { return false };
    let shape: Vec<usize> = [1].iter().chain(&input.shape).copied().collect();
    let labels = input.classes.map(|_| Tensor::from_slice(&[0i32], [1]));
    let batch = Batch { x: Tensor::zeros(shape, dtype), labels };
    autograd::no_grad(|| model.log_prob(&batch, &mut Philox::new(0))).per_position.is_some()
}

/// (B,).
fn worst_steps(model: &dyn Model, batch: &Batch, rng: &mut Philox) -> Option<Tensor> {
    let positions = autograd::no_grad(|| model.log_prob(batch, rng)).per_position?;
    let (n, nats) = (batch.x.shape()[0], positions.to_f64_vec());
    let worst = |row: &[f64]| row.iter().fold(f64::NEG_INFINITY, |worst, nats| worst.max(-nats));
    let found: Vec<f64> = nats.chunks_exact((nats.len() / n.max(1)).max(1)).map(worst).collect();
    Some(Tensor::from_slice(&found, [n]))
}

/// (B, S) for S trainable tensors, with one backward pass per example.
fn grad_norms(model: &dyn Model, batch: &Batch, rng: &mut Philox) -> Tensor {
    let leaves: Vec<Tensor> = model.params().trainable().map(|(_, p)| p.get()).collect();
    let leaves: Vec<&Tensor> = leaves.iter().collect();
    let n = batch.x.shape()[0];
    let mut rows = Vec::with_capacity(n * leaves.len());
    for i in 0..n {
        let one = Batch {
            x: batch.x.narrow(0, i, 1),
            labels: batch.labels.as_ref().map(|labels| labels.narrow(0, i, 1)),
        };
        let loss = autograd::enable_grad(|| model.log_prob(&one, rng).nats.sum_all());
        let grads = autograd::backward(loss, &leaves);
        let square = |g: &Tensor| g.to_f64_vec().iter().map(|x| x * x).sum::<f64>();
        // The floor stands for a parameter that the example does not touch.
        rows.extend(grads.iter().map(|g| square(g).max(1e-30).ln()));
    }
    Tensor::from_slice(&rows, [n, leaves.len()])
}
