//! Differential equations, continuous flows, energies and their samplers.

use std::f64::consts::TAU;
use std::sync::{Arc, Mutex, MutexGuard};
use surprisal::autograd::{backward, no_grad};
use surprisal::cpu::buffer::{live_bytes, peak_bytes, reset_peak};
use surprisal::data::Dataset;
use surprisal::models::energy::ebm::{self, Ebm};
use surprisal::models::energy::sum;
use surprisal::models::flow::ffjord::{self, Ffjord};
use surprisal::models::{Batch, Kind, MODELS, Model, SampleOptions, config};
use surprisal::ode::{self, Stepping, TABLEAUX, Tableau};
use surprisal::ops::ode_steps::{Steps, ode_steps};
use surprisal::ops::ode_trace::{Field, Probe, Smooth, ode_trace};
use surprisal::random::Philox;
use surprisal::samplers::{self, Base, Method, Run};
use surprisal::testing::max_error;
use surprisal::train::{Evaluate, fit, log_probs};
use surprisal::{DType, ErrorKind, Tensor};

/// One test at a time: the peak of memory is that of the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(|e| e.into_inner())
}

/// dx/dt = (x₂, −x₁ + sin t): smooth, with a known solution from (0, 0): x₁ = (sin t − t cos t) / 2.
fn forced(t: f64, x: &[Tensor]) -> Vec<Tensor> {
    let (a, b) = (x[0].narrow(0, 0, 1), x[0].narrow(0, 1, 1));
    vec![surprisal::ops::shape::concat(&[&b, &a.affine(-1.0, t.sin())], 0)]
}

fn forced_solution(t: f64) -> [f64; 2] {
    [0.5 * (t.sin() - t * t.cos()), 0.5 * t * t.sin()]
}

fn distance(x: &Tensor, t: f64) -> f64 {
    x.to_f64_vec().iter().zip(forced_solution(t)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn tableaux_converge_with_their_order() {
    let _one = alone();
    for tableau in TABLEAUX {
        for (i, row) in tableau.a.iter().enumerate() {
            let c: f64 = row.iter().sum();
            assert!((c - tableau.c[i + 1]).abs() < 1e-12, "{}: row {i} sums to {c}", tableau.name);
        }
        if let Some(error) = tableau.error {
            let total: f64 = error.iter().sum();
            assert!(total.abs() < 1e-12, "{}: the error weights sum to {total}", tableau.name);
        }
        let error = |count| {
            let start = [Tensor::zeros([2], DType::F64)];
            let found = ode::solve(&forced, &start, [0.0, 3.0], tableau, Stepping::Fixed { count }, false)
                .expect("fixed steps");
            distance(&found.state[0], 3.0)
        };
        let order = (error(20) / error(40)).log2();
        let above = order - f64::from(tableau.order);
        assert!(above > -0.5 && above < 1.5, "{}: order {order}", tableau.name);
    }
}

#[test]
fn adaptive_steps_keep_the_error_and_fill_the_gaps() {
    let _one = alone();
    for tableau in TABLEAUX.iter().filter(|t| t.error.is_some() && t.order >= 3) {
        let stepping = Stepping::Adaptive { rtol: 1e-7, atol: 1e-9, budget: 100_000 };
        let start = [Tensor::zeros([2], DType::F64)];
        let found = ode::solve(&forced, &start, [0.0, 5.0], tableau, stepping, true).expect("a smooth field");
        let error = distance(&found.state[0], 5.0);
        assert!(error < 1e-5, "{}: off by {error:e}", tableau.name);
        assert!(found.evaluations > found.accepted, "{}: evaluations are counted", tableau.name);
        let dense = found.dense.expect("asked for");
        for t in [0.0, 0.37, 1.9, 3.3, 4.99, 5.0] {
            let error = distance(&dense.at(t)[0], t);
            let allowed = if tableau.middle.is_some() { 2e-5 } else { 1e-3 };
            assert!(error < allowed, "{}: off by {error:e} at {t}", tableau.name);
        }
        let back =
            ode::solve(&forced, &found.state, [5.0, 0.0], tableau, stepping, false).expect("the way back");
        assert!(distance(&back.state[0], 0.0) < 1e-4, "{}: there and back", tableau.name);
    }
}

#[test]
fn a_field_that_explodes_and_a_spent_budget_are_errors() {
    let _one = alone();
    let square = |_: f64, x: &[Tensor]| vec![x[0].square()];
    let one = [Tensor::ones([1], DType::F64)];
    let stepping = |budget| Stepping::Adaptive { rtol: 1e-6, atol: 1e-9, budget };
    let found = ode::solve(&square, &one, [0.0, 2.0], &ode::DOPRI5, stepping(1 << 20), false);
    let error = found.err().expect("x = 1 / (1 − t) ends at t = 1");
    assert_eq!(error.kind(), ErrorKind::NonFinite);
    assert!(error.to_string().contains("the step underflows"), "{error}");
    let error = ode::solve(&square, &one, [0.0, 0.999], &ode::DOPRI5, stepping(20), false)
        .err()
        .expect("20 do not do");
    assert!(error.to_string().contains("budget"), "{error}");
    let error = ode::solve(&square, &one, [0.0, 0.5], &ode::RK4, stepping(20), false)
        .err()
        .expect("rk4 has no error");
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("dopri5"), "{error}");
}

/// A field with random weights and a probe for `b` rows.
fn field(b: usize, d: usize, hidden: &[usize], dtype: DType) -> (Field, Tensor, Tensor) {
    let mut rng = Philox::new(5);
    let sizes: Vec<usize> = [&[d + 1], hidden, &[d]].concat();
    let layers = sizes.windows(2).map(|w| {
        let weight = rng.normal([w[0], w[1]], dtype).affine(1.0 / (w[0] as f64).sqrt(), 0.0);
        (weight.requires_grad(), rng.normal([w[1]], dtype).affine(0.1, 0.0).requires_grad())
    });
    let field = Field { act: Smooth::Tanh, layers: layers.collect() };
    (field, rng.normal([b, d], dtype), rng.rademacher([b, d], dtype))
}

/// log-determinant and squared ends of a solve by the adjoint, as one number.
fn adjoint_loss(
    field: &Field,
    x: &Tensor,
    noise: &Tensor,
    tableau: &'static Tableau,
    stepping: Stepping,
) -> Tensor {
    let probe = field.hutchinson(noise);
    let layers: Vec<Tensor> = field.layers.iter().flat_map(|(w, b)| [w.clone(), b.clone()]).collect();
    let params = [vec![probe.v, probe.p], layers].concat();
    let rhs: ode::AdjointRhs = Arc::new(|t, state, params| {
        let layers = params[2..].chunks(2).map(|p| (p[0].clone(), p[1].clone())).collect();
        let probe = Probe { v: params[0].clone(), p: params[1].clone(), mix: None };
        let (f, trace) = ode_trace(t, &state[0], &Field { act: Smooth::Tanh, layers }, &probe);
        vec![f, trace]
    });
    let start = [x.clone(), Tensor::zeros([x.shape()[0]], x.dtype())];
    let ([z, logdet], _) =
        ode::solve_adjoint(rhs, start, &params, [0.0, 1.0], tableau, stepping).expect("a smooth field");
    &z.square().sum_all() - &logdet.sum_all()
}

#[test]
fn the_adjoint_gives_the_gradient_of_the_steps() {
    let _one = alone();
    let (field, x, noise) = field(5, 3, &[8, 6], DType::F64);
    let x = x.requires_grad();
    let leaves: Vec<&Tensor> = field.layers.iter().flat_map(|(w, b)| [w, b]).chain([&x]).collect();
    let steps = Steps { tableau: &ode::RK4, span: [0.0, 1.0], count: 64 };
    let (z, logdet) = ode_steps(&x, &field, &field.hutchinson(&noise), steps);
    let want = backward(&z.square().sum_all() - &logdet.sum_all(), &leaves);
    let fixed = Stepping::Fixed { count: 64 };
    let adaptive = Stepping::Adaptive { rtol: 1e-9, atol: 1e-10, budget: 1 << 20 };
    for (tableau, stepping) in [(&ode::RK4, fixed), (&ode::DOPRI5, adaptive), (&ode::TSIT5, adaptive)] {
        let got = backward(adjoint_loss(&field, &x, &noise, tableau, stepping), &leaves);
        let error = max_error(&got, &want);
        assert!(error < 1e-5, "{}: off by {error:e}", tableau.name);
    }
}

/// Bytes above what was live before, of a loss and its gradient.
fn peak(field: &Field, loss: impl FnOnce() -> Tensor) -> f64 {
    let leaves: Vec<&Tensor> = field.layers.iter().flat_map(|(w, b)| [w, b]).collect();
    let before = live_bytes();
    reset_peak();
    drop(backward(loss(), &leaves));
    (peak_bytes() - before) as f64
}

fn peaks(count: usize) -> [f64; 2] {
    let (field, x, noise) = field(512, 16, &[64, 64], DType::F32);
    let steps = Steps { tableau: &ode::RK4, span: [0.0, 1.0], count };
    let stored = peak(&field, || {
        let (z, logdet) = ode_steps(&x, &field, &field.hutchinson(&noise), steps);
        &z.square().sum_all() - &logdet.sum_all()
    });
    let adjoint = peak(&field, || adjoint_loss(&field, &x, &noise, &ode::RK4, Stepping::Fixed { count }));
    [stored, adjoint]
}

#[test]
fn the_adjoint_keeps_memory_constant_in_the_steps() {
    let _one = alone();
    let ([few_stored, few], [many_stored, many]) = (peaks(4), peaks(32));
    assert!(many <= 1.1 * few, "32 steps take {many} bytes, 4 steps {few}");
    assert!(many_stored > 4.0 * few_stored, "stored: {many_stored} and {few_stored} bytes");
}

/// `cargo test --release --test energy table -- --ignored --nocapture` prints the table of benches/results/memory.md.
#[test]
#[ignore = "prints a table"]
fn table_of_memory() {
    let _one = alone();
    println!("| RK4 steps | backprop, MiB | adjoint, MiB |\n|---|---|---|");
    for count in [4, 8, 16, 32, 64] {
        let [stored, adjoint] = peaks(count).map(|bytes| bytes / f64::from(1 << 20));
        println!("| {count} | {stored:.1} | {adjoint:.1} |");
    }
}

fn ffjord(preset: &str, set: &[&str]) -> Ffjord {
    let mut recipe = config::find(MODELS, preset).expect("a preset");
    recipe.set(set).expect("keys of the preset");
    let config = serde_json::from_value::<ffjord::Config>(recipe.config).expect("a complete configuration");
    Ffjord::new(config, DType::F64, &mut Philox::new(3)).expect("a valid configuration")
}

/// Moves all parameters, so that the flow is not near the identity.
fn stir(model: &dyn Model, by: f64) {
    let mut rng = Philox::new(8);
    for (_, param) in model.params().trainable() {
        let value = param.get().detach();
        param.set(&(&value + &rng.normal(value.shape(), value.dtype()).affine(by, 0.0)));
    }
}

#[test]
fn workloads_have_the_parameters_of_their_peers() {
    let _one = alone();
    for (preset, count) in [("ffjord43", 27_819), ("ebm28", 460_865)] {
        let model = config::find(MODELS, preset).and_then(|r| r.build()).expect(preset);
        assert_eq!(model.params().count(), count, "{preset}");
    }
}

#[test]
fn solvers_traces_and_gradients_agree() {
    let _one = alone();
    let tight = ["stepping.rtol=1e-9", "stepping.atol=1e-9", "stepping.budget=100000"];
    let base =
        ["shape=[3]", "hidden=[12, 9]", "activation=\"tanh\"", "kinetic=0.0", "jacobian=0.0", "noise=0.0"];
    let with = |preset: &str, more: &[&str]| {
        let model = ffjord(preset, &[&base[..], more].concat());
        stir(&model, 0.3);
        model
    };
    let x = Philox::new(4).normal([6, 3], DType::F64);
    let want = with("ffjord_adaptive", &tight).density(&x, &mut Philox::new(1)).expect("smooth");
    let fixed =
        with("ffjord_table", &["stepping.count=40"]).density(&x, &mut Philox::new(1)).expect("smooth");
    assert!(max_error(&[fixed.0], std::slice::from_ref(&want.0)) < 1e-6, "fixed and adaptive steps");
    assert!(fixed.1 == 160 && want.1 > 20, "evaluations: {} and {}", fixed.1, want.1);
    // The estimate is right on average: 2,000 probes at once.
    let rows = x.narrow(0, 0, 1).broadcast_to([2000, 3]);
    let set = ["stepping.count=40", "score_trace=\"hutchinson\"", "probe=\"gaussian\""];
    let (nats, _) = with("ffjord_table", &set).density(&rows, &mut Philox::new(2)).expect("smooth");
    let nats = nats.to_f64_vec();
    let mean = nats.iter().sum::<f64>() / 2000.0;
    let deviation = (nats.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 2000.0 / 2000.0).sqrt();
    let exact = want.0.to_f64_vec()[0];
    assert!((mean - exact).abs() < 4.0 * deviation, "{mean} ± {deviation}, exactly {exact}");
    // Regularised training by the adjoint and by backpropagation.
    let grads = |gradient: &str| {
        let set = ["stepping.count=40", "kinetic=0.1", "jacobian=0.1", "trace=\"hutchinson\"", gradient];
        let model = with("ffjord_table", &set);
        let leaves: Vec<Tensor> = model.params().trainable().map(|(_, p)| p.get()).collect();
        let loss = model.objective(&Batch::new(x.clone()), &mut Philox::new(9)).mean_all();
        backward(loss, &leaves.iter().collect::<Vec<_>>())
    };
    let error = max_error(&grads("gradient=\"adjoint\""), &grads("gradient=\"backprop\""));
    assert!(error < 1e-5, "the adjoint differs by {error:e}");
}

#[test]
fn flows_invert_and_say_when_they_fail() {
    let _one = alone();
    let model = ffjord("ffjord_table", &["shape=[3]", "hidden=[12, 9, 7]", "stepping.count=30", "noise=0.0"]);
    stir(&model, 0.3);
    let x = model.sample(5, &SampleOptions::default(), &mut Philox::new(6)).expect("samples");
    let z = Philox::new(6).normal([5, 3], DType::F64);
    let to = no_grad(|| model.train_flow(&x, &mut Philox::new(1)).expect("smooth"));
    let error = max_error(&[to.z], &[z]);
    assert!(error < 1e-6, "there and back: {error:e}");
    let hasty = ffjord("ffjord_adaptive", &["shape=[3]", "stepping.budget=5"]);
    let x = Philox::new(4).normal([2, 3], DType::F64);
    let error = hasty.density(&x, &mut Philox::new(1)).expect_err("five evaluations are too few");
    assert!(error.kind() == ErrorKind::NonFinite && error.to_string().contains("budget"), "{error}");
    // The likelihood is then that of equal steps, here of one.
    let generous = ffjord("ffjord_adaptive", &["shape=[3]"]);
    let (nats, _) = generous.density(&x, &mut Philox::new(1)).expect("smooth");
    let error = max_error(&[hasty.log_prob(&Batch::new(x), &mut Philox::new(1)).nats], &[nats]);
    assert!(error < 1e-2, "equal steps differ by {error:e}");
}

fn small_ebm(set: &[&str]) -> Ebm {
    let mut recipe = config::tiny(&ebm::INFO).expect("a tiny copy");
    recipe.set(set).expect("keys of the preset");
    let config = serde_json::from_value::<ebm::Config>(recipe.config).expect("a complete configuration");
    Ebm::new(config, DType::F32, &mut Philox::new(3)).expect("a valid configuration")
}

#[test]
fn divergence_is_caught_and_rolled_back() {
    let _one = alone();
    let model = small_ebm(&[]);
    let batch = Batch::new(Philox::new(1).randint(0, 256, [8, 4, 4, 1]).cast(DType::U8));
    let step = |n| model.objective(&batch, &mut Philox::new(2).at_step(n)).to_f64_vec();
    assert!(step(0).iter().all(|v| v.is_finite()));
    let bias = model.params().get("net.5.bias").expect("the last layer");
    let before = bias.get().to_f64_vec();
    for poison in [f64::NAN, 1e9] {
        bias.set(&Tensor::full(poison, [1], DType::F32));
        assert!(step(1).iter().all(|v| v.is_finite()), "training goes on");
        assert_eq!(bias.get().to_f64_vec(), before, "with the weights of before");
    }
    assert_eq!(model.rollbacks(), 2);
}

#[test]
fn gradients_of_energies_do_not_depend_on_the_group() {
    let _one = alone();
    let model = small_ebm(&["spectral_norm=true"]);
    let weights = model.net().weights().detached();
    let x = Philox::new(1).uniform([19, 4, 4, 1], DType::F32);
    let (e, g) = weights.gradient(&x);
    for i in [0, 7, 8, 18] {
        let (one, slope) = weights.gradient(&x.narrow(0, i, 1));
        assert!(max_error(&[one, slope], &[e.narrow(0, i, 1), g.narrow(0, i, 1)]) < 1e-5, "image {i}");
    }
}

/// U of a normal distribution in the plane with correlation 0.8 and deviations 1 and 2.
fn tilted(x: &Tensor) -> Tensor {
    let (a, b) = (x.narrow(1, 0, 1), x.narrow(1, 1, 1).affine(0.5, 0.0));
    let squares = &(&a.square() + &b.square()) - &(&a * &b).affine(1.6, 0.0);
    squares.affine(0.5 / 0.36, 0.0).sum(&[1])
}

#[test]
fn chains_find_a_normal_distribution() {
    let _one = alone();
    let potential = samplers::potential(tilted);
    let start = Philox::new(1).normal([16, 2], DType::F64).affine(3.0, 0.0);
    // Five leapfrog steps: eight come round to where they began, where the acceptance jumps with the step.
    for (method, target, draws) in [
        (Method::Hmc { step: 0.1, leapfrog: 5 }, 0.8, 600),
        (Method::Mala { step: 0.1 }, 0.574, 1500),
        (Method::Langevin { step: 0.1 }, 1.0, 6000),
    ] {
        let run = Run { warmup: 300, draws, target, ..Run::default() };
        let found =
            samplers::sample(&potential, &start, method, run, &mut Philox::new(2)).expect("finite energies");
        assert!((found.acceptance - target).abs() < 0.12, "{method:?}: acceptance {}", found.acceptance);
        let x = found.draws.to_f64_vec();
        let n = (x.len() / 2) as f64;
        let moment = |f: &dyn Fn(f64, f64) -> f64| x.chunks(2).map(|p| f(p[0], p[1])).sum::<f64>() / n;
        let [a, b, ab] = [moment(&|a, _| a * a), moment(&|_, b| b * b), moment(&|a, b| a * b)];
        assert!(
            (a - 1.0).abs() < 0.15 && (b - 4.0).abs() < 0.6 && (ab - 1.6).abs() < 0.25,
            "{method:?}: {a} {b} {ab}"
        );
        // No upper limit: draws that alternate around the mean count for more than their number, up to the
        // estimate's cap.
        for d in &found.diagnosis {
            assert!(d.rhat < 1.1 && d.ess > 100.0, "{method:?}: {d:?}");
        }
    }
    // Two places that chains do not leave.
    let apart = samplers::potential(|x: &Tensor| x.square().affine(1.0, -9.0).square().sum(&[1]));
    let start = Tensor::from_fn([4, 1], |i| if i % 2 == 0 { 3.0 } else { -3.0 });
    let run = Run { warmup: 50, draws: 100, ..Run::default() };
    let found = samplers::sample(&apart, &start, Method::Mala { step: 0.02 }, run, &mut Philox::new(3))
        .expect("finite");
    assert!(found.diagnosis[0].rhat > 2.0, "{:?}", found.diagnosis);
}

#[test]
fn walls_reflect() {
    let _one = alone();
    let flat = |x: &Tensor| (Tensor::zeros([x.shape()[0]], x.dtype()), Tensor::zeros(x.shape(), x.dtype()));
    let start = Tensor::full(0.9, [32, 2], DType::F64);
    let run = Run { warmup: 0, draws: 400, range: [0.0, 1.0], ..Run::default() };
    let found =
        samplers::sample(&flat, &start, Method::Hmc { step: 0.2, leapfrog: 3 }, run, &mut Philox::new(4))
            .expect("finite energies");
    let x = found.draws.to_f64_vec();
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    assert!(x.iter().all(|x| (0.0..=1.0).contains(x)) && found.acceptance == 1.0);
    assert!((mean - 0.5).abs() < 0.02 && (square - 1.0 / 3.0).abs() < 0.02, "{mean} {square}");
}

#[test]
fn annealing_finds_the_constant_of_a_product() {
    let _one = alone();
    // exp(−½ |x|² / s²) exp(−½ |x|² / s²) = exp(−½ |x|² / (s² / 2)) in five dimensions.
    let normal = samplers::potential(|x: &Tensor| x.square().sum(&[1]).affine(0.5 / 0.18, 0.0));
    let product = sum(vec![(1.0, &normal), (1.0, &normal)]);
    let found =
        samplers::anneal(&product, Base::Normal, (&[5], DType::F64), (200, 100, 3), &mut Philox::new(5))
            .expect("finite weights");
    let want = 2.5 * (TAU * 0.09).ln();
    assert!((found.value - want).abs() < 0.1, "{found:?}, exactly {want}");
    assert!(found.interval[0] < found.value && found.value < found.interval[1], "{found:?}");
    assert!(found.effective > 50.0 && found.acceptance > 0.4, "{found:?}");
    let slope = samplers::potential(|x: &Tensor| x.sum(&[1]).affine(2.0, 0.0));
    let range = Base::Box { range: [0.0, 1.0] };
    let found = samplers::anneal(&slope, range, (&[3], DType::F64), (400, 50, 3), &mut Philox::new(6))
        .expect("finite");
    let want = 3.0 * ((1.0 - (-2f64).exp()) / 2.0).ln();
    assert!((found.value - want).abs() < 0.05, "{found:?}, exactly {want}");
}

/// Two clusters in the plane; a Gaussian fit has 3.2 nats, the mixture itself 2.15.
fn clusters(n: usize, seed: u64) -> Dataset {
    let noise = Philox::new(seed).normal([n, 2], DType::F32).to_f64_vec();
    let side = |i: usize| if i.is_multiple_of(2) { 2.0 } else { -2.0 };
    Dataset::new("clusters", Tensor::from_fn([n, 2], |i| (side(i / 2) + 0.5 * noise[i]) as f32))
}

#[test]
fn energies_learn_a_density_with_its_constant() {
    learn_the_clusters(&[
        ("nce_table", 0.2, &["train.steps=500", "hidden=[64, 64]"]),
        ("nce_flow", 0.2, &["train.steps=1000", "hidden=[32]", "flow=[32]"]),
        ("score_matching_table", 0.6, &["train.steps=500", "hidden=[64, 64]", "annealing.temperatures=200"]),
    ]);
}

#[test]
fn persistent_chains_learn_a_density() {
    learn_the_clusters(&[(
        "ebm_table",
        0.3,
        &["train.steps=500", "hidden=[64, 64]", "annealing.temperatures=200"],
    )]);
}

/// Trains each preset with these settings on two clusters; the held-out nats may lie `allowed` above the entropy.
fn learn_the_clusters(cases: &[(&str, f64, &[&str])]) {
    let _one = alone();
    let entropy = (TAU * std::f64::consts::E * 0.25).ln() + 2f64.ln();
    for &(preset, allowed, set) in cases {
        let mut recipe = config::find(MODELS, preset).expect(preset);
        recipe.set(&["shape=[2]", "train.batch=128"]).expect(preset);
        recipe.set(set).expect(preset);
        let model = recipe.build().expect(preset);
        let train = clusters(4000, 1);
        fit(&*model, &train, None, &recipe.train, &mut ()).unwrap_or_else(|e| panic!("{preset}: {e}"));
        let found = log_probs(&*model, &clusters(2000, 2), &Evaluate { batch: 500, ..Evaluate::default() })
            .expect(preset);
        assert_eq!(found.kind, Kind::Estimate, "{preset}");
        let nats = -found.mean();
        assert!(
            nats > entropy - 0.15 && nats < entropy + allowed,
            "{preset}: {nats} nats, entropy {entropy}"
        );
    }
}
