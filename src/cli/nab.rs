//! `nab`: the Numenta Anomaly Benchmark.

use super::series::Series;
use super::{Common, output};
use crate::data::{self, ReadOptions, Wish};
use crate::error::{Error, ErrorKind, Result};
use crate::report::metrics::nab::{self, Outcome, PROFILES};
use crate::report::metrics::{RangeOptions, range_scores, vus};
use crate::series::{Newest, Step, intervals};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct Args {
    /// The folder with windows.json and the series that it names, as .csv or .csv.gz
    folder: PathBuf,
    #[command(flatten)]
    model: super::series::Model,
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
pub fn run(args: &Args, common: &Common) -> Result<()> {
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

/// The benchmark's baseline: squared deviations from the mean of the last 6,400 steps, in variances. The order is
/// that of the Gaussian tail probability, without its underflow.
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
