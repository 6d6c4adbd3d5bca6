//! Named tensors and a JSON document in one safetensors file.
//!
//! ```text
//! 8 bytes  length n of the header, little endian
//! n bytes  JSON: {"__metadata__": {"surprisal": "<JSON document>"},
//!                 "name": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, ...}
//! rest     the tensors, without gaps
//! ```
//! Reading executes nothing and trusts nothing: the header's length, every offset, shape and dtype are held
//! against the size of the file before memory is asked for, and every number must be finite.

use crate::error::{Error, ErrorKind, Result};
use crate::tensor::{DType, MAX_RANK, Tensor, with_float};
use safetensors::tensor::{Dtype, TensorInfo, View};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The largest header that is read.
const MAX_HEADER: u64 = 16 << 20;
const META: &str = "surprisal";

/// The content of a file.
#[derive(Debug)]
pub struct Container {
    /// The JSON document.
    pub meta: Value,
    /// The tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
}

struct Bytes(Tensor);

impl View for Bytes {
    fn dtype(&self) -> Dtype {
        match self.0.dtype() {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::BF16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
            DType::U8 => Dtype::U8,
            DType::I32 => Dtype::I32,
        }
    }
    fn shape(&self) -> &[usize] {
        self.0.shape()
    }
    fn data(&self) -> Cow<'_, [u8]> {
        self.0.as_bytes().into()
    }
    fn data_len(&self) -> usize {
        self.0.as_bytes().len()
    }
}

fn dtype_of(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        Dtype::BF16 => DType::BF16,
        Dtype::F16 => DType::F16,
        Dtype::U8 => DType::U8,
        Dtype::I32 => DType::I32,
        _ => return None,
    })
}

/// The index of the first element that is NaN or infinite.
pub fn first_non_finite(tensor: &Tensor) -> Option<usize> {
    if !tensor.dtype().is_float() {
        return None;
    }
    let tensor = tensor.on_host();
    with_float!(tensor.dtype(), T => {
        tensor.as_slice::<T>().iter().position(|&x| !crate::tensor::Plain::to_f64(x).is_finite())
    })
}

/// Writes beside `path` and renames; the same content gives the same bytes.
///
/// # Errors
/// [`ErrorKind::NonFinite`] naming the tensor that is not finite; [`ErrorKind::Io`] when the file cannot be written.
pub fn write(path: impl AsRef<Path>, tensors: &BTreeMap<String, Tensor>, meta: &Value) -> Result<()> {
    let path = path.as_ref();
    let fail =
        |kind, message: String| Err(Error::new(kind, format!("{}: not written: {message}", path.display())));
    let tensors: Vec<(&str, Tensor)> = tensors.iter().map(|(name, t)| (name.as_str(), t.on_host())).collect();
    for (name, tensor) in &tensors {
        if let Some(i) = first_non_finite(tensor) {
            return fail(ErrorKind::NonFinite, format!("element {i} of {name} is not finite"));
        }
    }
    let views = tensors.into_iter().map(|(name, tensor)| (name, Bytes(tensor)));
    let header = HashMap::from([(META.to_string(), meta.to_string())]);
    match safetensors::serialize(views, Some(header)) {
        Ok(bytes) => crate::files::write_atomic(path, &bytes),
        Err(e) => fail(ErrorKind::Model, e.to_string()),
    }
}

/// Reads `path`; tensors whose name `wanted` refuses are checked against the file's size, but not kept.
///
/// # Errors
/// [`ErrorKind::Io`] when it cannot be read, else [`ErrorKind::Model`], naming the file and the tensor.
pub fn read(path: impl AsRef<Path>, wanted: impl Fn(&str) -> bool) -> Result<Container> {
    let path = path.as_ref();
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let about = file.metadata().map_err(|e| Error::io(path, e))?;
    if about.is_dir() {
        return Err(Error::new(ErrorKind::Model, format!("{}: a folder; expected a file", path.display())));
    }
    parse(&mut file, about.len(), wanted).map_err(|e| match e {
        Wrong::Io(e) => Error::io(path, e),
        Wrong::Content(message) => Error::new(ErrorKind::Model, format!("{}: {message}", path.display())),
    })
}

type Parsed<T> = std::result::Result<T, Wrong>;

enum Wrong {
    Io(std::io::Error),
    Content(String),
}

impl From<std::io::Error> for Wrong {
    fn from(e: std::io::Error) -> Self {
        Wrong::Io(e)
    }
}

fn parse(file: &mut impl Read, size: u64, wanted: impl Fn(&str) -> bool) -> Parsed<Container> {
    let wrong = |message: String| Err(Wrong::Content(message));
    let mut length = [0; 8];
    if size < 8 {
        return wrong(format!("{size} bytes; not a safetensors file"));
    }
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return wrong(format!("not a safetensors file, or its header is above {MAX_HEADER} bytes"));
    }
    if length > size - 8 {
        return wrong(format!("truncated: a header of {length} bytes in a file of {size}"));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header)?;
    let header: Map<String, Value> = match serde_json::from_slice(&header) {
        Ok(header) => header,
        Err(e) => return wrong(format!("the header is not a JSON object: {e}")),
    };
    let (places, end) = layout(&header)?;
    let (found, expected) = (size - 8 - length, end);
    if found != expected {
        let how = if found < expected { "truncated" } else { "oversized" };
        return wrong(format!("{how}: {found} bytes of tensors, the header describes {expected}"));
    }
    let meta = header.get("__metadata__").and_then(|m| m.get(META)).and_then(Value::as_str);
    let Some(meta) = meta else {
        return wrong(format!(
            "no entry \"{META}\" in __metadata__; the file was not written by this program"
        ));
    };
    let meta = match serde_json::from_str(meta) {
        Ok(meta) => meta,
        Err(e) => return wrong(format!("the entry \"{META}\" of __metadata__ is not JSON: {e}")),
    };
    let mut tensors = BTreeMap::new();
    for Place { name, dtype, shape, len } in places {
        if !wanted(name) {
            std::io::copy(&mut file.take(len), &mut std::io::sink())?;
            continue;
        }
        let mut bytes = vec![0; len as usize];
        file.read_exact(&mut bytes)?;
        let tensor = Tensor::from_bytes(&bytes, shape, dtype);
        if let Some(i) = first_non_finite(&tensor) {
            return wrong(format!("element {i} of tensor \"{name}\" is not finite"));
        }
        tensors.insert(name.to_string(), tensor);
    }
    Ok(Container { meta, tensors })
}

struct Place<'a> {
    name: &'a str,
    dtype: DType,
    shape: Vec<usize>,
    len: u64,
}

/// The tensors in the order in which they lie in the file, and where the last one ends.
fn layout(header: &Map<String, Value>) -> Parsed<(Vec<Place<'_>>, u64)> {
    let mut places = Vec::new();
    for (name, value) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        let wrong = |message: String| Err(Wrong::Content(format!("tensor \"{name}\": {message}")));
        let info = match TensorInfo::deserialize(value) {
            Ok(info) => info,
            Err(e) => return wrong(format!("{e}; expected dtype, shape and data_offsets")),
        };
        let Some(dtype) = dtype_of(info.dtype) else {
            return wrong(format!("dtype {:?}; expected F32, F64, BF16, F16, U8 or I32", info.dtype));
        };
        if info.shape.len() > MAX_RANK {
            return wrong(format!("{} dimensions; expected at most {MAX_RANK}", info.shape.len()));
        }
        let (begin, end) = info.data_offsets;
        let bytes = info.shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d));
        if begin > end || bytes != Some(end - begin) {
            return wrong(format!("bytes {begin}..{end} cannot hold {dtype:?} of shape {:?}", info.shape));
        }
        places.push((begin, Place { name, dtype, shape: info.shape, len: (end - begin) as u64 }));
    }
    places.sort_by_key(|(begin, place)| (*begin, place.len));
    let mut at = 0;
    for (begin, place) in &places {
        if *begin as u64 != at {
            let message = format!("tensor \"{}\": begins at byte {begin}; expected {at}", place.name);
            return Err(Wrong::Content(message));
        }
        at += place.len;
    }
    Ok((places.into_iter().map(|(_, place)| place).collect(), at))
}
