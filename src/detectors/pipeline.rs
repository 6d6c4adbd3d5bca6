//! A fitted detector with what it needs to judge new data, and its file.
//!
//! The file is a [`crate::models::container`]: the description in JSON, and every long list of numbers in it as a tensor
//! of its own (f64, so nothing is lost), with `{"tensor": NAME}` where it stood.

use super::{Columns, Detector, DetectorInfo, Table};
use crate::calibrate::Reference;
use crate::cuda;
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::models::container::{self, Container};
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use crate::train::Observer;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The version of the files that this build writes and reads.
const VERSION: u32 = 1;
/// Lists that are at least so long become tensors.
const LONG: usize = 64;
/// The share of a reference that [`Pipeline::calibrated`] sets aside, and the most rows of it.
const ASIDE: f64 = 0.2;
const MOST_ASIDE: usize = 10_000;

/// Columns, detector, and the scores of reference rows that it was not fitted on.
pub struct Pipeline {
    info: &'static DetectorInfo,
    columns: Columns,
    detector: Box<dyn Detector>,
    /// Name of the data it was fitted on.
    reference: String,
    scores: Reference,
}

/// What a file says.
#[derive(Serialize, Deserialize)]
struct Meta {
    version: u32,
    detector: String,
    columns: Columns,
    state: Value,
    reference: String,
    scores: Reference,
}

impl Pipeline {
    /// Fits the detector on all rows of `reference`; `settings` may name only those that differ from the defaults.
    ///
    /// # Errors
    /// For impossible settings, and for data that the detector cannot learn from.
    pub fn fit(
        info: &'static DetectorInfo,
        settings: &Value,
        reference: &Dataset,
        seed: u64,
    ) -> Result<Self> {
        Self::fit_watched(info, settings, reference, seed, &mut ())
    }

    /// As [`Self::fit`]; `observer` hears of detectors that train by gradient steps and may break off.
    ///
    /// # Errors
    /// Those of [`Self::fit`]; [`ErrorKind::Interrupted`] when broken off.
    pub fn fit_watched(
        info: &'static DetectorInfo,
        settings: &Value,
        reference: &Dataset,
        seed: u64,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let mut detector = (info.build)(settings)?;
        let prepared = cuda::on_host(|| {
            let columns = Columns::fit(reference, info.scaling)?;
            columns.apply(reference).map(|table| (columns, table))
        });
        let (columns, table) = prepared?;
        let fitted = detector.fit_watched(&table, &Philox::new(seed), observer);
        fitted.map_err(|e| e.at(&reference.name))?;
        Ok(Self { info, columns, detector, reference: reference.name.clone(), scores: Reference::default() })
    }

    /// Sets a fifth of `reference` aside (at most 10,000 rows, drawn by `seed`), fits on the rest, and keeps the scores
    /// of what was set aside for p-values.
    ///
    /// # Errors
    /// Those of [`Self::fit`]; fewer than two rows.
    pub fn calibrated(
        info: &'static DetectorInfo,
        settings: &Value,
        reference: &Dataset,
        seed: u64,
    ) -> Result<Self> {
        Self::calibrated_watched(info, settings, reference, seed, &mut ())
    }

    /// As [`Self::calibrated`] and [`Self::fit_watched`].
    ///
    /// # Errors
    /// Those of both.
    pub fn calibrated_watched(
        info: &'static DetectorInfo,
        settings: &Value,
        reference: &Dataset,
        seed: u64,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let fraction = ASIDE.min(MOST_ASIDE as f64 / reference.len().max(1) as f64);
        let (rest, aside) = cuda::on_host(|| reference.split(fraction, seed))?;
        let mut pipeline = Self::fit_watched(info, settings, &rest, seed, observer)?;
        pipeline.scores = Reference::new(pipeline.score(&aside)?)?;
        Ok(pipeline)
    }

    /// The detector's line of the registry.
    pub fn info(&self) -> &'static DetectorInfo {
        self.info
    }

    /// Whether it computes on the device that it is run on ([`crate::Device::run`]); other detectors stay on the CPU.
    pub fn uses_devices(&self) -> bool {
        self.detector.uses_devices()
    }

    /// The columns it knows.
    pub fn columns(&self) -> &Columns {
        &self.columns
    }

    /// The scores of reference rows that it was not fitted on; none without calibration.
    pub fn reference(&self) -> &Reference {
        &self.scores
    }

    /// One finite score per row: higher = more anomalous.
    ///
    /// # Errors
    /// When a column of the reference is not there, or a cell is infinite.
    pub fn score(&self, data: &Dataset) -> Result<Vec<f64>> {
        let table = cuda::on_host(|| self.columns.apply(data))?;
        self.detector.score(&table).map_err(|e| e.at(&data.name))
    }

    /// What the score of one row would lose if a cell were that of the mean reference row, for every column of the data:
    /// the columns that made the score have the largest numbers. Works for every detector, at D scores per row.
    ///
    /// # Errors
    /// Those of [`Self::score`].
    pub fn worst_columns(&self, data: &Dataset, row: usize) -> Result<Vec<f64>> {
        let table = cuda::on_host(|| self.columns.apply(&data.select(&[row])))?;
        let (d, m) = (table.columns(), self.columns.len());
        let changed = Table::from_rows(m + 1, d, |j, out| {
            out.copy_from_slice(table.row(0));
            if j < m {
                self.columns.neutral(j, out);
            }
        });
        let scores = self.detector.score(&changed).map_err(|e| e.at(&data.name))?;
        Ok(scores[..m].iter().map(|s| scores[m] - s).collect())
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let meta = Meta {
            version: VERSION,
            detector: self.info.name.into(),
            columns: self.columns.clone(),
            state: self.detector.state()?,
            reference: self.reference.clone(),
            scores: self.scores.clone(),
        };
        let mut meta = serde_json::to_value(meta)
            .map_err(|e| Error::new(ErrorKind::Model, format!("description of the detector: {e}")))?;
        let mut tensors = BTreeMap::new();
        take_out(&mut meta, "", &mut tensors);
        container::write(path, &tensors, &meta)
    }

    /// Reads a file that [`Self::save`] wrote; the scores are the same again, bit for bit.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] naming the file and what is wrong with it.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let Container { mut meta, tensors } = container::read(path, |_| true)?;
        let about = |message: String| Error::new(ErrorKind::Model, format!("{}: {message}", path.display()));
        if meta.get("detector").is_none() {
            return Err(about("not the file of a detector".into()));
        }
        if meta.get("version") != Some(&VERSION.into()) {
            return Err(about(format!("its version is {}; expected {VERSION}", meta["version"])));
        }
        put_back(&mut meta, &tensors).map_err(&about)?;
        let meta = Meta::deserialize(meta).map_err(|e| about(format!("its description: {e}")))?;
        let info = super::find(&meta.detector).map_err(|e| about(e.to_string()))?;
        let mut detector = (info.build)(&Value::Null)?;
        detector.restore(&meta.state).map_err(|e| about(e.to_string()))?;
        if meta.columns.is_damaged() {
            return Err(about("its columns contradict themselves".into()));
        }
        let zero = Table::new(meta.columns.width().max(1), vec![0.0; meta.columns.width().max(1)])?;
        detector.score(&zero).map_err(|e| about(e.to_string()))?;
        let Meta { columns, reference, scores, .. } = meta;
        Ok(Self { info, columns, detector, reference, scores })
    }
}

/// Moves long lists of numbers out of `value`.
fn take_out(value: &mut Value, name: &str, tensors: &mut BTreeMap<String, Tensor>) {
    let inner = |key: &str| if name.is_empty() { key.to_string() } else { format!("{name}.{key}") };
    match value {
        Value::Array(list) if list.len() >= LONG && list.iter().all(Value::is_number) => {
            let whole = list.iter().all(|x| x.is_u64() || x.is_i64());
            let numbers: Vec<f64> = list.iter().filter_map(Value::as_f64).collect();
            tensors.insert(name.into(), Tensor::from_slice(&numbers, [numbers.len()]));
            *value = json!({"tensor": name, "whole": whole});
        }
        Value::Array(list) => {
            list.iter_mut().enumerate().for_each(|(i, v)| take_out(v, &inner(&i.to_string()), tensors));
        }
        Value::Object(map) => map.iter_mut().for_each(|(key, v)| take_out(v, &inner(key), tensors)),
        _ => {}
    }
}

/// The reverse of [`take_out`].
fn put_back(value: &mut Value, tensors: &BTreeMap<String, Tensor>) -> std::result::Result<(), String> {
    let place = |map: &Map<String, Value>| {
        Some((map.get("tensor")?.as_str()?.to_string(), map.get("whole")?.as_bool()?))
            .filter(|_| map.len() == 2)
    };
    match value {
        Value::Object(map) => match place(map) {
            Some((name, whole)) => {
                let tensor = tensors.get(&name).filter(|t| t.dtype() == DType::F64 && t.rank() == 1);
                let tensor =
                    tensor.ok_or_else(|| format!("there is no list of numbers called \"{name}\""))?;
                let number = |&x: &f64| if whole { (x as i64).into() } else { x.into() };
                *value = Value::Array(tensor.as_slice::<f64>().iter().map(number).collect());
                Ok(())
            }
            None => map.iter_mut().try_for_each(|(_, v)| put_back(v, tensors)),
        },
        Value::Array(list) => list.iter_mut().try_for_each(|v| put_back(v, tensors)),
        _ => Ok(()),
    }
}
