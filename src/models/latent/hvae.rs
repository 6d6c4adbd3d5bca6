//! Hierarchical variational autoencoder: L layers of latents with inference from the top down (ladder VAE, Sønderby et
//! al. 2016) and deterministic skip connections past every latent, upwards and downwards (as BIVA, Maaløe et al. 2019).
//!
//! ```text
//! d_1 = relu(encoder(x)), d_l+1 = relu(up_l(d_l))                                     upwards
//! p(z_l | z_>l) = N(μ_l, σ_l²),  (μ_l, ln σ_l²) = prior_l(h_l), N(0, 1) at the top   downwards
//! q(z_l | z_>l, x) = N(μ_l + Δμ, σ_l² e^Δ),  (Δμ, Δ) = posterior_l(d_l, h_l)
//! h_l−1 = relu(down_l(z_l, h_l)),  p(x | z) = likelihood(decoder(h_0))
//! ```
//! Training maximises E ln p(x | z) − Σ_l KL_l, where a layer whose mean KL over the batch is below `free_bits` nats
//! counts as `free_bits` (Kingma et al. 2016), so that no layer is switched off early. `log_prob` is ln (1/K) Σ w_k over
//! K = `importance` samples, a stochastic lower bound.
//!
//! **LLR^{>k}** (Havtorn et al. 2021, "Hierarchical VAEs know what they don't know"): the bound L minus L^{>k}, for which
//! the lowest k layers are drawn from p(z_l | z_>l) instead of q; see [`Hvae::llr`].

use super::likelihood::{Likelihood, Observation, Observer};
use super::network::{Decoder, Encoder, Layer, Sizes};
use super::posterior::{LogMean, Posterior};
use crate::autograd;
use crate::cpu::gemm::Act;
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::models::{Batch, Input, LogProb, Model, ModelInfo, SampleOptions, Statistic, Statistics};
use crate::nn::{Init, ParamStore};
use crate::ops::shape::concat;
use crate::ops::softmax::logsumexp;
use crate::ops::unary::{relu, step};
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// The registry's line.
pub const INFO: ModelInfo = ModelInfo {
    name: "hvae",
    family: "latent",
    summary: "hierarchical VAE with top-down inference, skip connections and free bits (Sønderby et al. 2016, Havtorn et al. 2021)",
    objective: "negative evidence lower bound with free bits, nats",
    reproduce: "surprisal train hvae28 --data fashion-mnist-train-images --set likelihood=logistic --set components=5 --set \
                train.steps=4340, as in benches/results/images.md: at most 3.47 bits/dim on the test images",
    presets: &[("hvae28", HVAE28)],
    tiny: &[
        "shape=[4, 4, 1]",
        "channels=[3]",
        "hidden=[24, 16, 12]",
        "latents=[3, 2, 2]",
        "free_bits=0.01",
        "importance=3",
    ],
    build: |config, rng| {
        let config = serde_json::from_value(config.clone())
            .map_err(|e| Error::new(ErrorKind::Usage, format!("hvae: {e}")))?;
        Ok(Box::new(Hvae::new(config, DType::F32, rng)?))
    },
};

const HVAE28: &str = r#"
shape = [28, 28, 1]
channels = [32, 64]
hidden = [256, 128, 64]
latents = [32, 16, 8]
likelihood = "bernoulli"
levels = 256
components = 1
free_bits = 2.0
importance = 16
[train]
batch = 128
"#;

/// Numbers of the decoder's widest layer that a chunk of samples may hold.
const CHUNK: usize = 1 << 20;

/// What a [`Hvae`] is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Of an example: `[H, W, C]`, or `[D]` without convolutions.
    pub shape: Vec<usize>,
    /// Channels behind each 4x4/2 convolution of the encoder, mirrored in the decoder; none for a perceptron.
    pub channels: Vec<usize>,
    /// Width of the features of each layer, lowest first.
    pub hidden: Vec<usize>,
    /// Numbers in the latent of each layer, lowest first.
    pub latents: Vec<usize>,
    /// The family of p(x | z).
    pub likelihood: Likelihood,
    /// Values of a byte, 2 or 256.
    pub levels: usize,
    /// Components of a mixture of logistics.
    pub components: usize,
    /// Nats that a layer may use freely in training.
    pub free_bits: f64,
    /// Samples per example in `log_prob`.
    pub importance: usize,
}

/// One latent layer.
struct Rung {
    /// From the features below; none for the lowest, which has the encoder's.
    up: Option<Layer>,
    /// Of the features and of what comes from above.
    posterior: Layer,
    /// None at the top.
    prior: Option<Layer>,
    down: Layer,
}

/// The model; see the module's description.
pub struct Hvae {
    config: Config,
    dtype: DType,
    store: ParamStore,
    observer: Observer,
    encoder: Encoder,
    /// Lowest first.
    rungs: Vec<Rung>,
    decoder: Decoder,
}

/// What one pass down gives, per example and sample (B, S).
struct Descent {
    /// ln p(x | z).
    log_likelihood: Tensor,
    /// Σ ln p(z_l | z_>l) − ln q(z_l | z_>l, x) over the layers drawn from q.
    log_ratio: Tensor,
    /// KL(q ‖ p) in closed form, of the layers drawn from q, highest first.
    kls: Vec<Tensor>,
}

impl Hvae {
    /// A model with fresh parameters in `dtype`.
    ///
    /// # Errors
    /// When the configuration is impossible.
    pub fn new(config: Config, dtype: DType, rng: &mut Philox) -> Result<Self> {
        let fail = |what: String| Err(Error::new(ErrorKind::Usage, format!("hvae: {what}")));
        let Config {
            shape,
            channels,
            hidden,
            latents,
            likelihood,
            levels,
            components,
            free_bits,
            importance,
        } = config.clone();
        if hidden.len() != latents.len() || !(2..=32).contains(&latents.len()) {
            return fail(format!(
                "{} widths for {} latents; expected as many, 2 to 32",
                hidden.len(),
                latents.len()
            ));
        }
        for (key, value) in [("importance", importance), ("components", components)] {
            if value == 0 || value > 1 << 20 {
                return fail(format!("{key} = {value}; expected 1 to {}", 1 << 20));
            }
        }
        if !(free_bits >= 0.0 && free_bits.is_finite()) {
            return fail(format!("free_bits = {free_bits}; expected a number of at least 0"));
        }
        if latents.iter().chain(&hidden).any(|&n| n == 0 || n > 1 << 13) {
            return fail("hidden and latents: expected sizes of 1 to 8192".into());
        }
        let sizes = Sizes { shape, channels, hidden: vec![hidden[0]] };
        let per_pixel = Observer::per_pixel(likelihood, &sizes.shape, components);
        sizes.check("hvae", hidden[0], per_pixel)?;
        let mut store = ParamStore::default();
        let mut init = Init::new(&mut store, rng, dtype);
        let observer =
            Observer::new(&mut init, "hvae", likelihood, &sizes.shape, (levels, components), dtype)?;
        let encoder =
            Encoder::new(&mut init.sub("enc"), &Sizes { hidden: Vec::new(), ..sizes.clone() }, hidden[0]);
        let top = latents.len() - 1;
        let rungs = (0..=top)
            .map(|l| {
                let mut init = init.sub(format_args!("layers.{l}"));
                let from_above = if l < top { hidden[l] } else { 0 };
                let up = (l > 0).then(|| Layer::dense(&mut init, "up", hidden[l - 1], hidden[l]));
                let posterior = Layer::dense(&mut init, "posterior", hidden[l] + from_above, 2 * latents[l]);
                let prior = (l < top).then(|| Layer::dense(&mut init, "prior", hidden[l], 2 * latents[l]));
                let below = hidden[l.saturating_sub(1)];
                let down = Layer::dense(&mut init, "down", latents[l] + from_above, below);
                Rung { up, posterior, prior, down }
            })
            .collect();
        let decoder = Decoder::new(&mut init.sub("dec"), &sizes, hidden[0], per_pixel);
        Ok(Self { config, dtype, store, observer, encoder, rungs, decoder })
    }

    /// LLR^{>k} (B, L − 1) of the examples x (B, ...), column k − 1 for k = 1 .. L − 1: the bound on ln p(x) with all
    /// layers inferred, minus the bound with the lowest k drawn from their prior given the ones above. In nats, both
    /// bounds by `samples` importance samples. What only low layers explain (edges, textures, any image's) counts
    /// high; where the high layers suffice it is small. Memory does not depend on the number of samples.
    ///
    /// # Panics
    /// When x is of another shape or `samples` is 0.
    #[track_caller]
    pub fn llr(&self, x: &Tensor, samples: usize, rng: &mut Philox) -> Tensor {
        assert!(samples > 0, "hvae: llr with 0 samples");
        autograd::no_grad(|| {
            let of = self.observer.observe(x, rng);
            let features = self.ascend(&of);
            let mut bound = |lowest: usize| {
                let mut mean = LogMean::new(x.shape()[0]);
                self.weigh(&of, &features, samples, lowest, rng, |log_weights| mean.add(&log_weights));
                mean.finish(0.0).nats
            };
            let whole = bound(0);
            let parts: Vec<Vec<f64>> = (1..self.rungs.len()).map(&mut bound).collect();
            Tensor::from_fn([whole.len(), parts.len()], |i| {
                whole[i / parts.len()] - parts[i % parts.len()][i / parts.len()]
            })
        })
    }

    /// d_l (B, hidden_l), lowest first.
    fn ascend(&self, of: &Observation) -> Vec<Tensor> {
        let mut features = vec![relu(&self.encoder.run(&of.input))];
        for rung in &self.rungs[1..] {
            let up = rung.up.as_ref().expect("layers above the lowest go up");
            features.push(up.apply(&features[features.len() - 1], Act::Relu));
        }
        features
    }

    /// One pass down with `samples` draws for each of B examples, the lowest `lowest` layers from the prior.
    fn descend(
        &self,
        of: &Observation,
        features: &[Tensor],
        samples: usize,
        lowest: usize,
        rng: &mut Philox,
    ) -> Descent {
        let b = features[0].shape()[0];
        let rows = b * samples;
        let mut above: Option<Tensor> = None;
        let mut log_ratio = Tensor::zeros([rows], self.dtype);
        let mut kls = Vec::new();
        for (l, rung) in self.rungs.iter().enumerate().rev() {
            let latent = self.config.latents[l];
            let prior = self.prior(rung, above.as_ref(), rows, latent);
            let noise = rng.normal([rows, latent], self.dtype);
            let z = if l < lowest {
                sampled(&prior, &noise)
            } else {
                let w = features[l].shape()[1];
                let known = features[l].reshape([b, 1, w]).broadcast_to([b, samples, w]).reshape([rows, w]);
                let seen = above.as_ref().map_or(known.clone(), |h| concat(&[&known, h], 1));
                let change = Posterior::of(&rung.posterior.apply(&seen, Act::None));
                let q =
                    Posterior { mean: &prior.mean + &change.mean, log_var: &prior.log_var + &change.log_var };
                let z = sampled(&q, &noise);
                log_ratio = &log_ratio + &log_ratio_of(&prior, &q, &z, &noise);
                kls.push(kl(&q, &prior).reshape([b, samples]));
                z
            };
            let down = above.as_ref().map_or(z.clone(), |h| concat(&[&z, h], 1));
            above = Some(rung.down.apply(&down, Act::Relu));
        }
        let features = above.expect("there is a layer");
        let log_likelihood = self.observer.log_likelihood(&self.decoder.run(&features), of);
        Descent {
            log_likelihood: log_likelihood.reshape([b, samples]),
            log_ratio: log_ratio.reshape([b, samples]),
            kls,
        }
    }

    /// p(z_l | z_>l) given what comes from above (rows, hidden_l).
    fn prior(&self, rung: &Rung, above: Option<&Tensor>, rows: usize, latent: usize) -> Posterior {
        match (&rung.prior, above) {
            (Some(prior), Some(h)) => Posterior::of(&prior.apply(h, Act::None)),
            _ => {
                let zeros = Tensor::zeros([rows, latent], self.dtype);
                Posterior { mean: zeros.clone(), log_var: zeros }
            }
        }
    }

    /// Calls `take` with log weights (B, S_i), Σ S_i = `samples`, chunk by chunk.
    fn weigh(
        &self,
        of: &Observation,
        features: &[Tensor],
        samples: usize,
        lowest: usize,
        rng: &mut Philox,
        mut take: impl FnMut(Tensor),
    ) {
        let b = features[0].shape()[0];
        let per_chunk = (CHUNK / self.decoder.widest() / b.max(1)).clamp(1, samples);
        for start in (0..samples).step_by(per_chunk) {
            let down = self.descend(of, features, per_chunk.min(samples - start), lowest, rng);
            take(&down.log_likelihood + &down.log_ratio);
        }
    }
}

/// μ + σ ε.
fn sampled(q: &Posterior, noise: &Tensor) -> Tensor {
    &q.mean + &(&q.log_var.affine(0.5, 0.0).exp() * noise)
}

/// ln p(z) − ln q(z) (rows,) for z = μ_q + σ_q ε.
fn log_ratio_of(p: &Posterior, q: &Posterior, z: &Tensor, noise: &Tensor) -> Tensor {
    let standard = (z - &p.mean).square();
    let terms = &(&standard * &p.log_var.affine(-1.0, 0.0).exp()) - &noise.square();
    (&terms + &(&p.log_var - &q.log_var)).sum_examples().affine(-0.5, 0.0)
}

/// KL(q ‖ p) (rows,) in nats.
fn kl(q: &Posterior, p: &Posterior) -> Tensor {
    let change = &q.log_var - &p.log_var;
    let distance = &(&q.mean - &p.mean).square() * &p.log_var.affine(-1.0, 0.0).exp();
    (&(&distance + &change.exp()) - &change.affine(1.0, 1.0)).sum_examples().affine(0.5, 0.0)
}

impl Model for Hvae {
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
        let features = self.ascend(&of);
        let mut all = Vec::new();
        self.weigh(&of, &features, samples, 0, rng, |log_weights| all.push(log_weights));
        let nats = logsumexp(&concat(&all.iter().collect::<Vec<_>>(), 1));
        LogProb { nats: nats.affine(1.0, of.log_det - (samples as f64).ln()), kind, per_position: None }
    }

    fn sample(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor> {
        options.check("hvae", 0)?;
        Ok(autograd::no_grad(|| {
            let mut above: Option<Tensor> = None;
            for (l, rung) in self.rungs.iter().enumerate().rev() {
                let latent = self.config.latents[l];
                let prior = self.prior(rung, above.as_ref(), n, latent);
                let noise = rng.normal([n, latent], self.dtype).affine(options.temperature, 0.0);
                let z = sampled(&prior, &noise);
                let down = above.as_ref().map_or(z.clone(), |h| concat(&[&z, h], 1));
                above = Some(rung.down.apply(&down, Act::Relu));
            }
            let features = above.expect("there is a layer");
            self.observer.sample(&self.decoder.run(&features), options.temperature, rng)
        }))
    }

    fn objective(&self, batch: &Batch, rng: &mut Philox) -> Tensor {
        let of = self.observer.observe(&batch.x, rng);
        let down = self.descend(&of, &self.ascend(&of), 1, 0, rng);
        let b = batch.x.shape()[0];
        let free = self.config.free_bits;
        let mut loss = down.log_likelihood.reshape([b]).affine(-1.0, -of.log_det);
        for kl in &down.kls {
            // A layer within its free bits has no gradient.
            let used = step(&kl.detach().mean_all().affine(1.0, -free));
            loss = &loss + &(&(&kl.reshape([b]) * &used) + &used.affine(-free, free));
        }
        loss
    }

    fn init_from(&self, train: &Dataset, _batch: &Batch, _rng: &mut Philox) {
        self.observer.fit(train);
    }

    fn statistics(&self) -> Option<&dyn Statistics> {
        Some(self)
    }
}

impl Statistics for Hvae {
    fn offered(&self) -> &'static [Statistic] {
        &[Statistic::LlrK]
    }

    fn compute(&self, which: Statistic, batch: &Batch, rng: &mut Philox) -> Tensor {
        assert_eq!(which, Statistic::LlrK, "hvae: a statistic that it does not offer");
        self.llr(&batch.x, self.config.importance, rng)
    }
}
