//! One alarm per event: a step stands out only if nothing in the recent past did more.

use std::collections::VecDeque;

/// Passes a score on when it is above all scores of the last `quiet` steps, else 0. The cost per step is constant on
/// average and the memory at most `quiet` numbers.
#[derive(Debug, Clone)]
pub struct Newest {
    quiet: usize,
    step: usize,
    /// Steps and scores that may still be the maximum: ascending steps, descending scores.
    records: VecDeque<(usize, f64)>,
}

impl Newest {
    /// Looks back `quiet` steps.
    pub fn new(quiet: usize) -> Self {
        Self { quiet, step: 0, records: VecDeque::new() }
    }

    /// The next score, or 0 if one of the last `quiet` was as high.
    pub fn pass(&mut self, score: f64) -> f64 {
        while self.records.front().is_some_and(|(step, _)| step + self.quiet < self.step) {
            self.records.pop_front();
        }
        let stands_out = self.records.front().is_none_or(|(_, highest)| score > *highest);
        while self.records.back().is_some_and(|(_, last)| *last <= score) {
            self.records.pop_back();
        }
        self.records.push_back((self.step, score));
        self.step += 1;
        if stands_out { score } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn against_the_definition() {
        let scores: Vec<f64> = (0..200u64).map(|i| (i * i * 7919 % 101) as f64).collect();
        for quiet in [0, 1, 5, 50] {
            let mut newest = Newest::new(quiet);
            for (t, &score) in scores.iter().enumerate() {
                let past = &scores[t.saturating_sub(quiet)..t];
                let expected = if past.iter().all(|p| *p < score) { score } else { 0.0 };
                assert_eq!(newest.pass(score), expected, "quiet {quiet}, step {t}");
            }
        }
    }
}
