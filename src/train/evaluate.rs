//! Log-likelihoods of whole data sets.

use crate::autograd::no_grad;
use crate::cuda::Replay;
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::models::{Batch, Kind, Model};
use crate::random::Philox;
use crate::tensor::Tensor;
use std::ops::{ControlFlow, Range};

/// The stream of the seed that serves evaluation.
const EVALUATION: u64 = 2;

/// log p(x) of every example of a data set.
#[derive(Debug, Clone, PartialEq)]
pub struct LogProbs {
    /// Nats per example.
    pub nats: Vec<f64>,
    /// What the numbers are.
    pub kind: Kind,
}

impl LogProbs {
    /// The mean, in nats per example.
    pub fn mean(&self) -> f64 {
        self.nats.iter().sum::<f64>() / self.nats.len().max(1) as f64
    }
}

/// How to evaluate.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluate {
    /// Examples per batch. Only models with a randomised likelihood see it in their results.
    pub batch: usize,
    /// The seed of what is random.
    pub seed: u64,
    /// Probability that a byte is replaced by a random one first, as background models are trained.
    pub mutation: f64,
}

impl Default for Evaluate {
    fn default() -> Self {
        Self { batch: 64, seed: 0, mutation: 0.0 }
    }
}

/// log p(x) of every example, without gradients; the same seed gives the same bits.
///
/// # Errors
/// [`ErrorKind::Data`] when the model does not take such data; [`ErrorKind::NonFinite`] naming the first row whose
/// log-likelihood is NaN or infinite.
pub fn log_probs(model: &dyn Model, data: &Dataset, how: &Evaluate) -> Result<LogProbs> {
    log_probs_while(model, data, how, &mut |_| ControlFlow::Continue(()))
}

/// As [`log_probs`]; `progress` hears the number of examples done after each batch and may break off.
///
/// # Errors
/// Those of [`log_probs`]; [`ErrorKind::Interrupted`] when broken off.
pub fn log_probs_while(
    model: &dyn Model,
    data: &Dataset,
    how: &Evaluate,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<LogProbs> {
    let (mut nats, mut kind) = (Vec::with_capacity(data.len()), Kind::Exact);
    let mut replay = Replay::new();
    batches_while(model, data, how, progress, &mut |range, batch, rng| {
        let inputs: Vec<&Tensor> = std::iter::once(&batch.x).chain(&batch.labels).collect();
        let found = replay.run(&inputs, rng, &mut |inputs, rng| {
            let batch = Batch { x: inputs[0].clone(), labels: inputs.get(1).cloned() };
            let found = no_grad(|| model.log_prob(&batch, rng));
            kind = found.kind;
            vec![found.nats]
        });
        nats.extend(found[0].to_f64_vec());
        match range.into_iter().find(|&row| !nats[row].is_finite()) {
            Some(row) => {
                let message = format!("{}: row {row}: log p is {}", data.name, nats[row]);
                Err(Error::new(ErrorKind::NonFinite, message))
            }
            None => Ok(()),
        }
    })?;
    Ok(LogProbs { nats, kind })
}

/// What [`batches_while`] calls.
pub type EachBatch<'a> = &'a mut dyn FnMut(Range<usize>, &Batch, &mut Philox) -> Result<()>;

/// Calls `each` with every batch of `data` as `model` takes it: the rows, the batch, and its random numbers. Batches
/// are on the model's device, where `each` runs.
///
/// # Errors
/// Those of `each` and of the device; [`ErrorKind::Data`] when the model does not take such data;
/// [`ErrorKind::Interrupted`] when `progress` breaks off.
pub fn batches_while(
    model: &dyn Model,
    data: &Dataset,
    how: &Evaluate,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    each: EachBatch,
) -> Result<()> {
    let input = model.input();
    input.check(data)?;
    let device = model.device();
    let rng = Philox::new(how.seed).fork(EVALUATION);
    for (range, values) in data.batches(how.batch.max(1)) {
        // The place in the data, not the number of the batch, selects the random numbers.
        let mut rng = rng.at_step(range.start as u64);
        let x = match how.mutation {
            rate if rate > 0.0 => crate::data::mutate(&values, rate, input.levels, &mut rng),
            _ => values,
        };
        let labels = input.classes.and(data.labels.as_ref()).map(|l| label_tensor(&l[range.clone()]));
        let batch = Batch { x, labels }.to(device)?;
        device.run(|| each(range.clone(), &batch, &mut rng))??;
        if progress(range.end).is_break() {
            return Err(Error::new(ErrorKind::Interrupted, "interrupted; nothing was written"));
        }
    }
    Ok(())
}

/// (B,) i32.
pub(super) fn label_tensor(labels: &[i32]) -> Tensor {
    Tensor::from_slice(labels, [labels.len()])
}
