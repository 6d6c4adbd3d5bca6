//! Affine maps whose weights are masked to a staircase: output j reads the first `reach[j]` inputs.
//!
//! y = act(x (W ∘ M) + bias), Mᵢⱼ = 1 if i < reachⱼ else 0: x (..., In), W (In, Out), bias (Out), reach
//! non-decreasing. With units sorted by their degree, every masked layer of MADE (Germain et al. 2015) has this form,
//! and about half of the weights do not count. The product runs block by block over the outputs, each over the inputs
//! that its last column reads; what is below the stairs costs nothing.
//!
//! 2 M Σ reach flops, up to the last block's corner; gradients of masked weights are exactly 0.

use super::matmul::{act_backward, composite as linear_composite};
use super::{Case, OpInfo, amp, binary, normal, reduce, shape};
use crate::autograd::{self, Recipe, record};
use crate::cpu::gemm::{Act, Epilogue, Mat, gemm};
use crate::cpu::par;
use crate::cuda::{self, Gpu, Grid, Kernels};
use crate::tensor::{DType, Elem, NewTensor, Tensor, with_float};
use std::sync::{Arc, OnceLock};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "masked_linear",
    family: "fused",
    summary: "affine map with a staircase mask (MADE), bias and activation; skips the masked blocks",
    cases,
};

const FORWARD: Kernels = Kernels::new(
    "masked_linear",
    ["masked_linear_forward_f32", "masked_linear_forward_bf16", "masked_linear_forward_f16"],
)
.or_tf32("masked_linear_forward_tf32");
const INPUT: Kernels = Kernels::new(
    "masked_linear",
    ["masked_linear_input_f32", "masked_linear_input_bf16", "masked_linear_input_f16"],
)
.or_tf32("masked_linear_input_tf32");
const WEIGHT: Kernels = Kernels::new(
    "masked_linear",
    ["masked_linear_weight_f32", "masked_linear_weight_bf16", "masked_linear_weight_f16"],
)
.or_tf32("masked_linear_weight_tf32");

/// Outputs (or inputs, in the backward pass) per block at least: fewer make products too narrow to be fast.
const BLOCK: usize = 64;

/// Which inputs each output reads: the first so many.
#[derive(Debug, Clone)]
pub struct Staircase {
    inputs: usize,
    reach: Arc<[usize]>,
    /// The reaches on the device that first asked for them.
    there: Arc<OnceLock<Tensor>>,
}

impl PartialEq for Staircase {
    fn eq(&self, other: &Self) -> bool {
        self.inputs == other.inputs && self.reach == other.reach
    }
}

impl Eq for Staircase {}

impl Staircase {
    /// Output j reads the first `reach[j]` of `inputs` inputs.
    ///
    /// # Panics
    /// When `reach` decreases somewhere or exceeds `inputs`.
    #[track_caller]
    pub fn new(inputs: usize, reach: impl Into<Arc<[usize]>>) -> Self {
        let reach = reach.into();
        assert!(
            reach.is_sorted() && reach.last().is_none_or(|&r| r <= inputs),
            "staircase: {reach:?} of {inputs}"
        );
        Self { inputs, reach, there: Arc::default() }
    }

    /// The reaches as i32 on the device of `x`; copied there once.
    fn on_device_of(&self, x: &Tensor) -> Tensor {
        let make = || Tensor::from_fn([self.reach.len()], |j| self.reach[j] as i32).beside(x);
        let found = self.there.get_or_init(make);
        if found.device() == x.device() { found.clone() } else { make() }
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.reach.len()
    }

    /// How many inputs output `j` reads.
    pub fn reach(&self, j: usize) -> usize {
        self.reach[j]
    }

    /// M (In, Out): 1 where a weight counts.
    pub fn mask(&self, dtype: DType) -> Tensor {
        let n = self.outputs();
        Tensor::from_fn([self.inputs, n], |at| if at / n < self.reach[at % n] { 1.0f64 } else { 0.0 })
            .cast(dtype)
    }

    /// The first output that reads input `i`.
    fn first(&self, i: usize) -> usize {
        self.reach.partition_point(|&r| r <= i)
    }

    /// Cuts 0..n into equal blocks of [`BLOCK`] or more.
    fn cuts(n: usize) -> impl Iterator<Item = (usize, usize)> {
        let blocks = (n / BLOCK).max(1);
        (0..blocks).map(move |b| (b * n / blocks, (b + 1) * n / blocks))
    }

    /// Calls `f` with the address range of each row's masked weights in (In, Out).
    fn masked(&self, mut f: impl FnMut(std::ops::Range<usize>)) {
        let n = self.outputs();
        (0..self.inputs).for_each(|i| f(i * n..i * n + self.first(i)));
    }
}

/// Relus whose backward is done elsewhere; see "Relu in chains" in the architecture's description.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Gates {
    /// x is the output of a relu: its gradient is zeroed where x ≤ 0, in the product.
    pub input: bool,
    /// The only reader of y does that for this op's relu.
    pub by_consumer: bool,
}

/// act(x (W ∘ M) + bias).
///
/// # Panics
/// When shapes or dtypes do not fit, or the activation is silu (whose gradient needs its input).
#[track_caller]
pub fn masked_linear(x: &Tensor, w: &Tensor, bias: &Tensor, stairs: &Staircase, act: Act) -> Tensor {
    masked_linear_with(x, w, bias, stairs, act, Gates::default())
}

#[track_caller]
pub(crate) fn masked_linear_with(
    x: &Tensor,
    w: &Tensor,
    bias: &Tensor,
    stairs: &Staircase,
    act: Act,
    gates: Gates,
) -> Tensor {
    let (k, n) = (stairs.inputs(), stairs.outputs());
    assert_eq!(x.shape().last(), Some(&k), "masked_linear: x {:?} for {k} inputs", x.shape());
    assert_eq!(
        (w.shape(), bias.shape()),
        (&[k, n][..], &[n][..]),
        "masked_linear: weights and bias for {k} to {n}"
    );
    assert!(x.dtype() == w.dtype() && x.dtype() == bias.dtype(), "masked_linear: dtypes differ");
    assert!(act != Act::Silu, "masked_linear: silu is not supported");
    let narrow =
        amp::narrowed(x, |half| masked_linear_with(&half(x), &half(w), &half(bias), stairs, act, gates));
    if let Some(y) = narrow {
        return y;
    }
    if autograd::in_higher_order() {
        return composite(x, w, bias, stairs, act);
    }
    if let Some(gpu) = cuda::on("masked_linear", &[x, w, bias]) {
        return launch(gpu, [x, w, bias], stairs, act);
    }
    let (x0, masked) = (x.detach(), with_float!(w.dtype(), T => mask::<T>(w, stairs)));
    let y = with_float!(x.dtype(), T => forward::<T>(x, &masked, bias, stairs, act));
    let stairs = stairs.clone();
    let recipe = Recipe::fused("masked_linear").keeping_outputs();
    let [y] = record(recipe, &[x, w, bias], [y], move |back| {
        let act = if gates.by_consumer { Act::None } else { act };
        let g = act_backward(act, &back.grad(0), back.output(0), None);
        let g = shape::reshape(&g, [x0.len() / k.max(1), n]);
        with_float!(g.dtype(), T => {
            let dx = back.needs(0).then(|| input_grad::<T>(&g, &masked, &x0, &stairs, gates.input));
            let dw = back.needs(1).then(|| weight_grad::<T>(&g, &x0, &stairs));
            vec![dx, dw, back.needs(2).then(|| reduce::sum(&g, &[0]))]
        })
    });
    y
}

/// On a device, with its gradients; relus are not gated by their readers there.
fn launch(gpu: Gpu, [x, w, bias]: [&Tensor; 3], stairs: &Staircase, act: Act) -> Tensor {
    let (k, n, dtype) = (stairs.inputs(), stairs.outputs(), x.dtype());
    let (m, reach) = (x.len() / k.max(1), stairs.on_device_of(x));
    let mut shape = x.shape().to_vec();
    shape[x.rank() - 1] = n;
    let (y, rows, [inputs, outputs]) = (gpu.empty(&shape[..], dtype), m as i64, [k, n].map(|n| n as i32));
    let args: &[&dyn cuda::Arg] = &[&y, x, w, bias, &reach, &rows, &inputs, &outputs, &(act as i32)];
    gpu.launch(amp::kernel(&FORWARD, dtype), Grid::tiles(m, n, 1), args);
    let (xs, ws) = (x.detach(), w.detach());
    let recipe = Recipe::fused("masked_linear").keeping_outputs();
    let [y] = record(recipe, &[x, w, bias], [y.finish()], move |back| {
        let g = act_backward(act, &back.grad(0), back.output(0), None);
        let dx = back.needs(0).then(|| {
            let dx = gpu.empty(xs.shape(), dtype);
            let args: &[&dyn cuda::Arg] = &[&dx, &g, &ws, &reach, &rows, &inputs, &outputs];
            gpu.launch(amp::kernel(&INPUT, dtype), Grid::tiles(m, k, 1), args);
            dx.finish()
        });
        let dw = back.needs(1).then(|| {
            let dw = gpu.empty([k, n], dtype);
            let args: &[&dyn cuda::Arg] = &[&dw, &xs, &g, &reach, &rows, &inputs, &outputs];
            gpu.launch(amp::kernel(&WEIGHT, dtype), Grid::tiles(k, n, 1), args);
            dw.finish()
        });
        vec![dx, dw, back.needs(2).then(|| reduce::sum(&shape::reshape(&g, [m, n]), &[0]))]
    });
    y
}

/// W ∘ M.
fn mask<E: Elem>(w: &Tensor, stairs: &Staircase) -> Tensor {
    let mut out = NewTensor::<E>::new(w.shape());
    out.as_mut().copy_from_slice(w.as_slice::<E>());
    stairs.masked(|range| out.as_mut()[range].fill(E::from_f64(0.0)));
    out.finish()
}

/// Rows of a task, which goes through all blocks: one parallel region, and some rows for each packed block.
fn rows_per_task(m: usize) -> usize {
    m.div_ceil(2 * rayon::current_num_threads()).next_multiple_of(12).max(96)
}

fn forward<E: Elem>(x: &Tensor, w: &Tensor, bias: &Tensor, stairs: &Staircase, act: Act) -> Tensor {
    let (k, n) = (stairs.inputs(), stairs.outputs());
    let (xs, ws, bs) = (x.as_slice::<E>(), w.as_slice::<E>(), bias.as_slice::<E>());
    let m = x.len() / k.max(1);
    let mut shape = x.shape().to_vec();
    shape[x.rank() - 1] = n;
    let mut out = NewTensor::<E>::new(&shape);
    let (rows, narrow) = (rows_per_task(m), amp::while_packing());
    par::chunks_mut(out.as_mut(), rows * n, |task, out| {
        let m = out.len() / n;
        for (from, to) in Staircase::cuts(n) {
            let epilogue = Epilogue { bias: Some(&bs[from..to]), act, narrow, ..Epilogue::default() };
            let (a, b) = (Mat::new(&xs[task * rows * k..], k), Mat::new(&ws[from..], n));
            gemm(m, to - from, stairs.reach[to - 1], a, b, &mut out[from..], n, &epilogue);
        }
    });
    out.finish()
}

fn input_grad<E: Elem>(g: &Tensor, w: &Tensor, x: &Tensor, stairs: &Staircase, gated: bool) -> Tensor {
    let (k, n) = (stairs.inputs(), stairs.outputs());
    let (gs, ws, xs) = (g.as_slice::<E>(), w.as_slice::<E>(), x.as_slice::<E>());
    let m = x.len() / k.max(1);
    let mut out = NewTensor::<E>::new(x.shape());
    let (rows, narrow) = (rows_per_task(m), amp::while_packing());
    par::chunks_mut(out.as_mut(), rows * k, |task, out| {
        let m = out.len() / k;
        for (from, to) in Staircase::cuts(k) {
            let first = stairs.first(from);
            let gate = gated.then(|| &xs[task * rows * k + from..]);
            let epilogue = Epilogue { gate, narrow, ..Epilogue::default() };
            let g = &gs[task * rows * n + first.min(n - 1)..];
            let (a, b) = (Mat::new(g, n), Mat::t(&ws[from * n + first.min(n - 1)..], n));
            gemm(m, to - from, n - first, a, b, &mut out[from..], k, &epilogue);
        }
    });
    out.finish()
}

fn weight_grad<E: Elem>(g: &Tensor, x: &Tensor, stairs: &Staircase) -> Tensor {
    let (k, n) = (stairs.inputs(), stairs.outputs());
    let (gs, xs) = (g.as_slice::<E>(), x.as_slice::<E>());
    let m = x.len() / k.max(1);
    let mut out = NewTensor::<E>::zeroed([k, n]);
    let epilogue = Epilogue { narrow: amp::while_packing(), ..Epilogue::default() };
    for (from, to) in Staircase::cuts(n).filter(|c| c.1 > c.0 && m > 0) {
        let rows = stairs.reach[to - 1];
        if rows > 0 {
            let (a, b) = (Mat::t(xs, k), Mat::new(&gs[from..], n));
            gemm(rows, to - from, m, a, b, &mut out.as_mut()[from..], n, &epilogue);
        }
    }
    stairs.masked(|range| out.as_mut()[range].fill(E::from_f64(0.0)));
    out.finish()
}

/// [`masked_linear`] in primitives.
pub fn composite(x: &Tensor, w: &Tensor, bias: &Tensor, stairs: &Staircase, act: Act) -> Tensor {
    linear_composite(x, &binary::mul(w, &stairs.mask(w.dtype())), Some(bias), act)
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: String, lead: &[usize], stairs: Staircase, act: Act| {
        let (k, n) = (stairs.inputs(), stairs.outputs());
        let inputs = vec![normal(1, &[lead, &[k]].concat()), normal(2, &[k, n]), normal(3, &[n])];
        let again = stairs.clone();
        cases.push(
            Case::new(name, inputs, move |x| vec![masked_linear(&x[0], &x[1], &x[2], &stairs, act)])
                .composite(move |x| vec![composite(&x[0], &x[1], &x[2], &again, act)]),
        );
    };
    for act in [Act::None, Act::Relu, Act::Tanh, Act::Sigmoid] {
        add(format!("{act:?} 1->1"), &[1], Staircase::new(1, [1]), act);
        add(format!("{act:?} 4->5"), &[2, 3], Staircase::new(4, [0, 1, 1, 3, 3]), act);
    }
    add("nothing is read".into(), &[2], Staircase::new(3, [0, 0]), Act::None);
    let reach: Vec<usize> = (0..200).map(|j| (j * 150 / 200).min(140)).collect();
    add("several blocks".into(), &[5], Staircase::new(150, reach), Act::Relu);
    let (m, k, n) = (512, 128, 483);
    let reach: Vec<usize> = (0..n).map(|j| j * k / n).collect();
    let flops = 2 * m * reach.iter().sum::<usize>();
    let stairs = Staircase::new(k, reach);
    let inputs = vec![normal(4, &[m, k]), normal(5, &[k, n]), normal(6, &[n])];
    let again = stairs.clone();
    cases.push(
        Case::new("512x128x483", inputs, move |x| {
            vec![masked_linear(&x[0], &x[1], &x[2], &stairs, Act::None)]
        })
        .composite(move |x| vec![composite(&x[0], &x[1], &x[2], &again, Act::None)])
        .order(0)
        .bench(4 * (m * k + m * n + k * n), flops)
        .backward(8 * (m * k + m * n + k * n), 2 * flops),
    );
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_do_not_see_what_they_must_not() {
        let stairs = Staircase::new(3, [0, 1, 2, 3]);
        let (w, bias) = (normal(1, &[3, 4]), normal(2, &[4]));
        let run = |x: &[f64]| {
            masked_linear(&Tensor::from_slice(x, [1, 3]), &w, &bias, &stairs, Act::Relu).to_f64_vec()
        };
        let (a, b) = (run(&[1.0, 2.0, 3.0]), run(&[1.0, 2.0, 1e300]));
        assert_eq!(a[..3], b[..3]);
    }

    #[test]
    fn gates_do_what_relus_do() {
        let stairs = [Staircase::new(3, [1, 1, 2, 3]), Staircase::new(4, [2, 3])];
        let inputs: Vec<Tensor> = [&[5, 3][..], &[3, 4], &[4], &[4, 2], &[2]]
            .iter()
            .zip(1..)
            .map(|(s, i)| normal(i, s).requires_grad())
            .collect();
        let run = |gated: bool| {
            let (first, second) = (
                Gates { by_consumer: gated, ..Gates::default() },
                Gates { input: gated, ..Gates::default() },
            );
            let h = masked_linear_with(&inputs[0], &inputs[1], &inputs[2], &stairs[0], Act::Relu, first);
            let y = masked_linear_with(&h, &inputs[3], &inputs[4], &stairs[1], Act::None, second);
            crate::autograd::backward(y.square().sum_all(), &inputs.iter().collect::<Vec<_>>())
        };
        assert!(crate::testing::max_error(&run(true), &run(false)) < 1e-12);
    }

    #[test]
    #[should_panic(expected = "staircase")]
    fn stairs_only_rise() {
        Staircase::new(3, [2, 1]);
    }
}
