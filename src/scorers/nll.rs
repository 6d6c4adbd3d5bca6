//! Negative log-likelihood: how surprising the model finds an observation.
//!
//! ```text
//! score(x) = −log p(x)        nats per example
//! ```
//! Bishop 1994, "Novelty detection and neural network validation". It is the score that fails on natural images:
//! models give simple images of another kind a *higher* likelihood than their own (Nalisnick et al. 2019, "Do deep
//! generative models know what they don't know?", arXiv:1810.09136). It accepts every kind: a bound shifts the
//! score by its gap, an unknown constant shifts all scores alike and leaves their order.

use super::{ANY_KIND, Plain, ScorerInfo};

/// The registry's line.
pub static NLL: ScorerInfo = ScorerInfo {
    name: "nll",
    family: "likelihood",
    summary: "negative log-likelihood in nats, the raw surprisal (Bishop 1994)",
    unit: "nats",
    accepts: ANY_KIND,
    needs: &[],
    uses: &[],
    build: || Plain::boxed(&NLL, |evidence| Ok(evidence.nats.iter().map(|l| -l).collect())),
};
