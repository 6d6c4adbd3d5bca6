//! Coupling layers: one half of the channels is scaled and shifted by a function of the other half.
//!
//! x (B, ..., C) = (a, b), a the first ⌈C/2⌉ channels, b the other K = ⌊C/2⌋. A network of a gives
//! h (B, ..., 2 K) = (s, t), or h (B, ..., K) = t for the additive kind:
//!   y = (a, (b + t) e^ℓ(s)),   log |det| of an example = Σ ℓ(s) over its positions and channels, in nats,
//! ℓ(s) = ln sigmoid(s + 2) (Kingma & Dhariwal 2018), s (Dinh et al. 2017), 2 tanh(s / 2) (bounded: the scale
//! stays in e^±2), or 0 (additive, Dinh et al. 2015). The sum is taken in the same pass, in a fixed order.
//!
//! Forward reads x and h and writes y: 12 bytes per element at f32, about 25 flops per scaled element. Backward
//! keeps y, which the next layer keeps anyway, and h: db = dt = g e^ℓ, ds = (g y_b + g_logdet) ℓ'(s).

mod definition;

use super::{OpInfo, cast, unary};
use crate::autograd::{self, Recipe, record};
use crate::cpu::{par, simd};
use crate::cuda::{self, Gpu, Grid, Kernels, Struct};
use crate::tensor::{DType, Float, NewTensor, Plain, Tensor, with_arithmetic, with_plain};
use definition::{cases, composite, composite_inverse};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "coupling",
    family: "fused",
    summary: "affine (sigmoid, exp, tanh-bounded) and additive coupling with log-determinant, and its inverse",
    cases,
};

const FORWARD: Kernels =
    Kernels::new("coupling", ["coupling_forward_f32", "coupling_forward_bf16", "coupling_forward_f16"]);
const INVERSE: Kernels =
    Kernels::new("coupling", ["coupling_inverse_f32", "coupling_inverse_bf16", "coupling_inverse_f16"]);
const BACKWARD: Kernels =
    Kernels::new("coupling", ["coupling_backward_f32", "coupling_backward_bf16", "coupling_backward_f16"]);
const LOGDET: Kernels =
    Kernels::new("coupling", ["coupling_logdet_f32", "coupling_logdet_bf16", "coupling_logdet_f16"]);
const RESIZE: Kernels =
    Kernels::new("coupling", ["coupling_resize_f32", "coupling_resize_bf16", "coupling_resize_f16"]);

/// How the half b is scaled: the function ℓ(s) of the log scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Coupling {
    /// ℓ = ln sigmoid(s + 2): starts near 1, never grows volume.
    Sigmoid,
    /// ℓ = s.
    Exp,
    /// ℓ = 2 tanh(s / 2).
    Tanh,
    /// ℓ = 0: shifts only, and the network gives t alone.
    Additive,
}

impl Coupling {
    /// Channels of the network's output for x with `channels`.
    pub fn outputs(self, channels: usize) -> usize {
        self.parameters() * (channels / 2)
    }

    fn parameters(self) -> usize {
        if self == Coupling::Additive { 1 } else { 2 }
    }

    /// ℓ(s), in primitives.
    fn log_scale(self, s: &Tensor) -> Tensor {
        match self {
            Coupling::Sigmoid => unary::neg(&unary::softplus(&unary::affine(s, -1.0, -2.0))),
            Coupling::Exp | Coupling::Additive => s.clone(),
            Coupling::Tanh => unary::affine(&unary::tanh(&unary::affine(s, 0.5, 0.0)), 2.0, 0.0),
        }
    }

    /// e^ℓ(s) into `scale` and ℓ(s) in place of s. A loop for each: together they are too long to become vectors.
    #[inline(always)]
    fn scales<A: Float>(self, s: &mut [A], scale: &mut [A]) {
        let (half, two) = (A::from_f64(0.5), A::from_f64(2.0));
        match self {
            Coupling::Sigmoid => {
                zip(
                    s,
                    scale,
                    #[inline(always)]
                    |s| (s + two).sigmoid(),
                );
                each(
                    s,
                    #[inline(always)]
                    |s| -(-(s + two)).softplus(),
                );
            }
            Coupling::Exp => zip(
                s,
                scale,
                #[inline(always)]
                |s| s.exp(),
            ),
            Coupling::Tanh => {
                each(
                    s,
                    #[inline(always)]
                    |s| two * (s * half).tanh(),
                );
                zip(
                    s,
                    scale,
                    #[inline(always)]
                    |log| log.exp(),
                );
            }
            Coupling::Additive => scale.fill(A::from_f64(1.0)),
        }
    }

    /// e^ℓ(s) into `scale` and ℓ'(s) in place of s.
    #[inline(always)]
    fn slopes<A: Float>(self, s: &mut [A], scale: &mut [A]) {
        let (half, one, two) = (A::from_f64(0.5), A::from_f64(1.0), A::from_f64(2.0));
        match self {
            Coupling::Sigmoid => {
                zip(
                    s,
                    scale,
                    #[inline(always)]
                    |s| (s + two).sigmoid(),
                );
                each(
                    s,
                    #[inline(always)]
                    |s| (-(s + two)).sigmoid(),
                );
            }
            Coupling::Exp => {
                zip(
                    s,
                    scale,
                    #[inline(always)]
                    |s| s.exp(),
                );
                s.fill(one);
            }
            Coupling::Tanh => {
                each(
                    s,
                    #[inline(always)]
                    |s| (s * half).tanh(),
                );
                zip(
                    s,
                    scale,
                    #[inline(always)]
                    |t| (two * t).exp(),
                );
                each(
                    s,
                    #[inline(always)]
                    |t| one - t * t,
                );
            }
            Coupling::Additive => scale.fill(one),
        }
    }
}

/// s = f(s), inside a vectorised function.
#[inline(always)]
fn each<A: Float>(s: &mut [A], f: impl Fn(A) -> A) {
    for s in s {
        *s = f(*s);
    }
}

/// out = f(s), inside a vectorised function.
#[inline(always)]
fn zip<A: Float>(s: &[A], out: &mut [A], f: impl Fn(A) -> A) {
    for (s, out) in s.iter().zip(out) {
        *out = f(*s);
    }
}

/// Sizes of a call: examples, positions per example, channels of x, of b, of h.
#[derive(Clone, Copy)]
struct Dims {
    b: usize,
    p: usize,
    c: usize,
    k: usize,
    h: usize,
}

impl Dims {
    #[track_caller]
    fn new(op: &str, x: &Tensor, h: &Tensor, kind: Coupling) -> Self {
        let (&[b, .., c], true) = (x.shape(), x.rank() >= 2) else {
            panic!("{op}: expected x (B, ..., C), got {:?}", x.shape())
        };
        assert!(c >= 2, "{op}: x {:?} has no second half of the channels", x.shape());
        let mut want = x.shape().to_vec();
        want[x.rank() - 1] = kind.outputs(c);
        assert_eq!((h.shape(), h.dtype()), (&want[..], x.dtype()), "{op}: h for x {:?}", x.shape());
        Self { b, p: x.len() / (b * c).max(1), c, k: c / 2, h: kind.outputs(c) }
    }

    /// Examples per task.
    fn per_task(&self) -> usize {
        (par::GRAIN / 4 / (self.p * self.c).max(1)).max(1)
    }
}

/// As `Sizes` in kernels/coupling.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Sizes {
    examples: i32,
    positions: i32,
    channels: i32,
    kind: i32,
    vec: i32,
}

impl Dims {
    /// The widest vector that divides both halves, and lanes enough for an example; large examples of small batches
    /// are split.
    fn launch(&self, kind: Coupling, dtype: DType) -> (Sizes, Grid) {
        let fits = |v: &usize| {
            v * dtype.size() <= 16 && self.k.is_multiple_of(*v) && (self.c.is_multiple_of(2) || *v == 1)
        };
        let vec = [8, 4, 2].into_iter().find(fits).unwrap_or(1);
        let [examples, positions, channels, kind, width] =
            [self.b, self.p, self.c, kind as usize, vec].map(|n| n as i32);
        let units = self.p * self.k / vec;
        let (lanes, each) = match units {
            0..=64 => (8, 32),
            65..=1024 => (32, 8),
            _ => (256, 1),
        };
        let splits = if self.b < 256 { (units / 2048).clamp(1, 64) } else { 1 };
        let blocks = [self.b.div_ceil(each) as u32, splits as u32, 1];
        let grid = Grid { blocks, threads: [lanes, each as u32, 1], shared: 0 };
        (Sizes { examples, positions, channels, kind, vec: width }, grid)
    }
}

fn launch_forward(gpu: Gpu, x: &Tensor, h: &Tensor, kind: Coupling, d: Dims) -> (Tensor, Tensor) {
    let (sizes, grid) = d.launch(kind, x.dtype());
    let splits = grid.blocks[1] as usize;
    let (y, logdet) = (gpu.empty(x.shape(), x.dtype()), gpu.empty([d.b], x.dtype()));
    let partial = gpu.empty([if splits > 1 { d.b * splits } else { 1 }], DType::F32);
    gpu.launch(FORWARD.of(x.dtype()), grid, &[&y, &logdet, &partial, x, h, &Struct(sizes)]);
    if splits > 1 {
        let partial = partial.finish();
        let (b, splits) = (d.b as i32, splits as i32);
        gpu.launch(LOGDET.of(x.dtype()), Grid::flat(d.b), &[&logdet, &partial, &b, &splits]);
    }
    (y.finish(), logdet.finish())
}

fn launch_backward(gpu: Gpu, [g, gl, y, h]: [&Tensor; 4], kind: Coupling, d: Dims) -> Vec<Option<Tensor>> {
    let (sizes, grid) = d.launch(kind, y.dtype());
    let (dx, dh) = (gpu.empty(y.shape(), y.dtype()), gpu.empty(h.shape(), y.dtype()));
    gpu.launch(BACKWARD.of(y.dtype()), grid, &[&dx, &dh, g, gl, y, h, &Struct(sizes)]);
    vec![Some(dx.finish()), Some(dh.finish())]
}

/// y = (a, (b + t) e^ℓ(s)) and the log-determinant (B,): x (B, ..., C), h as [`Coupling::outputs`] says.
///
/// # Panics
/// When shapes or dtypes do not fit, or C < 2.
#[track_caller]
pub fn coupling(x: &Tensor, h: &Tensor, kind: Coupling) -> (Tensor, Tensor) {
    let d = Dims::new("coupling", x, h, kind);
    if autograd::in_higher_order() {
        return composite(x, h, kind);
    }
    let gpu = cuda::on("coupling", &[x, h]);
    if gpu.is_none()
        && let Some([wide, h]) = cast::widened([x, h])
    {
        let (y, logdet) = coupling(&wide, &h, kind);
        return (cast::cast(&y, x.dtype()), cast::cast(&logdet, x.dtype()));
    }
    let (y, logdet) = match gpu {
        Some(gpu) => launch_forward(gpu, x, h, kind, d),
        None => with_arithmetic!(x.dtype(), T => forward::<T>(x, h, kind, d)),
    };
    let params = h.detach();
    let recipe = Recipe::fused("coupling").keeping_outputs();
    let [y, logdet] = record(recipe, &[x, h], [y, logdet], move |back| {
        let (g, gl) = (back.grad(0), back.grad(1));
        match gpu {
            Some(gpu) => launch_backward(gpu, [&g, &gl, back.output(0), &params], kind, d),
            None => {
                with_arithmetic!(params.dtype(), T => backward::<T>(&g, &gl, back.output(0), &params, kind, d))
            }
        }
    });
    (y, logdet)
}

/// x = (a, y_b e^−ℓ(s) − t), the inverse of [`coupling`] for the same h (a is the same on both sides).
///
/// # Panics
/// When shapes or dtypes do not fit, or C < 2.
#[track_caller]
pub fn inverse(y: &Tensor, h: &Tensor, kind: Coupling) -> Tensor {
    let d = Dims::new("coupling inverse", y, h, kind);
    if autograd::is_recording(&[y, h]) {
        return composite_inverse(y, h, kind);
    }
    if let Some(gpu) = cuda::on("coupling inverse", &[y, h]) {
        let x = gpu.empty(y.shape(), y.dtype());
        let (sizes, grid) = d.launch(kind, y.dtype());
        gpu.launch(INVERSE.of(y.dtype()), grid, &[&x, y, h, &Struct(sizes)]);
        return x.finish();
    }
    if let Some([wide, h]) = cast::widened([y, h]) {
        return cast::cast(&inverse(&wide, &h, kind), y.dtype());
    }
    with_arithmetic!(y.dtype(), T => {
        let (ys, hs) = (y.as_slice::<T>(), h.as_slice::<T>());
        let mut out = NewTensor::<T>::new(y.shape());
        let size = d.per_task() * d.p;
        par::chunks_mut(out.as_mut(), size * d.c, |task, out| {
            let rows = out.len() / d.c;
            let (ys, hs) = (&ys[task * size * d.c..][..rows * d.c], &hs[task * size * d.h..][..rows * d.h]);
            with_sizes::<T>(d, #[inline(always)] |d| inverse_rows::<T>(ys, hs, out, kind, d));
        });
        out.finish()
    })
}

/// The half of x (B, ..., C) that the network sees: the first ⌈C/2⌉ channels. Differentiable to any order.
///
/// # Panics
/// When x has no channels.
#[track_caller]
pub fn kept_half(x: &Tensor) -> Tensor {
    let c = *x.shape().last().expect("kept_half: expected x (..., C), got a scalar");
    let y = resize_rows(x, c - c / 2);
    let [y] = record(Recipe::primitive("kept_half"), &[x], [y], move |back| {
        vec![Some(beside_zeros(&back.grad(0), c))]
    });
    y
}

/// The adjoint of [`kept_half`]: rows of `c` channels that end in zeros.
#[track_caller]
pub(crate) fn beside_zeros(a: &Tensor, c: usize) -> Tensor {
    let y = resize_rows(a, c);
    let [y] =
        record(Recipe::primitive("beside_zeros"), &[a], [y], |back| vec![Some(kept_half(&back.grad(0)))]);
    y
}

/// Rows cut to, or filled with zeros up to, `to` channels.
fn resize_rows(x: &Tensor, to: usize) -> Tensor {
    let from = x.shape()[x.rank() - 1];
    let mut shape = x.shape().to_vec();
    shape[x.rank() - 1] = to;
    if let Some(gpu) = x.gpu() {
        let y = gpu.empty(&shape[..], x.dtype());
        let n = shape.iter().product::<usize>();
        gpu.launch(RESIZE.of(x.dtype()), Grid::flat(n), &[&y, x, &(n as i64), &(from as i32), &(to as i32)]);
        return y.finish();
    }
    with_plain!(x.dtype(), T => {
        let xs = x.as_slice::<T>();
        let mut out = NewTensor::<T>::new(shape);
        let rows = (par::GRAIN / from.max(to)).max(1);
        par::chunks_mut(out.as_mut(), rows * to, |task, out| {
            let xs = &xs[task * rows * from..];
            match (from, to) {
                (4, 2) => resize(xs, out, 4, 2),
                (2, 4) => resize(xs, out, 2, 4),
                (8, 4) => resize(xs, out, 8, 4),
                (4, 8) => resize(xs, out, 4, 8),
                _ => resize(xs, out, from, to),
            }
        });
        out.finish()
    })
}

#[inline(always)]
fn resize<T: Plain>(xs: &[T], out: &mut [T], from: usize, to: usize) {
    let both = from.min(to);
    for (y, x) in out.chunks_exact_mut(to).zip(xs.chunks_exact(from)) {
        y[..both].copy_from_slice(&x[..both]);
        y[both..].fill(T::from_f64(0.0));
    }
}

/// Elements handled at a time: they stay in the first-level cache.
const BLOCK: usize = 256;

/// Runs `f` vectorised, with the commonest channel counts as constants so that the short loops unroll.
#[inline(always)]
fn with_sizes<T: Float>(d: Dims, f: impl FnOnce(Dims)) {
    simd::vectorize_for::<T, _>(
        #[inline(always)]
        || match (d.c, d.h) {
            (4, 4) => f(Dims { c: 4, k: 2, h: 4, ..d }),
            (8, 8) => f(Dims { c: 8, k: 4, h: 8, ..d }),
            (12, 12) => f(Dims { c: 12, k: 6, h: 12, ..d }),
            _ => f(d),
        },
    )
}

/// Rows per block and a block's scratch memory for two halves.
fn scratch<A: Float>(d: Dims) -> (usize, [Vec<A>; 2]) {
    let rows = (BLOCK / d.k).max(1);
    (rows, std::array::from_fn(|_| vec![A::from_f64(0.0); rows * d.k]))
}

/// Copies channels `from..from + k` of rows of `width` into `out`, row after row.
#[inline(always)]
fn gather<T: Float>(rows: &[T], width: usize, from: usize, k: usize, out: &mut [T]) {
    for (row, out) in rows.chunks_exact(width).zip(out.chunks_exact_mut(k)) {
        out.copy_from_slice(&row[from..from + k]);
    }
}

/// Σ in 16 interleaved partial sums.
#[inline(always)]
fn sum<A: Float>(values: &[A]) -> A {
    let mut lanes = [A::from_f64(0.0); 16];
    let (whole, rest) = values.as_chunks::<16>();
    for v in whole {
        lanes.iter_mut().zip(v).for_each(|(l, v)| *l += *v);
    }
    lanes.iter_mut().zip(rest).for_each(|(l, v)| *l += *v);
    lanes.into_iter().sum()
}

fn forward<T: Float>(x: &Tensor, h: &Tensor, kind: Coupling, d: Dims) -> (Tensor, Tensor) {
    let (xs, hs) = (x.as_slice::<T>(), h.as_slice::<T>());
    let mut y = NewTensor::<T>::new(x.shape());
    let mut logdet = NewTensor::<T>::new([d.b]);
    let per = d.per_task();
    let size = per * d.p;
    par::chunks_mut2(y.as_mut(), (size * d.c).max(1), logdet.as_mut(), per, |task, y, logdet| {
        let (xs, hs) = (&xs[task * size * d.c..][..y.len()], &hs[task * size * d.h..]);
        let (rows, mut scratch) = scratch(d);
        with_sizes::<T>(
            d,
            #[inline(always)]
            |d| {
                let examples = y.chunks_exact_mut(d.p * d.c).zip(xs.chunks_exact(d.p * d.c));
                for (((y, x), h), logdet) in examples.zip(hs.chunks_exact(d.p * d.h)).zip(logdet) {
                    let mut nats = 0.0;
                    let blocks = y.chunks_mut(rows * d.c).zip(x.chunks(rows * d.c));
                    for ((y, x), h) in blocks.zip(h.chunks(rows * d.h)) {
                        nats += forward_block::<T>(x, h, y, &mut scratch, kind, d);
                    }
                    *logdet = <T as Plain>::from_f64(nats);
                }
            },
        );
    });
    (y.finish(), logdet.finish())
}

/// One block of rows; returns its Σ ℓ.
#[inline(always)]
fn forward_block<T: Float>(
    x: &[T],
    h: &[T],
    y: &mut [T],
    [s, scale]: &mut [Vec<T>; 2],
    kind: Coupling,
    d: Dims,
) -> f64 {
    let n = x.len() / d.c * d.k;
    let (s, scale) = (&mut s[..n], &mut scale[..n]);
    gather(h, d.h, 0, d.k, s);
    kind.scales(s, scale);
    let rows = x.chunks_exact(d.c).zip(h.chunks_exact(d.h));
    for (((x, h), y), scale) in rows.zip(y.chunks_exact_mut(d.c)).zip(scale.chunks_exact(d.k)) {
        y[..d.c - d.k].copy_from_slice(&x[..d.c - d.k]);
        for j in 0..d.k {
            y[d.c - d.k + j] = (x[d.c - d.k + j] + h[d.h - d.k + j]) * scale[j];
        }
    }
    if kind == Coupling::Additive { 0.0 } else { sum(s).to_f64() }
}

#[inline(always)]
fn inverse_rows<T: Float>(ys: &[T], hs: &[T], out: &mut [T], kind: Coupling, d: Dims) {
    let (rows, [mut s, mut scale]) = scratch::<T>(d);
    let blocks = out.chunks_mut(rows * d.c).zip(ys.chunks(rows * d.c));
    for ((x, y), h) in blocks.zip(hs.chunks(rows * d.h)) {
        let n = y.len() / d.c * d.k;
        let (s, scale) = (&mut s[..n], &mut scale[..n]);
        gather(h, d.h, 0, d.k, s);
        kind.scales(s, scale);
        let rows = y.chunks_exact(d.c).zip(h.chunks_exact(d.h));
        for (((y, h), x), scale) in rows.zip(x.chunks_exact_mut(d.c)).zip(scale.chunks_exact(d.k)) {
            x[..d.c - d.k].copy_from_slice(&y[..d.c - d.k]);
            for j in 0..d.k {
                x[d.c - d.k + j] = y[d.c - d.k + j] / scale[j] - h[d.h - d.k + j];
            }
        }
    }
}

fn backward<T: Float>(
    g: &Tensor,
    gl: &Tensor,
    y: &Tensor,
    h: &Tensor,
    kind: Coupling,
    d: Dims,
) -> Vec<Option<Tensor>> {
    let (gs, ls, ys, hs) = (g.as_slice::<T>(), gl.as_slice::<T>(), y.as_slice::<T>(), h.as_slice::<T>());
    let mut dx = NewTensor::<T>::new(y.shape());
    let mut dh = NewTensor::<T>::new(h.shape());
    let per = d.per_task();
    let size = per * d.p;
    let (cx, ch) = ((size * d.c).max(1), (size * d.h).max(1));
    par::chunks_mut2(dx.as_mut(), cx, dh.as_mut(), ch, |task, dx, dh| {
        let (gs, ys) = (&gs[task * cx..][..dx.len()], &ys[task * cx..][..dx.len()]);
        let (hs, ls) = (&hs[task * ch..][..dh.len()], &ls[task * per..]);
        let (rows, mut scratch) = scratch(d);
        with_sizes::<T>(
            d,
            #[inline(always)]
            |d| {
                let (ex, eh) = (d.p * d.c, d.p * d.h);
                for (i, (dx, dh)) in dx.chunks_exact_mut(ex).zip(dh.chunks_exact_mut(eh)).enumerate() {
                    let (g, y, h) = (&gs[i * ex..][..ex], &ys[i * ex..][..ex], &hs[i * eh..][..eh]);
                    let blocks = dx.chunks_mut(rows * d.c).zip(dh.chunks_mut(rows * d.h));
                    let inputs = g.chunks(rows * d.c).zip(y.chunks(rows * d.c)).zip(h.chunks(rows * d.h));
                    for ((dx, dh), ((g, y), h)) in blocks.zip(inputs) {
                        backward_block::<T>([g, y, h], ls[i], dx, dh, &mut scratch, kind, d);
                    }
                }
            },
        );
    });
    vec![Some(dx.finish()), Some(dh.finish())]
}

#[inline(always)]
fn backward_block<T: Float>(
    [g, y, h]: [&[T]; 3],
    gl: T,
    dx: &mut [T],
    dh: &mut [T],
    [slope, scale]: &mut [Vec<T>; 2],
    kind: Coupling,
    d: Dims,
) {
    let n = g.len() / d.c * d.k;
    let (slope, scale) = (&mut slope[..n], &mut scale[..n]);
    gather(h, d.h, 0, d.k, slope);
    kind.slopes(slope, scale);
    let first = d.c - d.k;
    let rows = g.chunks_exact(d.c).zip(y.chunks_exact(d.c));
    let outs = dx.chunks_exact_mut(d.c).zip(dh.chunks_exact_mut(d.h));
    let factors = scale.chunks_exact(d.k).zip(slope.chunks_exact(d.k));
    for (((g, y), (dx, dh)), (scale, slope)) in rows.zip(outs).zip(factors) {
        dx[..first].copy_from_slice(&g[..first]);
        for j in 0..d.k {
            let g = g[first + j];
            let shift = g * scale[j];
            dx[first + j] = shift;
            if d.h > d.k {
                dh[j] = Float::mul_add(g, y[first + j], gl) * slope[j];
            }
            dh[d.h - d.k + j] = shift;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::normal;

    #[test]
    fn channel_order_is_scale_then_shift() {
        let x = Tensor::from_slice(&[1.0, 2.0, 3.0, 4.0], [1, 4]);
        let h = Tensor::from_slice(&[0.5, -1.0, 10.0, 20.0], [1, 4]);
        let (y, logdet) = coupling(&x, &h, Coupling::Exp);
        let want = [1.0, 2.0, 13.0 * 0.5f64.exp(), 24.0 * (-1f64).exp()];
        assert!(y.to_f64_vec().iter().zip(want).all(|(y, w)| (y - w).abs() < 1e-14));
        assert_eq!(logdet.item(), -0.5);
    }

    #[test]
    #[should_panic(expected = "coupling: h for x [2, 3, 4]")]
    fn the_network_must_fit() {
        coupling(&normal(1, &[2, 3, 4]), &normal(2, &[2, 3, 2]), Coupling::Sigmoid);
    }
}
