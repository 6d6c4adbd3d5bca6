//! From files to what scorers work on: data with log-likelihoods, and calibrations.

use super::{Common, inputs};
use crate::calibrate::Calibration;
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::models::Kind;
use crate::models::file::{HeldOut, ModelFile};
use crate::scorers::{Evidence, SCORERS};
use crate::tensor::{DType, Tensor};
use std::ops::Range;
use std::path::Path;

/// Data and what the models say about it.
pub struct Known {
    /// The data.
    pub data: Dataset,
    /// log p under the model, nats per example.
    pub nats: Vec<f64>,
    /// What `nats` is.
    pub kind: Kind,
    /// log p under the background model.
    pub background: Option<Vec<f64>>,
}

impl Known {
    /// As scorers take it.
    pub fn evidence(&self) -> Evidence<'_> {
        Evidence {
            data: &self.data,
            nats: &self.nats,
            kind: self.kind,
            background: self.background.as_deref(),
        }
    }

    /// A range of the rows.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let indices: Vec<usize> = rows.clone().collect();
        Self {
            data: self.data.select(&indices),
            nats: self.nats[rows.clone()].to_vec(),
            kind: self.kind,
            background: self.background.as_ref().map(|b| b[rows].to_vec()),
        }
    }

    /// Every scorer that accepts this evidence, fitted on its first half and calibrated by its second; scorers that
    /// need more rows than there are, are left out.
    pub fn calibrations(&self) -> Result<Vec<Calibration>> {
        let n = self.nats.len();
        let (first, second) = (self.rows(0..n / 2), self.rows(n / 2..n));
        let mut out = Vec::new();
        for info in SCORERS.iter().filter(|info| info.applies(&self.evidence()).is_ok()) {
            let mut scorer = (info.build)();
            if n / 2 >= scorer.rows_per_score() {
                scorer.fit(&first.evidence())?;
                out.push(Calibration::new(info.name, &*scorer, &scorer.score(&second.evidence())?)?);
            }
        }
        Ok(out)
    }
}

/// A model and perhaps its background model.
pub struct Judges {
    /// The model.
    pub model: ModelFile,
    /// The background model.
    pub background: Option<ModelFile>,
}

impl Judges {
    /// Reads both files.
    pub fn open(model: &Path, background: Option<&Path>) -> Result<Self> {
        let (model, background) = (inputs::model(model)?, background.map(inputs::model).transpose()?);
        if let Some(other) = &background {
            let (a, b) = (model.model.input().shape, other.model.input().shape);
            if a != b {
                let message = format!("the background model takes examples {b:?}, the model {a:?}");
                return Err(Error::new(ErrorKind::Model, message));
            }
        }
        Ok(Self { model, background })
    }

    /// Evaluates both models on `data`.
    pub fn know(&self, common: &Common, data: Dataset) -> Result<Known> {
        let of = |file: &ModelFile| {
            inputs::evaluate(common, &*file.model, common.seed.unwrap_or(file.meta.seed), &data)
        };
        let found = of(&self.model)?;
        let background = self.background.as_ref().map(of).transpose()?.map(|b| b.nats);
        Ok(Known { data, nats: found.nats, kind: found.kind, background })
    }

    /// The calibrations in the model's file, and those of ratios if the background model has seen the same held-out
    /// rows.
    pub fn calibrations(&self) -> Result<Vec<Calibration>> {
        let Some(held_out) = &self.model.meta.calibration else { return Ok(Vec::new()) };
        let mut out = held_out.scorers.clone();
        let background = self.background.as_ref().and_then(|b| b.meta.calibration.as_ref());
        if let Some(background) = background.filter(|b| b.fingerprint == held_out.fingerprint) {
            out.extend(ratios(held_out, background)?);
        }
        Ok(out)
    }
}

/// Calibrations of the scorers that compare two models on the same held-out rows; they look at log-likelihoods alone,
/// so the rows themselves need not be there.
fn ratios(model: &HeldOut, background: &HeldOut) -> Result<Vec<Calibration>> {
    let n = model.nats.len();
    let sizes: Vec<usize> = [n].iter().chain(&model.shape).copied().collect();
    if background.nats.len() != n || sizes.len() > crate::tensor::MAX_RANK {
        return Err(Error::new(
            ErrorKind::Model,
            "the calibrations of model and background model do not match",
        ));
    }
    let values = Tensor::zeros(&sizes, DType::U8);
    let data = Dataset::new("held-out data", values);
    let (nats, background) = (model.nats.clone(), Some(background.nats.clone()));
    let known = Known { data, nats, kind: model.kind, background };
    let mut out = known.calibrations()?;
    out.retain(|c| SCORERS.iter().any(|info| info.needs_background && info.name == c.name()));
    Ok(out)
}
