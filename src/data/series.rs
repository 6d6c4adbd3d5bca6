//! Series: a text table whose rows are steps in time, cut into windows (N, T, D).
//!
//! The file is read as [`super::csv`] does. Its first date column, or else a numeric column called `timestamp` or
//! `time`, tells the times (days since 1970-01-01, or as they are), which must not decrease; every window keeps the
//! time of its first step. The other columns are numbers, without missing cells; where time jumps by more than 1.5
//! of its median step there is a gap, which no window crosses.

use super::csv::{CSV, table};
use super::input::Input;
use super::{ColumnKind, Dataset, Probe, ReadOptions, SourceInfo, cells, data};
use crate::error::Result;
use crate::tensor::Tensor;
use std::path::Path;

/// The registry line.
pub(super) static SERIES: SourceInfo = SourceInfo {
    name: "series",
    family: "sequences",
    summary: "a CSV table of numbers in the order of time, cut into windows with a stride; needs --window",
    extensions: CSV.extensions,
    has_keys: false,
    has_labels: false,
    probe: |probe: &Probe| {
        let name = super::plain_name(probe.path);
        !probe.is_dir && probe.options.window.is_some() && CSV.extensions.iter().any(|e| name.ends_with(e))
    },
    read,
};

/// Steps of a window when none are asked for.
const WINDOW: usize = 64;

fn read(path: &Path, options: &ReadOptions) -> Result<Dataset> {
    let (window, stride) = options.windows(WINDOW, path)?;
    let all = ReadOptions { limit: None, schema: None, ..options.clone() };
    let (table, first_line) = table(path, Input::open(path)?.all(options)?, None, &all)?;
    let columns = table.schema.as_ref().map_or(&[][..], |s| &s.columns);
    let called = |name: &str| ["timestamp", "time", "date"].iter().any(|n| n.eq_ignore_ascii_case(name));
    let clock = columns.iter().position(|c| c.kind == ColumnKind::Date);
    let clock =
        clock.or_else(|| columns.iter().position(|c| c.kind == ColumnKind::Numeric && called(&c.name)));
    for (i, column) in columns.iter().enumerate() {
        let what = match &column.kind {
            _ if column.nullable => "a cell is missing",
            ColumnKind::Categorical { .. } => "texts",
            ColumnKind::Date if Some(i) != clock => "a second column of dates",
            _ => continue,
        };
        let message = format!(
            "column \"{}\": {what}; a series holds numbers (--column NAME=drop leaves it out)",
            column.name
        );
        return Err(data(path, message));
    }
    let (steps, d) = (table.len(), columns.len());
    let values = table.values.to_f64_vec();
    let kept: Vec<usize> = (0..d).filter(|i| Some(*i) != clock).collect();
    if kept.is_empty() {
        return Err(data(path, "no column but the times; expected numbers beside them"));
    }
    let times: Option<Vec<f64>> = clock.map(|c| (0..steps).map(|t| values[t * d + c]).collect());
    let mut gaps = Vec::new();
    if let Some((times, clock)) = times.as_ref().zip(clock) {
        if let Some(t) = times.windows(2).position(|w| w[1] < w[0]) {
            let text = |t: usize| columns[clock].kind.text(times[t]);
            let line = first_line + t as u64 + 1;
            let message = format!(
                "line {line}: {} after {}; expected times that do not decrease",
                text(t + 1),
                text(t)
            );
            return Err(data(path, message));
        }
        let mut between: Vec<f64> = times.windows(2).map(|w| w[1] - w[0]).collect();
        between.sort_unstable_by(f64::total_cmp);
        let median = between.get(between.len() / 2).copied().unwrap_or(0.0);
        gaps =
            (1..steps).filter(|&t| times[t] - times[t - 1] > 1.5 * median.max(f64::MIN_POSITIVE)).collect();
    }
    let crosses = |start: usize| {
        let next = gaps.partition_point(|&g| g <= start);
        gaps.get(next).is_some_and(|&g| g < start + window)
    };
    let starts = (0..).map(|i| i * stride).take_while(|at| at + window <= steps).filter(|at| !crosses(*at));
    let starts: Vec<usize> = starts.take(options.limit.unwrap_or(usize::MAX)).collect();
    if starts.is_empty() {
        let message = format!("{steps} steps with {} gaps hold no window of {window} steps", gaps.len());
        return Err(data(path, message));
    }
    let mut out = Vec::with_capacity(starts.len() * window * kept.len());
    for &start in &starts {
        out.extend(
            (start..start + window)
                .flat_map(|t| kept.iter().map(move |&c| (t, c)))
                .map(|(t, c)| values[t * d + c]),
        );
    }
    let set = Dataset::new(table.name.clone(), Tensor::from_slice(&out, [starts.len(), window, kept.len()]));
    let dated = clock.is_some_and(|c| columns[c].kind == ColumnKind::Date);
    let text = |time: f64| if dated { cells::date_text(time) } else { time.to_string() };
    let times = times.map(|times| starts.iter().map(|&s| text(times[s])).collect());
    Ok(Dataset { times, ..set })
}
