//! From scores to decisions: p-values, thresholds, false-discovery control, and an alarm for drift.
//!
//! - [`Calibration`]: split-conformal p-values and the threshold of a promised false-alarm rate, for one row at a time.
//! - [`held_out`]: the calibrations that a model file carries, by the rows that training held out.
//! - [`Reference`]: the reference scores behind them, of scorers and detectors alike.
//! - [`discoveries`]: which of many rows to report when at most a share q of the reports may be false.
//! - [`OnlineFdr`]: the same for a stream, whose decisions cannot be taken back.
//! - [`Drift`]: an alarm when the stream as a whole is no longer like the reference.

mod conformal;
mod drift;
mod fdr;
mod held_out;
mod online;
mod reference;

pub use conformal::{Calibration, calibrate};
pub use drift::Drift;
pub use fdr::{Dependence, adjusted, discoveries};
pub use held_out::{MOST_HELD_OUT, held_out};
pub use online::{OnlineFdr, OnlineRule};
pub use reference::Reference;
