//! The score of the Numenta Anomaly Benchmark: early detections are worth more, false alarms cost.
//!
//! ```text
//! σ(y) = 2 / (1 + e^(5y)) − 1                       y = −1 at a window's first step, 0 at its last, 1 one width later
//! score = Σ_windows (σ(y of the first detection) / σ(−1), or −A_FN without one) + A_FP Σ_{false alarms} σ(y)
//! reported: 100 (score − null) / (perfect − null)
//! ```
//! y of a false alarm counts from the window before it, in widths; before any window, and from y = 3 on, σ is −1. The
//! first 15% of a series (of at most 5,000 steps) are free. One threshold serves all series and is the one with the best
//! score, as the benchmark has it. Lavin & Ahmad 2015, "Evaluating real-time anomaly detection algorithms: the Numenta
//! anomaly benchmark", arXiv:1510.03336, and its code.

use crate::error::{Error, ErrorKind, Result};
use std::ops::Range;

/// What detections, misses and false alarms are worth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Profile {
    /// Its name in the benchmark.
    pub name: &'static str,
    /// Weight of a false alarm.
    pub false_positive: f64,
    /// Weight of a window without a detection.
    pub false_negative: f64,
}

/// The three profiles of the benchmark; the first is the one that is quoted.
pub const PROFILES: [Profile; 3] = [
    Profile { name: "standard", false_positive: 0.11, false_negative: 1.0 },
    Profile { name: "reward_low_FP_rate", false_positive: 0.22, false_negative: 1.0 },
    Profile { name: "reward_low_FN_rate", false_positive: 0.11, false_negative: 2.0 },
];

/// One scored series.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// One score per step, higher = more anomalous.
    pub scores: Vec<f64>,
    /// The labelled windows, in order, without overlaps.
    pub windows: Vec<Range<usize>>,
}

/// The result over all series.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Outcome {
    /// 100 is perfect, 0 is never an alarm.
    pub score: f64,
    /// The threshold that gives it: steps at or above it are alarms.
    pub threshold: f64,
    /// Windows with a detection.
    pub found: usize,
    /// All windows.
    pub windows: usize,
    /// Steps outside windows at or above the threshold.
    pub false_alarms: usize,
}

/// Steps at the start of a series that do not count.
pub fn probation(steps: usize) -> usize {
    (steps.min(5000) * 15) / 100
}

fn sigma(y: f64) -> f64 {
    if y > 3.0 { -1.0 } else { 2.0 / (1.0 + (5.0 * y).exp()) - 1.0 }
}

/// The score over `series` with the best common threshold.
///
/// # Errors
/// [`ErrorKind::Data`] without labelled windows or for windows out of bounds; [`ErrorKind::NonFinite`] for a NaN score.
pub fn evaluate(series: &[Series], profile: Profile) -> Result<Outcome> {
    let windows: usize = series.iter().map(|s| s.windows.len()).sum();
    if windows == 0 {
        return Err(Error::new(ErrorKind::Data, "nab: no labelled windows"));
    }
    // One event per step: its score, its worth, and the window that it detects.
    let mut events: Vec<(f64, f64, Option<usize>)> = Vec::new();
    let mut first_window = 0;
    for (k, s) in series.iter().enumerate() {
        if let Some(w) = s.windows.iter().find(|w| w.end > s.scores.len() || w.start >= w.end) {
            let message = format!("nab: series {k}: a window {w:?} in {} steps", s.scores.len());
            return Err(Error::new(ErrorKind::Data, message));
        }
        if let Some(step) = s.scores.iter().position(|x| x.is_nan()) {
            return Err(Error::new(
                ErrorKind::NonFinite,
                format!("nab: series {k}, step {step}: the score is NaN"),
            ));
        }
        for step in probation(s.scores.len())..s.scores.len() {
            let before = s.windows.partition_point(|w| w.start <= step);
            let last = before.checked_sub(1).map(|i| (i, &s.windows[i]));
            events.push(match last {
                Some((i, w)) if step < w.end => {
                    let y = -((w.end - step) as f64 / w.len() as f64);
                    (s.scores[step], sigma(y) / sigma(-1.0), Some(first_window + i))
                }
                Some((_, w)) => {
                    let y = (step + 1 - w.end) as f64 / (w.len().max(2) - 1) as f64;
                    (s.scores[step], profile.false_positive * sigma(y), None)
                }
                None => (s.scores[step], -profile.false_positive, None),
            });
        }
        first_window += s.windows.len();
    }
    events.sort_by(|a, b| b.0.total_cmp(&a.0));
    let null = -(windows as f64) * profile.false_negative;
    let mut best = Outcome { score: 0.0, threshold: f64::INFINITY, found: 0, windows, false_alarms: 0 };
    let (mut detections, mut total) = (vec![None; windows], null);
    let (mut found, mut false_alarms, mut best_total) = (0, 0, null);
    for (i, &(score, worth, window)) in events.iter().enumerate() {
        match window {
            None => {
                total += worth;
                false_alarms += 1;
            }
            Some(w) => {
                let now = detections[w].map_or(worth, |old: f64| old.max(worth));
                total += now - detections[w].unwrap_or(-profile.false_negative);
                found += detections[w].is_none() as usize;
                detections[w] = Some(now);
            }
        }
        let whole = events.get(i + 1).is_none_or(|next| next.0 < score);
        if whole && total > best_total {
            best_total = total;
            best = Outcome { threshold: score, found, false_alarms, ..best };
        }
    }
    best.score = 100.0 * (best_total - null) / (windows as f64 - null);
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(n: usize, alarms: &[usize], window: Range<usize>) -> Series {
        Series {
            scores: (0..n).map(|i| alarms.contains(&i) as usize as f64).collect(),
            windows: vec![window],
        }
    }

    #[test]
    fn by_hand() {
        let standard = PROFILES[0];
        // The first step of the window: perfect.
        let perfect = evaluate(&[series(1000, &[500], 500..600)], standard).unwrap();
        assert!((perfect.score - 100.0).abs() < 1e-9, "{perfect:?}");
        // Later detections in the same window add nothing.
        assert_eq!(
            evaluate(&[series(1000, &[500, 501, 599], 500..600)], standard).unwrap().score,
            perfect.score
        );
        // At the last step y = -1/100.
        let late = evaluate(&[series(1000, &[599], 500..600)], standard).unwrap();
        let expected = 50.0 * (1.0 + sigma(-0.01) / sigma(-1.0));
        assert!((late.score - expected).abs() < 1e-9, "{late:?}");
        // A false alarm long before: −0.11 of 2.
        let noisy = evaluate(&[series(1000, &[200, 500], 500..600)], standard).unwrap();
        assert!((noisy.score - (100.0 - 5.5)).abs() < 1e-9, "{noisy:?}");
        assert_eq!((noisy.found, noisy.false_alarms), (1, 1));
        // During probation nothing counts.
        assert_eq!(evaluate(&[series(1000, &[100, 500], 500..600)], standard).unwrap().score, perfect.score);
        // Right after the window a false alarm is cheap: y = 1/99.
        let near = evaluate(&[series(1000, &[500, 600], 500..600)], standard).unwrap();
        assert!((near.score - (100.0 + 5.5 * sigma(1.0 / 99.0))).abs() < 1e-9, "{near:?}");
        // Never an alarm is 0 and always possible.
        assert_eq!(evaluate(&[series(1000, &[200], 500..600)], standard).unwrap().score, 0.0);
        let (low, best) =
            (PROFILES[2], evaluate(&[series(1000, &[200, 500], 500..600)], PROFILES[2]).unwrap());
        assert!((best.score - 100.0 * (3.0 - 0.11) / 3.0).abs() < 1e-9, "{} {best:?}", low.name);
        assert!(evaluate(&[series(10, &[], 5..11)], standard).is_err());
        assert!(evaluate(&[], standard).is_err());
    }
}
