//! What the flows on tables of numbers share: standardisation, a chain of bijections, a normal base.
//!
//! x (D) → z₀ = (x − mean) / scale, with the statistics of the training rows, saved as the buffers `mean`, `scale` and
//! `noise` → z = f(z₀), log p(x) = log N(z; 0, 1) + log |det df/dz₀| − Σ ln scale: exact, in nats of x as given.
//!
//! **Constant columns** have no scale: theirs is 1, so their standardised values are 0, and the training noise (below)
//! gives them a density of finite height. A row that differs there lies `difference / noise` deviations away.
//! **Noise.** With `noise` = σ > 0 the flow is trained on rows with normal noise of σ deviations of each column, so it
//! learns the density of the training rows smoothed by that kernel (Rothfuss et al. 2019, "Noise regularization for
//! conditional density estimation"), and few rows are not learned by heart. Columns whose values lie apart have noise of
//! half a gap where that is more ([`crate::data::grain`]), so they cannot draw the likelihood to infinity. `scale`
//! is the deviation of column and noise together.
//! **Far rows.** z₀ is held within ±10⁵, so that no row has a likelihood of −∞.

use crate::autograd;
use crate::bijections::{Actnorm, BatchNorm, Bijection, Chain, LuLinear, Permutation};
use crate::data::{Dataset, Transform, grain};
use crate::error::{Error, ErrorKind, Result};
use crate::models::statistic::table;
use crate::models::{Batch, Input, Kind, LogProb, Model, SampleOptions, Statistic, Statistics};
use crate::nn::{Init, Initial, Param, ParamStore};
use crate::ops::normal_logp::normal_logp;
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// The largest standardised value.
const FARTHEST: f64 = 1e5;
/// The most parameters that a configuration may ask for.
const MAX_PARAMS: usize = 1 << 28;

/// How the columns change places between layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mixing {
    /// Backwards.
    Reverse,
    /// A fixed random order.
    Permutation,
    /// A fixed random order, then a learned LU-factored matrix.
    Lu,
}

impl Mixing {
    /// The bijections.
    pub(super) fn build(self, init: &mut Init, columns: usize) -> Vec<Box<dyn Bijection>> {
        let random = |init: &Init| Box::new(Permutation::random(init, columns)) as Box<dyn Bijection>;
        match self {
            Self::Reverse => vec![Box::new(Permutation::reverse(columns))],
            Self::Permutation => vec![random(init)],
            Self::Lu => vec![random(init), Box::new(LuLinear::new(&mut init.sub("linear"), columns))],
        }
    }
}

/// What keeps the columns well scaled between layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// Shift and scale that start from the first batch and are trained.
    #[default]
    Actnorm,
    /// Batch normalisation; the model then offers [`Statistic::BatchNorm`].
    BatchNorm,
}

impl Norm {
    /// The bijection.
    pub(super) fn build(self, init: &mut Init, columns: usize) -> Box<dyn Bijection> {
        let mut init = init.sub("norm");
        match self {
            Self::Actnorm => Box::new(Actnorm::new(&mut init, columns)),
            Self::BatchNorm => Box::new(BatchNorm::new(&mut init, columns)),
        }
    }
}

/// The sizes that every flow on tables has.
pub(super) struct Sizes<'a> {
    pub model: &'static str,
    pub columns: usize,
    pub layers: usize,
    pub hidden: &'a [usize],
    /// Numbers that a network gives per column.
    pub per: usize,
    pub noise: f64,
}

impl Sizes<'_> {
    /// Refuses what cannot be built, or would not fit any memory.
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::new(ErrorKind::Usage, format!("{}: {what}", self.model)));
        let Self { columns, layers, hidden, per, noise, .. } = *self;
        if !(1..=1 << 16).contains(&columns) {
            return refuse(format!("shape [{columns}]; expected 1 to 65536 columns"));
        }
        if !(1..=256).contains(&layers) {
            return refuse(format!("layers = {layers}; expected 1 to 256"));
        }
        if hidden.len() > 16 || hidden.iter().any(|h| !(1..=1 << 14).contains(h)) {
            return refuse(format!("hidden = {hidden:?}; expected at most 16 layers of 1 to 16384 units"));
        }
        if !(0.0..=10.0).contains(&noise) {
            return refuse(format!("noise = {noise}; expected 0 to 10 deviations"));
        }
        let sizes: Vec<usize> = [&[columns], hidden, &[columns * per]].concat();
        let each: usize = sizes.windows(2).map(|w| w[0] * w[1]).sum::<usize>() + columns * columns;
        if layers * each > MAX_PARAMS {
            return refuse(format!("asks for more than {MAX_PARAMS} parameters"));
        }
        Ok(())
    }
}

/// Standardisation by the training rows, and the training noise.
pub(super) struct Rows {
    mean: Param,
    scale: Param,
    /// (D,), in units of `scale`.
    noise: Param,
    /// What was asked for.
    least: f64,
    dtype: DType,
}

impl Rows {
    /// The buffers `mean`, `scale` and `noise`, for data that are standardised already until [`Self::fit`] is called.
    pub(super) fn new(init: &mut Init, sizes: &Sizes, dtype: DType) -> Self {
        let mean = init.buffer("mean", [sizes.columns], dtype, Initial::Zeros);
        let scale = init.buffer("scale", [sizes.columns], dtype, Initial::Constant(1.0));
        let noise = init.buffer("noise", [sizes.columns], dtype, Initial::Constant(sizes.noise));
        Self { mean, scale, noise, least: sizes.noise, dtype }
    }

    /// Takes the statistics of all training rows.
    pub(super) fn fit(&self, train: &Dataset) {
        let Transform::Standardise { mean, std } = Transform::standardise(&train.values) else {
            unreachable!("standardise makes a standardisation")
        };
        let of = |v: &[f64]| Tensor::from_slice(v, [v.len()]).cast(self.dtype);
        let apart = if self.least > 0.0 { grain::blur(&train.values, &std) } else { vec![0.0; std.len()] };
        let noise: Vec<f64> = apart.into_iter().map(|b| b.max(self.least)).collect();
        let more = |noise: &f64| (1.0 + noise * noise).sqrt();
        self.mean.set(&of(&mean));
        self.scale.set(&of(&std.iter().zip(&noise).map(|(s, n)| s * more(n)).collect::<Vec<_>>()));
        self.noise.set(&of(&noise.iter().map(|n| n / more(n)).collect::<Vec<_>>()));
    }

    pub(super) fn input(&self) -> Input {
        let shape = self.mean.get().shape().to_vec();
        Input { shape, dtypes: &[DType::F32, DType::F64], ..Input::default() }
    }

    /// z₀ of x (B, D).
    pub(super) fn standardised(&self, x: &Tensor) -> Tensor {
        let centred = &x.cast(self.dtype) - &self.mean.get();
        (&centred / &self.scale.get()).clamp(-FARTHEST, FARTHEST)
    }

    /// z₀ of x (B, D) with noise, for training.
    pub(super) fn noisy(&self, x: &Tensor, rng: &mut Philox) -> Tensor {
        let z = self.standardised(x);
        if self.least == 0.0 {
            return z;
        }
        &z + &(&rng.normal(z.shape(), self.dtype) * &self.noise.get())
    }

    /// z₀ of x (B, D), for layers that start from data; never without noise, so that no column is constant.
    pub(super) fn start(&self, x: &Tensor, rng: &mut Philox) -> Tensor {
        if self.least > 0.0 {
            return self.noisy(x, rng);
        }
        let z = self.standardised(x);
        &z + &rng.normal(z.shape(), self.dtype).affine(0.01, 0.0)
    }

    /// log p(x) (B,) from the latents and the log-determinants of a flow on z₀, under the normal base.
    pub(super) fn nats(&self, z: &Tensor, logdet: &Tensor) -> Tensor {
        let (nats, scale) = (&normal_logp(z) + logdet, self.scale.get());
        if scale.gpu().is_some() {
            return &nats - &scale.ln().sum_all();
        }
        nats.affine(1.0, -scale.to_f64_vec().into_iter().map(f64::ln).sum::<f64>())
    }

    /// `n` latents from the base.
    pub(super) fn latents(&self, n: usize, temperature: f64, rng: &mut Philox) -> Tensor {
        rng.normal([n, self.mean.get().len()], self.dtype).affine(temperature, 0.0)
    }

    /// x of z₀.
    pub(super) fn restored(&self, z: &Tensor) -> Tensor {
        &(z * &self.scale.get()) + &self.mean.get()
    }
}

/// A flow on rows of D numbers.
pub(super) struct TableFlow {
    name: &'static str,
    config: serde_json::Value,
    params: ParamStore,
    norm: Norm,
    rows: Rows,
    flow: Chain,
}

impl TableFlow {
    /// With the bijections that `parts` builds, among them these `norm`s if any.
    pub(super) fn new(
        sizes: &Sizes,
        norm: Norm,
        config: &impl Serialize,
        dtype: DType,
        rng: &mut Philox,
        parts: impl FnOnce(&mut Init) -> Vec<Box<dyn Bijection>>,
    ) -> Self {
        let mut params = ParamStore::default();
        let mut init = Init::new(&mut params, rng, dtype);
        let rows = Rows::new(&mut init, sizes, dtype);
        let flow = Chain { parts: parts(&mut init) };
        let config = serde_json::to_value(config).expect("a configuration is plain data");
        Self { name: sizes.model, config, params, norm, rows, flow }
    }
}

impl Model for TableFlow {
    fn config(&self) -> serde_json::Value {
        self.config.clone()
    }

    fn input(&self) -> Input {
        self.rows.input()
    }

    fn params(&self) -> &ParamStore {
        &self.params
    }

    fn log_prob(&self, batch: &Batch, _rng: &mut Philox) -> LogProb {
        let (z, logdet) = self.flow.forward(&self.rows.standardised(&batch.x));
        LogProb { nats: self.rows.nats(&z, &logdet), kind: Kind::Exact, per_position: None }
    }

    fn objective(&self, batch: &Batch, rng: &mut Philox) -> Tensor {
        let (z, logdet) = self.flow.training(&self.rows.noisy(&batch.x, rng));
        -&self.rows.nats(&z, &logdet)
    }

    fn sample(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor> {
        options.check(self.name, 0)?;
        let z = self.rows.latents(n, options.temperature, rng);
        Ok(autograd::no_grad(|| self.rows.restored(&self.flow.inverse(&z))))
    }

    /// The statistics of all training rows; then the layers that start from data see the first batch.
    fn init_from(&self, train: &Dataset, batch: &Batch, rng: &mut Philox) {
        self.rows.fit(train);
        self.flow.init_from(&self.rows.start(&batch.x, rng));
    }

    fn statistics(&self) -> Option<&dyn Statistics> {
        Some(self)
    }
}

impl Statistics for TableFlow {
    fn offered(&self) -> &'static [Statistic] {
        match self.norm {
            Norm::BatchNorm => &[Statistic::BatchNorm, Statistic::Terms],
            Norm::Actnorm => &[Statistic::Terms],
        }
    }

    /// In the mode of batch normalisation: log p(x) with the statistics of this batch, which are not remembered.
    fn compute(&self, which: Statistic, batch: &Batch, _rng: &mut Philox) -> Tensor {
        assert!(self.offered().contains(&which), "{}: a statistic that it does not offer", self.name);
        autograd::no_grad(|| {
            let x = self.rows.standardised(&batch.x);
            if which == Statistic::Terms {
                let (z, logdet) = self.flow.forward(&x);
                let base = normal_logp(&z);
                let volume = &self.rows.nats(&z, &logdet) - &base;
                return table(&[base, volume]);
            }
            let (z, logdet) = self.flow.training(&x);
            self.rows.nats(&z, &logdet)
        })
    }
}
