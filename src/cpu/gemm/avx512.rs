//! AVX-512: 32 registers of 512 bits; 24 hold the tile.

use super::kernel::{Dot, Lanes, kernels};
use std::arch::x86_64::*;

/// Sixteen f32.
pub(super) struct F32;
/// Eight f64.
pub(super) struct F64;
/// Sixteen pairs of bf16, accumulated in f32.
pub(super) struct Bf16;

/// The first `n` of at most 16 lanes.
#[inline(always)]
fn first(n: usize) -> u16 {
    (u32::MAX >> (32 - n as u32)) as u16
}

impl Lanes for F32 {
    type Acc = f32;
    type V = __m512;
    const LANES: usize = 16;
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: the caller runs with AVX-512.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32, n: usize) -> __m512 {
        // SAFETY: the caller vouches for `n` elements; masked lanes are not touched.
        unsafe { _mm512_maskz_loadu_ps(first(n), p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, n: usize, v: __m512) {
        // SAFETY: as above.
        unsafe { _mm512_mask_storeu_ps(p, first(n), v) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller runs with AVX-512.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller runs with AVX-512.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn gate(v: __m512, g: __m512) -> __m512 {
        // SAFETY: the caller runs with AVX-512.
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLE_UQ>(g, _mm512_setzero_ps()), v) }
    }
}

impl Dot for F32 {
    type L = F32;
    type Word = f32;
    type W = __m512;
    #[inline(always)]
    unsafe fn words(p: *const f32) -> __m512 {
        // SAFETY: the caller vouches for 16 elements.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn spread(p: *const f32) -> __m512 {
        // SAFETY: the caller vouches for one element.
        unsafe { _mm512_set1_ps(*p) }
    }
    #[inline(always)]
    unsafe fn dot(acc: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller runs with AVX-512.
        unsafe { _mm512_fmadd_ps(a, b, acc) }
    }
}

impl Lanes for F64 {
    type Acc = f64;
    type V = __m512d;
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn splat(x: f64) -> __m512d {
        // SAFETY: the caller runs with AVX-512.
        unsafe { _mm512_set1_pd(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f64, n: usize) -> __m512d {
        // SAFETY: the caller vouches for `n` elements; masked lanes are not touched.
        unsafe { _mm512_maskz_loadu_pd(first(n) as u8, p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f64, n: usize, v: __m512d) {
        // SAFETY: as above.
        unsafe { _mm512_mask_storeu_pd(p, first(n) as u8, v) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512d, b: __m512d) -> __m512d {
        // SAFETY: the caller runs with AVX-512.
        unsafe { _mm512_add_pd(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512d, b: __m512d) -> __m512d {
        // SAFETY: the caller runs with AVX-512.
        unsafe { _mm512_mul_pd(a, b) }
    }
    #[inline(always)]
    unsafe fn gate(v: __m512d, g: __m512d) -> __m512d {
        // SAFETY: the caller runs with AVX-512.
        unsafe { _mm512_maskz_mov_pd(_mm512_cmp_pd_mask::<_CMP_NLE_UQ>(g, _mm512_setzero_pd()), v) }
    }
}

impl Dot for F64 {
    type L = F64;
    type Word = f64;
    type W = __m512d;
    #[inline(always)]
    unsafe fn words(p: *const f64) -> __m512d {
        // SAFETY: the caller vouches for 8 elements.
        unsafe { _mm512_loadu_pd(p) }
    }
    #[inline(always)]
    unsafe fn spread(p: *const f64) -> __m512d {
        // SAFETY: the caller vouches for one element.
        unsafe { _mm512_set1_pd(*p) }
    }
    #[inline(always)]
    unsafe fn dot(acc: __m512d, a: __m512d, b: __m512d) -> __m512d {
        // SAFETY: the caller runs with AVX-512.
        unsafe { _mm512_fmadd_pd(a, b, acc) }
    }
}

impl Dot for Bf16 {
    type L = F32;
    type Word = u32;
    type W = __m512bh;
    #[inline(always)]
    unsafe fn words(p: *const u32) -> __m512bh {
        // SAFETY: the caller vouches for 16 pairs.
        unsafe { p.cast::<__m512bh>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn spread(p: *const u32) -> __m512bh {
        // SAFETY: the caller vouches for one pair, at any alignment.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(p.read_unaligned() as i32)) }
    }
    #[inline(always)]
    unsafe fn dot(acc: __m512, a: __m512bh, b: __m512bh) -> __m512 {
        // SAFETY: the caller runs with avx512_bf16.
        unsafe { _mm512_dpbf16_ps(acc, a, b) }
    }
}

kernels!(KERNELS_F32, F32, #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    [24 18 12 8 4 2 1] [12 8 6 4 2 1] [8 6 4 2 1]);
kernels!(KERNELS_F64, F64, #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    [24 18 12 8 4 2 1] [12 8 6 4 2 1] [8 6 4 2 1]);
kernels!(KERNELS_BF16, Bf16, #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    [24 18 12 8 4 2 1] [12 8 6 4 2 1] [8 6 4 2 1]);
