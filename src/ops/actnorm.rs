//! Actnorm: one shift and one scale per channel, initialised from data (Kingma & Dhariwal 2018, "Glow").
//!
//! y[b, .., c] = (x[b, .., c] + loc\[c]) e^(log_scale\[c]) for x (B, ..., C); log |det| of each example is
//! P Σ_c log_scale\[c] with P positions per example, in nats. One pass: 8 bytes per element at f32, 2 flops.
//! Backward keeps the output, which the next layer keeps anyway: d log_scale = Σ g y + P Σ_b g_logdet,
//! d loc = e^log_scale Σ g, dx = g e^log_scale.

use super::{Case, OpInfo, binary, cast, normal, shape, unary};
use crate::autograd::{self, Back, Recipe, record};
use crate::cpu::{par, simd};
use crate::cuda::{self, Gpu, Grid, Kernels};
use crate::tensor::{DType, Float, NewTensor, Plain, Tensor, with_arithmetic};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "actnorm",
    family: "fused",
    summary: "shift and scale per channel with log-determinant, its inverse and data-dependent initialisation",
    cases,
};

const FORWARD: Kernels =
    Kernels::new("actnorm", ["actnorm_forward_f32", "actnorm_forward_bf16", "actnorm_forward_f16"]);
const INVERSE: Kernels =
    Kernels::new("actnorm", ["actnorm_inverse_f32", "actnorm_inverse_bf16", "actnorm_inverse_f16"]);
const BACKWARD: Kernels =
    Kernels::new("actnorm", ["actnorm_backward_f32", "actnorm_backward_bf16", "actnorm_backward_f16"]);
const FINISH: Kernels =
    Kernels::new("actnorm", ["actnorm_finish_f32", "actnorm_finish_bf16", "actnorm_finish_f16"]);

/// Elements that one pass of a vectorised loop covers at least: the channel values are repeated to this length.
const PATTERN: usize = 128;

/// (B, positions per example, C).
#[track_caller]
fn layout(op: &str, x: &Tensor, loc: &Tensor, log_scale: &Tensor) -> [usize; 3] {
    let (&[b, .., c], true) = (x.shape(), x.rank() >= 2) else {
        panic!("{op}: expected x (B, ..., C), got {:?}", x.shape())
    };
    for (name, p) in [("loc", loc), ("log_scale", log_scale)] {
        assert_eq!((p.shape(), p.dtype()), (&[c][..], x.dtype()), "{op}: {name} for x {:?}", x.shape());
    }
    [b, x.len() / (b * c).max(1), c]
}

/// y = (x + loc) e^log_scale and its log-determinant (B,): x (B, ..., C), loc and log_scale (C).
///
/// # Panics
/// When shapes or dtypes do not fit.
#[track_caller]
pub fn actnorm(x: &Tensor, loc: &Tensor, log_scale: &Tensor) -> (Tensor, Tensor) {
    let [b, p, c] = layout("actnorm", x, loc, log_scale);
    if autograd::in_higher_order() {
        return composite(x, loc, log_scale);
    }
    if let Some(gpu) = cuda::on("actnorm", &[x, loc, log_scale]) {
        return launch(gpu, x, loc, log_scale, [b, p, c]);
    }
    if let Some([wide, loc, log_scale]) = cast::widened([x, loc, log_scale]) {
        let (y, logdet) = actnorm(&wide, &loc, &log_scale);
        return (cast::cast(&y, x.dtype()), cast::cast(&logdet, x.dtype()));
    }
    let total: f64 = log_scale.to_f64_vec().iter().sum();
    let logdet = Tensor::full(p as f64 * total, [b], x.dtype());
    let y = with_arithmetic!(x.dtype(), T => {
        let (shift, scale) = (pattern::<T>(loc, |v| v), pattern::<T>(log_scale, Float::exp));
        map::<T>(x, &shift, &scale, |x, shift, scale| (x + shift) * scale)
    });
    let scale = log_scale.detach();
    let recipe = Recipe::fused("actnorm").keeping_outputs();
    let [y, logdet] = record(
        recipe,
        &[x, loc, log_scale],
        [y, logdet],
        move |back| with_arithmetic!(scale.dtype(), T => backward::<T>(back, &scale, p, c)),
    );
    (y, logdet)
}

/// x = y e^(−log_scale) − loc, the inverse of [`actnorm`].
///
/// # Panics
/// When shapes or dtypes do not fit.
#[track_caller]
pub fn inverse(y: &Tensor, loc: &Tensor, log_scale: &Tensor) -> Tensor {
    let [b, p, c] = layout("actnorm inverse", y, loc, log_scale);
    if autograd::is_recording(&[y, loc, log_scale]) {
        return composite_inverse(y, loc, log_scale);
    }
    if let Some(gpu) = cuda::on("actnorm inverse", &[y, loc, log_scale]) {
        let (v, grid, rows) = walk(b * p, c, y.dtype());
        let x = gpu.empty(y.shape(), y.dtype());
        gpu.launch(INVERSE.of(y.dtype()), grid, &[&x, y, loc, log_scale, &rows, &(c as i32), &v]);
        return x.finish();
    }
    if let Some([wide, loc, log_scale]) = cast::widened([y, loc, log_scale]) {
        return cast::cast(&inverse(&wide, &loc, &log_scale), y.dtype());
    }
    with_arithmetic!(y.dtype(), T => {
        let (shift, scale) = (pattern::<T>(loc, |v| v), pattern::<T>(log_scale, |v| Float::exp(-v)));
        map::<T>(y, &shift, &scale, |y, shift, scale| y * scale - shift)
    })
}

/// Vector width, grid and rows for kernels/actnorm.cu; the number of blocks depends on the sizes alone.
fn walk(rows: usize, c: usize, dtype: DType) -> (i32, Grid, i64) {
    let v = [8, 4, 2].into_iter().find(|v| v * dtype.size() <= 16 && c.is_multiple_of(*v)).unwrap_or(1);
    let vectors = c / v;
    let down = 256 / vectors.min(256);
    let blocks = rows.div_ceil(down * 8).clamp(1, 256) as u32;
    let grid = Grid { blocks: [blocks, vectors.div_ceil(256) as u32, 1], threads: [256, 1, 1], shared: 0 };
    (v as i32, grid, rows as i64)
}

fn launch(gpu: Gpu, x: &Tensor, loc: &Tensor, log_scale: &Tensor, [b, p, c]: [usize; 3]) -> (Tensor, Tensor) {
    let (v, grid, rows) = walk(b * p, c, x.dtype());
    let [examples, positions, channels] = [b, p, c].map(|n| n as i32);
    let (y, logdet) = (gpu.empty(x.shape(), x.dtype()), gpu.empty([b], x.dtype()));
    gpu.launch(
        FORWARD.of(x.dtype()),
        grid,
        &[&y, &logdet, x, loc, log_scale, &rows, &channels, &examples, &positions, &v],
    );
    let scale = log_scale.detach();
    let recipe = Recipe::fused("actnorm").keeping_outputs();
    let outputs = [y.finish(), logdet.finish()];
    let [y, logdet] = record(recipe, &[x, loc, log_scale], outputs, move |back| {
        let (g, gl, y) = (back.grad(0), back.grad(1), back.output(0));
        let dtype = y.dtype();
        let blocks = grid.blocks[0] as usize;
        let (dx, partial) = (gpu.empty(y.shape(), dtype), gpu.empty([blocks, 2, c], DType::F32));
        gpu.launch(BACKWARD.of(dtype), grid, &[&dx, &partial, &g, y, &scale, &rows, &channels, &v]);
        let (partial, blocks) = (partial.finish(), blocks as i32);
        let (d_loc, d_scale) = (gpu.empty([c], dtype), gpu.empty([c], dtype));
        gpu.launch(
            FINISH.of(dtype),
            Grid::new(c.div_ceil(128), 128),
            &[&d_loc, &d_scale, &partial, &scale, &gl, &blocks, &channels, &examples, &positions],
        );
        vec![Some(dx.finish()), Some(d_loc.finish()), Some(d_scale.finish())]
    });
    (y, logdet)
}

/// loc and log_scale (C) that give every channel of `x` mean 0 and standard deviation 1; a constant channel
/// gets the scale of a deviation of 1e-6.
///
/// # Panics
/// When `x` is not (B, ..., C) with at least one row.
#[track_caller]
pub fn initial(x: &Tensor) -> (Tensor, Tensor) {
    let (&c, rows) = x.shape().split_last().expect("actnorm: expected x (B, ..., C), got a scalar");
    let n = rows.iter().product::<usize>() as f64;
    assert!(n > 0.0 && c > 0, "actnorm: nothing to initialise from in {:?}", x.shape());
    let values = x.to_f64_vec();
    let (mut mean, mut variance) = (vec![0.0; c], vec![0.0; c]);
    for row in values.chunks_exact(c) {
        mean.iter_mut().zip(row).for_each(|(m, x)| *m += x / n);
    }
    for row in values.chunks_exact(c) {
        let parts = variance.iter_mut().zip(row).zip(&mean);
        parts.for_each(|((v, x), m)| *v += (x - m) * (x - m) / n);
    }
    with_arithmetic!(x.dtype(), T => (
        Tensor::from_fn([c], |i| <T as Plain>::from_f64(-mean[i])),
        Tensor::from_fn([c], |i| <T as Plain>::from_f64(-variance[i].sqrt().max(1e-6).ln())),
    ))
}

/// `f` of the channel values, repeated to at least [`PATTERN`] elements: whole pixels, so that flat loops apply.
fn pattern<T: Float>(values: &Tensor, f: impl Fn(T) -> T) -> Vec<T> {
    let once: Vec<T> = values.as_slice::<T>().iter().map(|&v| f(v)).collect();
    once.repeat(PATTERN.div_ceil(once.len().max(1)))
}

/// Elements per task: a multiple of the pattern.
fn chunk(pattern: usize) -> usize {
    (par::GRAIN / pattern.max(1)).max(1) * pattern.max(1)
}

fn map<T: Float>(x: &Tensor, shift: &[T], scale: &[T], f: impl Fn(T, T, T) -> T + Sync + Send) -> Tensor {
    let (xs, chunk) = (x.as_slice::<T>(), chunk(shift.len()));
    let mut out = NewTensor::<T>::new(x.shape());
    par::chunks_mut(out.as_mut(), chunk, |k, out| {
        let xs = &xs[k * chunk..][..out.len()];
        simd::vectorize_for::<T, _>(
            #[inline(always)]
            || {
                for (out, xs) in out.chunks_mut(shift.len()).zip(xs.chunks(shift.len())) {
                    for (((y, x), shift), scale) in out.iter_mut().zip(xs).zip(shift).zip(scale) {
                        *y = f(*x, *shift, *scale);
                    }
                }
            },
        )
    });
    out.finish()
}

fn backward<T: Float>(back: &Back, log_scale: &Tensor, p: usize, c: usize) -> Vec<Option<Tensor>> {
    let (g, y) = (back.grad(0), back.output(0));
    let (gs, ys) = (g.as_slice::<T>(), y.as_slice::<T>());
    let scale = pattern::<T>(log_scale, Float::exp);
    let (width, chunk) = (scale.len(), chunk(scale.len()));
    let mut dx = NewTensor::<T>::new(g.shape());
    // Per task: Σ g and Σ g y of every place in the pattern.
    let mut sums = vec![T::from_f64(0.0); gs.len().div_ceil(chunk) * 2 * width];
    par::chunks_mut2(dx.as_mut(), chunk, &mut sums, 2 * width, |k, dx, sums| {
        let (gs, ys) = (&gs[k * chunk..][..dx.len()], &ys[k * chunk..][..dx.len()]);
        let (sum_g, sum_gy) = sums.split_at_mut(width);
        simd::vectorize_for::<T, _>(
            #[inline(always)]
            || {
                for ((dx, gs), ys) in dx.chunks_mut(width).zip(gs.chunks(width)).zip(ys.chunks(width)) {
                    let n = dx.len();
                    let (sum_g, sum_gy, scale) = (&mut sum_g[..n], &mut sum_gy[..n], &scale[..n]);
                    for i in 0..n {
                        let g = gs[i];
                        dx[i] = g * scale[i];
                        sum_g[i] += g;
                        sum_gy[i] += g * ys[i];
                    }
                }
            },
        )
    });
    let (mut dloc, mut dscale) = (vec![0.0; c], vec![0.0; c]);
    for sums in sums.chunks_exact(2 * width) {
        for (i, (g, gy)) in sums[..width].iter().zip(&sums[width..]).enumerate() {
            dloc[i % c] += g.to_f64();
            dscale[i % c] += gy.to_f64();
        }
    }
    let volume = back.grad_opt(1).map_or(0.0, |g| p as f64 * g.to_f64_vec().iter().sum::<f64>());
    let vector = |f: &dyn Fn(usize) -> f64| Tensor::from_fn([c], |i| <T as Plain>::from_f64(f(i)));
    vec![
        Some(dx.finish()),
        Some(vector(&|i| dloc[i] * scale[i].to_f64())),
        Some(vector(&|i| dscale[i] + volume)),
    ]
}

fn composite(x: &Tensor, loc: &Tensor, log_scale: &Tensor) -> (Tensor, Tensor) {
    let y = binary::mul(&binary::add(x, loc), &unary::exp(log_scale));
    (y, volume(x, &log_scale.sum_all()))
}

fn composite_inverse(y: &Tensor, loc: &Tensor, log_scale: &Tensor) -> Tensor {
    binary::sub(&binary::mul(y, &unary::exp(&unary::neg(log_scale))), loc)
}

/// The log-determinant (B,) of a map that multiplies the volume by e^`per_position` at every position of x
/// (B, ..., C).
pub(crate) fn volume(x: &Tensor, per_position: &Tensor) -> Tensor {
    let (b, c) = (x.shape()[0], x.shape()[x.rank() - 1]);
    let positions = x.len() / (b * c).max(1);
    shape::broadcast_to(&unary::affine(per_position, positions as f64, 0.0), [b])
}

fn cases() -> Vec<Case> {
    let pair = |(y, logdet)| vec![y, logdet];
    let inputs = |dims: &[usize], spread: f64| {
        let c = dims[dims.len() - 1];
        vec![normal(1, dims), normal(2, &[c]), unary::affine(&normal(3, &[c]), spread, 0.0)]
    };
    let mut cases = Vec::new();
    for dims in [&[1, 1][..], &[3, 7], &[2, 3, 5, 4], &[5, 2, 3, 12], &[2, 3, 1, 200]] {
        cases.push(
            Case::new(format!("{dims:?}"), inputs(dims, 0.3), move |x| pair(actnorm(&x[0], &x[1], &x[2])))
                .composite(move |x| pair(composite(&x[0], &x[1], &x[2]))),
        );
        cases.push(
            Case::new(format!("inverse {dims:?}"), inputs(dims, 0.3), |x| vec![inverse(&x[0], &x[1], &x[2])])
                .composite(|x| vec![composite_inverse(&x[0], &x[1], &x[2])]),
        );
    }
    cases.push(
        Case::new("wide scales", inputs(&[4, 6, 6, 8], 3.0), move |x| pair(actnorm(&x[0], &x[1], &x[2])))
            .composite(move |x| pair(composite(&x[0], &x[1], &x[2])))
            .order(0),
    );
    let n = 64 * 28 * 28 * 12;
    cases.push(
        Case::new("large", inputs(&[64, 28, 28, 12], 0.3), move |x| pair(actnorm(&x[0], &x[1], &x[2])))
            .composite(move |x| pair(composite(&x[0], &x[1], &x[2])))
            .order(0)
            .bench(8 * n, 2 * n)
            .backward(12 * n, 5 * n),
    );
    let of = |x: &[Tensor]| vec![inverse(&x[0], &x[1], &x[2])];
    let large = Case::new("inverse large", inputs(&[64, 28, 28, 12], 0.3), of);
    let large = large.composite(|x| vec![composite_inverse(&x[0], &x[1], &x[2])]);
    cases.push(large.order(0).bench(8 * n, 2 * n));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initialisation_standardises() {
        let x = unary::affine(&normal(5, &[4, 6, 6, 3]), 2.5, -7.0);
        let (loc, log_scale) = initial(&x);
        let (y, _) = actnorm(&x, &loc, &log_scale);
        for c in 0..3 {
            let y: Vec<f64> = y.to_f64_vec().into_iter().skip(c).step_by(3).collect();
            let mean = y.iter().sum::<f64>() / y.len() as f64;
            let std = (y.iter().map(|y| (y - mean).powi(2)).sum::<f64>() / y.len() as f64).sqrt();
            assert!(mean.abs() < 1e-12 && (std - 1.0).abs() < 1e-12, "channel {c}: mean {mean}, std {std}");
        }
    }

    #[test]
    #[should_panic(expected = "actnorm: loc for x [2, 3, 4]")]
    fn channels_must_match() {
        let three = normal(1, &[3]);
        actnorm(&normal(2, &[2, 3, 4]), &three, &three);
    }
}
