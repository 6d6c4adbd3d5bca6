//! What a model file keeps of the rows that training held out.

use super::calibrate;
use crate::error::Result;
use crate::evidence::{Evidence, Need, Watch, statistic};
use crate::models::file::{HeldOut, fingerprint};
use crate::models::{Model, Statistic};

/// The most held-out rows that are kept for calibration: they promise false-alarm rates down to 0.001.
pub const MOST_HELD_OUT: usize = 2000;

/// Fits and calibrates every scorer that needs this model alone and no costly statistics, by the log-likelihoods in
/// `evidence`, of rows that it was not trained on.
///
/// # Errors
/// Those of [`statistic`] and [`calibrate`].
pub fn held_out(model: &dyn Model, mut evidence: Evidence, seed: u64, watch: Watch) -> Result<HeldOut> {
    if Statistic::Terms.offered_by(model) {
        let terms = statistic(model, Statistic::Terms, evidence.data(), seed, watch)?;
        evidence.statistics.insert(Statistic::Terms, terms);
    }
    let (evidence, alone) = (&evidence, |need: &Need| matches!(need, Need::Values | Need::Images));
    Ok(HeldOut {
        fingerprint: fingerprint(&evidence.data().values),
        shape: evidence.data().example_shape().to_vec(),
        kind: evidence.kind,
        scorers: calibrate(evidence, &|info| info.needs.iter().all(alone))?,
        nats: evidence.nats.clone(),
    })
}
