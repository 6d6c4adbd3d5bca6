//! k-means: starts for mixtures and hidden Markov models.
//!
//! Greedy k-means++ (Arthur & Vassilvitskii 2007: each centre is drawn with probability proportional to the squared
//! distance to the nearest centre so far; of 2 + ln K draws the one that lowers the inertia most is kept), then
//! Lloyd's iterations (1982) until no assignment changes. 3 N K D flops per iteration, f64.

use crate::cpu::{par, simd};
use crate::random::{Philox, WordStream};
use crate::tensor::Tensor;

/// Rows per parallel chunk.
const CHUNK: usize = 512;

/// A partition of rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Clusters {
    /// (K, D) row-major.
    pub centres: Vec<f64>,
    /// The centre of every row.
    pub assignment: Vec<usize>,
    /// Σ squared distances to the own centre.
    pub inertia: f64,
}

/// Partitions the rows of `x` (N, D) f64 into `k` clusters, in at most `iterations` of Lloyd's steps. A cluster that
/// loses its last row keeps its centre.
///
/// # Panics
/// When there are no rows or `k` is 0.
#[track_caller]
pub fn kmeans(x: &Tensor, k: usize, iterations: usize, rng: &mut Philox) -> Clusters {
    let [n, d] = x.dims();
    assert!(n > 0 && k > 0, "kmeans: {k} clusters of {n} rows");
    let xs = x.as_slice::<f64>();
    let mut centres = plus_plus(xs, d, k, rng);
    let (mut assignment, mut inertia) = (vec![usize::MAX; n], 0.0);
    for _ in 0..iterations.max(1) {
        let nearest = nearest(xs, d, &centres);
        inertia = nearest.iter().map(|(_, distance)| distance).sum();
        let changed = nearest.iter().zip(&assignment).any(|((c, _), old)| c != old);
        assignment = nearest.into_iter().map(|(c, _)| c).collect();
        if !changed {
            break;
        }
        let (mut sums, mut counts) = (vec![0.0; k * d], vec![0usize; k]);
        for (row, &c) in xs.chunks_exact(d.max(1)).zip(&assignment) {
            sums[c * d..][..d].iter_mut().zip(row).for_each(|(s, x)| *s += x);
            counts[c] += 1;
        }
        for c in (0..k).filter(|&c| counts[c] > 0) {
            let mean = sums[c * d..][..d].iter().map(|s| s / counts[c] as f64);
            centres[c * d..][..d].iter_mut().zip(mean).for_each(|(to, m)| *to = m);
        }
    }
    Clusters { centres, assignment, inertia }
}

/// (centre, squared distance) of every row.
fn nearest(xs: &[f64], d: usize, centres: &[f64]) -> Vec<(usize, f64)> {
    let n = xs.len() / d.max(1);
    let mut out = vec![(0, f64::INFINITY); n];
    par::chunks_mut(&mut out, CHUNK, |chunk, out| {
        for (i, best) in out.iter_mut().enumerate() {
            let row = &xs[(chunk * CHUNK + i) * d..][..d];
            for (c, centre) in centres.chunks_exact(d.max(1)).enumerate() {
                let distance = squared_distance(row, centre);
                if distance < best.1 {
                    *best = (c, distance);
                }
            }
        }
    });
    out
}

fn plus_plus(xs: &[f64], d: usize, k: usize, rng: &mut Philox) -> Vec<f64> {
    let (n, mut draws) = (xs.len() / d.max(1), rng.stream());
    let row = |i: usize| &xs[i * d..][..d];
    let mut centres = row(draws.below(n as u64) as usize).to_vec();
    let mut distances = vec![f64::INFINITY; n];
    shrink(xs, d, &centres, &mut distances);
    let trials = 2 + (k as f64).ln() as usize;
    while centres.len() < k * d {
        let total: f64 = distances.iter().sum();
        let mut best: Option<(f64, usize, Vec<f64>)> = None;
        for _ in 0..trials {
            let mut left = uniform(&mut draws) * total;
            // All rows lie on centres when the total is 0: then any row will do.
            let drawn = distances.iter().position(|distance| {
                left -= distance;
                left < 0.0
            });
            let drawn = drawn.unwrap_or_else(|| draws.below(n as u64) as usize);
            let mut shrunk = distances.clone();
            shrink(xs, d, row(drawn), &mut shrunk);
            let inertia = shrunk.iter().sum();
            if best.as_ref().is_none_or(|(least, ..)| inertia < *least) {
                best = Some((inertia, drawn, shrunk));
            }
        }
        let (_, drawn, shrunk) = best.expect("there are at least two trials");
        centres.extend_from_slice(row(drawn));
        distances = shrunk;
    }
    centres
}

/// A number in [0, 1).
fn uniform(draws: &mut WordStream) -> f64 {
    draws.below(1 << 53) as f64 / (1u64 << 53) as f64
}

/// Lowers the distances where `centre` is nearer.
fn shrink(xs: &[f64], d: usize, centre: &[f64], distances: &mut [f64]) {
    par::chunks_mut(distances, CHUNK, |chunk, out| {
        for (i, distance) in out.iter_mut().enumerate() {
            *distance = distance.min(squared_distance(&xs[(chunk * CHUNK + i) * d..][..d], centre));
        }
    });
}

/// |a − b|².
pub(super) fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    simd::vectorize(
        #[inline(always)]
        || {
            let mut lanes = [0.0; 8];
            let ((a, ra), (b, rb)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
            for (a, b) in a.iter().zip(b) {
                for i in 0..8 {
                    lanes[i] += (a[i] - b[i]) * (a[i] - b[i]);
                }
            }
            lanes.iter().sum::<f64>() + ra.iter().zip(rb).map(|(x, y)| (x - y) * (x - y)).sum::<f64>()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_heaps_are_found() {
        let noise = Philox::new(1).normal([300, 2], crate::DType::F64);
        let noise = noise.as_slice::<f64>();
        let x = Tensor::from_fn([300, 2], |i| 10.0 * ((i / 2) % 3) as f64 + noise[i]);
        let found = kmeans(&x, 3, 100, &mut Philox::new(2));
        for i in 3..300 {
            assert_eq!(found.assignment[i], found.assignment[i % 3], "row {i}");
        }
        assert!((found.inertia / 600.0 - 1.0).abs() < 0.2, "{}", found.inertia);
    }

    #[test]
    fn more_clusters_than_distinct_rows() {
        let x = Tensor::from_slice(&[1.0, 1.0, 1.0, 2.0], [4, 1]);
        let found = kmeans(&x, 3, 10, &mut Philox::new(3));
        assert_eq!(found.inertia, 0.0);
        assert!(found.centres.iter().all(|c| *c == 1.0 || *c == 2.0));
    }
}
