//! Typicality: is the surprisal what the model expects, neither too high *nor too low*?
//!
//! ```text
//! score(x₁..x_M) = | (1/M) Σ −log p(x_m)  −  Ĥ |        nats per example,  Ĥ = mean of −log p over the reference
//! ```
//! Samples of a high-dimensional p lie in its typical set, where −log p is near the entropy, and not where p is
//! highest; an input that is *too likely* is anomalous too. Nalisnick et al. 2019, "Detecting out-of-distribution
//! inputs to deep generative models using typicality", arXiv:1906.02994. There Ĥ comes from the training set; here it
//! comes from held-out reference rows, since a model is less surprised by what it was trained on.
//!
//! - `typicality`: M = 1, one score per row.
//! - `typicality_batch`: one score per M consecutive rows (rows left over at the end get none); M = 10 by default.
//!   The bound ε is the (1 − α) quantile of the score of batches drawn from the reference with replacement, as in
//!   the paper; a batch with a score above ε is atypical at level α.
//!
//! A constant in log p cancels, so every kind is accepted.

use super::{ANY_KIND, Evidence, Fit, Scorer, ScorerInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::random::Philox;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The registry's line for single inputs.
pub static TYPICALITY: ScorerInfo = ScorerInfo {
    name: "typicality",
    family: "typicality",
    summary: "distance of the surprisal from the reference's entropy, in nats (Nalisnick et al. 2019)",
    unit: "nats",
    accepts: ANY_KIND,
    needs: &[],
    uses: &[],
    build: || Box::new(Typicality::single()),
};

/// The registry's line for batches.
pub static TYPICALITY_BATCH: ScorerInfo = ScorerInfo {
    name: "typicality_batch",
    family: "typicality",
    summary: "distance of a batch's mean surprisal from the entropy, one score per 10 rows (Nalisnick et al. 2019)",
    unit: "nats",
    accepts: ANY_KIND,
    needs: &[],
    uses: &[],
    build: || Box::new(Typicality { size: 10, alpha: 0.01, learned: None }),
};

/// Batches that are drawn to find ε.
const REPLICATES: u64 = 10_000;

/// |mean of −log p over M rows − Ĥ|.
#[derive(Debug, Clone)]
pub struct Typicality {
    size: usize,
    alpha: f64,
    learned: Option<Learned>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Learned {
    #[serde(flatten)]
    fit: Fit,
    /// M.
    size: usize,
    alpha: f64,
    /// Ĥ in nats.
    entropy: f64,
    /// ε in nats.
    epsilon: f64,
}

impl Typicality {
    /// One score per row (`typicality`), ε at level 0.01.
    pub fn single() -> Self {
        Self { size: 1, alpha: 0.01, learned: None }
    }

    /// One score per `size` consecutive rows (`typicality_batch`, or `typicality` for size 1), ε at level `alpha`.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when `size` is 0 or `alpha` is not between 0 and 1.
    pub fn batches(size: usize, alpha: f64) -> Result<Self> {
        if size == 0 || !(alpha > 0.0 && alpha < 1.0) {
            let message =
                format!("typicality: expected a batch of 1 or more and 0 < alpha < 1, got {size}, {alpha}");
            return Err(Error::new(ErrorKind::Usage, message));
        }
        Ok(Self { size, alpha, learned: None })
    }

    /// ε in nats once fitted: batches that score above it are atypical at level α.
    pub fn epsilon(&self) -> Option<f64> {
        self.learned.as_ref().map(|l| l.epsilon)
    }

    fn info(&self) -> &'static ScorerInfo {
        if self.size == 1 { &TYPICALITY } else { &TYPICALITY_BATCH }
    }
}

impl Scorer for Typicality {
    fn fit(&mut self, reference: &Evidence) -> Result<()> {
        let (size, alpha) = (self.size, self.alpha);
        let fit = Fit::new(self.info(), reference)?;
        let entropy = -mean(reference.nats.iter().copied());
        let epsilon = epsilon(&reference.nats, entropy, size, alpha);
        self.learned = Some(Learned { fit, size, alpha, entropy, epsilon });
        Ok(())
    }

    fn score(&self, evidence: &Evidence) -> Result<Vec<f64>> {
        let learned = super::fitted(&self.learned, self.info())?;
        learned.fit.check(self.info(), evidence)?;
        let nats = &evidence.nats;
        if nats.len() < self.size {
            let (name, n, m) = (&evidence.data().name, nats.len(), self.size);
            let message = format!("{name}: \"{}\" needs at least {m} rows, got {n}", self.info().name);
            return Err(Error::new(ErrorKind::Data, message));
        }
        let batches = nats.chunks_exact(self.size);
        let scores = batches.map(|nats| (-mean(nats.iter().copied()) - learned.entropy).abs()).collect();
        super::finite(self.info(), evidence, self.size, scores)
    }

    fn rows_per_score(&self) -> usize {
        self.size
    }

    fn state(&self) -> Result<Value> {
        super::save(&self.learned, self.info())
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        let learned: Learned = super::load(self.info(), state)?;
        let restored = Self { learned: None, ..Self::batches(learned.size, learned.alpha)? };
        if restored.info().name != self.info().name {
            let (name, size) = (self.info().name, learned.size);
            let message = format!("saved state of the scorer \"{name}\": it is for batches of {size}");
            return Err(Error::new(ErrorKind::Model, message));
        }
        *self = Self { learned: Some(learned), ..restored };
        Ok(())
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.sum::<f64>() / n
}

/// The (1 − α) quantile of the score over batches of `size` drawn with replacement.
fn epsilon(nats: &[f64], entropy: f64, size: usize, alpha: f64) -> f64 {
    let n = nats.len() as u64;
    let rng = Philox::new(0);
    let mut scores: Vec<f64> = (0..REPLICATES)
        .into_par_iter()
        .map(|replicate| {
            let mut words = rng.at_step(replicate).stream();
            let drawn = (0..size).map(|_| nats[words.below(n) as usize]);
            (-mean(drawn) - entropy).abs()
        })
        .collect();
    scores.sort_by(f64::total_cmp);
    let rank = ((1.0 - alpha) * scores.len() as f64).ceil() as usize;
    scores[rank.clamp(1, scores.len()) - 1]
}
