//! Multi-tensor optimiser kernels: one pass over the memory, one parallel region for all tensors of a model.
//!
//! Adam reads weight, gradient and both moments and writes all but the gradient: 28 bytes per f32 element (36
//! with a moving average), for about 12 operations; outside the cache it is bound by memory. On devices
//! `kernels/adam.cu` does the same.

use super::{par, simd::vectorize};
use crate::tensor::Float;

/// Elements per task; fixed, so that sums have a fixed order.
const CHUNK: usize = 16 * 1024;

/// The numbers of one step t = 1, 2, ... of Adam (Kingma & Ba 2015) or AdamW (decoupled decay: Loshchilov & Hutter
/// 2019).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Decay β₁ of the first moment.
    pub beta1: f64,
    /// Decay β₂ of the second moment.
    pub beta2: f64,
    /// lr / (1 − β₁ᵗ).
    pub lr: f64,
    /// 1 / √(1 − β₂ᵗ).
    pub v_scale: f64,
    /// ε, added to the root of the corrected second moment.
    pub eps: f64,
    /// 1 − lr · decay.
    pub keep: f64,
    /// Factor of the weights in the gradient.
    pub l2: f64,
    /// Factor on the gradient.
    pub clip: f64,
    /// How far the moving average goes towards the weights.
    pub part: f64,
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
    pub average: Option<&'a mut [T]>,
}

impl Rates {
    /// One step on all tensors:
    /// ```text
    /// g ← clip · gradient + l2 · w
    /// m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) g²
    /// w ← keep · w − lr · m / (√v · v_scale + ε)        average ← average + part · (w − average)
    /// ```
    ///
    /// # Panics
    /// When the slices of a slot differ in length.
    #[track_caller]
    pub fn step<T: Float>(&self, slots: Vec<Slot<'_, T>>) {
        let mut parts = Vec::new();
        for (i, slot) in slots.into_iter().enumerate() {
            let lengths = [slot.grad.len(), slot.m.len(), slot.v.len()];
            let n = slot.weight.len();
            let average = slot.average.as_ref().map_or(n, |e| e.len());
            assert!(
                lengths == [n; 3] && average == n,
                "adam: tensor {i} has {n} weights, but gradient, moments, average have {lengths:?}, {average}"
            );
            let mut averages = slot.average.map(|e| e.chunks_mut(CHUNK));
            let moments = slot.m.chunks_mut(CHUNK).zip(slot.v.chunks_mut(CHUNK));
            for ((weight, grad), (m, v)) in
                slot.weight.chunks_mut(CHUNK).zip(slot.grad.chunks(CHUNK)).zip(moments)
            {
                let average = averages.as_mut().and_then(Iterator::next);
                parts.push(Slot { weight, grad, m, v, average });
            }
        }
        let total: usize = parts.iter().map(|p| p.grad.len()).sum();
        // Small models stay on one thread.
        let per_task = if total < 2 * CHUNK { parts.len() } else { 1 };
        par::chunks_mut(&mut parts, per_task, |_, parts| {
            for part in parts {
                vectorize(
                    #[inline(always)]
                    || part.update(self),
                );
            }
        });
    }
}

impl<T: Float> Slot<'_, T> {
    #[inline(always)]
    fn update(&mut self, rates: &Rates) {
        let f = T::from_f64;
        let (b1, c1, b2, c2) = (f(rates.beta1), f(1.0 - rates.beta1), f(rates.beta2), f(1.0 - rates.beta2));
        let (lr, v_scale, eps, keep) = (f(rates.lr), f(rates.v_scale), f(rates.eps), f(rates.keep));
        let (l2, clip, part) = (f(rates.l2), f(rates.clip), f(rates.part));
        let n = self.grad.len();
        // Equal lengths, visible to the compiler, let the loops run without bounds checks.
        let (w, g, m, v) = (&mut self.weight[..n], &self.grad[..n], &mut self.m[..n], &mut self.v[..n]);
        for i in 0..n {
            let g = clip * g[i] + l2 * w[i];
            m[i] = b1 * m[i] + c1 * g;
            v[i] = b2 * v[i] + c2 * g * g;
            w[i] = keep * w[i] - lr * m[i] / (v[i].sqrt() * v_scale + eps);
        }
        if let Some(average) = &mut self.average {
            average.iter_mut().zip(w).for_each(|(a, w)| *a += part * (*w - *a));
        }
    }
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

    /// Step t with decay and coupled decay, a factor on the gradient and a moving average.
    fn rates(t: u64, decay: f64, l2: f64, clip: f64) -> Rates {
        let (lr, beta1, beta2) = (0.01, 0.9f64, 0.999f64);
        Rates {
            beta1,
            beta2,
            lr: lr / (1.0 - beta1.powi(t as i32)),
            v_scale: 1.0 / (1.0 - beta2.powi(t as i32)).sqrt(),
            eps: 1e-8,
            keep: 1.0 - lr * decay,
            l2,
            clip,
            part: 0.1,
        }
    }

    type Weights<T> = Vec<Vec<T>>;

    /// Weights and averages after `steps` steps of the kernel on gradients `normals(step)`.
    fn run(at: impl Fn(u64) -> Rates, steps: u64, averaged: bool) -> (Weights<f32>, Weights<f32>) {
        let mut w = normals(0, 1.0);
        let zeros: Weights<f32> = w.iter().map(|w| vec![0.0; w.len()]).collect();
        let (mut m, mut v, mut averages) = (zeros.clone(), zeros, w.clone());
        for step in 1..=steps {
            let grads = normals(step, 0.1);
            let mut slots = Vec::new();
            for (i, ((weight, m), (v, average))) in
                w.iter_mut().zip(&mut m).zip(v.iter_mut().zip(&mut averages)).enumerate()
            {
                let average = averaged.then_some(average.as_mut_slice());
                slots.push(Slot { weight, grad: &grads[i], m, v, average });
            }
            at(step).step(slots);
        }
        (w, averages)
    }

    /// The formulas of the `torch.optim` documentation, in f64.
    fn naive(decay: f64, l2: f64, clip: f64, steps: u64) -> (Weights<f64>, Weights<f64>) {
        let widen = |x: Weights<f32>| -> Weights<f64> {
            x.into_iter().map(|t| t.into_iter().map(f64::from).collect()).collect()
        };
        let mut w = widen(normals(0, 1.0));
        let mut average = w.clone();
        let mut m: Weights<f64> = w.iter().map(|w| vec![0.0; w.len()]).collect();
        let mut v = m.clone();
        let (lr, b1, b2) = (0.01, 0.9f64, 0.999f64);
        for step in 1..=steps {
            let grads = widen(normals(step, 0.1));
            for t in 0..w.len() {
                for i in 0..w[t].len() {
                    let g = grads[t][i] * clip + l2 * w[t][i];
                    w[t][i] -= lr * decay * w[t][i];
                    m[t][i] = b1 * m[t][i] + (1.0 - b1) * g;
                    v[t][i] = b2 * v[t][i] + (1.0 - b2) * g * g;
                    let m_hat = m[t][i] / (1.0 - b1.powi(step as i32));
                    let v_hat = v[t][i] / (1.0 - b2.powi(step as i32));
                    w[t][i] -= lr * m_hat / (v_hat.sqrt() + 1e-8);
                    average[t][i] = 0.9 * average[t][i] + 0.1 * w[t][i];
                }
            }
        }
        (w, average)
    }

    fn largest_gap(got: &[Vec<f32>], exact: &[Vec<f64>]) -> f64 {
        let pairs = got.iter().flatten().zip(exact.iter().flatten());
        pairs.map(|(a, b)| (*a as f64 - b).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn agrees_with_the_formulas_in_f64() {
        for (decay, l2, clip) in [(0.0, 0.0, 1.0), (0.05, 0.0, 0.3), (0.0, 0.05, 1.0)] {
            let at = |t| rates(t, decay, l2, clip);
            let ((w, average), (exact, exact_average)) = (run(at, 8, true), naive(decay, l2, clip, 8));
            // Eight roundings of weights below 5, and moments relative to steps of 0.01.
            assert!(largest_gap(&w, &exact) < 8.0 * 5.0 * f32::EPSILON as f64);
            assert!(largest_gap(&average, &exact_average) < 8.0 * 5.0 * f32::EPSILON as f64);
            let (without, untouched) = run(at, 8, false);
            assert_eq!(without, w, "the average must not change the weights");
            assert_eq!(untouched, normals(0, 1.0));
        }
    }

    #[test]
    fn threads_change_nothing() {
        let grads = normals(3, 1.0);
        let slices: Vec<&[f32]> = grads.iter().map(Vec::as_slice).collect();
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| (run(|t| rates(t, 0.01, 0.0, 1.0), 2, true), sum_of_squares(&slices).to_bits()))
        };
        assert_eq!(on(1), on(3));
    }

    #[test]
    fn the_norm_tells_what_is_not_finite() {
        let grads = normals(3, 1.0);
        let slices: Vec<&[f32]> = grads.iter().map(Vec::as_slice).collect();
        let exact: f64 = grads.iter().flatten().map(|x| (*x as f64).powi(2)).sum();
        let got = sum_of_squares(&slices);
        assert!((got - exact).abs() < 1e-12 * exact, "{got} {exact}");
        assert_eq!(sum_of_squares::<f32>(&[]), 0.0);
        assert!(sum_of_squares(&[&[1.0, f32::NAN][..]]).is_nan());
        assert_eq!(sum_of_squares(&[&[f32::INFINITY][..]]), f64::INFINITY);
    }

    #[test]
    #[should_panic(expected = "tensor 0 has 2 weights")]
    fn lengths_are_checked() {
        let grad = &[0.0];
        let slot = Slot { weight: &mut [0.0f32; 2], grad, m: &mut [0.0; 2], v: &mut [0.0; 2], average: None };
        rates(1, 0.0, 0.0, 1.0).step(vec![slot]);
    }
}
