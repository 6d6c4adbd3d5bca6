//! Tables of text: what is inferred, what may be overridden, what a later file is held against.

use super::*;
use std::sync::Arc;
use surprisal::ErrorKind;
use surprisal::data::{Column, ColumnKind, Schema, UNSEEN, Wish};

const TRAIN: &str = "age,city,when,member,flag,note
31,Bern,2014-07-01 00:00:00,yes,1,a
NA,\"Zug, old\",2014-07-01 12:00:00,no,0,b
47.5,Bern,2014-07-02,yes,1,
";

fn with(options: ReadOptions) -> impl Fn(&Path) -> surprisal::Result<Dataset> {
    move |path| data::open(path, &options)
}

fn column(name: &str, kind: ColumnKind, nullable: bool) -> Column {
    Column { name: name.into(), kind, nullable }
}

fn categorical(levels: &[&str]) -> ColumnKind {
    ColumnKind::Categorical { levels: levels.iter().map(|l| l.to_string()).collect() }
}

#[test]
fn a_schema_is_inferred_shown_and_overridden() {
    let folder = TempDir::new().unwrap();
    let path = put(&folder, "People.CSV.gz", &gz(TRAIN.as_bytes()));
    let set = open(&path).unwrap();
    let expected = vec![
        column("age", ColumnKind::Numeric, true),
        column("city", categorical(&["Bern", "Zug, old"]), false),
        column("when", ColumnKind::Date, false),
        column("member", ColumnKind::Boolean, false),
        column("flag", ColumnKind::Boolean, false),
        column("note", categorical(&["a", "b"]), true),
    ];
    assert_eq!(set.schema.as_ref().unwrap().columns, expected);
    assert_eq!(set.describe(), "people: 3 x 6 f64");
    let values = set.values.to_f64_vec();
    assert!(values[6].is_nan() && values[17].is_nan());
    assert_eq!(values[12..17], [47.5, 0.0, 16253.0, 1.0, 1.0]);
    assert_eq!(values[7..12], [1.0, 16252.5, 0.0, 0.0, 1.0]);
    let text = serde_json::to_string(&set.schema.as_deref().unwrap()).unwrap();
    assert_eq!(serde_json::from_str::<Schema>(&text).unwrap(), **set.schema.as_ref().unwrap());

    let columns =
        vec![("age".into(), Wish::Drop), ("flag".into(), Wish::Numeric), ("when".into(), Wish::Categorical)];
    let other =
        with(ReadOptions { columns, unseen: true, labels: Some("city".into()), ..Default::default() })(&path);
    let other = other.unwrap();
    assert_eq!(other.labels.as_deref(), Some(&[0, 1, 0][..]));
    let kinds: Vec<(&str, Option<usize>)> =
        other.schema.as_ref().unwrap().columns.iter().map(|c| (c.name.as_str(), c.kind.levels())).collect();
    assert_eq!(kinds, [("when", Some(4)), ("member", Some(2)), ("flag", None), ("note", Some(3))]);
}

#[test]
fn tables_without_header_and_with_other_separators() {
    let folder = TempDir::new().unwrap();
    let plain = open(&put(&folder, "a.csv", b"1,tcp,0.5\n2,udp,0.25\n")).unwrap();
    let names: Vec<&str> = plain.schema.as_ref().unwrap().columns.iter().map(|c| c.name.as_str()).collect();
    assert_eq!((names, plain.len()), (vec!["x0", "x1", "x2"], 2));
    for (name, text) in [
        ("b.csv", "p;q\n1;2\r\n3;4\r\n"),
        ("b.tsv", "p\tq\n1\t2\n3\t4"),
        ("b.csv", "\u{feff}p,q\n1,2\n3,4\n"),
    ] {
        let set = open(&put(&folder, name, text.as_bytes())).unwrap();
        assert_eq!(set.values.to_f64_vec(), [1.0, 2.0, 3.0, 4.0], "{text:?}");
        assert_eq!(set.schema.unwrap().columns[0].name, "p", "{text:?}");
    }
    // Decimal commas, between semicolons only; a column of words keeps its own.
    let comma = open(&put(&folder, "c.csv", b"p;q\n1,5;a,b\n-3;c\n,5;c\n")).unwrap();
    assert_eq!(comma.values.to_f64_vec(), [1.5, 0.0, -3.0, 1.0, 0.5, 1.0]);
    assert_eq!(comma.schema.unwrap().columns[1].kind, categorical(&["a,b", "c"]));
    let bare = open(&put(&folder, "e.csv", b"1,5;2,5\n3;4\n")).unwrap();
    assert_eq!(bare.values.to_f64_vec(), [1.5, 2.5, 3.0, 4.0]);
    let point = open(&put(&folder, "d.csv", b"p;q\n1.5;1,5\n2.5;2\n")).unwrap();
    assert_eq!(point.schema.unwrap().columns[1].kind, categorical(&["1,5", "2"]));
    let labelled = ReadOptions { labels: Some("y".into()), limit: Some(2), ..Default::default() };
    let set = with(labelled)(&put(&folder, "l.csv", b"y,x\n7,1.5\n-1,2\n3,4\n")).unwrap();
    assert_eq!((set.labels.unwrap(), set.values.to_f64_vec()), (vec![7, -1], vec![1.5, 2.0]));
}

#[test]
fn later_files_are_held_against_the_schema() {
    let folder = TempDir::new().unwrap();
    let schema = open(&put(&folder, "train.csv", TRAIN.as_bytes())).unwrap().schema;
    let hold = with(ReadOptions { schema: schema.clone(), ..Default::default() });
    let read = |text: &str| hold(&put(&folder, "new.csv", text.as_bytes()));
    let set = read("note,extra,flag,member,when,city,age\nb,9,1,no,2014-07-03,Bern,2\n").unwrap();
    assert_eq!(set.values.to_f64_vec(), [2.0, 0.0, 16254.0, 0.0, 1.0, 1.0]);
    assert_eq!(set.schema, schema);
    let refused = |text: &str, words: &[&str]| {
        let error = read(text).expect_err("was read");
        let message = error.to_string();
        assert!(words.iter().all(|w| message.contains(w)), "{message}");
        assert!(message.contains("new.csv") && !message.contains('\n'), "{message}");
        assert_eq!(error.kind(), ErrorKind::Data, "{message}");
    };
    let head = "age,city,when,member,flag,note\n";
    refused("age,city,when,member,flag\n1,Bern,2014-07-01,yes,1\n", &["column \"note\" is missing"]);
    refused(&format!("{head}1,Basel,2014-07-01,yes,1,a\n"), &["line 2", "\"city\"", "\"Basel\"", "--unseen"]);
    refused(
        &format!("{head}1,Bern,2014-07-01,yes,1,a\nx,Bern,2014-07-01,yes,1,a\n"),
        &["line 3", "\"age\"", "number"],
    );
    refused(&format!("{head}1,,2014-07-01,yes,1,a\n"), &["\"city\"", "no missing cells"]);
    refused(&format!("{head}1,Bern,yesterday,yes,1,a\n"), &["\"when\"", "a date like"]);
    refused(&format!("{head}1,Bern,2014-07-01,2,1,a\n"), &["\"member\"", "true or false"]);

    let open_to_new = with(ReadOptions { unseen: true, ..Default::default() });
    let schema = open_to_new(&folder.path().join("train.csv")).unwrap().schema.unwrap();
    assert_eq!(schema.columns[1].kind, categorical(&["Bern", "Zug, old", UNSEEN]));
    let hold = with(ReadOptions { schema: Some(schema), ..Default::default() });
    let set =
        hold(&put(&folder, "new.csv", format!("{head}1,Basel,2014-07-01,yes,1,c\n").as_bytes())).unwrap();
    assert_eq!([1, 5].map(|i| set.values.to_f64_vec()[i]), [2.0, 2.0]);
    let array = put(&folder, "t.npy", &npy_of("<f8", "(4, 6)", &f64s(24, |i| i as f64)));
    assert!(hold(&array).unwrap_err().to_string().contains("without column names"));
}

#[test]
fn bad_tables() {
    let folder = TempDir::new().unwrap();
    let refused = |bytes: &[u8], options: ReadOptions, kind: ErrorKind, words: &[&str]| {
        let error = data::open(put(&folder, "bad.csv", bytes), &options).expect_err("a bad table was read");
        let message = error.to_string();
        assert!(words.iter().all(|w| message.contains(w)) && message.contains("bad.csv"), "{message}");
        assert!(!message.contains('\n'), "{message}");
        assert_eq!(error.kind(), kind, "{message}");
    };
    let plain = ReadOptions::default;
    let wish = |name: &str, wish| ReadOptions { columns: vec![(name.into(), wish)], ..plain() };
    refused(b"a,b\n1,2\n3\n", plain(), ErrorKind::Format, &["line 3", "1 cells", "expected 2"]);
    refused(b"a,b\n", plain(), ErrorKind::Data, &["header without rows"]);
    refused(b"\n\n", plain(), ErrorKind::Format, &["empty"]);
    refused(b"a,a\n1,2\n", plain(), ErrorKind::Format, &["two columns are called \"a\""]);
    refused(b"a,b\n1,\xff\n", plain(), ErrorKind::Format, &["line 2", "UTF-8"]);
    refused(b"a,b\n1,\0\n", plain(), ErrorKind::Format, &["zero byte"]);
    refused(b"a,b\n1,NA\n2,?\n", plain(), ErrorKind::Data, &["\"b\"", "every cell is missing", "drop"]);
    refused(
        b"a,b\n1,inf\n2,3\n",
        wish("b", Wish::Numeric),
        ErrorKind::Data,
        &["line 2", "\"inf\"", "finite number"],
    );
    refused(b"a,b\n1,2\n", wish("c", Wish::Numeric), ErrorKind::Usage, &["no column \"c\""]);
    refused(b"a\n1\n", wish("a", Wish::Drop), ErrorKind::Data, &["no columns are left"]);
    let labels = ReadOptions { labels: Some("z".into()), ..plain() };
    refused(b"a,b\n1,2\n", labels, ErrorKind::Usage, &["no column \"z\""]);
    let many: String = (0..1100).map(|i| format!("{i},id{i}\n")).collect();
    refused(many.as_bytes(), plain(), ErrorKind::Data, &["\"x1\"", "more than 1024", "drop"]);
    let numbers = (0..30).map(|i| format!("{}\n", if i == 7 { "oops".into() } else { i.to_string() }));
    let numbers: String = numbers.collect();
    let words = ["\"x0\"", "29 of 30", "line 8", "\"oops\"", "categorical", "drop"];
    refused(numbers.as_bytes(), plain(), ErrorKind::Data, &words);
    let texts = data::open(put(&folder, "texts.csv", numbers.as_bytes()), &wish("x0", Wish::Categorical));
    assert_eq!(texts.unwrap().len(), 30);
    let key = ReadOptions { key: Some("a".into()), ..plain() };
    refused(b"a,b\n1,2\n", key, ErrorKind::Usage, &["no named arrays"]);
    let small = ReadOptions { max_bytes: 1 << 10, ..plain() };
    refused(many.as_bytes(), small, ErrorKind::Data, &["allowed in memory"]);
}

#[test]
fn written_tables_are_read_back() {
    let folder = TempDir::new().unwrap();
    let set = open(&put(&folder, "train.csv", TRAIN.as_bytes())).unwrap();
    let schema = set.schema.clone().unwrap();
    let path = folder.path().join("again.csv");
    data::write_csv(&path, &set.values, &schema).unwrap();
    let again = with(ReadOptions { schema: Some(schema.clone()), ..Default::default() })(&path).unwrap();
    assert_eq!(again.values.as_bytes(), set.values.as_bytes());
    let error = data::write_csv(&path, &set.values, &Schema::numeric(2)).unwrap_err().to_string();
    assert!(error.contains("again.csv") && error.contains("6 numbers"), "{error}");
}

/// 494,021 connections with three columns of words, without a header.
#[test]
fn connections() {
    let folder = std::env::var_os("SURPRISAL_SHARED_DATA").map_or("../shared/data".into(), PathBuf::from);
    let path = folder.join("kddcup99/kddcup.data_10_percent.gz");
    if !path.exists() {
        println!("skipped: no {}", path.display());
        return;
    }
    let options = ReadOptions {
        format: Some("csv".into()),
        labels: Some("x41".into()),
        limit: Some(20_000),
        ..Default::default()
    };
    let set = data::open(&path, &options).unwrap();
    assert_eq!((set.len(), set.dims()), (20_000, 41));
    let schema: Arc<Schema> = set.schema.clone().unwrap();
    assert_eq!([1, 2, 3].map(|i| schema.columns[i].kind.name()), ["categorical"; 3]);
    assert_eq!(schema.columns[1].kind, categorical(&["icmp", "tcp", "udp"]));
    assert!(schema.columns.iter().all(|c| !c.nullable));
}
