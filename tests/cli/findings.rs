//! Commands that find something: intervals of series, lines of logs, rows of tables.

use super::*;

#[test]
fn series_have_intervals() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("load.csv");
    let day = |t: usize| format!("2024-01-{:02} {:02}:{:02}:00", 1 + t / 288, t / 12 % 24, t % 12 * 5);
    let mut table = String::from("time,load,heat\n");
    for t in 0..288 * 20 {
        let wave = (t as f64 * 0.021_816_6).sin() + 0.01 * (t * t % 97) as f64;
        let load = if (4000..4006).contains(&t) { 9.0 } else { wave };
        table += &format!("{},{load},{}\n", day(t), 20.0 + 0.1 * wave);
    }
    std::fs::write(&path, &table).unwrap();
    let found: Vec<Value> = serde_json::from_str(&succeeds(&["series", text(&path), "--json"])).unwrap();
    let worst = found
        .iter()
        .max_by(|a, b| a["severity"].as_f64().partial_cmp(&b["severity"].as_f64()).unwrap())
        .unwrap();
    assert_eq!(worst["start"].as_str(), Some(day(4000).as_str()), "{found:?}");
    // The model learns from each step, so that later ones stand out less.
    assert!((1..=6).contains(&worst["steps"].as_u64().unwrap()), "{found:?}");
    assert_eq!(worst["columns"][0]["name"], "load");
    let report = dir.path().join("report.html");
    assert!(succeeds(&["series", text(&path), "--report", text(&report)]).starts_with("start"));
    let page = std::fs::read_to_string(&report).unwrap();
    for part in ["class=\"band\"", "What stands out", "load", "out.</h1>", &day(4000)] {
        assert!(page.contains(part), "{part}");
    }
    let (head, rows) = table.split_at(table.find('\n').unwrap() + 1);
    let mut rows: Vec<&str> = rows.lines().collect();
    rows.swap(7, 8);
    std::fs::write(&path, format!("{head}{}\n", rows.join("\n"))).unwrap();
    fails(&["series", text(&path)], 1, &["load.csv", "row 8", "order of time"]);
    fails(&["nab", text(dir.path())], 1, &["windows.json"]);
}

/// 60 rows along a line with two categories, of which row 17 leaves the line.
/// Sessions of four lines; in one of them the third line is of another kind.
#[test]
fn the_line_that_broke_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let log = |name: &str, broken: Option<usize>| {
        let mut lines = String::new();
        for i in 0..60 {
            lines += &format!("open s_{i} by user {}\nread {} bytes for s_{i}\n", i % 7, 100 + i);
            lines += &match broken {
                Some(b) if b == i => format!("refused s_{i} with error {i}\n"),
                _ => format!("checked s_{i} in {i} ms\n"),
            };
            lines += &format!("close s_{i}\n");
        }
        let path = folder.path().join(name);
        std::fs::write(&path, lines).unwrap();
        path
    };
    let (normal, broken) = (log("normal.log", None), log("broken.log", Some(41)));
    let dir = folder.path().join("m");
    let cut = ["--session", "s_", "--window", "6", "--quiet"];
    let train = ["train", "hmm_tokens", "--data", text(&normal), "--set", "states=6", "--out", text(&dir)];
    succeeds(&[&train[..], &cut].concat());
    // How the log was cut, and its kinds of lines, are in the model's file.
    let explain = ["--scorer", "nll", "--alpha", "0.4", "--explain", "1", "--json", "--quiet"];
    let found = succeeds(&[&["score", text(&dir), text(&broken)], &explain[..]].concat());
    let found: Value = serde_json::from_str(&found).unwrap();
    let found = found.as_array().unwrap();
    assert_eq!(found.len(), 60);
    let worst =
        found.iter().max_by(|a, b| a["score"].as_f64().unwrap().total_cmp(&b["score"].as_f64().unwrap()));
    let worst = worst.unwrap();
    assert_eq!((&worst["index"], &worst["decision"]), (&41.into(), &"anomaly".into()));
    assert_eq!(worst["explanation"][0]["place"], "line 167: a line of no known kind");
    let by_step =
        ["--scorer", "worst_step", "--reference", text(&normal), "--alpha", "0.1", "--json", "--quiet"];
    let found = succeeds(&[&["score", text(&dir), text(&broken)], &by_step[..]].concat());
    let found: Vec<Value> = serde_json::from_str(&found).unwrap();
    let called: Vec<&Value> =
        found.iter().filter(|l| l["decision"] == "anomaly").map(|l| &l["index"]).collect();
    assert_eq!(called, [&Value::from(41)]);
    let info = succeeds(&["info", text(&normal), "--session", "s_", "--window", "6"]);
    assert!(info.contains("60 x 6 u8") && info.contains("checked s_<*> in <*> ms"), "{info}");
}

fn table(path: &Path, outlier: bool) -> String {
    let mut csv = String::from("height,weight,kind\n");
    for i in 0..60 {
        let (x, kind) = ((i * 37 % 60) as f64 / 10.0, ["cat", "dog"][i % 2]);
        let y = if outlier && i == 17 { -30.0 } else { 2.0 * x + (i * 13 % 7) as f64 / 10.0 };
        csv += &format!("{x},{y},{kind}\n");
    }
    std::fs::write(path, csv).unwrap();
    text(path).to_string()
}

#[test]
fn snapshots_continue_the_first_member() {
    let folder = tempfile::tempdir().unwrap();
    let data = table(&folder.path().join("t.csv"), false);
    let dir = text(&folder.path().join("m")).to_string();
    let mut args = vec!["train", "made", "--data", &data, "--out", &dir, "--quiet"];
    args.extend(["--set", "train.steps=20", "--set", "hidden=[8]", "--ensemble", "3", "--snapshots"]);
    succeeds(&args);
    let nats = |place: &str| {
        let path = format!("{dir}{place}");
        let info: Value = serde_json::from_str(&succeeds(&["info", &path, "--json"])).unwrap();
        let steps = info["training"]["steps"].as_u64().unwrap();
        let epochs = info["training"]["epochs"].as_array().unwrap().clone();
        (steps, epochs[0]["train_nats"].as_f64().unwrap())
    };
    let (first, second, third) = (nats(""), nats("/member-2"), nats("/member-3"));
    assert_eq!((first.0, second.0, third.0), (20, 4, 4));
    assert!(
        second.1 < first.1 && third.1 < first.1,
        "they start where others ended: {first:?} {second:?} {third:?}"
    );
    fails(&["train", "made", "--data", &data, "--snapshots"], 2, &["--ensemble"]);
}

#[test]
fn detect_ranks_explains_and_keeps_detectors() {
    let dir = tempfile::tempdir().unwrap();
    let (clean, dirty) =
        (table(&dir.path().join("clean.csv"), false), table(&dir.path().join("dirty.csv"), true));
    for name in ["iforest", "knn", "mahalanobis", "hbos"] {
        let found = succeeds(&["detect", &dirty, "--detector", name, "--contamination", "0.05", "--json"]);
        let lines: Vec<Value> = serde_json::from_str(&found).unwrap();
        assert_eq!(lines.len(), 60);
        assert_eq!(
            (&lines[17]["rank"], &lines[17]["columns"][0]),
            (&1.into(), &"weight".into()),
            "{name}: {}",
            lines[17]
        );
        // Fewer than asked for where rows are tied.
        let called = lines.iter().filter(|l| l["decision"] == "anomaly").count();
        assert!((1..=3).contains(&called), "{name}: {called}");
        // The cut is a hint: scores and ranks are the same without it.
        let auto = succeeds(&["detect", &dirty, "--detector", name, "--json", "--threads", "1"]);
        let auto: Vec<Value> = serde_json::from_str(&auto).unwrap();
        assert!(lines.iter().zip(&auto).all(|(a, b)| a["score"] == b["score"] && a["rank"] == b["rank"]));
        if name == "knn" || name == "mahalanobis" {
            assert_eq!(auto[17]["decision"], "anomaly", "{name}");
        }
    }
    let kept = text(&dir.path().join("knn.safetensors")).to_string();
    let judged = succeeds(&["detect", &dirty, "--reference", &clean, "--save", &kept]);
    assert_eq!(judged.lines().next(), Some("index,score,rank,p_value,decision,columns"));
    let row: Vec<&str> = judged.lines().nth(18).unwrap().split(',').collect();
    assert_eq!((row[0], row[2], row[4]), ("17", "1", "anomaly"), "{row:?}");
    assert_eq!(succeeds(&["detect", &dirty, "--with", &kept]), judged);

    // A likelihood model, fitted by trimmed likelihood to the file with its anomalies.
    let model = ["--model", "made", "--set", "train.steps=120", "--set", "hidden=[16]"];
    let kept = text(&dir.path().join("made.safetensors")).to_string();
    let found = succeeds(&[&["detect", &dirty, "--save", &kept, "--json", "--quiet"], &model[..]].concat());
    let lines: Vec<Value> = serde_json::from_str(&found).unwrap();
    assert_eq!(
        (&lines[17]["rank"], &lines[17]["columns"][0]),
        (&1.into(), &"weight".into()),
        "{}",
        lines[17]
    );
    assert_eq!(succeeds(&["detect", &dirty, "--with", &kept, "--json", "--quiet"]), found);
    fails(&["detect", &dirty, "--model", "made", "--detector", "knn"], 2, &["--detector"]);
    fails(&["detect", &dirty, "--model", "mdae"], 2, &["made"]);

    let kept = text(&dir.path().join("knn.safetensors")).to_string();
    fails(&["detect", &dirty, "--detector", "ifroest"], 2, &["iforest"]);
    fails(&["detect", &dirty, "--set", "k=3"], 2, &["\"k\"", "iforest"]);
    fails(&["detect", &dirty, "--alpha", "0.1"], 2, &["--reference"]);
    fails(&["detect", &dirty, "--with", &clean], 1, &["clean.csv"]);
    fails(&["detect", &dirty, "--with", &kept, "--alpha", "0.001"], 2, &["12 reference rows"]);
}
