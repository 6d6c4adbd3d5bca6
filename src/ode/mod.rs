//! Ordinary differential equations dx/dt = f(t, x): methods as data, solvers, gradients.
//!
//! [`solve`] takes any right-hand side, steps of fixed or controlled length, and differentiates through its steps;
//! [`solve_adjoint`] gets the gradient from a second solve in constant memory. For fixed steps of a multilayer
//! perceptron there is the much faster op [`crate::ops::ode_steps`].

mod adjoint;
mod solve;
mod tableau;

pub use adjoint::{AdjointRhs, solve_adjoint};
pub use solve::{Dense, Rhs, Solution, Stepping, solve};
pub use tableau::{BOSH3, DOPRI5, EULER, HEUN, MIDPOINT, RK4, TABLEAUX, TSIT5, Tableau};
