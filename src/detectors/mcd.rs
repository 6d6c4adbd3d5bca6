//! Minimum covariance determinant by FastMCD (Rousseeuw & Van Driessen 1999), as scikit-learn's `MinCovDet`.
//!
//! ```text
//! h = ⌈(n + D + 1)/2⌉ rows whose covariance has the smallest determinant  ->  raw location and scatter
//! rows with d² / c(h/n) < χ²_D(0.975)                                      ->  mean, covariance · c(0.975)
//! score(x) = squared Mahalanobis distance by these               c(α) = α / P(χ²_{D+2} ≤ χ²_D quantile of α)
//! ```
//! A concentration step takes the h rows nearest by the present distance; it never raises the determinant. Up to 500
//! rows: 30 random starts, two steps each, the best 10 to convergence. Above: subsets of about 300 rows, or 5 per
//! column if that is more (half of 300 rows has no determinant in wide tables), 500 starts in all, fewer above 60
//! columns, the best 10 of each carried to 1500 rows and the best 10 of those to all (Croux & Haesbroeck 1999 for
//! c). Of one column the exact half is taken. If all rows lie in a subspace the search takes place there; if there
//! are too few rows for a half to have a determinant (n ≤ 2D), all rows are the half. Where the h rows lie in a
//! subspace the search ends, and distances across it are not counted; a reference of one row scores 0.

use super::iforest::sample;
use super::linalg::{Whitening, covariance};
use super::special::{chi2, chi2_quantile};
use super::{DetectorInfo, Method, NoSettings, Scaling, Table, boxed, defaults};
use crate::cpu::par;
use crate::error::Result;
use crate::random::Philox;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub(super) static MCD: DetectorInfo = DetectorInfo {
    name: "mcd",
    family: "covariance",
    summary: "robust Mahalanobis distance: the half of the rows with the smallest determinant (Rousseeuw & Van Driessen 1999)",
    scaling: Scaling::Standard,
    settings: defaults::<Mcd>,
    build: boxed::<Mcd>,
};

/// Rows that are searched as one.
const SMALL: usize = 500;
/// Rows of a subset: this, or so many per column.
const SUBSET: usize = 300;
const SUBSET_PER_COLUMN: usize = 5;
/// Rows of the stage between subsets and all.
const MERGED: usize = 1500;
/// Random starts, over all subsets, and the columns above which there are fewer.
const STARTS: usize = 500;
const WIDE: usize = 60;
/// Solutions carried to the next stage.
const BEST: usize = 10;
/// Steps to convergence.
const STEPS: usize = 30;
/// The tail of χ² that reweighting cuts.
const TAIL: f64 = 0.025;

#[derive(Serialize, Deserialize)]
struct Mcd {
    /// To the subspace of the reference, if it is one.
    subspace: Option<Whitening>,
    white: Whitening,
}

impl Method for Mcd {
    const INFO: &'static DetectorInfo = &MCD;
    type Settings = NoSettings;

    fn fit(_: &NoSettings, reference: &Table, rng: &Philox) -> Result<Self> {
        let all = Whitening::of(reference);
        if reference.rows() <= 2 * all.rank().max(1) {
            return Ok(Self { subspace: None, white: all });
        }
        if all.singular && all.rank() > 0 {
            let white = robust(&all.apply(reference), rng);
            return Ok(Self { subspace: Some(all), white });
        }
        Ok(Self { subspace: None, white: robust(reference, rng) })
    }

    fn score(&self, x: &Table) -> Vec<f64> {
        match &self.subspace {
            Some(subspace) => self.white.squared(&subspace.apply(x)),
            None => self.white.squared(x),
        }
    }

    fn columns(&self) -> Option<usize> {
        match &self.subspace {
            Some(s) => s.columns().filter(|_| self.white.columns() == Some(s.rank())),
            None => self.white.columns(),
        }
    }
}

/// Location and scatter of the half, reweighted.
fn robust(x: &Table, rng: &Philox) -> Whitening {
    let (n, d) = (x.rows(), x.columns());
    let h = (n + d + 1).div_ceil(2).min(n);
    let raw = if d == 1 { shortest_half(x, h) } else { search(x, h, rng) };
    let cut = chi2_quantile(1.0 - TAIL, d) * consistency(d, h as f64 / n as f64);
    let squared = raw.squared(x);
    let kept: Vec<usize> = (0..n).filter(|&i| squared[i] < cut).collect();
    if kept.len() < 2 {
        return raw;
    }
    let kept = x.select(&kept);
    let centre = kept.mean();
    let factor = consistency(d, 1.0 - TAIL);
    let scatter: Vec<f64> = covariance(&kept, &centre).iter().map(|c| c * factor).collect();
    Whitening::new(centre, &scatter)
}

/// The h neighbouring values of the smallest spread.
fn shortest_half(x: &Table, h: usize) -> Whitening {
    let mut sorted = x.values().to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let spread = |i: &usize| sorted[i + h - 1] - sorted[*i];
    let start = (0..=sorted.len() - h).min_by(|a, b| spread(a).total_cmp(&spread(b))).unwrap_or(0);
    let half = Table::from_rows(h, 1, |i, row| row[0] = sorted[start + i]);
    Whitening::of(&half)
}

/// The raw estimate: subsets, merged rows, all rows.
fn search(x: &Table, h: usize, rng: &Philox) -> Whitening {
    let n = x.rows();
    let first = |found: Vec<Whitening>| found.into_iter().next().unwrap_or_else(|| Whitening::of(x));
    if n <= SMALL {
        let starts = random_starts(x, h, 30, &rng.fork(0));
        return first(best(refine(x, h, starts, STEPS), 1));
    }
    let share = |rows: usize| (rows as f64 * h as f64 / n as f64).ceil() as usize;
    let d = x.columns();
    let subsets = (n / SUBSET.max(SUBSET_PER_COLUMN * d)).max(1);
    let starts = STARTS * WIDE / d.max(WIDE);
    let rows = n / subsets;
    let order = rng.clone().permutation(n);
    let mut found: Vec<Vec<Whitening>> = vec![Vec::new(); subsets];
    par::chunks_mut(&mut found, 1, |s, found| {
        let subset = x.select(&order[s * rows..(s + 1) * rows]);
        let trials = (starts / subsets).max(10);
        found[0] = random_starts(&subset, share(rows), trials, &rng.fork(s as u64));
    });
    let found: Vec<Whitening> = found.into_iter().flatten().collect();
    let merged = n.min(MERGED);
    let sample = x.select(&rng.fork(subsets as u64).permutation(n)[..merged]);
    let found = best(refine(&sample, share(merged), found, STEPS), if n > MERGED { BEST } else { 1 });
    if n < MERGED { first(found) } else { first(best(refine(x, h, found, STEPS), 1)) }
}

/// The best of `trials` random halves after two steps.
fn random_starts(x: &Table, h: usize, trials: usize, rng: &Philox) -> Vec<Whitening> {
    let start = |t: usize| {
        let rows = sample(x.rows(), h, &mut rng.fork(t as u64).stream());
        concentrate(x, h, Whitening::of(&x.select(&rows)), 2)
    };
    best((0..trials).map(start).collect(), BEST)
}

/// Steps from each of `found`.
fn refine(x: &Table, h: usize, found: Vec<Whitening>, steps: usize) -> Vec<Whitening> {
    let mut out: Vec<Option<Whitening>> = found.into_iter().map(Some).collect();
    par::chunks_mut(&mut out, 1, |_, slot| {
        slot[0] = slot[0].take().map(|from| {
            let support = nearest(x, h, &from);
            concentrate(x, h, Whitening::of(&x.select(&support)), steps)
        });
    });
    out.into_iter().flatten().collect()
}

/// Concentration steps until the determinant stops falling, is 0, or `steps` are done.
fn concentrate(x: &Table, h: usize, mut present: Whitening, steps: usize) -> Whitening {
    for _ in 0..steps {
        if present.singular {
            break;
        }
        let next = Whitening::of(&x.select(&nearest(x, h, &present)));
        let fell = next.singular || next.log_det < present.log_det;
        if !fell {
            break;
        }
        present = next;
    }
    present
}

/// The h rows nearest by `white`, in their order.
fn nearest(x: &Table, h: usize, white: &Whitening) -> Vec<usize> {
    let squared = white.squared(x);
    let mut order: Vec<usize> = (0..x.rows()).collect();
    if h < order.len() {
        order.select_nth_unstable_by(h - 1, |&a, &b| squared[a].total_cmp(&squared[b]).then(a.cmp(&b)));
        order.truncate(h);
        order.sort_unstable();
    }
    order
}

/// The `most` of the smallest determinant, a singular one counting as 0.
fn best(mut found: Vec<Whitening>, most: usize) -> Vec<Whitening> {
    let det = |w: &Whitening| if w.singular { f64::NEG_INFINITY } else { w.log_det };
    found.sort_by(|a, b| det(a).total_cmp(&det(b)));
    found.truncate(most);
    found
}

/// c(α): what makes the covariance of the central share α of a normal distribution consistent.
fn consistency(d: usize, alpha: f64) -> f64 {
    if alpha >= 1.0 { 1.0 } else { alpha / chi2(chi2_quantile(alpha, d), d + 2).max(f64::MIN_POSITIVE) }
}
