//! Standardised columns: y = (x − shift) / scale with f64 numbers for each column.

use crate::cuda::on_host;
use crate::tensor::{DType, Tensor};

/// y (..., D) of `dtype` from x (..., D). On devices, which have no f64, the shift is taken off in two parts that
/// hold it to 48 bits; f64 values are standardised on the host.
pub(crate) fn standardised(x: &Tensor, shift: &[f64], scale: &[f64], dtype: DType) -> Tensor {
    let d = shift.len();
    let row = |f: &dyn Fn(usize) -> f64| Tensor::from_fn([d], f);
    if x.gpu().is_none() || x.dtype() == DType::F64 {
        let y = on_host(|| {
            let y = &(&x.on_host().cast(DType::F64) - &row(&|i| shift[i])) / &row(&|i| scale[i]);
            y.cast(dtype)
        });
        return y.beside(x);
    }
    let high = |i: usize| shift[i] as f32 as f64;
    let part = |f: &dyn Fn(usize) -> f64| on_host(|| row(f).cast(DType::F32)).beside(x);
    let centred = &(&x.cast(DType::F32) - &part(&high)) - &part(&|i| shift[i] - high(i));
    (&centred / &part(&|i| scale[i])).cast(dtype)
}

/// x (..., D) f32 from y; wherever y is, calculated in f64 on the host.
pub(crate) fn restored(y: &Tensor, shift: &[f64], scale: &[f64]) -> Tensor {
    let d = shift.len();
    let x = on_host(|| {
        let row = |of: &[f64]| Tensor::from_slice(of, [d]);
        (&(&y.on_host().cast(DType::F64) * &row(scale)) + &row(shift)).cast(DType::F32)
    });
    x.beside(y)
}
