//! Models: one file each, all behind the trait [`Model`]. `log_prob` is what they are for.
//!
//! The likelihood of a model is that of the **data as given** (for images: of the bytes 0..255, in nats per
//! image), the log-determinants of all preprocessing included.

pub mod autoregressive;
pub mod config;
pub mod container;
pub mod energy;
pub mod file;
pub mod flow;
pub mod latent;
mod statistic;

pub use statistic::{Statistic, Statistics};

use crate::cuda::{Device, Replay};
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::nn::ParamStore;
use crate::ops::shape::concat;
use crate::random::Philox;
use crate::tensor::{DType, Plain, Tensor, with_float};

/// What a number called log-likelihood is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// log p(x) itself.
    Exact,
    /// A lower bound on log p(x), or an estimate whose expectation is one.
    LowerBound,
    /// log p(x) with an estimated normalising constant.
    Estimate,
    /// log p(x) up to an unknown constant.
    Unnormalised,
}

/// Log-likelihoods of a batch.
#[derive(Debug, Clone)]
pub struct LogProb {
    /// (B,) nats per example.
    pub nats: Tensor,
    /// What the number is.
    pub kind: Kind,
    /// (B, ...) nats per position (pixel, column, step), where the model factorises; they sum to `nats`.
    pub per_position: Option<Tensor>,
}

/// A batch of observations.
#[derive(Debug, Clone)]
pub struct Batch {
    /// (B, ...) u8 or f32, in the units of the data.
    pub x: Tensor,
    /// (B,) i32 class labels, for conditional models.
    pub labels: Option<Tensor>,
}

impl Batch {
    /// A batch without labels.
    pub fn new(x: Tensor) -> Self {
        Self { x, labels: None }
    }
}

impl Batch {
    /// The same batch on `device`.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] when it cannot be opened or has not enough memory.
    pub fn to(&self, device: Device) -> Result<Self> {
        let labels = self.labels.as_ref().map(|labels| labels.to(device)).transpose()?;
        Ok(Self { x: self.x.to(device)?, labels })
    }
}

/// What a model takes: the command line holds files against it before a model sees their content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// The shape of one example, for images `[H, W, C]`.
    pub shape: Vec<usize>,
    /// The dtypes that it models, its own first.
    pub dtypes: &'static [DType],
    /// Number of classes, for models conditioned on a label in `0..classes`.
    pub classes: Option<usize>,
    /// Bytes and tokens are in `0..levels`.
    pub levels: usize,
    /// Whether numbers may be missing (NaN).
    pub missing: bool,
}

/// Any bytes, no classes, nothing missing; shape and dtypes are to be given.
impl Default for Input {
    fn default() -> Self {
        Self { shape: Vec::new(), dtypes: &[], classes: None, levels: 256, missing: false }
    }
}

impl Input {
    /// Tokens in `0..levels`: bytes where they suffice, else `i32`; either is read.
    pub fn tokens(shape: Vec<usize>, levels: usize) -> Self {
        let dtypes: &[DType] =
            if levels <= 256 { &[DType::U8, DType::I32] } else { &[DType::I32, DType::U8] };
        Self { shape, dtypes, levels, ..Self::default() }
    }

    /// Whether `data` can be modelled.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] naming the data set, what it holds and what was expected.
    pub fn check(&self, data: &Dataset) -> Result<()> {
        let fail = |message: String| Err(Error::new(ErrorKind::Data, format!("{}: {message}", data.name)));
        let (shape, dtype) = (data.values.shape(), data.values.dtype());
        if shape.first().is_none_or(|&n| n == 0) {
            return fail("there are no examples".into());
        }
        if shape[1..] != self.shape || !self.dtypes.contains(&dtype) {
            let (found, wanted) = (&shape[1..], &self.shape);
            let dtypes = self.dtypes.iter().map(|d| format!("{d:?}")).collect::<Vec<_>>().join(" or ");
            return fail(format!("examples are {dtype:?} {found:?}; the model expects {dtypes} {wanted:?}"));
        }
        if let Some((row, column, what)) = self.refused(&data.values) {
            let known = data.schema.as_ref().and_then(|schema| schema.columns.get(column));
            let column = known.map_or_else(|| column.to_string(), |c| format!("{:?}", c.name));
            return fail(format!("row {row}, column {column}: {what}"));
        }
        let Some(classes) = self.classes else { return Ok(()) };
        let Some(labels) = &data.labels else {
            return fail(format!("no labels; the model is conditioned on {classes} classes"));
        };
        match labels.iter().position(|&l| l < 0 || l as usize >= classes) {
            Some(row) => {
                fail(format!("row {row} has label {}; the model has classes 0..{classes}", labels[row]))
            }
            None => Ok(()),
        }
    }

    /// The first cell that cannot be modelled: its row, its place in the row and why.
    fn refused(&self, values: &Tensor) -> Option<(usize, usize, String)> {
        let dims = values.len() / values.shape()[0];
        let (at, what) = match values.dtype() {
            DType::U8 if self.levels < 256 => {
                let (bytes, levels) = (values.as_slice::<u8>(), self.levels);
                let at = bytes.iter().position(|&b| b as usize >= levels)?;
                (at, format!("{}; the model knows the values 0..{levels}", bytes[at]))
            }
            DType::I32 => {
                let (tokens, levels) = (values.as_slice::<i32>(), self.levels);
                let at = tokens.iter().position(|&t| t < 0 || t as usize >= levels)?;
                (at, format!("{}; the model knows the values 0..{levels} (its setting `levels`)", tokens[at]))
            }
            dtype if dtype.is_float() => {
                let refused = |x: f64| x.is_infinite() || (x.is_nan() && !self.missing);
                let (at, cell) = with_float!(dtype, T => {
                    let cells = values.as_slice::<T>().iter().map(|x| x.to_f64());
                    cells.enumerate().find(|(_, x)| refused(*x))
                })?;
                let missing = "missing; the model does not take missing values".into();
                (at, if cell.is_nan() { missing } else { format!("{cell}; expected a finite number") })
            }
            _ => return None,
        };
        Some((at / dims, at % dims, what))
    }
}

/// How to sample.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleOptions {
    /// Scales the noise (flows) or divides the logits (autoregressive): 1 is the model itself.
    pub temperature: f64,
    /// The class to sample, for conditional models.
    pub label: Option<i32>,
    /// How many [`draw`](trait.Model.html#method.draw) draws at a time; the numbers that are drawn depend on it.
    pub batch: usize,
}

impl SampleOptions {
    /// Whether `model` with `classes` classes (0: unconditional) can be sampled so.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a temperature that is not positive, and a label that is missing, out of range or
    /// of no use.
    pub fn check(&self, model: &str, classes: usize) -> Result<()> {
        let fail = |what: String| Err(Error::new(ErrorKind::Usage, format!("{model}: {what}")));
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return fail(format!("a temperature of {}; expected a positive number", self.temperature));
        }
        match self.label {
            Some(l) if classes == 0 => fail(format!("label {l} for a model without classes")),
            Some(l) if l < 0 || l as usize >= classes => fail(format!("label {l}; expected 0..{classes}")),
            None if classes > 0 => fail(format!("a label in 0..{classes} is needed")),
            _ => Ok(()),
        }
    }
}

impl Default for SampleOptions {
    fn default() -> Self {
        Self { temperature: 1.0, label: None, batch: 1024 }
    }
}

/// A likelihood-based generative model.
pub trait Model: Send + Sync {
    /// The complete configuration: what [`ModelInfo::build`] needs to make the same model again; an object without
    /// the model's name.
    fn config(&self) -> serde_json::Value;

    /// What it takes.
    fn input(&self) -> Input;

    /// The named parameters.
    fn params(&self) -> &ParamStore;

    /// log p(x) of each example; `rng` serves models whose likelihood is randomised (dequantisation noise).
    ///
    /// # Panics
    /// When the batch's shape is not that of the model.
    fn log_prob(&self, batch: &Batch, rng: &mut Philox) -> LogProb;

    /// `n` samples in the units of the data, (n, ...) of the data's dtype.
    fn sample(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor>;

    /// What training minimises, (B,) per example and with its graph: by default the surprisal −log p(x), in nats.
    fn objective(&self, batch: &Batch, rng: &mut Philox) -> Tensor {
        -&self.log_prob(batch, rng).nats
    }

    /// Data-dependent initialisation from the training data and its first batch; nothing by default.
    fn init_from(&self, _train: &Dataset, _batch: &Batch, _rng: &mut Philox) {}

    /// What is left to do with the weights that were kept when training has ended: estimating a constant, say.
    ///
    /// # Errors
    /// When it cannot be done.
    fn finish(&self, _rng: &mut Philox) -> Result<()> {
        Ok(())
    }

    /// Whether [`Self::solve`] fits it, so that nothing is stopped early and no rows need to be set aside for that.
    fn solves(&self) -> bool {
        false
    }

    /// Fits models that have an algorithm of their own instead of gradient steps (expectation maximisation, counting).
    /// Returns the mean surprisal in nats after each iteration; `None`, the default, asks for gradient steps.
    ///
    /// # Errors
    /// When the data cannot be fitted.
    fn solve(&self, _train: &Dataset, _rng: &mut Philox) -> Result<Option<Vec<f64>>> {
        Ok(None)
    }

    /// What it can tell about an observation beside log p (regret, ratios of latent layers ...); nothing by default.
    fn statistics(&self) -> Option<&dyn Statistics> {
        None
    }
}

impl dyn Model + '_ {
    /// Moves the model to `device`, where everything that is asked of it through `run`, training and evaluation
    /// then happens. Models that calculate in f64 stay on the CPU: their device does not change.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] when it cannot be opened or has not enough memory.
    pub fn to(&self, device: Device) -> Result<()> {
        self.params().to(device)
    }

    /// The device that it is on.
    pub fn device(&self) -> Device {
        self.params().device()
    }

    /// Runs `f`, which calls the model, on the model's device.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] when the device fails or runs out of memory.
    pub fn run<R>(&self, f: impl FnOnce() -> R) -> Result<R> {
        self.device().run(f)
    }

    /// [`Model::sample`] on the model's device, in batches that are recorded and replayed where the model allows it;
    /// the samples come to the host.
    ///
    /// # Errors
    /// Those of [`Model::sample`] and of the device.
    pub fn draw(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor> {
        let (batch, mut replay, mut parts) = (options.batch.max(1), Replay::new(), Vec::new());
        for first in (0..n.max(1)).step_by(batch) {
            let count = batch.min(n - first);
            let part = self.run(|| {
                if count < batch {
                    return Ok(self.sample(count, options, rng)?.on_host());
                }
                let mut failed = None;
                let drawn = replay.run(&[], rng, &mut |_, rng| match self.sample(count, options, rng) {
                    Ok(drawn) => vec![drawn],
                    Err(e) => {
                        failed = Some(e);
                        Vec::new()
                    }
                });
                failed.map_or_else(|| Ok(drawn[0].on_host()), Err)
            })??;
            parts.push(part);
        }
        Ok(if let [one] = &parts[..] { one.clone() } else { concat(&parts.iter().collect::<Vec<_>>(), 0) })
    }
}

/// One line of the registry: a kind of model that can be built from a configuration.
pub struct ModelInfo {
    /// The registry's name.
    pub name: &'static str,
    /// `autoregressive`, `latent`, `flow` or `energy`.
    pub family: &'static str,
    /// One sentence, with the source paper.
    pub summary: &'static str,
    /// What training minimises, in words and with its unit: `surprisal, nats`.
    pub objective: &'static str,
    /// The command that trains it, and the figure that it should reach, with its source.
    pub reproduce: &'static str,
    /// Named configurations as TOML text (the first is the default). A preset names every key that `build` reads;
    /// the example's shape is called `shape`. A table `[train]` overrides [`crate::train::FitOptions`].
    pub presets: &'static [(&'static str, &'static str)],
    /// Assignments (`key=value`) that shrink the first preset until all of the model's properties can be tested in a
    /// fraction of a second: `tests/models.rs` does, for every model.
    pub tiny: &'static [&'static str],
    /// Builds the model from a complete configuration with fresh parameters drawn from `rng`. The configuration may
    /// come from a damaged file: impossible values are errors, never panics.
    pub build: fn(config: &serde_json::Value, rng: &mut Philox) -> Result<Box<dyn Model>>,
}

/// A list of models, [`MODELS`] or a test's own.
pub type Registry<'a> = &'a [&'static ModelInfo];

/// All models.
pub static MODELS: &[&ModelInfo] = &[
    &autoregressive::pixelcnn::INFO,
    &autoregressive::pixelcnn_pp::INFO,
    &autoregressive::causal_cnn::INFO,
    &autoregressive::transformer::INFO,
    &autoregressive::made::INFO,
    &energy::ebm::INFO,
    &energy::nce::INFO,
    &energy::score_matching::INFO,
    &flow::ffjord::INFO,
    &flow::flowpp::FLOWPP,
    &flow::glow::GLOW,
    &flow::idf::IDF,
    &flow::maf::MAF,
    &flow::nsf::NSF,
    &flow::realnvp::REALNVP,
    &flow::residual_flow::RESIDUAL_FLOW,
    &latent::gmm::INFO,
    &latent::hmm::INFO,
    &latent::hvae::INFO,
    &latent::parzen::INFO,
    &latent::vae::INFO,
    &latent::vqvae::INFO,
];
