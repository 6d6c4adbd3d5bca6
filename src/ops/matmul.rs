//! Matrix products: C = op(A) op(B), op = transpose where flagged, batched over leading dimensions.
//!
//! A (M, K) or (K, M) when `ta`; B (K, N) or (N, K) when `tb`; with a leading batch dimension on both, or on A
//! alone (then B is shared and A is folded into one tall matrix). 2 M N K flops.

mod sm90a;

pub use sm90a::with_wgmma;

use super::{Case, OpInfo, amp, binary, eighths, halves, normal, reduce, shape, unary};
use crate::autograd::{self, Recipe, record};
use crate::cpu::gemm::{Act, Epilogue, Mat, gemm, gemm_batched};
use crate::cuda::{self, Gpu, Grid, Kernels, Optional, Struct, TILE_64X64, TILE_128X128, TILE_128X256, Wide};
use crate::tensor::{Float, NewTensor, Shape, Tensor, with_arithmetic, with_float};

/// The registry's line for [`matmul`].
pub const OP: OpInfo = OpInfo {
    name: "matmul",
    family: "primitive",
    summary: "matrix products with transpose flags and batches",
    cases,
};

/// The registry's line for [`linear`].
pub const LINEAR: OpInfo = OpInfo {
    name: "linear",
    family: "fused",
    summary: "affine map over the last axis with bias and activation",
    cases: linear_cases,
};

const KERNELS: Kernels =
    Kernels::new("matmul", ["matmul_f32", "matmul_bf16", "matmul_f16"]).or_tf32("matmul_tf32");

const WIDE: Wide<3> = Wide::new(
    "matmul",
    [
        (TILE_128X256, ["matmul_128x256_bf16", "matmul_128x256_f16"]),
        (TILE_128X128, ["matmul_128x128_bf16", "matmul_128x128_f16"]),
        (TILE_64X64, ["matmul_64x64_bf16", "matmul_64x64_f16"]),
    ],
);

/// As `Product` in `kernels/matmul.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
struct Product {
    m: i64,
    n: i64,
    k: i64,
    a_batch: i64,
    b_batch: i64,
    transpose_a: i32,
    transpose_b: i32,
    act: i32,
    pad: i32,
}

impl Product {
    /// (M, K) by (K, N), one after the other in memory where there are several.
    fn plain(m: usize, n: usize, k: usize) -> Self {
        let [m, n, k] = [m, n, k].map(|n| n as i64);
        Self { m, n, k, a_batch: m * k, b_batch: k * n, transpose_a: 0, transpose_b: 0, act: 0, pad: 0 }
    }

    /// The lengths of the rows of C, A and B in memory.
    fn rows(&self) -> [usize; 3] {
        let a = if self.transpose_a == 0 { self.k } else { self.m };
        let b = if self.transpose_b == 0 { self.n } else { self.k };
        [self.n, a, b].map(|length| length as usize)
    }
}

/// `batch` products on a device.
#[track_caller]
fn launch(
    gpu: Gpu,
    a: &Tensor,
    b: &Tensor,
    bias: Option<&Tensor>,
    shape: Shape,
    batch: usize,
    p: Product,
) -> Tensor {
    sm90a::launch(gpu, [a, b], bias, shape, batch, p)
        .unwrap_or_else(|| launch_plain(gpu, [a, b], bias, shape, batch, p))
}

/// The same by `kernels/matmul.cu`.
#[track_caller]
fn launch_plain(
    gpu: Gpu,
    [a, b]: [&Tensor; 2],
    bias: Option<&Tensor>,
    shape: Shape,
    batch: usize,
    p: Product,
) -> Tensor {
    let y = gpu.empty(shape, a.dtype());
    let (kernel, grid) =
        WIDE.of(gpu, a.dtype(), [p.m as usize, p.n as usize, batch], &p.rows()).unwrap_or_else(|| {
            (amp::kernel(&KERNELS, a.dtype()), Grid::tiles(p.m as usize, p.n as usize, batch))
        });
    gpu.launch(kernel, grid, &[&y, a, b, &Optional(bias, a.dtype()), &Struct(p)]);
    y.finish()
}

/// op(A) op(B).
///
/// # Panics
/// When the inner dimensions, the batches or the dtypes differ.
#[track_caller]
pub fn matmul(a: &Tensor, b: &Tensor, ta: bool, tb: bool) -> Tensor {
    let fail = || panic!("matmul: {:?} (t={ta}) by {:?} (t={tb})", a.shape(), b.shape());
    assert_eq!(a.dtype(), b.dtype(), "matmul: dtypes differ");
    if let Some(y) = amp::narrowed(a, |half| matmul(&half(a), &half(b), ta, tb)) {
        return y;
    }
    if a.rank() == 3 && b.rank() == 2 && !ta {
        let [batch, m, k] = a.dims();
        let flat = matmul(&shape::reshape(a, [batch * m, k]), b, false, tb);
        let n = flat.shape()[1];
        return shape::reshape(&flat, [batch, m, n]);
    }
    let (batch, sa, sb) = match (a.shape(), b.shape()) {
        (&[x, p, q], &[y, r, s]) if x == y => (Some(x), [p, q], [r, s]),
        (&[p, q], &[r, s]) => (None, [p, q], [r, s]),
        _ => fail(),
    };
    let [m, k] = if ta { [sa[1], sa[0]] } else { sa };
    let [k2, n] = if tb { [sb[1], sb[0]] } else { sb };
    if k != k2 {
        fail();
    }
    let shape: Shape = match batch {
        Some(batch) => [batch, m, n].into(),
        None => [m, n].into(),
    };
    let y = if let Some(gpu) = cuda::on("matmul", &[a, b]) {
        let product = Product { transpose_a: ta.into(), transpose_b: tb.into(), ..Product::plain(m, n, k) };
        launch(gpu, a, b, None, shape, batch.unwrap_or(1), product)
    } else {
        with_float!(a.dtype(), T => {
            let mut out = NewTensor::<T>::new(shape);
            let (xs, ys) = (a.as_slice::<T>(), b.as_slice::<T>());
            let x = Mat { data: xs, row_stride: sa[1], transposed: ta };
            let z = Mat { data: ys, row_stride: sb[1], transposed: tb };
            let epilogue = Epilogue { narrow: amp::while_packing(), ..Epilogue::default() };
            gemm_batched(batch.unwrap_or(1), (m, n, k), (x, m * k), (z, k * n), out.as_mut(), &epilogue);
            out.finish()
        })
    };
    let (x, z) = (a.clone(), b.clone());
    let [y] = record(Recipe::primitive("matmul"), &[a, b], [y], move |back| {
        let g = back.grad(0);
        let da =
            back.needs(0).then(|| if ta { matmul(&z, &g, tb, true) } else { matmul(&g, &z, false, !tb) });
        let db =
            back.needs(1).then(|| if tb { matmul(&g, &x, true, ta) } else { matmul(&x, &g, !ta, false) });
        vec![da, db]
    });
    y
}

/// y = act(x W + bias): x (..., In), W (In, Out), bias (Out).
///
/// # Panics
/// When shapes or dtypes do not fit.
#[track_caller]
pub fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, act: Act) -> Tensor {
    let [k, n] = w.dims();
    assert_eq!(x.shape().last(), Some(&k), "linear: x {:?} by w {:?}", x.shape(), w.shape());
    assert_eq!(x.dtype(), w.dtype(), "linear: dtypes differ");
    assert!(
        bias.is_none_or(|b| b.shape() == [n]),
        "linear: bias {:?} for {n} outputs",
        bias.map(Tensor::shape)
    );
    if let Some(y) = amp::narrowed(x, |half| linear(&half(x), &half(w), bias.map(half).as_ref(), act)) {
        return y;
    }
    if autograd::in_higher_order() {
        return composite(x, w, bias, act);
    }
    let m = x.len() / k.max(1);
    let mut shape = x.shape().to_vec();
    *shape.last_mut().expect("x has an axis") = n;
    let gpu = cuda::on("linear", &[&[x, w][..], bias.as_slice()].concat());
    let forward = |act: Act| {
        if let Some(gpu) = gpu {
            let product = Product { act: act as i32, ..Product::plain(m, n, k) };
            return launch(gpu, x, w, bias, Shape::new(&shape), 1, product);
        }
        with_float!(x.dtype(), T => {
            let mut out = NewTensor::<T>::new(&shape);
            let (bias, narrow) = (bias.map(|b| b.as_slice::<T>()), amp::while_packing());
            let epilogue = Epilogue { bias, act, narrow, ..Epilogue::default() };
            let (a, b) = (Mat::new(x.as_slice::<T>(), k), Mat::new(w.as_slice::<T>(), n));
            gemm(m, n, k, a, b, out.as_mut(), n, &epilogue);
            out.finish()
        })
    };
    let (xs, ws) = (x.clone(), w.clone());
    let none = bias.is_none();
    let empty = Tensor::zeros([0], x.dtype());
    let recipe = Recipe::fused("linear").keeping_outputs();
    let inputs = [x, w, bias.unwrap_or(&empty)];
    // The derivative of silu is a function of the sum, which the fused product would not keep.
    let pre = (act == Act::Silu && autograd::is_recording(&inputs)).then(|| forward(Act::None));
    let y = pre.as_ref().map_or_else(|| forward(act), silu);
    let [y] = record(recipe, &inputs, [y], move |back| {
        let g = shape::reshape(&act_backward(act, &back.grad(0), back.output(0), pre.as_ref()), [m, n]);
        let x2 = shape::reshape(&xs, [m, k]);
        let dx = back.needs(0).then(|| shape::reshape(&matmul(&g, &ws.detach(), false, true), xs.shape()));
        let dw = back.needs(1).then(|| matmul(&x2.detach(), &g, true, false));
        let db = (!none && back.needs(2)).then(|| reduce::sum(&g, &[0]));
        vec![dx, dw, db]
    });
    y
}

/// x sigmoid(x) in one pass, unrecorded.
pub(super) fn silu(x: &Tensor) -> Tensor {
    if x.gpu().is_some() {
        return autograd::no_grad(|| x * &unary::sigmoid(x));
    }
    unary::widened(x, |x| with_arithmetic!(x.dtype(), T => unary::map::<T>(x, |x| Act::Silu.apply(x))))
}

/// The gradient before an activation from the one behind it, given its output (silu: its input) in one pass.
pub(crate) fn act_backward(act: Act, g: &Tensor, y: &Tensor, pre: Option<&Tensor>) -> Tensor {
    if let Some(gpu) = g.gpu() {
        let grad = |f, y| binary::launch(gpu, f, g, y);
        return match act {
            Act::None => g.clone(),
            Act::Relu => grad(binary::Function::relu_grad, y),
            Act::Sigmoid => grad(binary::Function::sigmoid_grad, y),
            Act::Tanh => grad(binary::Function::tanh_grad, y),
            Act::Silu => grad(binary::Function::silu_grad, pre.expect("silu keeps its input")),
        };
    }
    macro_rules! pass {
        ($y:expr, $f:expr) => {{
            #[inline(always)]
            fn f<F: Float>(g: F, y: F) -> F {
                let f: fn(F, F, [F; 2]) -> F = $f;
                f(g, y, [F::from_f64(0.0), F::from_f64(1.0)])
            }
            binary::widened(g, $y, |g, y| with_arithmetic!(g.dtype(), T => binary::zip::<T>("activation", g, y, |g, y| f(g, y))))
        }};
    }
    match act {
        Act::None => g.clone(),
        Act::Relu => pass!(y, |g, y, [zero, _]| if y > zero { g } else { zero }),
        Act::Sigmoid => pass!(y, |g, y, [_, one]| g * y * (one - y)),
        Act::Tanh => pass!(y, |g, y, [_, one]| g * (one - y * y)),
        Act::Silu => pass!(pre.expect("silu keeps its input"), |g, x, [_, one]| {
            let s = x.sigmoid();
            g * s * (one + x * (one - s))
        }),
    }
}

/// An activation in primitives.
pub(crate) fn activation(act: Act, x: &Tensor) -> Tensor {
    match act {
        Act::None => x.clone(),
        Act::Relu => unary::relu(x),
        Act::Sigmoid => unary::sigmoid(x),
        Act::Tanh => unary::tanh(x),
        Act::Silu => x * &unary::sigmoid(x),
    }
}

/// [`linear`] in primitives.
pub fn composite(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, act: Act) -> Tensor {
    let [k, n] = w.dims();
    let mut shape = x.shape().to_vec();
    *shape.last_mut().expect("x has an axis") = n;
    let y = shape::reshape(&matmul(&shape::reshape(x, [x.len() / k, k]), w, false, false), shape);
    activation(act, &bias.map_or(y.clone(), |b| binary::add(&y, b)))
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (m, n, k) in [(1, 1, 1), (2, 3, 5), (7, 17, 9), (33, 16, 31)] {
        for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
            let a = if ta { [k, m] } else { [m, k] };
            let b = if tb { [n, k] } else { [k, n] };
            let inputs = vec![normal(1, &a), normal(2, &b)];
            let name = format!("{m}x{n}x{k} ta={ta} tb={tb}");
            cases.push(Case::new(name, inputs, move |x| vec![matmul(&x[0], &x[1], ta, tb)]));
        }
    }
    // Rows of whole 16 bytes, for the tiles of kernels/wide.cuh: one that fits, and ragged ones, in shapes that
    // favour each.
    for (m, n, k) in
        [(128, 256, 40), (136, 488, 200), (120, 128, 160), (200, 120, 72), (64, 64, 264), (40, 200, 8)]
    {
        for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
            let a = if ta { [k, m] } else { [m, k] };
            let b = if tb { [n, k] } else { [k, n] };
            let name = format!("wide {m}x{n}x{k} ta={ta} tb={tb}");
            let run = move |x: &[Tensor]| vec![matmul(&x[0], &x[1], ta, tb)];
            cases.push(Case::new(name, vec![normal(1, &a), normal(2, &b)], run).order(1));
        }
    }
    let batched = vec![normal(3, &[3, 40, 24]), normal(4, &[3, 72, 24])];
    cases.push(Case::new("wide batched", batched, |x| vec![matmul(&x[0], &x[1], false, true)]).order(1));
    let batched = vec![normal(3, &[3, 4, 5]), normal(4, &[3, 6, 5])];
    cases.push(Case::new("batched", batched, |x| vec![matmul(&x[0], &x[1], false, true)]));
    let shared = vec![normal(3, &[3, 4, 5]), normal(4, &[5, 6])];
    cases.push(Case::new("shared right side", shared, |x| vec![matmul(&x[0], &x[1], false, false)]));
    for n in [512usize, 1024] {
        let inputs = vec![normal(5, &[n, n]), normal(6, &[n, n])];
        let run = |x: &[Tensor]| vec![matmul(&x[0], &x[1], false, false)];
        cases.push(
            Case::new(format!("{n} square"), inputs, run)
                .order(0)
                .bench(12 * n * n, 2 * n * n * n)
                .backward(24 * n * n, 4 * n * n * n),
        );
    }
    cases
}

fn linear_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for act in [Act::None, Act::Relu, Act::Sigmoid, Act::Tanh, Act::Silu] {
        for (lead, k, n) in [(&[1][..], 1, 1), (&[3, 4], 5, 7), (&[17], 33, 9), (&[7, 10], 72, 88)] {
            let inputs = vec![normal(1, &[lead, &[k]].concat()), normal(2, &[k, n]), normal(3, &[n])];
            let case = Case::new(format!("{act:?} {lead:?} {k}->{n}"), inputs, move |x| {
                vec![linear(&x[0], &x[1], Some(&x[2]), act)]
            })
            .composite(move |x| vec![composite(&x[0], &x[1], Some(&x[2]), act)]);
            // Of thousands of relus one is so near to its kink that a difference straddles it; below they keep away
            // from it.
            cases.push(if act == Act::Relu && n > 50 { case.order(0) } else { case });
        }
    }
    let inputs = vec![halves(1, &[70, 72]), halves(2, &[72, 88]), eighths(88)];
    cases.push(
        Case::new("Relu off its kink", inputs, |x| vec![linear(&x[0], &x[1], Some(&x[2]), Act::Relu)])
            .composite(|x| vec![composite(&x[0], &x[1], Some(&x[2]), Act::Relu)])
            .order(1),
    );
    let inputs = vec![normal(1, &[6, 5]), normal(2, &[5, 4])];
    cases.push(
        Case::new("no bias", inputs, |x| vec![linear(&x[0], &x[1], None, Act::None)])
            .composite(|x| vec![composite(&x[0], &x[1], None, Act::None)]),
    );
    let (m, k, n) = (12_544, 128, 128);
    let inputs = vec![normal(4, &[m, k]), normal(5, &[k, n]), normal(6, &[n])];
    cases.push(
        Case::new("12544x128x128 relu", inputs, |x| vec![linear(&x[0], &x[1], Some(&x[2]), Act::Relu)])
            .order(0)
            .bench(4 * (m * k + m * n + k * n), 2 * m * n * k)
            .backward(8 * (m * k + m * n + k * n), 4 * m * n * k),
    );
    cases
}
