//! Every registry through hostile inputs: a score is finite, or there is an error that says what and where; never a NaN.

use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use surprisal::autograd::no_grad;
use surprisal::calibrate::calibrate;
use surprisal::data::{Column, ColumnKind, Dataset, Schema};
use surprisal::detectors::{self, DETECTORS, DetectorInfo, Pipeline};
use surprisal::models::{Kind, MODELS, Statistic, config};
use surprisal::random::Philox;
use surprisal::scorers::{Evidence, SCORERS};
use surprisal::train::{Evaluate, log_probs};
use surprisal::{DType, ErrorKind, Tensor};

fn table(name: &str, d: usize, values: Vec<f32>) -> Dataset {
    Dataset::new(name, Tensor::from_slice(&values, [values.len() / d, d]))
}

/// Standard normal numbers, `n` rows of `d`.
fn normal(n: usize, d: usize, seed: u64) -> Vec<f32> {
    Philox::new(seed).normal([n * d], DType::F32).as_slice::<f32>().to_vec()
}

/// References that something is wrong with; counts are whole numbers of at least 0.
fn references(counts: bool) -> Vec<Dataset> {
    let draw = |n: usize, d: usize, seed: u64| -> Vec<f32> {
        let z = normal(n, d, seed);
        if counts { z.into_iter().map(|z| (2.0 + z).abs().round()).collect() } else { z }
    };
    let each = |n: usize, d: usize, seed: u64, f: &dyn Fn(usize, usize, f32) -> f32| -> Vec<f32> {
        draw(n, d, seed).into_iter().enumerate().map(|(i, x)| f(i / d, i % d, x)).collect()
    };
    let sign = if counts { 1.0 } else { -1.0 };
    vec![
        table("constant columns", 4, each(30, 4, 1, &|_, j, x| if j % 2 == 0 { 3.0 } else { x })),
        table("all constant", 3, vec![0.1; 60]),
        table("duplicated rows", 3, draw(10, 3, 2).repeat(6)),
        table("nearly all the same", 3, each(90, 3, 3, &|i, _, x| if i < 85 { 1.0 } else { x })),
        table("missing column", 3, each(30, 3, 4, &|_, j, x| if j == 1 { f32::NAN } else { x })),
        table("all missing", 2, vec![f32::NAN; 40]),
        table("missing cells", 3, each(40, 3, 5, &|i, j, x| if (i + j) % 4 == 0 { f32::NAN } else { x })),
        table("one row", 3, draw(1, 3, 6)),
        table("two rows", 3, draw(2, 3, 7)),
        table("wide", 30, draw(5, 30, 8)),
        table("one column", 1, draw(25, 1, 9)),
        table("huge", 3, each(40, 3, 10, &|_, _, x| x * 1e30)),
        table(
            "largest",
            2,
            each(30, 2, 11, &|i, _, _| if i % 2 == 0 { f32::MAX / 2.0 } else { sign * f32::MAX / 2.0 }),
        ),
        table("tiny", 3, each(40, 3, 12, &|_, _, x| x * 1e-38)),
        table("subnormal", 2, each(40, 2, 13, &|_, _, x| x * 1e-44)),
        table("scales", 4, each(60, 4, 14, &|_, j, x| x * 10f32.powi(18 * j as i32 - 27))),
        table("one far cell", 3, each(60, 3, 15, &|i, j, x| if (i, j) == (9, 1) { 1e20 } else { x })),
    ]
}

/// Rows to judge by a reference of these columns; the last is infinite in column 0.
fn queries(reference: &Dataset, counts: bool) -> (Vec<Dataset>, Dataset) {
    let d = reference.dims();
    let sign = if counts { 1.0 } else { -1.0 };
    let all = |name: &str, x: f32| table(name, d, vec![x; d]);
    let found = vec![
        reference.clone(),
        all("ones", 1.0),
        all("zeros", 0.0),
        all("far", 1e30),
        all("farthest", sign * f32::MAX / 2.0),
        all("nearly nothing", 1e-44),
        all("missing", f32::NAN),
        table("two signs", d, (0..d).map(|j| if j % 2 == 0 { 1e6 } else { sign * 1e6 }).collect()),
        table(
            "fifty rows",
            d,
            normal(50, d, 20).into_iter().map(|x| if counts { x.abs() } else { x }).collect(),
        ),
    ];
    (found, all("infinite", f32::INFINITY))
}

/// Fits and judges; what was refused, in words.
fn judged(
    info: &'static DetectorInfo,
    settings: &Value,
    name: &str,
    counts: bool,
    refused: &mut Vec<String>,
) {
    // Models are trained: half of the references, every other one and those with the fewest rows.
    let all = DETECTORS.iter().any(|d| d.name == info.name);
    let some = references(counts).into_iter().enumerate();
    let some = some.filter(|(i, reference)| all || i % 2 == 1 || reference.len() < 10);
    for reference in some.map(|(_, reference)| reference) {
        let place = format!("{name} on \"{}\"", reference.name);
        let pipeline = match Pipeline::fit(info, settings, &reference, 3) {
            Ok(pipeline) => pipeline,
            Err(e) => {
                refused.push(format!("{place}: {e}"));
                continue;
            }
        };
        let (finite, infinite) = queries(&reference, counts);
        for rows in finite {
            match pipeline.score(&rows) {
                Ok(scores) => {
                    assert_eq!(scores.len(), rows.len(), "{place}");
                    assert!(scores.iter().all(|s| s.is_finite()), "{place}: {}", rows.name);
                }
                Err(e) => refused.push(format!("{place}: {e}")),
            }
        }
        let message = pipeline.score(&infinite).unwrap_err().to_string();
        assert!(message.contains("infinite") && message.contains("row 0"), "{place}: {message}");
    }
}

#[test]
fn detectors_judge_every_finite_row() {
    let mut refused = Vec::new();
    for info in DETECTORS {
        let counts = info.name == "lda";
        judged(info, &Value::Null, info.name, counts, &mut refused);
    }
    assert!(refused.is_empty(), "{} refusals:\n{}", refused.len(), refused.join("\n"));
}

/// The likelihood models of rows, small and hardly trained.
#[test]
fn models_of_tables_judge_every_finite_row() {
    let presets = [
        ("made", &["hidden=[8]", "components=2"][..]),
        ("realnvp_table", &["layers=2", "hidden=[8]"]),
        ("maf_table", &["layers=2", "hidden=[8]"]),
        ("nsf_table", &["layers=2", "hidden=[8]"]),
        ("nsf_ar", &["layers=2", "hidden=[8]"]),
        ("residual_table", &["layers=2", "hidden=[8]"]),
        ("ffjord_table", &["hidden=[8]", "stepping.count=4"]),
        ("ffjord_adaptive", &["hidden=[8]", "stepping.budget=200"]),
        ("gmm", &["components=2"]),
        ("nce_table", &["hidden=[8]", "proposals=100"]),
        ("score_matching_table", &["hidden=[8]", "annealing.chains=8", "annealing.temperatures=5"]),
        ("vae_table", &["hidden=[8]", "latent=2", "importance=2"]),
        (
            "ebm_table",
            &["hidden=[8]", "chain.steps=2", "replay=16", "annealing.chains=8", "annealing.temperatures=5"],
        ),
    ];
    let mut refused = Vec::new();
    for (name, set) in presets {
        let mut set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
        if name != "gmm" {
            set.extend(["train.steps=4".into(), "train.batch=16".into()]);
        }
        let (info, settings) = detectors::model(name, &set).unwrap();
        judged(info, &settings, name, false, &mut refused);
    }
    assert!(refused.is_empty(), "{} refusals:\n{}", refused.len(), refused.join("\n"));
}

/// Numbers about `n` observations: what a scorer may be given as log p.
fn numbers(n: usize) -> Vec<(&'static str, Vec<f64>)> {
    let z = Philox::new(30).normal([n], DType::F64);
    let each = |f: &dyn Fn(usize, f64) -> f64| -> Vec<f64> {
        z.as_slice::<f64>().iter().enumerate().map(|(i, z)| f(i, *z)).collect()
    };
    vec![
        ("usual", each(&|_, z| 10.0 * z - 500.0)),
        ("constant", each(&|_, _| -500.0)),
        ("zero", each(&|_, _| 0.0)),
        ("nearly constant", each(&|i, _| if i == 0 { -500.0 } else { -500.000_000_1 })),
        ("huge", each(&|_, z| 1e30 * z)),
        ("largest", each(&|i, _| if i % 2 == 0 { f64::MAX / 2.0 } else { -f64::MAX / 2.0 })),
        ("tiny", each(&|_, z| 1e-300 * z)),
        ("one far", each(&|i, z| if i == 0 { -1e12 } else { z - 500.0 })),
    ]
}

/// Observations that something is wrong with.
fn observations(n: usize) -> Vec<Dataset> {
    let noise = Philox::new(31).randint(0, 256, [n * 36]);
    let pixels = |f: &dyn Fn(usize) -> u8| Tensor::from_fn([n, 6, 6, 1], f);
    let cells = |f: &dyn Fn(usize, usize, f32) -> f32| {
        let z = normal(n, 3, 32);
        table("", 3, z.into_iter().enumerate().map(|(i, z)| f(i / 3, i % 3, z)).collect()).values
    };
    let sets = [
        ("noise", pixels(&|i| noise.as_slice::<i32>()[i] as u8)),
        ("black", pixels(&|_| 0)),
        ("white", pixels(&|_| 255)),
        ("repeated", pixels(&|i| (i % 36) as u8)),
        ("usual rows", cells(&|_, _, z| z)),
        ("constant column", cells(&|_, j, z| if j == 0 { 7.0 } else { z })),
        ("the same row", cells(&|_, j, _| j as f32)),
        ("missing column", cells(&|_, j, z| if j == 0 { f32::NAN } else { z })),
        ("huge rows", cells(&|_, _, z| 1e30 * z)),
        ("largest rows", cells(&|i, _, _| if i % 2 == 0 { f32::MAX / 2.0 } else { -f32::MAX / 2.0 })),
        ("tiny rows", cells(&|_, _, z| 1e-38 * z)),
        ("one infinite cell", cells(&|i, j, z| if (i, j) == (0, 1) { f32::INFINITY } else { z })),
        ("tokens", Tensor::from_fn([n, 5], |i| (i * 31 % 997) as i32)),
    ];
    sets.into_iter().map(|(name, values)| Dataset::new(name, values)).collect()
}

/// Evidence of every sort about the same observations: `nats`, and the same numbers for whatever else a scorer can
/// ask for.
fn evidence(about: &Evidence, nats: &[f64]) -> Evidence {
    let mut e = about.judged_by(nats.to_vec(), Kind::Exact);
    let turned: Vec<f64> = nats.iter().rev().copied().collect();
    e.background = Some(turned.clone());
    e.members = vec![turned.clone(), nats.to_vec()];
    e.statistics =
        Statistic::ALL.iter().map(|s| (*s, vec![nats.to_vec(), turned.clone()])).collect::<BTreeMap<_, _>>();
    e.samples = Some(about.data().values.clone());
    e
}

#[test]
fn scorers_judge_every_finite_number() {
    let (mut refused, mut judged) = (Vec::new(), 0);
    for n in [1, 2, 24] {
        for (i, data) in observations(n).into_iter().enumerate() {
            let about = Evidence::new(data, Vec::new(), Kind::Exact);
            let data = about.data();
            for (k, (what, nats)) in numbers(n).into_iter().enumerate() {
                // All numbers with two sets of observations, all observations with two sets of numbers.
                if k > 1 && i != 0 && i != 4 {
                    continue;
                }
                let reference = evidence(&about, &nats);
                // Numbers near the largest of all cannot be subtracted: they may be refused, with their place.
                let far = what == "largest";
                let others = [
                    (far, evidence(&about, &numbers(n)[0].1)),
                    (true, evidence(&about, &numbers(n)[5].1)),
                    (far, reference.clone()),
                ];
                // Hundreds of steps of training: once per set of observations is enough.
                let slow = |name: &str| name == "discriminator" && (k > 0 || n == 2);
                for info in SCORERS.iter().filter(|info| info.applies(&reference).is_ok() && !slow(info.name))
                {
                    let place = format!("{} on {n} x \"{}\", {what} numbers", info.name, data.name);
                    let mut scorer = (info.build)();
                    if let Err(e) = scorer.fit(&reference) {
                        refused.push(format!("{place}: {e}"));
                        continue;
                    }
                    for (far, other) in &others {
                        match scorer.score(other) {
                            Ok(scores) => {
                                assert!(scores.iter().all(|s| s.is_finite()), "{place}: {scores:?}");
                                judged += 1;
                            }
                            Err(e) if n < scorer.rows_per_score() => {
                                assert!(e.to_string().contains("rows"), "{place}: {e}");
                            }
                            Err(e) if *far => assert!(e.to_string().contains("row "), "{place}: {e}"),
                            Err(e) => refused.push(format!("{place}: {e}")),
                        }
                    }
                }
            }
        }
    }
    assert!(refused.is_empty(), "{} refusals:\n{}", refused.len(), refused.join("\n"));
    assert!(judged > 1000, "{judged}");
}

#[test]
fn small_calibrations_say_what_they_can_promise() {
    let all = observations(24).swap_remove(0);
    let nats = &numbers(24)[0].1;
    for n in [1, 2, 3] {
        let few = evidence(&Evidence::new(all.take(n), Vec::new(), Kind::Exact), &nats[..n]);
        let found = calibrate(&few, &|info| info.name != "discriminator");
        if n == 1 {
            let message = found.map(|c| c.len()).map_err(|e| e.to_string());
            assert!(
                message.as_ref().is_ok_and(|n| *n == 0)
                    || message.as_ref().is_err_and(|m| m.contains("rows")),
                "{message:?}"
            );
            continue;
        }
        for calibration in found.unwrap() {
            let error = calibration.threshold(0.01).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(
                error.to_string().contains("reference rows") && error.to_string().contains("99 rows"),
                "{error}"
            );
            assert!(calibration.p_value(1e300) > 0.0);
        }
    }
    let one = table("one row", 3, normal(1, 3, 1));
    for info in DETECTORS {
        let error = Pipeline::calibrated(info, &Value::Null, &one, 1).err().unwrap();
        assert!(error.to_string().contains("one row") && error.to_string().contains("at least 2"), "{error}");
    }
}

/// Columns in another order, levels that the reference does not have, columns that are not there.
#[test]
fn changed_columns_are_found_or_named() {
    let schema = |order: [usize; 3], levels: &[&str]| {
        let levels: Vec<String> = levels.iter().map(|l| l.to_string()).collect();
        let column = |name: &str, kind| Column { name: name.into(), kind, nullable: true };
        let all = [
            column("a", ColumnKind::Numeric),
            column("b", ColumnKind::Categorical { levels }),
            column("c", ColumnKind::Boolean),
        ];
        Some(Arc::new(Schema { columns: order.map(|i| all[i].clone()).into() }))
    };
    let rows = |name: &str, order: [usize; 3], levels: &[&str]| {
        let z = normal(40, 1, 40);
        let value = |i: usize, column: usize| match column {
            0 => z[i],
            1 => (i % levels.len()) as f32,
            _ => (i % 2) as f32,
        };
        let values = (0..120).map(|k| value(k / 3, order[k % 3])).collect();
        Dataset { schema: schema(order, levels), ..table(name, 3, values) }
    };
    let reference = rows("reference", [0, 1, 2], &["red", "blue"]);
    let turned = rows("turned", [2, 0, 1], &["red", "blue"]);
    let new = rows("new level", [1, 2, 0], &["red", "green", "blue", "grey"]);
    let made = ["hidden=[8]", "components=2", "train.steps=4"].map(String::from);
    let made = detectors::model("made", &made).unwrap();
    for (info, settings) in DETECTORS.iter().map(|info| (*info, Value::Null)).chain([made]) {
        // Counts are numbers of at least 0.
        let change = |data: &Dataset| match info.name {
            "lda" => Dataset { values: data.values.abs(), ..data.clone() },
            _ => data.clone(),
        };
        let pipeline = Pipeline::fit(info, &settings, &change(&reference), 1).unwrap();
        let score =
            |data: &Dataset| pipeline.score(&change(data)).unwrap_or_else(|e| panic!("{}: {e}", info.name));
        assert_eq!(score(&reference), score(&turned), "{}: the order of the columns", info.name);
        assert!(score(&new).iter().all(|s| s.is_finite()), "{}", info.name);
        let short = Dataset { schema: None, ..table("short", 2, vec![0.0; 4]) };
        let message = pipeline.score(&short).unwrap_err().to_string();
        assert!(message.contains("short") && message.contains("2 columns"), "{}: {message}", info.name);
        let mut other = turned.clone();
        other.schema.as_mut().map(|s| Arc::make_mut(s).columns[1].name = "z".into()).unwrap();
        assert!(pipeline.score(&change(&other)).unwrap_err().to_string().contains("\"a\""), "{}", info.name);
    }
}

/// The first preset of every model, tiny and with the weights it starts from, on the extremes of what it takes.
#[test]
fn models_have_a_likelihood_for_every_input() {
    let mut refused = Vec::new();
    for info in MODELS {
        let model = config::tiny(info).unwrap().build().unwrap();
        let input = model.input();
        let shape = [&[4], &input.shape[..]].concat();
        let last = (input.levels.max(1) - 1) as f64;
        let extremes: Vec<f64> = match input.dtypes[0] {
            DType::U8 | DType::I32 => vec![0.0, last],
            _ => vec![0.0, 1e-44, 1e6, -1e6, 1e30, -1e30, (f32::MAX / 2.0) as f64, -(f32::MAX as f64)],
        };
        let labels = input.classes.map(|classes| (0..4).map(|i| (i % classes) as i32).collect());
        let rows = |x: f64| {
            let values = Tensor::full(x, shape.clone(), DType::F64).cast(input.dtypes[0]);
            Dataset::new("extreme", values).with_labels(labels.clone())
        };
        let start = rows(0.0);
        let mut rng = Philox::new(1);
        no_grad(|| model.solve(&start, &mut rng)).unwrap();
        for x in extremes {
            match log_probs(&*model, &rows(x), &Evaluate::default()) {
                Ok(found) => assert!(found.nats.iter().all(|l| l.is_finite())),
                Err(e) => refused.push(format!("{}, {x:e}: {e}", info.name)),
            }
        }
        if input.dtypes[0].is_float() {
            let error = log_probs(&*model, &rows(f64::INFINITY), &Evaluate::default()).unwrap_err();
            assert!(error.to_string().contains("row 0"), "{}: {error}", info.name);
        }
    }
    assert!(refused.is_empty(), "{} refusals:\n{}", refused.len(), refused.join("\n"));
}
