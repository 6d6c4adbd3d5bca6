//! # surprisal
//!
//! The surprisal of an observation is −log p(x). This crate learns p from data with likelihood-based
//! generative models and turns surprisal into calibrated anomaly decisions, on its own numerical engine.
//!
//! ## The way of the data
//! ```text
//! data/  ->  models/  ->  log p(x)  ->  scorers/  ->  calibrate  ->  report/
//! ```
//! Below the models lies the engine:
//! ```text
//! models/ -> nn/, bijections/, ode/ -> ops/ -> autograd, tensor/ -> cpu/, cuda/
//! ```
//!
//! ## First steps
//! Learn what is normal and judge what comes: [`Novelty`]. Rank the rows of a table by a classical detector:
//!
//! ```
//! use surprisal::detectors::{self, Pipeline};
//! use surprisal::{Dataset, Tensor};
//!
//! # fn main() -> surprisal::Result<()> {
//! // 300 points of a grid, and one far from it.
//! let grid = |i: usize| if i < 600 { [(i / 2) % 20, (i / 2) / 20][i % 2] as f64 } else { 40.0 };
//! let rows = Dataset::new("rows", Tensor::from_fn([301, 2], grid));
//! let knn = Pipeline::fit(detectors::find("knn")?, &serde_json::json!({"neighbours": 5}), &rows, 0)?;
//! let scores = knn.score(&rows)?;
//! assert!(scores[..300].iter().all(|score| *score < scores[300]));
//! # Ok(())
//! # }
//! ```
//! Tensors and gradients, to any order:
//!
//! ```
//! use surprisal::{Tensor, autograd};
//!
//! let x = Tensor::from_slice(&[1.0f64, 2.0, 3.0], [3]).requires_grad();
//! let loss = (&x * &x.exp()).sum_all();
//! let [dx] = &autograd::backward(loss, &[&x])[..] else { unreachable!("one gradient per tensor") };
//! // d/dx x eˣ = (1 + x) eˣ
//! assert!((dx.to_f64_vec()[1] - 3.0 * 2f64.exp()).abs() < 1e-12);
//! ```
//!
//! ## Letters, units, signs
//! - `B` batch, `D` features, `H W C` image height, width, channels (channels last, always), `T` time,
//!   `K` classes, bins or components.
//! - Log-likelihoods are **nats per example**; bits per dimension (nats / (D ln 2)) appear in reports only.
//! - Anomaly scores are **higher = more anomalous**, everywhere.
//!
//! ## Rooms
//! | module | what it holds |
//! |---|---|
//! | [`data`] | sources (IDX, npy/npz, image folders, CSV, series, text, logs, WAV) and the transforms with their log-determinants |
//! | [`models`] | one file per model, the [`models::Model`] trait, the `MODELS` registry |
//! | [`novelty`] | training, calibration and judgement in three calls |
//! | [`evidence`] | what is known about each observation, computed once and shared by the scorers |
//! | [`samplers`] | Langevin, MALA, HMC, diagnostics, annealed importance sampling |
//! | [`scorers`] | one file per scorer, the [`scorers::Scorer`] trait, the `SCORERS` registry |
//! | [`calibrate`] | split-conformal p-values and thresholds, false-discovery rates, drift |
//! | [`series`] | time series judged step by step |
//! | [`detectors`] | classical detectors on tables, the [`detectors::Detector`] trait, the `DETECTORS` registry |
//! | [`ode`] | Runge-Kutta methods as data, solvers with error control, the adjoint |
//! | [`report`] | metrics, tables, the HTML report |
//! | [`train`] | fitting, optimiser, schedule, EMA, checkpoints |
//! | [`ops`] | one file per operation: formula, checks, composite, CPU code, gradient, cases |
//! | [`autograd`], [`tensor`], [`cpu`], [`cuda`] | the engine |

mod ambient;
pub mod autograd;
pub mod bijections;
pub mod calibrate;
pub mod cli;
pub mod cpu;
pub mod cuda;
pub mod data;
pub mod detectors;
pub mod error;
pub mod evidence;
pub mod files;
pub mod models;
pub mod nn;
pub mod novelty;
pub mod ode;
pub mod ops;
pub mod random;
pub mod report;
pub mod samplers;
pub mod scorers;
pub mod series;
pub mod tensor;
pub mod testing;
pub mod train;

pub use cuda::Device;
pub use data::Dataset;
pub use error::{Error, ErrorKind, Result};
pub use novelty::{Novelty, Verdict};
pub use tensor::{DType, Tensor};
