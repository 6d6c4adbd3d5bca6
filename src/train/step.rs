//! One step: forward, backward and, on a device, the optimiser, recorded and replayed.

use super::optim::{Optimiser, gate};
use crate::autograd;
use crate::cuda::Replay;
use crate::models::{Batch, Model};
use crate::random::Philox;
use crate::tensor::Tensor;

/// The mean objective of the examples of which the share `trim` is left out, the objective (B,) of each example, and
/// the gradient of every parameter, calculated of the objective times `scale[0]` and multiplied by `scale[1]`.
pub(super) fn gradients(
    model: &dyn Model,
    optimiser: &Optimiser,
    batch: &Batch,
    rng: &mut Philox,
    trim: f64,
    scale: Option<&Tensor>,
) -> (Tensor, Tensor, Vec<Tensor>) {
    let objective = model.objective(batch, rng);
    let values = objective.detach();
    let loss = match trim > 0.0 {
        true => (&objective * &weights(&values, trim)).sum_all(),
        false => objective.mean_all(),
    };
    let mean = loss.detach();
    drop(objective);
    let leaves = optimiser.leaves();
    let wanted: Vec<&Tensor> = leaves.iter().collect();
    let Some(scale) = scale else { return (mean, values, autograd::backward(loss, &wanted)) };
    let scaled = (&loss * &scale.narrow(0, 0, 1)).reshape(loss.shape());
    drop(loss);
    let back = scale.narrow(0, 1, 1);
    let grads = autograd::backward(scaled, &wanted);
    (mean, values, grads.iter().map(|g| (g * &back).reshape(g.shape())).collect())
}

/// The places of the smallest of `values` when the share `trim` is left out, in their order; at least one.
pub(super) fn least(values: &[f64], trim: f64) -> Vec<usize> {
    let kept = ((1.0 - trim) * values.len() as f64).ceil().max(1.0) as usize;
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    order.truncate(kept);
    order.sort_unstable();
    order
}

/// Weights (B,) of the examples whose objectives are `values`, when the share `trim` is left out.
fn weights(values: &Tensor, trim: f64) -> Tensor {
    let kept = least(&values.to_f64_vec(), trim);
    let mut weights = vec![0.0; values.len()];
    kept.iter().for_each(|&i| weights[i] = 1.0 / kept.len() as f64);
    Tensor::from_slice(&weights, [weights.len()]).cast(values.dtype())
}

impl Replay {
    /// Forward, backward and optimiser on a device with the optimiser's numbers `rates` and the factor `scale` on
    /// the loss: its gate, the objective of each example, the gradients.
    pub(crate) fn step(
        &mut self,
        model: &dyn Model,
        optimiser: &mut Optimiser,
        batch: &Batch,
        rates: &Tensor,
        scale: Option<&Tensor>,
        rng: &mut Philox,
        trim: f64,
    ) -> Vec<Tensor> {
        let inputs: Vec<&Tensor> = [rates, &batch.x].into_iter().chain(scale).chain(&batch.labels).collect();
        self.run(&inputs, rng, &mut |inputs, rng| {
            let (scale, labels) = inputs[2..].split_at(usize::from(scale.is_some()));
            let batch = Batch { x: inputs[1].clone(), labels: labels.first().cloned() };
            let (loss, values, grads) = gradients(model, optimiser, &batch, rng, trim, scale.first());
            let gate = gate(&loss, &grads);
            drop((batch, loss));
            optimiser.step_on_device(&grads, &inputs[0], &gate);
            [gate, values].into_iter().chain(grads).collect()
        })
    }
}
