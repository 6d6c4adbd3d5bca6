//! Symmetric matrices in f64: covariance, eigenvectors, whitening.

use super::Table;
use crate::cpu::gemm::{Epilogue, Mat, gemm};
use crate::cpu::par;
use crate::cpu::simd::vectorize;
use serde::{Deserialize, Serialize};

/// Rows that are whitened at once.
const ROWS: usize = 128;
/// Rows that a reflection is applied to while it is in cache.
const TOGETHER: usize = 8;
/// Columns of a strip, and rotations that are collected before they pass over it.
const STRIP: usize = 32;
const PENDING: usize = 1 << 14;

/// (D, D) covariance of the rows around `centre`: Σ (x − c)(x − c)ᵀ / n.
pub(super) fn covariance(x: &Table, centre: &[f64]) -> Vec<f64> {
    let (n, d) = (x.rows(), x.columns());
    let centred: Vec<f64> = x.iter().flat_map(|row| row.iter().zip(centre).map(|(x, c)| x - c)).collect();
    let mut out = vec![0.0; d * d];
    let epilogue = Epilogue { alpha: 1.0 / n as f64, ..Default::default() };
    gemm(d, d, n, Mat::t(&centred, d), Mat::new(&centred, d), &mut out, d, &epilogue);
    out
}

/// Eigenvalues, ascending, and eigenvectors, one per row, of the symmetric matrix `a`.
///
/// Householder reflections to tridiagonal form, then implicit QL steps (Bowdler, Martin, Reinsch & Wilkinson 1968);
/// about 4 n³ multiplications, all along rows. Large matrices are limited by memory, so a reflection is applied
/// while the product with the next one is formed, and rotations are collected until they are worth a pass.
pub(super) fn eigen(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    debug_assert_eq!(a.len(), n * n);
    let (mut diagonal, mut off) = (vec![0.0; n], vec![0.0; n]);
    // Row k of `a` keeps reflection k behind its diagonal once it is done; `scales` its 2/|v|².
    let mut scales = vec![0.0; n];
    // The reflection that is still to be applied, A − v wᵀ − w vᵀ, and the next one.
    let (mut v, mut w) = (vec![0.0; n], vec![0.0; n]);
    let (mut next_v, mut next_w) = (vec![0.0; n], vec![0.0; n]);
    for k in 0..n {
        let row = &mut a[k * n + k..(k + 1) * n];
        row.iter_mut().zip(&v[k..]).zip(&w[k..]).for_each(|((x, &vj), &wj)| *x -= v[k] * wj + w[k] * vj);
        diagonal[k] = row[0];
        let tail = k + 1..n;
        if tail.is_empty() {
            break;
        }
        next_v[tail.clone()].copy_from_slice(&row[1..]);
        let norm = next_v[tail.clone()].iter().map(|x| x * x).sum::<f64>().sqrt();
        let alpha = if next_v[k + 1] > 0.0 { -norm } else { norm };
        off[k] = alpha;
        next_v[k + 1] -= alpha;
        let square: f64 = next_v[tail.clone()].iter().map(|x| x * x).sum();
        let per = (par::GRAIN / tail.len()).max(1);
        let (old, new) = ((&v[tail.clone()], &w[tail.clone()]), &next_v[tail.clone()]);
        let (rest, products) = (&mut a[(k + 1) * n..], &mut next_w[tail.clone()]);
        par::chunks_mut2(rest, per * n, products, per, |chunk, rows, products| {
            let (vs, ws) = (&old.0[chunk * per..], &old.1[chunk * per..]);
            vectorize(
                #[inline(always)]
                || {
                    for (i, (row, product)) in rows.chunks_exact_mut(n).zip(products).enumerate() {
                        let (vi, wi, row) = (vs[i], ws[i], &mut row[k + 1..]);
                        for ((x, &v), &w) in row.iter_mut().zip(old.0).zip(old.1) {
                            *x -= vi * w + wi * v;
                        }
                        *product = dot(row, new);
                    }
                },
            );
        });
        if square > f64::MIN_POSITIVE {
            let scale = 2.0 / square;
            let (v, w) = (&next_v[tail.clone()], &mut next_w[tail.clone()]);
            w.iter_mut().for_each(|w| *w *= scale);
            let half = 0.5 * scale * dot(v, w);
            w.iter_mut().zip(v).for_each(|(w, v)| *w -= half * v);
            a[k * n..][tail].copy_from_slice(v);
            scales[k] = scale;
        } else {
            next_v.fill(0.0);
            next_w.fill(0.0);
        }
        std::mem::swap(&mut v, &mut next_v);
        std::mem::swap(&mut w, &mut next_w);
    }
    // Rows of Qᵀ, Q the product of the reflections: from the last to the first, each touches the rows behind it.
    let mut q = vec![0.0; n * n];
    (0..n).for_each(|i| q[i * n + i] = 1.0);
    par::chunks_mut(&mut q, TOGETHER * n, |chunk, rows| {
        let last = (chunk + 1) * TOGETHER;
        for k in (0..n.saturating_sub(1).min(last)).rev().filter(|&k| scales[k] > 0.0) {
            let (v, scale) = (&a[k * n + k + 1..(k + 1) * n], scales[k]);
            let first = (k + 1).saturating_sub(chunk * TOGETHER);
            vectorize(
                #[inline(always)]
                || {
                    for row in rows.chunks_exact_mut(n).skip(first) {
                        let factor = scale * dot(&row[k + 1..], v);
                        row[k + 1..].iter_mut().zip(v).for_each(|(x, v)| *x -= factor * v);
                    }
                },
            );
        }
    });
    let q = ql(&mut diagonal, &mut off, &q, n);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| diagonal[i].total_cmp(&diagonal[j]));
    let vectors = order.iter().flat_map(|&i| q[i * n..][..n].iter().copied()).collect();
    (order.iter().map(|&i| diagonal[i]).collect(), vectors)
}

/// The rows of a matrix, its columns cut into strips that stay in cache while many rotations pass over them.
struct Strips {
    n: usize,
    /// (strips, n, STRIP), filled up with zeros.
    cells: Vec<f64>,
    /// (i, s, c): rows i and i + 1 are to be rotated.
    pending: Vec<(usize, f64, f64)>,
}

impl Strips {
    fn new(q: &[f64], n: usize) -> Self {
        let mut cells = vec![0.0; n.div_ceil(STRIP) * n * STRIP];
        for (strip, cells) in cells.chunks_exact_mut((n * STRIP).max(1)).enumerate() {
            for (row, cells) in q.chunks_exact(n).zip(cells.chunks_exact_mut(STRIP)) {
                let part = &row[strip * STRIP..n.min((strip + 1) * STRIP)];
                cells[..part.len()].copy_from_slice(part);
            }
        }
        Self { n, cells, pending: Vec::with_capacity(PENDING) }
    }

    /// (x, y) -> (c x − s y, s x + c y) for the rows x = i and y = i + 1.
    fn rotate(&mut self, i: usize, s: f64, c: f64) {
        self.pending.push((i, s, c));
        if self.pending.len() == PENDING {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let pending = &self.pending;
        par::chunks_mut(&mut self.cells, self.n * STRIP, |_, cells| {
            vectorize(
                #[inline(always)]
                || {
                    for &(i, s, c) in pending {
                        let (x, y) = cells[i * STRIP..][..2 * STRIP].split_at_mut(STRIP);
                        for (x, y) in x.iter_mut().zip(y) {
                            (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
                        }
                    }
                },
            );
        });
        self.pending.clear();
    }

    fn into_rows(mut self) -> Vec<f64> {
        self.flush();
        let n = self.n;
        let mut q = vec![0.0; n * n];
        for (strip, cells) in self.cells.chunks_exact((n * STRIP).max(1)).enumerate() {
            for (row, cells) in q.chunks_exact_mut(n).zip(cells.chunks_exact(STRIP)) {
                let part = &mut row[strip * STRIP..n.min((strip + 1) * STRIP)];
                let len = part.len();
                part.copy_from_slice(&cells[..len]);
            }
        }
        q
    }
}

/// Diagonalises the tridiagonal matrix; the rows of `q` with the rotations applied.
fn ql(diagonal: &mut [f64], off: &mut [f64], q: &[f64], n: usize) -> Vec<f64> {
    let mut q = Strips::new(q, n);
    for l in 0..n {
        // Convergence is cubic; more than a few steps per eigenvalue do not happen.
        for _ in 0..60 {
            let small = |m: usize| off[m].abs() <= f64::EPSILON * (diagonal[m].abs() + diagonal[m + 1].abs());
            let m = (l..n - 1).find(|&m| small(m)).unwrap_or(n - 1);
            if m == l {
                break;
            }
            let g = (diagonal[l + 1] - diagonal[l]) / (2.0 * off[l]);
            let r = g.hypot(1.0);
            let mut g = diagonal[m] - diagonal[l] + off[l] / (g + r.copysign(g));
            let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
            let mut whole = true;
            for i in (l..m).rev() {
                let (f, b) = (s * off[i], c * off[i]);
                let r = f.hypot(g);
                off[i + 1] = r;
                if r == 0.0 {
                    diagonal[i + 1] -= p;
                    off[m] = 0.0;
                    whole = false;
                    break;
                }
                (s, c) = (f / r, g / r);
                let g1 = diagonal[i + 1] - p;
                let r = (diagonal[i] - g1) * s + 2.0 * c * b;
                p = s * r;
                diagonal[i + 1] = g1 + p;
                g = c * r - b;
                q.rotate(i, s, c);
            }
            if whole {
                diagonal[l] -= p;
                off[l] = g;
                off[m] = 0.0;
            }
        }
    }
    q.into_rows()
}

/// Eight partial sums, so that it vectorises.
#[inline(always)]
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (pa, ra) = a.as_chunks::<8>();
    let (pb, rb) = b.as_chunks::<8>();
    for (a, b) in pa.iter().zip(pb) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f64>() + ra.iter().zip(rb).map(|(a, b)| a * b).sum::<f64>()
}

/// The variances along the principal directions and those (K, D) directions, the largest first, from the (N, N) products
/// of rows: v = Zᵀu / |Zᵀu|. For fewer rows than columns; directions of no variance are left out, at least one is kept.
pub(super) fn by_rows(x: &Table, centre: &[f64]) -> (Vec<f64>, Table) {
    let (n, d) = (x.rows(), x.columns());
    let centred: Vec<f64> = x.iter().flat_map(|row| row.iter().zip(centre).map(|(x, c)| x - c)).collect();
    let mut products = vec![0.0; n * n];
    let epilogue = Epilogue { alpha: 1.0 / n as f64, ..Default::default() };
    gemm(n, n, d, Mat::new(&centred, d), Mat::t(&centred, d), &mut products, n, &epilogue);
    let (values, vectors) = eigen(products, n);
    let floor = values[n - 1] * n as f64 * f64::EPSILON;
    let kept = values.iter().filter(|&&v| v > floor).count().max(1);
    let chosen: Vec<f64> = vectors.chunks_exact(n).rev().take(kept).flatten().copied().collect();
    let mut directions = vec![0.0; kept * d];
    gemm(kept, d, n, Mat::new(&chosen, n), Mat::new(&centred, d), &mut directions, d, &Epilogue::default());
    let directions = Table::from_rows(kept, d, |k, row| {
        row.copy_from_slice(&directions[k * d..][..d]);
        let norm = dot(row, row).sqrt();
        if norm > 0.0 {
            row.iter_mut().for_each(|x| *x /= norm);
        }
    });
    (values.into_iter().rev().take(kept).map(|v| v.max(0.0)).collect(), directions)
}

/// x -> (x − centre) W with W Wᵀ the (pseudo-)inverse of a covariance, so that |·|² is the squared Mahalanobis distance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Whitening {
    centre: Vec<f64>,
    rank: usize,
    /// (D, rank).
    matrix: Vec<f64>,
    /// log of the product of the eigenvalues that are not 0; −∞ is not kept in files, see `singular`.
    pub log_det: f64,
    /// Whether an eigenvalue is 0.
    pub singular: bool,
}

impl Whitening {
    /// Of a (D, D) covariance: by Cholesky's factor, or if it has none by eigenvectors, leaving out those whose
    /// eigenvalue is 0 to rounding.
    pub fn new(centre: Vec<f64>, covariance: &[f64]) -> Self {
        let d = centre.len();
        let largest = (0..d).map(|i| covariance[i * d + i]).fold(0.0, f64::max);
        let floor = largest * d as f64 * f64::EPSILON;
        if let Some((matrix, log_det)) = inverse_cholesky(covariance, d, floor) {
            return Self { centre, rank: d, matrix, log_det, singular: false };
        }
        let (values, vectors) = eigen(covariance.to_vec(), d);
        Self::along(centre, &values, &vectors)
    }

    /// From variances and (K, D) orthonormal directions, leaving out those whose variance is 0 to rounding.
    fn along(centre: Vec<f64>, values: &[f64], vectors: &[f64]) -> Self {
        let d = centre.len();
        let floor = values.iter().fold(0.0f64, |m, v| m.max(v.abs())) * d as f64 * f64::EPSILON;
        let kept: Vec<usize> = (0..values.len()).filter(|&k| values[k] > floor).collect();
        let rank = kept.len();
        let mut matrix = vec![0.0; d * rank];
        for (c, &k) in kept.iter().enumerate() {
            let scale = values[k].sqrt().recip();
            (0..d).for_each(|j| matrix[j * rank + c] = vectors[k * d + j] * scale);
        }
        let log_det = kept.iter().map(|&k| values[k].ln()).sum();
        Self { centre, rank, matrix, log_det, singular: rank < d }
    }

    /// Of the rows of a table, around their mean.
    pub fn of(x: &Table) -> Self {
        let centre = x.mean();
        if x.rows() <= x.columns() {
            let (values, directions) = by_rows(x, &centre);
            return Self::along(centre, &values, directions.values());
        }
        let covariance = covariance(x, &centre);
        Self::new(centre, &covariance)
    }

    /// Number of directions that are counted.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// (x − centre) W of every row.
    pub fn apply(&self, x: &Table) -> Table {
        Table::from_rows(x.rows(), self.rank.max(1), |i, out| {
            for (j, (x, c)) in x.row(i).iter().zip(&self.centre).enumerate() {
                let row = &self.matrix[j * self.rank..][..self.rank];
                out.iter_mut().zip(row).for_each(|(o, w)| *o += (x - c) * w);
            }
        })
    }

    /// |(x − centre) W|² of every row.
    pub fn squared(&self, x: &Table) -> Vec<f64> {
        let d = self.centre.len();
        let mut out = vec![0.0; x.rows()];
        par::chunks_mut(&mut out, ROWS, |chunk, out| {
            let rows = &x.values()[chunk * ROWS * d..][..out.len() * d];
            let centred: Vec<f64> = rows
                .chunks_exact(d)
                .flat_map(|row| row.iter().zip(&self.centre).map(|(x, c)| x - c))
                .collect();
            let mut white = vec![0.0; out.len() * self.rank];
            let (a, b) = (Mat::new(&centred, d), Mat::new(&self.matrix, self.rank.max(1)));
            gemm(out.len(), self.rank, d, a, b, &mut white, self.rank.max(1), &Epilogue::default());
            for (o, white) in out.iter_mut().zip(white.chunks_exact(self.rank.max(1))) {
                *o = dot(white, white);
            }
        });
        out
    }

    /// D, or `None` when the parts of a restored one do not fit.
    pub fn columns(&self) -> Option<usize> {
        let d = self.centre.len();
        let finite = self.centre.iter().chain(&self.matrix).all(|x| x.is_finite());
        (d > 0 && self.rank <= d && self.matrix.len() == d * self.rank && finite).then_some(d)
    }
}

/// (L⁻ᵀ, log det) of a positive definite matrix A = L Lᵀ; `None` when a pivot is not above `floor`.
fn inverse_cholesky(a: &[f64], n: usize, floor: f64) -> Option<(Vec<f64>, f64)> {
    let mut l = vec![0.0; n * n];
    let mut log_det = 0.0;
    for i in 0..n {
        for j in 0..=i {
            let (before, rest) = l.split_at_mut(i * n);
            let other = if j < i { &before[j * n..][..j] } else { &rest[..j] };
            let rest_of = a[i * n + j] - dot(&rest[..j], other);
            if j < i {
                rest[j] = rest_of / before[j * n + j];
            } else if rest_of > floor {
                rest[i] = rest_of.sqrt();
                log_det += rest_of.ln();
            } else {
                return None;
            }
        }
    }
    // L⁻¹ row by row: row i = (e_i − Σ_{k<i} L_ik row k) / L_ii; its transpose is what multiplies rows from the right.
    let mut inverse = vec![0.0; n * n];
    for i in 0..n {
        let (done, row) = inverse.split_at_mut(i * n);
        let row = &mut row[..n];
        for (k, other) in done.chunks_exact(n).enumerate() {
            let factor = l[i * n + k];
            row[..=k].iter_mut().zip(other).for_each(|(x, o)| *x -= factor * o);
        }
        let scale = l[i * n + i].recip();
        row[..i].iter_mut().for_each(|x| *x *= scale);
        row[i] = scale;
    }
    let transposed = (0..n * n).map(|at| inverse[at % n * n + at / n]).collect();
    Some((transposed, log_det))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Philox;
    use crate::tensor::DType;

    fn rows(n: usize, d: usize, rank: usize) -> Table {
        let draws = Philox::new((n + d) as u64).normal([n * rank + rank * d], DType::F64);
        let (a, b) = draws.as_slice::<f64>().split_at(n * rank);
        let value = |i: usize| (0..rank).map(|k| a[i / d * rank + k] * b[k * d + i % d]).sum();
        Table::new(d, (0..n * d).map(value).collect()).unwrap()
    }

    #[test]
    fn eigenvectors_rebuild_the_matrix() {
        for (n, d, rank) in
            [(50, 1, 1), (50, 2, 2), (200, 17, 17), (30, 40, 30), (60, 8, 3), (400, 150, 150), (90, 131, 7)]
        {
            let x = rows(n, d, rank);
            let a = covariance(&x, &x.mean());
            let (values, vectors) = eigen(a.clone(), d);
            assert!(values.is_sorted());
            let scale = values[d - 1];
            for i in 0..d {
                for j in 0..d {
                    let sum = |f: &dyn Fn(usize) -> f64| (0..d).map(f).sum::<f64>();
                    let rebuilt = sum(&|k| values[k] * vectors[k * d + i] * vectors[k * d + j]);
                    assert!((rebuilt - a[i * d + j]).abs() < 1e-12 * scale, "{d}: {i}, {j}");
                    let product = sum(&|k| vectors[i * d + k] * vectors[j * d + k]);
                    assert!((product - (i == j) as u8 as f64).abs() < 1e-12, "{d}: {i}, {j}");
                }
            }
        }
    }

    /// The mean squared Mahalanobis distance of the rows that made the covariance is its rank.
    #[test]
    fn whitening_has_the_rank_of_the_rows() {
        for (n, d, rank) in [(200, 5, 5), (200, 9, 4), (10, 30, 9), (3, 1, 1)] {
            let x = rows(n, d, rank.min(n - 1));
            let white = Whitening::of(&x);
            assert_eq!(white.singular, rank < d);
            let squared = white.squared(&x);
            let mean = squared.iter().sum::<f64>() / n as f64;
            assert!((mean - rank as f64).abs() < 1e-8, "{n} x {d}: {mean}");
        }
        let constant = Whitening::of(&Table::new(2, vec![1.0; 10]).unwrap());
        assert_eq!(constant.squared(&Table::new(2, vec![7.0; 4]).unwrap()), [0.0, 0.0]);
    }
}
