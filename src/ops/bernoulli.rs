//! Log-likelihood of independent Bernoulli values given logits, summed over each example.
//!
//! log p(x | l) = Σ_d x_d l_d − ln(1 + e^{l_d}) in nats: `logits` (R, ...), `x` (B, ...) in [0, 1], to (R,). R is a
//! multiple S of B: row r tells about observation ⌊r / S⌋, so that S samples share one copy of x.
//!
//! ln(1 + e^l) = max(l, 0) + ln(1 + e^{−|l|}), and the second terms of up to 64 elements are gathered as a product of
//! factors in (1, 2] before one logarithm is taken. 4 bytes and about 15 flops per element, one pass; the gradient,
//! g (x − σ(l)), is another.

use super::{Case, OpInfo, binary, cast, normal, shape, unary};
use crate::autograd::{self, Recipe, record};
use crate::cpu::{par, simd};
use crate::cuda::{self, Gpu, Grid, Kernels};
use crate::tensor::{Float, NewTensor, Tensor, with_arithmetic};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "bernoulli",
    family: "fused",
    summary: "log-likelihood of independent Bernoulli values given logits, several rows of logits per observation",
    cases,
};

const FORWARD: Kernels =
    Kernels::new("bernoulli", ["bernoulli_forward_f32", "bernoulli_forward_bf16", "bernoulli_forward_f16"]);
const BACKWARD: Kernels = Kernels::new(
    "bernoulli",
    ["bernoulli_backward_f32", "bernoulli_backward_bf16", "bernoulli_backward_f16"],
);
const VALUES: Kernels =
    Kernels::new("bernoulli", ["bernoulli_values_f32", "bernoulli_values_bf16", "bernoulli_values_f16"]);

const LANES: usize = 16;
/// Factors of at most 2 whose product stays finite in f32.
const FACTORS: usize = 64;

/// Σ_d ln p(x_d | logits_d): logits (R, ...), x (B, ...), to (R,), in nats.
///
/// # Panics
/// When R is not a multiple of B, or the shapes of the examples or the dtypes differ.
#[track_caller]
pub fn bernoulli_logp(logits: &Tensor, x: &Tensor) -> Tensor {
    let fail = || -> ! {
        panic!(
            "bernoulli_logp: logits {:?} {:?} with x {:?} {:?}",
            logits.dtype(),
            logits.shape(),
            x.dtype(),
            x.shape()
        )
    };
    let (Some((&rows, rest)), Some((&b, x_rest))) = (logits.shape().split_first(), x.shape().split_first())
    else {
        fail()
    };
    if rest != x_rest || logits.dtype() != x.dtype() || b == 0 || rows % b != 0 {
        fail()
    }
    if autograd::in_higher_order() {
        return composite(logits, x);
    }
    if let Some(gpu) = cuda::on("bernoulli_logp", &[logits, x]) {
        return launch(gpu, logits, x);
    }
    if let Some([l, v]) = cast::widened([logits, x]) {
        return cast::cast(&bernoulli_logp(&l, &v), logits.dtype());
    }
    let (d, samples) = (logits.len() / rows.max(1), rows / b);
    let per = (par::GRAIN / 4 / d.max(1)).max(1);
    let y = with_arithmetic!(logits.dtype(), T => {
        let (ls, xs) = (logits.as_slice::<T>(), x.as_slice::<T>());
        let mut out = NewTensor::<T>::new([rows]);
        par::chunks_mut(out.as_mut(), per, |c, out| {
            simd::vectorize_for::<T, _>(#[inline(always)] || {
                for (i, y) in out.iter_mut().enumerate() {
                    let row = c * per + i;
                    *y = one_row(&ls[row * d..][..d], &xs[row / samples * d..][..d]);
                }
            });
        });
        out.finish()
    });
    let (l, v) = (logits.clone(), x.clone());
    let [y] = record(Recipe::fused("bernoulli_logp"), &[logits, x], [y], move |back| {
        let g = back.grad(0);
        let dl = back.needs(0).then(|| {
            with_arithmetic!(l.dtype(), T => {
                let (ls, xs, gs) = (l.as_slice::<T>(), v.as_slice::<T>(), g.as_slice::<T>());
                let mut out = NewTensor::<T>::new(l.shape());
                par::chunks_mut(out.as_mut(), per * d.max(1), |c, out| {
                    simd::vectorize_for::<T, _>(#[inline(always)] || {
                        for (i, out) in out.chunks_mut(d).enumerate() {
                            let row = c * per + i;
                            let (l, x) = (&ls[row * d..][..d], &xs[row / samples * d..][..d]);
                            for ((o, l), x) in out.iter_mut().zip(l).zip(x) {
                                *o = gs[row] * (*x - l.sigmoid());
                            }
                        }
                    });
                });
                out.finish()
            })
        });
        let dx = back.needs(1).then(|| {
            let weighted = &l.detach().reshape([b, samples, d]) * &g.reshape([b, samples, 1]);
            weighted.sum(&[1]).reshape(v.shape())
        });
        vec![dl, dx]
    });
    y
}

/// On a device, with its gradients.
fn launch(gpu: Gpu, logits: &Tensor, x: &Tensor) -> Tensor {
    let (rows, b, dtype) = (logits.shape()[0], x.shape()[0], x.dtype());
    let (nats, d, samples) = (gpu.empty([rows], dtype), (x.len() / b) as i64, (rows / b) as i32);
    gpu.launch(FORWARD.of(dtype), Grid::new(rows, 256), &[&nats, logits, x, &d, &samples]);
    let (l, v) = (logits.detach(), x.detach());
    let [y] = record(Recipe::fused("bernoulli_logp"), &[logits, x], [nats.finish()], move |back| {
        let g = back.grad(0);
        let dl = back.needs(0).then(|| {
            let (dl, n) = (gpu.empty(l.shape(), dtype), l.len());
            let args: &[&dyn cuda::Arg] = &[&dl, &g, &l, &v, &(n as i64), &d, &samples];
            gpu.launch(BACKWARD.of(dtype), Grid::flat(n), args);
            dl.finish()
        });
        let dx = back.needs(1).then(|| {
            let (dx, n) = (gpu.empty(v.shape(), dtype), v.len());
            gpu.launch(VALUES.of(dtype), Grid::flat(n), &[&dx, &g, &l, &(n as i64), &d, &samples]);
            dx.finish()
        });
        vec![dl, dx]
    });
    y
}

#[inline(always)]
fn one_row<T: Float>(l: &[T], x: &[T]) -> T {
    let (zero, one) = (T::from_f64(0.0), T::from_f64(1.0));
    let mut total = zero;
    for (l, x) in l.chunks(LANES * FACTORS).zip(x.chunks(LANES * FACTORS)) {
        let (mut sums, mut factors) = ([zero; LANES], [one; LANES]);
        let mut step = |l: &[T], x: &[T]| {
            for (((s, f), l), x) in sums.iter_mut().zip(&mut factors).zip(l).zip(x) {
                *s += *x * *l - l.max(zero);
                *f = *f * (one + (-l.abs()).exp());
            }
        };
        let ((l, l_rest), (x, x_rest)) = (l.as_chunks::<LANES>(), x.as_chunks::<LANES>());
        l.iter().zip(x).for_each(|(l, x)| step(l, x));
        step(l_rest, x_rest);
        total += sums.into_iter().sum::<T>() - factors.into_iter().map(|f| f.ln()).sum::<T>();
    }
    total
}

fn composite(logits: &Tensor, x: &Tensor) -> Tensor {
    let (rows, b) = (logits.shape()[0], x.shape()[0]);
    let (d, samples) = (logits.len() / rows.max(1), rows / b);
    let l = shape::reshape(logits, [b, samples, d]);
    let inner = binary::sub(&binary::mul(&l, &shape::reshape(x, [b, 1, d])), &unary::softplus(&l));
    shape::reshape(&inner.sum(&[2]), [rows])
}

fn cases() -> Vec<Case> {
    let case = |name: String, l: Tensor, x: Tensor| {
        Case::new(name, vec![l, x], |t| vec![bernoulli_logp(&t[0], &t[1])])
            .composite(|t| vec![composite(&t[0], &t[1])])
    };
    let values = |seed, dims: &[usize]| unary::sigmoid(&normal(seed, dims));
    let mut cases = Vec::new();
    for (rows, b, rest) in
        [(1, 1, &[1][..]), (3, 3, &[7]), (6, 2, &[5, 3]), (4, 1, &[2, 3, 5]), (2, 2, &[1500])]
    {
        let (l, x) = ([&[rows], rest].concat(), [&[b], rest].concat());
        cases.push(case(format!("{l:?} {x:?}"), normal(1, &l), values(2, &x)));
    }
    let far = Tensor::from_slice(&[-200.0, 200.0, 60.0, -60.0, 0.0, 1e4], [2, 3]);
    cases.push(case("far".into(), far, Tensor::from_slice(&[0.0, 1.0, 0.5], [1, 3])).order(1));
    let n = 2048 * 784;
    let x = Tensor::from_fn([16, 784], |i| (i % 7) as f64 / 7.0);
    cases.push(
        case("128 samples of 16 images".into(), normal(3, &[2048, 784]), x)
            .order(0)
            .bench(4 * n, 15 * n)
            .backward(12 * n, 15 * n),
    );
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn a_fair_coin_costs_one_bit() {
        let y = bernoulli_logp(&Tensor::zeros([2, 100], DType::F32), &Tensor::ones([1, 100], DType::F32));
        assert!(y.to_f64_vec().iter().all(|y| (y + 100.0 * 2f64.ln()).abs() < 1e-4));
    }

    #[test]
    #[should_panic(expected = "bernoulli_logp: logits F32 [3, 2] with x F32 [2, 2]")]
    fn rows_that_do_not_divide_are_named() {
        bernoulli_logp(&Tensor::zeros([3, 2], DType::F32), &Tensor::zeros([2, 2], DType::F32));
    }
}
