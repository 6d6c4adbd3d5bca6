//! Rotary positions (Su et al. 2021, "RoFormer", arXiv:2104.09864) on packed queries, keys and values.
//!
//! `qkv` (B, T, 3 D) as [`super::attention`] takes it. In each head of E numbers of q and k, numbers i and i + E / 2 are
//! the coordinates of a plane that is turned by the angle t base^{−2 i / E} at position t; v stays. The scores of
//! attention then depend on distances alone. The adjoint turns back. 8 bytes and 3 flops per number.

use super::{Case, OpInfo, binary, normal, shape};
use crate::autograd::{Recipe, record};
use crate::cpu::par;
use crate::cuda::{Grid, Kernels};
use crate::tensor::{Elem, NewTensor, Plain, Tensor, with_float};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "rotary",
    family: "primitive",
    summary: "rotary positions of packed queries and keys, and their adjoint",
    cases,
};

const KERNELS: Kernels = Kernels::new("rotary", ["rotary_f32", "rotary_bf16", "rotary_f16"]);

/// (cos, sin) of the angles of E / 2 planes at position `t`.
pub(crate) fn angles(t: usize, each: usize, base: f64) -> impl Iterator<Item = (f64, f64)> {
    (0..each / 2).map(move |i| {
        let (sin, cos) = (t as f64 * base.powf(-2.0 * i as f64 / each as f64)).sin_cos();
        (cos, sin)
    })
}

/// q and k of `qkv` (B, T, 3 D) turned by the angles of their positions, or back when `reverse`.
///
/// # Panics
/// When `qkv` is not (B, T, 3 D) with D / `heads` even.
#[track_caller]
pub fn rotary(qkv: &Tensor, heads: usize, base: f64, reverse: bool) -> Tensor {
    let each = each(qkv, heads);
    let [batch, time, width] = qkv.dims();
    if let Some(gpu) = qkv.gpu() {
        let y = gpu.empty(qkv.shape(), qkv.dtype());
        let grid = Grid { shared: 4 * each as u32, ..Grid::new(time, 256) };
        let [batch, time, heads, each] = [batch, time, heads, each].map(|n| n as i32);
        let kernel = KERNELS.of(qkv.dtype());
        gpu.launch(kernel, grid, &[&y, qkv, &batch, &time, &heads, &each, &base, &i32::from(reverse)]);
        return recorded(qkv, y.finish(), heads as usize, base, reverse);
    }
    let turns: Vec<(f64, f64)> = (0..time).flat_map(|t| angles(t, each, base)).collect();
    let y = with_float!(qkv.dtype(), T => {
        type Acc = <T as Elem>::Acc;
        let turns: Vec<(Acc, Acc)> = turns
            .iter()
            .map(|&(c, s)| (Plain::from_f64(c), Plain::from_f64(if reverse { -s } else { s })))
            .collect();
        let xs = qkv.as_slice::<T>();
        let mut out = NewTensor::<T>::new([batch, time, width]);
        par::chunks_mut(out.as_mut(), width, |row, y| {
            let x = &xs[row * width..][..width];
            let turns = &turns[row % time * (each / 2)..][..each / 2];
            let (turned, kept) = y.split_at_mut(width / 3 * 2);
            kept.copy_from_slice(&x[turned.len()..]);
            for (y, x) in turned.chunks_exact_mut(each).zip(x.chunks_exact(each)) {
                let ((x0, x1), (y0, y1)) = (x.split_at(each / 2), y.split_at_mut(each / 2));
                for i in 0..turns.len() {
                    let ((cos, sin), a, b) = (turns[i], x0[i].load(), x1[i].load());
                    y0[i] = T::store(a * cos - b * sin);
                    y1[i] = T::store(a * sin + b * cos);
                }
            }
        });
        out.finish()
    });
    recorded(qkv, y, heads, base, reverse)
}

fn recorded(qkv: &Tensor, y: Tensor, heads: usize, base: f64, reverse: bool) -> Tensor {
    let [y] = record(Recipe::primitive("rotary"), &[qkv], [y], move |b| {
        vec![Some(rotary(&b.grad(0), heads, base, !reverse))]
    });
    y
}

#[track_caller]
fn each(qkv: &Tensor, heads: usize) -> usize {
    match *qkv.shape() {
        [.., width] if qkv.rank() == 3 && heads > 0 && width > 0 && width % (6 * heads) == 0 => {
            width / (3 * heads)
        }
        _ => panic!("rotary: qkv {:?} with {heads} heads; expected (B, T, 3 D), D / heads even", qkv.shape()),
    }
}

/// [`rotary`] in other primitives.
pub fn composite(qkv: &Tensor, heads: usize, base: f64, reverse: bool) -> Tensor {
    let each = each(qkv, heads);
    let [batch, time, width] = qkv.dims();
    let half = each / 2;
    let table = |f: fn((f64, f64)) -> f64| {
        let turns: Vec<f64> = (0..time).flat_map(|t| angles(t, each, base)).map(f).collect();
        Tensor::from_slice(&turns, [time, 1, half]).cast(qkv.dtype())
    };
    let (cos, sin) = (table(|(c, _)| c), table(|(_, s)| s).affine(if reverse { -1.0 } else { 1.0 }, 0.0));
    let x = shape::reshape(&shape::narrow(qkv, 2, 0, width / 3 * 2), [batch, time, 2 * heads, each]);
    let (a, b) = (shape::narrow(&x, 3, 0, half), shape::narrow(&x, 3, half, half));
    let first = binary::sub(&binary::mul(&a, &cos), &binary::mul(&b, &sin));
    let second = binary::add(&binary::mul(&a, &sin), &binary::mul(&b, &cos));
    let turned = shape::reshape(&shape::concat(&[&first, &second], 3), [batch, time, width / 3 * 2]);
    shape::concat(&[&turned, &shape::narrow(qkv, 2, width / 3 * 2, width / 3)], 2)
}

fn cases() -> Vec<Case> {
    let case = |[b, t, h, e]: [usize; 4], reverse: bool| {
        let name = format!("B={b} T={t} H={h} E={e} reverse={reverse}");
        Case::new(name, vec![normal(1, &[b, t, 3 * h * e])], move |x| vec![rotary(&x[0], h, 1e4, reverse)])
            .composite(move |x| vec![composite(&x[0], h, 1e4, reverse)])
    };
    vec![
        case([1, 1, 1, 2], false),
        case([2, 5, 3, 4], false),
        case([2, 5, 1, 6], true),
        case([16, 256, 4, 32], false)
            .order(0)
            .bench(8 * 16 * 256 * 384, 3 * 16 * 256 * 384)
            .backward(8 * 16 * 256 * 384, 3 * 16 * 256 * 384),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn products_depend_on_distances_alone() {
        let x = Tensor::from_fn([1, 9, 12], |i| ((i % 12) as f64 * 0.7).sin());
        let y = rotary(&x, 1, 100.0, false).to_f64_vec();
        let score = |i: usize, j: usize| (0..4).map(|e| y[i * 12 + e] * y[j * 12 + 4 + e]).sum::<f64>();
        assert!((score(5, 2) - score(8, 5)).abs() < 1e-12);
        assert!((score(5, 2) - score(5, 4)).abs() > 1e-3);
        assert_eq!(x.dtype(), DType::F64);
    }
}
