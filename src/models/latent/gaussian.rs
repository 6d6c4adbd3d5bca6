//! K Gaussians over D numbers: densities, samples, and their maximum-likelihood update from weighted rows.
//!
//! A covariance is kept as the inverse W of its Cholesky factor: ½ |W (x − μ)|² needs one product and
//! ½ ln |Σ| = −Σ ln W_dd, with no factorisation when scoring. All in f64.

use crate::cpu::cholesky;
use crate::nn::{Init, Initial, Param};
use crate::ops::matmul::matmul;
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
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

    /// y − μ: (N, D) to (K, N, D).
    pub(super) fn centred(&self, y: &Tensor) -> Tensor {
        let ([n, d], means) = (y.dims(), self.means.get());
        &y.reshape([1, n, d]) - &means.reshape([means.shape()[0], 1, d])
    }

    /// ln N(y; μ, Σ) (K, N) from y − μ (K, N, D), in nats.
    pub(super) fn log_density(&self, centred: &Tensor) -> Tensor {
        let ([k, n, d], w) = (centred.dims(), self.whiten.get());
        let z = match self.form {
            Covariance::Full => matmul(centred, &w, false, true),
            Covariance::Tied => matmul(centred, &w.reshape([d, d]), false, true),
            Covariance::Diagonal => centred * &w,
        };
        let diagonal = w.as_slice::<f64>();
        let half_log_precision = |block: &[f64]| -> f64 {
            let step = if self.form == Covariance::Diagonal { 1 } else { d + 1 };
            block.iter().step_by(step).map(|w| w.ln()).sum()
        };
        let per: Vec<f64> = diagonal.chunks_exact(w.len() / w.shape()[0]).map(half_log_precision).collect();
        let level = Tensor::from_fn([k, 1], |i| per[i % per.len()] - d as f64 * HALF_LN_TAU);
        &z.square().sum(&[2]).affine(-0.5, 0.0).reshape([k, n]) + &level
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

    /// Takes on the weighted means and covariances of `moments`, which were taken around the present means. With
    /// S_k the weighted scatter of N_k rows, Σ_k = (S_k + `prior` · s I) / (N_k + `prior`) + `floor` · I, s the
    /// variance that the prior expects. A Gaussian without rows stays as it is.
    pub(super) fn update(&self, moments: &Moments, prior: Prior) {
        let [k, d] = self.means.get().dims();
        let first = moments.first.as_slice::<f64>();
        let mut means = self.means.get().to_f64_vec();
        let mut whiten = self.whiten.get().to_f64_vec();
        let mut scatter = moments.second.to_f64_vec();
        let per = scatter.len() / k;
        for i in 0..k {
            let count = moments.counts[i];
            if count <= EMPTY {
                continue;
            }
            let shift: Vec<f64> = first[i * d..][..d].iter().map(|s| s / count).collect();
            means[i * d..][..d].iter_mut().zip(&shift).for_each(|(m, s)| *m += s);
            let block = &mut scatter[i * per..][..per];
            if self.form == Covariance::Diagonal {
                block.iter_mut().zip(&shift).for_each(|(s, x)| *s -= count * x * x);
            } else {
                for (row, a) in block.chunks_exact_mut(d).zip(&shift) {
                    row.iter_mut().zip(&shift).for_each(|(s, b)| *s -= count * a * b);
                }
            }
        }
        if self.form == Covariance::Tied {
            let (sum, rest) = scatter.split_at_mut(per);
            rest.chunks_exact(per).for_each(|b| sum.iter_mut().zip(b).for_each(|(s, x)| *s += x));
            let total = moments.counts.iter().sum();
            whiten.copy_from_slice(&prior.whitening(sum, d, total));
        } else {
            for (i, block) in scatter.chunks_exact(per).enumerate() {
                if moments.counts[i] > EMPTY {
                    let w = &mut whiten[i * per..][..per];
                    match self.form {
                        Covariance::Diagonal => w.iter_mut().zip(block).for_each(|(w, s)| {
                            *w = 1.0 / prior.variance(s.max(0.0), moments.counts[i]).sqrt();
                        }),
                        _ => w.copy_from_slice(&prior.whitening(block, d, moments.counts[i])),
                    }
                }
            }
        }
        self.means.set(&Tensor::from_slice(&means, [k, d]));
        self.whiten.set(&Tensor::from_slice(&whiten, self.form.shape(k, d)));
    }
}

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
pub(super) struct Prior {
    /// In rows: how much of them the expected covariance counts for.
    pub(super) strength: f64,
    /// The expected variance of every column.
    pub(super) expected: f64,
    /// Added to every variance.
    pub(super) floor: f64,
}

impl Prior {
    fn variance(self, scatter: f64, count: f64) -> f64 {
        (scatter + self.strength * self.expected) / (count + self.strength) + self.floor
    }

    /// W of the covariance of `count` rows with this scatter matrix (D, D).
    fn whitening(self, scatter: &[f64], d: usize, count: f64) -> Vec<f64> {
        let mut floor = self.floor;
        loop {
            let mut a: Vec<f64> = scatter.iter().map(|s| s / (count + self.strength)).collect();
            (0..d).for_each(|i| {
                a[i * d + i] = Self { floor, ..self }.variance(scatter[i * d + i].max(0.0), count);
            });
            if cholesky::factor(&mut a, d) {
                return cholesky::invert_lower(&a, d);
            }
            // Rounding has made the scatter indefinite by more than the floor.
            floor *= 10.0;
        }
    }
}

/// Weighted sums over rows: what an update needs.
pub(super) struct Moments {
    /// (K,) Σ r.
    pub(super) counts: Vec<f64>,
    /// (K, D) Σ r (y − μ).
    first: Tensor,
    /// Σ r (y − μ)(y − μ)ᵀ: (K, D, D); its diagonal (K, 1, D) for diagonal covariances.
    second: Tensor,
}

impl Moments {
    /// Of the rows y − μ `centred` (K, N, D) with weights (K, N).
    pub(super) fn of(form: Covariance, centred: &Tensor, weights: &Tensor) -> Self {
        let [k, n, d] = centred.dims();
        let weighted = centred * &weights.reshape([k, n, 1]);
        let second = match form {
            Covariance::Diagonal => (&weighted * centred).sum(&[1]).reshape([k, 1, d]),
            _ => matmul(&weighted, centred, true, false),
        };
        let counts = weights.sum(&[1]).to_f64_vec();
        Self { counts, first: weighted.sum(&[1]).reshape([k, d]), second }
    }

    /// The sums over both sets of rows.
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            counts: self.counts.iter().zip(&other.counts).map(|(a, b)| a + b).collect(),
            first: &self.first + &other.first,
            second: &self.second + &other.second,
        }
    }
}
