//! Single layers, each a thin handle on an op and its parameters.

use super::{Bijection, Pulled, pull};
use crate::autograd;
use crate::nn::{Init, Initial, Param};
use crate::ops::conv::{ConvSpec, conv2d};
use crate::ops::coupling::{self, Coupling};
use crate::ops::{actnorm, invertible_conv, squeeze};
use crate::random::Philox;
use crate::tensor::Tensor;

/// 2 by 2 pixels to channels: (B, H, W, C) to (B, H/2, W/2, 4 C).
pub struct Squeeze;

impl Bijection for Squeeze {
    fn forward(&self, x: &Tensor) -> (Tensor, Tensor) {
        (squeeze::squeeze(x), Tensor::zeros([x.shape()[0]], x.dtype()))
    }

    fn inverse(&self, y: &Tensor) -> Tensor {
        squeeze::unsqueeze(y)
    }

    fn params(&self) -> Vec<Param> {
        Vec::new()
    }
}

/// y = (x + loc) e^log_scale per channel; parameters `loc` and `log_scale` (C), both starting at 0.
pub struct Actnorm {
    loc: Param,
    log_scale: Param,
}

impl Actnorm {
    /// For `channels` channels.
    pub fn new(init: &mut Init, channels: usize) -> Self {
        let mut zeros = |name| init.param(name, [channels], Initial::Zeros);
        Self { loc: zeros("loc"), log_scale: zeros("log_scale") }
    }

    /// loc and log_scale, as leaves.
    pub(super) fn get(&self) -> (Tensor, Tensor) {
        (self.loc.get(), self.log_scale.get())
    }

    /// Makes this batch leave with mean 0 and deviation 1 per channel.
    pub(super) fn fit(&self, x: &Tensor) {
        let (loc, log_scale) = actnorm::initial(x);
        self.loc.set(&loc);
        self.log_scale.set(&log_scale);
    }
}

impl Bijection for Actnorm {
    fn forward(&self, x: &Tensor) -> (Tensor, Tensor) {
        let (loc, log_scale) = self.get();
        actnorm::actnorm(x, &loc, &log_scale)
    }

    fn inverse(&self, y: &Tensor) -> Tensor {
        let (loc, log_scale) = self.get();
        actnorm::inverse(y, &loc, &log_scale)
    }

    fn params(&self) -> Vec<Param> {
        vec![self.loc.clone(), self.log_scale.clone()]
    }

    fn init_from(&self, x: &Tensor) -> Tensor {
        self.fit(x);
        self.forward(x).0
    }
}

/// Invertible 1x1 convolution; parameter `weight` (C, C), starting orthogonal.
pub struct DenseConv {
    weight: Param,
}

impl DenseConv {
    /// For `channels` channels.
    pub fn new(init: &mut Init, channels: usize) -> Self {
        Self { weight: init.param("weight", [channels, channels], Initial::Orthogonal) }
    }

    /// The matrix.
    pub(super) fn matrix(&self) -> Tensor {
        self.weight.get()
    }
}

impl Bijection for DenseConv {
    fn forward(&self, x: &Tensor) -> (Tensor, Tensor) {
        invertible_conv::invertible_conv(x, &self.weight.get(), None)
    }

    fn inverse(&self, y: &Tensor) -> Tensor {
        invertible_conv::inverse(y, &self.weight.get(), None)
    }

    fn params(&self) -> Vec<Param> {
        vec![self.weight.clone()]
    }
}

/// Invertible 1x1 convolution W = P L (U + diag(sign e^log_s)): parameters `lower`, `upper` (C, C) and `log_s`
/// (C), starting at the parts of an orthogonal matrix.
pub struct PluConv {
    lower: Param,
    upper: Param,
    log_s: Param,
    permutation: Tensor,
    sign: Tensor,
}

impl PluConv {
    /// For `channels` channels. P and the signs are those of a matrix drawn from the layer's name, so that they
    /// need not be stored with a model.
    pub fn new(init: &mut Init, channels: usize) -> Self {
        let c = channels;
        let mut zeros = |name, shape: &[usize]| init.param(name, shape, Initial::Zeros);
        let (lower, upper, log_s) = (zeros("lower", &[c, c]), zeros("upper", &[c, c]), zeros("log_s", &[c]));
        let seed = init.prefix().bytes().fold(c as u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
        let w = Philox::new(seed).initial([c, c], lower.get().dtype(), Initial::Orthogonal);
        let [permutation, l, u, sign, s] = invertible_conv::to_plu(&w);
        lower.set(&l);
        upper.set(&u);
        log_s.set(&s);
        Self { lower, upper, log_s, permutation, sign }
    }

    /// The matrix.
    pub(super) fn matrix(&self) -> Tensor {
        let (lower, upper, log_s) = (self.lower.get(), self.upper.get(), self.log_s.get());
        invertible_conv::from_plu(&self.permutation, &lower, &upper, &self.sign, &log_s)
    }

    /// log |det| of the matrix.
    pub(super) fn log_abs_det(&self) -> Tensor {
        self.log_s.get().sum_all()
    }
}

impl Bijection for PluConv {
    fn forward(&self, x: &Tensor) -> (Tensor, Tensor) {
        let (lower, upper, log_s) = (self.lower.get(), self.upper.get(), self.log_s.get());
        invertible_conv::invertible_conv_plu(x, [&self.permutation, &lower, &upper, &self.sign, &log_s], None)
    }

    fn inverse(&self, y: &Tensor) -> Tensor {
        invertible_conv::inverse(y, &self.matrix(), None)
    }

    fn params(&self) -> Vec<Param> {
        vec![self.lower.clone(), self.upper.clone(), self.log_s.clone()]
    }
}

/// Affine or additive coupling with the network of Glow: conv 3x3, relu, conv 1x1, relu, conv 3x3 that starts at
/// zero, so that the layer starts at a fixed scale. Parameters `net.0`, `net.2`, `net.4`, each `weight`
/// (KH, KW, in, out) and `bias`.
pub struct AffineCoupling {
    convs: [(Param, Param); 3],
    kind: Coupling,
}

impl AffineCoupling {
    /// For `channels` channels, `hidden` in the network.
    pub fn new(init: &mut Init, channels: usize, hidden: usize, kind: Coupling) -> Self {
        let mut conv = |at: usize, k: usize, from: usize, to: usize| {
            let mut init = init.sub(format!("net.{at}"));
            let start = if at == 4 { Initial::Zeros } else { Initial::FanIn(k * k * from) };
            (init.param("weight", [k, k, from, to], start), init.param("bias", [to], start))
        };
        let convs = [
            conv(0, 3, channels - channels / 2, hidden),
            conv(2, 1, hidden, hidden),
            conv(4, 3, hidden, kind.outputs(channels)),
        ];
        Self { convs, kind }
    }

    fn net(&self, a: &Tensor) -> Tensor {
        let layer =
            |x: &Tensor, (w, b): &(Param, Param), spec| conv2d(x, &w.get(), Some(&b.get()), None, spec);
        let [first, middle, last] = &self.convs;
        // Nothing but the next convolution reads the output of a relu, so that one can gate its gradient.
        let h = layer(a, first, ConvSpec { gated_by_consumer: true, ..ConvSpec::same(3).relu() });
        let gates = ConvSpec { gates_input: true, ..ConvSpec::same(3) };
        let h = layer(&h, middle, ConvSpec { gated_by_consumer: true, padding: 0, ..gates.relu() });
        layer(&h, last, gates)
    }
}

impl Bijection for AffineCoupling {
    fn forward(&self, x: &Tensor) -> (Tensor, Tensor) {
        coupling::coupling(x, &self.net(&coupling::kept_half(x)), self.kind)
    }

    fn inverse(&self, y: &Tensor) -> Tensor {
        coupling::inverse(y, &self.net(&coupling::kept_half(y)), self.kind)
    }

    fn params(&self) -> Vec<Param> {
        self.convs.iter().flat_map(|(w, b)| [w.clone(), b.clone()]).collect()
    }

    /// The network sees the same half on both sides, so one run of it serves the inverse and the gradient.
    fn backward(&self, y: &Tensor, grad_y: &Tensor, grad_logdet: &Tensor) -> Pulled {
        let a = coupling::kept_half(&y.detach()).requires_grad();
        let h = autograd::enable_grad(|| self.net(&a));
        let x = autograd::no_grad(|| coupling::inverse(y, &h, self.kind)).requires_grad();
        let (y, logdet) = autograd::enable_grad(|| coupling::coupling(&x, &h, self.kind));
        let params: Vec<Tensor> = self.params().iter().map(Param::get).collect();
        let mut wrt = vec![&x, &a];
        wrt.extend(&params);
        let mut grads = pull(&[&y, &logdet], &[grad_y, grad_logdet], &wrt);
        let (grad_x, grad_a) = (grads.remove(0), grads.remove(0));
        let grad_a = coupling::beside_zeros(&grad_a, x.shape()[x.rank() - 1]);
        Pulled { grad_x: &grad_x + &grad_a, x: x.detach(), grads }
    }
}
