//! Local intrinsic dimension: in how many directions does the reference spread around x?
//!
//! ```text
//! LID(x) = −( (1/(k−1)) Σ_{i<k} ln(r_i / r_k) )⁻¹        r_1 ≤ ... ≤ r_k distances to the nearest reference rows
//! ```
//! The maximum-likelihood estimator of Levina & Bickel 2004 (also Amsaleg et al. 2015). Far from the data the distances
//! to all rows are alike, and the estimate grows: Ma et al. 2018, "Characterizing adversarial subspaces using local
//! intrinsic dimensionality", arXiv:1801.02613. It needs no model at all. Columns of numbers that are not bytes are
//! divided by their standard deviation; a missing cell counts as its column's mean.
//!
//! The state keeps up to 256 reference rows (at most 1 MiB), so **rows of the reference stand in the model file**.

use super::{ANY_KIND, Evidence, Fitted, Learn, Need, ScorerInfo};
use crate::cpu::par;
use crate::error::Result;
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
    build: Fitted::<Rows>::boxed,
};

/// k, as in Ma et al. 2018.
const NEIGHBOURS: usize = 20;
const MOST_ROWS: usize = 256;
const MOST_BYTES: usize = 1 << 20;
/// The largest dimension told; equal distances would be an infinite one.
const LARGEST: f64 = 1e6;

#[derive(Serialize, Deserialize)]
struct Rows {
    /// f32 numbers of all rows in order, little endian, in hexadecimal; bytes as they are for u8.
    rows: String,
    bytes: bool,
    mean: Vec<f64>,
    scale: Vec<f64>,
    #[serde(skip)]
    values: std::sync::OnceLock<Vec<f32>>,
}

impl Learn for Rows {
    const INFO: &'static ScorerInfo = &LID;

    fn learn(reference: &Evidence) -> Result<Self> {
        let data = reference.data();
        let (d, bytes) = (data.dims(), data.values.dtype() == DType::U8);
        let size = d * if bytes { 1 } else { 4 };
        let kept = data.take((MOST_BYTES / size.max(1)).clamp(NEIGHBOURS + 1, MOST_ROWS));
        let values = kept.values.to_f64_vec();
        let (mut mean, mut scale) = (Vec::new(), Vec::new());
        if !bytes {
            for j in 0..d {
                let column: Vec<f64> =
                    values.iter().skip(j).step_by(d).copied().filter(|x| x.is_finite()).collect();
                let n = column.len().max(1) as f64;
                let m = column.iter().sum::<f64>() / n;
                let std = (column.iter().map(|x| (x - m).powi(2)).sum::<f64>() / n).sqrt();
                mean.push(m);
                scale.push(if std > 0.0 { 1.0 / std } else { 1.0 });
            }
        }
        let rows = if bytes {
            hex(kept.values.as_slice::<u8>())
        } else {
            let floats: Vec<u8> = values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect();
            hex(&floats)
        };
        Ok(Self { rows, bytes, mean, scale, values: Default::default() })
    }

    fn judge(&self, evidence: &Evidence) -> Result<Vec<f64>> {
        let (data, d) = (evidence.data(), evidence.data().dims());
        let known = self.values.get_or_init(|| self.scaled(&self.decode()));
        let given: Vec<f32> = data.values.to_f64_vec().iter().map(|&x| x as f32).collect();
        let given = self.scaled(&given);
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
        if digits && self.rows.len() <= 8 * MOST_BYTES && self.rows.len().is_multiple_of(size) {
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

    /// In units of the columns' standard deviations; a missing cell is 0, its column's mean.
    fn scaled(&self, values: &[f32]) -> Vec<f32> {
        if self.mean.is_empty() {
            return values.to_vec();
        }
        let columns = self.mean.iter().zip(&self.scale).cycle();
        let scaled = values.iter().zip(columns).map(|(&x, (m, s))| ((x as f64 - m) * s) as f32);
        scaled.map(|z| if z.is_finite() { z } else { 0.0 }).collect()
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
    use crate::random::Philox;

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
}
