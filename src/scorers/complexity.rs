//! Input complexity: the model's code length minus that of a general-purpose compressor.
//!
//! ```text
//! score(x) = S(x) = −log₂ p(x) − L(x)        bits per example,  L(x) = 8 · compressed bytes
//! ```
//! Simple inputs are cheap for every model; L takes that part away. S is a log-likelihood ratio whose background
//! model is the compressor (a universal code). Serra et al. 2020, "Input complexity and out-of-distribution detection
//! with likelihood-based generative models", arXiv:1909.11480. Below 0 the model codes x in fewer bits than the
//! compressor does. Likelihoods with an unknown constant are refused: they are no code lengths.
//!
//! - `complexity_png`: the PNG file of an image (u8, H × W × 1..=4), deflate level 9, adaptive row filters.
//! - `complexity_zstd`: one zstd frame (level 19) of the example's bytes, whatever its shape and dtype. For floats
//!   −log₂ p is that of a density, so only differences between scores have a meaning.
//!
//! L includes the file's fixed overhead (57 bytes for PNG), which shifts all scores of one shape alike.

use super::{Evidence, Fit, NORMALISED, Scorer, ScorerInfo};
use crate::data::{Dataset, encode_png};
use crate::error::{Error, ErrorKind, Result};
use rayon::prelude::*;
use serde_json::Value;

/// The registry's line for PNG.
pub static COMPLEXITY_PNG: ScorerInfo = ScorerInfo {
    name: "complexity_png",
    family: "complexity",
    summary: "bits of the model minus bits of the PNG file (Serra et al. 2020)",
    unit: "bits",
    accepts: NORMALISED,
    needs_background: false,
    needs_images: true,
    build: || Box::new(Complexity::new(Compressor::Png)),
};

/// The registry's line for zstd.
pub static COMPLEXITY_ZSTD: ScorerInfo = ScorerInfo {
    name: "complexity_zstd",
    family: "complexity",
    summary: "bits of the model minus bits of the zstd frame (after Serra et al. 2020)",
    unit: "bits",
    accepts: NORMALISED,
    needs_background: false,
    needs_images: false,
    build: || Box::new(Complexity::new(Compressor::Zstd)),
};

/// zstd's highest level that does not ask for an extraordinary amount of memory.
const ZSTD_LEVEL: i32 = 19;

/// A compressor that stands for the complexity of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compressor {
    /// PNG at its best compression with adaptive filters, for u8 images.
    Png,
    /// zstd at level 19, for bytes of any kind.
    Zstd,
}

/// −log₂ p(x) − L(x).
#[derive(Debug, Clone)]
pub struct Complexity {
    compressor: Compressor,
    fit: Option<Fit>,
}

impl Complexity {
    /// An unfitted scorer with this compressor.
    pub fn new(compressor: Compressor) -> Self {
        Self { compressor, fit: None }
    }

    fn info(&self) -> &'static ScorerInfo {
        match self.compressor {
            Compressor::Png => &COMPLEXITY_PNG,
            Compressor::Zstd => &COMPLEXITY_ZSTD,
        }
    }
}

impl Scorer for Complexity {
    fn fit(&mut self, reference: &Evidence) -> Result<()> {
        self.fit = Some(Fit::new(self.info(), reference)?);
        Ok(())
    }

    fn score(&self, evidence: &Evidence) -> Result<Vec<f64>> {
        super::fitted(&self.fit, self.info())?.check(self.info(), evidence)?;
        let lengths = compressed_bits(evidence.data, self.compressor)?;
        Ok(evidence.nats.iter().zip(lengths).map(|(l, bits)| -l / std::f64::consts::LN_2 - bits).collect())
    }

    fn state(&self) -> Result<Value> {
        super::save(&self.fit, self.info())
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        self.fit = Some(super::load(self.info(), state)?);
        Ok(())
    }
}

/// L(x) of each example in bits, in parallel.
///
/// # Errors
/// [`ErrorKind::Data`] when PNG is asked of something that is not a u8 image.
pub fn compressed_bits(data: &Dataset, compressor: Compressor) -> Result<Vec<f64>> {
    let bytes = data.values.as_bytes();
    let n = data.values.shape().first().copied().unwrap_or(0);
    if n == 0 {
        return Ok(Vec::new());
    }
    let size = bytes.len() / n;
    if size == 0 {
        return Err(Error::new(ErrorKind::Data, format!("{}: examples without values", data.name)));
    }
    if compressor == Compressor::Png {
        super::check_image(&COMPLEXITY_PNG, data)?;
    }
    let shape = data.values.shape();
    let bits = |bytes: usize| 8.0 * bytes as f64;
    let rows = bytes.par_chunks(size).enumerate();
    match compressor {
        Compressor::Png => rows
            .map(|(_, pixels)| encode_png(pixels, [shape[1], shape[2], shape[3]]))
            .map(|file| bits(file.len()))
            .map(Ok)
            .collect(),
        Compressor::Zstd => rows
            .map_init(
                || zstd::bulk::Compressor::new(ZSTD_LEVEL),
                |zstd, (row, example)| match zstd {
                    Ok(zstd) => {
                        zstd.compress(example).map(|c| bits(c.len())).map_err(|e| failed(data, row, &e))
                    }
                    Err(e) => Err(failed(data, row, e)),
                },
            )
            .collect(),
    }
}

fn failed(data: &Dataset, row: usize, error: &std::io::Error) -> Error {
    Error::new(ErrorKind::Data, format!("{}: row {row}: zstd: {error}", data.name))
}
