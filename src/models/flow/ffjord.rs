//! FFJORD: a continuous flow, x(0) = x moved by dx/dt = f(t, x) to a standard normal z = x(1) (Grathwohl et al. 2019,
//! "FFJORD: free-form continuous dynamics for scalable reversible generative models").
//!
//! log p(x) = log N(z; 0, 1) + ∫₀¹ tr ∂f/∂x dt − Σ ln scale, in nats: x is standardised as in all flows on tables. f
//! is a multilayer perceptron of (x, t).
//!
//! **Kind.** Training uses Hutchinson's estimate εᵀ (∂f/∂x) ε with one ε per example, fixed within a solve, which is
//! unbiased for log p ([`Kind::Estimate`] if asked for in scoring). Scoring uses the exact trace, [`Kind::Exact`] up to
//! the solver's error; for up to two hidden layers it costs no more than the estimate, see [`crate::ops::ode_trace`].
//!
//! **Gradients.** `backprop` differentiates the steps; fixed steps run as the fused op [`crate::ops::ode_steps`].
//! `adjoint` solves backward in constant memory. With `kinetic` or `jacobian` above 0 the objective has
//! λ_K ∫ |f|²/D dt + λ_J ∫ |(∂f/∂x) ε|²/D dt added (Finlay et al. 2020, "How to train your neural ODE").
//!
//! **Failures.** Where steps underflow or the budget is spent, [`Ffjord::density`] and sampling return the error.
//! [`Model::log_prob`] then solves half as many rows at once, down to single ones, because error control looks at all of
//! them; a row that still fails is solved with as many equal steps as the budget pays for, so that it has a likelihood,
//! if a less exact one. In training a failure is a NaN, which is refused with its step.

use super::table::{Rows, Sizes};
use crate::autograd;
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::models::{Batch, Input, Kind, LogProb, Model, ModelInfo, SampleOptions};
use crate::nn::{Init, Initial, Param, ParamStore};
use crate::ode::{self, AdjointRhs, Stepping, Tableau};
use crate::ops::ode_steps::{Steps, ode_steps};
use crate::ops::ode_trace::{Field, Probe, Smooth, exact_trace, ode_trace};
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The registry's line.
pub const INFO: ModelInfo = ModelInfo {
    name: "ffjord",
    family: "flow",
    summary: "continuous flow by a neural ODE with a trace estimated or exact (Grathwohl et al. 2019)",
    objective: "surprisal, nats",
    reproduce: "surprisal adbench FOLDER --models ffjord --seeds 1 --set train.steps=400: mean AUROC .814 \
                over 21 tables, one seed (benches/results/tables.md)",
    presets: &[("ffjord_table", TABLE), ("ffjord43", FFJORD43), ("ffjord_adaptive", ADAPTIVE)],
    tiny: &["shape=[2]", "hidden=[8, 8]", "stepping.count=12"],
    build: |config, rng| {
        let config = serde_json::from_value(config.clone())
            .map_err(|e| Error::new(ErrorKind::Usage, format!("configuration of ffjord: {e}")))?;
        Ok(Box::new(Ffjord::new(config, DType::F32, rng)?))
    },
};

const TABLE: &str = r#"
shape = [8]
hidden = [64, 64]
activation = "tanh"
method = "rk4"
stepping = { kind = "fixed", count = 8 }
gradient = "backprop"
trace = "exact"
probe = "rademacher"
score_trace = "exact"
kinetic = 0.0
jacobian = 0.0
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

const FFJORD43: &str = r#"
shape = [43]
hidden = [128, 128]
activation = "tanh"
method = "rk4"
stepping = { kind = "fixed", count = 8 }
gradient = "backprop"
trace = "hutchinson"
probe = "rademacher"
score_trace = "exact"
kinetic = 0.0
jacobian = 0.0
noise = 0.0

[train]
epochs = 60
batch = 512
lr = 2e-3
schedule = { curve = "cosine" }
patience = 10
clip = 5.0
eval_batch = 1024
"#;

const ADAPTIVE: &str = r#"
shape = [8]
hidden = [64, 64]
activation = "softplus"
method = "dopri5"
stepping = { kind = "adaptive", rtol = 1e-4, atol = 1e-4, budget = 2000 }
gradient = "adjoint"
trace = "hutchinson"
probe = "rademacher"
score_trace = "exact"
kinetic = 0.01
jacobian = 0.01
noise = 0.1

[train]
steps = 1500
batch = 256
lr = 2e-3
schedule = { curve = "cosine" }
patience = 40
clip = 5.0
eval_batch = 1024
"#;

/// The most equal steps that stand in for adaptive ones.
const MOST_STEPS: usize = 1000;

/// How the trace of the Jacobian is had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trace {
    /// εᵀ (∂f/∂x) ε.
    Hutchinson,
    /// Itself.
    Exact,
}

/// The distribution of Hutchinson's ε.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeNoise {
    /// −1 or 1: the smaller variance.
    Rademacher,
    /// Standard normal.
    Gaussian,
}

/// How gradients pass through the solver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gradient {
    /// Through its steps, which are kept.
    Backprop,
    /// By a second solve, in constant memory.
    Adjoint,
}

/// The complete configuration of a [`Ffjord`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Numbers per example.
    pub shape: [usize; 1],
    /// Units of the hidden layers.
    pub hidden: Vec<usize>,
    /// Between the layers.
    pub activation: Smooth,
    /// The Runge-Kutta method, a name in [`ode::TABLEAUX`].
    pub method: String,
    /// How its steps are chosen.
    pub stepping: Stepping,
    /// How gradients pass through it.
    pub gradient: Gradient,
    /// The trace in training.
    pub trace: Trace,
    /// The distribution of ε.
    pub probe: ProbeNoise,
    /// The trace in scoring.
    pub score_trace: Trace,
    /// λ_K, weight of the mean squared velocity.
    pub kinetic: f64,
    /// λ_J, weight of the mean squared Jacobian.
    pub jacobian: f64,
    /// Deviation of the training noise, in standardised units.
    pub noise: f64,
}

impl Config {
    fn sizes(&self) -> Sizes<'_> {
        let Self { shape: [columns], hidden, noise, .. } = self;
        Sizes { model: "ffjord", columns: *columns, layers: 1, hidden, per: 1, noise: *noise }
    }

    fn check(&self) -> Result<&'static Tableau> {
        let fail = |m: String| Err(Error::new(ErrorKind::Usage, format!("configuration of ffjord: {m}")));
        let [d] = self.shape;
        if !(1..=1 << 16).contains(&d) {
            return fail(format!("shape is [{d}]; expected 1 to {}", 1 << 16));
        }
        if !(1..=16).contains(&self.hidden.len()) || self.hidden.iter().any(|n| !(1..=1 << 14).contains(n)) {
            return fail(format!(
                "hidden is {:?}; expected 1 to 16 layers of 1 to {} units",
                self.hidden,
                1 << 14
            ));
        }
        for (key, weight) in [("kinetic", self.kinetic), ("jacobian", self.jacobian)] {
            if !(weight >= 0.0 && weight.is_finite()) {
                return fail(format!("{key} is {weight}; expected a number of at least 0"));
            }
        }
        if self.jacobian > 0.0 && self.trace == Trace::Exact {
            return fail("jacobian above 0 needs the noise of trace = \"hutchinson\"".into());
        }
        if self.kinetic > 0.0 && self.trace == Trace::Exact && self.hidden.len() > 2 {
            return fail(
                "kinetic above 0 with more than two hidden layers needs trace = \"hutchinson\"".into(),
            );
        }
        let about = |e: Error| e.at("configuration of ffjord");
        let tableau = Tableau::find(&self.method).map_err(about)?;
        self.stepping.check(tableau).map_err(about)?;
        Ok(tableau)
    }
}

/// The model; see the module's description.
pub struct Ffjord {
    config: Config,
    tableau: &'static Tableau,
    store: ParamStore,
    layers: Vec<(Param, Param)>,
    rows: Rows,
    dtype: DType,
}

/// Where a batch went.
pub struct Flowed {
    /// (B, D): x(1).
    pub z: Tensor,
    /// (B,): ∫ tr ∂f/∂x dt, nats.
    pub logdet: Tensor,
    /// (B,): λ_K and λ_J times their integrals; 0 without regularisers.
    pub penalty: Tensor,
    /// Evaluations of f.
    pub evaluations: usize,
}

/// How one solve goes about the trace.
struct Plan {
    /// ε (B, D), or none for the exact trace.
    noise: Option<Tensor>,
    stepping: Stepping,
    gradient: Gradient,
    weights: [f64; 2],
}

impl Ffjord {
    /// A model with fresh parameters, as `torch.nn.Linear` starts.
    ///
    /// # Errors
    /// When the configuration is impossible.
    pub fn new(config: Config, dtype: DType, rng: &mut Philox) -> Result<Self> {
        let tableau = config.check()?;
        let [d] = config.shape;
        let mut store = ParamStore::default();
        let mut init = Init::new(&mut store, rng, dtype);
        let sizes: Vec<usize> = [&[d + 1], &config.hidden[..], &[d]].concat();
        let layers = sizes.windows(2).enumerate().map(|(i, pair)| {
            let mut init = init.sub(format_args!("net.{}", 2 * i));
            let start = Initial::FanIn(pair[0]);
            (init.param("weight", [pair[0], pair[1]], start), init.param("bias", [pair[1]], start))
        });
        let layers = layers.collect();
        let rows = Rows::new(&mut init, &config.sizes(), dtype);
        Ok(Self { config, tableau, store, layers, rows, dtype })
    }

    /// The velocity field with the present parameters.
    pub fn field(&self) -> Field {
        let layers = self.layers.iter().map(|(w, b)| (w.get(), b.get())).collect();
        Field { act: self.config.activation, layers }
    }

    /// log p(x) (B,) in nats of x (B, D), by the trace of scoring, and the evaluations of f that it took.
    ///
    /// # Errors
    /// [`ErrorKind::NonFinite`] when steps underflow or the budget of evaluations is spent.
    pub fn density(&self, x: &Tensor, rng: &mut Philox) -> Result<(Tensor, usize)> {
        self.density_by(self.config.stepping, x, rng)
    }

    fn density_by(&self, stepping: Stepping, x: &Tensor, rng: &mut Philox) -> Result<(Tensor, usize)> {
        let noise = self.noise(self.config.score_trace, x.shape()[0], rng);
        let plan = Plan { noise, stepping, gradient: self.config.gradient, weights: [0.0; 2] };
        let flowed = self.flow(&self.rows.standardised(x), [0.0, 1.0], &plan)?;
        Ok((self.rows.nats(&flowed.z, &flowed.logdet), flowed.evaluations))
    }

    /// Where the examples of a training batch go, with training noise and the penalties of the objective.
    ///
    /// # Errors
    /// As [`Self::density`].
    pub fn train_flow(&self, x: &Tensor, rng: &mut Philox) -> Result<Flowed> {
        let z = self.rows.noisy(x, rng);
        let noise = self.noise(self.config.trace, x.shape()[0], rng);
        let weights = [self.config.kinetic, self.config.jacobian];
        let Config { stepping, gradient, .. } = self.config;
        self.flow(&z, [0.0, 1.0], &Plan { noise, stepping, gradient, weights })
    }

    fn noise(&self, trace: Trace, b: usize, rng: &mut Philox) -> Option<Tensor> {
        let shape = [b, self.config.shape[0]];
        match (trace, self.config.probe) {
            (Trace::Exact, _) => None,
            (Trace::Hutchinson, ProbeNoise::Rademacher) => Some(rng.rademacher(shape, self.dtype)),
            (Trace::Hutchinson, ProbeNoise::Gaussian) => Some(rng.normal(shape, self.dtype)),
        }
    }

    fn flow(&self, x: &Tensor, span: [f64; 2], plan: &Plan) -> Result<Flowed> {
        let (field, b) = (self.field(), x.shape()[0]);
        let probe = match &plan.noise {
            Some(noise) => Some(field.hutchinson(noise)),
            None => field.exact(b),
        };
        let none = Tensor::zeros([b], self.dtype);
        let plain = plan.weights == [0.0; 2];
        if let (Stepping::Fixed { count }, Some(probe), true, Gradient::Backprop) =
            (plan.stepping, &probe, plain, plan.gradient)
        {
            let steps = Steps { tableau: self.tableau, span, count };
            let (z, logdet) = ode_steps(x, &field, probe, steps);
            return Ok(Flowed { z, logdet, penalty: none, evaluations: steps.evaluations() });
        }
        let [kinetic, jacobian] = plan.weights;
        let (act, exact, d) = (field.act, probe.is_none(), self.config.shape[0] as f64);
        let slopes: AdjointRhs = Arc::new(move |t, state, params| {
            let x = &state[0];
            let inputs = [std::slice::from_ref(x), params].concat();
            let (_, field, probe) = Field::from_inputs(act, &inputs);
            if plain {
                let (f, trace) =
                    if exact { exact_trace(t, x, &field) } else { ode_trace(t, x, &field, &probe) };
                return vec![f, trace, Tensor::zeros([x.shape()[0]], x.dtype())];
            }
            let (f, u) = field.tangent(t, x, &probe);
            let trace = (&u * &probe.p).sum(&[1]);
            let mut penalty = f.square().sum(&[1]).affine(kinetic / d, 0.0);
            if jacobian > 0.0 {
                let moved =
                    crate::ops::matmul::matmul(&u, &field.layers[field.layers.len() - 1].0, false, false);
                penalty = &penalty + &moved.square().sum(&[1]).affine(jacobian / d, 0.0);
            }
            vec![f, trace, penalty]
        });
        // Without a probe (deep nets, exact trace) the slots of v and p stay empty.
        let probe = probe.unwrap_or_else(|| {
            let empty = Tensor::zeros([0], self.dtype);
            Probe { v: empty.clone(), p: empty, mix: None }
        });
        let params = field.inputs(x, &probe).split_off(1);
        let start = [x.clone(), none.clone(), none];
        let (stepping, tableau) = (plan.stepping, self.tableau);
        let ([z, logdet, penalty], evaluations) = match plan.gradient {
            Gradient::Adjoint => ode::solve_adjoint(slopes, start, &params, span, tableau, stepping)?,
            Gradient::Backprop => {
                let rhs = |t: f64, state: &[Tensor]| slopes(t, state, &params);
                let solution = ode::solve(&rhs, &start, span, tableau, stepping, false)?;
                let state = <[Tensor; 3]>::try_from(solution.state).unwrap_or_else(|_| unreachable!("three"));
                (state, solution.evaluations)
            }
        };
        Ok(Flowed { z, logdet, penalty, evaluations })
    }

    /// As [`Self::density`] of every row, whatever fails.
    fn density_of_each(&self, x: &Tensor, rng: &mut Philox) -> Tensor {
        let b = x.shape()[0];
        match (self.density(x, rng), self.config.stepping) {
            (Ok((nats, _)), _) => nats,
            (Err(_), _) if b > 1 => {
                let half = |start: usize, n: usize, rng: &mut Philox| {
                    self.density_of_each(&x.narrow(0, start, n), rng)
                };
                let parts = [half(0, b / 2, rng), half(b / 2, b - b / 2, rng)];
                crate::ops::shape::concat(&[&parts[0], &parts[1]], 0)
            }
            (Err(_), Stepping::Adaptive { budget, .. }) => {
                let count = (budget / self.tableau.stages()).clamp(1, MOST_STEPS);
                let stepping = Stepping::Fixed { count };
                let found = self.density_by(stepping, x, rng);
                found.map_or_else(|_| self.failed(b), |(nats, _)| nats)
            }
            (Err(_), Stepping::Fixed { .. }) => self.failed(b),
        }
    }

    fn failed(&self, b: usize) -> Tensor {
        Tensor::full(f64::NAN, [b], self.dtype)
    }
}

impl Model for Ffjord {
    fn config(&self) -> serde_json::Value {
        serde_json::to_value(&self.config).expect("a configuration is plain data")
    }

    fn input(&self) -> Input {
        self.rows.input()
    }

    fn params(&self) -> &ParamStore {
        &self.store
    }

    fn log_prob(&self, batch: &Batch, rng: &mut Philox) -> LogProb {
        let kind = match self.config.score_trace {
            Trace::Exact => Kind::Exact,
            Trace::Hutchinson => Kind::Estimate,
        };
        let nats = self.density_of_each(&batch.x, rng);
        LogProb { nats, kind, per_position: None }
    }

    fn sample(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor> {
        options.check("ffjord", 0)?;
        autograd::no_grad(|| {
            let z = self.rows.latents(n, options.temperature, rng);
            let stepping = self.config.stepping;
            let plan = Plan { noise: None, stepping, gradient: Gradient::Backprop, weights: [0.0; 2] };
            let x = self.flow(&z, [1.0, 0.0], &plan)?.z;
            Ok(self.rows.restored(&x))
        })
    }

    fn objective(&self, batch: &Batch, rng: &mut Philox) -> Tensor {
        match self.train_flow(&batch.x, rng) {
            Ok(f) => &f.penalty - &self.rows.nats(&f.z, &f.logdet),
            Err(_) => self.failed(batch.x.shape()[0]),
        }
    }

    fn init_from(&self, train: &Dataset, _batch: &Batch, _rng: &mut Philox) {
        self.rows.fit(train);
    }
}
