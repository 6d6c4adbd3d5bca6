//! Logs as sequences of kinds of lines, (N, T) bytes.
//!
//! ```text
//! 0  the sequence has ended        1  a line of no known kind        2 + i  a line of template i
//! ```
//! The templates are mined from the file ([`Templates`]) unless the options bring those of a model. Lines are cut into
//! windows of consecutive ones; with [`ReadOptions::session`] those that have a word with this beginning (`blk_`, `user=`)
//! are put together by that word, one sequence each, in the order of their first lines, cut or filled up to the window.
//! Files of events have one sequence per line already: numbers from 1 to 255.

use super::input::Input;
use super::{Cut, Dataset, Probe, ReadOptions, SourceInfo, Templates, data};
use crate::error::Result;
use crate::tensor::Tensor;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// The registry lines.
pub(super) static LOG: SourceInfo = SourceInfo {
    name: "log",
    family: "sequences",
    summary: "log lines as the templates mined from them, in windows, or by --session",
    extensions: &[".log"],
    has_keys: false,
    has_labels: false,
    probe: |_: &Probe| false,
    read,
};

pub(super) static EVENTS: SourceInfo = SourceInfo {
    name: "events",
    family: "sequences",
    summary: "a sequence of event numbers 1 to 255 per line, cut or filled up to the window",
    extensions: &[".events"],
    has_keys: false,
    has_labels: false,
    probe: |_: &Probe| false,
    read: read_events,
};

/// What the bytes mean.
const END: u8 = 0;
const UNKNOWN: u8 = 1;
const FIRST: u8 = 2;
/// Lines of a window when none are asked for.
const WINDOW: usize = 64;

/// What kind of line the byte of a step stands for.
pub(super) fn step(templates: &Templates, byte: u8) -> String {
    match byte {
        END => "the end".into(),
        UNKNOWN => "a line of no known kind".into(),
        id => {
            let id = usize::from(id - FIRST);
            if id < templates.len() { templates.text(id) } else { format!("template {id}") }
        }
    }
}

fn read(path: &Path, options: &ReadOptions) -> Result<Dataset> {
    let (window, stride) = options.windows(WINDOW, path)?;
    let bytes = Input::open(path)?.all(options)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<(u32, &str)> =
        (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()).collect();
    let templates = match &options.templates {
        Some(templates) => templates.as_ref().clone(),
        None => Templates::mine(lines.iter().map(|l| l.1), usize::from(u8::MAX - FIRST) + 1),
    };
    let kind = |line: &str| templates.find(line).map_or(UNKNOWN, |id| FIRST + id as u8);
    let known: Vec<(u32, u8)> = lines.iter().map(|(n, line)| (*n, kind(line))).collect();
    let sequences: Vec<Vec<(u32, u8)>> = match &options.session {
        Some(beginning) => {
            sessions(&lines, beginning).iter().map(|s| s.iter().map(|&i| known[i]).collect()).collect()
        }
        None => (0..)
            .map(|i| i * stride)
            .take_while(|at| at + window <= known.len())
            .map(|at| known[at..at + window].to_vec())
            .collect(),
    };
    if sequences.is_empty() {
        let what = match &options.session {
            Some(beginning) => format!("no word begins with \"{beginning}\""),
            None => format!("{} lines, fewer than one window of {window}; see --window", known.len()),
        };
        return Err(data(path, what));
    }
    let cut = Cut {
        source: LOG.name.into(),
        session: options.session.clone(),
        templates: Some(templates),
        ..Default::default()
    };
    Ok(filled(path, LOG.extensions, &sequences, window, cut, options))
}

/// The places of the lines of every session.
fn sessions(lines: &[(u32, &str)], beginning: &str) -> Vec<Vec<usize>> {
    let (mut order, mut found): (HashMap<&str, usize>, Vec<Vec<usize>>) = Default::default();
    for (i, (_, line)) in lines.iter().enumerate() {
        let edge =
            |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | ';' | '(' | ')' | '[' | ']' | '.');
        let mut seen: Vec<usize> = Vec::new();
        for word in line.split(edge).filter(|w| w.starts_with(beginning)) {
            let session = *order.entry(word).or_insert_with(|| {
                found.push(Vec::new());
                found.len() - 1
            });
            // A line may name its session twice.
            if !seen.contains(&session) {
                seen.push(session);
                found[session].push(i);
            }
        }
    }
    found
}

fn read_events(path: &Path, options: &ReadOptions) -> Result<Dataset> {
    let (window, _) = options.windows(WINDOW, path)?;
    let bytes = Input::open(path)?.all(options)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut sequences = Vec::new();
    for (n, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let event = |word: &str| {
            let event = word.parse().ok().filter(|event| *event != END);
            event.map(|event| (n, event)).ok_or_else(|| {
                data(path, format_args!("line {n}: \"{word}\"; expected event numbers from 1 to 255"))
            })
        };
        sequences.push(line.split_whitespace().map(event).collect::<Result<Vec<_>>>()?);
    }
    if sequences.is_empty() {
        return Err(data(path, "no sequences"));
    }
    let cut = Cut { source: EVENTS.name.into(), ..Default::default() };
    Ok(filled(path, &[".events", ".txt"], &sequences, window, cut, options))
}

/// Sequences of (line, kind) cut or filled up to the window.
fn filled(
    path: &Path,
    extensions: &[&str],
    sequences: &[Vec<(u32, u8)>],
    window: usize,
    cut: Cut,
    options: &ReadOptions,
) -> Dataset {
    let n = sequences.len().min(options.limit.unwrap_or(usize::MAX));
    let at = |i: usize| sequences[i / window].get(i % window);
    let values = Tensor::from_fn([n, window], |i| at(i).map_or(END, |step| step.1));
    let lines = sequences[..n].iter().map(|s| s.iter().take(window).map(|step| step.0).collect()).collect();
    let name = super::plain_name(path);
    let name = extensions.iter().find_map(|e| name.strip_suffix(e)).unwrap_or(&name).to_string();
    Dataset { cut: Some(Arc::new(cut)), lines: Some(lines), ..Dataset::new(name, values) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_by_session() {
        let lines = [
            (1, "open blk_1 now"),
            (2, "nothing"),
            (3, "open blk_2."),
            (4, "copy [blk_1], blk_2"),
            (5, "close blk_1 blk_1"),
        ];
        assert_eq!(sessions(&lines, "blk_"), [vec![0, 3, 4], vec![2, 3]]);
        assert!(sessions(&lines, "user=").is_empty());
    }
}
