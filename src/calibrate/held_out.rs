//! What a model file keeps of the rows that training held out.

use super::calibrate;
use crate::error::Result;
use crate::evidence::{Evidence, Need};
use crate::models::file::{HeldOut, fingerprint};

/// The most held-out rows that are kept for calibration: they promise false-alarm rates down to 0.001.
pub const MOST_HELD_OUT: usize = 2000;

/// Fits and calibrates every scorer that needs this model alone and no costly statistics, by what the model says about
/// rows that it was not trained on.
///
/// # Errors
/// Those of [`calibrate`].
pub fn held_out(evidence: &Evidence) -> Result<HeldOut> {
    let alone = |need: &Need| matches!(need, Need::Values | Need::Images);
    Ok(HeldOut {
        fingerprint: fingerprint(&evidence.data().values),
        shape: evidence.data().example_shape().to_vec(),
        kind: evidence.kind,
        scorers: calibrate(evidence, &|info| info.needs.iter().all(alone))?,
        nats: evidence.nats.clone(),
    })
}
