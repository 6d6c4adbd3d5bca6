//! A continuous bijection: x is carried from time 0 to 1 by dx/dt = f(t, x), f a multilayer perceptron (Chen et al.
//! 2018; Grathwohl et al. 2019), with the exact trace. Inverse up to the error of the solver, whose steps are fixed.

use super::{Bijection, BijectionInfo};
use crate::nn::{Init, Initial, Param};
use crate::ode::{TSIT5, Tableau};
use crate::ops::ode_steps::{Steps, ode_steps};
use crate::ops::ode_trace::{Field, Smooth};
use crate::tensor::Tensor;

/// The registry's line.
pub(super) static CONTINUOUS: BijectionInfo = BijectionInfo {
    name: "continuous",
    summary: "flow along a neural ODE with the exact trace (Chen et al. 2018; Grathwohl et al. 2019)",
    shapes: &[&[2], &[5]],
    build: |init, shape| Box::new(Continuous::new(init, shape[0], &[6, 5], &TSIT5, 50)),
};

/// The map from x(0) to x(1).
pub struct Continuous {
    layers: Vec<(Param, Param)>,
    tableau: &'static Tableau,
    steps: usize,
}

impl Continuous {
    /// For rows of `d` numbers, with one or two layers of `hidden` tanh units, in `steps` steps of a method.
    ///
    /// # Panics
    /// With another number of hidden layers (the exact trace would cost D passes), or no steps.
    #[track_caller]
    pub fn new(init: &mut Init, d: usize, hidden: &[usize], tableau: &'static Tableau, steps: usize) -> Self {
        assert!(
            (1..=2).contains(&hidden.len()),
            "continuous: {} hidden layers; expected 1 or 2",
            hidden.len()
        );
        assert!(steps > 0, "continuous: no steps");
        let sizes: Vec<usize> = [&[d + 1], hidden, &[d]].concat();
        let layer = |(i, pair): (usize, &[usize])| {
            let mut init = init.sub(format_args!("net.{}", 2 * i));
            let start = Initial::FanIn(pair[0]);
            (init.param("weight", [pair[0], pair[1]], start), init.param("bias", [pair[1]], start))
        };
        Self { layers: sizes.windows(2).enumerate().map(layer).collect(), tableau, steps }
    }

    fn run(&self, x: &Tensor, span: [f64; 2]) -> (Tensor, Tensor) {
        let layers = self.layers.iter().map(|(w, b)| (w.get(), b.get())).collect();
        let field = Field { act: Smooth::Tanh, layers };
        let probe = field.exact(x.shape()[0]).expect("one or two hidden layers");
        ode_steps(x, &field, &probe, Steps { tableau: self.tableau, span, count: self.steps })
    }
}

impl Bijection for Continuous {
    fn forward(&self, x: &Tensor) -> (Tensor, Tensor) {
        self.run(x, [0.0, 1.0])
    }

    fn inverse(&self, y: &Tensor) -> Tensor {
        self.run(y, [1.0, 0.0]).0
    }

    fn params(&self) -> Vec<Param> {
        self.layers.iter().flat_map(|(w, b)| [w.clone(), b.clone()]).collect()
    }
}
