//! Couplings of image channels by any elementwise function, optionally given a context.

use super::{Bijection, BijectionInfo, Elementwise, Mixture};
use crate::nn::{Init, Initial, Param};
use crate::ops::conv::{ConvSpec, conv2d};
use crate::ops::coupling::kept_half;
use crate::ops::shape;
use crate::tensor::Tensor;

/// y = (a, f(b; net(a, context))), a the first ⌈C/2⌉ channels of x (B, H, W, C), b the others. The network is that
/// of Glow: conv 3x3, relu, conv 1x1, relu, conv 3x3 that starts at 0, so that f starts as the identity, or near it.
/// Parameters `net.0`, `net.2`, `net.4`, each `weight` (KH, KW, in, out) and `bias`.
pub struct ConvCoupled {
    convs: [(Param, Param); 3],
    kind: Elementwise,
}

impl ConvCoupled {
    /// For C = `channels`, given `context` further channels, with `hidden` in the network.
    ///
    /// # Panics
    /// When there are fewer than two channels.
    #[track_caller]
    pub fn new(init: &mut Init, channels: usize, context: usize, hidden: usize, kind: Elementwise) -> Self {
        assert!(channels >= 2, "a coupling needs two channels, got {channels}");
        let (moved, seen) = (channels / 2, channels - channels / 2 + context);
        let mut conv = |at: usize, k: usize, from: usize, to: usize| {
            let mut init = init.sub(format!("net.{at}"));
            let start = if at == 4 { Initial::Zeros } else { Initial::FanIn(k * k * from) };
            (init.param("weight", [k, k, from, to], start), init.param("bias", [to], start))
        };
        let convs =
            [conv(0, 3, seen, hidden), conv(2, 1, hidden, hidden), conv(4, 3, hidden, moved * kind.params())];
        kind.identity(&convs[2].1);
        Self { convs, kind }
    }

    /// (a, b, parameters of b).
    fn parts(&self, x: &Tensor, context: Option<&Tensor>) -> [Tensor; 3] {
        let [batch, h, w, c] = x.dims();
        let a = kept_half(x);
        let seen = context.map_or(a.clone(), |context| shape::concat(&[&a, context], 3));
        let layer =
            |x: &Tensor, (w, b): &(Param, Param), spec| conv2d(x, &w.get(), Some(&b.get()), None, spec);
        let [first, middle, last] = &self.convs;
        let hidden = layer(&seen, first, ConvSpec::same(3).relu());
        let hidden = layer(&hidden, middle, ConvSpec::same(1).relu());
        let params =
            layer(&hidden, last, ConvSpec::same(3)).reshape([batch, h, w, c / 2, self.kind.params()]);
        [a, shape::narrow(x, 3, c - c / 2, c / 2), params]
    }

    /// y and log |det| (B,), given `context` (B, H, W, context channels).
    #[track_caller]
    pub fn forward_given(&self, x: &Tensor, context: Option<&Tensor>) -> (Tensor, Tensor) {
        let [a, b, params] = self.parts(x, context);
        let (b, logdet) = self.kind.forward(&b, &params);
        (shape::concat(&[&a, &b], 3), logdet)
    }
}

impl Bijection for ConvCoupled {
    fn forward(&self, x: &Tensor) -> (Tensor, Tensor) {
        self.forward_given(x, None)
    }

    fn inverse(&self, y: &Tensor) -> Tensor {
        let [a, b, params] = self.parts(y, None);
        shape::concat(&[&a, &self.kind.inverse(&b, &params)], 3)
    }

    fn params(&self) -> Vec<Param> {
        self.convs.iter().flat_map(|(w, b)| [w.clone(), b.clone()]).collect()
    }
}

pub(super) static MIXTURE: BijectionInfo = BijectionInfo {
    name: "coupling_mixture_conv",
    summary: "coupling of image channels by the CDF of a mixture of logistics (Ho et al. 2019)",
    shapes: &[&[2, 2, 2], &[1, 2, 3]],
    build: |init, shape| {
        let kind = Elementwise::Mixture(Mixture { components: 3 });
        Box::new(ConvCoupled::new(init, super::channels(shape), 0, 4, kind))
    },
};
