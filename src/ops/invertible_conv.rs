//! Invertible 1x1 convolution (Kingma & Dhariwal 2018, "Glow"), with the shift of a preceding actnorm fused in.
//!
//! y[r, o] = Σ_i W[o, i] (x[r, i] + loc\[i]) at every position r of x (B, ..., C), W (C, C); log |det| of each
//! example is P log |det W| with P positions, in nats, by LU in f64; its gradient is P W^-T. The PLU form
//! W = P L (U + diag(sign e^log_s)) has log |det W| = Σ log_s. An actnorm before it costs no pass of its own:
//! W diag(e^log_scale) is again such a matrix (see `bijections::flow_step`).
//!
//! One pass over x: 8 bytes and 2 C flops per element at f32, so memory-bound below C of about 64. Backward makes
//! dx = W^T g, dW = Σ g (x + loc)^T and d loc = Σ dx in one pass over g and x.

use super::{Case, OpInfo, actnorm::volume, binary, cast, linalg, matmul::matmul, normal, shape, unary};
use crate::autograd::{self, Back, Recipe, record};
use crate::cpu::{par, simd};
use crate::cuda::{self, Gpu, Grid, Kernels, Optional};
use crate::random::Philox;
use crate::tensor::{DType, Float, NewTensor, Plain, Tensor, with_arithmetic, with_float};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "invertible_conv",
    family: "fused",
    summary: "invertible 1x1 convolution with log-determinant, dense or PLU-parametrised, and its inverse",
    cases,
};

const MIX: Kernels = Kernels::new(
    "invertible_conv",
    ["invertible_conv_mix_f32", "invertible_conv_mix_bf16", "invertible_conv_mix_f16"],
);
const BACKWARD: Kernels = Kernels::new(
    "invertible_conv",
    ["invertible_conv_backward_f32", "invertible_conv_backward_bf16", "invertible_conv_backward_f16"],
);
const FINISH: Kernels = Kernels::new(
    "invertible_conv",
    ["invertible_conv_finish_f32", "invertible_conv_finish_bf16", "invertible_conv_finish_f16"],
);
const TILED: Kernels = Kernels::new(
    "invertible_conv",
    ["invertible_conv_tiled_f32", "invertible_conv_tiled_bf16", "invertible_conv_tiled_f16"],
);
const MATRIX_GRAD: Kernels = Kernels::new(
    "invertible_conv",
    [
        "invertible_conv_matrix_grad_f32",
        "invertible_conv_matrix_grad_bf16",
        "invertible_conv_matrix_grad_f16",
    ],
);

/// Checks the shapes and returns (rows, C).
#[track_caller]
fn layout(op: &str, x: &Tensor, w: &Tensor, loc: Option<&Tensor>) -> [usize; 2] {
    let (&[_, .., c], true) = (x.shape(), x.rank() >= 2) else {
        panic!("{op}: expected x (B, ..., C), got {:?}", x.shape())
    };
    assert_eq!((w.shape(), w.dtype()), (&[c, c][..], x.dtype()), "{op}: the matrix for x {:?}", x.shape());
    if let Some(loc) = loc {
        assert_eq!((loc.shape(), loc.dtype()), (&[c][..], x.dtype()), "{op}: loc for x {:?}", x.shape());
    }
    [x.len() / c.max(1), c]
}

/// y = W (x + loc) at every position and the log-determinant (B,): x (B, ..., C), W (C, C), loc (C).
///
/// # Panics
/// When shapes or dtypes do not fit.
#[track_caller]
pub fn invertible_conv(x: &Tensor, w: &Tensor, loc: Option<&Tensor>) -> (Tensor, Tensor) {
    (mix(x, w, loc), volume(x, &linalg::log_abs_det(w)))
}

/// x = W^-1 y − loc, the inverse of [`invertible_conv`]: the matrix is inverted and applied in f64.
///
/// # Panics
/// When shapes or dtypes do not fit.
#[track_caller]
pub fn inverse(y: &Tensor, w: &Tensor, loc: Option<&Tensor>) -> Tensor {
    let [_, c] = layout("invertible_conv inverse", y, w, loc);
    if autograd::is_recording(&[y, w]) || loc.is_some_and(|l| autograd::is_recording(&[l])) {
        return composite_inverse(y, w, loc);
    }
    if let Some(gpu) = cuda::on("invertible_conv inverse", &[y, w]) {
        let inverse = linalg::inverse(&w.detach());
        return launch(gpu, y, &inverse, [None, loc], false);
    }
    if let Some([wide]) = cast::widened([y]) {
        let (w, loc) = (cast::cast(w, wide.dtype()), loc.map(|l| cast::cast(l, wide.dtype())));
        return cast::cast(&inverse(&wide, &w, loc.as_ref()), y.dtype());
    }
    let inverse = linalg::Lu::new(&w.to_f64_vec(), c).inverse();
    with_arithmetic!(y.dtype(), T => {
        let columns = transposed(&inverse, c);
        let after: Vec<f64> = loc.map_or(vec![0.0; c], |l| l.to_f64_vec().iter().map(|l| -l).collect());
        apply::<T, f64>(y, &columns, &vec![0.0; c], &after, c)
    })
}

/// The matrix W = P L (U + diag(sign e^log_s)) from its parts, by primitives.
///
/// `permutation` (C, C), `lower` and `upper` (C, C), of which only the strict triangles count, `sign` and
/// `log_s` (C). log |det W| = Σ log_s.
#[track_caller]
pub fn from_plu(
    permutation: &Tensor,
    lower: &Tensor,
    upper: &Tensor,
    sign: &Tensor,
    log_s: &Tensor,
) -> Tensor {
    let [c, _] = lower.dims();
    let triangle = |below: bool| {
        let keep = |i: usize| if below { i % c < i / c } else { i % c > i / c };
        Tensor::from_fn([c, c], |i| keep(i) as i32).cast(lower.dtype())
    };
    let identity = Tensor::from_fn([c, c], |i| i32::from(i % (c + 1) == 0)).cast(lower.dtype());
    let [permutation, sign] = [permutation, sign].map(|t| t.clone().beside(lower));
    let l = binary::add(&binary::mul(lower, &triangle(true)), &identity);
    let diagonal = binary::mul(&identity, &binary::mul(&sign, &unary::exp(log_s)));
    let u = binary::add(&binary::mul(upper, &triangle(false)), &diagonal);
    matmul(&permutation, &matmul(&l, &u, false, false), false, false)
}

/// The PLU-parametrised [`invertible_conv`]: no factorisation, log |det W| = Σ log_s.
///
/// # Panics
/// When shapes or dtypes do not fit.
#[track_caller]
pub fn invertible_conv_plu(
    x: &Tensor,
    [permutation, lower, upper, sign, log_s]: [&Tensor; 5],
    loc: Option<&Tensor>,
) -> (Tensor, Tensor) {
    let w = from_plu(permutation, lower, upper, sign, log_s);
    (mix(x, &w, loc), volume(x, &log_s.sum_all()))
}

/// The parts (permutation, lower, upper, sign, log_s) of an invertible matrix, for [`from_plu`].
///
/// # Panics
/// When `w` is not a square float matrix.
#[track_caller]
pub fn to_plu(w: &Tensor) -> [Tensor; 5] {
    let [c, _] = w.dims();
    let (order, lu) = linalg::Lu::new(&w.to_f64_vec(), c).into_parts();
    with_float!(w.dtype(), T => {
        let make = |dims: &[usize], f: &dyn Fn(usize) -> f64| Tensor::from_fn(dims, |i| <T as Plain>::from_f64(f(i)));
        let pivot = |i: usize| lu[i * c + i];
        [
            make(&[c, c], &|i| if order[i % c] == i / c { 1.0 } else { 0.0 }),
            make(&[c, c], &|i| if i % c < i / c { lu[i] } else { 0.0 }),
            make(&[c, c], &|i| if i % c > i / c { lu[i] } else { 0.0 }),
            make(&[c], &|i| pivot(i).signum()),
            make(&[c], &|i| pivot(i).abs().ln()),
        ]
    })
}

/// y = W (x + loc) alone, without the log-determinant.
#[track_caller]
pub(crate) fn mix(x: &Tensor, w: &Tensor, loc: Option<&Tensor>) -> Tensor {
    let [_, c] = layout("invertible_conv", x, w, loc);
    if autograd::in_higher_order() {
        return composite_mix(x, w, loc);
    }
    if let Some(gpu) = cuda::on("invertible_conv", &[x, w]) {
        return mix_on(gpu, x, w, loc);
    }
    let zeros = Tensor::zeros([c], x.dtype());
    let loc = loc.unwrap_or(&zeros);
    if let Some([wide, w, loc]) = cast::widened([x, w, loc]) {
        return cast::cast(&mix(&wide, &w, Some(&loc)), x.dtype());
    }
    let shift = loc.detach();
    let y = with_arithmetic!(x.dtype(), T => {
        let (columns, before) = (transposed(w.as_slice::<T>(), c), shift.as_slice::<T>());
        apply::<T, T>(x, &columns, before, &vec![<T as Plain>::from_f64(0.0); c], c)
    });
    let (saved, matrix) = (x.detach(), w.detach());
    let inputs = [x, w, loc];
    let [y] = record(
        Recipe::fused("invertible_conv"),
        &inputs,
        [y],
        move |back| with_arithmetic!(saved.dtype(), T => backward::<T>(back, &saved, &matrix, &shift, c)),
    );
    y
}

/// Up to how many channels a block of kernels/invertible_conv.cu holds the matrix: from where the FMA units bind in
/// f32, and the tensor cores pay in the half types.
fn fits_a_block(c: usize, dtype: DType) -> bool {
    c <= if dtype == DType::F32 { 64 } else { 32 }
}

/// Grid of the kernels that hold the matrix, with `tiles` tiles of rows in shared memory, and at most `most` blocks.
fn held(rows: usize, c: usize, tiles: usize, most: usize) -> Grid {
    let (groups, pitch) = (c.div_ceil(4), (c.div_ceil(4) | 1) * 4);
    let tile = 4 * ((256 / groups) & !1);
    let shared = 4 * (pitch * pitch + 2 * 64 + tiles * tile * pitch);
    Grid { shared: shared as u32, ..Grid::new(rows.div_ceil(tile).min(most), 256) }
}

/// Shared memory of a tile of a matrix product: two buffers of two operands, 64 rows by 32 (halves) or 16 (f32).
const TILE_BYTES: u32 = 2 * 2 * 64 * 40 * 2;

/// out = M (x + before) − after, M = w or its transpose.
fn launch(
    gpu: Gpu,
    x: &Tensor,
    w: &Tensor,
    [before, after]: [Option<&Tensor>; 2],
    transposed: bool,
) -> Tensor {
    let (c, dtype) = (w.shape()[0], x.dtype());
    let rows = x.len() / c;
    let out = gpu.empty(x.shape(), dtype);
    let (kernel, grid) = if fits_a_block(c, dtype) {
        (MIX, held(rows, c, 1, 132 * 16))
    } else {
        let blocks = [rows.div_ceil(64) as u32, c.div_ceil(64) as u32, 1];
        (TILED, Grid { blocks, threads: [128, 1, 1], shared: TILE_BYTES })
    };
    let (before, after) = (Optional(before, dtype), Optional(after, dtype));
    let (n, c, transposed) = (rows as i64, c as i32, i32::from(transposed));
    gpu.launch(kernel.of(dtype), grid, &[&out, x, w, &before, &after, &n, &c, &transposed]);
    out.finish()
}

fn mix_on(gpu: Gpu, x: &Tensor, w: &Tensor, loc: Option<&Tensor>) -> Tensor {
    let y = launch(gpu, x, w, [loc, None], false);
    let absent = Tensor::zeros([0], x.dtype());
    let (saved, matrix, shift) = (x.detach(), w.detach(), loc.map(Tensor::detach));
    let inputs = [x, w, loc.unwrap_or(&absent)];
    let [y] = record(Recipe::fused("invertible_conv"), &inputs, [y], move |back| {
        let (g, c, dtype) = (back.grad(0), matrix.shape()[0], saved.dtype());
        let (rows, n) = (saved.len() / c, (saved.len() / c) as i64);
        let (dw, dloc) = (gpu.empty([c, c], dtype), gpu.empty([c], dtype));
        let loc = Optional(shift.as_ref(), dtype);
        let fits = fits_a_block(c, dtype);
        let (dx, partial, blocks) = if fits {
            let grid = held(rows, c, 2, 256);
            let blocks = grid.blocks[0] as usize;
            let (dx, partial) = (gpu.empty(g.shape(), dtype), gpu.empty([blocks, c * c + c], DType::F32));
            let args: &[&dyn cuda::Arg] = &[&dx, &partial, &g, &saved, &matrix, &loc, &n, &(c as i32)];
            gpu.launch(BACKWARD.of(dtype), grid, args);
            (dx.finish(), partial.finish(), blocks)
        } else {
            let tiles = c.div_ceil(64);
            let splits = (264 / (tiles * tiles)).clamp(1, rows.div_ceil(128));
            let partial = gpu.empty([splits, c, c], DType::F32);
            let blocks = [tiles as u32, tiles as u32, splits as u32];
            let grid = Grid { blocks, threads: [128, 1, 1], shared: TILE_BYTES };
            gpu.launch(MATRIX_GRAD.of(dtype), grid, &[&partial, &g, &saved, &loc, &n, &(c as i32)]);
            (launch(gpu, &g, &matrix, [None, None], true), partial.finish(), splits)
        };
        let grid = Grid::new((c * c).div_ceil(32) + usize::from(fits), 256);
        let (blocks, channels, with_loc) = (blocks as i32, c as i32, i32::from(fits));
        let args: &[&dyn cuda::Arg] = &[&dw, &dloc, &partial, &matrix, &blocks, &channels, &with_loc];
        gpu.launch(FINISH.of(dtype), grid, args);
        let dloc = (shift.is_some() && back.needs(2))
            .then(|| if fits { dloc.finish() } else { dx.reshape([rows, c]).sum(&[0]) });
        vec![Some(dx), Some(dw.finish()), dloc]
    });
    y
}

fn transposed<A: Copy>(w: &[A], c: usize) -> Vec<A> {
    (0..c * c).map(|k| w[k % c * c + k / c]).collect()
}

/// Rows per task.
fn rows_per_task(c: usize) -> usize {
    (par::GRAIN / 2 / c.max(1)).max(4).next_multiple_of(4)
}

/// The widest vector that divides the channels picks the kernel, so none of them has a tail.
macro_rules! by_width {
    ($c:expr, $f:ident::<$T:ty, $A:ty>($($arg:expr),*)) => {
        match $c {
            c if c % 16 == 0 => $f::<$T, $A, 16, 4>($($arg),*),
            c if c % 8 == 0 => $f::<$T, $A, 8, 4>($($arg),*),
            c if c % 4 == 0 => $f::<$T, $A, 4, 4>($($arg),*),
            _ => $f::<$T, $A, 1, 1>($($arg),*),
        }
    };
}

/// out[r, o] = Σ_i (x[r, i] + before[i]) columns[i, o] + after[o], calculated in `A`.
fn apply<T: Float, A: Float>(x: &Tensor, columns: &[A], before: &[A], after: &[A], c: usize) -> Tensor {
    let xs = x.as_slice::<T>();
    let mut out = NewTensor::<T>::new(x.shape());
    let chunk = rows_per_task(c) * c;
    par::chunks_mut(out.as_mut(), chunk.max(1), |k, out| {
        let xs = &xs[k * chunk..][..out.len()];
        by_width!(c, apply_rows::<T, A>(xs, out, columns, before, after, c));
    });
    out.finish()
}

fn apply_rows<T: Float, A: Float, const L: usize, const O: usize>(
    xs: &[T],
    out: &mut [T],
    columns: &[A],
    before: &[A],
    after: &[A],
    c: usize,
) {
    simd::vectorize_for::<T, _>(
        #[inline(always)]
        || {
            let whole = xs.len() / (4 * c) * (4 * c);
            let (x4, x1) = xs.split_at(whole);
            let (y4, y1) = out.split_at_mut(whole);
            for (x, y) in x4.chunks_exact(4 * c).zip(y4.chunks_exact_mut(4 * c)) {
                apply_block::<T, A, L, 4>(x, y, columns, before, after, c);
            }
            for (x, y) in x1.chunks_exact(c).zip(y1.chunks_exact_mut(c)) {
                apply_block::<T, A, L, 1>(x, y, columns, before, after, c);
            }
        },
    )
}

/// Between the two types of arithmetic; nothing when they are the same.
#[inline(always)]
fn to<S: Float, D: Float>(x: S) -> D {
    D::from_f64(x.to_f64())
}

#[inline(always)]
fn apply_block<T: Float, A: Float, const L: usize, const R: usize>(
    x: &[T],
    y: &mut [T],
    columns: &[A],
    before: &[A],
    after: &[A],
    c: usize,
) {
    for o in (0..c).step_by(L) {
        let start: [A; L] = std::array::from_fn(|l| after[o + l]);
        let mut sums = [start; R];
        for i in 0..c {
            let w = &columns[i * c + o..][..L];
            for r in 0..R {
                let x = to::<T, A>(x[r * c + i]) + before[i];
                for l in 0..L {
                    sums[r][l] = Float::mul_add(x, w[l], sums[r][l]);
                }
            }
        }
        for r in 0..R {
            let y = &mut y[r * c + o..][..L];
            for l in 0..L {
                y[l] = to::<A, T>(sums[r][l]);
            }
        }
    }
}

fn backward<T: Float>(back: &Back, x: &Tensor, w: &Tensor, loc: &Tensor, c: usize) -> Vec<Option<Tensor>> {
    let g = back.grad(0);
    let (gs, xs) = (g.as_slice::<T>(), x.as_slice::<T>());
    let (rows, before) = (w.as_slice::<T>(), loc.as_slice::<T>());
    let zeros = vec![T::from_f64(0.0); c];
    let chunk = (rows_per_task(c) * c).max(1);
    let width = c * c + c;
    let mut dx = NewTensor::<T>::new(x.shape());
    // Per task: dW and d loc, the latter as W^T Σ g.
    let mut sums = vec![T::from_f64(0.0); gs.len().div_ceil(chunk) * width];
    par::chunks_mut2(dx.as_mut(), chunk, &mut sums, width, |k, dx, sums| {
        let (gs, xs) = (&gs[k * chunk..][..dx.len()], &xs[k * chunk..][..dx.len()]);
        by_width!(c, apply_rows::<T, T>(gs, dx, rows, &zeros, &zeros, c));
        by_width!(c, outer_products::<T, T>(gs, xs, before, sums, c));
    });
    let mut total = vec![0.0; width];
    for sums in sums.chunks_exact(width) {
        total.iter_mut().zip(sums).for_each(|(t, s)| *t += s.to_f64());
    }
    let (dw, sum_g) = total.split_at(c * c);
    let dloc = |i: usize| (0..c).map(|o| rows[o * c + i].to_f64() * sum_g[o]).sum();
    vec![
        Some(dx.finish()),
        Some(Tensor::from_fn([c, c], |k| <T as Plain>::from_f64(dw[k]))),
        back.needs(2).then(|| Tensor::from_fn([c], |i| <T as Plain>::from_f64(dloc(i)))),
    ]
}

/// sums[o, i] += Σ_r g[r, o] (x[r, i] + before[i]), then sums[C², o] += Σ_r g[r, o].
fn outer_products<T: Float, A: Float, const L: usize, const O: usize>(
    gs: &[T],
    xs: &[T],
    before: &[A],
    sums: &mut [A],
    c: usize,
) {
    simd::vectorize_for::<T, _>(
        #[inline(always)]
        || {
            for o in (0..c).step_by(O) {
                for i in (0..c).step_by(L) {
                    let before: [A; L] = std::array::from_fn(|l| before[i + l]);
                    let mut acc = [[A::from_f64(0.0); L]; O];
                    for (g, x) in gs.chunks_exact(c).zip(xs.chunks_exact(c)) {
                        let (g, x) = (&g[o..][..O], &x[i..][..L]);
                        let x: [A; L] = std::array::from_fn(|l| to::<T, A>(x[l]) + before[l]);
                        for j in 0..O {
                            let g = to::<T, A>(g[j]);
                            for l in 0..L {
                                acc[j][l] = Float::mul_add(g, x[l], acc[j][l]);
                            }
                        }
                    }
                    for j in 0..O {
                        sums[(o + j) * c + i..][..L].copy_from_slice(&acc[j]);
                    }
                }
            }
            let sum_g = &mut sums[c * c..];
            for g in gs.chunks_exact(c) {
                sum_g.iter_mut().zip(g).for_each(|(s, g)| *s += to::<T, A>(*g));
            }
        },
    )
}

fn composite_mix(x: &Tensor, w: &Tensor, loc: Option<&Tensor>) -> Tensor {
    let shifted = loc.map_or(x.clone(), |loc| binary::add(x, loc));
    let c = w.shape()[0];
    let flat = shape::reshape(&shifted, [x.len() / c.max(1), c]);
    shape::reshape(&matmul(&flat, w, false, true), x.shape())
}

fn composite(x: &Tensor, w: &Tensor, loc: Option<&Tensor>) -> (Tensor, Tensor) {
    (composite_mix(x, w, loc), volume(x, &linalg::log_abs_det(w)))
}

fn composite_inverse(y: &Tensor, w: &Tensor, loc: Option<&Tensor>) -> Tensor {
    let x = composite_mix(y, &linalg::inverse(w), None);
    loc.map_or(x.clone(), |loc| binary::sub(&x, loc))
}

/// A well-conditioned matrix (n, n): orthogonal, columns scaled by up to e^±`spread`.
fn matrix(seed: u64, n: usize, spread: f64) -> Tensor {
    let q = Philox::new(seed).initial([n, n], DType::F64, crate::nn::Initial::Orthogonal);
    binary::mul(&q, &unary::exp(&unary::affine(&unary::tanh(&normal(seed, &[n])), spread, 0.0)))
}

fn cases() -> Vec<Case> {
    let pair = |(y, logdet)| vec![y, logdet];
    let mut cases = Vec::new();
    for dims in [&[1, 1][..], &[3, 2], &[2, 3, 5, 4], &[2, 7, 3], &[1, 3, 3, 8], &[3, 5, 12], &[2, 3, 16]] {
        let c = dims[dims.len() - 1];
        let inputs = vec![normal(1, dims), matrix(2, c, 0.3), normal(3, &[c])];
        cases.push(
            Case::new(format!("{dims:?}"), inputs, move |x| pair(invertible_conv(&x[0], &x[1], Some(&x[2]))))
                .composite(move |x| pair(composite(&x[0], &x[1], Some(&x[2])))),
        );
        let inputs = vec![normal(4, dims), matrix(5, c, 0.3), normal(6, &[c])];
        cases.push(
            Case::new(format!("inverse {dims:?}"), inputs, |x| vec![inverse(&x[0], &x[1], Some(&x[2]))])
                .composite(|x| vec![composite_inverse(&x[0], &x[1], Some(&x[2]))]),
        );
    }
    let plu = |x: &[Tensor]| {
        let [p, _, _, sign, _] = to_plu(&matrix(7, 4, 0.3)).map(|t| t.cast(x[0].dtype()));
        [p, x[1].clone(), x[2].clone(), sign, x[3].clone()]
    };
    let [_, lower, upper, _, log_s] = to_plu(&matrix(7, 4, 0.3));
    cases.push(
        Case::new("PLU", vec![normal(8, &[2, 3, 4]), lower, upper, log_s], move |x| {
            pair(invertible_conv_plu(&x[0], plu(x).each_ref(), None))
        })
        .composite(move |x| {
            let [p, l, u, sign, log_s] = plu(x);
            pair(composite(&x[0], &from_plu(&p, &l, &u, &sign, &log_s), None))
        }),
    );
    for c in [4, 12, 48, 96] {
        let inputs = vec![normal(9, &[64, 196, c]), matrix(10, c, 0.3)];
        let n = 64 * 196 * c;
        cases.push(
            Case::new(format!("large, C = {c}"), inputs, move |x| pair(invertible_conv(&x[0], &x[1], None)))
                .composite(move |x| pair(composite(&x[0], &x[1], None)))
                .order(0)
                .bench(8 * n, 2 * n * c)
                .backward(12 * n, 4 * n * c),
        );
        let inputs = vec![normal(9, &[64, 196, c]), matrix(10, c, 0.3)];
        let of = |x: &[Tensor]| vec![inverse(&x[0], &x[1], None)];
        let large = Case::new(format!("inverse large, C = {c}"), inputs, of);
        let large = large.composite(|x| vec![composite_inverse(&x[0], &x[1], None)]);
        cases.push(large.order(0).bench(8 * n, 2 * n * c));
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::max_error;

    #[test]
    fn plu_parts_make_the_matrix_again() {
        let w = matrix(1, 6, 0.5);
        let [p, l, u, sign, log_s] = to_plu(&w);
        assert!(max_error(&[from_plu(&p, &l, &u, &sign, &log_s)], std::slice::from_ref(&w)) < 1e-14);
        assert!((log_s.sum_all().item() - linalg::log_abs_det(&w).item()).abs() < 1e-14);
    }

    #[test]
    #[should_panic(expected = "invertible_conv: the matrix for x [2, 3, 4]")]
    fn the_matrix_must_fit() {
        invertible_conv(&normal(1, &[2, 3, 4]), &normal(2, &[3, 3]), None);
    }
}
