//! Annealed importance sampling: log Z = log ∫ e^{−U(x)} dx with an interval (Neal 2001).
//!
//! Chains start from a base of known constant and pass through U_β = (1 − β) U_base + β U for 0 = β_0 < ... < β_K = 1,
//! one HMC transition at each. The weight of a chain is w = exp(−Σ (β_{k+1} − β_k)(U − U_base)), and
//! log Z = log Z_base + ln mean(w). E mean(w) is right, so the logarithm is a lower bound in expectation; it is tight
//! where the weights' effective number is not small. The interval is the 95 % bootstrap interval over chains.
//! β follows a sigmoid (Wu et al. 2017), ε the acceptance of the transitions before (aim 0.65).

use super::Potential;
use super::hmc::{at, transition};
use crate::error::{Error, ErrorKind, Result};
use crate::random::Philox;
use crate::tensor::{DType, Tensor};

/// A density that can be sampled, with its constant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Base {
    /// Standard normal: U = ½|x|².
    Normal,
    /// Uniform on a box: U = 0 inside.
    Box {
        /// Its sides, the same for every number.
        range: [f64; 2],
    },
}

impl Base {
    fn sample(self, shape: &[usize], dtype: DType, rng: &mut Philox) -> Tensor {
        match self {
            Base::Normal => rng.normal(shape, dtype),
            Base::Box { range: [low, high] } => rng.uniform(shape, dtype).affine(high - low, low),
        }
    }

    /// U_base and its gradient.
    fn potential(self, x: &Tensor) -> (Tensor, Tensor) {
        match self {
            Base::Normal => (x.square().sum_examples().affine(0.5, 0.0), x.clone()),
            Base::Box { .. } => {
                (Tensor::zeros([x.shape()[0]], x.dtype()), Tensor::zeros(x.shape(), x.dtype()))
            }
        }
    }

    fn log_z(self, d: usize) -> f64 {
        match self {
            Base::Normal => 0.5 * d as f64 * std::f64::consts::TAU.ln(),
            Base::Box { range: [low, high] } => d as f64 * (high - low).ln(),
        }
    }

    fn range(self) -> [f64; 2] {
        match self {
            Base::Normal => [f64::NEG_INFINITY, f64::INFINITY],
            Base::Box { range } => range,
        }
    }
}

/// An estimate of log Z.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogZ {
    /// The estimate, nats.
    pub value: f64,
    /// The ends of the 95 % interval.
    pub interval: [f64; 2],
    /// (Σ w)² / Σ w², of as many as there were chains: a small one makes the interval too narrow.
    pub effective: f64,
    /// Mean acceptance of the transitions; 1 where there were none.
    pub acceptance: f64,
    /// Weights.
    pub chains: usize,
}

/// The bootstrap's repetitions.
const REPEATS: usize = 500;

/// log Z of `potential` over x of `shape` (without the chains' axis) in f32 or f64.
///
/// # Errors
/// [`ErrorKind::NonFinite`] when all weights vanish or one is not finite; [`ErrorKind::Usage`] without chains or
/// temperatures.
pub fn anneal(
    potential: Potential,
    base: Base,
    (shape, dtype): (&[usize], DType),
    (chains, temperatures, leapfrog): (usize, usize, usize),
    rng: &mut Philox,
) -> Result<LogZ> {
    if chains < 2 || temperatures < 1 || leapfrog < 1 {
        let message = format!(
            "annealing: {chains} chains, {temperatures} temperatures, {leapfrog} leapfrog steps; expected at least \
             2, 1 and 1"
        );
        return Err(Error::new(ErrorKind::Usage, message));
    }
    let d: usize = shape.iter().product();
    let x = base.sample(&[&[chains], shape].concat(), dtype, rng);
    let mut log_weights = vec![0.0; chains];
    let (mut x, mut epsilon, mut accepted) = (x, 0.5 / (d as f64).powf(0.25), 0.0);
    let mut gap = difference(potential, base, &x);
    let mut beta = 0.0;
    for k in 1..=temperatures {
        let next = schedule(k, temperatures);
        log_weights.iter_mut().zip(&gap).for_each(|(w, g)| *w -= (next - beta) * g);
        beta = next;
        let mixed = |x: &Tensor| {
            let ((u, g), (ub, gb)) = (potential(x), base.potential(x));
            let mix = |a: &Tensor, b: &Tensor| &a.affine(beta, 0.0) + &b.affine(1.0 - beta, 0.0);
            (mix(&u, &ub), mix(&g, &gb))
        };
        if k == temperatures {
            // Nothing is weighed after the last temperature.
            break;
        }
        let mut state = at(&mixed, x);
        let mean = transition(&mixed, &mut state, epsilon, leapfrog, base.range(), rng);
        accepted += mean;
        epsilon *= if mean > 0.65 { 1.05 } else { 0.95 };
        x = state.x;
        gap = difference(potential, base, &x);
    }
    let Some(found) = log_mean_interval(&log_weights, rng) else {
        let message = "annealing: no chain kept a finite weight; more temperatures may help";
        return Err(Error::new(ErrorKind::NonFinite, message));
    };
    let z = base.log_z(d);
    Ok(LogZ {
        value: found.value + z,
        interval: found.interval.map(|end| end + z),
        acceptance: accepted / (temperatures - 1).max(1) as f64,
        ..found
    })
}

/// ln mean(w) of weights given as logarithms, with its 95 % bootstrap interval; `None` when it is not finite.
pub fn log_mean_interval(log_weights: &[f64], rng: &mut Philox) -> Option<LogZ> {
    let n = log_weights.len();
    let (value, effective) = log_mean(log_weights);
    let mut words = rng.stream();
    let mut means: Vec<f64> = (0..REPEATS)
        .map(|_| {
            let drawn: Vec<f64> = (0..n).map(|_| log_weights[words.below(n as u64) as usize]).collect();
            log_mean(&drawn).0
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let interval = [means[REPEATS / 40], means[REPEATS - 1 - REPEATS / 40]];
    value.is_finite().then_some(LogZ { value, interval, effective, acceptance: 1.0, chains: n })
}

/// β_k: a sigmoid from 0 to 1, slow at both ends.
fn schedule(k: usize, of: usize) -> f64 {
    let sigmoid = |t: f64| 1.0 / (1.0 + (-4.0 * t).exp());
    let at = sigmoid(2.0 * k as f64 / of as f64 - 1.0);
    (at - sigmoid(-1.0)) / (sigmoid(1.0) - sigmoid(-1.0))
}

/// U − U_base of every chain.
fn difference(potential: Potential, base: Base, x: &Tensor) -> Vec<f64> {
    (&potential(x).0 - &base.potential(x).0).to_f64_vec()
}

/// ln mean(e^w) and the effective number of weights.
fn log_mean(log_weights: &[f64]) -> (f64, f64) {
    let top = log_weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (sum, squares) = log_weights.iter().fold((0.0, 0.0), |(s, q), w| {
        let w = (w - top).exp();
        (s + w, q + w * w)
    });
    (top + (sum / log_weights.len() as f64).ln(), sum * sum / squares)
}
