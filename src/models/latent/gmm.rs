//! Gaussian mixture: p(x) = Σ_k w_k N(x; μ_k, Σ_k), by expectation maximisation (Dempster, Laird & Rubin 1977).
//!
//! Columns are standardised with the training data, log |det| included; constant columns keep their scale. The start
//! is k-means (k-means++, the best of `restarts` by likelihood). E-step: responsibilities r_nk = w_k N_k(x_n) / p(x_n)
//! by logsumexp, rows in chunks of bounded memory. M-step: weighted means and covariances, with regularisers in
//! standardised units: `floor` is added to every variance, and a prior worth `prior` rows expects the variance
//! K^(−2/D), the volume of the data shared by K components (maximum a posteriori after Fraley & Raftery 2007). With
//! `pooled` that prior is one of the covariance that all components have in common, and this is what each of them is
//! expected to have (as regularised discriminant analysis shrinks, Friedman 1989). So
//! constant or duplicated columns, and fewer rows than columns, give finite densities. With `blur` the floor of a
//! column is at least the square of half the gap between its values ([`crate::data::grain`]): the mixture is of the
//! rows smoothed by noise of that size. It stops when the mean log p gains less than `tolerance` nats per column.
//! With `select = "bic"` the number of components is that of 1, 2, 3, 4, 6, 9, 13 ... up to `components` with the
//! smallest −2 Σ log p + (free parameters) ln N (Schwarz 1978), where the search ends when two in a row bring
//! nothing; what is not used has weight 0. `"bic_forms"` also chooses among diagonal, full and tied matrices, as
//! mclust does (Fraley & Raftery 2002); those that need more parameters than there are numbers in the data are left
//! out.
//!
//! The likelihood is exact. Cost of an iteration, in f64: 2 N K D² flops and 2 D² for every component that a row has
//! a share in (full), 4 N D² + 4 N K D (tied), 8 N K D (diagonal).

use super::gaussian::{Covariance, Gaussians, Moments, Prior};
use super::kmeans::kmeans;
use super::scaling::Scaling;
use crate::data::{Dataset, grain};
use crate::error::{Error, ErrorKind, Result};
use crate::models::{Batch, Input, Kind, LogProb, Model, ModelInfo, SampleOptions};
use crate::nn::{Init, Initial, Param, ParamStore};
use crate::ops::softmax::{log_softmax, logsumexp};
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// The registry's line.
pub const INFO: ModelInfo = ModelInfo {
    name: "gmm",
    family: "latent",
    summary: "Gaussian mixture by expectation maximisation: full, tied or diagonal covariances, BIC (Dempster et al. 1977)",
    objective: "surprisal, nats",
    reproduce: "surprisal adbench FOLDER --models gmm --seeds 3: mean AUROC .830 over 21 tables (benches/results/tables.md); \
                five components in PyOD: .821",
    presets: &[("gmm", GMM), ("gmm_bic", GMM_BIC), ("gmm_5", GMM_5)],
    tiny: &["shape=[2]", "components=2"],
    build: |config, rng| {
        let config = serde_json::from_value(config.clone())
            .map_err(|e| Error::new(ErrorKind::Usage, format!("gmm: {e}")))?;
        Ok(Box::new(Gmm::new(config, rng)?))
    },
};

const GMM: &str = r#"
shape = [21]
components = 20
covariance = "full"
select = "none"
floor = 1e-4
blur = true
prior = 30.0
pooled = true
restarts = 1
iterations = 100
tolerance = 1e-4
"#;

const GMM_BIC: &str = r#"
shape = [21]
components = 32
covariance = "full"
select = "bic_forms"
floor = 1e-6
blur = false
prior = 30.0
pooled = false
restarts = 1
iterations = 100
tolerance = 1e-4
"#;

const GMM_5: &str = r#"
shape = [21]
components = 5
covariance = "full"
select = "none"
floor = 1e-6
blur = false
prior = 30.0
pooled = false
restarts = 1
iterations = 100
tolerance = 1e-4
"#;

/// Numbers (rows x components) that one chunk of the E-step holds.
const CHUNK: usize = 1 << 20;
/// Numbers that full matrices may hold.
const WIDE: usize = 1 << 22;
/// Lloyd's iterations of the start.
const KMEANS_ITERATIONS: usize = 50;

/// How the number of components is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Select {
    /// As given.
    None,
    /// By the Bayesian information criterion, up to the given number.
    Bic,
    /// The same, and the form of the matrices with it.
    BicForms,
}

/// What a [`Gmm`] is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The number of columns.
    pub shape: [usize; 1],
    /// Components, or the most of them.
    pub components: usize,
    /// The form of the covariance matrices; full where it is chosen. Full ones that would hold more than 2^22 numbers in
    /// all are tied where nothing is chosen.
    pub covariance: Covariance,
    /// How the number of components is chosen.
    pub select: Select,
    /// Added to every variance, in standardised units; above 0.
    pub floor: f64,
    /// Whether half a gap between the values of a column, squared, is its floor where that is more.
    #[serde(default)]
    pub blur: bool,
    /// The strength of the prior on the covariances, in rows.
    pub prior: f64,
    /// Whether what is expected of a component is what all have in common.
    #[serde(default)]
    pub pooled: bool,
    /// Starts, of which the likeliest end is kept.
    pub restarts: usize,
    /// The most iterations of a start.
    pub iterations: usize,
    /// Gain in mean log p, nats per column, below which a start has converged.
    pub tolerance: f64,
}

impl Config {
    /// The form of the matrices.
    fn form(&self) -> Covariance {
        let [d] = self.shape;
        let wide = self.select == Select::None && self.components * d * d > WIDE;
        if wide && self.covariance == Covariance::Full { Covariance::Tied } else { self.covariance }
    }

    fn check(&self) -> Result<()> {
        let Self { shape: [d], components, floor, prior, restarts, iterations, tolerance, .. } = *self;
        let amount = |x: f64| x.is_finite() && x >= 0.0;
        let rules = [
            ((1..=1 << 14).contains(&d), "shape", "1 to 16384 columns"),
            ((1..=1 << 10).contains(&components), "components", "1 to 1024"),
            (
                self.form().count(components, d) <= 1 << 28,
                "components",
                "covariances of at most 2^28 numbers",
            ),
            (
                self.select != Select::BicForms || self.covariance == Covariance::Full,
                "covariance",
                "full, of which the forms that select = \"bic_forms\" chooses from are special cases",
            ),
            (floor.is_finite() && floor > 0.0, "floor", "a number above 0"),
            (amount(prior), "prior", "a number of at least 0"),
            ((1..=1 << 10).contains(&restarts), "restarts", "1 to 1024"),
            ((1..=1 << 20).contains(&iterations), "iterations", "1 to 2^20"),
            (amount(tolerance), "tolerance", "a number of at least 0"),
        ];
        match rules.iter().find(|(ok, ..)| !ok) {
            Some((_, key, wanted)) => {
                Err(Error::new(ErrorKind::Usage, format!("gmm: {key}: expected {wanted}")))
            }
            None => Ok(()),
        }
    }
}

/// The model; see the module's description.
pub struct Gmm {
    config: Config,
    store: ParamStore,
    scaling: Scaling,
    mixture: Mixture,
}

/// Weights and Gaussians, in standardised units.
struct Mixture {
    /// (K,).
    weights: Param,
    gaussians: Gaussians,
}

/// A mixture with how it got there.
struct Fitted {
    mixture: Mixture,
    /// Mean log p after each iteration, standardised units.
    trace: Vec<f64>,
}

impl Gmm {
    /// A model with equal weights, random means and unit covariances, to be fitted by [`Model::solve`].
    ///
    /// # Errors
    /// When the configuration is impossible.
    pub fn new(config: Config, rng: &mut Philox) -> Result<Self> {
        config.check()?;
        let Config { shape: [d], components: k, .. } = config;
        let mut store = ParamStore::default();
        let mut init = Init::new(&mut store, rng, DType::F64);
        let scaling = Scaling::new(&mut init, d);
        let weights = init.buffer("weights", [k], DType::F64, Initial::Constant(1.0 / k as f64));
        let gaussians = Gaussians::new(&mut init, config.form(), k, d);
        Ok(Self { config, store, scaling, mixture: Mixture { weights, gaussians } })
    }

    /// ln p(component | x) (B, K) of rows x (B, D).
    ///
    /// # Panics
    /// When x has another number of columns.
    #[track_caller]
    pub fn log_responsibilities(&self, x: &Tensor) -> Tensor {
        log_softmax(&self.mixture.joint(&self.prepared(x)))
    }

    /// Components in use: those whose weight is not 0.
    pub fn components(&self) -> usize {
        self.mixture.weights.get().as_slice::<f64>().iter().filter(|w| **w > 0.0).count()
    }

    #[track_caller]
    fn prepared(&self, x: &Tensor) -> Tensor {
        let [d] = self.config.shape;
        assert!(x.rank() == 2 && x.shape()[1] == d, "gmm: x {:?}; expected (B, {d})", x.shape());
        self.scaling.forward(x, DType::F64)
    }

    /// Fits `k` components with covariances of this form to the standardised rows `y`, with these floors of the columns.
    fn fit(&self, y: &Tensor, k: usize, covariance: Covariance, floor: &[f64], rng: &mut Philox) -> Fitted {
        let Config { shape: [d], prior: strength, pooled, iterations, tolerance, .. } = self.config;
        let prior = Prior { strength, expected: (k as f64).powf(-2.0 / d as f64), pooled, floor };
        let clusters = kmeans(y, k, KMEANS_ITERATIONS, rng);
        let mixture = Mixture {
            weights: Param::buffer(Tensor::full(1.0 / k as f64, [k], DType::F64)),
            gaussians: Gaussians::at(covariance, &Tensor::from_slice(&clusters.centres, [k, d])),
        };
        let own = |start: usize, rows: &Tensor| {
            let assigned = &clusters.assignment[start..];
            let own = |i: usize| f64::from(assigned[i / k] == i % k);
            (Tensor::from_fn([rows.shape()[0], k], own), 0.0)
        };
        mixture.update(mixture.gather(y, own).0, prior);
        let (mut trace, n) = (Vec::new(), y.shape()[0] as f64);
        for iteration in 1..=iterations {
            let (moments, nats) = mixture.gather(y, |_, rows| {
                let joint = mixture.joint(rows);
                (log_softmax(&joint).exp(), logsumexp(&joint).sum_all().item())
            });
            let before = trace.last().copied();
            trace.push(nats / n);
            // The last number of the trace is that of the parameters that are kept.
            let converged = before.is_some_and(|before| (nats / n - before).abs() < tolerance * d as f64);
            if converged || iteration == iterations {
                break;
            }
            mixture.update(moments, prior);
        }
        Fitted { mixture, trace }
    }
}

/// The numbers of components that are tried: each about half as large again as the one before, up to `most`.
fn ladder(most: usize) -> Vec<usize> {
    let next = |k: &usize| Some(k + (k / 2).max(1));
    std::iter::successors(Some(1), next).take_while(|k| *k < most).chain([most]).collect()
}

impl Mixture {
    /// ln w_k + ln N_k (N, K) of rows y (N, D).
    fn joint(&self, y: &Tensor) -> Tensor {
        self.gaussians.log_joint(y, &self.weights.get().ln().to_f64_vec())
    }

    /// The moments of all rows under the weights (n, K) that `share` gives for each chunk (its first row, its rows),
    /// and the sum of the second number.
    fn gather(&self, y: &Tensor, share: impl Fn(usize, &Tensor) -> (Tensor, f64)) -> (Moments, f64) {
        let ([n, _], k) = (y.dims(), self.weights.get().len());
        let rows = (CHUNK / k).clamp(1, n);
        let mut all: Option<(Moments, f64)> = None;
        for start in (0..n).step_by(rows) {
            let part = y.narrow(0, start, rows.min(n - start));
            let (weights, number) = share(start, &part);
            let moments = self.gaussians.moments(&part, &weights);
            all = Some(match all {
                None => (moments, number),
                Some((sum, total)) => (sum.plus(moments), total + number),
            });
        }
        all.expect("there is at least one row")
    }

    fn update(&self, moments: Moments, prior: Prior) {
        let total: f64 = moments.counts.iter().sum();
        self.gaussians.update(&moments, prior);
        let weights: Vec<f64> = moments.counts.iter().map(|c| c / total).collect();
        self.weights.set(&Tensor::from_slice(&weights, [weights.len()]));
    }

    /// Copies `other`, which may have fewer components, and covariances of a simpler form; the others get weight 0.
    fn assign(&self, other: &Mixture) {
        let widen = |to: &Param, from: &Param| {
            let (mut value, from) = (to.get(), from.get());
            value.make_mut::<f64>()[..from.len()].copy_from_slice(from.as_slice::<f64>());
            to.set(&value);
        };
        self.weights.set(&Tensor::zeros([self.weights.get().len()], DType::F64));
        widen(&self.weights, &other.weights);
        widen(&self.gaussians.means, &other.gaussians.means);
        let whiten = other.gaussians.in_form(self.gaussians.form);
        widen(&self.gaussians.whiten, &Param::buffer(whiten));
    }
}

impl Model for Gmm {
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
        let y = self.prepared(&batch.x);
        let nats = logsumexp(&self.mixture.joint(&y));
        LogProb { nats: nats.affine(1.0, self.scaling.log_det()), kind: Kind::Exact, per_position: None }
    }

    fn sample(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor> {
        options.check("gmm", 0)?;
        let log_weights = self.mixture.weights.get().ln();
        let k = log_weights.len();
        let which = rng.categorical(&log_weights.reshape([1, k]).broadcast_to([n, k]));
        let which: Vec<usize> = which.as_slice::<i32>().iter().map(|&k| k as usize).collect();
        let y = self.mixture.gaussians.sample(&which, options.temperature, rng);
        Ok(self.scaling.inverse(&y))
    }

    fn solves(&self) -> bool {
        true
    }

    fn solve(&self, train: &Dataset, rng: &mut Philox) -> Result<Option<Vec<f64>>> {
        self.input().check(train)?;
        let Config { shape: [d], components, select, restarts, floor, blur, .. } = self.config;
        self.scaling.fit(&train.name, &train.values)?;
        let deviations = if blur { grain::blur(&train.values, &self.scaling.scales()) } else { vec![0.0; d] };
        let floor: Vec<f64> = deviations.iter().map(|b| floor.max(b * b)).collect();
        let y = self.scaling.forward(&train.values, DType::F64);
        let n = train.len() as f64;
        let end = |fitted: &Fitted| fitted.trace.last().copied().unwrap_or(f64::NEG_INFINITY);
        let mut best: Option<(f64, Fitted)> = None;
        let numbers = if select == Select::None { vec![components] } else { ladder(components) };
        let forms = match select {
            Select::BicForms => &[Covariance::Diagonal, Covariance::Full, Covariance::Tied][..],
            _ => &[self.config.form()],
        };
        for &form in forms {
            let (mut least, mut in_vain) = (f64::INFINITY, 0);
            for &k in &numbers {
                let free = k * d + form.count(k, d) + k - 1;
                let known = form == Covariance::Tied && k == 1 && select == Select::BicForms;
                if known || best.is_some() && free > train.len() * d {
                    continue;
                }
                in_vain += 1;
                for _ in 0..restarts {
                    let fitted = self.fit(&y, k, form, &floor, rng);
                    let penalty = if select == Select::None { 0.0 } else { free as f64 * n.ln() };
                    let criterion = penalty - 2.0 * n * end(&fitted);
                    if criterion < least {
                        (least, in_vain) = (criterion, 0);
                    }
                    if best.as_ref().is_none_or(|(least, _)| criterion < *least) {
                        best = Some((criterion, fitted));
                    }
                }
                if in_vain == 2 {
                    break;
                }
            }
        }
        let (_, fitted) = best.expect("at least one start");
        self.mixture.assign(&fitted.mixture);
        let log_det = self.scaling.log_det();
        Ok(Some(fitted.trace.iter().map(|nats| -(nats + log_det)).collect()))
    }
}
