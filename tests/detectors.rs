//! Every registered detector through the same checks, and against values of scikit-learn and PyOD.

use serde_json::{Value, json};
use std::sync::Arc;
use surprisal::data::{Column, ColumnKind, Dataset, Schema};
use surprisal::detectors::{self, Columns, DETECTORS, Detector, DetectorInfo, Pipeline, Scaling, Table};
use surprisal::random::Philox;
use surprisal::report::metrics::Comparison;
use surprisal::{DType, ErrorKind, Tensor};

/// Rows that the detector accepts: normal and correlated, or counts; `shift` moves them where no normal row is.
fn rows(info: &DetectorInfo, n: usize, d: usize, seed: u64, shift: f64) -> Table {
    let draws = Philox::new(seed).normal([n, d + 1], DType::F64);
    let value = |i: usize, j: usize| {
        let row = &draws.as_slice::<f64>()[i * (d + 1)..][..d + 1];
        let x = row[j] + 0.5 * row[d] + if (i + j).is_multiple_of(2) { shift } else { -shift };
        match info.scaling {
            // Words of one half of the columns, which half depends on the row; anomalies mix both.
            Scaling::Counts => {
                let half =
                    if shift == 0.0 { (j < d / 2) == i.is_multiple_of(2) } else { j.is_multiple_of(2) };
                if half { (5.0 + 2.0 * row[j]).round().max(0.0) } else { 0.0 }
            }
            _ => x,
        }
    };
    Table::new(d, (0..n * d).map(|k| value(k / d, k % d)).collect()).unwrap()
}

fn fitted(info: &DetectorInfo, reference: &Table) -> Box<dyn Detector> {
    let mut detector = (info.build)(&Value::Null).unwrap();
    detector.fit(reference, &Philox::new(7)).unwrap_or_else(|e| panic!("{}: {e}", info.name));
    detector
}

#[test]
fn find_planted_anomalies_and_keep_what_they_learned() {
    for info in DETECTORS {
        let d = if info.scaling == Scaling::Counts { 40 } else { 8 };
        let reference = rows(info, 400, d, 1, 0.0);
        let (normal, planted) = (rows(info, 200, d, 2, 0.0), rows(info, 100, d, 3, 3.0));
        let detector = fitted(info, &reference);
        let scores = (detector.score(&normal).unwrap(), detector.score(&planted).unwrap());
        let auroc = Comparison::new(&scores.0, &scores.1).unwrap().auroc();
        assert!(auroc > 0.95, "{}: {auroc}", info.name);

        let again = fitted(info, &reference);
        assert_eq!(again.score(&normal).unwrap(), scores.0, "{}: another fit, another score", info.name);
        let text = detector.state().unwrap().to_string();
        let mut restored = (info.build)(&Value::Null).unwrap();
        restored.restore(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(restored.score(&planted).unwrap(), scores.1, "{}: restored", info.name);
        // A row's score does not depend on its company, but for the order of a sum.
        for (i, x) in planted.iter().enumerate().step_by(37) {
            let alone = detector.score(&Table::new(d, x.to_vec()).unwrap()).unwrap()[0];
            let error = (alone - scores.1[i]).abs();
            assert!(error <= 1e-5 * alone.abs().max(1.0), "{}: {alone} alone, {}", info.name, scores.1[i]);
        }
    }
}

/// One row, all rows the same, more columns than rows, constant columns, duplicates, a far outlier: every score is
/// finite.
#[test]
fn awkward_tables_have_finite_scores() {
    for info in DETECTORS {
        let wide = rows(info, 5, 40, 1, 0.0);
        let narrow = rows(info, 70, 1, 2, 0.0);
        let half: Vec<f64> =
            rows(info, 60, 6, 3, 0.0).iter().flat_map(|r| [r[0], 2.0, r[1], r[1], 0.0, r[0]]).collect();
        let mut twice = half.clone();
        twice.extend(&half);
        let tables = [
            Table::new(3, vec![1.0, 2.0, 3.0]).unwrap(),
            Table::new(3, [1.0, 2.0, 3.0].repeat(30)).unwrap(),
            Table::new(2, vec![0.0; 40]).unwrap(),
            wide,
            narrow,
            Table::new(6, half).unwrap(),
            Table::new(6, twice).unwrap(),
        ];
        for reference in &tables {
            let detector = fitted(info, reference);
            let own = detector.score(reference).unwrap_or_else(|e| panic!("{}: {e}", info.name));
            assert_eq!(own.len(), reference.rows());
            let far = Table::new(reference.columns(), vec![1e3; reference.columns()]).unwrap();
            let far = detector.score(&far).unwrap_or_else(|e| panic!("{}: {e}", info.name))[0];
            assert!(far.is_finite(), "{}", info.name);
        }
    }
}

#[test]
fn refuse_what_they_cannot_judge() {
    for info in DETECTORS {
        let mut detector = (info.build)(&Value::Null).unwrap();
        let x = rows(info, 20, 3, 1, 0.0);
        let message = detector.score(&x).unwrap_err().to_string();
        assert!(message.contains(info.name) && message.contains("fitted"), "{message}");
        assert_eq!(detector.state().unwrap_err().kind(), ErrorKind::Usage);
        assert_eq!(
            detector.fit(&Table::new(3, vec![]).unwrap(), &Philox::new(0)).unwrap_err().kind(),
            ErrorKind::Data
        );
        detector.fit(&x, &Philox::new(0)).unwrap();
        let message = detector.score(&rows(info, 2, 4, 1, 0.0)).unwrap_err().to_string();
        assert!(message.contains("3 columns") && message.contains('4'), "{message}");
        for damaged in [json!(null), json!({}), json!({"settings": {}, "learned": {}})] {
            assert_eq!(detector.restore(&damaged).unwrap_err().kind(), ErrorKind::Model, "{}", info.name);
        }
        let message = (info.build)(&json!({"neighbors": 5})).err().unwrap().to_string();
        assert!(message.contains("neighbors"), "{message}");
    }
    assert!(detectors::find("ifroest").err().unwrap().to_string().contains("iforest"));
    for (name, key, value) in [
        ("knn", "neighbours", json!(0)),
        ("iforest", "trees", json!(0)),
        ("hbos", "bins", json!(1)),
        ("kde", "bandwidth", json!(-1.0)),
        ("cblof", "alpha", json!(2.0)),
        ("lda", "topics", json!(0)),
    ] {
        let settings = json!({key: value});
        let mut detector = (detectors::find(name).unwrap().build)(&settings).unwrap();
        let error = detector.fit(&Table::new(1, vec![1.0, 2.0]).unwrap(), &Philox::new(0)).unwrap_err();
        assert!(error.kind() == ErrorKind::Usage && error.to_string().contains(key), "{error}");
    }
}

/// The table of the oracles: any language makes the same one.
fn cell(i: usize, j: usize) -> f64 {
    let u = ((i * 7919 + j * 104_729 + i * j * 31) % 1009) as f64 / 1009.0;
    u * u * (j + 1) as f64 - 0.3 * ((i * (j + 2)) % 7) as f64 + 0.01 * i as f64
}

/// PyOD 3.6.7 with scikit-learn 1.9.1 and NumPy 2.4.6: `decision_function` of 6 rows after `fit` on 60, default settings
/// (`mahalanobis`: scikit-learn's `EmpiricalCovariance`; `mad`: of the first column alone, as PyOD's takes one).
#[test]
fn equal_pyod_on_a_small_table() {
    let scale = |i: usize| 1.0 + 0.3 * i as f64;
    let value = |i: usize, j: usize| cell(1000 + i, j) * scale(i) - 9.0 * scale(i);
    let all = |d: usize| {
        let reference = Table::new(d, (0..60 * d).map(|k| cell(k / d, k % d)).collect()).unwrap();
        (reference, Table::new(d, (0..6 * d).map(|k| value(k / d, k % d)).collect()).unwrap())
    };
    #[rustfmt::skip]
    let oracle: &[(&str, Value, usize, [f64; 6])] = &[
        ("knn", json!({}), 4, [1.6939118055273423, 3.873358088719704, 2.1221132944570082, 2.74900490397858, 3.864139831277523, 6.730987518933876]),
        ("knn", json!({"method": "mean"}), 4, [1.49941044189351, 2.9917707360299866, 1.67632238353051, 2.474664470637497, 3.0602289555836903, 6.465297904751802]),
        ("knn", json!({"method": "median"}), 4, [1.5644549811041262, 3.380665731679527, 2.0925098354996323, 2.3968597178239017, 2.928160614657059, 6.477262183704045]),
        ("lof", json!({}), 4, [1.1874320824754256, 1.8613578202634897, 1.1743157484866023, 1.4290558260995714, 1.7214905293082132, 3.0865761339142748]),
        ("hbos", json!({}), 4, [7.15409280890351, 9.017424212869003, 6.395749209425167, 7.359202065095748, 8.544605385574691, 7.955031868953779]),
        ("ecod", json!({"pooled": true}), 4, [6.268456479520145, 13.069739513991765, 6.92127121807412, 8.877814623430801, 9.95622420478139, 11.383340560421537]),
        ("copod", json!({"pooled": true}), 4, [6.193690612534663, 13.069739513991765, 6.629698075401311, 8.485755144047966, 8.691806741817729, 10.622127292699302]),
        ("pca", json!({}), 4, [61.06845786330764, 119.85935019279579, 71.20853132904708, 90.91393649838786, 99.66664312570258, 190.20187508734548]),
        ("kde", json!({}), 4, [6.904407518567264, 9.34398942128853, 6.984636946262099, 8.921869029678092, 10.022713191192281, 26.162537328923296]),
        ("mcd", json!({}), 4, [5.05349825663528, 19.349835719923448, 14.51990927202613, 45.199081107023055, 29.42203679680413, 49.498992667738285]),
        ("mahalanobis", json!({}), 4, [5.1125608702452725, 17.11942525016546, 7.530668808941011, 23.043116928792553, 16.712982029811062, 52.81675982339494]),
        ("mad", json!({}), 1, [0.19324273518817747, 2.348448816379639, 1.334137694943209, 2.1697179027259836, 0.2522753099344337, 4.427841712891972]),
    ];
    for (name, settings, d, expected) in oracle {
        let (reference, x) = all(*d);
        let mut detector = (detectors::find(name).unwrap().build)(settings).unwrap();
        detector.fit(&reference, &Philox::new(0)).unwrap();
        // The kernel sum runs in f32.
        let tolerance = if *name == "kde" { 1e-5 } else { 1e-9 };
        for (found, expected) in detector.score(&x).unwrap().iter().zip(expected) {
            let error = (found - expected).abs() / expected.abs();
            assert!(error < tolerance, "{name} {settings}: {found}, expected {expected}");
        }
    }
}

fn numbers(name: &str, d: usize, values: &[f64]) -> Dataset {
    Dataset::new(name, Tensor::from_slice(values, [values.len() / d, d]))
}

#[test]
fn columns_are_standardised_filled_and_found_by_name() {
    let data =
        numbers("a", 4, &[1.0, 5.0, f64::NAN, 0.1, 3.0, 5.0, f64::NAN, 0.1, f64::NAN, 5.0, f64::NAN, 0.1]);
    let columns = Columns::fit(&data, Scaling::Standard).unwrap();
    let table = columns.apply(&data).unwrap();
    assert_eq!(table.values(), [-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    let far = columns.apply(&numbers("b", 4, &[1e9, 7.0, 3.0, 9.0])).unwrap();
    assert_eq!(far.values(), [1e3, 0.0, 0.0, 0.0]);
    let message = columns.apply(&numbers("b", 3, &[0.0; 3])).unwrap_err().to_string();
    assert!(message.contains("3 columns") && message.contains('4'), "{message}");
    let message = columns.apply(&numbers("b", 4, &[0.0, f64::INFINITY, 0.0, 0.0])).unwrap_err().to_string();
    assert!(message.contains("row 0, column 1"), "{message}");

    let schema = |names: [&str; 2], levels: &[&str]| {
        let levels = levels.iter().map(|l| l.to_string()).collect();
        let column = |name: &str, kind| Column { name: name.into(), kind, nullable: true };
        let mut columns =
            vec![column("n", ColumnKind::Numeric), column("c", ColumnKind::Categorical { levels })];
        columns.sort_by_key(|c| names.iter().position(|n| *n == c.name));
        Some(Arc::new(Schema { columns }))
    };
    let mut data = numbers("a", 2, &[0.0, 0.0, 2.0, 1.0]);
    data.schema = schema(["n", "c"], &["red", "blue"]);
    let columns = Columns::fit(&data, Scaling::Standard).unwrap();
    // Another order of columns and levels, and a level that the reference does not have.
    let mut other = numbers("b", 2, &[0.0, 2.0, 1.0, 2.0, 2.0, 2.0, f64::NAN, 2.0]);
    other.schema = schema(["c", "n"], &["blue", "green", "red"]);
    let s = std::f64::consts::FRAC_1_SQRT_2;
    assert_eq!(
        columns.apply(&other).unwrap().values(),
        [1.0, 0.0, s, 1.0, 0.0, 0.0, 1.0, s, 0.0, 1.0, 0.0, 0.0]
    );
    other.schema.as_mut().map(|s| Arc::get_mut(s).unwrap().columns[1].name = "m".into()).unwrap();
    assert!(columns.apply(&other).unwrap_err().to_string().contains("\"n\""));
}

#[test]
fn pipelines_are_saved_calibrated_and_explained() {
    let draws = Philox::new(5).normal([3000], DType::F64);
    let reference = numbers("reference", 3, draws.as_slice::<f64>());
    let mut new = Philox::new(6).normal([3000], DType::F64).as_slice::<f64>().to_vec();
    new[1] = 9.0;
    let new = numbers("new", 3, &new);
    let dir = tempfile::tempdir().unwrap();
    for info in DETECTORS.iter().filter(|d| d.scaling == Scaling::Standard) {
        let pipeline = Pipeline::calibrated(info, &Value::Null, &reference, 3).unwrap();
        assert_eq!(pipeline.reference().rows(), 200);
        let scores = pipeline.score(&new).unwrap();
        let path = dir.path().join(info.name);
        pipeline.save(&path).unwrap();
        let loaded = Pipeline::load(&path).unwrap();
        assert_eq!(loaded.score(&new).unwrap(), scores, "{}", info.name);
        assert_eq!(loaded.reference(), pipeline.reference());
        let parts = pipeline.worst_columns(&new, 0).unwrap();
        assert!(parts[1] > parts[0] && parts[1] > parts[2], "{}: {parts:?}", info.name);
        // α = 0.1: 4 standard deviations of the rate, of the 200 calibration rows and the 999 new ones.
        let threshold = pipeline.reference().threshold(0.1).unwrap();
        let flagged = |t: f64| scores[1..].iter().filter(|s| **s > t).count();
        assert_eq!(
            flagged(threshold),
            scores[1..].iter().filter(|s| pipeline.reference().p_value(**s) <= 0.1).count()
        );
        let rate = flagged(threshold) as f64 / 999.0;
        assert!((rate - 0.1).abs() < 4.0 * (0.09f64 / 200.0 + 0.09 / 999.0).sqrt(), "{}: {rate}", info.name);
        assert!(
            pipeline.reference().threshold(0.001).unwrap_err().to_string().contains("200 reference rows")
        );
    }
    let knn = dir.path().join("knn");
    let bytes = std::fs::read(&knn).unwrap();
    std::fs::write(&knn, &bytes[..bytes.len() - 100]).unwrap();
    assert_eq!(Pipeline::load(&knn).err().unwrap().kind(), ErrorKind::Model);
}

/// A table with a categorical column whose level goes with the number, except in the last row.
fn mixed(n: usize, seed: u64) -> Dataset {
    let z = Philox::new(seed).normal([n], DType::F64);
    let mut values: Vec<f64> = z.as_slice::<f64>().iter().flat_map(|z| [*z, f64::from(*z > 0.0)]).collect();
    values[2 * n - 2] = 1.5;
    values[2 * n - 1] = 0.0;
    let levels = vec!["low".to_string(), "high".to_string()];
    let column = |name: &str, kind| Column { name: name.into(), kind, nullable: false };
    let columns = vec![column("n", ColumnKind::Numeric), column("c", ColumnKind::Categorical { levels })];
    let data = Dataset::new("mixed", Tensor::from_slice(&values, [n, 2]));
    Dataset { schema: Some(Arc::new(Schema { columns })), ..data }
}

#[test]
fn a_model_of_columns_is_a_detector() {
    let data = mixed(300, 1);
    let set: Vec<String> =
        ["train.steps=150", "hidden=[24]", "train.trim=0.1", "train.batch=64"].map(String::from).into();
    let (info, settings) = detectors::model("made", &set).unwrap();
    let pipeline = Pipeline::fit(info, &settings, &data, 0).unwrap();
    let scores = pipeline.score(&data).unwrap();
    let higher = scores.iter().filter(|s| **s > scores[299]).count();
    assert!(higher <= 15, "{higher} rows are above the one that contradicts itself");
    assert_eq!(pipeline.columns().width(), 2, "levels are not spread over columns");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made");
    pipeline.save(&path).unwrap();
    assert_eq!(Pipeline::load(&path).unwrap().score(&data).unwrap(), scores);
    let parts = pipeline.worst_columns(&data, 299).unwrap();
    assert!(parts.iter().all(|p| p.is_finite()) && parts[0].max(parts[1]) > 1.0, "{parts:?}");
    let message = detectors::model("made", &["trian.steps=3".into()]).err().unwrap().to_string();
    assert!(message.contains("train"), "{message}");
}

/// A tenth of the rows lie far away. Fitted by trimmed likelihood, the density of the others is what it would be without
/// them; fitted to all, most of a nat of each is lost.
#[test]
fn trimmed_likelihood_does_not_learn_the_anomalies() {
    let (n, d) = (500, 3);
    let z = Philox::new(3).normal([n, d], DType::F64);
    let value = |i: usize| z.as_slice::<f64>()[i] + if i / d < n / 10 { 6.0 } else { 0.0 };
    let data = numbers("far", d, &(0..n * d).map(value).collect::<Vec<_>>());
    let normal = data.select(&(n / 10..n).collect::<Vec<_>>());
    // Scores are in nats of the columns as they are standardised by the rows of the file.
    let nats = |trim: f64, anomalies: bool| {
        let set = ["components=1".into(), format!("train.trim={trim}"), "train.validation=0".into()];
        let (info, settings) = detectors::model("gmm", &set).unwrap();
        let rows = if anomalies { &data } else { &normal };
        let pipeline = Pipeline::fit(info, &settings, rows, 0).unwrap();
        let scores = pipeline.score(&data).unwrap();
        let columns = Columns::fit(rows, Scaling::Standard).unwrap();
        let unit = |j: usize| {
            let [zero, one] = [0.0, 1.0].map(|x| columns.apply(&numbers("x", d, &vec![x; d])).unwrap());
            (one.row(0)[j] - zero.row(0)[j]).recip()
        };
        let units: f64 = (0..d).map(|j| unit(j).ln()).sum();
        scores[n / 10..].iter().sum::<f64>() / normal.len() as f64 + units
    };
    let (clean, all, trimmed) = (nats(0.0, false), nats(0.0, true), nats(0.12, true));
    assert!(
        (trimmed - clean).abs() < 0.1 && all > clean + 0.6,
        "clean {clean}, all {all}, trimmed {trimmed}"
    );
}
