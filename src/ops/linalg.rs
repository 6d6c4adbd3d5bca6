//! Small square matrices: inverse and log |det|, by LU factorisation with partial pivoting in f64.
//!
//! On devices one block factorises a matrix in its shared memory, so that nobody waits for the host; larger matrices go
//! through the host. Meant for the channel matrices of flows (n up to a few hundred): O(n³), one thread. Gradients
//! are written in primitives: d log|det A| = A^-T, d A^-1 = −A^-1 dA A^-1.

use super::{Case, OpInfo, binary, matmul::matmul, normal, shape, unary};
use crate::autograd::{Recipe, record};
use crate::cuda::{Grid, Kernels};
use crate::tensor::{DType, Tensor, with_float};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "linalg",
    family: "primitive",
    summary: "inverse and log |det| of a square matrix by LU in f64",
    cases,
};

const INVERSE: Kernels =
    Kernels::new("linalg", ["linalg_inverse_f32", "linalg_inverse_bf16", "linalg_inverse_f16"]);
const LOG_DET: Kernels =
    Kernels::new("linalg", ["linalg_log_det_f32", "linalg_log_det_bf16", "linalg_log_det_f16"]);

/// `kernel` on n by n matrices that are on a device and fit the shared memory of a block beside `columns` more doubles.
fn launch(kernel: &Kernels, a: &Tensor, n: usize, columns: usize, shape: &[usize]) -> Option<Tensor> {
    let bytes = 8 * (n * (n + 1) + n.div_ceil(2) + columns);
    let gpu = a.gpu().filter(|_| a.dtype() != DType::F64 && bytes <= 160 << 10)?;
    let y = gpu.empty(shape, a.dtype());
    let grid = Grid { shared: bytes as u32, ..Grid::new(a.len() / (n * n), 256) };
    gpu.launch(kernel.of(a.dtype()), grid, &[&y, a, &(n as i32)]);
    Some(y.finish())
}

/// A = P^T L U: L (unit diagonal) and U share `lu`; row i of P A is row `order[i]` of A.
pub(crate) struct Lu {
    n: usize,
    lu: Vec<f64>,
    order: Vec<usize>,
}

impl Lu {
    /// Factorises a row-major n by n matrix. A singular matrix gives a zero on U's diagonal.
    pub(crate) fn new(a: &[f64], n: usize) -> Self {
        debug_assert_eq!(a.len(), n * n);
        let (mut lu, mut order) = (a.to_vec(), (0..n).collect::<Vec<_>>());
        for k in 0..n {
            let size = |i: &usize| lu[i * n + k].abs();
            let pivot = (k..n).max_by(|i, j| size(i).total_cmp(&size(j))).unwrap_or(k);
            if pivot != k {
                order.swap(k, pivot);
                (0..n).for_each(|j| lu.swap(k * n + j, pivot * n + j));
            }
            let (above, below) = lu.split_at_mut((k + 1) * n);
            let top = &above[k * n..];
            if top[k] == 0.0 {
                continue;
            }
            for row in below.chunks_exact_mut(n) {
                let factor = row[k] / top[k];
                row[k] = factor;
                row[k + 1..].iter_mut().zip(&top[k + 1..]).for_each(|(x, t)| *x -= factor * t);
            }
        }
        Self { n, lu, order }
    }

    /// The row order and L, U in one matrix: row i of L U is row `order[i]` of A.
    pub(crate) fn into_parts(self) -> (Vec<usize>, Vec<f64>) {
        (self.order, self.lu)
    }

    /// log |det A|; −∞ for a singular matrix.
    pub(crate) fn log_abs_det(&self) -> f64 {
        (0..self.n).map(|i| self.lu[i * self.n + i].abs().ln()).sum()
    }

    /// A^-1, row-major; not finite for a singular matrix.
    pub(crate) fn inverse(&self) -> Vec<f64> {
        let n = self.n;
        // Solves for all columns at once: row operations on the permuted identity.
        let mut x = vec![0.0; n * n];
        for (i, &o) in self.order.iter().enumerate() {
            x[i * n + o] = 1.0;
        }
        let subtract = |x: &mut [f64], to: usize, from: usize| {
            let factor = self.lu[to * n + from];
            (0..n).for_each(|j| x[to * n + j] -= factor * x[from * n + j]);
        };
        for i in 0..n {
            (0..i).for_each(|k| subtract(&mut x, i, k));
        }
        for i in (0..n).rev() {
            (i + 1..n).for_each(|k| subtract(&mut x, i, k));
            let pivot = self.lu[i * n + i];
            (0..n).for_each(|j| x[i * n + j] /= pivot);
        }
        x
    }
}

#[track_caller]
fn side(op: &str, a: &Tensor) -> usize {
    match *a.shape() {
        [n, m] if n == m => n,
        _ => panic!("{op}: expected a square matrix, got shape {:?}", a.shape()),
    }
}

/// A^-1 of a square matrix (n, n), calculated in f64. Not finite when A is singular.
///
/// # Panics
/// When `a` is not a square float matrix.
#[track_caller]
pub fn inverse(a: &Tensor) -> Tensor {
    let n = side("inverse", a);
    let y = launch(&INVERSE, a, n, n * n, &[n, n])
        .unwrap_or_else(|| from_f64(&Lu::new(&a.to_f64_vec(), n).inverse(), n, a.dtype()).beside(a));
    let [y] = record(Recipe::primitive("inverse").keeping_outputs(), &[a], [y], |back| {
        let y = back.output(0);
        vec![Some(unary::neg(&matmul(&matmul(y, &back.grad(0), true, false), y, false, true)))]
    });
    y
}

/// log |det| (B,) and inverses of matrices (B, n, n), unrecorded.
///
/// # Panics
/// When `a` are not square float matrices.
#[track_caller]
pub(crate) fn log_dets_and_inverses(a: &Tensor) -> (Tensor, Tensor) {
    let [b, n, m] = a.dims();
    assert_eq!(n, m, "log_dets_and_inverses: {n} by {m} matrices");
    let a = a.detach();
    let there = launch(&LOG_DET, &a, n, 0, &[b]).zip(launch(&INVERSE, &a, n, n * n, &[b, n, n]));
    there.unwrap_or_else(|| {
        let (mut logs, mut inverses) = (Vec::with_capacity(b), Vec::with_capacity(b * n * n));
        for rows in a.to_f64_vec().chunks_exact(n * n) {
            let lu = Lu::new(rows, n);
            logs.push(lu.log_abs_det());
            inverses.extend(lu.inverse());
        }
        let made =
            |values: &[f64], shape: &[usize]| Tensor::from_slice(values, shape).cast(a.dtype()).beside(&a);
        (made(&logs, &[b]), made(&inverses, &[b, n, n]))
    })
}

fn from_f64(values: &[f64], n: usize, dtype: DType) -> Tensor {
    with_float!(dtype, T => Tensor::from_fn([n, n], |i| <T as crate::tensor::Plain>::from_f64(values[i])))
}

/// log |det A| of a square matrix (n, n), a scalar; −∞ when A is singular.
///
/// # Panics
/// When `a` is not a square float matrix.
#[track_caller]
pub fn log_abs_det(a: &Tensor) -> Tensor {
    let n = side("log_abs_det", a);
    let y = launch(&LOG_DET, a, n, 0, &[])
        .unwrap_or_else(|| Tensor::scalar(Lu::new(&a.to_f64_vec(), n).log_abs_det(), a.dtype()).beside(a));
    let saved = a.clone();
    let [y] = record(Recipe::primitive("log_abs_det"), &[a], [y], move |back| {
        let transposed = shape::permute(&inverse(&saved), &[1, 0]);
        vec![Some(binary::mul(&transposed, &back.grad(0)))]
    });
    y
}

fn cases() -> Vec<Case> {
    let a = |n: usize| {
        let spread = unary::affine(&normal(n as u64, &[n, n]), 0.3 / (n as f64).sqrt(), 0.0);
        vec![binary::add(&spread, &shape::one_hot(&shape::arange(n), n, DType::F64))]
    };
    let mut cases = Vec::new();
    for n in [1, 2, 5, 12] {
        cases.push(Case::new(format!("inverse {n}"), a(n), |x| vec![inverse(&x[0])]));
        cases.push(Case::new(format!("log_abs_det {n}"), a(n), |x| vec![log_abs_det(&x[0])]));
    }
    let n = 96;
    let large = Case::new("inverse 96", a(n), |x| vec![inverse(&x[0])]);
    cases.push(large.order(0).bench(8 * n * n, 8 * n * n * n / 3));
    let large = Case::new("log_abs_det 96", a(n), |x| vec![log_abs_det(&x[0])]);
    cases.push(large.order(0).bench(4 * n * n, 2 * n * n * n / 3));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pivoting_and_signs() {
        let a = Tensor::from_slice(&[0.0, 2.0, 0.0, 0.0, 0.0, -3.0, 0.5, 1.0, 1.0], [3, 3]);
        assert!((log_abs_det(&a).item() - 3f64.ln()).abs() < 1e-15);
        let product = matmul(&a, &inverse(&a), false, false).to_f64_vec();
        for (i, x) in product.iter().enumerate() {
            let want = if i % 4 == 0 { 1.0 } else { 0.0 };
            assert!((x - want).abs() < 1e-15, "{product:?}");
        }
    }

    #[test]
    fn singular_is_minus_infinity() {
        let a = Tensor::from_slice(&[1.0, 2.0, 2.0, 4.0], [2, 2]);
        assert_eq!(log_abs_det(&a).item(), f64::NEG_INFINITY);
        assert!(inverse(&a).to_f64_vec().iter().any(|x| !x.is_finite()));
    }
}
