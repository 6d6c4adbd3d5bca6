//! Scorers turn evidence about observations into anomaly scores: **higher = more anomalous**.
//!
//! Models are evaluated once; scorers work on the resulting [`Evidence`]. A scorer first learns from reference
//! evidence what is normal ([`Scorer::fit`]), then gives scores; what it learned can be saved and restored as JSON.
//! The rows that fit a scorer should be neither those that trained the model nor those that calibrate it.

mod auto;
mod batch_norm;
mod complexity;
mod discriminator;
mod dose;
mod ensemble;
mod ess;
mod fitted;
mod grad_norm;
mod lid;
mod likelihood_ratio;
mod llr_k;
mod nll;
mod regret;
mod typicality;
mod waic;
mod worst_step;

pub use typicality::Typicality;

use crate::error::{Error, ErrorKind, Result, nearest};
pub use crate::evidence::{Compressor, Evidence, Need, compressed_bits};
use crate::models::Kind;
use fitted::{Fit, Fitted, Learn, Plain, finite, fitted, load, save};
use serde_json::Value;

/// An anomaly score.
pub trait Scorer: Send + Sync {
    /// Learns what is normal from reference evidence that the model was not trained on.
    ///
    /// # Errors
    /// Evidence that the scorer does not accept (see [`ScorerInfo::check`]) or that is empty.
    fn fit(&mut self, reference: &Evidence) -> Result<()>;

    /// One finite score per observation (per batch for batch scorers): higher = more anomalous.
    ///
    /// # Errors
    /// Before [`Self::fit`]; for evidence that the scorer does not accept, or of another kind or shape than the
    /// reference; [`ErrorKind::NonFinite`] naming the row where numbers are too far apart to be compared.
    fn score(&self, evidence: &Evidence) -> Result<Vec<f64>>;

    /// How many consecutive rows share one score: 1, or M for scorers that judge batches.
    fn rows_per_score(&self) -> usize {
        1
    }

    /// What was learned and set, as JSON; [`Self::restore`] reads it back.
    ///
    /// # Errors
    /// Before [`Self::fit`].
    fn state(&self) -> Result<Value>;

    /// Takes on a saved state, so that the scores are the same again.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when `state` is not what this scorer saves.
    fn restore(&mut self, state: &Value) -> Result<()>;
}

/// One line of the registry.
pub struct ScorerInfo {
    /// The registry's name.
    pub name: &'static str,
    /// `likelihood`, `ratio`, `complexity`, `typicality` ...
    pub family: &'static str,
    /// One sentence, with the source paper.
    pub summary: &'static str,
    /// Unit of the score.
    pub unit: &'static str,
    /// Which kinds of log-likelihood it accepts.
    pub accepts: &'static [Kind],
    /// What it needs beside log p.
    pub needs: &'static [Need],
    /// What it makes use of where the models can tell it.
    pub uses: &'static [Need],
    /// Makes an unfitted scorer with default settings.
    pub build: fn() -> Box<dyn Scorer>,
}

/// Every kind of log-likelihood, for scorers to which only its order or its spread matters.
const ANY_KIND: &[Kind] = &[Kind::Exact, Kind::LowerBound, Kind::Estimate, Kind::Unnormalised];
/// The kinds whose zero has a meaning: no unknown constant.
const NORMALISED: &[Kind] = &[Kind::Exact, Kind::LowerBound, Kind::Estimate];

/// All scorers.
pub static SCORERS: &[&ScorerInfo] = &[
    &nll::NLL,
    &auto::AUTO,
    &likelihood_ratio::LIKELIHOOD_RATIO,
    &complexity::COMPLEXITY,
    &complexity::COMPLEXITY_PNG,
    &complexity::COMPLEXITY_JXL,
    &complexity::COMPLEXITY_ZSTD,
    &typicality::TYPICALITY,
    &typicality::TYPICALITY_BATCH,
    &dose::DOSE,
    &lid::LID,
    &ensemble::ENSEMBLE,
    &waic::WAIC,
    &ess::ESS,
    &grad_norm::GRAD_NORM,
    &batch_norm::BATCH_NORM,
    &regret::REGRET,
    &llr_k::LLR_K,
    &worst_step::WORST_STEP,
    &discriminator::DISCRIMINATOR,
];

/// The registry's line of this name.
///
/// # Errors
/// [`ErrorKind::Usage`] that suggests the nearest name.
pub fn find(name: &str) -> Result<&'static ScorerInfo> {
    SCORERS.iter().find(|s| s.name == name).copied().ok_or_else(|| {
        let hint = nearest(name, SCORERS.iter().map(|s| s.name));
        Error::new(ErrorKind::Usage, format!("there is no scorer \"{name}\"; {hint}"))
    })
}

impl ScorerInfo {
    /// Whether it looks at numbers about the observations alone, so that it can be fitted without them.
    pub fn judges_numbers(&self) -> bool {
        self.needs.iter().all(|need| matches!(need, Need::Background | Need::Members | Need::Statistic(_)))
    }

    /// What to ask the models for.
    pub fn asks(&self) -> impl Iterator<Item = Need> {
        self.needs.iter().chain(self.uses).copied()
    }

    /// Whether all that it needs costs no more than a forward pass per model.
    pub fn is_cheap(&self) -> bool {
        !self.needs.iter().any(|need| need.is_costly())
    }

    /// Whether evidence of this sort can be scored at all: its kind, and what there is beside log p. The command line
    /// leaves out the scorers for which this is an error when all of them are asked for.
    ///
    /// # Errors
    /// One sentence that names the scorer, what it needs and what is there instead.
    pub fn applies(&self, evidence: &Evidence) -> Result<()> {
        self.has(evidence, self.needs)
    }

    fn has(&self, evidence: &Evidence, needs: &[Need]) -> Result<()> {
        let (data, name) = (evidence.data(), self.name);
        let fail = |what: String| Err(Error::new(ErrorKind::Usage, format!("{}: {what}", data.name)));
        if !self.accepts.contains(&evidence.kind) {
            let accepted: Vec<&str> = self.accepts.iter().map(|&k| words(k)).collect();
            let (accepted, found) = (accepted.join(" or "), words(evidence.kind));
            return fail(format!(
                "the scorer \"{name}\" works on {accepted} log-likelihoods; this model gives {found} ones"
            ));
        }
        let Some(missing) = needs.iter().find(|need| !evidence.has(**need)) else { return Ok(()) };
        let (dtype, shape) = (data.values.dtype(), data.values.shape());
        fail(match missing {
            Need::Images => format!(
                "the scorer \"{name}\" needs u8 images (N, H, W, 1 to 4), got {dtype:?} {shape:?}; \
                 \"complexity_zstd\" works on any data"
            ),
            Need::Background => format!("the scorer \"{name}\" needs a background model"),
            Need::Members => {
                format!("the scorer \"{name}\" needs an ensemble: the models of `train --ensemble M`")
            }
            Need::Statistic(which) => {
                format!("the scorer \"{name}\" needs {}; this model has none", which.name())
            }
            Need::Samples | Need::Values => format!("the scorer \"{name}\" needs {missing:?}"),
        })
    }

    /// [`Self::applies`], and one finite number of each sort for every observation.
    ///
    /// # Errors
    /// Those of [`Self::applies`]; [`ErrorKind::Data`] when the numbers of rows differ; [`ErrorKind::NonFinite`]
    /// naming the first row whose log-likelihood is NaN or infinite.
    pub fn check(&self, evidence: &Evidence) -> Result<()> {
        self.applies(evidence)?;
        check_numbers(evidence)
    }
}

/// One finite number in each column for every observation.
fn check_numbers(evidence: &Evidence) -> Result<()> {
    let (name, n) = (&evidence.data().name, evidence.len());
    for (what, numbers) in evidence.columns() {
        if numbers.len() != n {
            let message = format!("{name}: {} numbers of {what} for {n} examples", numbers.len());
            return Err(Error::new(ErrorKind::Data, message));
        }
        if let Some(row) = numbers.iter().position(|l| !l.is_finite()) {
            let message = format!("{name}: row {row}: the number of {what} is {}", numbers[row]);
            return Err(Error::new(ErrorKind::NonFinite, message));
        }
    }
    Ok(())
}

fn words(kind: Kind) -> &'static str {
    match kind {
        Kind::Exact => "exact",
        Kind::LowerBound => "lower-bound",
        Kind::Estimate => "estimated",
        Kind::Unnormalised => "unnormalised",
    }
}
