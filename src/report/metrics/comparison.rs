//! How well a score tells two sets apart: AUROC, AUPR, FPR at a TPR, ROC points, bootstrap intervals.
//!
//! Anomalies (`other`) are the positive class and reference rows the negatives, unless it says otherwise; a row is
//! called positive when its score is at or above a threshold. Ties are exact: all metrics are counts per distinct
//! score, in whole numbers until the last division.

use crate::error::{Error, ErrorKind, Result};
use crate::random::Philox;
use rayon::prelude::*;

/// Bootstrap replicates behind an interval.
const REPLICATES: u64 = 1_000;

/// The scores of two sets, reduced to their order.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// Level (rank among the distinct scores, ascending) of each reference row.
    reference: Vec<u32>,
    /// Level of each row of the other set.
    other: Vec<u32>,
    /// Rows of both sets per level.
    counts: Counts,
}

/// Rows per level, ascending in the score.
#[derive(Debug, Clone)]
struct Counts {
    reference: Vec<u64>,
    other: Vec<u64>,
}

impl Comparison {
    /// Compares the scores of reference rows with those of another set.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] when a set is empty, [`ErrorKind::NonFinite`] when a score is NaN.
    pub fn new(reference: &[f64], other: &[f64]) -> Result<Self> {
        for (what, scores) in [("reference", reference), ("other", other)] {
            if scores.is_empty() {
                return Err(Error::new(ErrorKind::Data, format!("the {what} set has no scores")));
            }
            if let Some(row) = scores.iter().position(|s| s.is_nan()) {
                return Err(Error::new(
                    ErrorKind::NonFinite,
                    format!("{what} set, row {row}: the score is NaN"),
                ));
            }
        }
        let mut levels: Vec<f64> = reference.iter().chain(other).map(|s| s + 0.0).collect();
        levels.sort_by(f64::total_cmp);
        levels.dedup();
        let level = |s: &f64| levels.partition_point(|l| l < s) as u32;
        let (reference, other): (Vec<u32>, Vec<u32>) =
            (reference.iter().map(level).collect(), other.iter().map(level).collect());
        let counts =
            Counts { reference: count(&reference, levels.len()), other: count(&other, levels.len()) };
        Ok(Self { reference, other, counts })
    }

    /// Area under the ROC curve: P(anomaly > reference) + ½ P(tie), the Mann-Whitney statistic. 0.5 is chance.
    pub fn auroc(&self) -> f64 {
        self.counts.auroc()
    }

    /// 95% percentile interval of the AUROC over 1,000 bootstrap replicates, each set resampled on its own.
    ///
    /// The same `seed` gives the same interval on any number of threads. An AUROC of exactly 0 or 1 has an interval
    /// of width 0: the bootstrap cannot see rows that it was not given.
    pub fn auroc_interval(&self, seed: u64) -> (f64, f64) {
        let levels = self.counts.other.len();
        let rng = Philox::new(seed);
        let mut replicates: Vec<f64> = (0..REPLICATES)
            .into_par_iter()
            .map(|replicate| {
                let mut words = rng.at_step(replicate).stream();
                let mut resample = |rows: &[u32]| {
                    let mut counts = vec![0; levels];
                    rows.iter()
                        .for_each(|_| counts[rows[words.below(rows.len() as u64) as usize] as usize] += 1);
                    counts
                };
                Counts { reference: resample(&self.reference), other: resample(&self.other) }.auroc()
            })
            .collect();
        replicates.sort_by(f64::total_cmp);
        (quantile(&replicates, 0.025), quantile(&replicates, 0.975))
    }

    /// Rows of the reference and of the other set.
    pub fn rows(&self) -> (usize, usize) {
        (self.reference.len(), self.other.len())
    }

    /// For each row of the other set the share of reference rows below it, and for each reference row the share of the
    /// other set above it, ties counted as half; the mean of either is the AUROC.
    pub(super) fn placements(&self) -> (Vec<f64>, Vec<f64>) {
        let below = |counts: &[u64]| {
            let mut sum = 0;
            let half = |&c: &u64| {
                sum += c;
                sum as f64 - 0.5 * c as f64
            };
            counts.iter().map(half).collect::<Vec<f64>>()
        };
        let (reference, other) = (below(&self.counts.reference), below(&self.counts.other));
        let (n, m) = (self.reference.len() as f64, self.other.len() as f64);
        (
            self.other.iter().map(|&level| reference[level as usize] / n).collect(),
            self.reference.iter().map(|&level| 1.0 - other[level as usize] / m).collect(),
        )
    }

    /// Average precision with the reference as the positive class (lower score = more positive).
    pub fn aupr_in(&self) -> f64 {
        average_precision(self.counts.reference.iter().zip(&self.counts.other))
    }

    /// Average precision with the anomalies as the positive class.
    pub fn aupr_out(&self) -> f64 {
        average_precision(self.counts.other.iter().zip(&self.counts.reference).rev())
    }

    /// The smallest false-positive rate (reference rows called anomalous) among the thresholds that find at least
    /// the share `tpr` of the anomalies.
    pub fn fpr_at(&self, tpr: f64) -> f64 {
        let (n, m) = (self.reference.len() as f64, self.other.len() as f64);
        let mut steps = self.counts.steps();
        let found = steps.find(|(_, other)| *other as f64 / m >= tpr);
        found.map_or(1.0, |(reference, _)| reference as f64 / n)
    }

    /// The corners of the ROC curve as (false-positive rate, true-positive rate), from (0, 0) to (1, 1).
    pub fn roc(&self) -> Vec<(f64, f64)> {
        let (n, m) = (self.reference.len() as f64, self.other.len() as f64);
        let mut corners = vec![(0, 0)];
        for (x, y) in self.counts.steps() {
            // A point in the middle of a straight line says nothing.
            if let [.., (x0, y0), (x1, y1)] = corners[..]
                && (x1 - x0) * (y - y0) == (x - x0) * (y1 - y0)
            {
                corners.pop();
            }
            corners.push((x, y));
        }
        corners.into_iter().map(|(x, y)| (x as f64 / n, y as f64 / m)).collect()
    }
}

impl Counts {
    /// Twice the Mann-Whitney count is a whole number; one division makes it the AUROC.
    fn auroc(&self) -> f64 {
        let (mut below, mut twice, mut others) = (0u64, 0u128, 0u64);
        for (&r, &o) in self.reference.iter().zip(&self.other) {
            twice += o as u128 * (2 * below + r) as u128;
            below += r;
            others += o;
        }
        twice as f64 / (2 * below as u128 * others as u128) as f64
    }

    /// Rows (reference, other) at or above each threshold, from the highest threshold down.
    fn steps(&self) -> impl Iterator<Item = (u64, u64)> {
        self.reference.iter().zip(&self.other).rev().scan((0, 0), |sum, (r, o)| {
            *sum = (sum.0 + r, sum.1 + o);
            Some(*sum)
        })
    }
}

fn count(rows: &[u32], levels: usize) -> Vec<u64> {
    let mut counts = vec![0; levels];
    rows.iter().for_each(|&level| counts[level as usize] += 1);
    counts
}

/// Σ (recall_k − recall_{k−1}) · precision_k over the distinct thresholds: no interpolation, ties enter together
/// (the convention of scikit-learn's `average_precision_score`).
fn average_precision<'a>(levels: impl Iterator<Item = (&'a u64, &'a u64)>) -> f64 {
    let (mut positives, mut called, mut area) = (0, 0, 0.0);
    for (&positive, &negative) in levels {
        positives += positive;
        called += positive + negative;
        area += positive as f64 * positives as f64 / called as f64;
    }
    area / positives as f64
}

/// Linear interpolation between the order statistics of sorted values.
pub(crate) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // reference 1 2 3, other 2 4: pairs won 1 + 3, tied 1 of 6.
        let c = Comparison::new(&[1.0, 2.0, 3.0], &[2.0, 4.0]).unwrap();
        assert_eq!(c.auroc(), 4.5 / 6.0);
        // thresholds 4, 3, 2, 1: precision 1/1 at recall 1/2, then 2/4 at recall 1.
        assert_eq!(c.aupr_out(), 0.5 * 1.0 + 0.5 * 0.5);
        // reference positive, low first: 1/1, 2/3, 3/4, each worth a third.
        assert!((c.aupr_in() - (1.0 + 2.0 / 3.0 + 3.0 / 4.0) / 3.0).abs() < 1e-15);
        assert_eq!(c.fpr_at(0.95), 2.0 / 3.0);
        assert_eq!(c.fpr_at(0.5), 0.0);
        assert_eq!(c.roc(), [(0.0, 0.0), (0.0, 0.5), (1.0 / 3.0, 0.5), (2.0 / 3.0, 1.0), (1.0, 1.0)]);
    }

    #[test]
    fn extremes() {
        let apart = Comparison::new(&[0.0, 1.0], &[2.0, 3.0, 3.0]).unwrap();
        assert_eq!(
            (apart.auroc(), apart.aupr_in(), apart.aupr_out(), apart.fpr_at(0.95)),
            (1.0, 1.0, 1.0, 0.0)
        );
        assert_eq!(apart.auroc_interval(1), (1.0, 1.0));
        assert_eq!(apart.roc(), [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)]);
        let same = Comparison::new(&[1.0; 4], &[1.0; 4]).unwrap();
        assert_eq!((same.auroc(), same.aupr_in(), same.aupr_out(), same.fpr_at(0.95)), (0.5, 0.5, 0.5, 1.0));
        let zeros = Comparison::new(&[0.0], &[-0.0]).unwrap();
        assert_eq!(zeros.auroc(), 0.5);
        assert!(Comparison::new(&[], &[1.0]).is_err());
        assert!(Comparison::new(&[1.0], &[f64::NAN]).is_err());
        assert_eq!(Comparison::new(&[f64::NEG_INFINITY], &[f64::INFINITY]).unwrap().auroc(), 1.0);
    }

    /// Scores with many ties and few, against loops over all pairs and all thresholds.
    #[test]
    fn against_the_naive_definition() {
        let mut words = Philox::new(3).stream();
        for distinct in [2, 5, 1000] {
            let mut draw = |n: usize, shift: u64| -> Vec<f64> {
                (0..n).map(|_| (words.below(distinct) + shift * distinct / 4) as f64).collect()
            };
            let (reference, other) = (draw(60, 0), draw(45, 1));
            let c = Comparison::new(&reference, &other).unwrap();

            let pairs = other.iter().flat_map(|o| reference.iter().map(move |r| (o, r)));
            let won: f64 = pairs
                .map(|(o, r)| {
                    if o > r {
                        1.0
                    } else if o == r {
                        0.5
                    } else {
                        0.0
                    }
                })
                .sum();
            assert!((c.auroc() - won / (60.0 * 45.0)).abs() < 1e-15);

            let at_least = |scores: &[f64], t: f64| scores.iter().filter(|s| **s >= t).count() as f64;
            let mut thresholds: Vec<f64> = reference.iter().chain(&other).copied().collect();
            thresholds.sort_by(|a, b| b.total_cmp(a));
            thresholds.dedup();
            let (mut area, mut recall, mut fpr) = (0.0, 0.0, f64::INFINITY);
            for &t in &thresholds {
                let (fp, tp) = (at_least(&reference, t), at_least(&other, t));
                area += (tp / 45.0 - recall) * tp / (tp + fp);
                recall = tp / 45.0;
                if recall >= 0.95 {
                    fpr = fp.min(fpr * 60.0) / 60.0;
                }
            }
            assert!((c.aupr_out() - area).abs() < 1e-12);
            assert!((c.fpr_at(0.95) - fpr).abs() < 1e-12);
            let negated = |s: &[f64]| s.iter().map(|s| -s).collect::<Vec<_>>();
            let swapped = Comparison::new(&negated(&other), &negated(&reference)).unwrap();
            assert!((c.aupr_in() - swapped.aupr_out()).abs() < 1e-15);

            let trapezoids: f64 =
                c.roc().windows(2).map(|w| (w[1].0 - w[0].0) * (w[1].1 + w[0].1) / 2.0).sum();
            assert!((trapezoids - c.auroc()).abs() < 1e-12);

            let (low, high) = c.auroc_interval(5);
            assert!(low < c.auroc() && c.auroc() < high);
            assert_eq!((low, high), c.auroc_interval(5));
            assert_ne!((low, high), c.auroc_interval(6));
        }
    }

    /// The bootstrap's width is that of Hanley & McNeil's (1982) standard error for normal scores.
    #[test]
    fn interval_has_the_right_width() {
        let n = 400;
        let draws = Philox::new(11).normal([2, n], crate::tensor::DType::F64);
        let (reference, other) = draws.as_slice::<f64>().split_at(n);
        let other: Vec<f64> = other.iter().map(|x| x + 1.0).collect();
        let c = Comparison::new(reference, &other).unwrap();
        let (a, n) = (c.auroc(), n as f64);
        let (q1, q2) = (a / (2.0 - a), 2.0 * a * a / (1.0 + a));
        let error = ((a * (1.0 - a) + (n - 1.0) * (q1 - a * a) + (n - 1.0) * (q2 - a * a)) / (n * n)).sqrt();
        let (low, high) = c.auroc_interval(0);
        let ratio = (high - low) / (2.0 * 1.96 * error);
        assert!((0.85..1.15).contains(&ratio), "{ratio}");
    }
}
