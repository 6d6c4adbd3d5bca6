//! Diagonal Gaussians over latents, importance weights, and the log of their mean.

use crate::ops::normal_logp::normal_logp;
use crate::random::Philox;
use crate::tensor::Tensor;

/// ½ ln 2π.
const HALF_LN_TAU: f64 = 0.918_938_533_204_672_8;

/// q(z | x) = N(mean, exp(log_var)), per example: both (B, L).
#[derive(Debug, Clone)]
pub struct Posterior {
    /// The means.
    pub mean: Tensor,
    /// The logarithms of the variances.
    pub log_var: Tensor,
}

impl Posterior {
    /// From an encoder's output (B, ..., 2 L): means, then log-variances, held within ±20.
    pub(super) fn of(outputs: &Tensor) -> Self {
        let last = outputs.rank() - 1;
        let l = outputs.shape()[last] / 2;
        Self { mean: outputs.narrow(last, 0, l), log_var: outputs.narrow(last, l, l).clamp(-20.0, 20.0) }
    }

    /// The same numbers, not recorded.
    pub(super) fn detached(&self) -> Self {
        Self { mean: self.mean.detach(), log_var: self.log_var.detach() }
    }

    /// KL(q ‖ N(0, 1)) per example (B,): ½ Σ μ² + σ² − 1 − ln σ², in nats.
    pub fn kl(&self) -> Tensor {
        let terms = &(&self.mean.square() + &self.log_var.exp()) - &self.log_var.affine(1.0, 1.0);
        terms.sum_examples().affine(0.5, 0.0)
    }

    /// `samples` draws for each example, z = μ + σ ε: z and ε, both (B, S, L).
    pub(super) fn draw(&self, samples: usize, rng: &mut Philox) -> (Tensor, Tensor) {
        let [b, l] = self.mean.dims();
        let noise = rng.normal([b, samples, l], self.mean.dtype());
        let std = self.log_var.affine(0.5, 0.0).exp().reshape([b, 1, l]);
        (&self.mean.reshape([b, 1, l]) + &(&std * &noise), noise)
    }

    /// ln p(z) − ln q(z | x) (B, S) under p = N(0, 1), from z and the noise that made it.
    pub(super) fn prior_ratio(&self, z: &Tensor, noise: &Tensor) -> Tensor {
        let half_log_det = self.log_var.sum_examples().affine(0.5, 0.0).reshape([z.shape()[0], 1]);
        &(&standard_log_density(z) - &standard_log_density(noise)) + &half_log_det
    }

    /// ln q(z | x) (B, S) of z (B, S, L) as a function of z and of the posterior.
    pub(super) fn log_density(&self, z: &Tensor) -> Tensor {
        let [b, _, l] = z.dims();
        let precision = self.log_var.affine(-0.5, 0.0).exp().reshape([b, 1, l]);
        let standard = &(z - &self.mean.reshape([b, 1, l])) * &precision;
        let terms =
            &standard.square().affine(-0.5, -HALF_LN_TAU) - &self.log_var.affine(0.5, 0.0).reshape([b, 1, l]);
        terms.sum(&[2])
    }
}

/// ln N(z; 0, 1) (B, S) of z (B, S, L).
pub(super) fn standard_log_density(z: &Tensor) -> Tensor {
    let [b, s, l] = z.dims();
    normal_logp(&z.reshape([b * s, l])).reshape([b, s])
}

/// An importance-sampled estimate of log p(x) for each of B examples.
#[derive(Debug, Clone, PartialEq)]
pub struct Importance {
    /// ln (1/K) Σ w_k, nats: its expectation is at most log p(x), and comes near it as K grows.
    pub nats: Vec<f64>,
    /// Standard error of `nats` by the delta method, sqrt(Σ w² / (Σ w)² − 1/K); not to be trusted where `effective`
    /// is small.
    pub standard_error: Vec<f64>,
    /// Effective number of samples, (Σ w)² / Σ w² (Kong 1992).
    pub effective: Vec<f64>,
}

/// Running sums of weights e^{log w}, per example, relative to the largest so far.
pub(super) struct LogMean {
    top: Vec<f64>,
    sum: Vec<f64>,
    squares: Vec<f64>,
    count: usize,
}

impl LogMean {
    pub(super) fn new(b: usize) -> Self {
        Self { top: vec![f64::NEG_INFINITY; b], sum: vec![0.0; b], squares: vec![0.0; b], count: 0 }
    }

    /// Adds log weights (B, S).
    pub(super) fn add(&mut self, log_weights: &Tensor) {
        let [_, s] = log_weights.dims();
        self.count += s;
        for (i, row) in log_weights.to_f64_vec().chunks_exact(s).enumerate() {
            // NaN compares false with everything, and must not be lost.
            let top = row.iter().fold(self.top[i], |t, &x| if x > t || x.is_nan() { x } else { t });
            if top == f64::NEG_INFINITY {
                continue;
            }
            let shrink = if self.sum[i] > 0.0 { (self.top[i] - top).exp() } else { 0.0 };
            let (mut sum, mut squares) = (self.sum[i] * shrink, self.squares[i] * shrink * shrink);
            for x in row {
                let w = (x - top).exp();
                (sum, squares) = (sum + w, squares + w * w);
            }
            (self.top[i], self.sum[i], self.squares[i]) = (top, sum, squares);
        }
    }

    /// The estimates, with `log_det` added.
    pub(super) fn finish(self, log_det: f64) -> Importance {
        let k = self.count as f64;
        let rows = || self.sum.iter().zip(&self.squares);
        Importance {
            nats: self.top.iter().zip(&self.sum).map(|(t, s)| t + (s / k).ln() + log_det).collect(),
            standard_error: rows().map(|(s, q)| (q / (s * s) - 1.0 / k).max(0.0).sqrt()).collect(),
            effective: rows().map(|(s, q)| s * s / q).collect(),
        }
    }
}
