//! Latent Dirichlet allocation for counts (Blei, Ng & Jordan 2003), by variational Bayes as scikit-learn's.
//!
//! ```text
//! θ ~ Dirichlet(1/K)   β_k ~ Dirichlet(1/K)   word ~ β_z, z ~ θ
//! score(x) = −ELBO(x)/Σ_w x_w          nats per word: how badly any mixture of the K topics explains the row
//! ```
//! The bound is that of the row given the topics; a row without words scores 0. Rows are counts: a negative cell is an
//! error. γ starts from equal topics, so a row's score does not depend on others or on a seed.

use super::iforest::uniform;
use super::special::{digamma, ln_gamma};
use super::{DetectorInfo, Method, Scaling, Table, boxed, defaults, setting};
use crate::cpu::par;
use crate::error::Result;
use crate::random::Philox;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub(super) static LDA: DetectorInfo = DetectorInfo {
    name: "lda",
    family: "counts",
    summary: "surprisal per word under a topic model of counts (Blei, Ng & Jordan 2003)",
    scaling: Scaling::Counts,
    settings: defaults::<Lda>,
    build: boxed::<Lda>,
};

/// Iterations of one row's γ, and the mean change at which they end.
const ROW_ITERATIONS: usize = 100;
const ROW_TOLERANCE: f64 = 1e-3;
/// Rows whose statistics are added up on their own.
const CHUNK: usize = 64;

#[derive(Clone, Serialize, Deserialize)]
struct Settings {
    /// K.
    topics: usize,
    /// Passes over the reference.
    iterations: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { topics: 10, iterations: 10 }
    }
}

#[derive(Serialize, Deserialize)]
struct Lda {
    topics: usize,
    /// (V, K): exp E[log β_kw], word after word.
    words: Table,
}

impl Method for Lda {
    const INFO: &'static DetectorInfo = &LDA;
    type Settings = Settings;

    fn fit(settings: &Settings, reference: &Table, rng: &Philox) -> Result<Self> {
        let &Settings { topics: k, iterations } = settings;
        if !(1..=1000).contains(&k) || !(1..=100_000).contains(&iterations) {
            let message =
                format!("topics = {k}, iterations = {iterations}; expected 1 to 1000 and 1 to 100,000");
            return Err(setting(message));
        }
        let v = reference.columns();
        let mut stream = rng.clone().stream();
        // Near 1, with the spread of scikit-learn's Gamma(100, 1/100).
        let lambda: Vec<f64> = (0..v * k).map(|_| 1.0 + 0.35 * (uniform(&mut stream) - 0.5)).collect();
        let mut lda = Self { topics: k, words: exp_log_words(&lambda, v, k) };
        for _ in 0..iterations {
            let mut sums = vec![Vec::new(); reference.rows().div_ceil(CHUNK)];
            par::chunks_mut(&mut sums, 1, |chunk, sums| {
                let mut sum = vec![0.0; v * k];
                for i in chunk * CHUNK..reference.rows().min((chunk + 1) * CHUNK) {
                    lda.gather(reference.row(i), &mut sum);
                }
                sums[0] = sum;
            });
            let mut lambda = vec![1.0 / k as f64; v * k];
            sums.iter().for_each(|sum| lambda.iter_mut().zip(sum).for_each(|(l, s)| *l += s));
            lda.words = exp_log_words(&lambda, v, k);
        }
        Ok(lda)
    }

    fn score(&self, x: &Table) -> Vec<f64> {
        x.map(x.columns() * self.topics * 10, |row| {
            let words: f64 = row.iter().filter(|c| **c > 0.0).sum();
            if words == 0.0 { 0.0 } else { -self.bound(row) / words }
        })
    }

    fn columns(&self) -> Option<usize> {
        let positive = self.words.values().iter().all(|w| *w > 0.0);
        (self.topics > 0 && self.words.columns() == self.topics && self.words.rows() > 0 && positive)
            .then_some(self.words.rows())
    }
}

/// exp(ψ(λ_kw) − ψ(Σ_w λ_kw)), at least the smallest normal number.
fn exp_log_words(lambda: &[f64], v: usize, k: usize) -> Table {
    let totals: Vec<f64> = (0..k).map(|t| digamma(lambda[t..].iter().step_by(k).sum())).collect();
    Table::from_rows(v, k, |w, row| {
        let cells = row.iter_mut().zip(&lambda[w * k..][..k]).zip(&totals);
        cells.for_each(|((e, &l), total)| *e = (digamma(l) - total).exp().max(f64::MIN_POSITIVE));
    })
}

impl Lda {
    /// γ of a row, and exp E[log θ].
    fn infer(&self, row: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (k, alpha) = (self.topics, 1.0 / self.topics as f64);
        let mut gamma = vec![1.0; k];
        let mut theta = exp_log(&gamma);
        for _ in 0..ROW_ITERATIONS {
            let mut next = vec![0.0; k];
            for (&count, word) in row.iter().zip(self.words.iter()).filter(|(c, _)| **c > 0.0) {
                let share = count / mixture(&theta, word);
                next.iter_mut().zip(word).for_each(|(n, w)| *n += share * w);
            }
            next.iter_mut().zip(&theta).for_each(|(n, t)| *n = alpha + *n * t);
            let change = next.iter().zip(&gamma).map(|(a, b)| (a - b).abs()).sum::<f64>() / k as f64;
            gamma = next;
            theta = exp_log(&gamma);
            if change < ROW_TOLERANCE {
                break;
            }
        }
        (gamma, theta)
    }

    /// Adds the expected number of times that each topic made each word.
    fn gather(&self, row: &[f64], sum: &mut [f64]) {
        let (_, theta) = self.infer(row);
        let cells = row.iter().zip(self.words.iter()).zip(sum.chunks_exact_mut(self.topics));
        for ((&count, word), sum) in cells.filter(|((c, _), _)| **c > 0.0) {
            let share = count / mixture(&theta, word);
            sum.iter_mut().zip(word).zip(&theta).for_each(|((s, w), t)| *s += share * w * t);
        }
    }

    /// The variational bound on log p(row | topics).
    fn bound(&self, row: &[f64]) -> f64 {
        let alpha = 1.0 / self.topics as f64;
        let (gamma, theta) = self.infer(row);
        let words = row.iter().zip(self.words.iter()).filter(|(c, _)| **c > 0.0);
        let explained: f64 = words.map(|(c, word)| c * mixture(&theta, word).ln()).sum();
        let total: f64 = gamma.iter().sum();
        let log_total = digamma(total);
        let topics =
            gamma.iter().map(|&g| (alpha - g) * (digamma(g) - log_total) + ln_gamma(g) - ln_gamma(alpha));
        explained + topics.sum::<f64>() + ln_gamma(1.0) - ln_gamma(total)
    }
}

/// exp(ψ(γ_k) − ψ(Σ γ)).
fn exp_log(gamma: &[f64]) -> Vec<f64> {
    let total = digamma(gamma.iter().sum());
    gamma.iter().map(|&g| (digamma(g) - total).exp()).collect()
}

/// Σ_k θ_k β_kw, never 0.
fn mixture(theta: &[f64], word: &[f64]) -> f64 {
    theta.iter().zip(word).map(|(t, w)| t * w).sum::<f64>().max(f64::MIN_POSITIVE)
}
