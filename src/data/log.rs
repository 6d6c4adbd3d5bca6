//! Logs as sequences of kinds of lines, (N, T) bytes.
//!
//! ```text
//! 0  the sequence has ended        1  a line of no known kind        2 + i  a line of template i
//! ```
//! A log with more than 254 templates has a byte for each of the 253 that most lines have; the others, the rare ones,
//! share the byte 255. They stay apart from lines of no known kind, which is what a new failure looks like.
//!
//! The templates are mined from the file ([`Templates`]) unless the options bring those of a model. Lines are cut into
//! windows of consecutive ones; with [`ReadOptions::session`] those that have a word with this beginning (`blk_`,
//! `user=`) are put together by that word, one sequence each, in the order of their first lines, cut or filled up to
//! the window. Files of events have one sequence per line already: numbers from 1 to 255.

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
/// Templates that can have a byte of their own.
const OWN: usize = (u8::MAX - FIRST) as usize + 1;
/// Lines of a window when none are asked for.
const WINDOW: usize = 64;

/// What kind of line the byte of a step stands for.
pub(super) fn step(templates: &Templates, byte: u8) -> String {
    match byte {
        END => "the end".into(),
        UNKNOWN => "a line of no known kind".into(),
        u8::MAX if templates.len() > OWN => {
            format!("one of {} rare kinds of lines", templates.len() + 1 - OWN)
        }
        id => {
            let id = usize::from(id - FIRST);
            if id < templates.len() { templates.text(id) } else { format!("template {id}") }
        }
    }
}

/// What stands for a line of template `id`.
fn byte(id: usize) -> u8 {
    FIRST + id.min(OWN - 1) as u8
}

fn read(path: &Path, options: &ReadOptions) -> Result<Dataset> {
    let (window, stride) = options.windows(WINDOW, path)?;
    let bytes = Input::open(path)?.all(options)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<(u32, &str)> =
        (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()).collect();
    let templates = match &options.templates {
        Some(templates) => templates.as_ref().clone(),
        None => Templates::mine(lines.iter().map(|l| l.1), OWN - 1),
    };
    let kind = |line: &str| templates.find(line).map_or(UNKNOWN, byte);
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

    /// 300 kinds of lines, ten of them frequent, the last ones: those have bytes of their own, a rare one shares
    /// 255, and a new one is still unknown.
    #[test]
    fn more_kinds_than_bytes() {
        let word = |i: usize| format!("event{} of kind {}", letters(i), letters(i));
        let kinds = (0..300).chain((0..100).map(|i| 290 + i % 10));
        let text: Vec<String> = kinds.map(word).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("many.log");
        std::fs::write(&path, text.join("\n")).unwrap();
        let found =
            read(&path, &ReadOptions { window: Some(4), stride: Some(4), ..Default::default() }).unwrap();
        let bytes = found.values.as_slice::<u8>();
        let templates = found.cut.as_ref().unwrap().templates.as_ref().unwrap();
        assert_eq!((templates.len(), bytes.len()), (300, 400));
        let rare = bytes[..290].iter().filter(|b| **b == u8::MAX).count();
        assert_eq!(rare, 300 - (OWN - 1), "the rest of the rare kinds");
        assert!(bytes[290..].iter().all(|b| *b < u8::MAX && *b >= FIRST));
        assert_eq!(found.kind_of_line(0, 0), "eventa of kind a");
        let at = bytes.iter().position(|b| *b == u8::MAX).unwrap();
        assert_eq!(found.kind_of_line(at / 4, at % 4), "one of 47 rare kinds of lines");
        assert_eq!(templates.find("something else altogether"), None);
    }

    /// A name without digits.
    fn letters(i: usize) -> String {
        let letter = |n: usize| char::from(b'a' + n as u8);
        if i < 26 { letter(i).into() } else { letters(i / 26 - 1) + &letter(i % 26).to_string() }
    }
}
