//! Throughput of the elementwise functions, the random draws and the optimiser step, on random inputs.
//! `cached` works on 16 Ki elements again and again on one thread (the arithmetic), `streamed` on 16 Mi elements
//! with all threads (the memory).

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use surprisal::cpu::optim::{Rates, Slot, sum_of_squares};
use surprisal::cpu::{math, par, simd::vectorize};
use surprisal::random::Philox;

const SIZES: [(&str, usize); 2] = [("cached", 1 << 14), ("streamed", 1 << 24)];
const CHUNK: usize = 1 << 14;

fn normals(n: usize, seed: u64) -> Vec<f32> {
    let mut x = vec![0.0; n];
    Philox::new(seed).fill_normal(&mut x);
    x
}

fn elementwise(c: &mut Criterion, name: &str, positive: bool, f: impl Fn(f32) -> f32 + Copy + Sync + Send) {
    let mut group = c.benchmark_group(name);
    for (size, n) in SIZES {
        let mut x = normals(n, 1);
        x.iter_mut().for_each(|x| *x = if positive { x.abs() } else { *x * 3.0 });
        let mut y = vec![0.0; n];
        group.throughput(Throughput::ElementsAndBytes { elements: n as u64, bytes: 8 * n as u64 });
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| {
                par::chunks_mut(black_box(&mut y), CHUNK, |i, y| {
                    let x = &x[i * CHUNK..][..y.len()];
                    vectorize(
                        #[inline(always)]
                        || y.iter_mut().zip(x).for_each(|(y, x)| *y = f(*x)),
                    );
                });
            });
        });
    }
}

fn functions(c: &mut Criterion) {
    elementwise(c, "copy", false, |x| x);
    elementwise(c, "exp", false, math::exp);
    elementwise(c, "ln", true, math::ln);
    elementwise(c, "tanh", false, math::tanh);
    elementwise(c, "sigmoid", false, math::sigmoid);
    elementwise(c, "softplus", false, math::softplus);
    elementwise(c, "std_exp", false, f32::exp);
}

fn draws(c: &mut Criterion) {
    type Fill = fn(&mut Philox, &mut [f32]);
    let fills: [(&str, Fill); 2] = [("uniform", Philox::fill_uniform), ("normal", Philox::fill_normal)];
    for (name, fill) in fills {
        let mut group = c.benchmark_group(name);
        for (size, n) in SIZES {
            let (mut rng, mut x) = (Philox::new(1), vec![0.0; n]);
            group.throughput(Throughput::ElementsAndBytes { elements: n as u64, bytes: 4 * n as u64 });
            group.bench_function(BenchmarkId::from_parameter(size), |b| {
                b.iter(|| fill(&mut rng, black_box(&mut x)))
            });
        }
    }
}

fn optimiser(c: &mut Criterion) {
    let mut group = c.benchmark_group("adam");
    for (size, n) in SIZES {
        let (mut w, g) = (normals(n, 1), normals(n, 2));
        let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
        let rates = Rates {
            beta1: 0.9,
            beta2: 0.999,
            lr: 1e-3,
            v_scale: 1.0,
            eps: 1e-8,
            keep: 1.0,
            l2: 0.0,
            clip: 1.0,
            part: 0.0,
        };
        group.throughput(Throughput::ElementsAndBytes { elements: n as u64, bytes: 28 * n as u64 });
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| {
                rates.step(vec![Slot { weight: &mut w, grad: &g, m: &mut m, v: &mut v, average: None }]);
            });
        });
    }
    group.finish();
    let mut group = c.benchmark_group("sum_of_squares");
    for (size, n) in SIZES {
        let g = normals(n, 2);
        group.throughput(Throughput::ElementsAndBytes { elements: n as u64, bytes: 4 * n as u64 });
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| sum_of_squares(&[black_box(&g[..])]))
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(std::time::Duration::from_millis(200))
        .measurement_time(std::time::Duration::from_millis(1000));
    targets = functions, draws, optimiser
}
criterion_main!(benches);
