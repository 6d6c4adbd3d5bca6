//! Classical detectors: anomaly scores that are learned from a table without a likelihood model.
//!
//! ```text
//! Dataset -> Columns (one-hot, fill, standardise) -> Table -> Detector -> score per row -> p-value
//! ```
//! **Higher = more anomalous**, as everywhere. A detector is one file with one type that implements `Method`: what
//! it learned, how it learns it, how it scores. [`Detector`] is the same thing behind a pointer, with the checks that
//! all share: fitted first, as many columns as the reference, at least one row, every score finite. [`Pipeline`] joins
//! a detector with the preparation of its columns and with reference scores, and is what a file holds.
//!
//! Definitions and default settings are those of scikit-learn and PyOD (Zhao, Nasrullah & Li 2019), so that figures
//! can be held against theirs. What all detectors do with awkward tables: a column that is constant in the reference,
//! or missing altogether, says nothing (it is 0 everywhere); a missing cell is filled with the reference's mean;
//! duplicates count as often as they occur; one row, or more columns than rows, is enough to fit.

mod blocks;
mod cblof;
mod columns;
mod copod;
mod ecod;
mod eif;
mod gmm;
mod hbos;
mod hmm;
mod iforest;
mod kde;
mod kde_approx;
mod kmeans;
mod knn;
mod knn_indegree;
mod lda;
mod likelihood;
mod linalg;
mod lof;
mod mad;
mod mahalanobis;
mod mcd;
mod model;
mod neighbours;
mod on_device;
mod pca;
mod pipeline;
mod special;
mod table;
mod tails;
mod three_sigma;

pub use columns::{Columns, Scaling};
pub use model::model;
pub use neighbours::{Index, Neighbours};
pub use pipeline::Pipeline;
pub use table::Table;

use crate::cuda;
use crate::error::{Error, ErrorKind, Result, nearest};
use crate::random::Philox;
use crate::train::Observer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An anomaly score over the rows of a table.
pub trait Detector: Send + Sync {
    /// Learns what is normal from the rows of `reference`; `rng` serves detectors that draw at random.
    ///
    /// # Errors
    /// Without rows, and for rows that the detector cannot learn from.
    fn fit(&mut self, reference: &Table, rng: &Philox) -> Result<()> {
        self.fit_watched(reference, rng, &mut ())
    }

    /// As [`Self::fit`]; `observer` hears of detectors that train by gradient steps and may break off.
    ///
    /// # Errors
    /// Those of [`Self::fit`]; [`ErrorKind::Interrupted`] when broken off.
    fn fit_watched(&mut self, reference: &Table, rng: &Philox, observer: &mut dyn Observer) -> Result<()>;

    /// One finite score per row: higher = more anomalous.
    ///
    /// # Errors
    /// Before [`Self::fit`]; for another number of columns than the reference's.
    fn score(&self, x: &Table) -> Result<Vec<f64>>;

    /// Whether [`Self::fit`] and [`Self::score`] compute on the device that they are called on ([`crate::Device::run`]);
    /// others stay on the CPU.
    fn uses_devices(&self) -> bool;

    /// Settings and what was learned, as JSON; [`Self::restore`] reads it back.
    ///
    /// # Errors
    /// Before [`Self::fit`].
    fn state(&self) -> Result<Value>;

    /// Takes on a saved state, so that the scores are the same again, bit for bit.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when `state` is not what this detector saves, or contradicts itself.
    fn restore(&mut self, state: &Value) -> Result<()>;
}

/// One line of the registry.
pub struct DetectorInfo {
    /// The registry's name.
    pub name: &'static str,
    /// `neighbours`, `isolation`, `clusters`, `density`, `covariance`, `columns`, `counts` ...
    pub family: &'static str,
    /// One sentence, with the source paper.
    pub summary: &'static str,
    /// What the columns are turned into before the detector sees them.
    pub scaling: Scaling,
    /// The settings and their defaults.
    pub settings: fn() -> Value,
    /// Makes an unfitted detector; `settings` may name only those that differ from the defaults.
    pub build: fn(settings: &Value) -> Result<Box<dyn Detector>>,
}

/// All detectors.
pub static DETECTORS: &[&DetectorInfo] = &[
    &iforest::IFOREST,
    &eif::EIF,
    &knn::KNN,
    &knn_indegree::KNN_INDEGREE,
    &lof::LOF,
    &kmeans::KMEANS,
    &cblof::CBLOF,
    &kde::KDE,
    &kde_approx::KDE_APPROX,
    &three_sigma::THREE_SIGMA,
    &mad::MAD,
    &mahalanobis::MAHALANOBIS,
    &mcd::MCD,
    &pca::PCA,
    &gmm::GMM,
    &hmm::HMM,
    &hbos::HBOS,
    &ecod::ECOD,
    &copod::COPOD,
    &lda::LDA,
];

/// The registry's line of this name, or the one of a likelihood model that [`model()`] gives.
///
/// # Errors
/// [`ErrorKind::Usage`] that suggests the nearest name.
pub fn find(name: &str) -> Result<&'static DetectorInfo> {
    DETECTORS.iter().chain(&model::ALL).find(|d| d.name == name).copied().ok_or_else(|| {
        let hint = nearest(name, DETECTORS.iter().map(|d| d.name));
        Error::new(ErrorKind::Usage, format!("there is no detector \"{name}\"; {hint}"))
    })
}

/// What a detector's file implements: the type is what was learned.
trait Method: Serialize + DeserializeOwned + Send + Sync + Sized + 'static {
    /// The registry's line.
    const INFO: &'static DetectorInfo;
    /// Whether it computes on the device that it is run on ([`crate::Device::run`]); the others stay on the CPU.
    const DEVICES: bool = false;
    /// What can be chosen; an impossible choice is an error of [`Self::fit`].
    type Settings: Default + Serialize + DeserializeOwned + Send + Sync;

    /// Learns from at least one row.
    fn fit(settings: &Self::Settings, reference: &Table, rng: &Philox) -> Result<Self>;

    /// As [`Self::fit`], for methods that have something to tell meanwhile.
    fn fit_watched(
        settings: &Self::Settings,
        reference: &Table,
        rng: &Philox,
        _observer: &mut dyn Observer,
    ) -> Result<Self> {
        Self::fit(settings, reference, rng)
    }

    /// One finite score per row; `x` has as many columns as the reference.
    fn score(&self, x: &Table) -> Vec<f64>;

    /// The reference's number of columns, or `None` when the parts of a restored state do not fit together.
    fn columns(&self) -> Option<usize>;
}

/// A [`Method`] as a [`Detector`].
struct Boxed<M: Method> {
    settings: M::Settings,
    learned: Option<M>,
}

/// What [`Detector::state`] saves.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State<S, L> {
    settings: S,
    learned: L,
}

fn boxed<M: Method>(settings: &Value) -> Result<Box<dyn Detector>> {
    let wrong = |message: String| {
        Error::new(ErrorKind::Usage, format!("settings of the detector \"{}\": {message}", M::INFO.name))
    };
    let mut all = defaults::<M>();
    let given = match settings {
        Value::Null => &serde_json::Map::new(),
        Value::Object(given) => given,
        other => return Err(wrong(format!("expected a table, got {other}"))),
    };
    for (key, value) in given {
        match all.get_mut(key) {
            Some(slot) => *slot = value.clone(),
            None => {
                let known = all.as_object().map(|o| o.keys().map(String::as_str).collect::<Vec<_>>());
                return Err(wrong(format!(
                    "there is no \"{key}\"; {}",
                    nearest(key, known.unwrap_or_default())
                )));
            }
        }
    }
    let settings = M::Settings::deserialize(&all).map_err(|e| wrong(e.to_string()))?;
    Ok(Box::new(Boxed::<M> { settings, learned: None }))
}

fn defaults<M: Method>() -> Value {
    serde_json::to_value(M::Settings::default()).unwrap_or_default()
}

impl<M: Method> Detector for Boxed<M> {
    fn fit_watched(&mut self, reference: &Table, rng: &Philox, observer: &mut dyn Observer) -> Result<()> {
        if reference.rows() == 0 {
            let message = format!("no rows to fit the detector \"{}\" on", M::INFO.name);
            return Err(Error::new(ErrorKind::Data, message));
        }
        let mut fit = || M::fit_watched(&self.settings, reference, rng, observer);
        let learned = if M::DEVICES { fit() } else { cuda::on_host(fit) };
        self.learned = Some(learned.map_err(|e| e.at(format_args!("the detector \"{}\"", M::INFO.name)))?);
        Ok(())
    }

    fn score(&self, x: &Table) -> Result<Vec<f64>> {
        let learned = self.learned.as_ref().ok_or_else(unfitted::<M>)?;
        let columns = learned.columns().unwrap_or(0);
        if x.columns() != columns {
            let message =
                format!("the detector \"{}\" knows {columns} columns, got {}", M::INFO.name, x.columns());
            return Err(Error::new(ErrorKind::Data, message));
        }
        let scores = if M::DEVICES { learned.score(x) } else { cuda::on_host(|| learned.score(x)) };
        match scores.iter().position(|s| !s.is_finite()) {
            Some(row) => Err(Error::new(
                ErrorKind::NonFinite,
                format!("the detector \"{}\": row {row}: the score is {}", M::INFO.name, scores[row]),
            )),
            None => Ok(scores),
        }
    }

    fn uses_devices(&self) -> bool {
        M::DEVICES
    }

    fn state(&self) -> Result<Value> {
        let learned = self.learned.as_ref().ok_or_else(unfitted::<M>)?;
        serde_json::to_value(State { settings: &self.settings, learned }).map_err(|e| {
            Error::new(ErrorKind::Model, format!("state of the detector \"{}\": {e}", M::INFO.name))
        })
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        let wrong = |message: String| {
            let message = format!("saved state of the detector \"{}\": {message}", M::INFO.name);
            Error::new(ErrorKind::Model, message)
        };
        let state = State::<M::Settings, M>::deserialize(state).map_err(|e| wrong(e.to_string()))?;
        if state.learned.columns().is_none() {
            return Err(wrong("its parts do not fit together".into()));
        }
        (self.settings, self.learned) = (state.settings, Some(state.learned));
        Ok(())
    }
}

fn unfitted<M: Method>() -> Error {
    let message = format!("the detector \"{}\" must be fitted on a reference first", M::INFO.name);
    Error::new(ErrorKind::Usage, message)
}

/// An error about a setting.
fn setting(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, message)
}

/// Detectors without settings.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoSettings {}
