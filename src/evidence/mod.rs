//! Evidence: all that is known about each observation of a data set, computed once and shared by the scorers.
//!
//! A scorer declares what it [`Need`]s; [`Judges`] asks the models for it (a forward pass for log p, a backward pass
//! for gradient norms, a second model for ratios ...) and keeps what it found.

mod compress;
pub mod explain;
mod judges;
mod store;

pub use compress::{Compressor, compressed_bits};
pub use judges::{Judges, Watch, silent, statistic};

use crate::data::Dataset;
use crate::error::Result;
use crate::models::{Kind, Statistic};
use crate::tensor::{DType, Tensor};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// What a scorer needs beside log p(x).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// The observations themselves.
    Values,
    /// The observations themselves, as u8 images (N, H, W, 1 to 4).
    Images,
    /// log p(x) under a background model.
    Background,
    /// log p(x) under the other members of an ensemble.
    Members,
    /// Samples of the model; of the reference only.
    Samples,
    /// A statistic of the model.
    Statistic(Statistic),
}

impl Need {
    /// Whether it costs more than one forward pass per model: computed only when a scorer is asked for by name.
    pub fn is_costly(self) -> bool {
        match self {
            Self::Samples => true,
            Self::Statistic(which) => !which.is_cheap(),
            _ => false,
        }
    }
}

/// Code lengths in bits, one per example.
type Lengths = Arc<Mutex<BTreeMap<Compressor, Arc<Vec<f64>>>>>;

/// What is known about each observation of a data set.
#[derive(Debug, Clone)]
pub struct Evidence {
    data: Dataset,
    /// L(x) of each compressor that was asked for.
    lengths: Lengths,
    /// log p(x) under the model, nats per example.
    pub nats: Vec<f64>,
    /// What `nats` is.
    pub kind: Kind,
    /// log p(x) under the background model, nats per example, if there is one.
    pub background: Option<Vec<f64>>,
    /// log p(x) under each of the other members of an ensemble, nats per example.
    pub members: Vec<Vec<f64>>,
    /// Statistics of the model: for each its components, one number per example each.
    pub statistics: BTreeMap<Statistic, Vec<Vec<f64>>>,
    /// Samples that the model drew, (n, ...) as the data.
    pub samples: Option<Tensor>,
}

impl Evidence {
    /// Observations and log p(x) alone.
    pub fn new(data: Dataset, nats: Vec<f64>, kind: Kind) -> Self {
        let (background, samples) = (None, None);
        let (members, statistics, lengths) = (vec![], BTreeMap::new(), Lengths::default());
        Self { data, lengths, nats, kind, background, members, statistics, samples }
    }

    /// Other log-likelihoods of the same observations; code lengths are shared, now and later.
    pub fn judged_by(&self, nats: Vec<f64>, kind: Kind) -> Self {
        Self { lengths: self.lengths.clone(), ..Self::new(self.data.clone(), nats, kind) }
    }

    /// The observations themselves.
    pub fn data(&self) -> &Dataset {
        &self.data
    }

    /// L(x) of each observation in bits, computed once.
    ///
    /// # Errors
    /// Those of [`compressed_bits`].
    pub fn code_lengths(&self, compressor: Compressor) -> Result<Arc<Vec<f64>>> {
        let lock = || self.lengths.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(known) = lock().get(&compressor) {
            return Ok(known.clone());
        }
        let found = Arc::new(compressed_bits(&self.data, compressor)?);
        lock().insert(compressor, found.clone());
        Ok(found)
    }

    /// Number of observations.
    pub fn len(&self) -> usize {
        self.data.values.shape().first().copied().unwrap_or(0)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether this is known.
    pub fn has(&self, need: Need) -> bool {
        match need {
            Need::Values => true,
            Need::Images => has_images(&self.data),
            Need::Background => self.background.is_some(),
            Need::Members => !self.members.is_empty(),
            Need::Samples => self.samples.is_some(),
            Need::Statistic(which) => self.statistics.contains_key(&which),
        }
    }

    /// A range of the observations.
    ///
    /// # Panics
    /// When the range is out of bounds.
    #[track_caller]
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let of = |all: &Vec<f64>| all[rows.clone()].to_vec();
        let slice = |(c, l): (&Compressor, &Arc<Vec<f64>>)| (*c, Arc::new(of(l)));
        let lengths = self.lengths.lock().unwrap_or_else(|e| e.into_inner()).iter().map(slice).collect();
        Self {
            lengths: Arc::new(Mutex::new(lengths)),
            data: self.data.select(&rows.clone().collect::<Vec<_>>()),
            nats: of(&self.nats),
            kind: self.kind,
            background: self.background.as_ref().map(of),
            members: self.members.iter().map(of).collect(),
            statistics: self
                .statistics
                .iter()
                .map(|(which, parts)| (*which, parts.iter().map(of).collect()))
                .collect(),
            samples: self.samples.clone(),
        }
    }

    /// Every column of numbers with its name, for checks.
    pub(crate) fn columns(&self) -> impl Iterator<Item = (String, &[f64])> {
        let background = self.background.as_ref().map(|b| ("the background model".to_string(), &b[..]));
        let members = self.members.iter().enumerate();
        let statistics = self.statistics.iter();
        let statistics =
            statistics.flat_map(|(w, parts)| parts.iter().map(|p| (w.name().to_string(), &p[..])));
        std::iter::once(("the model".to_string(), &self.nats[..]))
            .chain(background)
            .chain(members.map(|(i, m)| (format!("ensemble member {}", i + 2), &m[..])))
            .chain(statistics)
    }
}

/// Whether the observations are u8 images with 1 to 4 channels and at least one pixel.
pub(crate) fn has_images(data: &Dataset) -> bool {
    let values = &data.values;
    matches!(values.shape(), [_, h, w, 1..=4] if *h > 0 && *w > 0) && values.dtype() == DType::U8
}
