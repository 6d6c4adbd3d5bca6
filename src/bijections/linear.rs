//! What stands between the layers with networks: permutations, LU-factored matrices, the logit, and the inverse of any
//! bijection.

use super::{Bijection, BijectionInfo};
use crate::nn::{Init, Initial, Param};
use crate::ops::index::reorder;
use crate::ops::matmul::matmul;
use crate::ops::{linalg, shape};
use crate::random::Philox;
use crate::tensor::Tensor;
use std::sync::Arc;

/// y_c = x at channel `order[c]`, over the last axis; log |det| = 0.
pub struct Permutation {
    order: Arc<[usize]>,
    back: Arc<[usize]>,
}

impl Permutation {
    /// Channel c of y is channel `order[c]` of x.
    ///
    /// # Panics
    /// When `order` is not a permutation of 0, 1, ...
    #[track_caller]
    pub fn new(order: &[usize]) -> Self {
        let mut back = vec![usize::MAX; order.len()];
        for (to, &from) in order.iter().enumerate() {
            assert!(back.get(from) == Some(&usize::MAX), "permutation: {order:?} is none");
            back[from] = to;
        }
        Self { order: order.into(), back: back.into() }
    }

    /// The channels backwards.
    pub fn reverse(channels: usize) -> Self {
        Self::new(&(0..channels).rev().collect::<Vec<_>>())
    }

    /// A random order, drawn from the layer's name, so that it need not be stored with a model.
    pub fn random(init: &Init, channels: usize) -> Self {
        let seed =
            init.prefix().bytes().fold(channels as u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
        Self::new(&Philox::new(seed).permutation(channels))
    }
}

impl Bijection for Permutation {
    fn forward(&self, x: &Tensor) -> (Tensor, Tensor) {
        (reorder(x, &self.order), Tensor::zeros([x.shape()[0]], x.dtype()))
    }

    fn inverse(&self, y: &Tensor) -> Tensor {
        reorder(y, &self.back)
    }

    fn params(&self) -> Vec<Param> {
        Vec::new()
    }
}

/// y = L (U + diag(e^log_s)) x + bias for x (B, C): L unit lower and U strictly upper triangular, parameters `lower`,
/// `upper` (C, C), `log_s` and `bias` (C), starting as the identity (Oliva et al. 2018; Durkan et al. 2019).
/// log |det| = Σ log_s. Two products with x, never one of C x C by C x C.
pub struct LuLinear {
    lower: Param,
    upper: Param,
    log_s: Param,
    bias: Param,
}

impl LuLinear {
    /// For `channels` channels.
    pub fn new(init: &mut Init, channels: usize) -> Self {
        let c = channels;
        let mut zeros = |name, shape: &[usize]| init.param(name, shape, Initial::Zeros);
        let (lower, upper) = (zeros("lower", &[c, c]), zeros("upper", &[c, c]));
        Self { lower, upper, log_s: zeros("log_s", &[c]), bias: zeros("bias", &[c]) }
    }

    /// L and U + diag(e^log_s).
    fn factors(&self) -> [Tensor; 2] {
        let (lower, upper, log_s) = (self.lower.get(), self.upper.get(), self.log_s.get());
        let [c, _] = lower.dims();
        let triangle = |below: bool| {
            Tensor::from_fn([c, c], |i| if below { (i % c < i / c) as i32 } else { (i % c > i / c) as i32 })
                .cast(lower.dtype())
        };
        let identity = shape::one_hot(&shape::arange(c), c, lower.dtype());
        [&(&lower * &triangle(true)) + &identity, &(&upper * &triangle(false)) + &(&identity * &log_s.exp())]
    }
}

impl Bijection for LuLinear {
    fn forward(&self, x: &Tensor) -> (Tensor, Tensor) {
        let [l, u] = self.factors();
        let y = &matmul(&matmul(x, &u, false, true), &l, false, true) + &self.bias.get();
        (y, self.log_s.get().sum_all().broadcast_to([x.shape()[0]]))
    }

    fn inverse(&self, y: &Tensor) -> Tensor {
        let [l, u] = self.factors();
        let centred = y - &self.bias.get();
        matmul(&matmul(&centred, &linalg::inverse(&l), false, true), &linalg::inverse(&u), false, true)
    }

    fn params(&self) -> Vec<Param> {
        vec![self.lower.clone(), self.upper.clone(), self.log_s.clone(), self.bias.clone()]
    }
}

/// y = ln s − ln(1 − s), s = α + (1 − 2α) x, for x in [0, 1], number by number (Dinh et al. 2017); its [`Inverse`]
/// is the sigmoid. log |det| = Σ ln(1 − 2α) − ln s − ln(1 − s).
pub struct Logit {
    /// Keeps the ends finite: 0 < α < 1/2.
    pub alpha: f64,
}

impl Bijection for Logit {
    fn forward(&self, x: &Tensor) -> (Tensor, Tensor) {
        let s = x.affine(1.0 - 2.0 * self.alpha, self.alpha);
        let (log, rest) = (s.ln(), s.affine(-1.0, 1.0).ln());
        let slope = -&(&log + &rest).affine(1.0, -(1.0 - 2.0 * self.alpha).ln());
        (&log - &rest, slope.sum_examples())
    }

    fn inverse(&self, y: &Tensor) -> Tensor {
        let scale = 1.0 / (1.0 - 2.0 * self.alpha);
        y.sigmoid().affine(scale, -self.alpha * scale)
    }

    fn params(&self) -> Vec<Param> {
        Vec::new()
    }
}

/// A bijection run backwards: `forward` is the other's inverse. Its gradient goes through that inverse, so it must be
/// made of recorded ops.
pub struct Inverse(pub Box<dyn Bijection>);

impl Bijection for Inverse {
    fn forward(&self, x: &Tensor) -> (Tensor, Tensor) {
        let y = self.0.inverse(x);
        let (_, logdet) = self.0.forward(&y);
        (y, -&logdet)
    }

    fn inverse(&self, y: &Tensor) -> Tensor {
        self.0.forward(y).0
    }

    fn params(&self) -> Vec<Param> {
        self.0.params()
    }
}

pub(super) static PERMUTATION: BijectionInfo = BijectionInfo {
    name: "permutation",
    summary: "a fixed order of the channels",
    shapes: &[&[1], &[5], &[2, 3, 4]],
    build: |init, shape| Box::new(Permutation::random(init, super::channels(shape))),
};

pub(super) static LU_LINEAR: BijectionInfo = BijectionInfo {
    name: "lu_linear",
    summary: "LU-factored linear map (Oliva et al. 2018)",
    shapes: &[&[2], &[5]],
    build: |init, shape| Box::new(LuLinear::new(init, shape[0])),
};

/// Backwards, as the tests' numbers are any.
pub(super) static LOGIT: BijectionInfo = BijectionInfo {
    name: "logit",
    summary: "logit of [0, 1] (Dinh et al. 2017), run backwards",
    shapes: &[&[3], &[2, 2, 1]],
    build: |_, _| Box::new(Inverse(Box::new(Logit { alpha: 0.1 }))),
};

pub(super) static IAF: BijectionInfo = BijectionInfo {
    name: "inverse_autoregressive_affine",
    summary: "inverse autoregressive affine map (Kingma et al. 2016)",
    shapes: &[&[2], &[4]],
    build: |init, shape| {
        Box::new(Inverse(Box::new(super::Autoregressive::new(
            init,
            shape[0],
            &[6],
            super::Elementwise::Affine,
        ))))
    },
};
