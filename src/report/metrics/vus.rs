//! Volume under the surface: the area under a range-aware ROC or precision-recall curve, averaged over how exactly an
//! anomaly's borders are taken.
//!
//! ```text
//! label_ℓ(t) = 1 inside a range;   √(1 − d/ℓ) at d < ⌊ℓ/2⌋ steps from its border        ℓ = 0, 1, ..., L
//! TPR = min(1, Σ label · hit / P') · share of ranges hit,   FPR = (Σ hit − Σ label · hit) / (T − P'),
//! precision = Σ label · hit / Σ hit,   P' = (Σ label₀ + Σ label_ℓ) / 2
//! ```
//! Paparrizos et al. 2022, "Volume under the surface: a new accuracy evaluation measure for time-series anomaly
//! detection", as their reference code computes it; thresholds are 250 quantiles of the scores.

use super::ranges_of;
use crate::error::{Error, ErrorKind, Result};

/// Volumes under the surface.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Volume {
    /// VUS-ROC.
    pub roc: f64,
    /// VUS-PR.
    pub pr: f64,
}

const THRESHOLDS: usize = 250;

/// VUS of the scores of a labelled series with border widths up to `widest` steps.
///
/// # Errors
/// [`ErrorKind::Data`] when the lengths differ, no step is labelled or all are; [`ErrorKind::NonFinite`] naming the
/// first score that is NaN.
pub fn vus(scores: &[f64], labels: &[bool], widest: usize) -> Result<Volume> {
    let positives = labels.iter().filter(|l| **l).count();
    if scores.len() != labels.len() || positives == 0 || positives == labels.len() {
        let (n, m) = (scores.len(), labels.len());
        let message =
            format!("{n} scores for {m} labels, {positives} of them anomalous; expected some of both kinds");
        return Err(Error::new(ErrorKind::Data, message));
    }
    if let Some(step) = scores.iter().position(|s| s.is_nan()) {
        return Err(Error::new(ErrorKind::NonFinite, format!("step {step}: the score is NaN")));
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let total = (0..=widest).fold((0.0, 0.0), |(roc, pr), width| {
        let area = area(scores, &order, labels, width);
        (roc + area.0, pr + area.1)
    });
    let n = (widest + 1) as f64;
    Ok(Volume { roc: total.0 / n, pr: total.1 / n })
}

/// Areas under both curves at one border width.
fn area(scores: &[f64], order: &[usize], labels: &[bool], width: usize) -> (f64, f64) {
    let soft = soften(labels, width);
    let ranges = ranges_of(soft.iter().map(|l| *l > 0.0));
    let mut range_at = vec![usize::MAX; soft.len()];
    ranges.iter().enumerate().for_each(|(k, r)| range_at[r.clone()].fill(k));
    let (n, hard) = (soft.len(), labels.iter().filter(|l| **l).count() as f64);
    let all = (hard + soft.iter().sum::<f64>()) / 2.0;
    let (mut hit, mut hits) = (vec![false; ranges.len()], 0);
    let (mut product, mut called) = (0.0, 0);
    let (mut roc, mut pr, mut last) = (0.0, 0.0, (0.0, 0.0));
    for k in 0..THRESHOLDS {
        let threshold = scores[order[k * (n - 1) / (THRESHOLDS - 1)]];
        while called < n && scores[order[called]] >= threshold {
            let step = order[called];
            product += soft[step];
            if range_at[step] != usize::MAX && !std::mem::replace(&mut hit[range_at[step]], true) {
                hits += 1;
            }
            called += 1;
        }
        let tpr = (product / all).min(1.0) * hits as f64 / ranges.len() as f64;
        let fpr = (called as f64 - product) / (n as f64 - all);
        roc += (fpr - last.0) * (tpr + last.1) / 2.0;
        pr += (tpr - last.1) * product / called.max(1) as f64;
        last = (fpr, tpr);
    }
    (roc + (1.0 - last.0).max(0.0) * (1.0 + last.1) / 2.0, pr)
}

/// Labels with borders of `width`.
fn soften(labels: &[bool], width: usize) -> Vec<f64> {
    let mut soft: Vec<f64> = labels.iter().map(|l| *l as usize as f64).collect();
    for range in ranges_of(labels.iter().copied()) {
        let (first, last) = (range.start, range.end - 1);
        let value = |d: usize| (1.0 - d as f64 / width.max(1) as f64).sqrt();
        (last..(last + width / 2).min(labels.len())).for_each(|i| soft[i] += value(i - last));
        (first.saturating_sub(width / 2)..first).for_each(|i| soft[i] += value(first - i));
    }
    soft.into_iter().map(|l| l.min(1.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Philox;
    use crate::report::metrics::Comparison;
    use crate::tensor::DType;

    #[test]
    fn perfect_random_and_width_zero() {
        let labels: Vec<bool> =
            (0..1000).map(|i| (300..340).contains(&i) || (700..760).contains(&i)).collect();
        let noise = Philox::new(1).normal([1000], DType::F64);
        let scores: Vec<f64> =
            noise.as_slice::<f64>().iter().zip(&labels).map(|(z, l)| z + *l as usize as f64).collect();
        // Without borders it is the ordinary AUROC times the share of ranges that are hit, which early is below 1.
        let split = |wanted: bool| -> Vec<f64> {
            scores.iter().zip(&labels).filter(|(_, l)| **l == wanted).map(|(s, _)| *s).collect()
        };
        let auroc = Comparison::new(&split(false), &split(true)).unwrap().auroc();
        let found = vus(&scores, &labels, 0).unwrap();
        assert!(found.roc <= auroc + 0.005 && found.roc > auroc - 0.02, "{found:?} {auroc}");
        let perfect: Vec<f64> = labels.iter().map(|l| *l as usize as f64).collect();
        let found = vus(&perfect, &labels, 0).unwrap();
        assert!(found.roc > 0.999 && found.pr > 0.999, "{found:?}");
        // Two steps late is nearly as good with borders, and worse without.
        let late: Vec<f64> = (0..1000).map(|i| perfect[i - i.min(10)]).collect();
        let (strict, lenient) = (vus(&late, &labels, 0).unwrap(), vus(&late, &labels, 40).unwrap());
        assert!(lenient.pr > strict.pr, "{lenient:?} {strict:?}");
        let chance = vus(noise.as_slice(), &labels, 20).unwrap();
        assert!((0.35..0.65).contains(&chance.roc) && chance.pr < 0.3, "{chance:?}");
        assert!(vus(&scores, &[true; 1000], 5).is_err() && vus(&[], &[], 5).is_err());
    }
}
