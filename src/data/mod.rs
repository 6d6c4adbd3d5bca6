//! Data: sources that read files into a [`Dataset`], and transforms with their log-determinants.
//!
//! [`open`] looks at a path and hands it to the source that knows it; each source is one file here and one
//! line of [`SOURCES`]. What comes out has one layout: images are (N, H, W, C) bytes, tables (N, D) floats,
//! every value finite, every label an `i32`. Files are distrusted: what a header declares is held against
//! the bytes that are there before memory is asked for, and [`ReadOptions::max_bytes`] bounds the rest.
//! [`prepare`] maps the data to where a model wants it and accounts for the change of volume.

mod dataset;
mod demo;
mod elements;
mod folder;
mod idx;
mod input;
mod npy;
mod npz;
pub mod prepare;
mod schema;
mod write;

pub use dataset::Dataset;
pub use demo::{Demo, demo, demo_folder};
pub use prepare::{Prepare, Transform, mutate};
pub use schema::{Column, ColumnKind, Schema};
pub use write::{encode_png, grid, png, write_npy, write_png};

use crate::error::{Error, ErrorKind, Result};
use std::path::Path;

/// How to read.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadOptions {
    /// Keep only the first so many examples.
    pub limit: Option<usize>,
    /// The array to read from a file that holds several (npz).
    pub key: Option<String>,
    /// The array of labels in such a file.
    pub labels: Option<String>,
    /// Refuse to hold more than so many bytes of one array in memory.
    pub max_bytes: u64,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { limit: None, key: None, labels: None, max_bytes: 8 << 30 }
    }
}

impl ReadOptions {
    /// The number of examples to keep of `n`.
    fn keep(&self, n: u64) -> u64 {
        self.limit.map_or(n, |limit| n.min(limit as u64))
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
}

/// One line of the registry: a kind of file.
pub struct SourceInfo {
    /// The registry's name.
    pub name: &'static str,
    /// `images` or `arrays`.
    pub family: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// Usual endings of the file name, `.gz` taken off; they decide when no content is recognised.
    pub extensions: &'static [&'static str],
    /// Whether one file holds several arrays, chosen by [`ReadOptions::key`].
    pub has_keys: bool,
    /// Whether the content is of this kind.
    pub probe: fn(&Probe) -> bool,
    /// Reads it.
    pub read: fn(&Path, &ReadOptions) -> Result<Dataset>,
}

/// All sources.
pub static SOURCES: &[&SourceInfo] = &[&idx::IDX, &npy::NPY, &npz::NPZ, &folder::FOLDER];

/// Reads `path` with the source that recognises its content, or else the ending of its name.
///
/// # Errors
/// When the path cannot be read, no source knows it, or its content is not what the source demands; the
/// message names the file and what was expected.
pub fn open(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Dataset> {
    let path = path.as_ref();
    let (is_dir, head) = input::look(path)?;
    let probe = Probe { path, is_dir, head: &head };
    let name = plain_name(path);
    let by_ending = |s: &&&SourceInfo| !is_dir && s.extensions.iter().any(|e| name.ends_with(e));
    let found = SOURCES.iter().find(|s| (s.probe)(&probe)).or_else(|| SOURCES.iter().find(by_ending));
    let Some(source) = found else {
        let known: Vec<&str> = SOURCES.iter().map(|s| s.name).collect();
        return Err(format(path, format!("no known data format; expected one of {}", known.join(", "))));
    };
    let usage = |message: String| Err(Error::new(ErrorKind::Usage, format!("{}: {message}", path.display())));
    if options.limit == Some(0) {
        return usage("a limit of 0 examples; expected at least 1".into());
    }
    if let (false, Some(key)) = (source.has_keys, options.key.as_ref().or(options.labels.as_ref())) {
        return usage(format!("key \"{key}\" given, but {} files hold no named arrays", source.name));
    }
    (source.read)(path, options)
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
