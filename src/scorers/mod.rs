//! Scorers turn evidence about observations into anomaly scores: **higher = more anomalous**.
//!
//! Models are evaluated once; scorers work on the resulting [`Evidence`]. A scorer first learns from reference
//! evidence what is normal ([`Scorer::fit`]), then gives scores; what it learned can be saved and restored as JSON.
//! The rows that fit a scorer should be neither those that trained the model nor those that calibrate it.

mod complexity;
mod likelihood_ratio;
mod nll;
mod typicality;

pub use complexity::{Complexity, Compressor, compressed_bits};
pub use likelihood_ratio::LikelihoodRatio;
pub use nll::Nll;
pub use typicality::Typicality;

use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result, nearest};
use crate::models::Kind;
use crate::tensor::DType;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What is known about each observation of a data set.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// The observations themselves.
    pub data: &'a Dataset,
    /// log p(x) under the model, nats per example.
    pub nats: &'a [f64],
    /// What `nats` is.
    pub kind: Kind,
    /// log p(x) under the background model, nats per example, if there is one.
    pub background: Option<&'a [f64]>,
}

/// An anomaly score.
pub trait Scorer: Send + Sync {
    /// Learns what is normal from reference evidence that the model was not trained on.
    ///
    /// # Errors
    /// Evidence that the scorer does not accept (see [`ScorerInfo::check`]) or that is empty.
    fn fit(&mut self, reference: &Evidence) -> Result<()>;

    /// One finite score per observation (per batch for batch scorers): higher = more anomalous.
    ///
    /// # Errors
    /// Before [`Self::fit`]; for evidence that the scorer does not accept, or of another kind or shape than the
    /// reference.
    fn score(&self, evidence: &Evidence) -> Result<Vec<f64>>;

    /// How many consecutive rows share one score: 1, or M for scorers that judge batches.
    fn rows_per_score(&self) -> usize {
        1
    }

    /// What was learned and set, as JSON; [`Self::restore`] reads it back.
    ///
    /// # Errors
    /// Before [`Self::fit`].
    fn state(&self) -> Result<Value>;

    /// Takes on a saved state, so that the scores are the same again.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when `state` is not what this scorer saves.
    fn restore(&mut self, state: &Value) -> Result<()>;
}

/// One line of the registry.
pub struct ScorerInfo {
    /// The registry's name.
    pub name: &'static str,
    /// `likelihood`, `ratio`, `complexity`, `typicality` ...
    pub family: &'static str,
    /// One sentence, with the source paper.
    pub summary: &'static str,
    /// Unit of the score.
    pub unit: &'static str,
    /// Which kinds of log-likelihood it accepts.
    pub accepts: &'static [Kind],
    /// Whether it needs a background model.
    pub needs_background: bool,
    /// Whether it needs the observations to be u8 images.
    pub needs_images: bool,
    /// Makes an unfitted scorer with default settings.
    pub build: fn() -> Box<dyn Scorer>,
}

/// Every kind of log-likelihood, for scorers to which only its order or its spread matters.
const ANY_KIND: &[Kind] = &[Kind::Exact, Kind::LowerBound, Kind::Estimate, Kind::Unnormalised];
/// The kinds whose zero has a meaning: no unknown constant.
const NORMALISED: &[Kind] = &[Kind::Exact, Kind::LowerBound, Kind::Estimate];

/// All scorers.
pub static SCORERS: &[&ScorerInfo] = &[
    &nll::NLL,
    &likelihood_ratio::LIKELIHOOD_RATIO,
    &complexity::COMPLEXITY_PNG,
    &complexity::COMPLEXITY_ZSTD,
    &typicality::TYPICALITY,
    &typicality::TYPICALITY_BATCH,
];

/// The registry's line of this name.
///
/// # Errors
/// [`ErrorKind::Usage`] that suggests the nearest name.
pub fn find(name: &str) -> Result<&'static ScorerInfo> {
    SCORERS.iter().find(|s| s.name == name).copied().ok_or_else(|| {
        let hint = nearest(name, SCORERS.iter().map(|s| s.name));
        Error::new(ErrorKind::Usage, format!("there is no scorer \"{name}\"; {hint}"))
    })
}

impl ScorerInfo {
    /// Whether evidence of this sort can be scored at all: its kind, a background model, images. The command line
    /// leaves out the scorers for which this is an error when all of them are asked for.
    ///
    /// # Errors
    /// One sentence that names the scorer, what it needs and what is there instead.
    pub fn applies(&self, evidence: &Evidence) -> Result<()> {
        let Evidence { data, kind, background, .. } = *evidence;
        if !self.accepts.contains(&kind) {
            let accepted: Vec<&str> = self.accepts.iter().map(|&k| words(k)).collect();
            return Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "{}: the scorer \"{}\" works on {} log-likelihoods; this model gives {} ones",
                    data.name,
                    self.name,
                    accepted.join(" or "),
                    words(kind)
                ),
            ));
        }
        if self.needs_background && background.is_none() {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("{}: the scorer \"{}\" needs a background model", data.name, self.name),
            ));
        }
        if self.needs_images { check_image(self, data) } else { Ok(()) }
    }

    /// [`Self::applies`], and one finite log-likelihood for every observation.
    ///
    /// # Errors
    /// Those of [`Self::applies`]; [`ErrorKind::Data`] when the numbers of rows differ; [`ErrorKind::NonFinite`]
    /// naming the first row whose log-likelihood is NaN or infinite.
    pub fn check(&self, evidence: &Evidence) -> Result<()> {
        self.applies(evidence)?;
        let Evidence { data, nats, background, .. } = *evidence;
        let n = data.values.shape().first().copied().unwrap_or(0);
        let background = if self.needs_background { background } else { None };
        for (what, nats) in [("the model", Some(nats)), ("the background model", background)] {
            let Some(nats) = nats else { continue };
            if nats.len() != n {
                return Err(Error::new(
                    ErrorKind::Data,
                    format!("{}: {} log-likelihoods of {what} for {n} examples", data.name, nats.len()),
                ));
            }
            if let Some(row) = nats.iter().position(|l| !l.is_finite()) {
                return Err(Error::new(
                    ErrorKind::NonFinite,
                    format!("{}: row {row}: the log-likelihood of {what} is {}", data.name, nats[row]),
                ));
            }
        }
        Ok(())
    }
}

fn words(kind: Kind) -> &'static str {
    match kind {
        Kind::Exact => "exact",
        Kind::LowerBound => "lower-bound",
        Kind::Estimate => "estimated",
        Kind::Unnormalised => "unnormalised",
    }
}

/// What every scorer remembers of its reference: other evidence must be of the same kind and shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Fit {
    kind: Kind,
    /// Shape of one example.
    shape: Vec<usize>,
}

impl Fit {
    /// Checks the reference for the scorer `info`.
    fn new(info: &ScorerInfo, reference: &Evidence) -> Result<Self> {
        info.check(reference)?;
        if reference.nats.is_empty() {
            let message = format!("{}: no reference rows to fit \"{}\" on", reference.data.name, info.name);
            return Err(Error::new(ErrorKind::Data, message));
        }
        Ok(Self { kind: reference.kind, shape: reference.data.values.shape()[1..].to_vec() })
    }

    /// Checks evidence to be scored against the reference.
    fn check(&self, info: &ScorerInfo, evidence: &Evidence) -> Result<()> {
        info.check(evidence)?;
        let (name, shape) = (&evidence.data.name, &evidence.data.values.shape()[1..]);
        if self.kind != evidence.kind || self.shape != shape {
            return Err(Error::new(
                ErrorKind::Data,
                format!(
                    "{name}: \"{}\" was fitted on {} log-likelihoods of examples {:?}, got {} ones of {shape:?}",
                    info.name,
                    words(self.kind),
                    self.shape,
                    words(evidence.kind)
                ),
            ));
        }
        Ok(())
    }
}

/// What was learned, if anything was.
fn fitted<'a, T>(learned: &'a Option<T>, info: &ScorerInfo) -> Result<&'a T> {
    learned.as_ref().ok_or_else(|| {
        let message = format!("the scorer \"{}\" must be fitted on a reference first", info.name);
        Error::new(ErrorKind::Usage, message)
    })
}

fn save<T: Serialize>(learned: &Option<T>, info: &ScorerInfo) -> Result<Value> {
    serde_json::to_value(fitted(learned, info)?)
        .map_err(|e| Error::new(ErrorKind::Model, format!("state of the scorer \"{}\": {e}", info.name)))
}

fn load<T: DeserializeOwned>(info: &ScorerInfo, state: &Value) -> Result<T> {
    T::deserialize(state).map_err(|e| {
        Error::new(ErrorKind::Model, format!("saved state of the scorer \"{}\": {e}", info.name))
    })
}

/// u8 images (N, H, W, C) with 1 to 4 channels and at least one pixel.
fn check_image(info: &ScorerInfo, data: &Dataset) -> Result<()> {
    let (shape, dtype) = (data.values.shape(), data.values.dtype());
    match shape {
        [_, h, w, 1..=4] if *h > 0 && *w > 0 && dtype == DType::U8 => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Usage,
            format!(
                "{}: the scorer \"{}\" needs u8 images (N, H, W, 1 to 4), got {dtype:?} {shape:?}; \
                 \"complexity_zstd\" works on any data",
                data.name, info.name
            ),
        )),
    }
}
