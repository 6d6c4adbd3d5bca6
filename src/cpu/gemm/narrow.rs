//! f32 operands that become pairs of bf16 on the way into a packed block: the product runs with `vdpbf16ps`, and
//! nothing else in the program knows of the narrow numbers. They are rounded to the nearest, ties to even; numbers below
//! 2⁻¹²⁶ become zero, as the instruction has it.

use super::pack::{Operand, Pair, Source};
use crate::cpu::buffer::Buffer;
use crate::tensor::Float;
use std::arch::x86_64::*;

/// Numbers that are copied at a time, so that they are rounded while in the first-level cache.
const CHUNK: usize = 4096;

/// A source of `T` (f32) as pairs along the inner dimension k of a product.
pub(crate) struct Narrow<'a, T> {
    src: &'a dyn Source<T>,
    k: usize,
    /// Whether k runs down the stored rows.
    down: bool,
}

impl<'a, T: Float> Narrow<'a, T> {
    /// The left operand of a product over `k`.
    pub(crate) fn left(a: &Operand<'a, T>, k: usize) -> Self {
        Self { src: a.src, k, down: a.transposed }
    }

    /// The right operand of a product over `k`.
    pub(crate) fn right(b: &Operand<'a, T>, k: usize) -> Self {
        Self { src: b.src, k, down: !b.transposed }
    }
}

impl<T: Float> Source<Pair> for Narrow<'_, T> {
    fn fill(&self, r0: usize, rows: usize, c0: usize, cols: usize, out: &mut [Pair], ld: usize) {
        if rows == 0 || cols == 0 {
            return;
        }
        // The stored block that the pairs are made of.
        let (r0, r1, c0, c1) = if self.down {
            (2 * r0, (2 * (r0 + rows)).min(self.k), c0, c0 + cols)
        } else {
            (r0, r0 + rows, 2 * c0, (2 * (c0 + cols)).min(self.k))
        };
        let width = c1 - c0;
        if let Some((data, stride)) = self.src.in_place() {
            let data: &[f32] = bytemuck::cast_slice(data);
            return self.round(&data[r0 * stride + c0..], stride, (r1 - r0, width), out, ld);
        }
        let step = (CHUNK / width).max(1).next_multiple_of(2);
        let mut wide = Buffer::uninit(step.min(r1 - r0) * width * size_of::<T>());
        let wide: &mut [T] = bytemuck::cast_slice_mut(wide.as_mut());
        for at in (r0..r1).step_by(step) {
            let count = step.min(r1 - at);
            self.src.fill(at, count, c0, width, wide, width);
            let row = if self.down { (at - r0) / 2 } else { at - r0 };
            self.round(bytemuck::cast_slice(wide), width, (count, width), &mut out[row * ld..], ld);
        }
    }
}

impl<T> Narrow<'_, T> {
    /// Pairs from `rows` rows of `width` numbers, `stride` apart.
    fn round(&self, data: &[f32], stride: usize, (rows, width): (usize, usize), out: &mut [Pair], ld: usize) {
        let row = |i: usize| &data[i * stride..][..width];
        if self.down {
            for i in (0..rows).step_by(2) {
                let out = &mut out[i / 2 * ld..][..width];
                // SAFETY: products are narrowed only where the machine has these instructions.
                unsafe { down(row(i), if i + 1 < rows { row(i + 1) } else { &[] }, out) }
            }
        } else {
            for i in 0..rows {
                // SAFETY: as above.
                unsafe { along(row(i), &mut out[i * ld..][..width.div_ceil(2)]) }
            }
        }
    }
}

/// The first `n` of at most 16 lanes.
#[inline(always)]
fn first(n: usize) -> u16 {
    (u32::MAX >> (32 - n.min(16) as u32)) as u16
}

/// out[i] = (x[2 i], x[2 i + 1]), an odd last one beside zero.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn along(x: &[f32], out: &mut [Pair]) {
    for (x, out) in x.chunks(32).zip(out.chunks_mut(16)) {
        // SAFETY: masked lanes are not touched, and the others lie in the chunks.
        unsafe {
            let low = _mm512_maskz_loadu_ps(first(x.len()), x.as_ptr());
            let high = match x.len() {
                0..=16 => _mm512_setzero_ps(),
                n => _mm512_maskz_loadu_ps(first(n - 16), x.as_ptr().add(16)),
            };
            let pairs = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_mask_storeu_epi32(out.as_mut_ptr().cast(), first(out.len()), pairs);
        }
    }
}

/// out[i] = (x[i], y[i]); y may be empty, which stands for zeros.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn down(x: &[f32], y: &[f32], out: &mut [Pair]) {
    for (i, (x, out)) in x.chunks(16).zip(out.chunks_mut(16)).enumerate() {
        let mask = first(x.len());
        // SAFETY: masked lanes are not touched, and the others lie in the chunks; y is empty or as long as x.
        unsafe {
            let a = _mm512_maskz_loadu_ps(mask, x.as_ptr());
            let b = match y.get(16 * i..) {
                Some(y) if !y.is_empty() => _mm512_maskz_loadu_ps(mask, y.as_ptr()),
                _ => _mm512_setzero_ps(),
            };
            // The first sixteen halves are a's, the others b's.
            let halves = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(b, a));
            let low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(halves));
            let high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(halves));
            let pairs = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
            _mm512_mask_storeu_epi32(out.as_mut_ptr().cast(), mask, pairs);
        }
    }
}
