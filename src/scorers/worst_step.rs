//! The most surprising step: one impossible step makes a sequence anomalous, however usual the others are.
//!
//! ```text
//! score(x) = max_t −log p(x_t | x_<t)        nats
//! ```
//! The sum over the steps hides it in long sequences, and calls short ones normal because they have few steps. On logs
//! this is the test of DeepLog (Du et al. 2017, "DeepLog: anomaly detection and diagnosis from system logs through deep
//! learning"), which asks of every line whether it was among the expected ones. Needs a model whose likelihood is a
//! product over positions.

use super::{ANY_KIND, Need, Plain, ScorerInfo};
use crate::models::Statistic;

/// The registry's line.
pub static WORST_STEP: ScorerInfo = ScorerInfo {
    name: "worst_step",
    family: "step",
    summary: "surprisal of the most surprising step or position, in nats (as DeepLog, Du et al. 2017)",
    unit: "nats",
    accepts: ANY_KIND,
    needs: &[Need::Statistic(Statistic::WorstStep)],
    uses: &[],
    build: || Plain::boxed(&WORST_STEP, |evidence| Ok(evidence.statistics[&Statistic::WorstStep][0].clone())),
};
