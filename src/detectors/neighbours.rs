//! Exact nearest neighbours in Euclidean distance: products propose in f32, differences decide in f64.
//!
//! ```text
//! |x − y|² = |x|² − 2 x·y + |y|²          bound(X, Y) = Σ_d max(0, low_Y − high_X, low_X − high_Y)²
//! ```
//! Reference rows and queries are cut at medians of their widest column into blocks of rows that lie together
//! (Friedman, Bentley & Finkel 1977). A block of queries meets the blocks of the reference nearest first, as one matrix
//! product each, until the distance between the boxes exceeds what every query has found; queries that are too far
//! from a block's box sit out its product; the few best of each row are selected while the product is in cache. So
//! few columns prune and many columns run at the speed of the product.
//!
//! The k + some candidates of a query are measured again in f64. With γ the relative rounding error of a product, a row
//! that was not proposed is farther than min(t/(1 + 4γ), t − 16γ|x|²), t being the last candidate's proposed distance;
//! where the k-th distance is not below that, the query is searched once more in f64. γ assumes rounding errors
//! that add up like independent ones, γ = 4(√D + 4)·2^-24 (Higham & Mary 2019).
//!
//! Inside [`crate::cuda::Device::run`] a device proposes ([`crate::ops::distances`]) and the same decision follows, so what is
//! found does not depend on the device.

use super::Table;
use super::blocks::{Blocks, box_distance};
use super::table::squared_distance;
use crate::cpu::gemm::{Epilogue, Mat, gemm};
use crate::cpu::par;
use crate::cpu::simd::vectorize;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Products of a tile that are compared at once.
const LANES: usize = 32;
/// Queries of a group.
const MOST_QUERIES: usize = 128;

/// Reference rows, ready for searching. It is saved as its rows.
#[derive(Debug, Clone)]
pub struct Index {
    points: Table,
    pub(super) parts: Blocks,
    /// What is subtracted from every row before it is rounded to f32.
    pub(super) centre: Vec<f64>,
    /// The rows of each part, centred, as a (D, rows) matrix.
    packed: Vec<f32>,
    /// |y|² of those.
    norms: Vec<f32>,
    /// (blocks, 2, D): their boxes, centred.
    boxes: Vec<f32>,
}

/// The k nearest reference rows of each query.
#[derive(Debug, Clone, PartialEq)]
pub struct Neighbours {
    /// Neighbours per query: what was asked for, or all rows if there are fewer.
    pub k: usize,
    /// (N, k) Euclidean distances, ascending in a row.
    pub distance: Vec<f64>,
    /// (N, k) numbers of the reference rows; of equal distances the smaller number comes first.
    pub index: Vec<u32>,
}

impl Neighbours {
    /// The distances of query `i`.
    pub fn distances(&self, i: usize) -> &[f64] {
        &self.distance[i * self.k..][..self.k]
    }

    /// The neighbours of query `i`.
    pub fn indices(&self, i: usize) -> &[u32] {
        &self.index[i * self.k..][..self.k]
    }
}

/// A block of queries and the products with one block of the reference at a time.
pub(super) struct Group<'a> {
    index: &'a Index,
    queries: &'a Table,
    /// The numbers of its rows.
    pub rows: &'a [u32],
    /// (lower bound of the squared distance of any pair, block of the reference), nearest first.
    pub blocks: Vec<(f64, u32)>,
    /// |x|² of each row, centred.
    pub norms: Vec<f32>,
    packed: Vec<f32>,
    /// The same as a (D, rows) matrix.
    turned: Vec<f32>,
    /// Those of `packed` that a tile is made of.
    gathered: Vec<f32>,
    products: Vec<f32>,
}

impl Group<'_> {
    /// |y|² − 2 x·y in f32 of all rows x of the group (one chunk each) and y of `block`; the numbers of the latter.
    pub fn tile(&mut self, block: u32) -> (&[u32], std::slice::ChunksExact<'_, f32>) {
        let all = self.rows.len();
        self.products_of(block, all, |group| &group.packed)
    }

    /// [`Self::tile`] of the rows `some` alone, one chunk each.
    fn tile_of(&mut self, block: u32, some: &[u32]) -> (&[u32], std::slice::ChunksExact<'_, f32>) {
        if some.len() == self.rows.len() {
            return self.tile(block);
        }
        let d = self.queries.columns();
        self.gathered.clear();
        for &i in some {
            self.gathered.extend_from_slice(&self.packed[i as usize * d..][..d]);
        }
        self.products_of(block, some.len(), |group| &group.gathered)
    }

    fn products_of(
        &mut self,
        block: u32,
        m: usize,
        of: impl Fn(&Self) -> &[f32],
    ) -> (&[u32], std::slice::ChunksExact<'_, f32>) {
        let (index, d) = (self.index, self.queries.columns());
        let (start, end) = (index.parts.starts[block as usize], index.parts.starts[block as usize + 1]);
        let n = end - start;
        let mut products = std::mem::take(&mut self.products);
        let a = Mat::new(of(self), d);
        let b = Mat::new(&index.packed[start * d..end * d], n);
        let epilogue = Epilogue { alpha: -2.0, bias: Some(&index.norms[start..end]), ..Default::default() };
        gemm(m, n, d, a, b, &mut products[..m * n], n, &epilogue);
        self.products = products;
        (&index.parts.order[start..end], self.products[..m * n].chunks_exact(n))
    }

    /// Puts into `open` the rows whose distance from the box of `block` is within their `limit`. A row that is left
    /// out has nothing to find there: the bound's rounding error is below that of a tile.
    fn open(&self, block: u32, limit: &[f32], open: &mut Vec<u32>) {
        let (m, d) = (self.rows.len(), self.queries.columns());
        let (low, high) = self.index.boxes[block as usize * 2 * d..][..2 * d].split_at(d);
        let mut squares = [0.0f32; MOST_QUERIES];
        let (squares, turned) = (&mut squares[..m], &self.turned);
        vectorize(
            #[inline(always)]
            || {
                for ((column, &low), &high) in turned.chunks_exact(m).zip(low).zip(high) {
                    for (square, &x) in squares.iter_mut().zip(column) {
                        let (below, above) = (low - x, x - high);
                        let gap = if below > above { below } else { above };
                        let gap = if gap > 0.0 { gap } else { 0.0 };
                        *square += gap * gap;
                    }
                }
            },
        );
        open.clear();
        open.extend((0..m as u32).filter(|&i| squares[i as usize] <= limit[i as usize]));
    }

    /// See [`gamma`].
    pub fn gamma(&self) -> f64 {
        gamma(self.queries.columns())
    }
}

/// The rounding error of a tile's distances over `d` columns: at most this share of (|x| + |y|)².
pub(super) fn gamma(d: usize) -> f64 {
    4.0 * ((d as f64).sqrt() + 4.0) / (1u32 << 24) as f64
}

/// What is known of a query before distances are measured in f64.
pub(super) struct Proposal<'a> {
    pub x: &'a [f64],
    /// The row of the index that it is itself, which is not its neighbour.
    pub own: Option<u32>,
    /// |x|², centred.
    pub norm: f64,
    /// Rows of the index, and a bound on the proposed squared distance of all others.
    pub rows: &'a [u32],
    pub limit: f64,
    /// The blocks of the index in the order of a further search.
    pub blocks: &'a [(f64, u32)],
}

impl Index {
    /// Prepares the rows of `points`.
    pub fn new(points: Table) -> Self {
        let d = points.columns();
        let parts = Blocks::new(&points, (16 * d).clamp(64, 256));
        let centre = points.mean();
        let (mut packed, mut norms) = (vec![0.0; points.rows() * d], Vec::with_capacity(points.rows()));
        for block in 0..parts.len() {
            let rows = pack(&points, parts.rows(block), &centre);
            norms.extend(rows.chunks_exact(d).map(square));
            packed[parts.starts[block] * d..][..rows.len()].copy_from_slice(&transposed(&rows, d));
        }
        let boxes = parts.boxes.iter().zip(centre.iter().cycle()).map(|(x, c)| (x - c) as f32).collect();
        Self { points, parts, centre, packed, norms, boxes }
    }

    /// The rows that it was made of.
    pub fn points(&self) -> &Table {
        &self.points
    }

    /// The `k` nearest rows of every query.
    pub fn nearest(&self, queries: &Table, k: usize) -> Neighbours {
        self.search(queries, k.min(self.points.rows()), false)
    }

    /// The `k` nearest other rows of every row of the index itself.
    pub fn nearest_others(&self, k: usize) -> Neighbours {
        self.search(&self.points, k.min(self.points.rows().saturating_sub(1)), true)
    }

    /// How many rows y of the index lie within `radius`(y) of every query, in exact distance; `squares` are the squared
    /// radii, one per row.
    pub(super) fn reached_by(&self, queries: &Table, squares: &[f64]) -> Vec<u32> {
        let packed: Vec<f32> = self.parts.order.iter().map(|&i| squares[i as usize] as f32).collect();
        let starts = &self.parts.starts;
        let largest: Vec<f64> = (0..self.parts.len())
            .map(|b| self.parts.rows(b).iter().fold(0.0, |m: f64, &i| m.max(squares[i as usize])))
            .collect();
        self.groups(queries, 1, |group| {
            let (gamma, norms, rows) = (group.gamma() as f32, group.norms.clone(), group.rows);
            let mut counts = vec![0; rows.len()];
            for (bound, block) in std::mem::take(&mut group.blocks) {
                if bound > largest[block as usize] {
                    continue;
                }
                let range = starts[block as usize]..starts[block as usize + 1];
                let (reach, sizes) = (&packed[range.clone()], &self.norms[range]);
                let (numbers, tile) = group.tile(block);
                for (i, products) in tile.enumerate() {
                    let x = queries.row(rows[i] as usize);
                    let exact = |j: usize| {
                        let y = numbers[j] as usize;
                        squared_distance(x, self.points.row(y)) <= squares[y]
                    };
                    counts[i] += count_within(products, norms[i], sizes, reach, gamma, &exact);
                }
            }
            counts
        })
    }

    /// Calls `f` on groups of queries that lie together, in parallel, and puts the `width` numbers per row that it
    /// returns, in the order of the group's rows, where the queries are.
    pub(super) fn groups<T: Copy + Default + Send>(
        &self,
        queries: &Table,
        width: usize,
        f: impl Fn(&mut Group) -> Vec<T> + Send + Sync,
    ) -> Vec<T> {
        // Small enough that there is work for all threads.
        let most = (queries.rows() / 64).next_power_of_two().clamp(8, MOST_QUERIES);
        let parts = Blocks::new(queries, most);
        let largest = self.parts.starts.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
        par::scattered(&parts.order, &parts.starts, width, |g| {
            let rows = parts.rows(g);
            let packed = pack(queries, rows, &self.centre);
            let norms = packed.chunks_exact(queries.columns()).map(square).collect();
            let near = |b: usize| (box_distance(parts.bounds(g), self.parts.bounds(b)), b as u32);
            let mut blocks: Vec<(f64, u32)> = (0..self.parts.len()).map(near).collect();
            blocks.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            let turned = transposed(&packed, queries.columns());
            let (gathered, products) = (Vec::new(), vec![0.0; rows.len() * largest]);
            let mut group =
                Group { index: self, queries, rows, blocks, norms, packed, turned, gathered, products };
            f(&mut group)
        })
    }

    fn search(&self, queries: &Table, k: usize, own: bool) -> Neighbours {
        if k == 0 {
            return Neighbours { k, distance: Vec::new(), index: Vec::new() };
        }
        let pairs =
            self.proposed_by_device(queries, k, own).unwrap_or_else(|| self.search_groups(queries, k, own));
        let (mut distance, mut index) = (vec![0.0; pairs.len()], vec![0; pairs.len()]);
        par::chunks_mut2(&mut distance, par::GRAIN, &mut index, par::GRAIN, |chunk, distance, index| {
            let pairs = &pairs[chunk * par::GRAIN..];
            for ((distance, index), pair) in distance.iter_mut().zip(index).zip(pairs) {
                (*distance, *index) = (pair.0.sqrt(), pair.1);
            }
        });
        Neighbours { k, distance, index }
    }

    /// (squared distance, row) of the k nearest of every query.
    fn search_groups(&self, queries: &Table, k: usize, own: bool) -> Vec<(f64, u32)> {
        self.groups(queries, k, |group| {
            let mut found = Candidates::new(group.rows.len(), proposals(k));
            let mut open = Vec::with_capacity(group.rows.len());
            for at in 0..group.blocks.len() {
                let (bound, block) = group.blocks[at];
                if bound > found.farthest() {
                    break;
                }
                group.open(block, &found.limit, &mut open);
                if open.is_empty() {
                    continue;
                }
                let (norms, rows) = (std::mem::take(&mut group.norms), group.rows);
                let (numbers, tile) = group.tile_of(block, &open);
                for (products, i) in tile.zip(&open) {
                    let i = *i as usize;
                    found.take(i, norms[i], products, numbers, own.then_some(rows[i]));
                }
                group.norms = norms;
            }
            let decide = |i: usize| {
                let row = group.rows[i];
                let (x, own) = (group.queries.row(row as usize), own.then_some(row));
                let (norm, limit) = (group.norms[i] as f64, found.limit[i] as f64);
                self.decide(&Proposal { x, own, norm, rows: found.of(i), limit, blocks: &group.blocks }, k)
            };
            (0..group.rows.len()).flat_map(decide).collect()
        })
    }

    /// The `k` nearest of a query, exactly: (squared distance, row).
    pub(super) fn decide(&self, proposal: &Proposal, k: usize) -> Vec<(f64, u32)> {
        let Proposal { x, own, norm, rows, limit: t, blocks } = *proposal;
        let gamma = gamma(x.len());
        let measure = |&j: &u32| (squared_distance(x, self.points.row(j as usize)), j);
        let mut best: Vec<(f64, u32)> = rows.iter().map(|&j| (0.0, j)).collect();
        let (all, d) = (self.points.values(), self.points.columns());
        let measured = &mut best;
        vectorize(
            #[inline(always)]
            || {
                for (distance, j) in measured.iter_mut() {
                    *distance = squared_distance(x, &all[*j as usize * d..][..d]);
                }
            },
        );
        best.sort_unstable_by(ascending);
        best.truncate(k);
        let last = best.last().map_or(f64::INFINITY, |b| b.0);
        let certain = (t / (1.0 + 4.0 * gamma)).min(t - 16.0 * gamma * norm);
        if last == 0.0 || last < certain || t == f64::INFINITY {
            return best;
        }
        let mut best = Vec::with_capacity(k + 1);
        for &(_, block) in blocks {
            let far = |best: &[(f64, u32)]| if best.len() < k { last } else { best[k - 1].0 };
            if box_distance((x, x), self.parts.bounds(block as usize)) > far(&best) {
                continue;
            }
            for found in self.parts.rows(block as usize).iter().filter(|j| own != Some(**j)).map(measure) {
                let place = best.partition_point(|b| ascending(b, &found).is_lt());
                if place < k {
                    best.insert(place, found);
                    best.truncate(k);
                }
            }
        }
        best
    }
}

impl Serialize for Index {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.points.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Table::deserialize(deserializer).map(Self::new)
    }
}

/// How many rows are proposed to find k.
pub(super) fn proposals(k: usize) -> usize {
    k + 8 + k / 4
}

fn ascending(a: &(f64, u32), b: &(f64, u32)) -> std::cmp::Ordering {
    a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))
}

pub(super) fn square(row: &[f32]) -> f32 {
    row.iter().map(|&x| x as f64 * x as f64).sum::<f64>() as f32
}

fn pack(x: &Table, rows: &[u32], centre: &[f64]) -> Vec<f32> {
    let centred = |&i: &u32| x.row(i as usize).iter().zip(centre).map(|(x, c)| (x - c) as f32);
    rows.iter().flat_map(centred).collect()
}

/// Rows of `d` as a (D, rows) matrix.
fn transposed(rows: &[f32], d: usize) -> Vec<f32> {
    let n = rows.len() / d;
    let mut turned = vec![0.0; rows.len()];
    for (i, row) in rows.chunks_exact(d).enumerate() {
        row.iter().enumerate().for_each(|(j, &x)| turned[j * n + i] = x);
    }
    turned
}

/// The best proposals of each row of a group, ascending in the proposed squared distance.
struct Candidates {
    most: usize,
    distance: Vec<f32>,
    index: Vec<u32>,
    /// The last distance of each row; infinite while it has fewer than it may have.
    limit: Vec<f32>,
}

impl Candidates {
    fn new(rows: usize, most: usize) -> Self {
        let (distance, limit) = (vec![f32::INFINITY; rows * most], vec![f32::INFINITY; rows]);
        Self { most, distance, index: vec![0; rows * most], limit }
    }

    /// The largest of the limits.
    fn farthest(&self) -> f64 {
        let limit = &self.limit;
        vectorize(
            #[inline(always)]
            || limit.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m }),
        ) as f64
    }

    /// The proposed rows.
    fn of(&self, i: usize) -> &[u32] {
        let range = i * self.most..(i + 1) * self.most;
        let filled = self.distance[range.clone()].partition_point(|&d| d < f32::INFINITY);
        &self.index[range][..filled]
    }

    /// Offers the rows `numbers` at the squared distances `norm` + `products` to row `i`; `except` is not taken.
    fn take(&mut self, i: usize, norm: f32, products: &[f32], numbers: &[u32], except: Option<u32>) {
        let (distance, index) =
            (&mut self.distance[i * self.most..][..self.most], &mut self.index[i * self.most..][..self.most]);
        let last = self.most - 1;
        vectorize(
            #[inline(always)]
            || {
                let mut limit = distance[last] - norm;
                let mut offer = |mask: u32, products: &[f32], numbers: &[u32], limit: &mut f32| {
                    let mut left = mask;
                    while left != 0 {
                        let j = left.trailing_zeros() as usize;
                        left &= left - 1;
                        if products[j] < *limit && Some(numbers[j]) != except {
                            insert(distance, index, products[j] + norm, numbers[j]);
                            *limit = distance[last] - norm;
                        }
                    }
                };
                let (packs, rest) = products.as_chunks::<LANES>();
                for (pack, numbers) in packs.iter().zip(numbers.chunks_exact(LANES)) {
                    let mut mask = 0u32;
                    for j in 0..LANES {
                        mask |= ((pack[j] < limit) as u32) << j;
                    }
                    if mask != 0 {
                        offer(mask, pack, numbers, &mut limit);
                    }
                }
                if !rest.is_empty() {
                    offer((1 << rest.len()) - 1, rest, &numbers[products.len() - rest.len()..], &mut limit);
                }
            },
        );
        self.limit[i] = distance[last];
    }
}

/// Number of j at which `products` + `norm` ≤ `reach`; `exact` is asked where rounding could decide: the error is at
/// most γ(|x| + |y|)² ≤ 2γ(|x|² + |y|²), and as much again for the rounded radius.
fn count_within(
    products: &[f32],
    norm: f32,
    sizes: &[f32],
    reach: &[f32],
    gamma: f32,
    exact: &dyn Fn(usize) -> bool,
) -> u32 {
    let mut count = 0;
    for start in (0..products.len()).step_by(LANES) {
        let range = start..products.len().min(start + LANES);
        let cells = products[range.clone()].iter().zip(&sizes[range.clone()]).zip(&reach[range.clone()]);
        let (mut sure, mut near) = (0u32, 0u32);
        vectorize(
            #[inline(always)]
            || {
                for ((p, size), r) in cells.clone() {
                    let (over, error) = (p + norm - r, 4.0 * gamma * (norm + size));
                    sure += (over < -error) as u32;
                    near += (over.abs() <= error) as u32;
                }
            },
        );
        count += sure;
        if near > 0 {
            for (j, ((p, size), r)) in range.zip(cells) {
                let (over, error) = (p + norm - r, 4.0 * gamma * (norm + size));
                count += (over.abs() <= error && exact(j)) as u32;
            }
        }
    }
    count
}

#[inline(always)]
fn insert(distance: &mut [f32], index: &mut [u32], d: f32, number: u32) {
    let mut at = distance.len() - 1;
    while at > 0 && distance[at - 1] > d {
        distance[at] = distance[at - 1];
        index[at] = index[at - 1];
        at -= 1;
    }
    distance[at] = d;
    index[at] = number;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Philox;
    use crate::tensor::DType;

    fn naive(points: &Table, x: &[f64], k: usize, except: Option<usize>) -> Vec<(f64, u32)> {
        let all = points.iter().enumerate().filter(|(j, _)| Some(*j) != except);
        let mut all: Vec<(f64, u32)> = all.map(|(j, y)| (squared_distance(x, y), j as u32)).collect();
        all.sort_unstable_by(ascending);
        all.truncate(k);
        all
    }

    /// Against loops over all pairs: the same distances to the bit, on tables that prune and that do not, far from the
    /// origin, with duplicates, and with rows whose squares are a million times their distances.
    #[test]
    fn equal_the_naive_search() {
        for (n, m, d, scale, offset) in [
            (700, 300, 2, 1.0, 0.0),
            (500, 90, 40, 1.0, 1e3),
            (300, 200, 5, 1e-3, 900.0),
            (40, 9, 3, 0.0, 1.0),
            (1, 3, 1, 1.0, 0.0),
        ] {
            let draws = Philox::new(n as u64).normal([(n + m) * d], DType::F64);
            // A tenth of the rows lies far away, a tenth comes twice.
            let value = |i: usize| {
                let (row, column) = (i / d, i % d);
                let row = if row % 10 == 3 { row - 1 } else { row };
                let far = if row % 10 == 7 { 1e6 * scale } else { 0.0 };
                offset + far + scale * draws.as_slice::<f64>()[row * d + column]
            };
            let points = Table::new(d, (0..n * d).map(value).collect()).unwrap();
            let queries = Table::new(d, (n * d..(n + m) * d).map(value).collect()).unwrap();
            let index = Index::new(points.clone());
            for k in [1, 6, 60] {
                let found = index.nearest(&queries, k);
                assert_eq!(found.k, k.min(n));
                for (i, x) in queries.iter().enumerate() {
                    let expected: Vec<f64> = naive(&points, x, k, None).iter().map(|f| f.0.sqrt()).collect();
                    assert_eq!(found.distances(i), expected, "{n} x {d}, k {k}, query {i}");
                }
                let own = index.nearest_others(k);
                assert_eq!(own.k, k.min(n - 1));
                for (i, x) in points.iter().enumerate() {
                    let expected: Vec<f64> =
                        naive(&points, x, k, Some(i)).iter().map(|f| f.0.sqrt()).collect();
                    assert_eq!(own.distances(i), expected, "{n} x {d}, k {k}, row {i}");
                    assert!(!own.indices(i).contains(&(i as u32)));
                }
            }
        }
    }
}
