//! Invertible residual layers y = x + g(x), g a contraction (Behrmann et al. 2019; Chen et al. 2019, "Residual flows").
//!
//! g is a perceptron with LipSwish, z σ(β z) / 1.1 with a learned β > 0 for each layer, between its layers: the
//! bound on its slope is 1 whatever β is, but its curvature is not. Inputs are small, because the weights of a layer
//! share a norm of 1, so β starts at 10: with β = 1 units stay where they are nearly straight, and so does the flow.
//! Each weight is divided by what its spectral norm exceeds Lip^(1/layers) by, so that g's Lipschitz constant is at
//! most Lip < 1. The norm is bounded from above by Gram iteration (Delattre et al. 2023): with G₀ = W, Gₜ₊₁ = Gₜᵀ
//! Gₜ, ‖W‖ ≤ ‖G_T‖_F^(1/2^T): no vectors to keep, no hope that a power iteration has converged, and a gradient.
//!
//! **Inverse.** The fixed point of x ↦ y − g(x), which converges like Lip^k.
//! **log |det|**, J = dg/dx. Exactly: all columns of J by forward differentiation, log |det(I + J)| by LU and its
//! gradient tr((I + J)⁻¹ dJ); D products, for few features. Or without bias by the power series
//! Σ_k (−1)^(k+1) tr(J^k) / k: εᵀ J^k ε for a random sign vector ε (Hutchinson), cut at a random length N with every
//! term divided by P(N ≥ k) (Russian roulette). Its gradient is εᵀ dJ u, u = Σ_k (−1)^(k+1) J^(k−1) ε / P(N ≥ k), so
//! a training step keeps one product whatever N is.

use super::{Bijection, BijectionInfo};
use crate::autograd;
use crate::nn::{Init, Initial, Param};
use crate::ops::{binary, linalg, matmul::matmul, shape};
use crate::random::Philox;
use crate::tensor::Tensor;

/// Gram iterations: the bound exceeds the norm of a matrix of rank r by r^(1/64) at most.
const GRAM: usize = 5;
/// Terms of the series that are always there.
const SURE_TERMS: usize = 2;
/// The chance of each further term.
const GO_ON: f64 = 0.5;
/// β at first.
const SHARPNESS: f64 = 10.0;
/// The most steps of the inverse.
const MAX_STEPS: usize = 1000;

/// y = x + g(x) for x (B, D); parameters `0.weight` (D, H), `0.bias`, `1.beta` (of which β is the softplus),
/// `2.weight`, ...
pub struct Residual {
    layers: Vec<(Param, Param)>,
    sharpness: Vec<Param>,
    lipschitz: f64,
}

/// g at a batch: its weights as they count, and the slopes of its activations.
struct Linearised {
    weights: Vec<Tensor>,
    slopes: Vec<Tensor>,
}

impl Residual {
    /// For D = `features`, with layers of `hidden` units and a Lipschitz constant of g of at most `lipschitz`.
    ///
    /// # Panics
    /// When `lipschitz` is not between 0 and 1.
    #[track_caller]
    pub fn new(init: &mut Init, features: usize, hidden: &[usize], lipschitz: f64) -> Self {
        assert!(lipschitz > 0.0 && lipschitz < 1.0, "residual: a Lipschitz constant of {lipschitz}");
        let sizes = [&[features], hidden, &[features]].concat();
        let layer = |(i, pair): (usize, &[usize])| {
            let mut init = init.sub(2 * i);
            let weight = init.param("weight", [pair[0], pair[1]], Initial::FanIn(pair[0]));
            (weight, init.param("bias", [pair[1]], Initial::FanIn(pair[0])))
        };
        let layers: Vec<_> = sizes.windows(2).enumerate().map(layer).collect();
        let raw = Initial::Constant(SHARPNESS.exp_m1().ln());
        let sharpness = (0..hidden.len()).map(|i| init.sub(2 * i + 1).param("beta", [1], raw)).collect();
        Self { layers, sharpness, lipschitz }
    }

    fn weights(&self) -> Vec<Tensor> {
        let most = self.lipschitz.powf(1.0 / self.layers.len() as f64);
        let scaled = |(w, _): &(Param, Param)| {
            let w = w.get();
            let factor = norm_bound(&w).recip().affine(most, 0.0);
            &w * &binary::minimum(&factor, &Tensor::scalar(1.0, w.dtype()))
        };
        self.layers.iter().map(scaled).collect()
    }

    /// g(x), and what its derivative needs.
    fn linearise(&self, x: &Tensor, weights: Vec<Tensor>) -> (Tensor, Linearised) {
        let (mut x, mut slopes) = (x.clone(), Vec::new());
        let last = weights.len() - 1;
        for (i, (w, (_, bias))) in weights.iter().zip(&self.layers).enumerate() {
            let z = &matmul(&x, w, false, false) + &bias.get();
            if i == last {
                x = z;
                break;
            }
            let sharp = &z * &self.sharpness[i].get().softplus();
            let s = sharp.sigmoid();
            x = (&z * &s).affine(1.0 / 1.1, 0.0);
            // (z σ(β z))' = σ (1 + β z (1 − σ)).
            slopes.push((&s * &(&sharp * &s.affine(-1.0, 1.0)).affine(1.0, 1.0)).affine(1.0 / 1.1, 0.0));
        }
        (x, Linearised { weights, slopes })
    }

    /// As [`Bijection::forward`], with the log-determinant estimated without bias.
    pub fn forward_estimated(&self, x: &Tensor, rng: &mut Philox) -> (Tensor, Tensor) {
        let (g, at) = self.linearise(x, self.weights());
        (x + &g, at.estimated_logdet(x.shape(), rng))
    }
}

/// An upper bound of the spectral norm of `w`, a scalar.
fn norm_bound(w: &Tensor) -> Tensor {
    let frobenius = |t: &Tensor| t.square().sum_all().sqrt();
    let (mut gram, mut log, mut power) = (w.clone(), Tensor::scalar(0.0, w.dtype()), 1.0);
    for _ in 0..GRAM {
        // The scale, a constant: it cancels in what follows.
        let size = frobenius(&gram.detach()).clamp(1e-30, f64::INFINITY);
        log = &log + &size.ln().affine(power, 0.0);
        let unit = &gram / &size;
        gram = matmul(&unit, &unit, true, false);
        power *= 0.5;
    }
    (&frobenius(&gram).ln().affine(power, 0.0) + &log).exp()
}

impl Linearised {
    /// J t for tangents t (B, M, D).
    fn push(&self, t: &Tensor) -> Tensor {
        let [b, m, _] = t.dims();
        let mut t = t.clone();
        for (i, w) in self.weights.iter().enumerate() {
            t = matmul(&t.reshape([b * m, w.shape()[0]]), w, false, false).reshape([b, m, w.shape()[1]]);
            if let Some(slope) = self.slopes.get(i) {
                t = &t * &slope.reshape([b, 1, slope.shape()[1]]);
            }
        }
        t
    }

    fn detached(&self) -> Self {
        let cut = |v: &[Tensor]| v.iter().map(Tensor::detach).collect();
        Self { weights: cut(&self.weights), slopes: cut(&self.slopes) }
    }

    fn exact_logdet(&self, [b, d]: [usize; 2]) -> Tensor {
        let dtype = self.weights[0].dtype();
        let identity = shape::one_hot(&shape::arange(d), d, dtype).reshape([1, d, d]);
        // Row j holds J e_j: the transpose, whose determinant is the same.
        let matrix = &self.push(&identity.broadcast_to([b, d, d])) + &identity;
        let (logs, inverses) = linalg::log_dets_and_inverses(&matrix);
        with_value((&matrix * &inverses.permute(&[0, 2, 1])).sum_examples(), &logs)
    }

    fn estimated_logdet(&self, shape: &[usize], rng: &mut Philox) -> Tensor {
        let (b, d, dtype) = (shape[0], shape[1], self.weights[0].dtype());
        let probe = rng.rademacher([b, 1, d], dtype);
        let mut extra = [0.0f64];
        rng.fill_open(&mut extra);
        let terms = SURE_TERMS + (extra[0].ln() / GO_ON.ln()) as usize;
        let (value, direction) = autograd::no_grad(|| {
            let plain = self.detached();
            let (mut power, mut value) = (probe.clone(), Tensor::zeros([b], dtype));
            let mut direction = Tensor::zeros([b, 1, d], dtype);
            for k in 1..=terms {
                let chance = GO_ON.powi(k.saturating_sub(SURE_TERMS) as i32);
                let weight = if k % 2 == 1 { 1.0 } else { -1.0 } / chance;
                direction = &direction + &power.affine(weight, 0.0);
                power = plain.push(&power);
                value = &value + &(&probe * &power).sum_examples().affine(weight / k as f64, 0.0);
            }
            (value, direction)
        });
        with_value((&probe * &self.push(&direction)).sum_examples(), &value)
    }
}

/// A tensor with the value of `value` and the gradient of `gradient`.
fn with_value(gradient: Tensor, value: &Tensor) -> Tensor {
    &gradient + &(value - &gradient.detach())
}

impl Bijection for Residual {
    /// With the exact log-determinant: D products per example.
    fn forward(&self, x: &Tensor) -> (Tensor, Tensor) {
        let (g, at) = self.linearise(x, self.weights());
        (x + &g, at.exact_logdet(x.dims()))
    }

    fn inverse(&self, y: &Tensor) -> Tensor {
        autograd::no_grad(|| {
            let weights = self.weights();
            let mut x = y.detach();
            let tolerance = if y.dtype() == crate::DType::F64 { 1e-13 } else { 1e-7 };
            for _ in 0..MAX_STEPS {
                let next = y - &self.linearise(&x, weights.clone()).0;
                let moved = crate::testing::max_error(std::slice::from_ref(&next), &[x]);
                x = next;
                if moved < tolerance {
                    break;
                }
            }
            x
        })
    }

    fn params(&self) -> Vec<Param> {
        self.layers
            .iter()
            .flat_map(|(w, b)| [w.clone(), b.clone()])
            .chain(self.sharpness.iter().cloned())
            .collect()
    }
}

pub(super) static RESIDUAL: BijectionInfo = BijectionInfo {
    name: "residual",
    summary: "residual layer with a contraction (Behrmann et al. 2019; Chen et al. 2019)",
    shapes: &[&[1], &[2], &[5]],
    build: |init, shape| Box::new(Residual::new(init, shape[0], &[7, 6], 0.9)),
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::nn::ParamStore;

    fn layer(features: usize) -> (Residual, Vec<Tensor>) {
        let (mut store, mut rng) = (ParamStore::default(), Philox::new(1));
        let layer = Residual::new(&mut Init::new(&mut store, &mut rng, DType::F64), features, &[8], 0.8);
        // Weights that would expand if they were not held.
        store.iter().for_each(|(_, p)| p.set(&p.get().detach().affine(3.0, 0.0)));
        let leaves = layer.params().iter().map(Param::get).collect();
        (layer, leaves)
    }

    #[test]
    fn norms_are_bounded_from_above_and_closely() {
        for (m, n) in [(1, 1), (3, 7), (40, 20)] {
            let w = Philox::new(2).normal([m, n], DType::F64);
            let bound = norm_bound(&w).item();
            let mut v = Philox::new(3).normal([n, 1], DType::F64);
            for _ in 0..500 {
                let next = matmul(&w, &matmul(&w, &v, false, false), true, false);
                v = next.affine(1.0 / next.square().sum_all().item().sqrt(), 0.0);
            }
            let norm = matmul(&w, &v, false, false).square().sum_all().item().sqrt();
            assert!(
                bound >= norm * (1.0 - 1e-12) && bound < 1.07 * norm,
                "{m} x {n}: {norm} held by {bound}"
            );
        }
    }

    /// The mean of the estimates, and of their gradients, approaches the exact ones at the rate of their own spread.
    #[test]
    fn the_roulette_has_no_bias() {
        let (layer, leaves) = layer(3);
        let x = Philox::new(4).normal([1, 3], DType::F64);
        let gradient = |logdet: Tensor| {
            let value = logdet.item();
            let grads = autograd::backward(logdet.sum_all(), &leaves.iter().collect::<Vec<_>>());
            [value, grads[0].to_f64_vec()[1]]
        };
        let exact = gradient(layer.forward(&x).1);
        let n = 4000;
        let (mut sum, mut squares) = ([0.0; 2], [0.0; 2]);
        for i in 0..n {
            let found = gradient(layer.forward_estimated(&x, &mut Philox::new(5).at_step(i)).1);
            for j in 0..2 {
                sum[j] += found[j] / n as f64;
                squares[j] += found[j] * found[j] / n as f64;
            }
        }
        for j in 0..2 {
            let error = ((squares[j] - sum[j] * sum[j]).max(0.0) / n as f64).sqrt();
            assert!(
                (sum[j] - exact[j]).abs() < 4.5 * error,
                "{j}: mean {} ± {error}, exact {}",
                sum[j],
                exact[j]
            );
            assert!(error > 0.0);
        }
    }
}
