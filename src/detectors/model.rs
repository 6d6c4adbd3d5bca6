//! Any likelihood model of tables as a detector: score(x) = −log p(x), in nats of the prepared columns.
//!
//! A model that knows kinds of columns (`made`) sees categories as levels; the others see one number per level. It
//! is not in the registry, whose detectors need no training by gradient steps; `detect --model` asks for it.

use super::likelihood::Likelihood;
use super::{DetectorInfo, Method, Scaling, Table, boxed, defaults};
use crate::error::Result;
use crate::models::MODELS;
use crate::models::config::{self, Recipe};
use crate::random::Philox;
use crate::train::Observer;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Over numbers.
static NUMBERS: DetectorInfo = DetectorInfo {
    name: "model",
    family: "density",
    summary: "-log p of a likelihood model of numbers",
    scaling: Scaling::Standard,
    settings: defaults::<AnyModel<false>>,
    build: boxed::<AnyModel<false>>,
};

/// Over numbers and levels.
static COLUMNS: DetectorInfo = DetectorInfo {
    name: "model_of_columns",
    summary: "-log p of a likelihood model of numbers and categories",
    family: "density",
    scaling: Scaling::Levels,
    settings: defaults::<AnyModel<true>>,
    build: boxed::<AnyModel<true>>,
};

/// Both.
pub(super) static ALL: [&DetectorInfo; 2] = [&NUMBERS, &COLUMNS];

/// The detector and its settings for the model or preset called `name`, changed by the assignments `set`.
///
/// # Errors
/// An unknown model, an assignment that it does not take.
pub fn model(name: &str, set: &[String]) -> Result<(&'static DetectorInfo, Value)> {
    let mut recipe: Recipe = config::find(MODELS, name)?;
    recipe.set(set)?;
    let columns = recipe.config.get("columns").is_some();
    Ok((if columns { &COLUMNS } else { &NUMBERS }, json!({"model": name, "set": set})))
}

#[derive(Default, Serialize, Deserialize)]
struct Settings {
    /// A model, a preset or a TOML file.
    model: String,
    /// Assignments `key=value`.
    set: Vec<String>,
}

/// `LEVELS`: whether the model takes categories as levels.
#[derive(Serialize, Deserialize)]
struct AnyModel<const LEVELS: bool> {
    likelihood: Likelihood,
}

impl<const LEVELS: bool> Method for AnyModel<LEVELS> {
    const INFO: &'static DetectorInfo = if LEVELS { &COLUMNS } else { &NUMBERS };
    const DEVICES: bool = true;
    type Settings = Settings;

    fn fit(settings: &Settings, reference: &Table, rng: &Philox) -> Result<Self> {
        Self::fit_watched(settings, reference, rng, &mut ())
    }

    fn fit_watched(
        settings: &Settings,
        reference: &Table,
        rng: &Philox,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let Settings { model, set } = settings;
        Ok(Self { likelihood: Likelihood::fit(model, &[], set, reference, rng, observer)? })
    }

    fn score(&self, x: &Table) -> Vec<f64> {
        self.likelihood.score(x)
    }

    fn columns(&self) -> Option<usize> {
        self.likelihood.columns()
    }
}
