//! Noise-contrastive estimation on tables: an energy that tells data from noise has the density of the data
//! (Gutmann & Hyvärinen 2010, 2012).
//!
//! In the coordinates z in which the Gaussian fit of the training rows is standard normal,
//!   log p(z) = log q(z) − E(z),
//! q the noise: that Gaussian, or a flow of affine couplings that learns the data by its own likelihood meanwhile
//! (Gao et al. 2020, "Flow contrastive estimation of energy-based models"). With ν draws of noise for each row, training
//! minimises the logistic loss of G = −E − ln ν:  softplus(−G(z⁺)) + Σ_ν softplus(G(z⁻)),  and for the flow
//! − log q(z⁺). Its minimum is at the density of the data, normalised by the learned bias of E.
//!
//! **Kind.** An estimate: when training ends, log Z = ln E_q e^{−E} is estimated by importance sampling with a 95 %
//! interval and subtracted. Samples are drawn by importance resampling of the noise.

use super::{EnergyNet, NetKind, Partition, rows::Whitened};
use crate::autograd;
use crate::bijections::{Bijection, Chain, Coupled, Elementwise, Permutation};
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::models::{Batch, Input, Kind, LogProb, Model, ModelInfo, SampleOptions};
use crate::nn::{Init, ParamStore};
use crate::ops::index::gather_rows;
use crate::ops::normal_logp::normal_logp;
use crate::random::Philox;
use crate::samplers::log_mean_interval;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// The registry's line.
pub static INFO: ModelInfo = ModelInfo {
    name: "nce",
    family: "energy",
    summary: "energy learned against Gaussian or flow noise, normalised (Gutmann & Hyvärinen 2010; Gao et al. 2020)",
    objective: "logistic loss of data against noise (and the surprisal of a learned noise), nats",
    reproduce: "cargo run --release --example densities -- densities nce_table --set train.steps=500: about 4.04, 2.84, 3.38 and \
                4.17 nats held out on rings, moons, pinwheel and checkerboard (benches/results/densities.md)",
    presets: &[("nce_table", TABLE), ("nce_flow", FLOW)],
    tiny: &["shape=[2]", "hidden=[8]", "flow=[8]", "proposals=200"],
    build: |config, rng| {
        let config =
            Config::deserialize(config).map_err(|e| Error::new(ErrorKind::Usage, format!("nce: {e}")))?;
        Ok(Box::new(Nce::new(config, DType::F32, rng)?))
    },
};

const TABLE: &str = r#"
shape = [8]
hidden = [128, 128, 128]
noise = "gaussian"
flow = [64]
layers = 4
ratio = 4
proposals = 20000

[train]
steps = 2000
batch = 256
lr = 1e-3
schedule = { curve = "cosine" }
patience = 40
clip = 5.0
eval_batch = 1024
"#;

const FLOW: &str = r#"
shape = [8]
hidden = [128, 128]
noise = "flow"
flow = [64, 64]
layers = 6
ratio = 4
proposals = 20000

[train]
steps = 2000
batch = 256
lr = 1e-3
schedule = { curve = "cosine" }
patience = 40
clip = 5.0
eval_batch = 1024
"#;

/// What data are told from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Noise {
    /// The Gaussian fit of the training rows.
    Gaussian,
    /// A flow that learns beside the energy.
    Flow,
}

/// The complete configuration of an [`Nce`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// D, the number of columns.
    pub shape: [usize; 1],
    /// Units of the energy's hidden layers.
    pub hidden: Vec<usize>,
    /// What data are told from.
    pub noise: Noise,
    /// Units of the hidden layers of the flow's couplings.
    pub flow: Vec<usize>,
    /// The flow's couplings.
    pub layers: usize,
    /// ν, draws of noise for each row.
    pub ratio: usize,
    /// Draws of noise that estimate log Z at the end, and from which samples are picked.
    pub proposals: usize,
}

/// The model; see the module's description.
pub struct Nce {
    config: Config,
    store: ParamStore,
    rows: Whitened,
    net: EnergyNet,
    flow: Chain,
    partition: Partition,
    dtype: DType,
}

impl Nce {
    /// A model with fresh parameters.
    ///
    /// # Errors
    /// When the configuration is impossible.
    pub fn new(config: Config, dtype: DType, rng: &mut Philox) -> Result<Self> {
        let Config { shape: [d], ref hidden, noise, ref flow, layers, ratio, proposals } = config;
        EnergyNet::check("nce", &[d], &[], hidden)?;
        if noise == Noise::Flow {
            EnergyNet::check("nce (flow)", &[d], &[], flow)?;
        }
        let rules = [
            (d <= 4096, "shape", "at most 4096 columns"),
            (noise == Noise::Gaussian || d >= 2, "shape", "at least 2 columns for a flow"),
            ((1..=64).contains(&layers), "layers", "1 to 64"),
            ((1..=256).contains(&ratio), "ratio", "1 to 256"),
            ((100..=1 << 22).contains(&proposals), "proposals", "100 to 4194304"),
        ];
        if let Some((_, key, wanted)) = rules.iter().find(|(ok, ..)| !ok) {
            return Err(Error::new(ErrorKind::Usage, format!("nce: {key}: expected {wanted}")));
        }
        let mut store = ParamStore::default();
        let mut init = Init::new(&mut store, rng, dtype);
        let rows = Whitened::new(&mut init, d, dtype);
        let net = EnergyNet::new(&mut init, &[d], &[], hidden, NetKind { spectral: false, constant: true });
        let mut parts: Vec<Box<dyn Bijection>> = Vec::new();
        for k in 0..if noise == Noise::Flow { layers } else { 0 } {
            let mut init = init.sub(format_args!("noise.{k}"));
            parts.push(Box::new(Coupled::new(&mut init, d, flow, Elementwise::Affine)));
            parts.push(Box::new(Permutation::reverse(d)));
        }
        let partition = Partition::new(&mut init);
        Ok(Self { config, store, rows, net, flow: Chain { parts }, partition, dtype })
    }

    /// log Z = ln E_q e^{−E} and its 95 % interval, once estimated.
    pub fn log_z(&self) -> Option<(f64, [f64; 2])> {
        self.partition.get()
    }

    /// log q (B,) of z (B, D).
    fn log_noise(&self, z: &Tensor) -> Tensor {
        let (u, logdet) = self.flow.forward(z);
        &normal_logp(&u) + &logdet
    }

    fn draw(&self, n: usize, rng: &mut Philox) -> Tensor {
        let u = rng.normal([n, self.config.shape[0]], self.dtype);
        autograd::no_grad(|| self.flow.inverse(&u))
    }

    /// −E(z) (B,): the tilt of the noise.
    fn tilt(&self, z: &Tensor) -> Tensor {
        -&self.net.weights().network(z)
    }

    /// Proposals and their log weights −E.
    fn weighed(&self, rng: &mut Philox) -> (Tensor, Vec<f64>) {
        autograd::no_grad(|| {
            let z = self.draw(self.config.proposals, rng);
            let weights = self.tilt(&z).to_f64_vec();
            (z, weights)
        })
    }
}

impl Model for Nce {
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
        let log_z = self.partition.get().map_or(0.0, |(value, _)| value);
        let nats = (&self.log_noise(&z) + &self.tilt(&z)).affine(1.0, volume - log_z);
        LogProb { nats, kind: Kind::Estimate, per_position: None }
    }

    fn sample(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor> {
        options.check("nce", 0)?;
        let (z, weights) = self.weighed(rng);
        let top = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut cumulated: Vec<f64> = weights
            .iter()
            .scan(0.0, |sum, w| {
                *sum += ((w - top) / options.temperature).exp();
                Some(*sum)
            })
            .collect();
        let total = cumulated.pop().filter(|total| total.is_finite()).ok_or_else(|| {
            Error::new(ErrorKind::NonFinite, "nce: the energy of a proposal is not finite; cannot sample")
        })?;
        let mut uniform = vec![0.0f64; n];
        rng.fill_open(&mut uniform);
        let pick = |u: f64| cumulated.partition_point(|sum| *sum <= u * total) as i32;
        let picked = Tensor::from_fn([n], |i| pick(uniform[i]));
        autograd::no_grad(|| Ok(self.rows.inverse(&gather_rows(&z, &picked))))
    }

    fn objective(&self, batch: &Batch, rng: &mut Philox) -> Tensor {
        self.partition.forget();
        let (z, volume) = self.rows.forward(&batch.x);
        let (b, ratio) = (z.shape()[0], self.config.ratio);
        let noise = self.draw(b * ratio, rng);
        let logit = |z: &Tensor| self.tilt(z).affine(1.0, -(ratio as f64).ln());
        let (real, made) = (logit(&z), logit(&noise));
        let loss = &(-&real).softplus() + &made.softplus().reshape([b, ratio]).sum(&[1]);
        match self.config.noise {
            Noise::Gaussian => loss,
            Noise::Flow => &loss - &self.log_noise(&z).affine(1.0, volume),
        }
    }

    fn init_from(&self, train: &Dataset, _batch: &Batch, _rng: &mut Philox) {
        self.rows.fit(train);
    }

    fn finish(&self, rng: &mut Philox) -> Result<()> {
        let (_, weights) = self.weighed(rng);
        let found = log_mean_interval(&weights, rng)
            .ok_or_else(|| Error::new(ErrorKind::NonFinite, "nce: the energy of the noise is not finite"))?;
        self.partition.set(&found);
        Ok(())
    }
}
