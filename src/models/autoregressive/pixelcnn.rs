//! PixelCNN: p(x) = Π p(x_i | pixels before x_i) with masked convolutions and a softmax over the byte values
//! (van den Oord, Kalchbrenner & Kavukcuoglu 2016), optionally conditioned on a class (van den Oord et al. 2016b).
//!
//! Pixels are in raster order, the colours of a pixel in the order of its channels. With w channels:
//! ```text
//! 7x7 mask A (C -> w), depth × [relu, 1x1 (w -> w/2), relu, 3x3 mask B (w/2 -> w/2), relu, 1x1 (w/2 -> w), + input],
//! relu, 1x1 (w -> w), relu, 1x1 (w -> C · levels)
//! ```
//! For several colours the channels of every layer are cut into one group per colour, and the 1x1 convolutions
//! are masked as well. A class adds a learned vector behind the first convolution of each block. Inputs are scaled
//! to [−1, 1]. The likelihood is exact: log p(x) of the bytes, pixel by pixel.

use super::incremental::{Grid, PointConv, in_groups, padded, pick};
use super::walk::{Before, Behind, Law, Walk, Wiring};
use crate::cpu::gemm::Act;
use crate::error::{Error, ErrorKind, Result};
use crate::models::{Batch, Input, Kind, LogProb, Model, ModelInfo, SampleOptions};
use crate::nn::{Init, Initial, Param, ParamStore};
use crate::ops::conv::ConvSpec;
use crate::ops::index::gather_rows;
use crate::ops::masked_conv::{Mask, MaskKind, masked_conv2d_with};
use crate::ops::softmax::cross_entropy;
use crate::ops::unary::gated_relu;
use crate::random::Philox;
use crate::tensor::{DType, Elem, Float, Plain, Tensor, with_float};
use serde::{Deserialize, Serialize};

/// The registry's line.
pub const INFO: ModelInfo = ModelInfo {
    name: "pixelcnn",
    family: "autoregressive",
    summary: "PixelCNN with masked convolutions and a softmax over byte values (van den Oord et al. 2016)",
    objective: "surprisal, nats",
    reproduce: "surprisal train pixelcnn28 --data fashion-mnist-train-images --set train.steps=3660, as in benches/results/images.md: \
                3.11 bits/dim on the test images, raw AUROC .036 against MNIST (Ren et al. 2019: .089)",
    presets: &[("pixelcnn28", PIXELCNN28)],
    tiny: &["shape=[3, 3, 1]", "channels=8", "depth=1", "levels=3"],
    build: |config, rng| {
        let config = serde_json::from_value(config.clone())
            .map_err(|e| Error::new(ErrorKind::Usage, format!("pixelcnn: {e}")))?;
        Ok(Box::new(PixelCnn::new(config, DType::F32, rng)?))
    },
};

const PIXELCNN28: &str = "
shape = [28, 28, 1]
channels = 64
depth = 6
levels = 256
classes = 0
";

/// Side of the first convolution's kernel, and of those in the blocks.
const KERNELS: (usize, usize) = (7, 3);
/// The most parameters that a configuration may ask for.
const MAX_PARAMS: usize = 1 << 28;

/// What a [`PixelCnn`] is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Height, width and colours of an image.
    pub shape: [usize; 3],
    /// Channels of the residual stream; a multiple of twice the colours.
    pub channels: usize,
    /// Residual blocks.
    pub depth: usize,
    /// Values of a pixel: 0..levels, at most 256.
    pub levels: usize,
    /// Classes to be conditioned on; 0 for none.
    pub classes: usize,
}

impl Config {
    fn check(&self) -> Result<()> {
        let Self { shape: [h, w, c], channels, depth, levels, classes } = *self;
        let fail = |what: String| Err(Error::new(ErrorKind::Usage, format!("pixelcnn: {what}")));
        if !(1..=4096).contains(&h) || !(1..=4096).contains(&w) || !(1..=64).contains(&c) {
            return fail(format!("shape {:?}; expected 1..=4096 by 1..=4096 by 1..=64 colours", self.shape));
        }
        if channels == 0 || channels > 1 << 16 || channels % (2 * c) != 0 {
            return fail(format!("channels = {channels}; expected a multiple of {} up to 65536", 2 * c));
        }
        if !(2..=256).contains(&levels) {
            return fail(format!("levels = {levels}; expected 2..=256"));
        }
        let block = channels * channels * 13 / 4 + channels / 2 * classes.min(MAX_PARAMS);
        let ends = 49 * c * channels + channels * channels + channels * c * levels;
        if depth > 4096 || depth * block + ends > MAX_PARAMS {
            return fail(format!("{self:?} asks for more than {MAX_PARAMS} parameters"));
        }
        Ok(())
    }
}

/// A masked convolution's parameters.
struct Conv {
    weight: Param,
    bias: Param,
    mask: Mask,
}

impl Conv {
    fn new(init: &mut Init, name: &str, kernel: usize, [cin, cout]: [usize; 2], mask: Mask) -> Self {
        let mut init = init.sub(name);
        let start = Initial::FanIn(kernel * kernel * cin);
        let weight = init.param("weight", [kernel, kernel, cin, cout], start);
        Self { weight, bias: init.param("bias", [cout], start), mask }
    }

    fn run(&self, x: &Tensor, residual: Option<&Tensor>, spec: ConvSpec) -> Tensor {
        masked_conv2d_with(x, &self.weight.get(), Some(&self.bias.get()), residual, self.mask, spec)
    }

    fn point<E: Elem>(&self, extra: Option<&[E]>) -> PointConv<E> {
        PointConv::masked(&self.weight.get(), &self.bias.get(), extra, self.mask)
    }
}

struct Block {
    reduce: Conv,
    middle: Conv,
    expand: Conv,
    /// (classes, channels / 2).
    class: Option<Param>,
}

/// The model; see the module's description.
pub struct PixelCnn {
    config: Config,
    dtype: DType,
    store: ParamStore,
    stem: Conv,
    blocks: Vec<Block>,
    head: Conv,
    logits: Conv,
}

impl PixelCnn {
    /// A model with fresh parameters in `dtype`.
    ///
    /// # Errors
    /// When the configuration is impossible.
    pub fn new(config: Config, dtype: DType, rng: &mut Philox) -> Result<Self> {
        config.check()?;
        let Config { shape: [.., colours], channels: w, depth, levels, classes } = config;
        let mut store = ParamStore::default();
        let mut init = Init::new(&mut store, rng, dtype);
        let (a, b) = (Mask { kind: MaskKind::A, colours }, Mask { kind: MaskKind::B, colours });
        let stem = Conv::new(&mut init, "stem", KERNELS.0, [colours, w], a);
        let blocks = (0..depth)
            .map(|i| {
                let mut init = init.sub(format_args!("blocks.{i}"));
                Block {
                    reduce: Conv::new(&mut init, "reduce", 1, [w, w / 2], b),
                    middle: Conv::new(&mut init, "middle", KERNELS.1, [w / 2, w / 2], b),
                    expand: Conv::new(&mut init, "expand", 1, [w / 2, w], b),
                    class: (classes > 0).then(|| init.param("class", [classes, w / 2], Initial::Normal(0.1))),
                }
            })
            .collect();
        let head = Conv::new(&mut init, "head", 1, [w, w], b);
        let logits = Conv::new(&mut init, "logits", 1, [w, colours * levels], b);
        Ok(Self { config, dtype, store, stem, blocks, head, logits })
    }

    /// The logits (B, H, W, C, levels) of every pixel of `x` (B, H, W, C) u8 given the pixels before it.
    ///
    /// # Panics
    /// When x has another shape or dtype, or labels are missing or out of range.
    #[track_caller]
    pub fn logits(&self, x: &Tensor, labels: Option<&Tensor>) -> Tensor {
        let [h, w, c] = self.config.shape;
        assert!(
            x.rank() == 4 && x.shape()[1..] == [h, w, c] && x.dtype() == DType::U8,
            "pixelcnn: x is {:?} {:?}; expected U8 (B, {h}, {w}, {c})",
            x.dtype(),
            x.shape()
        );
        self.logits_of(&self.scaled(x), labels)
    }

    /// As [`Self::logits`] from pixels (B, H, W, C) of the model's dtype that are scaled to [−1, 1] already, so that
    /// they can be differentiated.
    #[track_caller]
    pub fn logits_of(&self, pixels: &Tensor, labels: Option<&Tensor>) -> Tensor {
        let Config { shape: [h, w, c], levels, channels, classes, .. } = self.config;
        let b = pixels.shape()[0];
        let labels = (classes > 0).then(|| labels.expect("pixelcnn: a conditional model needs labels"));
        // Every relu here is read by one convolution, which zeroes the gradient where the relu was 0 while it
        // makes it.
        let plain = ConvSpec::same(1);
        let last = ConvSpec { gates_input: true, ..plain };
        let between = ConvSpec { gated_by_consumer: true, ..last.relu() };
        let mut stream = self.stem.run(pixels, None, plain);
        for block in &self.blocks {
            let class = block.class.as_ref().zip(labels).map(|(table, labels)| {
                let rows = gather_rows(&table.get(), labels);
                rows.reshape([b, 1, 1, channels / 2]).broadcast_to([b, h, w, channels / 2])
            });
            let inner = block.reduce.run(&gated_relu(&stream), class.as_ref(), between);
            let inner = block.middle.run(&inner, None, between);
            stream = block.expand.run(&inner, Some(&stream), last);
        }
        let top = self.head.run(&gated_relu(&stream), None, between);
        self.logits.run(&top, None, last).reshape([b, h, w, c, levels])
    }

    /// 2 x / (levels − 1) − 1.
    fn scaled(&self, x: &Tensor) -> Tensor {
        x.cast(self.dtype).affine(2.0 / (self.config.levels - 1) as f64, -1.0)
    }
}

impl Model for PixelCnn {
    fn config(&self) -> serde_json::Value {
        serde_json::to_value(&self.config).expect("a configuration is plain data")
    }

    fn input(&self) -> Input {
        let classes = (self.config.classes > 0).then_some(self.config.classes);
        let Config { shape, levels, .. } = self.config;
        Input { shape: shape.to_vec(), dtypes: &[DType::U8], classes, levels, ..Input::default() }
    }

    fn params(&self) -> &ParamStore {
        &self.store
    }

    fn log_prob(&self, batch: &Batch, _rng: &mut Philox) -> LogProb {
        let logits = self.logits(&batch.x, batch.labels.as_ref());
        let nats = -&cross_entropy(&logits, &batch.x);
        LogProb { nats: nats.sum_examples(), kind: Kind::Exact, per_position: Some(nats) }
    }

    fn sample(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor> {
        let Config { shape: [h, w, c], classes, .. } = self.config;
        options.check("pixelcnn", classes)?;
        let bytes = with_float!(self.dtype, T => {
            let points = self.store.on_host(|| Points::<T>::new(self, options.label));
            let walk = self.stem.weight.get().gpu().map(|gpu| (gpu, points.on_device()));
            if let Some((gpu, walk)) = walk.filter(|(_, walk)| walk.fits()) {
                let scaled = [2.0 / (self.config.levels - 1) as f64, -1.0];
                return walk.draw(gpu, n, options.temperature, scaled, rng);
            }
            in_groups(n, h * w * c, h * w * c, rng, |uniforms, images| {
                points.walk(images.len() / (h * w * c), |at, row, logits, weights| {
                    let at = row * h * w * c + at;
                    let k = pick(logits, options.temperature, uniforms[at], weights)?;
                    images[at] = k as u8;
                    Ok(images[at])
                })
            })
        })?;
        Ok(Tensor::from_slice(&bytes, [n, h, w, c]))
    }
}

/// The model's layers for evaluation at single pixels.
struct Points<E> {
    config: Config,
    stem: PointConv<E>,
    blocks: Vec<[PointConv<E>; 3]>,
    head: PointConv<E>,
    logits: PointConv<E>,
}

impl<E: Elem> Points<E> {
    fn new(model: &PixelCnn, label: Option<i32>) -> Self {
        let half = model.config.channels / 2;
        let block = |b: &Block| {
            let table = b.class.as_ref().map(Param::get);
            let class =
                table.as_ref().zip(label).map(|(t, l)| &t.as_slice::<E>()[l as usize * half..][..half]);
            [b.reduce.point(class), b.middle.point(None), b.expand.point(None)]
        };
        Self {
            config: model.config.clone(),
            stem: model.stem.point(None),
            blocks: model.blocks.iter().map(block).collect(),
            head: model.head.point(None),
            logits: model.logits.point(None),
        }
    }

    /// The same layers for a device.
    fn on_device(&self) -> Walk<E> {
        let Config { shape, channels, levels, .. } = self.config;
        let (mut walk, pixels) = Walk::new(shape, Law::Softmax(levels));
        let (plain, both) = (Wiring::plain, (Before::Relu, Behind::Relu));
        let mut stream = walk.vector(channels);
        walk.layer(&self.stem, plain(pixels, stream));
        for [reduce, middle, expand] in &self.blocks {
            let (seen, inner) = (walk.grid(channels / 2), walk.vector(channels / 2));
            let behind = walk.vector(channels);
            walk.layer(reduce, Wiring { act: both, ..plain(stream, seen) });
            walk.layer(middle, Wiring { act: (Before::Plain, Behind::Relu), ..plain(seen, inner) });
            walk.layer(expand, Wiring { residual: Some(stream), ..plain(inner, behind) });
            stream = behind;
        }
        let top = walk.vector(channels);
        walk.layer(&self.head, Wiring { act: both, ..plain(stream, top) });
        let logits = walk.vector(shape[2] * levels);
        walk.layer(&self.logits, plain(top, logits));
        walk
    }

    /// Visits the pixels of `images` images in order: `choose(pixel and colour, image, logits, scratch)` returns
    /// the value that the image has there.
    fn walk(
        &self,
        images: usize,
        mut choose: impl FnMut(usize, usize, &[E], &mut Vec<E::Acc>) -> Result<u8>,
    ) -> Result<()> {
        let Config { shape: [h, w, colours], channels, levels, .. } = self.config;
        let (zero, rows, half) = (E::from_f64(0.0), padded(images), channels / 2);
        let (scale, shift) = (E::Acc::from_f64(2.0 / (levels - 1) as f64), E::Acc::from_f64(-1.0));
        let mut pixels = Grid::<E>::new([h, w], rows, colours);
        let mut grids: Vec<_> = self.blocks.iter().map(|_| Grid::<E>::new([h, w], rows, half)).collect();
        // The stream before every block and behind the last: later colours of a pixel read the earlier ones' there.
        let mut streams = vec![vec![zero; rows * channels]; self.blocks.len() + 1];
        let (mut active, mut top) = (vec![zero; rows * channels], vec![zero; rows * channels]);
        // As those: a later colour's last convolution reads what the earlier colours had in the same block.
        let mut inners = vec![vec![zero; rows * half]; self.blocks.len()];
        let mut logits = vec![zero; rows * colours * levels];
        let (mut seen, mut weights) = (Vec::new(), Vec::new());
        let relu = |from: &[E], to: &mut [E]| {
            to.iter_mut().zip(from).for_each(|(y, x)| *y = E::store(x.load().max(E::Acc::from_f64(0.0))));
        };
        for at in 0..h * w * colours {
            let (place, colour) = ([at / colours / w, at / colours % w], at % colours);
            pixels.gather(&self.stem.taps, place, &mut seen);
            self.stem.apply(colour, &seen, None, Act::None, &mut streams[0]);
            let caches = grids.iter_mut().zip(&mut inners);
            for (b, ([reduce, middle, expand], (grid, inner))) in self.blocks.iter().zip(caches).enumerate() {
                let [before, behind] = &mut streams[b..b + 2] else {
                    unreachable!("two of depth + 1 buffers")
                };
                relu(before, &mut active);
                reduce.apply(colour, &active, None, Act::Relu, grid.at(place));
                grid.gather(&middle.taps, place, &mut seen);
                middle.apply(colour, &seen, None, Act::Relu, inner);
                expand.apply(colour, inner, Some(before), Act::None, behind);
            }
            relu(&streams[self.blocks.len()], &mut active);
            self.head.apply(colour, &active, None, Act::Relu, &mut top);
            self.logits.apply(colour, &top, None, Act::None, &mut logits);
            for image in 0..images {
                let of_colour = &logits[(image * colours + colour) * levels..][..levels];
                let byte = choose(at, image, of_colour, &mut weights)?;
                let value = E::Acc::from_f64(byte as f64).mul_add(scale, shift);
                pixels.at(place)[image * colours + colour] = E::store(value);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "pixelcnn_tests.rs"]
mod tests;
