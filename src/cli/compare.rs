//! Data sets held against a reference under one model: rows, curves, galleries, the page.

use super::sample::{SAMPLES as SAMPLES_STREAM, bytes};
use super::{Common, inputs, output};
use crate::calibrate::Calibration;
use crate::data::Dataset;
use crate::error::Result;
use crate::evidence::explain::{self, per_position};
use crate::evidence::{Evidence, Judges};
use crate::models::{Model, SampleOptions};
use crate::random::Philox;
use crate::report::metrics::{Comparison, Paired};
use crate::report::{
    Behind, Calibrated, Curve, Difference, Figure, Gallery, Image, Page, Row, Set, Shot, WorstRow,
    bits_per_dim, experiments, extremes, table, warnings,
};
use crate::tensor::DType;
use std::path::Path;

/// Images at each end of a gallery.
const SHOTS: usize = 6;
/// Samples in the report.
const SAMPLES: usize = 36;
/// The scorers with a gallery, as far as they apply.
const GALLERIES: &[&str] = &["nll", "complexity_png", "likelihood_ratio"];

/// The scorer by which the rows of tables are ranked.
const TABLES: &str = "nll";
/// Cells that are shown of a row.
const CELLS: usize = 4;

/// What is compared.
pub struct Comparing<'a> {
    /// The models.
    pub judges: &'a Judges,
    /// The scorers, fitted and calibrated on rows that are neither in `reference` nor in the training data.
    pub calibrations: Vec<Calibration>,
    /// Normal data.
    pub reference: Evidence,
    /// The other sets.
    pub others: Vec<Evidence>,
    /// The false-alarm rate whose keeping is shown.
    pub alpha: f64,
}

impl Comparing<'_> {
    fn sets(&self) -> impl Iterator<Item = &Evidence> {
        std::iter::once(&self.reference).chain(&self.others)
    }

    /// Scores everything; the page has all but its title and settings.
    pub fn page(&self, common: &Common) -> Result<Page> {
        let model = &self.judges.model;
        let seed = common.seed.unwrap_or(model.meta.seed);
        let mut page = Page::default();
        let mut compared = Vec::new();
        let mut worst: Vec<Vec<WorstRow>> = self.sets().map(|_| Vec::new()).collect();
        let mut galleries: Vec<Vec<Gallery>> = self.sets().map(|_| Vec::new()).collect();
        for calibration in &self.calibrations {
            let name = calibration.name();
            let scorer = calibration.scorer()?;
            let scores = self.sets().map(|s| scorer.score(s)).collect::<Result<Vec<_>>>()?;
            let reference = (self.reference.data().name.as_str(), &scores[0][..]);
            for (other, scores) in self.others.iter().zip(&scores[1..]) {
                let other = &other.data().name;
                page.rows.push(Row::new(&model.meta.preset, name, reference, (other, scores), seed)?);
                let comparison = Comparison::new(reference.1, scores)?;
                page.curves.push(Curve {
                    scorer: name.into(),
                    other: other.clone(),
                    points: comparison.roc(),
                });
                if scorer.rows_per_score() == 1 {
                    compared.push((other.clone(), name.to_string(), comparison));
                }
            }
            page.calibrations.extend(self.calibrated(calibration, &scores));
            if name == TABLES {
                for ((set, scores), worst) in self.sets().zip(&scores).zip(&mut worst) {
                    *worst = worst_rows(&*model.model, set, scores, calibration)?;
                }
            }
            if GALLERIES.contains(&name) {
                for ((set, scores), galleries) in self.sets().zip(&scores).zip(&mut galleries) {
                    galleries.extend(gallery(&*model.model, set, scores, calibration)?);
                }
            }
        }
        page.differences = self.differences(&compared)?;
        for Difference { other, better, worse, paired } in &page.differences {
            let behind = Behind { best: better.clone(), paired: *paired };
            let row = page.rows.iter_mut().find(|r| r.other == *other && r.scorer == *worse);
            row.into_iter().for_each(|row| row.behind = Some(behind.clone()));
        }
        page.figures = self.figures(common, seed)?;
        let place = |row: &Row| self.others.iter().position(|o| o.data().name == row.other);
        page.rows.sort_by_key(place);
        let dims = self.reference.data().dims();
        let set = |((known, galleries), worst): ((&Evidence, Vec<Gallery>), Vec<WorstRow>)| Set {
            name: known.data().name.clone(),
            bits_per_dim: known.nats.iter().map(|&nats| bits_per_dim(nats, dims)).collect(),
            galleries,
            worst,
        };
        page.sets = self.sets().zip(galleries).zip(worst).map(set).collect();
        if is_image(&self.reference) {
            page.samples = samples(&*model.model, seed)?;
        }
        Ok(page)
    }

    /// The best scorer of each set against all others. `compared`: other set, scorer, comparison.
    fn differences(&self, compared: &[(String, String, Comparison)]) -> Result<Vec<Difference>> {
        let mut out = Vec::new();
        for other in self.others.iter().map(|o| &o.data().name) {
            let mut of_set: Vec<_> = compared.iter().filter(|(set, ..)| set == other).collect();
            of_set.sort_by(|a, b| b.2.auroc().total_cmp(&a.2.auroc()));
            let [best, rest @ ..] = &of_set[..] else { continue };
            for worse in rest.iter().filter(|c| c.2.rows().0.min(c.2.rows().1) > 1) {
                let paired = Paired::new(&best.2, &worse.2)?;
                let (better, worse) = (best.1.clone(), worse.1.clone());
                out.push(Difference { other: other.clone(), better, worse, paired });
            }
        }
        Ok(out)
    }

    /// The experiments that explain the likelihoods.
    fn figures(&self, common: &Common, seed: u64) -> Result<Vec<Figure>> {
        let sets: Vec<&Evidence> = self.sets().collect();
        let model = &*self.judges.model.model;
        let log_p = |data: Dataset| inputs::evaluate(common, model, seed, &data).map(|found| found.nats);
        let n = self.reference.len();
        let (fit, test) = (self.reference.rows(0..n / 2), self.reference.rows(n / 2..n));
        let mut batches = vec![&test];
        batches.extend(&self.others);
        let mut figures = Vec::new();
        figures.extend(experiments::complexity(&sets)?);
        figures.extend(experiments::pooling(&sets, &log_p)?);
        if n >= 4 {
            figures.push(experiments::batch_typicality(&fit, &batches, seed)?);
        }
        Ok(figures)
    }

    /// What became of the promise; nothing when there are too few calibrating rows for it.
    fn calibrated(&self, calibration: &Calibration, scores: &[Vec<f64>]) -> Option<Calibrated> {
        let threshold = calibration.threshold(self.alpha).ok()?;
        let above = |scores: &[f64]| scores.iter().filter(|s| **s > threshold).count();
        let share = |scores: &[f64]| above(scores) as f64 / scores.len().max(1) as f64;
        let found = self.others.iter().zip(&scores[1..]);
        Some(Calibrated {
            scorer: calibration.name().into(),
            alpha: self.alpha,
            threshold,
            rows: calibration.rows(),
            false_alarms: above(&scores[0]),
            tested: scores[0].len(),
            found: found.map(|(o, scores)| (o.data().name.clone(), share(scores))).collect(),
            kept: self
                .sets()
                .zip(scores)
                .map(|(set, scores)| (set.data().name.clone(), kept(calibration, scores)))
                .collect(),
        })
    }
}

/// (α, share of the scores with p ≤ α).
fn kept(calibration: &Calibration, scores: &[f64]) -> Vec<(f64, f64)> {
    let mut p: Vec<f64> = scores.iter().map(|s| calibration.p_value(*s)).collect();
    p.sort_by(f64::total_cmp);
    let at = |i: usize| {
        let alpha = i as f64 / 100.0;
        (alpha, p.partition_point(|p| *p <= alpha + 1e-12) as f64 / p.len().max(1) as f64)
    };
    (0..=100).map(at).collect()
}

/// Writes results.json and report.html into `dir`, prints the table and the warnings.
pub fn publish(common: &Common, page: &Page, dir: &Path) -> Result<()> {
    let results = output::json_lines(&page.rows)?;
    crate::files::write_atomic(dir.join("results.json"), results.as_bytes())?;
    page.write_atomic(dir.join("report.html"))?;
    if common.json {
        output::print(&results)?;
    } else {
        output::print(&table(&page.rows))?;
    }
    for warning in warnings(&page.rows) {
        eprintln!("warning: {warning}");
    }
    super::progress::say(common, format!("{}", dir.join("report.html").display()));
    Ok(())
}

/// Images that the model draws, of every class in turn if it has classes.
fn samples(model: &dyn Model, seed: u64) -> Result<Vec<Image>> {
    let mut rng = Philox::new(seed).fork(SAMPLES_STREAM);
    let labels: Vec<Option<i32>> = match model.input().classes {
        Some(classes) => (0..classes.min(SAMPLES) as i32).map(Some).collect(),
        None => vec![None],
    };
    let mut images = Vec::new();
    for &label in &labels {
        let options = SampleOptions { label, ..Default::default() };
        let drawn = model.draw(SAMPLES / labels.len(), &options, &mut rng)?;
        images.extend(Image::all(&bytes(&drawn))?);
    }
    Ok(images)
}

fn is_image(known: &Evidence) -> bool {
    let shape = known.data().values.shape();
    shape.len() == 4 && (1..=4).contains(&shape[3]) && known.data().values.dtype() == DType::U8
}

fn gallery(
    model: &dyn Model,
    known: &Evidence,
    scores: &[f64],
    calibration: &Calibration,
) -> Result<Option<Gallery>> {
    if !is_image(known) || scores.len() != known.nats.len() {
        return Ok(None);
    }
    let shots = |rows: Vec<usize>| -> Result<Vec<Shot>> {
        let maps = per_position(model, &known.data().select(&rows))?;
        let shot = |(i, &row): (usize, &usize)| {
            Ok(Shot {
                row,
                image: Image::of(&known.data().values, row)?,
                score: scores[row],
                p_value: Some(calibration.p_value(scores[row])),
                surprisal: maps.as_ref().map(|maps| maps[i].iter().map(|nats| *nats as f32).collect()),
            })
        };
        rows.iter().enumerate().map(shot).collect()
    };
    let (most, least) = extremes(scores, SHOTS);
    Ok(Some(Gallery { scorer: calibration.name().into(), most: shots(most)?, least: shots(least)? }))
}

/// The most anomalous rows of a table with their most surprising cells; nothing for other data.
fn worst_rows(
    model: &dyn Model,
    known: &Evidence,
    scores: &[f64],
    calibration: &Calibration,
) -> Result<Vec<WorstRow>> {
    let data = known.data();
    let floats = matches!(data.values.dtype(), DType::F32 | DType::F64);
    if data.values.rank() != 2 || !floats || scores.len() != known.len() {
        return Ok(Vec::new());
    }
    let (rows, _) = extremes(scores, SHOTS);
    let picked = data.select(&rows);
    let (nats, values) = (explain::per_cell(model, &picked, data)?, picked.values.to_f64_vec());
    let text = |column: usize, value: f64| match data.schema.as_ref().and_then(|s| s.columns.get(column)) {
        Some(column) => column.kind.text(value),
        None => format!("{value}"),
    };
    let row = |(i, &row): (usize, &usize)| {
        let cell =
            |&c: &usize| (explain::place(data, i, c), text(c, values[i * data.dims() + c]), nats[i][c]);
        WorstRow {
            row,
            scorer: calibration.name().into(),
            score: scores[row],
            p_value: calibration.p_value(scores[row]),
            cells: explain::worst(&nats[i], CELLS).iter().map(cell).collect(),
        }
    };
    Ok(rows.iter().enumerate().map(row).collect())
}
