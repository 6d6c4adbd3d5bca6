//! Two-dimensional convolution, channels last: y = act(x ∗ w + bias + residual).
//!
//! x (B, H, W, Cin), w (KH, KW, Cin, Cout), y (B, H', W', Cout); zero padding, one stride for both axes.
//! y[b, i, j] = Σ_{u, v} x[b, i s + u − p, j s + v − p] w[u, v], 2 B H' W' KH KW Cin Cout flops.
//!
//! The three products (forward, input gradient, weight gradient) are bilinear, each the gradient of the
//! others, so the primitive differentiates to any order. [`conv2d`] fuses bias, residual and activation.

mod device;

use super::matmul::{act_backward, activation, silu};
use super::{Case, OpInfo, amp, binary, eighths, halves, normal, reduce};
use crate::autograd::{self, Recipe, record};
use crate::cpu::conv::{self, Conv};
use crate::cpu::gemm::{Act, Epilogue};
use crate::cuda;
use crate::tensor::{NewTensor, Shape, Tensor, with_float};
use std::sync::Arc;

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "conv",
    family: "fused",
    summary: "2-d convolution and transposed convolution with bias, residual and activation",
    cases,
};

/// How to convolve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvSpec {
    /// Input pixels between neighbouring outputs.
    pub stride: usize,
    /// Zeros around the input, in pixels.
    pub padding: usize,
    /// The activation behind the sum.
    pub act: Act,
    /// x is the output of a relu: the gradient to x is zeroed where x ≤ 0, inside the product that makes it.
    pub(crate) gates_input: bool,
    /// The consumer of y [gates](Self::gates_input), so that the backward of this relu is nothing.
    pub(crate) gated_by_consumer: bool,
}

impl ConvSpec {
    /// A kernel of odd size `k` that keeps height and width.
    pub const fn same(k: usize) -> Self {
        Self { stride: 1, padding: k / 2, act: Act::None, gates_input: false, gated_by_consumer: false }
    }

    /// This stride and padding.
    pub const fn strided(stride: usize, padding: usize) -> Self {
        Self { stride, padding, ..Self::same(1) }
    }

    /// With relu behind the sum.
    pub const fn relu(self) -> Self {
        Self { act: Act::Relu, ..self }
    }

    /// With this activation behind the sum.
    pub const fn act(self, act: Act) -> Self {
        Self { act, ..self }
    }
}

type Geometry = Arc<Conv>;

#[track_caller]
fn geometry(op: &str, x: &Tensor, w: &Tensor, spec: ConvSpec) -> Geometry {
    let [b, h, wd, c] = x.dims();
    let [kh, kw, cin, cout] = w.dims();
    assert_eq!(c, cin, "{op}: x {:?} has {c} channels, w {:?} takes {cin}", x.shape(), w.shape());
    assert_eq!(x.dtype(), w.dtype(), "{op}: dtypes of x and w differ");
    Arc::new(Conv::dense(b, (h, wd), (cin, cout), (kh, kw), spec.stride, spec.padding))
}

fn out_shape(g: &Conv) -> Shape {
    [g.batch, g.out.0, g.out.1, g.cout].into()
}

fn in_shape(g: &Conv) -> Shape {
    [g.batch, g.size.0, g.size.1, g.cin].into()
}

/// act(x ∗ w + bias + residual), unrecorded.
#[track_caller]
fn forward(
    g: &Conv,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    act: Act,
) -> Tensor {
    let extras = [bias, residual];
    let inputs: Vec<&Tensor> = [x, w].into_iter().chain(extras.into_iter().flatten()).collect();
    if let Some(gpu) = cuda::on("conv", &inputs) {
        return device::forward(gpu, g, x, w, extras, act);
    }
    with_float!(x.dtype(), T => {
        let mut out = NewTensor::<T>::new(out_shape(g));
        let epilogue = Epilogue {
            bias: bias.map(|b| b.as_slice::<T>()),
            residual: residual.map(|r| r.as_slice::<T>()),
            act,
            narrow: amp::while_packing(),
            ..Epilogue::default()
        };
        conv::forward(g, x.as_slice::<T>(), w.as_slice::<T>(), out.as_mut(), &epilogue);
        out.finish()
    })
}

/// The gradient to x, zero where `gate` (shaped as x) is not positive; unrecorded.
#[track_caller]
fn gated_input_grad(g: &Conv, dy: &Tensor, w: &Tensor, gate: Option<&Tensor>) -> Tensor {
    if let Some(gpu) = cuda::on("conv input gradient", &[dy, w]) {
        return device::input_grad(gpu, g, dy, w, gate);
    }
    with_float!(dy.dtype(), T => {
        let mut out = NewTensor::<T>::new(in_shape(g));
        let gate = gate.map(|x| x.as_slice::<T>());
        let epilogue = Epilogue { gate, narrow: amp::while_packing(), ..Epilogue::default() };
        conv::input_grad(g, dy.as_slice::<T>(), w.as_slice::<T>(), out.as_mut(), &epilogue);
        out.finish()
    })
}

/// x ∗ w, the primitive.
pub(super) fn plain(x: &Tensor, w: &Tensor, g: &Geometry) -> Tensor {
    let y = forward(g, x, w, None, None, Act::None);
    let (xs, ws, g) = (x.clone(), w.clone(), g.clone());
    let [y] = record(Recipe::primitive("conv"), &[x, w], [y], move |b| {
        let dy = b.grad(0);
        let dx = b.needs(0).then(|| input_grad(&dy, &ws, &g));
        vec![dx, b.needs(1).then(|| weight_grad(&xs, &dy, Shape::new(ws.shape()), &g))]
    });
    y
}

/// The gradient of [`plain`] with respect to x; also the forward of transposed convolution.
pub(super) fn input_grad(dy: &Tensor, w: &Tensor, g: &Geometry) -> Tensor {
    let dx = gated_input_grad(g, dy, w, None);
    let (dys, ws, g) = (dy.clone(), w.clone(), g.clone());
    let [dx] = record(Recipe::primitive("conv_input_grad"), &[dy, w], [dx], move |b| {
        let x = b.grad(0);
        let ddy = b.needs(0).then(|| plain(&x, &ws, &g));
        vec![ddy, b.needs(1).then(|| weight_grad(&x, &dys, Shape::new(ws.shape()), &g))]
    });
    dx
}

/// The gradient of [`plain`] with respect to w, of shape `like`.
pub(super) fn weight_grad(x: &Tensor, dy: &Tensor, like: Shape, g: &Geometry) -> Tensor {
    let dw = if let Some(gpu) = cuda::on("conv weight gradient", &[x, dy]) {
        device::weight_grad(gpu, g, x, dy, like)
    } else {
        with_float!(x.dtype(), T => {
            let mut out = NewTensor::<T>::new(like);
            let narrow = amp::while_packing();
            conv::weight_grad(g, x.as_slice::<T>(), dy.as_slice::<T>(), out.as_mut(), false, narrow);
            out.finish()
        })
    };
    let (xs, dys, g) = (x.clone(), dy.clone(), g.clone());
    let [dw] = record(Recipe::primitive("conv_weight_grad"), &[x, dy], [dw], move |b| {
        let w = b.grad(0);
        let dx = b.needs(0).then(|| input_grad(&dys, &w, &g));
        vec![dx, b.needs(1).then(|| plain(&xs, &w, &g))]
    });
    dw
}

/// Σ over all axes but the last, of a gradient: the gradient of a bias.
pub(super) fn bias_grad(dy: &Tensor) -> Tensor {
    let n = *dy.shape().last().expect("dy has channels");
    if dy.gpu().is_some() {
        return reduce::sum(dy, &[0, 1, 2]);
    }
    with_float!(dy.dtype(), T => {
        let mut out = NewTensor::<T>::new([n]);
        conv::bias_grad(dy.as_slice::<T>(), None, out.as_mut(), false);
        out.finish()
    })
}

/// act(x ∗ w + bias + residual); see the module.
///
/// # Panics
/// When shapes or dtypes do not fit.
#[track_caller]
pub fn conv2d(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    spec: ConvSpec,
) -> Tensor {
    let g = geometry("conv2d", x, w, spec);
    check_extras("conv2d", &g, bias, residual);
    let narrow = amp::with_residual(x, residual, spec.act, |half, residual| {
        conv2d(&half(x), &half(w), bias.map(half).as_ref(), residual, spec)
    });
    if let Some(y) = narrow {
        return y;
    }
    if autograd::in_higher_order() {
        return composite(x, w, bias, residual, spec);
    }
    fused("conv2d", g, x, w, Weights::Whole, bias, residual, spec)
}

/// [`conv2d`] in primitives.
pub fn composite(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    spec: ConvSpec,
) -> Tensor {
    let y = plain(x, w, &geometry("conv2d", x, w, spec));
    finish(y, bias, residual, spec.act)
}

pub(super) fn finish(y: Tensor, bias: Option<&Tensor>, residual: Option<&Tensor>, act: Act) -> Tensor {
    let y = bias.map_or(y.clone(), |b| binary::add(&y, b));
    activation(act, &residual.map_or(y.clone(), |r| binary::add(&y, r)))
}

#[track_caller]
pub(super) fn check_extras(op: &str, g: &Conv, bias: Option<&Tensor>, residual: Option<&Tensor>) {
    let out = out_shape(g);
    assert!(
        bias.is_none_or(|b| b.shape() == [g.cout]),
        "{op}: bias {:?}, expected [{}]",
        bias.map(Tensor::shape),
        g.cout
    );
    assert!(
        residual.is_none_or(|r| r.shape() == out.as_slice()),
        "{op}: residual {:?}, expected {out:?}",
        residual.map(Tensor::shape)
    );
}

/// Which part of the weights takes part, as memory: everything, or what a mask keeps.
#[derive(Clone)]
pub(super) enum Weights {
    /// All of w.
    Whole,
    /// The leading taps, times this 0/1 mask over the last of them (empty: no mask).
    Prefix(Arc<Vec<bool>>),
}

impl Weights {
    /// The weights that the products see.
    fn view(&self, w: &Tensor, g: &Conv) -> Tensor {
        match self {
            Weights::Whole => w.detach(),
            Weights::Prefix(mask) => with_float!(w.dtype(), T => {
                let mut out = NewTensor::<T>::new([g.weight_len()]);
                out.as_mut().copy_from_slice(&w.as_slice::<T>()[..g.weight_len()]);
                self.apply::<T>(mask, out.as_mut());
                out.finish()
            }),
        }
    }

    fn apply<T: crate::tensor::Elem>(&self, mask: &[bool], kept: &mut [T]) {
        let last = kept.len() - mask.len();
        for (w, keep) in kept[last..].iter_mut().zip(mask) {
            if !keep {
                *w = T::from_f64(0.0);
            }
        }
    }

    /// The gradient in the shape of w from that of the view.
    fn widen(&self, dw: Tensor, like: Shape) -> Tensor {
        match self {
            Weights::Whole => dw,
            Weights::Prefix(mask) => with_float!(dw.dtype(), T => {
                let mut out = NewTensor::<T>::zeroed(like);
                let kept = &mut out.as_mut()[..dw.len()];
                kept.copy_from_slice(dw.as_slice::<T>());
                self.apply::<T>(mask, kept);
                out.finish()
            }),
        }
    }
}

/// The fused forward and its hand-derived backward, shared with masked convolution.
pub(super) fn fused(
    op: &'static str,
    g: Geometry,
    x: &Tensor,
    w: &Tensor,
    weights: Weights,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    spec: ConvSpec,
) -> Tensor {
    let view = weights.view(w, &g);
    let forward = |act: Act| forward(&g, x, &view, bias, residual, act);
    let absent = Tensor::zeros([0], x.dtype());
    let inputs = [x, w, bias.unwrap_or(&absent), residual.unwrap_or(&absent)];
    if !autograd::is_recording(&inputs) {
        return forward(spec.act);
    }
    // The derivative of silu is a function of the sum, which the fused product would not keep.
    let pre = (spec.act == Act::Silu).then(|| forward(Act::None));
    let y = pre.as_ref().map_or_else(|| forward(spec.act), silu);
    let kept = inputs.map(Tensor::detach);
    let (has_bias, has_residual) = (bias.is_some(), residual.is_some());
    let recipe = Recipe { keep_outputs: !matches!(spec.act, Act::None | Act::Silu), ..Recipe::fused(op) };
    let [y] = record(recipe, &inputs, [y], move |back| {
        let [x, w, ..] = &kept;
        let given = back.grad(0);
        let dz = match spec.act {
            Act::None => given,
            // On devices a consumer may run as a composite, which gates nothing.
            _ if spec.gated_by_consumer && given.gpu().is_none() => given,
            Act::Silu => act_backward(spec.act, &given, &given, pre.as_ref()),
            act => act_backward(act, &given, back.output(0), None),
        };
        let dx = back.needs(0).then(|| gated_input_grad(&g, &dz, &view, spec.gates_input.then_some(x)));
        let dw = back
            .needs(1)
            .then(|| weights.widen(weight_grad(x, &dz, Shape::new(view.shape()), &g), Shape::new(w.shape())));
        let db = (has_bias && back.needs(2)).then(|| bias_grad(&dz));
        vec![dx, dw, db, (has_residual && back.needs(3)).then_some(dz)]
    });
    y
}

/// Transposed convolution, the adjoint of [`conv2d`]: act(xᵀ∗ w + bias), x (B, H, W, Cin), w (KH, KW, Cout, Cin),
/// y (B, (H − 1) s + KH − 2 p, …, Cout). As `torch.nn.ConvTranspose2d` without output padding.
///
/// # Panics
/// When shapes or dtypes do not fit.
#[track_caller]
pub fn conv2d_transposed(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, spec: ConvSpec) -> Tensor {
    let g = transposed_geometry(x, w, spec);
    assert!(
        bias.is_none_or(|b| b.shape() == [g.cin]),
        "conv2d_transposed: bias {:?}, expected [{}]",
        bias.map(Tensor::shape),
        g.cin
    );
    let narrow =
        amp::narrowed(x, |half| conv2d_transposed(&half(x), &half(w), bias.map(half).as_ref(), spec));
    if let Some(y) = narrow {
        return y;
    }
    if super::by_composite(x) || spec.act == Act::Silu {
        return composite_transposed(x, w, bias, spec);
    }
    let y = with_float!(x.dtype(), T => {
        let mut out = NewTensor::<T>::new(in_shape(&g));
        let bias = bias.map(|b| b.as_slice::<T>());
        let narrow = amp::while_packing();
        let epilogue = Epilogue { bias, act: spec.act, narrow, ..Epilogue::default() };
        conv::input_grad(&g, x.as_slice::<T>(), w.as_slice::<T>(), out.as_mut(), &epilogue);
        out.finish()
    });
    let absent = Tensor::zeros([0], x.dtype());
    let inputs = [x, w, bias.unwrap_or(&absent)];
    let (xs, ws, has_bias) = (x.detach(), w.detach(), bias.is_some());
    let recipe = Recipe { keep_outputs: spec.act != Act::None, ..Recipe::fused("conv2d_transposed") };
    let [y] = record(recipe, &inputs, [y], move |back| {
        let given = back.grad(0);
        let dz = match spec.act {
            Act::None => given,
            _ if spec.gated_by_consumer => given,
            act => act_backward(act, &given, back.output(0), None),
        };
        let dx = back.needs(0).then(|| {
            with_float!(dz.dtype(), T => {
                let mut out = NewTensor::<T>::new(out_shape(&g));
                let gate = spec.gates_input.then(|| xs.as_slice::<T>());
                let epilogue = Epilogue { gate, narrow: amp::while_packing(), ..Epilogue::default() };
                conv::forward(&g, dz.as_slice::<T>(), ws.as_slice::<T>(), out.as_mut(), &epilogue);
                out.finish()
            })
        });
        let dw = back.needs(1).then(|| weight_grad(&dz, &xs, Shape::new(ws.shape()), &g));
        vec![dx, dw, (has_bias && back.needs(2)).then(|| bias_grad(&dz))]
    });
    y
}

/// [`conv2d_transposed`] in primitives.
pub fn composite_transposed(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, spec: ConvSpec) -> Tensor {
    finish(input_grad(x, w, &transposed_geometry(x, w, spec)), bias, None, spec.act)
}

/// The convolution from output to input.
#[track_caller]
fn transposed_geometry(x: &Tensor, w: &Tensor, spec: ConvSpec) -> Geometry {
    let [b, h, wd, c] = x.dims();
    let [kh, kw, cout, cin] = w.dims();
    assert_eq!(c, cin, "conv2d_transposed: x {:?}, w {:?}", x.shape(), w.shape());
    assert_eq!(x.dtype(), w.dtype(), "conv2d_transposed: dtypes of x and w differ");
    let size = |n: usize, k: usize| ((n - 1) * spec.stride + k).checked_sub(2 * spec.padding);
    let (Some(oh), Some(ow)) = (size(h, kh), size(wd, kw)) else {
        panic!("conv2d_transposed: padding {} is more than the output of {:?}", spec.padding, x.shape());
    };
    Arc::new(Conv::dense(b, (oh, ow), (cout, cin), (kh, kw), spec.stride, spec.padding))
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes = [
        ([1, 1, 1, 1], [1, 1, 1, 1], ConvSpec::same(1)),
        ([2, 5, 4, 3], [3, 3, 3, 5], ConvSpec::same(3)),
        ([2, 5, 4, 3], [1, 1, 3, 17], ConvSpec::same(1)),
        ([2, 7, 7, 2], [4, 4, 2, 3], ConvSpec::strided(2, 1)),
        ([1, 4, 4, 9], [3, 3, 9, 2], ConvSpec::same(3)),
        ([1, 6, 5, 1], [5, 3, 1, 4], ConvSpec::strided(1, 2)),
    ];
    for (sx, sw, spec) in shapes {
        for act in [Act::None, Act::Relu, Act::Silu] {
            let spec = spec.act(act);
            let inputs = vec![normal(1, &sx), normal(2, &sw), normal(3, &[sw[3]])];
            cases.push(
                Case::new(format!("{sx:?} {sw:?} s{} {act:?}", spec.stride), inputs, move |x| {
                    vec![conv2d(&x[0], &x[1], Some(&x[2]), None, spec)]
                })
                .composite(move |x| vec![composite(&x[0], &x[1], Some(&x[2]), None, spec)]),
            );
        }
    }
    // Channels in eights, for the tiles of kernels/wide.cuh. Of so many relus one would be at its kink, were its
    // bias not an eighth beside sums of quarters.
    for (sx, sw, spec) in [
        ([2, 9, 10, 8], [3, 3, 8, 16], ConvSpec::same(3)),
        ([1, 12, 11, 24], [1, 1, 24, 136], ConvSpec::same(1)),
        ([2, 10, 9, 40], [4, 4, 40, 24], ConvSpec::strided(2, 1)),
    ] {
        for act in [Act::Silu, Act::Relu] {
            let inputs = match act {
                Act::Relu => vec![halves(1, &sx), halves(2, &sw), eighths(sw[3])],
                _ => vec![normal(1, &sx), normal(2, &sw), normal(3, &[sw[3]])],
            };
            let spec = spec.act(act);
            cases.push(
                Case::new(format!("wide {sx:?} {sw:?} s{} {act:?}", spec.stride), inputs, move |x| {
                    vec![conv2d(&x[0], &x[1], Some(&x[2]), None, spec)]
                })
                .composite(move |x| vec![composite(&x[0], &x[1], Some(&x[2]), None, spec)])
                .order(1),
            );
        }
    }
    let inputs =
        vec![normal(1, &[2, 3, 3, 4]), normal(2, &[3, 3, 4, 4]), normal(3, &[4]), normal(4, &[2, 3, 3, 4])];
    cases.push(
        Case::new("residual", inputs, |x| {
            vec![conv2d(&x[0], &x[1], Some(&x[2]), Some(&x[3]), ConvSpec::same(3).relu())]
        })
        .composite(|x| vec![composite(&x[0], &x[1], Some(&x[2]), Some(&x[3]), ConvSpec::same(3).relu())]),
    );
    for (sx, sw, spec) in [
        ([2, 3, 4, 5], [4, 4, 3, 5], ConvSpec::strided(2, 1)),
        ([1, 1, 1, 1], [4, 4, 1, 1], ConvSpec::strided(2, 1)),
        ([2, 7, 7, 9], [4, 4, 2, 9], ConvSpec::strided(2, 1)),
        ([2, 3, 3, 4], [3, 3, 17, 4], ConvSpec::same(3)),
    ] {
        for act in [Act::None, Act::Relu, Act::Silu] {
            let spec = spec.act(act);
            let inputs = vec![normal(1, &sx), normal(2, &sw), normal(3, &[sw[2]])];
            cases.push(
                Case::new(format!("transposed {sx:?} {sw:?} {act:?}"), inputs, move |x| {
                    vec![conv2d_transposed(&x[0], &x[1], Some(&x[2]), spec)]
                })
                .composite(move |x| vec![composite_transposed(&x[0], &x[1], Some(&x[2]), spec)]),
            );
        }
    }
    for (hw, cin, cout) in [(7, 64, 32), (14, 32, 1)] {
        let inputs = vec![normal(1, &[128, hw, hw, cin]), normal(2, &[4, 4, cout, cin]), normal(3, &[cout])];
        let pixels = 128 * hw * hw;
        cases.push(
            Case::new(format!("transposed {hw}x{hw} 4x4/2 {cin}->{cout}"), inputs, move |x| {
                vec![conv2d_transposed(&x[0], &x[1], Some(&x[2]), ConvSpec::strided(2, 1))]
            })
            .order(0)
            .bench(4 * pixels * (cin + 4 * cout), 2 * pixels * 16 * cin * cout)
            .backward(8 * pixels * (cin + 4 * cout), 4 * pixels * 16 * cin * cout),
        );
    }
    for (hw, cin, cout) in [(28, 1, 32), (14, 32, 64)] {
        let inputs = vec![normal(1, &[128, hw, hw, cin]), normal(2, &[4, 4, cin, cout]), normal(3, &[cout])];
        let pixels = 128 * hw * hw / 4;
        cases.push(
            Case::new(format!("{hw}x{hw} 4x4/2 {cin}->{cout}"), inputs, move |x| {
                vec![conv2d(&x[0], &x[1], Some(&x[2]), None, ConvSpec::strided(2, 1))]
            })
            .order(0)
            .bench(4 * pixels * (4 * cin + cout), 2 * pixels * 16 * cin * cout)
            .backward(8 * pixels * (4 * cin + cout), 4 * pixels * 16 * cin * cout),
        );
    }
    for (hw, k, cin, cout) in
        [(14, 3, 2, 128), (14, 1, 128, 128), (14, 3, 128, 4), (7, 3, 4, 128), (7, 3, 128, 8)]
    {
        let inputs = vec![normal(1, &[64, hw, hw, cin]), normal(2, &[k, k, cin, cout]), normal(3, &[cout])];
        let pixels = 64 * hw * hw;
        cases.push(
            Case::new(format!("{hw}x{hw} {k}x{k} {cin}->{cout}"), inputs, move |x| {
                vec![conv2d(&x[0], &x[1], Some(&x[2]), None, ConvSpec::same(k))]
            })
            .order(0)
            .bench(4 * pixels * (cin + cout), 2 * pixels * k * k * cin * cout)
            .backward(8 * pixels * (cin + cout), 4 * pixels * k * k * cin * cout),
        );
    }
    cases
}
