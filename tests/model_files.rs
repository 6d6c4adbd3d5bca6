//! Model files and configurations: what is written is read, and whatever else comes is an error, never a panic.

mod common;

use common::{MODELS, images};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use surprisal::ErrorKind;
use surprisal::models::file::{self, DataStats, Meta};
use surprisal::models::{config, container};

fn recipe(name: &str) -> config::Recipe {
    config::find(MODELS, name).unwrap()
}

/// A good file and the folder it lies in.
fn good() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let recipe = recipe("gauss8");
    let model = recipe.build().unwrap();
    let meta = Meta { data: Some(DataStats::of(&images(9, 8, 1))), ..Meta::new(&recipe, &*model) };
    file::save(&path, &file::tensors(&*model), &meta).unwrap();
    (dir, path)
}

/// Splits a file into its header and the rest.
fn parts(path: &Path) -> (Value, Vec<u8>) {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), bytes[8 + length..].to_vec())
}

fn join(path: &Path, header: &Value, rest: &[u8]) {
    let header = header.to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend(rest);
    std::fs::write(path, bytes).unwrap();
}

/// Changes the description in the header.
fn describe(path: &Path, change: impl FnOnce(&mut Value)) {
    let (mut header, rest) = parts(path);
    let mut meta: Value =
        serde_json::from_str(header["__metadata__"]["surprisal"].as_str().unwrap()).unwrap();
    change(&mut meta);
    header["__metadata__"]["surprisal"] = meta.to_string().into();
    join(path, &header, &rest);
}

/// Loading fails as a bad model file that is named, with `words` in the message.
fn fails(path: &Path, words: &[&str]) {
    let Err(error) = file::load_from(MODELS, path) else { panic!("expected an error with {words:?}") };
    assert_eq!(error.kind(), ErrorKind::Model, "{error}");
    let message = error.to_string();
    for word in words.iter().chain([&path.to_str().unwrap()]) {
        assert!(message.contains(word), "no \"{word}\" in: {message}");
    }
}

#[test]
fn what_is_saved_is_loaded() {
    let (dir, path) = good();
    let found = file::load_from(MODELS, &path).unwrap();
    let again = dir.path().join("again.safetensors");
    file::save(&again, &file::tensors(&*found.model), &found.meta).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&again).unwrap());
    assert_eq!(file::load_meta(&path).unwrap(), found.meta);
    assert_eq!(found.model.config(), recipe("gauss8").config);
    // Others read it too.
    let bytes = std::fs::read(&path).unwrap();
    let other = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(other.tensor("mean.weight").unwrap().shape(), [8, 8, 1]);
}

#[test]
fn damaged_files_are_named() {
    let (_dir, path) = good();
    let (header, rest) = parts(&path);
    let bytes = std::fs::read(&path).unwrap();
    let write = |bytes: &[u8]| std::fs::write(&path, bytes).unwrap();

    write(&bytes[..bytes.len() - 5]);
    fails(&path, &["truncated"]);
    write(&bytes[..60]);
    fails(&path, &["truncated"]);
    write(&bytes[..3]);
    fails(&path, &["3 bytes"]);
    write(&[&bytes[..], &[0; 4]].concat());
    fails(&path, &["oversized"]);
    write(&[&u64::MAX.to_le_bytes()[..], &bytes[8..]].concat());
    fails(&path, &["header"]);
    write(b"\x89PNG\r\n\x1a\n and so on and so on");
    fails(&path, &["not a safetensors file"]);

    let mut changed = header.clone();
    changed["mean.weight"]["shape"] = json!([8, 8, 2]);
    join(&path, &changed, &rest);
    fails(&path, &["mean.weight", "cannot hold"]);
    changed["mean.weight"]["shape"] = json!([usize::MAX, usize::MAX, 16]);
    join(&path, &changed, &rest);
    fails(&path, &["mean.weight"]);
    changed["mean.weight"]["shape"] = json!([64]);
    join(&path, &changed, &rest);
    fails(&path, &["mean.weight", "[64]", "[8, 8, 1]"]);
    changed["mean.weight"]["shape"] = json!([1, 1, 1, 1, 8, 8, 1]);
    join(&path, &changed, &rest);
    fails(&path, &["mean.weight", "7 dimensions"]);

    let mut changed = header.clone();
    changed["mean.weight"]["dtype"] = "I32".into();
    join(&path, &changed, &rest);
    fails(&path, &["mean.weight", "I32", "F32"]);
    changed["mean.weight"]["dtype"] = "F99".into();
    join(&path, &changed, &rest);
    fails(&path, &["mean.weight"]);

    let mut changed = header.clone();
    let moved = changed.as_object_mut().unwrap().shift_remove("mean.weight").unwrap();
    changed["mean.other"] = moved;
    join(&path, &changed, &rest);
    fails(&path, &["mean.weight", "missing"]);

    let mut changed = header.clone();
    let end = rest.len();
    changed["more.weight"] = json!({"dtype": "U8", "shape": [2], "data_offsets": [end, end + 2]});
    join(&path, &changed, &[&rest[..], &[1, 2]].concat());
    fails(&path, &["more.weight", "not one of the model's"]);

    let mut rest = rest.clone();
    rest[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    join(&path, &header, &rest);
    fails(&path, &["not finite"]);
}

#[test]
fn wrong_descriptions_are_named() {
    let (_dir, path) = good();
    let bytes = std::fs::read(&path).unwrap();
    let with = |change: &dyn Fn(&mut Value), words: &[&str]| {
        std::fs::write(&path, &bytes).unwrap();
        describe(&path, change);
        fails(&path, words);
    };
    with(&|m| m["version"] = 7.into(), &["version 7", "expected 1"]);
    with(&|m| m["version"] = Value::Null, &["version"]);
    with(&|m| m["model"] = "gaus".into(), &["gaus", "did you mean \"gauss\"?"]);
    with(&|m| m["config"] = json!({"shape": [8, 8, 1]}), &["missing field"]);
    with(&|m| m["config"]["shape"] = json!([800_000, 80_000, 1]), &["more than", "parameters in the file"]);
    with(&|m| m["config"]["shape"] = json!([u64::MAX, u64::MAX]), &["more than", "parameters in the file"]);
    with(&|m| m["config"]["extra"]["layers"] = 1_000_000_000_u64.into(), &["more than"]);
    with(&|m| m["seed"] = "x".into(), &["description"]);
    let (mut header, rest) = parts(&path);
    header.as_object_mut().unwrap().shift_remove("__metadata__");
    join(&path, &header, &rest);
    fails(&path, &["__metadata__"]);
}

#[test]
fn weights_that_are_not_finite_are_not_written() {
    let (dir, _) = good();
    let recipe = recipe("gauss4");
    let model = recipe.build().unwrap();
    let mut tensors = file::tensors(&*model);
    tensors.get_mut("mean.weight").unwrap().make_mut::<f32>()[2] = f32::INFINITY;
    let path = dir.path().join("new.safetensors");
    let error = file::save(&path, &tensors, &Meta::new(&recipe, &*model)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NonFinite);
    assert!(error.to_string().contains("mean.weight") && !path.exists());
    let error = container::write("/dev/full", &file::tensors(&*model), &json!({})).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn mutated_files_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        digits in any::<bool>(),
    ) {
        let (_dir, path) = good();
        let mut bytes = std::fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for (place, value) in edits {
            // Half of the cases exchange digits of the header only, which leaves it readable.
            if digits {
                let numbers: Vec<usize> = (8..header).filter(|&i| bytes[i].is_ascii_digit()).collect();
                bytes[numbers[place.index(numbers.len())]] = b'0' + value % 10;
            } else {
                let i = place.index(header + 16);
                bytes[i] = value;
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        std::fs::write(&path, &bytes).unwrap();
        if let Err(error) = file::load_from(MODELS, &path) {
            prop_assert!(error.to_string().contains(path.to_str().unwrap()), "{}", error);
        }
    }

    #[test]
    fn any_text_as_an_assignment_never_panics(text in "[a-z.=\\[\\]{}\"0-9 -]{0,24}", key in 0usize..4) {
        let mut recipe = recipe("gauss4");
        let key = ["", "train.lr=", "shape=", "extra.layers="][key];
        if recipe.set(&[format!("{key}{text}")]).is_ok() {
            let _ = recipe.build();
        }
    }
}

fn set(assignment: &str) -> surprisal::Result<config::Recipe> {
    let mut recipe = recipe("gauss4");
    recipe.set(&[assignment]).map(|()| recipe)
}

#[test]
fn presets_are_found_and_settings_are_typed() {
    assert_eq!(recipe("gauss").preset, "gauss4");
    assert_eq!(recipe("gauss4").train.batch, 8);
    let found = set("extra.layers=3").unwrap();
    assert_eq!(found.config["extra"]["layers"], 3);
    assert_eq!(set("name=x=y").unwrap().config["name"], "x=y");
    assert_eq!(set("extra.deep=true").unwrap().config["extra"]["deep"], true);
    assert_eq!(set("shape=[2, 3, 1]").unwrap().config["shape"], json!([2, 3, 1]));
    assert_eq!(set("train.clip=2").unwrap().train.clip, Some(2.0));
    assert_eq!(set("train.clip=none").unwrap().train.clip, None);
    assert_eq!(
        set("train.schedule.curve=cosine").unwrap().train.schedule.curve,
        surprisal::train::Curve::Cosine
    );
    let wrong = |assignment: &str, words: &[&str]| {
        let Err(error) = set(assignment) else { panic!("{assignment} was accepted") };
        assert_eq!(error.kind(), ErrorKind::Usage);
        for word in words {
            assert!(error.to_string().contains(word), "{assignment}: {error}");
        }
    };
    wrong("train.epoch=3", &["did you mean \"train.epochs\"?", "gauss4"]);
    wrong("extra.layer=3", &["did you mean \"extra.layers\"?"]);
    wrong("extra=3", &["extra"]);
    wrong("extra.layers=3.5", &["an integer", "extra.layers=1"]);
    wrong("extra.layers=many", &["an integer"]);
    wrong("extra.deep=2", &["true or false"]);
    wrong("noise", &["key=value"]);
    wrong("train.batch=0", &["train.batch", "at least 1"]);
    wrong("train.lr=-1", &["train.lr"]);
    wrong("train.schedule.curve=cosin", &["cosine"]);
    let Err(error) = config::find(MODELS, "gauss44") else { panic!("found") };
    assert!(error.to_string().contains("did you mean \"gauss4\"?"), "{error}");
}

#[test]
fn files_of_the_user_start_from_a_preset() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.toml");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        config::find(MODELS, path.to_str().unwrap())
    };
    let found = read("preset = \"gauss8\"\nnoise = 1\n[extra]\nlayers = 5\n[train]\nlr = 0.5\n").unwrap();
    assert_eq!((&found.config["noise"], &found.config["extra"]["layers"]), (&json!(1), &json!(5)));
    assert_eq!((found.config["extra"]["deep"].as_bool(), found.train.lr), (Some(true), 0.5));
    for (text, word) in [
        ("noise = 1", "preset = "),
        ("preset = \"gauss9\"", "did you mean \"gauss"),
        ("preset = \"gauss4\"\nnois = 1", "did you mean \"noise\"?"),
        ("preset = \"gauss4\"\nnoise = \"a\"", "expected a number"),
        ("preset = \"gauss4\"\nextra = 1", "expected a table"),
        ("preset = \"gauss4\"\n[train]\nschedule.warm = 1", "did you mean \"warmup\"?"),
        ("preset = ", "mine.toml"),
    ] {
        let Err(error) = read(text) else { panic!("{text} was accepted") };
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
        assert!(error.to_string().contains(word) && error.to_string().contains("mine.toml"), "{error}");
    }
    let Err(error) = config::find(MODELS, "no/such.toml") else { panic!("found") };
    assert_eq!(error.kind(), ErrorKind::Io);
}
