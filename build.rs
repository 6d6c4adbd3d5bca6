//! Hands the target triple to the crate, which names it in benchmark lines and reports.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-env=SURPRISAL_TARGET={}", std::env::var("TARGET").unwrap_or_default());
}
