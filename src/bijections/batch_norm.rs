//! Batch normalisation as a bijection (Dinh, Sohl-Dickstein & Bengio 2017, section 3.7).

use super::{Bijection, BijectionInfo};
use crate::autograd;
use crate::nn::{Init, Initial, Param};
use crate::tensor::Tensor;

/// Added to every variance.
const EPS: f64 = 1e-5;
/// How much of the remembered statistics a training batch replaces.
const MOMENTUM: f64 = 0.1;

/// y = (x − m) / √(v + ε) · e^log_scale + bias per channel; log |det| = pixels · Σ log_scale − ½ ln(v + ε).
///
/// [`Bijection::forward`] takes mean and variance from the buffers `mean` and `variance`;
/// [`Bijection::training`] from the batch itself, through which gradients pass. A batch that is recorded for gradients
/// is remembered: statistic ← 0.9 statistic + 0.1 that of the batch. Parameters `log_scale` and `bias` (C), from 0.
pub struct BatchNorm {
    log_scale: Param,
    bias: Param,
    mean: Param,
    variance: Param,
}

impl BatchNorm {
    /// For `channels` channels.
    pub fn new(init: &mut Init, channels: usize) -> Self {
        let mut zeros = |name| init.param(name, [channels], Initial::Zeros);
        let (log_scale, bias) = (zeros("log_scale"), zeros("bias"));
        let dtype = bias.get().dtype();
        Self {
            log_scale,
            bias,
            mean: init.buffer("mean", [channels], dtype, Initial::Zeros),
            variance: init.buffer("variance", [channels], dtype, Initial::Constant(1.0)),
        }
    }

    /// Mean and variance (C) over everything but the channels.
    fn moments(x: &Tensor) -> (Tensor, Tensor) {
        let c = x.shape()[x.rank() - 1];
        let rows = x.reshape([x.len() / c, c]);
        let mean = rows.mean(&[0]).reshape([c]);
        let variance = (&rows - &mean).square().mean(&[0]).reshape([c]);
        (mean, variance)
    }

    /// log √(v + ε) − log_scale: the logarithm of what x is divided by.
    fn log_divisor(&self, variance: &Tensor) -> Tensor {
        &variance.affine(1.0, EPS).ln().affine(0.5, 0.0) - &self.log_scale.get()
    }

    fn normalise(&self, x: &Tensor, mean: &Tensor, variance: &Tensor) -> (Tensor, Tensor) {
        let [b, c] = [x.shape()[0], x.shape()[x.rank() - 1]];
        let divisor = self.log_divisor(variance);
        let y = &(&(x - mean) * &(-&divisor).exp()) + &self.bias.get();
        let pixels = (x.len() / (b * c).max(1)) as f64;
        (y, divisor.sum_all().affine(-pixels, 0.0).broadcast_to([b]))
    }

    fn remember(&self, mean: &Tensor, variance: &Tensor, share: f64) {
        for (kept, new) in [(&self.mean, mean), (&self.variance, variance)] {
            kept.set(&(&kept.get().affine(1.0 - share, 0.0) + &new.detach().affine(share, 0.0)));
        }
    }
}

impl Bijection for BatchNorm {
    fn forward(&self, x: &Tensor) -> (Tensor, Tensor) {
        self.normalise(x, &self.mean.get(), &self.variance.get())
    }

    fn inverse(&self, y: &Tensor) -> Tensor {
        let divisor = self.log_divisor(&self.variance.get());
        &(&(y - &self.bias.get()) * &divisor.exp()) + &self.mean.get()
    }

    fn params(&self) -> Vec<Param> {
        vec![self.log_scale.clone(), self.bias.clone()]
    }

    fn init_from(&self, x: &Tensor) -> Tensor {
        let (mean, variance) = Self::moments(x);
        self.remember(&mean, &variance, 1.0);
        self.forward(x).0
    }

    fn training(&self, x: &Tensor) -> (Tensor, Tensor) {
        let (mean, variance) = Self::moments(x);
        let out = self.normalise(x, &mean, &variance);
        if out.0.var().is_some() {
            autograd::no_grad(|| self.remember(&mean, &variance, MOMENTUM));
        }
        out
    }
}

/// The registry's line.
pub(super) static BATCH_NORM: BijectionInfo = BijectionInfo {
    name: "batch_norm",
    summary: "batch normalisation, with the remembered statistics or those of the batch (Dinh et al. 2017)",
    shapes: &[&[3], &[2, 3, 2]],
    build: |init, shape| Box::new(BatchNorm::new(init, super::channels(shape))),
};
