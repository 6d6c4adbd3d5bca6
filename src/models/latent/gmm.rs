//! Gaussian mixture: p(x) = Σ_k w_k N(x; μ_k, Σ_k), by expectation maximisation (Dempster, Laird & Rubin 1977).
//!
//! Columns are standardised with the training data, log |det| included; constant columns keep their scale. The start
//! is k-means (k-means++, the best of `restarts` by likelihood). E-step: responsibilities r_nk = w_k N_k(x_n) / p(x_n)
//! by logsumexp, rows in chunks of bounded memory. M-step: weighted means and covariances, with two regularisers in
//! standardised units: `floor` is added to every variance, and a prior worth `prior` rows expects the variance
//! K^(−2/D), the volume of the data shared by K components (maximum a posteriori after Fraley & Raftery 2007). So
//! constant or duplicated columns, and fewer rows than columns, give finite densities. It stops when the mean log p
//! gains less than `tolerance` nats. With `select = "bic"` the number of components is that of 1, 2, 3, 4, 6, 9, 13 ...
//! up to `components` with the smallest −2 Σ log p + (free parameters) ln N (Schwarz 1978), where the search ends when two in a
//! row bring nothing; what is not used has weight 0. `"bic_forms"` also chooses among diagonal, full and tied matrices, as
//! mclust does (Fraley & Raftery 2002); those that need more parameters than there are numbers in the data are left out.
//!
//! The likelihood is exact. Cost of an iteration: 4 N K D² flops (full, tied), 6 N K D (diagonal), in f64.

use super::gaussian::{Covariance, Gaussians, Moments, Prior};
use super::kmeans::kmeans;
use super::scaling::Scaling;
use crate::data::Dataset;
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
    reproduce: "surprisal adbench FOLDER --models gmm --set train.validation=0: mean AUROC .828 over 20 tables, three seeds \
                (benches/results/tables.md); five components in PyOD: .821 over 21",
    presets: &[("gmm", GMM), ("gmm_5", GMM_5)],
    tiny: &["shape=[2]", "components=2"],
    build: |config, rng| {
        let config = serde_json::from_value(config.clone())
            .map_err(|e| Error::new(ErrorKind::Usage, format!("gmm: {e}")))?;
        Ok(Box::new(Gmm::new(config, rng)?))
    },
};

const GMM: &str = r#"
shape = [21]
components = 32
covariance = "full"
select = "bic_forms"
floor = 1e-6
prior = 30.0
restarts = 1
iterations = 100
tolerance = 1e-3
"#;

const GMM_5: &str = r#"
shape = [21]
components = 5
covariance = "full"
select = "none"
floor = 1e-6
prior = 30.0
restarts = 1
iterations = 100
tolerance = 1e-3
"#;

/// Numbers (rows x components x columns) that one chunk of the E-step holds.
const CHUNK: usize = 1 << 17;
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
    /// The form of the covariance matrices; full where it is chosen.
    pub covariance: Covariance,
    /// How the number of components is chosen.
    pub select: Select,
    /// Added to every variance, in standardised units; above 0.
    pub floor: f64,
    /// The strength of the prior on the covariances, in rows.
    pub prior: f64,
    /// Starts, of which the likeliest end is kept.
    pub restarts: usize,
    /// The most iterations of a start.
    pub iterations: usize,
    /// Gain in mean log p, nats, below which a start has converged.
    pub tolerance: f64,
}

impl Config {
    fn check(&self) -> Result<()> {
        let Self { shape: [d], components, floor, prior, restarts, iterations, tolerance, .. } = *self;
        let amount = |x: f64| x.is_finite() && x >= 0.0;
        let rules = [
            ((1..=1 << 14).contains(&d), "shape", "1 to 16384 columns"),
            ((1..=1 << 10).contains(&components), "components", "1 to 1024"),
            (
                self.covariance.count(components, d) <= 1 << 28,
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
        let Config { shape: [d], components: k, covariance, .. } = config;
        let mut store = ParamStore::default();
        let mut init = Init::new(&mut store, rng, DType::F64);
        let scaling = Scaling::new(&mut init, d);
        let weights = init.buffer("weights", [k], DType::F64, Initial::Constant(1.0 / k as f64));
        let gaussians = Gaussians::new(&mut init, covariance, k, d);
        Ok(Self { config, store, scaling, mixture: Mixture { weights, gaussians } })
    }

    /// ln p(component | x) (B, K) of rows x (B, D).
    ///
    /// # Panics
    /// When x has another number of columns.
    #[track_caller]
    pub fn log_responsibilities(&self, x: &Tensor) -> Tensor {
        log_softmax(&self.mixture.joint(&self.mixture.gaussians.centred(&self.prepared(x))))
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

    /// Fits `k` components with covariances of this form to the standardised rows `y`.
    fn fit(&self, y: &Tensor, k: usize, covariance: Covariance, rng: &mut Philox) -> Fitted {
        let Config { shape: [d], floor, prior, iterations, tolerance, .. } = self.config;
        let prior = Prior { strength: prior, expected: (k as f64).powf(-2.0 / d as f64), floor };
        let clusters = kmeans(y, k, KMEANS_ITERATIONS, rng);
        let mixture = Mixture {
            weights: Param::buffer(Tensor::full(1.0 / k as f64, [k], DType::F64)),
            gaussians: Gaussians::at(covariance, &Tensor::from_slice(&clusters.centres, [k, d])),
        };
        let own = |start: usize, n: usize| {
            let assigned = &clusters.assignment[start..start + n];
            Tensor::from_fn([k, n], |i| f64::from(assigned[i % n] == i / n))
        };
        mixture.update(mixture.gather(y, |start, centred| (own(start, centred.shape()[1]), 0.0)).0, prior);
        let (mut trace, n) = (Vec::new(), y.shape()[0] as f64);
        for iteration in 1..=iterations {
            let (moments, nats) = mixture.gather(y, |_, centred| {
                let joint = mixture.joint(centred);
                let shares = log_softmax(&joint).exp().permute(&[1, 0]);
                (shares, logsumexp(&joint).sum_all().item())
            });
            let before = trace.last().copied();
            trace.push(nats / n);
            // The last number of the trace is that of the parameters that are kept.
            let converged = before.is_some_and(|before| (nats / n - before).abs() < tolerance);
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
    /// ln w_k + ln N_k (N, K) from y − μ (K, N, D).
    fn joint(&self, centred: &Tensor) -> Tensor {
        let weights = self.weights.get();
        let log_weights = weights.ln().reshape([weights.len(), 1]);
        (&self.gaussians.log_density(centred) + &log_weights).permute(&[1, 0])
    }

    /// The moments of all rows under the weights (K, n) that `share` gives for each chunk (its first row, y − μ),
    /// and the sum of the second number.
    fn gather(&self, y: &Tensor, share: impl Fn(usize, &Tensor) -> (Tensor, f64)) -> (Moments, f64) {
        let ([n, d], k) = (y.dims(), self.weights.get().len());
        let rows = (CHUNK / (k * d)).clamp(1, n);
        let mut all: Option<(Moments, f64)> = None;
        for start in (0..n).step_by(rows) {
            let centred = self.gaussians.centred(&y.narrow(0, start, rows.min(n - start)));
            let (weights, number) = share(start, &centred);
            let moments = Moments::of(self.gaussians.form, &centred, &weights);
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
        let nats = logsumexp(&self.mixture.joint(&self.mixture.gaussians.centred(&y)));
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

    fn solve(&self, train: &Dataset, rng: &mut Philox) -> Result<Option<Vec<f64>>> {
        self.input().check(train)?;
        let Config { shape: [d], components, covariance, select, restarts, .. } = self.config;
        self.scaling.fit(&train.name, &train.values)?;
        let y = self.scaling.forward(&train.values, DType::F64);
        let n = train.len() as f64;
        let end = |fitted: &Fitted| fitted.trace.last().copied().unwrap_or(f64::NEG_INFINITY);
        let mut best: Option<(f64, Fitted)> = None;
        let numbers = if select == Select::None { vec![components] } else { ladder(components) };
        let forms = match select {
            Select::BicForms => &[Covariance::Diagonal, Covariance::Full, Covariance::Tied][..],
            _ => &[covariance],
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
                    let fitted = self.fit(&y, k, form, rng);
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
