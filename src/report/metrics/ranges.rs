//! Precision and recall of ranges of steps.
//!
//! ```text
//! recall(R)    = α [R is touched] + (1 − α) γ(R) ω(R)         averaged over the true ranges R
//! precision(P) = γ(P) ω(P)                                    averaged over the predicted ranges P
//! ω = share of the range that is covered, steps weighted by the bias;   γ = 1 / number of ranges that it meets
//! ```
//! Tatbul et al. 2018, "Precision and recall for time series", arXiv:1803.03639, with the flat and the front bias
//! and the reciprocal cardinality factor. With one step per range these are the ordinary precision and recall.

use std::ops::Range;

/// How much each step of a range counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// All steps alike.
    Flat,
    /// The earlier the more: weights fall linearly.
    Front,
}

/// What counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RangeOptions {
    /// The share of recall that touching a range at all is worth, 0 to 1.
    pub existence: f64,
    /// The bias of recall; precision is flat.
    pub bias: Bias,
}

impl Default for RangeOptions {
    fn default() -> Self {
        Self { existence: 0.0, bias: Bias::Flat }
    }
}

/// Range-based precision, recall and their harmonic mean.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct RangeScores {
    /// Mean over the predicted ranges; 1 when there are none.
    pub precision: f64,
    /// Mean over the true ranges; 1 when there are none.
    pub recall: f64,
    /// 2 · precision · recall / (precision + recall).
    pub f1: f64,
}

/// Holds predicted ranges against true ones; each list ascending and without overlaps.
pub fn range_scores(
    truth: &[Range<usize>],
    predicted: &[Range<usize>],
    options: RangeOptions,
) -> RangeScores {
    let reward = |range: &Range<usize>, others: &[Range<usize>], bias: Bias| {
        let meets: Vec<Range<usize>> = others
            .iter()
            .map(|o| o.start.max(range.start)..o.end.min(range.end))
            .filter(|o| o.start < o.end)
            .collect();
        let weight = |i: usize| match bias {
            Bias::Flat => 1.0,
            Bias::Front => (range.end - i) as f64,
        };
        let all: f64 = range.clone().map(weight).sum();
        let covered: f64 = meets.iter().flat_map(|o| o.clone().map(weight)).sum();
        (covered / all / meets.len().max(1) as f64, !meets.is_empty())
    };
    let mean = |of: &[Range<usize>], f: &dyn Fn(&Range<usize>) -> f64| match of.len() {
        0 => 1.0,
        n => of.iter().map(f).sum::<f64>() / n as f64,
    };
    let recall = mean(truth, &|r| {
        let (share, touched) = reward(r, predicted, options.bias);
        options.existence * touched as usize as f64 + (1.0 - options.existence) * share
    });
    let precision = mean(predicted, &|p| reward(p, truth, Bias::Flat).0);
    let sum = precision + recall;
    RangeScores { precision, recall, f1: if sum > 0.0 { 2.0 * precision * recall / sum } else { 0.0 } }
}

/// The ranges of consecutive `true` steps.
pub fn ranges_of(flags: impl IntoIterator<Item = bool>) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (i, _) in flags.into_iter().enumerate().filter(|(_, flag)| *flag) {
        match ranges.last_mut().filter(|r| r.end == i) {
            Some(last) => last.end = i + 1,
            None => ranges.push(i..i + 1),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(start: usize, end: usize) -> Vec<Range<usize>> {
        std::iter::once(start..end).collect()
    }

    #[test]
    fn by_hand() {
        let flat = RangeOptions::default();
        // Of 10..20 the predictions cover 5 steps in two pieces: 0.5 / 2. Of 40..42 nothing.
        let truth = [10..20, 40..42];
        let predicted = [8..12, 15..18, 30..31];
        let s = range_scores(&truth, &predicted, flat);
        assert!((s.recall - 0.125).abs() < 1e-12, "{s:?}");
        assert!((s.precision - (0.5 + 1.0 + 0.0) / 3.0).abs() < 1e-12, "{s:?}");
        let s = range_scores(&truth, &predicted, RangeOptions { existence: 1.0, ..flat });
        assert_eq!(s.recall, 0.5);
        // Front: the first of two steps weighs 2 of 3.
        let front = RangeOptions { bias: Bias::Front, ..flat };
        assert!((range_scores(&one(0, 2), &one(0, 1), front).recall - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(range_scores(&[], &[], flat).f1, 1.0);
        assert_eq!(range_scores(&one(0, 3), &[], flat).f1, 0.0);
        assert_eq!(ranges_of([true, true, false, true]), [0..2, 3..4]);
    }

    #[test]
    fn of_single_steps_is_the_ordinary_kind() {
        let truth = [1..2, 3..4, 5..6];
        let s = range_scores(&truth, &[3..4, 4..5], RangeOptions::default());
        assert!((s.precision - 0.5).abs() < 1e-12 && (s.recall - 1.0 / 3.0).abs() < 1e-12);
    }
}
