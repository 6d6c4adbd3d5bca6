//! Every registered scorer through the same checks: planted anomalies, sign, determinism, refusals, save and restore.

mod common;

use std::collections::{BTreeMap, HashMap};
use std::sync::{LazyLock, Mutex};
use surprisal::calibrate::{Calibration, calibrate};
use surprisal::data::Dataset;
use surprisal::evidence::{Judges, Need, silent};
use surprisal::models::file::{Meta, ModelFile};
use surprisal::models::{Batch, Kind, MODELS, Statistic, config};
use surprisal::random::Philox;
use surprisal::report::metrics::Comparison;
use surprisal::scorers::{self, Compressor, Evidence, SCORERS, Scorer, ScorerInfo, Typicality};
use surprisal::train::fit;
use surprisal::{DType, ErrorKind, Tensor};

const N: usize = 200;
const KINDS: [Kind; 4] = [Kind::Exact, Kind::LowerBound, Kind::Estimate, Kind::Unnormalised];

/// What a set of images looks like to the models.
#[derive(Debug, Clone, Copy)]
struct Look {
    /// Columns with noise; the others are black.
    detail: usize,
    /// Standard deviation of the noise, in grey levels.
    contrast: f64,
    /// Means of log p and log p₀; their standard deviations are 10 and 3 nats.
    mean: f64,
    background: f64,
    /// Standard deviation of an ensemble's members around log p, in nats.
    doubt: f64,
    /// What is added to every other statistic, in standard deviations.
    shift: f64,
}

const REFERENCE: Look =
    Look { detail: 10, contrast: 40.0, mean: -500.0, background: -600.0, doubt: 1.0, shift: 0.0 };
const PLANTED: Look = Look { contrast: 80.0, mean: -700.0, doubt: 25.0, shift: 8.0, ..REFERENCE };
/// The trap of the literature: simple images, more likely than the reference under both models.
const SIMPLE: Look =
    Look { detail: 2, contrast: 40.0, mean: -300.0, background: -290.0, doubt: 60.0, ..PLANTED };

/// Evidence of every sort about 10 × 10 grey images.
fn evidence(name: &str, seed: u64, look: Look, kind: Kind) -> Evidence {
    let mut rng = Philox::new(seed);
    let mut images = |contrast: f64| {
        let noise = rng.normal([N * 100], DType::F64);
        let noise = noise.as_slice::<f64>();
        Tensor::from_fn([N, 10, 10, 1], |i| {
            if i % 10 < look.detail { (128.0 + contrast * noise[i]) as u8 } else { 0u8 }
        })
    };
    let (values, samples) = (images(look.contrast), images(70.0));
    let mut around = |mean: f64, spread: f64| -> Vec<f64> {
        rng.normal([N], DType::F64).as_slice::<f64>().iter().map(|x| mean + spread * x).collect()
    };
    let mut e = Evidence::new(Dataset::new(name, values), around(look.mean, 10.0), kind);
    e.background = Some(around(look.background, 3.0));
    let mut near = |spread: f64, shift: f64| -> Vec<f64> {
        around(-shift, spread).iter().zip(&e.nats).map(|(d, l)| l + d).collect()
    };
    e.members = (0..4).map(|_| near(look.doubt, 0.0)).collect();
    let training_mode = vec![near(2.0, 5.0 + 2.0 * look.shift)];
    e.statistics = BTreeMap::from([
        (Statistic::GradNorm, (0..3).map(|_| around(4.0 + look.shift, 1.0)).collect()),
        (Statistic::BatchNorm, training_mode),
        (Statistic::Regret, vec![around(20.0 + look.shift, 1.0)]),
        (Statistic::LlrK, vec![around(7.0 + look.shift, 1.0)]),
        (Statistic::Terms, (0..2).map(|_| around(-50.0 + look.shift, 1.0)).collect()),
        (Statistic::WorstStep, vec![around(6.0 + look.shift, 1.0)]),
    ]);
    e.samples = Some(samples);
    e
}

/// Made once: the code lengths in it are the dear part.
fn exact(name: &str, seed: u64, look: Look) -> Evidence {
    static MADE: LazyLock<Mutex<HashMap<String, Evidence>>> = LazyLock::new(Default::default);
    let mut made = MADE.lock().unwrap();
    let key = format!("{name} {seed} {look:?}");
    made.entry(key).or_insert_with(|| evidence(name, seed, look, Kind::Exact)).clone()
}

fn reference(seed: u64) -> Evidence {
    exact("reference", seed, REFERENCE)
}

fn fitted(info: &ScorerInfo) -> Box<dyn Scorer> {
    let mut scorer = (info.build)();
    scorer.fit(&reference(1)).unwrap();
    scorer
}

fn auroc(info: &ScorerInfo, other: &Evidence) -> f64 {
    let scorer = fitted(info);
    let scores = (scorer.score(&reference(2)).unwrap(), scorer.score(other).unwrap());
    assert!(scores.0.iter().chain(&scores.1).all(|s| s.is_finite()), "{}", info.name);
    assert_eq!(scores.1.len(), N / scorer.rows_per_score(), "{}", info.name);
    Comparison::new(&scores.0, &scores.1).unwrap().auroc()
}

#[test]
fn find_what_the_model_does_not_expect() {
    let (anomalies, more_of_the_same) = (exact("planted", 3, PLANTED), reference(4));
    for info in SCORERS {
        let found = auroc(info, &anomalies);
        // Distances between rows of noise tell less than likelihoods.
        let bar = if info.name == "lid" { 0.8 } else { 0.95 };
        assert!(found > bar, "{}: {found}", info.name);
        let chance = auroc(info, &more_of_the_same);
        assert!((0.25..0.75).contains(&chance), "{}: {chance} on the reference itself", info.name);
    }
}

/// Simple images that are more likely than the reference. The discriminator knows data and samples alone.
#[test]
fn repair_what_raw_likelihood_gets_wrong() {
    let simple = exact("simple", 5, SIMPLE);
    for info in SCORERS.iter().filter(|info| info.name != "discriminator") {
        let found = auroc(info, &simple);
        match info.name {
            "nll" | "ensemble" => assert!(found < 0.05, "{}: {found}", info.name),
            name => assert!(found > 0.95, "{name}: {found}"),
        }
    }
}

#[test]
fn give_the_same_scores_again() {
    let set = exact("other", 6, Look { mean: -520.0, background: -580.0, ..REFERENCE });
    let scores_of = |scorer: &dyn Scorer| scorer.score(&set).unwrap();
    for info in SCORERS {
        let name = info.name;
        let scores = scores_of(&*fitted(info));
        assert_eq!(scores, scores_of(&*fitted(info)), "{name}");
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(scores, alone.install(|| scores_of(&*fitted(info))), "{name}: on one thread");

        // Through a file: a calibration holds the scorer.
        let calibration = Calibration::new(name, &*fitted(info), &scores).unwrap();
        let text = serde_json::to_string(&calibration).unwrap();
        let read: Calibration = serde_json::from_str(&text).unwrap();
        assert!(read == calibration, "{name}: the file changed the calibration");
        assert_eq!(scores_of(&*read.scorer().unwrap()), scores, "{name}: restored");
    }
}

#[test]
fn refuse_what_they_cannot_judge() {
    let set = reference(7);
    for info in SCORERS {
        let name = info.name;
        let refusal = |scorer: &mut dyn Scorer, evidence: &Evidence| -> String {
            let message = scorer.fit(evidence).unwrap_err().to_string();
            assert!(message.contains("reference"), "{name}: {message}");
            message
        };
        let mut scorer = (info.build)();
        assert_eq!(scorer.score(&set).unwrap_err().kind(), ErrorKind::Usage, "{name}");
        assert!(scorer.state().is_err(), "{name}");
        for kind in KINDS {
            let other = with(&set, |e| e.kind = kind);
            if info.accepts.contains(&kind) {
                scorer.fit(&other).unwrap();
            } else {
                assert!(refusal(&mut *scorer, &other).contains("log-likelihoods"), "{name}");
            }
        }
        let bare = with(&set, |e| {
            (e.background, e.samples) = (None, None);
            e.members.clear();
            e.statistics.clear();
        });
        for need in info.needs.iter().filter(|need| !bare.has(**need)) {
            let word = match need {
                Need::Background => "background",
                Need::Members => "--ensemble",
                Need::Statistic(which) => which.name(),
                _ => "Samples",
            };
            assert!(refusal(&mut *scorer, &bare).contains(word), "{name}");
        }
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut other = set.clone();
            other.nats[17] = bad;
            assert!(refusal(&mut *scorer, &other).contains("row 17"), "{name}");
        }
        let none = with(&set, |e| e.nats.clear());
        assert!(refusal(&mut *scorer, &none).contains(&format!("{N} examples")), "{name}");

        let noise = Philox::new(3).normal([N, 100], DType::F32);
        let tabular = on(&set, Dataset::new("reference table", noise.clone()), noise);
        if info.needs.contains(&Need::Images) {
            assert!(refusal(&mut *scorer, &tabular).contains("u8 images"), "{name}");
        } else {
            scorer.fit(&tabular).unwrap();
            assert!(scorer.score(&tabular).unwrap().iter().all(|s| s.is_finite()), "{name}");
            let message = scorer.score(&set).unwrap_err().to_string();
            assert!(message.contains("fitted"), "{name}: other shape: {message}");
        }

        let empty = set.rows(0..0);
        assert!(refusal(&mut *scorer, &empty).contains("no reference rows"), "{name}");
        assert!(scorer.restore(&serde_json::json!({"kind": "exact"})).is_err(), "{name}");
    }
}

/// The same, changed.
fn with(of: &Evidence, change: impl FnOnce(&mut Evidence)) -> Evidence {
    let mut out = of.clone();
    change(&mut out);
    out
}

/// The same numbers about other observations.
fn on(of: &Evidence, data: Dataset, samples: Tensor) -> Evidence {
    let mut out = Evidence::new(data, of.nats.clone(), of.kind);
    (out.background, out.members, out.statistics) =
        (of.background.clone(), of.members.clone(), of.statistics.clone());
    out.samples = Some(samples);
    out
}

#[test]
fn names_are_unique_and_found() {
    for (i, info) in SCORERS.iter().enumerate() {
        assert!(SCORERS[..i].iter().all(|s| s.name != info.name));
        assert!(std::ptr::eq(scorers::find(info.name).unwrap(), *info));
        assert!(!info.accepts.is_empty() && !info.summary.is_empty());
    }
    let message = scorers::find("nnl").err().unwrap().to_string();
    assert!(message.contains("did you mean \"nll\""), "{message}");
}

#[test]
fn kinds_do_not_mix() {
    for info in SCORERS.iter().filter(|s| s.accepts.contains(&Kind::LowerBound)) {
        let message = fitted(info)
            .score(&evidence("reference", 2, REFERENCE, Kind::LowerBound))
            .unwrap_err()
            .to_string();
        assert!(message.contains("lower-bound"), "{}: {message}", info.name);
    }
}

#[test]
fn typicality_bound_holds_on_the_reference() {
    let (fit, test) = (reference(1), reference(2));
    for size in [1, 5, 20] {
        let mut scorer = Typicality::batches(size, 0.05).unwrap();
        assert_eq!(scorer.epsilon(), None);
        scorer.fit(&fit).unwrap();
        let epsilon = scorer.epsilon().unwrap();
        // |mean of M normal values of standard deviation 10| has its 0.95 quantile at 1.96 · 10 / √M.
        let expected = 19.6 / (size as f64).sqrt();
        assert!((epsilon / expected - 1.0).abs() < 0.25, "M {size}: {epsilon}, expected {expected}");
        let scores = scorer.score(&test).unwrap();
        assert_eq!(scores.len(), N / size);
        let atypical = scores.iter().filter(|s| **s > epsilon).count() as f64 / scores.len() as f64;
        assert!(atypical < 0.25, "M {size}: {atypical}");
    }
    assert!(Typicality::batches(0, 0.05).is_err() && Typicality::batches(2, 1.0).is_err());
    let mut big = Typicality::batches(N + 1, 0.05).unwrap();
    big.fit(&fit).unwrap();
    assert!(big.score(&test).unwrap_err().to_string().contains(&format!("at least {} rows", N + 1)));
}

#[test]
fn compressors_see_simplicity() {
    let (noise, stripes) = (reference(1), exact("stripes", 1, SIMPLE));
    for compressor in Compressor::ALL {
        let bits = |set: &Evidence| set.code_lengths(compressor).unwrap().iter().sum::<f64>() / N as f64;
        assert!(
            bits(&noise) > 1.2 * bits(&stripes),
            "{compressor:?}: {} and {}",
            bits(&noise),
            bits(&stripes)
        );
    }
}

/// A model of `tests/common` with its file's description.
fn model(seed: u64) -> ModelFile {
    let mut recipe = config::find(common::MODELS, "gauss8").unwrap();
    recipe.train.seed = seed;
    let model = recipe.build().unwrap();
    ModelFile { meta: Meta::new(&recipe, &*model), model }
}

/// Of independent normal pixels: d log p / d mean_i = z_i / s_i, d log p / d log s_i = z_i² − 1.
#[test]
fn gradient_norms_are_those_of_the_formula() {
    let file = model(0);
    let data = common::images(3, 8, 1);
    let found =
        Statistic::GradNorm.of(&*file.model, &Batch::new(data.values.clone()), &mut Philox::new(0)).unwrap();
    let (mean, scale) = (
        file.model.params().get("mean.weight").unwrap().get(),
        file.model.params().get("scale.weight").unwrap().get(),
    );
    let tensors = file.model.params().len();
    assert_eq!(found.shape(), [3, tensors]);
    for row in 0..3 {
        let x = data.rows(row..row + 1).to_f64_vec();
        let (mut of_mean, mut of_scale) = (0.0, 0.0);
        for ((x, m), s) in x.iter().zip(mean.to_f64_vec()).zip(scale.to_f64_vec()) {
            let z = (x / 64.0 - 2.0 - m) * (-s).exp();
            of_mean += (z * (-s).exp()).powi(2);
            of_scale += (z * z - 1.0).powi(2);
        }
        let found = &found.to_f64_vec()[row * tensors..][..tensors];
        assert!((found[0] - of_mean.ln()).abs() < 1e-4, "{found:?} {of_mean}");
        assert!((found[1] - of_scale.ln()).abs() < 1e-4, "{found:?} {of_scale}");
        assert!(found[2..].iter().all(|f| *f < -60.0), "unused parameters: {found:?}");
    }
}

#[test]
fn judges_ask_every_model_once_and_keep_the_answers() {
    let dir = tempfile::tempdir().unwrap();
    let mut judges = Judges::new(model(0), vec![model(1), model(2)], Some(model(3))).unwrap();
    judges.cache = Some(dir.path().into());
    let needs = [Need::Statistic(Statistic::GradNorm), Need::Statistic(Statistic::Regret), Need::Samples];
    let data = common::images(70, 8, 5);
    let first = judges.know(data.clone(), &needs, None, &silent).unwrap();
    assert_eq!((first.nats.len(), first.members.len(), first.kind), (70, 2, Kind::Exact));
    assert!(first.background.is_some() && first.members[0] != first.members[1]);
    assert!(first.has(needs[0]) && !first.has(needs[1]), "regret is not to be had of this model");
    assert_eq!(first.samples.as_ref().unwrap().shape(), [70, 8, 8, 1]);
    let files = || std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(files(), 5, "three members, a background model, gradient norms");
    let again = judges.know(data.clone(), &needs, None, &silent).unwrap();
    assert!(again.nats == first.nats && again.statistics == first.statistics && files() == 5);
    // Damage costs time alone; other data, other seeds have other files.
    let damaged = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&damaged, "{\"kind\": \"exact\", \"parts\": [[1.0]]}").unwrap();
    let mended = judges.know(data.clone(), &needs, None, &silent).unwrap();
    assert!(
        mended.nats == first.nats && mended.members == first.members && mended.background == first.background
    );
    judges.know(data.take(69), &[], Some(7), &silent).unwrap();
    assert_eq!(files(), 9);
    let other = config::find(common::MODELS, "gauss4").unwrap();
    let other =
        ModelFile { model: other.build().unwrap(), meta: Meta::new(&other, &*other.build().unwrap()) };
    assert!(Judges::new(model(0), vec![other], None).err().unwrap().to_string().contains("ensemble member"));
}

/// Rows near a curve train a Real NVP with batch norm; batches from beside it get another likelihood when the layers
/// look at them instead of at what they remember, and so higher scores.
#[test]
fn batch_norm_has_a_model_that_tells_it() {
    let curve = |n: usize, seed: u64, shift: f64| {
        let z = Philox::new(seed).normal([n, 2], DType::F64).to_f64_vec();
        let at = |i: usize| {
            if i.is_multiple_of(2) { z[i] + shift } else { z[i - 1] * z[i - 1] - 1.0 + 0.3 * z[i] }
        };
        Dataset::new("curve", Tensor::from_fn([n, 2], |i| at(i) as f32))
    };
    let mut recipe = config::find(MODELS, "realnvp_table").unwrap();
    let changes =
        ["shape=[2]", "layers=4", "hidden=[16]", "norm=batch_norm", "train.steps=150", "train.batch=64"];
    recipe.set(&changes).unwrap();
    let model = recipe.build().unwrap();
    let fitted =
        fit(&*model, &curve(1000, 0, 0.0), Some(&curve(200, 1, 0.0)), &recipe.train, &mut ()).unwrap();
    assert!(
        fitted.validation_nats.unwrap() < 2.2,
        "{:?}: two normals would have 3.0",
        fitted.validation_nats
    );
    let file = ModelFile { meta: Meta::new(&recipe, &*model), model };
    let judges = Judges::new(file, Vec::new(), None).unwrap();
    let needs = [Need::Statistic(Statistic::BatchNorm)];
    let know = |data| judges.know(data, &needs, None, &silent).unwrap();
    let mut scorer = (scorers::find("batch_norm").unwrap().build)();
    scorer.fit(&know(curve(256, 2, 0.0))).unwrap();
    let known = |seed, shift| know(curve(256, seed, shift));
    let (normal, moved) = (known(3, 0.0), known(4, 2.0));
    // Evaluation less training mode: about 0 on the data, below it where the layers of a flow put a moved batch back.
    let change = |e: &Evidence| {
        let training = &e.statistics[&Statistic::BatchNorm][0];
        e.nats.iter().zip(training).map(|(eval, training)| eval - training).sum::<f64>() / e.nats.len() as f64
    };
    assert!(change(&normal).abs() < 0.3, "on the data both modes agree: {}", change(&normal));
    assert!(change(&moved) < -1.0, "a moved batch is likelier in training mode: {}", change(&moved));
    let scores = (scorer.score(&normal).unwrap(), scorer.score(&moved).unwrap());
    let found = Comparison::new(&scores.0, &scores.1).unwrap().auroc();
    assert!(found > 0.9, "a moved batch has the higher scores: {found}");
    let plain = config::find(MODELS, "realnvp_table").unwrap().build().unwrap();
    assert!(!Statistic::BatchNorm.offered_by(&*plain), "actnorm has no such mode");
}

/// Every scorer on rows that it has not seen: the measured false-alarm rate lies in the binomial interval around what
/// the calibrating rows let expect.
#[test]
fn false_alarms_are_as_promised() {
    let normal = [10, 11, 12, 13].map(reference);
    for calibration in calibrate(&reference(9), &|info| info.name != "discriminator").unwrap() {
        let scorer = calibration.scorer().unwrap();
        let scores: Vec<f64> = normal.iter().flat_map(|e| scorer.score(e).unwrap()).collect();
        let (alpha, n, m) = (0.1, calibration.rows() as f64, scores.len() as f64);
        let rate = calibration.flagged(&scores, alpha).unwrap();
        // Given the calibrating rows the rate scatters by √(α (1 − α) / n), the test by √(α (1 − α) / m).
        let spread = 3.5 * (alpha * (1.0 - alpha) * (1.0 / n + 1.0 / m)).sqrt();
        assert!((rate - alpha).abs() < spread + 1.0 / n, "{}: {rate} of {m}", calibration.name());
    }
}
