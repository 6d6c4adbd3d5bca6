//! What a run needs to continue: `optimiser.safetensors` beside the usable `model.safetensors`.
//!
//! The optimiser's file alone holds everything that continuing needs, so the pair cannot disagree: present weights,
//! moments, moving average, best weights so far, and a `Progress`.

use super::{FitOptions, fit::Progress, optim::Optimiser};
use crate::error::{Error, ErrorKind, Result};
use crate::models::{Model, container, file};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Name of the model file in a checkpoint's folder.
pub const MODEL: &str = "model.safetensors";
/// Name of the file with the optimiser's state.
pub const OPTIMISER: &str = "optimiser.safetensors";

/// The document in the header of the optimiser's file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct State {
    version: u32,
    model: String,
    preset: String,
    config: serde_json::Value,
    options: FitOptions,
    /// Fingerprints of the training and the validation examples.
    data: Vec<String>,
    progress: Progress,
}

/// The settings of the run whose checkpoint lies in `dir`: model name, preset, configuration, options.
#[derive(Debug, Clone, PartialEq)]
pub struct Origin {
    /// The model's name in the registry.
    pub model: String,
    /// The preset or file it came from.
    pub preset: String,
    /// Its configuration.
    pub config: serde_json::Value,
    /// How it was trained.
    pub options: FitOptions,
}

/// Reads what the checkpoint in `dir` came from.
///
/// # Errors
/// When there is no checkpoint or its file is damaged.
pub fn origin(dir: &Path) -> Result<Origin> {
    let path = dir.join(OPTIMISER);
    let State { model, preset, config, options, .. } =
        parse(&path, &container::read(&path, |_| false)?.meta)?;
    Ok(Origin { model, preset, config, options })
}

fn parse(path: &Path, meta: &serde_json::Value) -> Result<State> {
    let wrong = |e: Error| Error::new(ErrorKind::Model, format!("{}: {e}", path.display()));
    file::check_version(meta).map_err(wrong)?;
    let state = State::deserialize(meta)
        .map_err(|e| wrong(Error::new(ErrorKind::Model, format!("not a checkpoint of this program: {e}"))))?;
    state.options.check().map_err(wrong)?;
    Ok(state)
}

/// Writes both files of `options.checkpoints`; the path of the model file, if there is a folder.
pub(super) fn save(
    options: &FitOptions,
    data: &[String],
    optimiser: &Optimiser,
    best: Option<&BTreeMap<String, Tensor>>,
    progress: &Progress,
    training: serde_json::Value,
) -> Result<Option<PathBuf>> {
    let Some(place) = &options.checkpoints else { return Ok(None) };
    std::fs::create_dir_all(&place.dir).map_err(|e| Error::io(&place.dir, e))?;
    let mut tensors = BTreeMap::new();
    optimiser.save(&mut tensors);
    for (name, tensor) in best.into_iter().flatten() {
        tensors.insert(format!("best.{name}"), tensor.clone());
    }
    let state = State {
        version: file::VERSION,
        model: place.meta.model.clone(),
        preset: place.meta.preset.clone(),
        config: place.meta.config.clone(),
        options: options.clone(),
        data: data.to_vec(),
        progress: progress.clone(),
    };
    let json =
        serde_json::to_value(state).map_err(|e| Error::new(ErrorKind::Model, format!("checkpoint: {e}")))?;
    container::write(place.dir.join(OPTIMISER), &tensors, &json)?;
    let path = place.dir.join(MODEL);
    let usable = best.cloned().unwrap_or_else(|| optimiser.averaged());
    file::save(&path, &usable, &file::Meta { training: Some(training), ..place.meta.clone() })?;
    Ok(Some(path))
}

/// Restores the run in `dir` into `model` and `optimiser`: its progress and best weights.
pub(super) fn load(
    dir: &Path,
    model: &dyn Model,
    options: &FitOptions,
    data: &[String],
    optimiser: &mut Optimiser,
) -> Result<(Progress, Option<BTreeMap<String, Tensor>>)> {
    let path = dir.join(OPTIMISER);
    let container::Container { meta, tensors } = container::read(&path, |_| true)?;
    let state = parse(&path, &meta)?;
    let refuse =
        |message: String| Err(Error::new(ErrorKind::Usage, format!("{}: {message}", path.display())));
    if state.config != model.config() {
        return refuse("the checkpoint is of a model with another configuration".into());
    }
    if state.data != data {
        return refuse("the checkpoint was made with other data or another validation split".into());
    }
    let (old, new) = (&state.options, options);
    let fixed = [
        ("batch", old.batch.to_string(), new.batch.to_string()),
        ("seed", old.seed.to_string(), new.seed.to_string()),
        ("ema", format!("{:?}", old.ema), format!("{:?}", new.ema)),
    ];
    if let Some((key, old, new)) = fixed.iter().find(|(_, old, new)| old != new) {
        return refuse(format!("train.{key} was {old} and cannot become {new} in the middle of a run"));
    }
    let at = |e: Error| e.at(path.display());
    optimiser.restore(&tensors, state.progress.step).map_err(at)?;
    let mut best = BTreeMap::new();
    for (name, tensor) in tensors {
        if let Some(name) = name.strip_prefix("best.") {
            best.insert(name.to_string(), tensor);
        }
    }
    Ok((state.progress, (!best.is_empty()).then_some(best)))
}
