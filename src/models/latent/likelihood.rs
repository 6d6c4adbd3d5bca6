//! p(x | z) at the end of a decoder, and what it says the data are.
//!
//! | likelihood | data | the probability is of |
//! |---|---|---|
//! | `bernoulli`, levels = 2 | bytes 0 and 1 | the data: exact |
//! | `bernoulli`, levels = 256 | bytes | a random binarisation: Σ x/255 ln p + (1 − x/255) ln(1 − p) is the mean of ln p(b) over b ~ Bernoulli(x/255); no likelihood of the bytes |
//! | `logistic` | bytes of images, grey or RGB | the bytes: exact (discretised mixture of logistics) |
//! | `gaussian` | bytes of images | the bytes: the density of (x + u)/256, u uniform, bounds it from below (Theis et al. 2016) |
//! | `gaussian` | tables of numbers | the numbers: exact density, columns standardised with the training data |

use super::scaling::Scaling;
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::models::Kind;
use crate::nn::Init;
use crate::ops::bernoulli::bernoulli_logp;
use crate::ops::logistic_mixture::{draw, logistic_mixture, params_per_pixel};
use crate::ops::shape;
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// ½ ln 2π.
const HALF_LN_TAU: f64 = 0.918_938_533_204_672_8;
/// Bounds of a Gaussian's log-scale, in standardised units: the lower one keeps the density of constant columns finite.
const LOG_SCALE: (f64, f64) = (-4.0, 6.0);

/// The family of p(x | z).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Likelihood {
    /// Independent Bernoulli values.
    Bernoulli,
    /// A discretised mixture of logistics per pixel.
    Logistic,
    /// Independent normal values, mean and log-scale from the decoder.
    Gaussian,
}

/// A likelihood with the data that it is of.
pub(super) struct Observer {
    likelihood: Likelihood,
    shape: Vec<usize>,
    levels: usize,
    /// Of a mixture of logistics.
    components: usize,
    dtype: DType,
    /// Of tables.
    scaling: Option<Scaling>,
}

/// A batch as the networks see it.
pub(super) struct Observation {
    /// (B, ...): what the encoder reads.
    pub(super) input: Tensor,
    /// (B, ...): what the likelihood is of.
    target: Tensor,
    /// To be added to log p, in nats.
    pub(super) log_det: f64,
}

impl Observer {
    /// # Errors
    /// When the likelihood is not one of such data.
    pub(super) fn new(
        init: &mut Init,
        model: &str,
        likelihood: Likelihood,
        shape: &[usize],
        (levels, components): (usize, usize),
        dtype: DType,
    ) -> Result<Self> {
        let fail = |what: String| Err(Error::new(ErrorKind::Usage, format!("{model}: {what}")));
        match likelihood {
            Likelihood::Bernoulli if !matches!(levels, 2 | 256) => {
                return fail(format!("levels = {levels}; expected 2 or 256 with a bernoulli likelihood"));
            }
            Likelihood::Logistic | Likelihood::Gaussian if levels != 256 => {
                return fail(format!("levels = {levels}; expected 256 with this likelihood"));
            }
            Likelihood::Logistic if !matches!(shape, [_, _, 1 | 3]) => {
                return fail(format!("shape = {shape:?}; a logistic likelihood is of grey or RGB images"));
            }
            Likelihood::Logistic if !(1..=64).contains(&components) => {
                return fail(format!("components = {components}; expected 1 to 64"));
            }
            _ => {}
        }
        let table = likelihood == Likelihood::Gaussian && shape.len() == 1;
        let scaling = table.then(|| Scaling::new(init, shape[0]));
        Ok(Self { likelihood, shape: shape.to_vec(), levels, components, dtype, scaling })
    }

    /// Outputs of the decoder per pixel of an image or column of a table. A single logistic needs no logit of the
    /// mixture.
    pub(super) fn per_pixel(likelihood: Likelihood, shape: &[usize], components: usize) -> usize {
        let channels = if shape.len() == 3 { shape[2] } else { 1 };
        match likelihood {
            Likelihood::Bernoulli => channels,
            Likelihood::Gaussian => 2 * channels,
            Likelihood::Logistic if matches!(channels, 1 | 3) => {
                params_per_pixel(channels, components) - usize::from(components == 1)
            }
            Likelihood::Logistic => 1,
        }
    }

    /// The dtypes of the data.
    pub(super) fn dtypes(&self) -> &'static [DType] {
        if self.scaling.is_some() { &[DType::F32, DType::F64] } else { &[DType::U8] }
    }

    pub(super) fn levels(&self) -> usize {
        self.levels
    }

    /// What a lower bound on log p(x | z), integrated over z, is.
    pub(super) fn kind(&self) -> Kind {
        match self.likelihood {
            Likelihood::Bernoulli if self.levels > 2 => Kind::Unnormalised,
            _ => Kind::LowerBound,
        }
    }

    /// Learns the standardisation of a table.
    pub(super) fn fit(&self, train: &Dataset) {
        if let Some(scaling) = &self.scaling {
            scaling.fit(&train.name, &train.values).expect("the data were held against the model's input");
        }
    }

    /// The batch `x` (B, ...) as the networks see it.
    ///
    /// # Panics
    /// When x is of another shape.
    #[track_caller]
    pub(super) fn observe(&self, x: &Tensor, rng: &mut Philox) -> Observation {
        assert!(
            x.rank() == self.shape.len() + 1 && x.shape()[1..] == self.shape,
            "x {:?}; expected (B, {:?})",
            x.shape(),
            self.shape
        );
        let dims = self.shape.iter().product::<usize>() as f64;
        let float = |x: &Tensor, factor: f64, shift: f64| x.cast(self.dtype).affine(factor, shift);
        match (self.likelihood, &self.scaling) {
            (Likelihood::Bernoulli, _) => {
                let y = float(x, 1.0 / (self.levels - 1) as f64, 0.0);
                Observation { input: y.clone(), target: y, log_det: 0.0 }
            }
            (Likelihood::Logistic, _) => {
                Observation { input: float(x, 1.0 / 127.5, -1.0), target: x.clone(), log_det: 0.0 }
            }
            (Likelihood::Gaussian, Some(scaling)) => {
                let y = scaling.forward(x, self.dtype);
                Observation { input: y.clone(), target: y, log_det: scaling.log_det() }
            }
            (Likelihood::Gaussian, None) => {
                let noise = rng.uniform(x.shape(), self.dtype);
                let y = (&x.cast(self.dtype) + &noise).affine(1.0 / 128.0, -1.0);
                Observation { input: y.clone(), target: y, log_det: -dims * 128f64.ln() }
            }
        }
    }

    /// log p(x_⌊r/S⌋ | params_r) (R,) for R = B · S rows of decoder outputs, without the log-determinant.
    pub(super) fn log_likelihood(&self, params: &Tensor, of: &Observation) -> Tensor {
        let (rows, b) = (params.shape()[0], of.target.shape()[0]);
        let samples = rows / b;
        match self.likelihood {
            Likelihood::Bernoulli => {
                let shape = [&[rows], &self.shape[..]].concat();
                bernoulli_logp(&params.reshape(shape), &of.target)
            }
            Likelihood::Logistic => {
                let params = self.mixture_params(params);
                let dims = of.target.len() / b;
                let repeated = of.target.reshape([b, 1, dims]).broadcast_to([b, samples, dims]);
                let x = repeated.reshape([&[rows], &self.shape[..]].concat());
                logistic_mixture(&params, &x).sum_examples()
            }
            Likelihood::Gaussian => {
                let dims = of.target.len() / b;
                let (mean, log_scale) = self.normal_params(params);
                let mean = mean.reshape([b, samples, dims]);
                let z = &(&of.target.reshape([b, 1, dims]) - &mean)
                    * &log_scale.affine(-1.0, 0.0).exp().reshape([b, samples, dims]);
                let nats = &z.square().affine(-0.5, -HALF_LN_TAU) - &log_scale.reshape([b, samples, dims]);
                nats.sum(&[2]).reshape([rows])
            }
        }
    }

    /// One x (R, ...) in the units of the data for each row of decoder outputs. Grey levels under a Bernoulli
    /// likelihood are the expected ones.
    pub(super) fn sample(&self, params: &Tensor, temperature: f64, rng: &mut Philox) -> Tensor {
        let rows = params.shape()[0];
        let shape = [&[rows], &self.shape[..]].concat();
        match self.likelihood {
            Likelihood::Bernoulli if self.levels == 2 => {
                let p = params.affine(1.0 / temperature, 0.0).sigmoid().to_f64_vec();
                let u = rng.uniform(&shape, DType::F64).on_host();
                let u = u.as_slice::<f64>();
                Tensor::from_fn(shape, |i| u8::from(u[i] < p[i]))
            }
            Likelihood::Bernoulli => {
                let p = params.sigmoid().to_f64_vec();
                Tensor::from_fn(shape, |i| (255.0 * p[i]).round() as u8)
            }
            Likelihood::Logistic => {
                let params = self.mixture_params(params).cast(DType::F32).on_host();
                let (per, c) = (*params.shape().last().expect("pixels have parameters"), self.shape[2]);
                let uniforms = rng.uniform_open([params.len() / per, 1 + c], DType::F64).on_host();
                let mut bytes = vec![0u8; params.len() / per * c];
                let pixels = params.as_slice::<f32>().chunks_exact(per).zip(bytes.chunks_exact_mut(c));
                for ((params, pixel), u) in pixels.zip(uniforms.as_slice::<f64>().chunks_exact(1 + c)) {
                    draw(params, u, temperature, pixel);
                }
                Tensor::from_slice(&bytes, shape)
            }
            Likelihood::Gaussian => {
                let (mean, log_scale) = self.normal_params(params);
                let noise = rng.normal(mean.shape(), mean.dtype()).affine(temperature, 0.0);
                let y = (&mean + &(&log_scale.exp() * &noise)).reshape(&shape);
                match &self.scaling {
                    Some(scaling) => scaling.inverse(&y),
                    None => {
                        let y = y.to_f64_vec();
                        Tensor::from_fn(shape, |i| (128.0 * (y[i] + 1.0)).floor().clamp(0.0, 255.0) as u8)
                    }
                }
            }
        }
    }

    /// The mixture's parameters (R, H, W, P) as [`logistic_mixture`] reads them.
    fn mixture_params(&self, params: &Tensor) -> Tensor {
        let [h, w, c] = [self.shape[0], self.shape[1], self.shape[2]];
        let (rows, k) = (params.shape()[0], self.components);
        let params = params.reshape([rows, h, w, params_per_pixel(c, k) - usize::from(k == 1)]);
        if k == 1 { shape::pad(&params, 3, 1, 0) } else { params }
    }

    /// Means and bounded log-scales (R, D).
    fn normal_params(&self, params: &Tensor) -> (Tensor, Tensor) {
        let rows = params.shape()[0];
        let pairs = params.reshape([rows, params.len() / rows / 2, 2]);
        let dims = pairs.shape()[1];
        let mean = pairs.narrow(2, 0, 1).reshape([rows, dims]);
        let raw = pairs.narrow(2, 1, 1).reshape([rows, dims]);
        // Bounded smoothly, so that a column at the bound can leave it again.
        let (low, high) = LOG_SCALE;
        let half = (high - low) / 2.0;
        (mean, raw.affine(1.0 / half, -(low + half) / half).tanh().affine(half, low + half))
    }
}
