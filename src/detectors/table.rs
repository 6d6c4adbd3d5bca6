//! Rows of finite numbers.

use crate::cpu::par;
use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// (N, D) finite numbers, row after row; D is at least 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Raw")]
pub struct Table {
    columns: usize,
    values: Vec<f64>,
    /// One per column whose cells are indices of levels, or empty.
    #[serde(skip)]
    levels: Vec<usize>,
}

/// A table as a file has it.
#[derive(Deserialize)]
struct Raw {
    columns: usize,
    values: Vec<f64>,
}

impl TryFrom<Raw> for Table {
    type Error = Error;

    fn try_from(raw: Raw) -> Result<Self> {
        Self::new(raw.columns, raw.values)
    }
}

impl Table {
    /// `values` as rows of `columns` numbers.
    ///
    /// # Errors
    /// [`ErrorKind::Data`] when they do not fill whole rows, [`ErrorKind::NonFinite`] naming the first cell that is
    /// not finite.
    pub fn new(columns: usize, values: Vec<f64>) -> Result<Self> {
        if columns == 0 || !values.len().is_multiple_of(columns) {
            let message = format!("{} numbers do not make rows of {columns} columns", values.len());
            return Err(Error::new(ErrorKind::Data, message));
        }
        if let Some(i) = values.iter().position(|x| !x.is_finite()) {
            let (row, column) = (i / columns, i % columns);
            let message = format!("row {row}, column {column}: {}; expected finite numbers", values[i]);
            return Err(Error::new(ErrorKind::NonFinite, message));
        }
        Ok(Self { columns, values, levels: Vec::new() })
    }

    /// `rows` rows that `fill` writes, row number first; the rows are made in parallel.
    ///
    /// # Panics
    /// When `columns` is 0.
    #[track_caller]
    pub(super) fn from_rows(
        rows: usize,
        columns: usize,
        fill: impl Fn(usize, &mut [f64]) + Send + Sync,
    ) -> Self {
        assert!(columns > 0, "table: rows without columns");
        let mut values = vec![0.0; rows * columns];
        let per = (par::GRAIN / columns).max(1);
        par::chunks_mut(&mut values, per * columns, |chunk, out| {
            out.chunks_exact_mut(columns).enumerate().for_each(|(i, row)| fill(chunk * per + i, row));
        });
        Self { columns, values, levels: Vec::new() }
    }

    /// The same with the number of levels of each column, 0 for numbers.
    pub(super) fn with_levels(self, levels: Vec<usize>) -> Self {
        Self { levels, ..self }
    }

    /// For each column the number of values that its cells are indices of, 0 for numbers; empty if all are numbers.
    pub fn levels(&self) -> &[usize] {
        &self.levels
    }

    /// N.
    pub fn rows(&self) -> usize {
        self.values.len() / self.columns
    }

    /// D.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Row `i`.
    ///
    /// # Panics
    /// When there is no such row.
    #[track_caller]
    pub fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.columns..][..self.columns]
    }

    /// The rows in order.
    pub fn iter(&self) -> std::slice::ChunksExact<'_, f64> {
        self.values.chunks_exact(self.columns)
    }

    /// All numbers, row after row.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Column `j`, copied.
    pub fn column(&self, j: usize) -> Vec<f64> {
        self.values[j..].iter().step_by(self.columns).copied().collect()
    }

    /// The rows at `indices`, in that order.
    ///
    /// # Panics
    /// When an index is out of range.
    #[track_caller]
    pub fn select(&self, indices: &[usize]) -> Self {
        let values = indices.iter().flat_map(|&i| self.row(i)).copied().collect();
        Self { columns: self.columns, values, levels: self.levels.clone() }
    }

    /// One number per row, in parallel; `cost` is the rough number of operations per row.
    pub(super) fn map(&self, cost: usize, f: impl Fn(&[f64]) -> f64 + Send + Sync) -> Vec<f64> {
        let mut out = vec![0.0; self.rows()];
        let per = (par::GRAIN / cost.max(1)).max(1);
        par::chunks_mut(&mut out, per, |chunk, out| {
            out.iter_mut().enumerate().for_each(|(i, o)| *o = f(self.row(chunk * per + i)));
        });
        out
    }

    /// `f(column)` of every column, in parallel.
    pub(super) fn map_columns<T: Send>(&self, f: impl Fn(&[f64]) -> T + Send + Sync) -> Vec<T> {
        let mut out: Vec<Option<T>> = (0..self.columns).map(|_| None).collect();
        par::chunks_mut(&mut out, 1, |j, out| out[0] = Some(f(&self.column(j))));
        out.into_iter().flatten().collect()
    }

    /// The mean of every column.
    pub(super) fn mean(&self) -> Vec<f64> {
        let mut sum = vec![0.0; self.columns];
        self.iter().for_each(|row| sum.iter_mut().zip(row).for_each(|(s, x)| *s += x));
        let n = self.rows().max(1) as f64;
        sum.iter_mut().for_each(|s| *s /= n);
        sum
    }
}

/// |a − b|², in eight sums, so that it vectorises.
#[inline(always)]
pub(super) fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    let ((packs_a, rest_a), (packs_b, rest_b)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (a, b) in packs_a.iter().zip(packs_b) {
        for j in 0..8 {
            sums[j] += (a[j] - b[j]) * (a[j] - b[j]);
        }
    }
    let rest: f64 = rest_a.iter().zip(rest_b).map(|(a, b)| (a - b) * (a - b)).sum();
    sums.iter().sum::<f64>() + rest
}
