//! Matrix products: C = act(alpha A B + beta C + bias + residual), optionally gated, for f32, f64, bf16, f16.
//!
//! Row-major operands, each with a transpose flag; bf16 and f16 accumulate in f32. The result's bits depend on
//! the sizes and the instruction set, never on the number of threads. Cost: 2 m n k flops; bytes: A, B, C once
//! each plus a packed copy of B.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod drive;
mod kernel;
#[cfg(target_arch = "x86_64")]
mod narrow;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pack;
mod packed;
mod portable;
#[cfg(test)]
mod tests;

pub(crate) use crate::cpu::par::{Shared, each};
pub use drive::flops;
pub(crate) use drive::{Out, Product};
pub(crate) use kernel::Word;
#[cfg(target_arch = "x86_64")]
pub(crate) use narrow::Narrow;
pub use pack::Mat;
pub(crate) use pack::{Operand, Right, Source};
pub(crate) use packed::Packed;

use crate::cpu::buffer::Buffer;
use crate::cpu::simd::{Isa, isa, vectorize};
use crate::tensor::{DType, Elem, Float, Plain};
use kernel::Kernels;
use std::borrow::Cow;

/// An activation fused behind a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Act {
    /// x
    #[default]
    None,
    /// max(x, 0)
    Relu,
    /// 1 / (1 + e^-x)
    Sigmoid,
    /// tanh x
    Tanh,
    /// x / (1 + e^-x)
    Silu,
}

/// What happens to C behind the product, while it is in registers or cache.
///
/// C = act(alpha A B + (C if accumulate) + bias + residual), then 0 where gate <= 0.
#[derive(Debug, Clone, Copy)]
pub struct Epilogue<'a, E> {
    /// Factor on the product.
    pub alpha: f64,
    /// Add to what C holds instead of overwriting it.
    pub accumulate: bool,
    /// (n): added to every row.
    pub bias: Option<&'a [E]>,
    /// Added; rows as in C.
    pub residual: Option<&'a [E]>,
    /// Applied to the sum.
    pub act: Act,
    /// Zeroes C where this is <= 0; rows as in C. The backward of relu, given relu's output (or input).
    pub gate: Option<&'a [E]>,
    /// Rounds f32 operands to bf16 where the machine multiplies those faster ([`has_bf16`]); sums stay f32.
    pub narrow: bool,
}

impl<E> Default for Epilogue<'_, E> {
    fn default() -> Self {
        Self {
            alpha: 1.0,
            accumulate: false,
            bias: None,
            residual: None,
            act: Act::None,
            gate: None,
            narrow: false,
        }
    }
}

impl<E> Epilogue<'_, E> {
    /// Panics unless bias holds `n` and the others `len` numbers.
    #[track_caller]
    pub(crate) fn check(&self, n: usize, len: usize) {
        assert!(self.bias.is_none_or(|b| b.len() == n), "gemm: the bias must hold {n} numbers");
        assert!(self.residual.is_none_or(|r| r.len() >= len), "gemm: the residual must be shaped as C");
        assert!(self.gate.is_none_or(|g| g.len() >= len), "gemm: the gate must be shaped as C");
    }
}

impl<T: Float> Word for T {
    type Acc = T;
    fn kernels(isa: Isa) -> &'static Kernels {
        let double = T::DTYPE == DType::F64;
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 if double => &avx512::KERNELS_F64,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => &avx512::KERNELS_F32,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if double => &avx2::KERNELS_F64,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &avx2::KERNELS_F32,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon if double => &neon::KERNELS_F64,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => &neon::KERNELS_F32,
            _ if double => &portable::KERNELS_F64,
            _ => &portable::KERNELS_F32,
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Word for pack::Pair {
    type Acc = f32;
    const NUMBERS: usize = 2;
    fn kernels(_: Isa) -> &'static Kernels {
        &avx512::KERNELS_BF16
    }
}

/// C (m, n) = A (m, k) B (k, n) with `epilogue`; rows of C, residual and gate are `ldc` apart.
///
/// # Panics
/// When a slice is too short for its sizes and stride.
#[track_caller]
pub fn gemm<E: Elem>(
    m: usize,
    n: usize,
    k: usize,
    a: Mat<'_, E>,
    b: Mat<'_, E>,
    c: &mut [E],
    ldc: usize,
    epilogue: &Epilogue<'_, E>,
) {
    gemm_on(isa(), m, n, k, a, b, c, ldc, epilogue);
}

/// [`gemm`] with the kernels of `isa`, which must be one that the machine has.
#[track_caller]
fn gemm_on<E: Elem>(
    isa: Isa,
    m: usize,
    n: usize,
    k: usize,
    a: Mat<'_, E>,
    b: Mat<'_, E>,
    c: &mut [E],
    ldc: usize,
    epilogue: &Epilogue<'_, E>,
) {
    a.check("A", m, k);
    b.check("B", k, n);
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512Bf16 && E::DTYPE == DType::BF16 {
        let wa = pack::Pairs::new(&a, m, k, a.transposed);
        let wb = pack::Pairs::new(&b, k, n, !b.transposed);
        let a = Operand::<pack::Pair> { src: &wa, transposed: a.transposed };
        let b = Operand { src: &wb, transposed: b.transposed };
        return put(&Product { m, n, k: k.div_ceil(2), a, b, isa }, c, ldc, epilogue);
    }
    let a = Operand { src: &a, transposed: a.transposed };
    let b = Operand { src: &b, transposed: b.transposed };
    product(&Product { m, n, k, a, b, isa }, c, ldc, epilogue);
}

/// `batch` products of the same sizes: A, B, C of product i start at `i` times their strides.
///
/// # Panics
/// When a slice is too short.
#[track_caller]
pub fn gemm_batched<E: Elem>(
    batch: usize,
    (m, n, k): (usize, usize, usize),
    (a, a_stride): (Mat<'_, E>, usize),
    (b, b_stride): (Mat<'_, E>, usize),
    c: &mut [E],
    epilogue: &Epilogue<'_, E>,
) {
    assert!(c.len() >= batch * m * n, "gemm: C must hold {batch} products of {m} x {n}");
    let shared = Shared(c.as_mut_ptr());
    let per = |x: Option<_>, i: usize| x.map(|x: &[E]| &x[i * m * n..(i + 1) * m * n]);
    let run = &|i: usize| {
        // SAFETY: product i owns part i of C, whose length was checked.
        let c = unsafe { shared.slice(i * m * n, m * n) };
        let epilogue =
            Epilogue { residual: per(epilogue.residual, i), gate: per(epilogue.gate, i), ..*epilogue };
        let a = Mat { data: &a.data[i * a_stride..], ..a };
        let b = Mat { data: &b.data[i * b_stride..], ..b };
        gemm(m, n, k, a, b, c, n, &epilogue);
    };
    each(batch * m * n * k >= 1 << 19, batch, run);
}

/// Whether this machine multiplies bf16 numbers with sums in f32 (`vdpbf16ps`), twice as fast as f32.
pub fn has_bf16() -> bool {
    isa() == Isa::Avx512Bf16
}

/// Runs a product of any sources into `c`, through an f32 copy when `E` is a half type.
#[track_caller]
pub(crate) fn product<E: Elem>(p: &Product<'_, E::Acc>, c: &mut [E], ldc: usize, epilogue: &Epilogue<'_, E>) {
    #[cfg(target_arch = "x86_64")]
    if narrows(p.isa, epilogue) {
        let (a, b) = (Narrow::left(&p.a, p.k), Narrow::right(&p.b, p.k));
        let a = Operand::<pack::Pair> { src: &a, transposed: p.a.transposed };
        let b = Operand { src: &b, transposed: p.b.transposed };
        return put(&Product { m: p.m, n: p.n, k: p.k.div_ceil(2), a, b, isa: p.isa }, c, ldc, epilogue);
    }
    put(p, c, ldc, epilogue);
}

/// Whether the operands of a product with this epilogue are rounded to bf16.
#[cfg(target_arch = "x86_64")]
pub(crate) fn narrows<E: Elem>(isa: Isa, epilogue: &Epilogue<'_, E>) -> bool {
    epilogue.narrow && E::DTYPE == DType::F32 && isa == Isa::Avx512Bf16
}

/// [`product`] of any words.
#[track_caller]
fn put<E: Elem, W: Word>(p: &Product<'_, W>, c: &mut [E], ldc: usize, epilogue: &Epilogue<'_, E>) {
    let (m, n) = (p.m, p.n);
    if m == 0 || n == 0 {
        return;
    }
    let len = (m - 1) * ldc + n;
    assert!(
        ldc >= n && c.len() >= len,
        "gemm: C needs {m} rows of {n} elements {ldc} apart, got {}",
        c.len()
    );
    epilogue.check(n, len);
    if E::DTYPE == <W::Acc as Plain>::DTYPE {
        let cast = |x: Option<_>| x.map(|x: &[E]| bytemuck::cast_slice::<E, W::Acc>(x));
        let out = Out {
            c: Shared(bytemuck::cast_slice_mut::<E, W::Acc>(c).as_mut_ptr()),
            ld: ldc,
            alpha: epilogue.alpha,
            accumulate: epilogue.accumulate,
            bias: cast(epilogue.bias),
            residual: cast(epilogue.residual),
            gate: cast(epilogue.gate),
            act: epilogue.act,
        };
        // SAFETY: C was borrowed mutably and its length, and those of its companions, were checked.
        unsafe { p.run(&out) }
    } else {
        let mut wide = Buffer::uninit(m * n * size_of::<W::Acc>());
        let wide: &mut [W::Acc] = bytemuck::cast_slice_mut(wide.as_mut());
        let out = Out {
            c: Shared(wide.as_mut_ptr()),
            ld: n,
            alpha: epilogue.alpha,
            accumulate: false,
            bias: None,
            residual: None,
            gate: None,
            act: Act::None,
        };
        // SAFETY: the copy is ours and has m rows of n.
        unsafe { p.run(&out) }
        let (wide, shared) = (Shared(wide.as_mut_ptr()), Shared(c.as_mut_ptr()));
        each(m * n >= 1 << 15, m.div_ceil(64), &|i| {
            for r in i * 64..m.min((i + 1) * 64) {
                // SAFETY: every row of C and of its sums is visited once.
                let (sums, c) = unsafe { (wide.slice(r * n, n), shared.slice(r * ldc, n)) };
                finish(bytemuck::cast_slice_mut(sums), c, r * ldc, epilogue);
            }
        });
    }
}

/// One row (or several rows that follow each other) of C from the sums `acc`, which are changed, `at` elements into C.
/// `epilogue.alpha` is taken as applied.
pub(crate) fn finish<E: Elem>(acc: &mut [E::Acc], c: &mut [E], at: usize, epilogue: &Epilogue<'_, E>) {
    /// Numbers that stay in the first-level cache from one pass to the next.
    const BLOCK: usize = 1024;
    let zero = <E::Acc as Plain>::from_f64(0.0);
    // A short bias is repeated, so that no loop is shorter than a few vectors.
    let bias = epilogue.bias.map(|bias| match bias.len() {
        n if n < 64 && n < c.len() => Cow::Owned(bias.repeat(64usize.div_ceil(n.max(1)))),
        _ => Cow::Borrowed(bias),
    });
    let width = bias.as_ref().map_or(BLOCK, |b| b.len() * (BLOCK / b.len().max(1)).max(1)).max(1);
    vectorize(
        #[inline(always)]
        || {
            let mut at = at;
            for (c, acc) in c.chunks_mut(width).zip(acc.chunks_mut(width)) {
                if epilogue.accumulate {
                    acc.iter_mut().zip(&*c).for_each(|(a, c)| *a += c.load());
                }
                if let Some(bias) = &bias {
                    for acc in acc.chunks_mut(bias.len().max(1)) {
                        acc.iter_mut().zip(bias.iter()).for_each(|(a, b)| *a += b.load());
                    }
                }
                if let Some(residual) = epilogue.residual {
                    acc.iter_mut().zip(&residual[at..]).for_each(|(a, r)| *a += r.load());
                }
                match epilogue.act {
                    Act::None => {}
                    Act::Relu => acc.iter_mut().for_each(|a| *a = Act::Relu.apply(*a)),
                    Act::Sigmoid => acc.iter_mut().for_each(|a| *a = Act::Sigmoid.apply(*a)),
                    Act::Tanh => acc.iter_mut().for_each(|a| *a = Act::Tanh.apply(*a)),
                    Act::Silu => acc.iter_mut().for_each(|a| *a = Act::Silu.apply(*a)),
                }
                match epilogue.gate {
                    None => c.iter_mut().zip(&*acc).for_each(|(c, a)| *c = E::store(*a)),
                    Some(gate) => {
                        for ((c, a), g) in c.iter_mut().zip(&*acc).zip(&gate[at..]) {
                            *c = E::store(if g.load() <= zero { zero } else { *a });
                        }
                    }
                }
                at += c.len();
            }
        },
    )
}

impl Act {
    /// The activation of one number; relu passes NaN on.
    #[inline(always)]
    pub fn apply<T: Float>(self, x: T) -> T {
        let zero = T::from_f64(0.0);
        match self {
            Act::None => x,
            Act::Relu => {
                if x <= zero {
                    zero
                } else {
                    x
                }
            }
            Act::Sigmoid => x.sigmoid(),
            Act::Tanh => x.tanh(),
            Act::Silu => x * x.sigmoid(),
        }
    }
}

/// c = act(c), 0 where gate <= 0.
fn activate<T: Float>(act: Act, c: &mut [T], gate: Option<&[T]>) {
    let zero = T::from_f64(0.0);
    vectorize(
        #[inline(always)]
        || {
            if act != Act::None {
                c.iter_mut().for_each(|c| *c = act.apply(*c));
            }
            if let Some(g) = gate {
                c.iter_mut().zip(g).for_each(|(c, g)| *c = if *g <= zero { zero } else { *c });
            }
        },
    )
}
