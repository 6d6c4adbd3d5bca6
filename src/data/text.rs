//! Text and other streams of bytes as sequences of tokens 0..256.
//!
//! A stream is cut into windows of [`ReadOptions::window`] bytes, one every [`ReadOptions::stride`]; what does not
//! fill a window at the end is left out. With [`ReadOptions::lines`] every line that is not empty is an example
//! instead: cut after as many bytes as a window has, or filled up with zero bytes, so that a model learns where
//! lines end.

use super::input::Input;
use super::{Cut, Dataset, Probe, ReadOptions, SourceInfo, data};
use crate::error::Result;
use crate::tensor::Tensor;
use std::path::Path;
use std::sync::Arc;

/// The registry line.
pub(super) static TEXT: SourceInfo = SourceInfo {
    name: "text",
    family: "sequences",
    summary: "text or any stream of bytes, cut into windows with a stride, or line by line",
    extensions: &[".txt", ".text", ".md", ".fasta", ".fa"],
    has_keys: false,
    has_labels: false,
    probe: |_: &Probe| false,
    read,
};

/// Bytes of a window when none are asked for.
const WINDOW: usize = 256;

fn read(path: &Path, options: &ReadOptions) -> Result<Dataset> {
    let (window, stride) = options.windows(WINDOW, path)?;
    let limit = options.limit.unwrap_or(usize::MAX);
    let bytes = Input::open(path)?.all(options)?;
    let mut values = Vec::new();
    if options.lines {
        let lines = bytes.split(|&b| b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        for (i, line) in lines.enumerate().filter(|(_, line)| !line.is_empty()) {
            if line.contains(&0) {
                return Err(data(path, format_args!("line {}: a zero byte; expected text", i + 1)));
            }
            if values.len() / window == limit {
                break;
            }
            let kept = &line[..line.len().min(window)];
            values.extend_from_slice(kept);
            values.resize(values.len() + window - kept.len(), 0);
        }
    } else {
        let starts = (0..).map(|i| i * stride).take_while(|at| at + window <= bytes.len()).take(limit);
        starts.for_each(|at| values.extend_from_slice(&bytes[at..at + window]));
    }
    let n = values.len() / window;
    if n == 0 {
        let what = if options.lines { "no lines" } else { "fewer bytes than one window" };
        return Err(data(path, format_args!("{} bytes, {what} of {window}; see --window", bytes.len())));
    }
    let name = super::plain_name(path);
    let name = TEXT.extensions.iter().find_map(|e| name.strip_suffix(e)).unwrap_or(&name).to_string();
    let cut = Cut { source: TEXT.name.into(), lines: options.lines, ..Default::default() };
    Ok(Dataset { cut: Some(Arc::new(cut)), ..Dataset::new(name, Tensor::from_slice(&values, [n, window])) })
}
