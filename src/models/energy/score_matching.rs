//! Score matching on tables: an energy whose slope is that of the log-density, learned without its constant
//! (Hyvärinen 2005).
//!
//! With s = −∇E, E a network that tilts a standard normal in standardised coordinates z:
//! - denoising (Vincent 2011): ½ |σ s(z + σ ε) + ε|², whose minimum is the density smoothed by σ;
//! - sliced (Song et al. 2020): ½ |s|² + vᵀ ∇(vᵀ s), v standard normal, whose minimum is the density itself.
//!
//! Both are differentiated twice, so E runs in primitives. When training ends log Z is estimated by annealed importance
//! sampling: then the kind is an estimate, before it is unnormalised. Samples are the ends of HMC chains.

use super::{Annealing, EnergyNet, NetKind, Partition, rows::Standard};
use crate::autograd;
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::models::{Batch, Input, LogProb, Model, ModelInfo, SampleOptions};
use crate::nn::{Init, ParamStore};
use crate::random::Philox;
use crate::samplers::{self, Base, Method, Run};
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// The registry's line.
pub static INFO: ModelInfo = ModelInfo {
    name: "score_matching",
    family: "energy",
    summary: "energy by denoising or sliced score matching (Vincent 2011; Song et al. 2020)",
    objective: "score matching",
    reproduce: "cargo run --release --example densities -- densities score_matching_table --set train.steps=500: about 4.14, 2.82, \
                3.23 and 4.15 nats held out on rings, moons, pinwheel and checkerboard (benches/results/densities.md)",
    presets: &[("score_matching_table", DENOISING), ("score_matching_sliced", SLICED)],
    tiny: &["shape=[2]", "hidden=[8]", "sample_steps=6"],
    build: |config, rng| {
        let config = Config::deserialize(config)
            .map_err(|e| Error::new(ErrorKind::Usage, format!("score_matching: {e}")))?;
        Ok(Box::new(ScoreMatching::new(config, DType::F32, rng)?))
    },
};

const DENOISING: &str = r#"
shape = [8]
hidden = [128, 128]
kind = "denoising"
sigma = 0.2
sample_steps = 100
annealing = { chains = 256, temperatures = 500, leapfrog = 3 }

[train]
steps = 2000
batch = 256
lr = 2e-3
schedule = { curve = "cosine" }
clip = 5.0
eval_batch = 1024
"#;

const SLICED: &str = r#"
shape = [8]
hidden = [128, 128]
kind = "sliced"
sigma = 0.05
sample_steps = 100
annealing = { chains = 256, temperatures = 500, leapfrog = 3 }

[train]
steps = 2000
batch = 256
lr = 1e-3
schedule = { curve = "cosine" }
clip = 5.0
eval_batch = 1024
"#;

/// Which objective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// Points out the noise in noisy rows.
    Denoising,
    /// Projects on random directions.
    Sliced,
}

/// The complete configuration of a [`ScoreMatching`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// D, the number of columns.
    pub shape: [usize; 1],
    /// Units of the hidden layers.
    pub hidden: Vec<usize>,
    /// Which objective.
    pub kind: Variant,
    /// σ, the noise in standardised units: what denoising points out; for the sliced kind it smooths the data and may
    /// be 0.
    pub sigma: f64,
    /// HMC transitions from noise to a sample.
    pub sample_steps: usize,
    /// How log Z is estimated.
    pub annealing: Annealing,
}

/// The model; see the module's description.
pub struct ScoreMatching {
    config: Config,
    store: ParamStore,
    rows: Standard,
    net: EnergyNet,
    partition: Partition,
    dtype: DType,
}

impl ScoreMatching {
    /// A model with fresh parameters.
    ///
    /// # Errors
    /// When the configuration is impossible.
    pub fn new(config: Config, dtype: DType, rng: &mut Philox) -> Result<Self> {
        EnergyNet::check("score_matching", &config.shape, &[], &config.hidden)?;
        config.annealing.check("score_matching")?;
        let low = if config.kind == Variant::Denoising { f64::MIN_POSITIVE } else { 0.0 };
        let rules = [
            ((low..=10.0).contains(&config.sigma), "sigma", "a number above 0 (sliced: at least 0) up to 10"),
            ((4..=1 << 16).contains(&config.sample_steps), "sample_steps", "4 to 65536"),
        ];
        if let Some((_, key, wanted)) = rules.iter().find(|(ok, ..)| !ok) {
            return Err(Error::new(ErrorKind::Usage, format!("score_matching: {key}: expected {wanted}")));
        }
        let mut store = ParamStore::default();
        let mut init = Init::new(&mut store, rng, dtype);
        let rows = Standard::new(&mut init, config.shape[0], dtype);
        // A constant has no slope to be learned.
        let kind = NetKind { spectral: false, constant: false };
        let net = EnergyNet::new(&mut init, &config.shape, &[], &config.hidden, kind);
        let partition = Partition::new(&mut init);
        Ok(Self { config, store, rows, net, partition, dtype })
    }

    /// log Z and its 95 % interval, once estimated.
    pub fn log_z(&self) -> Option<(f64, [f64; 2])> {
        self.partition.get()
    }

    /// ∂(Σ_b y_b)/∂z, recorded.
    fn slope(y: &Tensor, z: &Tensor) -> Tensor {
        let one = Tensor::ones(y.shape(), y.dtype());
        let found = autograd::grad(&[y], &[&one], &[z], true).remove(0);
        found.unwrap_or_else(|| Tensor::zeros(z.shape(), z.dtype()))
    }
}

impl Model for ScoreMatching {
    fn config(&self) -> serde_json::Value {
        serde_json::to_value(&self.config).expect("a configuration is plain data")
    }

    fn input(&self) -> Input {
        Input { shape: self.config.shape.to_vec(), dtypes: &[DType::F32, DType::F64], ..Input::default() }
    }

    fn params(&self) -> &ParamStore {
        &self.store
    }

    fn log_prob(&self, batch: &Batch, _rng: &mut Philox) -> LogProb {
        let (z, volume) = self.rows.forward(&batch.x);
        let (nats, kind) = self.partition.normalise(&-&self.net.weights().energy(&z));
        LogProb { nats: &nats + &volume, kind, per_position: None }
    }

    fn sample(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor> {
        options.check("score_matching", 0)?;
        let weights = self.net.weights().detached();
        let colder = 1.0 / options.temperature;
        let potential = |z: &Tensor| {
            let (u, g) = weights.gradient(z);
            (u.affine(colder, 0.0), g.affine(colder, 0.0))
        };
        let start = self.net.noise(n, self.dtype, rng);
        let steps = self.config.sample_steps;
        let run = Run { warmup: steps, draws: 4, ..Run::default() };
        let found = samplers::sample(&potential, &start, Method::Hmc { step: 0.2, leapfrog: 5 }, run, rng)
            .map_err(|e| e.at("score_matching: cannot sample"))?;
        let last = found.draws.narrow(0, 3, 1).reshape(start.shape());
        Ok(self.rows.inverse(&last))
    }

    fn objective(&self, batch: &Batch, rng: &mut Philox) -> Tensor {
        self.partition.forget();
        let (z, _) = self.rows.forward(&batch.x);
        let noise = rng.normal(z.shape(), self.dtype);
        let sigma = self.config.sigma;
        let z = (&z + &noise.affine(sigma, 0.0)).detach().requires_grad();
        autograd::higher_order(|| {
            let score = -&Self::slope(&self.net.weights().energy(&z), &z);
            match self.config.kind {
                Variant::Denoising => {
                    (&score.affine(sigma, 0.0) + &noise).square().sum(&[1]).affine(0.5, 0.0)
                }
                Variant::Sliced => {
                    let v = rng.normal(z.shape(), self.dtype);
                    let along = (&score * &v).sum(&[1]);
                    let curvature = (&Self::slope(&along, &z) * &v).sum(&[1]);
                    &score.square().sum(&[1]).affine(0.5, 0.0) + &curvature
                }
            }
        })
    }

    fn init_from(&self, train: &Dataset, _batch: &Batch, _rng: &mut Philox) {
        self.rows.fit(train);
    }

    fn finish(&self, rng: &mut Philox) -> Result<()> {
        let weights = self.net.weights().detached();
        let potential = |z: &Tensor| weights.gradient(z);
        let shape = (&self.config.shape[..], self.dtype);
        self.partition.estimate(&potential, Base::Normal, shape, self.config.annealing, rng)
    }
}
