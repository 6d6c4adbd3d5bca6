//! Counter-based random numbers (in preparation).

use crate::nn::Initial;
use crate::tensor::{DType, Shape, Tensor};

/// Philox4x32-10.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Philox {
    seed: u64,
}

impl Philox {
    /// A generator keyed by `seed`, at step 0, draw 0.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The value of a new parameter.
    pub fn initial(&mut self, shape: Shape, dtype: DType, initial: Initial) -> Tensor {
        let _ = (self.seed, initial);
        Tensor::zeros(shape, dtype)
    }
}
