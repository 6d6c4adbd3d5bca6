//! Parquet: tables stored by columns (feature `parquet`), without nested columns; snappy or no compression.
//!
//! The schema comes from the types in the file: text is categorical, booleans are boolean, dates and timestamps dates,
//! everything else is numeric (times of day in seconds). [`ReadOptions::columns`] overrides it. The cells take the
//! way of [`super::csv`] as texts, so that one place infers levels and missing cells and holds files against a given
//! schema; messages count the header as line 1.

use super::csv::table;
use super::{Dataset, Probe, ReadOptions, SourceInfo, Wish, cells, data, format};
use crate::error::{Error, Result};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use std::collections::HashMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// The registry line.
pub(super) static PARQUET: SourceInfo = SourceInfo {
    name: "parquet",
    family: "tables",
    summary: "a Parquet table with numeric, categorical, boolean, date and missing cells, as csv",
    extensions: &[".parquet", ".pq"],
    has_keys: false,
    has_labels: true,
    probe: |probe: &Probe| probe.head.starts_with(b"PAR1"),
    read,
};

fn read(path: &Path, options: &ReadOptions) -> Result<Dataset> {
    // The library's own checks may panic on damaged files.
    let text = catch_unwind(AssertUnwindSafe(|| text(path, options)));
    let (text, types) = text.unwrap_or_else(|_| Err(format(path, "a damaged Parquet file")))?;
    let columns = types.into_iter().chain(options.columns.iter().cloned()).collect();
    table(path, text, Some(true), &ReadOptions { columns, ..options.clone() }).map(|(set, _)| set)
}

/// The table as CSV, and what the types of its columns say that they are.
fn text(path: &Path, options: &ReadOptions) -> Result<(Vec<u8>, HashMap<String, Wish>)> {
    let broken = |e: parquet::errors::ParquetError| format(path, e.to_string().replace('\n', " "));
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let reader = SerializedFileReader::new(file).map_err(broken)?;
    let fields = reader.metadata().file_metadata().schema().get_fields();
    let mut out = csv::Writer::from_writer(Vec::new());
    let mut types = HashMap::new();
    let wrong = |e: csv::Error| data(path, e);
    out.write_record(fields.iter().map(|f| f.name())).map_err(wrong)?;
    for row in reader.get_row_iter(None).map_err(broken)?.take(options.limit.unwrap_or(usize::MAX)) {
        for (name, field) in row.map_err(broken)?.get_column_iter() {
            let read = cell(field)
                .ok_or_else(|| data(path, format_args!("column \"{name}\": not a column of plain values")))?;
            if let (Some(wish), false) = (read.1, types.contains_key(name)) {
                types.insert(name.clone(), wish);
            }
            out.write_field(read.0).map_err(wrong)?;
        }
        out.write_record(None::<&[u8]>).map_err(wrong)?;
        if out.get_ref().len() as u64 > options.max_bytes {
            return Err(data(path, "more than is allowed in memory; set a limit on the rows"));
        }
    }
    let text = out.into_inner().map_err(|e| data(path, e.to_string()))?;
    Ok((text, types))
}

/// A cell as text and what its column is, if the cell is there; `None` for what is no plain value.
fn cell(field: &Field) -> Option<(String, Option<Wish>)> {
    let date = |days: f64| (cells::date_text(days), Some(Wish::Date));
    let number = |text: String| (text, Some(Wish::Numeric));
    Some(match field {
        Field::Null => (String::new(), None),
        Field::Bool(value) => (value.to_string(), Some(Wish::Boolean)),
        Field::Str(text) => (text.clone(), Some(Wish::Categorical)),
        Field::Date(days) => date(f64::from(*days)),
        Field::TimestampMillis(t) => date(*t as f64 / 86_400e3),
        Field::TimestampMicros(t) => date(*t as f64 / 86_400e6),
        Field::TimeMillis(t) => number((f64::from(*t) / 1e3).to_string()),
        Field::TimeMicros(t) => number((*t as f64 / 1e6).to_string()),
        Field::Group(_) | Field::ListInternal(_) | Field::MapInternal(_) | Field::Bytes(_) => return None,
        other => number(other.to_string()),
    })
}
