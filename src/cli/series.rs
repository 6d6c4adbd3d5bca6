//! `series`: intervals of a time series that stand out, and the columns behind them.

use super::progress::say;
use super::{Common, inputs, output};
use crate::data::{ColumnKind, Dataset};
use crate::error::{Error, ErrorKind, Result};
use crate::report::{Axis, Figure, Finding, Page, Series as Curve, Stretch};
use crate::series::{Interval, SeriesOptions, SeriesScorer, Step, intervals};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Settings of the streaming model.
#[derive(clap::Args)]
pub struct Model {
    /// Harmonics of the daily rhythm, 0 for none
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=32))]
    harmonics: u8,
    /// Steps that are remembered
    #[arg(long, value_name = "STEPS", default_value_t = 10_000.0)]
    memory: f64,
    /// Steps after a peak within which only a higher one is an alarm
    #[arg(long, value_name = "STEPS", default_value_t = 600)]
    quiet_steps: usize,
}

impl Model {
    pub fn options(&self) -> Result<SeriesOptions> {
        if self.memory > 1.0 && self.memory.is_finite() {
            let (harmonics, memory, quiet) = (self.harmonics.into(), self.memory, self.quiet_steps);
            return Ok(SeriesOptions { harmonics, memory, quiet, ..Default::default() });
        }
        let message = format!("--memory {}: expected a number of steps above 1", self.memory);
        Err(Error::new(ErrorKind::Usage, message))
    }
}

#[derive(clap::Args)]
pub struct Args {
    /// A table with a date column and columns of numbers, in the order of time
    data: PathBuf,
    #[command(flatten)]
    reading: inputs::Reading,
    #[command(flatten)]
    model: Model,
    /// The share of steps that may stand out by chance, held against the steps before
    #[arg(long, value_name = "RATE", default_value_t = 0.001)]
    alpha: f64,
    /// Steps between two parts of one interval
    #[arg(long, value_name = "STEPS", default_value_t = 10)]
    gap: usize,
    /// Write a report: the columns and their surprisal with the intervals shaded
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Points of a curve in the report.
const POINTS: usize = 1500;

/// The most past steps that a threshold is taken from.
const PAST: usize = 20_000;

/// A series as numbers.
pub struct Series {
    /// Days since 1970-01-01 of each step.
    pub days: Vec<f64>,
    /// Of the columns.
    pub names: Vec<String>,
    /// Step by step.
    pub values: Vec<Vec<f64>>,
}

impl Series {
    /// The numbers of a table with a date column.
    pub fn of(table: &Dataset) -> Result<Self> {
        let fail = |what: String| Err(Error::new(ErrorKind::Data, format!("{}: {what}", table.name)));
        let Some(schema) = table.schema.as_ref().filter(|_| table.values.rank() == 2) else {
            return fail("a series is a table with a date column".into());
        };
        let is_date = |kind: &ColumnKind| *kind == ColumnKind::Date;
        let Some(time) = schema.columns.iter().position(|c| is_date(&c.kind)) else {
            return fail("no date column; --column NAME=date makes one".into());
        };
        let columns: Vec<usize> = schema
            .columns
            .iter()
            .enumerate()
            .filter(|(_, c)| matches!(c.kind, ColumnKind::Numeric | ColumnKind::Boolean))
            .map(|(i, _)| i)
            .collect();
        if columns.is_empty() {
            return fail("no column of numbers".into());
        }
        let cells = table.values.to_f64_vec();
        let rows = || cells.chunks_exact(table.dims());
        let days: Vec<f64> = rows().map(|row| row[time]).collect();
        if let Some(row) = days.iter().position(|d| d.is_nan()) {
            return fail(format!("row {row}: no date"));
        }
        let names = columns.iter().map(|&i| schema.columns[i].name.clone()).collect();
        let values = rows().map(|row| columns.iter().map(|&i| row[i]).collect()).collect();
        Ok(Self { days, names, values })
    }

    /// Whether each step comes after the one before.
    fn check_order(&self) -> Result<()> {
        match self.days.windows(2).position(|w| w[1] < w[0]) {
            Some(row) => {
                let message = format!(
                    "row {}: its date is before that of the row above; expected the order of time",
                    row + 1
                );
                Err(Error::new(ErrorKind::Data, message))
            }
            None => Ok(()),
        }
    }

    /// Judges every step.
    pub fn judge(&self, options: &SeriesOptions) -> Vec<Step> {
        let mut scorer = SeriesScorer::new(self.names.len(), options.clone());
        self.days.iter().zip(&self.values).map(|(day, row)| scorer.step(*day, row)).collect()
    }
}

/// Prints the intervals.
pub fn run(args: &Args, common: &Common) -> Result<()> {
    if !(args.alpha > 0.0 && args.alpha < 1.0) {
        let message = format!("--alpha {}: expected a rate between 0 and 1", args.alpha);
        return Err(Error::new(ErrorKind::Usage, message));
    }
    let series = Series::of(&args.reading.open(&args.data)?)?;
    series.check_order().map_err(|e| e.at(args.data.display()))?;
    let steps = series.judge(&args.model.options()?);
    // Excess over the quantile of the steps before: above 0 is an anomaly at its own time.
    let mut past: Vec<f64> = Vec::new();
    let excess: Vec<f64> = steps
        .iter()
        .map(|step| {
            let allowed = (args.alpha * (past.len() + 1) as f64) as usize;
            let bound = if allowed == 0 { f64::INFINITY } else { past[past.len() - allowed] };
            // An anomaly counts as the bound, so that it does not raise the one of the steps behind it.
            let usual = step.nats.min(bound);
            if past.len() < PAST {
                past.insert(past.partition_point(|p| *p < usual), usual);
            }
            (step.nats - bound).max(0.0)
        })
        .collect();
    let stretches = intervals(&excess, 0.0, args.gap);
    if let Some(path) = &args.report {
        report(&args.data, &series, &steps, &stretches).write_atomic(path)?;
        say(common, format!("{}", path.display()));
    }
    let found: Vec<Value> = stretches
        .iter()
        .map(|i| {
            let parts = (0..series.names.len())
                .map(|c| (series.names[c].as_str(), steps[i.start..i.end].iter().map(|s| s.parts[c]).sum::<f64>()));
            let mut parts: Vec<(&str, f64)> = parts.collect();
            parts.sort_by(|a, b| b.1.total_cmp(&a.1));
            let text = |step: usize| ColumnKind::Date.text(series.days[step]);
            json!({
                "start": text(i.start), "end": text(i.end - 1), "steps": i.end - i.start, "peak": text(i.peak),
                "nats": steps[i.peak].nats, "severity": i.severity,
                "columns": parts.iter().take(5).map(|(n, x)| json!({"name": n, "nats": x})).collect::<Vec<_>>(),
            })
        })
        .collect();
    if common.json {
        return output::print(&output::json_lines(&found)?);
    }
    let mut rows =
        vec![["start", "end", "steps", "peak", "nats", "severity", "column"].map(String::from).to_vec()];
    let word = |v: &Value| {
        v.as_str().map_or_else(|| v.as_f64().map_or(v.to_string(), |x| format!("{x:.1}")), String::from)
    };
    rows.extend(found.iter().map(|f| {
        let mut row = ["start", "end"].map(|k| word(&f[k])).to_vec();
        row.push(f["steps"].to_string());
        row.extend(["peak", "nats", "severity"].map(|k| word(&f[k])));
        row.push(word(&f["columns"][0]["name"]));
        row
    }));
    output::print(&output::columns(&rows))
}

/// The page: a chart of the surprisal and of each column, the intervals shaded.
fn report(path: &Path, series: &Series, steps: &[Step], found: &[Interval]) -> Page {
    let text = |step: usize| ColumnKind::Date.text(series.days[step]);
    let first = series.days.first().copied().unwrap_or(0.0);
    let days = |step: usize| series.days[step.min(series.days.len() - 1)] - first;
    let bands: Vec<(f64, f64)> = found.iter().map(|i| (days(i.start), days(i.end - 1))).collect();
    let chart = |title: &str, unit: &str, values: &dyn Fn(usize) -> f64| Figure {
        title: title.into(),
        x: Axis::new(format!("days since {}", text(0))),
        y: Axis::new(unit),
        joined: true,
        series: vec![Curve { name: title.into(), points: thinned(steps.len(), &days, values) }],
        bands: bands.clone(),
        ..Figure::default()
    };
    let mut figures = vec![chart("surprisal", "nats per step", &|t| steps[t].nats)];
    for (c, name) in series.names.iter().enumerate() {
        figures.push(chart(name, "value", &|t| series.values[t][c]));
    }
    let stretches = found.iter().map(|i| {
        let parts = |c: usize| steps[i.start..i.end].iter().map(|s| s.parts[c]).sum::<f64>();
        let mut columns: Vec<(String, f64)> =
            series.names.iter().enumerate().map(|(c, name)| (name.clone(), parts(c))).collect();
        columns.sort_by(|a, b| b.1.total_cmp(&a.1));
        columns.truncate(3);
        let (start, end, steps_in) = (text(i.start), text(i.end - 1), i.end - i.start);
        let (nats, severity) = (steps[i.peak].nats, i.severity);
        Stretch { start, end, steps: steps_in, nats, severity, columns }
    });
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let steps_out: usize = found.iter().map(|i| i.end - i.start).sum();
    let headline = match found.len() {
        0 => "Nothing stands out.".to_string(),
        1 => "One interval stands out.".to_string(),
        n => format!("{n} intervals stand out."),
    };
    let paragraph = format!(
        "{steps_out} of {} steps, from {} to {}. Every step is judged from the steps before it.",
        steps.len(),
        text(0),
        text(steps.len() - 1)
    );
    let said = Some(Finding { headline, paragraph });
    Page { title: name, said, figures, stretches: stretches.collect(), ..Page::default() }
}

/// The curve with the lowest and the highest point of each of its parts, so that no peak is lost.
fn thinned(n: usize, x: &dyn Fn(usize) -> f64, y: &dyn Fn(usize) -> f64) -> Vec<(f64, f64)> {
    let part = n.div_ceil(POINTS / 2).max(1);
    let mut points = Vec::new();
    for start in (0..n).step_by(part) {
        let steps = || (start..n.min(start + part)).filter(|&t| y(t).is_finite());
        let low = steps().min_by(|&a, &b| y(a).total_cmp(&y(b)));
        let high = steps().max_by(|&a, &b| y(a).total_cmp(&y(b)));
        let (Some(low), Some(high)) = (low, high) else { continue };
        points.push((x(low.min(high)), y(low.min(high))));
        if low != high {
            points.push((x(low.max(high)), y(low.max(high))));
        }
    }
    points
}
