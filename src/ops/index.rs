//! Gathers and scatters by integer indices.

use super::{Case, OpInfo, cast::cast, normal};
use crate::autograd::{Recipe, record};
use crate::cuda::{self, Gpu, Grid, Kernels, Optional};
use crate::tensor::{DType, Elem, NewTensor, Plain, Tensor, with_float};
use std::sync::Arc;

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "index",
    family: "primitive",
    summary: "rows of a table by index (embedding), one element per row, and their adjoints; order of channels; cumulative sum",
    cases,
};

const GATHER: Kernels = Kernels::new("index", ["gather_rows_f32", "gather_rows_bf16", "gather_rows_f16"]);
const SCATTER: Kernels = Kernels::new("index", ["scatter_rows_f32", "scatter_rows_bf16", "scatter_rows_f16"]);
const PICK: Kernels = Kernels::new("index", ["pick_f32", "pick_bf16", "pick_f16"]);
const PLACE: Kernels = Kernels::new("index", ["place_f32", "place_bf16", "place_f16"]);
const REORDER: Kernels = Kernels::new("index", ["reorder_f32", "reorder_bf16", "reorder_f16"]);
const CUMSUM: Kernels = Kernels::new("index", ["cumsum_f32", "cumsum_bf16", "cumsum_f16"]);

/// Zeros (indices, `k`) with `x`, or 1, at `indices`, on a device.
#[track_caller]
pub(crate) fn placed(gpu: Gpu, x: Option<&Tensor>, indices: &Tensor, k: usize, dtype: DType) -> Tensor {
    let (at, rows) = (cast(indices, DType::I32), indices.len());
    let y = gpu.empty([rows, k], dtype);
    let args: &[&dyn cuda::Arg] = &[&y, &Optional(x, dtype), &at, &(rows as i64), &(k as i32)];
    gpu.launch(PLACE.of(dtype), Grid::flat(rows * k), args);
    y.finish()
}

/// A kernel that moves `count` rows of `row` elements between `x` and a table of `n` rows, on a device.
fn rows(
    gpu: Gpu,
    kernels: &Kernels,
    x: &Tensor,
    indices: &Tensor,
    shape: &[usize],
    n: usize,
    row: usize,
) -> Tensor {
    let (at, count) = (cast(indices, DType::I32), indices.len());
    let y = gpu.empty(shape, x.dtype());
    let work = shape.iter().product();
    let args: &[&dyn cuda::Arg] = &[&y, x, &at, &(count as i64), &(row as i64), &(n as i32)];
    gpu.launch(kernels.of(x.dtype()), Grid::flat(work), args);
    y.finish()
}

fn checked(op: &str, indices: &Tensor, n: usize) -> Vec<usize> {
    let check = |k: f64| {
        assert!(k >= 0.0 && k < n as f64, "{op}: index {k} outside 0..{n}");
        k as usize
    };
    indices.to_f64_vec().into_iter().map(check).collect()
}

/// Rows of `table` (N, ...) at `indices` (any shape, i32 or u8): `indices.shape + (...)`.
///
/// # Panics
/// When an index is outside 0..N.
#[track_caller]
pub fn gather_rows(table: &Tensor, indices: &Tensor) -> Tensor {
    let n = table.shape()[0];
    let row: usize = table.shape()[1..].iter().product();
    let shape = [indices.shape(), &table.shape()[1..]].concat();
    let y = if let Some(gpu) = cuda::on("gather_rows", &[table, indices]) {
        rows(gpu, &GATHER, table, indices, &shape, n, row)
    } else {
        let at = checked("gather_rows", indices, n);
        with_float!(table.dtype(), T => {
            let source = table.as_slice::<T>();
            let mut out = NewTensor::<T>::new(shape);
            for (y, &k) in out.as_mut().chunks_mut(row.max(1)).zip(&at) {
                y.copy_from_slice(&source[k * row..][..row]);
            }
            out.finish()
        })
    };
    let indices = indices.clone();
    let recipe = Recipe::primitive("gather_rows");
    let [y] = record(recipe, &[table], [y], move |b| vec![Some(scatter_rows(&b.grad(0), &indices, n))]);
    y
}

/// The adjoint of [`gather_rows`]: a table of `n` rows in which row k is the sum of the `x` rows with index k.
#[track_caller]
pub fn scatter_rows(x: &Tensor, indices: &Tensor, n: usize) -> Tensor {
    let rest = &x.shape()[indices.rank()..];
    let row: usize = rest.iter().product();
    let shape = [&[n], rest].concat();
    let y = if let Some(gpu) = cuda::on("scatter_rows", &[x, indices]) {
        rows(gpu, &SCATTER, x, indices, &shape, n, row)
    } else {
        let at = checked("scatter_rows", indices, n);
        with_float!(x.dtype(), T => {
            let mut sums = vec![<T as Elem>::Acc::from_f64(0.0); n * row];
            for (x, &k) in x.as_slice::<T>().chunks(row.max(1)).zip(&at) {
                sums[k * row..][..row].iter_mut().zip(x).for_each(|(s, x)| *s += x.load());
            }
            let mut out = NewTensor::<T>::new(shape);
            out.as_mut().iter_mut().zip(sums).for_each(|(y, s)| *y = T::store(s));
            out.finish()
        })
    };
    let indices = indices.clone();
    let recipe = Recipe::primitive("scatter_rows");
    let [y] = record(recipe, &[x], [y], move |b| vec![Some(gather_rows(&b.grad(0), &indices))]);
    y
}

/// Element `indices[...]` of the last axis of `x` (..., K): shape (...).
///
/// # Panics
/// When the leading shapes differ or an index is outside 0..K.
#[track_caller]
pub fn pick(x: &Tensor, indices: &Tensor) -> Tensor {
    let k = *x.shape().last().expect("pick: x has an axis");
    assert_eq!(
        &x.shape()[..x.rank() - 1],
        indices.shape(),
        "pick: x {:?}, indices {:?}",
        x.shape(),
        indices.shape()
    );
    let y = if let Some(gpu) = cuda::on("pick", &[x, indices]) {
        let (at, y) = (cast(indices, DType::I32), gpu.empty(indices.shape(), x.dtype()));
        let n = indices.len();
        gpu.launch(PICK.of(x.dtype()), Grid::flat(n), &[&y, x, &at, &(n as i64), &(k as i32)]);
        y.finish()
    } else {
        let at = checked("pick", indices, k);
        with_float!(x.dtype(), T => {
            let xs = x.as_slice::<T>();
            let mut out = NewTensor::<T>::new(indices.shape());
            out.as_mut().iter_mut().zip(&at).enumerate().for_each(|(i, (y, &j))| *y = xs[i * k + j]);
            out.finish()
        })
    };
    let indices = indices.clone();
    let [y] =
        record(Recipe::primitive("pick"), &[x], [y], move |b| vec![Some(place(&b.grad(0), &indices, k))]);
    y
}

/// The adjoint of [`pick`]: zeros (..., `k`) with x at `indices` of the last axis.
#[track_caller]
pub fn place(x: &Tensor, indices: &Tensor, k: usize) -> Tensor {
    let shape = [x.shape(), &[k]].concat();
    let y = if let Some(gpu) = cuda::on("place", &[x, indices]) {
        placed(gpu, Some(x), indices, k, x.dtype()).with_shape(shape.into())
    } else {
        let at = checked("place", indices, k);
        with_float!(x.dtype(), T => {
            let mut out = NewTensor::<T>::zeroed(shape);
            let ys = out.as_mut();
            x.as_slice::<T>().iter().zip(&at).enumerate().for_each(|(i, (x, &j))| ys[i * k + j] = *x);
            out.finish()
        })
    };
    let indices = indices.clone();
    let [y] = record(Recipe::primitive("place"), &[x], [y], move |b| vec![Some(pick(&b.grad(0), &indices))]);
    y
}

/// The last axis in another order: y_c = x at `order[c]`.
///
/// # Panics
/// When `order` is not a permutation of the axis.
#[track_caller]
pub fn reorder(x: &Tensor, order: &Arc<[usize]>) -> Tensor {
    let k = order.len();
    assert_eq!(x.shape().last(), Some(&k), "reorder: x {:?} by {order:?}", x.shape());
    let mut back = vec![k; k];
    for (to, &from) in order.iter().enumerate() {
        assert!(back.get(from) == Some(&k), "reorder: {order:?} is no permutation");
        back[from] = to;
    }
    let y = if let Some(gpu) = x.gpu() {
        let from = Tensor::from_fn([k], |i| order[i] as i32).beside(x);
        let (y, n) = (gpu.empty(x.shape(), x.dtype()), x.len());
        gpu.launch(REORDER.of(x.dtype()), Grid::flat(n), &[&y, x, &from, &(n as i64), &(k as i32)]);
        y.finish()
    } else {
        with_float!(x.dtype(), T => {
            let mut out = NewTensor::<T>::new(x.shape());
            for (y, x) in out.as_mut().chunks_mut(k.max(1)).zip(x.as_slice::<T>().chunks(k.max(1))) {
                y.iter_mut().zip(order.iter()).for_each(|(y, &from)| *y = x[from]);
            }
            out.finish()
        })
    };
    let back: Arc<[usize]> = back.into();
    let [y] =
        record(Recipe::primitive("reorder"), &[x], [y], move |b| vec![Some(reorder(&b.grad(0), &back))]);
    y
}

/// Running sums along the last axis: y_k = Σ_{j ≤ k} x_j (from the end when `reverse`: Σ_{j ≥ k}).
#[track_caller]
pub fn cumsum(x: &Tensor, reverse: bool) -> Tensor {
    let k = *x.shape().last().expect("cumsum: x has an axis");
    let y = if let Some(gpu) = x.gpu() {
        let (y, rows) = (gpu.empty(x.shape(), x.dtype()), x.len() / k.max(1));
        let args: &[&dyn cuda::Arg] = &[&y, x, &(rows as i64), &(k as i64), &i32::from(reverse)];
        gpu.launch(CUMSUM.of(x.dtype()), Grid::flat(rows), args);
        y.finish()
    } else {
        with_float!(x.dtype(), T => {
            let mut out = NewTensor::<T>::new(x.shape());
            for (y, x) in out.as_mut().chunks_mut(k.max(1)).zip(x.as_slice::<T>().chunks(k.max(1))) {
                let mut sum = <T as Elem>::Acc::from_f64(0.0);
                for i in 0..k {
                    let i = if reverse { k - 1 - i } else { i };
                    sum += x[i].load();
                    y[i] = T::store(sum);
                }
            }
            out.finish()
        })
    };
    let [y] =
        record(Recipe::primitive("cumsum"), &[x], [y], move |b| vec![Some(cumsum(&b.grad(0), !reverse))]);
    y
}

fn cases() -> Vec<Case> {
    let rows = || Tensor::from_slice(&[3i32, 0, 3, 1], [2, 2]);
    let picks = || Tensor::from_slice(&[4i32, 0, 2], [3]);
    // 8192 words out of 1000, and 32 images of 256 levels.
    let (words, rows_of, width) = (8192, 32 * 784, 256);
    let some = || Tensor::from_fn([words], |i| (i * 37 % 1000) as i32);
    let levels = || Tensor::from_fn([rows_of], |i| (i * 31 % width) as i32);
    let turned: Arc<[usize]> = (0..width).map(|i| i * 37 % width).collect();
    vec![
        Case::new("gather_rows large", vec![normal(8, &[1000, width]), some()], |x| {
            vec![gather_rows(&x[0], &x[1])]
        })
        .order(0)
        .bench(8 * words * width, 0),
        Case::new("scatter_rows large", vec![normal(8, &[words, width]), some()], |x| {
            vec![scatter_rows(&x[0], &x[1], 1000)]
        })
        .order(0)
        .bench(4 * (words + 1000) * width, words * width),
        Case::new("pick large", vec![normal(8, &[rows_of, width]), levels()], |x| vec![pick(&x[0], &x[1])])
            .order(0)
            .bench(12 * rows_of, 0),
        Case::new("place large", vec![normal(8, &[rows_of]), levels()], move |x| {
            vec![place(&x[0], &x[1], width)]
        })
        .order(0)
        .bench(4 * rows_of * width, 0),
        Case::new("reorder large", vec![normal(8, &[rows_of, width])], move |x| {
            vec![reorder(&x[0], &turned)]
        })
        .order(0)
        .bench(8 * rows_of * width, 0),
        Case::new("cumsum large", vec![normal(8, &[rows_of, width])], |x| vec![cumsum(&x[0], false)])
            .order(0)
            .bench(8 * rows_of * width, rows_of * width),
        Case::new("gather_rows", vec![normal(1, &[5, 3]), rows()], |x| vec![gather_rows(&x[0], &x[1])]),
        Case::new("scatter_rows", vec![normal(2, &[2, 2, 3]), rows()], |x| {
            vec![scatter_rows(&x[0], &x[1], 5)]
        }),
        Case::new("pick", vec![normal(3, &[3, 5]), picks()], |x| vec![pick(&x[0], &x[1])]),
        Case::new("place", vec![normal(4, &[3]), picks()], |x| vec![place(&x[0], &x[1], 5)]),
        Case::new("reorder", vec![normal(7, &[3, 4])], |x| vec![reorder(&x[0], &[2, 0, 3, 1].into())]),
        Case::new("cumsum", vec![normal(5, &[3, 5])], |x| vec![cumsum(&x[0], false)]),
        Case::new("cumsum reverse", vec![normal(6, &[3, 5])], |x| vec![cumsum(&x[0], true)]),
    ]
}
