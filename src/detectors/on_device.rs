//! What an [`Index`] asks of the device that it is used on (inside [`crate::cuda::Device::run`]); `None` on the CPU.

use super::neighbours::{Proposal, proposals, square};
use super::{Index, Table};
use crate::cpu::par;
use crate::cuda::Gpu;
use crate::ops::distances::{self, MOST_NEAREST};
use crate::tensor::Tensor;
use std::ops::Range;

/// Queries that are on the device at once.
const QUERIES: usize = 1 << 16;
/// Queries of a task.
const ROWS: usize = 256;

impl Index {
    /// (squared distance, row) of the k nearest rows of every query, or of the nearest other ones if the queries are the
    /// rows of the index: a device proposes, [`Index::decide`] measures. `None` also for more neighbours than a device
    /// keeps.
    pub(super) fn proposed_by_device(&self, queries: &Table, k: usize, own: bool) -> Option<Vec<(f64, u32)>> {
        let most = proposals(k) + usize::from(own);
        Gpu::current().filter(|_| most <= MOST_NEAREST)?;
        let y = self.rounded(self.points(), 0..self.points().rows()).1;
        let blocks: Vec<(f64, u32)> = (0..self.parts.len() as u32).map(|block| (0.0, block)).collect();
        let mut pairs = vec![(0.0, 0); queries.rows() * k];
        for first in (0..queries.rows()).step_by(QUERIES) {
            let n = QUERIES.min(queries.rows() - first);
            let (norms, x) = self.rounded(queries, first..first + n);
            let [limits, names] = distances::nearest(&x, &y, most).map(|t| t.on_host());
            let (limits, names) = (limits.as_slice::<f32>(), names.as_slice::<i32>());
            par::chunks_mut(&mut pairs[first * k..(first + n) * k], ROWS * k, |chunk, pairs| {
                let mut rows = Vec::with_capacity(most);
                for (i, pairs) in (chunk * ROWS..).zip(pairs.chunks_exact_mut(k)) {
                    let own = own.then_some((first + i) as u32);
                    rows.clear();
                    let found =
                        names[i * most..(i + 1) * most].iter().filter(|&&j| j >= 0).map(|&j| j as u32);
                    rows.extend(found.filter(|&j| own != Some(j)));
                    let (x, limit) = (queries.row(first + i), limits[(i + 1) * most - 1] as f64);
                    let norm = norms[i] as f64;
                    let found =
                        self.decide(&Proposal { x, own, norm, rows: &rows, limit, blocks: &blocks }, k);
                    pairs.copy_from_slice(&found);
                }
            });
        }
        Some(pairs)
    }

    /// log Σ_j exp(−scale |x − y_j|²) of every query over the rows of the index.
    pub(super) fn kernel_log_sums(&self, queries: &Table, scale: f64) -> Option<Vec<f64>> {
        Gpu::current()?;
        let y = self.rounded(self.points(), 0..self.points().rows()).1;
        let mut sums = Vec::with_capacity(queries.rows());
        for first in (0..queries.rows()).step_by(QUERIES) {
            let x = self.rounded(queries, first..queries.rows().min(first + QUERIES)).1;
            sums.extend(distances::kernel_log_sum(&x, &y, scale).to_f64_vec());
        }
        Some(sums)
    }

    /// These rows less the centre, in f32: |x|² of each, and all of them on the device.
    fn rounded(&self, x: &Table, rows: Range<usize>) -> (Vec<f32>, Tensor) {
        let d = x.columns();
        let mut values = vec![0.0f32; rows.len() * d];
        par::chunks_mut(&mut values, ROWS * d, |chunk, values| {
            for (i, out) in (rows.start + chunk * ROWS..).zip(values.chunks_exact_mut(d)) {
                let cells = x.row(i).iter().zip(&self.centre);
                out.iter_mut().zip(cells).for_each(|(out, (x, c))| *out = (x - c) as f32);
            }
        });
        let norms = values.chunks_exact(d).map(square).collect();
        (norms, Tensor::from_slice(&values, [rows.len(), d]))
    }
}
