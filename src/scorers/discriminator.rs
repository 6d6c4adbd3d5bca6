//! Discriminator: a small classifier between data and the model's own samples, for divergences that likelihood
//! training does not see.
//!
//! ```text
//! D(x) = P(x is data)        score(x) = −ln ( D(x) / (1 − D(x)) ) ≈ log p_θ(x) − log p*(x)        nats
//! ```
//! Maximum likelihood minimises KL(p* ‖ p_θ), which forgives a model that spreads mass where there is no data. The
//! optimal classifier's logit is the log-ratio of the two densities (Sugiyama et al. 2012; Goodfellow et al. 2014), so
//! its mean over the samples estimates the reverse KL(p_θ ‖ p*) and its cross-entropy the Jensen-Shannon divergence:
//! `state()` has both. A high score says that x lies where the model puts more mass than the data does. The classifier
//! is small on purpose (two strided convolutions for images, two hidden layers else) and sees few rows: an estimate of
//! a ratio, not a proof.

use super::{ANY_KIND, Evidence, Fitted, Learn, Need, ScorerInfo};
use crate::autograd;
use crate::cpu::gemm::Act;
use crate::error::{Error, ErrorKind, Result};
use crate::nn::{Init, Initial, Param, ParamStore};
use crate::ops::conv::{ConvSpec, conv2d};
use crate::ops::index::gather_rows;
use crate::ops::matmul::linear;
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use crate::train::{FitOptions, Optimiser};
use serde::{Deserialize, Serialize};

/// The registry's line.
pub static DISCRIMINATOR: ScorerInfo = ScorerInfo {
    name: "discriminator",
    family: "divergence",
    summary: "log-odds of a classifier between the model's samples and data, in nats (after Goodfellow et al. 2014)",
    unit: "nats",
    accepts: ANY_KIND,
    needs: &[Need::Values, Need::Samples],
    uses: &[],
    build: Fitted::<Discriminator>::boxed,
};

const STEPS: u64 = 300;
/// Rows of each class per step.
const BATCH: usize = 32;
const HIDDEN: [usize; 2] = [16, 32];
/// Standardised values are cut here, so that one cell cannot drown a row.
const CLIP: f64 = 1e3;

#[derive(Serialize, Deserialize)]
struct Discriminator {
    /// Mean and inverse standard deviation of all values of the reference.
    center: f64,
    scale: f64,
    weights: Vec<Vec<f32>>,
    /// Estimates from the rows that it was fitted on, in nats.
    reverse_kl: f64,
    jensen_shannon: f64,
}

/// The network for examples of one shape.
struct Net {
    image: bool,
    store: ParamStore,
    layers: Vec<(Param, Param)>,
}

impl Net {
    fn new(shape: &[usize], rng: &mut Philox) -> Self {
        let mut store = ParamStore::default();
        let mut init = Init::new(&mut store, rng, DType::F32);
        let image = shape.len() == 3;
        let mut inputs = if image { shape[2] } else { shape.iter().product() };
        let mut layers = Vec::new();
        for (i, outputs) in HIDDEN.into_iter().chain([1]).enumerate() {
            let taps = if image && i < HIDDEN.len() { 9 } else { 1 };
            let mut init = init.sub(i);
            let weight = match taps {
                9 => init.param("weight", [3, 3, inputs, outputs], Initial::FanIn(9 * inputs)),
                _ => init.param("weight", [inputs, outputs], Initial::FanIn(inputs)),
            };
            layers.push((weight, init.param("bias", [outputs], Initial::Zeros)));
            inputs = outputs;
        }
        Self { image, store, layers }
    }

    /// The logit of "data", (B,).
    fn logit(&self, x: &Tensor) -> Tensor {
        let b = x.shape()[0];
        let (last, hidden) = self.layers.split_last().expect("there are three layers");
        let mut h = if self.image { x.clone() } else { x.reshape([b, x.len() / b.max(1)]) };
        for (weight, bias) in hidden {
            let (w, bias) = (weight.get(), bias.get());
            h = match self.image {
                true => conv2d(&h, &w, Some(&bias), None, ConvSpec::strided(2, 1).relu()),
                false => linear(&h, &w, Some(&bias), Act::Relu),
            };
        }
        if self.image {
            h = crate::ops::reduce::mean(&h, &[1, 2]);
        }
        let c = *h.shape().last().expect("there is an axis");
        linear(&h.reshape([b, c]), &last.0.get(), Some(&last.1.get()), Act::None).reshape([b])
    }
}

impl Learn for Discriminator {
    const INFO: &'static ScorerInfo = &DISCRIMINATOR;

    fn learn(reference: &Evidence) -> Result<Self> {
        let data = reference.data();
        let Some(samples) = reference.samples.as_ref().filter(|s| s.shape()[0] > 0) else {
            return Err(Error::new(ErrorKind::Data, format!("{}: no samples of the model", data.name)));
        };
        let values: Vec<f64> = data.values.to_f64_vec().into_iter().filter(|x| x.is_finite()).collect();
        let n = values.len().max(1) as f64;
        let center = values.iter().sum::<f64>() / n;
        let std = (values.iter().map(|x| (x - center).powi(2)).sum::<f64>() / n).sqrt();
        let scale = if std.is_normal() { 1.0 / std } else { 1.0 };
        let net = Net::new(data.example_shape(), &mut Philox::new(0));
        let (real, drawn) = (scaled(&data.values, center, scale), scaled(samples, center, scale));
        let options = FitOptions { weight_decay: 1e-2, lr: 2e-3, ..Default::default() };
        let mut optimiser = Optimiser::new(&net.store, false);
        for step in 0..STEPS {
            let mut words = Philox::new(1).at_step(step).stream();
            let mut some = |of: &Tensor| {
                let n = of.shape()[0];
                let rows: Vec<i32> = (0..BATCH).map(|_| words.below(n as u64) as i32).collect();
                let mut shape = of.shape().to_vec();
                shape[0] = BATCH;
                let table = of.reshape([n, of.len() / n]);
                gather_rows(&table, &Tensor::from_slice(&rows, [BATCH])).reshape(shape)
            };
            // −E_data ln D − E_samples ln(1 − D)
            let loss = &softplus(&-&net.logit(&some(&real))).mean_all()
                + &softplus(&net.logit(&some(&drawn))).mean_all();
            let leaves = optimiser.leaves();
            let grads = autograd::backward(loss, &leaves.iter().collect::<Vec<_>>());
            drop(leaves);
            optimiser.step(&grads, options.lr, 1.0, &options);
        }
        let mean = |t: &Tensor| autograd::no_grad(|| t.mean_all().item());
        let (on_real, on_drawn) = autograd::no_grad(|| (net.logit(&real), net.logit(&drawn)));
        let cross_entropy = mean(&softplus(&-&on_real)) + mean(&softplus(&on_drawn));
        let weights = net.store.iter().map(|(_, p)| p.get().as_slice::<f32>().to_vec()).collect();
        Ok(Self {
            center,
            scale,
            weights,
            reverse_kl: -mean(&on_drawn),
            jensen_shannon: std::f64::consts::LN_2 - 0.5 * cross_entropy,
        })
    }

    fn judge(&self, evidence: &Evidence) -> Result<Vec<f64>> {
        let data = evidence.data();
        let net = Net::new(data.example_shape(), &mut Philox::new(0));
        if self.weights.len() != net.store.len() {
            return Err(Error::new(
                ErrorKind::Model,
                "the discriminator's weights are not those of its network",
            ));
        }
        for ((_, param), weights) in net.store.iter().zip(&self.weights) {
            let shape = param.get().shape().to_vec();
            if weights.len() != shape.iter().product::<usize>() {
                return Err(Error::new(
                    ErrorKind::Model,
                    "the discriminator's weights do not fit the examples",
                ));
            }
            param.set(&Tensor::from_slice(weights, shape));
        }
        let mut scores = Vec::with_capacity(data.len());
        for (_, x) in data.batches(256) {
            let x = scaled(&x, self.center, self.scale);
            scores.extend(autograd::no_grad(|| net.logit(&x)).to_f64_vec().iter().map(|logit| -logit));
        }
        Ok(scores)
    }
}

/// (x − center) · scale, cut to ±[`CLIP`]; a missing value is 0.
fn scaled(x: &Tensor, center: f64, scale: f64) -> Tensor {
    let values = x.to_f64_vec().into_iter().map(|x| (x - center) * scale);
    let values = values.map(|z| if z.is_nan() { 0.0 } else { z.clamp(-CLIP, CLIP) as f32 });
    Tensor::from_slice(&values.collect::<Vec<f32>>(), x.shape())
}

/// ln(1 + e^x), without overflow.
fn softplus(x: &Tensor) -> Tensor {
    &x.relu() + &(-&x.abs()).exp().affine(1.0, 1.0).ln()
}
