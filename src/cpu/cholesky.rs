//! Cholesky factors of covariance matrices in f64: A = L Lᵀ, L lower triangular, row-major n by n.
//!
//! n³ / 3 flops each, in blocks of rows whose bulk are matrix products.

use crate::cpu::gemm::{Epilogue, Mat, gemm};
use crate::cpu::simd::vectorize;

const LANES: usize = 8;
/// Rows of a block.
const BLOCK: usize = 64;

/// Replaces the symmetric `a` by its factor L (zeros above the diagonal); only the lower half of `a` is read.
/// `false`, with `a` in an undefined state, when a pivot is not positive: A is not positive definite.
#[must_use]
pub fn factor(a: &mut [f64], n: usize) -> bool {
    debug_assert_eq!(a.len(), n * n);
    for first in (0..n).step_by(BLOCK) {
        let end = n.min(first + BLOCK);
        if first > 0 {
            // Rows from `first` on lose what the columns before explain of this block's columns.
            let (rows, width) = (n - first, end - first);
            let mut known = vec![0.0; rows * width];
            let below = Mat { data: &a[first * n..], row_stride: n, transposed: false };
            let own = Mat { data: &a[first * n..end * n], row_stride: n, transposed: true };
            gemm(rows, width, first, below, own, &mut known, width, &Epilogue::default());
            for (row, known) in a[first * n..].chunks_exact_mut(n).zip(known.chunks_exact(width)) {
                row[first..end].iter_mut().zip(known).for_each(|(x, known)| *x -= known);
            }
        }
        for i in first..n {
            let (above, rest) = a.split_at_mut(i * n);
            let row = &mut rest[..n];
            for j in first..end.min(i) {
                let other = &above[j * n..][..=j];
                row[j] = (row[j] - dot(&row[first..j], &other[first..j])) / other[j];
            }
            if i < end {
                let pivot = row[i] - dot(&row[first..i], &row[first..i]);
                if !(pivot > 0.0 && pivot.is_finite()) {
                    return false;
                }
                row[i] = pivot.sqrt();
                row[i + 1..].fill(0.0);
            }
        }
    }
    true
}

/// L⁻¹ of a lower triangular L with a diagonal without zeros.
pub fn invert_lower(l: &[f64], n: usize) -> Vec<f64> {
    debug_assert_eq!(l.len(), n * n);
    let mut inverse = vec![0.0; n * n];
    for first in (0..n).step_by(BLOCK) {
        let end = n.min(first + BLOCK);
        let (above, rest) = inverse.split_at_mut(first * n);
        if first > 0 {
            // The columns before: −L (this block's rows) times the inverse so far, to be solved by the block below.
            let left = Mat { data: &l[first * n..end * n], row_stride: n, transposed: false };
            let known = Mat { data: above, row_stride: n, transposed: false };
            let negative = Epilogue { alpha: -1.0, ..Epilogue::default() };
            gemm(end - first, first, first, left, known, rest, n, &negative);
        }
        for i in first..end {
            let (solved, rest) = rest.split_at_mut((i - first) * n);
            let (row, scale) = (&mut rest[..n], 1.0 / l[i * n + i]);
            row[i] = 1.0;
            vectorize(
                #[inline(always)]
                || {
                    for k in first..i {
                        let factor = l[i * n + k];
                        let known = &solved[(k - first) * n..][..=k];
                        row[..=k].iter_mut().zip(known).for_each(|(x, y)| *x -= factor * y);
                    }
                    row[..=i].iter_mut().for_each(|x| *x *= scale);
                },
            );
        }
    }
    inverse
}

/// Solves L y = z in place.
pub fn solve_lower(l: &[f64], z: &mut [f64]) {
    let n = z.len();
    for i in 0..n {
        z[i] = (z[i] - dot(&l[i * n..][..i], &z[..i])) / l[i * n + i];
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    vectorize(
        #[inline(always)]
        || {
            let mut lanes = [0.0; LANES];
            let ((a, ra), (b, rb)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
            for (a, b) in a.iter().zip(b) {
                for i in 0..LANES {
                    lanes[i] += a[i] * b[i];
                }
            }
            lanes.iter().sum::<f64>() + ra.iter().zip(rb).map(|(x, y)| x * y).sum::<f64>()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Philox;

    #[test]
    fn factor_inverse_and_solution_agree() {
        for n in [1, 2, 7, 33, 64, 150] {
            let mut b = vec![0.0; n * n];
            Philox::new(n as u64).fill_normal(&mut b);
            let at = |m: &[f64], i: usize, j: usize| m[i * n + j];
            let product = |x: &dyn Fn(usize, usize) -> f64, y: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
                (0..n * n).map(|ij| (0..n).map(|k| x(ij / n, k) * y(k, ij % n)).sum()).collect()
            };
            let mut a = product(&|i, k| at(&b, i, k), &|k, j| at(&b, j, k));
            (0..n).for_each(|i| a[i * n + i] += 1.0);
            let mut l = a.clone();
            assert!(factor(&mut l, n));
            let again = product(&|i, k| at(&l, i, k), &|k, j| at(&l, j, k));
            assert!(a.iter().zip(&again).all(|(x, y)| (x - y).abs() < 1e-11 * (1.0 + x.abs())));
            let inverse = invert_lower(&l, n);
            let one = product(&|i, k| at(&inverse, i, k), &|k, j| at(&l, k, j));
            assert!((0..n * n).all(|ij| (one[ij] - f64::from(ij / n == ij % n)).abs() < 1e-10));
            let mut z = b[..n].to_vec();
            solve_lower(&l, &mut z);
            for i in 0..n {
                let y: f64 = (0..n).map(|j| at(&inverse, i, j) * b[j]).sum();
                assert!((z[i] - y).abs() < 1e-10);
            }
        }
    }

    #[test]
    fn an_indefinite_matrix_is_refused() {
        assert!(!factor(&mut [1.0, 2.0, 2.0, 1.0], 2));
        assert!(!factor(&mut [f64::NAN], 1));
    }
}
