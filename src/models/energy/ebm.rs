//! Energy-based model trained by persistent contrastive divergence with Langevin dynamics (Hinton 2002; Tieleman 2008;
//! Du & Mordatch 2019, "Implicit generation and modeling with energy-based models").
//!
//! log p(x) = −E(x') − log Z + log |det|, in nats; x' are bytes dequantised to [0, 1], or standardised rows. With x⁻ the
//! ends of short chains, which start in a saved replay buffer or, with probability `restart`, from noise, training
//! minimises
//!   E(x⁺) − E(x⁻) + α (E(x⁺)² + E(x⁻)²),
//! whose gradient is that of −log p (the α term keeps energies near 0, where their scale is arbitrary).
//!
//! **Kind.** Unnormalised, until `annealing` has estimated log Z at the end of training: then an estimate, whose 95 %
//! interval is saved with the model.
//! **Step size.** Chains without rejection cannot follow structure narrower than a few of their steps: around a well of
//! curvature κ they spread to 1 / (κ (1 − κ step / 2)), at least 2 step. Where the data are narrower, training
//! deepens the well until the chains become unstable at κ = 2 / step, and the density that is left is not that of
//! the chains. `step` has to be small beside the variance of the narrowest structure.
//! **Divergence.** Every 50 steps with finite, bounded energies the weights are remembered. When an energy is not finite
//! or its mean exceeds `limit`, they are brought back and all chains restart from noise; ten times in a row end the
//! training.

use super::{Annealing, EnergyNet, NetKind, Partition, rows::Standard};
use crate::autograd;
use crate::cuda::Replay;
use crate::data::{Dataset, Prepare, Transform};
use crate::error::{Error, ErrorKind, Result};
use crate::models::{Batch, Input, LogProb, Model, ModelInfo, SampleOptions};
use crate::nn::{Init, Initial, Param, ParamStore};
use crate::ops::langevin::{Langevin, langevin, langevin_put};
use crate::ops::replay_buffer;
use crate::ops::shape;
use crate::random::Philox;
use crate::samplers::Base;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, MutexGuard};

/// The registry's line.
pub static INFO: ModelInfo = ModelInfo {
    name: "ebm",
    family: "energy",
    summary: "energy-based model by persistent contrastive divergence (Du & Mordatch 2019)",
    objective: "contrastive divergence, nats",
    reproduce: "cargo run --release --example densities -- densities ebm_table --set train.steps=500: about 4.15, 3.05, 3.40 and \
                4.33 nats held out on rings, moons, pinwheel and checkerboard (benches/results/densities.md)",
    presets: &[("ebm28", EBM28), ("ebm_table", TABLE)],
    tiny: &["shape=[4, 4, 1]", "channels=[4, 4]", "chain.steps=3", "replay=32", "sample_steps=5"],
    build: |config, rng| {
        let config = serde_json::from_value(config.clone())
            .map_err(|e| Error::new(ErrorKind::Usage, format!("configuration of ebm: {e}")))?;
        Ok(Box::new(Ebm::new(config, DType::F32, rng)?))
    },
};

const EBM28: &str = r#"
shape = [28, 28, 1]
channels = [64, 64, 128, 128]
hidden = []
spectral_norm = false
chain = { steps = 20, step = 10.0, noise = 0.005, clip = 0.03 }
sample_steps = 200
replay = 2048
restart = 0.05
alpha = 0.1
limit = 1e4
annealing = { chains = 32, temperatures = 200, leapfrog = 2 }
prepare = [{ kind = "dequantise" }]

[train]
epochs = 10
batch = 64
lr = 1e-4
betas = [0.0, 0.999]
clip = 1.0
"#;

const TABLE: &str = r#"
shape = [8]
channels = []
hidden = [128, 128]
spectral_norm = false
chain = { steps = 40, step = 0.01, noise = 0.14142, clip = 0.0 }
sample_steps = 500
replay = 4096
restart = 0.05
alpha = 0.001
limit = 1e6
annealing = { chains = 256, temperatures = 500, leapfrog = 3 }
prepare = []

[train]
steps = 1500
batch = 128
lr = 1e-3
betas = [0.0, 0.999]
schedule = { curve = "cosine" }
clip = 5.0
"#;

/// The chains of training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chain {
    /// Langevin steps for each training step.
    pub steps: usize,
    /// Factor on the gradient of the energy.
    pub step: f64,
    /// Deviation of the noise; smaller than √(2 step) is a colder chain, as is usual for images.
    pub noise: f64,
    /// Elements of the gradient are held within ± this; 0 for none.
    pub clip: f64,
}

/// The complete configuration of an [`Ebm`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[H, W, C]` for images, `[D]` for rows.
    pub shape: Vec<usize>,
    /// Channels of the convolutions, for images.
    pub channels: Vec<usize>,
    /// Units of the hidden layers, for rows.
    pub hidden: Vec<usize>,
    /// Whether weights are divided by their largest singular value.
    pub spectral_norm: bool,
    /// The chains of training.
    pub chain: Chain,
    /// Langevin steps from noise to a sample.
    pub sample_steps: usize,
    /// Chains that are kept.
    pub replay: usize,
    /// Probability that a chain restarts from noise.
    pub restart: f64,
    /// α, weight of the squared energies.
    pub alpha: f64,
    /// Mean energies beyond ± this count as diverged.
    pub limit: f64,
    /// How log Z is estimated.
    pub annealing: Annealing,
    /// From bytes to [0, 1], for images.
    pub prepare: Prepare,
}

impl Config {
    fn check(&self) -> Result<()> {
        let fail = |m: String| Err(Error::new(ErrorKind::Usage, format!("configuration of ebm: {m}")));
        EnergyNet::check("ebm", &self.shape, &self.channels, &self.hidden)?;
        self.annealing.check("ebm")?;
        let Chain { steps, step, noise, clip } = self.chain;
        let rules = [
            ((1..=1 << 16).contains(&steps), "chain.steps", "1 to 65536"),
            (step > 0.0 && step.is_finite(), "chain.step", "a number above 0"),
            (noise >= 0.0 && noise.is_finite(), "chain.noise", "a number of at least 0"),
            (clip >= 0.0 && clip.is_finite(), "chain.clip", "a number of at least 0"),
            ((1..=1 << 20).contains(&self.sample_steps), "sample_steps", "1 to 1048576"),
            ((1..=1 << 20).contains(&self.replay), "replay", "1 to 1048576"),
            ((0.0..=1.0).contains(&self.restart), "restart", "a probability"),
            (self.alpha >= 0.0 && self.alpha.is_finite(), "alpha", "a number of at least 0"),
            (self.limit > 0.0, "limit", "a number above 0"),
        ];
        if let Some((_, key, wanted)) = rules.iter().find(|(ok, ..)| !ok) {
            return fail(format!("{key}: expected {wanted}"));
        }
        let numbers = self.shape.iter().try_fold(self.replay, |n, d| n.checked_mul(*d));
        if numbers.is_none_or(|n| n > 1 << 30) {
            return fail(format!(
                "replay keeps {} chains of {:?}; expected at most 2^30 numbers",
                self.replay, self.shape
            ));
        }
        let steps = self.prepare.steps();
        let fits = |t: &Transform| matches!(t, Transform::Dequantise | Transform::Scale { .. });
        if self.shape.len() == 1 && !steps.is_empty() || !steps.iter().all(fits) {
            return fail("prepare: expected dequantise and scale for images, nothing for rows".into());
        }
        Ok(())
    }
}

/// The model; see the module's description.
pub struct Ebm {
    config: Config,
    store: ParamStore,
    net: EnergyNet,
    replay: Param,
    /// For rows.
    rows: Option<Standard>,
    partition: Partition,
    dtype: DType,
    safe: Mutex<Safe>,
    /// A step of the chains that training runs, and the last one.
    chain: Mutex<[Replay; 2]>,
}

/// Weights to come back to.
#[derive(Default)]
struct Safe {
    weights: Vec<Tensor>,
    /// Steps since they were taken.
    age: u64,
    /// Rollbacks so far, and without a good step in between.
    rollbacks: u64,
    in_a_row: u64,
}

/// Good steps between two snapshots of the weights.
const SNAPSHOT: u64 = 50;
/// Rollbacks in a row that end the training.
const PATIENCE: u64 = 10;

impl Ebm {
    /// A model with fresh parameters and chains.
    ///
    /// # Errors
    /// When the configuration is impossible.
    pub fn new(config: Config, dtype: DType, rng: &mut Philox) -> Result<Self> {
        config.check()?;
        let mut store = ParamStore::default();
        let mut noise = rng.fork(1);
        let mut init = Init::new(&mut store, rng, dtype);
        let Config { shape, channels, hidden, spectral_norm, replay, .. } = &config;
        let kind = NetKind { spectral: *spectral_norm, constant: true };
        let net = EnergyNet::new(&mut init, shape, channels, hidden, kind);
        let chains = init.buffer("replay", &[&[*replay], &shape[..]].concat()[..], dtype, Initial::Zeros);
        chains.set(&net.noise(*replay, dtype, &mut noise));
        let rows = (shape.len() == 1).then(|| Standard::new(&mut init, shape[0], dtype));
        let partition = Partition::new(&mut init);
        Ok(Self {
            config,
            store,
            net,
            replay: chains,
            rows,
            partition,
            dtype,
            safe: Mutex::default(),
            chain: Mutex::default(),
        })
    }

    /// The network.
    pub fn net(&self) -> &EnergyNet {
        &self.net
    }

    /// log Z and its 95 % interval, once estimated.
    pub fn log_z(&self) -> Option<(f64, [f64; 2])> {
        self.partition.get()
    }

    /// How often divergence was caught and the weights were brought back.
    pub fn rollbacks(&self) -> u64 {
        self.safe().rollbacks
    }

    fn safe(&self) -> MutexGuard<'_, Safe> {
        self.safe.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// x in model space and the log-determinant (B,).
    fn prepared(&self, x: &Tensor, rng: &mut Philox) -> (Tensor, Tensor) {
        match &self.rows {
            None => self.config.prepare.forward(x, self.dtype, rng),
            Some(rows) => {
                let (z, volume) = rows.forward(x);
                (z, volume.broadcast_to([x.shape()[0]]))
            }
        }
    }

    fn langevin(&self) -> Langevin {
        let Chain { step, noise, clip, .. } = self.config.chain;
        let range = if self.rows.is_none() { [0.0, 1.0] } else { [f64::NEG_INFINITY, f64::INFINITY] };
        Langevin { step, noise, clip: if clip > 0.0 { clip } else { f64::INFINITY }, range }
    }

    /// Ends of chains of `steps` Langevin steps from `x`; on devices one step is recorded and replayed.
    fn chains(
        &self,
        mut x: Tensor,
        steps: usize,
        how: Langevin,
        rng: &mut Philox,
        replay: &mut Replay,
    ) -> Tensor {
        let weights = self.net.weights().detached();
        for _ in 0..steps {
            let inputs: Vec<&Tensor> = std::iter::once(&x).chain(weights.tensors()).collect();
            let moved = replay.run(&inputs, rng, &mut |inputs, rng| {
                let (_, g) = weights.with(&inputs[1..]).gradient(&inputs[0]);
                vec![autograd::no_grad(|| langevin(&inputs[0], &g, how, rng))]
            });
            x = moved.into_iter().next().expect("one output");
        }
        x
    }

    /// `n` chains from the buffer, some of them restarted, moved and put back.
    fn negatives(&self, n: usize, rng: &mut Philox) -> Tensor {
        let (size, buffer) = (self.config.replay, self.replay.get());
        let order = rng.permutation(size);
        let slots = Tensor::from_fn([n], |i| order[i % size] as i32).beside(&buffer);
        let start = replay_buffer::take(&buffer, &slots, self.config.restart, self.net.start(), rng);
        drop(buffer);
        let mut replays = self.chain.lock().unwrap_or_else(|e| e.into_inner());
        let ([step, last], how) = (&mut *replays, self.langevin());
        let moved = self.chains(start, self.config.chain.steps - 1, how, rng, step);
        // Of the rows that share a slot the last one is kept.
        let homes = Tensor::from_fn([n], |i| if i + size < n { -1 } else { order[i % size] as i32 });
        let weights = self.net.weights().detached();
        let inputs: Vec<&Tensor> = [&moved, &homes].into_iter().chain(weights.tensors()).collect();
        let ends = last.run(&inputs, rng, &mut |inputs, rng| {
            let (x, homes) = (&inputs[0], &inputs[1]);
            let (_, g) = weights.with(&inputs[2..]).gradient(x);
            vec![self.replay.update(|buffer| langevin_put(x, &g, how, rng, buffer, homes))]
        });
        ends.into_iter().next().expect("one output")
    }

    /// E(x⁺) and E(x⁻), recorded.
    fn contrast(&self, x: &Tensor, rng: &mut Philox) -> (Tensor, Tensor) {
        let b = x.shape()[0];
        let negatives = self.negatives(b, rng);
        let e = self.net.weights().energy(&shape::concat(&[x, &negatives], 0));
        (e.narrow(0, 0, b), e.narrow(0, b, b))
    }

    /// Whether these energies can be learned from; remembers the weights now and then, or brings them back.
    fn survived(&self, energies: [&Tensor; 2], rng: &mut Philox) -> bool {
        let mut safe = self.safe();
        let good = energies.iter().all(|e| {
            let mean = e.to_f64_vec().iter().sum::<f64>() / e.len() as f64;
            mean.abs() <= self.config.limit
        });
        let params = || self.store.trainable().map(|(_, p)| p);
        if good {
            (safe.age, safe.in_a_row) = (safe.age + 1, 0);
            if safe.weights.is_empty() || safe.age >= SNAPSHOT {
                safe.weights = params().map(|p| p.get().detach()).collect();
                safe.age = 0;
            }
            return true;
        }
        if safe.weights.is_empty() || safe.in_a_row >= PATIENCE {
            return true;
        }
        params().zip(&safe.weights).for_each(|(p, w)| p.set(w));
        (safe.rollbacks, safe.in_a_row) = (safe.rollbacks + 1, safe.in_a_row + 1);
        self.replay.set(&self.net.noise(self.config.replay, self.dtype, rng));
        false
    }
}

impl Model for Ebm {
    fn config(&self) -> serde_json::Value {
        serde_json::to_value(&self.config).expect("a configuration is plain data")
    }

    fn input(&self) -> Input {
        let bytes = self.config.prepare.steps().first() == Some(&Transform::Dequantise);
        let dtypes: &[DType] = if bytes { &[DType::U8] } else { &[DType::F32, DType::F64] };
        Input { shape: self.config.shape.clone(), dtypes, ..Input::default() }
    }

    fn params(&self) -> &ParamStore {
        &self.store
    }

    fn log_prob(&self, batch: &Batch, rng: &mut Philox) -> LogProb {
        let (x, logdet) = self.prepared(&batch.x, rng);
        let (nats, kind) = self.partition.normalise(&-&self.net.weights().energy(&x));
        LogProb { nats: &nats + &logdet, kind, per_position: None }
    }

    fn sample(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor> {
        options.check("ebm", 0)?;
        let how = self.langevin();
        let how = Langevin { noise: how.noise * options.temperature, ..how };
        let start = self.net.noise(n, self.dtype, rng);
        let x = self.chains(start, self.config.sample_steps, how, rng, &mut Replay::new());
        if x.to_f64_vec().iter().any(|x| !x.is_finite()) {
            return Err(Error::new(ErrorKind::NonFinite, "ebm: a chain that samples diverged"));
        }
        Ok(match &self.rows {
            None => self.config.prepare.inverse(&x),
            Some(rows) => rows.inverse(&x),
        })
    }

    fn objective(&self, batch: &Batch, rng: &mut Philox) -> Tensor {
        self.partition.forget();
        self.net.iterate();
        let (x, _) = self.prepared(&batch.x, rng);
        let (mut real, mut made) = self.contrast(&x, rng);
        while !self.survived([&real, &made], rng) {
            (real, made) = self.contrast(&x, rng);
        }
        let squares = &real.square() + &made.square();
        &(&real - &made) + &squares.affine(self.config.alpha, 0.0)
    }

    fn init_from(&self, train: &Dataset, _batch: &Batch, _rng: &mut Philox) {
        if let Some(rows) = &self.rows {
            rows.fit(train);
        }
    }

    fn finish(&self, rng: &mut Philox) -> Result<()> {
        let weights = self.net.weights().detached();
        let base = if self.rows.is_none() { Base::Box { range: [0.0, 1.0] } } else { Base::Normal };
        let shape = (&self.config.shape[..], self.dtype);
        let potential = |x: &Tensor| weights.gradient(x);
        self.partition.estimate(&potential, base, shape, self.config.annealing, rng)
    }
}
