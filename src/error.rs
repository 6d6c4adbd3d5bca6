//! The one error type of the crate: a kind, a message that names what was wrong and what was expected.
//!
//! Shape and dtype mistakes are bugs of the caller and panic; everything that comes from outside (files,
//! configurations, devices, memory, non-finite training) is an [`Error`].

use std::fmt;
use std::path::Path;

/// What went wrong, coarsely; it decides the exit code of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A wrong option, preset, key or argument (exit code 2).
    Usage,
    /// The operating system refused to read or write.
    Io,
    /// A file's content is not what its format demands.
    Format,
    /// Data of the wrong dtype, rank, size or with non-finite values.
    Data,
    /// A model file that cannot be used: truncated, oversized, of another version, missing a tensor.
    Model,
    /// A loss, gradient or score that is not finite.
    NonFinite,
    /// The run was interrupted by the user; what was learned has been saved.
    Interrupted,
    /// A device that is missing or failed.
    Device,
}

/// An error with its kind, its message and the chain of places it passed through.
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind` with a message that says what was found and what was expected.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// An operating-system error about `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::new(ErrorKind::Io, format!("{}: {source}", path.as_ref().display()))
    }

    /// The same error with a place in front: `context: message`.
    pub fn at(self, context: impl fmt::Display) -> Self {
        Self { kind: self.kind, message: format!("{context}: {}", self.message) }
    }

    /// What went wrong, coarsely.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The exit code for the command line: 2 for usage, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        if self.kind == ErrorKind::Usage { 2 } else { 1 }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The message and the kind: what `fn main() -> Result<()>` and `unwrap` print.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.message, self.kind)
    }
}

impl std::error::Error for Error {}

/// `did you mean "…"?` for the nearest of `known`, or the list of all when none is near.
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let best = known.iter().map(|k| (strsim::damerau_levenshtein(given, k), *k)).min();
    match best {
        Some((d, k)) if d <= 2.max(given.len() / 3) => format!("did you mean \"{k}\"?"),
        _ => format!("known: {}", known.join(", ")),
    }
}
