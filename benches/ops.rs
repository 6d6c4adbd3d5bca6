//! Times every registered op case that is marked as a benchmark, on random inputs at f32:
//! `cargo bench --bench ops [-- FILTER]`. Rates are of the bytes or flops that the case states.

use criterion::{Criterion, Throughput};
use std::hint::black_box;
use surprisal::DType;
use surprisal::ops::OPS;
use surprisal::testing::cast_inputs;

fn main() {
    let mut criterion = Criterion::default().configure_from_args().sample_size(20);
    for op in OPS {
        let mut group = criterion.benchmark_group(op.name);
        for case in (op.cases)().iter().filter(|c| c.bench) {
            let inputs = cast_inputs(&case.inputs, DType::F32);
            let matrix_bound = case.flops > 8 * case.bytes;
            group.throughput(if matrix_bound {
                Throughput::Elements(case.flops as u64)
            } else {
                Throughput::Bytes(case.bytes as u64)
            });
            group.bench_function(&case.name, |b| b.iter(|| black_box((case.run)(&inputs))));
        }
    }
    criterion.final_summary();
}
