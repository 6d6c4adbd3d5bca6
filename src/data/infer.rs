//! Inferring what a column of text holds.
//!
//! From the cells that are there: `true`/`false` or `yes`/`no`, and numbers that are all 0 or 1 with both present, are
//! boolean; else numbers are numeric, dates are dates, and anything else is categorical with its values sorted. A column
//! of many numbers and a few texts is none of these but a mistake, or a way to write missing cells that is not known here.

use super::{ColumnKind, cells};
use std::collections::HashSet;

/// The most values of a categorical column.
const MAX_LEVELS: usize = 1024;
/// A column with so many different values, of which this share are numbers, is not categorical.
const NUMBERS: (usize, f64) = (20, 0.8);

/// What the user says a column is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Real numbers.
    Numeric,
    /// The values that occur, sorted.
    Categorical,
    /// True or false.
    Boolean,
    /// Days since 1970-01-01.
    Date,
    /// Not a part of the data.
    Drop,
}

impl std::str::FromStr for Wish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "numeric" => Self::Numeric,
            "categorical" => Self::Categorical,
            "boolean" => Self::Boolean,
            "date" => Self::Date,
            "drop" => Self::Drop,
            _ => return Err(format!("\"{text}\"; expected numeric, categorical, boolean, date or drop")),
        })
    }
}

/// What has been seen of a column.
pub(super) struct Found {
    /// Missing cells.
    pub(super) missing: usize,
    present: usize,
    /// Cells that are numbers.
    numbers: usize,
    /// The first one that is not, with its line.
    text: Option<(u64, String)>,
    binary: bool,
    truths: bool,
    dates: bool,
    /// The distinct values, up to one more than are allowed.
    values: HashSet<String>,
}

impl Default for Found {
    fn default() -> Self {
        let values = HashSet::new();
        Self {
            missing: 0,
            present: 0,
            numbers: 0,
            text: None,
            binary: true,
            truths: true,
            dates: true,
            values,
        }
    }
}

impl Found {
    /// Takes a trimmed cell of this line into account.
    pub(super) fn see(&mut self, cell: &str, line: u64) {
        if cells::is_missing(cell) {
            self.missing += 1;
            return;
        }
        self.present += 1;
        match cells::number(cell) {
            Some(x) => {
                self.numbers += 1;
                self.binary &= x == 0.0 || x == 1.0;
            }
            None if self.text.is_none() => self.text = Some((line, cell.to_string())),
            None => {}
        }
        self.truths = self.truths && cells::truth(cell).is_some();
        self.dates = self.dates && cells::date(cell).is_some();
        if self.values.len() <= MAX_LEVELS && !self.values.contains(cell) {
            self.values.insert(cell.to_string());
        }
    }

    /// What the column is; `None` when it is to be dropped.
    ///
    /// # Errors
    /// A column without any value, one with too many categories, one of numbers with a few texts.
    pub(super) fn kind(self, wish: Option<Wish>) -> Result<Option<ColumnKind>, String> {
        if wish == Some(Wish::Drop) {
            return Ok(None);
        }
        if self.present == 0 {
            return Err("every cell is missing; --column NAME=drop leaves it out".into());
        }
        let both = self.values.len() > 1;
        let inferred = match self {
            Self { truths: true, .. } => Wish::Boolean,
            Self { text: None, binary: true, .. } if both => Wish::Boolean,
            Self { text: None, .. } => Wish::Numeric,
            Self { dates: true, .. } => Wish::Date,
            _ => Wish::Categorical,
        };
        let numeric = self.values.len() > NUMBERS.0 && self.numbers as f64 >= NUMBERS.1 * self.present as f64;
        if let (Some((line, text)), Wish::Categorical, None, true) = (&self.text, inferred, wish, numeric) {
            return Err(format!(
                "{} of {} cells are numbers, line {line} has {text:?}; --column NAME=categorical takes all as texts, \
                 NAME=drop leaves the column out",
                self.numbers, self.present
            ));
        }
        Ok(Some(match wish.unwrap_or(inferred) {
            Wish::Numeric => ColumnKind::Numeric,
            Wish::Boolean => ColumnKind::Boolean,
            Wish::Date => ColumnKind::Date,
            Wish::Categorical | Wish::Drop => {
                if self.values.len() > MAX_LEVELS {
                    return Err(format!(
                        "more than {MAX_LEVELS} different texts; --column NAME=drop leaves it out"
                    ));
                }
                let mut levels: Vec<String> = self.values.into_iter().collect();
                levels.sort_unstable();
                ColumnKind::Categorical { levels }
            }
        }))
    }
}
