//! One fixed combination of likelihood and complexity, for use when nothing is known about the anomalies.
//!
//! ```text
//! v(x) = (−log p(x), L₁(x), ..., L_k(x))        score(x) = √( (v − μ)ᵀ Σ⁻¹ (v − μ) )        μ, Σ from the reference
//! ```
//! L are the code lengths of the general-purpose compressors (PNG, JPEG XL and zstd for u8 images, zstd for other bytes
//! and integers, none for floats, whose bytes say nothing about them). The Mahalanobis distance asks whether x is
//! *typical* in all of these at once and in every linear combination of them:
//! - along the nats alone it is the two-sided typicality of Nalisnick et al. 2019: too likely is anomalous too;
//! - along the residual of nats given L it is the input complexity of Serra et al. 2020, with the slope that the
//!   reference itself shows instead of 1; on images this direction is narrow, so it carries far;
//! - along L it is a test of the data that no model can spoil.
//!
//! It was chosen by that argument and has no constant to tune: no out-of-distribution set was looked at, neither for the
//! form nor for a threshold. Without compressors it is the distance of the surprisal from its mean in standard
//! deviations. It measures in all directions alike, so a pair that fools a one-sided score in one direction (clothes,
//! then digits) is held in both.

use super::complexity::code_lengths;
use super::{ANY_KIND, Evidence, Fitted, Learn, Need, ScorerInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::tensor::DType;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub static AUTO: ScorerInfo = ScorerInfo {
    name: "auto",
    family: "combined",
    summary: "joint typicality of surprisal and code lengths: the Mahalanobis distance from the reference",
    unit: "deviations",
    accepts: ANY_KIND,
    needs: &[Need::Values],
    build: Fitted::<Cloud>::boxed,
};

/// Mean of v and the Cholesky factor of its covariance, row by row.
#[derive(Serialize, Deserialize)]
struct Cloud {
    mean: Vec<f64>,
    factor: Vec<Vec<f64>>,
}

/// Added to each variance, as a share of it: directions that the reference does not show at all stay finite.
const RIDGE: f64 = 1e-6;

impl Learn for Cloud {
    const INFO: &'static ScorerInfo = &AUTO;

    fn learn(reference: &Evidence) -> Result<Self> {
        let columns = columns(reference)?;
        let n = reference.len() as f64;
        let mean: Vec<f64> = columns.iter().map(|c| c.iter().sum::<f64>() / n).collect();
        let d = columns.len();
        let mut factor = vec![vec![0.0; d]; d];
        for i in 0..d {
            for j in 0..=i {
                let product = columns[i].iter().zip(&columns[j]).map(|(a, b)| (a - mean[i]) * (b - mean[j]));
                factor[i][j] = product.sum::<f64>() / n;
            }
            // A column that never moves in the reference is measured in its own units.
            factor[i][i] = if factor[i][i] > 0.0 { factor[i][i] * (1.0 + RIDGE) } else { 1.0 };
        }
        cholesky(&mut factor);
        Ok(Self { mean, factor })
    }

    fn judge(&self, evidence: &Evidence) -> Result<Vec<f64>> {
        let columns = columns(evidence)?;
        if columns.len() != self.mean.len() {
            let (name, found, wanted) = (&evidence.data().name, columns.len(), self.mean.len());
            let message = format!("{name}: {found} numbers per example, \"auto\" was fitted on {wanted}");
            return Err(Error::new(ErrorKind::Data, message));
        }
        let mut z = vec![0.0; columns.len()];
        let distance = |row: usize| {
            // L z = v − μ by substitution; |z| is the distance.
            for (i, line) in self.factor.iter().enumerate() {
                let known: f64 = line[..i].iter().zip(&z).map(|(l, z)| l * z).sum();
                z[i] = (columns[i][row] - self.mean[i] - known) / line[i];
            }
            z.iter().map(|z| z * z).sum::<f64>().sqrt()
        };
        Ok((0..evidence.len()).map(distance).collect())
    }

    fn check(&self) -> std::result::Result<(), &'static str> {
        let d = self.mean.len();
        let square = self.factor.len() == d && self.factor.iter().all(|line| line.len() == d);
        if d > 0 && square && (0..d).all(|i| self.factor[i][i] > 0.0) {
            Ok(())
        } else {
            Err("expected a mean and a lower triangle with a positive diagonal")
        }
    }
}

/// −log p and the code lengths.
fn columns(evidence: &Evidence) -> Result<Vec<Vec<f64>>> {
    let mut columns = vec![evidence.nats.iter().map(|l| -l).collect::<Vec<f64>>()];
    if matches!(evidence.data().values.dtype(), DType::U8 | DType::I32) {
        columns.extend(code_lengths(evidence)?.iter().map(|l| l.to_vec()));
    }
    Ok(columns)
}

/// The lower Cholesky factor of a covariance, in place. What rounding makes negative counts as a sliver of the variance.
fn cholesky(a: &mut [Vec<f64>]) {
    for i in 0..a.len() {
        let variance = a[i][i];
        for j in 0..=i {
            let known: f64 = (0..j).map(|k| a[i][k] * a[j][k]).sum();
            a[i][j] = if i == j {
                (a[i][i] - known).max(RIDGE * variance).sqrt()
            } else {
                (a[i][j] - known) / a[j][j]
            };
        }
    }
}
