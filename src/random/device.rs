//! The draws as kernels: the same words, and the same bits of every element.

use super::Philox;
use crate::cuda::{Draw, Gpu, Grid, Kernel, Kernels};
use crate::tensor::{DType, Shape, Tensor};

const FILL: Kernels = Kernels::new("random", ["random_f32", "random_bf16", "random_f16"]);
const CATEGORICAL: Kernels =
    Kernels::new("random", ["categorical_f32", "categorical_bf16", "categorical_f16"]);

/// In the order of `Law` in kernels/random.cu.
#[derive(Clone, Copy)]
pub(super) enum Law {
    Uniform,
    Open,
    Normal,
    Rademacher,
    /// 1 for words below this.
    Bernoulli(u64),
}

impl Philox {
    /// The present draw, taken, as kernels want it.
    pub(crate) fn device_draw(&mut self) -> Draw {
        Draw::of(&self.take_draw())
    }

    /// The device to draw on; f64 is drawn on the host.
    pub(super) fn device_for(dtype: DType) -> Option<Gpu> {
        Gpu::current().filter(|_| dtype != DType::F64)
    }

    pub(super) fn drawn(&mut self, gpu: Gpu, law: Law, shape: Shape, dtype: DType) -> Tensor {
        let (code, threshold) = match law {
            Law::Uniform => (0, 0),
            Law::Open => (1, 0),
            Law::Normal => (2, 0),
            Law::Rademacher => (3, 0),
            Law::Bernoulli(threshold) => (4, threshold),
        };
        let (y, n) = (gpu.empty(shape, dtype), shape.len());
        let grid = Grid::flat(n.div_ceil(4));
        gpu.launch(FILL.of(dtype), grid, &[&y, &(n as i64), &code, &threshold, &self.device_draw()]);
        y.finish()
    }

    pub(super) fn drawn_integers(&mut self, gpu: Gpu, low: i32, range: u32, shape: Shape) -> Tensor {
        let (y, n) = (gpu.empty(shape, DType::I32), shape.len());
        let kernel = Kernel { file: "random", symbol: "random_i32" };
        let grid = Grid::flat(n.div_ceil(4));
        gpu.launch(kernel, grid, &[&y, &(n as i64), &low, &range, &self.device_draw()]);
        y.finish()
    }

    pub(super) fn drawn_categories(&mut self, gpu: Gpu, logits: &Tensor, k: usize) -> Tensor {
        let lead = Shape::new(&logits.shape()[..logits.rank() - 1]);
        let (y, rows) = (gpu.empty(lead, DType::I32), lead.len());
        let grid = Grid::new(rows.div_ceil(4), 128);
        let args: &[&dyn crate::cuda::Arg] = &[&y, logits, &(rows as i64), &(k as i32), &self.device_draw()];
        gpu.launch(CATEGORICAL.of(logits.dtype()), grid, args);
        y.finish()
    }
}
