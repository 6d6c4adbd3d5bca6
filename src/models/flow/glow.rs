//! Glow: a multi-scale flow of actnorm, invertible 1x1 convolutions and couplings (Kingma & Dhariwal 2018).
//!
//! Level by level: squeeze, `depth` flow steps, then the second half of the channels leaves as a latent, except at
//! the last level. With z the latents of x, all standard normal, log p(x) = Σ log N(z; 0, 1) + log |det dz/dx|.
//!
//! **Kind.** For bytes the preset dequantises, x' = (x + u) / 256 with u uniform on [0, 1)^D. The density of x' is
//! exact, and E_u log p(x') − D ln 256 ≤ log P(x) (Theis et al. 2016), so one draw of u makes
//! [`Kind::LowerBound`]. Without dequantisation (data that are real numbers) it is [`Kind::Exact`].
//!
//! **Names.** The levels are `top`, `middle1`, `middle2`, ..., `bottom`; step k of the top has `top.k.loc`,
//! `top.k.log_scale` (C), `top.k.weight` (C, C; or `lower`, `upper`, `log_s` when PLU-parametrised) and
//! `top.k.net.{0,2,4}.{weight,bias}`. The parametrisation is that of the usual PyTorch implementation:
//! y = W ((x + loc) e^log_scale), then (s, t) = net(a), b = (b + t) sigmoid(s + 2). Weights copy as they are, but
//! for convolutions: PyTorch's (out, in, KH, KW) is (KH, KW, in, out) here.

use crate::autograd;
use crate::bijections::{Bijection, Chain, FlowStep, Memory, Mixing, Squeeze, reversible};
use crate::data::Dataset;
use crate::data::{Prepare, Transform};
use crate::error::{Error, ErrorKind, Result};
use crate::models::statistic::table;
use crate::models::{Batch, Input, Kind, LogProb, Model, ModelInfo, SampleOptions, Statistic, Statistics};
use crate::nn::{Init, ParamStore};
use crate::ops::coupling::Coupling;
use crate::ops::normal_logp::normal_logp;
use crate::ops::shape;
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The registry's line.
pub static GLOW: ModelInfo = ModelInfo {
    name: "glow",
    family: "flow",
    summary: "multi-scale flow of actnorm, invertible 1x1 convolutions and couplings (Kingma & Dhariwal 2018)",
    objective: "surprisal, nats",
    reproduce: "surprisal train glow28 --data fashion-mnist-train-images --set train.steps=4900, as in benches/results/images.md: \
                3.59 bits/dim on the test images",
    presets: &[("glow28", GLOW28), ("glow28_deep", GLOW28_DEEP), ("glow32", GLOW32)],
    tiny: &["shape=[4, 4, 1]", "depth=2", "hidden=6"],
    build: |config, rng| {
        let config = serde_json::from_value(config.clone())
            .map_err(|e| Error::new(ErrorKind::Usage, format!("configuration of glow: {e}")))?;
        Ok(Box::new(Glow::new(config, DType::F32, rng)?))
    },
};

const GLOW28: &str = r#"
shape = [28, 28, 1]
levels = 2
depth = 8
hidden = 128
coupling = "sigmoid"
invertible = "dense"
memory = "store"
prepare = [{ kind = "dequantise" }]
"#;

const GLOW28_DEEP: &str = r#"
shape = [28, 28, 1]
levels = 2
depth = 32
hidden = 128
coupling = "sigmoid"
invertible = "plu"
memory = "rebuild"
prepare = [{ kind = "dequantise" }, { kind = "logit", alpha = 0.05 }]
"#;

const GLOW32: &str = r#"
shape = [32, 32, 3]
levels = 3
depth = 16
hidden = 256
coupling = "sigmoid"
invertible = "plu"
memory = "rebuild"
prepare = [{ kind = "dequantise" }]
"#;

/// The complete configuration of a [`Glow`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GlowConfig {
    /// Height and width, multiples of 2^levels, and channels of an example.
    pub shape: [usize; 3],
    /// Scales: a squeeze and `depth` steps each.
    pub levels: usize,
    /// Flow steps per level.
    pub depth: usize,
    /// Channels in the couplings' networks.
    pub hidden: usize,
    /// The function of the couplings' scale.
    pub coupling: Coupling,
    /// The parametrisation of the 1x1 convolutions.
    pub invertible: Mixing,
    /// Whether training keeps activations or rebuilds them.
    pub memory: Memory,
    /// From the data to numbers near 0, with log-determinants.
    pub prepare: Prepare,
}

impl GlowConfig {
    /// Refuses what cannot be built, or would not fit any memory.
    fn check(&self) -> Result<()> {
        let refuse = |m: String| Err(Error::new(ErrorKind::Usage, format!("configuration of glow: {m}")));
        let [height, width, channels] = self.shape;
        let within = [
            ("shape (height)", height, 1 << 12),
            ("shape (width)", width, 1 << 12),
            ("shape (channels)", channels, 1 << 8),
            ("levels", self.levels, 6),
            ("depth", self.depth, 1 << 9),
            ("hidden", self.hidden, 1 << 12),
        ];
        for (key, value, most) in within {
            if value < 1 || value > most {
                return refuse(format!("{key} is {value}; expected 1 to {most}"));
            }
        }
        let step = 1 << self.levels;
        if height % step != 0 || width % step != 0 {
            return refuse(format!(
                "shape is {height} by {width}; {} levels need multiples of {step}",
                self.levels
            ));
        }
        for step in self.prepare.steps() {
            let wanted = height * width * channels;
            if let Transform::Standardise { mean, .. } = step
                && mean.len() != wanted
            {
                return refuse(format!("prepare standardises {} numbers; expected {wanted}", mean.len()));
            }
        }
        Ok(())
    }

    fn level_name(&self, level: usize) -> String {
        match level {
            0 => "top".into(),
            l if l + 1 == self.levels => "bottom".into(),
            l => format!("middle{l}"),
        }
    }

    /// Height, width and channels inside level `level`, after its squeeze.
    fn level_shape(&self, level: usize) -> [usize; 3] {
        let [height, width, channels] = self.shape;
        [height >> (level + 1), width >> (level + 1), channels << (level + 2)]
    }
}

/// A multi-scale Glow.
pub struct Glow {
    config: GlowConfig,
    params: ParamStore,
    levels: Vec<Arc<dyn Bijection>>,
    dtype: DType,
}

impl Glow {
    /// A model with fresh parameters: orthogonal mixing matrices, couplings at a fixed scale.
    ///
    /// # Errors
    /// When a size is out of range or does not divide by 2^levels.
    pub fn new(config: GlowConfig, dtype: DType, rng: &mut Philox) -> Result<Self> {
        config.check()?;
        let mut params = ParamStore::default();
        let mut init = Init::new(&mut params, rng, dtype);
        let mut levels: Vec<Arc<dyn Bijection>> = Vec::new();
        for level in 0..config.levels {
            let [_, _, c] = config.level_shape(level);
            let mut parts: Vec<Box<dyn Bijection>> = vec![Box::new(Squeeze)];
            for k in 0..config.depth {
                let mut init = init.sub(format!("{}.{k}", config.level_name(level)));
                parts.push(Box::new(FlowStep::new(
                    &mut init,
                    c,
                    config.hidden,
                    config.coupling,
                    config.invertible,
                )));
            }
            levels.push(Arc::new(Chain { parts }));
        }
        Ok(Self { config, params, levels, dtype })
    }

    /// The latents of prepared x (B, H, W, C), top level first, and log |det dz/dx| (B,) in nats.
    ///
    /// # Panics
    /// When x is not of the model's shape.
    #[track_caller]
    pub fn encode(&self, x: &Tensor) -> (Vec<Tensor>, Tensor) {
        let c = &self.config;
        assert_eq!(x.shape()[1..], c.shape, "glow: the shape of an example");
        let mut latents = Vec::new();
        let mut total: Option<Tensor> = None;
        let mut x = x.clone();
        for (l, level) in self.levels.iter().enumerate() {
            let (y, logdet) = reversible(level, &x, c.memory);
            total = Some(total.map_or(logdet.clone(), |t| &t + &logdet));
            if l + 1 < c.levels {
                let half = y.shape()[3] / 2;
                latents.push(y.narrow(3, half, half));
                x = y.narrow(3, 0, half);
            } else {
                latents.push(y);
            }
        }
        (latents, total.expect("there is at least one level"))
    }

    /// The inverse of [`Self::encode`]: prepared x from latents.
    ///
    /// # Panics
    /// When the latents are not as many or not of the shapes that `encode` gives.
    #[track_caller]
    pub fn decode(&self, latents: &[Tensor]) -> Tensor {
        assert_eq!(latents.len(), self.config.levels, "glow: one latent per level");
        let mut x: Option<Tensor> = None;
        for (level, z) in self.levels.iter().zip(latents).rev() {
            let y = x.map_or(z.clone(), |x| shape::concat(&[&x, z], 3));
            x = Some(level.inverse(&y));
        }
        x.expect("there is at least one level")
    }

    /// Shapes of the latents of `b` examples, top level first.
    pub fn latent_shapes(&self, b: usize) -> Vec<[usize; 4]> {
        let shape = |l| {
            let [h, w, c] = self.config.level_shape(l);
            [b, h, w, if l + 1 < self.config.levels { c / 2 } else { c }]
        };
        (0..self.config.levels).map(shape).collect()
    }

    /// log p(x) (B,) in nats of real numbers x (B, H, W, C), such as prepared data: exact.
    ///
    /// # Panics
    /// When x is not of the model's shape and dtype.
    #[track_caller]
    pub fn log_prob_continuous(&self, x: &Tensor) -> Tensor {
        let (latents, logdet) = self.encode(x);
        latents.iter().fold(logdet, |total, z| &total + &normal_logp(z))
    }

    fn dequantises(&self) -> bool {
        self.config.prepare.steps().first() == Some(&Transform::Dequantise)
    }
}

impl Model for Glow {
    fn config(&self) -> serde_json::Value {
        serde_json::to_value(&self.config).expect("a configuration is plain data")
    }

    fn input(&self) -> Input {
        let dtypes: &[DType] = if self.dequantises() { &[DType::U8] } else { &[DType::F32, DType::F64] };
        Input { shape: self.config.shape.to_vec(), dtypes, ..Input::default() }
    }

    fn params(&self) -> &ParamStore {
        &self.params
    }

    fn log_prob(&self, batch: &Batch, rng: &mut Philox) -> LogProb {
        let (x, logdet) = self.config.prepare.forward(&batch.x, self.dtype, rng);
        LogProb {
            nats: &self.log_prob_continuous(&x) + &logdet,
            kind: if self.dequantises() { Kind::LowerBound } else { Kind::Exact },
            per_position: None,
        }
    }

    fn sample(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor> {
        if let Some(label) = options.label {
            let message = format!("label {label}: this glow is not conditional; expected no label");
            return Err(Error::new(ErrorKind::Usage, message));
        }
        autograd::no_grad(|| {
            let draw = |shape| rng.normal(shape, self.dtype).affine(options.temperature, 0.0);
            let latents: Vec<Tensor> = self.latent_shapes(n).into_iter().map(draw).collect();
            Ok(self.config.prepare.inverse(&self.decode(&latents)))
        })
    }

    /// Each actnorm in turn gives its channels mean 0 and deviation 1 on this batch.
    fn init_from(&self, _train: &Dataset, batch: &Batch, rng: &mut Philox) {
        autograd::no_grad(|| {
            let (mut x, _) = self.config.prepare.forward(&batch.x, self.dtype, rng);
            for level in &self.levels {
                let y = level.init_from(&x);
                x = y.narrow(3, 0, y.shape()[3] / 2);
            }
        });
    }

    fn statistics(&self) -> Option<&dyn Statistics> {
        Some(self)
    }
}

impl Statistics for Glow {
    fn offered(&self) -> &'static [Statistic] {
        &[Statistic::Terms]
    }

    /// The latents of each scale, finest first, then the log-determinants.
    fn compute(&self, which: Statistic, batch: &Batch, rng: &mut Philox) -> Tensor {
        assert_eq!(which, Statistic::Terms, "glow: a statistic that it does not offer");
        autograd::no_grad(|| {
            let (x, prepared) = self.config.prepare.forward(&batch.x, self.dtype, rng);
            let (latents, logdet) = self.encode(&x);
            let mut terms: Vec<Tensor> = latents.iter().map(normal_logp).collect();
            terms.push(&logdet + &prepared);
            table(&terms)
        })
    }
}
