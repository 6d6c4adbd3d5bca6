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
//! - `complexity`: L is the shortest of all compressors that take x, as in the paper.
//! - `complexity_png`, `complexity_jxl`: PNG and lossless JPEG XL, for images (u8, H × W × 1..=4).
//! - `complexity_zstd`: one zstd frame of the example's bytes, whatever its shape and dtype. For floats
//!   −log₂ p is that of a density, so only differences between scores have a meaning.

use super::{Evidence, NORMALISED, Need, Plain, ScorerInfo};
use crate::error::Result;
use crate::evidence::Compressor;
use std::f64::consts::LN_2;

/// The registry's line for the shortest code.
pub static COMPLEXITY: ScorerInfo = ScorerInfo {
    name: "complexity",
    family: "complexity",
    summary: "bits of the model minus those of the best compressor (Serra et al. 2020)",
    unit: "bits",
    accepts: NORMALISED,
    needs: &[Need::Values],
    uses: &[],
    build: || {
        Plain::boxed(&COMPLEXITY, |evidence| {
            let lengths = code_lengths(evidence)?;
            let shortest = |i: usize| lengths.iter().map(|l| l[i]).fold(f64::INFINITY, f64::min);
            Ok(evidence.nats.iter().enumerate().map(|(i, l)| -l / LN_2 - shortest(i)).collect())
        })
    },
};

/// The registry's line for PNG.
pub static COMPLEXITY_PNG: ScorerInfo = ScorerInfo {
    name: "complexity_png",
    summary: "bits of the model minus bits of the PNG file (Serra et al. 2020)",
    needs: &[Need::Images],
    uses: &[],
    build: || Plain::boxed(&COMPLEXITY_PNG, |evidence| against(evidence, Compressor::Png)),
    ..COMPLEXITY
};

/// The registry's line for JPEG XL.
pub static COMPLEXITY_JXL: ScorerInfo = ScorerInfo {
    name: "complexity_jxl",
    summary: "bits of the model minus bits of the lossless JPEG XL file (after Serra et al. 2020)",
    needs: &[Need::Images],
    uses: &[],
    build: || Plain::boxed(&COMPLEXITY_JXL, |evidence| against(evidence, Compressor::Jxl)),
    ..COMPLEXITY
};

/// The registry's line for zstd.
pub static COMPLEXITY_ZSTD: ScorerInfo = ScorerInfo {
    name: "complexity_zstd",
    summary: "bits of the model minus bits of the zstd frame (after Serra et al. 2020)",
    needs: &[Need::Values],
    uses: &[],
    build: || Plain::boxed(&COMPLEXITY_ZSTD, |evidence| against(evidence, Compressor::Zstd)),
    ..COMPLEXITY
};

fn against(evidence: &Evidence, compressor: Compressor) -> Result<Vec<f64>> {
    let lengths = evidence.code_lengths(compressor)?;
    Ok(evidence.nats.iter().zip(lengths.iter()).map(|(l, bits)| -l / LN_2 - bits).collect())
}

/// L of every compressor that takes the data, in bits.
pub(super) fn code_lengths(evidence: &Evidence) -> Result<Vec<std::sync::Arc<Vec<f64>>>> {
    let takes = Compressor::ALL.into_iter().filter(|c| c.takes(evidence.data()));
    takes.map(|c| evidence.code_lengths(c)).collect()
}
