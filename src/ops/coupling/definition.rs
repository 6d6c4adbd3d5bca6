//! The coupling in primitives, and its cases.

use super::{Coupling, coupling, inverse, kept_half};
use crate::ops::{Case, binary, normal, shape, unary};
use crate::tensor::Tensor;

/// (a, b, s, t) in primitives; s is 0 for the additive kind.
fn parts(x: &Tensor, h: &Tensor, kind: Coupling) -> [Tensor; 4] {
    let (axis, c) = (x.rank() - 1, x.shape()[x.rank() - 1]);
    let k = c / 2;
    let t = shape::narrow(h, axis, kind.outputs(c) - k, k);
    let s = if kind == Coupling::Additive {
        unary::affine(&t.detach(), 0.0, 0.0)
    } else {
        shape::narrow(h, axis, 0, k)
    };
    [shape::narrow(x, axis, 0, c - k), shape::narrow(x, axis, c - k, k), kind.log_scale(&s), t]
}

pub(super) fn composite(x: &Tensor, h: &Tensor, kind: Coupling) -> (Tensor, Tensor) {
    let [a, b, log_scale, t] = parts(x, h, kind);
    let moved = binary::mul(&binary::add(&b, &t), &unary::exp(&log_scale));
    (shape::concat(&[&a, &moved], x.rank() - 1), log_scale.sum_examples())
}

pub(super) fn composite_inverse(y: &Tensor, h: &Tensor, kind: Coupling) -> Tensor {
    let [a, moved, log_scale, t] = parts(y, h, kind);
    let b = binary::sub(&binary::mul(&moved, &unary::exp(&unary::neg(&log_scale))), &t);
    shape::concat(&[&a, &b], y.rank() - 1)
}

pub(super) fn cases() -> Vec<Case> {
    let pair = |(y, logdet)| vec![y, logdet];
    let kinds = [Coupling::Sigmoid, Coupling::Exp, Coupling::Tanh, Coupling::Additive];
    let inputs = |dims: &[usize], kind: Coupling, spread: f64| {
        let mut out = dims.to_vec();
        out[dims.len() - 1] = kind.outputs(dims[dims.len() - 1]);
        vec![normal(1, dims), unary::affine(&normal(2, &out), spread, 0.0)]
    };
    let mut cases = Vec::new();
    for dims in [&[3, 1][..], &[2, 3, 4], &[2, 3, 5], &[2, 8]] {
        let (axis, c) = (dims.len() - 1, dims[dims.len() - 1]);
        cases.push(
            Case::new(format!("kept_half {dims:?}"), vec![normal(3, dims)], |x| vec![kept_half(&x[0])])
                .composite(move |x| vec![shape::narrow(&x[0], axis, 0, c - c / 2)]),
        );
    }
    for kind in kinds {
        for dims in [&[1, 2][..], &[3, 5], &[2, 3, 5, 4], &[1, 7, 7, 8], &[3, 2, 3, 12], &[2, 3, 600]] {
            cases.push(
                Case::new(format!("{kind:?} {dims:?}"), inputs(dims, kind, 0.7), move |x| {
                    pair(coupling(&x[0], &x[1], kind))
                })
                .composite(move |x| pair(composite(&x[0], &x[1], kind))),
            );
            cases.push(
                Case::new(format!("{kind:?} inverse {dims:?}"), inputs(dims, kind, 0.7), move |x| {
                    vec![inverse(&x[0], &x[1], kind)]
                })
                .composite(move |x| vec![composite_inverse(&x[0], &x[1], kind)]),
            );
        }
        if kind != Coupling::Exp {
            cases.push(
                Case::new(format!("{kind:?} extreme"), inputs(&[4, 3, 3, 4], kind, 30.0), move |x| {
                    pair(coupling(&x[0], &x[1], kind))
                })
                .composite(move |x| pair(composite(&x[0], &x[1], kind)))
                .order(0),
            );
        }
        let n = 64 * 28 * 28 * 12;
        cases.push(
            Case::new(format!("{kind:?} large"), inputs(&[64, 28, 28, 12], kind, 0.7), move |x| {
                pair(coupling(&x[0], &x[1], kind))
            })
            .composite(move |x| pair(composite(&x[0], &x[1], kind)))
            .order(0)
            .bench(if kind == Coupling::Additive { 10 * n } else { 12 * n }, 13 * n)
            .backward(if kind == Coupling::Additive { 16 * n } else { 20 * n }, 13 * n),
        );
        let inputs = inputs(&[64, 28, 28, 12], kind, 0.7);
        let large =
            Case::new(format!("{kind:?} inverse large"), inputs, move |x| vec![inverse(&x[0], &x[1], kind)]);
        let large = large.composite(move |x| vec![composite_inverse(&x[0], &x[1], kind)]);
        cases.push(large.order(0).bench(if kind == Coupling::Additive { 10 * n } else { 12 * n }, 13 * n));
    }
    cases
}
