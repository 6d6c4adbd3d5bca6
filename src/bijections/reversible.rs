//! Running a bijection with its activations kept or rebuilt.

use super::Bijection;
use crate::autograd::{self, Recipe, record};
use crate::nn::Param;
use crate::tensor::Tensor;
use std::sync::Arc;

/// What a training step keeps of a chain of bijections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Memory {
    /// Every activation: fastest, memory grows with depth.
    Store,
    /// The output alone; backward rebuilds the rest by the inverse, about a third slower, memory constant in
    /// depth.
    Rebuild,
}

/// y and log |det| (B,) of `bijection`, keeping what `memory` says for the gradient.
pub fn reversible(bijection: &Arc<dyn Bijection>, x: &Tensor, memory: Memory) -> (Tensor, Tensor) {
    let params: Vec<Tensor> = bijection.params().iter().map(Param::get).collect();
    let mut inputs = vec![x];
    inputs.extend(&params);
    if memory == Memory::Store || autograd::in_higher_order() || !autograd::is_recording(&inputs) {
        return bijection.forward(x);
    }
    let (y, logdet) = autograd::no_grad(|| bijection.forward(x));
    let inner = bijection.clone();
    let recipe = Recipe::fused("reversible").keeping_outputs();
    let [y, logdet] = record(recipe, &inputs, [y, logdet], move |back| {
        let pulled = inner.backward(back.output(0), &back.grad(0), &back.grad(1));
        std::iter::once(pulled.grad_x).chain(pulled.grads).map(Some).collect()
    });
    (y, logdet)
}
