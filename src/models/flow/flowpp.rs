//! Flow++ on byte images: couplings by the CDF of a mixture of logistics, and variational dequantisation (Ho, Chen,
//! Srinivas, Duan & Abbeel 2019), with Glow's convolutional network in place of the paper's gated attention.
//!
//! **Dequantisation.** u = σ(g(ε; x)), ε standard normal, g a flow of `dequantise` couplings that see x; then
//! log P(x) ≥ log p((x + u) / 256) − D ln 256 − log q(u | x): a lower bound, tighter than with uniform u, and what both
//! training and scoring use, with one ε.
//! **Density.** (x + u)/256 → logit → `squeezes` times: 2 by 2 pixels to channels, `depth` steps of actnorm,
//! invertible 1x1 convolution (PLU) and mixture coupling with K = `components` → standard normal.

use crate::autograd;
use crate::bijections::{
    Actnorm, Bijection, Chain, ConvCoupled, Elementwise, Logit, Mixture, PluConv, Squeeze,
};
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::models::statistic::table;
use crate::models::{Batch, Input, Kind, LogProb, Model, ModelInfo, SampleOptions, Statistic, Statistics};
use crate::nn::{Init, ParamStore};
use crate::ops::normal_logp::normal_logp;
use crate::ops::unary::floor;
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// The registry's line.
pub static FLOWPP: ModelInfo = ModelInfo {
    name: "flowpp",
    family: "flow",
    summary: "mixture-CDF couplings with variational dequantisation on byte images (Ho et al. 2019)",
    objective: "upper bound of the surprisal, nats",
    reproduce: "surprisal train flowpp28 --data fashion-mnist-train-images --set train.steps=2300, as in benches/results/images.md: \
                at most 3.40 bits/dim on the test images",
    presets: &[("flowpp28", FLOWPP28)],
    tiny: &["shape=[2, 2, 1]", "squeezes=1", "depth=2", "hidden=4", "components=2"],
    build: |config, rng| {
        let config = serde_json::from_value(config.clone()).map_err(wrong)?;
        Ok(Box::new(FlowPp::new(config, DType::F32, rng)?))
    },
};

const FLOWPP28: &str = "
shape = [28, 28, 1]
squeezes = 2
depth = 4
hidden = 64
components = 4
dequantise = 2

[train]
batch = 64
lr = 1e-3
clip = 100.0
schedule = { warmup = 100 }
";

/// Keeps the logit finite at the ends.
const ALPHA: f64 = 0.05;

fn wrong(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Usage, format!("flowpp: {what}"))
}

/// The complete configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Height and width, multiples of 2^squeezes, and channels.
    pub shape: [usize; 3],
    /// How often 2 by 2 pixels become channels.
    pub squeezes: usize,
    /// Steps after each squeeze.
    pub depth: usize,
    /// Channels in the couplings' networks.
    pub hidden: usize,
    /// Components of the couplings' mixtures.
    pub components: usize,
    /// Couplings of the dequantising flow.
    pub dequantise: usize,
}

impl Config {
    fn check(&self) -> Result<()> {
        let Self { shape: [h, w, c], squeezes, depth, hidden, components, dequantise } = *self;
        let within = [
            ("shape (height)", h, 1 << 12),
            ("shape (width)", w, 1 << 12),
            ("shape (channels)", c, 1 << 8),
            ("squeezes", squeezes, 6),
            ("depth", depth, 256),
            ("hidden", hidden, 1 << 12),
            ("components", components, 256),
            ("dequantise", dequantise, 64),
        ];
        for (key, value, most) in within {
            if !(1..=most).contains(&value) {
                return Err(wrong(format!("{key} is {value}; expected 1 to {most}")));
            }
        }
        let step = 1 << squeezes;
        if h % step != 0 || w % step != 0 {
            return Err(wrong(format!("shape is {h} by {w}; {squeezes} squeezes need multiples of {step}")));
        }
        Ok(())
    }
}

/// The model; see the module's description.
pub struct FlowPp {
    config: Config,
    params: ParamStore,
    /// On squeezed noise: a coupling that sees the squeezed image, then a mixing of channels.
    noise: Vec<(ConvCoupled, PluConv)>,
    flow: Chain,
    dtype: DType,
}

impl FlowPp {
    /// A model with fresh parameters.
    ///
    /// # Errors
    /// When the configuration is impossible.
    pub fn new(config: Config, dtype: DType, rng: &mut Philox) -> Result<Self> {
        config.check()?;
        let Config { shape: [.., c], squeezes, depth, hidden, components, dequantise } = config;
        let kind = Elementwise::Mixture(Mixture { components });
        let mut params = ParamStore::default();
        let mut init = Init::new(&mut params, rng, dtype);
        let couple = |k: usize| {
            let mut init = init.sub(format_args!("noise.{k}"));
            let coupled = ConvCoupled::new(&mut init, 4 * c, 4 * c, hidden, kind);
            (coupled, PluConv::new(&mut init.sub("mix"), 4 * c))
        };
        let noise = (0..dequantise).map(couple).collect();
        let mut parts: Vec<Box<dyn Bijection>> = vec![Box::new(Logit { alpha: ALPHA })];
        for s in 0..squeezes {
            parts.push(Box::new(Squeeze));
            let channels = c << (2 * (s + 1));
            for k in 0..depth {
                let mut init = init.sub(format_args!("flow.{s}.{k}"));
                parts.push(Box::new(Actnorm::new(&mut init.sub("norm"), channels)));
                parts.push(Box::new(PluConv::new(&mut init.sub("mix"), channels)));
                parts.push(Box::new(ConvCoupled::new(&mut init, channels, 0, hidden, kind)));
            }
        }
        Ok(Self { config, params, noise, flow: Chain { parts }, dtype })
    }

    /// (x + u) / 256 of bytes x, and −D ln 256 − log q(u | x) (B,).
    fn dequantised(&self, x: &Tensor, rng: &mut Philox) -> (Tensor, Tensor) {
        let x = x.cast(self.dtype);
        let (context, _) = Squeeze.forward(&x.affine(2.0 / 255.0, -1.0));
        let mut v = rng.normal(context.shape(), self.dtype);
        let mut log_q = normal_logp(&v);
        for (coupled, mix) in &self.noise {
            let (y, first) = coupled.forward_given(&v, Some(&context));
            let (y, second) = mix.forward(&y);
            (v, log_q) = (y, &log_q - &(&first + &second));
        }
        // u = σ(v) has ln du/dv = ln σ(v) + ln σ(−v).
        let slope = -&(&v.softplus() + &(-&v).softplus()).sum_examples();
        let dims = self.config.shape.iter().product::<usize>() as f64;
        let u = Squeeze.inverse(&v.sigmoid());
        ((&x + &u).affine(1.0 / 256.0, 0.0), (&slope - &log_q).affine(1.0, -dims * 256f64.ln()))
    }
}

impl Model for FlowPp {
    fn config(&self) -> serde_json::Value {
        serde_json::to_value(&self.config).expect("a configuration is plain data")
    }

    fn input(&self) -> Input {
        Input { shape: self.config.shape.to_vec(), dtypes: &[DType::U8], ..Input::default() }
    }

    fn params(&self) -> &ParamStore {
        &self.params
    }

    fn log_prob(&self, batch: &Batch, rng: &mut Philox) -> LogProb {
        let (y, volume) = self.dequantised(&batch.x, rng);
        let (z, logdet) = self.flow.forward(&y);
        LogProb { nats: &(&normal_logp(&z) + &logdet) + &volume, kind: Kind::LowerBound, per_position: None }
    }

    fn sample(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor> {
        options.check("flowpp", 0)?;
        let Config { shape: [h, w, c], squeezes: s, .. } = self.config;
        let z = rng.normal([n, h >> s, w >> s, c << (2 * s)], self.dtype).affine(options.temperature, 0.0);
        let y = autograd::no_grad(|| self.flow.inverse(&z));
        Ok(floor(&y.affine(256.0, 0.0)).clamp(0.0, 255.0).cast(DType::U8).reshape([n, h, w, c]))
    }

    fn init_from(&self, _train: &Dataset, batch: &Batch, rng: &mut Philox) {
        self.flow.init_from(&self.dequantised(&batch.x, rng).0);
    }

    fn statistics(&self) -> Option<&dyn Statistics> {
        Some(self)
    }
}

impl Statistics for FlowPp {
    fn offered(&self) -> &'static [Statistic] {
        &[Statistic::Terms]
    }

    /// The latents, the log-determinants, and −ln q of the dequantisation noise.
    fn compute(&self, which: Statistic, batch: &Batch, rng: &mut Philox) -> Tensor {
        assert_eq!(which, Statistic::Terms, "flowpp: a statistic that it does not offer");
        autograd::no_grad(|| {
            let (y, volume) = self.dequantised(&batch.x, rng);
            let (z, logdet) = self.flow.forward(&y);
            table(&[normal_logp(&z), logdet, volume])
        })
    }
}
