//! Training noise of a width that the rows tell: fitted to rows with such noise, a model learns their density
//! smoothed by it (Rothfuss et al. 2019, "Noise regularization for conditional density estimation").
//!
//! With infinitely many steps the target is a kernel density, so the noise is given the widths with which a kernel
//! density of the training rows is likeliest, each row under the kernels of the others ([`Widths`]): wide where rows
//! are sparse, narrow where they are dense, and never less than half a gap between the values of a column.

use super::options::Noise;
use crate::data::{Dataset, grain};
use crate::error::{Error, ErrorKind, Result};
use crate::models::latent::kernel::Widths;
use crate::random::Philox;
use crate::tensor::{DType, Tensor};

/// Stream of the seed that draws the rows which stand for all.
const PLACES: u64 = 4;
/// The most kernels.
const KERNELS: usize = 10_000;
/// Which neighbour's distance makes a kernel wide.
const NEIGHBOUR: usize = 5;
/// The least deviation, in deviations of the column.
const LEAST: f64 = 0.01;
/// The largest standardised value.
const FARTHEST: f64 = 1e5;

/// Deviations of the noise of each row and column.
pub(super) struct RowNoise {
    widths: Widths,
    /// (D,): what one unit of the widths is; 0 for columns without noise.
    scale: Vec<f64>,
}

impl RowNoise {
    /// The noise for the rows of `train`, if any is asked for; bytes have that of their dequantisation, if any.
    ///
    /// # Errors
    /// When noise is asked for: [`ErrorKind::Usage`] if the examples are not rows, [`ErrorKind::Data`] if a
    /// column has no finite variance.
    pub(super) fn find(noise: Noise, train: &Dataset, seed: u64) -> Result<Option<Self>> {
        let floats = matches!(train.values.dtype(), DType::F32 | DType::F64);
        if noise == Noise::None || !floats {
            return Ok(None);
        }
        if train.values.rank() != 2 || train.is_empty() {
            let what = train.describe();
            let message = format!("train.noise is for tables of numbers, (N, D); got {what}");
            return Err(Error::new(ErrorKind::Usage, message));
        }
        let [n, d] = train.values.dims();
        let values = train.values.to_f64_vec();
        let (mean, std) = moments(&values, d);
        if let Some(column) = std.iter().position(|s| !s.is_finite()) {
            let message =
                format!("{}: column {column}: the variance is too large for 64-bit numbers", train.name);
            return Err(Error::new(ErrorKind::Data, message));
        }
        let numeric =
            |c: usize| train.schema.as_ref().is_none_or(|schema| schema.columns[c].kind.levels().is_none());
        let order = Philox::new(seed).fork(PLACES).permutation(n);
        let y = Tensor::from_fn([n, d], |i| {
            let x = (values[order[i / d] * d + i % d] - mean[i % d]) / std[i % d];
            // A missing cell is as far away as the mean; levels have no distances.
            if x.is_nan() || !numeric(i % d) { 0.0 } else { x.clamp(-FARTHEST, FARTHEST) }
        });
        let columns: Vec<f64> = grain::blur(&train.values, &std).iter().map(|b| b.max(LEAST)).collect();
        let (mut widths, _) = Widths::of(&y, n.min(KERNELS), NEIGHBOUR, &columns);
        let mut rows = vec![0.0; n];
        order.iter().zip(&widths.rows).for_each(|(&i, width)| rows[i] = *width);
        widths.rows = rows;
        let scale = std.iter().enumerate().map(|(c, s)| if numeric(c) { *s } else { 0.0 }).collect();
        Ok(Some(Self { widths, scale }))
    }

    /// The training rows `which`, x (B, D), with noise.
    pub(super) fn add(&self, x: &Tensor, which: &[usize], rng: &mut Philox) -> Tensor {
        let d = self.scale.len();
        let draws = rng.normal(x.shape(), DType::F64);
        let (draws, from) = (draws.as_slice::<f64>(), x.to_f64_vec());
        let most = if x.dtype() == DType::F32 { f64::from(f32::MAX) } else { f64::MAX };
        let noisy = |i: usize| {
            let (row, column) = (self.widths.rows[which[i / d]], self.widths.columns[i % d]);
            let deviation = self.scale[i % d] * (row * row + column * column).sqrt();
            (from[i] + deviation * draws[i]).clamp(-most, most)
        };
        Tensor::from_fn(x.shape(), noisy).cast(x.dtype())
    }
}

/// Mean and deviation of the cells of each of `d` columns that are not NaN; a constant column has the deviation 1.
fn moments(values: &[f64], d: usize) -> (Vec<f64>, Vec<f64>) {
    let of = |column: usize| {
        let present = || values.iter().skip(column).step_by(d).copied().filter(|x| !x.is_nan());
        let n = present().count().max(1) as f64;
        let mean = present().sum::<f64>() / n;
        let variance = present().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        (mean, if variance > (1e-12 * mean).powi(2) { variance.sqrt() } else { 1.0 })
    };
    (0..d).map(of).unzip()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Column, ColumnKind, Schema};
    use std::sync::Arc;

    /// 60 rows close together and 60 far apart in two columns; the third holds levels, the fourth misses every other
    /// cell.
    fn table() -> Dataset {
        let draws = Philox::new(1).normal([120, 4], DType::F64);
        let draws = draws.as_slice::<f64>();
        let cell = |i: usize| match (i / 4, i % 4) {
            (row, 2) => (row % 2) as f64,
            (row, 3) if row % 2 == 1 => f64::NAN,
            (row, _) => draws[i] * if row < 60 { 0.01 } else { 1.0 },
        };
        let kinds = [
            ColumnKind::Numeric,
            ColumnKind::Numeric,
            ColumnKind::Categorical { levels: ["a", "b"].map(String::from).to_vec() },
            ColumnKind::Numeric,
        ];
        let column = |(i, kind)| Column { name: format!("x{i}"), kind, nullable: i == 3 };
        let schema = Schema { columns: kinds.into_iter().enumerate().map(column).collect() };
        let values = Tensor::from_fn([120, 4], cell).cast(DType::F32);
        Dataset { schema: Some(Arc::new(schema)), ..Dataset::new("rows", values) }
    }

    /// Deviation of 400 draws of noise on the numbers of a row, first and second column together.
    fn deviation(noise: &RowNoise, data: &Dataset, row: usize) -> f64 {
        let (which, mut rng) = ([row; 400], Philox::new(2));
        let x = data.select(&which).values;
        let apart = (&noise.add(&x, &which, &mut rng) - &x).to_f64_vec();
        let own: Vec<f64> = apart.chunks(4).flat_map(|r| [r[0], r[1]]).collect();
        (own.iter().map(|x| x * x).sum::<f64>() / own.len() as f64).sqrt()
    }

    #[test]
    fn wide_where_rows_are_sparse() {
        let data = table();
        let mean = |noise: &RowNoise, rows: std::ops::Range<usize>| {
            let n = rows.len() as f64;
            rows.map(|row| deviation(noise, &data, row)).sum::<f64>() / n
        };
        let noise = RowNoise::find(Noise::Rows, &data, 0).unwrap().unwrap();
        let (dense, sparse) = (mean(&noise, 0..20), mean(&noise, 100..120));
        assert!(sparse > 3.0 * dense, "dense {dense}, sparse {sparse}");
    }

    #[test]
    fn levels_and_missing_cells_stay() {
        let data = table();
        let noise = RowNoise::find(Noise::Rows, &data, 0).unwrap().unwrap();
        let which: Vec<usize> = (0..120).collect();
        let noisy = noise.add(&data.values, &which, &mut Philox::new(3)).to_f64_vec();
        for (i, (a, b)) in noisy.iter().zip(data.values.to_f64_vec()).enumerate() {
            match i % 4 {
                2 => assert_eq!(*a, b),
                3 => assert_eq!(a.is_nan(), b.is_nan()),
                _ => assert!(a.is_finite() && *a != b),
            }
        }
    }

    /// A single row, equal rows and constant columns have finite noise above 0.
    #[test]
    fn degenerate_tables_have_noise() {
        for rows in [1, 2, 7] {
            let data = Dataset::new("equal", Tensor::ones([rows, 3], DType::F32));
            let noise = RowNoise::find(Noise::Rows, &data, 0).unwrap().unwrap();
            let all: Vec<usize> = (0..rows).collect();
            let noisy = noise.add(&data.values, &all, &mut Philox::new(4)).to_f64_vec();
            assert!(noisy.iter().all(|x| x.is_finite() && *x != 1.0), "{rows} rows: {noisy:?}");
        }
    }

    #[test]
    fn refuses_what_has_no_widths() {
        let bytes = Dataset::new("bytes", Tensor::zeros([3, 4], DType::U8));
        assert!(RowNoise::find(Noise::Rows, &bytes, 0).unwrap().is_none());
        let series = Dataset::new("series", Tensor::zeros([3, 4, 1], DType::F32));
        assert!(RowNoise::find(Noise::None, &series, 0).unwrap().is_none());
        let error = RowNoise::find(Noise::Rows, &series, 0).err().unwrap();
        assert!(error.to_string().contains("train.noise") && error.to_string().contains("series"), "{error}");
        let huge = Dataset::new("huge", Tensor::from_slice(&[1e300, -1e300], [2, 1]));
        let error = RowNoise::find(Noise::Rows, &huge, 0).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Data, "{error}");
        let large = Dataset::new("large", Tensor::from_slice(&[f32::MAX, f32::MIN], [2, 1]));
        let noise = RowNoise::find(Noise::Rows, &large, 0).unwrap().unwrap();
        let noisy = noise.add(&large.values, &[0, 1], &mut Philox::new(5)).to_f64_vec();
        assert!(noisy.iter().all(|x| x.is_finite()), "{noisy:?}");
    }
}
