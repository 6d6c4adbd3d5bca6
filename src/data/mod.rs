//! Data: sources that read files into a [`Dataset`], and transforms with their log-determinants.
//!
//! [`open`] looks at a path and hands it to the source that knows it; each source is one file here and one
//! line of [`SOURCES`]. What comes out has one layout: images are (N, H, W, C) bytes, tables (N, D) floats with a
//! [`Schema`] where the file tells one; every value is finite (NaN where the schema says that a cell may be missing),
//! every label an `i32`. Files are distrusted: what a header declares is held against
//! the bytes that are there before memory is asked for, and [`ReadOptions::max_bytes`] bounds the rest.
//! [`prepare`] maps the data to where a model wants it and accounts for the change of volume.

mod cells;
mod csv;
mod dataset;
mod demo;
mod elements;
mod folder;
pub mod grain;
mod idx;
mod infer;
mod input;
mod log;
mod npy;
mod npz;
#[cfg(feature = "parquet")]
mod parquet;
pub mod planes;
pub mod prepare;
mod rows;
mod schema;
mod series;
mod templates;
mod text;
mod wav;
mod write;

pub use cells::date;
pub use dataset::{Cut, Dataset};
pub use demo::{Demo, demo, demo_folder};
pub use infer::Wish;
pub use prepare::{Prepare, Transform, mutate};
pub use rows::RowReader;
pub use schema::{Column, ColumnKind, Schema, UNSEEN};
pub use templates::Templates;
pub use write::{encode_png, grid, png, write_csv, write_npy, write_png};

use crate::error::{Error, ErrorKind, Result};
use std::path::Path;
use std::sync::Arc;

/// How to read.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadOptions {
    /// Keep only the first so many examples.
    pub limit: Option<usize>,
    /// Read with the source of this name, whatever the content looks like.
    pub format: Option<String>,
    /// The array to read from a file that holds several (npz).
    pub key: Option<String>,
    /// The array of labels in such a file, or the column of labels in a table.
    pub labels: Option<String>,
    /// Hold a table against this schema, column by column; without, it is inferred.
    pub schema: Option<Arc<Schema>>,
    /// What these columns are, whatever would be inferred.
    pub columns: Vec<(String, Wish)>,
    /// Give every inferred categorical column the level [`UNSEEN`] for values that are not in the file.
    pub unseen: bool,
    /// The steps of a window, of sources that cut sequences.
    pub window: Option<usize>,
    /// Steps from the start of one window to that of the next; as many as a window has by default.
    pub stride: Option<usize>,
    /// One example per line of a text.
    pub lines: bool,
    /// One example per session of a log: the lines with the same word that begins so.
    pub session: Option<String>,
    /// Hold the lines of a log against these templates; without, they are mined.
    pub templates: Option<Arc<Templates>>,
    /// Refuse to hold more than so many bytes of one array in memory.
    pub max_bytes: u64,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            limit: None,
            format: None,
            key: None,
            labels: None,
            schema: None,
            columns: Vec::new(),
            unseen: false,
            window: None,
            stride: None,
            lines: false,
            session: None,
            templates: None,
            max_bytes: 8 << 30,
        }
    }
}

impl ReadOptions {
    /// The number of examples to keep of `n`.
    fn keep(&self, n: u64) -> u64 {
        self.limit.map_or(n, |limit| n.min(limit as u64))
    }

    /// Steps of a window, and from one to the next.
    fn windows(&self, default: usize, path: &Path) -> Result<(usize, usize)> {
        let window = self.window.unwrap_or(default);
        let stride = self.stride.unwrap_or(window);
        if window == 0 || stride == 0 {
            let message =
                format!("{}: a window of {window} with stride {stride}; expected at least 1", path.display());
            return Err(Error::new(ErrorKind::Usage, message));
        }
        Ok((window, stride))
    }
}

/// What a source may look at to recognise its files.
pub struct Probe<'a> {
    /// The path as given.
    pub path: &'a Path,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// The first bytes of the content (decompressed if gzip); fewer than 16 in a shorter file.
    pub head: &'a [u8],
    /// How it is to be read.
    pub options: &'a ReadOptions,
}

/// One line of the registry: a kind of file.
pub struct SourceInfo {
    /// The registry's name.
    pub name: &'static str,
    /// `images`, `arrays`, `tables` or `sequences`.
    pub family: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// Usual endings of the file name, `.gz` taken off; they decide when no content is recognised.
    pub extensions: &'static [&'static str],
    /// Whether one file holds several arrays, chosen by [`ReadOptions::key`].
    pub has_keys: bool,
    /// Whether [`ReadOptions::labels`] chooses the labels.
    pub has_labels: bool,
    /// Whether the content is of this kind.
    pub probe: fn(&Probe) -> bool,
    /// Reads it.
    pub read: fn(&Path, &ReadOptions) -> Result<Dataset>,
}

/// All sources.
pub static SOURCES: &[&SourceInfo] = &[
    &idx::IDX,
    &npy::NPY,
    &npz::NPZ,
    &folder::FOLDER,
    &csv::CSV,
    &series::SERIES,
    &text::TEXT,
    &log::LOG,
    &log::EVENTS,
    &wav::WAV,
    #[cfg(feature = "parquet")]
    &parquet::PARQUET,
];

/// Reads `path` with the source that recognises its content, or else the ending of its name.
///
/// # Errors
/// When the path cannot be read, no source knows it, or its content is not what the source demands; the
/// message names the file and what was expected.
pub fn open(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Dataset> {
    let path = path.as_ref();
    let (is_dir, head) = input::look(path)?;
    let probe = Probe { path, is_dir, head: &head, options };
    let name = plain_name(path);
    let by_ending = |s: &&&SourceInfo| !is_dir && s.extensions.iter().any(|e| name.ends_with(e));
    let found = match &options.format {
        Some(format) => SOURCES.iter().find(|s| s.name == format),
        None => SOURCES.iter().find(|s| (s.probe)(&probe)).or_else(|| SOURCES.iter().find(by_ending)),
    };
    let Some(source) = found else {
        let known: Vec<&str> = SOURCES.iter().map(|s| s.name).collect();
        let message = format!("no known data format; --format says which of {}", known.join(", "));
        return Err(format(path, message));
    };
    if is_dir && source.name != folder::FOLDER.name {
        return Err(format(path, format_args!("a folder; expected a {} file", source.name)));
    }
    let usage = |message: String| Err(Error::new(ErrorKind::Usage, format!("{}: {message}", path.display())));
    if options.limit == Some(0) {
        return usage("a limit of 0 examples; expected at least 1".into());
    }
    if let (false, Some(key)) = (source.has_keys, &options.key) {
        return usage(format!("key \"{key}\" given, but {} files hold no named arrays", source.name));
    }
    if let (false, Some(key)) = (source.has_labels, &options.labels) {
        return usage(format!("labels \"{key}\" given, but {} files do not name theirs", source.name));
    }
    if options.schema.is_some() && source.family != csv::CSV.family {
        let message = "values without column names; expected a table with the columns of the schema";
        return Err(data(path, message));
    }
    (source.read)(path, options)
}

impl ReadOptions {
    /// As the data was cut that a model was trained on, where nothing else is asked for.
    pub fn cut_like(self, cut: &Cut) -> Self {
        Self {
            format: self.format.or_else(|| Some(cut.source.clone())),
            lines: self.lines || cut.lines,
            session: self.session.or_else(|| cut.session.clone()),
            templates: cut.templates.clone().map(Arc::new),
            ..self
        }
    }
}

/// Whether the ending of the name of the file `path` is that of a source.
pub fn knows(path: &Path) -> bool {
    let name = plain_name(path);
    path.is_file() && SOURCES.iter().any(|s| s.extensions.iter().any(|e| name.ends_with(e)))
}

/// The file name in lower case without `.gz`.
fn plain_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    name.strip_suffix(".gz").unwrap_or(&name).to_string()
}

/// An error about the format of a file.
fn format(path: &Path, message: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Format, format!("{}: {message}", path.display()))
}

/// An error about the data in a file.
fn data(path: &Path, message: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Data, format!("{}: {message}", path.display()))
}
