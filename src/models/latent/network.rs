//! The networks of variational autoencoders: strided convolutions down, dense layers, and the mirror image up.
//!
//! With `channels` c1, c2, ... and `hidden` h1, ...: conv 4x4/2 (C -> c1), relu, conv 4x4/2 (c1 -> c2), relu, ...,
//! flatten, dense (-> h1), relu, ..., dense (-> outputs); the decoder is dense (-> ... h1), relu, dense (-> h w c2),
//! relu, transposed conv 4x4/2 (c2 -> c1), relu, ... (c1 -> outputs per pixel). Without channels both are plain
//! multilayer perceptrons. Layers are numbered as in the usual `torch.nn.Sequential`, activations included; weights
//! copy as they are, but for convolutions (out, in, KH, KW) -> (KH, KW, in, out), transposed ones (in, out, KH, KW) ->
//! (KH, KW, out, in), and dense layers, (out, in) -> (in, out) with the flattened pixels channels last.

use crate::cpu::gemm::Act;
use crate::error::{Error, ErrorKind, Result};
use crate::nn::{Init, Initial, Param};
use crate::ops::conv::{ConvSpec, conv2d, conv2d_transposed};
use crate::ops::matmul::linear;
use crate::tensor::Tensor;
use std::fmt::Display;

/// Side and stride of the convolutions; with a padding of 1 they halve an even side.
const KERNEL: usize = 4;
const STRIDE: usize = 2;
/// The most parameters that a configuration may ask for.
pub(super) const MAX_PARAMS: usize = 1 << 28;

/// Weight and bias.
pub(super) struct Layer {
    weight: Param,
    bias: Param,
}

impl Layer {
    pub(super) fn dense(init: &mut Init, name: impl Display, inputs: usize, outputs: usize) -> Self {
        Self::new(init, name, &[inputs, outputs], inputs, outputs)
    }

    /// A convolution of 3x3 pixels that keeps the grid.
    pub(super) fn conv(init: &mut Init, name: impl Display, inputs: usize, outputs: usize) -> Self {
        Self::new(init, name, &[3, 3, inputs, outputs], 9 * inputs, outputs)
    }

    fn new(init: &mut Init, name: impl Display, shape: &[usize], fan_in: usize, outputs: usize) -> Self {
        let (mut init, start) = (init.sub(name), Initial::FanIn(fan_in));
        Self { weight: init.param("weight", shape, start), bias: init.param("bias", [outputs], start) }
    }

    /// Of the last axis of x: dense for every row or pixel, or a convolution of (B, H, W, C).
    pub(super) fn apply(&self, x: &Tensor, act: Act) -> Tensor {
        let (weight, bias) = (self.weight.get(), self.bias.get());
        if weight.rank() == 4 {
            return conv2d(x, &weight, Some(&bias), None, ConvSpec::same(weight.shape()[0]).act(act));
        }
        linear(x, &weight, Some(&bias), act)
    }
}

/// The sizes of an encoder and its decoder.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
    /// Of an example: (H, W, C), or (D) without channels.
    pub(super) shape: Vec<usize>,
    /// Channels behind each convolution.
    pub(super) channels: Vec<usize>,
    /// Widths of the dense layers.
    pub(super) hidden: Vec<usize>,
}

impl Sizes {
    /// Whether `model` can be built with networks of these sizes between an example and `latent` numbers, with
    /// `per_pixel` outputs for each pixel of an image or column of a table.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] naming the key.
    pub(super) fn check(&self, model: &str, latent: usize, per_pixel: usize) -> Result<()> {
        let fail = |what: String| Err(Error::new(ErrorKind::Usage, format!("{model}: {what}")));
        let Self { shape, channels, hidden } = self;
        let sizes = || shape.iter().chain(channels).chain(hidden);
        if !matches!(shape.len(), 1 | 3) || sizes().any(|&n| n == 0 || n > 1 << 16) {
            return fail(format!("{self:?}; expected a shape of 1 or 3 sizes, all sizes 1 to 65536"));
        }
        if channels.len() > 6 || hidden.len() > 64 {
            return fail(format!(
                "{} convolutions and {} dense layers; expected at most 6 and 64",
                channels.len(),
                hidden.len()
            ));
        }
        if !channels.is_empty() {
            let step = STRIDE.pow(channels.len() as u32);
            if shape.len() != 3 || shape[0] % step != 0 || shape[1] % step != 0 {
                return fail(format!(
                    "shape = {shape:?}; {} convolutions need an image with sides that are multiples of {step}",
                    channels.len()
                ));
            }
        }
        if latent == 0 || latent > 1 << 16 {
            return fail(format!("latent = {latent}; expected 1 to 65536"));
        }
        let mut numbers = 0usize;
        let mut chain = vec![self.flat()];
        chain.extend(hidden);
        chain.push(2 * latent);
        chain.windows(2).for_each(|w| numbers = numbers.saturating_add(2 * w[0].saturating_mul(w[1])));
        let mut before = per_pixel.max(shape[shape.len() - 1]);
        for &c in channels {
            numbers = numbers.saturating_add(2 * KERNEL * KERNEL * before * c);
            before = c;
        }
        if channels.is_empty() {
            numbers = numbers.saturating_add(
                (self.pixels() * per_pixel).saturating_mul(hidden.first().copied().unwrap_or(latent)),
            );
        }
        if numbers > MAX_PARAMS {
            return fail(format!("{self:?} asks for more than {MAX_PARAMS} parameters"));
        }
        Ok(())
    }

    /// Pixels of an image, columns of a table.
    fn pixels(&self) -> usize {
        self.shape.iter().take(2).product()
    }

    /// Numbers between the convolutions and the dense layers.
    fn flat(&self) -> usize {
        let [h, w, c] = self.bottom();
        h * w * c
    }

    /// Height, width and channels behind the last convolution.
    pub(super) fn bottom(&self) -> [usize; 3] {
        match (&self.shape[..], self.channels.last()) {
            (&[h, w, _], Some(&c)) => [h >> self.channels.len(), w >> self.channels.len(), c],
            (shape, _) => [1, 1, shape.iter().product()],
        }
    }
}

/// The convolutions of an encoder, each with a relu.
pub(super) struct Down(Vec<Layer>);

impl Down {
    pub(super) fn new(init: &mut Init, sizes: &Sizes) -> Self {
        let mut cin = sizes.shape.last().copied().unwrap_or(1);
        let layer = |(i, &c): (usize, &usize)| {
            let layer = Layer::new(init, 2 * i, &[KERNEL, KERNEL, cin, c], KERNEL * KERNEL * cin, c);
            cin = c;
            layer
        };
        Self(sizes.channels.iter().enumerate().map(layer).collect())
    }

    /// (B, H, W, C) to (B, h, w, c).
    pub(super) fn run(&self, x: &Tensor) -> Tensor {
        self.ladder(x, 0).1
    }

    /// What is behind each of the first `kept` convolutions, and behind the last.
    fn ladder(&self, x: &Tensor, kept: usize) -> (Vec<Tensor>, Tensor) {
        let (mut x, last) = (x.clone(), self.0.len().saturating_sub(1));
        let mut grids = Vec::with_capacity(kept);
        for (i, conv) in self.0.iter().enumerate() {
            // A relu that only the next convolution reads is undone by that one's input gradient.
            let spec = ConvSpec {
                gates_input: i > kept,
                gated_by_consumer: i >= kept && i < last,
                ..ConvSpec::strided(STRIDE, 1).relu()
            };
            x = conv2d(&x, &conv.weight.get(), Some(&conv.bias.get()), None, spec);
            if i < kept {
                grids.push(x.clone());
            }
        }
        (grids, x)
    }
}

/// The transposed convolutions of a decoder, with relus between them.
pub(super) struct Up(Vec<Layer>);

impl Up {
    /// Layers called `place`, `place` + 2, ...
    pub(super) fn new(init: &mut Init, place: usize, sizes: &Sizes, per_pixel: usize) -> Self {
        let layer = |i: usize| {
            let (cin, n) = (sizes.channels[i], sizes.channels.len());
            let cout = if i == 0 { per_pixel } else { sizes.channels[i - 1] };
            let shape = [KERNEL, KERNEL, cout, cin];
            Layer::new(init, place + 2 * (n - 1 - i), &shape, KERNEL * KERNEL * cout, cout)
        };
        Self((0..sizes.channels.len()).rev().map(layer).collect())
    }

    /// (R, h, w, c) to (R, H, W, `per_pixel`).
    pub(super) fn run(&self, x: &Tensor) -> Tensor {
        self.between(x, self.0.len(), 0)
    }

    /// From the grid behind `from` of the encoder's convolutions to that behind `to`.
    fn between(&self, x: &Tensor, from: usize, to: usize) -> Tensor {
        let mut x = x.clone();
        for level in (to..from).rev() {
            let conv = &self.0[self.0.len() - 1 - level];
            let up = ConvSpec {
                gates_input: level + 1 < from,
                gated_by_consumer: level > to,
                ..ConvSpec::strided(STRIDE, 1)
            };
            let up = if level > 0 { up.relu() } else { up };
            x = conv2d_transposed(&x, &conv.weight.get(), Some(&conv.bias.get()), up);
        }
        x
    }
}

/// (B, ...) to (B, outputs).
pub(super) struct Encoder {
    down: Down,
    dense: Vec<Layer>,
}

impl Encoder {
    pub(super) fn new(init: &mut Init, sizes: &Sizes, outputs: usize) -> Self {
        let (down, convs) = (Down::new(init, sizes), sizes.channels.len());
        let (mut place, mut inputs) = (2 * convs + usize::from(convs > 0), sizes.flat());
        let mut dense = Vec::new();
        for &h in sizes.hidden.iter().chain([&outputs]) {
            dense.push(Layer::dense(init, place, inputs, h));
            (place, inputs) = (place + 2, h);
        }
        Self { down, dense }
    }

    pub(super) fn run(&self, x: &Tensor) -> Tensor {
        self.ladder(x, 0).1
    }

    /// What is behind each of the first `kept` convolutions, (B, h, w, c), and the outputs.
    pub(super) fn ladder(&self, x: &Tensor, kept: usize) -> (Vec<Tensor>, Tensor) {
        let (grids, x) = self.down.ladder(x, kept);
        let b = x.shape()[0];
        (grids, dense(&self.dense, x.reshape([b, x.len() / b]), Act::None))
    }
}

/// (R, latent) to (R, ...) with `per_pixel` outputs for each pixel or column.
pub(super) struct Decoder {
    dense: Vec<Layer>,
    bottom: [usize; 3],
    up: Up,
}

impl Decoder {
    pub(super) fn new(init: &mut Init, sizes: &Sizes, latent: usize, per_pixel: usize) -> Self {
        let (mut place, mut dense) = (0, Vec::new());
        let with_convs = !sizes.channels.is_empty();
        let (mut inputs, flat) = (latent, if with_convs { sizes.flat() } else { sizes.pixels() * per_pixel });
        for &h in sizes.hidden.iter().rev().chain([&flat]) {
            dense.push(Layer::dense(init, place, inputs, h));
            (place, inputs) = (place + 2, h);
        }
        Self { dense, bottom: sizes.bottom(), up: Up::new(init, place + 1, sizes, per_pixel) }
    }

    pub(super) fn run(&self, z: &Tensor) -> Tensor {
        if self.up.0.is_empty() {
            return dense(&self.dense, z.clone(), Act::None);
        }
        self.unfold(z, 0)
    }

    /// From z (R, latent) to the grid (R, h, w, c) behind `to` of the encoder's convolutions, of which there are some.
    pub(super) fn unfold(&self, z: &Tensor, to: usize) -> Tensor {
        let (rows, [h, w, c]) = (z.shape()[0], self.bottom);
        let top = dense(&self.dense, z.clone(), Act::Relu).reshape([rows, h, w, c]);
        self.up.between(&top, self.up.0.len(), to)
    }

    /// From the grid behind `from` of the encoder's convolutions to that behind one less.
    pub(super) fn lift(&self, grid: &Tensor, from: usize) -> Tensor {
        self.up.between(grid, from, from - 1)
    }

    /// The most numbers that one row holds at once in any layer.
    pub(super) fn widest(&self) -> usize {
        let dense = self.dense.iter().map(|l| l.bias.get().len());
        let mut pixels = self.bottom[0] * self.bottom[1];
        let convs = self.up.0.iter().map(|l| {
            pixels *= STRIDE * STRIDE;
            pixels * l.bias.get().len()
        });
        dense.max().unwrap_or(0).max(convs.max().unwrap_or(0))
    }
}

fn dense(layers: &[Layer], x: Tensor, last: Act) -> Tensor {
    let n = layers.len();
    layers
        .iter()
        .enumerate()
        .fold(x, |x, (i, layer)| layer.apply(&x, if i + 1 < n { Act::Relu } else { last }))
}
