//! Transforms between the data and the space of a model, each with its log-determinant.
//!
//! For an invertible y = f(x), log p(x) = log p(y) + log |det df/dx|. Adding the second term keeps every
//! likelihood in nats of the data as given, so that models with different preprocessing can be compared.
//! All transforms here act on each number alone: the determinant is a product of derivatives.

use crate::error::{Error, ErrorKind, Result};
use crate::nn::standardised;
use crate::ops::binary::minimum;
use crate::ops::unary::floor;
use crate::random::Philox;
use crate::tensor::{DType, Float, NewTensor, Plain, Tensor, with_plain};
use serde::{Deserialize, Serialize};

/// One step from the data towards a model. B examples of D numbers each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Transform {
    /// y = (x + u) / 256 for bytes x, u uniform on [0, 1); log-det −D ln 256. The expected log density of y is
    /// a lower bound on log P(x) (Theis et al. 2016, "A note on the evaluation of generative models").
    Dequantise,
    /// y = factor (x + shift); log-det D ln |factor|.
    Scale {
        /// Added first.
        shift: f64,
        /// Multiplied then; not 0.
        factor: f64,
    },
    /// y = ln s − ln(1 − s), s = alpha + (1 − 2 alpha) x for x in [0, 1];
    /// log-det Σ ln(1 − 2 alpha) − ln s − ln(1 − s) (Dinh et al. 2017, "Density estimation using Real NVP").
    Logit {
        /// Keeps the ends finite: 0 < alpha < 1/2.
        alpha: f64,
    },
    /// y_d = (x_d − mean_d) / std_d for the D numbers of each example; log-det −Σ ln std_d.
    Standardise {
        /// (D,) the means.
        mean: Vec<f64>,
        /// (D,) the standard deviations, positive.
        std: Vec<f64>,
    },
}

impl Transform {
    /// Standardisation with the statistics of `values` (N, ...); a constant column keeps its scale (std 1).
    ///
    /// # Panics
    /// When there are no examples.
    #[track_caller]
    pub fn standardise(values: &Tensor) -> Self {
        let n = values.shape()[0];
        assert!(n > 0, "standardise: no examples");
        let dims = values.len() / n;
        let numbers = values.to_f64_vec();
        let mut mean = vec![0.0; dims];
        let mut std = vec![0.0; dims];
        for row in numbers.chunks(dims) {
            mean.iter_mut().zip(row).for_each(|(m, x)| *m += x / n as f64);
        }
        for row in numbers.chunks(dims) {
            std.iter_mut().zip(row).zip(&mean).for_each(|((s, x), m)| *s += (x - m) * (x - m) / n as f64);
        }
        let scale = |(variance, mean): (&f64, &f64)| {
            // A constant column leaves rounding noise, not exactly 0.
            if *variance > (1e-12 * mean).powi(2) { variance.sqrt() } else { 1.0 }
        };
        let std = std.iter().zip(&mean).map(scale).collect();
        Self::Standardise { mean, std }
    }

    fn name(&self) -> &'static str {
        match self {
            Transform::Dequantise => "dequantise",
            Transform::Scale { .. } => "scale",
            Transform::Logit { .. } => "logit",
            Transform::Standardise { .. } => "standardise",
        }
    }

    /// Maps the D numbers of one example in place; returns log |det|.
    fn forward<T: Float>(&self, row: &mut [T], noise: &[T]) -> f64 {
        let dims = row.len() as f64;
        match self {
            Transform::Dequantise => {
                for (x, &u) in row.iter_mut().zip(noise) {
                    // x + u may round up into the next bin: stay in this one.
                    let top = T::from_f64(below::<T>(x.to_f64() + 1.0));
                    *x = (*x + u).min(top) * T::from_f64(1.0 / 256.0);
                }
                -dims * 256f64.ln()
            }
            Transform::Scale { shift, factor } => {
                row.iter_mut().for_each(|x| *x = T::from_f64((x.to_f64() + shift) * factor));
                dims * factor.abs().ln()
            }
            Transform::Logit { alpha } => {
                let mut logdet = dims * (1.0 - 2.0 * alpha).ln();
                for x in row {
                    let s = alpha + (1.0 - 2.0 * alpha) * x.to_f64();
                    let (a, b) = (s.ln(), (-s).ln_1p());
                    logdet -= a + b;
                    *x = T::from_f64(a - b);
                }
                logdet
            }
            Transform::Standardise { mean, std } => {
                assert_eq!(
                    row.len(),
                    mean.len(),
                    "standardise: {} numbers, fitted on {}",
                    row.len(),
                    mean.len()
                );
                for ((x, m), s) in row.iter_mut().zip(mean).zip(std) {
                    *x = T::from_f64((x.to_f64() - m) / s);
                }
                -std.iter().map(|s| s.ln()).sum::<f64>()
            }
        }
    }

    /// Undoes [`Self::forward`], up to the noise of dequantisation.
    fn inverse<T: Float>(&self, row: &mut [T]) {
        match self {
            Transform::Dequantise => {
                row.iter_mut().for_each(|y| *y = T::from_f64((256.0 * y.to_f64()).floor().clamp(0.0, 255.0)));
            }
            Transform::Scale { shift, factor } => {
                row.iter_mut().for_each(|y| *y = T::from_f64(y.to_f64() / factor - shift));
            }
            Transform::Logit { alpha } => {
                for y in row {
                    let s = 1.0 / (1.0 + (-y.to_f64()).exp());
                    *y = T::from_f64((s - alpha) / (1.0 - 2.0 * alpha));
                }
            }
            Transform::Standardise { mean, std } => {
                for ((y, m), s) in row.iter_mut().zip(mean).zip(std) {
                    *y = T::from_f64(y.to_f64() * s + m);
                }
            }
        }
    }
}

/// The largest number of type `T` below a positive `x` that `T` holds exactly.
fn below<T: Plain>(x: f64) -> f64 {
    if T::DTYPE == DType::F32 { f64::from((x as f32).next_down()) } else { x.next_down() }
}

/// Transforms in the order in which they are applied to the data.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Transform>", into = "Vec<Transform>")]
pub struct Prepare {
    steps: Vec<Transform>,
}

impl Prepare {
    /// The transforms `steps`, first to last.
    ///
    /// # Errors
    /// When a step has impossible settings, or dequantisation is not the first.
    pub fn new(steps: Vec<Transform>) -> Result<Self> {
        for (i, step) in steps.iter().enumerate() {
            let wrong = match step {
                Transform::Dequantise if i > 0 => "must come first, on bytes".to_string(),
                Transform::Scale { shift, factor } if !(shift * factor).is_finite() || *factor == 0.0 => {
                    format!("shift {shift}, factor {factor}; expected finite numbers, factor not 0")
                }
                Transform::Logit { alpha } if !(*alpha > 0.0 && *alpha < 0.5) => {
                    format!("alpha {alpha}; expected a number between 0 and 0.5")
                }
                Transform::Standardise { mean, std }
                    if mean.len() != std.len()
                        || !mean.iter().all(|m| m.is_finite())
                        || !std.iter().all(|s| s.is_finite() && *s > 0.0) =>
                {
                    "expected as many finite means as positive standard deviations".to_string()
                }
                _ => continue,
            };
            return Err(Error::new(ErrorKind::Usage, format!("transform {}: {wrong}", step.name())));
        }
        Ok(Self { steps })
    }

    /// The transforms, first to last.
    pub fn steps(&self) -> &[Transform] {
        &self.steps
    }

    /// Whether `values` lie where the transforms are defined: bytes for dequantisation, [0, 1] before a
    /// logit, the fitted number of columns for standardisation.
    ///
    /// # Errors
    /// When they do not, naming the step, the row and what was expected.
    pub fn check(&self, values: &Tensor) -> Result<()> {
        let (n, dims) = (values.shape()[0], values.len() / values.shape()[0].max(1));
        let refuse = |step: &Transform, message: String| {
            Err(Error::new(ErrorKind::Data, format!("transform {}: {message}", step.name())))
        };
        let mut rows = values.to_f64_vec();
        for step in &self.steps {
            match step {
                Transform::Dequantise if values.dtype() != DType::U8 => {
                    return refuse(step, format!("values of type {:?}; expected bytes", values.dtype()));
                }
                Transform::Standardise { mean, .. } if mean.len() != dims => {
                    return refuse(step, format!("{dims} numbers per example; expected {}", mean.len()));
                }
                Transform::Logit { .. } => {
                    if let Some(at) = rows.iter().position(|x| !(0.0..=1.0).contains(x)) {
                        let (row, column) = (at / dims, at % dims);
                        return refuse(
                            step,
                            format!("{} in row {row}, column {column}; expected 0 to 1", rows[at]),
                        );
                    }
                }
                _ => {}
            }
            let noise = vec![0.0; dims];
            (0..n).for_each(|i| {
                step.forward(&mut rows[i * dims..(i + 1) * dims], &noise);
            });
        }
        Ok(())
    }

    /// y (B, ...) of `dtype` f32 or f64 and the log-determinants (B,), in nats, of the same dtype.
    /// `rng` is drawn from only by dequantisation.
    ///
    /// # Panics
    /// When dequantisation gets something else than bytes, standardisation another number of columns.
    #[track_caller]
    pub fn forward(&self, x: &Tensor, dtype: DType, rng: &mut Philox) -> (Tensor, Tensor) {
        if x.gpu().is_some() && x.dtype() != DType::F64 && dtype == DType::F32 {
            return self.forward_on_device(x, rng);
        }
        match dtype {
            DType::F32 => self.forward_in::<f32>(x, rng),
            DType::F64 => self.forward_in::<f64>(x, rng),
            other => panic!("prepare: into {other:?}; expected F32 or F64"),
        }
    }

    /// [`Self::forward`] in ops, f32 throughout; dequantisation gives the bits of the CPU.
    fn forward_on_device(&self, x: &Tensor, rng: &mut Philox) -> (Tensor, Tensor) {
        let b = x.shape()[0];
        let dims = x.len() / b.max(1);
        let mut y = x.cast(DType::F32).reshape([b, dims]);
        let (mut volume, mut logdet) = (0.0, Tensor::zeros([b], DType::F32).beside(x));
        for step in &self.steps {
            y = match step {
                Transform::Dequantise => {
                    assert_eq!(x.dtype(), DType::U8, "dequantise: {:?} values; expected bytes", x.dtype());
                    volume -= dims as f64 * 256f64.ln();
                    let u = rng.uniform(x.shape(), DType::F32).beside(x).reshape([b, dims]);
                    // (x + 1)(1 − 2⁻²⁴), rounded once, is the f32 below x + 1 for every byte x.
                    let below = 1.0 - 2f64.powi(-24);
                    minimum(&(&y + &u), &y.affine(below, below)).affine(1.0 / 256.0, 0.0)
                }
                Transform::Scale { shift, factor } => {
                    volume += dims as f64 * factor.abs().ln();
                    y.affine(*factor, shift * factor)
                }
                Transform::Logit { alpha } => {
                    let room = 1.0 - 2.0 * alpha;
                    volume += dims as f64 * room.ln();
                    // ln(1 − s) from 1 − x, which is exact where it is small.
                    let (a, b) = (y.affine(room, *alpha).ln(), y.affine(-1.0, 1.0).affine(room, *alpha).ln());
                    logdet = &logdet - &(&a + &b).sum_examples();
                    &a - &b
                }
                Transform::Standardise { mean, std } => {
                    assert_eq!(dims, mean.len(), "standardise: {dims} numbers, fitted on {}", mean.len());
                    volume -= std.iter().map(|s| s.ln()).sum::<f64>();
                    standardised(&y, mean, std, DType::F32)
                }
            };
        }
        (y.reshape(x.shape()), logdet.affine(1.0, volume))
    }

    fn forward_in<T: Float>(&self, x: &Tensor, rng: &mut Philox) -> (Tensor, Tensor) {
        let noise = match self.steps.first() {
            Some(Transform::Dequantise) => {
                assert_eq!(x.dtype(), DType::U8, "dequantise: {:?} values; expected bytes", x.dtype());
                rng.uniform(x.shape(), T::DTYPE)
            }
            _ => Tensor::zeros(x.shape(), T::DTYPE),
        };
        let noise = noise.on_host();
        let (b, noise) = (x.shape()[0], noise.as_slice::<T>());
        let dims = x.len() / b.max(1);
        let mut y = NewTensor::<T>::new(x.shape());
        let mut logdet = NewTensor::<T>::new([b]);
        let numbers = x.to_f64_vec();
        y.as_mut().iter_mut().zip(&numbers).for_each(|(y, &x)| *y = T::from_f64(x));
        for i in 0..b {
            let row = &mut y.as_mut()[i * dims..(i + 1) * dims];
            let noise = &noise[i * dims..(i + 1) * dims];
            let nats: f64 = self.steps.iter().map(|step| step.forward(row, noise)).sum();
            logdet.as_mut()[i] = T::from_f64(nats);
        }
        (y.finish().beside(x), logdet.finish().beside(x))
    }

    /// x from y (B, ...) f32 or f64: of the same dtype, or bytes when the first step is dequantisation
    /// (floor(256 y), held within 0..=255).
    ///
    /// # Panics
    /// When y is of another dtype.
    #[track_caller]
    pub fn inverse(&self, y: &Tensor) -> Tensor {
        if y.gpu().is_some() && matches!(self.steps[..], [Transform::Dequantise]) {
            // 256 y is exact, so the bytes are those of the host.
            return floor(&y.affine(256.0, 0.0)).clamp(0.0, 255.0).cast(DType::U8);
        }
        match y.dtype() {
            DType::F32 => self.inverse_in::<f32>(y),
            DType::F64 => self.inverse_in::<f64>(y),
            other => panic!("prepare: inverse of {other:?}; expected F32 or F64"),
        }
    }

    fn inverse_in<T: Float>(&self, y: &Tensor) -> Tensor {
        let mut x = y.on_host();
        let dims = y.len() / y.shape()[0].max(1);
        for row in x.make_mut::<T>().chunks_mut(dims.max(1)) {
            self.steps.iter().rev().for_each(|step| step.inverse(row));
        }
        let x = match self.steps.first() {
            Some(Transform::Dequantise) => {
                let bytes = x.as_slice::<T>();
                Tensor::from_fn(x.shape(), |i| bytes[i].to_f64() as u8)
            }
            _ => x,
        };
        x.beside(y)
    }
}

impl TryFrom<Vec<Transform>> for Prepare {
    type Error = Error;

    fn try_from(steps: Vec<Transform>) -> Result<Self> {
        Self::new(steps)
    }
}

impl From<Prepare> for Vec<Transform> {
    fn from(prepare: Prepare) -> Self {
        prepare.steps
    }
}

/// The inputs from which a background model learns: each value of `x` (B, ...) replaced with probability `rate`.
///
/// A byte or token is replaced by a uniform one of `0..levels` (Ren et al. 2019, "Likelihood ratios for
/// out-of-distribution detection"). A number is replaced by the one at the same place of a random example of the
/// batch, which keeps the distribution of every column and destroys what connects them.
///
/// # Panics
/// When `rate` is not a probability, or `x` holds bytes and `levels` is not in 1..=256.
#[track_caller]
pub fn mutate(x: &Tensor, rate: f64, levels: usize, rng: &mut Philox) -> Tensor {
    assert!((0.0..=1.0).contains(&rate), "mutate: rate {rate}; expected 0 to 1");
    let replace = rng.bernoulli(rate, x.shape(), DType::F32);
    let replace = replace.as_slice::<f32>();
    if x.dtype() == DType::U8 {
        assert!((1..=256).contains(&levels), "mutate: {levels} levels; expected 1 to 256");
        let bytes = rng.randint(0, levels as i32, x.shape());
        let (from, bytes) = (x.as_slice::<u8>(), bytes.as_slice::<i32>());
        return Tensor::from_fn(x.shape(), |i| if replace[i] == 1.0 { bytes[i] as u8 } else { from[i] });
    }
    let (b, dims) = (x.shape()[0], x.len() / x.shape()[0].max(1));
    let rows = rng.randint(0, b.max(1) as i32, x.shape());
    let rows = rows.as_slice::<i32>();
    with_plain!(x.dtype(), T => {
        let from = x.as_slice::<T>();
        let other = |i: usize| from[rows[i] as usize * dims + i % dims];
        Tensor::from_fn(x.shape(), |i| if replace[i] == 1.0 { other(i) } else { from[i] })
    })
}
