//! What `eval` measures of several models: the speed of training, of log p and of sampling.

use super::bench::train_step;
use crate::autograd;
use crate::error::Result;
use crate::evidence::{Evidence, Judges};
use crate::models::{Batch, SampleOptions};
use crate::random::Philox;
use crate::report::{FamilyRow, Row, Told, bits_per_dim};
use crate::tensor::Tensor;
use crate::train::{FitOptions, Optimiser};
use std::time::Instant;

/// Examples of a training step and of log p, and of a drawing.
const BATCH: usize = 32;
const DRAWN: usize = 16;
/// Timed calls after one that warms up; the fastest counts.
const CALLS: usize = 3;

/// Measures the model; `rows` are its results.
///
/// # Errors
/// A model that cannot be sampled for another reason than that it has no sampler.
pub fn measure(judges: &Judges, reference: &Evidence, rows: &[Row], parameters: String) -> Result<FamilyRow> {
    let (file, data) = (&judges.model, reference.data());
    let (model, seed) = (&*file.model, file.meta.seed);
    let info = crate::models::config::find_model(crate::models::MODELS, &file.meta.model)?;
    let mut rng = Philox::new(seed);
    let some = data.take(BATCH);
    let labels = model.input().classes.and(some.labels.as_ref());
    let labels = labels.map(|l| Tensor::from_slice(l, [l.len()]));
    let (batch, device) = (Batch { x: some.values.clone(), labels }.to(model.device())?, model.device());
    let n = some.len();
    let scoring = per_second(n, &mut || {
        let nats = || autograd::no_grad(|| model.log_prob(&batch, &mut rng)).nats.to_f64_vec();
        device.run(nats).is_ok()
    });
    let classes = model.input().classes;
    let options = SampleOptions { label: classes.map(|_| 0), ..Default::default() };
    let sampling = per_second(DRAWN, &mut || model.draw(DRAWN, &options, &mut rng).is_ok());
    // The weights are put back: what follows must not see those of the steps.
    let before = crate::models::file::tensors(model);
    let mut optimiser = device.run(|| Optimiser::new(model.params(), false))?;
    let trained = model.params().trainable().next().is_some();
    let fit = FitOptions { lr: 1e-6, ..Default::default() };
    let training = trained.then(|| {
        per_second(n, &mut || {
            device.run(|| train_step(model, &batch, &mut rng, &mut optimiser, &fit)).is_ok()
        })
    });
    crate::models::file::assign(model, &before)?;
    let mut found: Vec<Told> = Vec::new();
    for row in rows {
        let at = found.iter().position(|told| told.other == row.other).unwrap_or_else(|| {
            found.push(Told { other: row.other.clone(), raw: None, best: None });
            found.len() - 1
        });
        let told = &mut found[at];
        // Scores of batches have fewer rows, and are not compared with those of single ones.
        let of_set = rows.iter().filter(|r| r.other == row.other);
        let single = row.n_other == of_set.map(|r| r.n_other).max().unwrap_or(0);
        if row.scorer == "nll" {
            told.raw = Some(row.auroc);
        } else if single && told.best.as_ref().is_none_or(|best| row.auroc > best.1) {
            told.best = Some((row.scorer.clone(), row.auroc));
        }
    }
    let mean = reference.nats.iter().sum::<f64>() / reference.len().max(1) as f64;
    Ok(FamilyRow {
        model: file.meta.preset.clone(),
        family: info.family.into(),
        kind: reference.kind,
        bits_per_dim: bits_per_dim(mean, data.dims()),
        parameters,
        training: training.flatten(),
        scoring,
        sampling,
        found,
        report: None,
    })
}

/// Examples per second of the fastest of a few calls with `n` of them; none when a call does not succeed.
fn per_second(n: usize, call: &mut dyn FnMut() -> bool) -> Option<f64> {
    let mut fastest = f64::INFINITY;
    for i in 0..=CALLS {
        let start = Instant::now();
        if !call() {
            return None;
        }
        if i > 0 {
            fastest = fastest.min(start.elapsed().as_secs_f64());
        }
    }
    Some(n as f64 / fastest.max(1e-9))
}
