//! Reading bytes that are not trusted: plain or gzip files and archive members, with every declared size
//! held against what can be there before memory is asked for.

use super::{ReadOptions, data, format};
use crate::error::{Error, Result};
use flate2::bufread::MultiGzDecoder;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Deflate cannot expand by more than this factor.
pub(super) const DEFLATE_MAX_RATIO: u64 = 1032;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Whether `path` is a directory, and the first bytes of its content.
pub(super) fn look(path: &Path) -> Result<(bool, Vec<u8>)> {
    let io = |e| Error::io(path, e);
    if std::fs::metadata(path).map_err(io)?.is_dir() {
        return Ok((true, Vec::new()));
    }
    let mut head = Vec::new();
    let mut input = Input::open(path)?;
    // A damaged gzip stream is reported by the source that reads it.
    let _ = (&mut input.reader).take(16).read_to_end(&mut head);
    Ok((false, head))
}

/// A stream of bytes with what is known about its length.
pub(super) struct Input<'a> {
    reader: Box<dyn Read + 'a>,
    path: PathBuf,
    /// The exact length, unless compressed.
    size: Option<u64>,
    /// The stream cannot be longer than this.
    bound: u64,
    used: u64,
}

impl Input<'static> {
    /// Opens a file; gzip is recognised by its magic number.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let gz = reader.fill_buf().map_err(io)?.starts_with(&GZIP_MAGIC);
        if gz {
            let reader = Box::new(MultiGzDecoder::new(reader));
            return Ok(Input::compressed(reader, path, size));
        }
        Ok(Self {
            reader: Box::new(reader),
            path: path.to_path_buf(),
            size: Some(size),
            bound: size,
            used: 0,
        })
    }
}

impl<'a> Input<'a> {
    /// The decompressed stream of `compressed` bytes of deflate; `path` names it in messages.
    pub(super) fn compressed(reader: Box<dyn Read + 'a>, path: &Path, compressed: u64) -> Self {
        let bound = compressed.saturating_mul(DEFLATE_MAX_RATIO);
        Self { reader, path: path.to_path_buf(), size: None, bound, used: 0 }
    }

    /// The name for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The next `n` bytes of a header, `what` in messages; `n` is small.
    pub(super) fn header(&mut self, n: usize, what: &str) -> Result<Vec<u8>> {
        let bytes = self.read_up_to(n as u64)?;
        if bytes.len() < n {
            return Err(format(
                &self.path,
                format_args!("truncated: {what} takes {n} bytes, the file ends after {}", bytes.len()),
            ));
        }
        Ok(bytes)
    }

    /// The first `wanted` of the `declared` bytes that the header says follow to the end.
    ///
    /// The declared size is checked against the length of the file (or what its compressed length can
    /// expand to), memory grows with the bytes that really arrive, and never beyond `wanted`.
    pub(super) fn payload(&mut self, declared: u128, wanted: u128, options: &ReadOptions) -> Result<Vec<u8>> {
        let left = self.bound.saturating_sub(self.used);
        let wrong = match self.size {
            Some(_) if declared > u128::from(left) => Some(format!("truncated: only {left} bytes follow")),
            Some(_) if declared < u128::from(left) => Some(format!("too long: {left} bytes follow")),
            None if declared > u128::from(left) => {
                Some(format!("oversized: the compressed file can hold {left} at most"))
            }
            _ => None,
        };
        if let Some(wrong) = wrong {
            return Err(format(&self.path, format_args!("{wrong}; the header declares {declared}")));
        }
        if wanted > u128::from(options.max_bytes) {
            return Err(data(
                &self.path,
                format_args!(
                    "{:.1} GiB of values, more than the {:.1} GiB allowed in memory; set a limit on the examples",
                    wanted as f64 / f64::from(1 << 30),
                    options.max_bytes as f64 / f64::from(1 << 30)
                ),
            ));
        }
        let bytes = self.read_up_to(wanted as u64)?;
        if (bytes.len() as u128) < wanted {
            return Err(format(
                &self.path,
                format_args!("truncated: {} bytes follow the header, which declares {declared}", bytes.len()),
            ));
        }
        // Reading the end of a compressed stream also verifies its checksum.
        if wanted == declared && !self.read_up_to(1)?.is_empty() {
            return Err(format(
                &self.path,
                format_args!("too long: the header declares {declared} bytes of values"),
            ));
        }
        Ok(bytes)
    }

    /// The whole content, of a format that declares no sizes.
    pub(super) fn all(&mut self, options: &ReadOptions) -> Result<Vec<u8>> {
        let bytes = self.read_up_to(options.max_bytes)?;
        if bytes.len() as u64 == options.max_bytes && !self.read_up_to(1)?.is_empty() {
            let most = options.max_bytes as f64 / f64::from(1 << 30);
            return Err(data(&self.path, format_args!("more than the {most:.1} GiB allowed in memory")));
        }
        Ok(bytes)
    }

    fn read_up_to(&mut self, n: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(n.min(self.size.unwrap_or(1 << 16)) as usize);
        match (&mut self.reader).take(n).read_to_end(&mut bytes) {
            Ok(read) => {
                self.used += read as u64;
                Ok(bytes)
            }
            Err(e) if self.size.is_none() && e.kind() != io::ErrorKind::OutOfMemory => {
                Err(format(&self.path, format_args!("damaged compressed data: {e}")))
            }
            Err(e) => Err(Error::io(&self.path, e)),
        }
    }
}
