//! Elementwise functions of two tensors with broadcasting: y = f(a, b).
//!
//! Shapes are aligned at their last dimension; a dimension of 1 (or a missing one) is repeated, as in NumPy.
//! This is the only place that broadcasts: every other op sees contiguous tensors of equal shape.

use super::{Case, OpInfo, cast::cast, normal, reduce, unary};
use crate::autograd::{self, Recipe, record};
use crate::cpu::{par, simd};
use crate::cuda::{self, Gpu, Grid, Kernels, Struct};
use crate::tensor::{DType, Elem, Float, MAX_RANK, NewTensor, Shape, Tensor, with_arithmetic, with_float};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "binary",
    family: "primitive",
    summary: "elementwise add, sub, mul, div, maximum, minimum, comparisons and select, with broadcasting",
    cases,
};

const KERNELS: Kernels = Kernels::new("binary", ["binary_f32", "binary_bf16", "binary_f16"]);
const ACCUMULATE: Kernels = Kernels::new("binary", ["accumulate_f32", "accumulate_bf16", "accumulate_f16"]);

/// The functions in the order of `kernels/binary.cu`; the last four are gradients of activations.
#[allow(non_camel_case_types, missing_docs)]
#[derive(Clone, Copy)]
pub(crate) enum Function {
    add,
    sub,
    mul,
    div,
    maximum,
    minimum,
    gt,
    ge,
    eq,
    keep_where,
    relu_grad,
    sigmoid_grad,
    tanh_grad,
    silu_grad,
    gelu_grad,
}

/// As `Broadcast` in `kernels/binary.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
struct Broadcast {
    rank: u32,
    size: [u32; MAX_RANK],
    a: [u32; MAX_RANK],
    b: [u32; MAX_RANK],
}

/// f(a, b) on a device.
#[track_caller]
pub(crate) fn launch(gpu: Gpu, f: Function, a: &Tensor, b: &Tensor) -> Tensor {
    let shape = broadcast_shape("binary", a.shape(), b.shape());
    let y = gpu.empty(shape, a.dtype());
    let n = u32::try_from(shape.len()).expect("an elementwise function takes fewer than 2^32 elements");
    let dims = merged(shape.as_slice(), a.shape(), b.shape());
    let mut d = Broadcast { rank: dims.len() as u32, ..bytemuck::Zeroable::zeroed() };
    for (i, &(size, step_a, step_b)) in dims.iter().enumerate() {
        (d.size[i], d.a[i], d.b[i]) = (size as u32, step_a as u32, step_b as u32);
    }
    let packed = dims[dims.len() - 1].0.is_multiple_of(16 / a.dtype().size());
    let grid = if packed { Grid::packs(shape.len(), a.dtype()) } else { Grid::flat(shape.len()) };
    gpu.launch(KERNELS.of(a.dtype()), grid, &[&y, a, b, &n, &(f as i32), &Struct(d), &i32::from(packed)]);
    y.finish()
}

/// The common shape of `a` and `b`.
///
/// # Panics
/// When a dimension differs and neither is 1.
#[track_caller]
pub fn broadcast_shape(op: &str, a: &[usize], b: &[usize]) -> Shape {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| if i + s.len() >= rank { s[i + s.len() - rank] } else { 1 };
    let mut out = [1; MAX_RANK];
    for i in 0..rank {
        out[i] = match (at(a, i), at(b, i)) {
            (x, y) if x == y => x,
            (1, y) => y,
            (x, 1) => x,
            _ => panic!("{op}: shapes {a:?} and {b:?} do not broadcast"),
        };
    }
    Shape::new(&out[..rank])
}

/// Dimensions of the output merged where both inputs step alike: (size, step of a, step of b), steps in elements.
fn merged(out: &[usize], a: &[usize], b: &[usize]) -> Vec<(usize, usize, usize)> {
    let steps = |s: &[usize]| {
        let mut steps = vec![0; out.len()];
        let mut step = 1;
        for (i, &d) in s.iter().enumerate().rev() {
            let at = i + out.len() - s.len();
            steps[at] = if d == 1 { 0 } else { step };
            step *= d;
        }
        steps
    };
    let (sa, sb) = (steps(a), steps(b));
    let mut dims: Vec<(usize, usize, usize)> = Vec::new();
    for i in (0..out.len()).rev().filter(|&i| out[i] != 1) {
        match dims.last_mut() {
            Some((n, x, y)) if sa[i] == *x * *n && sb[i] == *y * *n => *n *= out[i],
            _ => dims.push((out[i], sa[i], sb[i])),
        }
    }
    dims.reverse();
    if dims.is_empty() { vec![(1, 0, 0)] } else { dims }
}

/// f over two broadcast tensors, unrecorded, in the arithmetic type.
#[track_caller]
pub(crate) fn zip<T: Float>(op: &str, a: &Tensor, b: &Tensor, f: impl Fn(T, T) -> T + Sync + Send) -> Tensor {
    let shape = broadcast_shape(op, a.shape(), b.shape());
    let (xs, ys) = (a.as_slice::<T>(), b.as_slice::<T>());
    let mut out = NewTensor::<T>::new(shape);
    let dims = merged(shape.as_slice(), a.shape(), b.shape());
    let &(inner, sa, sb) = dims.last().expect("at least one dimension");
    let outer = &dims[..dims.len() - 1];
    if shape.is_empty() {
        return out.finish();
    }
    let rows_per_chunk = (par::GRAIN / inner).max(1);
    let chunk = if outer.is_empty() { par::GRAIN } else { rows_per_chunk * inner };
    par::chunks_mut(out.as_mut(), chunk, |c, out| {
        let first = c * chunk;
        simd::vectorize_for::<T, _>(
            #[inline(always)]
            || {
                let mut at = first;
                for row in out.chunks_mut(if outer.is_empty() { out.len() } else { inner }) {
                    let (mut oa, mut ob, mut rest) = (0, 0, at / inner);
                    for &(n, x, y) in outer.iter().rev() {
                        oa += (rest % n) * x;
                        ob += (rest % n) * y;
                        rest /= n;
                    }
                    let lead = at % inner;
                    let (oa, ob) = (oa + lead * sa, ob + lead * sb);
                    match (sa, sb) {
                        (1, 1) => {
                            let (xs, ys) = (&xs[oa..oa + row.len()], &ys[ob..ob + row.len()]);
                            for ((o, x), y) in row.iter_mut().zip(xs).zip(ys) {
                                *o = f(*x, *y);
                            }
                        }
                        (1, 0) => {
                            let y = ys[ob];
                            for (o, x) in row.iter_mut().zip(&xs[oa..]) {
                                *o = f(*x, y);
                            }
                        }
                        (0, 1) => {
                            let x = xs[oa];
                            for (o, y) in row.iter_mut().zip(&ys[ob..]) {
                                *o = f(x, *y);
                            }
                        }
                        _ => row.fill(f(xs[oa], ys[ob])),
                    }
                    at += row.len();
                }
            },
        )
    });
    out.finish()
}

/// f of two unrecorded tensors, the half types through f32.
#[track_caller]
pub(crate) fn widened(a: &Tensor, b: &Tensor, f: impl FnOnce(&Tensor, &Tensor) -> Tensor) -> Tensor {
    match a.dtype() {
        DType::BF16 | DType::F16 => {
            cast(&f(&cast(&a.detach(), DType::F32), &cast(&b.detach(), DType::F32)), a.dtype())
        }
        _ => f(a, b),
    }
}

macro_rules! forward {
    ($op:ident, $a:expr, $b:expr, $f:expr) => {{
        #[inline(always)]
        fn f<F: Float>(x: F, y: F) -> F {
            let f: fn(F, F) -> F = $f;
            f(x, y)
        }
        let op = stringify!($op);
        assert_eq!($a.dtype(), $b.dtype(), "{op}: dtypes differ");
        match cuda::on(op, &[$a, $b]) {
            Some(gpu) => {
                broadcast_shape(op, $a.shape(), $b.shape());
                launch(gpu, Function::$op, $a, $b)
            }
            None => widened($a, $b, |a, b| with_arithmetic!(a.dtype(), T => zip::<T>(op, a, b, |x, y| f(x, y)))),
        }
    }};
}

/// a + b.
#[track_caller]
pub fn add(a: &Tensor, b: &Tensor) -> Tensor {
    let y = forward!(add, a, b, |x, y| x + y);
    let (sa, sb) = (Shape::new(a.shape()), Shape::new(b.shape()));
    let [y] = record(Recipe::primitive("add"), &[a, b], [y], move |back| {
        let g = back.grad(0);
        vec![back.needs(0).then(|| sum_to(&g, sa)), back.needs(1).then(|| sum_to(&g, sb))]
    });
    y
}

/// a − b.
#[track_caller]
pub fn sub(a: &Tensor, b: &Tensor) -> Tensor {
    let y = forward!(sub, a, b, |x, y| x - y);
    let (sa, sb) = (Shape::new(a.shape()), Shape::new(b.shape()));
    let [y] = record(Recipe::primitive("sub"), &[a, b], [y], move |back| {
        let g = back.grad(0);
        vec![back.needs(0).then(|| sum_to(&g, sa)), back.needs(1).then(|| unary::neg(&sum_to(&g, sb)))]
    });
    y
}

/// a · b.
#[track_caller]
pub fn mul(a: &Tensor, b: &Tensor) -> Tensor {
    let y = forward!(mul, a, b, |x, y| x * y);
    let (x, z) = (a.clone(), b.clone());
    let [y] = record(Recipe::primitive("mul"), &[a, b], [y], move |back| {
        let g = back.grad(0);
        let da = back.needs(0).then(|| sum_to(&mul(&g, &z), Shape::new(x.shape())));
        vec![da, back.needs(1).then(|| sum_to(&mul(&g, &x), Shape::new(z.shape())))]
    });
    y
}

/// a / b.
#[track_caller]
pub fn div(a: &Tensor, b: &Tensor) -> Tensor {
    let y = forward!(div, a, b, |x, y| x / y);
    let (x, z) = (a.clone(), b.clone());
    let [y] = record(Recipe::primitive("div"), &[a, b], [y], move |back| {
        let over = div(&back.grad(0), &z);
        let da = back.needs(0).then(|| sum_to(&over, Shape::new(x.shape())));
        let db = back.needs(1).then(|| unary::neg(&sum_to(&mul(&over, &div(&x, &z)), Shape::new(z.shape()))));
        vec![da, db]
    });
    y
}

fn extremum(
    op: &'static str,
    a: &Tensor,
    b: &Tensor,
    y: Tensor,
    takes_a: fn(&Tensor, &Tensor) -> Tensor,
) -> Tensor {
    let (x, z) = (a.clone(), b.clone());
    let [y] = record(Recipe::primitive(op), &[a, b], [y], move |back| {
        let (g, mask) = (back.grad(0), takes_a(&x, &z));
        let da = back.needs(0).then(|| sum_to(&mul(&g, &mask), Shape::new(x.shape())));
        let rest = unary::affine(&mask, -1.0, 1.0);
        vec![da, back.needs(1).then(|| sum_to(&mul(&g, &rest), Shape::new(z.shape())))]
    });
    y
}

/// The larger of a and b; where they are equal the gradient goes to a.
#[track_caller]
pub fn maximum(a: &Tensor, b: &Tensor) -> Tensor {
    extremum("maximum", a, b, forward!(maximum, a, b, |x, y| x.max(y)), ge)
}

/// The smaller of a and b; where they are equal the gradient goes to a.
#[track_caller]
pub fn minimum(a: &Tensor, b: &Tensor) -> Tensor {
    extremum("minimum", a, b, forward!(minimum, a, b, |x, y| x.min(y)), |a, b| ge(b, a))
}

/// 1 where a > b, else 0 (no gradient).
#[track_caller]
pub fn gt(a: &Tensor, b: &Tensor) -> Tensor {
    forward!(gt, a, b, |x, y| F::from_f64(if x > y { 1.0 } else { 0.0 }))
}

/// 1 where a ≥ b, else 0 (no gradient).
#[track_caller]
pub fn ge(a: &Tensor, b: &Tensor) -> Tensor {
    forward!(ge, a, b, |x, y| F::from_f64(if x >= y { 1.0 } else { 0.0 }))
}

/// 1 where a = b, else 0 (no gradient).
#[track_caller]
pub fn eq(a: &Tensor, b: &Tensor) -> Tensor {
    forward!(eq, a, b, |x, y| F::from_f64(if x == y { 1.0 } else { 0.0 }))
}

/// x where `mask` is not 0, else 0, whatever x is there (NaN and infinity included).
#[track_caller]
pub fn keep_where(mask: &Tensor, x: &Tensor) -> Tensor {
    let y = forward!(keep_where, mask, x, |m, x| if m == F::from_f64(0.0) { m } else { x });
    let (m, shape) = (mask.detach(), Shape::new(x.shape()));
    let [y] = record(Recipe::primitive("keep_where"), &[x], [y], move |back| {
        vec![Some(sum_to(&keep_where(&m, &back.grad(0)), shape))]
    });
    y
}

/// a where `mask` (0 or 1) is 1, else b; the branch not taken may be NaN or infinite.
#[track_caller]
pub fn select(mask: &Tensor, a: &Tensor, b: &Tensor) -> Tensor {
    let mask = mask.detach();
    add(&keep_where(&mask, a), &keep_where(&unary::affine(&mask, -1.0, 1.0), b))
}

/// The adjoint of broadcasting: sums `x` over the dimensions in which `shape` was repeated.
#[track_caller]
pub fn sum_to(x: &Tensor, shape: Shape) -> Tensor {
    if x.shape() == shape.as_slice() {
        return x.clone();
    }
    let lead = x.rank() - shape.as_slice().len();
    let repeated = |i: &usize| *i < lead || (shape.as_slice()[*i - lead] == 1 && x.shape()[*i] != 1);
    let axes: Vec<usize> = (0..x.rank()).filter(repeated).collect();
    super::shape::reshape(&reduce::sum(x, &axes), shape)
}

/// `sum + gradient`, in the memory of `sum` when nothing is recorded.
pub(crate) fn accumulate(mut sum: Tensor, gradient: Tensor) -> Tensor {
    if autograd::is_recording(&[&sum, &gradient]) {
        return add(&sum, &gradient);
    }
    if let Some(gpu) = cuda::on("accumulate", &[&sum, &gradient]) {
        let (kernel, grid) = (ACCUMULATE.of(sum.dtype()), Grid::packs(sum.len(), sum.dtype()));
        let n = sum.len() as i64;
        gpu.launch(kernel, grid, &[&sum.change(), &gradient, &n]);
        return sum;
    }
    with_float!(sum.dtype(), T => {
        let g = gradient.as_slice::<T>();
        par::chunks_mut(sum.make_mut::<T>(), par::GRAIN, |i, chunk| {
            let g = &g[i * par::GRAIN..][..chunk.len()];
            simd::vectorize(#[inline(always)] || {
                for (s, g) in chunk.iter_mut().zip(g) {
                    *s = T::store(s.load() + g.load());
                }
            })
        });
    });
    sum
}

fn cases() -> Vec<Case> {
    type F = fn(&Tensor, &Tensor) -> Tensor;
    let shapes: [(&[usize], &[usize]); 8] = [
        (&[1], &[1]),
        (&[3, 7], &[3, 7]),
        (&[2, 3, 5], &[5]),
        (&[2, 3, 5], &[2, 1, 1]),
        (&[4, 1, 3], &[1, 5, 1]),
        (&[], &[2, 3]),
        (&[2, 1, 3, 1, 2], &[3, 4, 1]),
        (&[7, 33], &[7, 1]),
    ];
    let mut cases = Vec::new();
    let all: [(&str, F); 6] =
        [("add", add), ("sub", sub), ("mul", mul), ("div", div), ("maximum", maximum), ("minimum", minimum)];
    for (name, f) in all {
        for (a, b) in shapes {
            let inputs = vec![normal(1, a), unary::affine(&unary::abs(&normal(2, b)), 1.0, 0.5)];
            cases.push(Case::new(format!("{name} {a:?} {b:?}"), inputs, move |x| vec![f(&x[0], &x[1])]));
        }
        let inputs = vec![normal(3, &[64, 49, 128]), normal(4, &[128])];
        cases.push(
            Case::new(format!("{name} large"), inputs, move |x| vec![f(&x[0], &x[1])])
                .order(0)
                .bench(8 * 401_408, 401_408)
                .backward(12 * 401_408, 2 * 401_408),
        );
    }
    cases.push(Case::new("select", vec![normal(5, &[3, 7]), normal(6, &[3, 7]), normal(7, &[3, 7])], |x| {
        vec![select(&unary::step(&x[0].detach()), &x[1], &x[2])]
    }));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_follows_the_rule() {
        let a = Tensor::from_slice(&[1.0, 2.0, 3.0], [3, 1]);
        let b = Tensor::from_slice(&[10.0, 20.0], [2]);
        let y = sub(&a, &b);
        assert_eq!(y.shape(), [3, 2]);
        assert_eq!(y.as_slice::<f64>(), &[-9.0, -19.0, -8.0, -18.0, -7.0, -17.0]);
    }

    #[test]
    #[should_panic(expected = "add: shapes [3] and [2] do not broadcast")]
    fn shapes_that_do_not_fit_are_named() {
        add(&normal(0, &[3]), &normal(0, &[2]));
    }

    #[test]
    fn select_ignores_the_branch_not_taken() {
        let mask = Tensor::from_slice(&[1.0f32, 0.0], [2]);
        let a = Tensor::from_slice(&[1.0f32, f32::NAN], [2]).requires_grad();
        let b = Tensor::from_slice(&[f32::INFINITY, 2.0], [2]);
        let y = select(&mask, &a, &b);
        assert_eq!(y.as_slice::<f32>(), &[1.0, 2.0]);
        let g = autograd::backward(y.sum_all(), &[&a]);
        assert_eq!(g[0].as_slice::<f32>(), &[1.0, 0.0]);
    }
}
