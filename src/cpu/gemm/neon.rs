//! NEON: 32 registers of 128 bits; 24 hold the tile.

use super::kernel::{Dot, Lanes, kernels};
use std::arch::aarch64::*;

/// Four f32.
pub(super) struct F32;
/// Two f64.
pub(super) struct F64;

macro_rules! neon {
    ($name:ident, $t:ty, $v:ty, $n:literal, $dup:ident, $ld:ident, $st:ident, $add:ident, $mul:ident, $fma:ident,
     $le:ident, $as_int:ident, $bic:ident, $as_float:ident) => {
        impl Lanes for $name {
            type Acc = $t;
            type V = $v;
            const LANES: usize = $n;
            #[inline(always)]
            unsafe fn splat(x: $t) -> $v {
                // SAFETY: NEON is part of aarch64.
                unsafe { $dup(x) }
            }
            #[inline(always)]
            unsafe fn load(p: *const $t, n: usize) -> $v {
                let mut part: [$t; $n] = [0.0; $n];
                // SAFETY: the caller vouches for `n` elements.
                unsafe {
                    if n == $n {
                        return $ld(p);
                    }
                    std::ptr::copy_nonoverlapping(p, part.as_mut_ptr(), n);
                    $ld(part.as_ptr())
                }
            }
            #[inline(always)]
            unsafe fn store(p: *mut $t, n: usize, v: $v) {
                let mut part: [$t; $n] = [0.0; $n];
                // SAFETY: the caller vouches for `n` elements.
                unsafe {
                    if n == $n {
                        return $st(p, v);
                    }
                    $st(part.as_mut_ptr(), v);
                    std::ptr::copy_nonoverlapping(part.as_ptr(), p, n);
                }
            }
            #[inline(always)]
            unsafe fn add(a: $v, b: $v) -> $v {
                // SAFETY: NEON is part of aarch64.
                unsafe { $add(a, b) }
            }
            #[inline(always)]
            unsafe fn mul(a: $v, b: $v) -> $v {
                // SAFETY: NEON is part of aarch64.
                unsafe { $mul(a, b) }
            }
            #[inline(always)]
            unsafe fn gate(v: $v, g: $v) -> $v {
                // SAFETY: NEON is part of aarch64.
                unsafe { $as_float($bic($as_int(v), $le(g, $dup(0.0)))) }
            }
        }

        impl Dot for $name {
            type L = $name;
            type Word = $t;
            type W = $v;
            #[inline(always)]
            unsafe fn words(p: *const $t) -> $v {
                // SAFETY: the caller vouches for a full vector.
                unsafe { $ld(p) }
            }
            #[inline(always)]
            unsafe fn spread(p: *const $t) -> $v {
                // SAFETY: the caller vouches for one element.
                unsafe { $dup(*p) }
            }
            #[inline(always)]
            unsafe fn dot(acc: $v, a: $v, b: $v) -> $v {
                // SAFETY: NEON is part of aarch64.
                unsafe { $fma(acc, a, b) }
            }
        }
    };
}
neon!(
    F32,
    f32,
    float32x4_t,
    4,
    vdupq_n_f32,
    vld1q_f32,
    vst1q_f32,
    vaddq_f32,
    vmulq_f32,
    vfmaq_f32,
    vcleq_f32,
    vreinterpretq_u32_f32,
    vbicq_u32,
    vreinterpretq_f32_u32
);
neon!(
    F64,
    f64,
    float64x2_t,
    2,
    vdupq_n_f64,
    vld1q_f64,
    vst1q_f64,
    vaddq_f64,
    vmulq_f64,
    vfmaq_f64,
    vcleq_f64,
    vreinterpretq_u64_f64,
    vbicq_u64,
    vreinterpretq_f64_u64
);

kernels!(KERNELS_F32, F32, [24 12 4 1] [12 4 1] [8 4 1]);
kernels!(KERNELS_F64, F64, [24 12 4 1] [12 4 1] [8 4 1]);
