//! The two sums of a Runge-Kutta step (Hairer, Nørsett & Wanner 1993, II.4), each in one pass over its inputs:
//! ```text
//! stage:  y = x + h Σ_j w_j k_j,          error:  Σ (e / (atol + rtol max(|a|, |b|)))²,  e = h Σ_j w_j k_j,
//! ```
//! x, k_j, a and b of one shape, a and b the ends of the step; the error is a scalar. Terms of weight 0 are not read.
//! The gradient of a stage: dx = dy, dk_j = h w_j dy. 4 (2 + J) bytes and 2 J flops per number.

use super::{Case, OpInfo, normal, reduce, unary};
use crate::autograd::{self, Recipe, record};
use crate::cpu::{par, simd};
use crate::cuda::{self, Gpu, Grid, Kernels, Optional, Struct};
use crate::tensor::{DType, Elem, NewTensor, Plain, Tensor, with_float};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "runge_kutta",
    family: "fused",
    summary: "stage update and error norm of Runge-Kutta steps",
    cases,
};

const STAGE: Kernels =
    Kernels::new("runge_kutta", ["runge_kutta_stage_f32", "runge_kutta_stage_bf16", "runge_kutta_stage_f16"]);
const ERROR: Kernels =
    Kernels::new("runge_kutta", ["runge_kutta_error_f32", "runge_kutta_error_bf16", "runge_kutta_error_f16"]);

/// Terms that a kernel takes; longer sums are made in parts.
const TERMS: usize = 7;

/// As `Weights` in kernels/runge_kutta.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Weights {
    terms: i32,
    of: [f32; TERMS],
}

/// h w_j and k_j of the terms that count.
#[track_caller]
fn terms<'a>(op: &str, like: &Tensor, weights: &[f64], h: f64, ks: &'a [Tensor]) -> Vec<(f64, &'a Tensor)> {
    let found: Vec<_> = weights.iter().zip(ks).filter(|(w, _)| **w != 0.0).map(|(w, k)| (h * w, k)).collect();
    for (_, k) in &found {
        let (x, y) = ((like.shape(), like.dtype()), (k.shape(), k.dtype()));
        assert!(x == y, "{op}: {x:?} beside a slope {y:?}");
    }
    found
}

/// The kernel's weights and tensors for up to [`TERMS`] terms.
fn arguments<'a>(part: &'a [(f64, &Tensor)], dtype: DType) -> (Struct<Weights>, [Optional<'a>; TERMS]) {
    let mut of = [0.0; TERMS];
    of.iter_mut().zip(part).for_each(|(to, (w, _))| *to = *w as f32);
    let tensors = std::array::from_fn(|j| Optional(part.get(j).map(|(_, k)| *k), dtype));
    (Struct(Weights { terms: part.len() as i32, of }), tensors)
}

/// x + h Σ weights_j k_j.
///
/// # Panics
/// When shapes or dtypes differ.
#[track_caller]
pub fn stage(x: &Tensor, weights: &[f64], h: f64, ks: &[Tensor]) -> Tensor {
    let terms = terms("runge_kutta stage", x, weights, h, ks);
    if terms.is_empty() {
        return x.clone();
    }
    if autograd::in_higher_order() {
        return composite_stage(x, weights, h, ks);
    }
    let mut inputs = vec![x];
    inputs.extend(terms.iter().map(|(_, k)| *k));
    let y = match cuda::on("runge_kutta stage", &inputs) {
        Some(gpu) => terms.chunks(TERMS).fold(x.detach(), |x, part| launch_stage(gpu, &x, part)),
        None => with_float!(x.dtype(), T => sum::<T>(Some(x), &terms)),
    };
    let factors: Vec<f64> = terms.iter().map(|(w, _)| *w).collect();
    let [y] = record(Recipe::fused("runge_kutta_stage"), &inputs, [y], move |back| {
        let g = back.grad(0);
        let of = |(j, w): (usize, &f64)| back.needs(j + 1).then(|| unary::affine(&g, *w, 0.0));
        std::iter::once(Some(g.clone())).chain(factors.iter().enumerate().map(of)).collect()
    });
    y
}

fn launch_stage(gpu: Gpu, x: &Tensor, part: &[(f64, &Tensor)]) -> Tensor {
    let (dtype, n) = (x.dtype(), x.len());
    let (y, count) = (gpu.empty(x.shape(), dtype), n as i64);
    let (weights, tensors) = arguments(part, dtype);
    let mut args: Vec<&dyn cuda::Arg> = vec![&y, x];
    args.extend(tensors.iter().map(|k| k as &dyn cuda::Arg));
    args.extend([&count as &dyn cuda::Arg, &weights]);
    gpu.launch(STAGE.of(dtype), Grid::packs(n, dtype), &args);
    y.finish()
}

/// x (or 0) + Σ w k.
fn sum<T: Elem>(x: Option<&Tensor>, terms: &[(f64, &Tensor)]) -> Tensor {
    let like = terms[0].1;
    let mut out = NewTensor::<T>::new(like.shape());
    let factors: Vec<T::Acc> = terms.iter().map(|(w, _)| <T::Acc as Plain>::from_f64(*w)).collect();
    let ks: Vec<&[T]> = terms.iter().map(|(_, k)| k.as_slice::<T>()).collect();
    let x = x.map(Tensor::as_slice::<T>);
    // A block of sums stays in cache while the terms pass by.
    const BLOCK: usize = 1024;
    par::chunks_mut(out.as_mut(), par::GRAIN, |i, out| {
        let mut sums = [<T::Acc as Plain>::from_f64(0.0); BLOCK];
        for (b, out) in out.chunks_mut(BLOCK).enumerate() {
            let at = i * par::GRAIN + b * BLOCK;
            let sums = &mut sums[..out.len()];
            simd::vectorize(
                #[inline(always)]
                || {
                    match x {
                        Some(x) => sums.iter_mut().zip(&x[at..]).for_each(|(s, x)| *s = x.load()),
                        None => sums.fill(<T::Acc as Plain>::from_f64(0.0)),
                    }
                    for (w, k) in factors.iter().zip(&ks) {
                        use crate::tensor::Float;
                        sums.iter_mut().zip(&k[at..]).for_each(|(s, k)| *s = w.mul_add(k.load(), *s));
                    }
                    out.iter_mut().zip(&*sums).for_each(|(y, s)| *y = T::store(*s));
                },
            );
        }
    });
    out.finish()
}

/// Σ (e / (atol + rtol max(|a|, |b|)))² with e = h Σ weights_j k_j: a scalar, f32 on devices and f64 on the CPU;
/// unrecorded. Not finite where a term is not.
///
/// # Panics
/// When shapes or dtypes differ.
#[track_caller]
pub fn error(a: &Tensor, b: &Tensor, weights: &[f64], h: f64, ks: &[Tensor], tolerance: [f64; 2]) -> Tensor {
    let terms = terms("runge_kutta error", a, weights, h, ks);
    assert!(a.shape() == b.shape() && a.dtype() == b.dtype(), "runge_kutta error: the ends differ");
    if terms.is_empty() {
        return Tensor::scalar(0.0, DType::F64);
    }
    let mut inputs = vec![a, b];
    inputs.extend(terms.iter().map(|(_, k)| *k));
    if let Some(gpu) = cuda::on("runge_kutta error", &inputs) {
        let (last, others) = terms.split_at(terms.len().min(TERMS));
        let begun = (!others.is_empty())
            .then(|| others.chunks(TERMS).fold(a.zeros_like(), |x, part| launch_stage(gpu, &x, part)));
        let (dtype, n) = (a.dtype(), a.len());
        let blocks = n.div_ceil(256 * 16).clamp(1, 1024);
        let partial = gpu.empty([blocks], DType::F32);
        let (weights, tensors) = arguments(last, dtype);
        let (count, [atol, rtol]) = (n as i64, tolerance.map(|t| t as f32));
        let start = Optional(begun.as_ref(), dtype);
        let mut args: Vec<&dyn cuda::Arg> = vec![&partial, a, b, &start];
        args.extend(tensors.iter().map(|k| k as &dyn cuda::Arg));
        args.extend([&count as &dyn cuda::Arg, &weights, &atol, &rtol]);
        gpu.launch(ERROR.of(dtype), Grid::new(blocks, 256), &args);
        return reduce::sum(&partial.finish(), &[0]);
    }
    let [atol, rtol] = tolerance;
    with_float!(a.dtype(), T => {
        let e = sum::<T>(None, &terms);
        let values = e.as_slice::<T>().iter().zip(a.as_slice::<T>()).zip(b.as_slice::<T>());
        let scaled = values.map(|((e, a), b)| e.to_f64() / (atol + rtol * a.to_f64().abs().max(b.to_f64().abs())));
        Tensor::scalar(scaled.map(|e| e * e).sum(), DType::F64)
    })
}

/// [`stage`] in primitives.
pub fn composite_stage(x: &Tensor, weights: &[f64], h: f64, ks: &[Tensor]) -> Tensor {
    let terms = weights.iter().zip(ks).filter(|(w, _)| **w != 0.0);
    terms.fold(x.clone(), |sum, (w, k)| &sum + &unary::affine(k, h * w, 0.0))
}

/// [`error`] in primitives.
pub fn composite_error(
    a: &Tensor,
    b: &Tensor,
    weights: &[f64],
    h: f64,
    ks: &[Tensor],
    [atol, rtol]: [f64; 2],
) -> Tensor {
    let e = composite_stage(&a.zeros_like(), weights, h, ks);
    let largest = super::binary::maximum(&unary::abs(a), &unary::abs(b));
    unary::square(&(&e / &unary::affine(&largest, rtol, atol))).sum_all()
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (shape, weights) in [
        (&[1][..], &[0.5][..]),
        (&[3, 5], &[0.2, 0.0, -0.7]),
        (&[2, 1029], &[0.1, 0.2, 0.3, -0.4, 0.5, 0.6, -0.7]),
        (&[7, 3], &[0.1, -0.2, 0.3, 0.4, 0.5, -0.6, 0.7, 0.8, 0.9]),
    ] {
        let inputs: Vec<Tensor> = (0..weights.len() as u64 + 1).map(|i| normal(i, shape)).collect();
        cases.push(
            Case::new(format!("stage {shape:?} of {}", weights.len()), inputs, move |x| {
                vec![stage(&x[0], weights, 0.3, &x[1..])]
            })
            .composite(move |x| vec![composite_stage(&x[0], weights, 0.3, &x[1..])]),
        );
        let inputs: Vec<Tensor> = (0..weights.len() as u64 + 2).map(|i| normal(i + 20, shape)).collect();
        cases.push(
            Case::new(format!("error {shape:?} of {}", weights.len()), inputs, move |x| {
                vec![error(&x[0], &x[1], weights, 0.3, &x[2..], [0.1, 0.2])]
            })
            .composite(move |x| vec![composite_error(&x[0], &x[1], weights, 0.3, &x[2..], [0.1, 0.2])])
            .order(0),
        );
    }
    let n = 4 * 250_000;
    let inputs: Vec<Tensor> = (0..5).map(|i| normal(i, &[4, 250_000])).collect();
    cases.push(
        Case::new("stage of 4 x 250000", inputs, |x| vec![stage(&x[0], &[0.1, 0.2, 0.3, 0.4], 0.3, &x[1..])])
            .order(0)
            .bench(4 * 6 * n, 8 * n)
            .backward(4 * 5 * n, 4 * n),
    );
    let inputs: Vec<Tensor> = (0..6).map(|i| normal(i, &[4, 250_000])).collect();
    let run = |x: &[Tensor]| vec![error(&x[0], &x[1], &[0.1, 0.2, 0.3, 0.4], 0.3, &x[2..], [0.1, 0.2])];
    cases.push(Case::new("error of 4 x 250000", inputs, run).order(0).bench(4 * 6 * n, 16 * n));
    cases
}
