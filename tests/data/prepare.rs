//! Transforms: log-determinants against numeric derivatives, round trips, statistics, bad settings.

use approx::assert_relative_eq;
use surprisal::data::{Prepare, Transform, mutate};
use surprisal::random::Philox;
use surprisal::report::bits_per_dim;
use surprisal::tensor::{DType, Tensor};

fn bytes(shape: [usize; 3]) -> Tensor {
    Tensor::from_fn(shape, |i| (i * 73 % 256) as u8)
}

fn image_steps() -> Vec<Transform> {
    vec![
        Transform::Dequantise,
        Transform::Logit { alpha: 0.05 },
        Transform::Scale { shift: 0.5, factor: -0.25 },
    ]
}

/// Each of the four steps and their composition: log |det| equals the sum of the logs of the numeric
/// derivatives, because every output depends on one input alone.
#[test]
fn log_determinants_match_numeric_derivatives() {
    let unit = Tensor::from_fn([3, 5], |i| (i as f64 + 0.7) / 16.0);
    let standardise = Transform::standardise(&unit);
    let scale = Transform::Scale { shift: -0.5, factor: -3.0 };
    let logit = Transform::Logit { alpha: 0.01 };
    for steps in [
        vec![scale.clone()],
        vec![logit.clone()],
        vec![standardise.clone()],
        vec![logit, scale, Transform::Standardise { mean: vec![0.5; 5], std: vec![0.1, 2.0, 3.0, 1.0, 0.5] }],
    ] {
        let prepare = Prepare::new(steps).unwrap();
        prepare.check(&unit).unwrap();
        let y_of = |h: f64| {
            let shifted = Tensor::from_fn([3, 5], |i| unit.as_slice::<f64>()[i] + h);
            prepare.forward(&shifted, DType::F64, &mut Philox::new(0))
        };
        let h = 1e-5;
        let (above, below, (_, logdet)) = (y_of(h).0, y_of(-h).0, y_of(0.0));
        for row in 0..3 {
            let slope = |i| (above.as_slice::<f64>()[i] - below.as_slice::<f64>()[i]) / (2.0 * h);
            let numeric: f64 = (5 * row..5 * row + 5).map(|i| f64::ln(f64::abs(slope(i)))).sum();
            assert_relative_eq!(logdet.as_slice::<f64>()[row], numeric, max_relative = 1e-7);
        }
    }
}

/// A byte is a bin of width 1/256: the volume factor of dequantisation.
#[test]
fn dequantisation_counts_its_bins() {
    let prepare = Prepare::new(vec![Transform::Dequantise]).unwrap();
    let x = bytes([4, 3, 2]);
    let (y, logdet) = prepare.forward(&x, DType::F64, &mut Philox::new(3));
    for (&y, &x) in y.as_slice::<f64>().iter().zip(x.as_slice::<u8>()) {
        assert!(y >= f64::from(x) / 256.0 && y < (f64::from(x) + 1.0) / 256.0);
    }
    assert!(logdet.as_slice::<f64>().iter().all(|&l| (l + 6.0 * 256f64.ln()).abs() < 1e-12));
    // A uniform density on [0, 1) gives every byte 8 bits.
    assert_relative_eq!(bits_per_dim(logdet.as_slice::<f64>()[0], 6), 8.0, max_relative = 1e-14);
}

#[test]
fn bytes_come_back() {
    let x = Tensor::from_fn([64, 32, 32], |i| (i % 256) as u8);
    let dequantise = Prepare::new(vec![Transform::Dequantise]).unwrap();
    for dtype in [DType::F32, DType::F64] {
        let (y, _) = dequantise.forward(&x, dtype, &mut Philox::new(1));
        assert_eq!(dequantise.inverse(&y).as_slice::<u8>(), x.as_slice::<u8>(), "{dtype:?}");
    }
    let all = Prepare::new(image_steps()).unwrap();
    let (y, _) = all.forward(&x, DType::F64, &mut Philox::new(1));
    assert_eq!(all.inverse(&y).as_slice::<u8>(), x.as_slice::<u8>());
    // In f32 a value may fall over the edge of its bin, into the next.
    let (y, _) = all.forward(&x, DType::F32, &mut Philox::new(1));
    let back = all.inverse(&y);
    let off: Vec<u8> = back
        .as_slice::<u8>()
        .iter()
        .zip(x.as_slice::<u8>())
        .map(|(&a, &b)| a.abs_diff(b))
        .filter(|&d| d > 0)
        .collect();
    assert!(
        off.iter().all(|&d| d == 1) && off.len() < x.len() / 1000,
        "{} of {} bytes off",
        off.len(),
        x.len()
    );
    // Samples outside the unit interval are clamped to bytes.
    let wild = Tensor::from_slice(&[-3.0f32, 0.0, 0.5, 1.0, 7.0], [1, 5]);
    assert_eq!(dequantise.inverse(&wild).as_slice::<u8>(), [0, 0, 128, 255, 255]);
}

#[test]
fn tables_come_back() {
    let x = Tensor::from_fn([50, 3], |i| ((i * i) as f64).sin() * 10f64.powi(i as i32 % 3) + 5.0);
    let prepare = Prepare::new(vec![Transform::standardise(&x)]).unwrap();
    let (y, _) = prepare.forward(&x, DType::F64, &mut Philox::new(0));
    for column in 0..3 {
        let of =
            |f: fn(f64) -> f64| (0..50).map(|i| f(y.as_slice::<f64>()[3 * i + column])).sum::<f64>() / 50.0;
        assert!(of(|v| v).abs() < 1e-12 && (of(|v| v * v) - 1.0).abs() < 1e-12);
    }
    for (a, b) in prepare.inverse(&y).as_slice::<f64>().iter().zip(x.as_slice::<f64>()) {
        assert_relative_eq!(a, b, max_relative = 1e-12);
    }
    let Transform::Standardise { std, .. } = Transform::standardise(&Tensor::full(0.1, [7, 2], DType::F64))
    else {
        panic!("standardise makes standardisation")
    };
    assert_eq!(std, [1.0, 1.0], "a constant column keeps its scale");
}

#[test]
fn single_precision_agrees_with_double() {
    let x = bytes([8, 10, 10]);
    let prepare = Prepare::new(image_steps()).unwrap();
    let (_, single) = prepare.forward(&x, DType::F32, &mut Philox::new(2));
    let (_, double) = prepare.forward(&x, DType::F64, &mut Philox::new(2));
    for (&a, &b) in single.as_slice::<f32>().iter().zip(double.as_slice::<f64>()) {
        // The draws differ in resolution, hence within 2^-24 of a bin.
        assert_relative_eq!(f64::from(a), b, max_relative = 1e-5);
    }
}

#[test]
fn settings_are_checked_and_saved() {
    let prepare = Prepare::new(image_steps()).unwrap();
    let json = serde_json::to_string(&prepare).unwrap();
    assert!(json.starts_with(r#"[{"kind":"dequantise"},{"kind":"logit","alpha":0.05}"#), "{json}");
    assert_eq!(serde_json::from_str::<Prepare>(&json).unwrap(), prepare);
    assert!(serde_json::from_str::<Prepare>(r#"[{"kind":"logit","alpha":0.7}]"#).is_err());
    for (steps, word) in [
        (vec![Transform::Logit { alpha: 0.0 }], "alpha 0"),
        (vec![Transform::Scale { shift: 0.0, factor: 0.0 }], "factor"),
        (vec![Transform::Scale { shift: f64::NAN, factor: 1.0 }], "shift"),
        (vec![Transform::Scale { shift: 0.0, factor: 1.0 }, Transform::Dequantise], "first"),
        (vec![Transform::Standardise { mean: vec![0.0], std: vec![0.0] }], "standardise"),
        (vec![Transform::Standardise { mean: vec![0.0], std: vec![1.0, 1.0] }], "standardise"),
    ] {
        let message = Prepare::new(steps).unwrap_err().to_string();
        assert!(message.contains(word), "{message}");
    }
    let table = Tensor::from_slice(&[0.0f64, 0.5, 1.0, 1.5], [2, 2]);
    let refused = |steps: Vec<Transform>| Prepare::new(steps).unwrap().check(&table).unwrap_err().to_string();
    assert!(refused(image_steps()).contains("expected bytes"));
    assert!(refused(vec![Transform::Logit { alpha: 0.05 }]).contains("1.5 in row 1, column 1"));
    let three = Transform::Standardise { mean: vec![0.0; 3], std: vec![1.0; 3] };
    assert!(refused(vec![three]).contains("2 numbers per example; expected 3"));
    let halved = vec![Transform::Scale { shift: 0.0, factor: 0.5 }, Transform::Logit { alpha: 0.05 }];
    Prepare::new(halved).unwrap().check(&table).unwrap();
}

/// With rate r a byte changes with probability 255/256 r; replacements are uniform.
#[test]
fn mutation_has_its_rate() {
    let n = 200_000;
    let x = Tensor::full(77.0, [20, n / 20], DType::U8);
    let y = mutate(&x, 0.3, 256, &mut Philox::new(9));
    let changed: Vec<u8> = y.as_slice::<u8>().iter().copied().filter(|&b| b != 77).collect();
    let expected = 0.3 * 255.0 / 256.0;
    let deviation = (expected * (1.0 - expected) / n as f64).sqrt();
    assert!((changed.len() as f64 / n as f64 - expected).abs() < 5.0 * deviation);
    let mean = changed.iter().map(|&b| f64::from(b)).sum::<f64>() / changed.len() as f64;
    assert!((mean - 127.7).abs() < 1.5, "mean {mean}");
    assert_eq!(mutate(&x, 0.3, 256, &mut Philox::new(9)).as_slice::<u8>(), y.as_slice::<u8>());
    assert_eq!(mutate(&x, 0.0, 256, &mut Philox::new(9)).as_slice::<u8>(), x.as_slice::<u8>());
}

/// Tokens stay in their alphabet; numbers stay in their column.
#[test]
fn mutation_keeps_alphabets_and_columns() {
    let tokens = Tensor::from_fn([30, 50], |i| (i % 4) as u8);
    let y = mutate(&tokens, 0.5, 4, &mut Philox::new(3));
    let (a, b) = (tokens.as_slice::<u8>(), y.as_slice::<u8>());
    assert!(b.iter().all(|&b| b < 4));
    let changed = a.iter().zip(b).filter(|(a, b)| a != b).count() as f64 / 1500.0;
    assert!((changed - 0.375).abs() < 0.06, "{changed}");
    let table = Tensor::from_fn([200, 3], |i| (i % 3 * 1000 + i / 3) as f64);
    let y = mutate(&table, 0.5, 256, &mut Philox::new(3)).to_f64_vec();
    assert!(y.iter().enumerate().all(|(i, v)| (*v as usize) / 1000 == i % 3));
    let changed = y.iter().zip(table.to_f64_vec()).filter(|(a, b)| **a != *b).count() as f64 / 600.0;
    assert!((changed - 0.4975).abs() < 0.11, "{changed}");
}
