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

/// A layer beside its weights.
pub(super) struct Wiring {
    /// What its taps read.
    pub(super) from: Place,
    /// Where its channels go.
    pub(super) to: Place,
    /// The vector that is added.
    pub(super) residual: Option<Place>,
    /// max(·, 0) of what is read, and of what is written.
    pub(super) relu: [bool; 2],
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
    layers: i32,
    vector: i32,
    grid: i32,
    widest: i32,
    coldness: f32,
    scale: f32,
    shift: f32,
}

/// A network as the kernel wants it.
pub(super) struct Walk<E> {
    shape: [usize; 3],
    levels: usize,
    weights: Vec<E>,
    taps: Vec<i32>,
    layers: Vec<Layer>,
    vector: usize,
    grid: usize,
    widest: usize,
}

impl<E: Elem> Walk<E> {
    /// For images of `shape` [height, width, colours] of bytes below `levels`; and where their pixels are, scaled.
    pub(super) fn new(shape: [usize; 3], levels: usize) -> (Self, Place) {
        let mut walk = Self {
            shape,
            levels,
            weights: Vec::new(),
            taps: Vec::new(),
            layers: Vec::new(),
            vector: 0,
            grid: 0,
            widest: 0,
        };
        let pixels = walk.grid(shape[2]);
        (walk, pixels)
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

    /// The next layer. The last one writes the logits (colours · levels) to the vector that was made last.
    pub(super) fn layer(&mut self, conv: &PointConv<E>, wiring: Wiring) {
        let place = |place| match place {
            Place::Vector(at) | Place::Grid(at) => at as i32,
        };
        let in_grid = |place| i32::from(matches!(place, Place::Grid(_)));
        let [before, behind] = wiring.relu.map(i32::from);
        let weights = self.weights.len() as i32;
        conv.weights.iter().for_each(|(w, _)| self.weights.extend_from_slice(w));
        let bias = self.weights.len() as i32;
        conv.weights.iter().for_each(|(_, b)| self.weights.extend_from_slice(b));
        let layer = Layer {
            weights,
            bias,
            taps: (self.taps.len() / 2) as i32,
            count: conv.taps.len() as i32,
            inputs: conv.inputs as i32,
            outputs: conv.outputs as i32,
            from: place(wiring.from),
            to: place(wiring.to),
            add: wiring.residual.map_or(-1, place),
            flags: before + 2 * behind + 4 * in_grid(wiring.from) + 8 * in_grid(wiring.to),
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
    /// [`ErrorKind::NonFinite`] when logits are not finite.
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
        let sizes = Struct(Sizes {
            images: n as i32,
            shape: self.shape.map(|s| s as i32),
            levels: self.levels as i32,
            layers: self.layers.len() as i32,
            vector: self.vector as i32,
            grid: self.grid as i32,
            widest: self.widest as i32,
            coldness: (1.0 / temperature) as f32,
            scale: scale as f32,
            shift: shift as f32,
        });
        let grid = Grid { shared: self.shared() as u32, ..Grid::new(n.div_ceil(IMAGES), THREADS as u32) };
        let kernel = KERNELS.of(E::DTYPE);
        let draw = rng.device_draw();
        let room = grids.change();
        gpu.launch(kernel, grid, &[&images, &failed, &room, &weights, &layers, &taps, &sizes, &draw]);
        if failed.finish().to_f64_vec().iter().any(|f| *f != 0.0) {
            return Err(Error::new(ErrorKind::NonFinite, "sample: the model's logits are not finite"));
        }
        Ok(images.finish())
    }
}
