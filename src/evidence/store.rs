//! What has been computed before: one small file per (model, data, quantity, seed) in a folder.
//!
//! A file that cannot be read, or does not fit, counts as not being there; nothing but time is lost.

use crate::data::Dataset;
use crate::error::Result;
use crate::files;
use crate::models::{Kind, Model, file};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Numbers of every example: one vector per component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Known {
    pub kind: Kind,
    pub parts: Vec<Vec<f64>>,
}

/// The place of `what` about `data` under `model`.
pub(super) fn place(dir: &Path, model: &dyn Model, data: &Dataset, what: &str, seed: u64) -> PathBuf {
    let mut key =
        format!("{what}|{seed}|{}|{}|{:?}", model.config(), file::fingerprint(&data.values), data.labels);
    for (name, param) in model.params().iter() {
        key += &format!("|{name}:{}", file::fingerprint(&param.get()));
    }
    let hash = |start: u64| key.bytes().fold(start, |h, b| (h ^ b as u64).wrapping_mul(0x0100_0000_01b3));
    // Two hashes of 64 bits: a false hit would be a wrong result without a trace.
    dir.join(format!("{:016x}{:016x}.json", hash(0xcbf2_9ce4_8422_2325), hash(0x6c62_272e_07bb_0142)))
}

/// What the file says about `n` examples, if it is whole.
pub(super) fn load(path: &Path, n: usize) -> Option<Known> {
    let found: Known = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let whole = |part: &Vec<f64>| part.len() == n && part.iter().all(|x| x.is_finite());
    (!found.parts.is_empty() && found.parts.iter().all(whole)).then_some(found)
}

/// Writes the file in one step.
pub(super) fn save(path: &Path, known: &Known) -> Result<()> {
    let text = serde_json::to_vec(known).unwrap_or_default();
    files::write_atomic(path, &text)
}
