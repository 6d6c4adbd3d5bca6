//! The CDF of a mixture of logistics as a monotone map (Ho et al. 2019, "Flow++").
//!
//! For each number x (B, ...) the params (B, ..., 2 + 3K) are r, t, then the logits (K) of the weights π, the means
//! μ (K) and the log scales s (K) of the components:
//! ```text
//! F(x) = Σ π σ((x − μ) e^−s),  y = logit F(x) e^ℓ + t,  ℓ = 2 tanh(r / 2),
//! ln dy/dx = ln F'(x) − ln F − ln(1 − F) + ℓ,            log |det| (B,) is its sum, in nats
//! ```
//! All is calculated from ln F and ln(1 − F), each a logsumexp over the components, so no tail saturates. The scales are
//! held at e^−7 or more. With z = (x − μ) e^−s, the gradients f, c and d of ln F, ln(1 − F) and ln F', and the shares p
//! of a component in the three sums,
//! ```text
//! dz = f p_F σ(−z) − c p_C σ(z) + d p_D (1 − 2 σ(z)),      dlogit = f p_F + c p_C + d p_D − π (f + c + d),
//! dx = Σ dz e^−s,   dμ = −dz e^−s,   ds = −z dz − d p_D
//! ```
//! The inverse brackets x between the components and halves the interval to the last bit of an f64.
//! 4 (4 + 3K) bytes and about 80 K flops per number forward, twice the bytes and 120 K flops backward.

use super::logistic_mixture::{LANES, lanes_logsumexp};
use super::softmax::{log_softmax, logsumexp};
use super::{Case, OpInfo, cast, normal, shape, unary};
use crate::autograd::{self, Recipe, record};
use crate::cpu::{par, simd};
use crate::cuda::{self, Gpu, Grid, Kernels};
use crate::tensor::{DType, Float, NewTensor, Plain, Tensor, with_arithmetic};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "mixture_cdf",
    family: "fused",
    summary: "monotone map by the CDF of a mixture of logistics with its log-determinant, and the inverse",
    cases,
};

const FORWARD: Kernels = Kernels::new(
    "mixture_cdf",
    ["mixture_cdf_forward_f32", "mixture_cdf_forward_bf16", "mixture_cdf_forward_f16"],
);
const BACKWARD: Kernels = Kernels::new(
    "mixture_cdf",
    ["mixture_cdf_backward_f32", "mixture_cdf_backward_bf16", "mixture_cdf_backward_f16"],
);
const INVERSE: Kernels = Kernels::new(
    "mixture_cdf",
    ["mixture_cdf_inverse_f32", "mixture_cdf_inverse_bf16", "mixture_cdf_inverse_f16"],
);

/// The smallest log scale of a component.
const LOWEST_LOG_SCALE: f64 = -7.0;

/// The settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mixture {
    /// K, the number of components.
    pub components: usize,
}

impl Mixture {
    /// Parameters per number: 2 + 3K.
    pub fn params(self) -> usize {
        2 + 3 * self.components
    }

    /// Whether there are 1 to 256 components.
    pub fn is_valid(self) -> bool {
        (1..=256).contains(&self.components)
    }

    /// Parameters of a map near the identity whose components differ, so that they learn different things.
    pub(crate) fn identity(self) -> Vec<f64> {
        let k = self.components;
        let mut params = vec![0.0; self.params()];
        (0..k).for_each(|i| params[2 + k + i] = (2 * i + 1) as f64 / k as f64 - 1.0);
        params
    }
}

#[track_caller]
fn check(op: &str, x: &Tensor, params: &Tensor, mixture: Mixture) {
    let fits = params.shape().split_last() == Some((&mixture.params(), x.shape()));
    assert!(
        mixture.is_valid() && fits && x.rank() > 0 && x.dtype() == params.dtype(),
        "{op}: x {:?} {:?} with params {:?} {:?} of {} components",
        x.dtype(),
        x.shape(),
        params.dtype(),
        params.shape(),
        mixture.components
    );
}

/// y (B, ...) and log |det| (B,) in nats: x (B, ...), params (B, ..., 2 + 3K).
///
/// # Panics
/// When shapes or dtypes do not fit.
#[track_caller]
pub fn mixture_cdf(x: &Tensor, params: &Tensor, mixture: Mixture) -> (Tensor, Tensor) {
    check("mixture_cdf", x, params, mixture);
    if autograd::in_higher_order() {
        return composite(x, params, mixture);
    }
    if let Some(gpu) = cuda::on("mixture_cdf", &[x, params]) {
        return launch(gpu, x, params, mixture);
    }
    if let Some([wide, params]) = cast::widened([x, params]) {
        let (y, logdet) = mixture_cdf(&wide, &params, mixture);
        return (cast::cast(&y, x.dtype()), cast::cast(&logdet, x.dtype()));
    }
    let (y, slope) = with_arithmetic!(x.dtype(), T => forward::<T>(x, params, mixture));
    let (xs, ps) = (x.detach(), params.detach());
    let outputs = [y, slope.sum_examples()];
    let [y, logdet] = record(Recipe::fused("mixture_cdf"), &[x, params], outputs, move |back| {
        let (gy, gl) = (back.grad(0), back.grad(1));
        let [dx, dp] = with_arithmetic!(xs.dtype(), T => backward::<T>(&xs, &ps, &gy, &gl, mixture));
        vec![Some(dx), Some(dp)]
    });
    (y, logdet)
}

/// On a device, with its gradients; nothing is kept for them but the inputs.
fn launch(gpu: Gpu, x: &Tensor, params: &Tensor, mixture: Mixture) -> (Tensor, Tensor) {
    let (dtype, n, k) = (x.dtype(), x.len() as i64, mixture.components as i32);
    let (y, slope, grid) =
        (gpu.empty(x.shape(), dtype), gpu.empty(x.shape(), DType::F32), Grid::flat(x.len()));
    gpu.launch(FORWARD.of(dtype), grid, &[&y, &slope, x, params, &n, &k]);
    let logdet = cast::cast(&slope.finish().sum_examples(), dtype);
    let (xs, ps) = (x.detach(), params.detach());
    let each = (x.len() / x.shape()[0].max(1)) as i64;
    let recipe = Recipe::fused("mixture_cdf");
    let [y, logdet] = record(recipe, &[x, params], [y.finish(), logdet], move |back| {
        let (dx, dp) = (gpu.empty(xs.shape(), dtype), gpu.empty(ps.shape(), dtype));
        let (gy, gl) = (back.grad(0), back.grad(1));
        gpu.launch(BACKWARD.of(dtype), grid, &[&dx, &dp, &gy, &gl, &xs, &ps, &n, &each, &k]);
        vec![Some(dx.finish()), Some(dp.finish())]
    });
    (y, logdet)
}

/// Numbers per parallel chunk, whole vectors.
fn grain(p: usize) -> usize {
    (par::GRAIN / 16 / p + 1).next_multiple_of(LANES)
}

/// One number in each lane, as a row of components is shorter than a vector.
type Lanes<T> = [T; LANES];

/// The components of the numbers in the lanes. Loops over lanes are short: long ones do not become vectors.
struct Parts<T> {
    k: usize,
    x: Lanes<T>,
    params: Vec<Lanes<T>>,
    log_weight: Vec<Lanes<T>>,
    rate: Vec<Lanes<T>>,
    z: Vec<Lanes<T>>,
    /// ln of the terms of F, of 1 − F and of F'.
    terms: [Vec<Lanes<T>>; 3],
}

impl<T: Float> Parts<T> {
    fn new(mixture: Mixture) -> Self {
        let k = mixture.components;
        let rows = |n: usize| vec![[T::from_f64(0.0); LANES]; n];
        let (x, params) = ([T::from_f64(0.0); LANES], rows(mixture.params()));
        Self {
            k,
            x,
            params,
            log_weight: rows(k),
            rate: rows(k),
            z: rows(k),
            terms: [rows(k), rows(k), rows(k)],
        }
    }

    /// Takes the `n` numbers from `at` on into the first lanes; the others repeat the first.
    #[inline(always)]
    fn load(&mut self, xs: &[T], ps: &[T], at: usize, n: usize) {
        let width = self.params.len();
        for lane in 0..LANES {
            let from = at + if lane < n { lane } else { 0 };
            self.x[lane] = xs[from];
            for (to, v) in self.params.iter_mut().zip(&ps[from * width..][..width]) {
                to[lane] = *v;
            }
        }
    }

    /// Fills the components; returns the levels (largest term, ln of the sum over it) of the three sums and ℓ.
    #[inline(always)]
    fn fill(&mut self) -> ([[Lanes<T>; 2]; 3], Lanes<T>) {
        let (k, lowest, half) = (self.k, T::from_f64(LOWEST_LOG_SCALE), T::from_f64(0.5));
        let (logits, rest) = self.params[2..].split_at(k);
        let (means, scales) = rest.split_at(k);
        let prior = lanes_logsumexp(logits);
        let [below, above, density] = &mut self.terms;
        let (mut low, mut high) = ([half; LANES], [half; LANES]);
        for i in 0..k {
            for l in 0..LANES {
                self.log_weight[i][l] = (logits[i][l] - prior[0][l]) - prior[1][l];
            }
            for l in 0..LANES {
                self.rate[i][l] = (-scales[i][l].max(lowest)).exp();
            }
            for l in 0..LANES {
                self.z[i][l] = (self.x[l] - means[i][l]) * self.rate[i][l];
            }
            // softplus(z) = softplus(−z) + z: one of them is calculated, the smaller.
            for l in 0..LANES {
                let (size, zero) = (self.z[i][l].abs(), T::from_f64(0.0));
                let rest = (-size).softplus();
                low[l] = rest + (-self.z[i][l]).max(zero);
                high[l] = rest + self.z[i][l].max(zero);
            }
            for l in 0..LANES {
                let weight = self.log_weight[i][l];
                below[i][l] = weight - low[l];
                above[i][l] = weight - high[l];
                density[i][l] = weight - low[l] - high[l] - scales[i][l].max(lowest);
            }
        }
        let mut log_scale = [half; LANES];
        for l in 0..LANES {
            log_scale[l] = (self.params[0][l] * half).tanh() * T::from_f64(2.0);
        }
        let [f, c, d] = &self.terms;
        ([lanes_logsumexp(f), lanes_logsumexp(c), lanes_logsumexp(d)], log_scale)
    }

    /// The gradients of x; those of the params into `grads`.
    #[inline(always)]
    fn gradients(&mut self, gy: &Lanes<T>, gl: &Lanes<T>, grads: &mut [Lanes<T>]) -> Lanes<T> {
        let ([zero, one, two], lowest) = ([0.0, 1.0, 2.0].map(T::from_f64), T::from_f64(LOWEST_LOG_SCALE));
        let (levels, log_scale) = self.fill();
        let logit = logits(&levels);
        let mut stretch = *gy;
        for l in 0..LANES {
            stretch[l] = gy[l] * log_scale[l].exp();
        }
        let (head, rest) = grads.split_at_mut(2);
        for l in 0..LANES {
            let slope = one - log_scale[l] * log_scale[l] * T::from_f64(0.25);
            head[0][l] = stretch[l].mul_add(logit[l], gl[l]) * slope;
        }
        head[1] = *gy;
        let (dlogits, rest) = rest.split_at_mut(self.k);
        let (dmeans, dscales) = rest.split_at_mut(self.k);
        let scales = &self.params[2 + 2 * self.k..];
        let (mut sum, mut up, mut down) = ([zero; LANES], [zero; LANES], [zero; LANES]);
        for i in 0..self.k {
            // The shares of the component, in the place of its terms.
            for (terms, level) in self.terms.iter_mut().zip(&levels) {
                for l in 0..LANES {
                    terms[i][l] = ((terms[i][l] - level[0][l]) - level[1][l]).exp();
                }
            }
            for l in 0..LANES {
                up[l] = self.z[i][l].sigmoid();
            }
            for l in 0..LANES {
                down[l] = (-self.z[i][l]).sigmoid();
            }
            for l in 0..LANES {
                let [f, c, d] = &self.terms;
                let (pf, pc, pd) =
                    ((stretch[l] - gl[l]) * f[i][l], (-stretch[l] - gl[l]) * c[i][l], gl[l] * d[i][l]);
                let dz = pf * down[l] - pc * up[l] + pd * (one - two * up[l]);
                dlogits[i][l] = pf + pc + pd;
                dscales[i][l] = if scales[i][l] <= lowest { zero } else { -self.z[i][l] * dz - pd };
                dmeans[i][l] = -dz * self.rate[i][l];
                sum[l] += -dmeans[i][l];
            }
            // f + c + d = −gl, with every share 1.
            for l in 0..LANES {
                dlogits[i][l] += self.log_weight[i][l].exp() * gl[l];
            }
        }
        sum
    }
}

/// ln F − ln(1 − F) of the levels.
#[inline(always)]
fn logits<T: Float>([f, c, _]: &[[Lanes<T>; 2]; 3]) -> Lanes<T> {
    std::array::from_fn(
        #[inline(always)]
        |l| (f[0][l] - c[0][l]) + (f[1][l] - c[1][l]),
    )
}

/// y and ln dy/dx, both (B, ...).
fn forward<T: Float>(x: &Tensor, params: &Tensor, mixture: Mixture) -> (Tensor, Tensor) {
    let (xs, ps, per) = (x.as_slice::<T>(), params.as_slice::<T>(), grain(mixture.params()));
    let (mut y, mut slope) = (NewTensor::<T>::new(x.shape()), NewTensor::<T>::new(x.shape()));
    par::chunks_mut2(y.as_mut(), per, slope.as_mut(), per, |task, y, slope| {
        let mut parts = Parts::new(mixture);
        simd::vectorize_for::<T, _>(
            #[inline(always)]
            || {
                for (block, (y, slope)) in y.chunks_mut(LANES).zip(slope.chunks_mut(LANES)).enumerate() {
                    parts.load(xs, ps, task * per + block * LANES, y.len());
                    let (levels, log_scale) = parts.fill();
                    let (mut value, [f, c, d]) = (logits(&levels), &levels);
                    let mut rise = log_scale;
                    for l in 0..LANES {
                        value[l] = value[l].mul_add(log_scale[l].exp(), parts.params[1][l]);
                    }
                    for l in 0..LANES {
                        rise[l] += ((d[0][l] - f[0][l]) - c[0][l]) + ((d[1][l] - f[1][l]) - c[1][l]);
                    }
                    y.copy_from_slice(&value[..y.len()]);
                    slope.copy_from_slice(&rise[..slope.len()]);
                }
            },
        )
    });
    (y.finish(), slope.finish())
}

/// The gradients of x and the params.
fn backward<T: Float>(
    x: &Tensor,
    params: &Tensor,
    gy: &Tensor,
    gl: &Tensor,
    mixture: Mixture,
) -> [Tensor; 2] {
    let (xs, ps) = (x.as_slice::<T>(), params.as_slice::<T>());
    let (gys, gls, p) = (gy.as_slice::<T>(), gl.as_slice::<T>(), mixture.params());
    let each = xs.len() / gls.len().max(1);
    let (mut dx, mut dp) = (NewTensor::<T>::new(x.shape()), NewTensor::<T>::new(params.shape()));
    let per = grain(p);
    par::chunks_mut2(dx.as_mut(), per, dp.as_mut(), per * p, |task, dx, dp| {
        let mut parts = Parts::new(mixture);
        let mut grads = parts.params.clone();
        simd::vectorize_for::<T, _>(
            #[inline(always)]
            || {
                for (block, (dx, dp)) in dx.chunks_mut(LANES).zip(dp.chunks_mut(LANES * p)).enumerate() {
                    let at = task * per + block * LANES;
                    parts.load(xs, ps, at, dx.len());
                    let from: [usize; LANES] = std::array::from_fn(
                        #[inline(always)]
                        |l| at + if l < dx.len() { l } else { 0 },
                    );
                    let [gy, gl] = [from.map(|i| gys[i]), from.map(|i| gls[i / each])];
                    let sums = parts.gradients(&gy, &gl, &mut grads);
                    dx.copy_from_slice(&sums[..dx.len()]);
                    for (lane, dp) in dp.chunks_exact_mut(p).enumerate() {
                        dp.iter_mut().zip(&grads).for_each(|(to, g)| *to = g[lane]);
                    }
                }
            },
        )
    });
    [dx.finish(), dp.finish()]
}

/// x such that [`mixture_cdf`] gives y; unrecorded, as a search has no gradient.
///
/// # Panics
/// When shapes or dtypes do not fit.
#[track_caller]
pub fn inverse(y: &Tensor, params: &Tensor, mixture: Mixture) -> Tensor {
    check("mixture_cdf inverse", y, params, mixture);
    if let Some(gpu) = cuda::on("mixture_cdf inverse", &[y, params]) {
        let x = gpu.empty(y.shape(), y.dtype());
        let (n, k) = (y.len() as i64, mixture.components as i32);
        gpu.launch(INVERSE.of(y.dtype()), Grid::flat(y.len()), &[&x, y, params, &n, &k]);
        return x.finish();
    }
    if let Some([wide, params]) = cast::widened([&y.detach(), &params.detach()]) {
        return cast::cast(&inverse(&wide, &params, mixture), y.dtype());
    }
    with_arithmetic!(y.dtype(), T => {
        let (ys, ps, p) = (y.as_slice::<T>(), params.as_slice::<T>(), mixture.params());
        let mut out = NewTensor::<T>::new(y.shape());
        let per = grain(p);
        par::chunks_mut(out.as_mut(), per, |task, out| {
            for (i, x) in out.iter_mut().enumerate() {
                let at = task * per + i;
                let row: Vec<f64> = ps[at * p..(at + 1) * p].iter().map(|v| v.to_f64()).collect();
                let logit = (ys[at].to_f64() - row[1]) * (-2.0 * (0.5 * row[0]).tanh()).exp();
                *x = <T as Plain>::from_f64(solve(&row[2..], mixture.components, logit));
            }
        });
        out.finish()
    })
}

/// x with logit F(x) = `logit`.
fn solve(row: &[f64], k: usize, logit: f64) -> f64 {
    let (weights, rest) = row.split_at(k);
    let component = |i: usize| (rest[i], rest[k + i].max(LOWEST_LOG_SCALE).exp());
    let value = |x: f64| {
        let (mut below, mut above) = (Sum::default(), Sum::default());
        for (i, w) in weights.iter().enumerate() {
            let (mean, scale) = component(i);
            let z = (x - mean) / scale;
            below.add(w - softplus(-z));
            above.add(w - softplus(z));
        }
        below.ln() - above.ln()
    };
    // Every component reaches the logit at mean + scale · logit, so the mixture does between the outermost of them.
    let reach = |i: usize| component(i).0 + component(i).1 * logit;
    let (mut low, mut high) = (0..k).map(reach).fold((f64::MAX, f64::MIN), |(l, h), x| (l.min(x), h.max(x)));
    for _ in 0..200 {
        let middle = low + 0.5 * (high - low);
        if middle <= low || middle >= high {
            break;
        }
        if value(middle) < logit { low = middle } else { high = middle }
    }
    low + 0.5 * (high - low)
}

/// ln Σ e^v, term by term.
struct Sum {
    top: f64,
    sum: f64,
}

impl Default for Sum {
    fn default() -> Self {
        Self { top: f64::NEG_INFINITY, sum: 0.0 }
    }
}

impl Sum {
    fn add(&mut self, v: f64) {
        if v > self.top {
            self.sum = self.sum * (self.top - v).exp() + 1.0;
            self.top = v;
        } else {
            self.sum += (v - self.top).exp();
        }
    }

    fn ln(&self) -> f64 {
        self.top + self.sum.ln()
    }
}

fn softplus(z: f64) -> f64 {
    z.max(0.0) + (-z.abs()).exp().ln_1p()
}

/// [`mixture_cdf`] in primitives.
pub fn composite(x: &Tensor, params: &Tensor, mixture: Mixture) -> (Tensor, Tensor) {
    let (last, k) = (params.rank() - 1, mixture.components);
    let part = |from, len| shape::narrow(params, last, from, len);
    let log_scale = unary::affine(&shape::reshape(&part(0, 1), x.shape()), 0.5, 0.0).tanh().affine(2.0, 0.0);
    let shift = shape::reshape(&part(1, 1), x.shape());
    let log_weights = log_softmax(&part(2, k));
    let scales = unary::clamp(&part(2 + 2 * k, k), LOWEST_LOG_SCALE, f64::MAX);
    let column = shape::reshape(x, [x.shape(), &[1]].concat());
    let z = &(&column - &part(2 + k, k)) * &(-&scales).exp();
    // ln σ(z) = −softplus(−z), ln σ(−z) = −softplus(z).
    let (below, above) = (&log_weights - &(-&z).softplus(), &log_weights - &z.softplus());
    let (log_f, log_rest) = (logsumexp(&below), logsumexp(&above));
    let log_density = logsumexp(&(&(&below + &above) - &(&log_weights + &scales)));
    let y = &(&(&log_f - &log_rest) * &log_scale.exp()) + &shift;
    let slope = &(&log_density - &(&log_f + &log_rest)) + &log_scale;
    (y, slope.sum_examples())
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (lead, k, spread) in [
        (&[1][..], 1, 1.0),
        (&[3, 5], 3, 1.0),
        (&[2, 3, 2, 2], 8, 1.0),
        (&[2, 70], 2, 1.0),
        (&[4, 3], 4, 3.0),
    ] {
        let mixture = Mixture { components: k };
        let params = normal(2, &[lead, &[mixture.params()]].concat()).affine(spread, 0.0);
        let inputs = vec![normal(1, lead).affine(spread, 0.0), params];
        let pair = |(y, logdet): (Tensor, Tensor)| vec![y, logdet];
        let name = format!("{lead:?} K={k} spread {spread}");
        cases.push(
            Case::new(&name[..], inputs.clone(), move |x| pair(mixture_cdf(&x[0], &x[1], mixture)))
                .composite(move |x| pair(composite(&x[0], &x[1], mixture))),
        );
        if spread > 1.0 {
            continue; // what the inverse gives leaves the range of f16
        }
        let run = move |x: &[Tensor]| vec![inverse(&x[0], &x[1], mixture)];
        cases.push(Case::new(format!("inverse {name}"), inputs, run).order(0));
    }
    let (b, d, mixture) = (64, 392, Mixture { components: 8 });
    let inputs = vec![normal(3, &[b, d]), normal(4, &[b, d, mixture.params()])];
    let run = move |x: &[Tensor]| {
        let (y, logdet) = mixture_cdf(&x[0], &x[1], mixture);
        vec![y, logdet]
    };
    let n = b * d;
    cases.push(
        Case::new("64 x 392 of 8", inputs, run)
            .order(0)
            .bench(4 * n * (4 + 3 * 8), 80 * 8 * n)
            .backward(4 * n * (7 + 6 * 8), 120 * 8 * n),
    );
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inverse_undoes_it_far_into_the_tails() {
        let mixture = Mixture { components: 3 };
        let x = Tensor::from_slice(&[-80.0, -3.0, 0.2, 5.0, 90.0], [1, 5]);
        let params = normal(7, &[1, 5, mixture.params()]);
        let (y, logdet) = mixture_cdf(&x, &params, mixture);
        let back = inverse(&y, &params, mixture);
        assert!(logdet.item().is_finite());
        assert!(crate::testing::max_error(&[back], &[x]) < 1e-9);
    }

    #[test]
    #[should_panic(expected = "mixture_cdf: x F64 [2] with params F64 [2, 7] of 2 components")]
    fn params_that_do_not_fit_are_named() {
        mixture_cdf(&normal(1, &[2]), &normal(2, &[2, 7]), Mixture { components: 2 });
    }
}
