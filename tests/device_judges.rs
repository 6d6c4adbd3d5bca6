//! Detectors and `Novelty` on a device: what they find there is what they find on the CPU. The device is the emulated one in a
//! build that has it, else the first GPU; without a GPU the tests pass without doing anything unless REQUIRE_GPU=1.
#![cfg(any(feature = "emulate", feature = "cuda"))]

use surprisal::data::Dataset;
use surprisal::detectors::{self, Index, Pipeline, Table};
use surprisal::random::Philox;
use surprisal::testing::device;
use surprisal::{DType, Novelty};

fn close(a: f64, b: f64, tolerance: f64) -> bool {
    (a - b).abs() <= tolerance * (1.0 + b.abs())
}

/// Normal rows. Made here, not on the device: data sets stay on the host.
fn rows(n: usize, seed: u64) -> Dataset {
    Dataset::new("rows", Philox::new(seed).normal([n, 5], DType::F32))
}

/// The same neighbours to the bit as the CPU's search, with duplicates, far rows, and rows far from the origin whose
/// proposals f32 cannot tell apart.
#[test]
fn a_device_finds_the_same_neighbours() {
    let Some(there) = device() else { return };
    for (n, m, d, offset) in [(1100, 70, 3, 0.0), (90, 33, 12, 0.0), (200, 40, 2, 3e4)] {
        let draws = Philox::new(n as u64).normal([(n + m) * d], DType::F64);
        let value = |i: usize| {
            let row = i / d - usize::from(i / d % 10 == 3);
            let far = if row % 10 == 7 { 1e5 } else { offset * (row % 2) as f64 };
            far + draws.as_slice::<f64>()[row * d + i % d]
        };
        let points = Table::new(d, (0..n * d).map(value).collect()).expect("numbers");
        let queries = Table::new(d, (n * d..(n + m) * d).map(value).collect()).expect("numbers");
        let index = Index::new(points);
        for k in [1, 5, 40, 250] {
            let find = || [index.nearest(&queries, k), index.nearest_others(k)];
            let [found, others] = there.run(find).expect("the device");
            let [expected, expected_others] = find();
            assert_eq!(found.distance, expected.distance, "{n} x {d}, k {k}");
            assert_eq!(others.distance, expected_others.distance, "{n} x {d}, k {k}, others");
            assert!((0..n).all(|i| !others.indices(i).contains(&(i as u32))));
        }
    }
}

/// Detectors whose distances a device makes, a likelihood model, and one that stays on the CPU wherever it is run.
#[test]
fn detectors_judge_on_the_device_as_on_the_cpu() {
    let Some(there) = device() else { return };
    let (reference, new) = (rows(150, 4), rows(40, 5));
    let set = ["hidden=[8]", "train.eps=1e-3", "train.steps=5"].map(String::from);
    let model = detectors::model("realnvp_table", &set).expect("a preset");
    let named = |name| (detectors::find(name).expect("a detector"), serde_json::Value::Null);
    let classical = ["knn", "knn_indegree", "lof", "kde", "pca"].map(named);
    for (info, settings) in classical.into_iter().chain([model]) {
        let judge = || {
            let pipeline = Pipeline::calibrated(info, &settings, &reference, 1)?;
            Ok((pipeline.uses_devices(), pipeline.score(&new)?, pipeline.worst_columns(&new, 3)?))
        };
        let (uses, scores, worst) = there.run(judge).and_then(|found| found).expect(info.name);
        let (_, expected, expected_worst) = judge().expect(info.name);
        assert_eq!(uses, info.name != "pca");
        let tolerance = if ["kde", "model"].contains(&info.name) { 1e-3 } else { 0.0 };
        for (a, b) in scores.iter().chain(&worst).zip(expected.iter().chain(&expected_worst)) {
            assert!(close(*a, *b, tolerance), "{}: {a} and {b}", info.name);
        }
    }
}

#[test]
fn a_model_is_trained_and_judges_on_the_device_as_on_the_cpu() {
    let Some(there) = device() else { return };
    let (known, new) = (rows(90, 1), rows(20, 2));
    let judge = || {
        let settings = ["hidden=[8]", "train.eps=1e-3", "train.steps=5"];
        let novelty = Novelty::train("realnvp_table", &settings, &known)?;
        Ok((novelty.model().device(), novelty.judge(&new)?))
    };
    let (device, found) = there.run(judge).and_then(|found| found).expect("the device");
    let (_, expected) = judge().expect("the CPU");
    assert_eq!(device, there);
    assert!(found.iter().zip(&expected).all(|(a, b)| close(a.nats, b.nats, 1e-3)), "{found:?}, {expected:?}");
}
