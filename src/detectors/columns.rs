//! From the columns of a data set to the numbers that a detector sees.

use super::Table;
use crate::data::{ColumnKind, Dataset, Schema};
use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// Standardised values are cut here, so that one cell cannot drown a row.
const CLIP: f64 = 1e3;
/// The bits of an f64 that hold its power of two.
const EXPONENT: u64 = 0x7ff << 52;

/// What numbers are turned into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scaling {
    /// (x − mean)/σ with the reference's mean and standard deviation, cut to ±1000; 0 where the reference is constant.
    Standard,
    /// As they are.
    Raw,
    /// As they are; a negative number is an error, a missing cell counts 0.
    Counts,
    /// Numbers as [`Self::Standard`]; a categorical cell is the index of its level, a missing one or one that the
    /// reference does not have the index behind the last.
    Levels,
}

/// What the reference says about each column.
///
/// Numbers are scaled and a missing cell becomes the reference's mean. A categorical column becomes one number per
/// level, 1/√2 at the cell's level and 0 elsewhere, so that two levels are at distance 1; a missing cell or a level
/// that the reference does not have is 0 at all of them. When the reference has a schema, columns are found by their
/// names and levels by their texts, whatever their order in other data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Columns {
    scaling: Scaling,
    /// Names and levels, if the reference had them.
    schema: Option<Schema>,
    /// One per column of the data.
    columns: Vec<Cells>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Cells {
    /// Mean and standard deviation of the cells that are there; the latter 0 if they are all equal or missing.
    Number { mean: f64, std: f64 },
    /// Share of each level among the reference's cells.
    Level { shares: Vec<f64> },
}

impl Columns {
    /// Learns the columns of `reference`, whose examples are taken as flat rows.
    ///
    /// # Errors
    /// When there are no rows or no columns, or a cell is infinite (a NaN is a missing cell).
    pub fn fit(reference: &Dataset, scaling: Scaling) -> Result<Self> {
        let d = width(reference)?;
        let values = reference.values.to_f64_vec();
        let schema = schema(reference).cloned();
        let columns = (0..d).map(|j| {
            let kind = schema.as_ref().map(|s| &s.columns[j].kind);
            if let Some(ColumnKind::Categorical { levels }) = kind {
                let mut shares = vec![0.0; levels.len().max(1)];
                let levels = values[j..].iter().step_by(d).filter(|x| **x >= 0.0);
                levels.for_each(|&l| shares.iter_mut().skip(l as usize).take(1).for_each(|s| *s += 1.0));
                let n = reference.len() as f64;
                return Ok(Cells::Level { shares: shares.iter().map(|s| s / n).collect() });
            }
            let cells = || values[j..].iter().step_by(d).filter(|x| !x.is_nan());
            if let Some(row) = values[j..].iter().step_by(d).position(|x| x.is_infinite()) {
                return Err(infinite(reference, row, j));
            }
            // In units of a power of two near the largest cell: no square overflows or vanishes, and nothing is rounded.
            let n = cells().count().max(1) as f64;
            let largest = cells().fold(f64::MIN_POSITIVE, |m, x| m.max(x.abs()));
            let unit = f64::from_bits(largest.to_bits() & EXPONENT);
            let mean = cells().map(|x| x / unit).sum::<f64>() / n;
            let square = |x: &f64| (x / unit - mean) * (x / unit - mean);
            let (mean, std) = (mean * unit, (cells().map(square).sum::<f64>() / n).sqrt() * unit);
            let first = cells().next();
            let constant = cells().all(|x| Some(x) == first);
            // A constant column has its exact value as its mean, whatever the sum rounds to.
            let mean = if constant { first.copied().unwrap_or(0.0) } else { mean };
            Ok(Cells::Number { mean, std: if constant || !std.is_finite() { 0.0 } else { std } })
        });
        Ok(Self { scaling, columns: columns.collect::<Result<_>>()?, schema })
    }

    /// The rows of `data` as the detector sees them.
    ///
    /// # Errors
    /// When a column of the reference is not there (by name if both have names, else by number), or a cell is infinite.
    pub fn apply(&self, data: &Dataset) -> Result<Table> {
        let d = width(data)?;
        let sources = self.sources(data, d)?;
        let values = data.values.to_f64_vec();
        for (i, x) in values.iter().enumerate() {
            if x.is_infinite() {
                return Err(infinite(data, i / d, i % d));
            }
            if self.scaling == Scaling::Counts && *x < 0.0 {
                let (row, column) = (i / d, place(data, i % d));
                let message = format!("{}: row {row}, column {column}: {x}; expected counts", data.name);
                return Err(Error::new(ErrorKind::Data, message));
            }
        }
        let table = Table::from_rows(data.len(), self.width(), |i, out| {
            let row = &values[i * d..][..d];
            let mut at = 0;
            for (cells, (source, levels)) in self.columns.iter().zip(&sources) {
                let x = row[*source];
                match cells {
                    Cells::Number { mean, std } => {
                        out[at] = match self.scaling {
                            Scaling::Raw => {
                                if x.is_nan() {
                                    *mean
                                } else {
                                    x
                                }
                            }
                            Scaling::Counts => {
                                if x.is_nan() {
                                    0.0
                                } else {
                                    x
                                }
                            }
                            _ if x.is_nan() || *std == 0.0 => 0.0,
                            Scaling::Standard | Scaling::Levels => ((x - mean) / std).clamp(-CLIP, CLIP),
                        };
                        at += 1;
                    }
                    Cells::Level { shares } => {
                        let level = if x >= 0.0 { Some(x as usize) } else { None };
                        let level = match levels {
                            Some(levels) => level.and_then(|l| levels.get(l).copied().flatten()),
                            None => level,
                        };
                        let level = level.filter(|l| *l < shares.len());
                        if self.scaling == Scaling::Levels {
                            out[at] = level.unwrap_or(shares.len()) as f64;
                        } else if let Some(l) = level {
                            out[at + l] = std::f64::consts::FRAC_1_SQRT_2;
                        }
                        at += cells.width(self.scaling);
                    }
                }
            }
        });
        Ok(match self.scaling {
            Scaling::Levels => table.with_levels(self.columns.iter().map(Cells::levels).collect()),
            _ => table,
        })
    }

    /// Number of columns of the table that [`Self::apply`] makes.
    pub fn width(&self) -> usize {
        self.columns.iter().map(|c| c.width(self.scaling)).sum::<usize>()
    }

    /// Number of columns of the data.
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    /// Whether there are no columns; never true of what [`Self::fit`] makes.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Names and levels of the data's columns, if the reference had them.
    pub fn schema(&self) -> Option<&Schema> {
        self.schema.as_ref()
    }

    /// The name of column `j` of the data.
    pub fn name(&self, j: usize) -> String {
        self.schema.as_ref().map_or_else(|| format!("x{j}"), |s| s.columns[j].name.clone())
    }

    /// Makes column `j` of the data, in a row of the table, what it is in the mean row of the reference.
    pub(super) fn neutral(&self, j: usize, row: &mut [f64]) {
        let start = self.columns[..j].iter().map(|c| c.width(self.scaling)).sum();
        let place = &mut row[start..][..self.columns[j].width(self.scaling)];
        match &self.columns[j] {
            Cells::Number { .. } if matches!(self.scaling, Scaling::Standard | Scaling::Levels) => {
                place.fill(0.0)
            }
            Cells::Number { mean, .. } => place.fill(*mean),
            Cells::Level { shares } if self.scaling == Scaling::Levels => {
                let most = (0..shares.len()).max_by(|&a, &b| shares[a].total_cmp(&shares[b]));
                place[0] = most.unwrap_or(0) as f64;
            }
            Cells::Level { shares } => {
                let scaled = shares.iter().map(|s| s * std::f64::consts::FRAC_1_SQRT_2);
                place.iter_mut().zip(scaled).for_each(|(x, s)| *x = s);
            }
        }
    }

    /// Whether parts that come from a file contradict each other.
    pub(super) fn is_damaged(&self) -> bool {
        let number = |c: &Cells| match c {
            Cells::Number { mean, std } => mean.is_finite() && std.is_finite() && *std >= 0.0,
            Cells::Level { shares } => !shares.is_empty() && shares.iter().all(|s| s.is_finite()),
        };
        let named = self.schema.as_ref().is_none_or(|s| s.columns.len() == self.columns.len());
        !named || self.columns.is_empty() || !self.columns.iter().all(number)
    }

    /// For every column its place in `data`, and for every level there the level here.
    #[allow(clippy::type_complexity)]
    fn sources(&self, data: &Dataset, d: usize) -> Result<Vec<(usize, Option<Vec<Option<usize>>>)>> {
        let wrong = |message: String| Err(Error::new(ErrorKind::Data, format!("{}: {message}", data.name)));
        let (Some(mine), Some(theirs)) = (&self.schema, schema(data)) else {
            if d != self.len() {
                return wrong(format!("{d} columns; the reference has {}", self.len()));
            }
            return Ok((0..d).map(|j| (j, None)).collect());
        };
        let mut out = Vec::with_capacity(self.len());
        for column in &mine.columns {
            let Some(j) = theirs.columns.iter().position(|c| c.name == column.name) else {
                return wrong(format!("no column \"{}\"; the reference has it", column.name));
            };
            let levels = match (&column.kind, &theirs.columns[j].kind) {
                (ColumnKind::Categorical { levels: here }, ColumnKind::Categorical { levels }) => {
                    Some(levels.iter().map(|l| here.iter().position(|h| h == l)).collect())
                }
                (here, there) if std::mem::discriminant(here) == std::mem::discriminant(there) => None,
                (here, there) => {
                    let (here, there) = (kind(here), kind(there));
                    return wrong(format!(
                        "column \"{}\" holds {there}; in the reference {here}",
                        column.name
                    ));
                }
            };
            out.push((j, levels));
        }
        Ok(out)
    }
}

impl Cells {
    fn width(&self, scaling: Scaling) -> usize {
        match self {
            Self::Level { shares } if scaling != Scaling::Levels => shares.len(),
            _ => 1,
        }
    }

    /// Indices that a cell may hold under [`Scaling::Levels`]; 0 for numbers.
    fn levels(&self) -> usize {
        match self {
            Self::Number { .. } => 0,
            Self::Level { shares } => shares.len() + 1,
        }
    }
}

fn kind(kind: &ColumnKind) -> &'static str {
    match kind {
        ColumnKind::Numeric => "numbers",
        ColumnKind::Categorical { .. } => "categories",
        ColumnKind::Boolean => "true or false",
        ColumnKind::Date => "dates",
    }
}

/// The schema, if it describes the columns that are there.
fn schema(data: &Dataset) -> Option<&Schema> {
    data.schema.as_deref().filter(|s| s.columns.len() == data.dims())
}

fn width(data: &Dataset) -> Result<usize> {
    let d = data.dims();
    if data.is_empty() || d == 0 {
        let what = if data.is_empty() { "rows" } else { "columns" };
        return Err(Error::new(ErrorKind::Data, format!("{}: there are no {what}", data.name)));
    }
    Ok(d)
}

/// A column's name, or its number.
fn place(data: &Dataset, column: usize) -> String {
    schema(data).map_or_else(|| column.to_string(), |s| format!("\"{}\"", s.columns[column].name))
}

fn infinite(data: &Dataset, row: usize, column: usize) -> Error {
    let column = place(data, column);
    Error::new(ErrorKind::NonFinite, format!("{}: row {row}, column {column}: an infinite number", data.name))
}
