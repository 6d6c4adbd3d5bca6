//! Causal self-attention over packed queries, keys and values (Vaswani et al. 2017, arXiv:1706.03762).
//!
//! `qkv` (B, T, 3 D) holds [q | k | v] of each position, every one of them H heads of E = D / H numbers. Per head
//! ```text
//! s_ij = q_i · k_j / sqrt(E) for j ≤ i,   p_i = softmax(s_i),   y_i = Σ_{j ≤ i} p_ij v_j          (B, T, D)
//! ```
//! Scores exist for a block of queries at a time and only for the keys that the block sees; what is kept for the
//! backward pass is the level of each query, max_j s_ij and 1 / Σ_j e^{s_ij − max}, from which the probabilities are
//! rebuilt (Dao et al. 2022, arXiv:2205.14135). With dp_ij = dy_i · v_j and δ_i = Σ_j p_ij dp_ij,
//! ```text
//! dv_j = Σ_i p_ij dy_i,   ds_ij = p_ij (dp_ij − δ_i),   dq_i = Σ_j ds_ij k_j / sqrt(E),   dk_j = Σ_i ds_ij q_i / sqrt(E)
//! ```
//! Each pair of batch and head is one task. About 2 T² D flops per sequence forward and 5 T² D backward (half of the
//! square), T² / 2 exponentials per head in each.

use super::{Case, OpInfo, binary, cast::cast, normal, shape, softmax, unary};
use crate::autograd::{self, Recipe, record};
use crate::cpu::gemm::{Epilogue, Mat, gemm};
use crate::cpu::{par, simd};
use crate::cuda::{self, Gpu, Grid, Kernels, Struct};
use crate::tensor::{DType, Float, NewTensor, Tensor, with_arithmetic};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "attention",
    family: "fused",
    summary: "causal multi-head self-attention, forward and backward without the square of scores",
    cases,
};

const FORWARD: Kernels =
    Kernels::new("attention", ["attention_forward_f32", "attention_forward_bf16", "attention_forward_f16"]);
const DELTAS: Kernels =
    Kernels::new("attention", ["attention_deltas_f32", "attention_deltas_bf16", "attention_deltas_f16"]);
const QUERIES: Kernels =
    Kernels::new("attention", ["attention_queries_f32", "attention_queries_bf16", "attention_queries_f16"]);
const KEYS: Kernels =
    Kernels::new("attention", ["attention_keys_f32", "attention_keys_bf16", "attention_keys_f16"]);

/// Queries per block of scores: whole tiles of the matrix product.
const BLOCK: usize = 48;
const LANES: usize = 16;

/// The sizes of a call.
#[derive(Clone, Copy)]
struct Dims {
    batch: usize,
    time: usize,
    heads: usize,
    /// Numbers per head.
    each: usize,
}

impl Dims {
    #[track_caller]
    fn of(qkv: &Tensor, heads: usize) -> Self {
        match *qkv.shape() {
            [batch, time, width] if heads > 0 && width > 0 && width % (3 * heads) == 0 => {
                Self { batch, time, heads, each: width / (3 * heads) }
            }
            _ => panic!("causal_attention: qkv {:?} with {heads} heads; expected (B, T, 3 D)", qkv.shape()),
        }
    }

    fn scale(self) -> f64 {
        1.0 / (self.each as f64).sqrt()
    }

    /// Copies part `part` of `parts` of head `head` of sequence `b` from (B, T, parts, H, E) to (T, E).
    fn head<T: Float>(self, from: &[T], parts: usize, part: usize, b: usize, head: usize) -> Vec<T> {
        let Self { time, heads, each, .. } = self;
        let mut out = Vec::with_capacity(time * each);
        for t in 0..time {
            let at = (((b * time + t) * parts + part) * heads + head) * each;
            out.extend_from_slice(&from[at..at + each]);
        }
        out
    }
}

/// Causal attention of `heads` heads over packed [q | k | v]: (B, T, 3 D) to (B, T, D).
///
/// # Panics
/// When `qkv` is not (B, T, 3 D) with D a multiple of `heads`.
#[track_caller]
pub fn causal_attention(qkv: &Tensor, heads: usize) -> Tensor {
    let dims = Dims::of(qkv, heads);
    if autograd::in_higher_order() {
        return composite(qkv, heads);
    }
    if let Some(gpu) = qkv.gpu() {
        return launch(gpu, qkv, dims);
    }
    if let DType::BF16 | DType::F16 = qkv.dtype() {
        return cast(&causal_attention(&cast(qkv, DType::F32), heads), qkv.dtype());
    }
    with_arithmetic!(qkv.dtype(), T => {
        let (y, levels) = forward::<T>(qkv, dims);
        let saved = qkv.detach();
        let [y] = record(Recipe::fused("causal_attention"), &[qkv], [y], move |b| {
            vec![Some(backward::<T>(&saved, &levels, &b.grad(0), dims))]
        });
        y
    })
}

/// As `Sizes` in kernels/attention.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Sizes {
    time: i32,
    heads: i32,
    each: i32,
    scale: f32,
}

/// On a device, with its gradient.
fn launch(gpu: Gpu, qkv: &Tensor, dims: Dims) -> Tensor {
    let Dims { batch, time, heads, each } = dims;
    let (dtype, width) = (qkv.dtype(), heads * each);
    let (y, levels) =
        (gpu.empty([batch, time, width], dtype), gpu.empty([batch, heads, time, 2], DType::F32));
    // Blocks of 64 positions, heads, parts of 64 of their numbers.
    let [x, z] = [time.div_ceil(64), each.div_ceil(64)];
    assert!(
        batch * heads <= 65_535 && z <= 65_535,
        "causal_attention: {batch} sequences of {heads} heads of {each} numbers are too many for a grid"
    );
    let grid = Grid { blocks: [x, batch * heads, z].map(|n| n as u32), threads: [128, 1, 1], shared: 0 };
    let [t, h, e] = [time, heads, each].map(|n| n as i32);
    let sizes = Struct(Sizes { time: t, heads: h, each: e, scale: dims.scale() as f32 });
    gpu.launch(FORWARD.of(dtype), grid, &[&y, &levels, qkv, &sizes]);
    let (saved, levels) = (qkv.detach(), levels.finish());
    let recipe = Recipe::fused("causal_attention").keeping_outputs();
    let [y] = record(recipe, &[qkv], [y.finish()], move |b| {
        let (g, delta) = (b.grad(0), gpu.empty([batch, heads, time], DType::F32));
        let rows = batch * time * heads;
        let warps = Grid::new(rows.div_ceil(4), 128);
        gpu.launch(DELTAS.of(dtype), warps, &[&delta, &g, b.output(0), &(rows as i64), &sizes]);
        let (dqkv, delta) = (gpu.empty(saved.shape(), dtype), delta.finish());
        let args: &[&dyn cuda::Arg] = &[&dqkv, &saved, &g, &levels, &delta, &sizes];
        gpu.launch(QUERIES.of(dtype), grid, args);
        gpu.launch(KEYS.of(dtype), grid, args);
        vec![Some(dqkv.finish())]
    });
    y
}

/// (start, end) of each block of queries.
fn blocks(time: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..time).step_by(BLOCK).map(move |r| (r, time.min(r + BLOCK)))
}

/// (B, H, parts, T, E) to (B, T, parts, H, E), flattened behind T.
fn merge(x: Tensor, Dims { batch, time, heads, each }: Dims, parts: usize) -> Tensor {
    let x = x.reshape([batch, heads, parts, time, each]);
    autograd::no_grad(|| x.permute(&[0, 3, 2, 1, 4]).reshape([batch, time, parts * heads * each]))
}

/// y (B, T, D), and the level of every query (B, H, T).
fn forward<T: Float>(qkv: &Tensor, dims: Dims) -> (Tensor, Vec<[T; 2]>) {
    let Dims { batch, time, heads, each } = dims;
    let (from, [zero, never]) = (qkv.as_slice::<T>(), [0.0, f64::NEG_INFINITY].map(T::from_f64));
    let mut out = NewTensor::<T>::new([batch, heads, time, each]);
    let mut levels = vec![[zero; 2]; batch * heads * time];
    par::chunks_mut2(out.as_mut(), time * each, &mut levels, time, |task, y, levels| {
        let [q, k, v] = [0, 1, 2].map(|part| dims.head(from, 3, part, task / heads, task % heads));
        let mut scores = vec![zero; BLOCK.min(time) * time];
        for (start, end) in blocks(time) {
            let (m, y) = (end - start, &mut y[start * each..end * each]);
            scored(&q, &k, dims, (start, end), &mut scores);
            simd::vectorize_for::<T, _>(
                #[inline(always)]
                || {
                    for (r, row) in scores[..m * end].chunks_exact_mut(end).enumerate() {
                        let (row, unseen) = row.split_at_mut(whole(start + r + 1, end));
                        row[start + r + 1..].fill(never);
                        unseen.fill(zero);
                        levels[start + r] = softmax_row(row);
                    }
                },
            );
            gemm(m, each, end, Mat::new(&scores, end), Mat::new(&v, each), y, each, &Epilogue::default());
        }
    });
    (merge(out.finish(), dims, 1), levels)
}

/// The scores (end − start, end) of a block of queries against all keys that its last query sees.
fn scored<T: Float>(q: &[T], k: &[T], dims: Dims, (start, end): (usize, usize), scores: &mut [T]) {
    let epilogue = Epilogue { alpha: dims.scale(), ..Epilogue::default() };
    let (q, k) = (Mat::new(&q[start * dims.each..], dims.each), Mat::t(k, dims.each));
    gemm(end - start, end, dims.each, q, k, scores, end, &epilogue);
}

/// `seen` keys in whole vectors, of at most `end`: scores of −∞ in the last one have no probability.
#[inline(always)]
fn whole(seen: usize, end: usize) -> usize {
    seen.next_multiple_of(LANES).min(end)
}

/// Turns a row of scores into probabilities; returns its level.
#[inline(always)]
fn softmax_row<T: Float>(row: &mut [T]) -> [T; 2] {
    let zero = T::from_f64(0.0);
    let mut top = [row[0]; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for c in chunks {
        top.iter_mut().zip(c).for_each(|(t, x)| *t = if *x > *t { *x } else { *t });
    }
    top.iter_mut().zip(rest).for_each(|(t, x)| *t = if *x > *t { *x } else { *t });
    let top = top.into_iter().fold(row[0], |a, b| if b > a { b } else { a });
    let mut sum = [zero; LANES];
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    for c in chunks {
        for (s, x) in sum.iter_mut().zip(c) {
            *x = (*x - top).exp();
            *s += *x;
        }
    }
    for (s, x) in sum.iter_mut().zip(rest) {
        *x = (*x - top).exp();
        *s += *x;
    }
    let sum = sum.into_iter().sum::<T>();
    let share = T::from_f64(1.0) / sum;
    row.iter_mut().for_each(|x| *x = *x * share);
    [top, share]
}

/// Turns a row of scores into the probabilities of its level; returns δ = Σ p dp.
#[inline(always)]
fn rebuilt_row<T: Float>(row: &mut [T], dp: &[T], [top, share]: [T; 2]) -> T {
    let mut delta = [T::from_f64(0.0); LANES];
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    let (dp, dp_rest) = dp.as_chunks::<LANES>();
    for (c, dp) in chunks.iter_mut().zip(dp) {
        for ((sum, x), dp) in delta.iter_mut().zip(c).zip(dp) {
            *x = (*x - top).exp() * share;
            *sum = x.mul_add(*dp, *sum);
        }
    }
    for ((sum, x), dp) in delta.iter_mut().zip(rest).zip(dp_rest) {
        *x = (*x - top).exp() * share;
        *sum = x.mul_add(*dp, *sum);
    }
    delta.into_iter().sum()
}

/// The gradient (B, T, 3 D) of qkv.
fn backward<T: Float>(qkv: &Tensor, levels: &[[T; 2]], g: &Tensor, dims: Dims) -> Tensor {
    let Dims { batch, time, heads, each } = dims;
    let (from, g, [zero, never]) =
        (qkv.as_slice::<T>(), g.as_slice::<T>(), [0.0, f64::NEG_INFINITY].map(T::from_f64));
    let mut out = NewTensor::<T>::zeroed([batch, heads, 3, time, each]);
    let scaled = Epilogue { alpha: dims.scale(), ..Epilogue::default() };
    let adding = Epilogue { accumulate: true, ..Epilogue::default() };
    let adding_scaled = Epilogue { accumulate: true, ..scaled };
    par::chunks_mut(out.as_mut(), 3 * time * each, |task, out| {
        let (b, head) = (task / heads, task % heads);
        let [q, k, v] = [0, 1, 2].map(|part| dims.head(from, 3, part, b, head));
        let g = dims.head(g, 1, 0, b, head);
        let levels = &levels[task * time..][..time];
        let (dq, rest) = out.split_at_mut(time * each);
        let (dk, dv) = rest.split_at_mut(time * each);
        let room = vec![zero; BLOCK.min(time) * time];
        let (mut p, mut ds) = (room.clone(), room);
        for (start, end) in blocks(time) {
            let (m, part) = (end - start, start * each..end * each);
            let (g_block, q_block) = (&g[part.clone()], &q[part.clone()]);
            scored(&q, &k, dims, (start, end), &mut p);
            gemm(m, end, each, Mat::new(g_block, each), Mat::t(&v, each), &mut ds, end, &Epilogue::default());
            simd::vectorize_for::<T, _>(
                #[inline(always)]
                || {
                    for r in 0..m {
                        let seen = start + r + 1;
                        let (p, ds) = (&mut p[r * end..][..end], &mut ds[r * end..][..end]);
                        p[seen..].fill(never);
                        ds[seen..].fill(zero);
                        let whole = whole(seen, end);
                        let delta = rebuilt_row(&mut p[..whole], &ds[..whole], levels[start + r]);
                        ds[..whole].iter_mut().zip(&*p).for_each(|(ds, p)| *ds = *p * (*ds - delta));
                        p[whole..].fill(zero);
                    }
                },
            );
            gemm(end, each, m, Mat::t(&p, end), Mat::new(g_block, each), dv, each, &adding);
            gemm(m, each, end, Mat::new(&ds, end), Mat::new(&k, each), &mut dq[part], each, &scaled);
            gemm(end, each, m, Mat::t(&ds, end), Mat::new(q_block, each), dk, each, &adding_scaled);
        }
    });
    merge(out.finish(), dims, 3)
}

/// [`causal_attention`] in primitives.
pub fn composite(qkv: &Tensor, heads: usize) -> Tensor {
    let dims = Dims::of(qkv, heads);
    let Dims { batch, time, each, .. } = dims;
    let split = shape::permute(&shape::reshape(qkv, [batch, time, 3, heads, each]), &[2, 0, 3, 1, 4]);
    let part = |i| shape::reshape(&shape::narrow(&split, 0, i, 1), [batch * heads, time, each]);
    let [q, k, v] = [0, 1, 2].map(part);
    let scores = unary::affine(&super::matmul::matmul(&q, &k, false, true), dims.scale(), 0.0);
    let mask = Tensor::from_fn([time, time], |i| if i % time > i / time { -1e4f64 } else { 0.0 });
    let seen =
        cast(&Tensor::from_fn([time, time], |i| f64::from(u8::from(i % time <= i / time))), qkv.dtype());
    let masked = binary::add(&binary::keep_where(&seen, &scores), &cast(&mask, qkv.dtype()));
    let y = super::matmul::matmul(&unary::exp(&softmax::composite_log_softmax(&masked)), &v, false, false);
    let y = shape::permute(&shape::reshape(&y, [batch, heads, time, each]), &[0, 2, 1, 3]);
    shape::reshape(&y, [batch, time, heads * each])
}

fn cases() -> Vec<Case> {
    let case = |[b, t, h, e]: [usize; 4], scale: f64| {
        let qkv = normal(1, &[b, t, 3 * h * e]).affine(scale, 0.0);
        Case::new(format!("B={b} T={t} H={h} E={e}"), vec![qkv], move |x| vec![causal_attention(&x[0], h)])
            .composite(move |x| vec![composite(&x[0], h)])
    };
    let [b, t, h, e] = [16, 256, 4, 32];
    vec![
        case([1, 1, 1, 1], 1.0),
        case([2, 3, 1, 2], 1.0),
        case([2, 7, 3, 5], 1.0),
        case([1, 17, 2, 8], 3.0),
        case([1, 130, 1, 4], 1.0).order(1),
        case([b, t, h, e], 1.0)
            .order(0)
            .bench(16 * b * t * h * e, 2 * b * t * t * h * e)
            .backward(36 * b * t * h * e, 7 * b * t * t * h * e),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Changing a later position changes nothing before it, even when scores are far apart.
    #[test]
    fn the_future_is_not_seen() {
        let qkv = normal(5, &[1, 70, 12]).affine(20.0, 0.0).cast(DType::F32);
        let mut other = qkv.clone();
        other.make_mut::<f32>()[65 * 12..].fill(1e4);
        let (a, b) = (causal_attention(&qkv, 2), causal_attention(&other, 2));
        assert_eq!(a.as_slice::<f32>()[..65 * 4], b.as_slice::<f32>()[..65 * 4]);
        assert!(b.as_slice::<f32>().iter().all(|x| x.is_finite()));
    }
}
