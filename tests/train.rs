//! Training: what is learned, that it repeats bit for bit, that it can be interrupted, that failures are named.

mod common;

use common::{MODELS, images};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use surprisal::data::Dataset;
use surprisal::models::{Model, config, file};
use surprisal::random::Philox;
use surprisal::train::{Checkpoints, Evaluate, Event, FitOptions, Observer, checkpoint, fit, log_probs};
use surprisal::{DType, ErrorKind};

/// Stops after a step, or while validating for the `n`th time.
struct Stop {
    step: u64,
    validation: usize,
    seen: usize,
}

impl Stop {
    fn at(step: u64) -> Self {
        Self { step, validation: usize::MAX, seen: 0 }
    }
}

impl Observer for Stop {
    fn on(&mut self, event: &Event) -> ControlFlow<()> {
        let stop = match event {
            Event::Step(info) => info.step == self.step,
            Event::Validating(..) => {
                self.seen += 1;
                self.seen == self.validation
            }
            _ => false,
        };
        if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

fn recipe(set: &[&str]) -> config::Recipe {
    let mut recipe = config::find(MODELS, "gauss4").unwrap();
    recipe.set(set).unwrap();
    recipe
}

fn bits(model: &dyn Model) -> BTreeMap<String, Vec<u8>> {
    file::tensors(model).into_iter().map(|(name, t)| (name, t.as_bytes().to_vec())).collect()
}

fn options(recipe: &config::Recipe, model: &dyn Model, dir: &Path, resume: bool) -> FitOptions {
    let checkpoints = Checkpoints { dir: dir.into(), meta: file::Meta::new(recipe, model), resume };
    FitOptions { checkpoints: Some(checkpoints), ..recipe.train.clone() }
}

const EVERYTHING: &[&str] = &[
    "train.steps=23",
    "train.lr=0.02",
    "train.schedule.curve=cosine",
    "train.schedule.warmup=3",
    "train.ema=0.9",
    "train.clip=5.0",
    "train.weight_decay=0.01",
    "train.l2=0.1",
    "train.mutation=0.2",
    "train.patience=9",
];

#[test]
fn learns_the_pixels() {
    let recipe = recipe(&["train.steps=400", "train.lr=0.03", "noise=0.0"]);
    let model = recipe.build().unwrap();
    let (data, held_out) = (images(200, 4, 1), images(50, 4, 2));
    let before = log_probs(&*model, &held_out, &Evaluate::default()).unwrap().mean();
    let found = fit(&*model, &data, Some(&held_out), &recipe.train, &mut ()).unwrap();
    let after = log_probs(&*model, &held_out, &Evaluate::default()).unwrap().mean();
    assert!(after > before + 5.0, "{before} -> {after}");
    assert_eq!(found.validation_nats, Some(-after));
    // Uniform noise of 100 levels has a standard deviation of 28.9 levels; per pixel this is the entropy of a normal.
    let expected = -16.0 * (0.5 + 0.918_938_5 + (28.87f64).ln());
    approx::assert_abs_diff_eq!(after, expected, epsilon = 1.0);
}

#[test]
fn resumes_bit_for_bit_at_any_place() {
    let (data, held_out) = (images(60, 4, 1), images(20, 4, 2));
    let recipe = recipe(EVERYTHING);
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let straight = recipe.build().unwrap();
    let wanted =
        fit(&*straight, &data, Some(&held_out), &options(&recipe, &*straight, whole.path(), false), &mut ())
            .unwrap();
    // In the middle of an epoch, at the end of one (7 steps per epoch), within its validation, and at the very end.
    let stops = [Stop::at(5), Stop::at(14), Stop { step: 0, validation: 1, seen: 0 }, Stop::at(23)];
    for mut stop in stops {
        let first = recipe.build().unwrap();
        let error =
            fit(&*first, &data, Some(&held_out), &options(&recipe, &*first, parts.path(), false), &mut stop)
                .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted);
        let hint = format!("--resume {}", parts.path().display());
        assert!(error.to_string().contains(&hint), "{error}");
        let second = recipe.build().unwrap();
        let got =
            fit(&*second, &data, Some(&held_out), &options(&recipe, &*second, parts.path(), true), &mut ())
                .unwrap();
        assert_eq!(bits(&*straight), bits(&*second));
        assert_eq!(wanted.epochs, got.epochs);
        for name in [checkpoint::MODEL, checkpoint::OPTIMISER] {
            let read = |dir: &Path| std::fs::read(dir.join(name)).unwrap();
            assert!(read(whole.path()) == read(parts.path()), "{name} differs after {:?}", error.to_string());
        }
    }
    let kept = file::load_from(MODELS, whole.path().join(checkpoint::MODEL)).unwrap();
    assert_eq!(bits(&*kept.model), bits(&*straight));
}

/// Noise of the rows' own widths is found again from the rows, and drawn by step.
#[test]
fn noise_on_rows_resumes_bit_for_bit() {
    let data = Dataset::new("rows", Philox::new(3).normal([70, 2], DType::F32));
    let mut recipe = config::find(surprisal::models::MODELS, "maf_table").unwrap();
    let set = ["shape=[2]", "layers=2", "hidden=[8]", "noise=0", "train.steps=9", "train.batch=16"];
    recipe.set(&set).unwrap();
    let trained = |recipe: &config::Recipe, stop: Option<u64>| {
        let dir = tempfile::tempdir().unwrap();
        let run = |resume: bool, observer: &mut dyn Observer| {
            let model = recipe.build().unwrap();
            let found = fit(&*model, &data, None, &options(recipe, &*model, dir.path(), resume), observer);
            found.map(|_| bits(&*model))
        };
        if let Some(step) = stop {
            assert_eq!(run(false, &mut Stop::at(step)).unwrap_err().kind(), ErrorKind::Interrupted);
        }
        run(stop.is_some(), &mut ()).unwrap()
    };
    let none = trained(&recipe, None);
    recipe.set(&["train.noise=rows"]).unwrap();
    let straight = trained(&recipe, None);
    assert_eq!(straight, trained(&recipe, Some(6)));
    assert_ne!(straight, none);
}

#[test]
fn same_bits_with_one_and_two_threads() {
    let (data, held_out) = (images(60, 4, 1), images(20, 4, 2));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let recipe = recipe(EVERYTHING);
            let model = recipe.build().unwrap();
            let found = fit(&*model, &data, Some(&held_out), &recipe.train, &mut ()).unwrap();
            (bits(&*model), found.epochs)
        })
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn evaluation_does_not_depend_on_the_batch() {
    let model = recipe(&["noise=0.0"]).build().unwrap();
    let data = images(37, 4, 1);
    let with = |batch| log_probs(&*model, &data, &Evaluate { batch, ..Default::default() }).unwrap();
    assert_eq!(with(1), with(64));
    assert_eq!(with(5), with(36));
}

#[test]
fn patience_stops_and_keeps_the_best() {
    // Five examples are learned by heart; the held-out ones get worse.
    let recipe =
        recipe(&["train.epochs=300", "train.batch=5", "train.lr=0.1", "train.patience=4", "noise=0.0"]);
    let model = recipe.build().unwrap();
    let (data, held_out) = (images(5, 4, 1), images(50, 4, 2));
    let found = fit(&*model, &data, Some(&held_out), &recipe.train, &mut ()).unwrap();
    assert!(found.stopped_early);
    let best = found.best_epoch.unwrap();
    assert_eq!(found.epochs.len() as u64, best + 4);
    let after = log_probs(&*model, &held_out, &Evaluate::default()).unwrap().mean();
    assert_eq!(found.validation_nats, Some(-after));
    assert_eq!(found.epochs[best as usize - 1].validation_nats, Some(-after));
}

#[test]
fn non_finite_names_the_parameter_and_the_checkpoint() {
    struct Poison<'a>(&'a dyn Model);
    impl Observer for Poison<'_> {
        fn on(&mut self, event: &Event) -> ControlFlow<()> {
            if let Event::Step(info) = event
                && info.step == 9
            {
                self.0.params().get("scale.weight").unwrap().update(|t| t.make_mut::<f32>()[3] = f32::NAN);
            }
            ControlFlow::Continue(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(&["train.steps=20", "train.checkpoint_every=4"]);
    let model = recipe.build().unwrap();
    let options = options(&recipe, &*model, dir.path(), false);
    let error = fit(&*model, &images(60, 4, 1), None, &options, &mut Poison(&*model)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NonFinite);
    let message = error.to_string();
    let last = dir.path().join(checkpoint::MODEL).display().to_string();
    for part in ["step 10", "scale.weight", &last] {
        assert!(message.contains(part), "{message}");
    }
    assert!(file::load_from(MODELS, dir.path().join(checkpoint::MODEL)).is_ok());
}

#[test]
fn refuses_to_continue_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(&["train.steps=9"]);
    let model = recipe.build().unwrap();
    let data = images(60, 4, 1);
    let error = fit(&*model, &data, None, &options(&recipe, &*model, dir.path(), true), &mut ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    fit(&*model, &data, None, &options(&recipe, &*model, dir.path(), false), &mut ()).unwrap();
    let refused = |recipe: &config::Recipe, data: &Dataset, word: &str| {
        let model = recipe.build().unwrap();
        let error =
            fit(&*model, data, None, &options(recipe, &*model, dir.path(), true), &mut ()).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    };
    refused(&recipe, &images(60, 4, 2), "other data");
    let mut other = recipe.clone();
    other.set(&["train.batch=9"]).unwrap();
    refused(&other, &data, "train.batch was 8 and cannot become 9");
    let mut other = recipe.clone();
    other.set(&["name=z"]).unwrap();
    refused(&other, &data, "another configuration");
    // More steps are fine.
    let mut more = recipe.clone();
    more.set(&["train.steps=12"]).unwrap();
    let model = more.build().unwrap();
    let found = fit(&*model, &data, None, &options(&more, &*model, dir.path(), true), &mut ()).unwrap();
    assert_eq!(found.steps, 12);
    let origin = checkpoint::origin(dir.path()).unwrap();
    assert_eq!((origin.model.as_str(), origin.options.steps), ("gauss", Some(12)));
}

#[test]
fn data_that_does_not_fit_is_an_error() {
    let recipe = recipe(&[]);
    let model = recipe.build().unwrap();
    let error = fit(&*model, &images(9, 8, 1), None, &recipe.train, &mut ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(error.to_string().contains("[8, 8, 1]") && error.to_string().contains("[4, 4, 1]"), "{error}");
}
