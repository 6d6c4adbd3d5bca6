//! One evaluation of a vector field f(t, x) and of the trace of its Jacobian, which moves log-densities:
//! d log p(x(t)) / dt = −tr ∂f/∂x (Chen et al. 2018, "Neural ordinary differential equations").
//!
//! f is a multilayer perceptron with L hidden layers of a smooth φ and the time as one more input:
//!   a_1 = (x, t) W_1 + b_1,  h_l = φ(a_l),  a_{l+1} = h_l W_{l+1} + b_{l+1},  f = a_{L+1},
//! W_1 (D + 1, H_1), W_l (H_{l−1}, H_l), W_{L+1} (H_L, D). Beside it runs a tangent, u_l = φ'(a_l) ⊙ v_l,
//! v_{l+1} = u_l W_{l+1} from a given v_1 = v (B, H_1), and ends in Σ u_L ⊙ p with a given p (B, H_L):
//! - **Hutchinson's estimate** εᵀ (∂f/∂x) ε of the trace (Hutchinson 1990; Grathwohl et al. 2019, "FFJORD") with
//!   v = ε W_1 (without the row of t) and p = ε W_{L+1}ᵀ. Both are the same at every evaluation of a solve, which
//!   leaves one product per inner layer: for L = 2 the trace costs H² where f costs H² + 2 D H.
//! - **The exact trace** for L ≤ 2 at the same cost, whatever D is: tr = Σ_j φ'(a_1)_j c_j with
//!   c_j = Σ_i W_1ij W_2ji for L = 1, and for L = 2 tr = φ'(a_1) Q φ'(a_2)ᵀ with Q = W_2 ⊙ (W_3 W_1)ᵀ, which takes the
//!   place of W_2 in the tangent (`mix`) while v = p = 1. For larger L it takes D tangents: [`exact_trace`].
//!
//! Forward 2 B (Σ H_{l−1} H_l + tangent) flops. Backward keeps h_l and v_l and is derived by hand: with
//! s = φ', da = s ⊙ dh + φ'' ⊙ v ⊙ du, dv = s ⊙ du. All layers run on tiles of 64 rows that stay in cache.

mod device;

use super::{Case, OpInfo, binary, cast, matmul, normal, shape, unary};
use crate::autograd::{self, Recipe, record};
pub use crate::cpu::field::Smooth;
use crate::cpu::field::{Net, Products, ROWS, Scratch};
use crate::cpu::gemm::Word;
use crate::cpu::par;
use crate::cuda::{self, Kernels};
use crate::tensor::{DType, Float, NewTensor, Plain, Tensor, with_arithmetic};
pub(super) use device::Launch;

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "ode_trace",
    family: "fused",
    summary: "a multilayer perceptron f(t, x) and the trace of its Jacobian, estimated or exact, in one pass",
    cases,
};

const FORWARD: Kernels = Kernels::new("ode_trace", ["ode_trace_f32", "ode_trace_bf16", "ode_trace_f16"]);
const BACKWARD: Kernels = Kernels::new(
    "ode_trace",
    ["ode_trace_backward_f32", "ode_trace_backward_bf16", "ode_trace_backward_f16"],
);

/// The parameters of a field.
#[derive(Clone)]
pub struct Field {
    /// The activation between the layers.
    pub act: Smooth,
    /// (W, b) of L + 1 layers, L ≥ 1: W (In, Out), b (Out); the first takes (x, t).
    pub layers: Vec<(Tensor, Tensor)>,
}

/// What is constant in a solve: the start and the end of the tangent.
#[derive(Clone)]
pub struct Probe {
    /// (B, H_1).
    pub v: Tensor,
    /// (B, H_L).
    pub p: Tensor,
    /// (H_1, H_2), in place of the second layer's weights: for the exact trace of two hidden layers.
    pub mix: Option<Tensor>,
}

impl Field {
    /// Numbers per example.
    pub fn dims(&self) -> usize {
        self.layers[0].0.shape()[0] - 1
    }

    /// Panics unless the layers fit each other and the probe.
    #[track_caller]
    pub(super) fn check(&self, op: &str, x: &Tensor, probe: &Probe) {
        let [b, d] = x.dims();
        let shapes = || self.layers.iter().map(|(w, _)| w.shape().to_vec()).collect::<Vec<_>>();
        assert!(self.layers.len() >= 2, "{op}: {} layers; expected at least 2", self.layers.len());
        let mut width = d + 1;
        for (w, bias) in &self.layers {
            let [k, n] = w.dims();
            assert!(k == width, "{op}: weights {:?} for x {:?} and the time", shapes(), x.shape());
            assert_eq!(bias.shape(), [n], "{op}: the bias of weights {:?}", w.shape());
            assert!(w.dtype() == x.dtype() && bias.dtype() == x.dtype(), "{op}: dtypes differ");
            width = n;
        }
        assert_eq!(width, d, "{op}: weights {:?} for x {:?}", shapes(), x.shape());
        let hidden = self.layers.len() - 1;
        let (first, last) = (self.layers[0].1.len(), self.layers[hidden - 1].1.len());
        assert_eq!((probe.v.shape(), probe.v.dtype()), (&[b, first][..], x.dtype()), "{op}: the probe's v");
        assert_eq!((probe.p.shape(), probe.p.dtype()), (&[b, last][..], x.dtype()), "{op}: the probe's p");
        if let Some(mix) = &probe.mix {
            assert!(hidden == 2, "{op}: mix for {hidden} hidden layers; expected 2");
            assert_eq!(mix.shape(), self.layers[1].0.shape(), "{op}: the shape of mix");
        }
    }

    /// W_1 without the row of the time.
    fn first(&self) -> Tensor {
        shape::narrow(&self.layers[0].0, 0, 0, self.dims())
    }

    /// Hutchinson's estimate with ε = `noise` (B, D), whose elements have mean 0 and variance 1.
    #[track_caller]
    pub fn hutchinson(&self, noise: &Tensor) -> Probe {
        let last = &self.layers[self.layers.len() - 1].0;
        Probe {
            v: matmul::matmul(noise, &self.first(), false, false),
            p: matmul::matmul(noise, last, false, true),
            mix: None,
        }
    }

    /// The exact trace for `b` examples; `None` with more than two hidden layers.
    pub fn exact(&self, b: usize) -> Option<Probe> {
        let hidden = self.layers.len() - 1;
        let ones = |l: usize| Tensor::ones([b, self.layers[l].1.len()], self.layers[0].0.dtype());
        match hidden {
            1 => {
                let turned = shape::permute(&self.layers[1].0, &[1, 0]);
                let c = (&self.first() * &turned).sum(&[0]);
                let n = c.len();
                Some(Probe { v: c.broadcast_to([b, n]), p: ones(0), mix: None })
            }
            2 => {
                let loops = matmul::matmul(&self.first(), &self.layers[2].0, true, true);
                Some(Probe { v: ones(0), p: ones(1), mix: Some(&self.layers[1].0 * &loops) })
            }
            _ => None,
        }
    }

    /// All inputs of the ops in their order: x, v, p, W_1, b_1, W_2, ... and `mix` (empty when there is none).
    pub(crate) fn inputs(&self, x: &Tensor, probe: &Probe) -> Vec<Tensor> {
        let mut inputs = vec![x.clone(), probe.v.clone(), probe.p.clone()];
        inputs.extend(self.layers.iter().flat_map(|(w, b)| [w.clone(), b.clone()]));
        inputs.push(probe.mix.clone().unwrap_or_else(|| Tensor::zeros([0], x.dtype())));
        inputs
    }

    /// The inverse of [`Self::inputs`].
    pub(crate) fn from_inputs(act: Smooth, inputs: &[Tensor]) -> (Tensor, Self, Probe) {
        let (ends, rest) = inputs.split_at(3);
        let (mix, layers) = rest.split_last().expect("mix comes last");
        let layers = layers.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
        let mix = (!mix.is_empty()).then(|| mix.clone());
        (ends[0].clone(), Self { act, layers }, Probe { v: ends[1].clone(), p: ends[2].clone(), mix })
    }

    /// The parameters as memory.
    pub(super) fn net<'a, T: Plain>(&'a self, mix: Option<&'a Tensor>) -> Net<'a, T> {
        let hidden = &self.layers[..self.layers.len() - 1];
        Net {
            act: self.act,
            d: self.dims(),
            widths: hidden.iter().map(|(_, b)| b.len()).collect(),
            weights: self.layers.iter().map(|(w, _)| w.as_slice()).collect(),
            biases: self.layers.iter().map(|(_, b)| b.as_slice()).collect(),
            mix: mix.map(Tensor::as_slice),
        }
    }

    /// f(t, x) alone, in recorded ops.
    #[track_caller]
    pub fn velocity(&self, t: f64, x: &Tensor) -> Tensor {
        let mut h = self.with_time(t, x);
        for (i, (w, b)) in self.layers.iter().enumerate() {
            let a = matmul::linear(&h, w, Some(b), crate::cpu::gemm::Act::None);
            h = if i + 1 == self.layers.len() { a } else { self.phi(&a) };
        }
        h
    }

    /// f(t, x) and the tangent u_L (B, H_L) behind the last activation, in primitives. For Hutchinson's probe
    /// u_L W_{L+1} = (∂f/∂x) ε.
    #[track_caller]
    pub fn tangent(&self, t: f64, x: &Tensor, probe: &Probe) -> (Tensor, Tensor) {
        let mut u = probe.v.clone();
        let mut h = self.with_time(t, x);
        for (l, (w, b)) in self.layers.iter().enumerate() {
            let a = binary::add(&matmul::matmul(&h, w, false, false), b);
            if l + 1 == self.layers.len() {
                h = a;
                break;
            }
            if l > 0 {
                let by = probe.mix.as_ref().filter(|_| l == 1).unwrap_or(w);
                u = matmul::matmul(&u, by, false, false);
            }
            u = &u * &self.slope(&a);
            h = self.phi(&a);
        }
        (h, u)
    }

    fn with_time(&self, t: f64, x: &Tensor) -> Tensor {
        shape::concat(&[x, &Tensor::full(t, [x.shape()[0], 1], x.dtype())], 1)
    }

    fn phi(&self, a: &Tensor) -> Tensor {
        match self.act {
            Smooth::Tanh => unary::tanh(a),
            Smooth::Softplus => unary::softplus(a),
        }
    }

    fn slope(&self, a: &Tensor) -> Tensor {
        match self.act {
            Smooth::Tanh => unary::affine(&unary::square(&unary::tanh(a)), -1.0, 1.0),
            Smooth::Softplus => unary::sigmoid(a),
        }
    }
}

/// f(t, x) (B, D) and the trace (B,) that `probe` stands for; x (B, D).
///
/// # Panics
/// When shapes or dtypes do not fit.
#[track_caller]
pub fn ode_trace(t: f64, x: &Tensor, field: &Field, probe: &Probe) -> (Tensor, Tensor) {
    field.check("ode_trace", x, probe);
    if autograd::in_higher_order() {
        return composite(t, x, field, probe);
    }
    if let Some(gpu) = cuda::on("ode_trace", &[x, &probe.v, &probe.p]) {
        return match Launch::new(gpu, x, field, probe, 0) {
            Some(launch) => launched(launch, t as f32),
            None => composite(t, x, field, probe),
        };
    }
    if let Some((x32, field, probe)) = widened(x, field, probe) {
        let (f, trace) = ode_trace(t, &x32, &field, &probe);
        return (cast::cast(&f, x.dtype()), cast::cast(&trace, x.dtype()));
    }
    let inputs = field.inputs(x, probe);
    let refs: Vec<&Tensor> = inputs.iter().collect();
    let recording = autograd::is_recording(&refs);
    let [f, trace, saved] = with_arithmetic!(x.dtype(), T => {
        let [b, d] = x.dims();
        let net = field.net::<T>(probe.mix.as_ref());
        let mats = net.mats(false);
        let products = Products::new(&mats, b);
        let (mut f, mut trace) = (NewTensor::<T>::new([b, d]), NewTensor::<T>::new([b]));
        let per = net.saved();
        let mut saved = NewTensor::<T>::new([if recording { b * per } else { 0 }]);
        let [xs, vs, ps] = [x, &probe.v, &probe.p].map(|t| t.as_slice::<T>());
        let kept = par::Shared(saved.as_mut().as_mut_ptr());
        par::chunks_mut2(f.as_mut(), ROWS * d, trace.as_mut(), ROWS, |i, f, trace| {
            let (rows, at) = (trace.len(), i * ROWS);
            let mut own = vec![T::from_f64(0.0); if recording { 0 } else { rows * per }];
            let saved = if recording {
                // SAFETY: tile i owns its part of the memory, which holds b rows of `per`.
                unsafe { kept.slice(at * per, rows * per) }
            } else {
                &mut own[..]
            };
            let probe = tile_of([vs, ps], b, at, rows);
            net.forward(&products, t, &xs[at * d..][..rows * d], probe, saved, f, trace, &mut net.scratch());
        });
        [f.finish(), trace.finish(), saved.finish()]
    });
    let act = field.act;
    let kept: Vec<Tensor> = inputs.iter().map(Tensor::detach).collect();
    let [f, trace] = record(Recipe::fused("ode_trace"), &refs, [f, trace], move |back| {
        let needs: Vec<bool> = (0..kept.len()).map(|i| back.needs(i)).collect();
        let (gf, gtrace) = (back.grad(0), back.grad(1));
        with_arithmetic!(saved.dtype(), T => {
            let (x, field, probe) = Field::from_inputs(act, &kept);
            let [b, d] = x.dims();
            let net = field.net::<T>(probe.mix.as_ref());
            let mats = net.mats(true);
            let products = Products::new(&mats, b);
            let [xs, vs, ps] = [&x, &probe.v, &probe.p].map(|t| t.as_slice::<T>());
            let [gf, gt, saved] = [&gf, &gtrace, &saved].map(|t| t.as_slice::<T>());
            let mut sums = Sums::<T>::new(&net, b, d, &needs);
            sums.each(b, |at, rows, [dx, dv, dp], dparams, scratch| {
                let per = net.saved();
                let own = &saved[at * per..][..rows * per];
                let grads = [&gf[at * d..][..rows * d], &gt[at..][..rows]];
                let x = &xs[at * d..][..rows * d];
                let probe = tile_of([vs, ps], b, at, rows);
                net.backward(&products, t, x, probe, own, grads, dx, [dv, dp], dparams, scratch);
            });
            sums.finish(&kept, &needs)
        })
    });
    (f, trace)
}

/// On a device, with its gradients; nothing is kept but the inputs.
fn launched(launch: Launch, t: f32) -> (Tensor, Tensor) {
    let found = launch.run(&FORWARD, &[], &t, 0);
    launch.record("ode_trace", found, move |launch, grads| launch.backward(&BACKWARD, grads, launch.x(), &t))
}

/// The bf16 and f16 types calculate in f32, recorded.
#[track_caller]
pub(super) fn widened(x: &Tensor, field: &Field, probe: &Probe) -> Option<(Tensor, Field, Probe)> {
    let [x] = cast::widened([x])?;
    let wide = |t: &Tensor| cast::cast(t, DType::F32);
    let layers = field.layers.iter().map(|(w, b)| (wide(w), wide(b))).collect();
    let probe = Probe { v: wide(&probe.v), p: wide(&probe.p), mix: probe.mix.as_ref().map(wide) };
    Some((x, Field { act: field.act, layers }, probe))
}

/// The rows `at..at + rows` of v and p, which hold `b` rows.
pub(super) fn tile_of<T>(probe: [&[T]; 2], b: usize, at: usize, rows: usize) -> [&[T]; 2] {
    probe.map(|x| {
        let n = x.len() / b;
        &x[at * n..][..rows * n]
    })
}

/// Gradients under construction: of the rows tile by tile, of the parameters in one partial sum for each of a fixed
/// number of groups of tiles, so that threads change no bit.
pub(super) struct Sums<'n, 'a, T: Plain> {
    net: &'n Net<'a, T>,
    rows: [NewTensor<T>; 3],
    widths: [usize; 3],
    partial: NewTensor<T>,
    groups: usize,
}

impl<'n, 'a, T: Float + Word<Acc = T>> Sums<'n, 'a, T> {
    /// For `b` examples of `d` numbers; `needs` as the op's inputs.
    pub(super) fn new(net: &'n Net<'a, T>, b: usize, d: usize, needs: &[bool]) -> Self {
        let groups = b.div_ceil(ROWS).clamp(1, 16);
        let params = if needs[3..].contains(&true) { net.params() } else { 0 };
        let (first, last) = (net.widths[0], net.widths[net.widths.len() - 1]);
        let widths = [d, if needs[1] { first } else { 0 }, if needs[2] { last } else { 0 }];
        let rows = widths.map(|n| NewTensor::zeroed([b, n]));
        Self { net, rows, widths, partial: NewTensor::zeroed([groups, params]), groups }
    }

    /// Calls `f(first row, rows, [dx, dv, dp], dparams, scratch)` for every tile, groups of tiles in parallel.
    pub(super) fn each(
        &mut self,
        b: usize,
        f: impl Fn(usize, usize, [&mut [T]; 3], &mut [T], &mut Scratch<T>) + Sync + Send,
    ) {
        let (tiles, groups, widths, net) = (b.div_ceil(ROWS), self.groups, self.widths, self.net);
        let [dx, dv, dp] = &mut self.rows;
        let shared = [dx, dv, dp].map(|t| par::Shared(t.as_mut().as_mut_ptr()));
        let params = self.partial.as_mut().len() / groups;
        let partial = par::Shared(self.partial.as_mut().as_mut_ptr());
        par::each(true, groups, &|g| {
            let mut scratch = net.scratch();
            // SAFETY: group g owns its partial sum.
            let dparams = unsafe { partial.slice(g * params, params) };
            for tile in g * tiles / groups..(g + 1) * tiles / groups {
                let (at, rows) = (tile * ROWS, ROWS.min(b - tile * ROWS));
                let mut part = [0, 1, 2].into_iter().map(|i| {
                    // SAFETY: the tile's rows lie in the tensor of b rows and belong to this call alone.
                    unsafe { shared[i].slice(at * widths[i], rows * widths[i]) }
                });
                let part = std::array::from_fn(|_| part.next().expect("three of them"));
                f(at, rows, part, dparams, &mut scratch);
            }
        });
    }

    /// The gradients of the op's inputs.
    pub(super) fn finish(mut self, inputs: &[Tensor], needs: &[bool]) -> Vec<Option<Tensor>> {
        let params = self.partial.as_mut().len() / self.groups;
        let (total, rest) = self.partial.as_mut().split_at_mut(params);
        for part in rest.chunks_exact(params.max(1)) {
            total.iter_mut().zip(part).for_each(|(t, p)| *t += *p);
        }
        let rows = self.rows.map(NewTensor::finish);
        let rows = rows.into_iter().zip(needs).map(|(t, need)| need.then_some(t));
        let mut at = 0;
        let total: &[T] = total;
        let params = inputs[3..].iter().zip(&needs[3..]).map(|(input, need)| {
            let from = at;
            at += input.len();
            need.then(|| Tensor::from_slice(&total[from..at], input.shape()))
        });
        rows.chain(params).collect()
    }
}

/// [`ode_trace`] in primitives.
#[track_caller]
pub fn composite(t: f64, x: &Tensor, field: &Field, probe: &Probe) -> (Tensor, Tensor) {
    let (f, u) = field.tangent(t, x, probe);
    (f, (&u * &probe.p).sum(&[1]))
}

/// f(t, x) (B, D) and the exact trace (B,) of a field of any depth, in recorded ops: up to two hidden layers as one
/// [`ode_trace`], more by D tangents at once, B D rows in all.
#[track_caller]
pub fn exact_trace(t: f64, x: &Tensor, field: &Field) -> (Tensor, Tensor) {
    let [b, d] = x.dims();
    if let Some(probe) = field.exact(b) {
        return ode_trace(t, x, field, &probe);
    }
    // Row (i, k) holds example i and the unit vector k.
    let repeat = |x: &Tensor| {
        let n = x.shape()[1];
        x.reshape([b, 1, n]).broadcast_to([b, d, n]).reshape([b * d, n])
    };
    let identity = Tensor::from_fn([d, d], |i| f64::from(u8::from(i % (d + 1) == 0))).cast(x.dtype());
    let noise = identity.reshape([1, d, d]).broadcast_to([b, d, d]).reshape([b * d, d]);
    let (f, trace) = ode_trace(t, &repeat(x), field, &field.hutchinson(&noise));
    (f.reshape([b, d, d]).narrow(1, 0, 1).reshape([b, d]), trace.reshape([b, d]).sum(&[1]))
}

/// Case inputs: x, v, p, the layers, `mix` when asked for.
pub(super) fn case_inputs(b: usize, d: usize, widths: &[usize], mix: bool) -> Vec<Tensor> {
    let sizes: Vec<usize> = [&[d + 1], widths, &[d]].concat();
    let last = widths[widths.len() - 1];
    let mut inputs = vec![normal(1, &[b, d]), normal(2, &[b, widths[0]]), normal(3, &[b, last])];
    for (l, pair) in sizes.windows(2).enumerate() {
        let scale = 1.0 / (pair[0] as f64).sqrt();
        inputs.push(unary::affine(&normal(4 + l as u64, &[pair[0], pair[1]]), scale, 0.0));
        inputs.push(unary::affine(&normal(14 + l as u64, &[pair[1]]), 0.3, 0.0));
    }
    inputs.push(if mix { normal(30, &[widths[0], widths[1]]) } else { normal(31, &[0]) });
    inputs
}

/// Flops of one evaluation of `b` rows.
pub(super) fn case_flops(b: usize, d: usize, widths: &[usize]) -> usize {
    let inner: usize = widths.windows(2).map(|w| w[0] * w[1]).sum();
    2 * b * (d * widths[0] + widths[widths.len() - 1] * d + 2 * inner)
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for act in [Smooth::Tanh, Smooth::Softplus] {
        for (b, d, widths, mix) in [
            (1, 1, &[1][..], false),
            (3, 2, &[5], false),
            (67, 3, &[7, 4], false),
            (5, 4, &[6, 9], true),
            (130, 5, &[17, 33, 8], false),
        ] {
            let run = move |x: &[Tensor], f: fn(f64, &Tensor, &Field, &Probe) -> (Tensor, Tensor)| {
                let (x, field, probe) = Field::from_inputs(act, x);
                let (f, trace) = f(0.3, &x, &field, &probe);
                vec![f, trace]
            };
            let name = format!("{act:?} {b}x{d} {widths:?} mix={mix}");
            cases.push(
                Case::new(name, case_inputs(b, d, widths, mix), move |x| run(x, ode_trace))
                    .composite(move |x| run(x, composite)),
            );
        }
    }
    let (b, d, widths) = (512, 43, [128, 128]);
    let inputs = case_inputs(b, d, &widths, false);
    let bytes = 4 * (2 * b * d + b * 256 + inputs[3..].iter().map(Tensor::len).sum::<usize>());
    cases.push(
        Case::new("512x43 [128, 128]", inputs, |x| {
            let (x, field, probe) = Field::from_inputs(Smooth::Tanh, x);
            let (f, trace) = ode_trace(0.3, &x, &field, &probe);
            vec![f, trace]
        })
        .order(0)
        .bench(bytes, case_flops(b, d, &widths))
        .backward(2 * bytes, 3 * case_flops(b, d, &widths)),
    );
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::jacobian;

    /// The trace of the Jacobian by differences, for each of 3 examples.
    fn traces(field: &Field, x: &Tensor) -> Vec<f64> {
        let [b, d] = x.dims();
        let of = |i| jacobian(&x.narrow(0, i, 1), |x| field.velocity(0.4, x)).to_f64_vec();
        (0..b).map(|i| of(i).iter().step_by(d + 1).sum()).collect()
    }

    #[test]
    fn the_exact_trace_is_that_of_the_jacobian() {
        for widths in [&[6][..], &[6, 5], &[6, 5, 7]] {
            let (x, field, _) = Field::from_inputs(Smooth::Softplus, &case_inputs(3, 4, widths, false));
            let (f, trace) = exact_trace(0.4, &x, &field);
            assert!(crate::testing::max_error(&[f], &[field.velocity(0.4, &x)]) < 1e-12);
            for (got, want) in trace.to_f64_vec().iter().zip(traces(&field, &x)) {
                assert!((got - want).abs() < 1e-8, "{widths:?}: {got}, by differences {want}");
            }
        }
    }

    #[test]
    fn hutchinson_is_the_bilinear_form_of_the_jacobian() {
        let (x, field, _) = Field::from_inputs(Smooth::Tanh, &case_inputs(1, 4, &[6, 5, 7], false));
        let noise = normal(40, &[1, 4]);
        let (_, got) = ode_trace(0.4, &x, &field, &field.hutchinson(&noise));
        let (j, e) = (jacobian(&x, |x| field.velocity(0.4, x)).to_f64_vec(), noise.to_f64_vec());
        let want: f64 = (0..16).map(|i| e[i / 4] * j[i] * e[i % 4]).sum();
        assert!((got.item() - want).abs() < 1e-8, "{}, by differences {want}", got.item());
    }

    #[test]
    #[should_panic(expected = "ode_trace: weights [[5, 3], [3, 4]] for x [2, 3] and the time")]
    fn the_layers_must_fit() {
        let (_, field, probe) = Field::from_inputs(Smooth::Tanh, &case_inputs(2, 4, &[3], false));
        ode_trace(0.0, &normal(1, &[2, 3]), &field, &probe);
    }
}
