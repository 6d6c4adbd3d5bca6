//! Model files: parameters under torch-style dotted names and everything that is needed to use them.
//!
//! The document in the header (see [`super::container`]) is a [`Meta`]. A file is read only if its version is
//! known, its configuration builds, and its tensors are exactly those of the model.

use super::container::{self, Container};
use super::{Input, Kind, MODELS, Model, Registry, config};
use crate::calibrate::Calibration;
use crate::data::{Cut, Dataset, Schema};
use crate::error::{Error, ErrorKind, Result};
use crate::random::Philox;
use crate::tensor::{DType, Tensor, with_plain};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// The version of the files that this build writes and reads.
pub const VERSION: u32 = 1;

/// What a model file says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// Version of the format.
    pub version: u32,
    /// The model's name in the registry.
    pub model: String,
    /// The preset or file from which its configuration came.
    pub preset: String,
    /// Its configuration.
    pub config: Value,
    /// The seed of its training.
    pub seed: u64,
    /// What it was trained on.
    pub data: Option<DataStats>,
    /// How it was trained and how far it got.
    pub training: Option<Value>,
    /// What held-out data looks like under it.
    pub calibration: Option<HeldOut>,
}

/// What a model was trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataStats {
    /// Name of the data set.
    pub name: String,
    /// Number of examples.
    pub examples: usize,
    /// Shape of one example.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: String,
    /// Mean of all values that are present.
    pub mean: f64,
    /// Standard deviation of all values that are present.
    pub std: f64,
    /// A number that other data is very unlikely to share (FNV-1a of shape and bytes, in hexadecimal).
    pub fingerprint: String,
    /// What the columns of a table are; further files are held against it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Schema>,
    /// How a text or a log was cut; further files are cut alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<Cut>,
}

/// What held-out data looks like, so that a score has a p-value without further data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeldOut {
    /// Fingerprint of the held-out rows.
    pub fingerprint: String,
    /// Shape of one row.
    pub shape: Vec<usize>,
    /// What the numbers in `nats` are.
    pub kind: Kind,
    /// log p of every held-out row, nats.
    pub nats: Vec<f64>,
    /// The scorers that need this model alone, fitted on the first half of the rows and calibrated by the second.
    pub scorers: Vec<Calibration>,
}

impl DataStats {
    /// The statistics of `data`.
    pub fn of(data: &Dataset) -> Self {
        let (n, sum, squares) = with_plain!(data.values.dtype(), T => {
            let values = data.values.as_slice::<T>().iter().map(|&x| crate::tensor::Plain::to_f64(x));
            let present = values.filter(|x| !x.is_nan());
            present.fold((0.0, 0.0, 0.0), |(n, s, q), x| (n + 1.0, s + x, q + x * x))
        });
        let n = f64::max(n, 1.0);
        let mean = sum / n;
        Self {
            name: data.name.clone(),
            examples: data.values.shape()[0],
            shape: data.values.shape()[1..].to_vec(),
            dtype: format!("{:?}", data.values.dtype()).to_lowercase(),
            mean,
            std: (squares / n - mean * mean).max(0.0).sqrt(),
            fingerprint: fingerprint(&data.values),
            schema: data.schema.as_deref().cloned(),
            cut: data.cut.as_deref().cloned(),
        }
    }
}

/// FNV-1a of the shape and the bytes of `values`, in hexadecimal: tells data apart, protects nothing.
pub fn fingerprint(values: &Tensor) -> String {
    let sizes = values.shape().iter().flat_map(|n| (*n as u64).to_le_bytes());
    let bytes = sizes.chain(values.as_bytes().iter().copied());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ b as u64).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

/// A model and what its file says.
pub struct ModelFile {
    /// The model.
    pub model: Box<dyn Model>,
    /// What the file says about it.
    pub meta: Meta,
}

/// The parameters of `model` by name.
pub fn tensors(model: &dyn Model) -> BTreeMap<String, Tensor> {
    model.params().iter().map(|(name, param)| (name.to_string(), param.get().detach())).collect()
}

/// Writes `tensors` and `meta` beside `path` and renames.
///
/// # Errors
/// When a weight is not finite or the file cannot be written.
pub fn save(path: impl AsRef<Path>, tensors: &BTreeMap<String, Tensor>, meta: &Meta) -> Result<()> {
    container::write(path, tensors, &json(meta)?)
}

fn json(meta: &Meta) -> Result<Value> {
    serde_json::to_value(meta)
        .map_err(|e| Error::new(ErrorKind::Model, format!("description of the model: {e}")))
}

/// Reads the model file at `path`.
///
/// # Errors
/// See [`load_from`].
pub fn load(path: impl AsRef<Path>) -> Result<ModelFile> {
    load_from(MODELS, path)
}

/// Reads a file of a model of `registry`.
///
/// # Errors
/// [`ErrorKind::Model`], naming the file and the tensor: truncated, oversized, of another version, of an unknown
/// model, with an impossible configuration, with a missing, unknown or non-finite tensor or one of another shape
/// or dtype.
pub fn load_from(registry: Registry, path: impl AsRef<Path>) -> Result<ModelFile> {
    let path = path.as_ref();
    let Container { meta, tensors } = container::read(path, |_| true)?;
    let about = |e: Error| Error::new(ErrorKind::Model, format!("{}: {e}", path.display()));
    let meta = parse_meta(&meta).map_err(about)?;
    let info = config::find_model(registry, &meta.model).map_err(about)?;
    let total = tensors.values().map(Tensor::len).sum();
    let mut rng = Philox::new(0);
    let model = crate::nn::within(total, || (info.build)(&meta.config, &mut rng)).unwrap_or_else(|| {
        let message = format!("its configuration asks for more than the {total} parameters in the file");
        Err(Error::new(ErrorKind::Model, message))
    });
    let model = model.map_err(about)?;
    assign(model.as_ref(), &tensors).map_err(about)?;
    Ok(ModelFile { model, meta })
}

/// Reads what the file at `path` says about itself, not its parameters.
///
/// # Errors
/// As [`load`], without those about the parameters.
pub fn load_meta(path: impl AsRef<Path>) -> Result<Meta> {
    let path = path.as_ref();
    let meta = container::read(path, |_| false)?.meta;
    parse_meta(&meta).map_err(|e| e.at(path.display()))
}

fn parse_meta(meta: &Value) -> Result<Meta> {
    check_version(meta)?;
    Meta::deserialize(meta).map_err(|e| Error::new(ErrorKind::Model, format!("its description: {e}")))
}

/// Whether the document's `version` is the one this build knows.
///
/// # Errors
/// [`ErrorKind::Model`] with both versions.
pub fn check_version(meta: &Value) -> Result<()> {
    match meta.get("version").and_then(Value::as_u64) {
        Some(version) if version == VERSION as u64 => Ok(()),
        Some(version) => {
            Err(Error::new(ErrorKind::Model, format!("format version {version}; expected {VERSION}")))
        }
        None => Err(Error::new(ErrorKind::Model, "no format version in its description")),
    }
}

/// Gives every parameter of `model` its tensor.
///
/// # Errors
/// [`ErrorKind::Model`] naming the tensor that is missing, unknown, or of another shape or dtype. The model is then
/// unchanged.
pub fn assign(model: &dyn Model, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let fail = |message: String| Err(Error::new(ErrorKind::Model, message));
    for (name, param) in model.params().iter() {
        let (have, want) = (tensors.get(name), param.get());
        let Some(have) = have else { return fail(format!("tensor \"{name}\" is missing")) };
        if (have.shape(), have.dtype()) != (want.shape(), want.dtype()) {
            return fail(format!(
                "tensor \"{name}\" is {}; the model expects {}",
                describe(have.dtype(), have.shape()),
                describe(want.dtype(), want.shape())
            ));
        }
    }
    if let Some(name) = tensors.keys().find(|name| model.params().get(name).is_none()) {
        return fail(format!("tensor \"{name}\" is not one of the model's"));
    }
    for (name, param) in model.params().iter() {
        param.set(&tensors[name]);
    }
    Ok(())
}

fn describe(dtype: DType, shape: &[usize]) -> String {
    format!("{dtype:?} {shape:?}")
}

impl Meta {
    /// The description of an untrained model.
    pub fn new(recipe: &config::Recipe, model: &dyn Model) -> Self {
        Self {
            version: VERSION,
            model: recipe.info.name.to_string(),
            preset: recipe.preset.clone(),
            config: model.config(),
            seed: recipe.train.seed,
            data: None,
            training: None,
            calibration: None,
        }
    }
}

/// One line about what a model takes: `u8 28x28x1`.
pub fn describe_input(input: &Input) -> String {
    let dtypes = input.dtypes.iter().map(|d| format!("{d:?}").to_lowercase()).collect::<Vec<_>>().join("|");
    let shape = input.shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
    format!("{dtypes} {shape}")
}
