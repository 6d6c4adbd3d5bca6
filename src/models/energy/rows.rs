//! From rows of a table to numbers near 0, with log-determinants; the statistics are saved with the model.

use crate::cpu::cholesky;
use crate::cuda::Device;
use crate::data::{Dataset, Transform};
use crate::nn::{Init, Initial, Param};
use crate::tensor::{DType, Tensor};

/// z = (x − mean) / scale, column by column.
pub(super) struct Standard {
    mean: Param,
    scale: Param,
    dtype: DType,
}

impl Standard {
    /// The identity until [`Self::fit`] is called; buffers `mean` and `scale`.
    pub(super) fn new(init: &mut Init, d: usize, dtype: DType) -> Self {
        let mean = init.buffer("mean", [d], dtype, Initial::Zeros);
        Self { mean, scale: init.buffer("scale", [d], dtype, Initial::Constant(1.0)), dtype }
    }

    /// Takes the statistics of all training rows.
    pub(super) fn fit(&self, train: &Dataset) {
        let Transform::Standardise { mean, std } = Transform::standardise(&train.values) else {
            unreachable!("standardise makes a standardisation")
        };
        let of = |v: &[f64]| Tensor::from_slice(v, [v.len()]).cast(self.dtype);
        self.mean.set(&of(&mean));
        self.scale.set(&of(&std));
    }

    /// z, held within ±[`FARTHEST`], and log |det dz/dx|, a scalar, the same for every row.
    pub(super) fn forward(&self, x: &Tensor) -> (Tensor, Tensor) {
        let scale = self.scale.get();
        let volume = match scale.device() {
            Device::Cpu => {
                let logs = scale.to_f64_vec().into_iter().map(f64::ln);
                Tensor::scalar(-logs.sum::<f64>(), self.dtype)
            }
            _ => -&scale.ln().sum_all(),
        };
        let z = &(&x.cast(self.dtype) - &self.mean.get()) / &scale;
        (z.clamp(-FARTHEST, FARTHEST), volume)
    }

    /// x of z.
    pub(super) fn inverse(&self, z: &Tensor) -> Tensor {
        &(z * &self.scale.get()) + &self.mean.get()
    }
}

/// z = (x − mean) M with Mᵀ Σ M = 1, Σ the training rows' covariance: their Gaussian fit becomes the standard normal.
pub(super) struct Whitened {
    mean: Param,
    matrix: Param,
    inverse: Param,
    /// ln |det M|.
    volume: Param,
    dtype: DType,
}

/// The largest standardised value: no row has an infinite energy.
const FARTHEST: f64 = 1e5;
/// The largest centred value that is multiplied: infinities would cancel to NaN.
const LARGEST: f64 = 1e30;

/// Added to the variances, as a part of each, so that Σ can be inverted when columns depend on each other.
const RIDGE: f64 = 1e-3;

impl Whitened {
    /// The identity until [`Self::fit`] is called; buffers `mean`, `whiten`, `colour` and `volume`.
    pub(super) fn new(init: &mut Init, d: usize, dtype: DType) -> Self {
        let whitened = Self {
            mean: init.buffer("mean", [d], dtype, Initial::Zeros),
            matrix: init.buffer("whiten", [d, d], dtype, Initial::Zeros),
            inverse: init.buffer("colour", [d, d], dtype, Initial::Zeros),
            volume: init.buffer("volume", [1], DType::F64, Initial::Zeros),
            dtype,
        };
        let identity = Tensor::from_fn([d, d], |i| f64::from(u8::from(i % (d + 1) == 0))).cast(dtype);
        whitened.matrix.set(&identity);
        whitened.inverse.set(&identity);
        whitened
    }

    /// Takes the mean and the covariance of all training rows: Σ = L Lᵀ, M = L⁻ᵀ.
    pub(super) fn fit(&self, train: &Dataset) {
        let Transform::Standardise { mean, std } = Transform::standardise(&train.values) else {
            unreachable!("standardise makes a standardisation")
        };
        let (n, d) = (train.len() as f64, mean.len());
        let mut covariance = vec![0.0; d * d];
        let mut row = vec![0.0; d];
        for x in train.values.to_f64_vec().chunks_exact(d) {
            (0..d).for_each(|j| row[j] = (x[j] - mean[j]) / std[j]);
            for i in 0..d {
                let (a, to) = (row[i] / n, &mut covariance[i * d..][..=i]);
                to.iter_mut().zip(&row).for_each(|(c, b)| *c += a * b);
            }
        }
        (0..d).for_each(|i| covariance[i * (d + 1)] += RIDGE);
        // The ridge makes it positive definite, unless numbers overflowed: then columns are standardised alone.
        let mut lower = covariance;
        if !cholesky::factor(&mut lower, d) {
            lower = (0..d * d).map(|i| f64::from(u8::from(i % (d + 1) == 0))).collect();
        }
        let inverse = cholesky::invert_lower(&lower, d);
        // z = L⁻¹ ((x − mean) / std), as a product with a matrix on the right.
        let to = Tensor::from_fn([d, d], |i| inverse[i % d * d + i / d] / std[i / d]);
        let from = Tensor::from_fn([d, d], |i| lower[i % d * d + i / d] * std[i % d]);
        let volume: f64 = (0..d).map(|i| -(lower[i * (d + 1)] * std[i]).ln()).sum();
        self.mean.set(&Tensor::from_slice(&mean, [d]).cast(self.dtype));
        self.matrix.set(&to.cast(self.dtype));
        self.inverse.set(&from.cast(self.dtype));
        self.volume.set(&Tensor::from_slice(&[volume], [1]));
    }

    /// z, held within ±[`FARTHEST`], and ln |det M|.
    pub(super) fn forward(&self, x: &Tensor) -> (Tensor, f64) {
        let centred = (&x.cast(self.dtype) - &self.mean.get()).clamp(-LARGEST, LARGEST);
        let z = crate::ops::matmul::matmul(&centred, &self.matrix.get(), false, false);
        (z.clamp(-FARTHEST, FARTHEST), self.volume.get().item())
    }

    /// x of z.
    pub(super) fn inverse(&self, z: &Tensor) -> Tensor {
        &crate::ops::matmul::matmul(z, &self.inverse.get(), false, false) + &self.mean.get()
    }
}
