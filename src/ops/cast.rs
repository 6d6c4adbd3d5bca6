//! Conversion between dtypes.

use super::{Case, OpInfo, normal};
use crate::autograd::{Recipe, record};
use crate::cpu::par;
use crate::tensor::{DType, NewTensor, Plain, Tensor, with_plain};

/// The registry's line.
pub const OP: OpInfo =
    OpInfo { name: "cast", family: "primitive", summary: "conversion between dtypes", cases };

/// The same values as `dtype`: rounded to nearest, integers saturating. Differentiable between float types.
#[track_caller]
pub fn cast(x: &Tensor, dtype: DType) -> Tensor {
    if x.dtype() == dtype {
        return x.clone();
    }
    let y = with_plain!(x.dtype(), S => with_plain!(dtype, D => convert::<S, D>(x)));
    if !dtype.is_float() || !x.dtype().is_float() {
        return y;
    }
    let from = x.dtype();
    let [y] = record(Recipe::primitive("cast"), &[x], [y], move |b| vec![Some(cast(&b.grad(0), from))]);
    y
}

/// `inputs` as f32 when the first is bf16 or f16, recorded: fused ops calculate in f32 and f64 only.
pub(crate) fn widened<const N: usize>(inputs: [&Tensor; N]) -> Option<[Tensor; N]> {
    matches!(inputs[0].dtype(), DType::BF16 | DType::F16).then(|| inputs.map(|t| cast(t, DType::F32)))
}

fn convert<S: Plain, D: Plain>(x: &Tensor) -> Tensor {
    let input = x.as_slice::<S>();
    let mut out = NewTensor::<D>::new(x.shape());
    par::chunks_mut(out.as_mut(), par::GRAIN, |i, chunk| {
        let input = &input[i * par::GRAIN..][..chunk.len()];
        for (y, x) in chunk.iter_mut().zip(input) {
            *y = D::from_f64(x.to_f64());
        }
    });
    out.finish()
}

fn cases() -> Vec<Case> {
    vec![
        Case::new("to f64 and back", vec![normal(0, &[5, 13])], |x| {
            vec![cast(&cast(&x[0], DType::F64), x[0].dtype())]
        }),
        Case::new("to f32", vec![normal(1, &[100])], |x| vec![cast(&x[0], DType::F32)]).order(0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_saturate_and_floats_round() {
        let x = Tensor::from_slice(&[-5.0f32, 3.7, 300.0], [3]);
        assert_eq!(cast(&x, DType::U8).as_slice::<u8>(), &[0, 3, 255]);
        let y = cast(&Tensor::from_slice(&[1.0f64 + 1e-9], [1]), DType::F32);
        assert_eq!(y.as_slice::<f32>(), &[1.0]);
    }
}
