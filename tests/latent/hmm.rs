//! The hidden Markov model.

use serde_json::{Value, json};
use surprisal::data::Dataset;
use surprisal::models::latent::hmm::{Config, Hmm};
use surprisal::models::{Batch, Kind, LogProb, Model, SampleOptions};
use surprisal::random::Philox;
use surprisal::{DType, Tensor};

fn config(changes: &[(&str, Value)]) -> Config {
    let mut config = json!({
        "shape": [5], "levels": 3, "states": 2, "covariance": "full", "floor": 1e-6, "prior": 0.01,
        "smoothing": 0.01, "restarts": 4, "iterations": 200, "tolerance": 1e-6
    });
    changes.iter().for_each(|(key, value)| config[*key] = value.clone());
    serde_json::from_value(config).expect("a configuration")
}

fn hmm(changes: &[(&str, Value)]) -> Hmm {
    Hmm::new(config(changes), &mut Philox::new(1)).expect("a valid configuration")
}

fn log_prob(model: &Hmm, x: &Tensor) -> LogProb {
    model.log_prob(&Batch::new(x.clone()), &mut Philox::new(0))
}

/// Two states that mostly stay: tokens 0 and 1 in the first, 1 and 2 in the second.
fn tokens(n: usize, t: usize) -> (Tensor, Vec<i32>) {
    let u = Philox::new(3).uniform([n * t, 2], DType::F64);
    let u = u.as_slice::<f64>();
    let (mut state, mut path) = (0, Vec::new());
    let tokens = Tensor::from_fn([n, t], |i| {
        if i % t == 0 {
            state = (u[2 * i] < 0.5) as i32;
        } else if u[2 * i] < 0.1 {
            state = 1 - state;
        }
        path.push(state);
        (state + i32::from(u[2 * i + 1] < 0.3)) as u8
    });
    (tokens, path)
}

#[test]
fn the_likelihood_sums_to_one_and_is_that_of_the_paths() {
    let model = hmm(&[]);
    let all = Tensor::from_fn([243, 5], |i| (i / 5 / 3usize.pow(i as u32 % 5) % 3) as u8);
    let found = log_prob(&model, &all);
    let mass: f64 = found.nats.to_f64_vec().iter().map(|l| l.exp()).sum();
    assert!(found.kind == Kind::Exact && (mass - 1.0).abs() < 1e-12, "mass {mass}");
    // A sum over all 2^5 paths of hidden states of one sequence.
    let (first, transitions, emissions) = ["first", "transitions", "emissions"]
        .map(|name| model.params().get(name).expect("a buffer").get().to_f64_vec())
        .into();
    let x = &all.as_slice::<u8>()[5 * 100..][..5];
    let p: f64 = (0..32usize)
        .map(|path| {
            let state = |t: usize| path >> t & 1;
            (0..5).fold(1.0, |p, t| {
                let moved = if t == 0 { first[state(0)] } else { transitions[2 * state(t - 1) + state(t)] };
                p * moved * emissions[3 * state(t) + x[t] as usize]
            })
        })
        .sum();
    assert!((found.nats.to_f64_vec()[100] - p.ln()).abs() < 1e-12);
}

#[test]
fn a_chain_is_recovered() {
    let (x, path) = tokens(200, 50);
    let model = hmm(&[("shape", json!([50]))]);
    let trace =
        model.solve(&Dataset::new("tokens", x.clone()), &mut Philox::new(2)).expect("fits").expect("solved");
    assert!(trace.windows(2).all(|w| w[1] < w[0] + 1e-3), "{trace:?}");
    let transitions = model.params().get("transitions").expect("a buffer").get().to_f64_vec();
    assert!((transitions[0] - 0.9).abs() < 0.03 && (transitions[3] - 0.9).abs() < 0.03, "{transitions:?}");
    let states = model.states(&x);
    let same =
        states.as_slice::<i32>().iter().zip(&path).filter(|(a, b)| a == b).count() as f64 / path.len() as f64;
    assert!(same.max(1.0 - same) > 0.9, "{same} of the states");
    let samples = model.sample(200, &SampleOptions::default(), &mut Philox::new(5)).expect("samples");
    let mean = |l: &LogProb| l.nats.to_f64_vec().iter().sum::<f64>() / 200.0;
    let (own, data) = (mean(&log_prob(&model, &samples)), mean(&log_prob(&model, &x)));
    assert!((own - data).abs() < 1.5, "samples {own}, data {data} nats per sequence");
}

#[test]
fn numbers_are_learned_in_their_units_and_surprise_is_located() {
    let (which, _) = tokens(100, 40);
    let z = Philox::new(6).normal([4000, 2], DType::F64);
    let (which, z) = (which.as_slice::<u8>(), z.as_slice::<f64>());
    let x = Tensor::from_fn([100, 40, 2], |i| {
        let level = which[i / 2] as f64;
        if i % 2 == 0 { (5.0 * level + z[i]) as f32 } else { (1e4 * (z[i] + 0.5 * z[i - 1])) as f32 }
    });
    for covariance in ["full", "tied", "diagonal"] {
        let changes = [
            ("shape", json!([40, 2])),
            ("levels", json!(0)),
            ("states", json!(3)),
            ("covariance", json!(covariance)),
            ("iterations", json!(40)),
        ];
        let model = hmm(&changes);
        let trace = model.solve(&Dataset::new("series", x.clone()), &mut Philox::new(2)).expect("fits");
        assert!(trace.expect("solved").iter().all(|n| n.is_finite()));
        let mut strange = x.narrow(0, 0, 1).to_f64_vec();
        strange[2 * 17] = 40.0;
        let strange = Tensor::from_slice(&strange, [1, 40, 2]).cast(DType::F32);
        let found = log_prob(&model, &strange).per_position.expect("per step").to_f64_vec();
        let least = (0..40).min_by(|a, b| found[*a].total_cmp(&found[*b]));
        assert_eq!(least, Some(17), "{covariance}: {found:?}");
        let samples = model.sample(3, &SampleOptions::default(), &mut Philox::new(5)).expect("samples");
        assert_eq!(samples.shape(), [3, 40, 2]);
    }
}

#[test]
fn long_sequences_and_constant_columns_stay_finite() {
    let x = Tensor::from_fn([2, 5000, 2], |i| if i % 2 == 0 { 3.0f32 } else { (i % 7) as f32 });
    let model = hmm(&[("shape", json!([5000, 2])), ("levels", json!(0)), ("iterations", json!(5))]);
    model.solve(&Dataset::new("series", x.clone()), &mut Philox::new(2)).expect("fits");
    assert!(log_prob(&model, &x).nats.to_f64_vec().iter().all(|n| n.is_finite()));
    let far = x.affine(1.0, 1e6);
    assert!(log_prob(&model, &far).nats.to_f64_vec().iter().all(|n| n.is_finite() && *n < -1e9));
}

#[test]
fn impossible_configurations_are_errors() {
    for (key, value) in [
        ("states", json!(0)),
        ("levels", json!(1)),
        ("shape", json!([2, 2])),
        ("smoothing", json!(0.0)),
        ("shape", json!([])),
    ] {
        assert!(Hmm::new(config(&[(key, value)]), &mut Philox::new(1)).is_err(), "{key}");
    }
}
