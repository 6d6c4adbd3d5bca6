//! How to train: everything that decides the result, settable from TOML and the command line.

use super::schedule::Schedule;
use crate::cpu::gemm::has_bf16;
use crate::cuda::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::models::file::Meta;
use crate::ops::amp::{mixed, tf32};
use crate::tensor::DType;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The settings of a training run. With the data they determine every bit of the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FitOptions {
    /// Passes over the training examples.
    pub epochs: u64,
    /// Number of steps; stands in for `epochs` when given.
    pub steps: Option<u64>,
    /// Examples per step.
    pub batch: usize,
    /// Learning rate of Adam.
    pub lr: f64,
    /// Decay rates of Adam's first and second moment.
    pub betas: [f64; 2],
    /// The small number in Adam's denominator.
    pub eps: f64,
    /// The factor on the learning rate over time.
    pub schedule: Schedule,
    /// Decoupled weight decay (AdamW, Loshchilov & Hutter 2019): w −= lr · weight_decay · w.
    pub weight_decay: f64,
    /// L2 penalty: l2 · |w|² / 2 is added to the loss in nats per example, so l2 · w to the gradient.
    pub l2: f64,
    /// Largest global norm of the gradient; larger ones are scaled down to it.
    pub clip: Option<f64>,
    /// Decay of an exponential moving average of the weights, which is then what is evaluated and kept.
    pub ema: Option<f64>,
    /// The seed of everything random.
    pub seed: u64,
    /// The part of the examples that is set aside for validation and calibration.
    pub validation: f64,
    /// Stop after so many epochs without a better validation.
    pub patience: Option<u64>,
    /// Examples per evaluation batch.
    pub eval_batch: usize,
    /// Probability that a byte of the input is replaced by a random one (background models, Ren et al. 2019).
    pub mutation: f64,
    /// Noise on the rows of a table of floats.
    pub noise: Noise,
    /// For data with unmarked anomalies: the share of each batch, its most surprising examples, that does not count. It
    /// does after a tenth of the steps; so do validation, which leaves out its most surprising share, and models that
    /// fit themselves, which are fitted again to the rest. This is trimmed likelihood (Neykov & Müller 2003), batch by
    /// batch as in Shen & Sanghavi 2019. 0 for none.
    pub trim: f64,
    /// Mixed precision: `off`, `bf16`, and on devices `f16` or `tf32`; see [`crate::ops::amp`].
    pub amp: Amp,
    /// With `amp = f16`: what the loss is multiplied with at first, so that small gradients are not lost in f16.
    /// Halved when a gradient overflows, whose step is then made again, and doubled after 2000 steps without
    /// (Micikevicius et al. 2018).
    pub loss_scale: f64,
    /// Steps between checkpoints; 0 writes them at the ends of epochs only.
    pub checkpoint_every: u64,
    /// Start from the weights that the model has, without its data-dependent initialisation.
    #[serde(skip)]
    pub warm: bool,
    /// Where checkpoints go; none are written without it.
    #[serde(skip)]
    pub checkpoints: Option<Checkpoints>,
}

/// Normal noise on the rows of a table while a model is trained on them, drawn anew in every step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Noise {
    /// No noise but the model's own.
    #[default]
    None,
    /// As wide as the kernels with which a kernel density of the training rows is likeliest, each row under the
    /// kernels of the others: by the distance to a row's fifth neighbour, and at least half a gap between the values
    /// of a column.
    Rows,
}

/// The arithmetic of matrix products.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Amp {
    /// That of the tensors: f32.
    #[default]
    Off,
    /// bf16 with sums in f32.
    Bf16,
    /// f16 with sums in f32 and a scaled loss.
    F16,
    /// f32 rounded to TF32, with sums in f32.
    Tf32,
}

impl Amp {
    /// Runs `f` with products calculated so.
    pub fn run<R>(self, f: impl FnOnce() -> R) -> R {
        match self {
            Self::Off => mixed(None, f),
            Self::Bf16 => mixed(Some(DType::BF16), f),
            Self::F16 => mixed(Some(DType::F16), f),
            Self::Tf32 => tf32(f),
        }
    }

    /// Whether `device` can calculate so.
    ///
    /// # Errors
    /// For f16 and TF32 on the CPU, and bf16 on a CPU that does not multiply such numbers.
    pub fn check(self, device: Device) -> Result<()> {
        if self == Self::Off || device != Device::Cpu {
            return Ok(());
        }
        if self != Self::Bf16 {
            let what = "amp f16 and tf32 are for devices; the CPU has off and bf16";
            return Err(Error::new(ErrorKind::Usage, what));
        }
        if has_bf16() {
            return Ok(());
        }
        let what = "amp bf16: this CPU has no products of bf16 numbers (avx512_bf16), which would be slower than f32; expected off";
        Err(Error::new(ErrorKind::Device, what))
    }
}

impl std::str::FromStr for Amp {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "off" => Ok(Self::Off),
            "bf16" => Ok(Self::Bf16),
            "f16" => Ok(Self::F16),
            "tf32" => Ok(Self::Tf32),
            _ => Err(Error::new(ErrorKind::Usage, format!("amp {name:?}: expected off, bf16, f16 or tf32"))),
        }
    }
}

/// Where checkpoints go and what the model file says.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoints {
    /// The folder of `model.safetensors` and `optimiser.safetensors`.
    pub dir: PathBuf,
    /// The description of the model.
    pub meta: Meta,
    /// Whether to continue from the checkpoint in `dir`.
    pub resume: bool,
}

impl Default for FitOptions {
    fn default() -> Self {
        Self {
            epochs: 10,
            steps: None,
            batch: 32,
            lr: 1e-3,
            betas: [0.9, 0.999],
            eps: 1e-8,
            schedule: Schedule::default(),
            weight_decay: 0.0,
            l2: 0.0,
            clip: None,
            ema: None,
            seed: 0,
            validation: 0.1,
            patience: None,
            eval_batch: 64,
            mutation: 0.0,
            noise: Noise::None,
            trim: 0.0,
            amp: Amp::Off,
            loss_scale: 65536.0,
            warm: false,
            checkpoint_every: 0,
            checkpoints: None,
        }
    }
}

impl FitOptions {
    /// Whether every setting is possible.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] naming the setting and what was expected.
    pub fn check(&self) -> Result<()> {
        let unit = |x: f64| (0.0..1.0).contains(&x);
        let at_least_zero = |x: f64| x >= 0.0 && x.is_finite();
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let rules = [
            (self.batch > 0, "batch", "at least 1"),
            (self.eval_batch > 0, "eval_batch", "at least 1"),
            (self.steps.unwrap_or(self.epochs) > 0, "epochs or steps", "at least 1"),
            (positive(self.lr), "lr", "a number above 0"),
            (self.betas.iter().all(|&b| unit(b)), "betas", "two numbers in [0, 1)"),
            (positive(self.eps), "eps", "a number above 0"),
            (at_least_zero(self.weight_decay), "weight_decay", "a number of at least 0"),
            (at_least_zero(self.l2), "l2", "a number of at least 0"),
            (self.clip.is_none_or(positive), "clip", "a number above 0"),
            (self.ema.is_none_or(unit), "ema", "a number in [0, 1)"),
            (unit(self.validation), "validation", "a fraction in [0, 1)"),
            ((0.0..=1.0).contains(&self.mutation), "mutation", "a probability"),
            (self.loss_scale >= 1.0 && self.loss_scale.is_finite(), "loss_scale", "a number of at least 1"),
            ((0.0..=0.5).contains(&self.trim), "trim", "a share in [0, 0.5]"),
            (positive(self.schedule.rate), "schedule.rate", "a number above 0"),
            (self.schedule.every > 0, "schedule.every", "at least 1"),
            ((0.0..=1.0).contains(&self.schedule.floor), "schedule.floor", "a factor in [0, 1]"),
        ];
        match rules.iter().find(|(ok, ..)| !ok) {
            Some((_, key, wanted)) => {
                Err(Error::new(ErrorKind::Usage, format!("train.{key}: expected {wanted}")))
            }
            None => Ok(()),
        }
    }

    /// (examples per step, steps per epoch, steps) for `n` training examples. Examples that do not fill a batch are
    /// left out of an epoch; the order changes with every epoch.
    pub fn plan(&self, n: usize) -> (usize, u64, u64) {
        let batch = self.batch.min(n).max(1);
        let per_epoch = (n / batch).max(1) as u64;
        (batch, per_epoch, self.steps.unwrap_or(self.epochs.saturating_mul(per_epoch)))
    }
}
