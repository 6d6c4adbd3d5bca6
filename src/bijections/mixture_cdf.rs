//! The CDF of a mixture of logistics as a monotone map (Ho et al. 2019, "Flow++").
//!
//! For each number x the params (..., 2 + 3K) are r, t, then the logits (K) of the weights π, the means μ (K) and the
//! log scales s (K) of the components:
//!   F(x) = Σ π σ((x − μ) e^−s), y = logit F(x) e^ℓ + t, ℓ = 2 tanh(r / 2),
//!   ln dy/dx = ln F'(x) − ln F − ln(1 − F) + ℓ.
//! All is calculated from ln F and ln(1 − F), each a logsumexp over the components, so no tail saturates. The scales are
//! held at e^−7 or more. The inverse brackets x between the components and halves the interval to the last bit.

use crate::cpu::par;
use crate::ops::shape;
use crate::ops::softmax::{log_softmax, logsumexp};
use crate::tensor::{DType, Float, NewTensor, Plain, Tensor};

/// The smallest log scale of a component.
const LOWEST_LOG_SCALE: f64 = -7.0;

/// The settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mixture {
    /// K, the number of components.
    pub components: usize,
}

impl Mixture {
    /// Parameters per number: 2 + 3K.
    pub fn params(self) -> usize {
        2 + 3 * self.components
    }

    /// Whether there are 1 to 256 components.
    pub fn is_valid(self) -> bool {
        (1..=256).contains(&self.components)
    }

    /// Parameters of a map near the identity whose components differ, so that they learn different things.
    pub(super) fn identity(self) -> Vec<f64> {
        let k = self.components;
        let mut params = vec![0.0; self.params()];
        (0..k).for_each(|i| params[2 + k + i] = (2 * i + 1) as f64 / k as f64 - 1.0);
        params
    }
}

/// y (B, ...) and log |det| (B,) in nats: x (B, ...), params (B, ..., 2 + 3K).
#[track_caller]
pub(super) fn mixture_cdf(x: &Tensor, params: &Tensor, mixture: Mixture) -> (Tensor, Tensor) {
    let (last, k) = (params.rank() - 1, mixture.components);
    let part = |from, len| shape::narrow(params, last, from, len);
    let log_scale = part(0, 1).reshape(x.shape()).affine(0.5, 0.0).tanh().affine(2.0, 0.0);
    let shift = part(1, 1).reshape(x.shape());
    let log_weights = log_softmax(&part(2, k));
    let scales = part(2 + 2 * k, k).clamp(LOWEST_LOG_SCALE, f64::MAX);
    let column = x.reshape([x.shape(), &[1]].concat());
    let z = &(&column - &part(2 + k, k)) * &(-&scales).exp();
    // ln σ(z) = −softplus(−z), ln σ(−z) = −softplus(z).
    let (below, above) = (&log_weights - &(-&z).softplus(), &log_weights - &z.softplus());
    let (log_f, log_rest) = (logsumexp(&below), logsumexp(&above));
    let log_density = logsumexp(&(&(&below + &above) - &(&log_weights + &scales)));
    let y = &(&(&log_f - &log_rest) * &log_scale.exp()) + &shift;
    let slope = &(&log_density - &(&log_f + &log_rest)) + &log_scale;
    (y, slope.sum_examples())
}

/// x such that [`mixture_cdf`] gives y; unrecorded, as a search has no gradient.
#[track_caller]
pub(super) fn inverse(y: &Tensor, params: &Tensor, mixture: Mixture) -> Tensor {
    match y.dtype() {
        DType::F32 => inverse_in::<f32>(y, params, mixture),
        DType::F64 => inverse_in::<f64>(y, params, mixture),
        other => panic!("mixture_cdf inverse: of {other:?}; expected F32 or F64"),
    }
}

fn inverse_in<T: Float>(y: &Tensor, params: &Tensor, mixture: Mixture) -> Tensor {
    let (place, y, params) = (y, y.on_host(), params.on_host());
    let (ys, ps, p, k) = (y.as_slice::<T>(), params.as_slice::<T>(), mixture.params(), mixture.components);
    let mut out = NewTensor::<T>::new(y.shape());
    let per = par::GRAIN / 16 / p + 1;
    par::chunks_mut(out.as_mut(), per, |task, out| {
        for (i, x) in out.iter_mut().enumerate() {
            let at = task * per + i;
            let row: Vec<f64> = ps[at * p..(at + 1) * p].iter().map(|v| v.to_f64()).collect();
            let logit = (ys[at].to_f64() - row[1]) * (-2.0 * (0.5 * row[0]).tanh()).exp();
            *x = <T as Plain>::from_f64(solve(&row[2..], k, logit));
        }
    });
    out.finish().beside(place)
}

/// x with logit F(x) = `logit`.
fn solve(row: &[f64], k: usize, logit: f64) -> f64 {
    let (weights, rest) = row.split_at(k);
    let component = |i: usize| (rest[i], rest[k + i].max(LOWEST_LOG_SCALE).exp());
    let value = |x: f64| {
        let (mut below, mut above) = (Sum::default(), Sum::default());
        for (i, w) in weights.iter().enumerate() {
            let (mean, scale) = component(i);
            let z = (x - mean) / scale;
            below.add(w - softplus(-z));
            above.add(w - softplus(z));
        }
        below.ln() - above.ln()
    };
    // Every component reaches the logit at mean + scale · logit, so the mixture does between the outermost of them.
    let reach = |i: usize| component(i).0 + component(i).1 * logit;
    let (mut low, mut high) = (0..k).map(reach).fold((f64::MAX, f64::MIN), |(l, h), x| (l.min(x), h.max(x)));
    for _ in 0..200 {
        let middle = low + 0.5 * (high - low);
        if middle <= low || middle >= high {
            break;
        }
        if value(middle) < logit { low = middle } else { high = middle }
    }
    low + 0.5 * (high - low)
}

/// ln Σ e^v, term by term.
struct Sum {
    top: f64,
    sum: f64,
}

impl Default for Sum {
    fn default() -> Self {
        Self { top: f64::NEG_INFINITY, sum: 0.0 }
    }
}

impl Sum {
    fn add(&mut self, v: f64) {
        if v > self.top {
            self.sum = self.sum * (self.top - v).exp() + 1.0;
            self.top = v;
        } else {
            self.sum += (v - self.top).exp();
        }
    }

    fn ln(&self) -> f64 {
        self.top + self.sum.ln()
    }
}

fn softplus(z: f64) -> f64 {
    z.max(0.0) + (-z.abs()).exp().ln_1p()
}
