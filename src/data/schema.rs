//! What the columns of a table mean.
//!
//! A table is (N, D) floats. A categorical or boolean cell holds the index of its level, a date the days since
//! 1970-01-01, a missing cell NaN (allowed only where the column says so).

use serde::{Deserialize, Serialize};

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
}

impl Schema {
    /// `d` numeric columns called `x0`, `x1`, ...
    pub fn numeric(d: usize) -> Self {
        let column = |i| Column { name: format!("x{i}"), kind: ColumnKind::Numeric, nullable: false };
        Self { columns: (0..d).map(column).collect() }
    }
}
