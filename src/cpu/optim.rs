//! Multi-tensor optimiser kernels: one pass over the memory, one parallel region for all tensors of a model.
//!
//! Adam reads weight, gradient and both moments and writes all but the gradient: 28 bytes per f32 element (36
//! with a moving average), for about 12 operations; outside the cache it is bound by memory.

use super::{par, simd::vectorize};
use crate::tensor::Float;

/// Elements per task; fixed, so that sums have a fixed order.
const CHUNK: usize = 16 * 1024;

/// Settings of one Adam step (Kingma & Ba 2015), with the semantics of `torch.optim.Adam` and `AdamW`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adam {
    /// Learning rate.
    pub lr: f64,
    /// Decay rates of the first and the second moment.
    pub betas: (f64, f64),
    /// Added to the root of the bias-corrected second moment.
    pub eps: f64,
    /// Weight decay λ.
    pub weight_decay: f64,
    /// Whether the decay acts on the weights, w −= lr·λ·w (AdamW, Loshchilov & Hutter 2019), or on the gradient,
    /// g += λ·w (Adam).
    pub decoupled: bool,
    /// Factor on every gradient, as [`clip_factor`] gives it.
    pub grad_scale: f64,
    /// Decay d of the moving average of the weights, e = d·e + (1 − d)·w.
    pub ema_decay: f64,
}

impl Default for Adam {
    /// PyTorch's defaults: lr 1e-3, betas (0.9, 0.999), eps 1e-8, no decay; gradients as they are.
    fn default() -> Self {
        Self {
            lr: 1e-3,
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 0.0,
            decoupled: true,
            grad_scale: 1.0,
            ema_decay: 0.999,
        }
    }
}

/// One tensor in an optimiser step; all slices have the same length.
pub struct Slot<'a, T> {
    /// Weights, updated.
    pub weight: &'a mut [T],
    /// Gradient.
    pub grad: &'a [T],
    /// First moment, updated; zeros before the first step.
    pub m: &'a mut [T],
    /// Second moment, updated; zeros before the first step.
    pub v: &'a mut [T],
    /// Moving average of the weights, updated after them.
    pub ema: Option<&'a mut [T]>,
}

/// The coefficients of a step in the type of the arithmetic.
#[derive(Clone, Copy)]
struct Step<T> {
    one_minus_b1: T,
    b2: T,
    one_minus_b2: T,
    /// sqrt(1 − β2^t).
    root_bias2: T,
    /// −lr / (1 − β1^t).
    minus_rate: T,
    eps: T,
    grad_scale: T,
    /// λ of coupled decay, else 0.
    coupled: T,
    /// −lr·λ of decoupled decay, else 0.
    decoupled: T,
    one_minus_ema: T,
}

impl Adam {
    fn at<T: Float>(&self, step: u64) -> Step<T> {
        let ((b1, b2), t) = (self.betas, step as f64);
        let decay =
            if self.decoupled { (0.0, -self.lr * self.weight_decay) } else { (self.weight_decay, 0.0) };
        Step {
            one_minus_b1: T::from_f64(1.0 - b1),
            b2: T::from_f64(b2),
            one_minus_b2: T::from_f64(1.0 - b2),
            root_bias2: T::from_f64((1.0 - b2.powf(t)).sqrt()),
            minus_rate: T::from_f64(-self.lr / (1.0 - b1.powf(t))),
            eps: T::from_f64(self.eps),
            grad_scale: T::from_f64(self.grad_scale),
            coupled: T::from_f64(decay.0),
            decoupled: T::from_f64(decay.1),
            one_minus_ema: T::from_f64(1.0 - self.ema_decay),
        }
    }

    /// Step number `step` (the first is 1) on all tensors:
    /// ```text
    /// g = scale·∇ (+ λ·w)      m = β1·m + (1 − β1)·g      v = β2·v + (1 − β2)·g²
    /// w = w (− lr·λ·w) − lr/(1 − β1^t) · m / (sqrt(v)/sqrt(1 − β2^t) + ε)
    /// ```
    ///
    /// # Panics
    /// When `step` is 0 or the slices of a slot differ in length.
    #[track_caller]
    pub fn step<T: Float>(&self, step: u64, slots: Vec<Slot<'_, T>>) {
        assert!(step > 0, "adam: steps count from 1");
        let mut parts = Vec::new();
        for (i, slot) in slots.into_iter().enumerate() {
            let lengths = [slot.grad.len(), slot.m.len(), slot.v.len()];
            let n = slot.weight.len();
            let ema = slot.ema.as_ref().map_or(n, |e| e.len());
            assert!(
                lengths == [n; 3] && ema == n,
                "adam: tensor {i} has {n} weights, but gradient, moments, average have {lengths:?}, {ema}"
            );
            let mut averages = slot.ema.map(|e| e.chunks_mut(CHUNK));
            let moments = slot.m.chunks_mut(CHUNK).zip(slot.v.chunks_mut(CHUNK));
            for ((weight, grad), (m, v)) in
                slot.weight.chunks_mut(CHUNK).zip(slot.grad.chunks(CHUNK)).zip(moments)
            {
                let ema = averages.as_mut().and_then(Iterator::next);
                parts.push(Slot { weight, grad, m, v, ema });
            }
        }
        let total: usize = parts.iter().map(|p| p.grad.len()).sum();
        let step = self.at::<T>(step);
        // Small models stay on one thread.
        let per_task = if total < 2 * CHUNK { parts.len() } else { 1 };
        par::chunks_mut(&mut parts, per_task, |_, parts| {
            for part in parts {
                vectorize(
                    #[inline(always)]
                    || part.update(&step),
                );
            }
        });
    }
}

impl<T: Float> Slot<'_, T> {
    #[inline(always)]
    fn update(&mut self, s: &Step<T>) {
        let n = self.grad.len();
        // Equal lengths, visible to the compiler, let the loops run without bounds checks.
        let (w, g, m, v) = (&mut self.weight[..n], &self.grad[..n], &mut self.m[..n], &mut self.v[..n]);
        match &mut self.ema {
            None => (0..n).for_each(|i| w[i] = update_one(s, w[i], g[i], &mut m[i], &mut v[i])),
            Some(ema) => {
                let ema = &mut ema[..n];
                for i in 0..n {
                    w[i] = update_one(s, w[i], g[i], &mut m[i], &mut v[i]);
                    ema[i] = (w[i] - ema[i]).mul_add(s.one_minus_ema, ema[i]);
                }
            }
        }
    }
}

#[inline(always)]
fn update_one<T: Float>(s: &Step<T>, w: T, g: T, m: &mut T, v: &mut T) -> T {
    let g = w.mul_add(s.coupled, g * s.grad_scale);
    *m = (g - *m).mul_add(s.one_minus_b1, *m);
    *v = (g * s.one_minus_b2).mul_add(g, *v * s.b2);
    let w = w.mul_add(s.decoupled, w);
    s.minus_rate.mul_add(*m / (v.sqrt() / s.root_bias2 + s.eps), w)
}

/// The sum of squares over all tensors, accumulated in f64 in a fixed order: the same bits for any number of
/// threads. Its square root is the global gradient norm; not finite exactly when an element is not (f32).
pub fn sum_of_squares<T: Float>(tensors: &[&[T]]) -> f64 {
    const LANES: usize = 16;
    let mut parts: Vec<(&[T], f64)> =
        tensors.iter().flat_map(|t| t.chunks(CHUNK)).map(|chunk| (chunk, 0.0)).collect();
    let total: usize = tensors.iter().map(|t| t.len()).sum();
    let per_task = if total < 4 * CHUNK { parts.len() } else { 1 };
    par::chunks_mut(&mut parts, per_task, |_, parts| {
        for (chunk, sum) in parts {
            *sum = vectorize(
                #[inline(always)]
                || {
                    let mut lanes = [0.0; LANES];
                    let (full, rest) = chunk.as_chunks::<LANES>();
                    for x in full {
                        for j in 0..LANES {
                            let x = x[j].to_f64();
                            lanes[j] += x * x;
                        }
                    }
                    let rest: f64 = rest.iter().map(|x| x.to_f64() * x.to_f64()).sum();
                    lanes.iter().sum::<f64>() + rest
                },
            );
        }
    });
    parts.iter().map(|(_, sum)| sum).sum()
}

/// The factor that brings gradients of this global norm down to `max_norm`: min(1, max_norm / (norm + 1e-6)), as
/// `torch.nn.utils.clip_grad_norm_`.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Philox;

    const SIZES: [usize; 4] = [1, 37, 3 * CHUNK + 5, 1000];

    fn normals(seed: u64, scale: f32) -> Vec<Vec<f32>> {
        let mut rng = Philox::new(seed);
        let tensor = |n| {
            let mut x = vec![0.0f32; n];
            rng.fill_normal(&mut x);
            x.iter().map(|x| x * scale).collect()
        };
        SIZES.map(tensor).into()
    }

    /// Weights and averages after `steps` steps of the kernel on gradients `normals(step)`.
    fn run(adam: &Adam, steps: u64, average: bool) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
        let mut w = normals(0, 1.0);
        let zeros: Vec<Vec<f32>> = w.iter().map(|w| vec![0.0; w.len()]).collect();
        let (mut m, mut v, mut ema) = (zeros.clone(), zeros, w.clone());
        for step in 1..=steps {
            let grads = normals(step, 0.1);
            let tensors = w.iter_mut().zip(&grads).zip(m.iter_mut().zip(&mut v)).zip(&mut ema);
            let slot = |(((weight, grad), (m, v)), ema)| -> Slot<'_, f32> {
                let (weight, grad, m, v): (&mut Vec<f32>, &Vec<f32>, &mut Vec<f32>, &mut Vec<f32>) =
                    (weight, grad, m, v);
                let ema: &mut Vec<f32> = ema;
                Slot { weight, grad, m, v, ema: average.then_some(ema.as_mut_slice()) }
            };
            adam.step(step, tensors.map(slot).collect());
        }
        (w, ema)
    }

    /// The formulas of the `torch.optim` documentation, in f64.
    fn naive(adam: &Adam, steps: u64) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
        let widen = |x: Vec<Vec<f32>>| -> Vec<Vec<f64>> {
            x.into_iter().map(|t| t.into_iter().map(f64::from).collect()).collect()
        };
        let mut w = widen(normals(0, 1.0));
        let mut ema = w.clone();
        let mut m: Vec<Vec<f64>> = w.iter().map(|w| vec![0.0; w.len()]).collect();
        let mut v = m.clone();
        let (b1, b2) = adam.betas;
        for step in 1..=steps {
            let grads = widen(normals(step, 0.1));
            for t in 0..w.len() {
                for i in 0..w[t].len() {
                    let mut g = grads[t][i] * adam.grad_scale;
                    if adam.decoupled {
                        w[t][i] -= adam.lr * adam.weight_decay * w[t][i];
                    } else {
                        g += adam.weight_decay * w[t][i];
                    }
                    m[t][i] = b1 * m[t][i] + (1.0 - b1) * g;
                    v[t][i] = b2 * v[t][i] + (1.0 - b2) * g * g;
                    let m_hat = m[t][i] / (1.0 - b1.powi(step as i32));
                    let v_hat = v[t][i] / (1.0 - b2.powi(step as i32));
                    w[t][i] -= adam.lr * m_hat / (v_hat.sqrt() + adam.eps);
                    ema[t][i] = adam.ema_decay * ema[t][i] + (1.0 - adam.ema_decay) * w[t][i];
                }
            }
        }
        (w, ema)
    }

    fn largest_gap(got: &[Vec<f32>], exact: &[Vec<f64>]) -> f64 {
        let pairs = got.iter().flatten().zip(exact.iter().flatten());
        pairs.map(|(a, b)| (*a as f64 - b).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn agrees_with_the_formulas_in_f64() {
        for (decoupled, weight_decay, grad_scale) in [(true, 0.0, 1.0), (true, 0.05, 0.3), (false, 0.05, 1.0)]
        {
            let adam =
                Adam { lr: 0.01, decoupled, weight_decay, grad_scale, ema_decay: 0.9, ..Adam::default() };
            let ((w, ema), (exact_w, exact_ema)) = (run(&adam, 8, true), naive(&adam, 8));
            // Eight roundings of weights below 5, and moments relative to steps of 0.01.
            assert!(largest_gap(&w, &exact_w) < 8.0 * 5.0 * f32::EPSILON as f64);
            assert!(largest_gap(&ema, &exact_ema) < 8.0 * 5.0 * f32::EPSILON as f64);
            let (without, untouched) = run(&adam, 8, false);
            assert_eq!(without, w, "the average must not change the weights");
            assert_eq!(untouched, normals(0, 1.0));
        }
    }

    #[test]
    fn threads_change_nothing() {
        let adam = Adam { weight_decay: 0.01, ..Adam::default() };
        let grads = normals(3, 1.0);
        let slices: Vec<&[f32]> = grads.iter().map(Vec::as_slice).collect();
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| (run(&adam, 2, true), sum_of_squares(&slices).to_bits()))
        };
        assert_eq!(on(1), on(3));
    }

    #[test]
    fn norm_and_clipping() {
        let grads = normals(3, 1.0);
        let slices: Vec<&[f32]> = grads.iter().map(Vec::as_slice).collect();
        let exact: f64 = grads.iter().flatten().map(|x| (*x as f64).powi(2)).sum();
        let got = sum_of_squares(&slices);
        assert!((got - exact).abs() < 1e-12 * exact, "{got} {exact}");
        assert_eq!(sum_of_squares::<f32>(&[]), 0.0);
        assert!(sum_of_squares(&[&[1.0, f32::NAN][..]]).is_nan());
        assert_eq!(sum_of_squares(&[&[f32::INFINITY][..]]), f64::INFINITY);
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert!((clip_factor(4.0, 1.0) - 0.25).abs() < 1e-6);
    }

    #[test]
    #[should_panic(expected = "tensor 0 has 2 weights")]
    fn lengths_are_checked() {
        let slot =
            Slot { weight: &mut [0.0f32; 2], grad: &[0.0], m: &mut [0.0; 2], v: &mut [0.0; 2], ema: None };
        Adam::default().step(1, vec![slot]);
    }
}
