//! Mixed precision: within [`mixed`], matrix products, convolutions and their gradients take f32 tensors as bf16 or
//! f16, add up in f32 and give f32 back. Everything else (sums, log-determinants, likelihoods, the residual stream)
//! stays f32, as do the weights that the optimiser steps: each use rounds them anew, and their gradients come back
//! through that cast. bf16 keeps the range of f32 in 8 bits of precision; tensor cores multiply it 8 to 16 times as
//! fast as f32. A CPU with `vdpbf16ps` multiplies it twice as fast: there the products round f32 operands as they
//! pack them, and no narrow tensor is made. f16 has 11 bits but the range of 6e-8 to 65504, so training multiplies
//! the loss ([`crate::train`]).
//!
//! [`tf32`] leaves f32 tensors as they are, and devices round the operands of products to 11 bits on their way to
//! the tensor cores. Without it f32 products are those of f32.

use super::cast::cast;
use crate::ambient;
use crate::cpu::gemm::{Act, has_bf16};
use crate::cuda::{Kernel, Kernels};
use crate::tensor::{DType, Tensor};

/// Runs `f`, forward and backward passes alike, with products in `dtype`; `None` leaves everything as it is.
///
/// # Panics
/// When `dtype` is neither bf16 nor f16.
#[track_caller]
pub fn mixed<R>(dtype: Option<DType>, f: impl FnOnce() -> R) -> R {
    let half = dtype.is_none_or(|d| matches!(d, DType::BF16 | DType::F16));
    assert!(half, "mixed: products in {dtype:?}; expected BF16 or F16");
    ambient::with(|settings| settings.narrow = dtype, f)
}

/// What products are narrowed to on this thread, for work that goes on in others: a scope is its thread's own.
pub(crate) fn present() -> Option<DType> {
    ambient::now().narrow
}

/// Runs `f`, forward and backward passes alike, with the f32 products of devices rounded to TF32; the CPU's are not.
pub fn tf32<R>(f: impl FnOnce() -> R) -> R {
    ambient::with(|settings| settings.tf32 = true, f)
}

/// The kernel of a product of `dtype`.
#[track_caller]
pub(super) fn kernel(kernels: &Kernels, dtype: DType) -> Kernel {
    kernels.rounding(dtype, ambient::now().tf32)
}

/// Whether the CPU's products are to round their operands to bf16 as they pack them.
pub(super) fn while_packing() -> bool {
    ambient::now().narrow == Some(DType::BF16) && has_bf16()
}

/// `op` with narrowed operands, which it makes with the function that it is given, when it is to be calculated so and
/// the product does not narrow them itself.
pub(super) fn narrowed(x: &Tensor, op: impl FnOnce(&dyn Fn(&Tensor) -> Tensor) -> Tensor) -> Option<Tensor> {
    let half = ambient::now().narrow.filter(|_| x.dtype() == DType::F32)?;
    if x.gpu().is_none() && while_packing() {
        return None;
    }
    Some(cast(&op(&|t| cast(t, half)), DType::F32))
}

/// [`narrowed`] for an op act(product + residual): the residual is added in f32 where no activation follows.
pub(super) fn with_residual(
    x: &Tensor,
    residual: Option<&Tensor>,
    act: Act,
    op: impl FnOnce(&dyn Fn(&Tensor) -> Tensor, Option<&Tensor>) -> Tensor,
) -> Option<Tensor> {
    match residual {
        Some(r) if act == Act::None => Some(&narrowed(x, |half| op(half, None))? + r),
        _ => narrowed(x, |half| op(half, residual.map(half).as_ref())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::backward;
    use crate::ops::conv::{ConvSpec, conv2d};
    use crate::ops::matmul::{linear, matmul};
    use crate::random::Philox;
    use crate::testing::max_error;

    #[test]
    fn products_are_narrow_and_weights_and_gradients_are_not() {
        let mut rng = Philox::new(1);
        let x = rng.normal([2, 5, 5, 8], DType::F32);
        let leaves =
            [[3, 3, 8, 8], [1, 1, 8, 8]].map(|s| rng.normal(s, DType::F32).affine(0.1, 0.0).requires_grad());
        let head = rng.normal([200, 3], DType::F32).affine(0.1, 0.0).requires_grad();
        let run = |dtype: Option<DType>| {
            mixed(dtype, || {
                let h = conv2d(&x, &leaves[0], None, None, ConvSpec::same(3).relu());
                let h = conv2d(&h, &leaves[1], None, Some(&x), ConvSpec::same(1));
                let y = linear(&h.reshape([2, 200]), &head, None, Act::Tanh);
                let y = matmul(&y, &y, false, true);
                let values = y.detach();
                (values, backward(y.sum_all(), &[&leaves[0], &leaves[1], &head]))
            })
        };
        let (y, grads) = run(None);
        for (dtype, allowed) in [(DType::BF16, 0.1), (DType::F16, 0.02)] {
            let (narrow, narrow_grads) = run(Some(dtype));
            assert!(narrow_grads.iter().all(|g| g.dtype() == DType::F32) && narrow.dtype() == DType::F32);
            let error = max_error(&[narrow], std::slice::from_ref(&y)).max(max_error(&narrow_grads, &grads));
            assert!(error > 1e-6, "{dtype:?}: nothing was rounded");
            assert!(error < allowed, "{dtype:?}: off by {error:e}");
        }
    }
}
