//! Ordinary differential equations dx/dt = f(t, x): methods as data, solvers, gradients.

mod tableau;

pub use tableau::{BOSH3, DOPRI5, EULER, HEUN, MIDPOINT, RK4, TABLEAUX, TSIT5, Tableau};

use crate::tensor::Tensor;

/// x + h Σ weights_i k_i.
#[track_caller]
pub(crate) fn weighted(x: &Tensor, weights: &[f64], h: f64, ks: &[Tensor]) -> Tensor {
    let terms = weights.iter().zip(ks).filter(|(w, _)| **w != 0.0);
    terms.fold(x.clone(), |sum, (w, k)| &sum + &k.affine(h * w, 0.0))
}
