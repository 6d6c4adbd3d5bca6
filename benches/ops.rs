//! Times every registered op case that is marked as a benchmark, on random inputs at f32.
//!
//! `cargo bench --bench ops` first prints a table of best-of-many timings as a part of what the machine does in the same
//! run: the larger of the case's bytes at the rate of a copy of as many bytes, and its flops at the rate of a 1024 cubed
//! matrix product. Then come criterion's statistics. `-- --table [NAME]` prints the table alone.

use criterion::{Criterion, Throughput};
use std::hint::black_box;
use std::time::{Duration, Instant};
use surprisal::DType;
use surprisal::cpu::gemm::{Epilogue, Mat, gemm};
use surprisal::cpu::par;
use surprisal::ops::{Case, OPS};
use surprisal::testing::cast_inputs;

/// The least time of `run`, in seconds; `BUDGET_MS` sets how long to look for it.
fn best(mut run: impl FnMut()) -> f64 {
    let ms = std::env::var("BUDGET_MS").ok().and_then(|s| s.parse().ok()).unwrap_or(60);
    let (start, mut best, mut rounds) = (Instant::now(), f64::INFINITY, 0);
    while rounds < 5 || start.elapsed() < Duration::from_millis(ms) {
        let t = Instant::now();
        run();
        best = best.min(t.elapsed().as_secs_f64());
        rounds += 1;
    }
    best
}

/// Bytes read and written per second by a parallel copy of `bytes / 2`.
fn copy_rate(bytes: usize) -> f64 {
    let from = vec![1u8; (bytes / 2).max(64)];
    let mut to = vec![0u8; from.len()];
    let chunk = 64 * 1024;
    let time = best(|| {
        par::chunks_mut(&mut to, chunk, |i, to| to.copy_from_slice(&from[i * chunk..i * chunk + to.len()]));
        black_box(&mut to);
    });
    2.0 * from.len() as f64 / time
}

/// Flops per second of a matrix product that fills the machine.
fn product_rate() -> f64 {
    const N: usize = 1024;
    let (a, b, mut c) = (vec![0.5f32; N * N], vec![0.25f32; N * N], vec![0.0f32; N * N]);
    let time = best(|| {
        gemm(N, N, N, Mat::new(&a, N), Mat::new(&b, N), &mut c, N, &Epilogue::default());
        black_box(&mut c);
    });
    2.0 * (N * N * N) as f64 / time
}

/// Calls `run` with every benchmark case whose op or case contains `filter`.
fn for_cases(filter: &str, mut run: impl FnMut(&str, &Case)) {
    for op in OPS {
        for case in (op.cases)().iter().filter(|c| c.bench) {
            if op.name.contains(filter) || case.name.contains(filter) {
                run(op.name, case);
            }
        }
    }
}

fn table(filter: &str) {
    let product = product_rate();
    println!(
        "copy of 256 MB {:.1} GB/s, product of 1024 cubed {:.0} GFLOP/s\n",
        copy_rate(256 << 20) / 1e9,
        product / 1e9
    );
    println!("| op | case | us | GB/s | GFLOP/s | % of the bound |");
    println!("|---|---|---|---|---|---|");
    for_cases(filter, |op, case| {
        let inputs = cast_inputs(&case.inputs, DType::F32);
        let time = best(|| drop(black_box((case.run)(&inputs))));
        let (bytes, flops) = (case.bytes as f64, case.flops as f64);
        let bound = (bytes / copy_rate(case.bytes)).max(flops / product);
        let (us, gb, gflop) = (time * 1e6, bytes / time / 1e9, flops / time / 1e9);
        println!("| {op} | {} | {us:.0} | {gb:.1} | {gflop:.1} | {:.0} |", case.name, 100.0 * bound / time);
    });
}

fn statistics() {
    let mut criterion = Criterion::default().configure_from_args().sample_size(20);
    for_cases("", |op, case| {
        let mut group = criterion.benchmark_group(op);
        let inputs = cast_inputs(&case.inputs, DType::F32);
        let matrix_bound = case.flops > 8 * case.bytes;
        group.throughput(if matrix_bound {
            Throughput::Elements(case.flops as u64)
        } else {
            Throughput::Bytes(case.bytes as u64)
        });
        group.bench_function(&case.name, |b| b.iter(|| black_box((case.run)(&inputs))));
    });
    criterion.final_summary();
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let filter = args.iter().find(|a| !a.starts_with("--")).map_or("", String::as_str);
    table(filter);
    if !args.iter().any(|a| a == "--table") {
        statistics();
    }
}
