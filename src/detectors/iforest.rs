//! Isolation forest (Liu, Ting & Zhou 2008, 2012).
//!
//! ```text
//! score(x) = 2^(−E[h(x)] / c(ψ))           c(n) = 2 (ln(n − 1) + 0.5772...) − 2 (n − 1)/n,  c(2) = 1,  c(1) = 0
//! ```
//! h(x) is the number of random cuts that lead to x's leaf in a tree grown on ψ rows, plus c(rows left in the leaf);
//! a cut takes one column among those that still vary and a threshold uniform between its extremes; trees end at
//! depth ⌈log2 ψ⌉. In (0, 1): about 0.5 for a row that is isolated no sooner than others. One row: 0.5 everywhere.

use super::{DetectorInfo, Method, Scaling, Table, boxed, defaults, setting};
use crate::cpu::par;
use crate::error::Result;
use crate::random::{Philox, WordStream};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// The registry's line.
pub(super) static IFOREST: DetectorInfo = DetectorInfo {
    name: "iforest",
    family: "isolation",
    summary: "isolation forest: how few random cuts set a row apart (Liu, Ting & Zhou 2008)",
    scaling: Scaling::Standard,
    settings: defaults::<Forest>,
    build: boxed::<Forest>,
};

/// Rows that go down a tree together, so that one waits for memory while others are compared.
const TOGETHER: usize = 16;
/// Rows per task.
const ROWS: usize = 256;

/// The settings of forests.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Settings {
    /// Number of trees.
    pub trees: usize,
    /// ψ, rows per tree, drawn without replacement; fewer if there are fewer.
    pub samples: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { trees: 100, samples: 256 }
    }
}

impl Settings {
    pub(super) fn check(&self) -> Result<()> {
        if self.trees == 0 || self.samples == 0 || self.samples > 1 << 20 {
            let message = format!(
                "trees = {}, samples = {}; expected at least 1 of each and at most 2^20 samples",
                self.trees, self.samples
            );
            return Err(setting(message));
        }
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct Forest {
    columns: usize,
    /// ψ.
    samples: usize,
    trees: Vec<Tree>,
}

/// Nodes in arrays, the root first; the children of a node stand side by side.
#[derive(Default, Serialize, Deserialize)]
struct Tree {
    column: Vec<u32>,
    /// Rows with x ≤ threshold go to `left`, others to `left` + 1.
    threshold: Vec<f32>,
    /// A leaf is its own left child, its threshold is the largest number.
    left: Vec<u32>,
    /// h of a leaf; 0 elsewhere.
    path: Vec<f32>,
    depth: u32,
}

impl Method for Forest {
    const INFO: &'static DetectorInfo = &IFOREST;
    type Settings = Settings;

    fn fit(settings: &Settings, reference: &Table, rng: &Philox) -> Result<Self> {
        settings.check()?;
        let samples = settings.samples.min(reference.rows());
        let mut trees: Vec<Tree> = (0..settings.trees).map(|_| Tree::default()).collect();
        par::chunks_mut(&mut trees, 1, |t, tree| {
            tree[0] = Tree::grow(reference, samples, &mut rng.fork(t as u64).stream());
        });
        Ok(Self { columns: reference.columns(), samples, trees })
    }

    fn score(&self, x: &Table) -> Vec<f64> {
        let d = self.columns;
        let mut out = vec![0.0; x.rows()];
        par::chunks_mut(&mut out, ROWS, |chunk, out| {
            let rows = chunk * ROWS..chunk * ROWS + out.len();
            let values: Vec<f32> =
                x.values()[rows.start * d..rows.end * d].iter().map(|&x| x as f32).collect();
            for tree in &self.trees {
                for (i, out) in out.chunks_mut(TOGETHER).enumerate() {
                    tree.add_paths(&values[i * TOGETHER * d..], d, out);
                }
            }
            let scale = 1.0 / (self.trees.len() as f64 * average_path(self.samples)).max(1.0);
            out.iter_mut().for_each(|h| *h = score(*h * scale, self.samples));
        });
        out
    }

    fn columns(&self) -> Option<usize> {
        let fits = !self.trees.is_empty() && self.trees.iter().all(|t| t.fits(self.columns));
        (fits && self.columns > 0).then_some(self.columns)
    }
}

/// 2^−(mean path / c(ψ)); ½ when one row leaves nothing to isolate.
pub(super) fn score(ratio: f64, samples: usize) -> f64 {
    if samples < 2 { 0.5 } else { (-ratio).exp2() }
}

/// c(n), the mean path in a random binary search tree of n rows.
pub(super) fn average_path(n: usize) -> f64 {
    const EULER: f64 = 0.577_215_664_901_532_9;
    match n {
        0 | 1 => 0.0,
        2 => 1.0,
        _ => 2.0 * (((n - 1) as f64).ln() + EULER) - 2.0 * (n - 1) as f64 / n as f64,
    }
}

/// `k` different numbers below `n`, each set equally likely (Floyd's algorithm, Bentley & Floyd 1987).
pub(super) fn sample(n: usize, k: usize, stream: &mut WordStream) -> Vec<usize> {
    let (mut taken, mut out) = (HashSet::with_capacity(k), Vec::with_capacity(k));
    for j in n - k..n {
        let i = stream.below(j as u64 + 1) as usize;
        let i = if taken.insert(i) { i } else { j };
        taken.insert(i);
        out.push(i);
    }
    out
}

/// A number in [0, 1).
pub(super) fn uniform(stream: &mut WordStream) -> f64 {
    stream.below(1 << 53) as f64 / (1u64 << 53) as f64
}

/// ⌈log2 ψ⌉, the depth at which trees end.
pub(super) fn depth_limit(samples: usize) -> u32 {
    samples.next_power_of_two().trailing_zeros()
}

impl Tree {
    fn grow(reference: &Table, samples: usize, stream: &mut WordStream) -> Self {
        let d = reference.columns();
        let rows = sample(reference.rows(), samples, stream);
        let values: Vec<f32> = rows.iter().flat_map(|&i| reference.row(i)).map(|&x| x as f32).collect();
        let mut order: Vec<usize> = (0..samples).collect();
        let mut tree = Self::default();
        tree.push();
        let mut columns: Vec<u32> = (0..d as u32).collect();
        // (node, its part of `order`, depth)
        let mut open = vec![(0, 0..samples, 0)];
        let limit = depth_limit(samples.max(2));
        while let Some((node, part, depth)) = open.pop() {
            let value = |i: usize, j: u32| values[i * d + j as usize];
            let rows = &mut order[part.clone()];
            let cut = if depth < limit && rows.len() > 1 {
                choose(rows, &mut columns, value, stream)
            } else {
                None
            };
            let Some((column, threshold)) = cut else {
                tree.left[node] = node as u32;
                tree.path[node] = (depth as f64 + average_path(rows.len())) as f32;
                continue;
            };
            rows.sort_unstable_by_key(|&i| (value(i, column) > threshold, i));
            let middle = part.start + rows.partition_point(|&i| value(i, column) <= threshold);
            let left = tree.push();
            tree.push();
            (tree.column[node], tree.threshold[node], tree.left[node]) = (column, threshold, left as u32);
            tree.depth = tree.depth.max(depth + 1);
            open.push((left + 1, middle..part.end, depth + 1));
            open.push((left, part.start..middle, depth + 1));
        }
        tree
    }

    fn push(&mut self) -> usize {
        self.column.push(0);
        self.threshold.push(f32::MAX);
        self.left.push(0);
        self.path.push(0.0);
        self.left.len() - 1
    }

    /// Adds to `out` the path of as many rows of `values`.
    fn add_paths(&self, values: &[f32], d: usize, out: &mut [f64]) {
        let mut nodes = [0u32; TOGETHER];
        for _ in 0..self.depth {
            for (i, node) in nodes.iter_mut().enumerate().take(out.len()) {
                let at = *node as usize;
                let right = values[i * d + self.column[at] as usize] > self.threshold[at];
                *node = self.left[at] + right as u32;
            }
        }
        out.iter_mut().zip(nodes).for_each(|(h, node)| *h += self.path[node as usize] as f64);
    }

    /// Whether every node has its parts and every child comes after its parent, so that no walk leaves the tree.
    fn fits(&self, columns: usize) -> bool {
        let n = self.left.len();
        let lengths = [self.column.len(), self.threshold.len(), self.path.len()];
        n > 0
            && lengths == [n; 3]
            && self.depth <= 64
            && self.column.iter().all(|&c| (c as usize) < columns)
            && self.path.iter().all(|p| p.is_finite())
            && self.left.iter().enumerate().all(|(i, &l)| {
                let leaf = l as usize == i && self.threshold[i] == f32::MAX;
                leaf || (l as usize > i && l as usize + 1 < n)
            })
    }
}

/// A column among those that vary over `rows`, each equally likely, and a threshold between its extremes that leaves
/// rows on both sides.
fn choose(
    rows: &[usize],
    columns: &mut [u32],
    value: impl Fn(usize, u32) -> f32,
    stream: &mut WordStream,
) -> Option<(u32, f32)> {
    for drawn in 0..columns.len() {
        let other = drawn + stream.below((columns.len() - drawn) as u64) as usize;
        columns.swap(drawn, other);
        let column = columns[drawn];
        let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
        for &i in rows {
            low = low.min(value(i, column));
            high = high.max(value(i, column));
        }
        if low < high {
            let threshold = (low as f64 + uniform(stream) * (high as f64 - low as f64)) as f32;
            return Some((column, if threshold < high { threshold } else { low }));
        }
    }
    None
}
