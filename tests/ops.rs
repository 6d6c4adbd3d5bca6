//! Takes every registered op through the same checks: against its composite, gradients to order 2, every
//! dtype, poisoned memory, repeated runs, thread counts.

use surprisal::cpu::buffer;
use surprisal::ops::{Case, OPS};
use surprisal::testing::{cast_inputs, gradient_error, max_error, outputs_and_grads, second_order_error};
use surprisal::{DType, Tensor};

fn each(check: impl Fn(&str, &Case)) {
    for op in OPS {
        let cases = (op.cases)();
        assert!(!cases.is_empty(), "{} has no cases", op.name);
        for case in &cases {
            check(&format!("{}: {}", op.name, case.name), case);
        }
    }
}

#[test]
fn fused_ops_agree_with_their_composites() {
    each(|name, case| {
        let Some(composite) = &case.composite else { return };
        let (got, got_grads) = outputs_and_grads(&case.inputs, case.order, &case.run, DType::F64);
        let (want, want_grads) = outputs_and_grads(&case.inputs, case.order, composite, DType::F64);
        let error = max_error(&got, &want);
        assert!(error < 1e-9, "{name}: outputs differ from the composite by {error:e}");
        let error = max_error(&got_grads, &want_grads);
        assert!(error < 1e-8, "{name}: gradients differ from the composite by {error:e}");
    });
    for op in OPS.iter().filter(|o| o.family == "fused") {
        assert!(
            (op.cases)().iter().any(|c| c.composite.is_some()),
            "{}: a fused op needs a composite",
            op.name
        );
    }
}

#[test]
fn gradients_of_order_one_agree_with_differences() {
    each(|name, case| {
        if case.order >= 1 {
            let error = gradient_error(&case.inputs, &case.run);
            assert!(error < 1e-6, "{name}: relative error {error:e} along a random direction");
        }
    });
}

#[test]
fn gradients_of_order_two_agree_with_differences() {
    each(|name, case| {
        if case.order >= 2 {
            let error = second_order_error(&case.inputs, &case.run);
            assert!(error < 1e-5, "{name}: relative error {error:e} along a random direction");
        }
    });
}

/// The error of a fused op in a dtype may be at most twice that of its composite in the same dtype, plus one
/// rounding of the largest value; primitives, which have no composite, get a few roundings of their own.
#[test]
fn every_dtype_is_as_exact_as_the_composite() {
    for (dtype, eps) in [(DType::F32, 1.2e-7), (DType::BF16, 7.8e-3), (DType::F16, 9.8e-4)] {
        each(|name, case| {
            let inputs: Vec<Tensor> = cast_inputs(&case.inputs, dtype)
                .iter()
                .map(|t| if t.dtype() == dtype { t.cast(DType::F64) } else { t.clone() })
                .collect();
            let exact = outputs_and_grads(&inputs, case.order, &case.run, DType::F64);
            let got = outputs_and_grads(&inputs, case.order, &case.run, dtype);
            let other = case.composite.as_ref().map(|c| outputs_and_grads(&inputs, case.order, c, dtype));
            for (part, got, exact, other) in [
                ("output", &got.0, &exact.0, other.as_ref().map(|c| &c.0)),
                ("gradient", &got.1, &exact.1, other.as_ref().map(|c| &c.1)),
            ] {
                let error = max_error(got, exact);
                let scale = exact.iter().flat_map(|t| t.to_f64_vec()).fold(1.0f64, |m, x| m.max(x.abs()));
                let allowed = match other {
                    Some(other) => 2.0 * max_error(other, exact) + eps * scale,
                    None => 8.0 * eps * scale,
                };
                assert!(
                    error <= allowed,
                    "{name}: {part} in {dtype:?} is off by {error:e}, allowed {allowed:e}"
                );
            }
        });
    }
}

fn bits(case: &Case, dtype: DType) -> Vec<Vec<u8>> {
    let (y, g) = outputs_and_grads(&case.inputs, case.order, &case.run, dtype);
    y.iter().chain(&g).map(|t| t.as_bytes().to_vec()).collect()
}

#[test]
fn poisoned_memory_repeats_and_threads_change_no_bit() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("a pool of three threads");
    each(|name, case| {
        let plain = bits(case, DType::F32);
        buffer::guard(true);
        let poisoned = bits(case, DType::F32);
        buffer::guard(false);
        assert!(plain == poisoned, "{name}: the result depends on what the memory held before");
        assert!(plain == pool.install(|| bits(case, DType::F32)), "{name}: threads change the result");
    });
}
