//! Bijections: invertible maps with their log-determinants, and chains of them.
//!
//! A [`Bijection`] maps x (B, ...) to y and log |det dy/dx| (B,), in nats. A flow is a base density and a chain:
//! log p(x) = log p_base(y) + log |det dy/dx|. [`reversible`] runs a chain without keeping activations: the
//! backward pass rebuilds each input from its output (Gomez et al. 2017, "The Reversible Residual Network"), so
//! that memory does not grow with depth.

mod batch_norm;
mod continuous;
mod conv_coupled;
mod elementwise;
mod flow_step;
mod layers;
mod linear;
mod residual;
mod reversible;

pub use crate::ops::mixture_cdf::Mixture;
pub use batch_norm::BatchNorm;
pub use continuous::Continuous;
pub use conv_coupled::ConvCoupled;
pub use elementwise::{Autoregressive, Coupled, Elementwise};
pub use flow_step::{FlowStep, Mixing};
pub use layers::{Actnorm, AffineCoupling, DenseConv, PluConv, Squeeze};
pub use linear::{Inverse, Logit, LuLinear, Permutation};
pub use residual::Residual;
pub use reversible::{Memory, reversible};

use crate::autograd;
use crate::nn::{Init, Param};
use crate::ops::coupling::Coupling;
use crate::tensor::Tensor;

/// An invertible map of (B, ...) tensors.
pub trait Bijection: Send + Sync {
    /// y and log |det dy/dx| (B,) in nats.
    fn forward(&self, x: &Tensor) -> (Tensor, Tensor);

    /// x such that `forward(x)` gives `y`.
    fn inverse(&self, y: &Tensor) -> Tensor;

    /// The parameters, in a fixed order.
    fn params(&self) -> Vec<Param>;

    /// Sets data-dependent parameters so that this batch leaves well scaled; returns y.
    fn init_from(&self, x: &Tensor) -> Tensor {
        self.forward(x).0
    }

    /// As [`Self::forward`], in the mode for training: batch normalisation looks at this batch instead of what it
    /// remembers, and learns from it while gradients are recorded. Nothing else tells the two apart.
    fn training(&self, x: &Tensor) -> (Tensor, Tensor) {
        self.forward(x)
    }

    /// Given y and the gradients of y and the log-determinant: x, its gradient, and those of the parameters.
    ///
    /// This is how backward runs when activations are dropped. By default it inverts, runs forward again with
    /// recording on and differentiates; layers that can share work between the three do.
    fn backward(&self, y: &Tensor, grad_y: &Tensor, grad_logdet: &Tensor) -> Pulled {
        let x = autograd::no_grad(|| self.inverse(y)).requires_grad();
        let (y, logdet) = autograd::enable_grad(|| self.forward(&x));
        let params: Vec<Tensor> = self.params().iter().map(Param::get).collect();
        let mut wrt = vec![&x];
        wrt.extend(&params);
        let mut grads = pull(&[&y, &logdet], &[grad_y, grad_logdet], &wrt);
        let grad_x = grads.remove(0);
        Pulled { x: x.detach(), grad_x, grads }
    }
}

/// What [`Bijection::backward`] returns.
pub struct Pulled {
    /// The input, rebuilt.
    pub x: Tensor,
    /// Its gradient.
    pub grad_x: Tensor,
    /// The gradients of [`Bijection::params`], in that order.
    pub grads: Vec<Tensor>,
}

/// Gradients with respect to `wrt`, zeros where nothing depends on it.
fn pull(outputs: &[&Tensor], cotangents: &[&Tensor], wrt: &[&Tensor]) -> Vec<Tensor> {
    let grads = autograd::grad(outputs, cotangents, wrt, false);
    let or_zeros =
        |(g, w): (Option<Tensor>, &&Tensor)| g.unwrap_or_else(|| Tensor::zeros(w.shape(), w.dtype()));
    grads.into_iter().zip(wrt).map(or_zeros).collect()
}

/// Bijections one after the other.
#[derive(Default)]
pub struct Chain {
    /// The parts, first applied first.
    pub parts: Vec<Box<dyn Bijection>>,
}

impl Chain {
    /// `step` of each part, first applied first.
    fn run(&self, x: &Tensor, step: fn(&dyn Bijection, &Tensor) -> (Tensor, Tensor)) -> (Tensor, Tensor) {
        let mut y = x.clone();
        let mut total: Option<Tensor> = None;
        for part in &self.parts {
            let (next, logdet) = step(&**part, &y);
            y = next;
            total = Some(total.map_or(logdet.clone(), |t| &t + &logdet));
        }
        let logdet = total.unwrap_or_else(|| Tensor::zeros([x.shape()[0]], x.dtype()));
        (y, logdet)
    }
}

impl Bijection for Chain {
    fn forward(&self, x: &Tensor) -> (Tensor, Tensor) {
        self.run(x, |part, x| part.forward(x))
    }

    fn training(&self, x: &Tensor) -> (Tensor, Tensor) {
        self.run(x, |part, x| part.training(x))
    }

    fn inverse(&self, y: &Tensor) -> Tensor {
        self.parts.iter().rev().fold(y.clone(), |y, part| part.inverse(&y))
    }

    fn params(&self) -> Vec<Param> {
        self.parts.iter().flat_map(|p| p.params()).collect()
    }

    fn init_from(&self, x: &Tensor) -> Tensor {
        self.parts.iter().fold(x.clone(), |x, part| part.init_from(&x))
    }

    fn backward(&self, y: &Tensor, grad_y: &Tensor, grad_logdet: &Tensor) -> Pulled {
        let (mut x, mut grad_x, mut grads) = (y.clone(), grad_y.clone(), Vec::new());
        for part in self.parts.iter().rev() {
            let pulled = part.backward(&x, &grad_x, grad_logdet);
            (x, grad_x) = (pulled.x, pulled.grad_x);
            grads.push(pulled.grads);
        }
        Pulled { x, grad_x, grads: grads.into_iter().rev().flatten().collect() }
    }
}

/// One line of the registry: a bijection that tests can build for examples of a shape.
pub struct BijectionInfo {
    /// The registry's name.
    pub name: &'static str,
    /// One sentence, with the source paper.
    pub summary: &'static str,
    /// Shapes (per example) to try it on: small, so that a Jacobian can be taken column by column.
    pub shapes: &'static [&'static [usize]],
    /// Builds it for examples of this shape.
    pub build: fn(init: &mut Init, shape: &[usize]) -> Box<dyn Bijection>,
}

const IMAGES: &[&[usize]] = &[&[2, 2, 2], &[3, 1, 4], &[2, 3, 6]];

fn channels(shape: &[usize]) -> usize {
    shape[shape.len() - 1]
}

macro_rules! couplings {
    ($($name:ident, $label:literal, $kind:expr, $summary:literal;)*) => {
        $(static $name: BijectionInfo = BijectionInfo {
            name: $label,
            summary: $summary,
            shapes: IMAGES,
            build: |init, shape| Box::new(AffineCoupling::new(init, channels(shape), 5, $kind)),
        };)*
    };
}
couplings! {
    SIGMOID, "coupling_sigmoid", Coupling::Sigmoid, "affine coupling, scale sigmoid(s + 2) (Kingma & Dhariwal 2018)";
    EXP, "coupling_exp", Coupling::Exp, "affine coupling, scale e^s (Dinh et al. 2017)";
    TANH, "coupling_tanh", Coupling::Tanh, "affine coupling, scale e^(2 tanh(s / 2))";
    ADDITIVE, "coupling_additive", Coupling::Additive, "additive coupling (Dinh et al. 2015)";
}

/// All bijections.
pub static BIJECTIONS: &[&BijectionInfo] = &[
    &BijectionInfo {
        name: "squeeze",
        summary: "2 by 2 pixels to channels (Dinh et al. 2017)",
        shapes: &[&[2, 2, 1], &[2, 4, 3]],
        build: |_, _| Box::new(Squeeze),
    },
    &BijectionInfo {
        name: "actnorm",
        summary: "shift and scale per channel, initialised from data (Kingma & Dhariwal 2018)",
        shapes: &[&[3], &[2, 3, 2]],
        build: |init, shape| Box::new(Actnorm::new(init, channels(shape))),
    },
    &batch_norm::BATCH_NORM,
    &BijectionInfo {
        name: "invertible_conv",
        summary: "invertible 1x1 convolution, dense matrix (Kingma & Dhariwal 2018)",
        shapes: &[&[3], &[2, 3, 4]],
        build: |init, shape| Box::new(DenseConv::new(init, channels(shape))),
    },
    &BijectionInfo {
        name: "invertible_conv_plu",
        summary: "invertible 1x1 convolution, PLU-parametrised (Kingma & Dhariwal 2018)",
        shapes: &[&[3], &[2, 3, 4]],
        build: |init, shape| Box::new(PluConv::new(init, channels(shape))),
    },
    &SIGMOID,
    &EXP,
    &TANH,
    &ADDITIVE,
    &elementwise::MAF,
    &linear::IAF,
    &elementwise::NSF_AR,
    &elementwise::TABLE_AFFINE,
    &elementwise::NSF_C,
    &elementwise::MIXTURE_C,
    &linear::PERMUTATION,
    &linear::LU_LINEAR,
    &linear::LOGIT,
    &conv_coupled::MIXTURE,
    &residual::RESIDUAL,
    &continuous::CONTINUOUS,
    &BijectionInfo {
        name: "flow_step",
        summary: "actnorm, dense invertible 1x1 convolution and sigmoid coupling in one (Kingma & Dhariwal 2018)",
        shapes: IMAGES,
        build: |init, shape| {
            Box::new(FlowStep::new(init, channels(shape), 5, Coupling::Sigmoid, Mixing::Dense))
        },
    },
    &BijectionInfo {
        name: "flow_step_plu",
        summary: "actnorm, PLU-parametrised invertible 1x1 convolution and tanh coupling in one",
        shapes: IMAGES,
        build: |init, shape| Box::new(FlowStep::new(init, channels(shape), 5, Coupling::Tanh, Mixing::Plu)),
    },
    &BijectionInfo {
        name: "chain",
        summary: "bijections one after the other",
        shapes: &[&[2, 2, 1], &[4, 2, 1]],
        build: |init, shape| {
            let mut parts: Vec<Box<dyn Bijection>> = vec![Box::new(Squeeze)];
            for k in 0..3 {
                let c = 4 * channels(shape);
                let (coupling, kind) = (Coupling::Sigmoid, Mixing::Dense);
                parts.push(Box::new(FlowStep::new(&mut init.sub(k), c, 5, coupling, kind)));
            }
            Box::new(Chain { parts })
        },
    },
];
