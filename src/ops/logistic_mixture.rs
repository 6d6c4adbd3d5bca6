//! Discretised mixture of logistics: log-likelihood of pixels, as PixelCNN++ (Salimans et al. 2017).
//!
//! `x` (..., C) u8 in 0..=255 with C = 1 (grey) or 3 (RGB) and `params` (..., P) give (...) nats, the
//! log-likelihood of all channels of a pixel. With K components the parameters of a pixel are, in this order:
//! - K logits of the mixture;
//! - per channel: K means, K log-scales (values below −7 count as −7) and, for RGB, K raw coefficients
//!   whose tanh are α (of red), β (of green), γ (of blue): P = 3 K for grey, 10 K for RGB.
//!
//! With v = 2 x / 255 − 1, h = 1/255, the mean of red is its parameter, that of green gets + α v_red and that of
//! blue + β v_red + γ v_green. With a, b = (v − μ ± h) / s, the probability of a value is that of its bin,
//! σ(a) − σ(b), and the first and last bins reach to −∞ and +∞. PixelCNN++ subtracts the two sigmoids and falls
//! back to the density at the centre where they are closer than 1e-5; the same quantity is here, without
//! cancellation,
//! ```text
//! ln(σ(a) − σ(b)) = −softplus(−a) − softplus(b) + ln(1 − e^{−d}),   d = a − b = 2 h / s
//! ```
//! of which the first bin keeps only the first term and the last bin only the second. Sixteen pixels are
//! worked on at once. About 60 flops per component, channel and pixel.

use super::{Case, OpInfo, binary, cast::cast, normal, shape, softmax, unary};
use crate::autograd::{self, Recipe, record};
use crate::cpu::{par, simd};
use crate::cuda::{self, Gpu, Grid, Kernels, Struct};
use crate::tensor::{DType, Float, NewTensor, Tensor, with_arithmetic};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "logistic_mixture",
    family: "fused",
    summary: "log-likelihood under a discretised mixture of logistics, grey or RGB (PixelCNN++)",
    cases,
};

const FORWARD: Kernels = Kernels::new(
    "logistic_mixture",
    ["logistic_mixture_forward_f32", "logistic_mixture_forward_bf16", "logistic_mixture_forward_f16"],
);
const BACKWARD: Kernels = Kernels::new(
    "logistic_mixture",
    ["logistic_mixture_backward_f32", "logistic_mixture_backward_bf16", "logistic_mixture_backward_f16"],
);

const HALF_BIN: f64 = 1.0 / 255.0;
const LOWEST_LOG_SCALE: f64 = -7.0;
pub(super) const LANES: usize = 16;
/// Pixels per parallel chunk, a multiple of `LANES`.
const CHUNK: usize = 256;

/// The number of parameters per pixel with `channels` 1 or 3 and `components`.
///
/// # Panics
/// With another number of channels.
#[track_caller]
pub fn params_per_pixel(channels: usize, components: usize) -> usize {
    match channels {
        1 => 3 * components,
        3 => 10 * components,
        _ => panic!("logistic_mixture: expected 1 or 3 channels, got {channels}"),
    }
}

/// Where the parameters of a pixel lie.
#[derive(Clone, Copy)]
struct Layout {
    channels: usize,
    k: usize,
}

impl Layout {
    #[track_caller]
    fn of(params: &Tensor, x: &Tensor) -> Self {
        let fail = || -> ! {
            panic!("logistic_mixture: params {:?} with x {:?} {:?}", params.shape(), x.dtype(), x.shape())
        };
        let (Some((&p, lead)), Some((&channels, x_lead))) =
            (params.shape().split_last(), x.shape().split_last())
        else {
            fail()
        };
        if lead != x_lead || x.dtype() != DType::U8 {
            fail()
        }
        let per = params_per_pixel(channels, 1);
        if p == 0 || p % per != 0 {
            fail()
        }
        Self { channels, k: p / per }
    }

    fn parts(self) -> usize {
        if self.channels == 1 { 2 } else { 3 }
    }

    fn params(self) -> usize {
        params_per_pixel(self.channels, self.k)
    }

    /// The first of the K means (part 0), log-scales (1) or coefficients (2) of a channel.
    #[inline(always)]
    fn at(self, channel: usize, part: usize) -> usize {
        self.k * (1 + channel * self.parts() + part)
    }
}

/// ln(1 − e^{−d}), given ln d.
#[inline(always)]
fn log_width<F: Float>(d: F, ln_d: F) -> F {
    let c = F::from_f64;
    // ln((1 − e^{−d}) / d); the next term is below 2e-15 where this is used.
    let d2 = d * d;
    let p = c(-1.0 / 9_676_800.0).mul_add(d2, c(1.0 / 181_440.0));
    let p = p.mul_add(d2, c(-1.0 / 2880.0)).mul_add(d2, c(1.0 / 24.0));
    let series = ln_d + p.mul_add(d2, d * c(-0.5));
    let direct = (c(1.0) - (-d).exp()).ln();
    if d < c(0.25) { series } else { direct }
}

/// d / (e^d − 1).
#[inline(always)]
fn width_slope<F: Float>(d: F) -> F {
    let c = F::from_f64;
    let d2 = d * d;
    let p = c(-1.0 / 1_209_600.0).mul_add(d2, c(1.0 / 30_240.0));
    let p = p.mul_add(d2, c(-1.0 / 720.0)).mul_add(d2, c(1.0 / 12.0));
    let series = p.mul_add(d2, d.mul_add(c(-0.5), c(1.0)));
    let e = (-d).exp();
    if d < c(0.25) { series } else { d * e / (c(1.0) - e) }
}

/// One channel of one component: its log-probability, and the derivatives with respect to mean and log-scale.
#[inline(always)]
fn bin<F: Float>(byte: u8, v: F, mean: F, log_scale: F, want_grad: bool) -> [F; 3] {
    let c = F::from_f64;
    let zero = c(0.0);
    let clamped = log_scale.max(c(LOWEST_LOG_SCALE));
    let inverse = (-clamped).exp();
    // Bounded, so that a product with a vanishing slope below is 0 and not NaN.
    let far = |x: F| x.max(c(-1e30)).min(c(1e30));
    let (a, b) = (far((v - mean + c(HALF_BIN)) * inverse), far((v - mean - c(HALF_BIN)) * inverse));
    let d = inverse * c(2.0 * HALF_BIN);
    let (first, last) = (byte == 0, byte == 255);
    let below = if last { zero } else { -(-a).softplus() };
    let above = if first { zero } else { -b.softplus() };
    let width = if first || last { zero } else { log_width(d, c((2.0 * HALF_BIN).ln()) - clamped) };
    if !want_grad {
        return [below + above + width, zero, zero];
    }
    let da = if last { zero } else { (-a).sigmoid() };
    let db = if first { zero } else { -b.sigmoid() };
    let dd = if first || last { zero } else { width_slope(d) };
    let d_scale = -(da * a + db * b + dd);
    let d_scale = if log_scale < c(LOWEST_LOG_SCALE) { zero } else { d_scale };
    [below + above + width, -(da + db) * inverse, d_scale]
}

/// v of a byte.
#[inline(always)]
fn value<F: Float>(byte: u8) -> F {
    F::from_f64(byte as f64 / 127.5 - 1.0)
}

/// Sixteen pixels: bytes and values (C, lane), parameters (P, lane), and what is derived from them.
struct Block<F> {
    layout: Layout,
    bytes: [[u8; LANES]; 3],
    values: [[F; LANES]; 3],
    params: Vec<[F; LANES]>,
    grads: Vec<[F; LANES]>,
    nats: [F; LANES],
}

impl<F: Float> Block<F> {
    fn new(layout: Layout) -> Self {
        let zero = [F::from_f64(0.0); LANES];
        let room = vec![zero; layout.params()];
        Self {
            layout,
            bytes: [[0; LANES]; 3],
            values: [zero; 3],
            params: room.clone(),
            grads: room,
            nats: zero,
        }
    }

    /// Reads up to sixteen pixels; unused lanes repeat the first.
    #[inline(always)]
    fn read(&mut self, params: &[F], x: &[u8]) {
        let (p, c) = (self.layout.params(), self.layout.channels);
        let n = x.len() / c;
        for lane in 0..LANES {
            let from = if lane < n { lane } else { 0 };
            for (to, v) in self.params.iter_mut().zip(&params[from * p..][..p]) {
                to[lane] = *v;
            }
            for i in 0..c {
                self.bytes[i][lane] = x[from * c + i];
            }
        }
        for (values, bytes) in self.values.iter_mut().zip(&self.bytes) {
            values.iter_mut().zip(bytes).for_each(|(v, b)| *v = value(*b));
        }
    }

    /// The log-likelihoods into `nats` and, when wanted, their gradients into `grads`.
    #[inline(always)]
    fn run(&mut self, want_grad: bool) {
        let Layout { channels, k } = self.layout;
        let layout = self.layout;
        for j in 0..k {
            // Slot j of `grads` holds ln p(component j, pixel), but for the mixture's normaliser, until `spread`.
            let mut joint = self.params[j];
            for channel in 0..channels {
                let mut means = self.params[layout.at(channel, 0) + j];
                for (earlier, slot) in couplings(channel) {
                    let raw = self.params[layout.at(slot, 2) + j];
                    for lane in 0..LANES {
                        means[lane] += raw[lane].tanh() * self.values[earlier][lane];
                    }
                }
                let scales = self.params[layout.at(channel, 1) + j];
                let (mut d_means, mut d_scales) = (means, scales);
                for lane in 0..LANES {
                    let (byte, v) = (self.bytes[channel][lane], self.values[channel][lane]);
                    let [lp, d_mean, d_scale] = bin(byte, v, means[lane], scales[lane], want_grad);
                    joint[lane] += lp;
                    (d_means[lane], d_scales[lane]) = (d_mean, d_scale);
                }
                self.grads[layout.at(channel, 0) + j] = d_means;
                self.grads[layout.at(channel, 1) + j] = d_scales;
            }
            self.grads[j] = joint;
        }
        let prior = lanes_logsumexp(&self.params[..k]);
        let all = lanes_logsumexp(&self.grads[..k]);
        for lane in 0..LANES {
            self.nats[lane] = (all[0][lane] - prior[0][lane]) + (all[1][lane] - prior[1][lane]);
        }
        if want_grad {
            self.spread(prior, all);
        }
    }

    /// Scales the gradients of each component by its share of the likelihood.
    #[inline(always)]
    fn spread(&mut self, prior: [[F; LANES]; 2], all: [[F; LANES]; 2]) {
        let Layout { channels, k } = self.layout;
        let layout = self.layout;
        for j in 0..k {
            let mut share = self.grads[j];
            for lane in 0..LANES {
                share[lane] = ((share[lane] - all[0][lane]) - all[1][lane]).exp();
                let weight = ((self.params[j][lane] - prior[0][lane]) - prior[1][lane]).exp();
                self.grads[j][lane] = share[lane] - weight;
            }
            for channel in 0..channels {
                for part in 0..2 {
                    let g = &mut self.grads[layout.at(channel, part) + j];
                    g.iter_mut().zip(&share).for_each(|(g, s)| *g = *g * *s);
                }
                let g = self.grads[layout.at(channel, 0) + j];
                for (earlier, slot) in couplings(channel) {
                    let at = layout.at(slot, 2) + j;
                    for lane in 0..LANES {
                        let t = self.params[at][lane].tanh();
                        let slope = (F::from_f64(1.0) - t * t) * self.values[earlier][lane];
                        self.grads[at][lane] = g[lane] * slope;
                    }
                }
            }
        }
    }
}

/// What the mean of a channel depends on: (earlier channel, channel whose coefficient slot it uses).
#[inline(always)]
fn couplings(channel: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..channel).map(move |earlier| (earlier, if channel == 1 { 0 } else { 1 + earlier }))
}

/// Per lane the maximum of the rows and ln Σ e^{x − maximum}.
#[inline(always)]
pub(super) fn lanes_logsumexp<F: Float>(rows: &[[F; LANES]]) -> [[F; LANES]; 2] {
    // Not below what f32 holds, so that rows of −∞ give −∞ and not NaN.
    let mut top = [F::from_f64(f32::MIN as f64); LANES];
    for row in rows {
        top.iter_mut().zip(row).for_each(|(t, x)| *t = t.max(*x));
    }
    let mut sum = [F::from_f64(0.0); LANES];
    for row in rows {
        for lane in 0..LANES {
            sum[lane] += (row[lane] - top[lane]).exp();
        }
    }
    for s in &mut sum {
        *s = s.ln();
    }
    [top, sum]
}

/// Log-likelihood in nats of each pixel of `x` (..., C) u8 under `params` (..., P): shape (...).
///
/// # Panics
/// When x is not u8 with C = 1 or 3, the leading shapes differ, or P is not a multiple of 3 (grey) or 10 (RGB).
#[track_caller]
pub fn logistic_mixture(params: &Tensor, x: &Tensor) -> Tensor {
    let layout = Layout::of(params, x);
    if autograd::in_higher_order() {
        return composite(params, x);
    }
    if let Some(gpu) = cuda::on("logistic_mixture", &[params, x]) {
        return launch(gpu, params, x, layout);
    }
    if let DType::BF16 | DType::F16 = params.dtype() {
        return cast(&logistic_mixture(&cast(params, DType::F32), x), params.dtype());
    }
    let (p, c) = (layout.params(), layout.channels);
    with_arithmetic!(params.dtype(), T => {
        let (ps, xs) = (params.as_slice::<T>(), x.as_slice::<u8>());
        let mut out = NewTensor::<T>::new(&x.shape()[..x.rank() - 1]);
        par::chunks_mut(out.as_mut(), CHUNK, |chunk, out| {
            let mut block = Block::new(layout);
            simd::vectorize_for::<T, _>(#[inline(always)] || {
                for (i, out) in out.chunks_mut(LANES).enumerate() {
                    let at = chunk * CHUNK + i * LANES;
                    block.read(&ps[at * p..][..out.len() * p], &xs[at * c..][..out.len() * c]);
                    block.run(false);
                    out.iter_mut().zip(&block.nats).for_each(|(y, v)| *y = *v);
                }
            })
        });
        let (saved, bytes) = (params.detach(), x.detach());
        let [y] = record(Recipe::fused("logistic_mixture"), &[params], [out.finish()], move |b| {
            vec![Some(backward::<T>(layout, &saved, &bytes, &b.grad(0)))]
        });
        y
    })
}

/// As `Layout` in kernels/logistic_mixture.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct DeviceLayout {
    pixels: i32,
    channels: i32,
    components: i32,
}

fn launch(gpu: Gpu, params: &Tensor, x: &Tensor, layout: Layout) -> Tensor {
    let pixels = x.len() / layout.channels;
    let row = 4 * (layout.params() | 1);
    let threads = [128, 64].into_iter().find(|t| t * row <= 96 << 10).unwrap_or(32);
    let grid = Grid { shared: (threads * row) as u32, ..Grid::new(pixels.div_ceil(threads), threads as u32) };
    let [pixels, channels, components] = [pixels, layout.channels, layout.k].map(|n| n as i32);
    let sizes = Struct(DeviceLayout { pixels, channels, components });
    let nats = gpu.empty(&x.shape()[..x.rank() - 1], params.dtype());
    gpu.launch(FORWARD.of(params.dtype()), grid, &[&nats, params, x, &sizes]);
    let (saved, bytes) = (params.detach(), x.detach());
    let [nats] = record(Recipe::fused("logistic_mixture"), &[params], [nats.finish()], move |back| {
        let d = gpu.empty(saved.shape(), saved.dtype());
        gpu.launch(BACKWARD.of(saved.dtype()), grid, &[&d, &back.grad(0), &saved, &bytes, &sizes]);
        vec![Some(d.finish())]
    });
    nats
}

fn backward<T: Float>(layout: Layout, params: &Tensor, x: &Tensor, g: &Tensor) -> Tensor {
    let (p, c) = (layout.params(), layout.channels);
    let (ps, xs, gs) = (params.as_slice::<T>(), x.as_slice::<u8>(), g.as_slice::<T>());
    let mut out = NewTensor::<T>::new(params.shape());
    par::chunks_mut(out.as_mut(), CHUNK * p, |chunk, out| {
        let mut block = Block::new(layout);
        simd::vectorize_for::<T, _>(
            #[inline(always)]
            || {
                for (i, out) in out.chunks_mut(LANES * p).enumerate() {
                    let (at, n) = (chunk * CHUNK + i * LANES, out.len() / p);
                    block.read(&ps[at * p..][..n * p], &xs[at * c..][..n * c]);
                    block.run(true);
                    for (lane, out) in out.chunks_exact_mut(p).enumerate() {
                        let g = gs[at + lane];
                        out.iter_mut().zip(&block.grads).for_each(|(y, v)| *y = g * v[lane]);
                    }
                }
            },
        )
    });
    out.finish()
}

/// One pixel drawn from the distribution of its `params` (P): `uniforms` holds 1 + C numbers in (0, 1), the first
/// choosing the component. `temperature` divides the logits and multiplies the scales.
pub fn draw(params: &[f32], uniforms: &[f64], temperature: f64, out: &mut [u8]) {
    let channels = out.len();
    let layout = Layout { channels, k: params.len() / params_per_pixel(channels, 1) };
    let at = |i: usize| params[i] as f64;
    let top = (0..layout.k).map(at).fold(f64::MIN, f64::max);
    let weights: Vec<f64> = (0..layout.k).map(|j| ((at(j) - top) / temperature).exp()).collect();
    let mut left = uniforms[0] * weights.iter().sum::<f64>();
    let chosen = weights.iter().position(|w| {
        left -= w;
        left < 0.0
    });
    let j = chosen.unwrap_or(layout.k - 1);
    for channel in 0..channels {
        let mut mean = at(layout.at(channel, 0) + j);
        for (earlier, slot) in couplings(channel) {
            mean += at(layout.at(slot, 2) + j).tanh() * value::<f64>(out[earlier]);
        }
        let scale = at(layout.at(channel, 1) + j).max(LOWEST_LOG_SCALE).exp() * temperature;
        let u = uniforms[1 + channel];
        let v = mean + scale * (u.ln() - (1.0 - u).ln());
        out[channel] = ((v + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8;
    }
}

/// [`logistic_mixture`] in primitives.
pub fn composite(params: &Tensor, x: &Tensor) -> Tensor {
    let layout = Layout::of(params, x);
    let (last, k) = (x.rank() - 1, layout.k);
    let part = |channel: usize, part: usize| shape::narrow(params, last, layout.at(channel, part), k);
    let is = |x: &Tensor, byte: f64| binary::eq(x, &Tensor::scalar(byte, x.dtype()));
    let not = |mask: &Tensor| unary::affine(mask, -1.0, 1.0);
    let bytes = x.cast(params.dtype());
    let mut joint = softmax::composite_log_softmax(&shape::narrow(params, last, 0, k));
    for channel in 0..layout.channels {
        let byte = shape::narrow(&bytes, last, channel, 1);
        let mut mean = part(channel, 0);
        for (earlier, slot) in couplings(channel) {
            let v = shape::narrow(&bytes, last, earlier, 1).affine(2.0 / 255.0, -1.0);
            mean = &mean + &(&part(slot, 2).tanh() * &v);
        }
        let inverse = unary::neg(&part(channel, 1).clamp(LOWEST_LOG_SCALE, f64::MAX)).exp();
        let centred = &byte.affine(2.0 / 255.0, -1.0) - &mean;
        let a = &centred.affine(1.0, HALF_BIN) * &inverse;
        let b = &centred.affine(1.0, -HALF_BIN) * &inverse;
        let (first, last) = (is(&byte, 0.0), is(&byte, 255.0));
        let below = unary::neg(&unary::neg(&a).softplus());
        let above = unary::neg(&b.softplus());
        let width = inverse.affine(-2.0 * HALF_BIN, 0.0).exp().affine(-1.0, 1.0).ln();
        joint = &joint + &binary::keep_where(&not(&last), &below);
        joint = &joint + &binary::keep_where(&not(&first), &above);
        joint = &joint + &binary::keep_where(&(&not(&first) * &not(&last)), &width);
    }
    softmax::composite_logsumexp(&joint)
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (channels, k, lead) in
        [(1, 1, &[1][..]), (1, 5, &[2, 9]), (3, 1, &[3]), (3, 4, &[2, 3, 3]), (1, 3, &[300])]
    {
        let dims = [lead, &[params_per_pixel(channels, k)]].concat();
        let n = lead.iter().product::<usize>() * channels;
        // Every third byte is at an end of the range.
        let byte = move |i: usize| [0, 255, (i * 37 % 254 + 1) as u8][i % 3];
        let x = Tensor::from_fn([lead, &[channels]].concat(), |i| if n == 1 { 100 } else { byte(i) });
        cases.push(case(format!("{channels} channels, {k} components, {lead:?}"), normal(1, &dims), x));
    }
    // Narrow bins far from the mean, and scales that are clamped.
    let narrow = Tensor::from_slice(&[0.3, -0.2, -3.0, 0.9, -6.9, -9.0], [1, 6]);
    cases.push(case("narrow".into(), narrow, Tensor::from_slice(&[200u8], [1, 1])).order(1));
    let (rows, k) = (32 * 784, 5);
    let x = Tensor::from_fn([rows, 1], |i| (i * 31 % 256) as u8);
    cases.push(
        case("32 grey images, 5 components".into(), normal(2, &[rows, 3 * k]), x)
            .order(0)
            .bench(rows * (12 * k + 5), 60 * rows * k)
            .backward(rows * (24 * k + 5), 150 * rows * k),
    );
    cases
}

fn case(name: String, params: Tensor, x: Tensor) -> Case {
    Case::new(name, vec![params, x], |p| vec![logistic_mixture(&p[0], &p[1])])
        .composite(|p| vec![composite(&p[0], &p[1])])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Philox;

    fn every_byte() -> Tensor {
        Tensor::from_fn([256, 1], |i| i as u8)
    }

    #[test]
    fn the_probabilities_of_all_bytes_sum_to_one() {
        for (mean, log_scale) in [(0.0, -2.0), (-1.2, -6.0), (0.99, 1.0), (30.0, 3.0), (0.1, -20.0)] {
            let params = Tensor::from_slice(&[0.0, mean, log_scale], [1, 3]).broadcast_to([256, 3]);
            let total: f64 = logistic_mixture(&params, &every_byte()).exp().to_f64_vec().iter().sum();
            assert!((total - 1.0).abs() < 1e-12, "mean {mean}, log-scale {log_scale}: {total}");
        }
    }

    #[test]
    fn extreme_parameters_stay_finite() {
        for (mean, log_scale) in [(1e30f32, -20.0f32), (-1e30, 0.0), (0.0, 1e4), (5.0, -7.0), (0.0, 88.0)] {
            let params =
                Tensor::from_slice(&[0.0f32, mean, log_scale], [1, 3]).broadcast_to([256, 3]).requires_grad();
            let nats = logistic_mixture(&params, &every_byte());
            assert!(nats.to_f64_vec().iter().all(|v| !v.is_nan() && *v <= 1e-6), "{mean} {log_scale}");
            let g = autograd::backward(nats.sum_all(), &[&params]);
            assert!(g[0].to_f64_vec().iter().all(|v| !v.is_nan()), "gradient at {mean} {log_scale}");
        }
    }

    #[test]
    fn draws_follow_the_likelihood() {
        let params = [0.5f32, -0.5, -0.9, 0.6, -3.0, -2.0];
        let n = 40_000;
        let mut u = vec![0.0f64; 2 * n];
        Philox::new(3).fill_open(&mut u);
        let mut counts = [0f64; 256];
        for u in u.chunks(2) {
            let mut byte = [0u8];
            draw(&params, u, 1.0, &mut byte);
            counts[byte[0] as usize] += 1.0 / n as f64;
        }
        let wide: Vec<f64> = params.iter().map(|&p| p as f64).collect();
        let p =
            logistic_mixture(&Tensor::from_slice(&wide, [1, 6]).broadcast_to([256, 6]), &every_byte()).exp();
        // Kolmogorov's bound at one in a million: 2.7 / sqrt n.
        let (mut a, mut b) = (0.0, 0.0);
        for (count, p) in counts.iter().zip(p.to_f64_vec()) {
            (a, b) = (a + count, b + p);
            assert!((a - b).abs() < 2.7 / (n as f64).sqrt(), "distribution functions {a} and {b}");
        }
    }
}
