//! What is made of the squared distances between the rows of x (N, D) and y (M, D); unrecorded.
//! ```text
//! d_ij = |x_i|² − 2 x_i·y_j + |y_j|²
//! nearest:         the c smallest of every row of d, ascending, and their columns      (N, c)
//! kernel_log_sum:  log Σ_j exp(−s max(0, d_ij))                                        (N)
//! ```
//! Of equal distances the row with the smaller number comes first. On devices the matrix d never leaves shared memory, and
//! the rows y are shared out among blocks where the rows x are too few to fill the device; that changes no bit of
//! `nearest`, whose lists are merged in order. Here on the host it is made some rows at a time: [`crate::detectors::Index`]
//! has the search for the CPU, which leaves out most of the matrix. 2 N M D flops; 8 bytes per number found.

use super::{Case, OpInfo, binary, cast, index, matmul, normal, reduce, shape, softmax, unary};
use crate::autograd;
use crate::cuda::{self, Gpu, Grid, Kernel, Kernels};
use crate::tensor::{DType, Tensor};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "distances",
    family: "fused",
    summary: "of the distances between two sets of rows: the nearest rows, log sums of Gaussian kernels",
    cases,
};

const NEAREST: Kernels = Kernels::new("distances", ["nearest_f32", "nearest_bf16", "nearest_f16"]);
const LOG_SUM: Kernels =
    Kernels::new("distances", ["kernel_log_sum_f32", "kernel_log_sum_bf16", "kernel_log_sum_f16"]);
const MERGED: Kernel = Kernel { file: "distances", symbol: "nearest_merged" };

/// The largest c: the lists of 64 rows lie in shared memory.
pub const MOST_NEAREST: usize = 256;
/// Rows of a tile, bytes of its memory (as `Distances` in `kernels/distances.cu`), rows of y that are worth a block.
const LINES: usize = 64;
const TILE_BYTES: [usize; 2] = [17_408, 20_480];
const LEAST_PART: usize = 512;
/// Numbers of d that are made at once on the host.
const AT_ONCE: usize = 1 << 20;

/// The rows of x, y, and how the latter are shared out.
struct Sides {
    gpu: Gpu,
    x: Tensor,
    y: Tensor,
    squares: [Tensor; 2],
    parts: usize,
    length: usize,
}

impl Sides {
    fn new(gpu: Gpu, x: &Tensor, y: &Tensor) -> Self {
        // Rows of whole packs; zeros are no distance.
        let pack = 16 / x.dtype().size();
        let whole = |t: &Tensor| shape::pad(t, 1, 0, t.shape()[1].next_multiple_of(pack) - t.shape()[1]);
        let squares = [x, y].map(|t| unary::square(&cast::cast(t, DType::F32)).sum_examples());
        let (blocks, m) = (x.shape()[0].div_ceil(LINES), y.shape()[0]);
        let wanted = (8 * gpu.multiprocessors()).div_ceil(blocks.max(1));
        let length = m.div_ceil(wanted.clamp(1, (m / LEAST_PART).max(1))).next_multiple_of(LINES);
        Self { gpu, x: whole(x), y: whole(y), squares, parts: m.div_ceil(length), length }
    }

    /// Blocks for all rows x and all parts of y, with this much memory behind the tile.
    fn grid(&self, behind: usize) -> Grid {
        let mut grid = Grid::new(self.x.shape()[0].div_ceil(LINES), 128);
        grid.blocks[1] = self.parts as u32;
        grid.shared = (TILE_BYTES[(self.x.dtype().size() == 2) as usize] + behind) as u32;
        grid
    }

    /// N, M, D and the rows of a part.
    fn sizes(&self) -> [i32; 4] {
        [self.x.shape()[0], self.y.shape()[0], self.x.shape()[1], self.length].map(|n| n as i32)
    }
}

#[track_caller]
fn rows(op: &str, x: &Tensor, y: &Tensor) -> [usize; 3] {
    let fits = x.rank() == 2 && y.rank() == 2 && x.shape()[1] == y.shape()[1] && x.dtype() == y.dtype();
    let (dx, dy) = (x.dtype(), y.dtype());
    assert!(fits, "{op}: x {dx:?} {:?} beside y {dy:?} {:?}", x.shape(), y.shape());
    assert!(x.shape()[1] > 0 && y.shape()[0] > 0, "{op}: y {:?}; expected numbers", y.shape());
    assert!(y.shape()[0] <= i32::MAX as usize, "{op}: {} rows are too many", y.shape()[0]);
    [x.shape()[0], y.shape()[0], x.shape()[1]]
}

/// The squared distances (N, c) from every row of `x` to its `c` nearest rows of `y`, and their numbers, i32; in f64 for
/// f64, else in f32. Where y has fewer than c rows, or a distance is NaN, the lists end in infinity and −1.
///
/// # Panics
/// When shapes or dtypes do not fit, or c is not in 1..=[`MOST_NEAREST`].
#[track_caller]
pub fn nearest(x: &Tensor, y: &Tensor, c: usize) -> [Tensor; 2] {
    let [n, m, _] = rows("nearest", x, y);
    assert!((1..=MOST_NEAREST).contains(&c), "nearest: c = {c}; expected 1 to {MOST_NEAREST}");
    if let Some(gpu) = cuda::on("nearest", &[x, y]) {
        let sides = Sides::new(gpu, x, y);
        let ([n, m, d, length], parts, c32) = (sides.sizes(), sides.parts, c as i32);
        let room = |shape: &[usize]| (gpu.empty(shape, DType::F32), gpu.empty(shape, DType::I32));
        let (lists, names) = room(&[sides.x.shape()[0], parts, c]);
        let [xx, yy] = &sides.squares;
        let args: &[&dyn cuda::Arg] =
            &[&lists, &names, &sides.x, &sides.y, xx, yy, &n, &m, &d, &length, &c32];
        gpu.launch(NEAREST.of(x.dtype()), sides.grid(LINES * c * 8), args);
        let (lists, names) = (lists.finish(), names.finish());
        let whole = [n as usize, c];
        if parts == 1 {
            return [shape::reshape(&lists, whole), shape::reshape(&names, whole)];
        }
        let (best, found) = room(&whole);
        let mut grid = Grid::new(whole[0].div_ceil(4), 128);
        grid.shared = (4 * c * 8) as u32;
        gpu.launch(MERGED, grid, &[&best, &found, &lists, &names, &n, &(parts as i32), &c32]);
        return [best.finish(), found.finish()];
    }
    let (mut best, mut names) = (vec![f64::INFINITY; n * c], vec![-1i32; n * c]);
    each_rows(x, y, |first, d| {
        for (i, d) in d.to_f64_vec().chunks_exact(m).enumerate() {
            let range = (first + i) * c..(first + i + 1) * c;
            let (best, names) = (&mut best[range.clone()], &mut names[range]);
            for (j, &d) in d.iter().enumerate().filter(|(_, d)| !d.is_nan()) {
                if d < best[c - 1] {
                    let at = best.partition_point(|b| *b <= d);
                    best.copy_within(at..c - 1, at + 1);
                    names.copy_within(at..c - 1, at + 1);
                    (best[at], names[at]) = (d, j as i32);
                }
            }
        }
    });
    [Tensor::from_slice(&best, [n, c]).cast(wide(x.dtype())), Tensor::from_slice(&names, [n, c])]
}

/// log Σ_j exp(−`scale` max(0, d_ij)) of every row of `x` (N); in f64 for f64, else in f32. The sum is kept relative to its
/// largest term, so it does not vanish far from all rows.
///
/// # Panics
/// When shapes or dtypes do not fit.
#[track_caller]
pub fn kernel_log_sum(x: &Tensor, y: &Tensor, scale: f64) -> Tensor {
    let [n, _, _] = rows("kernel log sum", x, y);
    if let Some(gpu) = cuda::on("kernel log sum", &[x, y]) {
        let sides = Sides::new(gpu, x, y);
        let logs = sides.gpu.empty([sides.parts, n], DType::F32);
        let [n, m, d, length] = sides.sizes();
        let ([xx, yy], scale) = (&sides.squares, scale as f32);
        let args: &[&dyn cuda::Arg] = &[&logs, &sides.x, &sides.y, xx, yy, &n, &m, &d, &length, &scale];
        gpu.launch(LOG_SUM.of(x.dtype()), sides.grid(0), args);
        return softmax::logsumexp(&shape::permute(&logs.finish(), &[1, 0]));
    }
    let mut logs = Vec::new();
    each_rows(x, y, |_, d| logs.push(log_sums(&d, scale)));
    let logs: Vec<&Tensor> = logs.iter().collect();
    if logs.is_empty() { Tensor::zeros([0], wide(x.dtype())) } else { shape::concat(&logs, 0) }
}

/// What sums are kept in.
fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Calls `f` with the number of a row of `x` and the distances of it and those that follow, as many as are made at once.
fn each_rows(x: &Tensor, y: &Tensor, mut f: impl FnMut(usize, Tensor)) {
    autograd::no_grad(|| {
        let [x, y] = [x, y].map(|t| t.cast(wide(t.dtype())));
        let (n, step) = (x.shape()[0], (AT_ONCE / y.shape()[0]).max(1));
        for first in (0..n).step_by(step) {
            f(first, matrix(&shape::narrow(&x, 0, first, step.min(n - first)), &y));
        }
    });
}

/// d in primitives.
fn matrix(x: &Tensor, y: &Tensor) -> Tensor {
    let [xx, yy] = [x, y].map(|t| unary::square(t).sum_examples());
    let (column, whole) = ([x.shape()[0], 1], [x.shape()[0], y.shape()[0]]);
    let sums = binary::add(&shape::reshape(&xx, column).broadcast_to(whole), &yy.broadcast_to(whole));
    binary::add(&unary::affine(&matmul::matmul(x, y, false, true), -2.0, 0.0), &sums)
}

fn log_sums(d: &Tensor, scale: f64) -> Tensor {
    softmax::logsumexp(&unary::affine(&unary::clamp(d, 0.0, f64::INFINITY), -scale, 0.0))
}

/// The distances of [`nearest`] in primitives, for rows without ties.
pub fn composite_nearest(x: &Tensor, y: &Tensor, c: usize) -> Tensor {
    let mut left = matrix(&x.cast(wide(x.dtype())), &y.cast(wide(y.dtype())));
    let mut found = Vec::new();
    for _ in 0..c {
        let least = unary::neg(&reduce::max(&unary::neg(&left), &[1]));
        let least = shape::reshape(&least, [x.shape()[0], 1]);
        let others = binary::gt(&left, &least.broadcast_to(left.shape()));
        left = binary::add(&binary::keep_where(&others, &left), &unary::affine(&others, -1e30, 1e30));
        found.push(least);
    }
    shape::concat(&found.iter().collect::<Vec<_>>(), 1)
}

/// [`kernel_log_sum`] in primitives.
pub fn composite_kernel_log_sum(x: &Tensor, y: &Tensor, scale: f64) -> Tensor {
    log_sums(&matrix(&x.cast(wide(x.dtype())), &y.cast(wide(y.dtype()))), scale)
}

fn cases() -> Vec<Case> {
    // The distances that were found, and those of the rows that were named.
    let found = |x: &[Tensor], c: usize| {
        let [d, names] = nearest(&x[0], &x[1], c);
        let [x, y] = [&x[0], &x[1]].map(|t| t.cast(wide(t.dtype())));
        let (n, width) = (x.shape()[0], x.shape()[1]);
        let rows = index::gather_rows(&y, &shape::reshape(&names, [n * c]));
        let from = shape::reshape(&x, [n, 1, width]).broadcast_to([n, c, width]);
        let apart = binary::sub(&from, &shape::reshape(&rows, [n, c, width]));
        vec![d, reduce::sum(&unary::square(&apart), &[2])]
    };
    let mut cases = Vec::new();
    for (n, m, d, c) in
        [(1, 1, 1, 1), (3, 70, 2, 5), (65, 130, 7, 33), (64, 64, 8, 64), (70, 200, 40, 14), (5, 1100, 3, 16)]
    {
        let name = format!("{n} x {m} of {d}");
        let inputs = || vec![normal(1, &[n, d]), normal(2, &[m, d])];
        cases.push(
            Case::new(format!("nearest {c}, {name}"), inputs(), move |x| found(x, c))
                .composite(move |x| vec![composite_nearest(&x[0], &x[1], c); 2])
                .order(0),
        );
        for scale in [0.05, 2.0] {
            cases.push(
                Case::new(format!("kernels {scale}, {name}"), inputs(), move |x| {
                    vec![kernel_log_sum(&x[0], &x[1], scale)]
                })
                .composite(move |x| vec![composite_kernel_log_sum(&x[0], &x[1], scale)])
                .order(0),
            );
        }
    }
    let (n, m, d) = (2048, 16_384, 32);
    let inputs = || vec![normal(3, &[n, d]), normal(4, &[m, d])];
    let (bytes, flops) = (4 * (n + m) * d, 2 * n * m * d);
    let large = Case::new("nearest 14, 2048 x 16384 of 32", inputs(), |x| {
        let [d, _] = nearest(&x[0], &x[1], 14);
        vec![d]
    });
    cases.push(large.order(0).bench(bytes, flops));
    let large =
        Case::new("kernels, 2048 x 16384 of 32", inputs(), |x| vec![kernel_log_sum(&x[0], &x[1], 0.5)]);
    cases.push(large.order(0).bench(bytes, flops));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_distances_come_in_order_and_short_lists_end() {
        let y = Tensor::from_slice(&[3.0f32, 1.0, 3.0, 1.0], [4, 1]);
        let [d, names] = nearest(&Tensor::from_slice(&[1.0f32, 3.0], [2, 1]), &y, 5);
        assert_eq!(names.as_slice::<i32>(), [1, 3, 0, 2, -1, 0, 2, 1, 3, -1]);
        assert_eq!(d.to_f64_vec()[..5], [0.0, 0.0, 4.0, 4.0, f64::INFINITY]);
    }

    #[test]
    #[should_panic(expected = "nearest: x F32 [1, 2] beside y F32 [1, 3]")]
    fn rows_that_do_not_fit_are_named() {
        nearest(&Tensor::zeros([1, 2], DType::F32), &Tensor::zeros([1, 3], DType::F32), 1);
    }
}
