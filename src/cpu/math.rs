//! Branch-free `f32` functions that vectorise inside [`crate::cpu::simd::vectorize`].

use half::bf16;

/// e^x.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    x.exp()
}

/// Natural logarithm.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    x.ln()
}

/// Hyperbolic tangent.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    x.tanh()
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// ln(1 + e^x).
#[inline(always)]
pub fn softplus(x: f32) -> f32 {
    x.max(0.0) + exp(-x.abs()).ln_1p()
}

/// Widens a bf16.
#[inline(always)]
pub fn bf16_to_f32(x: bf16) -> f32 {
    f32::from_bits((x.to_bits() as u32) << 16)
}

/// Rounds to the nearest bf16, ties to even.
#[inline(always)]
pub fn f32_to_bf16(x: f32) -> bf16 {
    bf16::from_f32(x)
}
