//! What scorers have in common: they remember the kind and shape of their reference, and refuse others.

use super::{Evidence, Need, Scorer, ScorerInfo, check_numbers, words};
use crate::error::{Error, ErrorKind, Result};
use crate::models::Kind;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What every scorer remembers of its reference: other evidence must be of the same kind and shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Fit {
    kind: Kind,
    /// Shape of one example.
    shape: Vec<usize>,
}

impl Fit {
    /// Checks the reference for the scorer `info`.
    pub fn new(info: &ScorerInfo, reference: &Evidence) -> Result<Self> {
        info.check(reference)?;
        if reference.is_empty() {
            let message = format!("{}: no reference rows to fit \"{}\" on", reference.data().name, info.name);
            return Err(Error::new(ErrorKind::Data, message));
        }
        Ok(Self { kind: reference.kind, shape: reference.data().values.shape()[1..].to_vec() })
    }

    /// Checks evidence to be scored against the reference. Samples are of use to the fit alone.
    pub fn check(&self, info: &ScorerInfo, evidence: &Evidence) -> Result<()> {
        let needs: Vec<Need> = info.needs.iter().copied().filter(|n| *n != Need::Samples).collect();
        info.has(evidence, &needs)?;
        check_numbers(evidence)?;
        let (name, shape) = (&evidence.data().name, &evidence.data().values.shape()[1..]);
        if self.kind != evidence.kind || self.shape != shape {
            let (wanted, found) = (words(self.kind), words(evidence.kind));
            let message = format!(
                "{name}: \"{}\" was fitted on {wanted} log-likelihoods of examples {:?}, got {found} ones of {shape:?}",
                info.name, self.shape
            );
            return Err(Error::new(ErrorKind::Data, message));
        }
        Ok(())
    }
}

/// A scorer that is a formula: nothing is learned but what the reference looks like.
pub(super) struct Plain {
    info: &'static ScorerInfo,
    formula: fn(&Evidence) -> Result<Vec<f64>>,
    fit: Option<Fit>,
}

impl Plain {
    pub fn boxed(info: &'static ScorerInfo, formula: fn(&Evidence) -> Result<Vec<f64>>) -> Box<dyn Scorer> {
        Box::new(Self { info, formula, fit: None })
    }
}

impl Scorer for Plain {
    fn fit(&mut self, reference: &Evidence) -> Result<()> {
        self.fit = Some(Fit::new(self.info, reference)?);
        Ok(())
    }

    fn score(&self, evidence: &Evidence) -> Result<Vec<f64>> {
        fitted(&self.fit, self.info)?.check(self.info, evidence)?;
        finite(self.info, evidence, 1, (self.formula)(evidence)?)
    }

    fn state(&self) -> Result<Value> {
        save(&self.fit, self.info)
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        self.fit = Some(load(self.info, state)?);
        Ok(())
    }
}

/// What a scorer learns from its reference; [`Fitted`] makes it a [`Scorer`].
pub(super) trait Learn: Serialize + DeserializeOwned + Send + Sync + Sized {
    /// The registry's line.
    const INFO: &'static ScorerInfo;

    /// Learns from reference evidence that has been checked.
    fn learn(reference: &Evidence) -> Result<Self>;

    /// Scores evidence that has been checked.
    fn judge(&self, evidence: &Evidence) -> Result<Vec<f64>>;

    /// Whether a state that came from a file makes sense; says what is wrong.
    fn check(&self) -> std::result::Result<(), &'static str> {
        Ok(())
    }
}

/// A scorer that learns `L`.
pub(super) struct Fitted<L>(Option<State<L>>);

#[derive(Serialize, Deserialize)]
struct State<L> {
    #[serde(flatten)]
    fit: Fit,
    learned: L,
}

impl<L: Learn + 'static> Fitted<L> {
    pub fn boxed() -> Box<dyn Scorer> {
        Box::new(Self(None))
    }
}

impl<L: Learn> Scorer for Fitted<L> {
    fn fit(&mut self, reference: &Evidence) -> Result<()> {
        let fit = Fit::new(L::INFO, reference)?;
        self.0 = Some(State { fit, learned: L::learn(reference)? });
        Ok(())
    }

    fn score(&self, evidence: &Evidence) -> Result<Vec<f64>> {
        let state = fitted(&self.0, L::INFO)?;
        state.fit.check(L::INFO, evidence)?;
        finite(L::INFO, evidence, 1, state.learned.judge(evidence)?)
    }

    fn state(&self) -> Result<Value> {
        save(&self.0, L::INFO)
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        let state: State<L> = load(L::INFO, state)?;
        state.learned.check().map_err(|what| {
            let message = format!("saved state of the scorer \"{}\": {what}", L::INFO.name);
            Error::new(ErrorKind::Model, message)
        })?;
        self.0 = Some(state);
        Ok(())
    }
}

/// `scores`, one for every `per` rows of `evidence`, if all of them are finite: numbers too far apart for the arithmetic
/// are an error that names the row.
pub(super) fn finite(
    info: &ScorerInfo,
    evidence: &Evidence,
    per: usize,
    scores: Vec<f64>,
) -> Result<Vec<f64>> {
    let Some(i) = scores.iter().position(|score| !score.is_finite()) else { return Ok(scores) };
    let (data, name, row) = (&evidence.data().name, info.name, i * per);
    let message = format!(
        "{data}: row {row}: the score \"{name}\" is {}; the log-likelihood there is {:e}",
        scores[i], evidence.nats[row]
    );
    Err(Error::new(ErrorKind::NonFinite, message))
}

/// What was learned, if anything was.
pub(super) fn fitted<'a, T>(learned: &'a Option<T>, info: &ScorerInfo) -> Result<&'a T> {
    learned.as_ref().ok_or_else(|| {
        let message = format!("the scorer \"{}\" must be fitted on a reference first", info.name);
        Error::new(ErrorKind::Usage, message)
    })
}

pub(super) fn save<T: Serialize>(learned: &Option<T>, info: &ScorerInfo) -> Result<Value> {
    serde_json::to_value(fitted(learned, info)?)
        .map_err(|e| Error::new(ErrorKind::Model, format!("state of the scorer \"{}\": {e}", info.name)))
}

pub(super) fn load<T: DeserializeOwned>(info: &ScorerInfo, state: &Value) -> Result<T> {
    T::deserialize(state).map_err(|e| {
        Error::new(ErrorKind::Model, format!("saved state of the scorer \"{}\": {e}", info.name))
    })
}
