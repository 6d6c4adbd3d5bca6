//! The numbers in array files: their types, their bytes, and the checks that values and labels must pass.

use super::data;
use crate::error::Result;
use crate::tensor::{DType, Plain, Tensor};
use std::path::Path;

/// A type of number in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    Bool,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
}

impl Element {
    /// Bytes per number.
    pub(super) fn size(self) -> usize {
        match self {
            Element::Bool | Element::U8 | Element::I8 => 1,
            Element::U16 | Element::I16 => 2,
            Element::U32 | Element::I32 | Element::F32 => 4,
            Element::U64 | Element::I64 | Element::F64 => 8,
        }
    }

    /// The name in messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Element::Bool => "bool",
            Element::U8 => "uint8",
            Element::I8 => "int8",
            Element::U16 => "uint16",
            Element::I16 => "int16",
            Element::U32 => "uint32",
            Element::I32 => "int32",
            Element::U64 => "uint64",
            Element::I64 => "int64",
            Element::F32 => "float32",
            Element::F64 => "float64",
        }
    }
}

/// An array as a file holds it: `raw` are the bytes of the leading rows of an array of `shape`.
pub(super) struct Array {
    pub(super) raw: Vec<u8>,
    pub(super) element: Element,
    pub(super) big_endian: bool,
    /// Outermost first, row-major, rows already limited.
    pub(super) shape: Vec<usize>,
}

fn decode<T: Copy, U: Plain, const N: usize>(
    array: &Array,
    from: fn([u8; N]) -> T,
    to: fn(T) -> U,
) -> Tensor {
    let (numbers, _) = array.raw.as_chunks::<N>();
    let big_endian = array.big_endian;
    Tensor::from_fn(array.shape.as_slice(), |i| {
        let mut bytes = numbers[i];
        if big_endian {
            bytes.reverse();
        }
        to(from(bytes))
    })
}

impl Array {
    /// The numbers as observations: (N, H, W, C) bytes, or floats (or `i32`) of rank 2 or more, all finite.
    pub(super) fn values(mut self, path: &Path) -> Result<Tensor> {
        let (found, rank) = (self.element.name(), self.shape.len());
        if self.element == Element::U8 && rank == 3 {
            self.shape.push(1);
        }
        let [_, example @ ..] = self.shape.as_slice() else {
            return Err(data(path, format_args!("a single {found} number; expected an array of examples")));
        };
        if !(1..=3).contains(&example.len()) {
            return Err(data(
                path,
                format_args!(
                    "a {found} array of rank {rank}, shape {:?}; expected images (N, H, W) or (N, H, W, C), or a table (N, D)",
                    self.shape
                ),
            ));
        }
        if self.element == Element::U8 && example.len() == 3 && !(1..=4).contains(&example[2]) {
            return Err(data(
                path,
                format_args!("images of shape {example:?}; expected (H, W, C), the 1 to 4 channels last"),
            ));
        }
        let values = match self.element {
            Element::U8 => Tensor::from_slice(&self.raw, self.shape.as_slice()),
            Element::I32 => decode(&self, i32::from_le_bytes, |x| x),
            Element::F32 => decode(&self, f32::from_le_bytes, |x| x),
            Element::F64 => decode(&self, f64::from_le_bytes, |x| x),
            _ => {
                return Err(data(
                    path,
                    format_args!("values of type {found}; expected uint8, int32, float32 or float64"),
                ));
            }
        };
        check_finite(&values, path)?;
        Ok(values)
    }

    /// The numbers as labels of `n` examples: whole numbers that fit an `i32`.
    pub(super) fn labels(self, n: usize, path: &Path) -> Result<Vec<i32>> {
        let flat = self.shape.len() == 1 || (self.shape.len() == 2 && self.shape[1] == 1);
        if !flat {
            return Err(data(
                path,
                format_args!("labels of rank {}, shape {:?}; expected rank 1", self.shape.len(), self.shape),
            ));
        }
        if self.shape[0] != n {
            return Err(data(path, format_args!("{} labels for {n} examples", self.shape[0])));
        }
        // f64 holds every i32 exactly, and rounding cannot bring a number from outside into its range.
        let numbers = match self.element {
            Element::Bool | Element::U8 => decode(&self, u8::from_le_bytes, f64::from),
            Element::I8 => decode(&self, i8::from_le_bytes, f64::from),
            Element::U16 => decode(&self, u16::from_le_bytes, f64::from),
            Element::I16 => decode(&self, i16::from_le_bytes, f64::from),
            Element::U32 => decode(&self, u32::from_le_bytes, f64::from),
            Element::I32 => decode(&self, i32::from_le_bytes, f64::from),
            Element::U64 => decode(&self, u64::from_le_bytes, |x| x as f64),
            Element::I64 => decode(&self, i64::from_le_bytes, |x| x as f64),
            Element::F32 => decode(&self, f32::from_le_bytes, f64::from),
            Element::F64 => decode(&self, f64::from_le_bytes, |x| x),
        };
        let label = |(row, &x): (usize, &f64)| {
            let whole = x as i32;
            if f64::from(whole) == x {
                return Ok(whole);
            }
            Err(data(path, format_args!("label {x} in row {row}; expected a whole number of 32 bits")))
        };
        numbers.as_slice::<f64>().iter().enumerate().map(label).collect()
    }
}

/// Refuses NaN and infinities, naming the row and the column (the indices within the example).
pub(super) fn check_finite(values: &Tensor, path: &Path) -> Result<()> {
    let at = match values.dtype() {
        DType::F32 => values.as_slice::<f32>().iter().position(|x| !x.is_finite()),
        DType::F64 => values.as_slice::<f64>().iter().position(|x| !x.is_finite()),
        _ => None,
    };
    let Some(at) = at else { return Ok(()) };
    let number = match values.dtype() {
        DType::F32 => f64::from(values.as_slice::<f32>()[at]),
        _ => values.as_slice::<f64>()[at],
    };
    let mut rest = at;
    let mut index: Vec<usize> = Vec::new();
    for &size in values.shape().iter().rev() {
        index.insert(0, rest % size);
        rest /= size;
    }
    let column = index[1..].iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    Err(data(path, format_args!("{number} in row {}, column {column}; expected finite numbers", index[0])))
}

/// The declared sizes as `usize` and the bytes they take, or what is wrong with them.
pub(super) fn checked_shape(
    sizes: &[u64],
    element: Element,
) -> std::result::Result<(Vec<usize>, u128), String> {
    if sizes.len() > 4 {
        return Err(format!("rank {}; expected at most 4", sizes.len()));
    }
    if let Some(axis) = sizes.iter().position(|&s| s == 0) {
        return Err(format!("shape {sizes:?} is empty along axis {axis}; expected at least one example"));
    }
    let bytes = sizes.iter().try_fold(element.size() as u128, |n, &s| n.checked_mul(u128::from(s)));
    let fits = bytes.filter(|&n| n <= isize::MAX as u128);
    match fits {
        Some(bytes) => Ok((sizes.iter().map(|&s| s as usize).collect(), bytes)),
        None => Err(format!("oversized: the header declares shape {sizes:?}")),
    }
}
