//! What the commands read: data sets and model files.

use super::{Common, progress};
use crate::data::{self, Dataset, ReadOptions, Schema, Wish};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::models::file::{self, ModelFile};
use crate::train::{Evaluate, LogProbs, log_probs_while};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How to read data sets.
#[derive(clap::Args)]
pub struct Reading {
    /// Keep only the first N examples of each data set
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// The array to read from npz files; `file.npz[NAME]` chooses it for one file
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    /// The array of labels in npz files, or the column of labels in tables
    #[arg(long, visible_alias = "label", value_name = "NAME")]
    labels: Option<String>,
    /// What a column of a table is: numeric, categorical, boolean, date or drop [default: inferred; `info FILE`
    /// shows it]
    #[arg(long = "column", value_name = "NAME=KIND", value_parser = column)]
    columns: Vec<(String, Wish)>,
    /// Give categorical columns a level for values that are not in the training data, instead of refusing them later
    #[arg(long)]
    unseen: bool,
    /// Cut text and series into windows of N steps [default: 256 bytes; of a model, what it was trained on]
    #[arg(long, value_name = "N")]
    window: Option<usize>,
    /// Steps from one window to the next [default: as many as a window has]
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// One example per line of a text, cut or filled up to the window
    #[arg(long)]
    lines: bool,
    /// One example per session of a log: the lines that have the same word beginning so, e.g. blk_
    #[arg(long, value_name = "BEGINNING")]
    session: Option<String>,
    /// Read files as this format (`list sources`), whatever they look like
    #[arg(long, value_name = "NAME")]
    format: Option<String>,
}

/// `NAME=KIND`.
fn column(text: &str) -> std::result::Result<(String, Wish), String> {
    let (name, kind) = text.rsplit_once('=').ok_or("expected NAME=KIND")?;
    Ok((name.to_string(), kind.parse()?))
}

impl Reading {
    /// Reads `path`.
    pub fn open(&self, path: &Path) -> Result<Dataset> {
        self.read(path, self.options())
    }

    /// Reads `path` as this model expects it: a table in the columns that it was trained on, a sequence in windows of
    /// its length, a log in its templates.
    pub fn open_for(&self, path: &Path, file: &ModelFile) -> Result<Dataset> {
        let input = file.model.input();
        let window = match *input.shape {
            [time] if !input.dtypes[0].is_float() => Some(time),
            [time, _] => Some(time),
            _ => None,
        };
        let schema = file.meta.data.as_ref().and_then(|d| d.schema.clone());
        let window = self.window.or(window);
        let options = ReadOptions { schema: schema.map(Arc::new), window, ..self.options() };
        match file.meta.data.as_ref().and_then(|d| d.cut.as_ref()) {
            Some(cut) => self.read(path, options.cut_like(cut)),
            None => self.read(path, options),
        }
    }

    /// Reads `path`, a table in the columns of `schema`.
    pub fn open_like(&self, path: &Path, schema: Option<Arc<Schema>>) -> Result<Dataset> {
        self.read(path, ReadOptions { schema, ..self.options() })
    }

    /// Reads `path` as `other` was read: a table in its columns, a log in its templates.
    pub fn open_beside(&self, path: &Path, other: &Dataset) -> Result<Dataset> {
        let options = ReadOptions { schema: other.schema.clone(), ..self.options() };
        match &other.cut {
            Some(cut) => self.read(path, options.cut_like(cut)),
            None => self.read(path, options),
        }
    }

    /// Reads `path`; `file.npz[NAME]` is the array NAME in it, as messages call it.
    fn read(&self, path: &Path, options: ReadOptions) -> Result<Dataset> {
        let text = path.to_str().filter(|_| !path.exists());
        match text.and_then(|t| t.strip_suffix(']')).and_then(|t| t.rsplit_once('[')) {
            Some((file, key)) => data::open(file, &ReadOptions { key: Some(key.to_string()), ..options }),
            None => data::open(path, &options),
        }
    }

    fn options(&self) -> ReadOptions {
        ReadOptions {
            limit: self.limit,
            format: self.format.clone(),
            key: self.key.clone(),
            labels: self.labels.clone(),
            columns: self.columns.clone(),
            unseen: self.unseen,
            window: self.window,
            stride: self.stride,
            lines: self.lines,
            session: self.session.clone(),
            ..Default::default()
        }
    }
}

/// Reads a model file; a folder stands for the `model.safetensors` in it.
pub fn model(path: &Path) -> Result<ModelFile> {
    file::load(model_path(path))
}

/// Reads a model file and moves the model to the device.
pub fn model_on(path: &Path, common: &Common) -> Result<ModelFile> {
    let file = model(path)?;
    to_device(&*file.model, common)?;
    Ok(file)
}

/// Moves `model` to the device, or says that it stays.
pub fn to_device(model: &dyn Model, common: &Common) -> Result<()> {
    model.to(common.device)?;
    if model.device() != common.device {
        let note = "this model calculates in f64, which devices do not: it runs on the CPU";
        progress::say(common, note);
    }
    Ok(())
}

/// The model file that `path` means.
pub fn model_path(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(crate::train::checkpoint::MODEL) } else { path.to_path_buf() }
}

/// The folder of member `i` (from 2) of the ensemble whose first member is written to `dir`.
pub fn member_dir(dir: &Path, i: usize) -> PathBuf {
    dir.join(format!("member-{i}"))
}

/// The files of the other members of the ensemble of the model file at `path`, in order.
pub fn members(path: &Path) -> Vec<PathBuf> {
    let dir = path.parent().unwrap_or(Path::new("."));
    (2..)
        .map(|i| member_dir(dir, i).join(crate::train::checkpoint::MODEL))
        .take_while(|p| p.is_file())
        .collect()
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
