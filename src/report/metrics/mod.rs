//! How well scores tell anomalies from the rest.
//!
//! - [`Comparison`]: two sets of rows, AUROC, AUPR, FPR at a TPR, ROC points, bootstrap intervals; [`Paired`] for two
//!   scores of the same rows.
//! - [`range_scores`], [`vus`], [`nab`]: labelled series, where an anomaly is a range of steps. None of them adjusts
//!   points: a single hit inside a range does not count as having found all of its steps.

mod comparison;
pub mod nab;
mod paired;
mod ranges;
mod vus;

pub use comparison::Comparison;
pub(crate) use comparison::quantile;
pub use paired::Paired;
pub use ranges::{Bias, RangeOptions, RangeScores, range_scores, ranges_of};
pub use vus::{Volume, vus};
