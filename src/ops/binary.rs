//! Elementwise operations of two tensors (in preparation).

use crate::tensor::Tensor;

/// `sum + gradient`, in the memory of `sum` when nothing is recorded and nobody else holds it.
pub fn accumulate(sum: Tensor, _gradient: Tensor) -> Tensor {
    sum
}
