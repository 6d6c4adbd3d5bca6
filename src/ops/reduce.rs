//! Sums and maxima over axes, in an order that depends on the shape alone.
//!
//! A run of elements is added in 16 interleaved partial sums, blocks of 4096 elements at a time; block sums
//! are added in order. Neither the number of threads nor the instruction set changes a bit.

use super::{Case, OpInfo, binary, cast::cast, normal, shape, unary};
use crate::autograd::{Recipe, record};
use crate::cpu::{par, simd};
use crate::cuda::{Gpu, Grid, Kernels};
use crate::tensor::{DType, Elem, NewTensor, Plain, Shape, Tensor, with_float};

/// The registry's line.
pub const OP: OpInfo =
    OpInfo { name: "reduce", family: "primitive", summary: "sum, mean and maximum over axes", cases };

const ROWS: Kernels = Kernels::new("reduce", ["reduce_rows_f32", "reduce_rows_bf16", "reduce_rows_f16"]);
const COLUMNS: Kernels =
    Kernels::new("reduce", ["reduce_columns_f32", "reduce_columns_bf16", "reduce_columns_f16"]);

/// The sum or maximum over the middle of (outer, reduced, inner) on a device, as f32: in one launch, or in parts that a
/// second one adds.
fn launch(gpu: Gpu, x: &Tensor, [outer, reduced, inner]: [usize; 3], maximum: bool) -> Tensor {
    // Enough blocks to fill a device, each with enough to do.
    let tiles = outer * inner.div_ceil(32);
    let per_part = if inner == 1 { 16 * 1024 } else { 512 };
    let parts = if tiles < 512 { reduced.div_ceil(per_part).clamp(1, 1024) } else { 1 };
    let length = reduced.div_ceil(parts).max(1);
    let y = gpu.empty([outer, parts, inner], DType::F32);
    let (n, l, m) = (reduced as i64, length as i64, i32::from(maximum));
    if inner == 1 {
        let threads = length.next_multiple_of(32).min(256) as u32;
        let grid = Grid::new(outer * parts, threads);
        gpu.launch(ROWS.of(x.dtype()), grid, &[&y, x, &n, &l, &(parts as i32), &m]);
    } else {
        let [x_blocks, y_blocks] = [tiles as u32, parts as u32];
        let grid = Grid { blocks: [x_blocks, y_blocks, 1], threads: [32, 8, 1], shared: 0 };
        gpu.launch(COLUMNS.of(x.dtype()), grid, &[&y, x, &n, &(inner as i64), &l, &m]);
    }
    let y = y.finish();
    if parts == 1 { y } else { launch(gpu, &y, [outer, parts, inner], maximum) }
}

const LANES: usize = 16;
const BLOCK: usize = 4096;

/// x folded to (outer, reduced, inner) around the contiguous axes `first..=last`.
fn fold(shape: &[usize], first: usize, last: usize) -> [usize; 3] {
    [
        shape[..first].iter().product(),
        shape[first..=last].iter().product(),
        shape[last + 1..].iter().product(),
    ]
}

/// `axes` as contiguous runs, last first.
#[track_caller]
fn runs(op: &str, rank: usize, axes: &[usize]) -> Vec<(usize, usize)> {
    let mut sorted = axes.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), axes.len(), "{op}: axes {axes:?} repeat");
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &axis in sorted.iter().rev() {
        assert!(axis < rank, "{op}: axis {axis} of a tensor of rank {rank}");
        match runs.last_mut() {
            Some((first, _)) if *first == axis + 1 => *first = axis,
            _ => runs.push((axis, axis)),
        }
    }
    runs
}

#[inline(always)]
pub(crate) fn sum_block<T: Elem>(xs: &[T]) -> T::Acc {
    let zero = T::Acc::from_f64(0.0);
    let mut lanes = [zero; LANES];
    let mut chunks = xs.chunks_exact(LANES);
    for c in &mut chunks {
        for (l, x) in lanes.iter_mut().zip(c) {
            *l += x.load();
        }
    }
    for (l, x) in lanes.iter_mut().zip(chunks.remainder()) {
        *l += x.load();
    }
    lanes.into_iter().sum()
}

/// The sum of a slice in the fixed order of this module.
pub(crate) fn sum_slice<T: Elem>(xs: &[T]) -> T::Acc {
    simd::vectorize(
        #[inline(always)]
        || xs.chunks(BLOCK).map(|b| sum_block(b)).sum(),
    )
}

fn reduce_sum<T: Elem>(xs: &[T], out: &mut [T], [outer, reduced, inner]: [usize; 3]) {
    let zero = T::Acc::from_f64(0.0);
    if inner == 1 {
        if outer >= 64 || outer * reduced < 4 * par::GRAIN {
            let rows = (par::GRAIN / reduced.max(1)).max(1);
            par::chunks_mut(out, rows, |c, out| {
                for (r, y) in out.iter_mut().enumerate() {
                    *y = T::store(sum_slice(&xs[(c * rows + r) * reduced..][..reduced]));
                }
            });
        } else {
            for (r, y) in out.iter_mut().enumerate() {
                let row = &xs[r * reduced..][..reduced];
                let mut parts = vec![zero; reduced.div_ceil(par::GRAIN)];
                par::chunks_mut(&mut parts, 1, |i, p| {
                    p[0] = sum_slice(&row[i * par::GRAIN..][..par::GRAIN.min(reduced - i * par::GRAIN)])
                });
                *y = T::store(parts.into_iter().sum());
            }
        }
        return;
    }
    // Rows of `inner` are added elementwise; long reductions are cut into fixed parts that are added in order.
    let part = (4 * par::GRAIN).div_ceil(inner).max(64);
    let parts = reduced.div_ceil(part).max(1);
    let mut partial = vec![zero; outer * parts * inner];
    par::chunks_mut(&mut partial, inner, |i, acc| {
        let (o, p) = (i / parts, i % parts);
        let rows = &xs[(o * reduced + p * part) * inner..][..part.min(reduced - p * part) * inner];
        simd::vectorize(
            #[inline(always)]
            || {
                for row in rows.chunks_exact(inner) {
                    for (a, x) in acc.iter_mut().zip(row) {
                        *a += x.load();
                    }
                }
            },
        )
    });
    for (o, out) in out.chunks_mut(inner).enumerate() {
        for (j, y) in out.iter_mut().enumerate() {
            *y = T::store((0..parts).map(|p| partial[(o * parts + p) * inner + j]).sum());
        }
    }
}

fn reduced_shape(shape: &[usize], first: usize, last: usize) -> Shape {
    let mut out = shape.to_vec();
    out[first..=last].fill(1);
    Shape::new(&out)
}

/// The same elements with the reduced axes dropped.
fn drop_axes(shape: &[usize], axes: &[usize]) -> Shape {
    Shape::from((0..shape.len()).filter(|i| !axes.contains(i)).map(|i| shape[i]).collect::<Vec<_>>())
}

/// Σ over `axes`, which are dropped from the shape.
///
/// # Panics
/// When an axis repeats or is out of range.
#[track_caller]
pub fn sum(x: &Tensor, axes: &[usize]) -> Tensor {
    let mut y = x.detach();
    for (first, last) in runs("sum", x.rank(), axes) {
        if let Some(gpu) = y.gpu() {
            let sum = launch(gpu, &y, fold(y.shape(), first, last), false);
            y = cast(&sum, x.dtype()).with_shape(reduced_shape(y.shape(), first, last));
            continue;
        }
        y = with_float!(x.dtype(), T => {
            let mut out = NewTensor::<T>::new(reduced_shape(y.shape(), first, last));
            reduce_sum(y.as_slice::<T>(), out.as_mut(), fold(y.shape(), first, last));
            out.finish()
        });
    }
    let y = y.with_shape(drop_axes(x.shape(), axes));
    let (full, kept) = (Shape::new(x.shape()), kept_shape(x.shape(), axes));
    let [y] = record(Recipe::primitive("sum"), &[x], [y], move |b| {
        vec![Some(shape::broadcast_to(&shape::reshape(&b.grad(0), kept), full))]
    });
    y
}

fn kept_shape(shape: &[usize], axes: &[usize]) -> Shape {
    Shape::from((0..shape.len()).map(|i| if axes.contains(&i) { 1 } else { shape[i] }).collect::<Vec<_>>())
}

/// The mean over `axes`, which are dropped from the shape.
#[track_caller]
pub fn mean(x: &Tensor, axes: &[usize]) -> Tensor {
    let n: usize = axes.iter().map(|&a| x.shape()[a]).product();
    unary::affine(&sum(x, axes), 1.0 / n as f64, 0.0)
}

/// The maximum over `axes`, which are dropped from the shape; the gradient is shared equally among ties.
#[track_caller]
pub fn max(x: &Tensor, axes: &[usize]) -> Tensor {
    let mut y = x.detach();
    for (first, last) in runs("max", x.rank(), axes) {
        if let Some(gpu) = y.gpu() {
            let best = launch(gpu, &y, fold(y.shape(), first, last), true);
            y = cast(&best, x.dtype()).with_shape(reduced_shape(y.shape(), first, last));
            continue;
        }
        y = with_float!(x.dtype(), T => {
            let [outer, reduced, inner] = fold(y.shape(), first, last);
            let xs = y.as_slice::<T>();
            let mut out = NewTensor::<T>::new(reduced_shape(y.shape(), first, last));
            let rows = (par::GRAIN / (reduced * inner).max(1)).max(1);
            let lowest = T::from_f64(f64::NEG_INFINITY);
            par::chunks_mut(out.as_mut(), rows * inner, |c, out| {
                for (r, best) in out.chunks_mut(inner).enumerate() {
                    let o = c * rows + r;
                    debug_assert!(o < outer);
                    best.fill(lowest);
                    simd::vectorize(#[inline(always)] || {
                        for row in xs[o * reduced * inner..][..reduced * inner].chunks_exact(inner) {
                            for (b, x) in best.iter_mut().zip(row) {
                                if x.load() > b.load() { *b = *x }
                            }
                        }
                    })
                }
            });
            out.finish()
        });
    }
    let y = y.with_shape(drop_axes(x.shape(), axes));
    let (saved, axes, kept) = (x.clone(), axes.to_vec(), kept_shape(x.shape(), axes));
    let [y] = record(Recipe::primitive("max").keeping_outputs(), &[x], [y], move |b| {
        let best = shape::reshape(&b.output(0).detach(), kept);
        let mask = binary::eq(&saved, &best);
        let share = binary::div(&shape::reshape(&b.grad(0), kept), &shape::reshape(&sum(&mask, &axes), kept));
        vec![Some(binary::mul(&mask, &share))]
    });
    y
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (shape, axes) in [
        (&[1][..], &[0][..]),
        (&[5], &[0]),
        (&[3, 7], &[0]),
        (&[3, 7], &[1]),
        (&[3, 7], &[0, 1]),
        (&[2, 3, 5], &[1]),
        (&[2, 3, 5], &[0, 2]),
        (&[2, 3, 5, 4], &[1, 2]),
        (&[3, 129], &[]),
    ] {
        for (name, f) in [("sum", sum as fn(&Tensor, &[usize]) -> Tensor), ("mean", mean), ("max", max)] {
            let run = move |x: &[Tensor]| vec![f(&x[0], axes)];
            cases.push(Case::new(format!("{name} {shape:?} over {axes:?}"), vec![normal(1, shape)], run));
        }
    }
    let bytes = 4 * 64 * 196 * 128;
    for axes in [&[0, 1, 2][..], &[0, 1], &[1, 2], &[2]] {
        let inputs = vec![normal(2, &[64, 196, 128])];
        cases.push(
            Case::new(format!("sum large over {axes:?}"), inputs, move |x| vec![sum(&x[0], axes)])
                .order(0)
                .bench(bytes, bytes / 4)
                .backward(bytes, 0),
        );
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_what_they_say() {
        let x = Tensor::from_fn([2, 3, 4], |i| i as f64);
        assert_eq!(sum(&x, &[0, 2]).to_f64_vec(), [60.0, 92.0, 124.0]);
        assert_eq!(sum(&x, &[0, 1, 2]).item(), 276.0);
        assert_eq!(max(&x, &[1]).to_f64_vec(), [8.0, 9.0, 10.0, 11.0, 20.0, 21.0, 22.0, 23.0]);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let x = crate::random::Philox::new(7).normal([200_000], DType::F32);
        let y = crate::random::Philox::new(8).normal([3, 30_000, 7], DType::F32);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| (sum(&x, &[0]).item(), sum(&y, &[1]).to_f64_vec()))
        };
        assert_eq!(run(1), run(3));
    }
}
