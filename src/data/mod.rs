//! Data: sources that read files into a [`Dataset`], and transforms with their log-determinants.

use crate::tensor::Tensor;

/// Named examples of one shape, in memory.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Where it came from, short enough for a table.
    pub name: String,
    /// (N, ...) u8 or f32; images are (N, H, W, C).
    pub values: Tensor,
    /// (N,) class labels, if known.
    pub labels: Option<Vec<i32>>,
}
