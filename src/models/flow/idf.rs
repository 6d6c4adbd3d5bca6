//! Integer discrete flow on bytes: an exact likelihood, with which the data can be coded without loss (Hoogeboom,
//! Peters, van den Berg & Welling 2019), in modular arithmetic (Tran et al. 2019), so that bytes map to bytes and
//! their probabilities sum to exactly 1.
//!
//! x in {0, ..., L − 1}^(H W C). `squeezes` times: 2 by 2 pixels to channels, then `depth` couplings, each
//! (a, b) → (a, b + ⌊t(a)⌉ mod L) with a convolutional network t, then the channels in another order. All is a
//! permutation of the byte images: no volume changes and log p(x) = log P(z), z the output. The base gives each place a
//! mixture of K logistics, learned, each cut into bins and wrapped around the L values (three turns, normalised), so
//! that a remainder changes nothing that the gradient would have to know: with ends, values that step over one are
//! lost, and many bytes are 0.
//!
//! Rounding and the remainder pass gradients straight through. To decode, t must give the same bits as when coding: on
//! the same machine, with the same batch.

use crate::autograd;
use crate::bijections::{Bijection, Permutation, Squeeze};
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::models::{Batch, Input, Kind, LogProb, Model, ModelInfo, SampleOptions};
use crate::nn::{Init, Initial, Param, ParamStore};
use crate::ops::conv::{ConvSpec, conv2d};
use crate::ops::coupling::kept_half;
use crate::ops::index::pick;
use crate::ops::shape;
use crate::ops::softmax::{log_softmax, logsumexp};
use crate::ops::unary::{floor, sign};
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// The registry's line.
pub static IDF: ModelInfo = ModelInfo {
    name: "idf",
    family: "flow",
    summary: "integer discrete flow on bytes: exact likelihood, lossless (Hoogeboom et al. 2019)",
    objective: "surprisal, nats",
    reproduce: "surprisal train idf28 --data fashion-mnist-train-images --set train.steps=4000, as in benches/results/images.md: \
                4.63 bits/dim on the test images, the length of a lossless code",
    presets: &[("idf28", IDF28)],
    tiny: &["shape=[2, 2, 1]", "levels=3", "squeezes=1", "depth=2", "hidden=6", "components=2"],
    build: |config, rng| {
        let config = serde_json::from_value(config.clone()).map_err(wrong)?;
        Ok(Box::new(Idf::new(config, DType::F32, rng)?))
    },
};

const IDF28: &str = "
shape = [28, 28, 1]
levels = 256
squeezes = 2
depth = 4
hidden = 64
components = 5

[train]
batch = 64
lr = 1e-3
clip = 50.0
";

/// Rows that place the base before training.
const ROWS: usize = 1000;
/// What the last layer of t is multiplied with, of the levels: small, so that the first steps do not move values by
/// tens.
const REACH: f64 = 1.0 / 32.0;

/// The smallest log scale of a component, in units in which the values span [−1, 1].
const LOWEST_LOG_SCALE: f64 = -7.0;

fn wrong(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Usage, format!("idf: {what}"))
}

/// The complete configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Height and width, multiples of 2^squeezes, and channels.
    pub shape: [usize; 3],
    /// L: bytes are in 0..levels.
    pub levels: usize,
    /// How often 2 by 2 pixels become channels.
    pub squeezes: usize,
    /// Couplings after each squeeze.
    pub depth: usize,
    /// Channels in the couplings' networks.
    pub hidden: usize,
    /// Components of the base's mixtures.
    pub components: usize,
}

impl Config {
    fn check(&self) -> Result<()> {
        let Self { shape: [h, w, c], levels, squeezes, depth, hidden, components } = *self;
        let within = [
            ("shape (height)", h, 1, 1 << 12),
            ("shape (width)", w, 1, 1 << 12),
            ("shape (channels)", c, 1, 1 << 8),
            ("levels", levels, 2, 256),
            ("squeezes", squeezes, 1, 6),
            ("depth", depth, 1, 256),
            ("hidden", hidden, 1, 1 << 12),
            ("components", components, 1, 256),
        ];
        for (key, value, least, most) in within {
            if !(least..=most).contains(&value) {
                return Err(wrong(format!("{key} is {value}; expected {least} to {most}")));
            }
        }
        let step = 1 << squeezes;
        if h % step != 0 || w % step != 0 {
            return Err(wrong(format!("shape is {h} by {w}; {squeezes} squeezes need multiples of {step}")));
        }
        Ok(())
    }
}

/// (a, b) → (a, b + ⌊t(a)⌉ mod L), then a fixed order of the channels.
struct Shift {
    convs: [(Param, Param); 3],
    order: Permutation,
    levels: f64,
}

impl Shift {
    fn new(init: &mut Init, channels: usize, hidden: usize, levels: usize) -> Self {
        let moved = channels / 2;
        let mut conv = |at: usize, k: usize, from: usize, to: usize, start| {
            let mut init = init.sub(format!("net.{at}"));
            (init.param("weight", [k, k, from, to], start), init.param("bias", [to], start))
        };
        let convs = [
            conv(0, 3, channels - moved, hidden, Initial::FanIn(9 * (channels - moved))),
            conv(2, 1, hidden, hidden, Initial::FanIn(hidden)),
            conv(4, 3, hidden, moved, Initial::Zeros),
        ];
        Self { convs, order: Permutation::random(init, channels), levels: levels as f64 }
    }

    /// ⌊t(a)⌉.
    fn amount(&self, a: &Tensor) -> Tensor {
        let [first, middle, last] = &self.convs;
        let layer =
            |x: &Tensor, (w, b): &(Param, Param), spec| conv2d(x, &w.get(), Some(&b.get()), None, spec);
        let h = layer(&a.affine(2.0 / (self.levels - 1.0), -1.0), first, ConvSpec::same(3).relu());
        let h = layer(&h, middle, ConvSpec::same(1).relu());
        let amount = layer(&h, last, ConvSpec::same(3)).affine(self.levels * REACH, 0.0);
        straight_through(&amount, f32::round, rounded)
    }

    fn moved(&self, x: &Tensor, sign: f64) -> Tensor {
        let (axis, c) = (3, x.shape()[3]);
        let a = kept_half(x);
        let b = &shape::narrow(x, axis, c - c / 2, c / 2) + &self.amount(&a).affine(sign, 0.0);
        let levels = self.levels;
        shape::concat(
            &[&a, &straight_through(&b, |v| v.rem_euclid(levels as f32), |x| wrapped(x, levels))],
            axis,
        )
    }
}

/// The nearest whole numbers, halves away from zero.
fn rounded(x: &Tensor) -> Tensor {
    &floor(&x.abs().affine(1.0, 0.5)) * &sign(x)
}

/// The remainders of x by `levels`.
fn wrapped(x: &Tensor, levels: f64) -> Tensor {
    x - &floor(&x.affine(1.0 / levels, 0.0)).affine(levels, 0.0)
}

/// f(x) with the gradient of x, for functions that are steps. Exact for rounding and for whole numbers: x and f(x)
/// are so near each other, or so whole, that their difference has no rounding.
fn straight_through(x: &Tensor, f: impl Fn(f32) -> f32, on_device: impl Fn(&Tensor) -> Tensor) -> Tensor {
    if x.gpu().is_some() {
        return x + &autograd::no_grad(|| &on_device(&x.detach()) - &x.detach());
    }
    let values = x.as_slice::<f32>();
    x + &Tensor::from_fn(x.shape(), |i| f(values[i]) - values[i])
}

/// The model; see the module's description.
pub struct Idf {
    config: Config,
    params: ParamStore,
    levels: Vec<Vec<Shift>>,
    /// (P, K) each: logits of the weights, means, log scales.
    base: [Param; 3],
}

impl Idf {
    /// A model with fresh parameters, at first the identity. The arithmetic is f32, in which bytes are exact.
    ///
    /// # Errors
    /// When the configuration is impossible.
    pub fn new(config: Config, dtype: DType, rng: &mut Philox) -> Result<Self> {
        config.check()?;
        let Config { shape: [h, w, c], levels: values, squeezes, depth, hidden, components: k } = config;
        let mut params = ParamStore::default();
        let mut init = Init::new(&mut params, rng, dtype);
        let level = |s: usize| {
            let channels = c << (2 * (s + 1));
            (0..depth)
                .map(|d| Shift::new(&mut init.sub(format_args!("levels.{s}.{d}")), channels, hidden, values))
                .collect()
        };
        let levels = (0..squeezes).map(level).collect();
        let mut base = init.sub("base");
        let places = h * w * c;
        let base = [
            base.param("logits", [places, k], Initial::Normal(0.1)),
            base.param("means", [places, k], Initial::Uniform(1.0)),
            base.param("log_scales", [places, k], Initial::Constant(-1.5)),
        ];
        Ok(Self { config, params, levels, base })
    }

    /// z of bytes x, as whole numbers in f32: (B, H', W', C').
    ///
    /// # Panics
    /// When x is not of the model's shape.
    #[track_caller]
    pub fn encode(&self, x: &Tensor) -> Tensor {
        assert_eq!(x.shape()[1..], self.config.shape, "idf: the shape of an example");
        self.levels.iter().fold(x.cast(DType::F32), |x, level| {
            level.iter().fold(Squeeze.forward(&x).0, |x, shift| shift.order.forward(&shift.moved(&x, 1.0)).0)
        })
    }

    /// The bytes whose [`Self::encode`] is z.
    ///
    /// # Panics
    /// When z is not of the shape that `encode` gives.
    #[track_caller]
    pub fn decode(&self, z: &Tensor) -> Tensor {
        let x = self.levels.iter().rev().fold(z.clone(), |z, level| {
            Squeeze
                .inverse(&level.iter().rev().fold(z, |z, shift| shift.moved(&shift.order.inverse(&z), -1.0)))
        });
        x.cast(DType::U8)
    }

    /// log P(z) (B,).
    fn base_nats(&self, z: &Tensor) -> Tensor {
        let [logits, means, log_scales] = self.base.each_ref().map(Param::get);
        let (batch, places, top) = (z.shape()[0], logits.shape()[0], self.config.levels as f64 - 1.0);
        let z = z.reshape([batch, places, 1]);
        let inverse = (-&log_scales.clamp(LOWEST_LOG_SCALE, f64::MAX)).exp();
        // A turn around is 2 L / (L − 1) here.
        let turn = 2.0 * (top + 1.0) / top;
        let at = &z.affine(2.0 / top, -1.0) - &means;
        let [a, b, c] = [-turn, 0.0, turn].map(|by| {
            let bin = log_mass(&at.affine(1.0, by), &inverse, 1.0 / top);
            bin.reshape([bin.shape(), &[1]].concat())
        });
        let bin = logsumexp(&shape::concat(&[&a, &b, &c], 3));
        let whole = log_mass(&-&means, &inverse, 1.5 * turn);
        logsumexp(&(&(&bin - &whole) + &log_softmax(&logits))).sum_examples()
    }
}

/// ln of the mass of a logistic distribution with scale 1 / `inverse` within `half` of `centred`, as seen from its mean:
/// ln σ(upper edge) + ln(1 − σ(lower edge)) + ln(1 − e^−width).
fn log_mass(centred: &Tensor, inverse: &Tensor, half: f64) -> Tensor {
    let edge = |at: f64| &centred.affine(1.0, at) * inverse;
    let width = inverse.affine(-2.0 * half, 0.0).exp().affine(-1.0, 1.0).ln();
    &width - &(&(-&edge(half)).softplus() + &edge(-half).softplus())
}

impl Model for Idf {
    fn config(&self) -> serde_json::Value {
        serde_json::to_value(&self.config).expect("a configuration is plain data")
    }

    fn input(&self) -> Input {
        Input {
            shape: self.config.shape.to_vec(),
            dtypes: &[DType::U8],
            levels: self.config.levels,
            ..Input::default()
        }
    }

    fn params(&self) -> &ParamStore {
        &self.params
    }

    /// The components of each place to the quantiles of what the couplings, at first the identity, give there: a
    /// wide base learns more slowly than the couplings spread the values over it.
    fn init_from(&self, train: &Dataset, batch: &Batch, _rng: &mut Philox) {
        let rows: Vec<usize> =
            (0..ROWS.min(train.len())).map(|i| i * train.len() / ROWS.min(train.len())).collect();
        let z = self.encode(&Batch::new(train.select(&rows).values).x.beside(&batch.x));
        let ([places, k], n, top) = (self.base[0].get().dims(), rows.len(), self.config.levels as f64 - 1.0);
        let z = z.to_f64_vec();
        let (mut means, mut log_scales) = (Vec::new(), Vec::new());
        for place in 0..places {
            let mut values: Vec<f64> = z[place..].iter().step_by(places).copied().collect();
            values.sort_unstable_by(f64::total_cmp);
            let quantile = |of: f64| values[((of * n as f64) as usize).min(n - 1)] * 2.0 / top - 1.0;
            for i in 0..k {
                let [low, middle, high] = [0.0, 0.5, 1.0].map(|at| quantile((i as f64 + at) / k as f64));
                means.push(middle);
                log_scales.push(((high - low) / 4.0).max(1.0 / top).ln());
            }
        }
        let [logits, old_means, old_scales] = &self.base;
        logits.set(&logits.get().detach().affine(0.0, 0.0));
        for (param, values) in [(old_means, means), (old_scales, log_scales)] {
            param.set(&Tensor::from_slice(&values, [places, k]).cast(param.get().dtype()));
        }
    }

    fn log_prob(&self, batch: &Batch, _rng: &mut Philox) -> LogProb {
        LogProb { nats: self.base_nats(&self.encode(&batch.x)), kind: Kind::Exact, per_position: None }
    }

    fn sample(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor> {
        options.check("idf", 0)?;
        let [logits, means, log_scales] = self.base.each_ref().map(|p| p.get().detach());
        let ([places, k], top) = (logits.dims(), self.config.levels as f64 - 1.0);
        let all = |t: &Tensor| t.reshape([1, places, k]).broadcast_to([n, places, k]);
        let chosen = rng.categorical(&all(&logits.affine(1.0 / options.temperature, 0.0)));
        let scale = pick(&all(&log_scales.clamp(LOWEST_LOG_SCALE, f64::MAX)), &chosen)
            .exp()
            .affine(options.temperature, 0.0);
        let mean = pick(&all(&means), &chosen);
        // Within the three turns.
        let reach = 3.0 * (top + 1.0) / top;
        let edge = |at: f64| (&mean.affine(-1.0, at) / &scale).sigmoid();
        let (low, high) = (edge(-reach), edge(reach));
        let u = &low + &(&(&high - &low) * &rng.uniform_open([n, places], DType::F32));
        let u = u.clamp(1e-7, 1.0 - 1e-7);
        let value = &mean + &(&scale * &(&u.ln() - &u.affine(-1.0, 1.0).ln()));
        let levels = top + 1.0;
        let whole = straight_through(
            &value.affine(top / 2.0, top / 2.0),
            |v| v.round().rem_euclid(levels as f32),
            |x| wrapped(&rounded(x), levels),
        );
        let Config { shape: [h, w, c], squeezes: s, .. } = self.config;
        Ok(autograd::no_grad(|| self.decode(&whole.reshape([n, h >> s, w >> s, c << (2 * s)]))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_whatever_the_weights() {
        let config =
            Config { shape: [8, 4, 3], levels: 256, squeezes: 2, depth: 3, hidden: 8, components: 2 };
        let mut rng = Philox::new(1);
        let model = Idf::new(config, DType::F32, &mut rng).expect("a valid configuration");
        for (_, p) in model.params().iter() {
            p.set(&rng.normal(p.get().shape(), DType::F32));
        }
        let x = rng.randint(0, 256, [5, 8, 4, 3]).cast(DType::U8);
        let z = model.encode(&x);
        assert!(z.to_f64_vec().iter().all(|v| (0.0..=255.0).contains(v) && v.fract() == 0.0));
        assert_ne!(z.reshape(x.shape()).cast(DType::U8).as_bytes(), x.as_bytes());
        assert_eq!(model.decode(&z).as_bytes(), x.as_bytes());
    }
}
