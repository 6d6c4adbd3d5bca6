//! `bench`: the time of one training step (forward, backward, Adam) or one sampling call on synthetic inputs.

use super::{Common, inputs, output};
use crate::autograd;
use crate::cpu::gemm::{self, Epilogue, Mat};
use crate::cuda::{Device, Replay};
use crate::error::{Error, ErrorKind, Result};
use crate::models::{Batch, Input, MODELS, Model, SampleOptions, config};
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use crate::train::{Amp, FitOptions, Optimiser};
use serde::Serialize;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Args {
    /// A workload (`--list`), a preset, a model or a TOML file; all workloads when none is named
    name: Option<String>,
    /// For how long
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS")]
    seconds: f64,
    /// Mixed precision: off, bf16, f16 or tf32
    #[arg(long, default_value = "off", value_name = "AMP")]
    amp: Amp,
    /// Multiplies the batch of the training workloads
    #[arg(long, default_value_t = 1.0, value_name = "K")]
    batch_scale: f64,
    /// List the workloads
    #[arg(long)]
    list: bool,
}

/// What is timed.
#[derive(Clone, Copy, PartialEq)]
enum Task {
    /// A training step on uniform values in [0, 1), as they come from dequantisation.
    TrainUniform,
    /// A training step on random bytes.
    TrainBytes,
    /// A training step on normal numbers.
    TrainNormal,
    /// A training step on what the model takes: random bytes, or normal numbers.
    Train,
    /// Drawing a batch of samples.
    Sample,
    /// log p of random bytes, without gradients.
    ScoreBytes,
}

/// A workload: a preset with changes, a batch, a task.
#[derive(Clone, Copy)]
struct Workload<'a> {
    name: &'a str,
    preset: &'a str,
    set: &'static [&'static str],
    batch: usize,
    task: Task,
}

/// All workloads.
const WORKLOADS: &[Workload<'static>] = &[
    Workload { name: "glow28", preset: "glow28", set: &["prepare=[]"], batch: 64, task: Task::TrainUniform },
    Workload { name: "pixelcnn28", preset: "pixelcnn28", set: &[], batch: 32, task: Task::TrainBytes },
    Workload { name: "nsf_tab21", preset: "nsf_tab21", set: &[], batch: 512, task: Task::TrainNormal },
    Workload {
        name: "transformer256",
        preset: "transformer256",
        set: &[],
        batch: 16,
        task: Task::TrainBytes,
    },
    Workload {
        name: "ebm28",
        preset: "ebm28",
        set: &["prepare=[]", "chain.clip=0.0"],
        batch: 64,
        task: Task::TrainUniform,
    },
    Workload { name: "ffjord43", preset: "ffjord43", set: &[], batch: 512, task: Task::TrainNormal },
    Workload { name: "pixelcnn28_sample", preset: "pixelcnn28", set: &[], batch: 16, task: Task::Sample },
    Workload { name: "vae28", preset: "vae28", set: &[], batch: 128, task: Task::TrainBytes },
    Workload {
        name: "vae28_iwae",
        preset: "vae28",
        set: &["importance=128"],
        batch: 16,
        task: Task::ScoreBytes,
    },
];

/// Calls before the clock starts.
const WARM_UP: usize = 3;

#[derive(Serialize)]
struct Line {
    name: String,
    version: &'static str,
    target: &'static str,
    device: String,
    threads: usize,
    isa: String,
    params: usize,
    batch: usize,
    steps: usize,
    median_s: f64,
    min_s: f64,
    samples_per_s: f64,
    /// Matrix products and convolutions of a call over its whole time, on the CPU.
    gflops: Option<f64>,
    /// A product of 1024 cubed in the same run.
    gemm_gflops: Option<f64>,
}

/// Times and prints one line per workload.
pub fn run(args: &Args, common: &Common) -> Result<()> {
    if args.list {
        return output::print(&WORKLOADS.iter().map(|w| format!("{}\n", w.name)).collect::<String>());
    }
    args.amp.check(common.device)?;
    if !(args.seconds >= 0.0 && args.batch_scale > 0.0 && args.seconds < 1e6 && args.batch_scale < 1e6) {
        return Err(Error::new(ErrorKind::Usage, "--seconds and --batch-scale: expected numbers above 0"));
    }
    let chosen: Vec<Workload> = match &args.name {
        None => WORKLOADS.to_vec(),
        Some(name) => vec![match WORKLOADS.iter().find(|w| w.name == name) {
            Some(w) => *w,
            None => {
                let batch = config::find(MODELS, name)?.train.batch;
                Workload { name, preset: name, set: &[], batch, task: Task::Train }
            }
        }],
    };
    for workload in &chosen {
        let line = time(workload, args, common)?;
        if common.json {
            output::print(&(output::json(&line, false)? + "\n"))?;
        } else {
            output::print(&format!(
                "{:18} {:9.1} samples/s  median {:.4} s  min {:.4} s  {} steps of {}  {} parameters{}\n",
                line.name,
                line.samples_per_s,
                line.median_s,
                line.min_s,
                line.steps,
                line.batch,
                line.params,
                match (line.gflops, line.gemm_gflops) {
                    (Some(all), Some(one)) => format!("  {all:.0} of {one:.0} GFLOP/s"),
                    _ => String::new(),
                }
            ))?;
        }
    }
    Ok(())
}

fn time(workload: &Workload, args: &Args, common: &Common) -> Result<Line> {
    let mut recipe = config::find(MODELS, workload.preset)?;
    recipe.set(workload.set)?;
    let seed = common.seed.unwrap_or(0);
    let model = recipe.build()?;
    if model.params().trainable().next().is_none() {
        let what =
            format!("{}: a model that is fitted in closed form takes no training steps", workload.preset);
        return Err(Error::new(ErrorKind::Usage, what));
    }
    inputs::to_device(&*model, common)?;
    let (device, amp) = (model.device(), args.amp);
    let mut rng = Philox::new(seed).fork(0);
    let (mut step, batch): (Box<dyn FnMut() -> Result<()>>, usize) = match workload.task {
        Task::Sample => {
            let (n, model) = (workload.batch, &*model);
            let draw = move || amp.run(|| model.draw(n, &SampleOptions::default(), &mut rng)).map(drop);
            (Box::new(draw), n)
        }
        Task::ScoreBytes => {
            let (n, model) = (workload.batch, &*model);
            let batch = Batch::new(synthetic(workload.task, n, &model.input(), &mut rng)).to(device)?;
            let mut replay = Replay::new();
            let mut nats = move || {
                let work = &mut |x: &[Tensor], rng: &mut Philox| {
                    vec![autograd::no_grad(|| model.log_prob(&Batch::new(x[0].clone()), rng)).nats]
                };
                replay.run(&[&batch.x], &mut rng, work)[0].to_f64_vec();
            };
            let score = move || device.run(|| amp.run(&mut nats));
            (Box::new(score), n)
        }
        task => {
            let n = ((workload.batch as f64 * args.batch_scale).round() as usize).max(1);
            let input = model.input();
            let x = synthetic(task, n, &input, &mut rng);
            let labels = input.classes.map(|classes| rng.randint(0, classes as i32, [n]));
            let batch = Batch { x, labels }.to(device)?;
            let mut optimiser = device.run(|| Optimiser::new(model.params(), false))?;
            let options = FitOptions { lr: 1e-4, ..Default::default() };
            let model: &dyn Model = &*model;
            let mut replay = Replay::new();
            let mut steps = move || {
                if device == Device::Cpu {
                    return train_step(model, &batch, &mut rng, &mut optimiser, &options);
                }
                let rates = optimiser.next_rates(options.lr, &options);
                // Its gate is waited for, as the norm is in a training run.
                replay.step(model, &mut optimiser, &batch, &rates, None, &mut rng, 0.0)[0].to_f64_vec();
            };
            let train = move || device.run(|| amp.run(&mut steps));
            (Box::new(train), n)
        }
    };
    for _ in 0..WARM_UP {
        step()?;
    }
    let cpu = device == Device::Cpu;
    let gemm_gflops = cpu.then(product_rate);
    let flops = gemm::flops();
    let (mut times, end) = (Vec::new(), Instant::now() + Duration::from_secs_f64(args.seconds));
    while times.len() < 3 || Instant::now() < end {
        let start = Instant::now();
        step()?;
        times.push(start.elapsed().as_secs_f64());
    }
    drop(step);
    let flops = (gemm::flops() - flops) as f64 / times.len() as f64;
    times.sort_by(f64::total_cmp);
    let median_s = times[times.len() / 2];
    Ok(Line {
        name: workload.name.into(),
        version: env!("CARGO_PKG_VERSION"),
        target: env!("SURPRISAL_TARGET"),
        device: device.to_string(),
        threads: rayon::current_num_threads(),
        isa: format!("{:?}", crate::cpu::simd::isa()).to_lowercase(),
        params: model.params().count(),
        batch,
        steps: times.len(),
        median_s,
        min_s: times[0],
        samples_per_s: batch as f64 / median_s,
        gflops: cpu.then_some(flops / median_s / 1e9),
        gemm_gflops,
    })
}

/// GFLOP/s of a matrix product that fills the machine: the best of ten.
fn product_rate() -> f64 {
    const N: usize = 1024;
    let (a, b, mut c) = (vec![0.5f32; N * N], vec![0.25f32; N * N], vec![0.0f32; N * N]);
    let mut time = || {
        let start = Instant::now();
        gemm::gemm(N, N, N, Mat::new(&a, N), Mat::new(&b, N), &mut c, N, &Epilogue::default());
        start.elapsed().as_secs_f64()
    };
    let best = (0..10).map(|_| time()).fold(f64::INFINITY, f64::min);
    2.0 * (N * N * N) as f64 / best / 1e9
}

fn synthetic(task: Task, n: usize, input: &Input, rng: &mut Philox) -> Tensor {
    let sizes: Vec<usize> = [n].iter().chain(&input.shape).copied().collect();
    match task {
        Task::TrainUniform => return rng.uniform(&sizes, DType::F32),
        Task::TrainNormal => return rng.normal(&sizes, DType::F32),
        Task::Train if input.dtypes.first() == Some(&DType::F32) => return rng.normal(&sizes, DType::F32),
        Task::Train | Task::TrainBytes | Task::ScoreBytes | Task::Sample => {}
    }
    let bytes = rng.randint(0, input.levels as i32, &sizes);
    if input.dtypes.first() == Some(&DType::I32) {
        return bytes;
    }
    let bytes = bytes.as_slice::<i32>();
    Tensor::from_fn(&sizes, |i| bytes[i] as u8)
}

/// One step of training: forward, backward, Adam.
pub(super) fn train_step(
    model: &dyn Model,
    batch: &Batch,
    rng: &mut Philox,
    optimiser: &mut Optimiser,
    options: &FitOptions,
) {
    let loss = model.objective(batch, rng).mean_all();
    let leaves = optimiser.leaves();
    let grads = autograd::backward(loss, &leaves.iter().collect::<Vec<_>>());
    drop(leaves);
    optimiser.step(&grads, options.lr, 1.0, options);
}
