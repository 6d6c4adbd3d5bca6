//! The report on the demonstration images with invented likelihoods: complete, self-contained, escaped, well formed.

use std::sync::LazyLock;
use surprisal::calibrate::Calibration;
use surprisal::data::{self, Dataset};
use surprisal::models::Kind;
use surprisal::random::Philox;
use surprisal::report::metrics::{Comparison, Paired};
use surprisal::report::{
    self, Calibrated, Curve, Difference, Gallery, Image, Page, Row, Set, Shot, WorstRow, bits_per_dim,
    experiments, extremes, table, warnings,
};
use surprisal::scorers::{self, Compressor, Evidence, SCORERS};
use surprisal::{DType, Tensor};

/// A data set with log-likelihoods that follow its complexity, as those of a real model do.
struct Scored(Evidence);

impl Scored {
    fn new(data: Dataset, seed: u64, misfit: f64) -> Self {
        let noise = Philox::new(seed).normal([2, data.len()], DType::F64);
        let (a, b) = noise.as_slice::<f64>().split_at(data.len());
        let bits = scorers::compressed_bits(&data, Compressor::Png).unwrap();
        let nats = |share: f64, extra: f64, noise: &[f64]| -> Vec<f64> {
            bits.iter().zip(noise).map(|(l, e)| -(share * l + extra) * 0.693 + 60.0 * e).collect()
        };
        let mut evidence = Evidence::new(data, nats(0.42, misfit, a), Kind::Exact);
        evidence.background = Some(nats(0.5, 0.3 * misfit, b));
        Self(evidence)
    }

    fn bits_per_dim(&self) -> Vec<f64> {
        self.0.nats.iter().map(|l| bits_per_dim(*l, self.0.data().dims())).collect()
    }

    fn shot(&self, row: usize, score: f64, calibration: &Calibration) -> Shot {
        let pixels = self.0.data().rows(row..row + 1);
        let pixels = pixels.as_slice::<u8>();
        let contrast = (0..784).map(|i| {
            let left = if i % 28 == 0 { 0 } else { pixels[i - 1] };
            (pixels[i].abs_diff(left) as f32 / 40.0).sqrt() + pixels[i].min(40) as f32 / 40.0
        });
        Shot {
            row,
            image: Image::of(&self.0.data().values, row).unwrap(),
            score,
            p_value: Some(calibration.p_value(score)),
            surprisal: Some(contrast.collect()),
        }
    }
}

const HOSTILE: &str = "a\"><script>alert('x')</script>";
const NAMES: [&str; 3] = ["FashionMNIST", "MNIST", "FashionMNIST, inverted"];
static PAGE: LazyLock<Page> = LazyLock::new(page);

fn page() -> Page {
    let names = NAMES;
    let demo = data::demo(None).unwrap();
    let named = |data: Dataset, name: &str| Dataset { name: name.into(), ..data };
    let rows: Vec<usize> = (0..600).collect();
    let (calibrating, testing) = rows.split_at(300);
    let reference_fit = Scored::new(named(demo.test.select(calibrating), names[0]), 1, 0.0);
    let reference = Scored::new(named(demo.test.select(testing), names[0]), 2, 0.0);
    let inverted = Tensor::from_fn([200, 28, 28, 1], |i| 255 - demo.train.values.as_slice::<u8>()[i]);
    let others = [
        Scored::new(named(demo.other.take(300), names[1]), 3, 420.0),
        Scored::new(named(Dataset { values: inverted, ..demo.train.take(200) }, names[2]), 4, 700.0),
    ];

    let (mut rows, mut curves, mut calibrations) = (vec![], vec![], vec![]);
    let mut galleries: Vec<Vec<Gallery>> = vec![vec![]; 3];
    for info in SCORERS.iter().filter(|info| info.applies(&reference.0).is_ok()) {
        let mut scorer = (info.build)();
        scorer.fit(&reference_fit.0).unwrap();
        let calibrating = scorer.score(&reference_fit.0).unwrap();
        let calibration = Calibration::new(info.name, &*scorer, &calibrating).unwrap();
        let negatives = scorer.score(&reference.0).unwrap();
        let mut found = vec![];
        for (i, set) in [&reference, &others[0], &others[1]].into_iter().enumerate() {
            let scores = scorer.score(&set.0).unwrap();
            if ["nll", "complexity_png"].contains(&info.name) {
                let (most, least) = extremes(&scores, 6);
                let shots = |rows: Vec<usize>| {
                    rows.into_iter().map(|r| set.shot(r, scores[r], &calibration)).collect()
                };
                galleries[i].push(Gallery {
                    scorer: info.name.into(),
                    most: shots(most),
                    least: shots(least),
                });
            }
            if i > 0 {
                found.push((set.0.data().name.clone(), calibration.flagged(&scores, 0.05).unwrap()));
                let (a, b) = ((names[0], &negatives[..]), (names[i], &scores[..]));
                rows.push(Row::new("pixelcnn28", info.name, a, b, 0).unwrap());
                let points = Comparison::new(&negatives, &scores).unwrap().roc();
                curves.push(Curve { scorer: info.name.into(), other: names[i].into(), points });
            }
        }
        let threshold = calibration.threshold(0.05).unwrap();
        calibrations.push(Calibrated {
            scorer: info.name.into(),
            alpha: 0.05,
            threshold,
            rows: calibration.rows(),
            false_alarms: negatives.iter().filter(|s| **s > threshold).count(),
            tested: negatives.len(),
            found,
            kept: vec![(names[0].into(), (0..=20).map(|i| (i as f64 / 20.0, i as f64 / 20.0)).collect())],
        });
    }
    let sets = [&reference.0, &others[0].0, &others[1].0];
    let log_p = |data: Dataset| Ok(Scored::new(data, 5, 0.0).0.nats);
    let figures = vec![
        experiments::complexity(&sets).unwrap().unwrap(),
        experiments::pooling(&sets, &log_p).unwrap().unwrap(),
        experiments::batch_typicality(&reference_fit.0, &sets, 0).unwrap(),
    ];
    let paired = Paired { difference: 0.9, low: -0.01, high: 0.95, p_value: 0.06 };
    let differences =
        vec![Difference { other: names[1].into(), better: "auto".into(), worse: "nll".into(), paired }];
    rows.sort_by_key(|r| names.iter().position(|n| *n == r.other));
    let sets = [&reference, &others[0], &others[1]].into_iter().zip(galleries);
    Page {
        title: format!("pixelcnn28 on {}", names[0]),
        sets: sets
            .map(|(s, galleries)| Set {
                name: s.0.data().name.clone(),
                bits_per_dim: s.bits_per_dim(),
                galleries,
                worst: vec![WorstRow {
                    row: 7,
                    scorer: "nll".into(),
                    score: 12.5,
                    p_value: 0.0004,
                    cells: vec![
                        ("amount".into(), "9,400".into(), 8.25),
                        ("country <b>".into(), "&".into(), 3.5),
                    ],
                }],
            })
            .collect(),
        rows,
        curves,
        figures,
        differences,
        samples: Image::all(&demo.train.rows(0..64)).unwrap(),
        calibrations,
        settings: [
            ("model", "pixelcnn28"),
            ("parameters", "1,183,872"),
            ("training images", "5,400 of FashionMNIST"),
            ("validation images", "600"),
            ("epochs", "4"),
            ("batch", "64"),
            ("optimiser", "adam, learning rate 0.001, cosine"),
            ("background", "mutation 0.3, weight decay 10"),
            ("seed", "0"),
            ("threads", "2"),
            (
                "checkpoint",
                "/home/someone/experiments/2026/fashion/pixelcnn28-background-03/model.safetensors",
            ),
            ("time", "3 min 12 s"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .to_vec(),
        ..Page::default()
    }
}

/// The page with other names for its sets.
fn renamed(names: [&str; 3]) -> Page {
    let mut page = PAGE.clone();
    let rename = |name: &mut String| {
        if let Some(i) = NAMES.iter().position(|n| n == name) {
            *name = names[i].to_owned();
        }
    };
    page.sets.iter_mut().for_each(|s| rename(&mut s.name));
    page.rows.iter_mut().for_each(|r| [&mut r.reference, &mut r.other].into_iter().for_each(rename));
    page.curves.iter_mut().for_each(|c| rename(&mut c.other));
    page.calibrations.iter_mut().flat_map(|c| &mut c.found).for_each(|(name, _)| rename(name));
    page
}

#[test]
fn is_self_contained_and_complete() {
    let page = &*PAGE;
    let html = page.render();
    for forbidden in ["http:", "https:", "<script", "<link", "@import", "url(", ">NaN", ">inf", "\"NaN"] {
        assert!(!html.contains(forbidden), "the page contains {forbidden:?}");
    }
    let sources: Vec<&str> = html.split(" src=\"").skip(1).collect();
    assert!(sources.iter().all(|s| s.starts_with("data:image/png;base64,")));
    // 6 + 6 images with maps, by two scorers, of three sets; the samples.
    assert_eq!(sources.len(), 12 * 2 * 2 * 3 + 64);
    for row in &page.rows {
        for text in [&row.scorer, &row.other, &format!("{:.3} to {:.3}", row.auroc_low, row.auroc_high)] {
            assert!(html.contains(text.as_str()), "{text} is missing");
        }
    }
    for (key, value) in &page.settings {
        assert!(html.contains(key.as_str()) && html.contains(value.as_str()), "{key}");
    }
    assert_eq!(html.matches("<figure class=\"panel\">").count(), 2 * page.calibrations.len());
    assert_eq!(html, page.render(), "rendered twice, two pages");
}

#[test]
fn tags_are_balanced() {
    for page in [PAGE.clone(), renamed(["<u>", HOSTILE, "&amp;"]), Page::default()] {
        balanced(&page.render());
    }
}

/// Every opened element is closed in order; attributes are quoted.
fn balanced(html: &str) {
    let (head, rest) = html.split_once("<style>").unwrap();
    let (_, body) = rest.split_once("</style>").unwrap();
    let mut open: Vec<&str> = Vec::new();
    for part in [head.replace("<!DOCTYPE html>", "").as_str(), body].concat().split('<').skip(1) {
        let (tag, text) = part.split_once('>').expect("an unclosed tag");
        assert!(!text.contains('>'), "a bare > after <{tag}>");
        assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        if let Some(closed) = tag.strip_prefix('/') {
            assert_eq!(open.pop().map(str::to_owned), Some(closed.to_owned()), "closing order");
        } else if !tag.ends_with('/') && !["meta", "img", "br"].contains(&name) {
            open.push(Box::leak(name.to_owned().into_boxed_str()));
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
}

#[test]
fn text_from_outside_is_escaped() {
    let mut page = renamed(["<u>", HOSTILE, "&amp;"]);
    page.title = format!("<u>{HOSTILE}");
    page.settings.push(("<u>".into(), HOSTILE.into()));
    page.curves.iter_mut().for_each(|c| c.scorer = format!("{}{HOSTILE}", c.scorer));
    let html = page.render();
    assert!(!html.contains("<script") && !html.contains("<u>"));
    assert!(html.contains("a&quot;&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"));
    assert!(html.contains("&amp;amp;"));
}

#[test]
fn says_what_happened() {
    let page = &*PAGE;
    let raw = page.rows.iter().find(|r| r.scorer == "nll" && r.other == "MNIST").unwrap();
    assert!(raw.auroc < 0.5, "the invented likelihoods should fail as real ones do: {}", raw.auroc);
    let said = report::finding(&page.rows);
    assert!(said.headline.contains("more likely than"), "{}", said.headline);
    assert!(page.render().contains(&said.headline));
    let lines = warnings(&page.rows);
    assert!(lines.iter().any(|l| l.contains("MNIST MORE likely")), "{lines:?}");

    let text = table(&page.rows);
    let widths: Vec<usize> = text.lines().filter(|l| !l.is_empty()).map(|l| l.chars().count()).collect();
    assert!(widths.iter().all(|w| *w == widths[0]), "ragged table:\n{text}");
    assert!(text.contains("complexity_png") && text.lines().all(|l| l.chars().count() <= 110));
}

#[test]
fn result_rows_have_exactly_the_promised_keys() {
    let row = Row::new("m", "nll", ("a", &[0.0, 1.0]), ("b", &[0.5, 2.0]), 0).unwrap();
    let json = serde_json::to_value(&row).unwrap();
    let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    let promised =
        "model scorer reference other n_reference n_other auroc auroc_low auroc_high aupr_in aupr_out fpr95";
    assert_eq!(keys.join(" "), promised);
    assert_eq!(serde_json::from_value::<Row>(json).unwrap(), row);
    let message = Row::new("m", "nll", ("a", &[]), ("b", &[0.5]), 0).unwrap_err().to_string();
    assert!(message.contains("nll") && message.contains("a against b"), "{message}");
}

/// The file stays in cargo's folder for test files, to be looked at in a browser.
#[test]
fn is_written_in_one_piece() {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("report.html");
    let page = &*PAGE;
    page.write_atomic(&path).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), page.render());
    let size = page.render().len();
    assert!(size < 1_000_000, "{size} bytes");
}
