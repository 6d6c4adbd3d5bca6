//! Op files and kernel files pair up: every symbol of `kernels/*.cu` is launched by exactly one source file, and every
//! symbol that a source file names exists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn files(dir: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The kernel files; what lies in folders below is the emulator's own.
fn kernels() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("kernels").unwrap_or_else(|e| panic!("kernels: {e}"));
    let paths = entries.map(|entry| entry.expect("a readable folder").path());
    paths.filter(|path| path.extension().is_some_and(|e| e == "cu")).collect()
}

/// Kernel symbol to the stem of its file.
fn symbols() -> BTreeMap<String, String> {
    let mut symbols = BTreeMap::new();
    for path in kernels() {
        let stem = path.file_stem().expect("a name").to_string_lossy().into_owned();
        for rest in read(&path).split("extern \"C\" __global__ void").skip(1) {
            let rest = rest.trim_start();
            let name =
                rest.strip_prefix("__launch_bounds__").map_or(rest, |b| b.split_once(')').expect("bounds").1);
            let name = name.split('(').next().expect("a name").trim().to_string();
            let twice = symbols.insert(name.clone(), stem.clone());
            assert!(twice.is_none(), "the kernel {name} is in two files");
        }
    }
    assert!(!symbols.is_empty(), "no kernels found");
    symbols
}

#[test]
fn every_kernel_is_launched_by_one_file_and_every_launched_kernel_exists() {
    let symbols = symbols();
    let stems: BTreeSet<&String> = symbols.values().collect();
    let mut sources = Vec::new();
    files(Path::new("src"), "rs", &mut sources);
    let mut owners: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for path in &sources {
        let text = read(path);
        let quoted: BTreeSet<&str> = text.split('"').collect();
        for (symbol, _) in symbols.iter().filter(|(s, _)| quoted.contains(s.as_str())) {
            owners.entry(symbol).or_default().push(path.display().to_string());
        }
        // What is given to `Kernels::new` or `Kernel { .. }` must exist, in the file it says.
        for call in text.split("Kernels::new(").skip(1) {
            let words: Vec<&str> = call.split('"').skip(1).step_by(2).take(4).collect();
            let [stem, names @ ..] = &words[..] else {
                panic!("{}: Kernels::new without names", path.display())
            };
            for name in names {
                let home = symbols.get(*name).map(String::as_str);
                assert_eq!(home, Some(*stem), "{}: the kernel {name} in kernels/{stem}.cu", path.display());
            }
        }
        for call in text.split("Wide::new(").skip(1) {
            let words: Vec<&str> =
                call.split(");").next().unwrap_or_default().split('"').skip(1).step_by(2).collect();
            for name in words.iter().skip(1) {
                let home = symbols.get(*name).map(String::as_str);
                assert_eq!(home, words.first().copied(), "{}: the kernel {name}", path.display());
            }
        }
        for call in text.split("Kernel { file: \"").skip(1) {
            let stem = call.split('"').next().unwrap_or_default().to_string();
            let probe = Path::new("kernels/emulator").join(format!("{stem}.cu")).is_file();
            assert!(stems.contains(&stem) || probe, "{}: there is no kernels/{stem}.cu", path.display());
        }
    }
    for symbol in symbols.keys() {
        let users = owners.get(symbol.as_str()).map_or(&[][..], Vec::as_slice);
        assert_eq!(
            users.len(),
            1,
            "the kernel {symbol} must be launched by exactly one file, found {users:?}"
        );
    }
}

#[test]
fn kernel_files_say_what_bounds_them() {
    for path in kernels() {
        let text = read(&path);
        let head: String = text.lines().take_while(|l| l.starts_with("//")).collect();
        let head = head.to_lowercase();
        for word in ["bytes", "bound"] {
            assert!(head.contains(word), "{}: the head comment does not state {word}", path.display());
        }
    }
}
