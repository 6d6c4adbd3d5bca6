//! Names the target triple for benchmark lines, and builds `kernels/*.cu` for the features that want them:
//! - `cuda`: nvcc makes one fatbin per file (SASS for sm_80 and sm_90a, PTX for anything newer), embedded in the crate;
//! - `emulate`: the host's C++ compiler makes the same files, with the headers of `kernels/emulator/`, into a library.
//!
//! Objects are kept in OUT_DIR and rebuilt when a source is newer, several at a time.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-env=SURPRISAL_TARGET={}", env::var("TARGET").unwrap_or_default());
    let result = || -> Result<(), String> {
        if env::var_os("CARGO_FEATURE_CUDA").is_some() {
            fatbins()?;
        }
        if env::var_os("CARGO_FEATURE_EMULATE").is_some() {
            emulator()?;
        }
        Ok(())
    };
    if let Err(message) = result() {
        message.lines().for_each(|line| println!("cargo::error={line}"));
    }
}

/// One fatbin per kernel file, and the table of them that `src/cuda/driver.rs` includes.
fn fatbins() -> Result<(), String> {
    let table = out_dir().join("fatbins.rs");
    println!("cargo::rerun-if-env-changed=SURPRISAL_NO_NVCC");
    let none = |missing: Option<&str>| {
        write(
            &table,
            &format!(
                "pub static FATBINS: &[(&str, &[u8])] = &[];\npub const MISSING: Option<&str> = {missing:?};\n"
            ),
        )
    };
    if env::var_os("SURPRISAL_NO_NVCC").is_some() || env::var_os("DOCS_RS").is_some() {
        return none(None);
    }
    let nvcc = match find_nvcc() {
        Ok(nvcc) => nvcc,
        Err(e) => {
            // check, clippy and doc do without it; where code is generated, driver.rs stops with this message.
            let message = format!(
                "the feature `cuda` compiles kernels/*.cu, and {e}: `export CUDA_HOME=$(ci/install-nvcc.sh)` installs \
                 nvcc 13.0 (110 MB); or build without `--features cuda`"
            );
            println!("cargo::warning={message}");
            return none(Some(&message));
        }
    };
    println!("cargo::rerun-if-env-changed=SURPRISAL_CUDA_ARCHS");
    println!("cargo::rerun-if-env-changed=SURPRISAL_NVCC_FLAGS");
    let archs = env::var("SURPRISAL_CUDA_ARCHS").unwrap_or_else(|_| "80,90a".into());
    let flags = env::var("SURPRISAL_NVCC_FLAGS").unwrap_or_default();
    let mut args: Vec<String> =
        "-O3 -std=c++17 --fatbin --compress-mode=size -Werror all-warnings -Xptxas -warn-spills,-Werror"
            .split(' ')
            .map(String::from)
            .collect();
    args.extend(archs.split(',').map(|a| format!("-gencode=arch=compute_{a},code=sm_{a}")));
    args.push("-gencode=arch=compute_80,code=compute_80".into());
    args.extend(flags.split_whitespace().map(String::from));
    let recipe = format!("{} {}", nvcc.display(), args.join(" "));
    let built = each_kernel(&["kernels"], "fatbin", &recipe, |source, object| {
        let mut command = Command::new(&nvcc);
        command.args(&args).arg("-o").arg(object).arg(source);
        command
    })?;
    let lines = built.iter().map(|(stem, path)| format!("    ({stem:?}, include_bytes!({path:?})),\n"));
    let lines = lines.collect::<String>();
    let text = format!(
        "pub static FATBINS: &[(&str, &[u8])] = &[\n{lines}];\npub const MISSING: Option<&str> = None;\n"
    );
    write(&table, &text)
}

/// NVCC or CUDACXX (a path or a name), then the toolkit's folder, then PATH, then the usual place.
fn find_nvcc() -> Result<PathBuf, String> {
    let on_path = |name: &OsStr| {
        let path = env::var_os("PATH")?;
        env::split_paths(&path).map(|dir| dir.join(name)).find(|p| p.is_file())
    };
    for name in ["CUDACXX", "NVCC", "CUDA_HOME", "CUDA_PATH", "PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    for name in ["CUDACXX", "NVCC"] {
        if let Some(value) = env::var_os(name).filter(|v| !v.is_empty()) {
            let path = PathBuf::from(&value);
            let found = if path.components().count() > 1 {
                Some(path).filter(|p| p.is_file())
            } else {
                on_path(&value)
            };
            return found.ok_or_else(|| format!("{name}={} is not a compiler", value.to_string_lossy()));
        }
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).filter(|v| !v.is_empty());
    let usual = "/usr/local/cuda/bin/nvcc";
    homes
        .map(|home| Path::new(&home).join("bin/nvcc"))
        .find(|p| p.is_file())
        .or_else(|| on_path("nvcc".as_ref()))
        .or_else(|| Some(PathBuf::from(usual)).filter(|p| p.is_file()))
        .ok_or_else(|| {
            // Looked for again next time.
            println!("cargo::rerun-if-changed={usual}");
            "there is no nvcc in CUDACXX, NVCC, CUDA_HOME, PATH or /usr/local/cuda".into()
        })
}

/// The kernels as a static library of the host, each registered under its name.
fn emulator() -> Result<(), String> {
    for name in ["CXX", "AR", "SURPRISAL_SANITIZE"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let cxx = env::var("CXX").unwrap_or_else(|_| "g++".into());
    let sanitizer = env::var("SURPRISAL_SANITIZE").unwrap_or_default();
    let base = "-std=c++17 -O2 -g -fPIC -fno-strict-aliasing -ffp-contract=off -Wall -Wextra -Werror -Wno-unknown-pragmas \
                -Ikernels -Ikernels/emulator -c";
    let mut args: Vec<String> = base.split_whitespace().map(String::from).collect();
    let mut runtime_args = args.clone();
    match &*sanitizer {
        "" => {}
        "address" => {
            args.push("-fsanitize=address".into());
            runtime_args = args.clone();
            println!("cargo::rustc-link-lib=dylib=asan");
        }
        "thread" => {
            // Kernels call hooks for what they read and write, which kernels/emulator/races.cpp has.
            args.extend(["-fsanitize=thread".into(), "-DEMULATOR_RACES".into()]);
            runtime_args.push("-DEMULATOR_RACES".into());
        }
        other => return Err(format!("SURPRISAL_SANITIZE={other}: expected address or thread")),
    }
    let recipe = format!("{cxx} {}", args.join(" "));
    let extension = format!("{sanitizer}.o");
    let built = each_kernel(
        &["kernels", "kernels/emulator"],
        extension.trim_start_matches('.'),
        &recipe,
        |source, object| {
            let unit = object.with_extension("cpp");
            let include = format!("#include \"{}\"\n", absolute(source).display());
            let text = fs::read_to_string(source).unwrap_or_default();
            let exports = symbols(&text).map(|name| format!("EMULATOR_EXPORT({name})\n"));
            fs::write(&unit, include + &exports.collect::<String>()).expect("OUT_DIR is writable");
            let mut command = Command::new(&cxx);
            command.args(&args).arg("-o").arg(object).arg(unit);
            command
        },
    )?;
    let mut runtime = Vec::new();
    for name in ["cuda_cpu", "races"] {
        let (source, object) =
            (format!("kernels/emulator/{name}.cpp"), out_dir().join(format!("{name}.{extension}")));
        build(&object, Path::new(&source), &format!("{cxx} {}", runtime_args.join(" ")), || {
            let mut command = Command::new(&cxx);
            command.args(&runtime_args).arg("-o").arg(&object).arg(&source);
            command
        })?;
        runtime.push(object);
    }
    let library = out_dir().join("libsurprisal_kernels.a");
    let _ = fs::remove_file(&library);
    let mut archive = Command::new(env::var("AR").unwrap_or_else(|_| "ar".into()));
    archive.arg("crs").arg(&library).args(built.iter().map(|(_, path)| path)).args(&runtime);
    run(&mut archive)?;
    println!("cargo::rustc-link-search=native={}", out_dir().display());
    // Whole: the kernels register themselves before `main`, and nothing refers to them.
    println!("cargo::rustc-link-lib=static:+whole-archive=surprisal_kernels");
    println!("cargo::rustc-link-lib=dylib=stdc++");
    Ok(())
}

/// The names behind `extern "C" __global__ void`, launch bounds skipped.
fn symbols(source: &str) -> impl Iterator<Item = &str> {
    source.split("extern \"C\" __global__ void").skip(1).filter_map(|rest| {
        let rest = rest.trim_start();
        let name = match rest.strip_prefix("__launch_bounds__") {
            Some(bounds) => bounds.split_once(')')?.1,
            None => rest,
        };
        Some(name.split('(').next()?.trim())
    })
}

/// Builds every .cu file of these folders to OUT_DIR/stem.`extension`, as many at a time as cargo allows: (stem, path) by name.
fn each_kernel(
    folders: &[&str],
    extension: &str,
    recipe: &str,
    command: impl Fn(&Path, &Path) -> Command + Sync,
) -> Result<Vec<(String, PathBuf)>, String> {
    println!("cargo::rerun-if-changed=kernels");
    let mut sources: Vec<PathBuf> = Vec::new();
    for folder in folders {
        let files = fs::read_dir(folder).map_err(|e| format!("{folder}: {e}"))?;
        sources.extend(files.filter_map(|e| Some(e.ok()?.path())));
    }
    sources.retain(|p| p.extension() == Some("cu".as_ref()));
    sources.sort();
    let named = sources.into_iter().map(|source| {
        let stem = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let object = out_dir().join(format!("{stem}.{extension}"));
        (source, stem, object)
    });
    let named: Vec<_> = named.collect();
    let (queue, failures) = (Mutex::new(named.iter()), Mutex::new(Vec::new()));
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let Some((source, _, object)) = queue.lock().expect("no panics inside").next() else {
                        break;
                    };
                    if let Err(e) = build(object, source, recipe, || command(source, object)) {
                        failures.lock().expect("no panics inside").push(e);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no panics inside");
    if !failures.is_empty() {
        return Err(failures.join("\n"));
    }
    Ok(named.into_iter().map(|(_, stem, object)| (stem, object)).collect())
}

/// Runs `command` when `object` is older than its source or a header, or was made by another `recipe`.
fn build(
    object: &Path,
    source: &Path,
    recipe: &str,
    command: impl FnOnce() -> Command,
) -> Result<(), String> {
    let stamp = PathBuf::from(format!("{}.recipe", object.display()));
    let headers =
        ["kernels", "kernels/emulator"].into_iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten());
    let is_header = |p: &PathBuf| p.extension().is_some_and(|e| e == "cuh" || e == "h");
    let mut inputs: Vec<PathBuf> = headers.filter_map(|e| Some(e.ok()?.path())).filter(is_header).collect();
    inputs.extend([source.into(), "build.rs".into()]);
    let changed = |p: &Path| fs::metadata(p).and_then(|m| m.modified()).ok();
    let newest = inputs.iter().filter_map(|p| changed(p)).max();
    if changed(&stamp) > newest && fs::read_to_string(&stamp).is_ok_and(|s| s == recipe) {
        return Ok(());
    }
    run(&mut command())?;
    write(&stamp, recipe)
}

fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("cannot run {program}: {e}"))?;
    let text = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}\n{text}")) }
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

fn out_dir() -> PathBuf {
    env::var_os("OUT_DIR").expect("cargo sets OUT_DIR").into()
}

fn absolute(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.into())
}
