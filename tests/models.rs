//! Takes every registered model, shrunk to a tiny copy, through the same checks: finite log-likelihoods whose parts
//! add up and that sum to 1, a gradient for every parameter, the same bits from a file, from a seed and for any number
//! of threads.

use std::cell::Cell;
use surprisal::autograd::{backward, no_grad};
use surprisal::data::Dataset;
use surprisal::models::file::{self, Meta};
use surprisal::models::{Batch, Kind, LogProb, MODELS, Model, ModelInfo, SampleOptions, Statistic, config};
use surprisal::ops::amp::mixed;
use surprisal::random::Philox;
use surprisal::testing::max_error;
use surprisal::{DType, Tensor};

/// A model with what it was built from.
struct Subject {
    name: &'static str,
    recipe: config::Recipe,
    model: Box<dyn Model>,
    /// Whether an algorithm of its own fits it, so that gradients mean nothing.
    solved: bool,
}

/// Tiny copies, fitted or moved off their start: many layers start as the identity or at 0.
fn each(mut check: impl FnMut(&Subject)) {
    for info in MODELS {
        check(&subject(info));
    }
}

fn subject(info: &'static ModelInfo) -> Subject {
    let name = info.name;
    let recipe =
        config::tiny(info).unwrap_or_else(|e| panic!("{name}: the line `tiny` of its registry entry: {e}"));
    let model = recipe.build().unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(model.params().count() < 200_000, "{name}: tiny has {} parameters", model.params().count());
    let train = data(&*model, 64, 1);
    let mut rng = Philox::new(2);
    let solved = no_grad(|| {
        model.init_from(&train, &batch(&*model, &train.take(16)), &mut rng);
        model.solve(&train, &mut rng)
    });
    let solved = solved.unwrap_or_else(|e| panic!("{name}: {e}")).is_some();
    if !solved {
        for (_, param) in model.params().trainable() {
            let value = param.get();
            let noise = rng.normal(value.shape(), value.dtype()).affine(0.1, 0.0);
            no_grad(|| param.set(&(&value.detach() + &noise)));
        }
    }
    Subject { name, recipe, model, solved }
}

/// Examples that the model takes: bytes of its alphabet, or normal numbers that hang together.
fn data(model: &dyn Model, n: usize, seed: u64) -> Dataset {
    let input = model.input();
    let shape = [&[n], &input.shape[..]].concat();
    let mut rng = Philox::new(seed);
    let values = match input.dtypes[0] {
        DType::U8 => rng.randint(0, input.levels as i32, shape).cast(DType::U8),
        DType::I32 => rng.randint(0, input.levels as i32, shape),
        dtype => {
            let common = rng.normal([&[n], &vec![1; input.shape.len()][..]].concat(), dtype);
            &rng.normal(shape, dtype).affine(0.6, 0.3) + &common
        }
    };
    let labels = input.classes.map(|classes| (0..n).map(|i| (i % classes) as i32).collect());
    let data = Dataset::new("examples", values).with_labels(labels);
    input.check(&data).expect("examples as the model describes them");
    data
}

fn batch(model: &dyn Model, data: &Dataset) -> Batch {
    let labels = model.input().classes.and(data.labels.as_ref());
    Batch { x: data.values.clone(), labels: labels.map(|l| Tensor::from_slice(l, [l.len()])) }
}

fn log_prob(model: &dyn Model, data: &Dataset) -> LogProb {
    no_grad(|| model.log_prob(&batch(model, data), &mut Philox::new(3)))
}

fn sample(subject: &Subject, n: usize, seed: u64) -> Option<Tensor> {
    let label = subject.model.input().classes.map(|_| 0);
    let options = SampleOptions { label, ..SampleOptions::default() };
    match subject.model.sample(n, &options, &mut Philox::new(seed)) {
        Ok(x) => Some(x),
        Err(e) => {
            assert!(e.to_string().contains("sample"), "{}: {e}", subject.name);
            None
        }
    }
}

#[test]
fn configurations_are_complete() {
    each(|s| assert_eq!(s.model.config(), s.recipe.config, "{}: a preset names every key", s.name));
    for info in MODELS {
        for (preset, _) in info.presets {
            config::find(MODELS, preset).unwrap_or_else(|e| panic!("{preset}: {e}"));
        }
        assert!(!info.objective.is_empty() && !info.reproduce.is_empty(), "{}: words are missing", info.name);
    }
}

#[test]
fn log_likelihoods_are_finite_and_their_parts_add_up() {
    each(|s| {
        let rows = data(&*s.model, 9, 4);
        let found = log_prob(&*s.model, &rows);
        assert_eq!(found.nats.shape(), [9], "{}: nats are (B,)", s.name);
        assert!(found.nats.to_f64_vec().iter().all(|v| v.is_finite()), "{}: {:?}", s.name, found.nats);
        if let Some(parts) = &found.per_position {
            assert_eq!(parts.shape()[0], 9, "{}: per position", s.name);
            let error = max_error(
                &[parts.reshape([9, parts.len() / 9]).sum(&[1])],
                std::slice::from_ref(&found.nats),
            );
            assert!(error < 1e-4, "{}: the positions sum to something else by {error:e}", s.name);
        }
        if found.kind == Kind::Exact {
            let alone = log_prob(&*s.model, &rows.take(1)).nats;
            let error = max_error(&[alone], &[found.nats.narrow(0, 0, 1)]);
            assert!(error < 1e-4, "{}: an example depends on its batch by {error:e}", s.name);
        }
    });
}

#[test]
fn terms_are_what_the_likelihood_is_the_sum_of() {
    let mut exact = Vec::new();
    each(|s| {
        if !Statistic::Terms.offered_by(&*s.model) {
            return;
        }
        let data = data(&*s.model, 24, 3);
        let batch = batch(&*s.model, &data);
        // The same noise of dequantisation for both.
        let terms = Statistic::Terms.of(&*s.model, &batch, &mut Philox::new(4)).unwrap();
        let sums = terms.sum_examples().to_f64_vec();
        let (found, n) = (no_grad(|| s.model.log_prob(&batch, &mut Philox::new(4))), data.len() as f64);
        let nats = found.nats.to_f64_vec();
        assert!(terms.shape()[0] == 24 && terms.shape()[1] >= 2, "{}: {:?}", s.name, terms.shape());
        if s.recipe.info.family == "flow" || s.name == "vqvae" {
            sums.iter().zip(&nats).for_each(|(a, b)| assert!((a - b).abs() < 1e-3, "{}: {a} {b}", s.name));
            exact.push(s.name);
        } else {
            // A bound by few draws, below one by more.
            let mean = |x: &[f64]| x.iter().sum::<f64>() / n;
            assert!(mean(&sums) < mean(&nats) + 1.0, "{}: {} {}", s.name, mean(&sums), mean(&nats));
        }
    });
    assert!(["glow", "realnvp", "nsf", "flowpp"].iter().all(|name| exact.contains(name)), "{exact:?}");
}

/// The sum of p over all byte strings, or over a fine grid of the plane.
fn mass(s: &Subject) -> Option<f64> {
    let input = s.model.input();
    let dims: usize = input.shape.iter().product();
    let total = |n: usize, value: &dyn Fn(usize, usize) -> f64| {
        let chunks = (0..n).step_by(1 << 13).map(|first| {
            let b = (n - first).min(1 << 13);
            let shape = [&[b], &input.shape[..]].concat();
            let x = Tensor::from_fn(shape, |at| value(first + at / dims, at % dims)).cast(input.dtypes[0]);
            log_prob(&*s.model, &Dataset::new("all", x))
                .nats
                .to_f64_vec()
                .into_iter()
                .map(f64::exp)
                .sum::<f64>()
        });
        chunks.sum::<f64>()
    };
    if input.classes.is_some() || log_prob(&*s.model, &data(&*s.model, 2, 5)).kind != Kind::Exact {
        return None;
    }
    if !input.dtypes[0].is_float() {
        let n = input.levels.checked_pow(dims as u32).filter(|&n| n <= 1 << 15)?;
        return Some(total(n, &|i, k| (i / input.levels.pow(k as u32) % input.levels) as f64));
    }
    let (per_axis, edge): (usize, f64) = match dims {
        1 => (20_000, 30.0),
        2 => (320, 12.0),
        _ => return None,
    };
    let step = 2.0 * edge / per_axis as f64;
    let n = per_axis.pow(dims as u32);
    Some(
        total(n, &|i, k| (i / per_axis.pow(k as u32) % per_axis) as f64 * step - edge)
            * step.powi(dims as i32),
    )
}

#[test]
fn exact_likelihoods_sum_to_one_on_small_supports() {
    let checked = Cell::new(0);
    each(|s| {
        if let Some(total) = mass(s) {
            assert!((total - 1.0).abs() < 3e-3, "{}: the mass is {total}", s.name);
            checked.set(checked.get() + 1);
        }
    });
    assert!(checked.get() > 0, "no model has a support small enough");
}

#[test]
fn every_parameter_has_a_gradient() {
    each(|s| {
        if s.solved {
            return;
        }
        let rows = data(&*s.model, 24, 6);
        let leaves: Vec<Tensor> = s.model.params().trainable().map(|(_, p)| p.get()).collect();
        let loss = s.model.objective(&batch(&*s.model, &rows), &mut Philox::new(7)).mean_all();
        assert!(loss.item().is_finite(), "{}: the loss is {}", s.name, loss.item());
        let grads = backward(loss, &leaves.iter().collect::<Vec<_>>());
        for ((param, _), grad) in s.model.params().trainable().zip(grads) {
            let grad = grad.to_f64_vec();
            assert!(grad.iter().all(|g| g.is_finite()), "{}: the gradient of {param} is not finite", s.name);
            assert!(grad.iter().any(|g| *g != 0.0), "{}: {param} has no gradient", s.name);
        }
    });
}

#[test]
fn what_is_saved_scores_with_the_same_bits() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    each(|s| {
        let path = dir.path().join(format!("{}.safetensors", s.name));
        file::save(&path, &file::tensors(&*s.model), &Meta::new(&s.recipe, &*s.model)).expect(s.name);
        let loaded = file::load(&path).unwrap_or_else(|e| panic!("{}: {e}", s.name));
        let rows = data(&*s.model, 5, 8);
        let (a, b) = (log_prob(&*s.model, &rows), log_prob(&*loaded.model, &rows));
        assert_eq!(a.nats.as_bytes(), b.nats.as_bytes(), "{}: the loaded model scores otherwise", s.name);
    });
}

#[test]
fn samples_come_from_the_seed_and_are_data() {
    each(|s| {
        let Some(x) = sample(s, 6, 9) else { return };
        let data =
            Dataset::new("samples", x.clone()).with_labels(s.model.input().classes.map(|_| vec![0; 6]));
        s.model.input().check(&data).unwrap_or_else(|e| panic!("{}: {e}", s.name));
        assert!(log_prob(&*s.model, &data).nats.to_f64_vec().iter().all(|v| v.is_finite()), "{}", s.name);
        let (again, other) = (sample(s, 6, 9), sample(s, 6, 10));
        assert!(again.is_some_and(|y| y.as_bytes() == x.as_bytes()), "{}: a seed gives one sample", s.name);
        assert!(
            other.is_some_and(|y| y.as_bytes() != x.as_bytes()),
            "{}: another seed, another sample",
            s.name
        );
    });
}

/// Everything that a number of threads could change.
fn bits(info: &'static ModelInfo) -> Vec<Vec<u8>> {
    let s = subject(info);
    let rows = data(&*s.model, 40, 11);
    let mut found = vec![log_prob(&*s.model, &rows).nats];
    found.extend(sample(&s, 3, 12));
    if !s.solved {
        let leaves: Vec<Tensor> = s.model.params().trainable().map(|(_, p)| p.get()).collect();
        let loss = s.model.objective(&batch(&*s.model, &rows), &mut Philox::new(13)).mean_all();
        found.extend(backward(loss, &leaves.iter().collect::<Vec<_>>()));
    }
    found.iter().map(|t| t.as_bytes().to_vec()).collect()
}

#[test]
fn threads_change_no_bit() {
    let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("a pool of threads");
    let (one, three) = (pool(1), pool(3));
    for info in MODELS {
        for products in [None, Some(DType::BF16)] {
            let run = || mixed(products, || bits(info));
            let what = format!("{}: threads change the result, products in {products:?}", info.name);
            assert!(one.install(run) == three.install(run), "{what}");
        }
    }
}

/// Tokens that do not fit bytes: every sequence of two of 300 has its probability, and samples are such tokens.
#[test]
fn vocabularies_larger_than_bytes_sum_to_one() {
    const LEVELS: usize = 300;
    for name in ["causal_cnn", "transformer", "hmm_tokens"] {
        let mut recipe = config::find(MODELS, name).unwrap();
        if name != "hmm_tokens" {
            recipe = config::tiny(recipe.info).unwrap();
        }
        recipe.set(&["shape=[2]", &format!("levels={LEVELS}")]).unwrap();
        let model = recipe.build().unwrap();
        let mut rng = Philox::new(3);
        let values = rng.randint(0, LEVELS as i32, [200, 2]);
        no_grad(|| model.solve(&Dataset::new("tokens", values), &mut rng)).unwrap();
        let all = Tensor::from_fn([LEVELS * LEVELS, 2], |i| {
            let pair = i as i32 / 2;
            if i % 2 == 0 { pair / LEVELS as i32 } else { pair % LEVELS as i32 }
        });
        let nats = no_grad(|| model.log_prob(&Batch::new(all.clone()), &mut rng)).nats.to_f64_vec();
        let mass: f64 = nats.iter().map(|x| x.exp()).sum();
        assert!((mass - 1.0).abs() < 1e-3, "{name}: a mass of {mass}");
        let drawn = model.sample(500, &SampleOptions::default(), &mut rng).unwrap();
        assert_eq!(drawn.dtype(), DType::I32, "{name}");
        assert!(drawn.as_slice::<i32>().iter().all(|t| (0..LEVELS as i32).contains(t)), "{name}");
        assert!(drawn.as_slice::<i32>().iter().any(|t| *t > 255), "{name}: only bytes were drawn");
        let strange = Dataset::new("strange", Tensor::from_slice(&[1, 2, 3, LEVELS as i32], [2, 2]));
        let message = model.input().check(&strange).unwrap_err().to_string();
        assert!(
            message.contains("strange: row 1, column 1: 300; the model knows the values 0..300"),
            "{message}"
        );
    }
}
