//! Chains: unadjusted Langevin, MALA, HMC.

use super::{Diagnosis, Potential, diagnose};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::langevin::{Langevin, langevin};
use crate::ops::metropolis::{self, Place};
use crate::random::Philox;
use crate::tensor::Tensor;

/// How chains move.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// Unadjusted Langevin with this step h.
    Langevin {
        /// h.
        step: f64,
    },
    /// Metropolis-adjusted Langevin with leapfrog length ε = √(2h).
    Mala {
        /// ε to start from.
        step: f64,
    },
    /// Hamiltonian Monte Carlo.
    Hmc {
        /// ε to start from.
        step: f64,
        /// Leapfrog steps in a trajectory.
        leapfrog: usize,
    },
}

/// How long chains run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Run {
    /// Transitions that are thrown away and in which ε is adapted.
    pub warmup: usize,
    /// Transitions that are kept.
    pub draws: usize,
    /// The mean acceptance that adaptation aims at: 0.574 suits MALA, 0.65 to 0.8 HMC (Beskos et al. 2013).
    pub target: f64,
    /// Where x is held; infinite for nowhere.
    pub range: [f64; 2],
}

impl Default for Run {
    fn default() -> Self {
        Self { warmup: 500, draws: 1000, target: 0.7, range: [f64::NEG_INFINITY, f64::INFINITY] }
    }
}

/// What chains found.
pub struct Samples {
    /// (N, C, ...): N draws of C chains.
    pub draws: Tensor,
    /// Mean probability of acceptance after warm-up; 1 for unadjusted Langevin, which accepts everything.
    pub acceptance: f64,
    /// The step that was used after warm-up.
    pub step: f64,
    /// Effective sizes and R-hat, number by number.
    pub diagnosis: Vec<Diagnosis>,
}

/// The place of all chains that are at x.
pub(super) fn at(potential: Potential, x: Tensor) -> Place {
    let (u, gradient) = potential(&x);
    Place { x, u, gradient }
}

/// Runs the rows of `start` (C, ...) as chains of p(x) ∝ e^{−U(x)}.
///
/// # Errors
/// [`ErrorKind::NonFinite`] when U is not finite at the start, or for unadjusted Langevin anywhere.
pub fn sample(
    potential: Potential,
    start: &Tensor,
    method: Method,
    run: Run,
    rng: &mut Philox,
) -> Result<Samples> {
    let mut chains = at(potential, start.detach());
    finite(&chains.u, "at the start")?;
    let (mut draws, mut accepted) = (Vec::with_capacity(run.draws), 0.0);
    let (step, leapfrog) = match method {
        Method::Langevin { step } | Method::Mala { step } => (step, 1),
        Method::Hmc { step, leapfrog } => (step, leapfrog.max(1)),
    };
    let mut averaging = Averaging::new(step);
    for n in 0..run.warmup + run.draws {
        let warm = n < run.warmup;
        if let Method::Langevin { step } = method {
            let how = Langevin { range: run.range, ..Langevin::unadjusted(step) };
            chains = at(potential, langevin(&chains.x, &chains.gradient, how, rng));
            finite(&chains.u, "after a step of unadjusted Langevin, which a smaller step may mend")?;
            accepted += f64::from(u8::from(!warm));
        } else {
            let epsilon = if warm { averaging.step() } else { averaging.settled() };
            let mean = transition(potential, &mut chains, epsilon, leapfrog, run.range, rng);
            if warm {
                averaging.hear(mean, run.target);
            } else {
                accepted += mean;
            }
        }
        if !warm {
            draws.push(chains.x.clone());
        }
    }
    let parts: Vec<Tensor> = draws.iter().map(|x| x.reshape(&[&[1], x.shape()].concat()[..])).collect();
    let draws = crate::ops::shape::concat(&parts.iter().collect::<Vec<_>>(), 0);
    let diagnosis = diagnose(&draws);
    let step = if matches!(method, Method::Langevin { .. }) { step } else { averaging.settled() };
    Ok(Samples { draws, acceptance: accepted / run.draws.max(1) as f64, step, diagnosis })
}

fn finite(u: &Tensor, when: &str) -> Result<()> {
    match u.to_f64_vec().iter().position(|u| !u.is_finite()) {
        Some(chain) => {
            Err(Error::new(ErrorKind::NonFinite, format!("the energy of chain {chain} is not finite {when}")))
        }
        None => Ok(()),
    }
}

/// One trajectory of every chain, accepted or not; returns the mean probability of acceptance.
pub(super) fn transition(
    potential: Potential,
    chains: &mut Place,
    epsilon: f64,
    leapfrog: usize,
    range: [f64; 2],
    rng: &mut Philox,
) -> f64 {
    let start = rng.normal(chains.x.shape(), chains.x.dtype());
    let (mut p, mut next) = (start.clone(), chains.clone());
    for _ in 0..leapfrog {
        let [x, half] = metropolis::leapfrog(&next.x, &p, &next.gradient, epsilon, range);
        next = at(potential, x);
        p = &half + &next.gradient.affine(-0.5 * epsilon, 0.0);
    }
    let (place, odds) = metropolis::metropolis(chains, &next, &start, &p, rng);
    *chains = place;
    odds.to_f64_vec().iter().sum::<f64>() / odds.len().max(1) as f64
}

/// Dual averaging of the logarithm of ε.
struct Averaging {
    centre: f64,
    log_step: f64,
    settled: f64,
    error: f64,
    n: f64,
}

impl Averaging {
    fn new(step: f64) -> Self {
        Self { centre: (10.0 * step).ln(), log_step: step.ln(), settled: step.ln(), error: 0.0, n: 0.0 }
    }

    /// The step to try next.
    fn step(&self) -> f64 {
        self.log_step.exp()
    }

    /// The averaged step.
    fn settled(&self) -> f64 {
        self.settled.exp()
    }

    /// γ = 0.05, t₀ = 10, κ = 0.75 as in Hoffman & Gelman 2014.
    fn hear(&mut self, acceptance: f64, target: f64) {
        self.n += 1.0;
        let share = 1.0 / (self.n + 10.0);
        self.error += share * (target - acceptance - self.error);
        self.log_step = self.centre - self.n.sqrt() / 0.05 * self.error;
        let weight = self.n.powf(-0.75);
        self.settled = weight * self.log_step + (1.0 - weight) * self.settled;
    }
}
