//! Cluster-based local outlier factor (He, Xu & Deng 2003), unweighted as PyOD's default.
//!
//! ```text
//! score(x) = |x − c(x)|                                   if x's cluster is large, c(x) its centre
//!          = min over the large clusters of |x − c|       if it is small
//! ```
//! The clusters of [`super::kmeans`] by falling size s_1 ≥ s_2 ≥ ...: the first b are large, b the smallest with
//! s_1 + ... + s_b ≥ α n and s_b / s_{b+1} ≥ β, or if none has both, with the first, or with the second, or all.

use super::kmeans::Clusters;
use super::table::squared_distance;
use super::{DetectorInfo, Method, Scaling, Table, boxed, defaults, setting};
use crate::error::Result;
use crate::random::Philox;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub(super) static CBLOF: DetectorInfo = DetectorInfo {
    name: "cblof",
    family: "clusters",
    summary: "distance to the row's own cluster if it is large, else to the nearest large one (He, Xu & Deng 2003)",
    scaling: Scaling::Standard,
    settings: defaults::<Cblof>,
    build: boxed::<Cblof>,
};

#[derive(Serialize, Deserialize)]
struct Settings {
    /// K.
    clusters: usize,
    /// α, the share of the rows that the large clusters hold.
    alpha: f64,
    /// β, how many times larger the smallest large cluster is than the largest small one.
    beta: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { clusters: 8, alpha: 0.9, beta: 5.0 }
    }
}

#[derive(Serialize, Deserialize)]
struct Cblof {
    clusters: Clusters,
    large: Vec<bool>,
}

impl Method for Cblof {
    const INFO: &'static DetectorInfo = &CBLOF;
    type Settings = Settings;

    fn fit(settings: &Settings, reference: &Table, rng: &Philox) -> Result<Self> {
        let &Settings { clusters, alpha, beta } = settings;
        if !(alpha > 0.0 && alpha < 1.0 && beta > 1.0 && beta.is_finite()) {
            let message =
                format!("alpha = {alpha}, beta = {beta}; expected alpha in (0, 1) and beta above 1");
            return Err(setting(message));
        }
        let clusters = Clusters::fit(reference, clusters, &mut rng.clone().stream())?;
        let large = large(&clusters.sizes, reference.rows() as f64 * alpha, beta);
        Ok(Self { clusters, large })
    }

    fn score(&self, x: &Table) -> Vec<f64> {
        x.map(x.columns() * self.large.len(), |row| {
            let (own, squared) = self.clusters.nearest(row);
            let others = self.clusters.centres.iter().zip(&self.large).filter(|(_, large)| **large);
            let nearest_large =
                || others.map(|(c, _)| squared_distance(row, c)).fold(f64::INFINITY, f64::min);
            if self.large[own] { squared } else { nearest_large() }.sqrt()
        })
    }

    fn columns(&self) -> Option<usize> {
        let fits = self.large.len() == self.clusters.sizes.len() && self.large.contains(&true);
        self.clusters.columns().filter(|_| fits)
    }
}

/// Which clusters are large.
fn large(sizes: &[usize], enough: f64, beta: f64) -> Vec<bool> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|&c| std::cmp::Reverse(sizes[c]));
    let holds = |b: usize| order[..b].iter().map(|&c| sizes[c]).sum::<usize>() as f64 >= enough;
    let falls = |b: usize| sizes[order[b - 1]] as f64 >= beta * sizes[order[b]] as f64;
    let first = |f: &dyn Fn(usize) -> bool| (1..sizes.len()).find(|&b| f(b));
    let boundary = first(&|b| holds(b) && falls(b)).or_else(|| first(&holds)).or_else(|| first(&falls));
    let mut large = vec![false; sizes.len()];
    order[..boundary.unwrap_or(sizes.len())].iter().for_each(|&c| large[c] = true);
    large
}

#[cfg(test)]
mod tests {
    use super::large;

    #[test]
    fn large_clusters_by_hand() {
        // 100 rows, α n = 90: 80 + 12 hold enough, and 12 / 2 ≥ 5.
        assert_eq!(large(&[2, 80, 12, 2, 2, 2], 90.0, 5.0), [false, true, true, false, false, false]);
        // Nothing falls by β: the first that holds enough.
        assert_eq!(large(&[50, 30, 20], 75.0, 5.0), [true, true, false]);
        assert_eq!(large(&[100], 90.0, 5.0), [true]);
    }
}
