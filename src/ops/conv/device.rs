//! The launches of `kernels/conv.cu`: 64 x 64 tiles for everything, wide ones for bf16 and f16 with channels in eights.

use super::{in_shape, out_shape};
use crate::cpu::conv::Conv;
use crate::cpu::gemm::Act;
use crate::cuda::{GATHER_128X128, Gpu, Grid, Kernel, Kernels, Optional, Struct, TILE_64X64, Wide};
use crate::ops::{amp, cast::cast, reduce};
use crate::tensor::{DType, Shape, Tensor};

const FORWARD: Kernels = Kernels::new("conv", ["conv_f32", "conv_bf16", "conv_f16"]).or_tf32("conv_tf32");
const INPUT_GRAD: Kernels =
    Kernels::new("conv", ["conv_input_grad_f32", "conv_input_grad_bf16", "conv_input_grad_f16"])
        .or_tf32("conv_input_grad_tf32");
const WEIGHT_GRAD: Kernels =
    Kernels::new("conv", ["conv_weight_grad_f32", "conv_weight_grad_bf16", "conv_weight_grad_f16"])
        .or_tf32("conv_weight_grad_tf32");

const WIDE_FORWARD: Wide<2> = Wide::new(
    "conv",
    [
        (GATHER_128X128, ["conv_128x128_bf16", "conv_128x128_f16"]),
        (TILE_64X64, ["conv_64x64_bf16", "conv_64x64_f16"]),
    ],
);
const WIDE_INPUT_GRAD: Wide<2> = Wide::new(
    "conv",
    [
        (GATHER_128X128, ["conv_input_grad_128x128_bf16", "conv_input_grad_128x128_f16"]),
        (TILE_64X64, ["conv_input_grad_64x64_bf16", "conv_input_grad_64x64_f16"]),
    ],
);
const WIDE_WEIGHT_GRAD: Wide<2> = Wide::new(
    "conv",
    [
        (GATHER_128X128, ["conv_weight_grad_128x128_bf16", "conv_weight_grad_128x128_f16"]),
        (TILE_64X64, ["conv_weight_grad_64x64_bf16", "conv_weight_grad_64x64_f16"]),
    ],
);

/// The kernel and the grid of one of the three products, `layers` times `m` by `n`.
#[track_caller]
fn choose(
    gpu: Gpu,
    (plain, wide): (&Kernels, &Wide<2>),
    g: &Conv,
    dtype: DType,
    product: [usize; 3],
) -> (Kernel, Grid) {
    // Wide tiles keep the place of a pixel in 16 bits and count pixels in 32.
    let few = |(h, w): (usize, usize)| h.max(w) < 16_384 && g.batch * h * w < 1 << 31;
    let small = few(g.size) && few(g.out) && g.stride < 16;
    let chosen = small.then(|| wide.of(gpu, dtype, product, &[g.cin, g.cout])).flatten();
    let [m, n, layers] = product;
    chosen.unwrap_or_else(|| (amp::kernel(plain, dtype), Grid::tiles(m, n, layers)))
}

/// As `Geometry` in `kernels/conv.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
struct DeviceGeometry {
    batch: i32,
    h: i32,
    w: i32,
    cin: i32,
    oh: i32,
    ow: i32,
    cout: i32,
    stride: i32,
    taps: i32,
    act: i32,
    dy: [i8; 64],
    dx: [i8; 64],
}

impl DeviceGeometry {
    #[track_caller]
    fn new(g: &Conv, act: Act) -> Self {
        assert!(g.taps.len() <= 64, "convolutions on devices have at most 64 taps, got {}", g.taps.len());
        let int = |n: usize| i32::try_from(n).expect("a size below 2^31");
        let (mut dy, mut dx) = ([0; 64], [0; 64]);
        for (i, &(y, x)) in g.taps.iter().enumerate() {
            (dy[i], dx[i]) = (y as i8, x as i8);
        }
        let [batch, h, w, cin, oh, ow, cout, stride, taps] =
            [g.batch, g.size.0, g.size.1, g.cin, g.out.0, g.out.1, g.cout, g.stride, g.taps.len()].map(int);
        Self { batch, h, w, cin, oh, ow, cout, stride, taps, act: act as i32, dy, dx }
    }
}

/// act(x ∗ w + bias + residual).
#[track_caller]
pub(super) fn forward(
    gpu: Gpu,
    g: &Conv,
    x: &Tensor,
    w: &Tensor,
    extras: [Option<&Tensor>; 2],
    act: Act,
) -> Tensor {
    let y = gpu.empty(out_shape(g), x.dtype());
    let product = [g.batch * g.out.0 * g.out.1, g.cout, 1];
    let (kernel, grid) = choose(gpu, (&FORWARD, &WIDE_FORWARD), g, x.dtype(), product);
    let [bias, residual] = extras.map(|t| Optional(t, x.dtype()));
    gpu.launch(kernel, grid, &[&y, x, w, &bias, &residual, &Struct(DeviceGeometry::new(g, act))]);
    y.finish()
}

/// The gradient to x, zero where `gate` is not positive.
#[track_caller]
pub(super) fn input_grad(gpu: Gpu, g: &Conv, dy: &Tensor, w: &Tensor, gate: Option<&Tensor>) -> Tensor {
    let dx = gpu.empty(in_shape(g), dy.dtype());
    let product = [g.batch * g.size.0 * g.size.1, g.cin, 1];
    let (kernel, grid) = choose(gpu, (&INPUT_GRAD, &WIDE_INPUT_GRAD), g, dy.dtype(), product);
    let (gate, geometry) = (Optional(gate, dy.dtype()), Struct(DeviceGeometry::new(g, Act::None)));
    gpu.launch(kernel, grid, &[&dx, dy, w, &gate, &geometry]);
    dx.finish()
}

/// The gradient to w: parts of the pixels in f32, then their sum.
#[track_caller]
pub(super) fn weight_grad(gpu: Gpu, g: &Conv, x: &Tensor, dy: &Tensor, like: Shape) -> Tensor {
    let (pixels, rows) = (g.batch * g.out.0 * g.out.1, g.taps.len() * g.cin);
    let length = pixels.div_ceil(64).next_multiple_of(32).max(512);
    let parts = pixels.div_ceil(length);
    let dw = gpu.empty([parts, rows * g.cout], DType::F32);
    let (kernel, grid) = choose(gpu, (&WEIGHT_GRAD, &WIDE_WEIGHT_GRAD), g, x.dtype(), [rows, g.cout, parts]);
    let geometry = Struct(DeviceGeometry::new(g, Act::None));
    gpu.launch(kernel, grid, &[&dw, x, dy, &(length as i64), &geometry]);
    cast(&reduce::sum(&dw.finish(), &[0]), x.dtype()).with_shape(like)
}
