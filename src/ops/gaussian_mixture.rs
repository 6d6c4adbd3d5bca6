//! Log-density of numbers under mixtures of normal or logistic distributions whose parameters come from a network.
//!
//! x (...) and params (..., 3 K), per number K logits, K means μ and K log-scales s, give (...) nats
//! ```text
//! ln Σ_k softmax(logits)_k e^{−s_k} f((x − μ_k) e^{−s_k}),   f = N(0, 1) or σ'(z) = σ(z) σ(−z)
//! ```
//! (Bishop 1994, "Mixture density networks"; logistics, whose tails cost |z| nats instead of z²: Salimans et al.
//! 2017). A log-scale below `lowest` counts as `lowest` and has no gradient: repeated numbers would draw a component
//! to a density without bound. A missing number (NaN) has 0 nats, which marginalises it, and no gradient. 12 K bytes
//! and about 30 K flops per number, 60 K if logistic. On devices the logistic form runs as its composite.

use super::logistic_mixture::{LANES, lanes_logsumexp};
use super::{Case, OpInfo, binary, cast::cast, normal, shape, softmax, unary};
use crate::autograd::{self, Recipe, record};
use crate::cpu::{par, simd};
use crate::cuda::{self, Gpu, Grid, Kernels};
use crate::tensor::{DType, Float, NewTensor, Plain, Tensor, with_arithmetic};
use serde::{Deserialize, Serialize};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "gaussian_mixture",
    family: "fused",
    summary: "log-density under mixtures of normal distributions (mixture density networks)",
    cases: || cases_of(Component::Normal, 30),
};

/// The registry's line for mixtures of logistics.
pub const LOGISTIC: OpInfo = OpInfo {
    name: "logistic_density",
    family: "fused",
    summary: "log-density under mixtures of logistic distributions",
    cases: || cases_of(Component::Logistic, 60),
};

/// What a component is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    /// N(0, 1), scaled and moved.
    #[default]
    Normal,
    /// σ', scaled and moved.
    Logistic,
}

const FORWARD: Kernels = Kernels::new(
    "gaussian_mixture",
    ["gaussian_mixture_forward_f32", "gaussian_mixture_forward_bf16", "gaussian_mixture_forward_f16"],
);
const BACKWARD: Kernels = Kernels::new(
    "gaussian_mixture",
    ["gaussian_mixture_backward_f32", "gaussian_mixture_backward_bf16", "gaussian_mixture_backward_f16"],
);

/// Numbers per parallel chunk.
const CHUNK: usize = 512;
const HALF_LN_TAU: f64 = 0.918_938_533_204_672_7;

#[track_caller]
fn components(x: &Tensor, params: &Tensor) -> usize {
    match params.shape().split_last() {
        Some((&p, lead)) if lead == x.shape() && p > 0 && p % 3 == 0 && x.dtype() == params.dtype() => p / 3,
        _ => panic!(
            "gaussian_mixture: x {:?} {:?} with params {:?} {:?}; expected (...) and (..., 3 K)",
            x.dtype(),
            x.shape(),
            params.dtype(),
            params.shape()
        ),
    }
}

/// Nats of each number of x (...) under its mixture of normals, params (..., 3 K).
///
/// # Panics
/// When the shapes do not fit or the dtypes differ.
#[track_caller]
pub fn gaussian_mixture(x: &Tensor, params: &Tensor, lowest: f64) -> Tensor {
    mixture(x, params, Component::Normal, lowest)
}

/// Nats of each number of x (...) under its mixture of such components, params (..., 3 K).
///
/// # Panics
/// When the shapes do not fit or the dtypes differ.
#[track_caller]
pub fn mixture(x: &Tensor, params: &Tensor, component: Component, lowest: f64) -> Tensor {
    let k = components(x, params);
    if autograd::in_higher_order() {
        return composite(x, params, component, lowest);
    }
    if let Some(gpu) = cuda::on("gaussian_mixture", &[x, params]) {
        return match component {
            Component::Normal => launch(gpu, x, params, k, lowest as f32),
            Component::Logistic => composite(x, params, component, lowest),
        };
    }
    if let DType::BF16 | DType::F16 = x.dtype() {
        let wide = |t: &Tensor| cast(t, DType::F32);
        return cast(&mixture(&wide(x), &wide(params), component, lowest), x.dtype());
    }
    with_arithmetic!(x.dtype(), T => {
        let zero = T::from_f64(0.0);
        let source = Source { x: x.as_slice::<T>(), params: params.as_slice::<T>(), k, lowest: T::from_f64(lowest) };
        let mut found = vec![[zero; 2]; x.len()];
        let run = match component {
            Component::Normal => Source::run::<false>,
            Component::Logistic => Source::run::<true>,
        };
        let recording = autograd::is_recording(&[x, params]);
        let mut slopes = NewTensor::<T>::new(if recording { params.shape() } else { &[0] });
        if recording {
            par::chunks_mut2(slopes.as_mut(), CHUNK * 3 * k, &mut found, CHUNK, |i, slopes, found| {
                run(&source, i * CHUNK, found, slopes);
            });
        } else {
            par::chunks_mut(&mut found, CHUNK, |i, found| {
                run(&source, i * CHUNK, found, &mut []);
            });
        }
        let part = |part: usize| Tensor::from_fn(x.shape(), |i| found[i][part]);
        let (nats, dx, slopes) = (part(0), part(1), slopes.finish());
        let [nats] = record(Recipe::fused("gaussian_mixture"), &[x, params], [nats], move |b| {
            let g = b.grad(0);
            let mut column = g.shape().to_vec();
            column.push(1);
            let dx = b.needs(0).then(|| binary::mul(&g, &dx));
            vec![dx, Some(binary::mul(&shape::reshape(&g, column), &slopes))]
        });
        nats
    })
}

/// On a device, with its gradients.
fn launch(gpu: Gpu, x: &Tensor, params: &Tensor, k: usize, lowest: f32) -> Tensor {
    let (dtype, n, k) = (x.dtype(), x.len() as i64, k as i32);
    let (nats, grid) = (gpu.empty(x.shape(), dtype), Grid::flat(x.len()));
    gpu.launch(FORWARD.of(dtype), grid, &[&nats, x, params, &n, &k, &lowest]);
    let (xs, ps) = (x.detach(), params.detach());
    let [nats] = record(Recipe::fused("gaussian_mixture"), &[x, params], [nats.finish()], move |b| {
        let (dx, dparams) = (gpu.empty(xs.shape(), dtype), gpu.empty(ps.shape(), dtype));
        let args: &[&dyn cuda::Arg] = &[&dx, &dparams, &b.grad(0), &xs, &ps, &n, &k, &lowest];
        gpu.launch(BACKWARD.of(dtype), grid, args);
        vec![Some(dx.finish()), Some(dparams.finish())]
    });
    nats
}

/// The inputs of a call.
struct Source<'a, T> {
    x: &'a [T],
    params: &'a [T],
    k: usize,
    lowest: T,
}

impl<T: Float> Source<'_, T> {
    /// Numbers from `first` on: nats and their derivative by x into `found`, the derivatives by the parameters into
    /// `slopes`, unless it is empty. A number in each lane: a row of components is shorter than a vector.
    fn run<const LOGISTIC: bool>(&self, first: usize, found: &mut [[T; 2]], slopes: &mut [T]) {
        let (width, zero) = (3 * self.k, T::from_f64(0.0));
        let mut params = vec![[zero; LANES]; width];
        let mut grads = params.clone();
        simd::vectorize_for::<T, _>(
            #[inline(always)]
            || {
                for (block, found) in found.chunks_mut(LANES).enumerate() {
                    let (at, n) = (block * LANES, found.len());
                    let mut x = [zero; LANES];
                    for lane in 0..LANES {
                        let from = first + at + if lane < n { lane } else { 0 };
                        x[lane] = self.x[from];
                        for (to, v) in params.iter_mut().zip(&self.params[from * width..][..width]) {
                            to[lane] = *v;
                        }
                    }
                    let [nats, dx] = self.lanes::<LOGISTIC>(&x, &params, &mut grads);
                    for (lane, found) in found.iter_mut().enumerate() {
                        let there = !x[lane].to_f64().is_nan();
                        *found = if there { [nats[lane], dx[lane]] } else { [zero; 2] };
                        if !slopes.is_empty() {
                            for (to, g) in slopes[(at + lane) * width..][..width].iter_mut().zip(&grads) {
                                *to = if there { g[lane] } else { zero };
                            }
                        }
                    }
                }
            },
        )
    }

    /// ln f(z).
    #[inline(always)]
    fn log_density<const LOGISTIC: bool>(z: T) -> T {
        if LOGISTIC {
            let size = z.abs();
            -(size + T::from_f64(2.0) * (-size).softplus())
        } else {
            -(T::from_f64(0.5) * z * z) - T::from_f64(HALF_LN_TAU)
        }
    }

    /// −d ln f(z) / dz.
    #[inline(always)]
    fn pull<const LOGISTIC: bool>(z: T) -> T {
        if LOGISTIC { (T::from_f64(0.5) * z).tanh() } else { z }
    }

    /// Nats and their derivatives by x; the derivatives by the parameters into `grads`. Short loops: long ones do not
    /// become vectors.
    #[inline(always)]
    fn lanes<const LOGISTIC: bool>(
        &self,
        x: &[T; LANES],
        params: &[[T; LANES]],
        grads: &mut [[T; LANES]],
    ) -> [[T; LANES]; 2] {
        let (k, zero, one) = (self.k, T::from_f64(0.0), T::from_f64(1.0));
        let (logits, means, scales) = (&params[..k], &params[k..2 * k], &params[2 * k..3 * k]);
        let (joint, rest) = grads.split_at_mut(k);
        let (z, rate) = rest.split_at_mut(k);
        // First ln of weight and density of each component, its z and e^{−s}.
        for i in 0..k {
            for l in 0..LANES {
                rate[i][l] = (-scales[i][l].max(self.lowest)).exp();
            }
            for l in 0..LANES {
                z[i][l] = (x[l] - means[i][l]) * rate[i][l];
            }
            for l in 0..LANES {
                joint[i][l] = Self::log_density::<LOGISTIC>(z[i][l]);
            }
            for l in 0..LANES {
                joint[i][l] = logits[i][l] - scales[i][l].max(self.lowest) + joint[i][l];
            }
        }
        let (prior, all) = (lanes_logsumexp(logits), lanes_logsumexp(joint));
        let (mut nats, mut dx) = ([zero; LANES], [zero; LANES]);
        for l in 0..LANES {
            nats[l] = (all[0][l] - prior[0][l]) + (all[1][l] - prior[1][l]);
        }
        let mut pull = [zero; LANES];
        for i in 0..k {
            for l in 0..LANES {
                joint[i][l] = ((joint[i][l] - all[0][l]) - all[1][l]).exp();
            }
            for l in 0..LANES {
                pull[l] = Self::pull::<LOGISTIC>(z[i][l]);
            }
            for l in 0..LANES {
                let share = joint[i][l];
                let spread = share * (z[i][l] * pull[l] - one);
                z[i][l] = share * pull[l] * rate[i][l];
                rate[i][l] = if scales[i][l] < self.lowest { zero } else { spread };
                dx[l] += -z[i][l];
            }
            for l in 0..LANES {
                joint[i][l] += -((logits[i][l] - prior[0][l]) - prior[1][l]).exp();
            }
        }
        [nats, dx]
    }
}

/// [`mixture`] in primitives.
pub fn composite(x: &Tensor, params: &Tensor, component: Component, lowest: f64) -> Tensor {
    let k = components(x, params);
    let last = x.rank();
    let mut column = x.shape().to_vec();
    column.push(1);
    let present = binary::eq(x, x);
    let x = shape::reshape(&binary::keep_where(&present, x), column);
    let part = |i: usize| shape::narrow(params, last, i * k, k);
    let raw = part(2);
    let above = binary::gt(&raw, &Tensor::full(lowest, [1], raw.dtype()));
    let scale = binary::select(&above, &raw, &Tensor::full(lowest, raw.shape(), raw.dtype()));
    let z = binary::mul(&binary::sub(&x, &part(1)), &unary::exp(&unary::neg(&scale)));
    let density = match component {
        Component::Normal => unary::affine(&unary::square(&z), -0.5, -HALF_LN_TAU),
        Component::Logistic => {
            unary::neg(&binary::add(&unary::softplus(&z), &unary::softplus(&unary::neg(&z))))
        }
    };
    let joint = binary::add(&softmax::composite_log_softmax(&part(0)), &binary::sub(&density, &scale));
    binary::keep_where(&present, &softmax::composite_logsumexp(&joint))
}

/// `flops` per component and number.
fn cases_of(of: Component, flops: usize) -> Vec<Case> {
    let case = |shape: &[usize], k: usize, lowest: f64| {
        let inputs = vec![normal(1, shape), normal(2, &[shape, &[3 * k]].concat())];
        Case::new(format!("{shape:?} K={k} lowest={lowest}"), inputs, move |x| {
            vec![mixture(&x[0], &x[1], of, lowest)]
        })
        .composite(move |x| vec![composite(&x[0], &x[1], of, lowest)])
    };
    let (n, k) = (512 * 21, 10);
    vec![
        case(&[1], 1, -7.0),
        case(&[3, 5], 3, -7.0),
        case(&[2, 3, 4], 17, -7.0),
        case(&[40], 4, -0.1).order(1),
        case(&[n], k, -7.0)
            .order(0)
            .bench(4 * n * (3 * k + 2), flops * n * k)
            .backward(4 * n * (6 * k + 3), 50 * n * k),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_number_is_marginalised() {
        let x = Tensor::from_slice(&[0.5f32, f32::NAN], [2]);
        let params = normal(3, &[2, 6]).cast(DType::F32).requires_grad();
        let y = gaussian_mixture(&x, &params, -7.0);
        assert!(y.as_slice::<f32>()[0] < 0.0 && y.as_slice::<f32>()[1] == 0.0);
        let g = autograd::backward(y.sum_all(), &[&params]);
        assert!(g[0].as_slice::<f32>()[..6].iter().all(|g| g.is_finite() && *g != 0.0));
        assert_eq!(g[0].as_slice::<f32>()[6..], [0.0; 6]);
    }

    #[test]
    fn far_numbers_stay_finite() {
        let x = Tensor::from_slice(&[1e6f32], [1]);
        for (component, nats) in [(Component::Normal, 5e11), (Component::Logistic, 1e6)] {
            let params = Tensor::zeros([1, 6], DType::F32).requires_grad();
            let y = mixture(&x, &params, component, -7.0);
            assert!((y.item() / -nats - 1.0).abs() < 1e-5, "{component:?}: {}", y.item());
            let g = autograd::backward(y.sum_all(), &[&params]);
            assert!(g[0].as_slice::<f32>().iter().all(|g| g.is_finite()));
        }
    }
}
