//! A right operand packed once, for many products that each stay on the thread that asks.

use super::{Act, Mat, Operand, Out, Product, Right, Shared, Word};
use crate::cpu::simd::isa;
use crate::tensor::Float;

/// B (k, n), ready to be multiplied by rows of A.
pub(crate) struct Packed<'a, T> {
    mat: &'a Mat<'a, T>,
    rights: Vec<Right<'a, T>>,
    k: usize,
    n: usize,
}

impl<'a, T: Float + Word<Acc = T>> Packed<'a, T> {
    /// `mat` as B (k, n); `uses` is about how many rows of A it will meet: few leave it where it is.
    #[track_caller]
    pub(crate) fn new(mat: &'a Mat<'a, T>, (k, n): (usize, usize), uses: usize) -> Self {
        mat.check("B", k, n);
        let b = Operand { src: mat, transposed: mat.transposed };
        let rights = Product { m: uses, n, k, a: b, b, isa: isa() }.rights(0, k);
        Self { mat, rights, k, n }
    }

    /// C (rows, n) = A B + (C if `accumulate`) + bias; rows of C follow each other.
    ///
    /// # Panics
    /// When a slice is too short.
    #[track_caller]
    pub(crate) fn multiply(
        &self,
        rows: usize,
        a: Mat<'_, T>,
        c: &mut [T],
        bias: Option<&[T]>,
        accumulate: bool,
    ) {
        a.check("A", rows, self.k);
        assert!(c.len() >= rows * self.n, "gemm: C must hold {rows} rows of {}", self.n);
        assert!(bias.is_none_or(|b| b.len() == self.n), "gemm: the bias must hold {} numbers", self.n);
        let out = Out {
            c: Shared(c.as_mut_ptr()),
            ld: self.n,
            alpha: 1.0,
            accumulate,
            bias,
            residual: None,
            gate: None,
            act: Act::None,
        };
        let b = Operand { src: self.mat, transposed: self.mat.transposed };
        let a = Operand { src: &a, transposed: a.transposed };
        let product = Product { m: rows, n: self.n, k: self.k, a, b, isa: isa() };
        // SAFETY: C was borrowed mutably and its length checked, as was that of the bias.
        unsafe { product.block(&self.rights, (0, rows), (0..self.rights[0].panels(), 0), &out) }
    }
}
