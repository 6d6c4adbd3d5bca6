//! Drawing pixel by pixel on a device: the layers of [`super::incremental`] as rows of a table that one kernel walks
//! through for every pixel, without coming back to the host in between (`kernels/pixel_walk.cu`).

use super::incremental::PointConv;
use crate::cuda::{Gpu, Grid, Kernels, Struct};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::shape::filled;
use crate::random::Philox;
use crate::tensor::{DType, Elem, Tensor};

const KERNELS: Kernels = Kernels::new("pixel_walk", ["pixel_walk_f32", "pixel_walk_bf16", "pixel_walk_f16"]);

/// Images and threads per block, as in the kernel.
const IMAGES: usize = 4;
const THREADS: usize = 256;
/// Shared memory that every device has, some of it left to the kernel's own.
const SHARED: usize = 160 << 10;

/// Where a layer reads or writes: the present pixel's numbers, or all pixels'.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// Numbers of the present pixel, from this one on.
    Vector(usize),
    /// Activations of all pixels, from this number on.
    Grid(usize),
}

/// What a layer does to the numbers that it reads.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Before {
    /// Nothing.
    Plain,
    /// max(x, 0).
    Relu,
    /// elu of (x, −x): twice the channels.
    ConcatElu,
}

/// What it does to its sums.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Behind {
    /// Nothing.
    Plain,
    /// max(·, 0).
    Relu,
    /// p · σ(q) of the halves (p, q): half the channels.
    Gate,
}

/// Where the sums count as nothing, bias included.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Edge {
    /// In the first row.
    Top,
    /// In the first column.
    Left,
}

/// A layer beside its weights.
#[derive(Clone, Copy)]
pub(super) struct Wiring {
    /// What its taps read.
    pub(super) from: Place,
    /// Where its channels go.
    pub(super) to: Place,
    /// What is added; of a grid its numbers at the present pixel.
    pub(super) residual: Option<Place>,
    /// What is done to what is read, and to what is written.
    pub(super) act: (Before, Behind),
    /// Where it is left out.
    pub(super) edge: Option<Edge>,
}

impl Wiring {
    /// A convolution and nothing else.
    pub(super) fn plain(from: Place, to: Place) -> Self {
        Self { from, to, residual: None, act: (Before::Plain, Behind::Plain), edge: None }
    }
}

/// What the bytes of a pixel are drawn from.
#[derive(Clone, Copy)]
pub(super) enum Law {
    /// A softmax over this many levels, colour by colour: layers have channels for each.
    Softmax(usize),
    /// A mixture of this many logistics over all colours (`ops::logistic_mixture`): pixels have a channel of ones.
    Logistics(usize),
}

/// As `Layer` in the kernel.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Layer {
    weights: i32,
    bias: i32,
    taps: i32,
    count: i32,
    inputs: i32,
    outputs: i32,
    from: i32,
    to: i32,
    add: i32,
    flags: i32,
}

/// As `Sizes` in the kernel.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Sizes {
    images: i32,
    shape: [i32; 3],
    levels: i32,
    components: i32,
    groups: i32,
    layers: i32,
    rows: i32,
    vector: i32,
    grid: i32,
    ones: i32,
    widest: i32,
    coldness: f32,
    scale: f32,
    shift: f32,
    temperature: f32,
}

/// A network as the kernel wants it.
pub(super) struct Walk<E> {
    shape: [usize; 3],
    law: Law,
    weights: Vec<E>,
    taps: Vec<i32>,
    layers: Vec<Layer>,
    rows: usize,
    vector: usize,
    grid: usize,
    widest: usize,
}

impl<E: Elem> Walk<E> {
    /// For images of `shape` [height, width, colours] of bytes drawn from `law`; and where their pixels are, scaled.
    pub(super) fn new(shape: [usize; 3], law: Law) -> (Self, Place) {
        let mut walk = Self {
            shape,
            law,
            weights: Vec::new(),
            taps: Vec::new(),
            layers: Vec::new(),
            rows: 0,
            vector: 0,
            grid: 0,
            widest: 0,
        };
        let pixels = walk.grid(shape[2] + walk.ones());
        (walk, pixels)
    }

    /// Channels of ones behind the colours of a pixel.
    fn ones(&self) -> usize {
        usize::from(matches!(self.law, Law::Logistics(_)))
    }

    /// Room for numbers of the present pixel.
    pub(super) fn vector(&mut self, channels: usize) -> Place {
        self.vector += channels;
        Place::Vector(self.vector - channels)
    }

    /// Room for activations of all pixels.
    pub(super) fn grid(&mut self, channels: usize) -> Place {
        let numbers = self.shape[0] * self.shape[1] * channels;
        self.grid += numbers;
        Place::Grid(self.grid - numbers)
    }

    /// The next layer, which is calculated for all columns when a row begins: it sees the rows above alone, or what such
    /// layers made. It comes before all that are not, and reads and writes grids.
    pub(super) fn row_layer(&mut self, conv: &PointConv<E>, wiring: Wiring) {
        debug_assert_eq!(self.rows, self.layers.len(), "layers for rows come first");
        self.layer(conv, wiring);
        self.rows = self.layers.len();
    }

    /// The next layer. The last one writes what is drawn from to the vector that was made last.
    pub(super) fn layer(&mut self, conv: &PointConv<E>, wiring: Wiring) {
        let place = |place| match place {
            Place::Vector(at) | Place::Grid(at) => at as i32,
        };
        let in_grid = |place| matches!(place, Place::Grid(_));
        let (before, behind) = wiring.act;
        let columns = |row: &[E]| match behind {
            // The kernel takes pairs (p, q).
            Behind::Gate => (0..row.len()).map(|i| row[i / 2 + i % 2 * (row.len() / 2)]).collect(),
            _ => row.to_vec(),
        };
        let weights = self.weights.len() as i32;
        let rows = conv.weights.iter().flat_map(|(w, _)| w.chunks(conv.outputs));
        self.weights.extend(rows.flat_map(columns));
        let bias = self.weights.len() as i32;
        self.weights.extend(conv.weights.iter().flat_map(|(_, b)| columns(b)));
        let flags = [
            before == Before::Relu,
            behind == Behind::Relu,
            in_grid(wiring.from),
            in_grid(wiring.to),
            wiring.residual.is_some_and(in_grid),
            before == Before::ConcatElu,
            behind == Behind::Gate,
            wiring.edge == Some(Edge::Top),
            wiring.edge == Some(Edge::Left),
        ];
        let inputs = if before == Before::ConcatElu { conv.inputs / 2 } else { conv.inputs };
        let layer = Layer {
            weights,
            bias,
            taps: (self.taps.len() / 2) as i32,
            count: conv.taps.len() as i32,
            inputs: inputs as i32,
            outputs: conv.outputs as i32,
            from: place(wiring.from),
            to: place(wiring.to),
            add: wiring.residual.map_or(-1, place),
            flags: flags.iter().enumerate().map(|(bit, on)| i32::from(*on) << bit).sum(),
        };
        self.taps.extend(conv.taps.iter().flatten().map(|&t| t as i32));
        self.widest = self.widest.max(conv.taps.len() * conv.inputs);
        self.layers.push(layer);
    }

    /// Bytes of shared memory that a block takes.
    fn shared(&self) -> usize {
        4 * IMAGES * (self.vector + self.widest + THREADS)
    }

    /// Whether the numbers of a pixel fit into the shared memory of a block.
    pub(super) fn fits(&self) -> bool {
        self.shared() <= SHARED && self.weights.len() <= i32::MAX as usize && self.grid <= i32::MAX as usize
    }

    /// Draws `n` images at `temperature`, bytes (N, H, W, C) on the device; a byte b is seen as b `scale` + `shift`.
    ///
    /// # Errors
    /// [`ErrorKind::NonFinite`] when logits or parameters are not finite.
    pub(super) fn draw(
        &self,
        gpu: Gpu,
        n: usize,
        temperature: f64,
        [scale, shift]: [f64; 2],
        rng: &mut Philox,
    ) -> Result<Tensor> {
        let [h, w, c] = self.shape;
        let here = |t: Tensor| t.moved(Some(gpu));
        let weights = here(Tensor::from_slice(&self.weights, [self.weights.len()]));
        let table: &[i32] = bytemuck::cast_slice(&self.layers);
        let layers = here(Tensor::from_slice(table, [table.len()]));
        let taps = here(Tensor::from_slice(&self.taps, [self.taps.len()]));
        let mut grids = filled(gpu, E::from_f64(0.0), [n, self.grid].into());
        let (images, failed) = (gpu.empty([n, h, w, c], DType::U8), gpu.empty([n], DType::I32));
        let (levels, components, groups) = match self.law {
            Law::Softmax(levels) => (levels, 0, c),
            Law::Logistics(components) => (0, components, 1),
        };
        let sizes = Struct(Sizes {
            images: n as i32,
            shape: self.shape.map(|s| s as i32),
            levels: levels as i32,
            components: components as i32,
            groups: groups as i32,
            layers: self.layers.len() as i32,
            rows: self.rows as i32,
            vector: self.vector as i32,
            grid: self.grid as i32,
            ones: self.ones() as i32,
            widest: self.widest as i32,
            coldness: (1.0 / temperature) as f32,
            scale: scale as f32,
            shift: shift as f32,
            temperature: temperature as f32,
        });
        let grid = Grid { shared: self.shared() as u32, ..Grid::new(n.div_ceil(IMAGES), THREADS as u32) };
        let kernel = KERNELS.of(E::DTYPE);
        let draw = rng.device_draw();
        let room = grids.change();
        gpu.launch(kernel, grid, &[&images, &failed, &room, &weights, &layers, &taps, &sizes, &draw]);
        if failed.finish().to_f64_vec().iter().any(|f| *f != 0.0) {
            let what = match self.law {
                Law::Softmax(_) => "model's logits",
                Law::Logistics(_) => "mixture's parameters",
            };
            return Err(Error::new(ErrorKind::NonFinite, format!("sample: the {what} are not finite")));
        }
        Ok(images.finish())
    }
}
