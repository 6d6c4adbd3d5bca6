//! Training: options, optimiser, schedule, the loop, checkpoints, evaluation.
//!
//! The loss is the mean surprisal, −log p in nats per example: lower is better, and below zero it is still right
//! for densities. Every step draws from `(seed, step)` and every epoch's order from `(seed, epoch)`, so a run that
//! was interrupted continues bit for bit.

pub mod checkpoint;
mod evaluate;
mod fit;
mod noise;
mod optim;
mod options;
mod scale;
mod schedule;
mod step;

pub use evaluate::{EachBatch, Evaluate, LogProbs, batches_while, log_probs, log_probs_while};
pub use fit::{Epoch, Event, Fit, Observer, Plan, StepInfo, fit};
pub use optim::{Optimiser, norm};
pub use options::{Amp, Checkpoints, FitOptions, Noise};
pub use schedule::{Curve, Schedule};
