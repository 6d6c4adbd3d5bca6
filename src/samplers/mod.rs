//! Samplers of densities known up to a constant, p(x) ∝ e^{−U(x)}, with diagnostics and estimates of the constant.
//!
//! Chains run side by side as the rows of one tensor. A [`Potential`] gives U (C,) and ∇U (C, ...) of C chains at once.
//! - unadjusted Langevin: x' = x − h ∇U + √(2h) ξ, whose bias is O(h);
//! - MALA and HMC: momentum p ~ N(0, 1), L leapfrog steps of length ε, accepted with probability
//!   min(1, e^{H − H'}), H = U + ½|p|² (Duane et al. 1987; Neal 2011). MALA is HMC with L = 1, h = ε²/2 (Rossky et al.
//!   1978; Roberts & Tweedie 1996). During warm-up ε is found by dual averaging of the mean acceptance (Nesterov 2009;
//!   Hoffman & Gelman 2014).
//!
//! On a bounded range a trajectory is reflected at the walls, which keeps volume and reversibility.

mod ais;
mod diagnostics;
mod hmc;

pub use ais::{Base, LogZ, anneal, log_mean_interval};
pub use diagnostics::{Diagnosis, diagnose};
pub use hmc::{Method, Run, Samples, sample};

use crate::autograd;
use crate::tensor::Tensor;

/// U (C,) and ∇U (C, ...) of chains x (C, ...), unrecorded.
pub type Potential<'a> = &'a (dyn Fn(&Tensor) -> (Tensor, Tensor) + 'a);

/// The potential of a differentiable function of (C, ...) to (C,).
pub fn potential(f: impl Fn(&Tensor) -> Tensor) -> impl Fn(&Tensor) -> (Tensor, Tensor) {
    move |x| {
        autograd::enable_grad(|| {
            let x = x.requires_grad();
            let u = f(&x);
            let value = u.detach();
            let gradient = autograd::backward(u.sum_all(), &[&x]).remove(0);
            (value, gradient)
        })
    }
}
