//! Log-probabilities over the last axis: logsumexp, log_softmax and categorical cross entropy.
//!
//! - logsumexp: (..., K) to (...), ln Σ_k e^{x_k};
//! - log_softmax: (..., K) to (..., K), x_k − logsumexp(x);
//! - cross_entropy: logits (..., K) and targets (...) to (...) nats, logsumexp(x) − x_target.
//!
//! Rows are shifted by their maximum m (Blanchard, Higham & Higham 2021), so finite logits give finite results and
//! a logit of −∞ is an impossible category. A row is read twice, in cache, and its m and ln Σ e^{x − m} are kept
//! apart: their sum would lose the digits of the second when logits are large. The gradient of cross entropy,
//! g (softmax(x) − onehot), is written in one pass from the logits, without stored probabilities. 4 K bytes and
//! about 20 K flops per row, forward; twice the bytes backward.

use super::{Case, OpInfo, binary, cast::cast, index, normal, reduce, shape, unary};
use crate::autograd::{self, Recipe, record};
use crate::cpu::{par, simd};
use crate::cuda::{self, Gpu, Grid, Kernels, Optional};
use crate::tensor::{DType, Float, NewTensor, Plain, Shape, Tensor, with_arithmetic, with_plain};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "softmax",
    family: "fused",
    summary: "logsumexp, log_softmax and cross entropy over the last axis",
    cases,
};

const FORWARD: Kernels =
    Kernels::new("softmax", ["softmax_forward_f32", "softmax_forward_bf16", "softmax_forward_f16"]);
const BACKWARD: Kernels =
    Kernels::new("softmax", ["softmax_backward_f32", "softmax_backward_bf16", "softmax_backward_f16"]);

/// In the order of `Mode` in `kernels/softmax.cu`.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    LogSumExp,
    LogSoftmax,
    CrossEntropy,
}

/// All three on a device, with their gradient; `targets` for cross entropy.
fn launch(gpu: Gpu, op: &'static str, mode: Mode, x: &Tensor, targets: Option<&Tensor>) -> Tensor {
    let (lead, k) = split_last(op, x);
    let y = gpu.empty(if mode == Mode::LogSoftmax { Shape::new(x.shape()) } else { lead }, x.dtype());
    let levels = gpu.empty([lead.len(), 2], DType::F32);
    let targets = targets.map(|t| cast(t, DType::I32));
    let grid = Grid::new(lead.len(), k.next_multiple_of(32).min(256) as u32);
    let (width, code) = (k as i32, mode as i32);
    let at = Optional(targets.as_ref(), DType::I32);
    gpu.launch(FORWARD.of(x.dtype()), grid, &[&y, &levels, x, &at, &width, &code]);
    let (saved, levels) = (x.detach(), levels.finish());
    let [y] = record(Recipe::fused(op), &[x], [y.finish()], move |b| {
        let dx = gpu.empty(saved.shape(), saved.dtype());
        let at = Optional(targets.as_ref(), DType::I32);
        let args: &[&dyn cuda::Arg] = &[&dx, &saved, &levels, &b.grad(0), &at, &width, &code];
        gpu.launch(BACKWARD.of(saved.dtype()), grid, args);
        vec![Some(dx.finish())]
    });
    y
}

const LANES: usize = 16;

/// The maximum of a row and ln Σ e^{x − maximum}: logsumexp is their sum.
#[derive(Clone, Copy)]
pub(crate) struct Level<A> {
    pub(crate) top: A,
    pub(crate) log_sum: A,
}

impl<A: Float> Level<A> {
    /// The log-probability of a logit of this row.
    #[inline(always)]
    pub(crate) fn log_p(self, x: A) -> A {
        (x - self.top) - self.log_sum
    }

    /// The level of one row, its sums in 16 interleaved lanes.
    #[inline(always)]
    pub(crate) fn of(row: &[A]) -> Self {
        let lowest = A::from_f64(f32::MIN as f64);
        let mut top = [lowest; LANES];
        let (chunks, rest) = row.as_chunks::<LANES>();
        for c in chunks {
            for (t, x) in top.iter_mut().zip(c) {
                *t = t.max(*x);
            }
        }
        for (t, x) in top.iter_mut().zip(rest) {
            *t = t.max(*x);
        }
        let top = top.into_iter().fold(lowest, Float::max);
        let mut sum = [A::from_f64(0.0); LANES];
        for c in chunks {
            for (s, x) in sum.iter_mut().zip(c) {
                *s += (*x - top).exp();
            }
        }
        for (s, x) in sum.iter_mut().zip(rest) {
            *s += (*x - top).exp();
        }
        Self { top, log_sum: sum.into_iter().sum::<A>().ln() }
    }
}

#[track_caller]
fn split_last(op: &str, x: &Tensor) -> (Shape, usize) {
    match x.shape().split_last() {
        Some((&k, lead)) if k > 0 => (Shape::new(lead), k),
        _ => panic!("{op}: expected (..., K) with K > 0, got {:?}", x.shape()),
    }
}

/// Rows per parallel chunk.
fn rows_per_chunk(k: usize) -> usize {
    (par::GRAIN / 4 / k).max(1)
}

/// The levels of all rows.
fn levels<T: Float>(x: &Tensor, k: usize) -> Vec<Level<T>> {
    let xs = x.as_slice::<T>();
    let zero = T::from_f64(0.0);
    let mut out = vec![Level { top: zero, log_sum: zero }; xs.len() / k];
    let rows = rows_per_chunk(k);
    par::chunks_mut(&mut out, rows, |c, out| {
        simd::vectorize_for::<T, _>(
            #[inline(always)]
            || {
                for (r, y) in out.iter_mut().enumerate() {
                    *y = Level::of(&xs[(c * rows + r) * k..][..k]);
                }
            },
        )
    });
    out
}

/// Writes `f(row, ln p_i)` over each row.
fn map_rows<T: Float>(
    x: &Tensor,
    k: usize,
    levels: &[Level<T>],
    f: impl Fn(usize, T) -> T + Sync + Send,
) -> Tensor {
    let xs = x.as_slice::<T>();
    let mut out = NewTensor::<T>::new(x.shape());
    let rows = rows_per_chunk(k);
    par::chunks_mut(out.as_mut(), rows * k, |c, out| {
        simd::vectorize_for::<T, _>(
            #[inline(always)]
            || {
                for (r, out) in out.chunks_exact_mut(k).enumerate() {
                    let row = c * rows + r;
                    for (y, x) in out.iter_mut().zip(&xs[row * k..][..k]) {
                        *y = f(row, levels[row].log_p(*x));
                    }
                }
            },
        )
    });
    out.finish()
}

/// ln Σ_k e^{x_k} over the last axis, which is dropped.
///
/// # Panics
/// When `x` has no axis or an empty last one.
#[track_caller]
pub fn logsumexp(x: &Tensor) -> Tensor {
    let (lead, k) = split_last("logsumexp", x);
    if autograd::in_higher_order() {
        return composite_logsumexp(x);
    }
    if let Some(gpu) = x.gpu() {
        return launch(gpu, "logsumexp", Mode::LogSumExp, x, None);
    }
    if let DType::BF16 | DType::F16 = x.dtype() {
        return cast(&logsumexp(&cast(x, DType::F32)), x.dtype());
    }
    with_arithmetic!(x.dtype(), T => {
        let levels = levels::<T>(x, k);
        let y = Tensor::from_fn(lead, |r| levels[r].top + levels[r].log_sum);
        let saved = x.detach();
        let [y] = record(Recipe::fused("logsumexp"), &[x], [y], move |b| {
            let g = b.grad(0);
            let g = g.as_slice::<T>();
            vec![Some(map_rows::<T>(&saved, k, &levels, #[inline(always)] |r, z| g[r] * Float::exp(z)))]
        });
        y
    })
}

/// x_k − logsumexp(x) over the last axis.
///
/// # Panics
/// When `x` has no axis or an empty last one.
#[track_caller]
pub fn log_softmax(x: &Tensor) -> Tensor {
    let (_, k) = split_last("log_softmax", x);
    if autograd::in_higher_order() {
        return composite_log_softmax(x);
    }
    if let Some(gpu) = x.gpu() {
        return launch(gpu, "log_softmax", Mode::LogSoftmax, x, None);
    }
    if let DType::BF16 | DType::F16 = x.dtype() {
        return cast(&log_softmax(&cast(x, DType::F32)), x.dtype());
    }
    with_arithmetic!(x.dtype(), T => {
        let levels = levels::<T>(x, k);
        let y = map_rows::<T>(x, k, &levels, #[inline(always)] |_, z| z);
        let saved = x.detach();
        let [y] = record(Recipe::fused("log_softmax"), &[x], [y], move |b| {
            vec![Some(log_softmax_backward::<T>(&saved, &levels, &b.grad(0), k))]
        });
        y
    })
}

/// g − softmax(x) Σ g, row by row.
fn log_softmax_backward<T: Float>(x: &Tensor, levels: &[Level<T>], g: &Tensor, k: usize) -> Tensor {
    let (xs, gs) = (x.as_slice::<T>(), g.as_slice::<T>());
    let mut out = NewTensor::<T>::new(x.shape());
    let rows = rows_per_chunk(k);
    par::chunks_mut(out.as_mut(), rows * k, |c, out| {
        simd::vectorize_for::<T, _>(
            #[inline(always)]
            || {
                for (r, out) in out.chunks_exact_mut(k).enumerate() {
                    let row = c * rows + r;
                    let (x, g) = (&xs[row * k..][..k], &gs[row * k..][..k]);
                    let total = reduce::sum_block(g);
                    for ((y, x), g) in out.iter_mut().zip(x).zip(g) {
                        *y = *g - levels[row].log_p(*x).exp() * total;
                    }
                }
            },
        )
    });
    out.finish()
}

/// Nats of each target category: logsumexp(logits) − logits\[target].
///
/// `logits` (..., K), `targets` (...) u8 or i32.
///
/// # Panics
/// When the leading shapes differ, the targets are not integers, or one is outside 0..K.
#[track_caller]
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Tensor {
    let (lead, k) = split_last("cross_entropy", logits);
    assert!(
        targets.shape() == lead.as_slice() && !targets.dtype().is_float(),
        "cross_entropy: logits {:?} with {:?} targets of shape {:?}",
        logits.shape(),
        targets.dtype(),
        targets.shape()
    );
    if autograd::in_higher_order() {
        return composite_cross_entropy(logits, targets);
    }
    if let Some(gpu) = cuda::on("cross_entropy", &[logits, targets]) {
        return launch(gpu, "cross_entropy", Mode::CrossEntropy, logits, Some(targets));
    }
    if let DType::BF16 | DType::F16 = logits.dtype() {
        return cast(&cross_entropy(&cast(logits, DType::F32), targets), logits.dtype());
    }
    let at = categories("cross_entropy", targets, k);
    with_arithmetic!(logits.dtype(), T => {
        let levels = levels::<T>(logits, k);
        let xs = logits.as_slice::<T>();
        let y = Tensor::from_fn(lead, |r| -levels[r].log_p(xs[r * k + at[r] as usize]));
        let saved = logits.detach();
        let [y] = record(Recipe::fused("cross_entropy"), &[logits], [y], move |b| {
            vec![Some(cross_entropy_backward::<T>(&saved, &levels, &at, &b.grad(0), k))]
        });
        y
    })
}

/// The targets as indices, all below `k`.
#[track_caller]
pub(crate) fn categories(op: &str, targets: &Tensor, k: usize) -> Vec<u32> {
    let at: Vec<u32> = with_plain!(targets.dtype(), T => {
        targets.as_slice::<T>().iter().map(|t| t.to_f64()).map(|t| if t < 0.0 { u32::MAX } else { t as u32 }).collect()
    });
    if let Some(row) = at.iter().position(|&t| t as usize >= k) {
        let found = targets.to_f64_vec()[row];
        panic!("{op}: target {found} of row {row} is outside the {k} categories");
    }
    at
}

fn cross_entropy_backward<T: Float>(
    x: &Tensor,
    levels: &[Level<T>],
    at: &[u32],
    g: &Tensor,
    k: usize,
) -> Tensor {
    let (xs, g) = (x.as_slice::<T>(), g.as_slice::<T>());
    let mut out = NewTensor::<T>::new(x.shape());
    let rows = rows_per_chunk(k);
    par::chunks_mut(out.as_mut(), rows * k, |c, out| {
        let first = c * rows;
        simd::vectorize_for::<T, _>(
            #[inline(always)]
            || {
                for (r, out) in out.chunks_exact_mut(k).enumerate() {
                    let row = first + r;
                    let x = &xs[row * k..][..k];
                    one_row_gradient(x, levels[row], at[row] as usize, g[row], out);
                }
            },
        )
    });
    out.finish()
}

/// g (softmax(x) − onehot(target)).
#[inline(always)]
pub(crate) fn one_row_gradient<T: Float>(x: &[T], level: Level<T>, target: usize, g: T, out: &mut [T]) {
    for (y, x) in out.iter_mut().zip(x) {
        *y = g * level.log_p(*x).exp();
    }
    out[target] = g * (level.log_p(x[target]).exp() - T::from_f64(1.0));
}

/// [`logsumexp`] in primitives.
pub fn composite_logsumexp(x: &Tensor) -> Tensor {
    let (lead, _) = split_last("logsumexp", x);
    let top = reduce::max(x, &[x.rank() - 1]).detach();
    let mut kept = lead.as_slice().to_vec();
    kept.push(1);
    let shifted = binary::sub(x, &shape::reshape(&top, kept));
    binary::add(&unary::ln(&reduce::sum(&unary::exp(&shifted), &[x.rank() - 1])), &top)
}

/// [`log_softmax`] in primitives.
pub fn composite_log_softmax(x: &Tensor) -> Tensor {
    let (lead, _) = split_last("log_softmax", x);
    let mut kept = lead.as_slice().to_vec();
    kept.push(1);
    binary::sub(x, &shape::reshape(&composite_logsumexp(x), kept))
}

/// [`cross_entropy`] in primitives.
pub fn composite_cross_entropy(logits: &Tensor, targets: &Tensor) -> Tensor {
    binary::sub(&composite_logsumexp(logits), &index::pick(logits, targets))
}

fn cases() -> Vec<Case> {
    type F = fn(&Tensor) -> Tensor;
    let mut cases = Vec::new();
    let pairs: [(&str, F, F); 2] =
        [("logsumexp", logsumexp, composite_logsumexp), ("log_softmax", log_softmax, composite_log_softmax)];
    for dims in [&[1][..], &[3, 1], &[5], &[2, 3, 17], &[70, 256]] {
        for (name, f, composite) in pairs {
            let case = Case::new(format!("{name} {dims:?}"), vec![normal(1, dims)], move |x| vec![f(&x[0])]);
            cases.push(case.composite(move |x| vec![composite(&x[0])]));
        }
        let (&k, lead) = dims.split_last().expect("a last axis");
        let targets = Tensor::from_fn(lead, |i| (i * 7 % k) as i32);
        cases.push(entropy(format!("cross_entropy {dims:?}"), normal(2, dims), targets));
    }
    let far = Tensor::from_slice(&[1e4, -1e4, 0.0, -3e4, -3e4, -3e4, 2e4, 2e4, 1.0], [3, 3]);
    let targets = Tensor::from_slice(&[0u8, 2, 1], [3]);
    cases.push(entropy("cross_entropy far apart".into(), far.clone(), targets).order(1));
    cases.push(
        Case::new("log_softmax far apart", vec![far], |x| vec![log_softmax(&x[0])])
            .composite(|x| vec![composite_log_softmax(&x[0])])
            .order(1),
    );
    let rows = 32 * 784;
    for ((name, f, _), bytes) in pairs.into_iter().zip([4, 8]) {
        let large =
            Case::new(format!("{name} large"), vec![normal(4, &[rows, 256])], move |x| vec![f(&x[0])]);
        let n = rows * 256;
        cases.push(large.order(0).bench(bytes * n, 20 * n).backward((8 + bytes / 2) * n, 20 * n));
    }
    let targets = Tensor::from_fn([rows], |i| (i * 31 % 256) as u8);
    cases.push(
        entropy("cross_entropy of 32 images, 256 ways".into(), normal(3, &[rows, 256]), targets)
            .order(0)
            .bench(4 * rows * 256, 20 * rows * 256)
            .backward(8 * rows * 256, 20 * rows * 256),
    );
    cases
}

fn entropy(name: String, logits: Tensor, targets: Tensor) -> Case {
    Case::new(name, vec![logits, targets], move |x| vec![cross_entropy(&x[0], &x[1])])
        .composite(move |x| vec![composite_cross_entropy(&x[0], &x[1])])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_categories_count_nothing() {
        let x = Tensor::from_slice(&[0.0f32, f32::NEG_INFINITY, 0.0], [1, 3]).requires_grad();
        let y = cross_entropy(&x, &Tensor::from_slice(&[2u8], [1]));
        assert!((y.item() - 2f64.ln()).abs() < 1e-6);
        let g = autograd::backward(y.sum_all(), &[&x]);
        assert_eq!(g[0].as_slice::<f32>()[1], 0.0);
    }

    #[test]
    fn equal_logits_give_the_entropy_of_the_uniform_distribution() {
        let y = cross_entropy(&Tensor::zeros([4, 256], DType::F32), &Tensor::zeros([4], DType::I32));
        assert!(y.to_f64_vec().iter().all(|y| (y - 256f64.ln()).abs() < 1e-6));
    }

    #[test]
    #[should_panic(expected = "cross_entropy: target 3 of row 1 is outside the 3 categories")]
    fn a_target_that_does_not_exist_is_named() {
        cross_entropy(&Tensor::zeros([2, 3], DType::F32), &Tensor::from_slice(&[0i32, 3], [2]));
    }
}
