//! Which tile of `kernels/wide.cuh` a product of half-width rows takes.

use super::{Gpu, Grid, Kernel};
use crate::tensor::DType;

/// A kernel with one tile of `m` by `n` per block, for bf16 and f16.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    m: usize,
    n: usize,
    threads: u32,
    /// Relative time of a flop on a busy multiprocessor: what L2 gives per flop falls with the size. Reckoned, not
    /// measured.
    cost: f64,
}

/// As `Tile128x256` in `kernels/wide.cuh`, and so on.
pub(crate) const TILE_128X256: Tile = Tile { m: 128, n: 256, threads: 256, cost: 1.0 };
/// Two blocks share a multiprocessor.
pub(crate) const TILE_128X128: Tile = Tile { m: 128, n: 128, threads: 128, cost: 1.2 };
/// For operands that are gathered: as `Gather128x128`.
pub(crate) const GATHER_128X128: Tile = Tile { m: 128, n: 128, threads: 256, cost: 1.2 };
/// For products that would leave multiprocessors without work.
pub(crate) const TILE_64X64: Tile = Tile { m: 64, n: 64, threads: 128, cost: 1.8 };

impl Tile {
    fn tiles(self, m: usize, n: usize) -> usize {
        m.div_ceil(self.m) * n.div_ceil(self.n)
    }

    /// The time of `layers` products of `m` by `n`: that of the multiprocessor which has most to do.
    fn time(self, m: usize, n: usize, layers: usize, multiprocessors: usize) -> f64 {
        let rounds = (self.tiles(m, n) * layers).div_ceil(multiprocessors.max(1));
        (rounds * self.m * self.n) as f64 * self.cost
    }

    /// A block to a tile; four slices of 32 along k of both operands in shared memory.
    #[track_caller]
    fn grid(self, m: usize, n: usize, layers: usize) -> Grid {
        assert!(layers <= 65_535, "{layers} products of {m} x {n} are too many for a grid");
        let mut grid = Grid::new(self.tiles(m, n), self.threads);
        grid.blocks[2] = layers as u32;
        grid.shared = (4 * (self.m + self.n) * 32 * 2) as u32;
        grid
    }
}

/// The symbols of a kernel for bf16 and f16, by tiles.
pub(crate) struct Wide<const TILES: usize> {
    file: &'static str,
    kernels: [(Tile, [&'static str; 2]); TILES],
}

impl<const TILES: usize> Wide<TILES> {
    pub(crate) const fn new(file: &'static str, kernels: [(Tile, [&'static str; 2]); TILES]) -> Self {
        Self { file, kernels }
    }

    /// The kernel and its grid for `layers` products of `m` by `n`, if they are of a half type and all these lengths of
    /// rows are multiples of 16 bytes.
    #[track_caller]
    pub(crate) fn of(
        &self,
        gpu: Gpu,
        dtype: DType,
        [m, n, layers]: [usize; 3],
        rows: &[usize],
    ) -> Option<(Kernel, Grid)> {
        let type_number = [DType::BF16, DType::F16].iter().position(|half| *half == dtype)?;
        if rows.iter().any(|length| length % 8 != 0) {
            return None;
        }
        let multiprocessors = gpu.multiprocessors();
        let time = |(tile, _): &&(Tile, _)| tile.time(m, n, layers, multiprocessors);
        let (tile, symbols) = self.kernels.iter().min_by(|a, b| time(a).total_cmp(&time(b)))?;
        Some((Kernel { file: self.file, symbol: symbols[type_number] }, tile.grid(m, n, layers)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tile of one product of `m` by `n` on an H200, by its size.
    fn chosen(m: usize, n: usize) -> usize {
        let tiles = [TILE_128X256, TILE_128X128, TILE_64X64];
        let time = |t: &Tile| t.time(m, n, 1, 132);
        let best = tiles.into_iter().min_by(|a, b| time(a).total_cmp(&time(b))).expect("three tiles");
        best.m * best.n
    }

    #[test]
    fn large_products_take_large_tiles_and_small_ones_fill_the_device() {
        assert_eq!(chosen(8192, 8192), 128 * 256);
        assert_eq!(chosen(4096, 4096), 128 * 256);
        assert_eq!(chosen(12_544, 128), 128 * 128);
        assert_eq!(chosen(512, 512), 64 * 64);
        assert_eq!(chosen(8, 8), 64 * 64);
    }

    #[test]
    fn grids_cover_the_product() {
        let grid = TILE_128X256.grid(129, 257, 3);
        assert_eq!((grid.blocks, grid.threads, grid.shared), ([4, 1, 3], [256, 1, 1], 98_304));
    }
}
