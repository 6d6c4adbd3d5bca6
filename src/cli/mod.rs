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
mod families;
mod info;
mod inputs;
mod list;
mod nab;
mod output;
mod progress;
mod sample;
mod score;
mod series;
mod stream;
mod train;

use crate::cpu::par;
use crate::cuda::Device;
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
    /// Where train, score, eval, detect, adbench, sample, bench and demo compute: cpu, cuda or cuda:N
    #[arg(long, global = true, value_name = "DEVICE", default_value_t)]
    device: Device,
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
    Nab(nab::Args),
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
    let threads = cli.common.threads.map_or(0, |n| n.get());
    match par::inside(threads, || run(&cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("surprisal: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}

fn run(Cli { common, command }: &Cli) -> Result<()> {
    command.check_device(common.device)?;
    match command {
        Command::Demo(args) => demo::run(args, common),
        Command::Train(args) => train::run(args, common),
        Command::Score(args) => score::run(args, common),
        Command::Eval(args) => eval::run(args, common),
        Command::Series(args) => series::run(args, common),
        Command::Nab(args) => nab::run(args, common),
        Command::Detect(args) => detect::run(args, common),
        Command::Sample(args) => sample::run(args, common),
        Command::List(args) => list::run(args, common),
        Command::Info(args) => info::run(args, common),
        Command::Adbench(args) => adbench::run(args, common),
        Command::Bench(args) => bench::run(args, common),
    }
}

impl Command {
    /// Finds out now, before anything is read, whether the command can run on `device`.
    fn check_device(&self, device: Device) -> Result<()> {
        let name = match self {
            Command::Demo(_) | Command::Train(_) | Command::Score(_) | Command::Eval(_) => {
                return device.check();
            }
            Command::Sample(_) | Command::Bench(_) | Command::Detect(_) | Command::Adbench(_) => {
                return device.check();
            }
            Command::Series(_) => "series",
            Command::Nab(_) => "nab",
            Command::List(_) => "list",
            Command::Info(_) => "info",
        };
        if device == Device::Cpu {
            return Ok(());
        }
        let message = format!("--device {device}: {name} runs on the CPU");
        Err(Error::new(ErrorKind::Usage, message))
    }
}
