//! Kernel density estimate by hashing, in time that does not depend on the size of the reference (after Coleman &
//! Shrivastava 2020, "RACE"; Charikar & Siminelakis 2017).
//!
//! ```text
//! p̂(x) = Σ_s 2^(−s P)  1/L Σ_l  #{y in sample l : cell_{l,s}(y) = cell_{l,s}(x)} / m          score(x) = −log p̂(x)
//! ```
//! Table l projects on P random directions (Datar et al. 2004) and cuts them into cells of side 2^s w with a random
//! offset; two rows share a cell with a probability that falls with their distance, so the counts add up to a kernel
//! estimate. The S sides from narrow to wide, each weighed by the volume of its cells, give the kernel a tail: rows
//! that meet nobody in the narrow cells are ordered by the wide ones. Each table holds m rows drawn without
//! replacement. The score has no unit; a row that meets nobody at all scores as if it had met half a row in the
//! widest cell of one table.

use super::iforest::sample;
use super::{DetectorInfo, Method, Scaling, Table, boxed, defaults, setting};
use crate::cpu::gemm::{Epilogue, Mat, gemm};
use crate::cpu::par;
use crate::error::Result;
use crate::random::Philox;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub(super) static KDE_APPROX: DetectorInfo = DetectorInfo {
    name: "kde_approx",
    family: "density",
    summary: "-log of a kernel density estimate by locality-sensitive hashing (Coleman & Shrivastava 2020)",
    scaling: Scaling::Standard,
    settings: defaults::<Hashed>,
    build: boxed::<Hashed>,
};

/// Rows per task.
const ROWS: usize = 128;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Settings {
    /// L.
    tables: usize,
    /// m, rows per table.
    samples: usize,
    /// P, directions per table; fewer if there are fewer columns.
    directions: usize,
    /// w, side of the narrowest cells in standard deviations.
    width: f64,
    /// S.
    sides: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { tables: 128, samples: 256, directions: 3, width: 0.5, sides: 8 }
    }
}

impl Settings {
    fn check(&self) -> Result<()> {
        let Self { tables, samples, directions, width, sides } = *self;
        let fits = (1..=1 << 12).contains(&tables)
            && (1..=1 << 16).contains(&samples)
            && (1..=16).contains(&directions)
            && (1..=32).contains(&sides)
            && (1e-3..=1e3).contains(&width);
        if fits {
            Ok(())
        } else {
            Err(setting(format!("{self:?}; expected positive numbers of moderate size")))
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Hashed {
    settings: Settings,
    columns: usize,
    /// m and P, as far as the reference allows.
    samples: usize,
    directions: usize,
    /// (L, P, D) unit vectors.
    projection: Vec<f64>,
    /// (L, P) offsets as a share of a cell.
    offset: Vec<f64>,
    /// (L, S) tables.
    tables: Vec<Cells>,
}

/// Which cells are taken by how many rows: their keys in ascending order, and how many rows come before each.
#[derive(Default, Clone, Serialize, Deserialize)]
struct Cells {
    keys: Vec<u32>,
    before: Vec<u32>,
}

impl Cells {
    fn new(mut keys: Vec<u32>) -> Self {
        keys.sort_unstable();
        let mut cells = Self::default();
        for (i, &key) in keys.iter().enumerate() {
            if cells.keys.last() != Some(&key) {
                cells.keys.push(key);
                cells.before.push(i as u32);
            }
        }
        cells.before.push(keys.len() as u32);
        cells
    }

    fn count(&self, key: u32) -> u32 {
        self.keys.binary_search(&key).map_or(0, |i| self.before[i + 1] - self.before[i])
    }

    fn fits(&self) -> bool {
        self.keys.is_sorted() && self.before.len() == self.keys.len() + 1 && self.before.is_sorted()
    }
}

impl Method for Hashed {
    const INFO: &'static DetectorInfo = &KDE_APPROX;
    type Settings = Settings;

    fn fit(settings: &Settings, reference: &Table, rng: &Philox) -> Result<Self> {
        settings.check()?;
        let d = reference.columns();
        let (samples, directions) = (settings.samples.min(reference.rows()), settings.directions.min(d));
        let mut draws = rng.fork(u64::MAX);
        let mut projection = vec![0.0; settings.tables * directions * d];
        draws.fill_normal(&mut projection);
        for direction in projection.chunks_exact_mut(d) {
            let norm = direction.iter().map(|x| x * x).sum::<f64>().sqrt();
            direction.iter_mut().for_each(|x| *x /= norm);
        }
        let mut offset = vec![0.0; settings.tables * directions];
        draws.fill_uniform(&mut offset);
        let tables = vec![Cells::default(); settings.tables * settings.sides];
        let settings = settings.clone();
        let mut hashed = Self { settings, columns: d, samples, directions, projection, offset, tables };
        let mut tables = std::mem::take(&mut hashed.tables);
        par::chunks_mut(&mut tables, hashed.settings.sides, |l, tables| {
            let rows = reference.select(&sample(reference.rows(), samples, &mut rng.fork(l as u64).stream()));
            let projected = hashed.project(rows.values(), l..l + 1);
            for (s, table) in tables.iter_mut().enumerate() {
                let keys = projected.chunks_exact(directions).map(|p| hashed.key(l, s, p)).collect();
                *table = Cells::new(keys);
            }
        });
        hashed.tables = tables;
        Ok(hashed)
    }

    fn score(&self, x: &Table) -> Vec<f64> {
        let (d, p, tables) = (self.columns, self.directions, self.settings.tables);
        let weight = |s: usize| (-((s * p) as f64)).exp2() / (tables * self.samples) as f64;
        let nobody = 0.5 * weight(self.settings.sides - 1);
        let mut out = vec![0.0; x.rows()];
        par::chunks_mut(&mut out, ROWS, |chunk, out| {
            let rows = &x.values()[chunk * ROWS * d..][..out.len() * d];
            let projected = self.project(rows, 0..tables);
            for (o, projected) in out.iter_mut().zip(projected.chunks_exact(tables * p)) {
                let mut counts = [0u64; 32];
                for (l, projected) in projected.chunks_exact(p).enumerate() {
                    for s in 0..self.settings.sides {
                        counts[s] +=
                            self.tables[l * self.settings.sides + s].count(self.key(l, s, projected)) as u64;
                    }
                }
                let sum: f64 = (0..self.settings.sides).map(|s| counts[s] as f64 * weight(s)).sum();
                *o = -(sum + nobody).ln();
            }
        });
        out
    }

    fn columns(&self) -> Option<usize> {
        let Self { settings, columns, directions, .. } = self;
        let fits = settings.check().is_ok()
            && self.samples > 0
            && (1..=16).contains(directions)
            && self.projection.len() == settings.tables * directions * columns
            && self.offset.len() == settings.tables * directions
            && self.tables.len() == settings.tables * settings.sides
            && self.tables.iter().all(Cells::fits);
        (fits && *columns > 0).then_some(*columns)
    }
}

impl Hashed {
    /// (rows, tables, P) projections.
    fn project(&self, rows: &[f64], tables: std::ops::Range<usize>) -> Vec<f64> {
        let (d, p) = (self.columns, self.directions);
        let (n, width) = (rows.len() / d, tables.len() * p);
        let mut out = vec![0.0; n * width];
        let directions = Mat::t(&self.projection[tables.start * p * d..tables.end * p * d], d);
        gemm(n, width, d, Mat::new(rows, d), directions, &mut out, width, &Epilogue::default());
        out
    }

    /// The cell of side 2^s w in which `projected` lies in table l, as a hash (the finaliser of MurmurHash3).
    fn key(&self, l: usize, s: usize, projected: &[f64]) -> u32 {
        let side = self.settings.width * (1u64 << s) as f64;
        let offsets = &self.offset[l * self.directions..][..self.directions];
        let mut key = 0u32;
        for (x, offset) in projected.iter().zip(offsets) {
            key = (key ^ (x / side + offset).floor() as i32 as u32).wrapping_mul(0x85eb_ca6b);
            key = (key ^ (key >> 13)).wrapping_mul(0xc2b2_ae35);
            key ^= key >> 16;
        }
        key
    }
}
