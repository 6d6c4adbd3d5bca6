//! Layer normalisation over the last axis (Ba, Kiros & Hinton 2016, "Layer normalization", arXiv:1607.06450).
//!
//! y = w (x − m) r + b with m the mean and r = 1 / sqrt(v + eps) of each row, v its variance (of D numbers, not D − 1):
//! x (..., D), w and b (D). The gradient, with u = g w and n = (x − m) r,
//! ```text
//! dx = r (u − mean(u) − n mean(u n)),   dw = Σ_rows g n,   db = Σ_rows g
//! ```
//! is one pass over x and g; sums over rows are made per chunk of rows and added in order. 8 D bytes and about 8 D flops
//! per row forward, 12 D and about 14 D backward.

use super::{Case, OpInfo, binary, cast::cast, normal, reduce, shape, unary};
use crate::autograd::{self, Recipe, record};
use crate::cpu::{par, simd};
use crate::cuda::{self, Gpu, Grid, Kernels};
use crate::tensor::{DType, Float, NewTensor, Tensor, with_arithmetic};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "norm",
    family: "fused",
    summary: "layer normalisation over the last axis with scale and shift",
    cases,
};

const FORWARD: Kernels = Kernels::new("norm", ["norm_forward_f32", "norm_forward_bf16", "norm_forward_f16"]);
const INPUT: Kernels = Kernels::new("norm", ["norm_input_f32", "norm_input_bf16", "norm_input_f16"]);
const PARAMS: Kernels = Kernels::new("norm", ["norm_params_f32", "norm_params_bf16", "norm_params_f16"]);

/// Rows per chunk of the sums over rows.
const ROWS: usize = 64;

/// w (x − mean) / sqrt(variance + eps) + b over the last axis.
///
/// # Panics
/// When w or b are not (D) for x (..., D), or the dtypes differ.
#[track_caller]
pub fn layer_norm(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Tensor {
    let d = *x.shape().last().expect("layer_norm: x has an axis");
    assert!(
        w.shape() == [d] && b.shape() == [d] && w.dtype() == x.dtype() && b.dtype() == x.dtype() && d > 0,
        "layer_norm: x {:?} {:?}, w {:?} {:?}, b {:?} {:?}",
        x.dtype(),
        x.shape(),
        w.dtype(),
        w.shape(),
        b.dtype(),
        b.shape()
    );
    if autograd::in_higher_order() {
        return composite(x, w, b, eps);
    }
    if let Some(gpu) = cuda::on("layer_norm", &[x, w, b]) {
        return launch(gpu, [x, w, b], eps, d);
    }
    if let DType::BF16 | DType::F16 = x.dtype() {
        let wide = |t: &Tensor| cast(t, DType::F32);
        return cast(&layer_norm(&wide(x), &wide(w), &wide(b), eps), x.dtype());
    }
    with_arithmetic!(x.dtype(), T => {
        let (y, stats) = forward::<T>(x, w, b, eps, d);
        let (xs, ws) = (x.detach(), w.detach());
        let [y] = record(Recipe::fused("layer_norm"), &[x, w, b], [y], move |back| {
            let [dx, dw, db] = backward::<T>(&xs, &ws, &stats, &back.grad(0), d);
            vec![Some(dx), Some(dw), Some(db)]
        });
        y
    })
}

/// On a device, with its gradients.
fn launch(gpu: Gpu, [x, w, b]: [&Tensor; 3], eps: f64, d: usize) -> Tensor {
    let (dtype, rows, width) = (x.dtype(), x.len() / d, d as i32);
    let (y, stats) = (gpu.empty(x.shape(), dtype), gpu.empty([rows, 2], DType::F32));
    let (grid, count) = (Grid::new(rows.div_ceil(4), 128), rows as i64);
    gpu.launch(FORWARD.of(dtype), grid, &[&y, &stats, x, w, b, &count, &width, &(eps as f32)]);
    let (xs, ws, stats) = (x.detach(), w.detach(), stats.finish());
    let [y] = record(Recipe::fused("layer_norm"), &[x, w, b], [y.finish()], move |back| {
        let g = back.grad(0);
        let dx = gpu.empty(xs.shape(), dtype);
        gpu.launch(INPUT.of(dtype), grid, &[&dx, &g, &xs, &ws, &stats, &count, &width]);
        // As `Walk` in kernels/columns.cuh: 256 threads over a row, or as many rows as fit.
        let down = 256 / d.min(256);
        let blocks = rows.div_ceil(down * 8).clamp(1, 256);
        let partial = gpu.empty([blocks, 2, d], DType::F32);
        let columns =
            Grid { blocks: [blocks as u32, d.div_ceil(256) as u32, 1], threads: [256, 1, 1], shared: 0 };
        gpu.launch(PARAMS.of(dtype), columns, &[&partial, &g, &xs, &stats, &count, &width]);
        let sums = cast(&reduce::sum(&partial.finish(), &[0]), dtype);
        let part = |i| shape::reshape(&shape::narrow(&sums, 0, i, 1), [d]);
        vec![Some(dx.finish()), Some(part(0)), Some(part(1))]
    });
    y
}

/// y, and m and r of each row.
fn forward<T: Float>(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64, d: usize) -> (Tensor, Vec<[T; 2]>) {
    let (xs, w, b) = (x.as_slice::<T>(), w.as_slice::<T>(), b.as_slice::<T>());
    let (eps, share) = (T::from_f64(eps), T::from_f64(1.0 / d as f64));
    let mut y = NewTensor::<T>::new(x.shape());
    let mut stats = vec![[T::from_f64(0.0); 2]; xs.len() / d];
    par::chunks_mut2(y.as_mut(), ROWS * d, &mut stats, ROWS, |i, y, stats| {
        let xs = &xs[i * ROWS * d..][..y.len()];
        simd::vectorize_for::<T, _>(
            #[inline(always)]
            || {
                for ((y, x), stats) in y.chunks_exact_mut(d).zip(xs.chunks_exact(d)).zip(stats) {
                    let mean = reduce::sum_block(x) * share;
                    y.iter_mut().zip(x).for_each(|(y, x)| *y = *x - mean);
                    let variance = dot(y, y) * share;
                    let rate = T::from_f64(1.0) / (variance + eps).sqrt();
                    for ((y, w), b) in y.iter_mut().zip(w).zip(b) {
                        *y = (*y * rate).mul_add(*w, *b);
                    }
                    *stats = [mean, rate];
                }
            },
        )
    });
    (y.finish(), stats)
}

fn backward<T: Float>(x: &Tensor, w: &Tensor, stats: &[[T; 2]], g: &Tensor, d: usize) -> [Tensor; 3] {
    let (xs, ws, gs) = (x.as_slice::<T>(), w.as_slice::<T>(), g.as_slice::<T>());
    let (zero, share) = (T::from_f64(0.0), T::from_f64(1.0 / d as f64));
    let mut dx = NewTensor::<T>::new(x.shape());
    let chunks = stats.len().div_ceil(ROWS);
    let mut sums = vec![zero; chunks * 2 * d];
    par::chunks_mut2(dx.as_mut(), ROWS * d, &mut sums, 2 * d, |i, dx, sums| {
        let at = i * ROWS * d;
        let (xs, gs) = (&xs[at..][..dx.len()], &gs[at..][..dx.len()]);
        let (dw, db) = sums.split_at_mut(d);
        simd::vectorize_for::<T, _>(
            #[inline(always)]
            || {
                let rows = dx.chunks_exact_mut(d).zip(xs.chunks_exact(d)).zip(gs.chunks_exact(d));
                for (((dx, x), g), [mean, rate]) in rows.zip(&stats[i * ROWS..]) {
                    // dx holds n first, and u is g w.
                    dx.iter_mut().zip(x).for_each(|(n, x)| *n = (*x - *mean) * *rate);
                    let (mut sum, mut dotted) = ([zero; LANES], [zero; LANES]);
                    for j in 0..d {
                        let (u, n) = (g[j] * ws[j], dx[j]);
                        sum[j % LANES] += u;
                        dotted[j % LANES] = u.mul_add(n, dotted[j % LANES]);
                        dw[j] = g[j].mul_add(n, dw[j]);
                        db[j] += g[j];
                    }
                    let sum = sum.into_iter().sum::<T>() * share;
                    let dotted = dotted.into_iter().sum::<T>() * share;
                    for j in 0..d {
                        dx[j] = *rate * (g[j] * ws[j] - sum - dx[j] * dotted);
                    }
                }
            },
        )
    });
    let total =
        |part: usize| Tensor::from_fn([d], |j| sums.chunks_exact(2 * d).map(|c| c[part * d + j]).sum::<T>());
    [dx.finish(), total(0), total(1)]
}

const LANES: usize = 16;

/// Σ a b, in interleaved lanes.
#[inline(always)]
fn dot<T: Float>(a: &[T], b: &[T]) -> T {
    let mut lanes = [T::from_f64(0.0); LANES];
    let (a, ra) = a.as_chunks::<LANES>();
    let (b, rb) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for ((l, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *l = a.mul_add(*b, *l);
        }
    }
    for ((l, a), b) in lanes.iter_mut().zip(ra).zip(rb) {
        *l = a.mul_add(*b, *l);
    }
    lanes.into_iter().sum()
}

/// [`layer_norm`] in primitives.
pub fn composite(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Tensor {
    let last = x.rank() - 1;
    let mut row = x.shape().to_vec();
    row[last] = 1;
    let centred = binary::sub(x, &shape::reshape(&reduce::mean(x, &[last]), &row));
    let variance = shape::reshape(&reduce::mean(&unary::square(&centred), &[last]), &row);
    let n = binary::div(&centred, &unary::sqrt(&unary::affine(&variance, 1.0, eps)));
    binary::add(&binary::mul(&n, w), b)
}

fn cases() -> Vec<Case> {
    let case = |name: &str, shape: &[usize], scale: f64| {
        let d = shape[shape.len() - 1];
        let inputs = vec![normal(1, shape).affine(scale, 3.0 * scale), normal(2, &[d]), normal(3, &[d])];
        Case::new(format!("{name}{shape:?}"), inputs, |x| vec![layer_norm(&x[0], &x[1], &x[2], 1e-5)])
            .composite(|x| vec![composite(&x[0], &x[1], &x[2], 1e-5)])
    };
    let (rows, d) = (4096, 128);
    vec![
        case("", &[5], 1.0),
        case("", &[2, 1], 1.0),
        case("", &[3, 4, 7], 1.0),
        case("", &[2, 33], 1.0),
        case("many rows ", &[150, 16], 1.0),
        case("large ", &[4, 19], 1e3).order(1),
        case("transformer256 ", &[rows, d], 1.0)
            .order(0)
            .bench(8 * rows * d, 8 * rows * d)
            .backward(20 * rows * d, 14 * rows * d),
    ]
}
