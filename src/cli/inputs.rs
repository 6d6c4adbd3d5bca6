//! What the commands read: data sets and model files.

use super::{Common, progress};
use crate::data::{self, Dataset, ReadOptions};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::models::file::{self, ModelFile};
use crate::train::{Evaluate, LogProbs, log_probs_while};
use std::path::{Path, PathBuf};

/// How to read data sets.
#[derive(clap::Args)]
pub struct Reading {
    /// Keep only the first N examples of each data set
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// The array to read from npz files
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    /// The array of labels in npz files
    #[arg(long, value_name = "NAME")]
    labels: Option<String>,
}

impl Reading {
    /// Reads `path`.
    pub fn open(&self, path: &Path) -> Result<Dataset> {
        let options = ReadOptions {
            limit: self.limit,
            key: self.key.clone(),
            labels: self.labels.clone(),
            ..Default::default()
        };
        data::open(path, &options)
    }
}

/// Reads a model file; a folder stands for the `model.safetensors` in it.
pub fn model(path: &Path) -> Result<ModelFile> {
    file::load(model_path(path))
}

/// The model file that `path` means.
pub fn model_path(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(crate::train::checkpoint::MODEL) } else { path.to_path_buf() }
}

/// log p of every example, with a bar.
pub fn evaluate(common: &Common, model: &dyn Model, seed: u64, data: &Dataset) -> Result<LogProbs> {
    let how = Evaluate { seed, ..Default::default() };
    log_probs_while(model, data, &how, &mut progress::counting(common, &data.name, data.len()))
}

/// Makes the folder `dir` if it is not there, and finds out now whether files can be written in it.
pub fn writable(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)
        .and_then(|()| tempfile::tempfile_in(dir).map(drop))
        .map_err(|e| Error::io(dir, e))
}
