//! Times the kernels behind every op case that is marked as a benchmark, forward, on random inputs, in f32 and bf16:
//! `cargo bench --features cuda --bench kernels [-- FILTER]`. A recording of many calls is replayed, so that the host is
//! out of the picture. Rates are of the bytes and flops that the case states; % is that of the measured ceiling which is
//! nearer: a copy within the device, or a large bf16 product (SURPRISAL_BF16_TFLOPS replaces our own product as the
//! ceiling, for example by that of cuBLAS). With the feature `emulate` small cases run once on the emulated device.

use std::time::Instant;
use surprisal::cuda::{Replay, kernels_of};
use surprisal::nn::Param;
use surprisal::ops::{Case, OPS, matmul::matmul};
use surprisal::random::Philox;
use surprisal::testing::cast_inputs;
use surprisal::{DType, Device, Tensor, autograd};

/// Larger cases take too long on the emulated device.
const EMULATED_FLOPS: usize = 1_000_000;

fn main() {
    if !cfg!(any(feature = "cuda", feature = "emulate")) {
        println!("kernels run on devices: --features cuda");
        return;
    }
    let emulated = cfg!(feature = "emulate");
    let device = if emulated { Device::Emulated } else { Device::Cuda(0) };
    if let Err(e) = device.check() {
        eprintln!("{e}");
        std::process::exit(1);
    }
    let filter = std::env::args().skip(1).find(|a| !a.starts_with("--")).unwrap_or_default();
    let run = || {
        let ceiling = if emulated { None } else { Some(Ceiling::measure(device)) };
        if let Some(Ceiling { bytes, flops }) = ceiling {
            println!("ceilings: copy {:.0} GB/s, bf16 product {:.1} TFLOP/s", bytes / 1e9, flops / 1e12);
        }
        println!("{:64} {:>10} {:>9} {:>9} {:>6}  kernels", "op: case, dtype", "us", "GB/s", "TFLOP/s", "%");
        for op in OPS {
            for case in (op.cases)().iter().filter(|c| c.bench) {
                for dtype in [DType::F32, DType::BF16] {
                    let name = format!("{}: {}, {dtype:?}", op.name, case.name).to_lowercase();
                    let skipped = emulated && case.flops > EMULATED_FLOPS;
                    if name.contains(&filter) && !skipped {
                        line(&name, case, dtype, device, ceiling);
                    }
                }
            }
        }
    };
    device.run(run).unwrap_or_else(|e| panic!("{e}"));
}

/// What the device can do at most.
#[derive(Clone, Copy)]
struct Ceiling {
    /// Bytes per second.
    bytes: f64,
    /// Floating-point operations per second.
    flops: f64,
}

impl Ceiling {
    fn measure(device: Device) -> Self {
        let n = 64 << 20;
        let (from, to) = (Tensor::ones([n], DType::F32), Param::buffer(Tensor::zeros([n], DType::F32)));
        let copy = timed(device, || to.set(&from));
        let size = 8192;
        let mut rng = Philox::new(1);
        let [a, b] = [0, 1].map(|_| rng.normal([size, size], DType::BF16));
        let product = timed(device, || drop(matmul(&a, &b, false, false)));
        let given = std::env::var("SURPRISAL_BF16_TFLOPS").ok().and_then(|v| v.parse::<f64>().ok());
        let flops = given.map_or(2.0 * (size as f64).powi(3) / product, |t| t * 1e12);
        Self { bytes: 8.0 * n as f64 / copy, flops }
    }
}

/// Seconds per call of `f`, which queues work: the best of five runs.
fn timed(device: Device, mut f: impl FnMut()) -> f64 {
    const CALLS: u32 = 10;
    let mut best = f64::INFINITY;
    for _ in 0..6 {
        device.wait().expect("the device works");
        let start = Instant::now();
        (0..CALLS).for_each(|_| f());
        device.wait().expect("the device works");
        best = best.min(start.elapsed().as_secs_f64() / f64::from(CALLS));
    }
    best
}

fn line(name: &str, case: &Case, dtype: DType, device: Device, ceiling: Option<Ceiling>) {
    let inputs: Vec<Tensor> =
        cast_inputs(&case.inputs, dtype).iter().map(|t| t.to(device).expect("room for the inputs")).collect();
    let (_, kernels) = kernels_of(|| autograd::no_grad(|| (case.run)(&inputs)));
    // Inputs that fit in the cache would flatter: what is small is repeated in one recording, what is large is not.
    let calls = if ceiling.is_some() { (200_000_000 / case.bytes.max(1)).clamp(1, 50) } else { 1 };
    let mut replay = Replay::new();
    let mut rng = Philox::new(2);
    let mut all = || {
        let work = &mut |_: &[Tensor], _: &mut Philox| {
            (0..calls).for_each(|_| drop(autograd::no_grad(|| (case.run)(&inputs))));
            Vec::new()
        };
        replay.run(&[], &mut rng, work);
    };
    // Twice as it is, then recorded.
    (0..if ceiling.is_some() { 3 } else { 0 }).for_each(|_| all());
    let seconds = match ceiling {
        Some(_) => timed(device, all) / calls as f64,
        None => {
            let start = Instant::now();
            all();
            start.elapsed().as_secs_f64()
        }
    };
    let bytes = (case.bytes * dtype.size() / DType::F32.size()) as f64;
    let (rate, flops) = (bytes / seconds, case.flops as f64 / seconds);
    let part =
        ceiling.map_or(String::new(), |c| format!("{:.0}", 100.0 * (rate / c.bytes).max(flops / c.flops)));
    let mut names: Vec<(&str, usize)> = Vec::new();
    for kernel in kernels {
        match names.iter_mut().find(|(name, _)| *name == kernel) {
            Some((_, n)) => *n += 1,
            None => names.push((kernel, 1)),
        }
    }
    let names: Vec<String> =
        names.iter().map(|(k, n)| if *n > 1 { format!("{n} {k}") } else { k.to_string() }).collect();
    println!(
        "{name:64} {:10.1} {:9.0} {:9.2} {part:>6}  {}",
        1e6 * seconds,
        rate / 1e9,
        flops / 1e12,
        names.join(", ")
    );
}
