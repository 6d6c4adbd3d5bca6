//! One step of Glow (Kingma & Dhariwal 2018, figure 2a): actnorm, invertible 1x1 convolution, coupling.

use super::{Actnorm, AffineCoupling, Bijection, DenseConv, PluConv, Pulled, pull};
use crate::autograd;
use crate::nn::{Init, Param};
use crate::ops::actnorm::volume;
use crate::ops::coupling::Coupling;
use crate::ops::{invertible_conv, linalg};
use crate::tensor::Tensor;

/// How the matrix of the invertible 1x1 convolution is parametrised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mixing {
    /// A free matrix; its log-determinant takes an LU factorisation a step.
    Dense,
    /// P L (U + diag(sign e^log_s)): the log-determinant is Σ log_s.
    Plu,
}

enum Matrix {
    Dense(DenseConv),
    Plu(Box<PluConv>),
}

/// y = coupling(W ((x + loc) e^log_scale)), actnorm and convolution in one pass: W diag(e^log_scale) is one matrix.
///
/// Parameters: `loc`, `log_scale`, then `weight` (or `lower`, `upper`, `log_s`), then `net.*`.
pub struct FlowStep {
    norm: Actnorm,
    matrix: Matrix,
    coupling: AffineCoupling,
}

impl FlowStep {
    /// For `channels` channels and `hidden` channels in the coupling's network.
    pub fn new(init: &mut Init, channels: usize, hidden: usize, coupling: Coupling, mixing: Mixing) -> Self {
        let norm = Actnorm::new(init, channels);
        let matrix = match mixing {
            Mixing::Dense => Matrix::Dense(DenseConv::new(init, channels)),
            Mixing::Plu => Matrix::Plu(Box::new(PluConv::new(init, channels))),
        };
        Self { norm, matrix, coupling: AffineCoupling::new(init, channels, hidden, coupling) }
    }

    /// W diag(e^log_scale), loc, and the log-determinant of one position.
    fn linear(&self) -> (Tensor, Tensor, Tensor) {
        let (loc, log_scale) = self.norm.get();
        let (w, nats) = match &self.matrix {
            Matrix::Dense(conv) => (conv.matrix(), linalg::log_abs_det(&conv.matrix())),
            Matrix::Plu(conv) => (conv.matrix(), conv.log_abs_det()),
        };
        (&w * &log_scale.exp(), loc, &nats + &log_scale.sum_all())
    }

    /// The linear half of the step and its log-determinant (B,).
    fn mix(&self, x: &Tensor) -> (Tensor, Tensor) {
        let (w, loc, nats) = self.linear();
        (invertible_conv::mix(x, &w, Some(&loc)), volume(x, &nats))
    }

    fn unmix(&self, y: &Tensor) -> Tensor {
        let (w, loc, _) = self.linear();
        invertible_conv::inverse(y, &w, Some(&loc))
    }

    fn linear_params(&self) -> Vec<Param> {
        let matrix = match &self.matrix {
            Matrix::Dense(conv) => conv.params(),
            Matrix::Plu(conv) => conv.params(),
        };
        self.norm.params().into_iter().chain(matrix).collect()
    }
}

impl Bijection for FlowStep {
    fn forward(&self, x: &Tensor) -> (Tensor, Tensor) {
        let (mixed, linear) = self.mix(x);
        let (y, logdet) = self.coupling.forward(&mixed);
        (y, &linear + &logdet)
    }

    fn inverse(&self, y: &Tensor) -> Tensor {
        self.unmix(&self.coupling.inverse(y))
    }

    fn params(&self) -> Vec<Param> {
        self.linear_params().into_iter().chain(self.coupling.params()).collect()
    }

    fn init_from(&self, x: &Tensor) -> Tensor {
        self.norm.fit(x);
        self.forward(x).0
    }

    fn backward(&self, y: &Tensor, grad_y: &Tensor, grad_logdet: &Tensor) -> Pulled {
        let pulled = self.coupling.backward(y, grad_y, grad_logdet);
        let x = autograd::no_grad(|| self.unmix(&pulled.x)).requires_grad();
        let (mixed, logdet) = autograd::enable_grad(|| self.mix(&x));
        let params: Vec<Tensor> = self.linear_params().iter().map(Param::get).collect();
        let mut wrt = vec![&x];
        wrt.extend(&params);
        let mut grads = pull(&[&mixed, &logdet], &[&pulled.grad_x, grad_logdet], &wrt);
        let grad_x = grads.remove(0);
        grads.extend(pulled.grads);
        Pulled { x: x.detach(), grad_x, grads }
    }
}
