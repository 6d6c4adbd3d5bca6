//! The command line: one file per command.
//!
//! Data goes to stdout; logs and progress go to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage. Results are
//! written beside their place and renamed, so an output is whole or not there.

mod adbench;
mod bench;
mod compare;
mod demo;
mod detect;
mod eval;
mod evidence;
mod info;
mod inputs;
mod list;
mod output;
mod progress;
mod sample;
mod score;
mod series;
mod stream;
mod train;

use crate::cpu::par;
use crate::error::{Error, ErrorKind, Result};
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Anomaly and out-of-distribution detection with likelihood-based generative models.
#[derive(Parser)]
#[command(name = "surprisal", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Args)]
struct Common {
    /// Seed of everything random
    #[arg(long, global = true, value_name = "N")]
    seed: Option<u64>,
    /// Where to compute: cpu, cuda or cuda:N
    #[arg(long, global = true, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    /// Number of threads [default: all cores]; results do not depend on it
    #[arg(long, global = true, value_name = "N")]
    threads: Option<std::num::NonZeroUsize>,
    /// Print JSON on stdout
    #[arg(long, global = true)]
    json: bool,
    /// No progress on stderr
    #[arg(long, short, global = true)]
    quiet: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Train on clothes, be shown digits: how raw likelihood fails, and what repairs it
    Demo(demo::Args),
    /// Train a model
    Train(train::Args),
    /// Score data with a trained model, one line per example
    Score(score::Args),
    /// Compare data sets under a trained model: table, results.json, report.html
    Eval(eval::Args),
    /// Find the intervals of a time series that stand out, step by step, without looking ahead
    Series(series::Args),
    /// Score the streaming model on a folder of the Numenta Anomaly Benchmark
    Nab(series::NabArgs),
    /// Rank the rows of a file by a classical detector, or judge them against clean reference data
    Detect(detect::Args),
    /// Draw samples from a trained model
    Sample(sample::Args),
    /// List models, detectors, scorers, sources or ops
    List(list::Args),
    /// Describe a model file, a model or a preset
    Info(info::Args),
    /// Measure detectors and models on labelled tables (AUROC, average precision, seconds)
    Adbench(adbench::Args),
    /// Time a training step or a sampling call on synthetic inputs
    Bench(bench::Args),
}

/// Parses the arguments, runs the command, returns the exit code: 0 ok, 1 failed, 2 usage.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(e.exit_code() as u8);
        }
    };
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("surprisal: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}

fn run(Cli { common, command }: &Cli) -> Result<()> {
    check_device(&common.device)?;
    if let Some(threads) = common.threads {
        par::set_threads(threads.get());
    }
    match command {
        Command::Demo(args) => demo::run(args, common),
        Command::Train(args) => train::run(args, common),
        Command::Score(args) => score::run(args, common),
        Command::Eval(args) => eval::run(args, common),
        Command::Series(args) => series::run(args, common),
        Command::Nab(args) => series::nab(args, common),
        Command::Detect(args) => detect::run(args, common),
        Command::Sample(args) => sample::run(args, common),
        Command::List(args) => list::run(args, common),
        Command::Info(args) => info::run(args, common),
        Command::Adbench(args) => adbench::run(args, common),
        Command::Bench(args) => bench::run(args, common),
    }
}

fn check_device(device: &str) -> Result<()> {
    let number = |n: &str| n.parse::<u32>().is_ok();
    match device.split_once(':').unwrap_or((device, "0")) {
        ("cpu", "0") => Ok(()),
        ("cuda", n) if number(n) => Err(Error::new(
            ErrorKind::Device,
            format!("--device {device}: this build has no CUDA; expected cpu"),
        )),
        _ => Err(Error::new(ErrorKind::Usage, format!("--device {device}: expected cpu, cuda or cuda:N"))),
    }
}
