//! Any model of the registry on labelled tables, under the one-class protocol of ADBench-like comparisons:
//!
//!     cargo run --release --example one_class -- FOLDER PRESET[,PRESET...] [--seeds S] [--set key=value ...] [--only SET,...]
//!
//! FOLDER holds npz files with X (N, D) and y (N,), 1 for anomalies. For each seed the normal rows are ordered by
//! splitmix64((seed << 32) + row); the first half, at most 10,000, trains, and the rest, at most 10,000 and at most
//! 10,000 anomalies, is scored. Columns are standardised with the training rows (constant ones become 0) and clipped
//! to ±1000. The score is −log p(x). Nothing is chosen by labels. Prints AUROC and AUPR per set and their means.

use std::path::PathBuf;
use std::time::Instant;
use surprisal::data::{self, Dataset, ReadOptions};
use surprisal::models::{MODELS, config};
use surprisal::report::metrics::Comparison;
use surprisal::train::{Evaluate, fit, log_probs};
use surprisal::{Error, ErrorKind, Result, Tensor};

/// The most rows of a kind.
const MOST: usize = 10_000;

struct Args {
    folder: PathBuf,
    presets: Vec<String>,
    seeds: u64,
    set: Vec<String>,
    only: Vec<String>,
}

fn main() -> Result<()> {
    let args = arguments()?;
    let entries = std::fs::read_dir(&args.folder).map_err(|e| Error::io(&args.folder, e))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "npz"));
    files.sort();
    let mut means = vec![(0.0, 0.0, 0.0); args.presets.len()];
    let mut sets = 0.0;
    for path in files {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().to_string();
        if !args.only.is_empty() && !args.only.iter().any(|o| name.contains(o.as_str())) {
            continue;
        }
        let options = ReadOptions { key: Some("X".into()), labels: Some("y".into()), ..Default::default() };
        let table = data::open(&path, &options)?;
        sets += 1.0;
        for (preset, mean) in args.presets.iter().zip(&mut means) {
            let (mut roc, mut pr, started) = (0.0, 0.0, Instant::now());
            for seed in 0..args.seeds {
                let (a, p) =
                    run(&args, preset, &table, seed).map_err(|e| e.at(format!("{name}, {preset}")))?;
                roc += a / args.seeds as f64;
                pr += p / args.seeds as f64;
            }
            let seconds = started.elapsed().as_secs_f64();
            println!("{name:22} {preset:12} auroc {roc:.4} aupr {pr:.4} {seconds:8.2} s");
            *mean = (mean.0 + roc, mean.1 + pr, mean.2 + seconds);
        }
    }
    for (preset, (roc, pr, seconds)) in args.presets.iter().zip(means) {
        let (roc, pr) = (roc / sets, pr / sets);
        println!("MEAN {preset:12} auroc {roc:.4} aupr {pr:.4} total {seconds:.1} s over {sets} sets");
    }
    Ok(())
}

fn run(args: &Args, preset: &str, table: &Dataset, seed: u64) -> Result<(f64, f64)> {
    let labels = table.labels.as_ref().ok_or_else(|| Error::new(ErrorKind::Data, "no labels y"))?;
    let (train, test) = split(labels, seed);
    let (train_x, test_x) = standardised(table, &train, &test);
    let mut recipe = config::find(MODELS, preset)?;
    recipe.adapt(table);
    let mut set = args.set.clone();
    set.push(format!("train.seed={seed}"));
    recipe.set(&set)?;
    let (rows, aside) = match recipe.train.validation {
        part if part > 0.0 => train_x.split(part, seed).map(|(rows, aside)| (rows, Some(aside)))?,
        _ => (train_x, None),
    };
    let model = recipe.build()?;
    fit(&*model, &rows, aside.as_ref(), &recipe.train, &mut ())?;
    let found = log_probs(&*model, &test_x, &Evaluate { batch: 512, seed, ..Default::default() })?;
    let scores: Vec<f64> = found.nats.iter().map(|nats| -nats).collect();
    let (mut normal, mut anomalous) = (Vec::new(), Vec::new());
    for (&row, score) in test.iter().zip(scores) {
        if labels[row] == 0 { &mut normal } else { &mut anomalous }.push(score);
    }
    let found = Comparison::new(&normal, &anomalous)?;
    Ok((found.auroc(), found.aupr_out()))
}

fn splitmix64(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The rows that train and those that are scored.
fn split(labels: &[i32], seed: u64) -> (Vec<usize>, Vec<usize>) {
    let mut order: Vec<usize> = (0..labels.len()).collect();
    order.sort_by_key(|&i| splitmix64((seed << 32) + i as u64));
    let (normal, anomalous): (Vec<usize>, Vec<usize>) = order.into_iter().partition(|&i| labels[i] == 0);
    let (first, rest) = normal.split_at(normal.len() / 2);
    let test = rest.iter().take(MOST).chain(anomalous.iter().take(MOST)).copied().collect();
    (first[..first.len().min(MOST)].to_vec(), test)
}

fn standardised(table: &Dataset, train: &[usize], test: &[usize]) -> (Dataset, Dataset) {
    let d = table.dims();
    let (train, test) = (table.select(train), table.select(test));
    let (n, rows) = (train.len() as f64, train.values.to_f64_vec());
    let column = |j: usize| rows.iter().skip(j).step_by(d);
    let mean: Vec<f64> = (0..d).map(|j| column(j).sum::<f64>() / n).collect();
    let scale: Vec<f64> = (0..d)
        .map(|j| {
            let first = rows[j];
            let constant = column(j).all(|x| *x == first);
            let variance = column(j).map(|x| (x - mean[j]).powi(2)).sum::<f64>() / n;
            if constant { f64::INFINITY } else { variance.sqrt() }
        })
        .collect();
    let map = |data: Dataset| {
        let xs = data.values.to_f64_vec();
        let y = |i: usize| ((xs[i] - mean[i % d]) / scale[i % d]).clamp(-1e3, 1e3) as f32;
        Dataset { values: Tensor::from_fn([data.len(), d], y), labels: None, ..data }
    };
    (map(train), map(test))
}

fn arguments() -> Result<Args> {
    let usage =
        || Error::new(ErrorKind::Usage, "one_class FOLDER PRESET,.. [--seeds S] [--set k=v] [--only SET,..]");
    let mut given = std::env::args().skip(1);
    let folder = given.next().ok_or_else(usage)?.into();
    let presets = given.next().ok_or_else(usage)?.split(',').map(String::from).collect();
    let mut args = Args { folder, presets, seeds: 1, set: Vec::new(), only: Vec::new() };
    while let Some(flag) = given.next() {
        let value = given.next().ok_or_else(usage)?;
        match flag.as_str() {
            "--seeds" => args.seeds = value.parse().map_err(|_| usage())?,
            "--set" => args.set.push(value),
            "--only" => args.only = value.split(',').map(String::from).collect(),
            _ => return Err(usage()),
        }
    }
    Ok(args)
}
