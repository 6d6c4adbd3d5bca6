//! Monotone rational-quadratic splines with linear tails (Durkan, Bekasov, Murray & Papamakarios 2019, "Neural spline
//! flows"; Gregory & Delbourgo 1982), with their log-determinant, and their inverse.
//!
//! x (B, ...) of any unit; params (B, ..., 3K − 1) = (a, b, c), for each number of x the logits a (K) of the K bins'
//! widths, the logits b (K) of their heights, and c (K − 1) of the slopes at the inner knots:
//!   width w = 2R (m + (1 − K m) softmax a), height h likewise from b, slope d = m + softplus c, m = 10⁻³,
//!   knots at −R + Σ w and −R + Σ h, slope 1 at ±R. In the bin (x₀, y₀, w, h) with slopes d₀, d₁ at its ends, with
//!   t = (x − x₀)/w, s = h/w, q = t(1 − t), n = d₁t² + 2sq + d₀(1 − t)², e = s + (d₀ + d₁ − 2s) q:
//!   y = y₀ + h (s t² + d₀ q)/e,  dy/dx = s² n/e²;  y = x outside (−R, R).
//! log |det| of an example = Σ ln dy/dx over its numbers, in nats. A knot belongs to the bin on its right.
//!
//! **Inverse.** With u = (y − y₀)/h the quadratic in t has the discriminant (d₀ − (d₀ + d₁)u)² + 4s²u(1 − u), a sum of
//! terms that cannot be negative, so no root is lost to rounding; of the two forms of the root the one that does not
//! cancel is taken. **Tails.** Outside (−R, R) the bin is looked up at the clamped x, where all is finite, and the
//! result is discarded by selection, so no NaN reaches a gradient.
//!
//! Forward reads 4 (3K + 1) and writes 4 bytes per number at f32, about 20 K + 60 flops; backward reads the same again,
//! recomputes the softmax and writes both gradients in one pass.

mod definition;

use super::{OpInfo, cast};
use crate::autograd::{self, Recipe, record};
use crate::cpu::{par, simd};
use crate::cuda::{self, Gpu, Grid, Kernels, Struct};
use crate::tensor::{DType, Float, NewTensor, Plain, Tensor, with_arithmetic};
use definition::{cases, composite, composite_inverse};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "rq_spline",
    family: "fused",
    summary: "rational-quadratic spline with linear tails, its log-determinant, and its inverse",
    cases,
};

const FORWARD: Kernels =
    Kernels::new("rq_spline", ["rq_spline_forward_f32", "rq_spline_forward_bf16", "rq_spline_forward_f16"]);
const INVERSE: Kernels =
    Kernels::new("rq_spline", ["rq_spline_inverse_f32", "rq_spline_inverse_bf16", "rq_spline_inverse_f16"]);
const BACKWARD: Kernels = Kernels::new(
    "rq_spline",
    ["rq_spline_backward_f32", "rq_spline_backward_bf16", "rq_spline_backward_f16"],
);
const LOGDET: Kernels =
    Kernels::new("rq_spline", ["rq_spline_logdet_f32", "rq_spline_logdet_bf16", "rq_spline_logdet_f16"]);

/// Least width and height of a bin as a part of the range, and least slope.
pub const MIN_SIZE: f64 = 1e-3;
/// Numbers handled at a time.
const LANES: usize = 16;

/// The spline's settings.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spline {
    /// K, the number of bins.
    pub bins: usize,
    /// R: the spline lives in (−R, R), beyond it is the identity.
    pub bound: f64,
}

impl Spline {
    /// Parameters per number: 3K − 1.
    pub fn params(self) -> usize {
        3 * self.bins - 1
    }

    /// Whether the settings are possible: 1 to 256 bins, a finite bound above 0.
    pub fn is_valid(self) -> bool {
        (1..=256).contains(&self.bins) && self.bound > 0.0 && self.bound.is_finite()
    }

    /// The parameters of one number that make the spline the identity.
    pub fn identity(self) -> Vec<f64> {
        let mut params = vec![0.0; self.params()];
        params[2 * self.bins..].fill(Self::unit_slope());
        params
    }

    /// The c whose slope m + softplus c is 1.
    fn unit_slope() -> f64 {
        (1.0 - MIN_SIZE).exp_m1().ln()
    }

    #[track_caller]
    fn check(self, op: &str, x: &Tensor, params: &Tensor) {
        assert!(self.is_valid(), "{op}: {self:?}");
        let mut want = x.shape().to_vec();
        assert!(!want.is_empty(), "{op}: expected x (B, ...), got a scalar");
        want.push(self.params());
        assert_eq!(
            (params.shape(), params.dtype()),
            (&want[..], x.dtype()),
            "{op}: params for x {:?}",
            x.shape()
        );
    }
}

type Row<F> = [F; LANES];

/// Sixteen numbers with their parameters, lane by lane, and the bin that each of them lies in.
struct Block<F> {
    spline: Spline,
    /// (3K − 1, lane): after [`Self::normalise`] the first 2K hold softmax a and softmax b; later the gradients.
    rows: Vec<Row<F>>,
    /// The numbers, held within ±R.
    at: Row<F>,
    bin: Bin<F>,
}

/// A bin per lane.
#[derive(Clone, Copy)]
struct Bin<F> {
    index: Row<F>,
    /// Softmax of the bin and the sum of those before it, for widths and heights.
    part: [Row<F>; 2],
    before: [Row<F>; 2],
    /// The raw slopes c at its ends.
    slopes: [Row<F>; 2],
}

/// One lane's bin in units of x and y.
#[derive(Clone, Copy)]
struct Piece<F> {
    x0: F,
    w: F,
    y0: F,
    h: F,
    d0: F,
    d1: F,
}

impl<F: Float> Block<F> {
    fn new(spline: Spline) -> Self {
        let zero = [F::from_f64(0.0); LANES];
        let bin = Bin { index: zero, part: [zero; 2], before: [zero; 2], slopes: [zero; 2] };
        Self { spline, rows: vec![zero; spline.params()], at: zero, bin }
    }

    /// Reads up to sixteen numbers and finds their bins; unused lanes repeat the first. `side` 0 looks them up among
    /// the knots of x, 1 among those of y.
    #[inline(always)]
    fn read(&mut self, numbers: &[F], params: &[F], side: usize, bins: usize) {
        let bound = F::from_f64(self.spline.bound);
        let p = 3 * bins - 1;
        for lane in 0..LANES {
            let from = if lane < numbers.len() { lane } else { 0 };
            self.at[lane] = numbers[from];
            for (row, v) in self.rows[..p].iter_mut().zip(&params[from * p..][..p]) {
                row[lane] = *v;
            }
        }
        for at in &mut self.at {
            // NaN becomes a bound: it is outside, and passes through the tails.
            *at = if *at > -bound { *at } else { -bound };
            *at = if *at < bound { *at } else { bound };
        }
        let (a, rest) = self.rows[..p].split_at_mut(bins);
        softmax_rows(a);
        softmax_rows(&mut rest[..bins]);
        self.find(side, bins);
    }

    /// Where knot `k` lies when the softmax of the bins before it sums to `before`.
    #[inline(always)]
    fn knot(&self, k: F, before: F, bins: usize) -> F {
        let (range, low) = (2.0 * self.spline.bound, F::from_f64(-self.spline.bound));
        let scale = F::from_f64(range * (1.0 - MIN_SIZE * bins as f64));
        Float::mul_add(before, scale, Float::mul_add(k, F::from_f64(range * MIN_SIZE), low))
    }

    #[inline(always)]
    fn find(&mut self, side: usize, bins: usize) {
        let zero = [F::from_f64(0.0); LANES];
        let edge = [F::from_f64(Spline::unit_slope()); LANES];
        let slope =
            |rows: &[Row<F>], k: usize| if k == 0 || k == bins { edge } else { rows[2 * bins + k - 1] };
        let mut bin = Bin {
            index: zero,
            part: [self.rows[0], self.rows[bins]],
            before: [zero; 2],
            slopes: [edge, slope(&self.rows, 1)],
        };
        let mut before = [zero; 2];
        for k in 1..bins {
            let ends = [slope(&self.rows, k), slope(&self.rows, k + 1)];
            let parts = [self.rows[k], self.rows[bins + k]];
            let number = F::from_f64(k as f64);
            for lane in 0..LANES {
                before[0][lane] += self.rows[k - 1][lane];
                before[1][lane] += self.rows[bins + k - 1][lane];
            }
            for lane in 0..LANES {
                let here = self.at[lane] >= self.knot(number, before[side][lane], bins);
                let pick = |new: F, old: F| if here { new } else { old };
                bin.index[lane] = pick(number, bin.index[lane]);
                for i in 0..2 {
                    bin.part[i][lane] = pick(parts[i][lane], bin.part[i][lane]);
                    bin.before[i][lane] = pick(before[i][lane], bin.before[i][lane]);
                    bin.slopes[i][lane] = pick(ends[i][lane], bin.slopes[i][lane]);
                }
            }
        }
        self.bin = bin;
    }

    #[inline(always)]
    fn piece(&self, lane: usize, bins: usize) -> Piece<F> {
        let bin = &self.bin;
        let (range, least) = (2.0 * self.spline.bound, F::from_f64(MIN_SIZE));
        let (scale, floor) =
            (F::from_f64(range * (1.0 - MIN_SIZE * bins as f64)), F::from_f64(range * MIN_SIZE));
        let size = |i: usize| Float::mul_add(bin.part[i][lane], scale, floor);
        Piece {
            x0: self.knot(bin.index[lane], bin.before[0][lane], bins),
            w: size(0),
            y0: self.knot(bin.index[lane], bin.before[1][lane], bins),
            h: size(1),
            d0: least + bin.slopes[0][lane].softplus(),
            d1: least + bin.slopes[1][lane].softplus(),
        }
    }

    /// Leaves the gradients of the parameters in `rows`, given those of y and of ln dy/dx, and returns that of x.
    #[inline(always)]
    fn pull(&mut self, x: &Row<F>, gy: &Row<F>, gl: &Row<F>, bins: usize) -> Row<F> {
        let (zero, one) = (F::from_f64(0.0), F::from_f64(1.0));
        let bound = F::from_f64(self.spline.bound);
        let scale = F::from_f64(2.0 * self.spline.bound * (1.0 - MIN_SIZE * bins as f64));
        let mut gx = *gy;
        // Per lane: gradients of the bin's size and of its lower knot, times dsize/dsoftmax; and of the raw slopes.
        let (mut size, mut low, mut slopes) = ([[zero; LANES]; 2], [[zero; LANES]; 2], [[zero; LANES]; 2]);
        let mut mean = [[zero; LANES]; 2];
        for lane in 0..LANES {
            let inside = x[lane] > -bound && x[lane] < bound;
            let p = self.piece(lane, bins);
            let keep = |v: F| if inside { v } else { zero };
            let g = p.gradients(self.at[lane], gy[lane], gl[lane]);
            gx[lane] = if inside { g.x } else { gx[lane] };
            for (i, (of_size, of_low)) in [(g.w, g.x0), (g.h, gy[lane])].into_iter().enumerate() {
                size[i][lane] = keep(of_size) * scale;
                low[i][lane] = keep(of_low) * scale;
                mean[i][lane] =
                    low[i][lane] * self.bin.before[i][lane] + size[i][lane] * self.bin.part[i][lane];
            }
            // d softplus / dc = 1 − e^−softplus, of a softplus that is at hand.
            let least = F::from_f64(MIN_SIZE);
            slopes[0][lane] = keep(g.d0) * (one - (least - p.d0).exp());
            slopes[1][lane] = keep(g.d1) * (one - (least - p.d1).exp());
        }
        for k in 0..bins {
            let number = F::from_f64(k as f64);
            for i in 0..2 {
                let row = &mut self.rows[i * bins + k];
                for lane in 0..LANES {
                    let index = self.bin.index[lane];
                    let of = if number < index { low[i][lane] } else { zero };
                    let of = if number == index { size[i][lane] } else { of };
                    row[lane] = row[lane] * (of - mean[i][lane]);
                }
            }
            if k > 0 {
                let row = &mut self.rows[2 * bins + k - 1];
                for lane in 0..LANES {
                    let index = self.bin.index[lane];
                    let left = if number == index { slopes[0][lane] } else { zero };
                    row[lane] = if number == index + one { slopes[1][lane] } else { left };
                }
            }
        }
        gx
    }
}

/// Each lane's softmax over the rows, in place.
#[inline(always)]
fn softmax_rows<F: Float>(rows: &mut [Row<F>]) {
    let mut top = rows[0];
    for row in rows.iter() {
        top.iter_mut().zip(row).for_each(|(t, v)| *t = t.max(*v));
    }
    let mut sum = [F::from_f64(0.0); LANES];
    for row in rows.iter_mut() {
        for lane in 0..LANES {
            row[lane] = (row[lane] - top[lane]).exp();
            sum[lane] += row[lane];
        }
    }
    sum.iter_mut().for_each(|s| *s = F::from_f64(1.0) / *s);
    for row in rows {
        row.iter_mut().zip(&sum).for_each(|(v, s)| *v = *v * *s);
    }
}

/// Gradients of a weighted sum of y and ln dy/dx with respect to x and to the bin.
struct PieceGrad<F> {
    x: F,
    x0: F,
    w: F,
    h: F,
    d0: F,
    d1: F,
}

impl<F: Float> Piece<F> {
    /// (y, ln dy/dx).
    #[inline(always)]
    fn forward(self, x: F) -> (F, F) {
        let (one, two) = (F::from_f64(1.0), F::from_f64(2.0));
        let Self { x0, w, y0, h, d0, d1 } = self;
        let (t, s) = ((x - x0) / w, h / w);
        let u = one - t;
        let q = t * u;
        let e = s + (d0 + d1 - two * s) * q;
        let n = d1 * t * t + two * s * q + d0 * u * u;
        (y0 + h * (s * t * t + d0 * q) / e, two * (s / e).ln() + n.ln())
    }

    #[inline(always)]
    fn inverse(self, y: F) -> F {
        let (zero, one, two) = (F::from_f64(0.0), F::from_f64(1.0), F::from_f64(2.0));
        let Self { x0, w, y0, h, d0, d1 } = self;
        let u = ((y - y0) / h).max(zero).min(one);
        let s = h / w;
        let b = d0 - (d0 + d1) * u;
        let (v, rest) = (two * s * u, two * s * (one - u));
        let root = (b * b + v * rest).sqrt();
        let t = if b < zero { one / (one + rest / (root - b)) } else { v / (b + v + root) };
        x0 + t * w
    }

    #[inline(always)]
    fn gradients(self, x: F, gy: F, gl: F) -> PieceGrad<F> {
        let (one, two) = (F::from_f64(1.0), F::from_f64(2.0));
        let Self { x0, w, h, d0, d1, .. } = self;
        let inv_w = one / w;
        let (t, s) = ((x - x0) * inv_w, h * inv_w);
        let u = one - t;
        let (q, tt, uu) = (t * u, t * t, u * u);
        let c = d0 + d1 - two * s;
        let inv_e = one / (s + c * q);
        let inv_n = one / (d1 * tt + two * s * q + d0 * uu);
        let r = (s * tt + d0 * q) * inv_e;
        let slope = u - t;
        let gr = gy * h * inv_e;
        let ge = gr * r + two * gl * inv_e;
        let gn = gl * inv_n;
        // Of the numerator s t² + d₀ q: gr; of e: −ge; of n: gn.
        let gt = gr * (two * s * t + d0 * slope) - ge * c * slope + gn * two * (d1 * t + s * slope - d0 * u);
        let gs = gr * tt - ge * (one - two * q) + two * (gl / s + gn * q);
        let gx = gt * inv_w;
        PieceGrad {
            x: gx,
            x0: -gx,
            w: -(gx * t + gs * s * inv_w),
            h: gy * r + gs * inv_w,
            d0: gr * q - ge * q + gn * uu,
            d1: gn * tt - ge * q,
        }
    }
}

/// Runs `f` vectorised, with the usual number of bins as a constant so that the short loops unroll.
#[inline(always)]
fn with_bins<T: Float>(bins: usize, f: impl FnOnce(usize)) {
    simd::vectorize_for::<T, _>(
        #[inline(always)]
        || if bins == 8 { f(8) } else { f(bins) },
    )
}

/// y (B, ...) and log |det dy/dx| (B,) in nats: x (B, ...), params (B, ..., 3K − 1).
///
/// # Panics
/// When shapes, dtypes or the settings do not fit.
#[track_caller]
pub fn rq_spline(x: &Tensor, params: &Tensor, spline: Spline) -> (Tensor, Tensor) {
    spline.check("rq_spline", x, params);
    if autograd::in_higher_order() {
        return composite(x, params, spline);
    }
    if let Some(gpu) = cuda::on("rq_spline", &[x, params]) {
        return launch(gpu, x, params, spline);
    }
    if let Some([wide, params]) = cast::widened([x, params]) {
        let (y, logdet) = rq_spline(&wide, &params, spline);
        return (cast::cast(&y, x.dtype()), cast::cast(&logdet, x.dtype()));
    }
    let (y, logdet) = with_arithmetic!(x.dtype(), T => forward::<T>(x, params, spline));
    let (xs, ps) = (x.detach(), params.detach());
    let [y, logdet] = record(Recipe::fused("rq_spline"), &[x, params], [y, logdet], move |back| {
        let (gy, gl) = (back.grad(0), back.grad(1));
        let [gx, gp] = with_arithmetic!(xs.dtype(), T => backward::<T>(&xs, &ps, &gy, &gl, spline));
        vec![Some(gx), Some(gp)]
    });
    (y, logdet)
}

/// As `Sizes` in kernels/rq_spline.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Sizes {
    examples: i32,
    each: i32,
    bins: i32,
    bound: f32,
    per_block: i32,
}

impl Spline {
    /// Threads for as many parameters as shared memory holds; large examples of small batches are split.
    fn sizes(self, x: &Tensor) -> (Struct<Sizes>, Grid) {
        let b = x.shape()[0];
        let each = x.len() / b.max(1);
        let row = 4 * ((self.params() | 1) + 1);
        let threads = [128, 64].into_iter().find(|t| t * row <= 96 << 10).unwrap_or(32);
        let per_block = (threads / each.max(1)).max(1);
        let splits = if b < 256 { (each / (2 * threads)).clamp(1, 64) } else { 1 };
        let blocks = [b.div_ceil(per_block) as u32, splits as u32, 1];
        let grid = Grid { blocks, threads: [threads as u32, 1, 1], shared: (threads * row) as u32 };
        let [examples, each, bins, per_block] = [b, each, self.bins, per_block].map(|n| n as i32);
        (Struct(Sizes { examples, each, bins, bound: self.bound as f32, per_block }), grid)
    }
}

fn launch(gpu: Gpu, x: &Tensor, params: &Tensor, spline: Spline) -> (Tensor, Tensor) {
    let (sizes, grid) = spline.sizes(x);
    let (b, splits, dtype) = (x.shape()[0], grid.blocks[1] as usize, x.dtype());
    let (y, logdet) = (gpu.empty(x.shape(), dtype), gpu.empty([b], dtype));
    let partial = gpu.empty([if splits > 1 { b * splits } else { 1 }], DType::F32);
    gpu.launch(FORWARD.of(dtype), grid, &[&y, &logdet, &partial, x, params, &sizes]);
    if splits > 1 {
        let (partial, splits) = (partial.finish(), splits as i32);
        gpu.launch(LOGDET.of(dtype), Grid::flat(b), &[&logdet, &partial, &(b as i32), &splits]);
    }
    let (xs, ps) = (x.detach(), params.detach());
    let outputs = [y.finish(), logdet.finish()];
    let [y, logdet] = record(Recipe::fused("rq_spline"), &[x, params], outputs, move |back| {
        let (dx, dp) = (gpu.empty(xs.shape(), dtype), gpu.empty(ps.shape(), dtype));
        let (gy, gl) = (back.grad(0), back.grad(1));
        gpu.launch(BACKWARD.of(dtype), grid, &[&dx, &dp, &gy, &gl, &xs, &ps, &sizes]);
        vec![Some(dx.finish()), Some(dp.finish())]
    });
    (y, logdet)
}

/// x such that [`rq_spline`] of it is y, for the same params.
///
/// # Panics
/// When shapes, dtypes or the settings do not fit.
#[track_caller]
pub fn inverse(y: &Tensor, params: &Tensor, spline: Spline) -> Tensor {
    spline.check("rq_spline inverse", y, params);
    if autograd::is_recording(&[y, params]) {
        return composite_inverse(y, params, spline);
    }
    if let Some(gpu) = cuda::on("rq_spline inverse", &[y, params]) {
        let (sizes, grid) = spline.sizes(y);
        let x = gpu.empty(y.shape(), y.dtype());
        gpu.launch(INVERSE.of(y.dtype()), grid, &[&x, y, params, &sizes]);
        return x.finish();
    }
    if let Some([wide, params]) = cast::widened([y, params]) {
        return cast::cast(&inverse(&wide, &params, spline), y.dtype());
    }
    with_arithmetic!(y.dtype(), T => {
        let (ys, ps, p) = (y.as_slice::<T>(), params.as_slice::<T>(), spline.params());
        let mut out = NewTensor::<T>::new(y.shape());
        let size = grain(p);
        par::chunks_mut(out.as_mut(), size, |task, out| {
            let (ys, ps) = (&ys[task * size..][..out.len()], &ps[task * size * p..]);
            let mut block = Block::<T>::new(spline);
            with_bins::<T>(spline.bins, #[inline(always)] |bins| {
                let bound = T::from_f64(spline.bound);
                for ((out, ys), ps) in out.chunks_mut(LANES).zip(ys.chunks(LANES)).zip(ps.chunks(LANES * p)) {
                    block.read(ys, ps, 1, bins);
                    let mut x = block.at;
                    for lane in 0..LANES {
                        x[lane] = block.piece(lane, bins).inverse(block.at[lane]);
                    }
                    for ((out, y), x) in out.iter_mut().zip(ys).zip(&x) {
                        *out = if *y > -bound && *y < bound { *x } else { *y };
                    }
                }
            });
        });
        out.finish()
    })
}

/// Numbers per task, whole blocks.
fn grain(p: usize) -> usize {
    (par::GRAIN / p).next_multiple_of(LANES)
}

fn forward<T: Float>(x: &Tensor, params: &Tensor, spline: Spline) -> (Tensor, Tensor) {
    let (xs, ps, p) = (x.as_slice::<T>(), params.as_slice::<T>(), spline.params());
    let b = x.shape()[0];
    let n = x.len() / b.max(1);
    let mut y = NewTensor::<T>::new(x.shape());
    let mut logdet = NewTensor::<T>::zeroed([b]);
    let per = (grain(p) / n.max(1)).max(1);
    par::chunks_mut2(y.as_mut(), per * n, logdet.as_mut(), per, |task, y, logdet| {
        let (xs, ps) = (&xs[task * per * n..][..y.len()], &ps[task * per * n * p..]);
        let mut block = Block::<T>::new(spline);
        let mut logs = vec![T::from_f64(0.0); y.len()];
        with_bins::<T>(
            spline.bins,
            #[inline(always)]
            |bins| {
                let bound = T::from_f64(spline.bound);
                let outs = y.chunks_mut(LANES).zip(logs.chunks_mut(LANES));
                for (((y, logs), xs), ps) in outs.zip(xs.chunks(LANES)).zip(ps.chunks(LANES * p)) {
                    block.read(xs, ps, 0, bins);
                    let (mut ys, mut ls) = (block.at, block.at);
                    for lane in 0..LANES {
                        (ys[lane], ls[lane]) = block.piece(lane, bins).forward(block.at[lane]);
                    }
                    for (i, x) in xs.iter().enumerate() {
                        let inside = *x > -bound && *x < bound;
                        y[i] = if inside { ys[i] } else { *x };
                        logs[i] = if inside { ls[i] } else { T::from_f64(0.0) };
                    }
                }
                for (total, logs) in logdet.iter_mut().zip(logs.chunks_exact(n)) {
                    *total = <T as Plain>::from_f64(logs.iter().map(|l| l.to_f64()).sum());
                }
            },
        );
    });
    (y.finish(), logdet.finish())
}

fn backward<T: Float>(x: &Tensor, params: &Tensor, gy: &Tensor, gl: &Tensor, spline: Spline) -> [Tensor; 2] {
    let (xs, ps, p) = (x.as_slice::<T>(), params.as_slice::<T>(), spline.params());
    let (gs, ls) = (gy.as_slice::<T>(), gl.as_slice::<T>());
    let n = x.len() / x.shape()[0].max(1);
    let mut gx = NewTensor::<T>::new(x.shape());
    let mut gp = NewTensor::<T>::new(params.shape());
    let size = grain(p);
    par::chunks_mut2(gx.as_mut(), size, gp.as_mut(), size * p, |task, gx, gp| {
        let first = task * size;
        let (xs, gs, ps) = (&xs[first..][..gx.len()], &gs[first..][..gx.len()], &ps[first * p..]);
        let mut block = Block::<T>::new(spline);
        with_bins::<T>(
            spline.bins,
            #[inline(always)]
            |bins| {
                let blocks = gx.chunks_mut(LANES).zip(gp.chunks_mut(LANES * p)).enumerate();
                for (i, (gx, gp)) in blocks {
                    let at = i * LANES;
                    let count = gx.len();
                    let zero = [T::from_f64(0.0); LANES];
                    let (mut x, mut gy, mut gl) = (zero, zero, zero);
                    for lane in 0..count {
                        x[lane] = xs[at + lane];
                        gy[lane] = gs[at + lane];
                        gl[lane] = ls[(first + at + lane) / n];
                    }
                    block.read(&xs[at..][..count], &ps[at * p..], 0, bins);
                    let g = block.pull(&x, &gy, &gl, bins);
                    gx.copy_from_slice(&g[..count]);
                    for (lane, out) in gp.chunks_exact_mut(p).enumerate() {
                        out.iter_mut().zip(&block.rows).for_each(|(o, row)| *o = row[lane]);
                    }
                }
            },
        );
    });
    [gx.finish(), gp.finish()]
}

#[cfg(test)]
mod tests;
