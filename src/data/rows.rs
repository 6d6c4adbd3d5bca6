//! Rows that come one by one, as lines of a stream, in the columns of a table.
//!
//! A line is cells between commas, semicolons or tabs (quoted as in CSV), numbers between blanks, a JSON array or a JSON
//! object. Cells are those of the columns in their order, or in that of a header, which names them all; what else the
//! header or an object names is ignored, as in a file. An empty cell, `null` and `NaN` are missing.

use super::csv::Reader;
use super::{Schema, cells};
use serde_json::Value;
use std::borrow::Cow;

/// Turns lines into the numbers of a row.
pub struct RowReader<'a> {
    dims: usize,
    /// Of the schema, if there is one; without it all cells are numbers.
    columns: Option<Vec<Reader<'a>>>,
    /// Where in a line each column is, if there was a header, and the cells of a line.
    header: Option<(Vec<usize>, usize)>,
    /// Whether a line was read.
    begun: bool,
}

type Cells<'a> = Vec<Cow<'a, str>>;

impl<'a> RowReader<'a> {
    /// A reader of rows of `dims` numbers, or of the columns of this schema.
    pub fn new(schema: Option<&'a Schema>, dims: usize) -> Self {
        let columns = schema.map(|schema| schema.columns.iter().map(Reader::new).collect());
        Self { dims, columns, header: None, begun: false }
    }

    /// The numbers that stand for the cells of one line, as a file's row would be read; `None` of a header and of a
    /// blank line.
    ///
    /// # Errors
    /// What is wrong, naming the column or the cell.
    pub fn read(&mut self, line: &str) -> Result<Option<Vec<f64>>, String> {
        // Some programs begin a stream with a byte order mark.
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() {
            return Ok(None);
        }
        let first = !std::mem::replace(&mut self.begun, true);
        let cells = match line.as_bytes()[0] {
            b'{' => return self.object(line).map(Some),
            b'[' => array(line)?,
            _ => {
                let cells = self.split(line);
                if first && self.is_header(&cells) {
                    return Ok(None);
                }
                self.placed(cells)?
            }
        };
        self.numbers(&cells).map(Some)
    }

    fn split<'l>(&self, line: &'l str) -> Cells<'l> {
        let count = |d: u8| line.bytes().filter(|&b| b == d).count();
        let expected = self.header.as_ref().map_or(self.dims, |(_, n)| *n);
        let delimiter = [b'\t', b';', b',']
            .into_iter()
            .max_by_key(|&d| (count(d) > 0 && count(d) + 1 == expected, count(d)))
            .filter(|&d| count(d) > 0);
        match delimiter {
            None if self.dims == 1 => vec![Cow::Borrowed(line)],
            None => line.split_whitespace().map(Cow::Borrowed).collect(),
            Some(d) if !line.contains('"') => {
                let cell = |c: &'l str| match cells::with_point(c.trim()).filter(|_| d == b';') {
                    Some(pointed) => Cow::Owned(pointed),
                    None => Cow::Borrowed(c.trim()),
                };
                line.split(char::from(d)).map(cell).collect()
            }
            Some(d) => {
                let mut reader = csv::ReaderBuilder::new();
                let mut reader = reader.has_headers(false).delimiter(d).from_reader(line.as_bytes());
                let record = reader.records().next().and_then(Result::ok).unwrap_or_default();
                record.iter().map(|c| Cow::Owned(c.trim().to_string())).collect()
            }
        }
    }

    /// Whether the cells are a header: they name every column.
    fn is_header(&mut self, cells: &Cells) -> bool {
        let Some(columns) = &self.columns else { return false };
        let place = |column: &Reader| cells.iter().position(|cell| *cell == column.name());
        let places: Option<Vec<usize>> = columns.iter().map(place).collect();
        self.header = places.map(|places| (places, cells.len()));
        self.header.is_some()
    }

    /// The cells in the order of the columns.
    fn placed<'l>(&self, mut cells: Cells<'l>) -> Result<Cells<'l>, String> {
        match &self.header {
            None => Ok(cells),
            Some((places, n)) if *n == cells.len() => {
                Ok(places.iter().map(|&place| std::mem::take(&mut cells[place])).collect())
            }
            Some((_, n)) => Err(format!("{} cells; the header has {n}", cells.len())),
        }
    }

    fn object(&self, line: &str) -> Result<Vec<f64>, String> {
        let Some(columns) = &self.columns else {
            return Err("a JSON object; the model's columns have no names, expected an array".into());
        };
        let object: serde_json::Map<String, Value> = serde_json::from_str(line).map_err(|e| e.to_string())?;
        let of = |column: &Reader| object.get(column.name()).map_or(Ok(Cow::Borrowed("")), cell);
        self.numbers(&columns.iter().map(of).collect::<Result<_, _>>()?)
    }

    fn numbers(&self, cells: &Cells) -> Result<Vec<f64>, String> {
        if cells.len() != self.dims {
            return Err(format!("{} cells; the model expects {}", cells.len(), self.dims));
        }
        let number = |(i, cell): (usize, &Cow<str>)| match &**cell {
            "" | "null" | "NaN" | "nan" => Ok(f64::NAN),
            cell => cell.parse().map_err(|_| format!("cell {i}: \"{cell}\" is no number")),
        };
        match &self.columns {
            Some(columns) => columns.iter().zip(cells).map(|(column, cell)| column.named(cell)).collect(),
            None => cells.iter().enumerate().map(number).collect(),
        }
    }
}

fn array(line: &str) -> Result<Cells<'static>, String> {
    let values: Vec<Value> = serde_json::from_str(line).map_err(|e| e.to_string())?;
    values.iter().map(|value| cell(value).map(|c| Cow::Owned(c.into_owned()))).collect()
}

/// A JSON value as a cell of text.
fn cell(value: &Value) -> Result<Cow<'_, str>, String> {
    match value {
        Value::Null => Ok(Cow::Borrowed("")),
        Value::String(text) => Ok(Cow::Borrowed(text.trim())),
        Value::Number(_) | Value::Bool(_) => Ok(Cow::Owned(value.to_string())),
        _ => Err(format!("{value}; expected a number, a text, true, false or null")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Column, ColumnKind};

    fn schema() -> Schema {
        let kinds = ColumnKind::Categorical { levels: vec!["red".into(), "dark, blue".into()] };
        let column = |(name, kind): (&str, ColumnKind)| Column { name: name.into(), kind, nullable: true };
        let columns = [("hue", kinds), ("size", ColumnKind::Numeric), ("new", ColumnKind::Boolean)];
        Schema { columns: columns.into_iter().map(column).collect() }
    }

    #[test]
    fn numbers_in_many_dresses() {
        for line in [
            "1,2.5,-3e2",
            " 1 ; 2.5;-3e2 \r\n",
            "1,0;2,5;-3,0e2",
            "[1, 2.5, -300]\n",
            "1 2.5 -300",
            "1\t2.5\t-300",
        ] {
            let row = RowReader::new(None, 3).read(line).unwrap().unwrap();
            assert_eq!(row, [1.0, 2.5, -300.0], "{line:?}");
        }
        let mut reader = RowReader::new(None, 3);
        assert!(reader.read("1,,3").unwrap().unwrap()[1].is_nan());
        assert!(reader.read("[1,null,3]").unwrap().unwrap()[1].is_nan());
        assert_eq!(reader.read(" \n"), Ok(None));
        for (line, words) in [
            ("1,2", "expects 3"),
            ("1,2,x", "cell 2"),
            ("a,b,c", "cell 0"),
            ("[1,2", "EOF"),
            ("[1,2,[3]]", "expected a number"),
            ("{\"a\": 1}", "no names"),
        ] {
            let message = reader.read(line).unwrap_err();
            assert!(message.contains(words), "{line:?}: {message}");
        }
    }

    #[test]
    fn rows_of_a_schema() {
        let schema = schema();
        let read = |lines: &[&str]| {
            let mut reader = RowReader::new(Some(&schema), 3);
            lines.iter().map(|line| reader.read(line)).collect::<Result<Vec<_>, _>>()
        };
        let row = Some(vec![1.0, 2.5, 1.0]);
        let quoted = "\"dark, blue\", 2.5, true";
        assert_eq!(read(&[quoted, quoted]), Ok(vec![row.clone(), row.clone()]));
        // A header in another order, with a column more.
        let lines = ["\u{feff}id;new;size;hue", "7;true;2.5;dark, blue", "8;true;2.5;dark, blue"];
        assert_eq!(read(&lines), Ok(vec![None, row.clone(), row.clone()]));
        let object = r#"{"size": 2.5, "new": true, "hue": "dark, blue", "id": [1]}"#;
        assert_eq!(read(&[object, r#"["dark, blue", 2.5, true]"#]), Ok(vec![row.clone(), row]));
        let missing = read(&[r#"{"size": 1}"#]).unwrap().remove(0).unwrap();
        assert!(missing[0].is_nan() && missing[1] == 1.0 && missing[2].is_nan());
        for (lines, words) in [
            (&["green,1,0"][..], "\"hue\""),
            (&["hue,size,new", "red,1"], "the header has 3"),
            (&["hue,size"], "2 cells"),
            (&["red,1,0", "hue,size,new"], "\"hue\""),
        ] {
            let message = read(lines).unwrap_err();
            assert!(message.contains(words), "{lines:?}: {message}");
        }
    }
}
