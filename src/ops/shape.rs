//! Moves: reshape, permute, broadcast, slice, pad, concatenate, flip. Each gradient is another move.

use super::{Case, OpInfo, binary, index, normal};
use crate::autograd::{Recipe, record};
use crate::cpu::par;
use crate::cuda::{self, Gpu, Grid, Kernel, Output, Struct, Words};
use crate::tensor::{DType, MAX_RANK, NewTensor, Place, Plain, Shape, Tensor, with_plain};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "shape",
    family: "primitive",
    summary: "reshape, permute, broadcast_to, narrow, pad, concat, flip",
    cases,
};

/// As `Strided` in `kernels/shape.cu`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
struct Strided {
    rank: u32,
    size: [u32; MAX_RANK],
    to: [i32; MAX_RANK],
    from: [i32; MAX_RANK],
}

/// A strided copy on a device: `dims` are (size, step in `y`, step in `x`), outermost first, starts in elements.
#[track_caller]
fn launch(gpu: Gpu, y: &Output, y_start: usize, x: &Tensor, x_start: usize, dims: &[(usize, isize, isize)]) {
    let size = x.dtype().size();
    let mut dims: Vec<_> = dims.iter().copied().filter(|d| d.0 != 1).collect();
    if dims.is_empty() {
        dims.push((1, 1, 1));
    }
    // As many elements at once as all sizes, steps and starts allow.
    let &(inner, to, from) = dims.last().expect("at least one dimension");
    let outer = &dims[..dims.len() - 1];
    let whole = |f: &usize| {
        let steps = outer.iter().all(|&(_, t, s)| t % *f as isize == 0 && s % *f as isize == 0);
        (to, from) == (1, 1) && steps && [inner, y_start, x_start].iter().all(|n| n % f == 0)
    };
    let factor = [16 / size, 4 / size, 2 / size].into_iter().filter(|f| *f > 1).find(whole).unwrap_or(1);
    let symbol = match size * factor {
        1 => "move_1",
        2 => "move_2",
        4 => "move_4",
        16 => "move_16",
        bytes => panic!("moves on devices take elements of 1, 2 or 4 bytes, got {bytes}"),
    };
    let mut d = Strided { rank: dims.len() as u32, ..bytemuck::Zeroable::zeroed() };
    let last = dims.len() - 1;
    for (i, &(n, to, from)) in dims.iter().enumerate() {
        let f = if i == last { 1 } else { factor as isize };
        (d.size[i], d.to[i], d.from[i]) = (n as u32, (to / f) as i32, (from / f) as i32);
    }
    d.size[last] /= factor as u32;
    let n: usize = d.size[..dims.len()].iter().map(|&n| n as usize).product();
    let count = u32::try_from(n).expect("a move takes fewer than 2^32 elements");
    let (ys, xs) = ((y_start / factor) as i64, (x_start / factor) as i64);
    let (to, from) = (Words(y, size * factor), Words(x, size * factor));
    gpu.launch(Kernel { file: "shape", symbol }, Grid::flat(n), &[&to, &from, &ys, &xs, &count, &Struct(d)]);
}

/// `shape` filled with `value`, on a device.
#[track_caller]
pub(crate) fn filled<T: Plain>(gpu: Gpu, value: T, shape: Shape) -> Tensor {
    let size = T::DTYPE.size();
    let mut word = [0u8; 4];
    let symbol = match size {
        1 => "fill_1",
        2 => "fill_2",
        4 => "fill_4",
        _ => panic!("devices calculate in f32, bf16 and f16, got {:?}", T::DTYPE),
    };
    word[..size].copy_from_slice(bytemuck::bytes_of(&value));
    let y = gpu.empty(shape, T::DTYPE);
    let (n, word) = (shape.len(), u32::from_le_bytes(word));
    gpu.launch(Kernel { file: "shape", symbol }, Grid::flat(n), &[&Words(&y, size), &(n as i64), &word]);
    y.finish()
}

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
    let y = strided(x, 0, &shape, &steps);
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

/// The strided view `steps` of `x`, starting at `offset`, as a contiguous tensor of `shape`.
#[track_caller]
fn strided(x: &Tensor, offset: usize, shape: &[usize], steps: &[usize]) -> Tensor {
    let Some(gpu) = x.gpu() else {
        return with_plain!(x.dtype(), T => gather_strided::<T>(x.as_slice(), offset, shape, steps));
    };
    let y = gpu.empty(shape, x.dtype());
    let to = row_major_steps(shape);
    let mut dims: Vec<(usize, isize, isize)> = Vec::new();
    for ((&n, &to), &from) in shape.iter().zip(&to).zip(steps) {
        let (to, from) = (to as isize, from as isize);
        match dims.last_mut() {
            Some((m, t, s)) if *t == to * n as isize && *s == from * n as isize => {
                (*m, *t, *s) = (*m * n, to, from)
            }
            _ => dims.push((n, to, from)),
        }
    }
    launch(gpu, &y, 0, x, offset, &dims);
    y.finish()
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
    let (n, step) = dims.pop().unwrap_or((1, 1));
    let (rows_are_runs, mut inner) = (step == 1 && n >= 8, n);
    // Short or scattered rows are taken together: where the elements of such a block lie is worked out once.
    let mut places: Vec<usize> = if rows_are_runs { Vec::new() } else { (0..n).map(|i| i * step).collect() };
    while let (false, Some(&(n, s))) = (rows_are_runs, dims.last())
        && inner * n <= 4096
    {
        places = (0..n).flat_map(|i| places.iter().map(move |p| i * s + p)).collect();
        inner *= n;
        dims.pop();
    }
    let rows = (par::GRAIN / inner).max(1);
    par::chunks_mut(out.as_mut(), rows * inner, |c, out| {
        for (r, row) in out.chunks_mut(inner).enumerate() {
            let (mut at, mut rest) = (offset, c * rows + r);
            for &(n, s) in dims.iter().rev() {
                at += (rest % n) * s;
                rest /= n;
            }
            if rows_are_runs {
                row.copy_from_slice(&xs[at..at + inner]);
            } else {
                row.iter_mut().zip(&places).for_each(|(y, p)| *y = xs[at + p]);
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
    let y = strided(x, 0, to, &steps);
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
    let y = strided(x, start * steps[axis], &shape, &steps);
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
        Place::of(x).shaped(shape).full(0.0)
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
    if let Some(gpu) = cuda::on("concat", parts) {
        let outer: usize = shape[..axis].iter().product();
        let y = gpu.empty(&shape, parts[0].dtype());
        let mut at = 0;
        for part in parts.iter().filter(|p| !p.is_empty()) {
            let n = part.shape()[axis] * inner;
            launch(gpu, &y, at, part, 0, &[(outer, row as isize, n as isize), (n, 1, 1)]);
            at += n;
        }
        return y.finish();
    }
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
    let y = if let Some(gpu) = x.gpu() {
        let (y, step) = (gpu.empty(x.shape(), x.dtype()), inner as isize);
        let outer = x.len() / (n * inner).max(1);
        let dims = [(outer, n as isize * step, n as isize * step), (n, step, -step), (inner, 1, 1)];
        launch(gpu, &y, 0, x, n.saturating_sub(1) * inner, &dims);
        y.finish()
    } else {
        with_plain!(x.dtype(), T => {
            let xs = x.as_slice::<T>();
            let mut out = NewTensor::<T>::new(x.shape());
            for (i, row) in out.as_mut().chunks_mut(inner.max(1)).enumerate() {
                let (outer, k) = (i / n, i % n);
                row.copy_from_slice(&xs[(outer * n + n - 1 - k) * inner..][..inner]);
            }
            out.finish()
        })
    };
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
    if let Some(gpu) = indices.gpu() {
        return index::placed(gpu, None, indices, classes, dtype).with_shape(Shape::new(&shape));
    }
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
            .bench(8 * 1_605_632, 0)
            .backward(8 * 1_605_632, 0),
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
