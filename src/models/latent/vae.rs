//! Variational autoencoder: p(x) = ∫ p(x | z) N(z; 0, 1) dz with an amortised posterior q(z | x) (Kingma & Welling
//! 2014; Rezende, Mohamed & Wierstra 2014).
//!
//! | objective | what is maximised, z_k ~ q(z \| x), w_k = p(x, z_k) / q(z_k \| x) |
//! |---|---|
//! | `elbo` | (1/S) Σ_k ln p(x \| z_k) − KL(q ‖ p), the KL in closed form |
//! | `iwae` | ln (1/S) Σ_k w_k (Burda, Grosse & Salakhutdinov 2016) |
//! | `dreg` | the same bound; the encoder's gradient is Σ_k v_k² ∂ln w_k/∂z_k ∂z_k/∂φ, v_k = w_k / Σ w, whose signal does not vanish as S grows (doubly reparameterised, Tucker et al. 2019) |
//!
//! **log_prob** is ln (1/K) Σ_k w_k with K = `importance` samples, a stochastic lower bound on log p(x)
//! (`Kind::LowerBound`) that tightens with K; [`Vae::importance`] also gives its standard error. Samples are decoded
//! in chunks, so memory does not grow with K. What the probability is of depends on the likelihood; see
//! [`super::likelihood`]. A Bernoulli likelihood of grey levels is no likelihood of the bytes: its bound is
//! `Kind::Unnormalised`.
//!
//! **Likelihood regret** (Xiao, Yan & Amit 2020): [`Vae::refit`] optimises the posterior of each example by Adam, the
//! decoder fixed, and gives the bound before and after.

use super::likelihood::{Likelihood, Observation, Observer};
use super::network::{Decoder, Encoder, Sizes};
use super::posterior::{Importance, LogMean, Posterior, standard_log_density};
use crate::autograd::{self, Recipe, record};
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::models::statistic::table;
use crate::models::{Batch, Input, LogProb, Model, ModelInfo, SampleOptions, Statistic, Statistics};
use crate::nn::{Init, ParamStore};
use crate::ops::shape::concat;
use crate::ops::softmax::{log_softmax, logsumexp};
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, OnceLock};

/// The registry's line.
pub const INFO: ModelInfo = ModelInfo {
    name: "vae",
    family: "latent",
    summary: "variational autoencoder: ELBO, IWAE or DReG, importance-sampled log p (Kingma & Welling 2014, Burda et al. 2016)",
    objective: "negative evidence lower bound, nats",
    reproduce: "surprisal train vae28_logistic --data fashion-mnist-train-images --set train.steps=4480, as in \
                benches/results/images.md: 3.37 bits/dim on the test images",
    presets: &[
        ("vae28", VAE28),
        ("vae28_logistic", VAE28_LOGISTIC),
        ("vae32", VAE32),
        ("vae_table", VAE_TABLE),
    ],
    tiny: &["shape=[4, 4, 1]", "channels=[3]", "hidden=[6]", "latent=2", "importance=3"],
    build: |config, rng| {
        let config = serde_json::from_value(config.clone())
            .map_err(|e| Error::new(ErrorKind::Usage, format!("vae: {e}")))?;
        Ok(Box::new(Vae::new(config, DType::F32, rng)?))
    },
};

const VAE28: &str = r#"
shape = [28, 28, 1]
channels = [32, 64]
hidden = [256]
latent = 32
likelihood = "bernoulli"
levels = 256
components = 1
objective = "elbo"
samples = 1
importance = 16
[train]
batch = 128
"#;

const VAE28_LOGISTIC: &str = r#"
shape = [28, 28, 1]
channels = [32, 64]
hidden = [256]
latent = 32
likelihood = "logistic"
levels = 256
components = 5
objective = "elbo"
samples = 1
importance = 16
[train]
batch = 128
"#;

const VAE32: &str = r#"
shape = [32, 32, 3]
channels = [64, 128, 256]
hidden = [256]
latent = 64
likelihood = "logistic"
levels = 256
components = 5
objective = "elbo"
samples = 1
importance = 16
[train]
batch = 128
"#;

const VAE_TABLE: &str = r#"
shape = [21]
channels = []
hidden = [128, 64]
latent = 8
likelihood = "gaussian"
levels = 256
components = 1
objective = "elbo"
samples = 1
importance = 64
[train]
batch = 128
steps = 2000
clip = 100.0
noise = "rows"
"#;

/// Likelihood regret: steps and rate of Adam, draws of noise.
const REGRET: (usize, f64, usize) = (50, 0.05, 4);
/// Draws of the terms of the bound.
const DRAWS: usize = 4;
/// Numbers of the decoder's widest layer that a chunk of samples may hold.
const CHUNK: usize = 1 << 20;

/// What training maximises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// The evidence lower bound.
    Elbo,
    /// The importance-weighted bound.
    Iwae,
    /// The importance-weighted bound with doubly reparameterised gradients.
    Dreg,
}

/// What a [`Vae`] is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Of an example: `[H, W, C]`, or `[D]` without convolutions.
    pub shape: Vec<usize>,
    /// Channels behind each 4x4/2 convolution of the encoder, mirrored in the decoder; none for a perceptron.
    pub channels: Vec<usize>,
    /// Widths of the encoder's dense layers, mirrored in the decoder.
    pub hidden: Vec<usize>,
    /// Numbers in z.
    pub latent: usize,
    /// The family of p(x | z).
    pub likelihood: Likelihood,
    /// Values of a byte, 2 or 256.
    pub levels: usize,
    /// Components of a mixture of logistics.
    pub components: usize,
    /// What training maximises.
    pub objective: Objective,
    /// Samples per example in training.
    pub samples: usize,
    /// Samples per example in `log_prob`.
    pub importance: usize,
}

/// The model; see the module's description.
pub struct Vae {
    config: Config,
    dtype: DType,
    store: ParamStore,
    observer: Observer,
    encoder: Encoder,
    decoder: Decoder,
}

/// The bound of each example before and after its posterior was optimised, in nats.
#[derive(Debug, Clone, PartialEq)]
pub struct Refit {
    /// With the encoder's posterior.
    pub before: Vec<f64>,
    /// With the posterior of this example alone; never below `before`.
    pub after: Vec<f64>,
}

impl Vae {
    /// A model with fresh parameters in `dtype`.
    ///
    /// # Errors
    /// When the configuration is impossible.
    pub fn new(config: Config, dtype: DType, rng: &mut Philox) -> Result<Self> {
        let Config {
            shape,
            channels,
            hidden,
            latent,
            likelihood,
            levels,
            components,
            samples,
            importance,
            ..
        } = config.clone();
        for (key, value) in [("samples", samples), ("importance", importance), ("components", components)] {
            if value == 0 || value > 1 << 20 {
                let message = format!("vae: {key} = {value}; expected 1 to {}", 1 << 20);
                return Err(Error::new(ErrorKind::Usage, message));
            }
        }
        let sizes = Sizes { shape, channels, hidden };
        let per_pixel = Observer::per_pixel(likelihood, &sizes.shape, components);
        sizes.check("vae", latent, per_pixel)?;
        let mut store = ParamStore::default();
        let mut init = Init::new(&mut store, rng, dtype);
        let observer =
            Observer::new(&mut init, "vae", likelihood, &sizes.shape, (levels, components), dtype)?;
        let encoder = Encoder::new(&mut init.sub("enc"), &sizes, 2 * latent);
        let decoder = Decoder::new(&mut init.sub("dec"), &sizes, latent, per_pixel);
        Ok(Self { config, dtype, store, observer, encoder, decoder })
    }

    /// q(z | x) of the examples x (B, ...); `rng` dequantises bytes under a Gaussian likelihood.
    ///
    /// # Panics
    /// When x is of another shape.
    #[track_caller]
    pub fn posterior(&self, x: &Tensor, rng: &mut Philox) -> Posterior {
        self.encode(&self.observer.observe(x, rng))
    }

    /// log p(x) of the examples x (B, ...) by `samples` importance samples each, with standard errors. Memory does not
    /// depend on the number of samples.
    ///
    /// # Panics
    /// When x is of another shape or `samples` is 0.
    #[track_caller]
    pub fn importance(&self, x: &Tensor, samples: usize, rng: &mut Philox) -> Importance {
        assert!(samples > 0, "vae: importance sampling with 0 samples");
        autograd::no_grad(|| {
            let of = self.observer.observe(x, rng);
            let mut mean = LogMean::new(x.shape()[0]);
            self.weigh(&of, &self.encode(&of), samples, rng, |log_weights| mean.add(&log_weights));
            mean.finish(of.log_det)
        })
    }

    /// The bounds of x (B, ...) with the encoder's posteriors and with posteriors that `steps` steps of Adam with rate
    /// `lr` have fitted to each example alone, the decoder fixed; both by the same `samples` draws of noise.
    ///
    /// # Panics
    /// When x is of another shape or `samples` is 0.
    #[track_caller]
    pub fn refit(&self, x: &Tensor, steps: usize, lr: f64, samples: usize, rng: &mut Philox) -> Refit {
        assert!(samples > 0, "vae: refit with 0 samples");
        let (of, first) = autograd::no_grad(|| {
            let of = self.observer.observe(x, rng);
            let first = self.encode(&of);
            (of, first)
        });
        let noise = rng.normal([x.shape()[0], samples, self.config.latent], self.dtype);
        let bound = |q: &Posterior| self.elbo(&of, q, &noise);
        let before = autograd::no_grad(|| bound(&first)).to_f64_vec();
        let mut after = before.clone();
        let mut at = [first.mean.to_f64_vec(), first.log_var.to_f64_vec()];
        let mut moments = [vec![[0.0; 2]; at[0].len()], vec![[0.0; 2]; at[1].len()]];
        let shape = [x.shape()[0], self.config.latent];
        for step in 1..=steps {
            let leaf = |v: &[f64]| Tensor::from_slice(v, shape).cast(self.dtype).requires_grad();
            let q = Posterior { mean: leaf(&at[0]), log_var: leaf(&at[1]) };
            let nats = bound(&q);
            let keep = |(best, now): (&mut f64, f64)| *best = best.max(now);
            after.iter_mut().zip(nats.to_f64_vec()).for_each(keep);
            let grads = autograd::backward(nats.sum_all(), &[&q.mean, &q.log_var]);
            for ((at, moments), grad) in at.iter_mut().zip(&mut moments).zip(&grads) {
                for ((x, [m, v]), g) in at.iter_mut().zip(moments).zip(grad.to_f64_vec()) {
                    *m = 0.9 * *m + 0.1 * g;
                    *v = 0.999 * *v + 0.001 * g * g;
                    let (m, v) =
                        (*m / (1.0 - 0.9f64.powi(step as i32)), *v / (1.0 - 0.999f64.powi(step as i32)));
                    *x += lr * m / (v.sqrt() + 1e-8);
                }
            }
        }
        let log_det = |nats: Vec<f64>| nats.into_iter().map(|x| x + of.log_det).collect();
        Refit { before: log_det(before), after: log_det(after) }
    }

    fn encode(&self, of: &Observation) -> Posterior {
        Posterior::of(&self.encoder.run(&of.input))
    }

    /// ln p(x | z) (B, S) of z (B, S, L).
    fn log_likelihood(&self, of: &Observation, z: &Tensor) -> Tensor {
        let [b, s, l] = z.dims();
        self.observer.log_likelihood(&self.decoder.run(&z.reshape([b * s, l])), of).reshape([b, s])
    }

    /// The evidence lower bound (B,) under `q` with this noise (B, S, L), without the log-determinant.
    fn elbo(&self, of: &Observation, q: &Posterior, noise: &Tensor) -> Tensor {
        let [b, _, l] = noise.dims();
        let std = q.log_var.affine(0.5, 0.0).exp().reshape([b, 1, l]);
        let z = &q.mean.reshape([b, 1, l]) + &(&std * noise);
        &self.log_likelihood(of, &z).mean(&[1]).reshape([b]) - &q.kl()
    }

    /// Calls `take` with log weights (B, S_i), Σ S_i = `samples`, chunk by chunk.
    fn weigh(
        &self,
        of: &Observation,
        q: &Posterior,
        samples: usize,
        rng: &mut Philox,
        mut take: impl FnMut(Tensor),
    ) {
        let b = q.mean.shape()[0];
        let per_chunk = (CHUNK / self.decoder.widest() / b.max(1)).clamp(1, samples);
        for start in (0..samples).step_by(per_chunk) {
            let (z, noise) = q.draw(per_chunk.min(samples - start), rng);
            take(&self.log_likelihood(of, &z) + &q.prior_ratio(&z, &noise));
        }
    }

    /// E ln p(x | z), E ln p(z) and the entropy of q(z | x), (B, 3), the means of a few draws.
    fn terms(&self, x: &Tensor, rng: &mut Philox) -> Tensor {
        let of = self.observer.observe(x, rng);
        let q = self.encode(&of);
        let draws = (0..DRAWS).map(|_| {
            let (z, noise) = q.draw(1, rng);
            let prior = standard_log_density(&z);
            let entropy = &q.prior_ratio(&z, &noise) - &prior;
            table(&[self.log_likelihood(&of, &z).affine(1.0, of.log_det), prior, entropy])
        });
        let sum = draws.reduce(|sum, terms| &sum + &terms).expect("there are draws");
        sum.affine(1.0 / DRAWS as f64, 0.0)
    }

    /// The importance-weighted bound (B,), with the gradients of its objective.
    fn weighted_bound(&self, of: &Observation, rng: &mut Philox) -> Tensor {
        let (q, samples) = (self.encode(of), self.config.samples);
        let (z, noise) = q.draw(samples, rng);
        let (log_weights, shares) = match self.config.objective {
            Objective::Dreg => {
                let shares = Arc::new(OnceLock::new());
                let z = scale_gradient(&z, &shares);
                let ratio = &standard_log_density(&z) - &q.detached().log_density(&z);
                (&self.log_likelihood(of, &z) + &ratio, Some(shares))
            }
            _ => (&self.log_likelihood(of, &z) + &q.prior_ratio(&z, &noise), None),
        };
        if let Some(shares) = shares {
            // Known only now: how much of the bound each sample carries.
            let _ = shares.set(log_softmax(&log_weights.detach()).exp());
        }
        logsumexp(&log_weights).affine(1.0, -(samples as f64).ln())
    }
}

/// z (B, S, L), whose gradient is multiplied by `shares` (B, S), to be set before the backward pass.
fn scale_gradient(z: &Tensor, shares: &Arc<OnceLock<Tensor>>) -> Tensor {
    let shares = shares.clone();
    let [z] = record(Recipe::fused("scale_gradient"), &[z], [z.detach()], move |back| {
        let g = back.grad(0);
        let [b, s, _] = g.dims();
        let shares = shares.get().expect("the shares are set when the bound has been computed");
        vec![Some(&g * &shares.reshape([b, s, 1]))]
    });
    z
}

impl Model for Vae {
    fn config(&self) -> serde_json::Value {
        serde_json::to_value(&self.config).expect("a configuration is plain data")
    }

    fn input(&self) -> Input {
        let (dtypes, levels) = (self.observer.dtypes(), self.observer.levels());
        Input { shape: self.config.shape.clone(), dtypes, levels, ..Input::default() }
    }

    fn params(&self) -> &ParamStore {
        &self.store
    }

    fn log_prob(&self, batch: &Batch, rng: &mut Philox) -> LogProb {
        let (kind, samples) = (self.observer.kind(), self.config.importance);
        let of = self.observer.observe(&batch.x, rng);
        let q = self.encode(&of);
        // On a device the host, which would keep running sums, is not waited for.
        let nats = if q.mean.var().is_some() || q.mean.gpu().is_some() {
            let mut all = Vec::new();
            self.weigh(&of, &q, samples, rng, |log_weights| all.push(log_weights));
            let all = concat(&all.iter().collect::<Vec<_>>(), 1);
            logsumexp(&all).affine(1.0, of.log_det - (samples as f64).ln())
        } else {
            let mut mean = LogMean::new(q.mean.shape()[0]);
            self.weigh(&of, &q, samples, rng, |log_weights| mean.add(&log_weights));
            let nats = mean.finish(of.log_det).nats;
            Tensor::from_slice(&nats, [nats.len()])
        };
        LogProb { nats, kind, per_position: None }
    }

    fn sample(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor> {
        options.check("vae", 0)?;
        Ok(autograd::no_grad(|| {
            let z = rng.normal([n, self.config.latent], self.dtype).affine(options.temperature, 0.0);
            self.observer.sample(&self.decoder.run(&z), options.temperature, rng)
        }))
    }

    fn objective(&self, batch: &Batch, rng: &mut Philox) -> Tensor {
        let of = self.observer.observe(&batch.x, rng);
        let bound = match self.config.objective {
            Objective::Elbo => {
                let q = self.encode(&of);
                let b = batch.x.shape()[0];
                let noise = rng.normal([b, self.config.samples, self.config.latent], self.dtype);
                self.elbo(&of, &q, &noise)
            }
            _ => self.weighted_bound(&of, rng),
        };
        bound.affine(-1.0, -of.log_det)
    }

    fn init_from(&self, train: &Dataset, _batch: &Batch, _rng: &mut Philox) {
        self.observer.fit(train);
    }

    fn statistics(&self) -> Option<&dyn Statistics> {
        Some(self)
    }
}

impl Statistics for Vae {
    fn offered(&self) -> &'static [Statistic] {
        &[Statistic::Regret, Statistic::Terms]
    }

    fn compute(&self, which: Statistic, batch: &Batch, rng: &mut Philox) -> Tensor {
        assert!(self.offered().contains(&which), "vae: a statistic that it does not offer");
        if which == Statistic::Terms {
            return autograd::no_grad(|| self.terms(&batch.x, rng));
        }
        let (steps, rate, samples) = REGRET;
        let Refit { before, after } = self.refit(&batch.x, steps, rate, samples, rng);
        Tensor::from_fn([before.len()], |i| after[i] - before[i])
    }
}
