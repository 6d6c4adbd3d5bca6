//! Training: options, optimiser, schedule, the loop, checkpoints.
//!
//! The loss is the mean surprisal, −log p in nats per example: lower is better, and below zero it is still right
//! for densities. Every step draws from `(seed, step)` and every epoch's order from `(seed, epoch)`, so a run that
//! was interrupted continues bit for bit.

mod options;
mod schedule;

pub use options::{Checkpoints, FitOptions};
pub use schedule::{Curve, Schedule};
