//! Hierarchical variational autoencoder: L layers of latents with inference from the top down (ladder VAE, Sønderby et
//! al. 2016) and deterministic skip connections past every latent, upwards and downwards (as BIVA, Maaløe et al. 2019).
//!
//! ```text
//! d_1 = relu(encoder(x)), d_l+1 = relu(up_l(d_l))                                     upwards
//! p(z_l | z_>l) = N(μ_l, σ_l²),  (μ_l, ln σ_l²) = prior_l(h_l), N(0, 1) at the top   downwards
//! q(z_l | z_>l, x) = N(μ_l + Δμ, σ_l² e^Δ),  (Δμ, Δ) = posterior_l(d_l, h_l)
//! h_l−1 = relu(down_l(z_l, h_l)),  p(x | z) = likelihood(decoder(h_0))
//! ```
//! The lowest `maps` layers of an image keep its grid, as in Havtorn et al. 2021: layer l has maps of numbers behind
//! convolution l of the encoder, whose output is d_l, and `prior`, `posterior` and `down` are convolutions of 3x3. They
//! hold what is local in any image, and leave to the vectors above what kind of image it is.
//!
//! Training maximises E ln p(x | z) − Σ_l KL_l, where a layer whose mean KL over the batch is below `free_bits` nats
//! counts as `free_bits` (Kingma et al. 2016), so that no layer is switched off early. `log_prob` is ln (1/K) Σ w_k over
//! K = `importance` samples, a stochastic lower bound.
//!
//! **LLR^{>k}** (Havtorn et al. 2021, "Hierarchical VAEs know what they don't know", arXiv:2102.08248): the bound L
//! minus L^{>k}, for which the lowest k layers are drawn from p(z_l | z_>l) instead of q; see [`Hvae::llr`].

use super::likelihood::{Likelihood, Observation, Observer};
use super::network::{Decoder, Encoder, Layer, MAX_PARAMS, Sizes};
use super::posterior::Posterior;
use crate::autograd;
use crate::cpu::gemm::Act;
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::models::statistic::table;
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
                train.steps=7000, as in benches/results/images.md: at most 3.30 bits/dim on the test images",
    presets: &[("hvae28", HVAE28), ("hvae32", HVAE32)],
    tiny: &[
        "shape=[4, 4, 1]",
        "channels=[3]",
        "hidden=[16, 12]",
        "maps=[2]",
        "latents=[3, 2]",
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
maps = [8]
hidden = [128, 64]
latents = [16, 8]
likelihood = "bernoulli"
levels = 256
components = 1
free_bits = 2.0
importance = 16
[train]
batch = 128
"#;

/// Colour; the sizes of the latents are those of Havtorn et al. 2021, the topmost one a vector.
const HVAE32: &str = r#"
shape = [32, 32, 3]
channels = [32, 64, 128]
maps = [8, 16]
hidden = [128]
latents = [32]
likelihood = "logistic"
levels = 256
components = 5
free_bits = 2.0
importance = 16
[train]
batch = 64
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
    /// Numbers per pixel of the latent behind each of the first convolutions, lowest first; may be empty.
    #[serde(default)]
    pub maps: Vec<usize>,
    /// Width of the features of each layer of vectors, lowest first.
    pub hidden: Vec<usize>,
    /// Numbers in the latent of each layer of vectors, lowest first.
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
    /// Of the latent of one example: (D) or (H, W, C).
    latent: Vec<usize>,
    /// From the features below; none for those that the encoder gives.
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
        let Config { shape, channels, maps, hidden, latents, likelihood, levels, components, .. } =
            config.clone();
        if hidden.len() != latents.len() || latents.is_empty() {
            return fail(format!(
                "{} widths for {} latents; expected as many, and one at least",
                hidden.len(),
                latents.len()
            ));
        }
        if maps.len() > channels.len() {
            return fail(format!(
                "{} latents with maps; expected at most one for each of {} convolutions",
                maps.len(),
                channels.len()
            ));
        }
        if !(2..=32).contains(&(maps.len() + latents.len())) {
            return fail(format!("{} layers of latents; expected 2 to 32", maps.len() + latents.len()));
        }
        for (key, value) in [("importance", config.importance), ("components", components)] {
            if value == 0 || value > 1 << 20 {
                return fail(format!("{key} = {value}; expected 1 to {}", 1 << 20));
            }
        }
        if !(config.free_bits >= 0.0 && config.free_bits.is_finite()) {
            return fail(format!("free_bits = {}; expected a number of at least 0", config.free_bits));
        }
        if latents.iter().chain(&hidden).chain(&maps).any(|&n| n == 0 || n > 1 << 13) {
            return fail("maps, hidden and latents: expected sizes of 1 to 8192".into());
        }
        let sizes = Sizes { shape, channels, hidden: vec![hidden[0]] };
        let per_pixel = Observer::per_pixel(likelihood, &sizes.shape, components);
        sizes.check("hvae", hidden[0], per_pixel)?;
        let grids: usize = maps.iter().zip(&sizes.channels).map(|(n, c)| 9 * c * (7 * n + c)).sum();
        let below = hidden[..1].iter().chain(&hidden);
        let vectors: usize = below.zip(&hidden).zip(&latents).map(|((b, h), n)| h * (2 * b + 7 * n)).sum();
        if grids + vectors > MAX_PARAMS {
            return fail(format!("its latents ask for more than {MAX_PARAMS} parameters"));
        }
        let mut store = ParamStore::default();
        let mut init = Init::new(&mut store, rng, dtype);
        let observer =
            Observer::new(&mut init, "hvae", likelihood, &sizes.shape, (levels, components), dtype)?;
        let encoder =
            Encoder::new(&mut init.sub("enc"), &Sizes { hidden: Vec::new(), ..sizes.clone() }, hidden[0]);
        let grids = maps.iter().enumerate().map(|(i, &n)| {
            let mut init = init.sub(format_args!("grids.{i}"));
            let c = sizes.channels[i];
            Rung {
                latent: vec![sizes.shape[0] >> (i + 1), sizes.shape[1] >> (i + 1), n],
                up: None,
                posterior: Layer::conv(&mut init, "posterior", 2 * c, 2 * n),
                prior: Some(Layer::conv(&mut init, "prior", c, 2 * n)),
                down: Layer::conv(&mut init, "down", n + c, c),
            }
        });
        let mut rungs: Vec<Rung> = grids.collect();
        let top = latents.len() - 1;
        rungs.extend((0..=top).map(|l| {
            let mut init = init.sub(format_args!("layers.{l}"));
            let from_above = if l < top { hidden[l] } else { 0 };
            let below = hidden[l.saturating_sub(1)];
            Rung {
                latent: vec![latents[l]],
                up: (l > 0).then(|| Layer::dense(&mut init, "up", hidden[l - 1], hidden[l])),
                posterior: Layer::dense(&mut init, "posterior", hidden[l] + from_above, 2 * latents[l]),
                prior: (l < top).then(|| Layer::dense(&mut init, "prior", hidden[l], 2 * latents[l])),
                down: Layer::dense(&mut init, "down", latents[l] + from_above, below),
            }
        }));
        let decoder = Decoder::new(&mut init.sub("dec"), &sizes, hidden[0], per_pixel);
        Ok(Self { config, dtype, store, observer, encoder, rungs, decoder })
    }

    /// LLR^{>k} (B) of the examples x (B, ...), 1 ≤ k < L: the evidence lower bound with all layers inferred, minus the
    /// bound with the lowest k drawn from their prior given the ones above. In nats, both means over `samples` draws. (Of the importance-weighted bound, many draws from the prior would find one that
    /// explains what the upper layers do not know.) What only low layers explain (edges, textures, any image's) counts
    /// high; where the high layers suffice it is small. Memory does not depend on the number of samples.
    ///
    /// # Panics
    /// When x is of another shape, k is no such number, or `samples` is 0.
    #[track_caller]
    pub fn llr(&self, x: &Tensor, k: usize, samples: usize, rng: &mut Philox) -> Tensor {
        assert!(samples > 0, "hvae: llr with 0 samples");
        assert!((1..self.rungs.len()).contains(&k), "hvae: llr with k = {k} of {} layers", self.rungs.len());
        autograd::no_grad(|| {
            let of = self.observer.observe(x, rng);
            let features = self.ascend(&of);
            let mut bound = |lowest: usize| {
                let mut sum = vec![0.0; x.shape()[0]];
                self.weigh(&of, &features, samples, lowest, rng, |log_weights| {
                    let parts = log_weights.sum_examples().to_f64_vec();
                    sum.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part / samples as f64);
                });
                sum
            };
            let (whole, without) = (bound(0), bound(k));
            Tensor::from_fn([whole.len()], |i| whole[i] - without[i])
        })
    }

    /// The k of [`Statistic::LlrK`]: the layers that keep the image's grid, which can draw any image; one where there are
    /// none.
    fn lowest(&self) -> usize {
        self.config.maps.len().clamp(1, self.rungs.len() - 1)
    }

    /// d_l (B, ...), lowest first.
    fn ascend(&self, of: &Observation) -> Vec<Tensor> {
        let (mut features, lowest) = self.encoder.ladder(&of.input, self.config.maps.len());
        features.push(relu(&lowest));
        for rung in self.rungs.iter().filter(|rung| rung.up.is_some()) {
            let up = rung.up.as_ref().expect("filtered");
            features.push(up.apply(&features[features.len() - 1], Act::Relu));
        }
        features
    }

    /// From the top to the decoder's outputs for `rows` rows; `choose` draws z_l, given l, p(z_l | z_>l) and h_l.
    fn pass_down(
        &self,
        rows: usize,
        mut choose: impl FnMut(usize, Posterior, Option<&Tensor>) -> Tensor,
    ) -> Tensor {
        let maps = self.config.maps.len();
        let mut above: Option<Tensor> = None;
        for (l, rung) in self.rungs.iter().enumerate().rev() {
            // Between two grids, and between the vectors and the first one, stand the decoder's layers.
            if l + 1 == maps {
                above = above.map(|h| self.decoder.unfold(&h, maps));
            } else if l + 1 < maps {
                above = above.map(|h| self.decoder.lift(&h, l + 2));
            }
            let z = choose(l, self.prior(rung, above.as_ref(), rows), above.as_ref());
            let down = above.as_ref().map_or(z.clone(), |h| beside(&z, h));
            above = Some(rung.down.apply(&down, Act::Relu));
        }
        let lowest = above.expect("there is a layer");
        if maps > 0 { self.decoder.lift(&lowest, 1) } else { self.decoder.run(&lowest) }
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
        let mut log_ratio = Tensor::zeros([rows], self.dtype);
        let mut kls = Vec::new();
        let outputs = self.pass_down(rows, |l, prior, above| {
            let noise = rng.normal(prior.mean.shape(), self.dtype);
            if l < lowest {
                return sampled(&prior, &noise);
            }
            let known = repeated(&features[l], samples);
            let seen = above.map_or(known.clone(), |h| beside(&known, h));
            let change = Posterior::of(&self.rungs[l].posterior.apply(&seen, Act::None));
            let q = Posterior { mean: &prior.mean + &change.mean, log_var: &prior.log_var + &change.log_var };
            let z = sampled(&q, &noise);
            log_ratio = &log_ratio + &log_ratio_of(&prior, &q, &z, &noise);
            kls.push(kl(&q, &prior).reshape([b, samples]));
            z
        });
        let log_likelihood = self.observer.log_likelihood(&outputs, of);
        Descent {
            log_likelihood: log_likelihood.reshape([b, samples]),
            log_ratio: log_ratio.reshape([b, samples]),
            kls,
        }
    }

    /// p(z_l | z_>l) given what comes from above (rows, ...).
    fn prior(&self, rung: &Rung, above: Option<&Tensor>, rows: usize) -> Posterior {
        match (&rung.prior, above) {
            (Some(prior), Some(h)) => Posterior::of(&prior.apply(h, Act::None)),
            _ => {
                let zeros = Tensor::zeros([&[rows], &rung.latent[..]].concat(), self.dtype);
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

/// x and y along the last axis.
fn beside(x: &Tensor, y: &Tensor) -> Tensor {
    concat(&[x, y], x.rank() - 1)
}

/// (B, ...) to (B · S, ...), each example S times in a row.
fn repeated(x: &Tensor, samples: usize) -> Tensor {
    let (b, one) = (x.shape()[0], x.len() / x.shape()[0]);
    let rows = x.reshape([b, 1, one]).broadcast_to([b, samples, one]);
    rows.reshape([&[b * samples], &x.shape()[1..]].concat())
}

/// μ + σ ε.
fn sampled(q: &Posterior, noise: &Tensor) -> Tensor {
    &q.mean + &(&q.log_var.affine(0.5, 0.0).exp() * noise)
}

/// ln p(z) − ln q(z) (rows,), summed over the latent, for z = μ_q + σ_q ε.
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
            let outputs = self.pass_down(n, |_, prior, _| {
                let noise = rng.normal(prior.mean.shape(), self.dtype);
                sampled(&prior, &noise.affine(options.temperature, 0.0))
            });
            self.observer.sample(&outputs, options.temperature, rng)
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
        &[Statistic::LlrK, Statistic::Terms]
    }

    /// The terms are E ln p(x | z) and −KL of each layer, highest first, of one draw.
    fn compute(&self, which: Statistic, batch: &Batch, rng: &mut Philox) -> Tensor {
        assert!(self.offered().contains(&which), "hvae: a statistic that it does not offer");
        if which == Statistic::LlrK {
            return table(&[self.llr(&batch.x, self.lowest(), self.config.importance, rng)]);
        }
        autograd::no_grad(|| {
            let of = self.observer.observe(&batch.x, rng);
            let down = self.descend(&of, &self.ascend(&of), 1, 0, rng);
            let mut terms = vec![down.log_likelihood.affine(1.0, of.log_det)];
            terms.extend(down.kls.iter().map(|kl| -kl));
            table(&terms)
        })
    }
}
