//! Matrix products and convolutions: ours beside the `gemm` crate, on one and two threads, random inputs.
//!
//! `cargo bench --bench gemm` first prints tables of interleaved best-of-many timings (each pair of runs sees
//! the same state of the machine), then criterion's statistics. `-- --table [NAME]` prints the tables alone.

use criterion::{BenchmarkId, Criterion, Throughput};
use std::hint::black_box;
use std::time::{Duration, Instant};
use surprisal::cpu::conv::{self, Conv};
use surprisal::cpu::gemm::{Epilogue, Mat, gemm};

/// (m, n, k, A transposed): squares, the layers of the 28x28 models, and their weight gradients.
const SHAPES: [(usize, usize, usize, bool); 17] = [
    (512, 512, 512, false),
    (1024, 1024, 1024, false),
    (2048, 2048, 2048, false),
    (12544, 128, 128, false),
    (12544, 128, 18, false),
    (12544, 36, 128, false),
    (12544, 18, 128, false),
    (3136, 128, 36, false),
    (3136, 72, 128, false),
    (25088, 32, 64, false),
    (25088, 64, 32, false),
    (25088, 32, 160, false),
    (25088, 256, 64, false),
    (128, 128, 12544, true),
    (64, 32, 25088, true),
    (160, 32, 25088, true),
    (18, 128, 12544, true),
];

struct Case {
    m: usize,
    n: usize,
    k: usize,
    ta: bool,
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

fn numbers(n: usize) -> Vec<f32> {
    let mut state = n as u64 | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(next).collect()
}

impl Case {
    fn new((m, n, k, ta): (usize, usize, usize, bool)) -> Self {
        Self { m, n, k, ta, a: numbers(m * k), b: numbers(k * n), c: vec![0.0; m * n] }
    }

    fn name(&self) -> String {
        format!("{}x{}x{}{}", self.m, self.n, self.k, if self.ta { " A^T" } else { "" })
    }

    fn flops(&self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64
    }

    fn ours(&mut self) {
        let Self { m, n, k, ta, .. } = *self;
        let a = Mat { data: &self.a, row_stride: if ta { m } else { k }, transposed: ta };
        gemm(m, n, k, a, Mat::new(&self.b, n), &mut self.c, n, &Epilogue::default());
        black_box(&mut self.c);
    }

    fn theirs(&mut self, threads: usize) {
        let Self { m, n, k, ta, .. } = *self;
        let (row, col) = if ta { (1, m as isize) } else { (k as isize, 1) };
        let parallelism =
            if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
        let (c, a, b, n_) = (self.c.as_mut_ptr(), self.a.as_ptr(), self.b.as_ptr(), n as isize);
        // SAFETY: the vectors hold m x k, k x n and m x n elements at these strides.
        unsafe {
            let no = false;
            gemm::gemm(m, n, k, c, 1, n_, no, a, col, row, b, 1, n_, 0.0, 1.0, no, no, no, parallelism);
        }
        black_box(&mut self.c);
    }
}

fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool")
}

/// The best times of `run(0..N)`, taken in turns for at least `budget` and five rounds.
fn best<const N: usize>(budget: Duration, mut run: impl FnMut(usize)) -> [f64; N] {
    let mut best = [f64::INFINITY; N];
    let start = Instant::now();
    let mut round = 0;
    while round < 5 || start.elapsed() < budget {
        for (i, best) in best.iter_mut().enumerate() {
            let t = Instant::now();
            run(i);
            *best = best.min(t.elapsed().as_secs_f64());
        }
        round += 1;
    }
    best
}

/// Whether `name` holds the first free argument, if there is one.
fn wanted(name: &str) -> bool {
    std::env::args().skip(1).find(|a| !a.starts_with("--")).is_none_or(|want| name.contains(&want))
}

fn budget() -> Duration {
    let ms = std::env::var("BUDGET_MS").ok().and_then(|s| s.parse().ok());
    Duration::from_millis(ms.unwrap_or(400))
}

fn table() {
    println!("| m x n x k | threads | ours GFLOP/s | gemm GFLOP/s | ratio |");
    println!("|---|---|---|---|---|");
    for shape in SHAPES {
        let mut case = Case::new(shape);
        if !wanted(&case.name()) {
            continue;
        }
        for threads in [1, 2] {
            let run = |i| if i == 0 { case.ours() } else { case.theirs(threads) };
            let [ours, theirs] = pool(threads).install(|| best(budget(), run));
            let (name, g) = (case.name(), case.flops() / 1e9);
            println!("| {name} | {threads} | {:.0} | {:.0} | {:.2} |", g / ours, g / theirs, theirs / ours);
        }
    }
}

/// The layers of glow28, pixelcnn28 and vae28.
fn layers() -> Vec<(&'static str, Conv)> {
    let same = |b, s, cin, cout, k: usize| Conv::dense(b, (s, s), (cin, cout), (k, k), 1, k / 2);
    let masked = |b, s, cin, cout, k: usize, keep: usize| {
        let mut conv = same(b, s, cin, cout, k);
        conv.taps.truncate(keep);
        conv
    };
    vec![
        ("3x3 2->128 14 b64", same(64, 14, 2, 128, 3)),
        ("1x1 128->128 14 b64", same(64, 14, 128, 128, 1)),
        ("3x3 128->4 14 b64", same(64, 14, 128, 4, 3)),
        ("3x3 4->128 7 b64", same(64, 7, 4, 128, 3)),
        ("1x1 128->128 7 b64", same(64, 7, 128, 128, 1)),
        ("3x3 128->8 7 b64", same(64, 7, 128, 8, 3)),
        ("1x1 64->32 28 b32", same(32, 28, 64, 32, 1)),
        ("3x3B 32->32 28 b32", masked(32, 28, 32, 32, 3, 5)),
        ("1x1 32->64 28 b32", same(32, 28, 32, 64, 1)),
        ("7x7A 1->64 28 b32", masked(32, 28, 1, 64, 7, 24)),
        ("1x1 64->256 28 b32", same(32, 28, 64, 256, 1)),
        ("4x4s2 64->64 28 b64", Conv::dense(64, (28, 28), (64, 64), (4, 4), 2, 1)),
        ("4x4s2 1->32 28 b128", Conv::dense(128, (28, 28), (1, 32), (4, 4), 2, 1)),
        ("4x4s2 32->64 14 b128", Conv::dense(128, (14, 14), (32, 64), (4, 4), 2, 1)),
    ]
}

fn layer_table() {
    println!("| layer | threads | forward ms | input gradient ms | weight gradient ms | forward GFLOP/s |");
    println!("|---|---|---|---|---|---|");
    for (name, conv) in layers().into_iter().filter(|(name, _)| wanted(name)) {
        let (x, w, dy) = (numbers(conv.input_len()), numbers(conv.weight_len()), numbers(conv.output_len()));
        let (mut y, mut dx, mut dw) = (dy.clone(), x.clone(), w.clone());
        let flops = 2.0 * (dy.len() * conv.taps.len() * conv.cin) as f64;
        for threads in [1, 2] {
            let run = |i| match i {
                0 => conv::forward(&conv, &x, &w, &mut y, &Epilogue::default()),
                1 => conv::input_grad(&conv, &dy, &w, &mut dx, &Epilogue::default()),
                _ => conv::weight_grad(&conv, &x, &dy, &mut dw, false, false),
            };
            let [f, i, g] = pool(threads).install(|| best(budget(), run)).map(|s: f64| s * 1e3);
            println!("| {name} | {threads} | {f:.3} | {i:.3} | {g:.3} | {:.0} |", flops / f / 1e6);
        }
    }
}

fn statistics(criterion: &mut Criterion) {
    for threads in [1, 2] {
        let mut group = criterion.benchmark_group(format!("gemm f32, {threads} threads"));
        group.sample_size(10).warm_up_time(Duration::from_millis(200));
        group.measurement_time(Duration::from_millis(800));
        for shape in SHAPES {
            let mut case = Case::new(shape);
            group.throughput(Throughput::Elements(case.flops() as u64));
            let pool = pool(threads);
            group.bench_function(BenchmarkId::new("ours", case.name()), |b| {
                pool.install(|| b.iter(|| case.ours()));
            });
            group.bench_function(BenchmarkId::new("gemm crate", case.name()), |b| {
                pool.install(|| b.iter(|| case.theirs(threads)));
            });
        }
    }
}

fn main() {
    table();
    layer_table();
    if !std::env::args().any(|a| a == "--table") {
        let mut criterion = Criterion::default().configure_from_args();
        statistics(&mut criterion);
        criterion.final_summary();
    }
}
