//! Hidden Markov model: p(x_1..T) = Σ_z π(z_1) Π A(z_t−1, z_t) Π p(x_t | z_t), by Baum & Welch (Rabiner 1989).
//!
//! A sequence is (T) tokens in 0..levels with categorical emissions, or (T, D) numbers with Gaussian ones, whose
//! columns are standardised with the training data. Forward and backward passes are in log space:
//! ```text
//! α_t(k) = ln p(x_1..t, z_t = k) = ln b_k(x_t) + logsumexp_j (α_t−1(j) + ln A(j, k)),   log p(x) = logsumexp α_T
//! ```
//! so neither long sequences nor unlikely steps underflow. The likelihood is exact, and so is its part of every step,
//! ln p(x_t | x_<t) = logsumexp α_t − logsumexp α_t−1. The start is k-means (numbers) or a random table (tokens), the
//! best of `restarts` by likelihood. The M-step adds `smoothing` to every count of a first state or a transition,
//! `prior` rows of the uniform distribution to a table of tokens, and to covariances what [`super::gmm`] adds. Cost of
//! an iteration: 3 N T K² exponentials.

use super::gaussian::{Covariance, Gaussians, Moments, Prior};
use super::kmeans::kmeans;
use super::scaling::Scaling;
use crate::cpu::par;
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::models::{Batch, Input, Kind, LogProb, Model, ModelInfo, SampleOptions};
use crate::nn::{Init, Initial, Param, ParamStore};
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// The registry's line.
pub const INFO: ModelInfo = ModelInfo {
    name: "hmm",
    family: "latent",
    summary: "hidden Markov model with Gaussian or categorical emissions, by Baum-Welch in log space (Rabiner 1989)",
    objective: "surprisal, nats",
    reproduce: "surprisal train hmm_tokens on the normal blocks of HDFS's log, as in benches/results/sequences.md: AUROC .999 for the \
                blocks that went wrong, by their most surprising step",
    presets: &[("hmm", HMM), ("hmm_tokens", HMM_TOKENS)],
    tiny: &["shape=[6]", "levels=3", "states=3"],
    build: |config, rng| {
        let config = serde_json::from_value(config.clone())
            .map_err(|e| Error::new(ErrorKind::Usage, format!("hmm: {e}")))?;
        Ok(Box::new(Hmm::new(config, rng)?))
    },
};

const HMM: &str = r#"
shape = [64, 1]
levels = 0
states = 8
covariance = "full"
floor = 1e-6
prior = 30.0
smoothing = 0.1
restarts = 1
iterations = 50
tolerance = 1e-4
"#;

const HMM_TOKENS: &str = r#"
shape = [64]
levels = 256
states = 16
covariance = "full"
floor = 1e-6
prior = 1.0
smoothing = 0.1
restarts = 1
iterations = 50
tolerance = 1e-4
"#;

/// Numbers (steps x states x columns) that one chunk of the E-step holds.
const CHUNK: usize = 1 << 19;
/// Lloyd's iterations of the start.
const KMEANS_ITERATIONS: usize = 30;

/// What an [`Hmm`] is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[T]` tokens or `[T, D]` numbers.
    pub shape: Vec<usize>,
    /// Tokens are in `0..levels`; 0 for numbers.
    pub levels: usize,
    /// Hidden states.
    pub states: usize,
    /// The form of the covariance matrices, for numbers.
    pub covariance: Covariance,
    /// Added to every variance, in standardised units; above 0.
    pub floor: f64,
    /// The strength of the prior on the emissions of a state, in steps.
    pub prior: f64,
    /// Added to every count of a first state and of a transition; above 0.
    pub smoothing: f64,
    /// Starts, of which the likeliest end is kept.
    pub restarts: usize,
    /// The most iterations of a start.
    pub iterations: usize,
    /// Gain in mean log p per step, nats, below which a start has converged.
    pub tolerance: f64,
}

impl Config {
    fn check(&self) -> Result<()> {
        let Self { shape, levels, states, floor, prior, smoothing, restarts, iterations, tolerance, .. } =
            self;
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let tokens = shape.len() == 1;
        let rules = [
            (matches!(shape.len(), 1 | 2), "shape", "[T] tokens or [T, D] numbers"),
            (shape.iter().all(|n| (1..=1 << 16).contains(n)), "shape", "sizes of 1 to 65536"),
            (!tokens || (2..=1 << 16).contains(levels), "levels", "2 to 65536 for tokens"),
            (tokens || *levels == 0, "levels", "0 for numbers"),
            ((1..=1 << 10).contains(states), "states", "1 to 1024"),
            (
                self.covariance.count(*states, self.width()) <= 1 << 28,
                "states",
                "covariances of at most 2^28 numbers",
            ),
            (positive(*floor), "floor", "a number above 0"),
            (positive(*prior), "prior", "a number above 0"),
            (positive(*smoothing), "smoothing", "a number above 0"),
            ((1..=1 << 10).contains(restarts), "restarts", "1 to 1024"),
            ((1..=1 << 20).contains(iterations), "iterations", "1 to 2^20"),
            (*tolerance >= 0.0 && tolerance.is_finite(), "tolerance", "a number of at least 0"),
        ];
        match rules.iter().find(|(ok, ..)| !ok) {
            Some((_, key, wanted)) => {
                Err(Error::new(ErrorKind::Usage, format!("hmm: {key}: expected {wanted}")))
            }
            None => Ok(()),
        }
    }

    /// Numbers per step; 1 for tokens.
    fn width(&self) -> usize {
        self.shape.get(1).copied().unwrap_or(1)
    }
}

/// p(x_t | z_t).
enum Emissions {
    /// In standardised units.
    Gaussian(Gaussians),
    /// (K, levels) probabilities.
    Categorical(Param),
}

/// The chain and its emissions.
struct Chain {
    /// (K,) probabilities.
    first: Param,
    /// (K, K) probabilities, rows from.
    transitions: Param,
    emissions: Emissions,
}

/// The model; see the module's description.
pub struct Hmm {
    config: Config,
    store: ParamStore,
    scaling: Option<Scaling>,
    chain: Chain,
}

impl Hmm {
    /// A model with random emissions and equal transitions, to be fitted by [`Model::solve`].
    ///
    /// # Errors
    /// When the configuration is impossible.
    pub fn new(config: Config, rng: &mut Philox) -> Result<Self> {
        config.check()?;
        let (k, d) = (config.states, config.width());
        let mut store = ParamStore::default();
        let mut init = Init::new(&mut store, rng, DType::F64);
        let scaling = (config.shape.len() == 2).then(|| Scaling::new(&mut init, d));
        let even = Initial::Constant(1.0 / k as f64);
        let first = init.buffer("first", [k], DType::F64, even);
        let transitions = init.buffer("transitions", [k, k], DType::F64, even);
        let emissions = match scaling {
            Some(_) => Emissions::Gaussian(Gaussians::new(&mut init, config.covariance, k, d)),
            None => {
                let share = Initial::Constant(1.0 / config.levels as f64);
                Emissions::Categorical(init.buffer("emissions", [k, config.levels], DType::F64, share))
            }
        };
        if let Emissions::Categorical(table) = &emissions {
            table.set(&random_table(k, config.levels, rng));
        }
        Ok(Self { config, store, scaling, chain: Chain { first, transitions, emissions } })
    }

    /// The likeliest path of states (B, T) of sequences x (B, ...), by Viterbi's algorithm (1967).
    ///
    /// # Panics
    /// When x has another shape.
    #[track_caller]
    pub fn states(&self, x: &Tensor) -> Tensor {
        let (t, k) = (self.config.shape[0], self.config.states);
        let emitted = self.chain.log_emissions(&self.prepared(x)).to_f64_vec();
        let (first, transitions) = self.chain.logs();
        let mut paths = vec![0i32; x.shape()[0] * t];
        par::chunks_mut(&mut paths, t, |i, path| {
            let emitted = &emitted[i * t * k..][..t * k];
            let mut best: Vec<f64> = (0..k).map(|j| first[j] + emitted[j]).collect();
            let mut from = vec![0usize; t * k];
            for step in 1..t {
                let next: Vec<f64> = (0..k)
                    .map(|to| {
                        let score = |j: usize| best[j] + transitions[j * k + to];
                        let arg = (0..k).fold(0, |a, j| if score(j) > score(a) { j } else { a });
                        from[step * k + to] = arg;
                        score(arg) + emitted[step * k + to]
                    })
                    .collect();
                best = next;
            }
            let mut at = (0..k).fold(0, |a, j| if best[j] > best[a] { j } else { a });
            for step in (0..t).rev() {
                path[step] = at as i32;
                at = from[step * k + at];
            }
        });
        Tensor::from_slice(&paths, [x.shape()[0], t])
    }

    /// Steps (B · T, D) standardised numbers, or (B · T, 1) tokens, f64.
    #[track_caller]
    fn prepared(&self, x: &Tensor) -> Tensor {
        let shape = &self.config.shape;
        assert!(
            x.rank() == shape.len() + 1 && x.shape()[1..] == shape[..],
            "hmm: x {:?}; expected (B, {shape:?})",
            x.shape()
        );
        let rows = [x.shape()[0] * shape[0], self.config.width()];
        match &self.scaling {
            Some(scaling) => scaling.forward(x, DType::F64).reshape(rows),
            None => x.cast(DType::F64).reshape(rows),
        }
    }

    /// One start: a chain from the steps `y` (N · T, D).
    fn start(&self, y: &Tensor, rng: &mut Philox) -> Chain {
        let Config { states: k, covariance, .. } = self.config;
        let floor = self.floor();
        let (prior, steps) = (self.prior(&floor), y.shape()[0]);
        let even = Tensor::full(1.0 / k as f64, [k], DType::F64);
        // States last: a step stays where it is in half of the cases.
        let stay = |i: usize| 0.5 / k as f64 + if i.is_multiple_of(k + 1) { 0.5 } else { 0.0 };
        let transitions = Param::buffer(Tensor::from_fn([k, k], stay));
        let emissions = match self.scaling {
            None => Emissions::Categorical(Param::buffer(random_table(k, self.config.levels, rng))),
            Some(_) => {
                let clusters = kmeans(y, k, KMEANS_ITERATIONS, rng);
                let means = Tensor::from_slice(&clusters.centres, [k, self.config.width()]);
                let gaussians = Gaussians::at(covariance, &means);
                let rows = (CHUNK / (k * self.config.width())).clamp(1, steps);
                let chunks = (0..steps).step_by(rows).map(|start| {
                    let n = rows.min(steps - start);
                    let own = |i: usize| f64::from(clusters.assignment[start + i / k] == i % k);
                    gaussians.moments(&y.narrow(0, start, n), &Tensor::from_fn([n, k], own))
                });
                if let Some(moments) = chunks.reduce(Moments::plus) {
                    gaussians.update(&moments, prior);
                }
                Emissions::Gaussian(gaussians)
            }
        };
        Chain { first: Param::buffer(even), transitions, emissions }
    }

    fn floor(&self) -> Vec<f64> {
        vec![self.config.floor; self.config.width()]
    }

    fn prior<'a>(&self, floor: &'a [f64]) -> Prior<'a> {
        let Config { states, prior, .. } = self.config;
        let expected = (states as f64).powf(-2.0 / self.config.width() as f64);
        Prior { strength: prior, expected, pooled: false, floor }
    }

    /// Baum-Welch from one start; the chain and the mean log p per sequence of every iteration.
    fn fit(&self, y: &Tensor, rng: &mut Philox) -> (Chain, Vec<f64>) {
        let Config { iterations, tolerance, .. } = self.config;
        let (chain, floor) = (self.start(y, rng), self.floor());
        let t = self.config.shape[0];
        let n = y.shape()[0] / t;
        let mut trace: Vec<f64> = Vec::new();
        for iteration in 1..=iterations {
            let counts = chain.expect(y, t);
            let nats = counts.nats / n as f64;
            let converged = trace.last().is_some_and(|before| (nats - before).abs() < tolerance * t as f64);
            trace.push(nats);
            if converged || iteration == iterations {
                break;
            }
            chain.maximise(counts, self.prior(&floor), self.config.smoothing);
        }
        (chain, trace)
    }
}

/// (K, levels) rows of probabilities, each exponential numbers over their sum.
fn random_table(k: usize, levels: usize, rng: &mut Philox) -> Tensor {
    let raw = rng.uniform_open([k, levels], DType::F64).ln().affine(-1.0, 0.0);
    &raw / &raw.sum(&[1]).reshape([k, 1])
}

/// Expected counts over all sequences.
struct Counts {
    first: Vec<f64>,
    transitions: Vec<f64>,
    emissions: Emitted,
    nats: f64,
}

enum Emitted {
    Gaussian(Moments),
    /// (K, levels).
    Categorical(Vec<f64>),
}

/// What one sequence adds: γ (T, K), and ξ summed over time (K, K).
#[derive(Clone)]
struct Passed {
    shares: Vec<f64>,
    transitions: Vec<f64>,
    nats: f64,
}

impl Chain {
    /// ln π and ln A.
    fn logs(&self) -> (Vec<f64>, Vec<f64>) {
        (self.first.get().ln().to_f64_vec(), self.transitions.get().ln().to_f64_vec())
    }

    /// ln b_k(x) (rows, K) of steps `y` (rows, D).
    fn log_emissions(&self, y: &Tensor) -> Tensor {
        match &self.emissions {
            Emissions::Gaussian(g) => g.log_density(y),
            Emissions::Categorical(table) => {
                let table = table.get();
                let [k, levels] = table.dims();
                let (table, tokens) = (table.as_slice::<f64>(), y.as_slice::<f64>());
                Tensor::from_fn([tokens.len(), k], |i| table[i % k * levels + tokens[i / k] as usize].ln())
            }
        }
    }

    /// The E-step over the steps `y` (N · T, D) of sequences of `t` steps.
    fn expect(&self, y: &Tensor, t: usize) -> Counts {
        let (k, [rows, d]) = (self.first.get().len(), y.dims());
        let (n, levels) = (
            rows / t,
            match &self.emissions {
                Emissions::Categorical(table) => table.get().shape()[1],
                Emissions::Gaussian(_) => 0,
            },
        );
        let (log_first, log_transitions) = self.logs();
        let per_chunk = (CHUNK / (k * d * t)).clamp(1, n);
        let (mut first, mut transitions, mut nats) = (vec![0.0; k], vec![0.0; k * k], 0.0);
        let mut table = vec![0.0; k * levels];
        let mut moments: Option<Moments> = None;
        for start in (0..n).step_by(per_chunk) {
            let sequences = per_chunk.min(n - start);
            let part = y.narrow(0, start * t, sequences * t);
            let emitted = self.log_emissions(&part);
            let emitted = emitted.as_slice::<f64>();
            let mut passed =
                vec![Passed { shares: Vec::new(), transitions: Vec::new(), nats: 0.0 }; sequences];
            par::chunks_mut(&mut passed, 1, |i, passed| {
                passed[0] = forward_backward(&log_first, &log_transitions, &emitted[i * t * k..][..t * k], k);
            });
            let mut shares = Vec::with_capacity(sequences * t * k);
            for one in &passed {
                first.iter_mut().zip(&one.shares).for_each(|(f, s)| *f += s);
                transitions.iter_mut().zip(&one.transitions).for_each(|(a, x)| *a += x);
                nats += one.nats;
                shares.extend_from_slice(&one.shares);
            }
            match &self.emissions {
                Emissions::Gaussian(g) => {
                    let new = g.moments(&part, &Tensor::from_slice(&shares, [sequences * t, k]));
                    moments = Some(match moments {
                        None => new,
                        Some(sum) => sum.plus(new),
                    });
                }
                Emissions::Categorical(_) => {
                    for (shares, token) in shares.chunks_exact(k).zip(part.as_slice::<f64>()) {
                        let cell = |j: usize| j * levels + *token as usize;
                        shares.iter().enumerate().for_each(|(j, s)| table[cell(j)] += s);
                    }
                }
            }
        }
        let emissions = moments.map_or(Emitted::Categorical(table), Emitted::Gaussian);
        Counts { first, transitions, emissions, nats }
    }

    /// The M-step.
    fn maximise(&self, counts: Counts, prior: Prior, smoothing: f64) {
        let k = counts.first.len();
        self.first.set(&Tensor::from_slice(&shares(&counts.first, smoothing), [k]));
        let rows = counts.transitions.chunks_exact(k).flat_map(|row| shares(row, smoothing));
        self.transitions.set(&Tensor::from_slice(&rows.collect::<Vec<_>>(), [k, k]));
        match (&self.emissions, counts.emissions) {
            (Emissions::Gaussian(g), Emitted::Gaussian(moments)) => g.update(&moments, prior),
            (Emissions::Categorical(table), Emitted::Categorical(counts)) => {
                let levels = counts.len() / k;
                let rows =
                    counts.chunks_exact(levels).flat_map(|row| shares(row, prior.strength / levels as f64));
                table.set(&Tensor::from_slice(&rows.collect::<Vec<_>>(), [k, levels]));
            }
            _ => unreachable!("the counts are those of these emissions"),
        }
    }

    fn assign(&self, other: &Chain) {
        self.first.set(&other.first.get());
        self.transitions.set(&other.transitions.get());
        match (&self.emissions, &other.emissions) {
            (Emissions::Gaussian(to), Emissions::Gaussian(from)) => {
                to.means.set(&from.means.get());
                to.whiten.set(&from.whiten.get());
            }
            (Emissions::Categorical(to), Emissions::Categorical(from)) => to.set(&from.get()),
            _ => unreachable!("both chains are of one model"),
        }
    }
}

/// (count + extra) / Σ.
fn shares(counts: &[f64], extra: f64) -> Vec<f64> {
    let total: f64 = counts.iter().map(|c| c + extra).sum();
    counts.iter().map(|c| (c + extra) / total).collect()
}

fn log_sum_exp(x: impl Iterator<Item = f64> + Clone) -> f64 {
    let top = x.clone().fold(f64::NEG_INFINITY, f64::max);
    if top == f64::NEG_INFINITY { top } else { top + x.map(|x| (x - top).exp()).sum::<f64>().ln() }
}

/// α (T, K) from ln π, ln A and ln b (T, K).
fn forward(first: &[f64], transitions: &[f64], emitted: &[f64], k: usize) -> Vec<f64> {
    let mut alpha = vec![0.0; emitted.len()];
    (0..k).for_each(|j| alpha[j] = first[j] + emitted[j]);
    for t in 1..emitted.len() / k {
        let (before, now) = alpha.split_at_mut(t * k);
        let before = &before[(t - 1) * k..];
        for to in 0..k {
            let paths = (0..k).map(|j| before[j] + transitions[j * k + to]);
            now[to] = emitted[t * k + to] + log_sum_exp(paths);
        }
    }
    alpha
}

fn forward_backward(first: &[f64], transitions: &[f64], emitted: &[f64], k: usize) -> Passed {
    let alpha = forward(first, transitions, emitted, k);
    let t = emitted.len() / k;
    let nats = log_sum_exp(alpha[(t - 1) * k..].iter().copied());
    let (mut shares, mut counts) = (vec![0.0; t * k], vec![0.0; k * k]);
    let mut beta = vec![0.0; k];
    for step in (0..t).rev() {
        (0..k).for_each(|j| shares[step * k + j] = (alpha[step * k + j] + beta[j] - nats).exp());
        if step == 0 {
            break;
        }
        let ahead: Vec<f64> = (0..k).map(|j| emitted[step * k + j] + beta[j]).collect();
        let before = &alpha[(step - 1) * k..][..k];
        for from in 0..k {
            let row = &transitions[from * k..][..k];
            for to in 0..k {
                counts[from * k + to] += (before[from] + row[to] + ahead[to] - nats).exp();
            }
            beta[from] = log_sum_exp(row.iter().zip(&ahead).map(|(a, b)| a + b));
        }
    }
    Passed { shares, transitions: counts, nats }
}

impl Model for Hmm {
    fn config(&self) -> serde_json::Value {
        serde_json::to_value(&self.config).expect("a configuration is plain data")
    }

    fn input(&self) -> Input {
        let shape = self.config.shape.clone();
        match self.scaling {
            Some(_) => Input { shape, dtypes: &[DType::F32, DType::F64], ..Input::default() },
            None => Input::tokens(shape, self.config.levels),
        }
    }

    fn params(&self) -> &ParamStore {
        &self.store
    }

    fn log_prob(&self, batch: &Batch, _rng: &mut Philox) -> LogProb {
        let (t, k, b) = (self.config.shape[0], self.config.states, batch.x.shape()[0]);
        let emitted = self.chain.log_emissions(&self.prepared(&batch.x)).to_f64_vec();
        let (first, transitions) = self.chain.logs();
        let log_det = self.scaling.as_ref().map_or(0.0, Scaling::log_det);
        let mut steps = vec![0.0; b * t];
        par::chunks_mut(&mut steps, t, |i, steps| {
            let alpha = forward(&first, &transitions, &emitted[i * t * k..][..t * k], k);
            let mut before = 0.0;
            for (step, alpha) in steps.iter_mut().zip(alpha.chunks_exact(k)) {
                let so_far = log_sum_exp(alpha.iter().copied());
                *step = so_far - before + log_det;
                before = so_far;
            }
        });
        let steps = Tensor::from_slice(&steps, [b, t]);
        LogProb { nats: steps.sum(&[1]), kind: Kind::Exact, per_position: Some(steps) }
    }

    fn sample(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor> {
        options.check("hmm", 0)?;
        let (t, k) = (self.config.shape[0], self.config.states);
        let (first, transitions) = self.chain.logs();
        let row = |state: usize| &transitions[state * k..][..k];
        let mut path = vec![0usize; n * t];
        for step in 0..t {
            let rows: Vec<f64> = match step {
                0 => first.repeat(n),
                _ => (0..n).flat_map(|i| row(path[i * t + step - 1]).iter().copied()).collect(),
            };
            let drawn = rng.categorical(&Tensor::from_slice(&rows, [n, k]));
            drawn.as_slice::<i32>().iter().enumerate().for_each(|(i, s)| path[i * t + step] = *s as usize);
        }
        let shape = [&[n], &self.config.shape[..]].concat();
        Ok(match (&self.chain.emissions, &self.scaling) {
            (Emissions::Gaussian(g), Some(scaling)) => {
                scaling.inverse(&g.sample(&path, options.temperature, rng)).reshape(shape)
            }
            (Emissions::Categorical(table), _) => {
                let table = table.get().ln().affine(1.0 / options.temperature, 0.0);
                let path: Vec<i32> = path.iter().map(|s| *s as i32).collect();
                let at = Tensor::from_slice(&path, [n * t]);
                let tokens = rng.categorical(&crate::ops::index::gather_rows(&table, &at));
                tokens.cast(self.input().dtypes[0]).reshape(shape)
            }
            _ => unreachable!("numbers have a scaling"),
        })
    }

    fn solves(&self) -> bool {
        true
    }

    fn solve(&self, train: &Dataset, rng: &mut Philox) -> Result<Option<Vec<f64>>> {
        self.input().check(train)?;
        if let Some(scaling) = &self.scaling {
            scaling.fit(&train.name, &train.values)?;
        }
        let y = self.prepared(&train.values);
        let end = |trace: &[f64]| trace.last().copied().unwrap_or(f64::NEG_INFINITY);
        let mut best: Option<(Chain, Vec<f64>)> = None;
        for _ in 0..self.config.restarts {
            let (chain, trace) = self.fit(&y, rng);
            if best.as_ref().is_none_or(|(_, other)| end(&trace) > end(other)) {
                best = Some((chain, trace));
            }
        }
        let (chain, trace) = best.expect("at least one start");
        self.chain.assign(&chain);
        let log_det = self.scaling.as_ref().map_or(0.0, Scaling::log_det) * self.config.shape[0] as f64;
        Ok(Some(trace.iter().map(|nats| -(nats + log_det)).collect()))
    }
}
