//! Series in time order, judged step by step from the past alone.
//!
//! ```text
//! (time, values)  ->  OnlineRegression per column  ->  surprisal per step and column  ->  Newest  ->  intervals
//! ```
//! [`SeriesScorer`] puts them together. Nothing looks ahead: the score of a step is final when the step has come.

mod newest;
mod online;
mod scorer;

pub use newest::Newest;
pub use online::OnlineRegression;
pub use scorer::{SeriesOptions, SeriesScorer, Step};

use serde::Serialize;

/// A stretch of a series that stands out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Interval {
    /// Its first step.
    pub start: usize,
    /// One past its last step.
    pub end: usize,
    /// The step with the highest score.
    pub peak: usize,
    /// Σ (score − threshold) over the steps above the threshold: how much and how long.
    pub severity: f64,
}

/// The stretches of steps with scores above `threshold`; those at most `gap` calm steps apart are one.
pub fn intervals(scores: &[f64], threshold: f64, gap: usize) -> Vec<Interval> {
    let mut found: Vec<Interval> = Vec::new();
    for (step, &score) in scores.iter().enumerate().filter(|(_, score)| **score > threshold) {
        let excess = score - threshold;
        match found.last_mut().filter(|last| step - last.end <= gap) {
            Some(last) => {
                last.end = step + 1;
                last.severity += excess;
                if score > scores[last.peak] {
                    last.peak = step;
                }
            }
            None => found.push(Interval { start: step, end: step + 1, peak: step, severity: excess }),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_merge_over_gaps() {
        let scores = [0.0, 3.0, 5.0, 0.0, 4.0, 0.0, 0.0, 0.0, 2.5];
        let found = intervals(&scores, 2.0, 1);
        assert_eq!(found[0], Interval { start: 1, end: 5, peak: 2, severity: 6.0 });
        assert_eq!((found.len(), found[1].start, found[1].severity), (2, 8, 0.5));
        assert_eq!(intervals(&scores, 2.0, 0).len(), 3);
        assert_eq!(intervals(&scores, 9.0, 5), []);
    }
}
