//! `adbench`: detectors and likelihood models on labelled tables, under a protocol that any language can repeat.
//!
//! ```text
//! key(i) = splitmix64((seed << 32) + i)                                  row i in the order of the file
//! one-class:     normal rows by key: the first half trains, the other half and the anomalies by key test;
//!                at most 10,000 of each
//! unsupervised:  all rows by key, at most 20,000: the same rows train and test
//! ```
//! Columns are standardised by the training rows (constant ones become 0) and cut at ±1000. AUROC and average precision
//! are means over the seeds. The sets are those of ADBench (Han et al. 2022): npz files with X and y, 1 = anomaly.

use super::{Common, output, progress};
use crate::cuda::Device;
use crate::data::{self, Dataset, ReadOptions};
use crate::detectors::{self, DETECTORS, DetectorInfo, Pipeline, Scaling};
use crate::error::{Error, ErrorKind, Result, nearest};
use crate::report::metrics::Comparison;
use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The most rows of one kind, and of a file in the unsupervised protocol.
const MOST: usize = 10_000;
const MOST_UNSUPERVISED: usize = 20_000;

#[derive(clap::Args)]
pub struct Args {
    /// Folder of npz files with X (rows, columns) and y (0 = normal, 1 = anomaly), or one such file
    folder: PathBuf,
    /// What the training rows are
    #[arg(long, value_enum, default_value = "one-class")]
    protocol: Protocol,
    /// Detectors, comma-separated [default: all of `list detectors` that take any numbers, unless --models is given]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    detectors: Vec<String>,
    /// Likelihood models: names, presets or TOML files, comma-separated; the score is -log p(x), that of a
    /// pool like gmm+maf+made the mean of its members'
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    models: Vec<String>,
    /// Only the sets whose name contains one of these, comma-separated
    #[arg(long, value_name = "TEXTS", value_delimiter = ',')]
    sets: Vec<String>,
    /// Repeat with seeds 0 to N − 1
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Override a setting of the models, e.g. --set train.epochs=50
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Protocol {
    /// Trained on normal rows
    OneClass,
    /// Trained on the rows that are judged
    Unsupervised,
}

/// One set under one detector or model.
#[derive(Serialize)]
struct Line {
    set: String,
    name: String,
    auroc: f64,
    aupr: f64,
    /// To fit and score once, mean over the seeds.
    seconds: f64,
}

/// A detector, or likelihood models as such, with their settings. The score of several is their mean surprisal: that
/// of the logarithmic opinion pool Π p_i^(1/n), up to a constant.
struct Judge {
    name: String,
    members: Vec<(&'static DetectorInfo, Value)>,
}

impl Judge {
    /// Scores of the rows `test` after a fit to the rows `train`.
    fn scores(&self, device: Device, train: &Dataset, test: &Dataset, seed: u64) -> Result<Vec<f64>> {
        let share = 1.0 / self.members.len() as f64;
        let mut mean = vec![0.0; test.len()];
        for (info, settings) in &self.members {
            let scores = device.run(|| Pipeline::fit(info, settings, train, seed)?.score(test))??;
            mean.iter_mut().zip(scores).for_each(|(sum, score)| *sum += share * score);
        }
        Ok(mean)
    }
}

/// Runs all, prints a line each and the means over the sets.
pub fn run(args: &Args, common: &Common) -> Result<()> {
    progress::catch_interrupts()?;
    let judges = judges(args)?;
    let mut lines: Vec<Line> = Vec::new();
    for path in files(args)? {
        let data = data::open(&path, &ReadOptions::default())?;
        let anomalous = labels(&data)?;
        for judge in &judges {
            let name = &judge.name;
            let mut sum = [0.0; 3];
            for seed in 0..args.seeds {
                let (train, test) = split(&anomalous, seed, args.protocol);
                let place = |e: Error| e.at(format_args!("{}: {name}, seed {seed}", data.name));
                let started = Instant::now();
                let (train, rows) = (data.select(&train), data.select(&test));
                let scores = judge.scores(common.device, &train, &rows, seed).map_err(place)?;
                let seconds = started.elapsed().as_secs_f64();
                let of = |kind: bool| -> Vec<f64> {
                    test.iter()
                        .zip(&scores)
                        .filter(|(i, _)| anomalous[**i] == kind)
                        .map(|(_, s)| *s)
                        .collect()
                };
                let found = Comparison::new(&of(false), &of(true)).map_err(place)?;
                let values = [found.auroc(), found.aupr_out(), seconds];
                sum.iter_mut().zip(values).for_each(|(s, v)| *s += v / args.seeds as f64);
            }
            let line = Line {
                set: data.name.clone(),
                name: name.clone(),
                auroc: sum[0],
                aupr: sum[1],
                seconds: sum[2],
            };
            progress::say(common, text(&line));
            lines.push(line);
        }
    }
    if common.json {
        return output::print(&output::json_lines(&lines)?);
    }
    let mut out = String::new();
    for line in &lines {
        let _ = writeln!(out, "{}", text(line));
    }
    for Judge { name, .. } in &judges {
        let of: Vec<&Line> = lines.iter().filter(|l| l.name == *name).collect();
        let mean = |f: fn(&Line) -> f64| of.iter().map(|l| f(l)).sum::<f64>() / of.len() as f64;
        let total: f64 = of.iter().map(|l| l.seconds).sum();
        let (auroc, aupr, sets) = (mean(|l| l.auroc), mean(|l| l.aupr), of.len());
        let _ = writeln!(
            out,
            "MEAN {name:12} auroc {auroc:.4} aupr {aupr:.4} total {total:.2} s over {sets} sets"
        );
    }
    output::print(&out)
}

fn text(line: &Line) -> String {
    let Line { set, name, auroc, aupr, seconds } = line;
    format!("{set:22} {name:12} auroc {auroc:.4} aupr {aupr:.4} {seconds:8.3} s")
}

fn judges(args: &Args) -> Result<Vec<Judge>> {
    let mut out = Vec::new();
    let all = args.detectors.is_empty() && args.models.is_empty();
    let any_numbers =
        DETECTORS.iter().filter(|d| all && d.scaling == Scaling::Standard).map(|d| d.name.to_string());
    for name in args.detectors.iter().cloned().chain(any_numbers) {
        out.push(Judge { members: vec![(detectors::find(&name)?, Value::Null)], name });
    }
    for name in &args.models {
        let members = name.split('+').map(|name| detectors::model(name, &args.set));
        out.push(Judge { name: name.clone(), members: members.collect::<Result<_>>()? });
    }
    Ok(out)
}

fn files(args: &Args) -> Result<Vec<PathBuf>> {
    let folder = &args.folder;
    if folder.is_file() {
        return Ok(vec![folder.clone()]);
    }
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let mut paths = entries
        .map(|e| e.map(|e| e.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(|e| Error::io(folder, e))?;
    paths.retain(|p| p.extension().is_some_and(|e| e == "npz"));
    paths.sort();
    let stem = |p: &Path| p.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let names: Vec<String> = paths.iter().map(|p| stem(p)).collect();
    paths.retain(|p| args.sets.is_empty() || args.sets.iter().any(|s| stem(p).contains(s.as_str())));
    if paths.is_empty() {
        let wanted = args.sets.join(",");
        let hint = nearest(&wanted, names.iter().map(String::as_str));
        let message = format!("{}: no npz files called \"{wanted}\"; {hint}", folder.display());
        return Err(Error::new(ErrorKind::Usage, message));
    }
    Ok(paths)
}

/// Whether each row is an anomaly.
fn labels(data: &Dataset) -> Result<Vec<bool>> {
    let wrong = |message: String| Error::new(ErrorKind::Data, format!("{}: {message}", data.name));
    let labels = data.labels.as_ref().ok_or_else(|| wrong("no labels; expected an array y".into()))?;
    if let Some(row) = labels.iter().position(|l| !(0..=1).contains(l)) {
        return Err(wrong(format!("row {row} has label {}; expected 0 or 1", labels[row])));
    }
    let anomalies = labels.iter().filter(|&&l| l == 1).count();
    if anomalies == 0 || labels.len() < anomalies + 2 {
        let normal = labels.len() - anomalies;
        return Err(wrong(format!(
            "{normal} normal rows and {anomalies} anomalies; expected at least 2 and 1"
        )));
    }
    Ok(labels.iter().map(|&l| l == 1).collect())
}

/// Training and test rows.
fn split(anomalous: &[bool], seed: u64, protocol: Protocol) -> (Vec<usize>, Vec<usize>) {
    let mut order: Vec<usize> = (0..anomalous.len()).collect();
    order.sort_by_key(|&i| splitmix64((seed << 32) + i as u64));
    if protocol == Protocol::Unsupervised {
        order.truncate(MOST_UNSUPERVISED);
        return (order.clone(), order);
    }
    let (normal, anomalies): (Vec<usize>, Vec<usize>) = order.into_iter().partition(|&i| !anomalous[i]);
    let (train, rest) = normal.split_at(normal.len() / 2);
    let test = rest.iter().take(MOST).chain(anomalies.iter().take(MOST)).copied().collect();
    (train[..train.len().min(MOST)].to_vec(), test)
}

/// Steele, Lea & Flood 2014.
fn splitmix64(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// numpy: `split(y, 1, protocol)` of 12 rows with anomalies 3 and 8, by the protocol's reference script.
    #[test]
    fn splits_to_the_row() {
        let anomalous: Vec<bool> = (0..12).map(|i| i == 3 || i == 8).collect();
        let (train, test) = split(&anomalous, 1, Protocol::OneClass);
        assert_eq!((train, test), (vec![10, 6, 11, 1, 7], vec![5, 4, 9, 2, 0, 8, 3]));
        let (train, test) = split(&anomalous, 1, Protocol::Unsupervised);
        assert_eq!(train, [10, 6, 11, 1, 7, 5, 4, 9, 8, 3, 2, 0]);
        assert_eq!(train, test);
    }

    /// A pool of a model with itself is that model; one of two lies between them.
    #[test]
    fn pools_are_means() {
        let rows = |seed| crate::random::Philox::new(seed).normal([40, 2], crate::tensor::DType::F64);
        let (train, test) = (Dataset::new("train", rows(0)), Dataset::new("test", rows(1)));
        let scores = |names: &[&str]| {
            let members = names.iter().map(|name| detectors::model(name, &[]).unwrap()).collect();
            Judge { name: names.join("+"), members }.scores(Device::Cpu, &train, &test, 0).unwrap()
        };
        let (one, two) = (scores(&["gmm"]), scores(&["gmm_5"]));
        assert_ne!(one, two);
        assert_eq!(scores(&["gmm", "gmm"]), one);
        let pool = scores(&["gmm", "gmm_5"]);
        assert!((0..40).all(|i| (pool[i] - 0.5 * (one[i] + two[i])).abs() < 1e-9));
    }
}
