//! Gradients of a solve with memory that does not grow with the number of steps: the adjoint.
//!
//! With a(t) = ∂L/∂x(t): da/dt = −a ∂f/∂x and dL/dθ = ∫ a ∂f/∂θ dt (Pontryagin et al. 1962; Chen et al. 2018). Backward
//! solves for (x, a, dL/dθ) from the last time to the first; x is rebuilt instead of kept, so the gradient is that of
//! the differential equation, up to the solver's error, not that of the steps. Steps are chosen by the errors of x and a
//! alone: dL/dθ feeds back into nothing (Kidger, Chen & Lyons 2021).

use super::Tableau;
use super::solve::{Stepping, solve, solve_within};
use crate::autograd::{self, Recipe, record};
use crate::error::Result;
use crate::tensor::Tensor;
use std::sync::Arc;

/// A right-hand side f(t, state, params) of N tensors.
pub type AdjointRhs = Arc<dyn Fn(f64, &[Tensor], &[Tensor]) -> Vec<Tensor> + Send + Sync>;

/// The state at `span[1]`, with gradients to `x` and `params` by the adjoint, and the evaluations of f on the way
/// there. A backward solve that fails gives gradients that are NaN.
///
/// # Errors
/// As [`solve`].
pub fn solve_adjoint<const N: usize>(
    f: AdjointRhs,
    x: [Tensor; N],
    params: &[Tensor],
    span: [f64; 2],
    tableau: &'static Tableau,
    stepping: Stepping,
) -> Result<([Tensor; N], usize)> {
    let fixed: Vec<Tensor> = params.iter().map(Tensor::detach).collect();
    let solution = autograd::no_grad(|| {
        let x: Vec<Tensor> = x.iter().map(Tensor::detach).collect();
        solve(&|t, x| f(t, x, &fixed), &x, span, tableau, stepping, false)
    })?;
    let mut outputs = solution.state.into_iter();
    let outputs = std::array::from_fn(|_| outputs.next().expect("as many as came in"));
    let inputs: Vec<&Tensor> = x.iter().chain(params).collect();
    let recipe = Recipe::fused("solve_adjoint").keeping_outputs();
    let outputs = record(recipe, &inputs, outputs, move |back| {
        let mut state: Vec<Tensor> = (0..N).map(|i| back.output(i).clone()).collect();
        state.extend((0..N).map(|i| back.grad(i)));
        state.extend(fixed.iter().map(|p| Tensor::zeros(p.shape(), p.dtype())));
        let rhs = |t: f64, state: &[Tensor]| augmented(&f, t, &state[..N], &state[N..2 * N], &fixed);
        let turned = [span[1], span[0]];
        let solved =
            autograd::no_grad(|| solve_within(&rhs, &state, turned, tableau, stepping, false, 2 * N));
        match solved {
            Ok(solution) => solution.state.into_iter().skip(N).map(Some).collect(),
            Err(_) => state[N..].iter().map(|t| Some(Tensor::full(f64::NAN, t.shape(), t.dtype()))).collect(),
        }
    });
    Ok((outputs, solution.evaluations))
}

/// (f, −a ∂f/∂x, −a ∂f/∂θ).
fn augmented(f: &AdjointRhs, t: f64, x: &[Tensor], a: &[Tensor], params: &[Tensor]) -> Vec<Tensor> {
    autograd::enable_grad(|| {
        let leaves: Vec<Tensor> = x.iter().chain(params).map(Tensor::requires_grad).collect();
        let (x, params) = leaves.split_at(x.len());
        let slopes = f(t, x, params);
        let (outputs, cotangents): (Vec<&Tensor>, Vec<&Tensor>) =
            slopes.iter().zip(a).filter(|(s, _)| s.var().is_some()).unzip();
        let wrt: Vec<&Tensor> = leaves.iter().collect();
        let grads = autograd::grad(&outputs, &cotangents, &wrt, false);
        let turned = grads.into_iter().zip(&leaves).map(|(g, leaf)| match g {
            Some(g) => -&g.detach(),
            None => Tensor::zeros(leaf.shape(), leaf.dtype()),
        });
        slopes.iter().map(Tensor::detach).chain(turned).collect()
    })
}
