//! The program as its users meet it: what goes to stdout and stderr, exit codes, messages.

mod findings;

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn surprisal(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

/// The program: where cargo put it, or where a machine without cargo has it.
fn program() -> std::ffi::OsString {
    std::env::var_os("SURPRISAL_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_surprisal").into())
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(args).env_remove("RUST_BACKTRACE").env("NO_COLOR", "1");
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// It ends with `code`, prints nothing on stdout, and one message on stderr with all `words`.
fn fails(args: &[&str], code: i32, words: &[&str]) {
    let output = surprisal(args);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    assert_eq!(stdout(&output), "", "{args:?}");
    for word in words {
        assert!(message.contains(word), "{args:?}: no \"{word}\" in: {message}");
    }
    assert!(!message.contains("panicked"), "{args:?}: {message}");
}

fn succeeds(args: &[&str]) -> String {
    let output = surprisal(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
    stdout(&output)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn lists_are_arrays_of_objects() {
    for what in ["models", "detectors", "scorers", "sources", "ops"] {
        let found: Value = serde_json::from_str(&succeeds(&["list", what, "--json"])).unwrap();
        for entry in found.as_array().unwrap() {
            for key in ["name", "family", "summary"] {
                assert!(entry[key].as_str().is_some_and(|s| !s.is_empty()), "{what}: {entry}");
            }
        }
        let lines = succeeds(&["list", what]);
        assert_eq!(lines.lines().count(), found.as_array().unwrap().len(), "{lines}");
    }
    fails(&["list", "modls"], 2, &["models"]);
}

#[test]
fn wrong_usage_ends_with_2() {
    fails(&["traim"], 2, &["train"]);
    fails(&[], 2, &["Usage"]);
    fails(&["train", "--data", "x"], 2, &["MODEL"]);
    fails(&["list", "models", "--device", "gpu"], 2, &["gpu", "cuda:N"]);
    fails(&["list", "models", "--device", "cuda:x"], 2, &["cuda:x"]);
    fails(&["list", "models", "--threads", "0"], 2, &["threads"]);
    fails(&["bench", "glow82"], 2, &["did you mean \"glow28\"?"]);
    fails(&["train", "no-such-preset-at-all", "--data", "x"], 2, &["no-such-preset-at-all"]);
    fails(&["score", "m", "d", "--scorer", "nnl"], 2, &["did you mean \"nll\"?"]);
    fails(&["score", "m", "d", "--csv", "--json"], 2, &["--csv"]);
    fails(&["eval", "m", "--reference", "r"], 2, &["--other"]);
    fails(&["eval", "m", "--reference", "r", "--other", "o", "--alpha", "2"], 2, &["--alpha"]);
    fails(&["sample", "m", "--out", "x.gif"], 2, &["x.gif", ".png"]);
    fails(&["sample", "m", "-n", "0", "--out", "x.png"], 2, &["0"]);
}

#[test]
fn what_is_not_there_ends_with_1() {
    fails(&["list", "models", "--device", "cuda"], 2, &["--device cuda:0", "list runs on the CPU"]);
    fails(&["bench", "glow28", "--device", "cuda:1"], 1, &["cuda:1: "]);
    fails(&["score", "no-such-model", "no-such-data"], 1, &["no-such-model"]);
    fails(&["sample", "no-such-model", "--out", "x.png"], 1, &["no-such-model"]);
    let old =
        command(&["bench", "pixelcnn28", "--amp", "bf16"]).env("SURPRISAL_ISA", "portable").output().unwrap();
    assert_eq!((old.status.code(), stdout(&old).as_str()), (Some(1), ""), "{}", stderr(&old));
    assert!(stderr(&old).contains("avx512_bf16"), "{}", stderr(&old));
}

#[test]
fn bad_model_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.safetensors");
    let cases: [(&[u8], &str); 4] = [
        (b"", "0 bytes"),
        (b"\x10\0\0\0\0\0\0\0{}", "truncated"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xffetc", "not a safetensors file"),
        (b"\x02\0\0\0\0\0\0\0{}", "__metadata__"),
    ];
    for (bytes, word) in cases {
        std::fs::write(&path, bytes).unwrap();
        fails(&["info", text(&path)], 1, &["bad.safetensors", word]);
        fails(&["score", text(&path), "data"], 1, &["bad.safetensors", word]);
        fails(&["sample", text(&path), "--out", "x.png"], 1, &["bad.safetensors", word]);
    }
}

#[test]
fn help_goes_to_stdout() {
    assert!(succeeds(&["--help"]).contains("demo"));
    for command in ["demo", "train", "score", "eval", "sample", "list", "info", "bench"] {
        assert!(succeeds(&[command, "--help"]).contains("--json"), "{command}");
    }
    assert!(succeeds(&["--version"]).contains(env!("CARGO_PKG_VERSION")));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_one_message() {
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = command(&["list", "scorers"]).stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("standard output"), "{}", stderr(&output));
    assert_eq!(stderr(&output).lines().count(), 1);
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_is_no_failure() {
    let mut child = command(&["list", "scorers"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

/// The settings of a pixelcnn28 that trains in a moment.
const SMALL: &[&str] = &["channels=8", "depth=1", "train.batch=16"];

fn demo_data(name: &str) -> String {
    format!("data/{name}-images-idx3-ubyte.gz")
}

/// Arguments of a small training run that writes to `dir`.
fn training<'a>(dir: &'a str, data: &'a str, set: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["train", "pixelcnn28", "--data", data, "--out", dir];
    SMALL.iter().chain(set).for_each(|&s| args.extend(["--set", s]));
    args
}

#[test]
fn the_whole_way() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&dir.path().join(name)).to_string();
    let (clothes, digits) = (demo_data("fashion-mnist-t10k"), demo_data("mnist-t10k"));
    let (model, background, out) = (at("model"), at("background"), at("out"));
    let set = ["train.epochs=2", "train.validation=0.3"];

    let mut args = training(&model, &clothes, &set);
    args.extend(["--limit", "200", "--json"]);
    let found: Value = serde_json::from_str(&succeeds(&args)).unwrap();
    assert_eq!((&found["training"]["steps"], &found["training"]["examples"]), (&16.into(), &140.into()));
    let file = found["path"].as_str().unwrap();
    fails(&args, 2, &["--resume", "--overwrite"]);
    let mut args = training(&background, &clothes, &set);
    args.extend(["--limit", "200", "--background", "--quiet"]);
    let output = surprisal(&args);
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
    assert!(stdout(&output).trim_end().ends_with("model.safetensors"));

    let info: Value = serde_json::from_str(&succeeds(&["info", file, "--json"])).unwrap();
    assert_eq!((&info["model"], &info["config"]["channels"]), (&"pixelcnn".into(), &8.into()));
    assert!(info["parameters"].as_array().is_some_and(|p| !p.is_empty()));
    assert_eq!((&info["training"]["steps"], &info["calibration"]["rows"]), (&16.into(), &60.into()));
    assert_eq!(succeeds(&["info", file]), succeeds(&["info", &model]));

    let score = |extra: &[&str]| succeeds(&[&["score", file, &digits, "--limit", "20"], extra].concat());
    let csv = score(&["--scorer", "nll", "--alpha", "0.1"]);
    assert_eq!(csv.lines().next(), Some("index,nats,bits_per_dim,score,p_value,decision"));
    assert_eq!(csv.lines().count(), 21);
    let rows: Vec<Value> =
        serde_json::from_str(&score(&["--scorer", "nll", "--alpha", "0.1", "--json"])).unwrap();
    for (row, line) in rows.iter().zip(csv.lines().skip(1)) {
        assert!(line.starts_with(&format!("{},{},", row["index"], row["nats"])), "{line} {row}");
        assert_eq!(row["score"].as_f64().unwrap(), -row["nats"].as_f64().unwrap());
        let p = row["p_value"].as_f64().unwrap();
        assert_eq!(row["decision"], if p <= 0.1 { "anomaly" } else { "normal" });
    }
    assert_eq!(score(&["--threads", "1"]), score(&["--threads", "2"]));
    let ratios = score(&["--background", &background, "--alpha", "0.1"]);
    assert!(ratios.lines().skip(1).all(|l| l.ends_with("anomaly") || l.ends_with("normal")), "{ratios}");
    let with = score(&["--scorer", "typicality", "--reference", &clothes]);
    assert_eq!(with.lines().count(), 21);
    fails(&["score", file, &digits, "--limit", "20", "--alpha", "0.0001"], 2, &["alpha", "rows"]);
    fails(&["score", file, &digits, "--limit", "20", "--scorer", "likelihood_ratio"], 2, &["background"]);

    let png = at("samples.png");
    assert_eq!(succeeds(&["sample", file, "-n", "4", "--out", &png]).trim_end(), png);
    let first = std::fs::read(&png).unwrap();
    succeeds(&["sample", file, "-n", "4", "--out", &png, "--threads", "1"]);
    assert_eq!(first, std::fs::read(&png).unwrap());
    fails(&["sample", file, "--out", &png, "--label", "3"], 2, &["label"]);
    fails(&["sample", file, "--out", &at("no/such/x.png")], 1, &["no/such/x.png"]);

    let mut args =
        vec!["eval", file, "--reference", &clothes, "--other", &digits, "--background", &background];
    args.extend(["--limit", "40", "--out", &out, "--json"]);
    let found = succeeds(&args);
    let rows: Vec<Value> = serde_json::from_str(&found).unwrap();
    assert_eq!(std::fs::read_to_string(dir.path().join("out/results.json")).unwrap(), found);
    assert!(std::fs::read_to_string(dir.path().join("out/report.html")).unwrap().contains("</html>"));
    let scorers: Vec<&str> = rows.iter().map(|r| r["scorer"].as_str().unwrap()).collect();
    for scorer in ["nll", "likelihood_ratio", "complexity_png", "complexity_zstd", "typicality"] {
        assert!(scorers.contains(&scorer), "{scorers:?}");
    }
    let keys = ["model", "reference", "other", "n_reference", "n_other", "auroc", "auroc_low", "auroc_high"];
    for (row, key) in
        rows.iter().flat_map(|r| keys.iter().chain(&["aupr_in", "aupr_out", "fpr95"]).map(move |k| (r, k)))
    {
        assert!(!row[key].is_null(), "{key}: {row}");
    }
}

#[test]
fn training_refuses_what_it_cannot_do() {
    let dir = tempfile::tempdir().unwrap();
    let (out, clothes) = (text(&dir.path().join("m")).to_string(), demo_data("fashion-mnist-t10k"));
    fails(&["train", "pixelcnn82", "--data", &clothes, "--out", &out], 2, &["did you mean \"pixelcnn28\"?"]);
    let with = |set: &'static str| training(&out, &clothes, &[set]);
    fails(&with("train.epoch=3"), 2, &["did you mean \"train.epochs\"?"]);
    fails(&with("chanels=3"), 2, &["did you mean \"channels\"?"]);
    fails(&with("depth=deep"), 2, &["depth", "an integer"]);
    fails(&training(&out, "no-such-data", &[]), 1, &["no-such-data"]);
    let blocked = dir.path().join("file");
    std::fs::write(&blocked, "x").unwrap();
    let below = text(&blocked.join("m")).to_string();
    fails(&training(&below, &clothes, &["train.steps=1"]), 1, &["file/m"]);
    fails(&["train", "--resume", &out, "--data", &clothes], 1, &["optimiser.safetensors"]);
    assert!(!Path::new(&out).exists());
}

#[cfg(unix)]
#[test]
fn an_interrupt_saves_and_says_how_to_resume() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&dir.path().join(name)).to_string();
    let (whole, parts, clothes) = (at("whole"), at("parts"), demo_data("fashion-mnist-t10k"));
    let set = ["train.epochs=8", "train.validation=0"];
    let all = |out| [training(out, &clothes, &set), vec!["--limit", "160"]].concat();
    succeeds(&all(&whole));
    let mut child = command(&all(&parts)).stderr(std::process::Stdio::piped()).spawn().unwrap();
    // The first epoch is over: there are seven more to interrupt.
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    lines.find(|l| l.as_ref().unwrap().contains("epoch 1:")).unwrap().unwrap();
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest:?}");
    assert!(rest.iter().any(|l| l.contains(&format!("--resume {parts}"))), "{rest:?}");
    succeeds(&["train", "--resume", &parts, "--data", &clothes, "--limit", "160"]);
    let read = |dir: &str| std::fs::read(Path::new(dir).join("model.safetensors")).unwrap();
    assert!(read(&whole) == read(&parts), "an interrupted and continued run ended elsewhere");
}

#[test]
fn bench_prints_one_line() {
    for name in ["pixelcnn28", "pixelcnn28_sample", "glow28", "realnvp_table", "hvae28"] {
        let found = succeeds(&["bench", name, "--seconds", "0", "--batch-scale", "0.1", "--json"]);
        assert_eq!(found.lines().count(), 1);
        let line: Value = serde_json::from_str(&found).unwrap();
        for key in ["params", "batch", "steps", "median_s", "min_s", "samples_per_s"] {
            assert!(line[key].as_f64().is_some_and(|x| x > 0.0), "{line}");
        }
        assert_eq!(line["name"], name);
    }
    fails(&["bench", "gmm"], 2, &["gmm", "closed form"]);
}

/// A text from training to samples, and the windows of a series with their times.
#[test]
fn sequences_go_through_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("poem.txt"), "to be, or not to be, that is the question: ".repeat(40)).unwrap();
    let small =
        ["--set", "channels=16", "--set", "skip=16", "--set", "layers=2", "--set", "train.epochs=1", "-q"];
    let (poem, out) = (path("poem.txt"), path("poem-model"));
    let train = ["train", "causal_cnn256", "--data", text(&poem), "--window", "20", "--out", text(&out)];
    succeeds(&[&train[..], &small].concat());
    let scores = succeeds(&["score", text(&out), text(&poem), "--scorer", "nll", "-q"]);
    assert!(scores.starts_with("index,nats") && scores.lines().count() == 1 + 1720 / 20, "{scores}");
    let drawn = path("drawn.txt");
    succeeds(&["sample", text(&out), "-n", "3", "--out", text(&drawn)]);
    assert!(std::fs::read(&drawn).unwrap().len() > 3);
    fails(&["sample", text(&out), "--out", "x.csv"], 2, &["not rows of a table"]);

    let rows: String = (0..400).map(|t| format!("{t},{}\n", (t as f64 * 0.3).sin())).collect();
    std::fs::write(path("wave.csv"), format!("time,v\n{rows}")).unwrap();
    let (wave, out) = (path("wave.csv"), path("wave-model"));
    let shown = succeeds(&["info", text(&wave)]);
    assert!(shown.contains("time") && shown.contains("numeric") && shown.contains("0 to 399"), "{shown}");
    let train = [
        "train",
        "causal_cnn_series",
        "--data",
        text(&wave),
        "--window",
        "10",
        "--stride",
        "5",
        "--out",
        text(&out),
    ];
    succeeds(&[&train[..], &small].concat());
    let scores = succeeds(&["score", text(&out), text(&wave), "--scorer", "nll", "-q"]);
    assert!(
        scores.starts_with("time,index,nats") && scores.lines().nth(2).unwrap().starts_with("10,1,"),
        "{scores}"
    );
}

/// A table with every kind of column: trained, scored in another order of columns, drawn.
#[test]
fn tables_go_through_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let row = |i: usize| {
        let colour = ["red", "green", "blue"][i * i % 7 % 3];
        let size =
            if i.is_multiple_of(11) { "NA".to_string() } else { format!("{}", (i as f64 * 0.7).sin()) };
        format!("{size},{colour},2014-07-{:02},{},{}\n", i % 28 + 1, i.is_multiple_of(2), i % 5)
    };
    let rows: String = (0..300).map(row).collect();
    std::fs::write(path("train.csv"), format!("size,colour,day,on,y\n{rows}")).unwrap();
    std::fs::write(
        path("new.csv"),
        "on,colour,day,size,extra\ntrue,red,2014-07-03,0.5,1\nfalse,mauve,2014-07-04,NA,2\n",
    )
    .unwrap();
    let (table, new, out, drawn) = (path("train.csv"), path("new.csv"), path("model"), path("drawn.csv"));
    let small = ["--set", "hidden=[16]", "--set", "train.steps=30", "-q"];
    let train = ["train", "made", "--data", text(&table), "--label", "y", "--out", text(&out)];
    succeeds(&[&train[..], &small].concat());
    fails(&["score", text(&out), text(&new)], 1, &["new.csv", "line 3", "mauve", "--unseen"]);
    succeeds(&[&train[..], &small, &["--unseen", "--overwrite"]].concat());
    let scores = succeeds(&["score", text(&out), text(&new), "--scorer", "nll", "-q"]);
    assert_eq!(scores.lines().count(), 3, "{scores}");
    // The same rows as a stream: the header gives the order, or each row names its columns.
    let stream = ["score", text(&out), "-", "--scorer", "nll", "-q"];
    let lines = std::fs::read_to_string(&new).unwrap();
    let objects = r#"{"on": true, "colour": "red", "day": "2014-07-03", "size": 0.5}
        {"on": false, "colour": "mauve", "day": "2014-07-04", "size": null, "extra": 2}"#;
    // What is not asked for may be long.
    let long = format!(r#"{{"note": "{}", "on": true"#, "x".repeat(20_000));
    let objects = objects.replacen(r#"{"on": true"#, &long, 1);
    for input in [lines, objects] {
        let streamed = fed(&stream, &input);
        assert_eq!(stdout(&streamed), scores, "{}", stderr(&streamed));
    }
    succeeds(&["sample", text(&out), "-n", "20", "--out", text(&drawn)]);
    let again = succeeds(&["score", text(&out), text(&drawn), "--scorer", "nll", "-q"]);
    assert_eq!(again.lines().count(), 21, "{again}");
}

/// Runs with `input` on standard input.
fn fed(args: &[&str], input: &str) -> Output {
    use std::io::Write;
    use std::process::Stdio;
    let mut command = command(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that refuses its arguments does not read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[test]
fn ensembles_streams_and_explanations() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&dir.path().join(name)).to_string();
    let (clothes, digits) = (demo_data("fashion-mnist-t10k"), demo_data("mnist-t10k"));
    let (model, out, cache) = (at("model"), at("out"), at("cache"));
    let set = ["train.epochs=1", "train.validation=0.4"];
    let mut args = training(&model, &clothes, &set);
    args.extend(["--limit", "120", "--ensemble", "2"]);
    succeeds(&args);
    assert!(dir.path().join("model/member-2/model.safetensors").is_file());

    let mut args = vec!["eval", &model, "--reference", &clothes, "--other", &digits, "--limit", "24"];
    args.extend(["--out", &out, "--cache", &cache, "--json"]);
    ["ensemble", "waic", "ess", "grad_norm", "auto"].iter().for_each(|s| args.extend(["--scorer", s]));
    let first = succeeds(&args);
    let rows: Vec<Value> = serde_json::from_str(&first).unwrap();
    assert_eq!(rows.len(), 5, "{first}");
    let files = std::fs::read_dir(&cache).unwrap().count();
    assert_eq!(files, 6, "two members and gradient norms, of two sets");
    assert_eq!(succeeds(&args), first, "from the cache");
    // The best of its set is behind nobody, the others are with an interval.
    let behind = |row: &&Value| row["behind"]["best"].is_string() && row["behind"]["high"].is_number();
    assert_eq!(rows.iter().filter(behind).count(), 4, "{first}");
    // Models side by side: one page with the speeds of each, and a folder for each.
    let member = format!("{model}/member-2");
    let mut both = vec!["eval", &model, &member];
    both.extend(["--reference", &clothes, "--other", &digits, "--limit", "8", "--scorer", "nll"]);
    both.extend(["--out", &out, "--quiet"]);
    succeeds(&both);
    let page = std::fs::read_to_string(format!("{out}/report.html")).unwrap();
    assert!(page.contains("2 models of 1 family") && page.contains("The families side by side"));
    assert_eq!(page.matches("/report.html\">").count(), 2, "links to the models' own pages");
    assert!(page.matches("/s</td>").count() == 6, "speeds of training, scoring and sampling");
    fails(
        &[
            "eval",
            &model,
            "--reference",
            &clothes,
            "--other",
            &digits,
            "--scorer",
            "regret",
            "--limit",
            "9",
            "--out",
            &out,
        ],
        2,
        &["regret"],
    );

    // The same rows from a file and from a stream, one by one.
    let score = |data: &str, more: &[&str]| {
        [&["score", &model, data, "--scorer", "nll"], more]
            .concat()
            .iter()
            .map(|s| s.to_string())
            .collect::<Vec<_>>()
    };
    let run =
        |args: Vec<String>, input: &str| fed(&args.iter().map(String::as_str).collect::<Vec<_>>(), input);
    let images = surprisal::data::open(&digits, &Default::default()).unwrap();
    let row = |i: usize| {
        let cells: Vec<String> = images.rows(i..i + 1).as_slice::<u8>().iter().map(u8::to_string).collect();
        cells.join(",") + "\n"
    };
    let input = format!("{}\n{}{}", row(0), row(1), row(2));
    let from_file = run(score(&digits, &["--limit", "3", "--alpha", "0.1"]), "");
    let streamed = run(score("-", &["--alpha", "0.1"]), &input);
    assert_eq!(stdout(&streamed).lines().count(), 4, "{}", stderr(&streamed));
    for (a, b) in stdout(&from_file).lines().zip(stdout(&streamed).lines()).skip(1) {
        let nats = |line: &str| line.split(',').nth(1).unwrap().parse::<f64>().unwrap();
        assert!((nats(a) - nats(b)).abs() < 1e-3 * nats(a).abs(), "{a} {b}");
        assert_eq!(a.rsplit(',').next(), b.rsplit(',').next());
    }
    let json = run(score("-", &["--fdr", "0.2", "--drift", "50", "--json"]), &input);
    assert!(
        stdout(&json).lines().all(|line| serde_json::from_str::<Value>(line).is_ok()),
        "{}",
        stdout(&json)
    );
    let broken = run(score("-", &[]), &format!("{}1,2,3\n", row(0)));
    assert_eq!(
        (broken.status.code(), stdout(&broken).lines().count()),
        (Some(1), 2),
        "what came before is kept"
    );
    assert!(stderr(&broken).contains("line 2") && stderr(&broken).contains("784"), "{}", stderr(&broken));

    let explained = succeeds(&[
        "score",
        &model,
        &digits,
        "--limit",
        "4",
        "--scorer",
        "nll",
        "--alpha",
        "0.9",
        "--explain",
        "3",
    ]);
    let line = explained.lines().find(|l| l.contains(",anomaly,")).expect("at this rate nearly all are");
    let parts: Vec<&str> = line.rsplit(',').next().unwrap().split(';').collect();
    assert!(parts.len() == 3 && parts.iter().all(|p| p.contains(':') && p.contains('=')), "{line}");
    let found = succeeds(&[
        "score",
        &model,
        &digits,
        "--limit",
        "9",
        "--scorer",
        "nll",
        "--fdr",
        "0.5",
        "--dependent",
    ]);
    assert_eq!(found.lines().count(), 10);
    fails(&["score", &model, &digits, "--drift", "9"], 2, &["stream"]);
}
