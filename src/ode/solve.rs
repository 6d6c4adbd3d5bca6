//! Solvers: fixed steps, or steps chosen so that the estimated error of each stays within tolerances.
//!
//! The state is a list of tensors; the error of a step is e = h Σ error_i k_i and its size
//! rms(e / (atol + rtol max(|x_n|, |x_{n+1}|))) over all elements: a step is accepted at most 1, and the next one is
//! 0.9 size^(−1/order) times as long, between a fifth and ten times (Hairer, Nørsett & Wanner 1993, II.4).
//! Recorded inputs make a recorded solution: the gradient is that of the accepted steps, their lengths held fixed.

use super::Tableau;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::runge_kutta;
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// A right-hand side: dx/dt for every tensor of the state at time t.
pub type Rhs<'a> = &'a dyn Fn(f64, &[Tensor]) -> Vec<Tensor>;

/// How steps are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Stepping {
    /// So many equal steps.
    Fixed {
        /// Their number.
        count: usize,
    },
    /// By error control; the method needs an error estimate.
    Adaptive {
        /// Error per step relative to the state.
        rtol: f64,
        /// Error per step for a state near 0.
        atol: f64,
        /// Evaluations after which the solve is given up.
        budget: usize,
    },
}

impl Stepping {
    /// Whether `tableau` can be stepped so.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] naming the setting and what was expected.
    pub fn check(self, tableau: &Tableau) -> Result<()> {
        let fail = |message: String| Err(Error::new(ErrorKind::Usage, message));
        match self {
            Stepping::Fixed { count } if !(1..=1 << 20).contains(&count) => {
                fail(format!("stepping.count is {count}; expected 1 to {}", 1 << 20))
            }
            Stepping::Adaptive { rtol, atol, .. }
                if !(rtol >= 0.0 && atol > 0.0 && rtol < 1.0 && atol < 1e6) =>
            {
                fail(format!("stepping: rtol {rtol}, atol {atol}; expected 0 <= rtol < 1 and atol > 0"))
            }
            Stepping::Adaptive { .. } if tableau.error.is_none() => {
                let able = super::TABLEAUX.iter().filter(|t| t.error.is_some()).map(|t| t.name);
                let able = able.collect::<Vec<_>>().join(", ");
                fail(format!(
                    "{} has no error estimate for adaptive steps; expected one of {able}",
                    tableau.name
                ))
            }
            _ => Ok(()),
        }
    }
}

/// A solved equation.
pub struct Solution {
    /// The state at the last time.
    pub state: Vec<Tensor>,
    /// Evaluations of the right-hand side.
    pub evaluations: usize,
    /// Steps taken.
    pub accepted: usize,
    /// Steps thrown away because their error was too large.
    pub rejected: usize,
    /// The solution in between, where it was asked for.
    pub dense: Option<Dense>,
}

/// A solution between its steps: quartic through the middle of a step where the method knows it, else cubic.
pub struct Dense {
    pieces: Vec<Piece>,
}

struct Piece {
    span: [f64; 2],
    ends: [Vec<Tensor>; 2],
    slopes: [Vec<Tensor>; 2],
    middle: Option<Vec<Tensor>>,
}

impl Dense {
    /// The state at time `t`.
    ///
    /// # Panics
    /// When `t` lies outside of what was solved.
    #[track_caller]
    pub fn at(&self, t: f64) -> Vec<Tensor> {
        let inside = |p: &&Piece| (t - p.span[0]) * (t - p.span[1]) <= 0.0;
        let piece = self.pieces.iter().find(inside);
        piece.unwrap_or_else(|| panic!("dense output: t = {t} was not solved")).at(t)
    }
}

impl Piece {
    /// Hermite's cubic, and for a known middle m the quartic term 16 (m − cubic(½)) s² (1 − s)².
    fn at(&self, t: f64) -> Vec<Tensor> {
        let h = self.span[1] - self.span[0];
        let s = (t - self.span[0]) / h;
        let cubic = |s: f64, i: usize| {
            let r = 1.0 - s;
            let ends = &self.ends[0][i].affine(r * r * (1.0 + 2.0 * s), 0.0)
                + &self.ends[1][i].affine(s * s * (3.0 - 2.0 * s), 0.0);
            let slopes = &self.slopes[0][i].affine(h * s * r * r, 0.0)
                + &self.slopes[1][i].affine(-h * s * s * r, 0.0);
            &ends + &slopes
        };
        (0..self.ends[0].len())
            .map(|i| match &self.middle {
                None => cubic(s, i),
                Some(middle) => {
                    let missing = &middle[i] - &cubic(0.5, i);
                    &cubic(s, i) + &missing.affine(16.0 * (s * (1.0 - s)).powi(2), 0.0)
                }
            })
            .collect()
    }
}

/// Solves dx/dt = f(t, x) from `span[0]` to `span[1]`, which may be the smaller; `dense` keeps what is in between.
///
/// # Errors
/// [`ErrorKind::Usage`] for impossible stepping; [`ErrorKind::NonFinite`] when steps become too short for the
/// precision of the time (a field that is too steep or not finite), or the budget of evaluations is spent.
pub fn solve(
    f: Rhs,
    x: &[Tensor],
    span: [f64; 2],
    tableau: &'static Tableau,
    stepping: Stepping,
    dense: bool,
) -> Result<Solution> {
    solve_within(f, x, span, tableau, stepping, dense, x.len())
}

/// As [`solve`]; only the first `controlled` tensors of the state decide the steps.
pub(super) fn solve_within(
    f: Rhs,
    x: &[Tensor],
    span: [f64; 2],
    tableau: &'static Tableau,
    stepping: Stepping,
    dense: bool,
    controlled: usize,
) -> Result<Solution> {
    stepping.check(tableau)?;
    let dense = dense.then(|| Dense { pieces: Vec::new() });
    let solution = Solution { state: x.to_vec(), evaluations: 0, accepted: 0, rejected: 0, dense };
    let mut run = Run { f, tableau, t: span[0], solution, first: None };
    match stepping {
        Stepping::Fixed { count } => {
            let h = (span[1] - span[0]) / count as f64;
            for n in 0..count {
                run.t = span[0] + n as f64 * h;
                let step = run.stages(h);
                let until = if n + 1 == count { span[1] } else { run.t + h };
                run.accept(h, until, step);
            }
        }
        Stepping::Adaptive { rtol, atol, budget } => {
            run.adaptive(span, Control { rtol, atol, budget, controlled })?;
        }
    }
    Ok(run.solution)
}

#[derive(Clone, Copy)]
struct Control {
    rtol: f64,
    atol: f64,
    budget: usize,
    controlled: usize,
}

struct Run<'a> {
    f: Rhs<'a>,
    tableau: &'static Tableau,
    t: f64,
    solution: Solution,
    /// The first stage of the next step, where it is known already.
    first: Option<Vec<Tensor>>,
}

/// A step that may be accepted.
struct Step {
    state: Vec<Tensor>,
    /// All k, by stage.
    ks: Vec<Vec<Tensor>>,
}

impl Run<'_> {
    fn evaluate(&mut self, t: f64, x: &[Tensor]) -> Vec<Tensor> {
        self.solution.evaluations += 1;
        (self.f)(t, x)
    }

    /// x + h Σ weights_i k_i for every tensor of the state.
    fn combined(&self, weights: &[f64], h: f64, ks: &[Vec<Tensor>]) -> Vec<Tensor> {
        let of = |i: usize| ks.iter().map(|k| k[i].clone()).collect::<Vec<_>>();
        self.solution
            .state
            .iter()
            .enumerate()
            .map(|(i, x)| runge_kutta::stage(x, weights, h, &of(i)))
            .collect()
    }

    fn stages(&mut self, h: f64) -> Step {
        let tableau = self.tableau;
        let mut ks: Vec<Vec<Tensor>> = Vec::with_capacity(tableau.stages());
        for i in 0..tableau.stages() {
            let known = if i == 0 { self.first.clone() } else { None };
            let k = known.unwrap_or_else(|| {
                let x = self.combined(tableau.row(i), h, &ks);
                self.evaluate(self.t + tableau.c[i] * h, &x)
            });
            ks.push(k);
        }
        Step { state: self.combined(tableau.b, h, &ks), ks }
    }

    fn accept(&mut self, h: f64, until: f64, step: Step) {
        let Step { state, mut ks } = step;
        let weights = self.tableau.middle.filter(|_| self.solution.dense.is_some());
        let middle = weights.map(|weights| self.combined(weights, h, &ks));
        let from = std::mem::replace(&mut self.solution.state, state);
        let last = if self.tableau.first_same_as_last { ks.pop() } else { None };
        if let Some(mut dense) = self.solution.dense.take() {
            let end = self.solution.state.clone();
            let slope = last.clone().unwrap_or_else(|| self.evaluate(until, &end));
            let first = ks.swap_remove(0);
            let span = [self.t, until];
            dense.pieces.push(Piece { span, ends: [from, end], slopes: [first, slope.clone()], middle });
            self.solution.dense = Some(dense);
            self.first = Some(slope);
        } else {
            self.first = last;
        }
        self.solution.accepted += 1;
    }

    fn adaptive(&mut self, span: [f64; 2], control: Control) -> Result<()> {
        let weights = self.tableau.error.expect("checked");
        let direction = (span[1] - span[0]).signum();
        let order = f64::from(self.tableau.order);
        let mut h = self.first_step(span, control);
        while (span[1] - self.t) * direction > 0.0 {
            let left = span[1] - self.t;
            // A last step that would leave a sliver takes it along.
            let last = h.abs() >= left.abs() * (1.0 - 1e-9);
            let length = if last { left } else { h };
            let step = self.stages(length);
            let size = self.size(weights, length, &step, control);
            if self.solution.evaluations > control.budget {
                return Err(self.failed(length, "the budget of evaluations is spent"));
            }
            let factor = if size.is_finite() { 0.9 * size.max(1e-10).powf(-1.0 / order) } else { 0.0 };
            if size <= 1.0 {
                let until = if last { span[1] } else { self.t + length };
                self.accept(length, until, step);
                self.t = until;
                h = length * factor.clamp(0.2, 10.0);
            } else {
                self.solution.rejected += 1;
                // The first stage does not depend on the length.
                self.first = step.ks.into_iter().next();
                h = length * factor.clamp(0.2, 1.0);
                if h.abs() <= 16.0 * f64::EPSILON * self.t.abs().max(left.abs()) {
                    return Err(self.failed(h, "the step underflows"));
                }
            }
        }
        Ok(())
    }

    fn failed(&self, h: f64, what: &str) -> Error {
        let message = format!(
            "{} at t = {}: {what} (step {h:e}, {} evaluations, {} steps rejected); the field is too steep or not \
             finite for these tolerances",
            self.tableau.name, self.t, self.solution.evaluations, self.solution.rejected
        );
        Error::new(ErrorKind::NonFinite, message)
    }

    /// A first step by the sizes of x, f and the change of f (Hairer, Nørsett & Wanner 1993, II.4, algorithm 4.14).
    fn first_step(&mut self, span: [f64; 2], control: Control) -> f64 {
        let (length, direction) = ((span[1] - span[0]).abs(), (span[1] - span[0]).signum());
        let x = self.solution.state.clone();
        let slope = self.evaluate(self.t, &x);
        self.first = Some(slope.clone());
        let scaled = |e: &[Tensor]| {
            let slopes: Vec<Vec<Tensor>> = e[..control.controlled].iter().map(|e| vec![e.detach()]).collect();
            rms(&[1.0], 1.0, &slopes, &x, &x, control)
        };
        let (d0, d1) = (scaled(&x), scaled(&slope));
        let h0 = if d0 < 1e-5 || d1 < 1e-5 { 1e-6 } else { 0.01 * d0 / d1 };
        let h0 = if h0.is_finite() { h0.min(length) } else { 1e-6 * length };
        let moved = self.combined(&[1.0], h0 * direction, std::slice::from_ref(&slope));
        let next = self.evaluate(self.t + h0 * direction, &moved);
        let change: Vec<Tensor> = next.iter().zip(&slope).map(|(a, b)| &a.detach() - &b.detach()).collect();
        let d2 = scaled(&change) / h0;
        let steepest = d1.max(d2);
        let order = f64::from(self.tableau.order);
        let h1 = if steepest <= 1e-15 { (1e-3 * h0).max(1e-6) } else { (0.01 / steepest).powf(1.0 / order) };
        let h = (100.0 * h0).min(if h1.is_finite() { h1 } else { h0 });
        h.min(length) * direction
    }

    fn size(&self, weights: &[f64], h: f64, step: &Step, control: Control) -> f64 {
        let detached = |i: usize| step.ks.iter().map(|k| k[i].detach()).collect();
        let slopes: Vec<Vec<Tensor>> = (0..control.controlled).map(detached).collect();
        rms(weights, h, &slopes, &self.solution.state, &step.state, control)
    }
}

/// The root mean square of e / (atol + rtol max(|a|, |b|)) over all elements, e = h Σ weights_j slopes_j of each
/// tensor; not finite where one is not.
fn rms(weights: &[f64], h: f64, slopes: &[Vec<Tensor>], a: &[Tensor], b: &[Tensor], control: Control) -> f64 {
    let (mut sum, mut n) = (0.0, 0);
    for ((ks, a), b) in slopes.iter().zip(a).zip(b) {
        let (a, b) = (a.detach(), b.detach());
        sum += runge_kutta::error(&a, &b, weights, h, ks, [control.atol, control.rtol]).item();
        n += a.len();
    }
    (sum / n.max(1) as f64).sqrt()
}
