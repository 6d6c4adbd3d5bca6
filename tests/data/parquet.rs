//! Parquet tables, written here with the library that reads them.

use super::*;
use ::parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int32Type};
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use std::sync::Arc;
use surprisal::data::{ColumnKind, ReadOptions, Wish};

fn file() -> Vec<u8> {
    let message = "message t { required double x; optional byte_array c (STRING); required boolean b;
        required int32 d (DATE); required int32 n; required byte_array zip (STRING); }";
    let schema = Arc::new(parse_message_type(message).unwrap());
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<DoubleType>().write_batch(&[1.5, 2.5, -1.0], None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let words = ["red", "blue, dark"].map(ByteArray::from);
    column.typed::<ByteArrayType>().write_batch(&words, Some(&[1, 0, 1]), None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<BoolType>().write_batch(&[true, false, true], None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int32Type>().write_batch(&[0, 1, 16252], None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int32Type>().write_batch(&[0, 1, 1], None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let codes = ["10115", "20095", "10115"].map(ByteArray::from);
    column.typed::<ByteArrayType>().write_batch(&codes, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn the_types_of_a_parquet_file_are_its_schema() {
    let folder = TempDir::new().unwrap();
    let path = put(&folder, "t.parquet", &file());
    let set = open(&path).unwrap();
    let columns = &set.schema.as_ref().unwrap().columns;
    let kinds: Vec<(&str, &str, bool)> =
        columns.iter().map(|c| (&*c.name, c.kind.name(), c.nullable)).collect();
    let expected = [
        ("x", "numeric", false),
        ("c", "categorical", true),
        ("b", "boolean", false),
        ("d", "date", false),
        ("n", "numeric", false),
        ("zip", "categorical", false),
    ];
    assert_eq!(kinds, expected);
    assert_eq!(columns[1].kind, ColumnKind::Categorical { levels: vec!["blue, dark".into(), "red".into()] });
    let values = set.values.to_f64_vec();
    assert!(values[7].is_nan());
    assert_eq!(values[..7], [1.5, 1.0, 1.0, 0.0, 0.0, 0.0, 2.5]);
    assert_eq!(values[12..], [-1.0, 0.0, 1.0, 16252.0, 1.0, 0.0]);
    assert_eq!(limited(&path, 2).unwrap().len(), 2);
    let options = ReadOptions { columns: vec![("zip".into(), Wish::Numeric)], ..Default::default() };
    let set = surprisal::data::open(&path, &options).unwrap();
    assert_eq!(set.values.to_f64_vec()[5], 10115.0, "an option is stronger than the type");
}

#[test]
fn damaged_parquet_is_refused() {
    let folder = TempDir::new().unwrap();
    let whole = file();
    for cut in [5, 12, whole.len() / 2, whole.len() - 3] {
        let error = open(&put(&folder, "cut.parquet", &whole[..cut])).expect_err("was read").to_string();
        assert!(error.contains("cut.parquet") && !error.contains('\n'), "{error}");
    }
    for at in (4..whole.len()).step_by(3) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        let _ = open(&put(&folder, "flipped.parquet", &bytes));
    }
}
