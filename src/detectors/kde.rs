//! Kernel density estimate with a Gaussian kernel (Rosenblatt 1956; Parzen 1962), exact.
//!
//! ```text
//! score(x) = −log p(x) = −log Σ_i exp(−|x − y_i|²/2h²) + log n + ½ D log 2πh²          nats
//! ```
//! h is the bandwidth in standard deviations of the reference's columns. The sum runs over tiles of the distance matrix,
//! one matrix product each, nearest first and relative to the nearest row found so far, so it neither overflows nor
//! vanishes; it ends where what is left is below 1e-22 of it. On devices it is [`crate::ops::distances::kernel_log_sum`].

use super::neighbours::Group;
use super::{DetectorInfo, Index, Method, Scaling, Table, boxed, defaults, setting};
use crate::cpu::math;
use crate::cpu::simd::vectorize;
use crate::error::Result;
use crate::random::Philox;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub(super) static KDE: DetectorInfo = DetectorInfo {
    name: "kde",
    family: "density",
    summary: "-log p of a Gaussian kernel density estimate, exact (Rosenblatt 1956; Parzen 1962)",
    scaling: Scaling::Standard,
    settings: defaults::<Kde>,
    build: boxed::<Kde>,
};

/// Terms smaller than e^-NEGLIGIBLE of the largest are left out.
const NEGLIGIBLE: f64 = 50.0;

#[derive(Serialize, Deserialize)]
struct Settings {
    /// h.
    bandwidth: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { bandwidth: 1.0 }
    }
}

#[derive(Serialize, Deserialize)]
struct Kde {
    bandwidth: f64,
    index: Index,
}

impl Method for Kde {
    const INFO: &'static DetectorInfo = &KDE;
    const DEVICES: bool = true;
    type Settings = Settings;

    fn fit(settings: &Settings, reference: &Table, _: &Philox) -> Result<Self> {
        let bandwidth = settings.bandwidth;
        if !possible(bandwidth) {
            return Err(setting(format!("bandwidth = {bandwidth}; expected a number in [1e-3, 1e3]")));
        }
        Ok(Self { bandwidth, index: Index::new(reference.clone()) })
    }

    fn score(&self, x: &Table) -> Vec<f64> {
        let scale = 1.0 / (2.0 * self.bandwidth * self.bandwidth);
        let (n, d) = (self.index.points().rows() as f64, x.columns() as f64);
        let constant = n.ln() + 0.5 * d * (std::f64::consts::PI / scale).ln();
        let on_host = || self.index.groups(x, 1, |group| log_sums(group, scale));
        let sums = self.index.kernel_log_sums(x, scale).unwrap_or_else(on_host);
        sums.into_iter().map(|log_sum| constant - log_sum).collect()
    }

    fn columns(&self) -> Option<usize> {
        let points = self.index.points();
        (points.rows() > 0 && possible(self.bandwidth)).then_some(points.columns())
    }
}

fn possible(bandwidth: f64) -> bool {
    (1e-3..=1e3).contains(&bandwidth)
}

/// log Σ_i exp(−scale |x − y_i|²) of every row of the group.
fn log_sums(group: &mut Group, scale: f64) -> Vec<f64> {
    let norms = group.norms.clone();
    // The smallest squared distance so far, and the sum relative to its term.
    let mut found = vec![(f32::INFINITY, 0.0f64); norms.len()];
    for (bound, block) in std::mem::take(&mut group.blocks) {
        let farthest = found.iter().fold(0.0f32, |m, f| m.max(f.0)) as f64;
        if (bound - farthest) * scale > NEGLIGIBLE {
            break;
        }
        let (_, tile) = group.tile(block);
        for ((products, &norm), (least, sum)) in tile.zip(&norms).zip(&mut found) {
            let (tile_least, tile_sum) = kernel_sum(products, norm, *least, scale as f32);
            // The first tile has nothing to rescale.
            let old =
                if least.is_finite() { ((tile_least - *least) as f64 * scale).exp() * *sum } else { 0.0 };
            (*least, *sum) = (tile_least, old + tile_sum as f64);
        }
    }
    found.into_iter().map(|(least, sum)| sum.ln() - least as f64 * scale).collect()
}

/// The smallest of `least` and max(0, `products` + `norm`), and Σ exp(−scale · (distance − that)).
fn kernel_sum(products: &[f32], norm: f32, least: f32, scale: f32) -> (f32, f32) {
    vectorize(
        #[inline(always)]
        || {
            let mut least = least;
            for &p in products {
                let d = (p + norm).max(0.0);
                least = if d < least { d } else { least };
            }
            let mut sums = [0.0f32; 16];
            let (packs, rest) = products.as_chunks::<16>();
            for pack in packs {
                for i in 0..16 {
                    sums[i] += math::exp(((pack[i] + norm).max(0.0) - least) * -scale);
                }
            }
            for &p in rest {
                sums[0] += math::exp(((p + norm).max(0.0) - least) * -scale);
            }
            (least, sums.iter().sum())
        },
    )
}
