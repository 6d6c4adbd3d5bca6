//! `series`: intervals of a time series that stand out, and the columns behind them; `nab`: the benchmark.

use super::{Common, inputs, output};
use crate::data::{self, ColumnKind, Dataset, ReadOptions, Wish};
use crate::error::{Error, ErrorKind, Result};
use crate::report::metrics::nab::{self, Outcome, PROFILES};
use crate::report::metrics::{RangeOptions, range_scores, vus};
use crate::series::{Newest, SeriesOptions, SeriesScorer, Step, intervals};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Range;
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
    fn options(&self) -> Result<SeriesOptions> {
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
}

/// The most past steps that a threshold is taken from.
const PAST: usize = 20_000;

/// A series as numbers.
struct Series {
    /// Days since 1970-01-01 of each step.
    days: Vec<f64>,
    names: Vec<String>,
    /// Step by step.
    values: Vec<Vec<f64>>,
}

impl Series {
    fn of(table: &Dataset) -> Result<Self> {
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

    fn judge(&self, options: &SeriesOptions) -> Vec<Step> {
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
    let found: Vec<Value> = intervals(&excess, 0.0, args.gap)
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

#[derive(clap::Args)]
pub struct NabArgs {
    /// The folder with windows.json and the series that it names, as .csv or .csv.gz
    folder: PathBuf,
    #[command(flatten)]
    model: Model,
}

/// One scored method.
#[derive(Serialize)]
struct Method {
    method: &'static str,
    profiles: BTreeMap<&'static str, Outcome>,
    /// Means over the series with windows: VUS with borders of up to 100 steps, and range F1 at the threshold of the
    /// standard profile.
    vus_roc: f64,
    vus_pr: f64,
    range_f1: f64,
}

/// Scores the benchmark: the streaming model and, for comparison, the windowed Gaussian.
pub fn nab(args: &NabArgs, common: &Common) -> Result<()> {
    let path = args.folder.join("windows.json");
    let text = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let wrong = |what: String| Error::new(ErrorKind::Format, format!("{}: {what}", path.display()));
    let windows: BTreeMap<String, Vec<(String, String)>> =
        serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
    let options = args.model.options()?;
    let (mut series, mut labelled) = (Vec::new(), Vec::new());
    for (name, windows) in &windows {
        let one = read(&args.folder, name)?;
        let steps = |(from, to): &(String, String)| -> Result<Range<usize>> {
            let day =
                |text: &str| data::date(text).ok_or_else(|| wrong(format!("{name}: \"{text}\" is no date")));
            let (from, to) = (day(from)?, day(to)?);
            // One series sets its clock back; the benchmark takes the first and the last step of a window.
            let start = one.days.iter().position(|d| *d >= from).unwrap_or(one.days.len());
            Ok(start..one.days.iter().rposition(|d| *d <= to).map_or(0, |last| last + 1))
        };
        labelled.push(windows.iter().map(steps).collect::<Result<Vec<_>>>()?);
        series.push(one);
    }
    let steps: Vec<Vec<Step>> = series.iter().map(|s| s.judge(&options)).collect();
    let gauss: Vec<Vec<f64>> =
        series.iter().map(|s| windowed_gaussian(s.values.iter().map(|v| v[0]))).collect();
    let newest = |scores: &Vec<f64>| {
        let mut newest = Newest::new(options.quiet);
        scores.iter().map(|s| newest.pass(*s)).collect::<Vec<f64>>()
    };
    let of = |f: fn(&Step) -> f64| steps.iter().map(|s| s.iter().map(f).collect()).collect::<Vec<Vec<f64>>>();
    let methods = [
        ("surprisal", of(|s| s.alarm), of(|s| s.nats)),
        ("surprisal, every step", of(|s| s.nats), of(|s| s.nats)),
        ("windowed Gaussian, newest", gauss.iter().map(newest).collect(), gauss.clone()),
        ("windowed Gaussian", gauss.clone(), gauss),
    ];
    let methods = methods.into_iter().map(|(name, alarms, raw)| method(name, &alarms, &raw, &labelled));
    let methods = methods.collect::<Result<Vec<_>>>()?;
    if common.json {
        return output::print(&output::json_lines(&methods)?);
    }
    let head = ["method", "standard", "low FP", "low FN", "found", "false", "VUS-ROC", "VUS-PR", "range F1"];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(methods.iter().map(|m| {
        let standard = m.profiles[PROFILES[0].name];
        let mut row = vec![m.method.to_string()];
        row.extend(PROFILES.iter().map(|p| format!("{:.1}", m.profiles[p.name].score)));
        row.push(format!("{}/{}", standard.found, standard.windows));
        row.push(standard.false_alarms.to_string());
        row.extend([m.vus_roc, m.vus_pr, m.range_f1].map(|x| format!("{x:.3}")));
        row
    }));
    output::print(&output::columns(&rows))
}

fn read(folder: &Path, name: &str) -> Result<Series> {
    let plain = folder.join(name);
    let path = if plain.is_file() { plain } else { folder.join(format!("{name}.gz")) };
    let columns = vec![("timestamp".to_string(), Wish::Date), ("value".to_string(), Wish::Numeric)];
    Series::of(&data::open(path, &ReadOptions { columns, ..Default::default() })?)
}

fn method(
    name: &'static str,
    alarms: &[Vec<f64>],
    raw: &[Vec<f64>],
    labelled: &[Vec<Range<usize>>],
) -> Result<Method> {
    let series =
        alarms.iter().zip(labelled).map(|(s, w)| nab::Series { scores: s.clone(), windows: w.clone() });
    let series: Vec<nab::Series> = series.collect();
    let outcomes = PROFILES
        .iter()
        .map(|p| Ok((p.name, nab::evaluate(&series, *p)?)))
        .collect::<Result<BTreeMap<_, _>>>()?;
    let threshold = outcomes[PROFILES[0].name].threshold;
    let (mut sums, mut n) = ([0.0; 3], 0.0);
    for (scores, windows) in raw.iter().zip(labelled).filter(|(_, w)| !w.is_empty()) {
        let labels: Vec<bool> = (0..scores.len()).map(|t| windows.iter().any(|w| w.contains(&t))).collect();
        let volume = vus(scores, &labels, 100)?;
        let predicted: Vec<Range<usize>> =
            intervals(scores, threshold.next_down(), 0).iter().map(|i| i.start..i.end).collect();
        let f1 = range_scores(windows, &predicted, RangeOptions::default()).f1;
        sums = [sums[0] + volume.roc, sums[1] + volume.pr, sums[2] + f1];
        n += 1.0;
    }
    let [vus_roc, vus_pr, range_f1] = sums.map(|s| s / n);
    Ok(Method { method: name, profiles: outcomes, vus_roc, vus_pr, range_f1 })
}

/// The benchmark's baseline: squared deviations from the mean of the last 6,400 steps, in variances. The order is that of
/// the Gaussian tail probability, without its underflow.
fn windowed_gaussian(values: impl Iterator<Item = f64>) -> Vec<f64> {
    const WINDOW: usize = 6400;
    let values: Vec<f64> = values.collect();
    let (mut sum, mut squares) = (0.0, 0.0);
    let mut scores = Vec::with_capacity(values.len());
    for (t, x) in values.iter().enumerate() {
        let n = t.min(WINDOW) as f64;
        let mean = sum / n.max(1.0);
        let variance = (squares / n.max(1.0) - mean * mean).max(1e-12);
        scores.push(if t >= 50 { (x - mean).powi(2) / variance } else { 0.0 });
        let old = if t >= WINDOW { values[t - WINDOW] } else { 0.0 };
        (sum, squares) = (sum + x - old, squares + x * x - old * old);
    }
    scores
}
