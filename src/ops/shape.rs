//! Moves: reshape, permute, broadcast, slice, pad, concatenate, flip. Each gradient is another move.

use super::{Case, OpInfo, binary, normal};
use crate::autograd::{Recipe, record};
use crate::cpu::par;
use crate::tensor::{DType, NewTensor, Plain, Shape, Tensor, with_plain};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "shape",
    family: "primitive",
    summary: "reshape, permute, broadcast_to, narrow, pad, concat, flip",
    cases,
};

/// The same elements under another shape; shares memory.
///
/// # Panics
/// When the number of elements differs.
#[track_caller]
pub fn reshape(x: &Tensor, shape: impl Into<Shape>) -> Tensor {
    let from = Shape::new(x.shape());
    let y = x.with_shape(shape.into());
    let [y] = record(Recipe::primitive("reshape"), &[x], [y], move |b| vec![Some(reshape(&b.grad(0), from))]);
    y
}

/// Axes reordered: output axis i is input axis `order[i]`.
///
/// # Panics
/// When `order` is not a permutation of the axes.
#[track_caller]
pub fn permute(x: &Tensor, order: &[usize]) -> Tensor {
    let mut inverse = vec![usize::MAX; order.len()];
    for (i, &o) in order.iter().enumerate() {
        assert!(o < order.len() && inverse[o] == usize::MAX, "permute: {order:?} is not a permutation");
        inverse[o] = i;
    }
    assert_eq!(order.len(), x.rank(), "permute: {order:?} for shape {:?}", x.shape());
    let shape: Vec<usize> = order.iter().map(|&o| x.shape()[o]).collect();
    let steps = row_major_steps(x.shape());
    let steps: Vec<usize> = order.iter().map(|&o| steps[o]).collect();
    let y = with_plain!(x.dtype(), T => gather_strided::<T>(x.as_slice(), 0, &shape, &steps));
    let [y] =
        record(Recipe::primitive("permute"), &[x], [y], move |b| vec![Some(permute(&b.grad(0), &inverse))]);
    y
}

fn row_major_steps(shape: &[usize]) -> Vec<usize> {
    let mut steps = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        steps[i - 1] = steps[i] * shape[i];
    }
    steps
}

/// Copies the strided view `steps` of `xs`, starting at `offset`, into a contiguous tensor of `shape`.
fn gather_strided<T: Plain>(xs: &[T], offset: usize, shape: &[usize], steps: &[usize]) -> Tensor {
    let mut out = NewTensor::<T>::new(shape);
    if out.as_mut().is_empty() {
        return out.finish();
    }
    // Merge axes that step as one, so that the innermost copies are as long as they can be.
    let mut dims: Vec<(usize, usize)> = Vec::new();
    for (&n, &s) in shape.iter().zip(steps).filter(|(n, _)| **n != 1) {
        match dims.last_mut() {
            Some((m, t)) if *t == s * n => (*m, *t) = (*m * n, s),
            _ => dims.push((n, s)),
        }
    }
    let (inner, step) = dims.pop().unwrap_or((1, 1));
    let rows = (par::GRAIN / inner).max(1);
    par::chunks_mut(out.as_mut(), rows * inner, |c, out| {
        for (r, row) in out.chunks_mut(inner).enumerate() {
            let (mut at, mut rest) = (offset, c * rows + r);
            for &(n, s) in dims.iter().rev() {
                at += (rest % n) * s;
                rest /= n;
            }
            if step == 1 {
                row.copy_from_slice(&xs[at..at + inner]);
            } else {
                row.iter_mut().enumerate().for_each(|(i, y)| *y = xs[at + i * step]);
            }
        }
    });
    out.finish()
}

/// `x` repeated along its dimensions of size 1 (and missing leading ones) to `shape`.
#[track_caller]
pub fn broadcast_to(x: &Tensor, shape: impl Into<Shape>) -> Tensor {
    let shape = shape.into();
    let (to, from) = (shape.as_slice(), Shape::new(x.shape()));
    if x.shape() == to {
        return x.clone();
    }
    let target = binary::broadcast_shape("broadcast_to", x.shape(), to);
    assert_eq!(target, shape, "broadcast_to: {:?} does not broadcast to {shape:?}", x.shape());
    let own = row_major_steps(x.shape());
    let lead = to.len() - x.rank();
    let step = |i: usize| if i < lead || x.shape()[i - lead] == 1 { 0 } else { own[i - lead] };
    let steps: Vec<usize> = (0..to.len()).map(step).collect();
    let y = with_plain!(x.dtype(), T => gather_strided::<T>(x.as_slice(), 0, to, &steps));
    let recipe = Recipe::primitive("broadcast_to");
    let [y] = record(recipe, &[x], [y], move |b| vec![Some(binary::sum_to(&b.grad(0), from))]);
    y
}

/// Elements `start..start + len` along `axis`.
///
/// # Panics
/// When the range is not inside the axis.
#[track_caller]
pub fn narrow(x: &Tensor, axis: usize, start: usize, len: usize) -> Tensor {
    let total = x.shape()[axis];
    assert!(start + len <= total, "narrow: {start}+{len} of axis {axis} in shape {:?}", x.shape());
    let mut shape = x.shape().to_vec();
    shape[axis] = len;
    let steps = row_major_steps(x.shape());
    let y =
        with_plain!(x.dtype(), T => gather_strided::<T>(x.as_slice(), start * steps[axis], &shape, &steps));
    let recipe = Recipe::primitive("narrow");
    let [y] =
        record(recipe, &[x], [y], move |b| vec![Some(pad(&b.grad(0), axis, start, total - start - len))]);
    y
}

/// Zeros before and after `x` along `axis`.
#[track_caller]
pub fn pad(x: &Tensor, axis: usize, before: usize, after: usize) -> Tensor {
    let len = x.shape()[axis];
    let zeros = |n: usize| {
        let mut shape = x.shape().to_vec();
        shape[axis] = n;
        Tensor::zeros(shape, x.dtype())
    };
    let parts = [zeros(before), x.detach(), zeros(after)];
    let y = join(&parts.iter().collect::<Vec<_>>(), axis);
    let [y] = record(Recipe::primitive("pad"), &[x], [y], move |b| {
        vec![Some(narrow(&b.grad(0), axis, before, len))]
    });
    y
}

fn join(parts: &[&Tensor], axis: usize) -> Tensor {
    let mut shape = parts[0].shape().to_vec();
    shape[axis] = parts.iter().map(|p| p.shape()[axis]).sum();
    let inner: usize = shape[axis + 1..].iter().product();
    let row = shape[axis] * inner;
    with_plain!(parts[0].dtype(), T => {
        let sources: Vec<(&[T], usize)> = parts.iter().map(|p| (p.as_slice::<T>(), p.shape()[axis] * inner)).collect();
        let mut out = NewTensor::<T>::new(shape);
        let rows = (par::GRAIN / row.max(1)).max(1);
        par::chunks_mut(out.as_mut(), (rows * row).max(1), |c, out| {
            for (r, out) in out.chunks_mut(row).enumerate() {
                let mut at = 0;
                for (source, n) in &sources {
                    out[at..at + n].copy_from_slice(&source[(c * rows + r) * n..][..*n]);
                    at += n;
                }
            }
        });
        out.finish()
    })
}

/// The tensors one after the other along `axis`.
///
/// # Panics
/// When dtypes or the other dimensions differ, or when there are none.
#[track_caller]
pub fn concat(parts: &[&Tensor], axis: usize) -> Tensor {
    assert!(!parts.is_empty(), "concat: no tensors");
    for p in parts {
        let alike = p.rank() == parts[0].rank()
            && (0..p.rank()).all(|i| i == axis || p.shape()[i] == parts[0].shape()[i])
            && p.dtype() == parts[0].dtype();
        assert!(
            alike,
            "concat: {:?} {:?} beside {:?} {:?}",
            p.dtype(),
            p.shape(),
            parts[0].dtype(),
            parts[0].shape()
        );
    }
    let y = join(parts, axis);
    let sizes: Vec<usize> = parts.iter().map(|p| p.shape()[axis]).collect();
    let [y] = record(Recipe::primitive("concat"), parts, [y], move |b| {
        let mut start = 0;
        let slice = |(i, &n): (usize, &usize)| {
            start += n;
            b.needs(i).then(|| narrow(&b.grad(0), axis, start - n, n))
        };
        sizes.iter().enumerate().map(slice).collect()
    });
    y
}

/// The order along `axis` reversed.
#[track_caller]
pub fn flip(x: &Tensor, axis: usize) -> Tensor {
    let n = x.shape()[axis];
    let inner: usize = x.shape()[axis + 1..].iter().product();
    let y = with_plain!(x.dtype(), T => {
        let xs = x.as_slice::<T>();
        let mut out = NewTensor::<T>::new(x.shape());
        for (i, row) in out.as_mut().chunks_mut(inner.max(1)).enumerate() {
            let (outer, k) = (i / n, i % n);
            row.copy_from_slice(&xs[(outer * n + n - 1 - k) * inner..][..inner]);
        }
        out.finish()
    });
    let [y] = record(Recipe::primitive("flip"), &[x], [y], move |b| vec![Some(flip(&b.grad(0), axis))]);
    y
}

/// 0, 1, ... n − 1 as i32.
pub fn arange(n: usize) -> Tensor {
    Tensor::from_fn([n], |i| i as i32)
}

/// 1 at the index given by each element of `indices` (u8 or i32), 0 elsewhere: (..., `classes`) of `dtype`.
///
/// # Panics
/// When an index is not below `classes`.
#[track_caller]
pub fn one_hot(indices: &Tensor, classes: usize, dtype: DType) -> Tensor {
    let mut shape = indices.shape().to_vec();
    shape.push(classes);
    let at = indices.to_f64_vec();
    with_plain!(dtype, T => {
        let mut out = NewTensor::<T>::zeroed(shape);
        for (row, &k) in out.as_mut().chunks_mut(classes).zip(&at) {
            assert!(k >= 0.0 && (k as usize) < classes, "one_hot: index {k} of {classes} classes");
            row[k as usize] = T::from_f64(1.0);
        }
        out.finish()
    })
}

fn cases() -> Vec<Case> {
    let x = || vec![normal(1, &[2, 3, 4, 5])];
    let mut cases = vec![
        Case::new("reshape", x(), |x| vec![reshape(&x[0], [6, 20])]),
        Case::new("permute last two", x(), |x| vec![permute(&x[0], &[0, 1, 3, 2])]),
        Case::new("permute middle", x(), |x| vec![permute(&x[0], &[0, 2, 1, 3])]),
        Case::new("permute all", x(), |x| vec![permute(&x[0], &[3, 0, 2, 1])]),
        Case::new("broadcast_to", vec![normal(2, &[3, 1, 5])], |x| vec![broadcast_to(&x[0], [2, 3, 4, 5])]),
        Case::new("narrow", x(), |x| vec![narrow(&x[0], 2, 1, 2)]),
        Case::new("narrow last", x(), |x| vec![narrow(&x[0], 3, 4, 1)]),
        Case::new("pad", x(), |x| vec![pad(&x[0], 1, 2, 1)]),
        Case::new("flip", x(), |x| vec![flip(&x[0], 1)]),
        Case::new("flip last", x(), |x| vec![flip(&x[0], 3)]),
    ];
    for axis in [0, 1, 2] {
        let mut other = [3, 4, 5];
        other[axis] = 2;
        cases.push(Case::new(
            format!("concat axis {axis}"),
            vec![normal(3, &[3, 4, 5]), normal(4, &other)],
            move |x| vec![concat(&[&x[0], &x[1]], axis)],
        ));
    }
    let large = vec![normal(5, &[64, 14, 2, 14, 2, 32])];
    cases.push(
        Case::new("permute large", large, |x| vec![permute(&x[0], &[0, 1, 3, 5, 2, 4])])
            .order(0)
            .bench(8 * 1_605_632, 0),
    );
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permute_moves_what_it_says() {
        let x = Tensor::from_fn([2, 3], |i| i as i32);
        assert_eq!(permute(&x, &[1, 0]).as_slice::<i32>(), &[0, 3, 1, 4, 2, 5]);
        let y = Tensor::from_fn([2, 2, 2], |i| i as i32);
        assert_eq!(permute(&y, &[2, 0, 1]).as_slice::<i32>(), &[0, 2, 4, 6, 1, 3, 5, 7]);
    }

    #[test]
    fn moves_keep_bytes() {
        let x = Tensor::from_fn([2, 3], |i| i as u8);
        assert_eq!(flip(&x, 1).as_slice::<u8>(), &[2, 1, 0, 5, 4, 3]);
        assert_eq!(pad(&x, 1, 1, 0).as_slice::<u8>(), &[0, 0, 1, 2, 0, 3, 4, 5]);
        assert_eq!(concat(&[&x, &x], 0).shape(), [4, 3]);
        assert_eq!(one_hot(&x, 6, DType::F32).shape(), [2, 3, 6]);
    }
}
