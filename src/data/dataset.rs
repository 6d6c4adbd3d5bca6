//! Examples in memory.

use super::{Schema, Templates};
use crate::error::{Error, ErrorKind, Result};
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;

/// Named examples of one shape, in memory.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Where it came from, short enough for a table.
    pub name: String,
    /// (N, ...): images are (N, H, W, C) u8, tables (N, D) f32 or f64.
    pub values: Tensor,
    /// (N,) class labels, if known.
    pub labels: Option<Vec<i32>>,
    /// What the columns of a table mean, if known.
    pub schema: Option<Arc<Schema>>,
    /// (N,) when each example began, for windows of a series with times.
    pub times: Option<Vec<String>>,
    /// How the examples were cut from a text or a log.
    pub cut: Option<Arc<Cut>>,
    /// (N,) for logs: the number of the line, from 1, behind each step.
    pub lines: Option<Vec<Vec<u32>>>,
}

/// How sequences were cut from a text or a log, so that other files can be cut alike.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cut {
    /// The registry's name of the source.
    pub source: String,
    /// One example per line of a text.
    #[serde(default)]
    pub lines: bool,
    /// How the words begin that tell the sessions of a log.
    #[serde(default)]
    pub session: Option<String>,
    /// The kinds of lines of a log.
    #[serde(default)]
    pub templates: Option<Templates>,
}

impl Dataset {
    /// Examples without labels or schema.
    pub fn new(name: impl Into<String>, values: Tensor) -> Self {
        Self { name: name.into(), values, labels: None, schema: None, times: None, cut: None, lines: None }
    }

    /// With class labels.
    pub fn with_labels(self, labels: Option<Vec<i32>>) -> Self {
        Self { labels, ..self }
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.values.shape()[0]
    }

    /// Whether there are no examples.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The shape of one example, for images `[H, W, C]`.
    pub fn example_shape(&self) -> &[usize] {
        &self.values.shape()[1..]
    }

    /// Numbers per example: the `dims` of bits per dimension.
    pub fn dims(&self) -> usize {
        self.example_shape().iter().product()
    }

    /// The examples at `indices`, in that order.
    ///
    /// # Panics
    /// When an index is out of range.
    #[track_caller]
    pub fn select(&self, indices: &[usize]) -> Self {
        let row = self.dims() * self.values.dtype().size();
        let bytes = self.values.as_bytes();
        let mut picked = Vec::with_capacity(indices.len() * row);
        for &i in indices {
            assert!(i < self.len(), "select: example {i} of {}", self.len());
            picked.extend_from_slice(&bytes[i * row..(i + 1) * row]);
        }
        let labels = self.labels.as_ref().map(|labels| indices.iter().map(|&i| labels[i]).collect());
        let times = self.times.as_ref().map(|times| indices.iter().map(|&i| times[i].clone()).collect());
        let lines = self.lines.as_ref().map(|lines| indices.iter().map(|&i| lines[i].clone()).collect());
        let (values, schema) = (self.shaped(&picked, indices.len()), self.schema.clone());
        Self { name: self.name.clone(), values, labels, schema, times, cut: self.cut.clone(), lines }
    }

    /// The first `n` examples (all, when there are fewer).
    pub fn take(&self, n: usize) -> Self {
        let n = n.min(self.len());
        Self {
            values: self.rows(0..n),
            labels: self.labels.as_ref().map(|labels| labels[..n].to_vec()),
            times: self.times.as_ref().map(|times| times[..n].to_vec()),
            name: self.name.clone(),
            schema: self.schema.clone(),
            cut: self.cut.clone(),
            lines: self.lines.as_ref().map(|lines| lines[..n].to_vec()),
        }
    }

    /// What kind of line stands behind step `i` of example `row` of a log, in words.
    ///
    /// # Panics
    /// When the data is no log.
    #[track_caller]
    pub fn kind_of_line(&self, row: usize, i: usize) -> String {
        let byte = self.values.as_slice::<u8>()[row * self.dims() + i];
        match self.cut.as_ref().and_then(|cut| cut.templates.as_ref()) {
            Some(templates) => super::log::step(templates, byte),
            None => format!("event {byte}"),
        }
    }

    /// The values of a range of examples.
    ///
    /// # Panics
    /// When the range is out of bounds.
    #[track_caller]
    pub fn rows(&self, range: Range<usize>) -> Tensor {
        assert!(range.start <= range.end && range.end <= self.len(), "rows: {range:?} of {}", self.len());
        let row = self.dims() * self.values.dtype().size();
        self.shaped(&self.values.as_bytes()[range.start * row..range.end * row], range.len())
    }

    /// The values in order, `size` examples at a time (the last batch may be smaller).
    ///
    /// # Panics
    /// When `size` is 0.
    #[track_caller]
    pub fn batches(&self, size: usize) -> impl Iterator<Item = (Range<usize>, Tensor)> + '_ {
        assert!(size > 0, "batches: of 0 examples");
        (0..self.len()).step_by(size).map(move |start| {
            let range = start..(start + size).min(self.len());
            (range.clone(), self.rows(range))
        })
    }

    /// A random `fraction` of the examples set aside: (the rest, the fraction), each in the original order.
    /// The same `seed` makes the same split.
    ///
    /// # Errors
    /// When `fraction` is not between 0 and 1, or there are fewer than two examples.
    pub fn split(&self, fraction: f64, seed: u64) -> Result<(Self, Self)> {
        if !(fraction > 0.0 && fraction < 1.0) {
            let message = format!("validation fraction {fraction}; expected a number between 0 and 1");
            return Err(Error::new(ErrorKind::Usage, message));
        }
        let n = self.len();
        if n < 2 {
            let message = format!("{}: {n} examples cannot be split; expected at least 2", self.name);
            return Err(Error::new(ErrorKind::Data, message));
        }
        let aside = ((n as f64 * fraction).round() as usize).clamp(1, n - 1);
        let mut order = Philox::new(seed).permutation(n);
        order[..aside].sort_unstable();
        order[aside..].sort_unstable();
        Ok((self.select(&order[aside..]), self.select(&order[..aside])))
    }

    /// One line: `fashion-mnist-train: 6,000 x 28x28x1 u8, 10 classes`.
    pub fn describe(&self) -> String {
        let shape = self.example_shape().iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        let dtype = match self.values.dtype() {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::U8 => "u8",
            DType::I32 => "i32",
        };
        let classes = self.labels.as_ref().map_or(String::new(), |labels| {
            let mut seen = labels.clone();
            seen.sort_unstable();
            seen.dedup();
            format!(", {} {}", seen.len(), if seen.len() == 1 { "class" } else { "classes" })
        });
        format!("{}: {} x {shape} {dtype}{classes}", self.name, thousands(self.len()))
    }

    fn shaped(&self, bytes: &[u8], n: usize) -> Tensor {
        let mut shape = self.values.shape().to_vec();
        shape[0] = n;
        Tensor::from_bytes(bytes, shape, self.values.dtype())
    }
}

/// `6000` -> `6,000`.
fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
