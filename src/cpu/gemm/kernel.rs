//! The micro-kernel: one small tile of C in registers, the same code for every instruction set.
//!
//! A tile is MR rows by NV vectors of columns. Per step of k it loads NV vectors of B and broadcasts MR words
//! of A, each wherever its strides say, so neither operand needs to be packed to be read. Every element of C
//! is one chain of fused multiply-adds over k, whatever the tile, so its bits do not depend on the tiling.

use crate::cpu::simd::Isa;
use crate::tensor::{Float, Plain};

/// A vector register of accumulators.
pub(super) trait Lanes {
    /// The type of one lane.
    type Acc: Float;
    /// The register.
    type V: Copy;
    /// Lanes in a register.
    const LANES: usize;
    /// All lanes equal to `x`.
    unsafe fn splat(x: Self::Acc) -> Self::V;
    /// The first `n <= LANES` lanes from memory.
    unsafe fn load(p: *const Self::Acc, n: usize) -> Self::V;
    /// The first `n <= LANES` lanes to memory.
    unsafe fn store(p: *mut Self::Acc, n: usize, v: Self::V);
    /// a + b.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// a * b.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// v where g > 0 (or g is NaN), else 0.
    unsafe fn gate(v: Self::V, g: Self::V) -> Self::V;
}

/// The inner product step on words: a word is one number, or a pair of bf16 numbers adjacent in k.
pub(super) trait Dot {
    /// Accumulators.
    type L: Lanes;
    /// What one step of k reads.
    type Word: Copy;
    /// A register of words.
    type W: Copy;
    /// LANES words from memory.
    unsafe fn words(p: *const Self::Word) -> Self::W;
    /// One word from memory in every lane.
    unsafe fn spread(p: *const Self::Word) -> Self::W;
    /// acc + a * b.
    unsafe fn dot(acc: <Self::L as Lanes>::V, a: Self::W, b: Self::W) -> <Self::L as Lanes>::V;
}

/// What a micro-kernel needs to know; pointers are to the tile's corner, strides in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// Steps (words of k).
    pub k: usize,
    pub a: *const u8,
    pub a_row: usize,
    pub a_step: usize,
    pub b: *const u8,
    pub b_step: usize,
    pub c: *mut u8,
    pub c_row: usize,
    /// What will be read next, a cache line per step.
    pub next: *const u8,
    pub next_step: usize,
    /// The tile of C that will be written next, rows as in C.
    pub next_c: *const u8,
    /// Valid columns of the tile.
    pub cols: usize,
    pub alpha: f64,
    /// Add to C (after the first block of k, or beta = 1).
    pub accumulate: bool,
    /// Null when absent or when this is not the last block of k; rows as in C.
    pub bias: *const u8,
    pub residual: *const u8,
    pub gate: *const u8,
    pub relu: bool,
}

/// A micro-kernel.
pub(crate) type Kernel = unsafe fn(&Tile);

/// The micro-kernels of an instruction set for one kind of word: for 1, 2 and 3 vectors of columns, pairs of
/// (rows, kernel), tallest first and ending with one row.
pub(crate) struct Kernels {
    pub lanes: usize,
    pub by_vectors: [&'static [(usize, Kernel)]; 3],
}

/// Words with their kernels.
pub(crate) trait Word: bytemuck::Pod + Send + Sync {
    /// The type of C.
    type Acc: Float;
    /// Numbers in a word.
    const NUMBERS: usize = 1;
    /// The kernels for `isa`.
    fn kernels(isa: Isa) -> &'static Kernels;
}

/// Repeats the body for `$i` = 0, 1, ... below `$n`, at most `$most` of 3, 6, 24, without a loop: the compiler keeps
/// an array in registers only while every index is a constant.
macro_rules! unroll {
    (@ $n:expr, $i:ident, $body:expr, $($at:literal)*) => {
        $({
            // Named as the loop variable that it stands for.
            #[allow(non_upper_case_globals)]
            const $i: usize = $at;
            if $i < $n {
                $body;
            }
        })*
    };
    (3, $n:expr, $i:ident, $body:expr) => { unroll!(@ $n, $i, $body, 0 1 2) };
    (6, $n:expr, $i:ident, $body:expr) => { unroll!(@ $n, $i, $body, 0 1 2 3 4 5) };
    (24, $n:expr, $i:ident, $body:expr) => {
        unroll!(@ $n, $i, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23)
    };
}

/// Asks for a cache line; any address will do.
#[inline(always)]
pub(super) fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that never faults, and part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Asks for a cache line that will be written: no other core keeps a copy. Any address will do.
#[inline(always)]
fn prefetch_to_write(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that never faults; processors of this architecture that do not know it do nothing.
    unsafe {
        std::arch::asm!("prefetchw [{0}]", in(reg) p, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// The same number, about which the compiler knows nothing: it would derive one row's address from another's.
#[inline(always)]
fn opaque(mut x: usize) -> usize {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    // SAFETY: the template is empty.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) x, options(pure, nomem, nostack, preserves_flags));
    }
    x
}

/// The tile algorithm.
///
/// # Safety
/// The instruction set of `D` must be there, and the tile's pointers and strides must describe memory that
/// holds MR rows of A, k rows of NV full vectors of B, and MR rows of `cols` columns of C and its companions,
/// with (NV-1) * LANES < cols <= NV * LANES.
#[inline(always)]
pub(super) unsafe fn tile<D: Dot, const MR: usize, const NV: usize>(t: &Tile) {
    type V<D> = <<D as Dot>::L as Lanes>::V;
    type Acc<D> = <<D as Dot>::L as Lanes>::Acc;
    let lanes = <D::L as Lanes>::LANES;
    // SAFETY: the caller's promise covers every access below.
    unsafe {
        let mut acc: [[V<D>; NV]; MR] = [[D::L::splat(Acc::<D>::from_f64(0.0)); NV]; MR];
        // One pointer per four rows and two strides: few registers, and no arithmetic between the products.
        let (r1, r3) = (t.a_row, opaque(3 * t.a_row));
        let mut a = [t.a; 6];
        unroll!(6, MR.div_ceil(4), g, a[g] = opaque(t.a as usize + g * 4 * r1) as *const u8);
        let (mut b, mut next) = (t.b, t.next);
        unroll!(24, MR, i, unroll!(3, NV, j, prefetch_to_write(t.next_c.wrapping_add(i * t.c_row + j * 64))));
        for _ in 0..t.k {
            prefetch(next);
            next = next.wrapping_add(t.next_step);
            let mut bv = [D::words(b.cast()); NV];
            unroll!(3, NV, j, bv[j] = D::words(b.cast::<D::Word>().add(j * lanes)));
            unroll!(24, MR, i, {
                let p = a[i / 4];
                let p = match i % 4 {
                    0 => p,
                    1 => p.add(r1),
                    2 => p.add(2 * r1),
                    _ => p.add(r3),
                };
                let av = D::spread(p.cast());
                unroll!(3, NV, j, acc[i][j] = D::dot(acc[i][j], av, bv[j]));
            });
            unroll!(6, MR.div_ceil(4), g, a[g] = a[g].add(t.a_step));
            b = b.add(t.b_step);
        }
        if t.cols == NV * lanes {
            finish::<D, MR, NV>(acc, t, lanes);
        } else {
            finish::<D, MR, NV>(acc, t, t.cols - (NV - 1) * lanes);
        }
    }
}

/// From the sums to C. One decision per tile and part, and whole vectors without masks: a short k leaves little time to
/// hide either. `last` is the number of columns in the last vector.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn finish<D: Dot, const MR: usize, const NV: usize>(
    mut acc: [[<<D as Dot>::L as Lanes>::V; NV]; MR],
    t: &Tile,
    last: usize,
) {
    type Acc<D> = <<D as Dot>::L as Lanes>::Acc;
    let lanes = <D::L as Lanes>::LANES;
    // Columns of vector j, and the place of (i, j) behind a corner.
    macro_rules! width {
        ($j:expr) => {
            if $j + 1 < NV { lanes } else { last }
        };
    }
    macro_rules! at {
        ($corner:expr, $i:expr, $j:expr) => {
            $corner.add($j * lanes * size_of::<Acc<D>>() + $i * t.c_row).cast()
        };
    }
    // SAFETY: the caller's promise covers every access below.
    unsafe {
        if t.alpha != 1.0 {
            let alpha = D::L::splat(Acc::<D>::from_f64(t.alpha));
            unroll!(3, NV, j, unroll!(24, MR, i, acc[i][j] = D::L::mul(acc[i][j], alpha)));
        }
        if t.accumulate {
            unroll!(3, NV, j, {
                unroll!(24, MR, i, acc[i][j] = D::L::add(acc[i][j], D::L::load(at!(t.c, i, j), width!(j))));
            });
        }
        if !t.bias.is_null() {
            unroll!(3, NV, j, {
                let bias = D::L::load(at!(t.bias, 0, j), width!(j));
                unroll!(24, MR, i, acc[i][j] = D::L::add(acc[i][j], bias));
            });
        }
        if !t.residual.is_null() {
            unroll!(3, NV, j, {
                unroll!(24, MR, i, {
                    acc[i][j] = D::L::add(acc[i][j], D::L::load(at!(t.residual, i, j), width!(j)));
                });
            });
        }
        if t.relu {
            unroll!(3, NV, j, unroll!(24, MR, i, acc[i][j] = D::L::gate(acc[i][j], acc[i][j])));
        }
        if !t.gate.is_null() {
            unroll!(3, NV, j, {
                unroll!(24, MR, i, {
                    acc[i][j] = D::L::gate(acc[i][j], D::L::load(at!(t.gate, i, j), width!(j)));
                });
            });
        }
        unroll!(3, NV, j, unroll!(24, MR, i, D::L::store(at!(t.c, i, j), width!(j), acc[i][j])));
    }
}

/// Defines the kernels of `$dot` as a static table, each compiled with `$features`.
macro_rules! kernels {
    ($name:ident, $dot:ty, $(#[$feature:meta])? [$($m1:literal)*] [$($m2:literal)*] [$($m3:literal)*]) => {
        pub(super) static $name: $crate::cpu::gemm::kernel::Kernels = {
            use $crate::cpu::gemm::kernel::{Dot, Kernels, Lanes, Tile, tile};
            /// # Safety
            /// As [`tile`].
            $(#[$feature])?
            unsafe fn run<const MR: usize, const NV: usize>(t: &Tile) {
                // SAFETY: the caller's promise, and the attribute above enables the instructions.
                unsafe { tile::<$dot, MR, NV>(t) }
            }
            Kernels {
                lanes: <<$dot as Dot>::L as Lanes>::LANES,
                by_vectors: [
                    &[$(($m1, run::<$m1, 1>)),*],
                    &[$(($m2, run::<$m2, 2>)),*],
                    &[$(($m3, run::<$m3, 3>)),*],
                ],
            }
        };
    };
}
pub(super) use kernels;
