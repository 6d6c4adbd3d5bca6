//! Takes the cases of the registry through a device: the kernels of `kernels/*.cu`, their launches and their gradients,
//! against the CPU in f32, bf16 and f16; on the emulated device with the threads of a block run in three orders. Without
//! the feature `emulate` the device is the first GPU; without a GPU the tests pass without doing anything unless
//! REQUIRE_GPU=1.
#![cfg(any(feature = "emulate", feature = "cuda"))]

use std::panic::{AssertUnwindSafe, catch_unwind};
use surprisal::autograd;
use surprisal::cpu::gemm::Act;
#[cfg(feature = "emulate")]
use surprisal::cuda::emulator::{Order, finds_races, probe, set_order};
use surprisal::cuda::kernels_of;
use surprisal::models::autoregressive::pixelcnn::{Config, PixelCnn};
use surprisal::models::autoregressive::pixelcnn_pp::{self, PixelCnnPp};
use surprisal::models::{Model, SampleOptions};
use surprisal::nn::{Init, Initial, ParamStore};
use surprisal::ops::conv::{self, ConvSpec};
use surprisal::ops::masked_conv::{Mask, MaskKind, masked_conv2d};
use surprisal::ops::masked_linear::{Staircase, masked_linear};
use surprisal::ops::{Case, OPS, amp, matmul, softmax};
use surprisal::random::Philox;
use surprisal::testing::{cast_inputs, device, max_error, outputs_and_grads};
use surprisal::train::{FitOptions, Optimiser, norm};
use surprisal::{DType, Device, Tensor};

/// Emulated threads are slow: larger cases are left to real devices.
const MAX_FLOPS: usize = if cfg!(feature = "emulate") { 4_000_000 } else { 1 << 50 };

/// Cases that calculate in f64 beside the op, which devices do not.
const LEFT_OUT: [&str; 1] = ["invertible_conv: PLU"];

/// To which order gradients are checked: inverses of bijections have kernels only where nothing is recorded.
fn order(op: &str, case: &Case) -> u8 {
    let forward = op != "linalg" && case.name.contains("inverse");
    if forward { 0 } else { case.order.min(1) }
}

/// Runs `check` on every case and reports all that fail.
fn each(check: impl Fn(&str, &Case, u8)) {
    let mut failed = Vec::new();
    for op in OPS {
        for case in (op.cases)().iter().filter(|c| c.flops <= MAX_FLOPS) {
            let name = format!("{}: {}", op.name, case.name);
            if LEFT_OUT.contains(&&*name) {
                continue;
            }
            if catch_unwind(AssertUnwindSafe(|| check(&name, case, order(op.name, case)))).is_err() {
                failed.push(name);
            }
        }
    }
    assert!(failed.is_empty(), "{} cases failed: {failed:#?}", failed.len());
}

/// Outputs and gradients of a case on a device, brought home.
fn on(there: Device, name: &str, case: &Case, grads: u8, dtype: DType) -> (Vec<Tensor>, Vec<Tensor>) {
    let run = || {
        let (y, g) = match grads {
            0 => autograd::no_grad(|| outputs_and_grads(&case.inputs, 0, &case.run, dtype)),
            _ => outputs_and_grads(&case.inputs, grads, &case.run, dtype),
        };
        let home =
            |ts: Vec<Tensor>| ts.iter().map(|t| t.to(Device::Cpu).expect("the CPU is there")).collect();
        assert!(y.iter().chain(&g).all(|t| t.device() == there), "{name}: left the device");
        (home(y), home(g))
    };
    there.run(run).unwrap_or_else(|e| panic!("{name} in {dtype:?}: {e}"))
}

/// The device may be off, against f64, by twice what the CPU is off in the same dtype with the op or its composite
/// (which is what runs where there is no kernel), plus a few roundings of the largest value.
fn agrees(dtype: DType, eps: f64) {
    let Some(there) = device() else { return };
    each(|name, case, grads| {
        let rounded: Vec<Tensor> = cast_inputs(&case.inputs, dtype)
            .iter()
            .map(|t| if t.dtype() == dtype { t.cast(DType::F64) } else { t.clone() })
            .collect();
        let exact = outputs_and_grads(&rounded, grads, &case.run, DType::F64);
        let cpu = outputs_and_grads(&case.inputs, grads, &case.run, dtype);
        let composite = case.composite.as_ref().map(|c| outputs_and_grads(&case.inputs, grads, c, dtype));
        let composite = composite.as_ref().unwrap_or(&cpu);
        let got = on(there, name, case, grads, dtype);
        for (part, got, exact, cpu, composite) in [
            ("output", &got.0, &exact.0, &cpu.0, &composite.0),
            ("gradient", &got.1, &exact.1, &cpu.1, &composite.1),
        ] {
            let error = max_error(got, exact);
            let scale = exact.iter().flat_map(|t| t.to_f64_vec()).fold(1.0f64, |m, x| m.max(x.abs()));
            let allowed = 2.0 * max_error(cpu, exact).max(max_error(composite, exact)) + 4.0 * eps * scale;
            assert!(error <= allowed, "{name}: {part} in {dtype:?} is off by {error:e}, allowed {allowed:e}");
        }
        let bits = |(y, g): &(Vec<Tensor>, Vec<Tensor>)| -> Vec<Vec<u8>> {
            y.iter().chain(g).map(|t| t.as_bytes().to_vec()).collect()
        };
        #[cfg(not(feature = "emulate"))]
        assert!(
            bits(&got) == bits(&on(there, name, case, grads, dtype)),
            "{name}: two runs differ in {dtype:?}"
        );
        // What no barrier orders is found in any order: a build that looks for it is slow, and tries fewer.
        #[cfg(feature = "emulate")]
        let orders: &[Order] = match (finds_races(), dtype) {
            (false, _) => &[Order::Backward, Order::Seed(7)],
            (true, DType::F32) => &[Order::Seed(7)],
            (true, _) => &[],
        };
        #[cfg(feature = "emulate")]
        for &order in orders {
            set_order(order);
            let other = on(there, name, case, grads, dtype);
            set_order(Order::Forward);
            assert!(
                bits(&got) == bits(&other),
                "{name}: the order of threads ({order:?}) changes a bit in {dtype:?}"
            );
        }
    });
}

#[test]
fn kernels_agree_with_the_cpu_in_f32() {
    agrees(DType::F32, 1.2e-7);
}

#[test]
fn kernels_agree_with_the_cpu_in_bf16() {
    agrees(DType::BF16, 7.8e-3);
}

#[test]
fn kernels_agree_with_the_cpu_in_f16() {
    agrees(DType::F16, 9.8e-4);
}

/// Products of f32 are those of f32, and where TF32 is asked for those of operands with 10 bits behind the point: the
/// device's result for rounded operands, which rounding again does not change.
#[test]
fn products_are_rounded_to_tf32_only_when_asked() {
    let Some(there) = device() else { return };
    let rounded = |t: &Tensor| {
        let round = |x: f64| f64::from(f32::from_bits(((x as f32).to_bits() + 0x1000) & 0xffff_e000));
        Tensor::from_slice(&t.to_f64_vec().into_iter().map(round).collect::<Vec<_>>(), t.shape())
            .cast(DType::F32)
    };
    let mut rng = Philox::new(3);
    let mut made = |shape: &[usize]| rng.normal(shape, DType::F32);
    let (x, w) = (made(&[70, 36]), made(&[36, 68]));
    let (image, kernel) = (made(&[2, 5, 6, 4]), made(&[3, 3, 4, 8]));
    let (odd, masked) = (made(&[2, 4, 4, 6]), made(&[3, 3, 6, 6]));
    let stairs = Staircase::new(36, (0..68).map(|j| j / 2 + 1).collect::<Vec<_>>());
    let mask = Mask { kind: MaskKind::B, colours: 1 };
    let bias = Tensor::zeros([68], DType::F32).to(there).expect("a device");
    type Op<'a> = Box<dyn Fn(&Tensor, &Tensor) -> Tensor + 'a>;
    let ops: Vec<(&str, Op, [&Tensor; 2])> = vec![
        ("matmul", Box::new(|x, w| matmul::linear(x, w, None, Act::None)), [&x, &w]),
        ("conv", Box::new(|x, w| conv::conv2d(x, w, None, None, ConvSpec::same(3))), [&image, &kernel]),
        ("masked_conv", Box::new(|x, w| masked_conv2d(x, w, None, None, mask, Act::None)), [&image, &kernel]),
        (
            "masked_conv of odd channels",
            Box::new(|x, w| masked_conv2d(x, w, None, None, mask, Act::None)),
            [&odd, &masked],
        ),
        ("masked_linear", Box::new(|x, w| masked_linear(x, w, &bias, &stairs, Act::None)), [&x, &w]),
    ];
    for (name, op, [x, w]) in &ops {
        // The output, and the gradients of its sum of squares.
        let all = |x: &Tensor, w: &Tensor| {
            let [x, w] = [x, w].map(|t| t.to(there).expect("a device").requires_grad());
            let y = op(&x, &w);
            let kept = y.detach();
            let grads = autograd::backward(y.square().sum_all(), &[&x, &w]);
            [&kept, &grads[0], &grads[1]].map(|t| t.to(Device::Cpu).expect("the CPU"))
        };
        let run = |x: &Tensor, w: &Tensor, tf32: bool| {
            let run = || if tf32 { amp::tf32(|| all(x, w)) } else { all(x, w) };
            there.run(run).unwrap_or_else(|e| panic!("{name}: {e}"))
        };
        let (plain, asked) = (run(x, w, false), run(x, w, true));
        let (rx, rw) = (rounded(x), rounded(w));
        let (of_rounded, again) = (run(&rx, &rw, false), run(&rx, &rw, true));
        let scale = |t: &Tensor| t.to_f64_vec().iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let off =
            |a: &Tensor, b: &Tensor| max_error(std::slice::from_ref(a), std::slice::from_ref(b)) / scale(b);
        assert!(off(&asked[0], &of_rounded[0]) < 2e-6, "{name}: not the product of rounded operands");
        assert!(off(&asked[0], &plain[0]) > 1e-5, "{name}: nothing was rounded");
        assert_eq!(asked[0].as_bytes(), again[0].as_bytes(), "{name}: rounding twice changes a bit");
        for (a, b) in asked.iter().zip(&plain).skip(1) {
            assert!((1e-5..2e-3).contains(&off(a, b)), "{name}: gradients are off by {:e}", off(a, b));
        }
    }
}

/// Where a device cannot have Hopper's own kernel, products stay with the plain one.
#[test]
#[cfg(feature = "emulate")]
fn products_by_wgmma_are_plain_where_it_is_not() {
    let there = Device::Emulated;
    let [a, b] = [[16, 24], [24, 40]]
        .map(|shape| Philox::new(2).normal(shape, DType::BF16).to(there).expect("the emulator"));
    let product = || there.run(|| matmul::matmul(&a, &b, false, false)).expect("a product");
    let (asked, kernels) = matmul::with_wgmma(|| kernels_of(product));
    assert_eq!(kernels, ["matmul_64x64_bf16"]);
    assert_eq!(asked.to_f64_vec(), product().to_f64_vec());
}

/// Hopper's own kernel, which nothing but a device can run, against the plain one: bias, activation, ragged sizes, all
/// orientations, batches.
#[test]
#[cfg(not(feature = "emulate"))]
fn products_by_wgmma_are_those_of_the_plain_kernel() {
    let Some(there) = device() else { return };
    let mut rng = Philox::new(11);
    let mut worst = 0.0f64;
    for (dtype, eps) in [(DType::BF16, 7.8e-3), (DType::F16, 9.8e-4)] {
        for (batch, m, n, k) in [(1, 128, 256, 64), (1, 8, 8, 8), (3, 264, 520, 1032), (2, 1000, 1000, 72)] {
            for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
                let [a, b] = [if ta { [k, m] } else { [m, k] }, if tb { [n, k] } else { [k, n] }].map(|s| {
                    rng.normal([batch, s[0], s[1]], DType::F32).cast(dtype).to(there).expect("a device")
                });
                let product = || there.run(|| matmul::matmul(&a, &b, ta, tb)).expect("a product");
                let plain = product();
                let (fast, kernels) = matmul::with_wgmma(|| kernels_of(product));
                assert!(kernels.iter().any(|k| k.starts_with("matmul_wgmma")), "only {kernels:?} ran");
                let error = max_error(&[fast], &[plain]);
                worst = worst.max(error / eps);
                assert!(
                    error <= 2.0 * eps,
                    "{batch} of {m}x{n}x{k} ta={ta} tb={tb} {dtype:?}: off by {error:e}"
                );
            }
        }
        let [x, w, bias] = [&[70, 128][..], &[128, 264], &[264]]
            .map(|shape| rng.normal(shape, DType::F32).cast(dtype).to(there).expect("a device"));
        let affine = || there.run(|| matmul::linear(&x, &w, Some(&bias), Act::Silu)).expect("an affine map");
        let (plain, fast) = (affine(), matmul::with_wgmma(affine));
        assert!(max_error(&[fast], &[plain]) <= 2.0 * eps, "bias and activation in {dtype:?}");
    }
    println!("worst difference: {worst:.2} roundings");
}

/// Every law in every dtype, some sizes that no counter divides.
fn drawn(on: Device) -> Vec<Tensor> {
    let mut rng = Philox::new(0x0123_4567_89ab_cdef).at_step(0xfedc_ba98_7654_3210);
    let mut all = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for n in [1, 6, 1029] {
            all.push(rng.uniform([n], dtype));
            all.push(rng.uniform_open([n], dtype));
            all.push(rng.normal([n], dtype));
            all.push(rng.rademacher([n], dtype));
            all.push(rng.bernoulli(0.3, [n], dtype));
        }
        for (rows, k) in [(1, 1), (7, 3), (5, 100), (40, 64)] {
            let logits = Tensor::from_fn([rows, k], |i| ((i * 37 % 101) as f32 * 0.3).sin() * 6.0);
            all.push(rng.categorical(&logits.cast(dtype).to(on).expect("a device")));
        }
    }
    all.push(rng.randint(-5, 1000, [1029]));
    all.push(rng.randint(i32::MIN, i32::MAX, [3]));
    all
}

#[test]
fn random_numbers_have_the_bits_of_the_cpu() {
    let Some(there) = device() else { return };
    let got = there.run(|| drawn(there)).expect("the device draws");
    let want = drawn(Device::Cpu);
    assert_eq!(got.len(), want.len());
    for (i, (a, b)) in got.iter().zip(&want).enumerate() {
        assert!(a.device() == there, "draw {i} left the device");
        assert!(a.to(Device::Cpu).expect("the CPU").as_bytes() == b.as_bytes(), "draw {i} has other bits");
    }
    let impossible = Tensor::from_slice(&[f32::NAN, 0.0, 1.0, 2.0], [2, 2]).to(there).expect("a device");
    assert_eq!(Philox::new(1).categorical(&impossible).to_f64_vec()[0], -1.0);
}

/// Forward, backward and optimiser of a small classifier: the losses of three steps, then the weights.
fn trained() -> (Vec<f64>, Vec<Tensor>) {
    let mut rng = Philox::new(5);
    let x = rng.normal([4, 6, 6, 2], DType::F32);
    let labels = Tensor::from_slice(&[0i32, 2, 1, 2], [4]);
    let mut store = ParamStore::default();
    let mut init = Init::new(&mut store, &mut rng, DType::F32);
    let kernel = init.param("conv.weight", [3, 3, 2, 8], Initial::FanIn(18));
    let bias = init.param("conv.bias", [8], Initial::Zeros);
    let head = init.param("head.weight", [8 * 36, 3], Initial::FanIn(8 * 36));
    let options = FitOptions { ema: Some(0.9), ..FitOptions::default() };
    let mut optimiser = Optimiser::new(&store, true);
    let losses = (0..3).map(|_| {
        let h = conv::conv2d(&x, &kernel.get(), Some(&bias.get()), None, ConvSpec::same(3).relu());
        let logits = matmul::linear(&h.reshape([4, 8 * 36]), &head.get(), None, Act::None);
        let loss = softmax::cross_entropy(&logits, &labels).mean_all();
        let nats = loss.item();
        let leaves = optimiser.leaves();
        let grads = autograd::backward(loss, &leaves.iter().collect::<Vec<_>>());
        drop(leaves);
        assert!(norm(&grads) > 0.0);
        optimiser.step(&grads, 1e-2, 0.5, &options);
        nats
    });
    let losses = losses.collect();
    (losses, optimiser.averaged().into_values().collect())
}

#[test]
fn a_training_step_on_the_device_is_that_of_the_cpu() {
    let Some(there) = device() else { return };
    let (want, want_weights) = trained();
    let (got, weights) = there.run(trained).expect("the device trains");
    assert!(weights.iter().all(|w| w.device() == there));
    for (a, b) in got.iter().zip(&want) {
        assert!((a - b).abs() < 1e-5 * (1.0 + b.abs()), "losses {got:?} on the device, {want:?} on the CPU");
    }
    assert!(want[2] < want[0], "three steps should lower the loss: {want:?}");
    let error = max_error(&weights, &want_weights);
    assert!(error < 2e-5, "averaged weights differ by {error:e}");
}

/// Weights, or their averages, after three steps on tensors of ragged sizes; the norms; and the launches of the last
/// step.
fn stepped(average: bool) -> (Vec<Tensor>, Vec<f64>, [Vec<&'static str>; 2]) {
    let (mut rng, mut store) = (Philox::new(8), ParamStore::default());
    let mut init = Init::new(&mut store, &mut rng, DType::F32);
    let sizes = [1, 37, 4096, 3 * 4096 + 5, 1000];
    for (i, n) in sizes.into_iter().enumerate() {
        init.param(&format!("w{i}"), [n], Initial::Normal(1.0));
    }
    let options =
        FitOptions { ema: average.then_some(0.9), weight_decay: 0.01, l2: 0.02, ..FitOptions::default() };
    let mut optimiser = Optimiser::new(&store, average);
    let (mut norms, mut launches) = (Vec::new(), [const { Vec::new() }; 2]);
    for clip in [1.0, 0.5, 0.02] {
        let grads: Vec<Tensor> = sizes.iter().map(|n| rng.normal([*n], DType::F32)).collect();
        let (of, names) = kernels_of(|| norm(&grads));
        norms.push(of);
        let ((), step) = kernels_of(|| optimiser.step(&grads, 1e-2, clip, &options));
        launches = [names, step];
    }
    (optimiser.averaged().into_values().collect(), norms, launches)
}

#[test]
fn all_parameters_step_in_one_launch() {
    let Some(there) = device() else { return };
    for average in [false, true] {
        let (want, want_norms, _) = stepped(average);
        let (got, norms, [of_norm, of_step]) = there.run(|| stepped(average)).expect("the device steps");
        assert_eq!(of_norm, ["squares_f32", "gate_f32"]);
        assert_eq!(of_step, ["adam_f32"]);
        for (a, b) in norms.iter().zip(&want_norms) {
            assert!((a - b).abs() < 1e-6 * b, "norms {norms:?} on the device, {want_norms:?} on the CPU");
        }
        let error = max_error(&got, &want);
        assert!(error < 2e-6, "weights differ by {error:e}");
        #[cfg(feature = "emulate")]
        for order in [Order::Backward, Order::Seed(7)] {
            set_order(order);
            let (other, ..) = there.run(|| stepped(average)).expect("the device steps");
            set_order(Order::Forward);
            for (a, b) in got.iter().zip(&other) {
                assert_eq!(a.to_f64_vec(), b.to_f64_vec(), "{order:?}");
            }
        }
    }
}

#[test]
fn a_gradient_that_is_not_finite_closes_the_gate() {
    let Some(there) = device() else { return };
    let sums = |grads: &[Tensor]| {
        there.run(|| norm(&grads.iter().map(|g| g.to(there).expect("a device")).collect::<Vec<_>>()))
    };
    let mut values = vec![1.0f32; 5000];
    values[4999] = f32::NAN;
    let grads = [Tensor::ones([3], DType::F32), Tensor::from_slice(&values, [5000])];
    assert!(sums(&grads).expect("a norm").is_nan());
    assert_eq!(sums(&grads[..1]).expect("a norm"), 3f64.sqrt());
}

/// Images drawn pixel by pixel, of one colour and of three.
fn images() -> Vec<Tensor> {
    let draw = |shape: [usize; 3], classes: usize| {
        let config = Config { shape, channels: 12, depth: 2, levels: 40, classes };
        let model = PixelCnn::new(config, DType::F32, &mut Philox::new(3)).expect("a model");
        let label = (classes > 0).then_some(1);
        let options = SampleOptions { temperature: 0.8, label, ..SampleOptions::default() };
        model.sample(7, &options, &mut Philox::new(4)).expect("images")
    };
    let mix = |shape: [usize; 3], depth: usize, classes: usize| {
        let config = pixelcnn_pp::Config { shape, channels: 6, depth, components: 3, classes, dropout: 0.5 };
        let model = PixelCnnPp::new(config, DType::F32, &mut Philox::new(3)).expect("a model");
        let label = (classes > 0).then_some(1);
        let options = SampleOptions { temperature: 0.8, label, ..SampleOptions::default() };
        model.sample(7, &options, &mut Philox::new(4)).expect("images")
    };
    vec![
        draw([5, 4, 1], 0),
        draw([3, 4, 3], 2),
        mix([5, 6, 1], 2, 0),
        mix([4, 3, 3], 1, 2),
        mix([3, 4, 1], 0, 0),
    ]
}

#[test]
fn pixels_drawn_in_one_launch_are_those_of_the_cpu() {
    let Some(there) = device() else { return };
    let want = images();
    for _ in 0..2 {
        let got = there.run(images).expect("the device draws");
        for (a, b) in got.iter().zip(&want) {
            assert!(a.device() == there, "drawn on {}", a.device());
            assert_eq!(a.to_f64_vec(), b.to_f64_vec());
        }
        #[cfg(feature = "emulate")]
        set_order(Order::Seed(3));
    }
}

#[test]
fn mixed_devices_and_wrong_indices_are_named() {
    let Some(there) = device() else { return };
    let x = Tensor::ones([3], DType::F32);
    let y = x.to(there).expect("the device is there");
    let caught = catch_unwind(AssertUnwindSafe(|| &x + &y)).map(|_| ()).expect_err("devices differ");
    let message = caught.downcast_ref::<String>().expect("a message");
    assert_eq!(*message, format!("add: one input is on cpu, another on {there}"));
    assert_eq!(y.to(Device::Cpu).expect("the CPU is there").to_f64_vec(), [1.0; 3]);
    assert_eq!(y.to_f64_vec(), [1.0; 3]);
}

/// What a copy brings is there behind a wait; before it NaN, which a build that looks for races does not let anybody
/// read.
#[test]
#[cfg(feature = "emulate")]
fn copies_are_there_when_they_were_waited_for() {
    assert_eq!(probe("probe_copy", true).expect("a right copy"), [1.0; 128]);
    match probe("probe_copy", false) {
        // Threads that had waited before others read did no harm.
        Ok(values) => assert!(!finds_races() && values[0].is_nan(), "{values:?}"),
        Err(e) => assert!(finds_races() && e.to_string().contains("race in shared memory"), "{e}"),
    }
}

/// Each probe of the emulator goes through when it is right; when it lacks a barrier, a build that looks for races
/// names both lines of `kernels/emulator/probe.cu`.
#[test]
#[cfg(feature = "emulate")]
fn accesses_that_no_barrier_orders_are_named() {
    for (symbol, first, second) in [
        ("probe_shared", "a read at kernels/emulator/probe.cu:9", "writes at kernels/emulator/probe.cu:7"),
        ("probe_reuse", "a read at kernels/emulator/probe.cu:19", "writes at kernels/emulator/probe.cu:17"),
        ("probe_warp", "a read at kernels/emulator/probe.cu:31", "writes at kernels/emulator/probe.cu:28"),
        ("probe_blocks", "a write at kernels/emulator/probe.cu:36", "another block writes"),
        ("probe_sum", "a read at kernels/emulator/probe.cu:42", "writes at kernels/emulator/probe.cu:42"),
    ] {
        probe(symbol, true).unwrap_or_else(|e| panic!("{symbol}: {e}"));
        for order in [Order::Forward, Order::Backward, Order::Seed(5)] {
            set_order(order);
            let done = probe(symbol, false);
            set_order(Order::Forward);
            if finds_races() {
                let message = done.expect_err(symbol).to_string();
                assert!(message.contains("race in ") && message.contains(symbol), "{message}");
                // Which of the two comes second depends on the order.
                if order == Order::Forward {
                    assert!(message.contains(first) && message.contains(second), "{message}");
                }
            } else {
                done.unwrap_or_else(|e| panic!("{symbol}: {e}"));
            }
        }
    }
}
