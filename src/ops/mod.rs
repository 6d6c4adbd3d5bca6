//! Operations: one file each, holding formula, checks, composite, CPU code, gradient and cases.
//!
//! Two tiers. **Primitives** have gradients written in primitives, so they differentiate to any order.
//! **Fused** ops are composites of primitives with a faster forward and a hand-derived backward; the
//! composite is their definition, their test oracle, and what runs inside
//! [`crate::autograd::higher_order`].
//!
//! Every op registers a line in [`OPS`] with its [`Case`]s: the same list drives the correctness tests, the
//! gradient checks, the dtype checks and the benchmarks.

pub mod actnorm;
pub mod amp;
pub mod attention;
pub mod bernoulli;
pub mod binary;
pub mod cast;
pub mod conv;
pub mod coupling;
pub mod distances;
pub mod gaussian_mixture;
pub mod index;
pub mod invertible_conv;
pub mod langevin;
pub mod linalg;
pub mod logistic_mixture;
pub mod masked_conv;
pub mod masked_linear;
pub mod matmul;
mod methods;
pub mod metropolis;
pub mod mixture_cdf;
pub mod norm;
pub mod normal_logp;
pub mod ode_steps;
pub mod ode_trace;
pub mod reduce;
pub mod replay_buffer;
pub mod rotary;
pub mod rq_spline;
pub mod runge_kutta;
pub mod shape;
pub mod softmax;
pub mod squeeze;
pub mod unary;

use crate::random::Philox;
use crate::tensor::{DType, Tensor};

/// A function of tensors, as run by tests and benchmarks.
pub type CaseFn = Box<dyn Fn(&[Tensor]) -> Vec<Tensor> + Send + Sync>;

/// One way to call an op: inputs, the call, its definition, its cost.
pub struct Case {
    /// What is special about it (sizes, flags).
    pub name: String,
    /// Inputs: f64 where floating point (tests cast them), u8 or i32 otherwise.
    pub inputs: Vec<Tensor>,
    /// The op.
    pub run: CaseFn,
    /// The same in primitives, for fused ops.
    pub composite: Option<CaseFn>,
    /// Whether gradients are checked, and to which order (0, 1 or 2).
    pub order: u8,
    /// Whether it also serves as a benchmark.
    pub bench: bool,
    /// Bytes moved per call, at f32.
    pub bytes: usize,
    /// Floating-point operations per call.
    pub flops: usize,
    /// Bytes, at f32, and flops of the gradients of all inputs, where these serve as a benchmark too.
    pub backward: Option<[usize; 2]>,
}

impl Case {
    /// A case that checks gradients to order 2 and costs one pass over its inputs.
    pub fn new(
        name: impl Into<String>,
        inputs: Vec<Tensor>,
        run: impl Fn(&[Tensor]) -> Vec<Tensor> + Send + Sync + 'static,
    ) -> Self {
        let len: usize = inputs.iter().map(Tensor::len).sum();
        let run = Box::new(run);
        Self {
            name: name.into(),
            inputs,
            run,
            composite: None,
            order: 2,
            bench: false,
            bytes: 8 * len,
            flops: len,
            backward: None,
        }
    }

    /// With the definition in primitives.
    pub fn composite(mut self, f: impl Fn(&[Tensor]) -> Vec<Tensor> + Send + Sync + 'static) -> Self {
        self.composite = Some(Box::new(f));
        self
    }

    /// With gradients checked to this order only.
    pub fn order(self, order: u8) -> Self {
        Self { order, ..self }
    }

    /// Also a benchmark, moving `bytes` and computing `flops` per call.
    pub fn bench(self, bytes: usize, flops: usize) -> Self {
        Self { bench: true, bytes, flops, ..self }
    }

    /// Its gradients are a benchmark as well, moving `bytes` and computing `flops`.
    pub fn backward(self, bytes: usize, flops: usize) -> Self {
        Self { backward: Some([bytes, flops]), ..self }
    }
}

/// One line of the registry.
pub struct OpInfo {
    /// The registry's name.
    pub name: &'static str,
    /// `primitive` or `fused`.
    pub family: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// The cases.
    pub cases: fn() -> Vec<Case>,
}

/// All ops.
pub static OPS: &[&OpInfo] = &[
    &unary::OP,
    &binary::OP,
    &reduce::OP,
    &shape::OP,
    &index::OP,
    &cast::OP,
    &matmul::OP,
    &matmul::LINEAR,
    &masked_linear::OP,
    &conv::OP,
    &masked_conv::OP,
    &softmax::OP,
    &bernoulli::OP,
    &logistic_mixture::OP,
    &linalg::OP,
    &squeeze::OP,
    &normal_logp::OP,
    &ode_trace::OP,
    &ode_steps::OP,
    &runge_kutta::OP,
    &langevin::OP,
    &metropolis::OP,
    &replay_buffer::OP,
    &distances::OP,
    &actnorm::OP,
    &invertible_conv::OP,
    &coupling::OP,
    &rq_spline::OP,
    &mixture_cdf::OP,
    &norm::OP,
    &rotary::OP,
    &attention::OP,
    &gaussian_mixture::OP,
    &gaussian_mixture::LOGISTIC,
];

/// Whether a fused op without kernels of its own runs as its composite: inside
/// [`higher_order`](crate::autograd::higher_order), and on devices.
pub(crate) fn by_composite(input: &Tensor) -> bool {
    crate::autograd::in_higher_order() || input.gpu().is_some()
}

/// Normal f64 inputs for cases: deterministic in `seed`.
pub(crate) fn normal(seed: u64, shape: &[usize]) -> Tensor {
    Philox::new(seed).normal(shape, DType::F64)
}

/// [`normal`] rounded to halves. Their products are quarters, so that sums of them and [`eighths`] stay an eighth
/// away from 0, where relu has its kink.
pub(crate) fn halves(seed: u64, shape: &[usize]) -> Tensor {
    let x: Vec<f64> = normal(seed, shape).to_f64_vec().iter().map(|x| (2.0 * x).round() / 2.0).collect();
    Tensor::from_slice(&x, shape)
}

/// Biases beside [`halves`]: ± an eighth.
pub(crate) fn eighths(n: usize) -> Tensor {
    Tensor::from_fn([n], |i| if i % 2 == 0 { 0.125f64 } else { -0.125 })
}
