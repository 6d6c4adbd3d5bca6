//! Data sets held against a reference under one model: rows, curves, galleries, the page.

use super::sample::{SAMPLES as SAMPLES_STREAM, bytes};
use super::{Common, output};
use crate::autograd::no_grad;
use crate::calibrate::Calibration;
use crate::error::Result;
use crate::evidence::{Evidence, Judges};
use crate::models::{Batch, Model, SampleOptions};
use crate::random::Philox;
use crate::report::metrics::Comparison;
use crate::report::{
    Calibrated, Curve, Gallery, Image, Page, Row, Set, Shot, bits_per_dim, extremes, table, warnings,
};
use crate::tensor::{DType, Tensor};
use std::path::Path;

/// Images at each end of a gallery.
const SHOTS: usize = 6;
/// Samples in the report.
const SAMPLES: usize = 36;
/// The scorers with a gallery, as far as they apply.
const GALLERIES: &[&str] = &["nll", "complexity_png", "likelihood_ratio"];

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
        let mut galleries: Vec<Vec<Gallery>> = self.sets().map(|_| Vec::new()).collect();
        for calibration in &self.calibrations {
            let name = calibration.name();
            let scorer = calibration.scorer()?;
            let scores = self.sets().map(|s| scorer.score(s)).collect::<Result<Vec<_>>>()?;
            let reference = (self.reference.data().name.as_str(), &scores[0][..]);
            for (other, scores) in self.others.iter().zip(&scores[1..]) {
                let other = &other.data().name;
                page.rows.push(Row::new(&model.meta.preset, name, reference, (other, scores), seed)?);
                let points = Comparison::new(reference.1, scores)?.roc();
                page.curves.push(Curve { scorer: name.into(), other: other.clone(), points });
            }
            page.calibrations.extend(self.calibrated(calibration, &scores));
            if GALLERIES.contains(&name) {
                for ((set, scores), galleries) in self.sets().zip(&scores).zip(&mut galleries) {
                    galleries.extend(gallery(&*model.model, set, scores, calibration)?);
                }
            }
        }
        let place = |row: &Row| self.others.iter().position(|o| o.data().name == row.other);
        page.rows.sort_by_key(place);
        let dims = self.reference.data().dims();
        let set = |(known, galleries): (&Evidence, Vec<Gallery>)| Set {
            name: known.data().name.clone(),
            bits_per_dim: known.nats.iter().map(|&nats| bits_per_dim(nats, dims)).collect(),
            galleries,
        };
        page.sets = self.sets().zip(galleries).map(set).collect();
        if is_image(&self.reference) {
            page.samples = samples(&*model.model, seed)?;
        }
        Ok(page)
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
        })
    }
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
        let drawn = model.sample(SAMPLES / labels.len(), &options, &mut rng)?;
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
        let maps = surprisal_maps(model, known, &rows);
        let shot = |(i, &row): (usize, &usize)| {
            Ok(Shot {
                row,
                image: Image::of(&known.data().values, row)?,
                score: scores[row],
                p_value: Some(calibration.p_value(scores[row])),
                surprisal: maps.as_ref().map(|maps| maps[i].clone()),
            })
        };
        rows.iter().enumerate().map(shot).collect()
    };
    let (most, least) = extremes(scores, SHOTS);
    Ok(Some(Gallery { scorer: calibration.name().into(), most: shots(most)?, least: shots(least)? }))
}

/// −log p of every pixel of the images `rows`, summed over channels, if the model factorises.
fn surprisal_maps(model: &dyn Model, known: &Evidence, rows: &[usize]) -> Option<Vec<Vec<f32>>> {
    let picked = known.data().select(rows);
    let [n, h, w, c] = picked.values.dims();
    let labels = model.input().classes.and(picked.labels).map(|l| Tensor::from_slice(&l, [l.len()]));
    let found = no_grad(|| model.log_prob(&Batch { x: picked.values, labels }, &mut Philox::new(0)));
    let values = found.per_position?.to_f64_vec();
    let per_pixel = match values.len() {
        len if len == n * h * w => 1,
        len if len == n * h * w * c => c,
        _ => return None,
    };
    let maps = values.chunks(h * w * per_pixel);
    Some(maps.map(|m| m.chunks(per_pixel).map(|p| -p.iter().sum::<f64>() as f32).collect()).collect())
}
