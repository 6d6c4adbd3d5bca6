//! Local intrinsic dimension: in how many directions does the reference spread around x?
//!
//! ```text
//! LID(x) = −( (1/(k−1)) Σ_{i<k} ln(r_i / r_k) )⁻¹        r_1 ≤ ... ≤ r_k distances to the nearest reference rows
//! ```
//! The maximum-likelihood estimator of Levina & Bickel 2004 (also Amsaleg et al. 2015). Far from the data the distances
//! to all rows are alike, and the estimate grows: Ma et al. 2018, "Characterizing adversarial subspaces using local
//! intrinsic dimensionality", arXiv:1801.02613. It needs no model at all. Columns of numbers that are not bytes are
//! divided by their standard deviation and cut to ±1000 of them; a missing cell counts as its column's mean.
//!
//! The state keeps up to 256 reference rows, drawn at random by a fixed seed and never more than 1 MiB of them, so
//! **rows of the reference stand in the model file**, which they lengthen by 2 MiB at most. Of rows longer than 48
//! KiB only every s-th number is looked at, so that k + 1 of them have room.

use super::{ANY_KIND, Evidence, Fitted, Learn, Need, ScorerInfo};
use crate::cpu::par;
use crate::error::Result;
use crate::random::Philox;
use crate::tensor::DType;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub static LID: ScorerInfo = ScorerInfo {
    name: "lid",
    family: "geometry",
    summary: "local intrinsic dimension among the reference rows, without a model (Ma et al. 2018)",
    unit: "dimensions",
    accepts: ANY_KIND,
    needs: &[Need::Values],
    uses: &[],
    build: Fitted::<Rows>::boxed,
};

/// k, as in Ma et al. 2018.
const NEIGHBOURS: usize = 20;
const MOST_ROWS: usize = 256;
const MOST_BYTES: usize = 1 << 20;
/// Standardised numbers are cut here, so that no squared distance overflows.
const CLIP: f64 = 1e3;
/// The largest dimension told; equal distances would be an infinite one.
const LARGEST: f64 = 1e6;

#[derive(Serialize, Deserialize)]
struct Rows {
    /// f32 numbers of all rows in order, little endian, in hexadecimal; bytes as they are for u8.
    rows: String,
    bytes: bool,
    /// s: every s-th number of a row is looked at.
    #[serde(default = "every_number")]
    stride: usize,
    mean: Vec<f64>,
    scale: Vec<f64>,
    #[serde(skip)]
    values: std::sync::OnceLock<Vec<f32>>,
}

/// The stride of files that do not say one.
fn every_number() -> usize {
    1
}

impl Learn for Rows {
    const INFO: &'static ScorerInfo = &LID;

    fn learn(reference: &Evidence) -> Result<Self> {
        let data = reference.data();
        let bytes = data.values.dtype() == DType::U8;
        let width = if bytes { 1 } else { 4 };
        let stride = (data.dims() * width).div_ceil(MOST_BYTES / (NEIGHBOURS + 1)).max(1);
        let d = data.dims().div_ceil(stride);
        let most = (MOST_BYTES / (d * width).max(1)).min(MOST_ROWS);
        let mut drawn = Philox::new(0).permutation(data.len());
        drawn.truncate(most);
        drawn.sort_unstable();
        let values = thinned(&data.select(&drawn).values.to_f64_vec(), data.dims(), stride);
        let (mut mean, mut scale) = (Vec::new(), Vec::new());
        if !bytes {
            for j in 0..d {
                let column: Vec<f64> =
                    values.iter().skip(j).step_by(d).copied().filter(|x| x.is_finite()).collect();
                let n = column.len().max(1) as f64;
                let m = column.iter().sum::<f64>() / n;
                let std = (column.iter().map(|x| (x - m).powi(2)).sum::<f64>() / n).sqrt();
                let known = std.recip().is_finite() && std.is_finite();
                mean.push(if m.is_finite() { m } else { 0.0 });
                scale.push(if known { 1.0 / std } else { 1.0 });
            }
        }
        let stored: Vec<u8> = match bytes {
            true => values.iter().map(|&x| x as u8).collect(),
            false => values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
        };
        Ok(Self { rows: hex(&stored), bytes, stride, mean, scale, values: Default::default() })
    }

    fn judge(&self, evidence: &Evidence) -> Result<Vec<f64>> {
        let data = evidence.data();
        let d = data.dims().div_ceil(self.stride);
        let known = self.values.get_or_init(|| self.scaled(&self.decode()));
        let given = thinned(&data.values.to_f64_vec(), data.dims(), self.stride);
        let given = self.scaled(&given.iter().map(|&x| x as f32).collect::<Vec<_>>());
        let mut scores = vec![0.0; data.len()];
        par::chunks_mut(&mut scores, 1, |i, score| {
            let x = &given[i * d..(i + 1) * d];
            let distance =
                |row: &[f32]| row.iter().zip(x).map(|(a, b)| (a - b) * (a - b)).sum::<f32>() as f64;
            let mut squares: Vec<f64> = known.chunks_exact(d.max(1)).map(distance).collect();
            squares.sort_by(f64::total_cmp);
            squares.truncate(NEIGHBOURS);
            score[0] = dimension(&squares);
        });
        Ok(scores)
    }

    fn check(&self) -> std::result::Result<(), &'static str> {
        let digits = self.rows.bytes().all(|b| b.is_ascii_hexdigit());
        let size = if self.bytes { 2 } else { 8 };
        let scaled = self.mean.iter().chain(&self.scale).all(|x| x.is_finite());
        let fits = self.rows.len() <= 8 * MOST_BYTES && self.rows.len().is_multiple_of(size);
        if digits && fits && scaled && self.mean.len() == self.scale.len() && self.stride > 0 {
            Ok(())
        } else {
            Err("its rows are damaged")
        }
    }
}

impl Rows {
    fn decode(&self) -> Vec<f32> {
        let nibble = |b: u8| (b as char).to_digit(16).unwrap_or(0) as u8;
        let bytes: Vec<u8> =
            self.rows.as_bytes().chunks_exact(2).map(|p| nibble(p[0]) << 4 | nibble(p[1])).collect();
        if self.bytes {
            return bytes.iter().map(|&b| b as f32).collect();
        }
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    /// In units of the columns' standard deviations, cut; a missing cell is 0, its column's mean.
    fn scaled(&self, values: &[f32]) -> Vec<f32> {
        if self.mean.is_empty() {
            return values.to_vec();
        }
        let columns = self.mean.iter().zip(&self.scale).cycle();
        let scaled = values.iter().zip(columns).map(|(&x, (m, s))| (x as f64 - m) * s);
        scaled.map(|z| if z.is_nan() { 0.0 } else { z.clamp(-CLIP, CLIP) as f32 }).collect()
    }
}

/// Every `stride`-th number of rows of `d`.
fn thinned(values: &[f64], d: usize, stride: usize) -> Vec<f64> {
    match stride {
        1 => values.to_vec(),
        _ => values.chunks_exact(d.max(1)).flat_map(|row| row.iter().step_by(stride).copied()).collect(),
    }
}

/// From squared distances in ascending order. Rows that are x itself tell nothing about its neighbourhood.
fn dimension(squares: &[f64]) -> f64 {
    let Some(&far) = squares.last().filter(|far| **far > 0.0) else { return 0.0 };
    let logs = squares[..squares.len() - 1].iter().filter(|r| **r > 0.0).map(|r| 0.5 * (far / r).ln());
    let (sum, n) = logs.fold((0.0, 0), |(sum, n), log| (sum + log, n + 1));
    if n == 0 { 0.0 } else { (n as f64 / sum.max(n as f64 / LARGEST)).min(LARGEST) }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|b| [b >> 4, b & 15])
        .map(|n| char::from_digit(n as u32, 16).unwrap_or('0'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Dataset;
    use crate::models::Kind;

    /// Points on a d-dimensional ball around x: the estimator's mean is d (k−1)/(k−2) for its k.
    #[test]
    fn estimates_the_dimension() {
        let mut rng = Philox::new(5);
        for d in [1, 3, 8] {
            let mean = (0..400).map(|_| {
                let u = rng.uniform_open([256], DType::F64);
                let mut squares: Vec<f64> =
                    u.as_slice::<f64>().iter().map(|u| u.powf(2.0 / d as f64)).collect();
                squares.sort_by(f64::total_cmp);
                squares.truncate(NEIGHBOURS);
                dimension(&squares)
            });
            let mean = mean.sum::<f64>() / 400.0;
            let expected = d as f64 * 19.0 / 18.0;
            assert!((mean / expected - 1.0).abs() < 0.05, "{d}: {mean}");
        }
        assert_eq!(dimension(&[0.0, 0.0]), 0.0);
        assert_eq!(dimension(&[4.0, 4.0]), LARGEST);
    }

    /// However many rows there are and however long they are: what is kept has its bound, and can be read again.
    #[test]
    fn what_is_kept_stays_small() {
        for (n, d, bytes) in
            [(3000, 4, false), (40, 100_000, false), (60, 300_000, true), (5, 2_000_000, true)]
        {
            let noise = Philox::new(1).randint(0, 256, [n, d]);
            let values = if bytes { noise.cast(DType::U8) } else { noise.cast(DType::F32) };
            let evidence = Evidence::new(Dataset::new("long", values), vec![0.0; n], Kind::Exact);
            let learned = Rows::learn(&evidence).unwrap();
            assert!(learned.rows.len() <= 2 * MOST_BYTES, "{} characters", learned.rows.len());
            let kept = learned.decode().len() / d.div_ceil(learned.stride);
            assert!(kept == n.min(MOST_ROWS) || kept > NEIGHBOURS, "{n} x {d}: {kept} rows");
            let scores = learned.judge(&evidence).unwrap();
            let text = serde_json::to_string(&learned).unwrap();
            let read: Rows = serde_json::from_str(&text).unwrap();
            assert!(read.check().is_ok() && read.judge(&evidence).unwrap() == scores, "{n} x {d}");
        }
    }
}
