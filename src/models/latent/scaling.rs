//! The standardisation of a table, learned from the training data and saved with the model.

use crate::error::{Error, ErrorKind, Result};
use crate::nn::{Init, Initial, Param, restored, standardised};
use crate::tensor::{DType, Tensor};

/// The largest standardised value.
const FARTHEST: f64 = 1e5;

/// y = (x − shift) / scale per column; log p(x) = log p(y) − Σ ln scale.
pub(super) struct Scaling {
    /// (D,) f64.
    shift: Param,
    /// (D,) f64, positive.
    scale: Param,
}

impl Scaling {
    /// The identity, in the buffers `scaling.shift` and `scaling.scale`.
    pub(super) fn new(init: &mut Init, dims: usize) -> Self {
        let mut init = init.sub("scaling");
        let shift = init.buffer("shift", [dims], DType::F64, Initial::Zeros);
        Self { shift, scale: init.buffer("scale", [dims], DType::F64, Initial::Constant(1.0)) }
    }

    /// Learns mean and standard deviation of each column of `values` (N, ..., D). A column that does not vary keeps
    /// its scale.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] for a value that is not finite.
    pub(super) fn fit(&self, name: &str, values: &Tensor) -> Result<()> {
        let d = self.shift.get().len();
        let xs = values.to_f64_vec();
        if let Some(at) = xs.iter().position(|x| !x.is_finite()) {
            let per_row = values.len() / values.shape()[0].max(1);
            let message = format!(
                "{name}: row {}, column {}: {}; expected a finite number",
                at / per_row,
                at % d,
                xs[at]
            );
            return Err(Error::new(ErrorKind::Data, message));
        }
        let n = (xs.len() / d).max(1) as f64;
        let mut mean = vec![0.0; d];
        for row in xs.chunks_exact(d) {
            mean.iter_mut().zip(row).for_each(|(m, x)| *m += x / n);
        }
        let mut variance = vec![0.0; d];
        for row in xs.chunks_exact(d) {
            let squares = row.iter().zip(&mean).map(|(x, m)| (x - m) * (x - m) / n);
            variance.iter_mut().zip(squares).for_each(|(v, s)| *v += s);
        }
        let scale = |(v, m): (&f64, &f64)| {
            // Rounding leaves a little variance in a constant column.
            if *v > (1e-12 * m).powi(2) { v.sqrt() } else { 1.0 }
        };
        let scales: Vec<f64> = variance.iter().zip(&mean).map(scale).collect();
        if let Some(column) = scales.iter().position(|s| !s.is_finite()) {
            let message = format!("{name}: column {column}: the variance is too large for 64-bit numbers");
            return Err(Error::new(ErrorKind::Data, message));
        }
        self.shift.set(&Tensor::from_slice(&mean, [d]));
        self.scale.set(&Tensor::from_slice(&scales, [d]));
        Ok(())
    }

    /// y (..., D) of `dtype`, unrecorded; held within ±10⁵, so that no row has a likelihood of −∞.
    pub(super) fn forward(&self, x: &Tensor, dtype: DType) -> Tensor {
        let [shift, scale] = [&self.shift, &self.scale].map(|p| p.get().to_f64_vec());
        standardised(x, &shift, &scale, dtype).clamp(-FARTHEST, FARTHEST)
    }

    /// x (..., D) f32 from y.
    pub(super) fn inverse(&self, y: &Tensor) -> Tensor {
        let [shift, scale] = [&self.shift, &self.scale].map(|p| p.get().to_f64_vec());
        restored(y, &shift, &scale)
    }

    /// The scale of each column.
    pub(super) fn scales(&self) -> Vec<f64> {
        self.scale.get().to_f64_vec()
    }

    /// −Σ ln scale: what is added to the log density of one row.
    pub(super) fn log_det(&self) -> f64 {
        -self.scale.get().to_f64_vec().iter().map(|s| s.ln()).sum::<f64>()
    }
}
