//! The constant: log Z by annealed importance sampling, saved with the model, and sums of energies.

use crate::error::{Error, ErrorKind, Result};
use crate::models::Kind;
use crate::nn::{Init, Initial, Param};
use crate::random::Philox;
use crate::samplers::{Base, LogZ, Potential, anneal};
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// How log Z is estimated when training ends; see [`crate::samplers::anneal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Annealing {
    /// Chains; 0 leaves the model unnormalised.
    pub chains: usize,
    /// Temperatures between the base and the model.
    pub temperatures: usize,
    /// Leapfrog steps at each.
    pub leapfrog: usize,
}

impl Annealing {
    /// Whether such a run is possible.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] naming what was expected.
    pub fn check(self, model: &str) -> Result<()> {
        let Self { chains, temperatures, leapfrog } = self;
        let sane = chains != 1 && chains <= 1 << 16 && (1..=1 << 16).contains(&temperatures);
        if sane && (1..=1 << 10).contains(&leapfrog) {
            return Ok(());
        }
        let message = format!(
            "configuration of {model}: annealing has {chains} chains, {temperatures} temperatures, {leapfrog} \
             leapfrog steps; expected 0 or at least 2, at least 1, and 1 to 1024"
        );
        Err(Error::new(ErrorKind::Usage, message))
    }
}

/// log Z of a model, saved as the buffer `log_z` (known, value, low end, high end); unknown at first.
pub struct Partition(Param);

impl Partition {
    /// Unknown.
    pub fn new(init: &mut Init) -> Self {
        Self(init.buffer("log_z", [4], DType::F64, Initial::Zeros))
    }

    /// The estimate and its 95 % interval, once there is one.
    pub fn get(&self) -> Option<(f64, [f64; 2])> {
        let v = self.0.get().to_f64_vec();
        (v[0] == 1.0).then(|| (v[1], [v[2], v[3]]))
    }

    /// Keeps an estimate.
    pub fn set(&self, found: &LogZ) {
        let [low, high] = found.interval;
        self.0.set(&Tensor::from_slice(&[1.0, found.value, low, high], [4]));
    }

    /// Forgets the estimate: the weights have changed.
    pub fn forget(&self) {
        if self.get().is_some() {
            self.0.set(&self.0.get().zeros_like());
        }
    }

    /// log p of −energies, and what that is.
    pub fn normalise(&self, unnormalised: &Tensor) -> (Tensor, Kind) {
        match self.get() {
            Some((log_z, _)) => (unnormalised.affine(1.0, -log_z), Kind::Estimate),
            None => (unnormalised.clone(), Kind::Unnormalised),
        }
    }

    /// Estimates log Z of `potential` from `base` as `how` says; nothing without chains.
    ///
    /// # Errors
    /// As [`anneal`].
    pub fn estimate(
        &self,
        potential: Potential,
        base: Base,
        shape: (&[usize], DType),
        how: Annealing,
        rng: &mut Philox,
    ) -> Result<()> {
        if how.chains > 0 {
            let sizes = (how.chains, how.temperatures, how.leapfrog);
            self.set(&anneal(potential, base, shape, sizes, rng)?);
        }
        Ok(())
    }
}

/// The potential of a product of experts: energies add, each with its weight (Hinton 2002; Du, Li & Mordatch 2020).
pub fn sum<'a>(parts: Vec<(f64, Potential<'a>)>) -> impl Fn(&Tensor) -> (Tensor, Tensor) + 'a {
    move |x| {
        let scaled = |(weight, part): &(f64, Potential<'a>)| {
            let (u, g) = part(x);
            (u.affine(*weight, 0.0), g.affine(*weight, 0.0))
        };
        let all = parts.iter().map(scaled).reduce(|(u, g), (v, h)| (&u + &v, &g + &h));
        all.unwrap_or_else(|| (Tensor::zeros([x.shape()[0]], x.dtype()), Tensor::zeros(x.shape(), x.dtype())))
    }
}
