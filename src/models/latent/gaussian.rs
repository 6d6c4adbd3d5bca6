//! K Gaussians over D numbers: densities, samples, and their maximum-likelihood update from weighted rows.
//!
//! A covariance is kept as the inverse W of its Cholesky factor: ½ |W (x − μ)|² needs one product and
//! ½ ln |Σ| = −Σ ln W_dd, with no factorisation when scoring. All in f64.

use super::kmeans::squared_distance;
use crate::cpu::gemm::{Epilogue, Mat, gemm};
use crate::cpu::{cholesky, par, simd};
use crate::nn::{Init, Initial, Param};
use crate::ops::matmul::matmul;
use crate::ops::shape::concat;
use crate::random::Philox;
use crate::tensor::{DType, NewTensor, Tensor};
use serde::{Deserialize, Serialize};

/// ½ ln 2π.
const HALF_LN_TAU: f64 = 0.918_938_533_204_672_8;

/// The form of the covariance matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Covariance {
    /// A matrix for each component.
    Full,
    /// One matrix for all components.
    Tied,
    /// A diagonal for each component.
    Diagonal,
}

impl Covariance {
    /// The shape of what holds the covariances, or their W, of `k` Gaussians over `d` numbers.
    fn shape(self, k: usize, d: usize) -> [usize; 3] {
        match self {
            Covariance::Full => [k, d, d],
            Covariance::Tied => [1, d, d],
            Covariance::Diagonal => [k, 1, d],
        }
    }

    /// Free parameters of the covariances.
    pub(super) fn count(self, k: usize, d: usize) -> usize {
        match self {
            Covariance::Full => k * d * (d + 1) / 2,
            Covariance::Tied => d * (d + 1) / 2,
            Covariance::Diagonal => k * d,
        }
    }
}

/// The Gaussians.
pub(super) struct Gaussians {
    pub(super) form: Covariance,
    /// (K, D).
    pub(super) means: Param,
    /// W: (K, D, D) lower triangular, (1, D, D) when tied; when diagonal (K, 1, D), 1 / σ.
    pub(super) whiten: Param,
}

impl Gaussians {
    /// `k` Gaussians with random means and unit covariances, in the buffers `means` and `whiten`.
    pub(super) fn new(init: &mut Init, form: Covariance, k: usize, d: usize) -> Self {
        let means = init.buffer("means", [k, d], DType::F64, Initial::Normal(1.0));
        let whiten = init.buffer("whiten", form.shape(k, d), DType::F64, Initial::Constant(1.0));
        whiten.set(&units(form, k, d));
        Self { form, means, whiten }
    }

    /// `k` Gaussians at the given means (K, D), with unit covariances, of no store.
    pub(super) fn at(form: Covariance, means: &Tensor) -> Self {
        let [k, d] = means.dims();
        Self { form, means: Param::buffer(means.clone()), whiten: Param::buffer(units(form, k, d)) }
    }

    /// Gaussians at the rows `means` (K, D) with these 1 / σ (K · D), of no store.
    pub(super) fn diagonal(means: &Tensor, inverse_deviations: &[f64]) -> Self {
        let [k, d] = means.dims();
        let whiten = Param::buffer(Tensor::from_slice(inverse_deviations, [k, 1, d]));
        Self { form: Covariance::Diagonal, means: Param::buffer(means.clone()), whiten }
    }

    /// W in the shape of `form`: this one, or the full one.
    ///
    /// # Panics
    /// When it is another.
    pub(super) fn in_form(&self, form: Covariance) -> Tensor {
        let ([k, d], w) = (self.means.get().dims(), self.whiten.get());
        if form == self.form {
            return w;
        }
        assert_eq!(form, Covariance::Full, "{:?} covariances in the form of {form:?} ones", self.form);
        let from = w.as_slice::<f64>();
        Tensor::from_fn(form.shape(k, d), |i| match self.form {
            Covariance::Diagonal if i / d % d != i % d => 0.0,
            Covariance::Diagonal => from[i / (d * d) * d + i % d],
            _ => from[i % (d * d)],
        })
    }

    /// ln N(y; μ, Σ) (N, K) of rows y (N, D), in nats.
    pub(super) fn log_density(&self, y: &Tensor) -> Tensor {
        self.log_joint(y, &vec![0.0; self.means.get().shape()[0]])
    }

    /// The same plus a number for each Gaussian, such as the logarithm of its weight.
    ///
    /// With one matrix for all components, or diagonal ones, squared distances are |u|² − 2 u·m + |m|² and so a product
    /// of N by K by D; full ones take N K D² multiplications.
    pub(super) fn log_joint(&self, y: &Tensor, log_weights: &[f64]) -> Tensor {
        let ([n, d], means, w) = (y.dims(), self.means.get(), self.whiten.get());
        let k = means.shape()[0];
        let diagonal = w.as_slice::<f64>();
        let half_log_precision = |block: &[f64]| -> f64 {
            let step = if self.form == Covariance::Diagonal { 1 } else { d + 1 };
            block.iter().step_by(step).map(|w| w.ln()).sum()
        };
        let per: Vec<f64> = diagonal.chunks_exact(w.len() / w.shape()[0]).map(half_log_precision).collect();
        let mut level: Vec<f64> = log_weights.to_vec();
        level.iter_mut().enumerate().for_each(|(i, l)| *l += per[i % per.len()] - d as f64 * HALF_LN_TAU);
        match self.form {
            Covariance::Full => &self.distances(y).affine(-0.5, 0.0) + &Tensor::from_slice(&level, [1, k]),
            Covariance::Tied => {
                let w = w.reshape([d, d]);
                let [u, m] = [y, &means].map(|x| matmul(x, &w, false, true));
                let halves = |x: &Tensor| x.square().sum(&[1]).affine(-0.5, 0.0);
                let ends = halves(&m).to_f64_vec();
                level.iter_mut().zip(ends).for_each(|(l, end)| *l += end);
                &products(&u, &m, &level) + &halves(&u).reshape([n, 1])
            }
            Covariance::Diagonal => {
                let precision = w.reshape([k, d]).square();
                let pull = &means * &precision;
                let ends = (&means * &pull).sum(&[1]).affine(-0.5, 0.0).to_f64_vec();
                level.iter_mut().zip(ends).for_each(|(l, end)| *l += end);
                let left = concat(&[&y.square(), y], 1);
                products(&left, &concat(&[&precision.affine(-0.5, 0.0), &pull], 1), &level)
            }
        }
    }

    /// |W_k (y − μ_k)|² (N, K) for full matrices.
    fn distances(&self, y: &Tensor) -> Tensor {
        let ([n, d], means, w) = (y.dims(), self.means.get(), self.whiten.get());
        let k = means.shape()[0];
        let centres = matmul(&means.reshape([k, 1, d]), &w, false, true);
        let (centres, all) = (centres.as_slice::<f64>(), w.reshape([k * d, d]));
        let mut out = NewTensor::<f64>::new([n, k]);
        let rows = (CHUNK / (k * d)).clamp(1, n.max(1));
        for (i, out) in out.as_mut().chunks_mut(rows * k).enumerate() {
            let z = matmul(&y.narrow(0, i * rows, out.len() / k), &all, false, true);
            let z = z.as_slice::<f64>();
            par::chunks_mut(out, ROWS * k, |chunk, out| {
                let z = z[chunk * ROWS * k * d..].chunks_exact(d);
                for ((far, z), c) in out.iter_mut().zip(z).zip(centres.chunks_exact(d).cycle()) {
                    *far = squared_distance(z, c);
                }
            });
        }
        out.finish()
    }

    /// μ + `temperature` · noise (n, D), row i from Gaussian `which[i]`.
    pub(super) fn sample(&self, which: &[usize], temperature: f64, rng: &mut Philox) -> Tensor {
        let (means, w) = (self.means.get(), self.whiten.get());
        let [_, d] = means.dims();
        let mut y = rng.normal([which.len(), d], DType::F64).affine(temperature, 0.0);
        let (means, blocks) = (means.as_slice::<f64>(), w.as_slice::<f64>());
        let (per, count) = (w.len() / w.shape()[0], w.shape()[0]);
        for (row, &k) in y.make_mut::<f64>().chunks_exact_mut(d).zip(which) {
            let w = &blocks[k % count * per..][..per];
            match self.form {
                Covariance::Diagonal => row.iter_mut().zip(w).for_each(|(y, w)| *y /= w),
                _ => cholesky::solve_lower(w, row),
            }
            row.iter_mut().zip(&means[k * d..]).for_each(|(y, m)| *y += m);
        }
        y
    }

    /// Weighted sums over rows y (N, D) with weights r (N, K), whose rows sum to 1.
    pub(super) fn moments(&self, y: &Tensor, weights: &Tensor) -> Moments {
        let ([n, d], k) = (y.dims(), self.means.get().shape()[0]);
        let second = match self.form {
            Covariance::Full => self.scatter(y, weights),
            Covariance::Tied => matmul(y, y, true, false).reshape([1, d, d]),
            Covariance::Diagonal => matmul(weights, &y.square(), true, false).reshape([k, 1, d]),
        };
        let ones = Tensor::ones([n, 1], DType::F64);
        let counts = matmul(weights, &ones, true, false).to_f64_vec();
        Moments { counts, first: matmul(weights, y, true, false), second }
    }

    /// Σ r (y − μ)(y − μ)ᵀ (K, D, D) around the present means. A row counts for the few components that it may be from.
    fn scatter(&self, y: &Tensor, weights: &Tensor) -> Tensor {
        let ([_, d], means) = (y.dims(), self.means.get());
        let k = means.shape()[0];
        let (rows, shares, means) = (y.as_slice::<f64>(), weights.as_slice::<f64>(), means.as_slice::<f64>());
        let mut out = NewTensor::<f64>::new([k, d, d]);
        for (j, out) in out.as_mut().chunks_exact_mut(d * d).enumerate() {
            let mut mine = Vec::new();
            for (row, share) in rows.chunks_exact(d).zip(shares.chunks_exact(k)).filter(|(_, s)| s[j] > SHARE)
            {
                let root = share[j].sqrt();
                mine.extend(row.iter().zip(&means[j * d..][..d]).map(|(y, m)| root * (y - m)));
            }
            let mine = Tensor::from_slice(&mine, [mine.len() / d, d]);
            out.copy_from_slice(matmul(&mine, &mine, true, false).as_slice::<f64>());
        }
        out.finish()
    }

    /// Takes on the weighted means and covariances of `moments`, which [`Self::moments`] took with the present means.
    /// With S_k the weighted scatter of N_k rows, Σ_k = (S_k + `prior` · E) / (N_k + `prior`) + diag(`floor`), E the
    /// covariance that the prior expects. A Gaussian without rows stays as it is.
    pub(super) fn update(&self, moments: &Moments, prior: Prior) {
        let [k, d] = self.means.get().dims();
        let first = moments.first.as_slice::<f64>();
        let mut means = self.means.get().to_f64_vec();
        let mut whiten = self.whiten.get().to_f64_vec();
        let mut scatter = moments.second.to_f64_vec();
        let per = whiten.len() / self.whiten.get().shape()[0];
        let used: Vec<usize> = (0..k).filter(|&i| moments.counts[i] > EMPTY).collect();
        for &i in &used {
            let count = moments.counts[i];
            let old = &mut means[i * d..][..d];
            let new: Vec<f64> = first[i * d..][..d].iter().map(|s| s / count).collect();
            let shift: Vec<f64> = new.iter().zip(&*old).map(|(new, old)| new - old).collect();
            match self.form {
                Covariance::Full => subtract_outer(&mut scatter[i * per..][..per], &shift, count),
                Covariance::Tied => subtract_outer(&mut scatter, &new, count),
                Covariance::Diagonal => {
                    scatter[i * d..][..d]
                        .iter_mut()
                        .zip(&new)
                        .for_each(|(s, m)| *s = (*s - count * m * m).max(0.0));
                }
            }
            old.copy_from_slice(&new);
        }
        let total: f64 = moments.counts.iter().sum();
        let sphere = prior.sphere(d);
        match self.form {
            Covariance::Tied => whiten.copy_from_slice(&prior.whitening(&scatter, &sphere, d, total)),
            form => {
                let mut expected = if form == Covariance::Full { sphere } else { vec![prior.expected; d] };
                if prior.pooled {
                    let mut pooled = vec![0.0; per];
                    for &i in &used {
                        pooled.iter_mut().zip(&scatter[i * per..]).for_each(|(sum, s)| *sum += s);
                    }
                    expected = prior.covariance(&pooled, &expected, total);
                }
                for &i in &used {
                    let (count, block) = (moments.counts[i], &scatter[i * per..][..per]);
                    let w = &mut whiten[i * per..][..per];
                    if form == Covariance::Full {
                        w.copy_from_slice(&prior.whitening(block, &expected, d, count));
                    } else {
                        let variances = prior.covariance(block, &expected, count);
                        let all = w.iter_mut().zip(variances).zip(prior.floor);
                        all.for_each(|((w, v), floor)| *w = 1.0 / (v + floor).sqrt());
                    }
                }
            }
        }
        self.means.set(&Tensor::from_slice(&means, [k, d]));
        self.whiten.set(&Tensor::from_slice(&whiten, self.form.shape(k, d)));
    }
}

/// S −= `count` · m mᵀ.
fn subtract_outer(scatter: &mut [f64], m: &[f64], count: f64) {
    simd::vectorize(
        #[inline(always)]
        || {
            for (row, a) in scatter.chunks_exact_mut(m.len()).zip(m) {
                let factor = count * a;
                row.iter_mut().zip(m).for_each(|(s, b)| *s -= factor * b);
            }
        },
    );
}

/// A Bᵀ (N, K) of A (N, M) and B (K, M), with `bias` (K) added to every row.
fn products(a: &Tensor, b: &Tensor, bias: &[f64]) -> Tensor {
    let ([n, m], [k, _]) = (a.dims(), b.dims());
    let mut out = NewTensor::<f64>::new([n, k]);
    let of = |t, transposed| Mat { data: t, row_stride: m, transposed };
    let (left, right) = (of(a.as_slice::<f64>(), false), of(b.as_slice::<f64>(), true));
    let epilogue = Epilogue { bias: Some(bias), ..Epilogue::default() };
    gemm(n, k, m, left, right, out.as_mut(), k, &epilogue);
    out.finish()
}

/// Numbers that one chunk of distances holds.
const CHUNK: usize = 1 << 17;
/// Rows per parallel task.
const ROWS: usize = 32;
/// A row with a smaller share in a component does not count for its covariance.
const SHARE: f64 = 1e-9;
/// Fewer rows than this are none.
const EMPTY: f64 = 1e-10;

fn units(form: Covariance, k: usize, d: usize) -> Tensor {
    Tensor::from_fn(form.shape(k, d), |i| match form {
        Covariance::Diagonal => 1.0,
        _ => f64::from((i % (d * d)).is_multiple_of(d + 1)),
    })
}

/// What is believed of a covariance before the data, so that neither few rows nor constant columns make it singular.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prior<'a> {
    /// In rows: how much of them the expected covariance counts for.
    pub(super) strength: f64,
    /// The expected variance of every column.
    pub(super) expected: f64,
    /// Whether what is expected of one component is the covariance that all have in common, of which that variance
    /// in turn is expected.
    pub(super) pooled: bool,
    /// Added to the variance of each column.
    pub(super) floor: &'a [f64],
}

impl Prior<'_> {
    /// s I.
    fn sphere(self, d: usize) -> Vec<f64> {
        (0..d * d).map(|i| if i % (d + 1) == 0 { self.expected } else { 0.0 }).collect()
    }

    /// (S + strength · E) / (count + strength).
    fn covariance(self, scatter: &[f64], expected: &[f64], count: f64) -> Vec<f64> {
        let share = 1.0 / (count + self.strength);
        scatter.iter().zip(expected).map(|(s, e)| (s + self.strength * e) * share).collect()
    }

    /// W of the covariance of `count` rows with this scatter matrix (D, D).
    fn whitening(self, scatter: &[f64], expected: &[f64], d: usize, count: f64) -> Vec<f64> {
        let covariance = self.covariance(scatter, expected, count);
        let mut more = 1.0;
        loop {
            let mut a = covariance.clone();
            (0..d).for_each(|i| a[i * d + i] = a[i * d + i].max(0.0) + more * self.floor[i]);
            if cholesky::factor(&mut a, d) {
                return cholesky::invert_lower(&a, d);
            }
            // Rounding has made the scatter indefinite by more than the floor.
            more *= 10.0;
        }
    }
}

/// Weighted sums over rows: what an update needs.
pub(super) struct Moments {
    /// (K,) Σ r.
    pub(super) counts: Vec<f64>,
    /// (K, D) Σ r y.
    first: Tensor,
    /// Full: Σ r (y − μ)(y − μ)ᵀ (K, D, D). Tied: Σ y yᵀ (1, D, D). Diagonal: Σ r y² (K, 1, D).
    second: Tensor,
}

impl Moments {
    /// The sums over both sets of rows.
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            counts: self.counts.iter().zip(&other.counts).map(|(a, b)| a + b).collect(),
            first: &self.first + &other.first,
            second: &self.second + &other.second,
        }
    }
}
