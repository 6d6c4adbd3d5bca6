//! Squeeze: 2 by 2 pixels become one pixel of four times the channels, volume preserved.
//!
//! y[b, i, j, 4 c + 2 p + q] = x[b, 2 i + p, 2 j + q, c] for p, q in {0, 1}: (B, H, W, C) to
//! (B, H/2, W/2, 4 C), the channel order of Dinh et al. 2017 ("Density estimation using Real NVP").
//! One pass: 8 bytes per element at f32.

use super::{Case, OpInfo, normal, shape};
use crate::autograd::{Recipe, record};
use crate::cpu::par;
use crate::tensor::{NewTensor, Plain, Tensor, with_plain};

/// The registry's line.
pub const OP: OpInfo =
    OpInfo { name: "squeeze", family: "primitive", summary: "2 by 2 pixels to channels and back", cases };

/// (B, H, W, C) to (B, H/2, W/2, 4 C).
///
/// # Panics
/// When H or W is odd.
#[track_caller]
pub fn squeeze(x: &Tensor) -> Tensor {
    let [b, h, w, c] = x.dims();
    assert!(h % 2 == 0 && w % 2 == 0, "squeeze: height and width of {:?} must be even", x.shape());
    if x.gpu().is_some() {
        return composite(x);
    }
    let y = with_plain!(x.dtype(), T => {
        let mut out = NewTensor::<T>::new([b, h / 2, w / 2, 4 * c]);
        forward(x.as_slice::<T>(), out.as_mut(), w, c);
        out.finish()
    });
    let [y] = record(Recipe::primitive("squeeze"), &[x], [y], |back| vec![Some(unsqueeze(&back.grad(0)))]);
    y
}

/// The inverse of [`squeeze`]: (B, H, W, 4 C) to (B, 2 H, 2 W, C).
///
/// # Panics
/// When the channels are not a multiple of 4.
#[track_caller]
pub fn unsqueeze(y: &Tensor) -> Tensor {
    let [b, h, w, c4] = y.dims();
    assert!(c4 % 4 == 0, "unsqueeze: the channels of {:?} must be a multiple of 4", y.shape());
    if y.gpu().is_some() {
        return composite_inverse(y);
    }
    let x = with_plain!(y.dtype(), T => {
        let mut out = NewTensor::<T>::new([b, 2 * h, 2 * w, c4 / 4]);
        backward(y.as_slice::<T>(), out.as_mut(), 2 * w, c4 / 4);
        out.finish()
    });
    let [x] = record(Recipe::primitive("unsqueeze"), &[y], [x], |back| vec![Some(squeeze(&back.grad(0)))]);
    x
}

/// Pairs of rows per task: depends on the size of a row alone.
fn pairs(w: usize, c: usize) -> usize {
    (par::GRAIN / (2 * w * c).max(1)).max(1)
}

fn forward<T: Plain>(x: &[T], y: &mut [T], w: usize, c: usize) {
    let (pair, per) = (2 * w * c, pairs(w, c));
    par::chunks_mut(y, (per * pair).max(1), |k, y| {
        for (r, y) in y.chunks_exact_mut(pair).enumerate() {
            let rows = &x[(k * per + r) * pair..][..pair];
            let (top, low) = rows.split_at(w * c);
            for (j, y) in y.chunks_exact_mut(4 * c).enumerate() {
                let (top, low) = (&top[2 * j * c..][..2 * c], &low[2 * j * c..][..2 * c]);
                for (ch, y) in y.chunks_exact_mut(4).enumerate() {
                    y.copy_from_slice(&[top[ch], top[c + ch], low[ch], low[c + ch]]);
                }
            }
        }
    });
}

fn backward<T: Plain>(y: &[T], x: &mut [T], w: usize, c: usize) {
    let (pair, per) = (2 * w * c, pairs(w, c));
    par::chunks_mut(x, (per * pair).max(1), |k, x| {
        for (r, rows) in x.chunks_exact_mut(pair).enumerate() {
            let y = &y[(k * per + r) * pair..][..pair];
            let (top, low) = rows.split_at_mut(w * c);
            for (j, y) in y.chunks_exact(4 * c).enumerate() {
                let (top, low) = (&mut top[2 * j * c..][..2 * c], &mut low[2 * j * c..][..2 * c]);
                for (ch, y) in y.chunks_exact(4).enumerate() {
                    (top[ch], top[c + ch], low[ch], low[c + ch]) = (y[0], y[1], y[2], y[3]);
                }
            }
        }
    });
}

fn composite(x: &Tensor) -> Tensor {
    let [b, h, w, c] = x.dims();
    let split = shape::reshape(x, [b, h / 2, 2, w / 2, 2, c]);
    shape::reshape(&shape::permute(&split, &[0, 1, 3, 5, 2, 4]), [b, h / 2, w / 2, 4 * c])
}

fn composite_inverse(y: &Tensor) -> Tensor {
    let [b, h, w, c] = y.dims();
    let split = shape::reshape(y, [b, h, w, c / 4, 2, 2]);
    shape::reshape(&shape::permute(&split, &[0, 1, 4, 2, 5, 3]), [b, 2 * h, 2 * w, c / 4])
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dims in [[1, 2, 2, 1], [2, 4, 6, 3], [3, 2, 10, 5]] {
        cases.push(
            Case::new(format!("squeeze {dims:?}"), vec![normal(1, &dims)], |x| vec![squeeze(&x[0])])
                .composite(|x| vec![composite(&x[0])]),
        );
        let [b, h, w, c] = dims;
        cases.push(
            Case::new(format!("unsqueeze {dims:?}"), vec![normal(2, &[b, h, w, 4 * c])], |x| {
                vec![unsqueeze(&x[0])]
            })
            .composite(|x| vec![composite_inverse(&x[0])]),
        );
    }
    let large = vec![normal(3, &[64, 28, 28, 8])];
    cases.push(
        Case::new("squeeze large", large, |x| vec![squeeze(&x[0])])
            .composite(|x| vec![composite(&x[0])])
            .order(0)
            .bench(8 * 401_408, 0)
            .backward(8 * 401_408, 0),
    );
    cases
}
