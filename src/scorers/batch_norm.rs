//! Batch-norm statistics: the likelihood that an input loses when batch normalisation looks at its own batch.
//!
//! ```text
//! score(x) = log p(x; evaluation mode) − log p(x; training mode, in a batch of its neighbours)        nats
//! ```
//! In evaluation mode a batch-norm layer uses the mean and variance remembered from training; in training mode those of
//! the batch. For a batch from elsewhere the two differ and the likelihood falls. Song, Song & Ermon 2019,
//! "Unsupervised out-of-distribution detection with batch normalization", arXiv:1910.09115. The rows are evaluated in
//! the order of the data, 64 at a time: the score judges a row *together with its batch*, and a batch that mixes normal
//! and anomalous rows blurs it.

use super::{ANY_KIND, Evidence, Need, Plain, ScorerInfo};
use crate::error::Result;
use crate::models::Statistic;

/// The registry's line.
pub static BATCH_NORM: ScorerInfo = ScorerInfo {
    name: "batch_norm",
    family: "batch norm",
    summary: "log-likelihood lost when batch norm uses the batch's own statistics, in nats (Song et al. 2019)",
    unit: "nats",
    accepts: ANY_KIND,
    needs: &[Need::Statistic(Statistic::BatchNorm)],
    build: || Plain::boxed(&BATCH_NORM, loss),
};

fn loss(evidence: &Evidence) -> Result<Vec<f64>> {
    let training = &evidence.statistics[&Statistic::BatchNorm][0];
    Ok(evidence.nats.iter().zip(training).map(|(eval, training)| eval - training).collect())
}
