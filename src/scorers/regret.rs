//! Likelihood regret: how much could a variational model gain by thinking about this one input?
//!
//! ```text
//! score(x) = max_q ELBO(x; q, θ) − ELBO(x; q_φ(· | x), θ)        nats per example, ≥ 0
//! ```
//! The encoder has learned to give good posteriors for inputs like the training data; for others there is much to gain
//! from optimising q for this x alone. Xiao, Yan & Amit 2020, "Likelihood regret: an out-of-distribution detection
//! score for variational auto-encoder", arXiv:2003.02977. The model does the optimisation
//! ([`crate::models::Statistics`]).

use super::{ANY_KIND, Need, Plain, ScorerInfo};
use crate::models::Statistic;

/// The registry's line.
pub static REGRET: ScorerInfo = ScorerInfo {
    name: "regret",
    family: "latent",
    summary: "likelihood regret of a variational model, in nats (Xiao et al. 2020)",
    unit: "nats",
    accepts: ANY_KIND,
    needs: &[Need::Statistic(Statistic::Regret)],
    uses: &[],
    build: || Plain::boxed(&REGRET, |evidence| Ok(evidence.statistics[&Statistic::Regret][0].clone())),
};
