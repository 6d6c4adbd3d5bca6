//! Batch-norm statistics: how far the likelihood moves when batch normalisation looks at its own batch.
//!
//! ```text
//! Δ(x) = log p(x; evaluation mode) − log p(x; training mode, in a batch of its neighbours)        nats
//! score(x) = | Δ(x) − median of Δ over the reference |
//! ```
//! In evaluation mode a batch-norm layer uses the mean and variance remembered from training; in training mode those of
//! the batch. On data like the training data the two agree; a batch from elsewhere makes them differ. Song, Song & Ermon
//! 2019, "Unsupervised out-of-distribution detection with batch normalization", arXiv:1910.09115, find Δ > 0 on images
//! from elsewhere, in networks whose *hidden units* are normalised: units that are made to look like those of training
//! data fit what follows less well.
//!
//! **The sign depends on where the layers stand**, so the change counts whichever way it goes. Where they are bijections
//! of a flow (Dinh et al. 2017, `realnvp_table` with `norm = "batch_norm"`), training mode is likelier: with mean m and
//! variance v remembered and m', v' of the batch, the last layer alone gives
//! mean of −Δ over the batch = ½ (v'/v + (m' − m)²/v − 1 − ln(v'/v)) ≥ 0 per channel, the Kullback-Leibler
//! divergence of the two normals.
//!
//! The rows are evaluated in the order of the data, 64 at a time: the score judges a row *together with its batch*,
//! and a batch that mixes normal and anomalous rows blurs it.

use super::{ANY_KIND, Evidence, Fitted, Learn, Need, ScorerInfo};
use crate::error::Result;
use crate::models::Statistic;
use crate::report::metrics::quantile;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub static BATCH_NORM: ScorerInfo = ScorerInfo {
    name: "batch_norm",
    family: "batch norm",
    summary: "change of log-likelihood when batch norm uses the batch's own statistics, in nats (Song et al. 2019)",
    unit: "nats",
    accepts: ANY_KIND,
    needs: &[Need::Statistic(Statistic::BatchNorm)],
    uses: &[],
    build: Fitted::<Usual>::boxed,
};

/// The median of Δ over the reference: batches of 64 rows differ a little from all rows, whatever they are.
#[derive(Serialize, Deserialize)]
struct Usual {
    change: f64,
}

impl Learn for Usual {
    const INFO: &'static ScorerInfo = &BATCH_NORM;

    fn learn(reference: &Evidence) -> Result<Self> {
        let mut changes = changes(reference);
        changes.sort_by(f64::total_cmp);
        Ok(Self { change: quantile(&changes, 0.5) })
    }

    fn judge(&self, evidence: &Evidence) -> Result<Vec<f64>> {
        Ok(changes(evidence).iter().map(|change| (change - self.change).abs()).collect())
    }

    fn check(&self) -> std::result::Result<(), &'static str> {
        if self.change.is_finite() { Ok(()) } else { Err("the usual change is not a number") }
    }
}

/// Δ of every row.
fn changes(evidence: &Evidence) -> Vec<f64> {
    let training = &evidence.statistics[&Statistic::BatchNorm][0];
    evidence.nats.iter().zip(training).map(|(eval, training)| eval - training).collect()
}
