//! Likelihood models as detectors: score(x) = −log p(x), nats.

use super::Table;
use crate::autograd::no_grad;
use crate::cuda::{self, Device};
use crate::data::{Column, ColumnKind, Dataset, Schema};
use crate::error::{Error, ErrorKind, Result};
use crate::models::config::{self, find_model};
use crate::models::{Batch, MODELS, Model, file};
use crate::nn::within;
use crate::random::Philox;
use crate::tensor::{DType, Tensor, with_plain};
use crate::train::{Evaluate, Observer, batches_while, fit};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Rows per batch.
const ROWS: usize = 1024;

/// A fitted model of rows.
#[derive(Deserialize)]
#[serde(try_from = "Saved")]
pub(super) struct Likelihood {
    /// The registry's name.
    name: String,
    model: Box<dyn Model>,
}

/// A model as a file has it: what builds it, and its parameters.
#[derive(Serialize, Deserialize)]
struct Saved {
    model: String,
    config: Value,
    params: BTreeMap<String, Vec<f64>>,
}

impl Likelihood {
    /// Fits the model or preset called `name`, changed by the assignments `set`, to rows that are given the shape
    /// (D, `step`...): `&[]` for rows of D numbers, `&[1]` for series of D steps of one number.
    ///
    /// # Errors
    /// Those of the configuration and of training.
    pub fn fit<S: AsRef<str>>(
        name: &str,
        step: &[usize],
        set: &[S],
        reference: &Table,
        rng: &Philox,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let device = cuda::current();
        cuda::on_host(|| Self::fit_on(device, name, step, set, reference, rng, observer))
    }

    fn fit_on<S: AsRef<str>>(
        device: Device,
        name: &str,
        step: &[usize],
        set: &[S],
        reference: &Table,
        rng: &Philox,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let data = dataset(reference, step);
        let mut recipe = config::find(MODELS, name)?;
        recipe.train.seed = rng.state().0;
        recipe.set(set)?;
        recipe.adapt(&data);
        let model = recipe.build()?;
        model.to(device)?;
        let (rest, aside) = match recipe.train.validation {
            share if share > 0.0 && data.len() > 1 && !model.solves() => {
                data.split(share, recipe.train.seed).map(|(rest, aside)| (rest, Some(aside)))?
            }
            _ => (data, None),
        };
        fit(&*model, &rest, aside.as_ref(), &recipe.train, observer)?;
        Ok(Self { name: recipe.info.name.into(), model })
    }

    /// −log p of every row; NaN from a row that has none to the end of its batch.
    pub fn score(&self, x: &Table) -> Vec<f64> {
        let device = cuda::current();
        cuda::on_host(|| self.score_on(device, x))
    }

    fn score_on(&self, device: Device, x: &Table) -> Vec<f64> {
        let step = self.model.input().shape.get(1..).unwrap_or_default().to_vec();
        let mut out = vec![f64::NAN; x.rows()];
        let how = Evaluate { batch: ROWS, ..Default::default() };
        let mut each = |rows: std::ops::Range<usize>, batch: &Batch, rng: &mut Philox| {
            let found = no_grad(|| self.model.log_prob(batch, rng)).nats.to_f64_vec();
            out[rows].iter_mut().zip(found).for_each(|(o, nats)| *o = -nats);
            Ok(())
        };
        let data = dataset(x, &step);
        let go_on = &mut |_| ControlFlow::Continue(());
        let mut asked = || batches_while(&*self.model, &data, &how, go_on, &mut each);
        match self.model.to(device).and_then(|()| asked()) {
            Err(e) if e.kind() == ErrorKind::Device => cuda::fault(e),
            // What the model refuses keeps its NaN, which the detector's caller reports with its row.
            _ => out,
        }
    }

    /// D.
    pub fn columns(&self) -> Option<usize> {
        self.model.input().shape.first().copied().filter(|d| *d > 0)
    }
}

impl Serialize for Likelihood {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let params = file::tensors(&*self.model);
        let params = params.into_iter().map(|(name, t)| (name, t.to_f64_vec())).collect();
        Saved { model: self.name.clone(), config: self.model.config(), params }.serialize(serializer)
    }
}

impl TryFrom<Saved> for Likelihood {
    type Error = String;

    fn try_from(saved: Saved) -> std::result::Result<Self, String> {
        let info = find_model(MODELS, &saved.model).map_err(|e: Error| e.to_string())?;
        let total = saved.params.values().map(Vec::len).sum();
        let built = within(total, || (info.build)(&saved.config, &mut Philox::new(0)));
        let model = built.ok_or("fewer parameters than its configuration asks for")?;
        let model = model.map_err(|e| e.to_string())?;
        let mut tensors = BTreeMap::new();
        for (name, param) in model.params().iter() {
            let own = param.get();
            let values = saved.params.get(name).ok_or_else(|| format!("no parameter \"{name}\""))?;
            if values.len() != own.len() || values.iter().any(|x| !x.is_finite()) {
                return Err(format!("parameter \"{name}\": expected {} finite numbers", own.len()));
            }
            let tensor = with_plain!(own.dtype(), T => {
                Tensor::from_fn(own.shape(), |i| <T as crate::tensor::Plain>::from_f64(values[i]))
            });
            tensors.insert(name.to_string(), tensor);
        }
        file::assign(&*model, &tensors).map_err(|e| e.to_string())?;
        Ok(Self { name: saved.model, model })
    }
}

/// The rows as a data set; the cells of a column of levels hold their indices.
fn dataset(x: &Table, step: &[usize]) -> Dataset {
    let shape: Vec<usize> = [x.rows(), x.columns()].iter().chain(step).copied().collect();
    let values = Tensor::from_slice(x.values(), shape).cast(DType::F32);
    let mut schema = Schema::numeric(x.columns());
    for (column, &levels) in schema.columns.iter_mut().zip(x.levels()) {
        if levels > 0 {
            let levels = (0..levels).map(|l| l.to_string()).collect();
            *column = Column { kind: ColumnKind::Categorical { levels }, ..column.clone() };
        }
    }
    Dataset { schema: Some(Arc::new(schema)), ..Dataset::new("the reference", values) }
}
