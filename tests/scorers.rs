//! Every registered scorer through the same checks: planted anomalies, sign, determinism, refusals, save and restore.

use surprisal::calibrate::Calibration;
use surprisal::data::Dataset;
use surprisal::models::Kind;
use surprisal::random::Philox;
use surprisal::report::metrics::Comparison;
use surprisal::scorers::{self, Compressor, Evidence, SCORERS, Scorer, ScorerInfo, Typicality};
use surprisal::{DType, ErrorKind, Tensor};

const N: usize = 300;
const KINDS: [Kind; 4] = [Kind::Exact, Kind::LowerBound, Kind::Estimate, Kind::Unnormalised];

/// Images with log-likelihoods under two models.
struct Set {
    data: Dataset,
    nats: Vec<f64>,
    background: Vec<f64>,
}

impl Set {
    /// 10 × 10 grey images whose columns past `detail` are black, the rest noise; log p and log p₀ are normal around
    /// the given means with a standard deviation of 10 and 3 nats.
    fn new(name: &str, seed: u64, detail: usize, mean: f64, background: f64) -> Self {
        let mut rng = Philox::new(seed);
        let noise = rng.normal([N * 100], DType::F64);
        let noise = noise.as_slice::<f64>();
        let values = Tensor::from_fn([N, 10, 10, 1], |i| {
            if i % 10 < detail { (128.0 + 40.0 * noise[i]) as u8 } else { 0u8 }
        });
        let mut around = |mean: f64, spread: f64| -> Vec<f64> {
            rng.normal([N], DType::F64).as_slice::<f64>().iter().map(|x| mean + spread * x).collect()
        };
        let (nats, background) = (around(mean, 10.0), around(background, 3.0));
        Self { data: Dataset::new(name, values), nats, background }
    }

    fn evidence(&self, kind: Kind) -> Evidence<'_> {
        Evidence { data: &self.data, nats: &self.nats, kind, background: Some(&self.background) }
    }
}

fn reference(seed: u64) -> Set {
    Set::new("reference", seed, 10, -500.0, -600.0)
}

fn fitted(info: &ScorerInfo) -> Box<dyn Scorer> {
    let mut scorer = (info.build)();
    scorer.fit(&reference(1).evidence(Kind::Exact)).unwrap();
    scorer
}

fn auroc(info: &ScorerInfo, other: &Set) -> f64 {
    let scorer = fitted(info);
    let score = |set: &Set| scorer.score(&set.evidence(Kind::Exact)).unwrap();
    let scores = (score(&reference(2)), score(other));
    assert!(scores.0.iter().chain(&scores.1).all(|s| s.is_finite()), "{}", info.name);
    assert_eq!(scores.1.len(), N / scorer.rows_per_score(), "{}", info.name);
    Comparison::new(&scores.0, &scores.1).unwrap().auroc()
}

#[test]
fn find_what_the_model_does_not_expect() {
    let anomalies = Set::new("planted", 3, 10, -560.0, -600.0);
    let more_of_the_same = reference(4);
    for info in SCORERS {
        let found = auroc(info, &anomalies);
        assert!(found > 0.95, "{}: {found}", info.name);
        let chance = auroc(info, &more_of_the_same);
        assert!((0.25..0.75).contains(&chance), "{}: {chance} on the reference itself", info.name);
    }
}

/// The trap of the literature: simple images, more likely than the reference under both models.
#[test]
fn repair_what_raw_likelihood_gets_wrong() {
    let simple = Set::new("simple", 5, 2, -300.0, -290.0);
    for info in SCORERS {
        let found = auroc(info, &simple);
        match info.family {
            "likelihood" => assert!(found < 0.05, "{}: {found}", info.name),
            _ => assert!(found > 0.95, "{}: {found}", info.name),
        }
    }
}

#[test]
fn give_the_same_scores_again() {
    let set = Set::new("other", 6, 10, -520.0, -580.0);
    let scores_of = |scorer: &dyn Scorer| scorer.score(&set.evidence(Kind::Exact)).unwrap();
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

        assert_eq!(scorer.score(&set.evidence(Kind::Exact)).unwrap_err().kind(), ErrorKind::Usage, "{name}");
        assert!(scorer.state().is_err(), "{name}");
        for kind in KINDS {
            if info.accepts.contains(&kind) {
                scorer.fit(&set.evidence(kind)).unwrap();
            } else {
                assert!(refusal(&mut *scorer, &set.evidence(kind)).contains("log-likelihoods"), "{name}");
            }
        }
        if info.needs_background {
            let evidence = Evidence { background: None, ..set.evidence(Kind::Exact) };
            assert!(refusal(&mut *scorer, &evidence).contains("background"), "{name}");
        }
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut nats = set.nats.clone();
            nats[17] = bad;
            let message = refusal(&mut *scorer, &Evidence { nats: &nats, ..set.evidence(Kind::Exact) });
            assert!(message.contains("row 17"), "{name}: {message}");
        }
        let none = Evidence { nats: &[], ..set.evidence(Kind::Exact) };
        assert!(refusal(&mut *scorer, &none).contains("300 examples"), "{name}");

        let flat = Dataset { values: Tensor::zeros([N, 100], DType::F32), ..set.data.clone() };
        let tabular = Evidence { data: &flat, ..set.evidence(Kind::Exact) };
        if info.needs_images {
            assert!(refusal(&mut *scorer, &tabular).contains("u8 images"), "{name}");
        } else {
            scorer.fit(&tabular).unwrap();
            assert!(scorer.score(&tabular).is_ok(), "{name}");
            let message = scorer.score(&set.evidence(Kind::Exact)).unwrap_err().to_string();
            assert!(message.contains("fitted"), "{name}: other shape: {message}");
        }

        let empty = Dataset { values: Tensor::zeros([0, 10, 10, 1], DType::U8), ..set.data.clone() };
        let evidence = Evidence { data: &empty, nats: &[], kind: Kind::Exact, background: Some(&[]) };
        assert!(refusal(&mut *scorer, &evidence).contains("no reference rows"), "{name}");
        assert!(scorer.restore(&serde_json::json!({"kind": "exact"})).is_err(), "{name}");
    }
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
        let message = fitted(info).score(&reference(2).evidence(Kind::LowerBound)).unwrap_err().to_string();
        assert!(message.contains("lower-bound"), "{}: {message}", info.name);
    }
}

#[test]
fn typicality_bound_holds_on_the_reference() {
    let (fit, test) = (reference(1), reference(2));
    for size in [1, 5, 20] {
        let mut scorer = Typicality::batches(size, 0.05).unwrap();
        assert_eq!(scorer.epsilon(), None);
        scorer.fit(&fit.evidence(Kind::Exact)).unwrap();
        let epsilon = scorer.epsilon().unwrap();
        // |mean of M normal values of standard deviation 10| has its 0.95 quantile at 1.96 · 10 / √M.
        let expected = 19.6 / (size as f64).sqrt();
        assert!((epsilon / expected - 1.0).abs() < 0.25, "M {size}: {epsilon}, expected {expected}");
        let scores = scorer.score(&test.evidence(Kind::Exact)).unwrap();
        assert_eq!(scores.len(), N / size);
        let atypical = scores.iter().filter(|s| **s > epsilon).count() as f64 / scores.len() as f64;
        assert!(atypical < 0.25, "M {size}: {atypical}");
    }
    assert!(Typicality::batches(0, 0.05).is_err() && Typicality::batches(2, 1.0).is_err());
    let mut big = Typicality::batches(N + 1, 0.05).unwrap();
    big.fit(&fit.evidence(Kind::Exact)).unwrap();
    assert!(big.score(&test.evidence(Kind::Exact)).unwrap_err().to_string().contains("at least 301 rows"));
}

#[test]
fn compressors_see_simplicity() {
    let (noise, stripes) = (Set::new("noise", 1, 10, 0.0, 0.0), Set::new("stripes", 1, 2, 0.0, 0.0));
    for compressor in [Compressor::Png, Compressor::Zstd] {
        let bits = |set: &Set| -> f64 {
            scorers::compressed_bits(&set.data, compressor).unwrap().iter().sum::<f64>() / N as f64
        };
        assert!(
            bits(&noise) > 1.5 * bits(&stripes),
            "{compressor:?}: {} and {}",
            bits(&noise),
            bits(&stripes)
        );
    }
}
