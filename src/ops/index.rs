//! Gathers and scatters by integer indices.

use super::{Case, OpInfo, normal};
use crate::autograd::{Recipe, record};
use crate::tensor::{Elem, NewTensor, Plain, Tensor, with_float};
use std::sync::Arc;

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "index",
    family: "primitive",
    summary: "rows of a table by index (embedding), one element per row, and their adjoints; order of channels; cumulative sum",
    cases,
};

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
    let at = checked("gather_rows", indices, n);
    let row: usize = table.shape()[1..].iter().product();
    let shape = [indices.shape(), &table.shape()[1..]].concat();
    let y = with_float!(table.dtype(), T => {
        let source = table.as_slice::<T>();
        let mut out = NewTensor::<T>::new(shape);
        for (y, &k) in out.as_mut().chunks_mut(row.max(1)).zip(&at) {
            y.copy_from_slice(&source[k * row..][..row]);
        }
        out.finish()
    });
    let indices = indices.clone();
    let recipe = Recipe::primitive("gather_rows");
    let [y] = record(recipe, &[table], [y], move |b| vec![Some(scatter_rows(&b.grad(0), &indices, n))]);
    y
}

/// The adjoint of [`gather_rows`]: a table of `n` rows in which row k is the sum of the `x` rows with index k.
#[track_caller]
pub fn scatter_rows(x: &Tensor, indices: &Tensor, n: usize) -> Tensor {
    let at = checked("scatter_rows", indices, n);
    let rest = &x.shape()[indices.rank()..];
    let row: usize = rest.iter().product();
    let shape = [&[n], rest].concat();
    let y = with_float!(x.dtype(), T => {
        let mut sums = vec![<T as Elem>::Acc::from_f64(0.0); n * row];
        for (x, &k) in x.as_slice::<T>().chunks(row.max(1)).zip(&at) {
            sums[k * row..][..row].iter_mut().zip(x).for_each(|(s, x)| *s += x.load());
        }
        let mut out = NewTensor::<T>::new(shape);
        out.as_mut().iter_mut().zip(sums).for_each(|(y, s)| *y = T::store(s));
        out.finish()
    });
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
    let at = checked("pick", indices, k);
    let y = with_float!(x.dtype(), T => {
        let xs = x.as_slice::<T>();
        let mut out = NewTensor::<T>::new(indices.shape());
        out.as_mut().iter_mut().zip(&at).enumerate().for_each(|(i, (y, &j))| *y = xs[i * k + j]);
        out.finish()
    });
    let indices = indices.clone();
    let [y] =
        record(Recipe::primitive("pick"), &[x], [y], move |b| vec![Some(place(&b.grad(0), &indices, k))]);
    y
}

/// The adjoint of [`pick`]: zeros (..., `k`) with x at `indices` of the last axis.
#[track_caller]
pub fn place(x: &Tensor, indices: &Tensor, k: usize) -> Tensor {
    let at = checked("place", indices, k);
    let shape = [x.shape(), &[k]].concat();
    let y = with_float!(x.dtype(), T => {
        let mut out = NewTensor::<T>::zeroed(shape);
        let ys = out.as_mut();
        x.as_slice::<T>().iter().zip(&at).enumerate().for_each(|(i, (x, &j))| ys[i * k + j] = *x);
        out.finish()
    });
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
    let y = with_float!(x.dtype(), T => {
        let mut out = NewTensor::<T>::new(x.shape());
        for (y, x) in out.as_mut().chunks_mut(k.max(1)).zip(x.as_slice::<T>().chunks(k.max(1))) {
            y.iter_mut().zip(order.iter()).for_each(|(y, &from)| *y = x[from]);
        }
        out.finish()
    });
    let back: Arc<[usize]> = back.into();
    let [y] =
        record(Recipe::primitive("reorder"), &[x], [y], move |b| vec![Some(reorder(&b.grad(0), &back))]);
    y
}

/// Running sums along the last axis: y_k = Σ_{j ≤ k} x_j (from the end when `reverse`: Σ_{j ≥ k}).
#[track_caller]
pub fn cumsum(x: &Tensor, reverse: bool) -> Tensor {
    let k = *x.shape().last().expect("cumsum: x has an axis");
    let y = with_float!(x.dtype(), T => {
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
    });
    let [y] =
        record(Recipe::primitive("cumsum"), &[x], [y], move |b| vec![Some(cumsum(&b.grad(0), !reverse))]);
    y
}

fn cases() -> Vec<Case> {
    let rows = Tensor::from_slice(&[3i32, 0, 3, 1], [2, 2]);
    let picks = Tensor::from_slice(&[4i32, 0, 2], [3]);
    let (r, p) = (rows.clone(), picks.clone());
    vec![
        Case::new("gather_rows", vec![normal(1, &[5, 3])], move |x| vec![gather_rows(&x[0], &rows)]),
        Case::new("scatter_rows", vec![normal(2, &[2, 2, 3])], move |x| vec![scatter_rows(&x[0], &r, 5)]),
        Case::new("pick", vec![normal(3, &[3, 5])], move |x| vec![pick(&x[0], &picks)]),
        Case::new("place", vec![normal(4, &[3])], move |x| vec![place(&x[0], &p, 5)]),
        Case::new("reorder", vec![normal(7, &[3, 4])], |x| vec![reorder(&x[0], &[2, 0, 3, 1].into())]),
        Case::new("cumsum", vec![normal(5, &[3, 5])], |x| vec![cumsum(&x[0], false)]),
        Case::new("cumsum reverse", vec![normal(6, &[3, 5])], |x| vec![cumsum(&x[0], true)]),
    ]
}
