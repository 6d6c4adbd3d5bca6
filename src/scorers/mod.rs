//! Scorers turn evidence about observations into anomaly scores: **higher = more anomalous**.
//!
//! Models are evaluated once; scorers work on the resulting [`Evidence`].

use crate::data::Dataset;
use crate::error::Result;
use crate::models::Kind;

/// What is known about each observation of a data set.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// The observations themselves.
    pub data: &'a Dataset,
    /// log p(x) under the model, nats per example.
    pub nats: &'a [f64],
    /// What `nats` is.
    pub kind: Kind,
    /// log p(x) under the background model, nats per example, if there is one.
    pub background: Option<&'a [f64]>,
}

/// An anomaly score.
pub trait Scorer: Send + Sync {
    /// Learns what is normal from reference evidence that the model was not trained on.
    fn fit(&mut self, reference: &Evidence) -> Result<()>;

    /// One finite score per observation (per batch for batch scorers): higher = more anomalous.
    fn score(&self, evidence: &Evidence) -> Result<Vec<f64>>;
}

/// One line of the registry.
pub struct ScorerInfo {
    /// The registry's name.
    pub name: &'static str,
    /// `likelihood`, `ratio`, `complexity`, `typicality` ...
    pub family: &'static str,
    /// One sentence, with the source paper.
    pub summary: &'static str,
    /// Which kinds of log-likelihood it accepts.
    pub accepts: &'static [Kind],
    /// Whether it needs a background model.
    pub needs_background: bool,
    /// Makes an unfitted scorer with default settings.
    pub build: fn() -> Box<dyn Scorer>,
}

/// All scorers.
pub static SCORERS: &[&ScorerInfo] = &[];
