//! Extended isolation forest (Hariri, Carrasco Kind & Brunner 2019).
//!
//! ```text
//! score(x) = 2^(−E[h(x)] / c(ψ))          as in [`super::iforest`], but a cut is a random plane: w·x ≤ w·p goes left
//! ```
//! w is standard normal in all columns (in 64 drawn ones if there are more), p uniform in the box of the node's rows. A
//! plane may leave a side empty: a leaf without rows.

use super::iforest::{self, Settings, average_path, depth_limit, sample, uniform};
use super::{DetectorInfo, Method, Scaling, Table, boxed, defaults};
use crate::cpu::par;
use crate::error::Result;
use crate::random::{Philox, WordStream};
use serde::{Deserialize, Serialize};

/// The registry's line.
pub(super) static EIF: DetectorInfo = DetectorInfo {
    name: "eif",
    family: "isolation",
    summary: "extended isolation forest: cuts by random planes instead of columns (Hariri et al. 2019)",
    scaling: Scaling::Standard,
    settings: defaults::<Extended>,
    build: boxed::<Extended>,
};

/// The most columns of a plane.
const MOST: usize = 64;
/// Rows per task.
const ROWS: usize = 256;

#[derive(Serialize, Deserialize)]
struct Extended {
    columns: usize,
    /// ψ.
    samples: usize,
    trees: Vec<Tree>,
}

/// Nodes in arrays, the root first; the children of a node stand side by side.
#[derive(Default, Serialize, Deserialize)]
struct Tree {
    /// (inner nodes, M): the columns of each plane and its w.
    column: Vec<u32>,
    weight: Vec<f64>,
    /// w·p of each inner node.
    offset: Vec<f64>,
    /// Of every node: number of its plane, or `u32::MAX` of a leaf.
    plane: Vec<u32>,
    left: Vec<u32>,
    /// h of a leaf; 0 elsewhere.
    path: Vec<f64>,
}

impl Method for Extended {
    const INFO: &'static DetectorInfo = &EIF;
    type Settings = Settings;

    fn fit(settings: &Settings, reference: &Table, rng: &Philox) -> Result<Self> {
        settings.check()?;
        let samples = settings.samples.min(reference.rows());
        let mut trees: Vec<Tree> = (0..settings.trees).map(|_| Tree::default()).collect();
        par::chunks_mut(&mut trees, 1, |t, tree| {
            tree[0] = Tree::grow(reference, samples, &mut rng.fork(t as u64));
        });
        Ok(Self { columns: reference.columns(), samples, trees })
    }

    fn score(&self, x: &Table) -> Vec<f64> {
        let m = self.columns.min(MOST);
        let mut out = vec![0.0; x.rows()];
        par::chunks_mut(&mut out, ROWS, |chunk, out| {
            for tree in &self.trees {
                for (i, o) in out.iter_mut().enumerate() {
                    *o += tree.path(x.row(chunk * ROWS + i), m);
                }
            }
            let scale = 1.0 / (self.trees.len() as f64 * average_path(self.samples)).max(1.0);
            out.iter_mut().for_each(|h| *h = iforest::score(*h * scale, self.samples));
        });
        out
    }

    fn columns(&self) -> Option<usize> {
        let fits = !self.trees.is_empty() && self.trees.iter().all(|t| t.fits(self.columns));
        (fits && self.columns > 0).then_some(self.columns)
    }
}

impl Tree {
    fn grow(reference: &Table, samples: usize, rng: &mut Philox) -> Self {
        let mut stream = rng.stream();
        let mut order = sample(reference.rows(), samples, &mut stream);
        let mut tree = Self::default();
        tree.push();
        // (node, its part of `order`, depth)
        let mut open = vec![(0, 0..samples, 0)];
        let limit = depth_limit(samples.max(2));
        while let Some((node, part, depth)) = open.pop() {
            let rows = &mut order[part.clone()];
            let grows = depth < limit && rows.len() > 1 && tree.cut(reference, rows, rng, &mut stream);
            if !grows {
                (tree.plane[node], tree.path[node]) = (u32::MAX, depth as f64 + average_path(rows.len()));
                continue;
            }
            let plane = tree.offset.len() - 1;
            let m = reference.columns().min(MOST);
            rows.sort_unstable_by_key(|&i| (tree.is_right(plane, reference.row(i), m), i));
            let middle = part.start + rows.partition_point(|&i| !tree.is_right(plane, reference.row(i), m));
            let left = tree.push();
            tree.push();
            (tree.plane[node], tree.left[node]) = (plane as u32, left as u32);
            open.push((left + 1, middle..part.end, depth + 1));
            open.push((left, part.start..middle, depth + 1));
        }
        tree
    }

    fn push(&mut self) -> usize {
        self.plane.push(u32::MAX);
        self.left.push(0);
        self.path.push(0.0);
        self.left.len() - 1
    }

    /// Adds a plane through the box of the rows; `false` when they are all the same.
    fn cut(&mut self, x: &Table, rows: &[usize], rng: &mut Philox, stream: &mut WordStream) -> bool {
        let d = x.columns();
        let m = d.min(MOST);
        let columns = if m < d { sample(d, m, stream) } else { (0..d).collect() };
        if rows.iter().all(|&i| x.row(i) == x.row(rows[0])) {
            return false;
        }
        let mut weights = vec![0.0; m];
        rng.fill_normal(&mut weights);
        let mut offset = 0.0;
        for (&j, w) in columns.iter().zip(&weights) {
            let cells = || rows.iter().map(|&i| x.row(i)[j]);
            let (low, high) =
                (cells().fold(f64::INFINITY, f64::min), cells().fold(f64::NEG_INFINITY, f64::max));
            offset += w * (low + uniform(stream) * (high - low));
        }
        self.column.extend(columns.iter().map(|&j| j as u32));
        self.weight.extend(weights);
        self.offset.push(offset);
        true
    }

    fn is_right(&self, plane: usize, row: &[f64], m: usize) -> bool {
        let (columns, weights) = (&self.column[plane * m..][..m], &self.weight[plane * m..][..m]);
        let product: f64 = columns.iter().zip(weights).map(|(&j, w)| w * row[j as usize]).sum();
        product > self.offset[plane]
    }

    fn path(&self, row: &[f64], m: usize) -> f64 {
        let mut node = 0;
        while self.plane[node] != u32::MAX {
            node = self.left[node] as usize + self.is_right(self.plane[node] as usize, row, m) as usize;
        }
        self.path[node]
    }

    /// Whether every node has its parts and every child comes after its parent, so that every walk ends.
    fn fits(&self, columns: usize) -> bool {
        let (n, planes, m) = (self.left.len(), self.offset.len(), columns.min(MOST));
        n > 0
            && [self.plane.len(), self.path.len()] == [n; 2]
            && [self.column.len(), self.weight.len()] == [planes * m; 2]
            && self.column.iter().all(|&c| (c as usize) < columns)
            && self.path.iter().all(|p| p.is_finite())
            && (0..n).all(|i| {
                let (plane, left) = (self.plane[i], self.left[i] as usize);
                plane == u32::MAX || ((plane as usize) < planes && left > i && left + 1 < n)
            })
    }
}
