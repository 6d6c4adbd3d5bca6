//! `detect`: rank the rows of a file by how anomalous they are, or judge them against clean reference data.
//!
//! Without a reference the detector learns from the file itself, anomalies and all (outlier detection). With one, or
//! with a saved detector, rows are judged against what was learned there, with split-conformal p-values (novelty
//! detection).
//!
//! A likelihood model (`--model`) is a detector like the others. On a file with anomalies in it, it is fitted by trimmed
//! likelihood (`train.trim`), so that it does not learn what it should find; the ranking needs no guess of their share.

use super::progress::{self, Training, say};
use super::{Common, inputs, output};
use crate::cuda::Device;
use crate::data::Dataset;
use crate::detectors::{self, Pipeline};
use crate::error::{Error, ErrorKind, Result};
use crate::report::metrics::quantile;
use crate::train::Observer;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

/// What ranks a file when nothing else is asked for, and what judges against a reference.
const OUTLIERS: &str = "iforest";
const NOVELTY: &str = "knn";
/// The false-alarm rate against a reference when none is asked for.
const ALPHA: f64 = 0.01;
/// The share of a file that a likelihood model does not learn from, unless there is a reference.
const TRIM: f64 = 0.1;
/// Columns that are named per row.
const NAMED: usize = 3;

#[derive(clap::Args)]
pub struct Args {
    /// The data to judge: CSV, npz, npy or another source
    data: PathBuf,
    #[command(flatten)]
    reading: inputs::Reading,
    /// The detector (`list detectors`) [default: iforest; knn with --reference]
    #[arg(long, value_name = "NAME", conflicts_with = "with")]
    detector: Option<String>,
    /// A likelihood model of tables instead of a detector: a name, preset or TOML file (`list models`), e.g. made, nsf,
    /// vae_table; the score is -log p
    #[arg(long, value_name = "NAME", conflicts_with_all = ["with", "detector"])]
    model: Option<String>,
    /// Clean data to learn from; without it the detector learns from the data itself
    #[arg(long, value_name = "PATH", conflicts_with = "with")]
    reference: Option<PathBuf>,
    /// A detector that was saved before
    #[arg(long, value_name = "FILE")]
    with: Option<PathBuf>,
    /// Write the fitted detector, for --with
    #[arg(long, value_name = "FILE", conflicts_with = "with")]
    save: Option<PathBuf>,
    /// Override a setting of the detector or model, e.g. --set neighbours=10, --set train.steps=500
    #[arg(long = "set", value_name = "KEY=VALUE", conflicts_with = "with")]
    set: Vec<String>,
    /// The share of anomalies expected in the data, or auto: only where to cut, the ranking does not depend on it
    #[arg(long, value_name = "auto|SHARE", default_value = "auto", value_parser = contamination)]
    contamination: Contamination,
    /// With a reference: the share of normal rows that may be called anomalies [default: 0.01]
    #[arg(long, value_name = "RATE")]
    alpha: Option<f64>,
    /// Explain the N highest rows: the columns without which the score would fall most
    #[arg(long, value_name = "N", default_value = "10")]
    top: usize,
    /// CSV, the default
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Contamination {
    Auto,
    Share(f64),
}

fn contamination(text: &str) -> std::result::Result<Contamination, String> {
    match text.parse() {
        _ if text == "auto" => Ok(Contamination::Auto),
        Ok(share) if (0.0..1.0).contains(&share) => Ok(Contamination::Share(share)),
        _ => Err("expected auto or a share in [0, 1)".into()),
    }
}

/// One row.
#[derive(Serialize)]
struct Line {
    index: usize,
    score: f64,
    /// 1 is the most anomalous.
    rank: usize,
    p_value: Option<f64>,
    decision: &'static str,
    /// Of the top rows: the columns that made the score, the worst first.
    columns: Vec<String>,
}

/// Learns, scores, ranks, prints.
pub fn run(args: &Args, common: &Common) -> Result<()> {
    let (pipeline, data) = prepare(args, common)?;
    let device = common.device;
    if device != Device::Cpu && !pipeline.uses_devices() {
        say(common, format!("{}: this detector computes on the CPU", pipeline.info().name));
    }
    let scores = device.run(|| pipeline.score(&data))??;
    let cut = cut(args, common, &pipeline, &scores)?;
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let reference = pipeline.reference();
    let p_value = |score| (reference.rows() > 0).then(|| reference.p_value(score));
    let mut lines: Vec<Line> = scores
        .iter()
        .enumerate()
        .map(|(index, &score)| {
            let decision = if score > cut { "anomaly" } else { "normal" };
            Line { index, score, rank: 0, p_value: p_value(score), decision, columns: Vec::new() }
        })
        .collect();
    for (i, &row) in order.iter().enumerate() {
        lines[row].rank = i + 1;
        if i < args.top {
            lines[row].columns = device.run(|| worst(&pipeline, &data, row))??;
        }
    }
    summary(args, common, &data, &lines, &order);
    if common.json {
        return output::print(&output::json_lines(&lines)?);
    }
    let mut text = String::from("index,score,rank,p_value,decision,columns\n");
    for l in &lines {
        let p_value = l.p_value.map_or(String::new(), |p| p.to_string());
        let columns = quoted(&l.columns.join(" "));
        let _ = writeln!(text, "{},{},{},{p_value},{},{columns}", l.index, l.score, l.rank, l.decision);
    }
    output::print(&text)
}

/// The fitted detector and the data to judge.
fn prepare(args: &Args, common: &Common) -> Result<(Pipeline, Dataset)> {
    if let Some(path) = &args.with {
        let pipeline = Pipeline::load(path)?;
        let data = args.reading.open_like(&args.data, pipeline.columns().schema().cloned().map(Arc::new))?;
        return Ok((pipeline, data));
    }
    let usual = if args.reference.is_some() { NOVELTY } else { OUTLIERS };
    let (info, settings) = match &args.model {
        Some(model) => {
            let robust = args.reference.is_none().then(|| format!("train.trim={TRIM}"));
            let set: Vec<String> = robust.into_iter().chain(args.set.iter().cloned()).collect();
            detectors::model(model, &set)?
        }
        None => (detectors::find(args.detector.as_deref().unwrap_or(usual))?, settings(&args.set)?),
    };
    let seed = common.seed.unwrap_or(0);
    let mut training = args.model.as_ref().map(|model| Training::new(common, model, false));
    let observer: &mut dyn Observer = match &mut training {
        Some(training) => {
            progress::catch_interrupts()?;
            training
        }
        None => &mut (),
    };
    let (pipeline, data) = match &args.reference {
        Some(path) => {
            let reference = args.reading.open(path)?;
            let data = args.reading.open_like(&args.data, reference.schema.clone())?;
            let fit = || Pipeline::calibrated_watched(info, &settings, &reference, seed, observer);
            (common.device.run(fit)??, data)
        }
        None => {
            if args.alpha.is_some() {
                let message = "--alpha needs --reference PATH or --with FILE: p-values come from clean rows";
                return Err(Error::new(ErrorKind::Usage, message));
            }
            let data = args.reading.open(&args.data)?;
            let fit = || Pipeline::fit_watched(info, &settings, &data, seed, observer);
            (common.device.run(fit)??, data)
        }
    };
    if let Some(path) = &args.save {
        pipeline.save(path)?;
    }
    Ok((pipeline, data))
}

/// `key=value` with values in JSON, or texts.
fn settings(assignments: &[String]) -> Result<Value> {
    let mut map = Map::new();
    for assignment in assignments {
        let Some((key, text)) = assignment.split_once('=') else {
            let message = format!("--set {assignment}: expected key=value");
            return Err(Error::new(ErrorKind::Usage, message));
        };
        let value = serde_json::from_str(text.trim()).unwrap_or_else(|_| json!(text.trim()));
        map.insert(key.trim().into(), value);
    }
    Ok(Value::Object(map))
}

/// The score above which a row is called an anomaly.
fn cut(args: &Args, common: &Common, pipeline: &Pipeline, scores: &[f64]) -> Result<f64> {
    let mut sorted = scores.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let (name, rows) = (pipeline.info().name, pipeline.reference().rows());
    if let Contamination::Share(share) = args.contamination {
        let called = (share * n as f64).round() as usize;
        say(common, format!("{name}: at most {called} of {n} rows are called anomalies"));
        return Ok(if called == 0 {
            f64::INFINITY
        } else if called == n {
            f64::NEG_INFINITY
        } else {
            sorted[n - called - 1]
        });
    }
    if rows > 0 {
        let alpha = args.alpha.unwrap_or(ALPHA.max(pipeline.reference().smallest_alpha()));
        let cut = pipeline.reference().threshold(alpha)?;
        say(
            common,
            format!(
                "{name}: above {cut:.4} is an anomaly; {} of normal rows is expected there, by {rows} held-out scores",
                output::short(alpha)
            ),
        );
        return Ok(cut);
    }
    let cut = natural_cut(&sorted);
    say(
        common,
        format!(
            "{name}: above {cut:.4} is an anomaly, where the bulk of the {n} scores would put less than one row"
        ),
    );
    Ok(cut)
}

/// Where an exponential tail through the median and the upper quartile of the sorted scores leaves one row in n:
/// median + (q75 − median) log2 n.
fn natural_cut(sorted: &[f64]) -> f64 {
    let (median, upper) = (quantile(sorted, 0.5), quantile(sorted, 0.75));
    median + (upper - median) * (sorted.len() as f64).log2()
}

/// The names of the columns that made the score of a row.
fn worst(pipeline: &Pipeline, data: &Dataset, row: usize) -> Result<Vec<String>> {
    let parts = pipeline.worst_columns(data, row)?;
    let mut order: Vec<usize> = (0..parts.len()).filter(|&j| parts[j] > 0.0).collect();
    order.sort_by(|&a, &b| parts[b].total_cmp(&parts[a]).then(a.cmp(&b)));
    Ok(order.iter().take(NAMED).map(|&j| pipeline.columns().name(j)).collect())
}

/// The highest rows on stderr.
fn summary(args: &Args, common: &Common, data: &Dataset, lines: &[Line], order: &[usize]) {
    let anomalies = lines.iter().filter(|l| l.decision == "anomaly").count();
    say(common, format!("{}: {anomalies} of {} rows are anomalies", data.name, lines.len()));
    let mut rows = vec![["rank", "row", "score", "columns"].map(String::from).to_vec()];
    for l in order.iter().take(args.top).map(|&row| &lines[row]) {
        rows.push(vec![
            l.rank.to_string(),
            l.index.to_string(),
            format!("{:.4}", l.score),
            l.columns.join(", "),
        ]);
    }
    say(common, output::columns(&rows).trim_end());
}

/// A CSV cell.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_where_the_bulk_ends() {
        // Exponential quantiles: the cut lies at log 2 + log 2 log2 n, where the largest of them is too.
        let n = 1000;
        let mut scores: Vec<f64> = (0..n).map(|i| -(1.0 - (i as f64 + 0.5) / n as f64).ln()).collect();
        let cut = natural_cut(&scores);
        assert!((cut - (2f64.ln() + (n as f64).ln())).abs() < 0.05, "{cut}");
        assert!(scores[n - 2] < cut);
        scores.extend([20.0, 30.0]);
        assert!(natural_cut(&scores) < 20.0);
        assert_eq!(natural_cut(&[1.0]), 1.0);
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
    }
}
