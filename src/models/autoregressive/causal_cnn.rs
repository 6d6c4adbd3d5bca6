//! Dilated causal convolutions: p(x) = Π p(x_t | x_0 .. x_{t−1}) over tokens or numbers, as WaveNet (van den Oord et al.
//! 2016, arXiv:1609.03499).
//!
//! With C channels, S skip channels and kernels of K taps, for every stack and its dilations 1, K, K², ...:
//! ```text
//! z = tanh(filter(h_t, h_{t−d}, ..)) · σ(gate(h_t, h_{t−d}, ..)),   skip += S(z),   h += R(z)
//! ```
//! and the features are relu(1x1(relu(skip))); the last layer has no R, which nobody would read. h begins as the
//! embedding of the sequence shifted by one step, so that no step sees itself. The last of `layers` dilations
//! reaches K^layers − 1 steps back, per stack. The likelihood is exact, and that of every step is returned; sampling
//! calculates one step at a time from the kept inputs of the layers.

use super::sequence::{Ends, Linear, Point, Steps};
use crate::cpu::gemm::Act;
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::models::{Batch, Input, LogProb, Model, ModelInfo, SampleOptions};
use crate::nn::{Init, ParamStore};
use crate::ops::shape::concat;
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// The registry's line.
pub const INFO: ModelInfo = ModelInfo {
    name: "causal_cnn",
    family: "autoregressive",
    summary: "dilated gated causal convolutions over tokens, bytes or numeric series, as WaveNet (van den Oord et al. 2016)",
    objective: "surprisal, nats",
    reproduce: "surprisal train causal_cnn256 --data input.txt (tinyshakespeare) --stride 64 --set train.steps=400 --set \
                train.lr=2e-3: 2.88 bits per character on the last tenth (benches/results/sequences.md)",
    presets: &[("causal_cnn256", CAUSAL_CNN256), ("causal_cnn_series", SERIES)],
    tiny: &["shape=[4]", "levels=3", "channels=6", "skip=6", "layers=2", "stacks=1"],
    build: |config, rng| {
        let config = serde_json::from_value(config.clone())
            .map_err(|e| Error::new(ErrorKind::Usage, format!("causal_cnn: {e}")))?;
        Ok(Box::new(CausalCnn::new(config, DType::F32, rng)?))
    },
};

const CAUSAL_CNN256: &str = "
shape = [256]
levels = 256
components = 0
channels = 96
skip = 192
kernel = 2
layers = 6
stacks = 2
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
channels = 48
skip = 96
kernel = 2
layers = 5
stacks = 1
[train]
batch = 32
clip = 1.0
schedule.curve = \"cosine\"
schedule.warmup = 50
";

/// The most parameters that a configuration may ask for.
const MAX_PARAMS: usize = 1 << 28;

/// What a [`CausalCnn`] is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[T]` tokens or `[T, D]` numbers.
    pub shape: Vec<usize>,
    /// Tokens are in 0..levels, at most 65536; 0 for numbers.
    pub levels: usize,
    /// Normal components per number; 0 for tokens.
    pub components: usize,
    /// Channels of the residual stream.
    pub channels: usize,
    /// Channels of the sum that all layers add to.
    pub skip: usize,
    /// Taps of a convolution.
    pub kernel: usize,
    /// Layers per stack: the dilations are 1, kernel, kernel², ...
    pub layers: usize,
    /// How often the dilations start again.
    pub stacks: usize,
}

impl Config {
    fn steps(&self) -> Steps {
        Steps { shape: self.shape.clone(), levels: self.levels, components: self.components }
    }

    fn check(&self) -> Result<()> {
        let Self { channels: c, skip, kernel, layers, stacks, .. } = *self;
        let fail = |what: String| Err(Error::new(ErrorKind::Usage, format!("causal_cnn: {what}")));
        self.steps().check("causal_cnn")?;
        for (name, n, most) in [
            ("channels", c, 1 << 14),
            ("skip", skip, 1 << 14),
            ("layers", layers, 20),
            ("stacks", stacks, 64),
        ] {
            if !(1..=most).contains(&n) {
                return fail(format!("{name} = {n}; expected 1..={most}"));
            }
        }
        if !(2..=16).contains(&kernel) {
            return fail(format!("kernel = {kernel}; expected 2..=16"));
        }
        let block = (2 * kernel + 1) * c * c + c * skip + 3 * c + skip;
        if layers * stacks * block + skip * skip + self.steps().params(c.max(skip)) > MAX_PARAMS {
            return fail(format!("{self:?} asks for more than {MAX_PARAMS} parameters"));
        }
        Ok(())
    }

    /// The dilations of all layers; one that reaches behind the first step is cut to the length.
    fn dilations(&self) -> Vec<usize> {
        let of = |i: usize| self.kernel.saturating_pow(i as u32).min(self.shape[0]);
        (0..self.stacks).flat_map(|_| (0..self.layers).map(of)).collect()
    }
}

struct Layer {
    dilation: usize,
    filter: Linear,
    gate: Linear,
    /// Of all layers but the last.
    residual: Option<Linear>,
    skip: Linear,
}

/// The model; see the module's description.
pub struct CausalCnn {
    config: Config,
    store: ParamStore,
    ends: Ends,
    /// Widens the embedding, which has as many channels as the features, to the stream.
    stem: Linear,
    layers: Vec<Layer>,
    top: Linear,
}

impl CausalCnn {
    /// A model with fresh parameters in `dtype`.
    ///
    /// # Errors
    /// When the configuration is impossible.
    pub fn new(config: Config, dtype: DType, rng: &mut Philox) -> Result<Self> {
        config.check()?;
        let Config { channels: c, skip: s, kernel, .. } = config;
        let mut store = ParamStore::default();
        let mut init = Init::new(&mut store, rng, dtype);
        let ends = Ends::new(config.steps(), s, &mut init);
        let stem = Linear::new(&mut init, "stem", [s, c], 1.0);
        let dilations = config.dilations();
        let last = dilations.len() - 1;
        let layer = |(i, dilation): (usize, usize)| {
            let mut init = init.sub(format_args!("layers.{i}"));
            Layer {
                dilation,
                filter: Linear::new(&mut init, "filter", [kernel * c, c], 1.0),
                gate: Linear::new(&mut init, "gate", [kernel * c, c], 1.0),
                residual: (i < last).then(|| Linear::new(&mut init, "residual", [c, c], 1.0)),
                skip: Linear::new(&mut init, "skip", [c, s], 1.0),
            }
        };
        let layers = dilations.into_iter().enumerate().map(layer).collect();
        let top = Linear::new(&mut init, "top", [s, s], 1.0);
        Ok(Self { config, store, ends, stem, layers, top })
    }

    /// The features (B, T, S) of every step of x given the steps before it.
    fn features(&self, x: &Tensor) -> Tensor {
        let (time, kernel) = (self.config.shape[0], self.config.kernel);
        let mut h = self.stem.run(&self.ends.embed(x), Act::None);
        let mut sum: Option<Tensor> = None;
        for layer in &self.layers {
            let taps: Vec<Tensor> = (0..kernel).map(|tap| delayed(&h, tap * layer.dilation, time)).collect();
            let seen = concat(&taps.iter().collect::<Vec<_>>(), 2);
            let z = &layer.filter.run(&seen, Act::Tanh) * &layer.gate.run(&seen, Act::Sigmoid);
            let skip = layer.skip.run(&z, Act::None);
            sum = Some(sum.map_or_else(|| skip.clone(), |sum| &sum + &skip));
            if let Some(residual) = &layer.residual {
                h = &h + &residual.run(&z, Act::None);
            }
        }
        let sum = sum.expect("there is at least one layer");
        self.top.run(&sum.relu(), Act::Relu)
    }
}

/// h (B, T, C) moved to later steps by `steps`, with zeros in front.
fn delayed(h: &Tensor, steps: usize, time: usize) -> Tensor {
    match steps {
        0 => h.clone(),
        _ if steps >= time => Tensor::zeros(h.shape(), h.dtype()),
        _ => h.narrow(1, 0, time - steps).pad(1, steps, 0),
    }
}

impl Model for CausalCnn {
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
        options.check("causal_cnn", 0)?;
        let drawn = self.store.on_host(|| {
            let points = Points::new(self);
            self.ends.draw(n, options.temperature, rng, &|rows| {
                let mut walk = Walk::new(&points, rows);
                Box::new(move |t, h| walk.step(t, h))
            })
        })?;
        Ok(drawn.placed())
    }

    fn init_from(&self, train: &Dataset, _batch: &Batch, _rng: &mut Philox) {
        self.ends.fit(train);
    }
}

/// A layer for evaluation step by step.
struct PointLayer {
    dilation: usize,
    filter: Point,
    gate: Point,
    residual: Option<Point>,
    skip: Point,
}

/// The model for evaluation step by step.
struct Points {
    config: Config,
    stem: Point,
    layers: Vec<PointLayer>,
    top: Point,
}

impl Points {
    fn new(model: &CausalCnn) -> Self {
        let layer = |l: &Layer| PointLayer {
            dilation: l.dilation,
            filter: l.filter.point(),
            gate: l.gate.point(),
            residual: l.residual.as_ref().map(Linear::point),
            skip: l.skip.point(),
        };
        Self {
            config: model.config.clone(),
            stem: model.stem.point(),
            layers: model.layers.iter().map(layer).collect(),
            top: model.top.point(),
        }
    }
}

/// A walk along `rows` sequences.
struct Walk<'a> {
    points: &'a Points,
    rows: usize,
    /// Inputs (step, row, C) of every layer; of each only as many steps as its taps reach back, round and round.
    known: Vec<Vec<f32>>,
}

impl<'a> Walk<'a> {
    fn new(points: &'a Points, rows: usize) -> Self {
        let Config { channels: c, kernel, .. } = points.config;
        let known =
            points.layers.iter().map(|l| vec![0.0; (l.dilation * (kernel - 1) + 1) * rows * c]).collect();
        Self { points, rows, known }
    }

    /// Turns the embeddings (rows, S) of step `t` into its features.
    fn step(&mut self, t: usize, features: &mut [f32]) {
        let Self { points, rows, known } = self;
        let Config { channels: c, skip, kernel, .. } = points.config;
        let n = *rows * c;
        let mut h = vec![0.0; n];
        points.stem.apply(features, None, Act::None, &mut h);
        let (mut seen, mut z, mut gate) = (vec![0.0; n * kernel], vec![0.0; n], vec![0.0; n]);
        let (mut sum, mut before) = (vec![0.0; *rows * skip], vec![0.0; *rows * skip]);
        for (layer, known) in points.layers.iter().zip(known) {
            let steps = known.len() / n;
            known[t % steps * n..][..n].copy_from_slice(&h);
            for tap in 0..kernel {
                let back = tap * layer.dilation;
                let from = (back <= t).then(|| &known[(t - back) % steps * n..][..n]);
                for row in 0..*rows {
                    let to = &mut seen[(row * kernel + tap) * c..][..c];
                    match from {
                        Some(from) => to.copy_from_slice(&from[row * c..][..c]),
                        None => to.fill(0.0),
                    }
                }
            }
            layer.filter.apply(&seen, None, Act::Tanh, &mut z);
            layer.gate.apply(&seen, None, Act::Sigmoid, &mut gate);
            z.iter_mut().zip(&gate).for_each(|(z, g)| *z *= g);
            before.copy_from_slice(&sum);
            layer.skip.apply(&z, Some(&before), Act::None, &mut sum);
            if let Some(residual) = &layer.residual {
                gate.copy_from_slice(&h);
                residual.apply(&z, Some(&gate), Act::None, &mut h);
            }
        }
        sum.iter_mut().for_each(|x| *x = x.max(0.0));
        points.top.apply(&sum, None, Act::Relu, features);
    }
}

#[cfg(test)]
mod tests {
    use super::super::sequence::walk_error;
    use super::*;
    use crate::autograd;

    fn small(shape: &[usize], kernel: usize) -> Config {
        let (levels, components) = if shape.len() == 1 { (7, 0) } else { (0, 3) };
        Config {
            shape: shape.to_vec(),
            levels,
            components,
            channels: 6,
            skip: 8,
            kernel,
            layers: 3,
            stacks: 2,
        }
    }

    #[test]
    fn a_walk_sees_the_features_of_the_whole_pass() {
        for (shape, kernel) in [(&[23][..], 2), (&[20], 3), (&[9, 2], 2), (&[1], 2)] {
            let mut rng = Philox::new(5);
            let model = CausalCnn::new(small(shape, kernel), DType::F32, &mut rng).unwrap();
            let sizes = [&[3], shape].concat();
            let x = match shape.len() {
                1 => rng.randint(0, 7, &sizes).cast(DType::U8),
                _ => rng.normal(&sizes, DType::F32),
            };
            let features = autograd::no_grad(|| model.features(&x));
            let points = Points::new(&model);
            let mut walk = Walk::new(&points, 3);
            let error = walk_error(&model.ends, &x, &features, |t, h| walk.step(t, h));
            assert!(error < 2e-5, "{shape:?} kernel {kernel}: features differ by {error}");
        }
    }

    #[test]
    fn impossible_configurations_are_named() {
        let good = small(&[9], 2);
        assert!(good.check().is_ok());
        for (bad, what) in [
            (Config { shape: vec![1, 2, 3], ..good.clone() }, "shape"),
            (Config { levels: 65_537, ..good.clone() }, "levels"),
            (Config { kernel: 1, ..good.clone() }, "kernel"),
            (Config { layers: 0, ..good.clone() }, "layers"),
            (Config { skip: usize::MAX, ..good.clone() }, "skip"),
            (Config { channels: 1 << 14, ..good.clone() }, "parameters"),
        ] {
            let message = bad.check().unwrap_err().to_string();
            assert!(message.contains(what), "{message}");
        }
    }
}
