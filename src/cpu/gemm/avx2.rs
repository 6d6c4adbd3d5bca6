//! AVX2 with FMA: 16 registers of 256 bits; 12 hold the tile.

use super::kernel::{Dot, Lanes, kernels};
use std::arch::x86_64::*;

/// Eight f32.
pub(super) struct F32;
/// Four f64.
pub(super) struct F64;

/// A sliding window over this gives masks with the first lanes set.
static ONES_THEN_ZEROS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

/// All bits of the first `n` of 8 lanes.
#[inline(always)]
unsafe fn first(n: usize) -> __m256i {
    // SAFETY: n <= 8, so eight numbers from 8 - n on lie in the table.
    unsafe { _mm256_loadu_si256(ONES_THEN_ZEROS.as_ptr().add(8 - n).cast()) }
}

impl Lanes for F32 {
    type Acc = f32;
    type V = __m256;
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY: the caller runs with AVX2.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32, n: usize) -> __m256 {
        // SAFETY: the caller vouches for `n` elements; masked lanes are not touched.
        unsafe { if n == 8 { _mm256_loadu_ps(p) } else { _mm256_maskload_ps(p, first(n)) } }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, n: usize, v: __m256) {
        // SAFETY: as above.
        unsafe { if n == 8 { _mm256_storeu_ps(p, v) } else { _mm256_maskstore_ps(p, first(n), v) } }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller runs with AVX2.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller runs with AVX2.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn gate(v: __m256, g: __m256) -> __m256 {
        // SAFETY: the caller runs with AVX2.
        unsafe { _mm256_and_ps(v, _mm256_cmp_ps::<_CMP_NLE_UQ>(g, _mm256_setzero_ps())) }
    }
}

impl Dot for F32 {
    type L = F32;
    type Word = f32;
    type W = __m256;
    #[inline(always)]
    unsafe fn words(p: *const f32) -> __m256 {
        // SAFETY: the caller vouches for 8 elements.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn spread(p: *const f32) -> __m256 {
        // SAFETY: the caller vouches for one element.
        unsafe { _mm256_set1_ps(*p) }
    }
    #[inline(always)]
    unsafe fn dot(acc: __m256, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller runs with FMA.
        unsafe { _mm256_fmadd_ps(a, b, acc) }
    }
}

impl Lanes for F64 {
    type Acc = f64;
    type V = __m256d;
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn splat(x: f64) -> __m256d {
        // SAFETY: the caller runs with AVX2.
        unsafe { _mm256_set1_pd(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f64, n: usize) -> __m256d {
        // SAFETY: the caller vouches for `n` elements; masked lanes are not touched.
        unsafe { if n == 4 { _mm256_loadu_pd(p) } else { _mm256_maskload_pd(p, first(2 * n)) } }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f64, n: usize, v: __m256d) {
        // SAFETY: as above.
        unsafe { if n == 4 { _mm256_storeu_pd(p, v) } else { _mm256_maskstore_pd(p, first(2 * n), v) } }
    }
    #[inline(always)]
    unsafe fn add(a: __m256d, b: __m256d) -> __m256d {
        // SAFETY: the caller runs with AVX2.
        unsafe { _mm256_add_pd(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256d, b: __m256d) -> __m256d {
        // SAFETY: the caller runs with AVX2.
        unsafe { _mm256_mul_pd(a, b) }
    }
    #[inline(always)]
    unsafe fn gate(v: __m256d, g: __m256d) -> __m256d {
        // SAFETY: the caller runs with AVX2.
        unsafe { _mm256_and_pd(v, _mm256_cmp_pd::<_CMP_NLE_UQ>(g, _mm256_setzero_pd())) }
    }
}

impl Dot for F64 {
    type L = F64;
    type Word = f64;
    type W = __m256d;
    #[inline(always)]
    unsafe fn words(p: *const f64) -> __m256d {
        // SAFETY: the caller vouches for 4 elements.
        unsafe { _mm256_loadu_pd(p) }
    }
    #[inline(always)]
    unsafe fn spread(p: *const f64) -> __m256d {
        // SAFETY: the caller vouches for one element.
        unsafe { _mm256_set1_pd(*p) }
    }
    #[inline(always)]
    unsafe fn dot(acc: __m256d, a: __m256d, b: __m256d) -> __m256d {
        // SAFETY: the caller runs with FMA.
        unsafe { _mm256_fmadd_pd(a, b, acc) }
    }
}

kernels!(KERNELS_F32, F32, #[target_feature(enable = "avx2,fma")] [12 4 1] [6 4 1] [4 2 1]);
kernels!(KERNELS_F64, F64, #[target_feature(enable = "avx2,fma")] [12 4 1] [6 4 1] [4 2 1]);
