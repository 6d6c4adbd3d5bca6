//! The factor on the loss where gradients pass through f16 (Micikevicius et al. 2018, arXiv:1710.03740).

use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Steps without an overflow after which the factor is doubled.
const PATIENCE: u32 = 2000;
/// The largest factor, above which f32 gains nothing.
const MOST: f64 = 16_777_216.0;

/// The factor, always a power of two times the first, so that scaling there and back changes no bit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Scaler {
    pub(super) scale: f64,
    /// Steps since it changed.
    good: u32,
}

impl Scaler {
    pub(super) fn new(first: f64) -> Self {
        Self { scale: first, good: 0 }
    }

    /// (2,) the factor and its inverse.
    pub(super) fn tensor(&self) -> Tensor {
        crate::cuda::on_host(|| Tensor::from_slice(&[self.scale as f32, (1.0 / self.scale) as f32], [2]))
    }

    /// A gradient was not finite: whether a smaller factor is worth trying.
    pub(super) fn overflowed(&mut self) -> bool {
        self.good = 0;
        self.scale *= 0.5;
        self.scale >= 1.0
    }

    /// A step was taken.
    pub(super) fn went_well(&mut self) {
        self.good += 1;
        if self.good >= PATIENCE && self.scale < MOST {
            *self = Self::new(self.scale * 2.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_falls_at_once_and_rises_slowly() {
        let mut scaler = Scaler::new(4.0);
        (0..PATIENCE - 1).for_each(|_| scaler.went_well());
        assert_eq!(scaler.scale, 4.0);
        scaler.went_well();
        assert_eq!(scaler.scale, 8.0);
        assert!(scaler.overflowed() && scaler.overflowed() && scaler.overflowed());
        assert_eq!((scaler.scale, scaler.tensor().to_f64_vec()), (1.0, vec![1.0, 1.0]));
        assert!(!scaler.overflowed(), "below 1 the gradient itself is not finite");
        let mut high = Scaler::new(MOST);
        (0..PATIENCE).for_each(|_| high.went_well());
        assert_eq!(high.scale, MOST);
    }
}
