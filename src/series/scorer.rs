//! Streaming surprisal of a series with daily rhythm.
//!
//! Each column has an [`OnlineRegression`] on the harmonics of the time of day; the columns' surprisals add up, so the
//! parts tell which column it was. The first steps only set the units.

use super::{Newest, OnlineRegression};
use std::f64::consts::TAU;

/// How to judge a series.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesOptions {
    /// Harmonics of the daily rhythm; 0 for series without one.
    pub harmonics: usize,
    /// Steps that are remembered, in the sense of 1/(1 − λ).
    pub memory: f64,
    /// First steps, which set the units and have no score.
    pub warmup: usize,
    /// Steps after a peak within which only a higher one is an alarm.
    pub quiet: usize,
}

impl Default for SeriesOptions {
    fn default() -> Self {
        Self { harmonics: 2, memory: 10_000.0, warmup: 50, quiet: 600 }
    }
}

/// What is said about one step.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Surprisal beyond that of the best guess, nats, summed over the columns; 0 while warming up.
    pub nats: f64,
    /// The same where it is higher than in the last [`SeriesOptions::quiet`] steps, else 0.
    pub alarm: f64,
    /// The part of each column, nats.
    pub parts: Vec<f64>,
}

/// Judges a series step by step.
#[derive(Debug, Clone)]
pub struct SeriesScorer {
    options: SeriesOptions,
    columns: Vec<Column>,
    newest: Newest,
}

#[derive(Debug, Clone)]
struct Column {
    model: OnlineRegression,
    /// Features and values before the units are known.
    first: Vec<(Vec<f64>, f64)>,
    center: f64,
    scale: f64,
}

impl SeriesScorer {
    /// For series of `columns` values.
    pub fn new(columns: usize, options: SeriesOptions) -> Self {
        let column = Column {
            model: OnlineRegression::new(1 + 2 * options.harmonics, options.memory),
            first: Vec::new(),
            center: 0.0,
            scale: 0.0,
        };
        Self { columns: vec![column; columns], newest: Newest::new(options.quiet), options }
    }

    /// Judges the next step, at `days` since any midnight, then learns it. A value that is not finite (a gap) has no
    /// surprisal and teaches nothing.
    ///
    /// # Panics
    /// When there are not as many values as columns.
    #[track_caller]
    pub fn step(&mut self, days: f64, values: &[f64]) -> Step {
        assert_eq!(
            values.len(),
            self.columns.len(),
            "SeriesScorer: values for {} columns",
            self.columns.len()
        );
        let phase = TAU * days.rem_euclid(1.0);
        let waves =
            (1..=self.options.harmonics).flat_map(|h| [(h as f64 * phase).sin(), (h as f64 * phase).cos()]);
        let features: Vec<f64> = std::iter::once(1.0).chain(waves).collect();
        let warmup = self.options.warmup.max(2);
        let judge = |(column, &x): (&mut Column, &f64)| {
            if x.is_finite() { column.step(&features, x, warmup) } else { 0.0 }
        };
        let parts: Vec<f64> = self.columns.iter_mut().zip(values).map(judge).collect();
        let nats = parts.iter().sum();
        Step { nats, alarm: self.newest.pass(nats), parts }
    }
}

impl Column {
    fn step(&mut self, features: &[f64], x: f64, warmup: usize) -> f64 {
        if self.scale > 0.0 {
            return self.model.observe(features, (x - self.center) / self.scale);
        }
        self.first.push((features.to_vec(), x));
        if self.first.len() == warmup {
            let n = warmup as f64;
            let mean = self.first.iter().map(|(_, x)| x).sum::<f64>() / n;
            let std = (self.first.iter().map(|(_, x)| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
            self.center = self.first[0].1;
            // A column that is constant at first is measured in thousandths of its value.
            self.scale = std.max(1e-3 * self.center.abs() + 1e-6);
            for (features, x) in std::mem::take(&mut self.first) {
                self.model.observe(&features, (x - self.center) / self.scale);
            }
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Philox;
    use crate::tensor::DType;

    fn series(n: usize) -> Vec<[f64; 2]> {
        let noise = Philox::new(3).normal([2 * n], DType::F64);
        let noise = noise.as_slice::<f64>();
        let wave = |t: usize| (TAU * t as f64 / 288.0).sin();
        (0..n).map(|t| [40.0 + 10.0 * wave(t) + noise[2 * t], 5.0 + 0.1 * noise[2 * t + 1]]).collect()
    }

    /// A value that is usual in itself but not at this time of day; the parts name the column.
    #[test]
    fn finds_what_is_wrong_for_the_time_of_day() {
        let mut values = series(288 * 20);
        let at = 288 * 15 + 72;
        values[at][0] = 30.0;
        let mut scorer = SeriesScorer::new(2, SeriesOptions::default());
        let steps: Vec<Step> =
            values.iter().enumerate().map(|(t, x)| scorer.step(t as f64 / 288.0, x)).collect();
        let highest =
            (288 * 5..steps.len()).max_by(|&a, &b| steps[a].nats.total_cmp(&steps[b].nats)).unwrap();
        assert_eq!(highest, at);
        assert!(steps[at].parts[0] > 10.0 * steps[at].parts[1] && steps[at].alarm == steps[at].nats);
        assert!(steps[..50].iter().all(|s| s.nats == 0.0));
    }

    /// No step is judged by what comes after it.
    #[test]
    fn does_not_look_ahead() {
        let values = series(600);
        let run = |values: &[[f64; 2]]| -> Vec<Step> {
            let mut scorer = SeriesScorer::new(2, SeriesOptions::default());
            values.iter().enumerate().map(|(t, x)| scorer.step(t as f64 / 288.0, x)).collect()
        };
        let (all, part) = (run(&values), run(&values[..400]));
        assert_eq!(all[..400], part);
        let mut gaps = values;
        gaps[300] = [f64::NAN, 5.0];
        assert!(run(&gaps).iter().all(|s| s.nats.is_finite()));
    }
}
