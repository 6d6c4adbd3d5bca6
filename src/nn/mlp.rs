//! Perceptrons with several layers, plain and masked.

use super::{Init, Initial, Param};
use crate::cpu::gemm::Act;
use crate::ops::masked_linear::{Gates, Staircase, masked_linear_with};
use crate::ops::matmul::linear;
use crate::ops::shape;
use crate::tensor::{DType, Tensor};

/// Affine maps over the last axis with an activation between them: parameters `0.weight` (in, out), `0.bias`,
/// `2.weight`, ..., numbered as in a `torch.nn.Sequential` with its activations.
pub struct Mlp {
    layers: Vec<(Param, Param)>,
    act: Act,
}

impl Mlp {
    /// `inputs` to `outputs` through layers of `hidden` units; the weights of the last layer start as `last`.
    pub fn new(
        init: &mut Init,
        inputs: usize,
        hidden: &[usize],
        outputs: usize,
        act: Act,
        last: Initial,
    ) -> Self {
        let sizes: Vec<usize> = [&[inputs], hidden, &[outputs]].concat();
        let layer = |(i, pair): (usize, &[usize])| {
            let (from, to) = (pair[0], pair[1]);
            let start = if i + 2 == sizes.len() { last } else { Initial::FanIn(from) };
            let bias = if start == Initial::Zeros { start } else { Initial::FanIn(from) };
            let mut init = init.sub(2 * i);
            (init.param("weight", [from, to], start), init.param("bias", [to], bias))
        };
        Self { layers: sizes.windows(2).enumerate().map(layer).collect(), act }
    }

    /// (..., inputs) to (..., outputs).
    #[track_caller]
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let last = self.layers.len() - 1;
        self.layers.iter().enumerate().fold(x.clone(), |x, (i, (w, b))| {
            linear(&x, &w.get(), Some(&b.get()), if i == last { Act::None } else { self.act })
        })
    }

    /// The bias of the last layer.
    pub fn last_bias(&self) -> &Param {
        &self.layers[self.layers.len() - 1].1
    }

    /// Weights and biases, first layer first.
    pub fn params(&self) -> Vec<Param> {
        self.layers.iter().flat_map(|(w, b)| [w.clone(), b.clone()]).collect()
    }
}

/// MADE (Germain et al. 2015): D features to `per` outputs each, those of feature d functions of the features before d.
///
/// Hidden unit h of H has the degree 1 + h mod (D − 1); the units are held sorted by degree, which makes each mask a
/// staircase ([`crate::ops::masked_linear`]). Relu between the layers; parameters `0.weight` (D, H), `0.bias`,
/// `2.weight`, ... as of an [`Mlp`], masked weights among them, which stay at their start.
pub struct MaskedMlp {
    layers: Vec<(Param, Param, Staircase)>,
    per: usize,
}

impl MaskedMlp {
    /// `features` to (features, per); the last layer's weights start as `last`.
    ///
    /// # Panics
    /// When there is no feature.
    #[track_caller]
    pub fn new(init: &mut Init, features: usize, hidden: &[usize], per: usize, last: Initial) -> Self {
        let outputs = (1..=features).flat_map(|d| vec![d; per]).collect();
        Self::with_degrees(init, (1..=features).collect(), hidden, outputs, features, last)
    }

    /// As [`Self::new`] for features of several inputs and outputs: each input and output with its feature in
    /// 1..=`features`, in ascending order.
    ///
    /// # Panics
    /// When there is no feature, or features are not in order.
    #[track_caller]
    pub fn with_degrees(
        init: &mut Init,
        inputs: Vec<usize>,
        hidden: &[usize],
        outputs: Vec<usize>,
        features: usize,
        last: Initial,
    ) -> Self {
        assert!(features > 0, "masked perceptron: of no features");
        assert!(inputs.is_sorted() && outputs.is_sorted(), "masked perceptron: features are not in order");
        let (mut stairs, per) = (Vec::new(), outputs.len() / features);
        let mut degrees = inputs;
        for &units in hidden {
            let mut next: Vec<usize> = (0..units).map(|h| h % (features - 1).max(1) + 1).collect();
            next.sort_unstable();
            let reach: Vec<usize> = next.iter().map(|d| degrees.partition_point(|from| from <= d)).collect();
            stairs.push(Staircase::new(degrees.len(), reach));
            degrees = next;
        }
        let reach = |d: usize| degrees.partition_point(|&from| from < d);
        let last_reach: Vec<usize> = outputs.iter().map(|&d| reach(d)).collect();
        stairs.push(Staircase::new(degrees.len(), last_reach));
        let count = stairs.len();
        let layer = |(i, stairs): (usize, Staircase)| {
            let (from, to) = (stairs.inputs(), stairs.outputs());
            let start = if i + 1 == count { last } else { Initial::FanIn(from) };
            let bias = if start == Initial::Zeros { start } else { Initial::FanIn(from) };
            let mut init = init.sub(2 * i);
            (init.param("weight", [from, to], start), init.param("bias", [to], bias), stairs)
        };
        Self { layers: stairs.into_iter().enumerate().map(layer).collect(), per }
    }

    /// (B, D) to (B, D, per).
    #[track_caller]
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let [b, d] = x.dims();
        self.flat(x).reshape([b, d, self.per])
    }

    /// (B, inputs) to (B, outputs).
    #[track_caller]
    pub fn flat(&self, x: &Tensor) -> Tensor {
        let (w, bias, stairs) = &self.layers[self.layers.len() - 1];
        let gates = Gates { input: self.layers.len() > 1, by_consumer: false };
        masked_linear_with(&self.hidden(x), &w.get(), &bias.get(), stairs, Act::None, gates)
    }

    /// The outputs (B, per) of feature `d` alone; x may hold anything from column `d` on.
    #[track_caller]
    pub fn column(&self, x: &Tensor, d: usize) -> Tensor {
        let (w, bias, stairs) = &self.layers[self.layers.len() - 1];
        let (hidden, reach) = (self.hidden(x), stairs.reach(d * self.per));
        let of = |t: &Tensor, axis| shape::narrow(t, axis, d * self.per, self.per);
        if reach == 0 {
            let row = of(&bias.get(), 0).reshape([1, self.per]);
            return row.broadcast_to([x.shape()[0], self.per]);
        }
        let weight = shape::narrow(&of(&w.get(), 1), 0, 0, reach);
        linear(&shape::narrow(&hidden, 1, 0, reach), &weight, Some(&of(&bias.get(), 0)), Act::None)
    }

    fn hidden(&self, x: &Tensor) -> Tensor {
        let last = self.layers.len() - 1;
        self.layers[..last].iter().enumerate().fold(x.clone(), |x, (i, (w, b, stairs))| {
            // Every relu is read by one product, which zeroes the gradient where the relu was 0.
            let gates = Gates { input: i > 0, by_consumer: true };
            masked_linear_with(&x, &w.get(), &b.get(), stairs, Act::Relu, gates)
        })
    }

    /// The bias (D · per) of the last layer.
    pub fn last_bias(&self) -> &Param {
        &self.layers[self.layers.len() - 1].1
    }

    /// 1 where a weight of the layers counts, for tests and pruning: (in, out) each.
    pub fn masks(&self, dtype: DType) -> Vec<Tensor> {
        self.layers.iter().map(|(_, _, stairs)| stairs.mask(dtype)).collect()
    }

    /// Weights and biases, first layer first.
    pub fn params(&self) -> Vec<Param> {
        self.layers.iter().flat_map(|(w, b, _)| [w.clone(), b.clone()]).collect()
    }
}
