//! Residual flows on tables (Behrmann et al. 2019; Chen, Behrmann, Duvenaud & Jacobsen 2019).
//!
//! `layers` times: an actnorm that starts from the data, then y = x + g(x) with a contraction g ([`Residual`]); every
//! column depends on every other. Up to [`EXACT`] columns the log-determinant is exact; above, it is estimated without
//! bias by the power series with Russian roulette, and log p(x) is an unbiased estimate. Standardisation, noise and the
//! base are those of the flows on tables. Samples take a fixed-point iteration per layer.

use super::table::{Rows, Sizes};
use crate::autograd;
use crate::bijections::{Actnorm, Bijection, Residual};
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::models::{Batch, Input, Kind, LogProb, Model, ModelInfo, SampleOptions};
use crate::nn::{Init, ParamStore};
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// The registry's line.
pub static RESIDUAL_FLOW: ModelInfo = ModelInfo {
    name: "residual_flow",
    family: "flow",
    summary: "residual flow on tables, exact up to 16 columns, else an unbiased estimate (Chen et al. 2019)",
    objective: "surprisal of the rows with training noise, nats",
    reproduce: "cargo run --release --example densities -- densities residual_table --set train.steps=500: 3.97, 2.50, 2.50 and \
                3.85 nats held out on rings, moons, pinwheel and checkerboard (benches/results/densities.md)",
    presets: &[("residual_table", TABLE)],
    tiny: &["shape=[2]", "layers=2", "hidden=[8]"],
    build: |config, rng| {
        let config = serde_json::from_value(config.clone()).map_err(|e| wrong(e.to_string()))?;
        Ok(Box::new(ResidualFlow::new(config, DType::F32, rng)?))
    },
};

/// The most columns whose log-determinant is exact.
pub const EXACT: usize = 16;

const TABLE: &str = r#"
shape = [8]
layers = 8
hidden = [64, 64]
lipschitz = 0.97
noise = 0.1

[train]
steps = 1500
batch = 256
lr = 5e-3
schedule = { curve = "cosine" }
patience = 40
clip = 5.0
eval_batch = 1024
"#;

fn wrong(what: String) -> Error {
    Error::new(ErrorKind::Usage, format!("residual_flow: {what}"))
}

/// The complete configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// D, the number of columns.
    pub shape: [usize; 1],
    /// Residual layers.
    pub layers: usize,
    /// Units of the hidden layers of each g.
    pub hidden: Vec<usize>,
    /// The largest Lipschitz constant of a g, below 1.
    pub lipschitz: f64,
    /// Deviation of the training noise, in standardised units.
    pub noise: f64,
}

struct ResidualFlow {
    config: Config,
    params: ParamStore,
    rows: Rows,
    layers: Vec<(Actnorm, Residual)>,
}

impl ResidualFlow {
    fn new(config: Config, dtype: DType, rng: &mut Philox) -> Result<Self> {
        let Config { shape: [columns], layers, ref hidden, noise, lipschitz } = config;
        let sizes = Sizes { model: "residual_flow", columns, layers, hidden, per: 1, noise };
        sizes.check()?;
        if !(lipschitz > 0.0 && lipschitz < 1.0) {
            return Err(wrong(format!("lipschitz = {lipschitz}; expected a number between 0 and 1")));
        }
        let mut params = ParamStore::default();
        let mut init = Init::new(&mut params, rng, dtype);
        let rows = Rows::new(&mut init, &sizes, dtype);
        let layer = |k| {
            let mut init = init.sub(format_args!("layers.{k}"));
            let norm = Actnorm::new(&mut init.sub("norm"), columns);
            (norm, Residual::new(&mut init, columns, hidden, lipschitz))
        };
        let layers = (0..layers).map(layer).collect();
        Ok(Self { config, params, rows, layers })
    }

    fn exact(&self) -> bool {
        self.config.shape[0] <= EXACT
    }

    fn nats(&self, z: Tensor, rng: &mut Philox) -> Tensor {
        let (mut z, mut total) = (z.clone(), Tensor::zeros([z.shape()[0]], z.dtype()));
        for (norm, residual) in &self.layers {
            let (y, scaled) = norm.forward(&z);
            let (y, logdet) =
                if self.exact() { residual.forward(&y) } else { residual.forward_estimated(&y, rng) };
            z = y;
            total = &total + &(&scaled + &logdet);
        }
        self.rows.nats(&z, &total)
    }
}

impl Model for ResidualFlow {
    fn config(&self) -> serde_json::Value {
        serde_json::to_value(&self.config).expect("a configuration is plain data")
    }

    fn input(&self) -> Input {
        self.rows.input()
    }

    fn params(&self) -> &ParamStore {
        &self.params
    }

    fn log_prob(&self, batch: &Batch, rng: &mut Philox) -> LogProb {
        let kind = if self.exact() { Kind::Exact } else { Kind::Estimate };
        LogProb { nats: self.nats(self.rows.standardised(&batch.x), rng), kind, per_position: None }
    }

    fn objective(&self, batch: &Batch, rng: &mut Philox) -> Tensor {
        -&self.nats(self.rows.noisy(&batch.x, rng), rng)
    }

    fn sample(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor> {
        options.check("residual_flow", 0)?;
        let z = self.rows.latents(n, options.temperature, rng);
        let back = |z: Tensor, (norm, residual): &(Actnorm, Residual)| norm.inverse(&residual.inverse(&z));
        Ok(autograd::no_grad(|| self.rows.restored(&self.layers.iter().rev().fold(z, back))))
    }

    fn init_from(&self, train: &Dataset, batch: &Batch, rng: &mut Philox) {
        self.rows.fit(train);
        let z = self.rows.start(&batch.x, rng);
        self.layers.iter().fold(z, |z, (norm, residual)| residual.init_from(&norm.init_from(&z)));
    }
}
