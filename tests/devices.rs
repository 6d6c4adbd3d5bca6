//! Whole programs on a device: every model of the registry trained, scored and sampled, checkpoints, faults. The
//! device is the emulated one in a build that has it, else the first GPU; without a GPU the tests pass without doing
//! anything unless REQUIRE_GPU=1.
#![cfg(any(feature = "emulate", feature = "cuda"))]

use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use surprisal::cuda::{Replay, replays, without_replay};
use surprisal::data::{Dataset, Prepare, Transform};
use surprisal::models::{Batch, MODELS, Model, ModelInfo, SampleOptions, config, file};
use surprisal::ops::langevin::{Langevin, langevin};
use surprisal::random::Philox;
use surprisal::testing::{device, max_error};
use surprisal::train::{
    Amp, Checkpoints, Evaluate, Event, Fit, FitOptions, Observer, StepInfo, checkpoint, fit, log_probs,
};
use surprisal::{DType, Device, ErrorKind, Tensor};

/// The program: where cargo put it, or where a machine without cargo has it.
fn program() -> std::ffi::OsString {
    std::env::var_os("SURPRISAL_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_surprisal").into())
}

/// Examples that the model takes: bytes of its alphabet, or normal numbers.
fn data(model: &dyn Model, n: usize) -> Dataset {
    let input = model.input();
    let shape = [&[n], &input.shape[..]].concat();
    let mut rng = Philox::new(1);
    let values = match input.dtypes[0] {
        DType::U8 => rng.randint(0, input.levels as i32, shape).cast(DType::U8),
        DType::I32 => rng.randint(0, input.levels as i32, shape),
        dtype => rng.normal(shape, dtype).affine(0.6, 0.3),
    };
    let labels = input.classes.map(|classes| (0..n).map(|i| (i % classes) as i32).collect());
    Dataset::new("examples", values).with_labels(labels)
}

/// The losses of the steps.
#[derive(Default)]
struct Losses(Vec<f64>);

impl Observer for Losses {
    fn on(&mut self, event: &Event) -> ControlFlow<()> {
        if let Event::Step(step) = event {
            self.0.push(step.nats);
        }
        ControlFlow::Continue(())
    }
}

struct Trained {
    model: Box<dyn Model>,
    losses: Vec<f64>,
    fit: Fit,
}

fn tiny(info: &'static ModelInfo) -> config::Recipe {
    let mut recipe = config::tiny(info).unwrap_or_else(|e| panic!("{}: {e}", info.name));
    if recipe.config.get("annealing").is_some() {
        let short = ["chains=2", "temperatures=2", "leapfrog=1"].map(|s| format!("annealing.{s}"));
        recipe.set(&short).unwrap_or_else(|e| panic!("{}: {e}", info.name));
    }
    recipe
}

fn trained(recipe: &config::Recipe, device: Device, options: &FitOptions) -> surprisal::Result<Trained> {
    let model = recipe.build()?;
    model.to(device)?;
    let mut losses = Losses::default();
    let (train, validation) = (data(&*model, 32), data(&*model, 3));
    let fit = fit(&*model, &train, Some(&validation), options, &mut losses)?;
    Ok(Trained { model, losses: losses.0, fit })
}

/// Models whose training steps, or chains, are recorded: they keep to the device. The others calculate in f64 (gmm,
/// hmm, parzen) or encode tables (made) on the host.
const REPLAYED: [&str; 18] = [
    "residual_flow",
    "vqvae",
    "pixelcnn",
    "pixelcnn_pp",
    "causal_cnn",
    "transformer",
    "ebm",
    "nce",
    "score_matching",
    "ffjord",
    "flowpp",
    "glow",
    "idf",
    "maf",
    "nsf",
    "realnvp",
    "hvae",
    "vae",
];

/// Models whose scoring is not recorded: on the host as above.
const UNSCORED: [&str; 4] = ["gmm", "hmm", "parzen", "made"];

fn close(a: f64, b: f64, tolerance: f64) -> bool {
    (a - b).abs() <= tolerance * (1.0 + b.abs())
}

#[test]
fn every_model_trains_scores_and_samples_on_the_device_as_on_the_cpu() {
    let Some(device) = device() else { return };
    let mut failed = Vec::new();
    for info in MODELS {
        let started = std::time::Instant::now();
        let recipe = tiny(info);
        // Gradients that are rounding alone must not become whole steps, as they do with a small eps.
        let options = FitOptions {
            steps: Some(7),
            batch: 4,
            ema: Some(0.5),
            clip: Some(10.0),
            eps: 1e-3,
            ..recipe.train.clone()
        };
        let run =
            |device| trained(&recipe, device, &options).unwrap_or_else(|e| panic!("{}: {e}", info.name));
        let check = std::panic::AssertUnwindSafe(|| {
            let before = replays();
            let (host, there) = (run(Device::Cpu), run(device));
            let name = info.name;
            let replayed = replays() - before;
            let eager = without_replay(|| run(device));
            assert_eq!(there.losses, eager.losses, "{name}: replayed and eager losses");
            eprint!("{name}: {replayed} replays, ");
            assert!(replayed > 0 || !REPLAYED.contains(&name), "{name} was not replayed");
            // Models of f64 stay on the CPU.
            let place = there.model.device();
            assert!(place == device || ["gmm", "hmm", "parzen"].contains(&name), "{name} is on {place}");
            assert_eq!(host.losses.len(), there.losses.len(), "{name}: steps");
            let (ours, theirs) = (&there.losses, &host.losses);
            let near = ours.iter().zip(theirs).all(|(a, b)| close(*a, *b, 1e-3));
            assert!(near, "{name}: losses {ours:?}, on the CPU {theirs:?}");
            let nats = |t: &Trained| t.fit.validation_nats.unwrap_or(0.0);
            assert!(
                close(nats(&there), nats(&host), 1e-3),
                "{name}: validation {}, {}",
                nats(&there),
                nats(&host)
            );
            let rows = data(&*host.model, 5);
            let score = |t: &Trained| log_probs(&*t.model, &rows, &Evaluate::default()).expect("scores");
            for (a, b) in score(&there).nats.iter().zip(&score(&host).nats) {
                assert!(close(*a, *b, 2e-3), "{name}: log p {a} on the device, {b} on the CPU");
            }
            let four = data(&*host.model, 8);
            let batches = Evaluate { batch: 2, ..Evaluate::default() };
            let score = || log_probs(&*there.model, &four, &batches).expect("scores").nats;
            let before = replays();
            let found = score();
            let scored = replays() - before;
            assert_eq!(found, without_replay(score), "{name}: replayed and eager scores");
            let label = host.model.input().classes.map(|_| 0);
            let how = SampleOptions { label, batch: 1, ..Default::default() };
            let draw = || there.model.draw(4, &how, &mut Philox::new(4));
            let before = replays();
            match draw() {
                Ok(x) => {
                    assert!(x.device() == Device::Cpu && x.shape()[0] == 4, "{name}: samples {x:?}");
                    let eager = without_replay(draw).expect("it was drawn before");
                    assert!(bits(&x) == bits(&eager), "{name}: replayed and eager samples");
                }
                Err(e) => assert!(e.to_string().contains("sample"), "{name}: {e}"),
            }
            let drawn = replays() - before;
            eprint!("{scored} of scores, {drawn} of draws, ");
            assert!(scored > 0 || UNSCORED.contains(&name), "{name}: scoring was not replayed");
            assert_eq!(there.model.device(), place, "{name}: sampling leaves the model where it is");
        });
        if std::panic::catch_unwind(check).is_err() {
            failed.push(info.name);
        }
        eprintln!("{:.2} s", started.elapsed().as_secs_f64());
    }
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn data_is_prepared_on_the_device_as_on_the_cpu() {
    let Some(device) = device() else { return };
    let bytes = Philox::new(1).randint(0, 256, [64, 9]).cast(DType::U8);
    let ends = Tensor::from_fn([2, 3], |i| if i < 3 { 255u8 } else { 0 });
    let rows = Philox::new(2).normal([64, 3], DType::F32).affine(1e-2, 1e4);
    let standardise = Transform::Standardise { mean: vec![1e4, 9999.9, 1e4], std: vec![0.01, 0.02, 1.0] };
    let scale = Transform::Scale { shift: -0.5, factor: 2.0 };
    let cases = [
        (vec![Transform::Dequantise], &bytes, 0.0),
        (vec![Transform::Dequantise, scale], &bytes, 1e-6),
        (vec![Transform::Dequantise, Transform::Logit { alpha: 1e-6 }], &ends, 1e-5),
        (vec![standardise], &rows, 1e-4),
    ];
    for (steps, x, allowed) in cases {
        let prepare = Prepare::new(steps).expect("possible transforms");
        let (y, logdet) = prepare.forward(x, DType::F32, &mut Philox::new(3));
        let there = x.to(device).expect("the device is there");
        let run = || prepare.forward(&there, DType::F32, &mut Philox::new(3));
        let (got, volume) = device.run(run).expect("runs");
        assert_eq!(got.device(), device);
        let error = max_error(&[got.on_host()], std::slice::from_ref(&y));
        assert!(error <= allowed, "{prepare:?}: off by {error:e}");
        let error = max_error(&[volume.on_host()], &[logdet]);
        assert!(error <= 1e-5, "{prepare:?}: log-determinants are off by {error:e}");
        let back = device.run(|| prepare.inverse(&got)).expect("runs");
        assert!(max_error(&[back.on_host()], &[prepare.inverse(&y)]) <= 1e-6, "{prepare:?}: inverse");
    }
}

#[test]
fn batches_go_to_the_device_whole() {
    let Some(device) = device() else { return };
    let labels = Some(Tensor::from_slice(&[1i32, 2], [2]));
    let batch =
        Batch { x: Tensor::ones([2, 3], DType::F32), labels }.to(device).expect("the device is there");
    assert_eq!(batch.x.device(), device);
    assert_eq!(batch.labels.expect("labels").on_host().as_slice::<i32>(), [1, 2]);
}

fn bits(t: &Tensor) -> Vec<u8> {
    t.on_host().as_bytes().to_vec()
}

#[test]
fn a_replayed_chain_is_an_eager_one_bit_for_bit() {
    let Some(device) = device() else { return };
    let start = Philox::new(1).normal([3, 7], DType::F32);
    let chain = || {
        let (mut x, mut rng) = (start.to(device).expect("the device is there"), Philox::new(5).at_step(3));
        let mut replay = Replay::new();
        for _ in 0..6 {
            let work = &mut |x: &[Tensor], rng: &mut Philox| {
                vec![langevin(&x[0], &x[0].tanh(), Langevin::unadjusted(0.1), rng)]
            };
            x = replay.run(&[&x], &mut rng, work).remove(0);
        }
        (bits(&x), rng, replay.is_recorded())
    };
    let before = replays();
    let (x, rng, recorded) = device.run(chain).expect("runs");
    assert!(recorded && replays() - before == 4, "two runs as they are, then replays");
    let (eager, after, recorded) = device.run(|| without_replay(chain)).expect("runs");
    assert!(!recorded && rng == after, "the generators end at the same place");
    assert!(x == eager, "replayed and eager chains differ");
}

/// The steps of a run with these products.
#[derive(Default)]
struct Steps(Vec<StepInfo>);

impl Observer for Steps {
    fn on(&mut self, event: &Event) -> ControlFlow<()> {
        if let Event::Step(step) = event {
            self.0.push((*step).clone());
        }
        ControlFlow::Continue(())
    }
}

fn steps(device: Device, amp: Amp, loss_scale: f64) -> Vec<StepInfo> {
    let recipe = by_name("pixelcnn");
    let model = recipe.build().expect("builds");
    model.to(device).expect("moves");
    let options = FitOptions {
        steps: Some(8),
        batch: 4,
        eps: 1e-3,
        ema: None,
        amp,
        loss_scale,
        ..recipe.train.clone()
    };
    let mut steps = Steps::default();
    fit(&*model, &data(&*model, 32), None, &options, &mut steps).expect("trains");
    steps.0
}

fn nats(steps: &[StepInfo]) -> Vec<f64> {
    steps.iter().map(|s| s.nats).collect()
}

#[test]
fn training_in_f16_scales_the_loss_until_nothing_overflows() {
    let Some(device) = device() else { return };
    let plain = steps(device, Amp::Off, 1.0);
    let high = steps(device, Amp::F16, 2f64.powi(40));
    let scale = high[0].scale;
    assert!(scale < 2f64.powi(40) && scale >= 2.0 && scale.log2().fract() == 0.0, "a factor of {scale}");
    // The tries that overflowed leave no trace.
    let settled = steps(device, Amp::F16, scale);
    assert_eq!(nats(&settled), nats(&high));
    let eager = without_replay(|| steps(device, Amp::F16, scale));
    assert_eq!(nats(&settled), nats(&eager), "replayed and eager losses");
    assert!(nats(&settled) != nats(&plain), "nothing was rounded");
    for (a, b) in nats(&settled).iter().zip(nats(&plain)) {
        assert!(close(*a, b, 5e-3), "losses {:?} in f16, {:?} in f32", nats(&settled), nats(&plain));
    }
}

#[test]
fn training_in_tf32_is_near_that_in_f32() {
    let Some(device) = device() else { return };
    let (plain, rounded) = (nats(&steps(device, Amp::Off, 1.0)), nats(&steps(device, Amp::Tf32, 1.0)));
    assert!(plain != rounded, "nothing was rounded");
    for (a, b) in rounded.iter().zip(&plain) {
        assert!(close(*a, *b, 5e-3), "losses {rounded:?} in TF32, {plain:?} in f32");
    }
    let recipe = by_name("pixelcnn");
    let model = recipe.build().expect("builds");
    for amp in [Amp::Tf32, Amp::F16] {
        let options = FitOptions { amp, ..recipe.train.clone() };
        let error = fit(&*model, &data(&*model, 8), None, &options, &mut ()).expect_err("not on the CPU");
        assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Usage, 2));
    }
}

#[test]
fn what_does_not_repeat_itself_is_not_replayed() {
    let Some(device) = device() else { return };
    let x = Tensor::ones([4], DType::F32).to(device).expect("the device is there");
    let run = |work: &mut dyn FnMut(&[Tensor], f64) -> Tensor| {
        let (mut replay, mut rng, mut last) = (Replay::new(), Philox::new(1), 0.0);
        for i in 0..5 {
            let y = replay.run(&[&x], &mut rng, &mut |x, _| vec![work(x, f64::from(i))]);
            last = y[0].to_f64_vec()[0];
        }
        (last, replay.is_recorded())
    };
    let run = |work: &mut dyn FnMut(&[Tensor], f64) -> Tensor| device.run(|| run(work)).expect("runs");
    assert_eq!(run(&mut |x, _| x[0].affine(2.0, 0.0)), (2.0, true));
    // Another number, another kernel, a value read on the host, bytes from the host that differ.
    assert_eq!(run(&mut |x, i| x[0].affine(i, 0.0)), (4.0, false));
    assert_eq!(run(&mut |x, i| if i == 4.0 { x[0].exp().ln() } else { -&x[0] }).0, -1.0);
    assert_eq!(run(&mut |x, _| x[0].affine(x[0].to_f64_vec()[0], 3.0)), (4.0, false));
    assert_eq!(run(&mut |x, i| &x[0] + &Tensor::from_slice(&[i as f32; 4], [4])), (5.0, false));
    // The same bytes are a constant of the recording.
    assert_eq!(run(&mut |x, _| &x[0] + &Tensor::from_slice(&[7f32; 4], [4])), (8.0, true));
}

/// `fit` with checkpoints in `dir`.
fn checkpoints(recipe: &config::Recipe, model: &dyn Model, dir: &Path, resume: bool) -> Option<Checkpoints> {
    Some(Checkpoints { dir: dir.into(), meta: file::Meta::new(recipe, model), resume })
}

fn by_name(name: &str) -> config::Recipe {
    tiny(MODELS.iter().find(|info| info.name == name).expect("a model of this name"))
}

#[test]
fn checkpoints_of_devices_are_those_of_the_cpu() {
    let Some(device) = device() else { return };
    let recipe = by_name("pixelcnn");
    let dir = tempfile::tempdir().expect("a folder");
    let run = |device: Device, steps: u64, place: &str, resume: bool| {
        let model = recipe.build().expect("builds");
        model.to(device).expect("moves");
        let checkpoints = checkpoints(&recipe, &*model, &dir.path().join(place), resume);
        let options =
            FitOptions { steps: Some(steps), batch: 4, ema: Some(0.5), checkpoints, ..recipe.train.clone() };
        let rows = data(&*model, 12);
        fit(&*model, &rows, None, &options, &mut ()).expect("trains");
        file::tensors(&*model)
    };
    let want = run(Device::Cpu, 6, "cpu", false);
    run(device, 3, "device", false);
    for name in [checkpoint::MODEL, checkpoint::OPTIMISER] {
        let keys = |place: &str| {
            let found = surprisal::models::container::read(dir.path().join(place).join(name), |_| true);
            let tensors = found.expect("a readable file").tensors;
            tensors.into_iter().map(|(n, t)| (n, t.shape().to_vec(), t.dtype())).collect::<Vec<_>>()
        };
        assert_eq!(keys("device"), keys("cpu"), "{name}");
    }
    // A run that began on the device goes on on the CPU, and there again.
    run(Device::Cpu, 5, "device", true);
    let got = run(device, 6, "device", true);
    for (name, w) in &want {
        let error = max_error(&[got[name].on_host()], std::slice::from_ref(w));
        assert!(error < 1e-4, "{name} is off by {error:e}");
    }
}

#[test]
fn not_a_number_on_the_device_says_what_it_says_on_the_cpu() {
    let Some(device) = device() else { return };
    let recipe = by_name("made");
    let run = |device: Device| {
        let model = recipe.build().expect("builds");
        let (name, param) = model.params().trainable().next().expect("a parameter");
        let name = name.to_string();
        param.set(&param.get().detach().affine(f64::INFINITY, 0.0));
        model.to(device).expect("moves");
        let options = FitOptions { steps: Some(2), batch: 4, ..recipe.train.clone() };
        let error = fit(&*model, &data(&*model, 8), None, &options, &mut ()).expect_err("cannot train");
        assert_eq!((error.kind(), error.exit_code()), (ErrorKind::NonFinite, 1));
        assert!(error.to_string().contains(&name), "{error}");
        error.to_string()
    };
    assert_eq!(run(device), run(Device::Cpu));
}

#[cfg(feature = "emulate")]
mod faults {
    use super::*;
    use surprisal::cuda::emulator::{set_fault, set_room};

    #[test]
    fn memory_that_runs_out_in_the_middle_of_training_costs_nothing_that_was_saved() {
        let recipe = by_name("pixelcnn");
        let model = recipe.build().expect("builds");
        model.to(Device::Emulated).expect("moves");
        let dir = tempfile::tempdir().expect("a folder");
        let checkpoints = checkpoints(&recipe, &*model, dir.path(), false);
        let options = FitOptions {
            steps: Some(4),
            batch: 16,
            checkpoint_every: 1,
            checkpoints,
            ..recipe.train.clone()
        };
        /// Leaves little room after the second step.
        struct Squeeze;
        impl Observer for Squeeze {
            fn on(&mut self, event: &Event) -> ControlFlow<()> {
                if matches!(event, Event::Step(step) if step.step == 2) {
                    set_room(Some(ROOM));
                }
                ControlFlow::Continue(())
            }
        }
        const ROOM: usize = 30_000;
        let rows = data(&*model, 32);
        let done = without_replay(|| fit(&*model, &rows, None, &options, &mut Squeeze));
        set_room(None);
        let error = done.expect_err("there is no room");
        assert_eq!((error.kind(), error.exit_code()), (ErrorKind::Device, 1));
        let message = error.to_string();
        for part in [
            "step 3: emulated: out of memory: ",
            " bytes asked for, ",
            " free; this process holds ",
            "last good checkpoint is ",
        ] {
            assert!(message.contains(part), "{message}");
        }
        let fits = message.split("train.batch=").nth(1).expect("a batch that fits");
        let batch: usize = fits.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
        assert!((1..16).contains(&batch), "{message}");
        // The checkpoint goes on from the second step with as much room, and the batch that was named.
        let saved = file::load(dir.path().join(checkpoint::MODEL)).expect("the checkpoint is whole");
        saved.model.to(Device::Emulated).expect("moves");
        let smaller = FitOptions { batch, checkpoints: None, ..options };
        set_room(Some(ROOM * 2));
        let done = without_replay(|| fit(&*saved.model, &rows, None, &smaller, &mut ()));
        set_room(None);
        done.expect("the smaller batch fits");
    }

    /// The program run with `--device DEVICE` where the driver is `driver`: what it says, on one line, with exit code 1.
    fn refused(driver: &str, device: &str, args: &[&str]) -> String {
        let mut command = Command::new(program());
        command.env("SURPRISAL_EMULATED_DRIVER", driver).args(args).args(["--device", device, "--quiet"]);
        let ran = command.output().expect("runs");
        let message = String::from_utf8(ran.stderr).expect("text");
        assert_eq!(ran.status.code(), Some(1), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        message
    }

    #[test]
    fn what_is_wrong_with_a_machine_is_one_line_and_exit_code_1() {
        let bench = ["bench", "glow28"];
        for (driver, device, wanted) in [
            ("none", "cuda", "cuda:0: there is no NVIDIA driver (libcuda.so.1) on this machine"),
            (
                "12040 1",
                "cuda",
                "cuda:0: the driver is made for CUDA 12.4; 13.0 (driver 580) or newer is needed",
            ),
            ("13000 0", "cuda", "cuda:0: the driver sees no GPU"),
            ("13000 1", "cuda:3", "cuda:3: there is one GPU, cuda:0"),
            ("13010 8", "cuda:8", "cuda:8: there are 8 GPUs, cuda:0 to cuda:7"),
            (
                "13000 1 0 85899345920",
                "cuda",
                "cuda:0: out of memory: none is left to start with; other processes hold it (nvidia-smi names them)",
            ),
        ] {
            assert_eq!(refused(driver, device, &bench), format!("surprisal: {wanted}\n"));
        }
    }

    /// Another process holds nearly all of the memory: training says who holds what, and where it can go on.
    #[test]
    fn memory_that_others_hold_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name).display().to_string();
        let rows = Philox::new(1).randint(0, 3, [64, 3, 3, 1]).cast(DType::U8);
        surprisal::data::write_npy(at("x.npy"), &rows).expect("writes");
        let (x, model) = (at("x.npy"), at("m"));
        let info = MODELS.iter().find(|info| info.name == "pixelcnn").expect("pixelcnn");
        let mut train = vec!["train", "pixelcnn", "--data", &x, "--out", &model];
        let set = ["train.steps=2", "train.batch=32"];
        set.iter().chain(info.tiny).for_each(|s| train.extend(["--set", s]));
        let message = refused("13000 1 60000 85899345920", "cuda", &train);
        assert!(message.starts_with("surprisal: "), "{message}");
        for part in [
            "cuda:0: out of memory: ",
            " of 81920 MiB free; this process holds ",
            "other processes 81920 MiB",
        ] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_fault_inside_a_kernel_is_named_where_the_device_is_waited_for() {
        let recipe = by_name("pixelcnn");
        let model = recipe.build().expect("builds");
        model.to(Device::Emulated).expect("moves");
        let options = FitOptions { steps: Some(2), batch: 4, ..recipe.train.clone() };
        set_fault("adam_f32");
        let error = fit(&*model, &data(&*model, 8), None, &options, &mut ()).expect_err("a fault");
        assert_eq!(error.kind(), ErrorKind::Device);
        let message = error.to_string();
        assert!(message.contains("step 1: emulated: ") && message.contains("adam_f32"), "{message}");
        assert!(message.contains("no checkpoint was written"), "{message}");
    }

    #[test]
    fn the_command_line_trains_scores_and_samples_on_a_device() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name).display().to_string();
        let rows = Philox::new(1).randint(0, 3, [12, 3, 3, 1]).cast(DType::U8);
        surprisal::data::write_npy(at("x.npy"), &rows).expect("writes");
        let run = |args: &[&str]| {
            let ran = Command::new(program()).args(args).output().expect("runs");
            assert!(ran.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ran.stderr));
            String::from_utf8(ran.stdout).expect("text")
        };
        let (x, model) = (at("x.npy"), at("m"));
        let info = MODELS.iter().find(|info| info.name == "pixelcnn").expect("pixelcnn");
        let mut train = vec!["train", "pixelcnn", "--data", &x, "--out", &model, "--device", "emulated"];
        let set = ["train.steps=2", "train.batch=4", "train.eval_batch=4"];
        set.iter().chain(info.tiny).for_each(|s| train.extend(["--set", s]));
        run(&train);
        let nats = |device: &str| -> Vec<f64> {
            let lines = run(&["score", &model, &x, "--json", "--device", device]);
            let lines: Vec<serde_json::Value> = serde_json::from_str(&lines).expect("a JSON list");
            lines.iter().map(|line| line["nats"].as_f64().expect("a number")).collect()
        };
        for (a, b) in nats("emulated").iter().zip(nats("cpu")) {
            assert!(close(*a, b, 1e-5), "{a} on the device, {b} on the CPU");
        }
        run(&["sample", &model, "-n", "2", "--out", &at("y.npy"), "--device", "emulated"]);
    }
}

#[test]
fn a_device_that_is_not_there_is_one_line_and_exit_code_1() {
    let missing = if Device::Cuda(0).check().is_ok() { "cuda:99" } else { "cuda" };
    let ran = Command::new(program()).args(["bench", "glow28", "--device", missing]).output().expect("runs");
    let message = String::from_utf8(ran.stderr).expect("text");
    assert_eq!(ran.status.code(), Some(1), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    let device = if missing == "cuda" { "cuda:0" } else { missing };
    assert!(message.starts_with(&format!("surprisal: {device}: ")), "{message}");
}
