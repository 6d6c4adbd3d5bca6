//! Kernel density: p(x) = (1/N) Σ_i N(x; x_i, diag(h_i² + b_c²)), a normal at every training row (Parzen 1962),
//! wider where rows are sparse (Breiman, Meisel & Purcell 1977).
//!
//! In standardised columns: h_i = α r_i, where r_i is the distance of row i to its `neighbours`-th neighbour over
//! √D, and α is the number for which the training rows are likeliest, each under the kernels of the others
//! (leave-one-out maximum likelihood, Habbema, Hermans & van den Broek 1974; Duin 1976). b_c is `least`, or with
//! `blur` half the gap between the values of column c (or half its deviation, whichever is less) if that is more,
//! see [`crate::data::grain`]: leave-one-out likelihood alone would shrink the kernels to nothing on columns of few
//! values and on rows that occur twice. r_i is held above a tenth of its median for the same reason.
//!
//! A row that was trained on is judged with its own kernel among the others, so the model is for new rows.
//! The likelihood is exact. Beyond `rows` training rows, a random part of them is taken. Cost: 4 N D flops per row
//! scored, 2 N² D and 13 likelihoods of 500 rows to fit.

use super::gaussian::{Covariance, Gaussians};
use super::kernel::{CHUNK, Widths};
use super::scaling::Scaling;
use crate::data::{Dataset, grain};
use crate::error::{Error, ErrorKind, Result};
use crate::models::{Batch, Input, Kind, LogProb, Model, ModelInfo, SampleOptions};
use crate::nn::{Init, Initial, Param, ParamStore};
use crate::ops::shape::concat;
use crate::ops::softmax::logsumexp;
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// The registry's line.
pub const INFO: ModelInfo = ModelInfo {
    name: "parzen",
    family: "latent",
    summary: "kernel density, a normal at every training row, widths by leave-one-out likelihood (Breiman et al. 1977)",
    objective: "surprisal, nats",
    reproduce: "surprisal adbench FOLDER --models parzen --seeds 3: mean AUROC .843 over 21 tables \
                (benches/results/tables.md); neighbours' distances in PyOD: .830",
    presets: &[("parzen", PARZEN)],
    tiny: &["shape=[2]", "rows=40"],
    build: |config, rng| {
        let config = serde_json::from_value(config.clone())
            .map_err(|e| Error::new(ErrorKind::Usage, format!("parzen: {e}")))?;
        Ok(Box::new(Parzen::new(config, rng)?))
    },
};

const PARZEN: &str = r#"
shape = [21]
rows = 10000
neighbours = 5
least = 0.01
blur = true
"#;

/// What a [`Parzen`] is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The number of columns.
    pub shape: [usize; 1],
    /// The most kernels.
    pub rows: usize,
    /// Which neighbour's distance makes a kernel wide.
    pub neighbours: usize,
    /// The least deviation of a kernel, in standardised units; above 0.
    pub least: f64,
    /// Whether kernels are at least half as wide as the gaps between the values of a column.
    pub blur: bool,
}

impl Config {
    fn check(&self) -> Result<()> {
        let Self { shape: [d], rows, neighbours, least, .. } = *self;
        let rules = [
            ((1..=1 << 14).contains(&d), "shape", "1 to 16384 columns"),
            ((1..=1 << 20).contains(&rows) && rows * d <= 1 << 28, "rows", "1 to 2^20, at most 2^28 numbers"),
            ((1..=1 << 10).contains(&neighbours), "neighbours", "1 to 1024"),
            (least.is_finite() && least > 0.0, "least", "a number above 0"),
        ];
        match rules.iter().find(|(ok, ..)| !ok) {
            Some((_, key, wanted)) => {
                Err(Error::new(ErrorKind::Usage, format!("parzen: {key}: expected {wanted}")))
            }
            None => Ok(()),
        }
    }
}

/// The model; see the module's description.
pub struct Parzen {
    config: Config,
    store: ParamStore,
    scaling: Scaling,
    /// (rows,): 1/N, and 0 for kernels without a row.
    weights: Param,
    kernels: Gaussians,
}

impl Parzen {
    /// A model with kernels at random places, to be fitted by [`Model::solve`].
    ///
    /// # Errors
    /// When the configuration is impossible.
    pub fn new(config: Config, rng: &mut Philox) -> Result<Self> {
        config.check()?;
        let Config { shape: [d], rows, .. } = config;
        let mut store = ParamStore::default();
        let mut init = Init::new(&mut store, rng, DType::F64);
        let scaling = Scaling::new(&mut init, d);
        let weights = init.buffer("weights", [rows], DType::F64, Initial::Constant(1.0 / rows as f64));
        let kernels = Gaussians::new(&mut init, Covariance::Diagonal, rows, d);
        Ok(Self { config, store, scaling, weights, kernels })
    }

    /// ln p (B,) of standardised rows y (B, D).
    fn log_density(&self, y: &Tensor) -> Tensor {
        let ([b, _], log_weights) = (y.dims(), self.weights.get().ln().to_f64_vec());
        let rows = (CHUNK / log_weights.len()).max(1);
        let part = |start: usize| {
            let part = y.narrow(0, start, rows.min(b - start));
            logsumexp(&self.kernels.log_joint(&part, &log_weights))
        };
        let parts: Vec<Tensor> = (0..b).step_by(rows).map(part).collect();
        concat(&parts.iter().collect::<Vec<_>>(), 0)
    }
}

impl Model for Parzen {
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
        let [d] = self.config.shape;
        let x = &batch.x;
        assert!(x.rank() == 2 && x.shape()[1] == d, "parzen: x {:?}; expected (B, {d})", x.shape());
        let nats = self.log_density(&self.scaling.forward(x, DType::F64));
        LogProb { nats: nats.affine(1.0, self.scaling.log_det()), kind: Kind::Exact, per_position: None }
    }

    fn sample(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor> {
        options.check("parzen", 0)?;
        let used = self.weights.get().as_slice::<f64>().iter().filter(|w| **w > 0.0).count();
        let which = rng.randint(0, used as i32, [n]);
        let which: Vec<usize> = which.as_slice::<i32>().iter().map(|&i| i as usize).collect();
        Ok(self.scaling.inverse(&self.kernels.sample(&which, options.temperature, rng)))
    }

    fn solves(&self) -> bool {
        true
    }

    fn solve(&self, train: &Dataset, rng: &mut Philox) -> Result<Option<Vec<f64>>> {
        self.input().check(train)?;
        let Config { shape: [d], rows, neighbours, least, blur } = self.config;
        self.scaling.fit(&train.name, &train.values)?;
        let part = train.select(&rng.permutation(train.len())[..rows.min(train.len())]);
        let y = self.scaling.forward(&part.values, DType::F64);
        let n = part.len();
        let widest = if blur { grain::blur(&train.values, &self.scaling.scales()) } else { vec![0.0; d] };
        let widest: Vec<f64> = widest.into_iter().map(|b| b.max(least)).collect();
        let (widths, nats) = Widths::of(&y, n, neighbours, &widest);
        let filled = |values: &[f64], to: &Param| {
            let mut all = to.get();
            all.make_mut::<f64>()[..values.len()].copy_from_slice(values);
            to.set(&all);
        };
        self.weights.set(&Tensor::zeros([rows], DType::F64));
        filled(&vec![1.0 / n as f64; n], &self.weights);
        filled(y.as_slice::<f64>(), &self.kernels.means);
        filled(&widths.inverse(n), &self.kernels.whiten);
        Ok(Some(vec![-(nats + self.scaling.log_det())]))
    }
}
