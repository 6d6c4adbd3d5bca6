//! Times the kernels behind every op case that is marked as a benchmark, forward and backward, on random inputs, in
//! f32 and bf16 (products rounded to TF32 as well), and those that are not ops: random numbers, the optimiser,
//! drawing pixel by pixel. `cargo bench --features cuda --bench kernels [-- FILTER]`. A recording of many calls is
//! replayed, so that the host is out of the picture. Rates are of the bytes and flops that the case states; % is
//! that of the measured ceiling which is nearer: a copy within the device, or a large bf16 product
//! (SURPRISAL_BF16_TFLOPS replaces our own product as the ceiling, for example by that of cuBLAS). With the feature
//! `emulate` small cases run once on the emulated device, and of large ones the launches are listed. At the end
//! stand the kernels that no line launched.

use std::collections::BTreeSet;
use std::time::Instant;
#[cfg(feature = "emulate")]
use surprisal::cuda::emulator::set_dry;
use surprisal::cuda::{Replay, kernels_of};
use surprisal::models::autoregressive::{pixelcnn, pixelcnn_pp};
use surprisal::models::{Model, SampleOptions};
use surprisal::nn::{Init, Initial, Param, ParamStore};
use surprisal::ops::coupling::{Coupling, coupling, kept_half};
use surprisal::ops::mixture_cdf::{Mixture, inverse};
use surprisal::ops::rq_spline::{Spline, rq_spline};
use surprisal::ops::{
    Case, OPS, amp,
    matmul::{matmul, with_wgmma},
    shape,
};
use surprisal::random::Philox;
use surprisal::testing::cast_inputs;
use surprisal::train::{FitOptions, Optimiser, norm};
use surprisal::{DType, Device, Tensor, autograd};

/// Larger cases take too long on the emulated device.
#[cfg(feature = "emulate")]
const EMULATED_FLOPS: usize = 1_000_000;

/// Ops that multiply f32 numbers rounded to TF32 when asked.
const ROUNDED: [&str; 5] = ["matmul", "linear", "conv", "masked_conv", "masked_linear"];

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
    let on_device = |work: &mut dyn FnMut()| device.run(work).unwrap_or_else(|e| panic!("{e}"));
    let mut ceiling = None;
    if !emulated {
        on_device(&mut || ceiling = Some(Ceiling::measure(device)));
    }
    if let Some(Ceiling { bytes, flops }) = ceiling {
        println!("ceilings: copy {:.0} GB/s, bf16 product {:.1} TFLOP/s", bytes / 1e9, flops / 1e12);
    }
    println!("{:72} {:>10} {:>9} {:>9} {:>6}  kernels", "op: case, dtype", "us", "GB/s", "TFLOP/s", "%");
    let mut lines = Lines { device, ceiling, filter, launched: BTreeSet::new() };
    for op in OPS {
        // Made on the host: they are f64.
        let cases = (op.cases)();
        on_device(&mut || {
            for case in cases.iter().filter(|c| c.bench) {
                for dtype in [DType::F32, DType::BF16] {
                    lines.case(op.name, case, dtype, &format!("{dtype:?}").to_lowercase());
                }
                if ROUNDED.contains(&op.name) {
                    amp::tf32(|| lines.case(op.name, case, DType::F32, "tf32"));
                }
            }
        });
    }
    on_device(&mut || {
        lines.further();
        lines.random();
        lines.optimiser();
        lines.pixels();
        lines.left_out();
    });
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

struct Lines {
    device: Device,
    ceiling: Option<Ceiling>,
    filter: String,
    /// Kernels without their dtype.
    launched: BTreeSet<String>,
}

/// A line's work: whether it can be recorded, and what it moves and calculates.
struct Cost {
    repeats: bool,
    bytes: usize,
    flops: usize,
}

fn without_dtype(kernel: &str) -> String {
    let stem = ["_f32", "_bf16", "_f16"].iter().find_map(|dtype| kernel.strip_suffix(dtype));
    stem.unwrap_or(kernel).to_string()
}

impl Lines {
    fn case(&mut self, op: &str, case: &Case, dtype: DType, numbers: &str) {
        let here = |bytes: usize| bytes * dtype.size() / DType::F32.size();
        let name = |what: &str| format!("{op}: {}{what}, {numbers}", case.name).to_lowercase();
        let to_device = |t: &Tensor| t.to(self.device).expect("room for the inputs");
        let inputs: Vec<Tensor> = cast_inputs(&case.inputs, dtype).iter().map(to_device).collect();
        let cost = Cost { repeats: true, bytes: here(case.bytes), flops: case.flops };
        self.line(&name(""), cost, &mut |_| drop(autograd::no_grad(|| (case.run)(&inputs))));
        let Some([bytes, flops]) = case.backward else { return };
        let cost = Cost { repeats: true, bytes: here(bytes), flops };
        let recorded = |t: Tensor| if t.dtype() == dtype { t.requires_grad() } else { t };
        let inputs: Vec<Tensor> = inputs.into_iter().map(recorded).collect();
        // Only if the line is wanted.
        let mut graph = None;
        self.line(&name(" backward"), cost, &mut |_| {
            let (outputs, cotangents) = graph.get_or_insert_with(|| {
                let mut outputs = (case.run)(&inputs);
                outputs.retain(|y| y.var().is_some());
                let cotangents: Vec<Tensor> = outputs.iter().map(Tensor::ones_like).collect();
                (outputs, cotangents)
            });
            let wrt: Vec<&Tensor> = inputs.iter().filter(|t| t.var().is_some()).collect();
            let [y, g] = [&*outputs, &*cotangents].map(|ts| ts.iter().collect::<Vec<_>>());
            drop(autograd::grad(&y, &g, &wrt, false));
        });
    }

    /// A line about `work`, which is run once before anything is measured.
    fn line(&mut self, name: &str, cost: Cost, work: &mut dyn FnMut(&mut Philox)) {
        if !name.contains(&self.filter) {
            return;
        }
        let Cost { repeats, bytes, flops } = cost;
        let mut rng = Philox::new(2);
        #[cfg(feature = "emulate")]
        let dry = flops.max(bytes / 4) > EMULATED_FLOPS;
        #[cfg(feature = "emulate")]
        set_dry(dry);
        work(&mut rng);
        let start = Instant::now();
        let ((), kernels) = kernels_of(|| work(&mut rng));
        let mut seconds = start.elapsed().as_secs_f64();
        #[cfg(feature = "emulate")]
        set_dry(false);
        if self.ceiling.is_some() {
            // Inputs that fit in the cache would flatter: what is small is repeated in one recording, what is large
            // is not.
            let calls = if repeats { (200_000_000 / bytes.max(1)).clamp(1, 50) } else { 1 };
            let mut replay = Replay::new();
            let mut all = || match repeats {
                true => drop(replay.run(&[], &mut rng, &mut |_: &[Tensor], rng: &mut Philox| {
                    (0..calls).for_each(|_| work(rng));
                    Vec::new()
                })),
                false => work(&mut rng),
            };
            // Twice as it is, then recorded.
            (0..3).for_each(|_| all());
            seconds = timed(self.device, all) / calls as f64;
        }
        let (rate, speed) = (bytes as f64 / seconds, flops as f64 / seconds);
        let part = self
            .ceiling
            .map_or(String::new(), |c| format!("{:.0}", 100.0 * (rate / c.bytes).max(speed / c.flops)));
        #[cfg(feature = "emulate")]
        let (rate, speed, part) = if dry { (0.0, 0.0, "dry".into()) } else { (rate, speed, part) };
        self.launched.extend(kernels.iter().map(|kernel| without_dtype(kernel)));
        let mut names: Vec<(&str, usize)> = Vec::new();
        for kernel in kernels {
            match names.iter_mut().find(|(name, _)| *name == kernel) {
                Some((_, n)) => *n += 1,
                None => names.push((kernel, 1)),
            }
        }
        let names: Vec<String> =
            names.iter().map(|(k, n)| if *n > 1 { format!("{n} {k}") } else { k.to_string() }).collect();
        #[cfg(feature = "emulate")]
        let seconds = if dry { 0.0 } else { seconds };
        let us = 1e6 * seconds;
        println!(
            "{name:72} {us:10.1} {:9.0} {:9.2} {part:>6}  {}",
            rate / 1e9,
            speed / 1e12,
            names.join(", ")
        );
    }

    /// Paths that cases of ops do not take at a size worth a measurement.
    fn further(&mut self) {
        // The plain kernel of products beside that of Hopper.
        let size = if self.ceiling.is_some() { 8192 } else { 64 };
        let [a, b] = [5, 6].map(|seed| Philox::new(seed).normal([size, size], DType::BF16));
        for (name, [ta, tb]) in
            [("", [false, false]), (" (a b^t)", [false, true]), (" (a^t b)", [true, false])]
        {
            let cost = || Cost { repeats: true, bytes: 6 * size * size, flops: 2 * size * size * size };
            let product = || drop(matmul(&a, &b, ta, tb));
            self.line(&format!("matmul: {size} square{name}, bf16"), cost(), &mut |_| product());
            let name = format!("matmul: {size} square{name} by wgmma, bf16");
            self.line(&name, cost(), &mut |_| with_wgmma(product));
        }
        let n = 64 * 196 * 128;
        let x = Philox::new(1).normal([64, 196, 128], DType::F32);
        let (bytes, whole, half) = (x.cast(DType::U8), x.cast(DType::I32), x.cast(DType::F16));
        for (name, x, to, moved) in [
            ("bytes to f32", &bytes, DType::F32, 5),
            ("i32 to f32", &whole, DType::F32, 8),
            ("f32 to i32", &x, DType::I32, 8),
            ("f16 to f32", &half, DType::F32, 6),
        ] {
            let cost = Cost { repeats: true, bytes: moved * n, flops: 0 };
            self.line(&format!("cast: {name}"), cost, &mut |_| drop(x.cast(to)));
        }
        let cost = Cost { repeats: true, bytes: 2 * n, flops: 0 };
        self.line("shape: permute bytes", cost, &mut |_| drop(shape::permute(&bytes, &[2, 1, 0])));
        let cost = Cost { repeats: true, bytes: 2 * n, flops: 0 };
        self.line("shape: pad bytes", cost, &mut |_| drop(shape::pad(&bytes, 1, 1, 0)));
        for dtype in [DType::F32, DType::BF16] {
            let (mut rng, size) = (Philox::new(5), dtype.size());
            let mut line = |name: &str, bytes: usize, flops: usize, work: &mut dyn FnMut(&mut Philox)| {
                let cost = Cost { repeats: true, bytes, flops };
                self.line(&format!("{name}, {dtype:?}").to_lowercase(), cost, work);
            };
            // Examples that several blocks share.
            let x = rng.normal([4, 64, 64, 96], dtype);
            let (n, kind) = (x.len(), Coupling::Sigmoid);
            line("coupling: kept half", size * n, 0, &mut |_| drop(kept_half(&x)));
            line("coupling: large examples", 3 * size * n, 13 * n, &mut |_| drop(coupling(&x, &x, kind)));
            let spline = Spline { bins: 8, bound: 3.0 };
            let (x, params) = (rng.normal([4, 3072], dtype), rng.normal([4, 3072, spline.params()], dtype));
            let n = x.len();
            line("rq_spline: large examples", size * 25 * n, 220 * n, &mut |_| {
                drop(rq_spline(&x, &params, spline))
            });
            let mixture = Mixture { components: 8 };
            let (x, params) = (rng.normal([64, 392], dtype), rng.normal([64, 392, mixture.params()], dtype));
            let n = x.len();
            line("mixture_cdf: inverse", size * 28 * n, 3600 * 8 * n, &mut |_| {
                drop(inverse(&x, &params, mixture))
            });
        }
    }

    fn random(&mut self) {
        let n = 1 << 24;
        for dtype in [DType::F32, DType::BF16] {
            // Ten rounds of Philox per four numbers; normal ones take a logarithm, a root and a sine as well.
            let cost = |flops| Cost { repeats: true, bytes: n * dtype.size(), flops: flops * n };
            let name = |law: &str| format!("random: {law} of 2^24, {dtype:?}").to_lowercase();
            self.line(&name("uniform"), cost(10), &mut |rng| drop(rng.uniform([n], dtype)));
            self.line(&name("normal"), cost(30), &mut |rng| drop(rng.normal([n], dtype)));
            self.line(&name("bernoulli"), cost(10), &mut |rng| drop(rng.bernoulli(0.3, [n], dtype)));
            let (rows, k) = (32 * 784, 256);
            let logits = Philox::new(1).normal([rows, k], dtype);
            let cost = Cost { repeats: true, bytes: rows * (k * dtype.size() + 4), flops: 20 * rows * k };
            let name = format!("random: categorical of 32 images, 256 ways, {dtype:?}").to_lowercase();
            self.line(&name, cost, &mut |rng| drop(rng.categorical(&logits)));
        }
        let cost = Cost { repeats: true, bytes: 4 * n, flops: 10 * n };
        self.line("random: integers below 1000, 2^24", cost, &mut |rng| drop(rng.randint(0, 1000, [n])));
    }

    /// The parameters of a large network: 96 matrices, as many vectors.
    fn optimiser(&mut self) {
        let (each, width) = (96, 512);
        let n = each * (width * width + width);
        for average in [false, true] {
            let (mut rng, mut store) = (Philox::new(3), ParamStore::default());
            let mut init = Init::new(&mut store, &mut rng, DType::F32);
            for i in 0..each {
                init.param(&format!("w{i}"), [width, width], Initial::Zeros);
                init.param(&format!("b{i}"), [width], Initial::Zeros);
            }
            let mut optimiser = Optimiser::new(&store, average);
            let shapes: Vec<Vec<usize>> = optimiser.leaves().iter().map(|t| t.shape().to_vec()).collect();
            let grads: Vec<Tensor> = shapes.iter().map(|s| Tensor::ones(&s[..], DType::F32)).collect();
            let options = FitOptions { ema: average.then_some(0.9), ..FitOptions::default() };
            let (name, bytes) = if average { (" with an average", 36 * n) } else { ("", 28 * n) };
            // The numbers of a step come from the host.
            let cost = Cost { repeats: false, bytes, flops: 15 * n };
            self.line(&format!("adam: 192 tensors{name}"), cost, &mut |_| {
                optimiser.step(&grads, 1e-3, 1.0, &options);
            });
            if !average {
                let cost = Cost { repeats: false, bytes: 4 * n, flops: 2 * n };
                self.line("adam: norm of 192 tensors", cost, &mut |_| {
                    norm(&grads);
                });
            }
        }
    }

    /// Images drawn pixel by pixel, four to a multiprocessor of a large device.
    fn pixels(&mut self) {
        let (n, pixels) = if self.ceiling.is_some() { (528, 784) } else { (4, 4) };
        let shape = if self.ceiling.is_some() { [28, 28, 1] } else { [2, 2, 1] };
        let mut rng = Philox::new(4);
        let config = pixelcnn::Config { shape, channels: 64, depth: 6, levels: 256, classes: 0 };
        let plain = pixelcnn::PixelCnn::new(config, DType::F32, &mut rng).expect("a model");
        let config =
            pixelcnn_pp::Config { shape, channels: 32, depth: 4, components: 5, classes: 0, dropout: 0.0 };
        let mixed = pixelcnn_pp::PixelCnnPp::new(config, DType::F32, &mut rng).expect("a model");
        for (name, model) in [("pixelcnn", &plain as &dyn Model), ("pixelcnn_pp", &mixed)] {
            // Masked weights count, though they are not read.
            let weights = model.params().count();
            let cost =
                Cost { repeats: false, bytes: n / 4 * pixels * 4 * weights, flops: n * pixels * 2 * weights };
            let options = SampleOptions::default();
            self.line(&format!("pixel_walk: {n} images of {name}"), cost, &mut |rng| {
                // A dry run has nothing to draw from.
                let _ = model.sample(n, &options, rng);
            });
        }
    }

    /// Kernels that no line launched, where their sources are at hand and all lines were asked for.
    fn left_out(&self) {
        let Ok(sources) = std::fs::read_dir("kernels") else { return };
        if !self.filter.is_empty() {
            return;
        }
        let texts = sources.filter_map(|e| std::fs::read_to_string(e.ok()?.path()).ok());
        let mut missing = BTreeSet::new();
        for text in texts {
            for rest in text.split("extern \"C\" __global__ void").skip(1) {
                let rest = rest.trim_start();
                let name =
                    rest.strip_prefix("__launch_bounds__").map_or(Some(rest), |b| Some(b.split_once(')')?.1));
                let name = name.and_then(|n| n.split('(').next()).unwrap_or_default().trim();
                missing.insert(without_dtype(name));
            }
        }
        let missing: Vec<&str> = missing.difference(&self.launched).map(String::as_str).collect();
        println!(
            "kernels that no line launched: {}",
            if missing.is_empty() { "none".into() } else { missing.join(", ") }
        );
    }
}
