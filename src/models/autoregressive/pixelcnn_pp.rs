//! Gated PixelCNN with logistic mixtures: two stacks of shifted convolutions without a blind spot (van den Oord et
//! al. 2016b) and a discretised mixture of logistics per pixel, its colours coupled linearly (PixelCNN++, Salimans et
//! al. 2017, without its down- and upsampling).
//!
//! The vertical stack u at (i, j) sees the rows above i, the horizontal stack h also the pixels left of j. With w
//! channels and e(x) = elu of (x, −x):
//! ```text
//! u = down(2x3 (x)),  h = down(1x3 (x)) + right(2x1 (x))
//! depth × [u = gated(u), h = gated(h, u)],   parameters = 1x1 (e(h))
//! gated(x, a) = x + p · σ(q),  (p, q) = conv(dropout(e(conv(e(x)) + 1x1 (e(a))))) + class
//! ```
//! with convolutions of 2x3 that look up (u) and of 2x2 that look up and left (h). Inputs are scaled to [−1, 1], with
//! a channel of ones that tells the edge of the image. Grey or RGB; the likelihood of the bytes is exact. Dropout
//! acts while gradients are recorded.

use super::incremental::{Grid, PointConv, in_groups, padded};
use super::walk::{Before, Behind, Edge, Law, Walk, Wiring};
use crate::autograd;
use crate::cpu::gemm::Act;
use crate::cpu::math;
use crate::error::{Error, ErrorKind, Result};
use crate::models::{Batch, Input, Kind, LogProb, Model, ModelInfo, SampleOptions};
use crate::nn::{Init, Initial, Param, ParamStore};
use crate::ops::conv::{ConvSpec, conv2d};
use crate::ops::index::gather_rows;
use crate::ops::logistic_mixture::{draw, logistic_mixture, params_per_pixel};
use crate::ops::shape::concat;
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// The registry's line.
pub const INFO: ModelInfo = ModelInfo {
    name: "pixelcnn_pp",
    family: "autoregressive",
    summary: "gated two-stack PixelCNN with discretised logistic mixtures (PixelCNN++, Salimans et al. 2017)",
    objective: "surprisal, nats",
    reproduce: "surprisal train pixelcnn_pp28 --data fashion-mnist-train-images --set train.steps=740, as in \
                benches/results/images.md: 3.10 bits/dim on the test images, raw AUROC .041 against MNIST; .089 after 50,000 steps \
                of a larger one (Ren et al. 2019, table 1)",
    presets: &[("pixelcnn_pp28", GREY), ("pixelcnn_pp32", COLOUR)],
    tiny: &["shape=[4, 4, 1]", "channels=4", "depth=1", "components=2"],
    build: |config, rng| {
        let config = serde_json::from_value(config.clone())
            .map_err(|e| Error::new(ErrorKind::Usage, format!("pixelcnn_pp: {e}")))?;
        Ok(Box::new(PixelCnnPp::new(config, DType::F32, rng)?))
    },
};

const GREY: &str = "
shape = [28, 28, 1]
channels = 32
depth = 4
components = 5
classes = 0
dropout = 0.0
";

const COLOUR: &str = "
shape = [32, 32, 3]
channels = 64
depth = 6
components = 10
classes = 0
dropout = 0.5
";

/// The most parameters that a configuration may ask for.
const MAX_PARAMS: usize = 1 << 28;

/// What a [`PixelCnnPp`] is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Height, width and colours (1 or 3) of an image.
    pub shape: [usize; 3],
    /// Channels of each stack.
    pub channels: usize,
    /// Gated blocks of each stack.
    pub depth: usize,
    /// Components of the mixture.
    pub components: usize,
    /// Classes to be conditioned on; 0 for none.
    pub classes: usize,
    /// Probability that dropout zeroes an activation.
    pub dropout: f64,
}

impl Config {
    fn check(&self) -> Result<()> {
        let Self { shape: [h, w, c], channels, depth, components, classes, dropout } = *self;
        let fail = |what: String| Err(Error::new(ErrorKind::Usage, format!("pixelcnn_pp: {what}")));
        if !(1..=4096).contains(&h) || !(1..=4096).contains(&w) || !matches!(c, 1 | 3) {
            return fail(format!("shape {:?}; expected 1..=4096 by 1..=4096 by 1 or 3 colours", self.shape));
        }
        if !(1..=1 << 14).contains(&channels) || !(1..=1024).contains(&components) || depth > 4096 {
            return fail(format!(
                "{self:?}; expected channels 1..=16384, components 1..=1024, depth <= 4096"
            ));
        }
        if !(0.0..1.0).contains(&dropout) {
            return fail(format!("dropout = {dropout}; expected a probability below 1"));
        }
        let block = 64 * channels * channels + 4 * channels * classes.min(MAX_PARAMS);
        if depth.max(1) * block > MAX_PARAMS {
            return fail(format!("{self:?} asks for more than {MAX_PARAMS} parameters"));
        }
        Ok(())
    }
}

/// Which way a kernel looks.
#[derive(Clone, Copy)]
enum Look {
    /// Up, and as far left as right.
    Up,
    /// Up and left.
    UpLeft,
}

/// A shifted convolution's parameters: output (i, j) sees nothing below i, nor right of j when it looks up and left.
struct Conv {
    weight: Param,
    bias: Param,
    kernel: [usize; 2],
    look: Look,
}

impl Conv {
    fn new(
        init: &mut Init,
        name: &str,
        kernel: [usize; 2],
        look: Look,
        [cin, cout]: [usize; 2],
        scale: f64,
    ) -> Self {
        let mut init = init.sub(name);
        let fan_in = kernel[0] * kernel[1] * cin;
        let start = Initial::Uniform(scale / (fan_in as f64).sqrt());
        let weight = init.param("weight", [kernel[0], kernel[1], cin, cout], start);
        Self { weight, bias: init.param("bias", [cout], start), kernel, look }
    }

    /// Columns of the kernel right of the pixel itself.
    fn right(&self) -> usize {
        if matches!(self.look, Look::Up) { self.kernel[1] / 2 } else { 0 }
    }

    fn run(&self, x: &Tensor) -> Tensor {
        let [kh, kw] = self.kernel;
        let padded = x.pad(1, kh - 1, 0).pad(2, kw - 1 - self.right(), self.right());
        let spec = ConvSpec { padding: 0, ..ConvSpec::same(1) };
        conv2d(&padded, &self.weight.get(), Some(&self.bias.get()), None, spec)
    }

    /// The convolution at single pixels, shifted by `shift` [rows, columns].
    fn point(&self, extra: Option<&[f32]>, shift: [isize; 2]) -> PointConv<f32> {
        let [kh, kw] = self.kernel.map(|k| k as isize);
        let at =
            |t: isize| [t / kw - (kh - 1) - shift[0], t % kw - (kw - 1 - self.right() as isize) - shift[1]];
        let (weight, bias) = (self.weight.get().cast(DType::F32), self.bias.get().cast(DType::F32));
        PointConv::dense(&weight, &bias, extra, (0..kh * kw).map(at).collect())
    }
}

struct Gated {
    first: Conv,
    /// From the other stack.
    aside: Option<Conv>,
    second: Conv,
    /// (classes, 2 channels).
    class: Option<Param>,
}

impl Gated {
    fn new(init: &mut Init, name: &str, kernel: [usize; 2], look: Look, config: &Config) -> Self {
        let (w, classes) = (config.channels, config.classes);
        let mut init = init.sub(name);
        Self {
            first: Conv::new(&mut init, "first", kernel, look, [2 * w, w], 1.0),
            aside: matches!(look, Look::UpLeft)
                .then(|| Conv::new(&mut init, "aside", [1, 1], look, [2 * w, w], 1.0)),
            // Small, so that a deep stack starts near the identity.
            second: Conv::new(&mut init, "second", kernel, look, [2 * w, 2 * w], 0.1),
            class: (classes > 0).then(|| init.param("class", [classes, 2 * w], Initial::Normal(0.1))),
        }
    }
}

/// elu of (x, −x): twice the channels.
fn concat_elu(x: &Tensor) -> Tensor {
    let both = concat(&[x, &-x], x.rank() - 1);
    // e^min(x, 0) − 1 + max(x, 0)
    &(-&(-&both).relu()).exp().affine(1.0, -1.0) + &both.relu()
}

/// (p, q) to p · σ(q), halves of the last axis.
fn gate(x: &Tensor) -> Tensor {
    let (last, half) = (x.rank() - 1, x.shape()[x.rank() - 1] / 2);
    &x.narrow(last, 0, half) * &x.narrow(last, half, half).sigmoid()
}

/// Everything one row down, or one column to the right.
fn shift(x: &Tensor, axis: usize) -> Tensor {
    x.pad(axis, 1, 0).narrow(axis, 0, x.shape()[axis])
}

/// The model; see the module's description.
pub struct PixelCnnPp {
    config: Config,
    dtype: DType,
    store: ParamStore,
    /// 2x3 into the vertical stack, 1x3 and 2x1 into the horizontal one.
    stems: [Conv; 3],
    blocks: Vec<[Gated; 2]>,
    out: Conv,
}

impl PixelCnnPp {
    /// A model with fresh parameters in `dtype`.
    ///
    /// # Errors
    /// When the configuration is impossible.
    pub fn new(config: Config, dtype: DType, rng: &mut Philox) -> Result<Self> {
        config.check()?;
        let Config { shape: [.., c], channels: w, depth, components, .. } = config;
        let mut store = ParamStore::default();
        let mut init = Init::new(&mut store, rng, dtype);
        let stems = [
            Conv::new(&mut init, "stem.up", [2, 3], Look::Up, [c + 1, w], 1.0),
            Conv::new(&mut init, "stem.above", [1, 3], Look::Up, [c + 1, w], 1.0),
            Conv::new(&mut init, "stem.left", [2, 1], Look::UpLeft, [c + 1, w], 1.0),
        ];
        let blocks = (0..depth)
            .map(|i| {
                let mut init = init.sub(format_args!("blocks.{i}"));
                let up = Gated::new(&mut init, "up", [2, 3], Look::Up, &config);
                [up, Gated::new(&mut init, "left", [2, 2], Look::UpLeft, &config)]
            })
            .collect();
        let out = [2 * w, params_per_pixel(c, components)];
        let out = Conv::new(&mut init, "out", [1, 1], Look::UpLeft, out, 1.0);
        Ok(Self { config, dtype, store, stems, blocks, out })
    }

    /// The mixture's parameters (B, H, W, P) at every pixel of `pixels` (B, H, W, C), which are scaled to [−1, 1] and
    /// of the model's dtype; laid out as [`logistic_mixture`] says. `rng` serves dropout.
    #[track_caller]
    pub fn mixture(&self, pixels: &Tensor, labels: Option<&Tensor>, rng: &mut Philox) -> Tensor {
        let [b, h, w, _] = pixels.dims();
        let labels =
            (self.config.classes > 0).then(|| labels.expect("pixelcnn_pp: a conditional model needs labels"));
        let x = concat(&[pixels, &Tensor::ones([b, h, w, 1], self.dtype)], 3);
        let [up, above, left] = &self.stems;
        let mut u = shift(&up.run(&x), 1);
        let mut l = &shift(&above.run(&x), 1) + &shift(&left.run(&x), 2);
        for [vertical, horizontal] in &self.blocks {
            u = self.gated(vertical, &u, None, labels, rng);
            l = self.gated(horizontal, &l, Some(&u), labels, rng);
        }
        self.out.run(&concat_elu(&l))
    }

    fn gated(
        &self,
        block: &Gated,
        x: &Tensor,
        aside: Option<&Tensor>,
        labels: Option<&Tensor>,
        rng: &mut Philox,
    ) -> Tensor {
        let mut inner = block.first.run(&concat_elu(x));
        if let (Some(conv), Some(a)) = (&block.aside, aside) {
            inner = &inner + &conv.run(&concat_elu(a));
        }
        let mut inner = concat_elu(&inner);
        if self.config.dropout > 0.0 && autograd::is_recording(&[&inner]) {
            let keep = 1.0 - self.config.dropout;
            let mask = rng.bernoulli(keep, inner.shape(), inner.dtype());
            inner = &inner * &mask.affine(1.0 / keep, 0.0);
        }
        let mut both = block.second.run(&inner);
        if let (Some(table), Some(labels)) = (&block.class, labels) {
            let rows = gather_rows(&table.get(), labels);
            both = &both + &rows.reshape([labels.len(), 1, 1, 2 * self.config.channels]);
        }
        x + &gate(&both)
    }
}

impl Model for PixelCnnPp {
    fn config(&self) -> serde_json::Value {
        serde_json::to_value(&self.config).expect("a configuration is plain data")
    }

    fn input(&self) -> Input {
        let classes = (self.config.classes > 0).then_some(self.config.classes);
        Input { shape: self.config.shape.to_vec(), dtypes: &[DType::U8], classes, ..Input::default() }
    }

    fn params(&self) -> &ParamStore {
        &self.store
    }

    fn log_prob(&self, batch: &Batch, rng: &mut Philox) -> LogProb {
        let [h, w, c] = self.config.shape;
        let (x, dtype) = (&batch.x, batch.x.dtype());
        let fits = x.rank() == 4 && x.shape()[1..] == [h, w, c] && dtype == DType::U8;
        assert!(fits, "pixelcnn_pp: x is {dtype:?} {:?}; expected U8 (B, {h}, {w}, {c})", x.shape());
        let pixels = x.cast(self.dtype).affine(1.0 / 127.5, -1.0);
        let nats = logistic_mixture(&self.mixture(&pixels, batch.labels.as_ref(), rng), x);
        LogProb { nats: nats.sum_examples(), kind: Kind::Exact, per_position: Some(nats) }
    }

    fn sample(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor> {
        let Config { shape: [h, w, c], classes, .. } = self.config;
        options.check("pixelcnn_pp", classes)?;
        let points = self.store.on_host(|| Points::new(self, options.label));
        let walk = self.out.weight.get().gpu().map(|gpu| (gpu, points.on_device()));
        if let Some((gpu, walk)) = walk.filter(|(_, walk)| walk.fits()) {
            return walk.draw(gpu, n, options.temperature, [1.0 / 127.5, -1.0], rng);
        }
        let bytes = crate::cuda::on_host(|| {
            in_groups(n, h * w * c, h * w * (1 + c), rng, |uniforms, images| {
                points.walk(images.len() / (h * w * c), |at, row, params| {
                    let u = &uniforms[(row * h * w + at) * (1 + c)..][..1 + c];
                    let pixel = &mut images[(row * h * w + at) * c..][..c];
                    if params.iter().any(|p| !p.is_finite()) {
                        return Err(Error::new(
                            ErrorKind::NonFinite,
                            "sample: the mixture's parameters are not finite",
                        ));
                    }
                    draw(params, u, options.temperature, pixel);
                    let mut values = [0; 3];
                    values[..c].copy_from_slice(pixel);
                    Ok(values)
                })
            })
        })?;
        Ok(Tensor::from_slice(&bytes, [n, h, w, c]))
    }
}

/// A gated block for evaluation at single pixels.
struct GatedPoints {
    first: PointConv<f32>,
    aside: Option<PointConv<f32>>,
    second: PointConv<f32>,
}

impl GatedPoints {
    fn new(block: &Gated, label: Option<i32>) -> Self {
        let table = block.class.as_ref().map(|t| t.get().cast(DType::F32));
        let class = table.as_ref().zip(label).map(|(t, l)| {
            let width = t.shape()[1];
            &t.as_slice::<f32>()[l as usize * width..][..width]
        });
        Self {
            first: block.first.point(None, [0, 0]),
            aside: block.aside.as_ref().map(|c| c.point(None, [0, 0])),
            second: block.second.point(class, [0, 0]),
        }
    }
}

/// The model's layers for evaluation at single pixels.
struct Points {
    config: Config,
    stems: [PointConv<f32>; 3],
    blocks: Vec<[GatedPoints; 2]>,
    out: PointConv<f32>,
}

/// What is known so far of e(input) and e(inner) of a gated block.
struct Caches {
    outer: Grid<f32>,
    inner: Grid<f32>,
}

/// Buffers of a group of images.
struct Scratch {
    seen: Vec<f32>,
    sum: Vec<f32>,
    before: Vec<f32>,
    both: Vec<f32>,
}

fn concat_elu_into(x: &[f32], w: usize, out: &mut [f32]) {
    let elu = |v: f32| if v > 0.0 { v } else { math::expm1(v) };
    for (x, out) in x.chunks_exact(w).zip(out.chunks_exact_mut(2 * w)) {
        for (k, &v) in x.iter().enumerate() {
            (out[k], out[w + k]) = (elu(v), elu(-v));
        }
    }
}

impl Points {
    fn new(model: &PixelCnnPp, label: Option<i32>) -> Self {
        let [up, above, left] = &model.stems;
        Self {
            config: model.config.clone(),
            stems: [up.point(None, [1, 0]), above.point(None, [1, 0]), left.point(None, [0, 1])],
            blocks: model.blocks.iter().map(|b| b.each_ref().map(|g| GatedPoints::new(g, label))).collect(),
            out: model.out.point(None, [0, 0]),
        }
    }

    /// The same layers for a device: the vertical stack is made for whole rows.
    fn on_device(&self) -> Walk<f32> {
        let Config { shape: [h, w, c], channels, components, .. } = self.config;
        let (mut walk, pixels) = Walk::new([h, w, c], Law::Logistics(components));
        let plain = Wiring::plain;
        let elu = (Before::ConcatElu, Behind::Plain);
        let gated = |from, to, x| {
            let act = (Before::ConcatElu, Behind::Gate);
            Wiring { act, residual: Some(x), ..plain(from, to) }
        };
        let [up, above, left] = &self.stems;
        let mut x = walk.grid(channels);
        walk.row_layer(up, Wiring { edge: Some(Edge::Top), ..plain(pixels, x) });
        let mut asides = Vec::new();
        for [block, _] in &self.blocks {
            let [inner, behind] = [(); 2].map(|()| walk.grid(channels));
            walk.row_layer(&block.first, Wiring { act: elu, ..plain(x, inner) });
            walk.row_layer(&block.second, gated(inner, behind, x));
            x = behind;
            asides.push(x);
        }
        let part = walk.vector(channels);
        let mut x = walk.grid(channels);
        walk.layer(above, Wiring { edge: Some(Edge::Top), ..plain(pixels, part) });
        walk.layer(left, Wiring { edge: Some(Edge::Left), residual: Some(part), ..plain(pixels, x) });
        for ([_, block], other) in self.blocks.iter().zip(asides) {
            let [inner, behind] = [(); 2].map(|()| walk.grid(channels));
            let aside = block.aside.as_ref().expect("a horizontal block looks at the vertical stack");
            walk.layer(&block.first, Wiring { act: elu, ..plain(x, part) });
            walk.layer(aside, Wiring { act: elu, residual: Some(part), ..plain(other, inner) });
            walk.layer(&block.second, gated(inner, behind, x));
            x = behind;
        }
        let params = walk.vector(params_per_pixel(c, components));
        walk.layer(&self.out, Wiring { act: elu, ..plain(x, params) });
        walk
    }

    /// A gated block in row `i` from column `j` on: the entries (rows, w) of `xs` become its outputs. Its second
    /// convolution may look one column ahead, so each convolution is finished for all columns in turn.
    fn gated(
        &self,
        block: &GatedPoints,
        [i, j]: [usize; 2],
        xs: &mut [Vec<f32>],
        aside: &[f32],
        c: &mut Caches,
        s: &mut Scratch,
    ) {
        let w = self.config.channels;
        for (k, x) in xs.iter().enumerate() {
            concat_elu_into(x, w, c.outer.at([i, j + k]));
        }
        for at in (j..j + xs.len()).map(|j| [i, j]) {
            c.outer.gather(&block.first.taps, at, &mut s.seen);
            block.first.apply(0, &s.seen, None, Act::None, &mut s.sum);
            if let Some(conv) = &block.aside {
                concat_elu_into(aside, w, &mut s.both);
                std::mem::swap(&mut s.sum, &mut s.before);
                conv.apply(0, &s.both, Some(&s.before), Act::None, &mut s.sum);
            }
            concat_elu_into(&s.sum, w, c.inner.at(at));
        }
        for (k, x) in xs.iter_mut().enumerate() {
            c.inner.gather(&block.second.taps, [i, j + k], &mut s.seen);
            block.second.apply(0, &s.seen, None, Act::None, &mut s.both);
            for (x, pq) in x.chunks_exact_mut(w).zip(s.both.chunks_exact(2 * w)) {
                for (v, (p, q)) in x.iter_mut().zip(pq[..w].iter().zip(&pq[w..])) {
                    *v += p * math::sigmoid(*q);
                }
            }
        }
    }

    /// Visits the pixels of `images` images in order: `choose(pixel, image, mixture parameters)` returns its values.
    fn walk(
        &self,
        images: usize,
        mut choose: impl FnMut(usize, usize, &[f32]) -> Result<[u8; 3]>,
    ) -> Result<()> {
        let Config { shape: [h, w, c], channels, components, .. } = self.config;
        let (rows, params) = (padded(images), params_per_pixel(c, components));
        let grid = |channels: usize| Grid::<f32>::new([h, w], rows, channels);
        let caches = || Caches { outer: grid(2 * channels), inner: grid(2 * channels) };
        let mut pixels = grid(c + 1);
        let mut known: Vec<[Caches; 2]> = self.blocks.iter().map(|_| [caches(), caches()]).collect();
        let empty = || vec![0.0; rows * channels];
        let mut s =
            Scratch { seen: Vec::new(), sum: empty(), before: empty(), both: vec![0.0; 2 * rows * channels] };
        let mut mixture = vec![0.0; rows * params];
        // Outputs of every vertical block over the present row: [block][column].
        let mut vertical = vec![vec![empty(); w]; self.blocks.len()];
        let [up, above, left] = &self.stems;
        for i in 0..h {
            // The vertical stack depends on the rows above alone. Shifted out of the image, a stem gives zeros.
            let mut row = vec![empty(); w];
            for (j, x) in row.iter_mut().enumerate().filter(|_| i > 0) {
                pixels.gather(&up.taps, [i, j], &mut s.seen);
                up.apply(0, &s.seen, None, Act::None, x);
            }
            for (([block, _], [c, _]), kept) in self.blocks.iter().zip(&mut known).zip(&mut vertical) {
                self.gated(block, [i, 0], &mut row, &[], c, &mut s);
                kept.clone_from(&row);
            }
            for j in 0..w {
                let at = [i, j];
                let mut x = empty();
                if i > 0 {
                    pixels.gather(&above.taps, at, &mut s.seen);
                    above.apply(0, &s.seen, None, Act::None, &mut x);
                }
                if j > 0 {
                    pixels.gather(&left.taps, at, &mut s.seen);
                    s.before.copy_from_slice(&x);
                    left.apply(0, &s.seen, Some(&s.before), Act::None, &mut x);
                }
                let mut xs = [x];
                for (([_, block], [_, c]), aside) in self.blocks.iter().zip(&mut known).zip(&vertical) {
                    self.gated(block, at, &mut xs, &aside[j], c, &mut s);
                }
                concat_elu_into(&xs[0], channels, &mut s.both);
                self.out.apply(0, &s.both, None, Act::None, &mut mixture);
                for image in 0..images {
                    let values = choose(i * w + j, image, &mixture[image * params..][..params])?;
                    let pixel = &mut pixels.at(at)[image * (c + 1)..][..c + 1];
                    for k in 0..c {
                        pixel[k] = (values[k] as f32).mul_add(1.0 / 127.5, -1.0);
                    }
                    pixel[c] = 1.0;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "pixelcnn_pp_tests.rs"]
mod tests;
