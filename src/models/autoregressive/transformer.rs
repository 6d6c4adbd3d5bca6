//! Decoder-only transformer: p(x) = Π p(x_t | x_0 .. x_{t−1}) over tokens or numbers (Vaswani et al. 2017; blocks with
//! the normalisation in front as GPT-2, Radford et al. 2019; rotary positions Su et al. 2021).
//!
//! With C channels, H heads, positions learned (added to the embedding) or rotary (turning queries and keys):
//! ```text
//! h = embedding(x shifted by one step) [+ positions],
//! depth × [ h += out(attention(qkv(norm(h)))),  h += down(gelu(up(norm(h)))) ],  head(norm(h))
//! ```
//! The likelihood is exact, and that of every step is returned. Sampling keeps the keys and values of all steps so far.
//! The preset `transformer256` is the architecture of the usual small character model: 4 blocks, C = 128, H = 4.

use super::sequence::{Ends, Linear, Point, Steps};
use crate::cpu::gemm::Act;
use crate::cpu::simd;
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::models::{Batch, Input, LogProb, Model, ModelInfo, SampleOptions};
use crate::nn::{Init, Initial, Param, ParamStore};
use crate::ops::attention::causal_attention;
use crate::ops::norm::layer_norm;
use crate::ops::rotary::{angles, rotary};
use crate::ops::unary::cdf;
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// The registry's line.
pub const INFO: ModelInfo = ModelInfo {
    name: "transformer",
    family: "autoregressive",
    summary: "decoder-only transformer over tokens, bytes or numeric series (Vaswani et al. 2017)",
    objective: "surprisal, nats",
    reproduce: "surprisal train transformer256 --data input.txt (tinyshakespeare) --stride 64 --set train.steps=1200 --set \
                train.lr=1.5e-3: 2.41 bits per character on the last tenth (benches/results/sequences.md)",
    presets: &[("transformer256", TRANSFORMER256), ("transformer_series", SERIES)],
    tiny: &["shape=[4]", "levels=3", "channels=8", "depth=1", "heads=2", "hidden=8"],
    build: |config, rng| {
        let config = serde_json::from_value(config.clone())
            .map_err(|e| Error::new(ErrorKind::Usage, format!("transformer: {e}")))?;
        Ok(Box::new(Transformer::new(config, DType::F32, rng)?))
    },
};

const TRANSFORMER256: &str = "
shape = [256]
levels = 256
components = 0
channels = 128
depth = 4
heads = 4
hidden = 512
positions = \"learned\"
[train]
batch = 16
clip = 1.0
schedule.curve = \"cosine\"
schedule.warmup = 100
";

const SERIES: &str = "
shape = [64, 1]
levels = 0
components = 8
channels = 64
depth = 3
heads = 4
hidden = 256
positions = \"rotary\"
[train]
batch = 32
clip = 1.0
schedule.curve = \"cosine\"
schedule.warmup = 50
";

/// Of the variance in a normalisation.
const EPS: f64 = 1e-5;
/// The base of rotary angles.
const BASE: f64 = 1e4;
/// The most parameters that a configuration may ask for.
const MAX_PARAMS: usize = 1 << 28;

/// How a step's position is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// A vector per position is learned.
    Learned,
    /// Queries and keys are turned.
    Rotary,
}

/// What a [`Transformer`] is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[T]` tokens or `[T, D]` numbers.
    pub shape: Vec<usize>,
    /// Tokens are in 0..levels, at most 65536; 0 for numbers.
    pub levels: usize,
    /// Normal components per number; 0 for tokens.
    pub components: usize,
    /// Width of the residual stream.
    pub channels: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads; their width is even with rotary positions.
    pub heads: usize,
    /// Width inside the feed-forward part.
    pub hidden: usize,
    /// How positions are told.
    pub positions: Positions,
}

impl Config {
    fn steps(&self) -> Steps {
        Steps { shape: self.shape.clone(), levels: self.levels, components: self.components }
    }

    fn check(&self) -> Result<()> {
        let Self { channels: c, depth, heads, hidden, positions, .. } = *self;
        let fail = |what: String| Err(Error::new(ErrorKind::Usage, format!("transformer: {what}")));
        self.steps().check("transformer")?;
        let unit = if positions == Positions::Rotary { 2 } else { 1 };
        if heads == 0 || c == 0 || c > 1 << 14 || c % heads != 0 || (c / heads) % unit != 0 {
            return fail(format!(
                "channels = {c}, heads = {heads}; expected channels up to 16384, a multiple of {unit} x heads"
            ));
        }
        if hidden == 0 || hidden > 1 << 16 {
            return fail(format!("hidden = {hidden}; expected 1..=65536"));
        }
        let block = 4 * c * c + 2 * c * hidden + hidden + 9 * c;
        if depth > 1024 || depth * block + self.steps().params(c) + self.shape[0] * c > MAX_PARAMS {
            return fail(format!("{self:?} asks for more than {MAX_PARAMS} parameters"));
        }
        Ok(())
    }
}

/// Scale and shift of a normalisation.
struct Norm([Param; 2]);

impl Norm {
    fn new(init: &mut Init, name: &str, channels: usize) -> Self {
        let mut init = init.sub(name);
        let weight = init.param("weight", [channels], Initial::Constant(1.0));
        Self([weight, init.param("bias", [channels], Initial::Zeros)])
    }

    fn run(&self, x: &Tensor) -> Tensor {
        layer_norm(x, &self.0[0].get(), &self.0[1].get(), EPS)
    }

    fn point(&self) -> [Tensor; 2] {
        self.0.each_ref().map(|p| p.get().detach().cast(DType::F32))
    }
}

struct Block {
    norms: [Norm; 2],
    qkv: Linear,
    out: Linear,
    up: Linear,
    down: Linear,
}

/// The model; see the module's description.
pub struct Transformer {
    config: Config,
    store: ParamStore,
    ends: Ends,
    /// (T, C).
    positions: Option<Param>,
    blocks: Vec<Block>,
    norm: Norm,
}

impl Transformer {
    /// A model with fresh parameters in `dtype`.
    ///
    /// # Errors
    /// When the configuration is impossible.
    pub fn new(config: Config, dtype: DType, rng: &mut Philox) -> Result<Self> {
        config.check()?;
        let Config { channels: c, depth, hidden, .. } = config;
        let mut store = ParamStore::default();
        let mut init = Init::new(&mut store, rng, dtype);
        let ends = Ends::new(config.steps(), c, &mut init);
        let learned = config.positions == Positions::Learned;
        let positions = learned.then(|| init.param("positions", [config.shape[0], c], Initial::Normal(0.02)));
        // What is added to the stream starts small enough that its variance does not grow with depth.
        let small = 1.0 / (2.0 * depth.max(1) as f64).sqrt();
        let blocks = (0..depth)
            .map(|i| {
                let mut init = init.sub(format_args!("blocks.{i}"));
                Block {
                    norms: [Norm::new(&mut init, "norm1", c), Norm::new(&mut init, "norm2", c)],
                    qkv: Linear::new(&mut init, "qkv", [c, 3 * c], 1.0),
                    out: Linear::new(&mut init, "out", [c, c], small),
                    up: Linear::new(&mut init, "up", [c, hidden], 1.0),
                    down: Linear::new(&mut init, "down", [hidden, c], small),
                }
            })
            .collect();
        let norm = Norm::new(&mut init, "norm", c);
        Ok(Self { config, store, ends, positions, blocks, norm })
    }

    /// The features (B, T, C) of every step of x given the steps before it.
    fn features(&self, x: &Tensor) -> Tensor {
        let Config { heads, positions, .. } = self.config;
        let mut h = self.ends.embed(x);
        if let Some(table) = &self.positions {
            h = &h + &table.get();
        }
        for block in &self.blocks {
            let mut qkv = block.qkv.run(&block.norms[0].run(&h), Act::None);
            if positions == Positions::Rotary {
                qkv = rotary(&qkv, heads, BASE, false);
            }
            h = &h + &block.out.run(&causal_attention(&qkv, heads), Act::None);
            let inner = block.up.run(&block.norms[1].run(&h), Act::None).gelu();
            h = &h + &block.down.run(&inner, Act::None);
        }
        self.norm.run(&h)
    }
}

impl Model for Transformer {
    fn config(&self) -> serde_json::Value {
        serde_json::to_value(&self.config).unwrap_or_default()
    }

    fn input(&self) -> Input {
        self.ends.steps().input()
    }

    fn params(&self) -> &ParamStore {
        &self.store
    }

    fn log_prob(&self, batch: &Batch, _rng: &mut Philox) -> LogProb {
        self.ends.log_prob(&self.features(&batch.x), &batch.x)
    }

    fn sample(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor> {
        options.check("transformer", 0)?;
        let drawn = self.store.on_host(|| {
            let points = Points::new(self);
            self.ends.draw(n, options.temperature, rng, &|rows| {
                let (points, mut cache) = (&points, Cache::new(&points.config, rows));
                Box::new(move |t, h| points.step(t, h, &mut cache))
            })
        })?;
        Ok(drawn.placed())
    }

    fn init_from(&self, train: &Dataset, _batch: &Batch, _rng: &mut Philox) {
        self.ends.fit(train);
    }
}

/// A block's parameters for evaluation step by step.
struct PointBlock {
    norms: [[Tensor; 2]; 2],
    qkv: Point,
    out: Point,
    up: Point,
    down: Point,
}

/// The model for evaluation step by step.
struct Points {
    config: Config,
    positions: Option<Tensor>,
    blocks: Vec<PointBlock>,
    norm: [Tensor; 2],
}

/// Keys and values (row, step, 2 C) of every block, and room for one step.
struct Cache {
    rows: usize,
    known: Vec<Vec<f32>>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    inner: Vec<f32>,
    scores: Vec<f32>,
}

impl Cache {
    fn new(config: &Config, rows: usize) -> Self {
        let (time, c) = (config.shape[0], config.channels);
        Self {
            rows,
            known: vec![vec![0.0; rows * time * 2 * c]; config.depth],
            normed: vec![0.0; rows * c],
            qkv: vec![0.0; rows * 3 * c],
            inner: vec![0.0; rows * config.hidden],
            scores: vec![0.0; time],
        }
    }
}

impl Points {
    fn new(model: &Transformer) -> Self {
        let block = |b: &Block| PointBlock {
            norms: b.norms.each_ref().map(Norm::point),
            qkv: b.qkv.point(),
            out: b.out.point(),
            up: b.up.point(),
            down: b.down.point(),
        };
        Self {
            config: model.config.clone(),
            positions: model.positions.as_ref().map(|p| p.get().detach().cast(DType::F32)),
            blocks: model.blocks.iter().map(block).collect(),
            norm: model.norm.point(),
        }
    }

    /// Turns the embeddings h (rows, C) of step `t` into its features.
    fn step(&self, t: usize, h: &mut [f32], cache: &mut Cache) {
        let Config { channels: c, .. } = self.config;
        if let Some(table) = &self.positions {
            let place = &table.as_slice::<f32>()[t * c..][..c];
            h.chunks_exact_mut(c).for_each(|h| h.iter_mut().zip(place).for_each(|(h, p)| *h += p));
        }
        let mut before = h.to_vec();
        for (i, block) in self.blocks.iter().enumerate() {
            normalise(h, &block.norms[0], &mut cache.normed);
            block.qkv.apply(&cache.normed, None, Act::None, &mut cache.qkv);
            self.attend(t, i, cache);
            before.copy_from_slice(h);
            block.out.apply(&cache.normed, Some(&before), Act::None, h);
            normalise(h, &block.norms[1], &mut cache.normed);
            block.up.apply(&cache.normed, None, Act::None, &mut cache.inner);
            simd::vectorize(
                #[inline(always)]
                || cache.inner.iter_mut().for_each(|x| *x *= cdf(*x)),
            );
            before.copy_from_slice(h);
            block.down.apply(&cache.inner, Some(&before), Act::None, h);
        }
        before.copy_from_slice(h);
        normalise(&before, &self.norm, h);
    }

    /// Attention of the queries in `cache.qkv` over steps 0..=t of block `i`, into `cache.normed`.
    fn attend(&self, t: usize, i: usize, cache: &mut Cache) {
        let Config { channels: c, heads, positions, .. } = self.config;
        let (each, time) = (c / heads, self.config.shape[0]);
        let Cache { rows, known, normed, qkv, scores, .. } = cache;
        let scale = 1.0 / (each as f32).sqrt();
        let turns: Vec<(f32, f32)> = match positions {
            Positions::Rotary => angles(t, each, BASE).map(|(c, s)| (c as f32, s as f32)).collect(),
            Positions::Learned => Vec::new(),
        };
        for row in 0..*rows {
            let qkv = &mut qkv[row * 3 * c..][..3 * c];
            for head in qkv[..2 * c].chunks_exact_mut(each) {
                let (a, b) = head.split_at_mut(each / 2);
                for ((a, b), (cos, sin)) in a.iter_mut().zip(b).zip(&turns) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
            let known = &mut known[i][row * time * 2 * c..][..time * 2 * c];
            known[t * 2 * c..][..2 * c].copy_from_slice(&qkv[c..]);
            for head in 0..heads {
                let at = head * each;
                let (q, y) = (&qkv[at..at + each], &mut normed[row * c + at..][..each]);
                simd::vectorize(
                    #[inline(always)]
                    || {
                        let scores = &mut scores[..=t];
                        for (s, kv) in scores.iter_mut().zip(known.chunks_exact(2 * c)) {
                            *s = q.iter().zip(&kv[at..at + each]).map(|(q, k)| q * k).sum::<f32>() * scale;
                        }
                        let top = scores.iter().copied().fold(f32::MIN, f32::max);
                        scores.iter_mut().for_each(|s| *s = crate::cpu::math::exp(*s - top));
                        let share = 1.0 / scores.iter().sum::<f32>();
                        y.fill(0.0);
                        for (s, kv) in scores.iter().zip(known.chunks_exact(2 * c)) {
                            let p = s * share;
                            y.iter_mut().zip(&kv[c + at..][..each]).for_each(|(y, v)| *y = p.mul_add(*v, *y));
                        }
                    },
                );
            }
        }
    }
}

/// Layer normalisation of the rows of `x`.
fn normalise(x: &[f32], [w, b]: &[Tensor; 2], out: &mut [f32]) {
    let (w, b) = (w.as_slice::<f32>(), b.as_slice::<f32>());
    let c = w.len();
    for (x, y) in x.chunks_exact(c).zip(out.chunks_exact_mut(c)) {
        let mean = x.iter().sum::<f32>() / c as f32;
        let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / c as f32;
        let rate = 1.0 / (variance + EPS as f32).sqrt();
        for i in 0..c {
            y[i] = ((x[i] - mean) * rate).mul_add(w[i], b[i]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sequence::walk_error;
    use super::*;
    use crate::autograd;

    fn small(shape: &[usize], positions: Positions) -> Config {
        let (levels, components) = if shape.len() == 1 { (7, 0) } else { (0, 3) };
        Config {
            shape: shape.to_vec(),
            levels,
            components,
            channels: 12,
            depth: 2,
            heads: 3,
            hidden: 10,
            positions,
        }
    }

    #[test]
    fn a_walk_sees_the_features_of_the_whole_pass() {
        for (shape, positions) in [
            (&[9][..], Positions::Learned),
            (&[9], Positions::Rotary),
            (&[5, 2], Positions::Rotary),
            (&[1], Positions::Learned),
        ] {
            let mut rng = Philox::new(5);
            let model = Transformer::new(small(shape, positions), DType::F32, &mut rng).unwrap();
            let sizes = [&[3], shape].concat();
            let x = match shape.len() {
                1 => rng.randint(0, 7, &sizes).cast(DType::U8),
                _ => rng.normal(&sizes, DType::F32),
            };
            let features = autograd::no_grad(|| model.features(&x));
            let (points, mut cache) = (Points::new(&model), Cache::new(&model.config, 3));
            let error = walk_error(&model.ends, &x, &features, |t, h| points.step(t, h, &mut cache));
            assert!(error < 2e-5, "{shape:?} {positions:?}: features differ by {error}");
        }
    }

    #[test]
    fn gradients_are_those_of_the_primitives() {
        for (shape, positions) in [(&[6][..], Positions::Learned), (&[5, 2], Positions::Rotary)] {
            let mut rng = Philox::new(6);
            let model = Transformer::new(small(shape, positions), DType::F64, &mut rng).unwrap();
            let sizes = [&[2], shape].concat();
            let x = match shape.len() {
                1 => rng.randint(0, 7, &sizes).cast(DType::U8),
                _ => rng.normal(&sizes, DType::F64),
            };
            let batch = Batch::new(x);
            let grads = || {
                let leaves: Vec<Tensor> = model.params().trainable().map(|(_, p)| p.get()).collect();
                let nats = model.log_prob(&batch, &mut Philox::new(0)).nats.mean_all();
                autograd::backward(nats, &leaves.iter().collect::<Vec<_>>())
            };
            let error = crate::testing::max_error(&grads(), &autograd::higher_order(grads));
            assert!(error < 1e-10, "{shape:?}: gradients differ by {error:e}");
        }
    }

    #[test]
    fn impossible_configurations_are_named() {
        let good = small(&[9], Positions::Rotary);
        assert!(good.check().is_ok());
        for (bad, what) in [
            (Config { shape: vec![], ..good.clone() }, "shape"),
            (Config { shape: vec![4, 0], ..good.clone() }, "shape"),
            (Config { levels: 1, ..good.clone() }, "levels"),
            (Config { components: 2, ..good.clone() }, "components"),
            (Config { heads: 5, ..good.clone() }, "heads"),
            (Config { heads: 4, ..good.clone() }, "multiple of 2"),
            (Config { hidden: 0, ..good.clone() }, "hidden"),
            (Config { depth: usize::MAX, ..good.clone() }, "parameters"),
            (Config { channels: 12 << 10, hidden: 1 << 15, ..good.clone() }, "parameters"),
        ] {
            let message = bad.check().unwrap_err().to_string();
            assert!(message.contains(what), "{message}");
        }
    }
}
