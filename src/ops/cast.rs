//! Conversion between dtypes.

use super::{Case, OpInfo, normal};
use crate::autograd::{Recipe, record};
use crate::cpu::par;
use crate::cuda::{Gpu, Grid, Kernel};
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
    let y = match x.gpu() {
        Some(gpu) => launch(gpu, x, dtype),
        None => with_plain!(x.dtype(), S => with_plain!(dtype, D => convert::<S, D>(x))),
    };
    if !dtype.is_float() || !x.dtype().is_float() {
        return y;
    }
    let from = x.dtype();
    let [y] = record(Recipe::primitive("cast"), &[x], [y], move |b| vec![Some(cast(&b.grad(0), from))]);
    y
}

/// The conversion on a device, by way of f32 where there is no kernel for the pair.
#[track_caller]
fn launch(gpu: Gpu, x: &Tensor, dtype: DType) -> Tensor {
    use DType::{BF16, F16, F32, F64, I32, U8};
    if x.dtype() == F64 || dtype == F64 {
        // f64 lies on devices in transit only.
        return cast(&x.moved(None), dtype).moved(Some(gpu));
    }
    let symbol = match (x.dtype(), dtype) {
        (F32, BF16) => "cast_f32_bf16",
        (F32, F16) => "cast_f32_f16",
        (F32, U8) => "cast_f32_u8",
        (F32, I32) => "cast_f32_i32",
        (BF16, F32) => "cast_bf16_f32",
        (F16, F32) => "cast_f16_f32",
        (U8, F32) => "cast_u8_f32",
        (I32, F32) => "cast_i32_f32",
        (U8, I32) => "cast_u8_i32",
        _ => return launch(gpu, &launch(gpu, x, F32), dtype),
    };
    let y = gpu.empty(x.shape(), dtype);
    let kernel = Kernel { file: "cast", symbol };
    gpu.launch(kernel, Grid::flat(x.len().div_ceil(4)), &[&y, x, &(x.len() as i64)]);
    y.finish()
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
        Case::new("large to f16", vec![normal(2, &[64, 196, 128])], |x| vec![cast(&x[0], DType::F16)])
            .order(0)
            .bench(6 * 64 * 196 * 128, 0),
        Case::new("large to bytes", vec![normal(2, &[64, 196, 128])], |x| vec![cast(&x[0], DType::U8)])
            .order(0)
            .bench(5 * 64 * 196 * 128, 0),
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
