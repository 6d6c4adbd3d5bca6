//! k-means (Lloyd 1957) as a detector, and the clustering that [`super::cblof`] shares.
//!
//! ```text
//! score(x) = |x − c|                      c: the nearest of K centres (distance, the default)
//!          = n / n_c + d/(1 + d)          n_c of n reference rows belong to c, d = |x − c| breaks ties (cluster_size)
//! ```
//! Centres start from greedy k-means++ (Arthur & Vassilvitskii 2007; 2 + ln K trials per centre) and move until they
//! shift by less than 1e-4 of the mean variance (squared), as scikit-learn's. There are never more centres than
//! different rows.

use super::iforest::uniform;
use super::table::squared_distance;
use super::{DetectorInfo, Method, Scaling, Table, boxed, defaults, setting};
use crate::cpu::par;
use crate::error::Result;
use crate::random::{Philox, WordStream};
use serde::{Deserialize, Serialize};

/// The registry's line.
pub(super) static KMEANS: DetectorInfo = DetectorInfo {
    name: "kmeans",
    family: "clusters",
    summary: "distance to the nearest of K centres, or how rare its cluster is (Lloyd 1957)",
    scaling: Scaling::Standard,
    settings: defaults::<KMeans>,
    build: boxed::<KMeans>,
};

const MAX_ITERATIONS: usize = 300;
const TOLERANCE: f64 = 1e-4;
/// Rows whose sums are added up on their own.
const CHUNK: usize = 1024;

/// What the score is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Measure {
    Distance,
    ClusterSize,
}

#[derive(Clone, Serialize, Deserialize)]
struct Settings {
    /// K.
    clusters: usize,
    method: Measure,
}

impl Default for Settings {
    fn default() -> Self {
        Self { clusters: 8, method: Measure::Distance }
    }
}

#[derive(Serialize, Deserialize)]
struct KMeans {
    method: Measure,
    clusters: Clusters,
}

impl Method for KMeans {
    const INFO: &'static DetectorInfo = &KMEANS;
    type Settings = Settings;

    fn fit(settings: &Settings, reference: &Table, rng: &Philox) -> Result<Self> {
        let clusters = Clusters::fit(reference, settings.clusters, &mut rng.clone().stream())?;
        Ok(Self { method: settings.method, clusters })
    }

    fn score(&self, x: &Table) -> Vec<f64> {
        let n: usize = self.clusters.sizes.iter().sum();
        x.map(x.columns() * self.clusters.sizes.len(), |row| {
            let (nearest, squared) = self.clusters.nearest(row);
            let d = squared.sqrt();
            match self.method {
                Measure::Distance => d,
                Measure::ClusterSize => n as f64 / self.clusters.sizes[nearest].max(1) as f64 + d / (1.0 + d),
            }
        })
    }

    fn columns(&self) -> Option<usize> {
        self.clusters.columns()
    }
}

/// Centres, and how many rows of the reference are nearest to each.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Clusters {
    pub centres: Table,
    pub sizes: Vec<usize>,
}

impl Clusters {
    /// At most `k` clusters of the rows of `x`.
    pub fn fit(x: &Table, k: usize, stream: &mut WordStream) -> Result<Self> {
        if k == 0 {
            return Err(setting("clusters = 0; expected at least 1"));
        }
        let (n, d) = (x.rows(), x.columns());
        let mean = x.mean();
        let spread: f64 = x.iter().map(|row| squared_distance(row, &mean)).sum::<f64>() / (n * d) as f64;
        let mut clusters = Self { centres: start(x, k.min(n), stream), sizes: Vec::new() };
        for _ in 0..MAX_ITERATIONS {
            let assigned = clusters.assign(x);
            let moved = clusters.move_centres(x, &assigned);
            if moved <= TOLERANCE * spread {
                break;
            }
        }
        clusters.sizes = vec![0; clusters.centres.rows()];
        clusters.assign(x).iter().for_each(|(c, _)| clusters.sizes[*c as usize] += 1);
        Ok(clusters)
    }

    /// The nearest centre and the squared distance to it.
    pub fn nearest(&self, row: &[f64]) -> (usize, f64) {
        let all = self.centres.iter().enumerate().map(|(c, centre)| (c, squared_distance(row, centre)));
        all.fold((0, f64::INFINITY), |best, found| if found.1 < best.1 { found } else { best })
    }

    fn assign(&self, x: &Table) -> Vec<(u32, f64)> {
        let mut out = vec![(0, 0.0); x.rows()];
        par::chunks_mut(&mut out, CHUNK, |chunk, out| {
            for (i, o) in out.iter_mut().enumerate() {
                let (c, squared) = self.nearest(x.row(chunk * CHUNK + i));
                *o = (c as u32, squared);
            }
        });
        out
    }

    /// Moves every centre to the mean of its rows, one without rows to the row that is farthest from its own; the sum of
    /// the squared shifts.
    fn move_centres(&mut self, x: &Table, assigned: &[(u32, f64)]) -> f64 {
        let (k, d) = (self.centres.rows(), x.columns());
        let mut sums = vec![vec![0.0; k * (d + 1)]; assigned.len().div_ceil(CHUNK)];
        par::chunks_mut(&mut sums, 1, |chunk, sums| {
            let rows = chunk * CHUNK..assigned.len().min((chunk + 1) * CHUNK);
            for i in rows {
                let sum = &mut sums[0][assigned[i].0 as usize * (d + 1)..][..d + 1];
                sum.iter_mut().zip(x.row(i)).for_each(|(s, x)| *s += x);
                sum[d] += 1.0;
            }
        });
        let mut total = vec![0.0; k * (d + 1)];
        sums.iter().for_each(|sums| total.iter_mut().zip(sums).for_each(|(t, s)| *t += s));
        let mut farthest: Vec<usize> = Vec::new();
        if total.chunks_exact(d + 1).any(|sum| sum[d] == 0.0) {
            farthest = (0..assigned.len()).collect();
            farthest.sort_by(|&a, &b| assigned[a].1.total_cmp(&assigned[b].1).then(b.cmp(&a)));
        }
        let mut values = Vec::with_capacity(k * d);
        for sum in total.chunks_exact(d + 1) {
            match farthest.pop() {
                Some(row) if sum[d] == 0.0 => values.extend_from_slice(x.row(row)),
                unused => {
                    farthest.extend(unused);
                    values.extend(sum[..d].iter().map(|s| s / sum[d].max(1.0)));
                }
            }
        }
        let moved = squared_distance(&values, self.centres.values());
        self.centres = Table::from_rows(k, d, |i, row| row.copy_from_slice(&values[i * d..][..d]));
        moved
    }

    /// D, or `None` when the parts of a restored one do not fit.
    pub fn columns(&self) -> Option<usize> {
        let fits = !self.sizes.is_empty() && self.centres.rows() == self.sizes.len();
        fits.then_some(self.centres.columns())
    }
}

/// Greedy k-means++: each further centre is the best of a few rows drawn by their squared distance from the present
/// ones.
fn start(x: &Table, k: usize, stream: &mut WordStream) -> Table {
    let trials = 2 + (k as f64).ln() as usize;
    let mut chosen = vec![stream.below(x.rows() as u64) as usize];
    let mut squared: Vec<f64> = x.map(x.columns(), |row| squared_distance(row, x.row(chosen[0])));
    while chosen.len() < k {
        let total: f64 = squared.iter().sum();
        if total <= 0.0 {
            break;
        }
        let mut best: Option<(f64, usize, Vec<f64>)> = None;
        for _ in 0..trials {
            let row = draw(&squared, uniform(stream) * total);
            let with = x.map(x.columns(), |y| squared_distance(y, x.row(row)));
            let with: Vec<f64> = with.iter().zip(&squared).map(|(a, b)| a.min(*b)).collect();
            let sum = with.iter().sum();
            if best.as_ref().is_none_or(|b| sum < b.0) {
                best = Some((sum, row, with));
            }
        }
        if let Some((_, row, with)) = best {
            chosen.push(row);
            squared = with;
        }
    }
    x.select(&chosen)
}

/// The first row at which the running sum of `weights` exceeds `target`; never one of weight 0.
fn draw(weights: &[f64], target: f64) -> usize {
    let (mut sum, mut last) = (0.0, 0);
    for (i, &w) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
        sum += w;
        last = i;
        if sum > target {
            break;
        }
    }
    last
}
