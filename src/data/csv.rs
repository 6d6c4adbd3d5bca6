//! CSV: rows of text cells behind an optional header, separated by comma, semicolon or tab, plain or gzip. Between
//! semicolons numbers may have a decimal comma.
//!
//! The first pass infers what the columns are ([`super::infer`]), or holds the file against a given schema; the second
//! turns the cells into numbers. Columns are matched by name: their order in the file does not matter, and columns that
//! the schema does not know are ignored.

use super::infer::{Found, Wish};
use super::input::Input;
use super::{
    Column, ColumnKind, Dataset, Probe, ReadOptions, Schema, SourceInfo, UNSEEN, cells, data, format,
};
use crate::error::{Error, ErrorKind, Result, nearest};
use crate::tensor::Tensor;
use csv::StringRecord;
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

/// The registry line.
pub(super) static CSV: SourceInfo = SourceInfo {
    name: "csv",
    family: "tables",
    summary: "a text table with numeric, categorical, boolean, date and missing cells; the schema is inferred or given",
    extensions: &[".csv", ".tsv"],
    has_keys: false,
    has_labels: true,
    probe: |_: &Probe| false,
    read,
};

/// The rows by which it is found out how numbers are written.
const SAMPLE: usize = 1000;
/// The most columns of a table.
const MAX_COLUMNS: usize = 1 << 14;

fn read(path: &Path, options: &ReadOptions) -> Result<Dataset> {
    table(path, Input::open(path)?.all(options)?, None, options).map(|(set, _)| set)
}

/// The table in the text `bytes` of the file `path`, and the line of its first row; whether the first line is a header
/// is found out unless `header` says it.
pub(super) fn table(
    path: &Path,
    bytes: Vec<u8>,
    header: Option<bool>,
    options: &ReadOptions,
) -> Result<(Dataset, u64)> {
    let text = Text::new(path, bytes, header)?;
    let label = options.labels.as_ref().map(|name| text.column(name)).transpose()?;
    let places: Vec<usize> = match &options.schema {
        Some(schema) => {
            let place = |c: &Column| text.column_of_schema(&c.name);
            schema.columns.iter().map(place).collect::<Result<_>>()?
        }
        None => (0..text.names.len()).filter(|i| Some(*i) != label).collect(),
    };
    let (schema, places) = match &options.schema {
        Some(schema) => (schema.clone(), places),
        None => text.infer(places, options)?,
    };
    if schema.columns.is_empty() {
        return Err(data(path, "no columns are left; expected at least one"));
    }
    let rows = text.rows(options)?;
    let (n, d) = (rows.len(), places.len());
    if (n as u128 * d as u128 * 8) > u128::from(options.max_bytes) {
        return Err(data(
            path,
            format_args!("{n} rows of {d} columns are more than is allowed in memory; set a limit"),
        ));
    }
    let readers: Vec<Reader> = schema.columns.iter().map(Reader::new).collect();
    let mut values = Vec::with_capacity(n * d);
    for row in &rows {
        for (reader, &place) in readers.iter().zip(&places) {
            let cell = row.get(place).unwrap_or_default().trim();
            values.push(reader.read(cell).map_err(|what| text.wrong(row, reader.column, what))?);
        }
    }
    let labels = label.map(|at| text.labels(&rows, at)).transpose()?;
    let first_line = rows[0].position().map_or(1, csv::Position::line);
    let name = super::plain_name(path);
    let name = name.rsplit_once('.').map_or(&*name, |(stem, _)| stem).to_string();
    let set = Dataset::new(name, Tensor::from_slice(&values, [n, d])).with_labels(labels);
    Ok((Dataset { schema: Some(schema), ..set }, first_line))
}

/// The same row with decimal points.
fn pointed(row: &StringRecord) -> StringRecord {
    let cells = row.iter().map(|cell| cells::with_point(cell.trim()).map_or(Cow::Borrowed(cell), Cow::Owned));
    let mut out: StringRecord = cells.collect::<Vec<_>>().into();
    out.set_position(row.position().cloned());
    out
}

/// A cell for messages: on one line, not too long.
fn shown(cell: &str) -> String {
    let cut: String = cell.chars().take(40).collect();
    format!("{cut:?}{}", if cut.len() < cell.len() { "..." } else { "" })
}

/// The file in memory.
struct Text<'a> {
    path: &'a Path,
    bytes: Vec<u8>,
    delimiter: u8,
    /// Numbers have a decimal comma.
    comma: bool,
    header: bool,
    names: Vec<String>,
}

impl<'a> Text<'a> {
    fn new(path: &'a Path, bytes: Vec<u8>, header: Option<bool>) -> Result<Self> {
        if bytes.contains(&0) {
            return Err(format(path, "a zero byte; expected a text table"));
        }
        let line = bytes.split(|&b| b == b'\n').find(|l| !l.trim_ascii().is_empty()).unwrap_or_default();
        let count = |d: u8| line.iter().filter(|&&b| b == d).count();
        // Commas that are all decimal do not count.
        let decimal = |cell: &[u8]| {
            !cell.contains(&b',')
                || std::str::from_utf8(cell).is_ok_and(|c| cells::with_point(c.trim()).is_some())
        };
        let delimiter = match line.contains(&b';') && line.split(|&b| b == b';').all(decimal) {
            true => b';',
            false => [b'\t', b';', b','].into_iter().max_by_key(|&d| count(d)).unwrap_or(b','),
        };
        let mut text = Self { path, bytes, delimiter, comma: false, header: false, names: Vec::new() };
        text.comma = delimiter == b';' && text.has_commas();
        let first = text.records().next().transpose().map_err(|e| text.broken(&e))?;
        let Some(first) = first else { return Err(format(path, "an empty file; expected rows of cells")) };
        if first.len() > MAX_COLUMNS {
            return Err(format(
                path,
                format_args!("{} columns; expected at most {MAX_COLUMNS}", first.len()),
            ));
        }
        let value = |cell: &str| cells::number(cell).is_some() || cells::date(cell).is_some() || cell == "?";
        let worded = !first.iter().any(|c| value(c.trim())) && first.iter().any(|c| !c.trim().is_empty());
        text.header = header.unwrap_or(worded);
        let name = |(i, cell): (usize, &str)| match cell.trim() {
            cell if text.header && !cell.is_empty() => cell.to_string(),
            _ => format!("x{i}"),
        };
        text.names = first.iter().enumerate().map(name).collect();
        let mut seen = BTreeSet::new();
        if let Some(twice) = text.names.iter().find(|name| !seen.insert(name.as_str())) {
            return Err(format(path, format_args!("two columns are called {}", shown(twice))));
        }
        Ok(text)
    }

    fn records(&self) -> impl Iterator<Item = csv::Result<StringRecord>> {
        let records = csv::ReaderBuilder::new()
            .has_headers(false)
            .delimiter(self.delimiter)
            .from_reader(self.bytes.as_slice())
            .into_records();
        records.map(|record| if self.comma { record.map(|r| pointed(&r)) } else { record })
    }

    /// Whether the first rows have numbers like 1,5 and none like 1.5.
    fn has_commas(&self) -> bool {
        let rows = || self.records().take(SAMPLE).filter_map(|row| row.ok());
        let any = |test: fn(&str) -> bool| rows().any(|row| row.iter().any(|cell| test(cell.trim())));
        any(|cell| cells::with_point(cell).is_some())
            && !any(|cell| cell.contains('.') && cells::number(cell).is_some())
    }

    /// The rows to keep, at least one.
    fn rows(&self, options: &ReadOptions) -> Result<Vec<StringRecord>> {
        let rows = self.records().skip(usize::from(self.header)).take(options.limit.unwrap_or(usize::MAX));
        let rows = rows.collect::<csv::Result<Vec<_>>>().map_err(|e| self.broken(&e))?;
        if rows.is_empty() {
            return Err(data(self.path, "a header without rows; expected at least one row"));
        }
        Ok(rows)
    }

    fn broken(&self, error: &csv::Error) -> Error {
        let line = error.position().map_or(0, csv::Position::line);
        let what = match error.kind() {
            csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                format!("{len} cells; expected {expected_len} as in the first row")
            }
            csv::ErrorKind::Utf8 { .. } => "not UTF-8 text".to_string(),
            _ => error.to_string(),
        };
        format(self.path, format_args!("line {line}: {what}"))
    }

    fn wrong(&self, row: &StringRecord, column: &Column, what: String) -> Error {
        let line = row.position().map_or(0, csv::Position::line);
        data(self.path, format_args!("line {line}, column {}: {what}", shown(&column.name)))
    }

    /// The place of the column that an option names.
    fn column(&self, name: &str) -> Result<usize> {
        self.names.iter().position(|n| n == name).ok_or_else(|| {
            let hint = nearest(name, self.names.iter().map(String::as_str));
            Error::new(ErrorKind::Usage, format!("{}: no column \"{name}\"; {hint}", self.path.display()))
        })
    }

    /// The place of a column that the schema demands.
    fn column_of_schema(&self, name: &str) -> Result<usize> {
        self.names.iter().position(|n| n == name).ok_or_else(|| {
            let header = if self.header { "" } else { " (the file has no header)" };
            let hint = nearest(name, self.names.iter().map(String::as_str));
            data(self.path, format_args!("the column {} is missing{header}; {hint}", shown(name)))
        })
    }

    /// The schema of the columns at `places`, without those to be dropped, and their places.
    fn infer(&self, places: Vec<usize>, options: &ReadOptions) -> Result<(Arc<Schema>, Vec<usize>)> {
        let mut found: Vec<Found> = places.iter().map(|_| Found::default()).collect();
        for row in self.rows(options)? {
            for (found, &place) in found.iter_mut().zip(&places) {
                let line = row.position().map_or(0, csv::Position::line);
                found.see(row.get(place).unwrap_or_default().trim(), line);
            }
        }
        for (name, _) in &options.columns {
            self.column(name)?;
        }
        let wish = |place: usize| {
            let asked = |(name, _): &&(String, Wish)| *name == self.names[place];
            options.columns.iter().rev().find(asked).map(|(_, wish)| *wish)
        };
        let (mut columns, mut kept) = (Vec::new(), Vec::new());
        for (found, place) in found.into_iter().zip(places) {
            let name = self.names[place].clone();
            let nullable = found.missing > 0;
            let refuse = |what| data(self.path, format_args!("column {}: {what}", shown(&name)));
            let Some(mut kind) = found.kind(wish(place)).map_err(refuse)? else { continue };
            if let (ColumnKind::Categorical { levels }, true) = (&mut kind, options.unseen) {
                levels.push(UNSEEN.into());
            }
            columns.push(Column { name, kind, nullable });
            kept.push(place);
        }
        Ok((Arc::new(Schema { columns }), kept))
    }

    /// Whole numbers as they are; other texts are numbered in their sorted order.
    fn labels(&self, rows: &[StringRecord], at: usize) -> Result<Vec<i32>> {
        let cells: Vec<&str> = rows.iter().map(|row| row.get(at).unwrap_or_default().trim()).collect();
        if let Some(row) = cells.iter().position(|c| cells::is_missing(c)) {
            let line = rows[row].position().map_or(0, csv::Position::line);
            return Err(data(self.path, format_args!("line {line}: the label is missing")));
        }
        let whole = cells.iter().map(|c| c.parse::<i32>().ok()).collect::<Option<Vec<_>>>();
        Ok(whole.unwrap_or_else(|| {
            let sorted: BTreeSet<&str> = cells.iter().copied().collect();
            let number: HashMap<&str, i32> = sorted.into_iter().zip(0..).collect();
            cells.iter().map(|c| number[c]).collect()
        }))
    }
}

/// Turns the cells of one column into numbers.
pub(super) struct Reader<'a> {
    column: &'a Column,
    levels: HashMap<&'a str, usize>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(column: &'a Column) -> Self {
        let levels = match &column.kind {
            ColumnKind::Categorical { levels } => levels.iter().map(String::as_str).zip(0..).collect(),
            _ => HashMap::new(),
        };
        Self { column, levels }
    }

    pub(super) fn name(&self) -> &str {
        &self.column.name
    }

    /// [`Self::read`], with the column's name in what is wrong.
    pub(super) fn named(&self, cell: &str) -> std::result::Result<f64, String> {
        self.read(cell).map_err(|what| format!("column {}: {what}", shown(self.name())))
    }

    fn read(&self, cell: &str) -> std::result::Result<f64, String> {
        let expected = |what: &str| Err(format!("{}; expected {what}", shown(cell)));
        if cells::is_missing(cell) {
            return if self.column.nullable {
                Ok(f64::NAN)
            } else {
                expected("a value: the schema has no missing cells in this column")
            };
        }
        match &self.column.kind {
            ColumnKind::Numeric => cells::number(cell).map_or_else(|| expected("a finite number"), Ok),
            ColumnKind::Date => {
                cells::date(cell).map_or_else(|| expected("a date like 2014-07-01 00:30:00"), Ok)
            }
            ColumnKind::Boolean => match (cells::truth(cell), cells::number(cell)) {
                (Some(truth), _) => Ok(f64::from(u8::from(truth))),
                (None, Some(x)) if x == 0.0 || x == 1.0 => Ok(x),
                _ => expected("true or false"),
            },
            ColumnKind::Categorical { levels } => match self.levels.get(cell) {
                Some(&level) => Ok(level as f64),
                None if levels.last().is_some_and(|l| l == UNSEEN) => Ok((levels.len() - 1) as f64),
                None => Err(format!(
                    "{} is none of the {} known values; a schema made with --unseen has a level for such values",
                    shown(cell),
                    levels.len()
                )),
            },
        }
    }
}
