//! The models behind a judgement, and how they are asked.

use super::store::{self, Known};
use super::{Evidence, Need};
use crate::cpu::par;
use crate::cuda::Device;
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::models::file::{HeldOut, ModelFile};
use crate::models::{Model, SampleOptions, Statistic};
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use crate::train::{Evaluate, batches_while, log_probs_while};
use std::ops::ControlFlow;
use std::path::PathBuf;

/// The stream of the seed that draws samples as evidence.
const SAMPLES: u64 = 21;
/// The most samples that are drawn for a scorer.
const MAX_SAMPLES: usize = 512;

/// Hears about each pass over a data set, by name and number of examples; the closure it returns hears the number of
/// examples done and may break off.
pub type Watch<'a> = &'a (dyn Fn(&str, usize) -> Box<dyn FnMut(usize) -> ControlFlow<()>> + Sync);

/// A [`Watch`] that says nothing.
pub fn silent(_: &str, _: usize) -> Box<dyn FnMut(usize) -> ControlFlow<()>> {
    Box::new(|_| ControlFlow::Continue(()))
}

/// A model and what may stand beside it.
pub struct Judges {
    /// The model.
    pub model: ModelFile,
    /// The other members of its ensemble.
    pub members: Vec<ModelFile>,
    /// The background model.
    pub background: Option<ModelFile>,
    /// Where results are kept from one run to the next, if anywhere.
    pub cache: Option<PathBuf>,
}

impl Judges {
    /// Models that take the same examples.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] naming the model whose examples have another shape.
    pub fn new(model: ModelFile, members: Vec<ModelFile>, background: Option<ModelFile>) -> Result<Self> {
        let shape = model.model.input().shape;
        let others = members.iter().map(|m| ("an ensemble member", m));
        for (what, other) in others.chain(background.iter().map(|b| ("the background model", b))) {
            let found = other.model.input().shape;
            if found != shape {
                let message = format!("{what} takes examples {found:?}, the model {shape:?}");
                return Err(Error::new(ErrorKind::Model, message));
            }
        }
        Ok(Self { model, members, background, cache: None })
    }

    /// Whether the models can tell `need`; of the data nothing is said.
    pub fn can_tell(&self, need: Need) -> bool {
        match need {
            Need::Values | Need::Images | Need::Samples => true,
            Need::Background => self.background.is_some(),
            Need::Members => !self.members.is_empty(),
            Need::Statistic(which) => which.offered_by(&*self.model.model),
        }
    }

    /// log p of `data` under every model, and those of the costly `needs` that the models can tell.
    ///
    /// # Errors
    /// Data that a model does not take; a log-likelihood that is not finite; an interruption.
    pub fn know(&self, data: Dataset, needs: &[Need], seed: Option<u64>, watch: Watch) -> Result<Evidence> {
        let files: Vec<&ModelFile> =
            std::iter::once(&self.model).chain(&self.background).chain(&self.members).collect();
        let of = |i: usize| self.log_p(files[i], &data, seed, watch);
        // A device is not shared out; the cores of the CPU are.
        let found = match self.model.model.device() {
            Device::Cpu => par::together(files.len(), of),
            _ => (0..files.len()).map(of).collect(),
        };
        let mut found = found.into_iter();
        let mut next = || found.next().expect("one result per model");
        let found = next()?;
        let background = self.background.as_ref().map(|_| next().map(first)).transpose()?;
        let members = self.members.iter().map(|_| next().map(first)).collect::<Result<Vec<_>>>()?;
        let mut evidence = Evidence::new(data, vec![], found.kind);
        (evidence.nats, evidence.background, evidence.members) = (first(found), background, members);
        for &need in needs.iter().filter(|need| self.can_tell(**need)) {
            match need {
                Need::Statistic(which) if !evidence.has(need) => {
                    let parts = self.statistic(which, evidence.data(), seed, watch)?;
                    evidence.statistics.insert(which, parts);
                }
                Need::Samples if !evidence.has(need) => {
                    let mut rng = Philox::new(seed.unwrap_or(self.model.meta.seed)).fork(SAMPLES);
                    let n = evidence.len().min(MAX_SAMPLES);
                    evidence.samples = Some(self.draw(n, &mut rng)?);
                }
                _ => {}
            }
        }
        Ok(evidence)
    }

    /// Samples of all classes in equal parts.
    fn draw(&self, n: usize, rng: &mut Philox) -> Result<Tensor> {
        let model = &*self.model.model;
        let Some(classes) = model.input().classes else {
            return model.draw(n, &SampleOptions::default(), rng);
        };
        let each = n.div_ceil(classes.max(1)).max(1);
        let drawn = (0..classes as i32)
            .map(|l| model.draw(each, &SampleOptions { label: Some(l), ..Default::default() }, rng))
            .collect::<Result<Vec<_>>>()?;
        Ok(crate::ops::shape::concat(&drawn.iter().collect::<Vec<_>>(), 0))
    }

    fn log_p(&self, file: &ModelFile, data: &Dataset, seed: Option<u64>, watch: Watch) -> Result<Known> {
        let seed = seed.unwrap_or(file.meta.seed);
        self.cached(&*file.model, data, "log p", seed, || {
            let how = Evaluate { seed, ..Default::default() };
            let found = log_probs_while(&*file.model, data, &how, &mut watch(&data.name, data.len()))?;
            Ok(Known { kind: found.kind, parts: vec![found.nats] })
        })
    }

    fn statistic(
        &self,
        which: Statistic,
        data: &Dataset,
        seed: Option<u64>,
        watch: Watch,
    ) -> Result<Vec<Vec<f64>>> {
        let seed = seed.unwrap_or(self.model.meta.seed);
        let model = &*self.model.model;
        let found = self.cached(model, data, which.name(), seed, || {
            let parts = statistic(model, which, data, seed, watch)?;
            Ok(Known { kind: crate::models::Kind::Exact, parts })
        })?;
        Ok(found.parts)
    }

    fn cached(
        &self,
        model: &dyn Model,
        data: &Dataset,
        what: &str,
        seed: u64,
        compute: impl FnOnce() -> Result<Known>,
    ) -> Result<Known> {
        let Some(dir) = &self.cache else { return compute() };
        let path = store::place(dir, model, data, what, seed);
        if let Some(known) = store::load(&path, data.len()) {
            return Ok(known);
        }
        let known = compute()?;
        store::save(&path, &known)?;
        Ok(known)
    }

    /// What the models' files say about the rows that were held out when they were trained: log-likelihoods, without
    /// the rows themselves. `None` when the model's file says nothing; other models count if they held out the same
    /// rows.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when the files contradict each other.
    pub fn held_out(&self) -> Result<Option<Evidence>> {
        let Some(held_out) = &self.model.meta.calibration else { return Ok(None) };
        let n = held_out.nats.len();
        let same = |file: &ModelFile| -> Result<Option<Vec<f64>>> {
            let other = file.meta.calibration.as_ref().filter(|o| o.fingerprint == held_out.fingerprint);
            match other {
                Some(other) if other.nats.len() != n => {
                    Err(Error::new(ErrorKind::Model, "the calibrations of two models do not match"))
                }
                other => Ok(other.map(|o: &HeldOut| o.nats.clone())),
            }
        };
        let sizes: Vec<usize> = [n].iter().chain(&held_out.shape).copied().collect();
        if sizes.len() > crate::tensor::MAX_RANK {
            return Err(Error::new(ErrorKind::Model, format!("held-out rows of shape {sizes:?}")));
        }
        let data = Dataset::new("held-out data", Tensor::zeros(&sizes, DType::U8));
        let mut evidence = Evidence::new(data, held_out.nats.clone(), held_out.kind);
        evidence.background = self.background.as_ref().map(same).transpose()?.flatten();
        let members = self.members.iter().map(same).collect::<Result<Option<Vec<_>>>>()?;
        evidence.members = members.unwrap_or_default();
        Ok(Some(evidence))
    }
}

/// The components of a statistic of every example under `model`.
///
/// # Errors
/// When the model does not offer it; a number that is not finite, naming the row; an interruption.
pub fn statistic(
    model: &dyn Model,
    which: Statistic,
    data: &Dataset,
    seed: u64,
    watch: Watch,
) -> Result<Vec<Vec<f64>>> {
    let how = Evaluate { seed, ..Default::default() };
    let title = format!("{}: {}", data.name, which.name());
    let mut parts: Vec<Vec<f64>> = Vec::new();
    batches_while(model, data, &how, &mut watch(&title, data.len()), &mut |range, batch, rng| {
        let Some(values) = which.of(model, batch, rng) else {
            return Err(Error::new(ErrorKind::Usage, format!("this model has no {}", which.name())));
        };
        let values = values.to_f64_vec();
        let width = values.len() / range.len();
        parts.resize_with(width, Vec::new);
        for (i, value) in values.into_iter().enumerate() {
            if !value.is_finite() {
                let row = range.start + i / width;
                let message = format!("{}: row {row}: {} of {value}", data.name, which.name());
                return Err(Error::new(ErrorKind::NonFinite, message));
            }
            parts[i % width].push(value);
        }
        Ok(())
    })?;
    Ok(parts)
}

/// The only component.
fn first(known: Known) -> Vec<f64> {
    known.parts.into_iter().next().unwrap_or_default()
}
