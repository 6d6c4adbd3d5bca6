//! What the columns of a table mean.
//!
//! A table is (N, D) floats. A categorical or boolean cell holds the index of its level, a date the days since
//! 1970-01-01, a missing cell NaN (allowed only where the column says so).

use serde::{Deserialize, Serialize};

/// The level that stands for every value which was not there when the schema was made. It is the last of its column
/// and present on demand ([`super::ReadOptions::unseen`]); without it such a value is an error.
pub const UNSEEN: &str = "(unseen)";

/// What a column holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum ColumnKind {
    /// Real numbers.
    Numeric,
    /// One of these values; a cell holds its index.
    Categorical {
        /// The values, in the order of their indices.
        levels: Vec<String>,
    },
    /// 0 or 1.
    Boolean,
    /// Days since 1970-01-01, with a fraction for the time of day.
    Date,
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name, unique in the table.
    pub name: String,
    /// What it holds.
    #[serde(flatten)]
    pub kind: ColumnKind,
    /// Whether cells may be missing (NaN).
    #[serde(default)]
    pub nullable: bool,
}

/// The columns of a table, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Schema {
    /// The columns.
    pub columns: Vec<Column>,
}

impl ColumnKind {
    /// Number of values of a discrete column.
    pub fn levels(&self) -> Option<usize> {
        match self {
            Self::Categorical { levels } => Some(levels.len()),
            Self::Boolean => Some(2),
            Self::Numeric | Self::Date => None,
        }
    }

    /// The kind in one word, as `--column NAME=KIND` takes it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Numeric => "numeric",
            Self::Categorical { .. } => "categorical",
            Self::Boolean => "boolean",
            Self::Date => "date",
        }
    }

    /// A cell as text.
    pub fn text(&self, value: f64) -> String {
        match self {
            _ if value.is_nan() => String::new(),
            Self::Categorical { levels } => levels.get(value as usize).cloned().unwrap_or_default(),
            Self::Boolean => if value == 0.0 { "false" } else { "true" }.into(),
            Self::Date => super::cells::date_text(value),
            Self::Numeric => value.to_string(),
        }
    }
}

impl Schema {
    /// `d` numeric columns called `x0`, `x1`, ...
    pub fn numeric(d: usize) -> Self {
        let column = |i| Column { name: format!("x{i}"), kind: ColumnKind::Numeric, nullable: false };
        Self { columns: (0..d).map(column).collect() }
    }
}
