//! Takes the cases of the registry through the emulated device: the kernels of `kernels/*.cu`, their launches and their
//! gradients, against the CPU in f32, bf16 and f16, with the threads of a block run in three orders.

use surprisal::autograd::no_grad;
use surprisal::cuda::emulator::{Order, set_order};
use surprisal::ops::{Case, OPS};
use surprisal::testing::{cast_inputs, max_error, outputs_and_grads};
use surprisal::{DType, Device, Tensor};

/// Emulated threads are slow: larger cases are left to real devices.
const MAX_FLOPS: usize = 4_000_000;

/// Ops that have kernels.
const ON_DEVICES: [&str; 9] = [
    "unary",
    "actnorm",
    "coupling",
    "invertible_conv",
    "logistic_mixture",
    "masked_conv",
    "ode_steps",
    "ode_trace",
    "rq_spline",
];

/// To which order the gradients of a case are checked: fused ops to the first; not where kernels run only when nothing
/// is recorded.
fn order(op: &str, case: &Case) -> u8 {
    let forward = ["unary", "ode_steps", "ode_trace"].contains(&op) || case.name.contains("inverse");
    if forward { 0 } else { case.order.min(1) }
}

fn each(check: impl Fn(&str, &Case, u8)) {
    for op in OPS.iter().filter(|op| ON_DEVICES.contains(&op.name)) {
        let cases = (op.cases)();
        // The volume of a whole step takes a broadcast, which devices do not have yet.
        let ready = |c: &&Case| op.name != "invertible_conv" || c.name.contains("inverse");
        for case in cases.iter().filter(|c| c.flops <= MAX_FLOPS).filter(ready) {
            check(&format!("{}: {}", op.name, case.name), case, order(op.name, case));
        }
    }
}

fn emulated(name: &str, case: &Case, grads: u8, dtype: DType, order: Order) -> (Vec<Tensor>, Vec<Tensor>) {
    set_order(order);
    let run = || {
        // Inverses have kernels where nothing is recorded, and are primitives where something is.
        let (y, g) = match grads {
            0 => no_grad(|| outputs_and_grads(&case.inputs, 0, &case.run, dtype)),
            _ => outputs_and_grads(&case.inputs, grads, &case.run, dtype),
        };
        let home =
            |ts: Vec<Tensor>| ts.iter().map(|t| t.to(Device::Cpu).expect("the CPU is there")).collect();
        assert!(y.iter().chain(&g).all(|t| t.device() == Device::Emulated), "{name}: left the device");
        (home(y), home(g))
    };
    Device::Emulated.run(run).unwrap_or_else(|e| panic!("{name} in {dtype:?}: {e}"))
}

/// The device may be off, against f64, by twice what the CPU is off in the same dtype, plus a few roundings of the
/// largest value.
fn agrees(dtype: DType, eps: f64) {
    each(|name, case, order| {
        let rounded: Vec<Tensor> = cast_inputs(&case.inputs, dtype)
            .iter()
            .map(|t| if t.dtype() == dtype { t.cast(DType::F64) } else { t.clone() })
            .collect();
        let exact = outputs_and_grads(&rounded, order, &case.run, DType::F64);
        let cpu = outputs_and_grads(&case.inputs, order, &case.run, dtype);
        let got = emulated(name, case, order, dtype, Order::Forward);
        for (part, got, exact, cpu) in
            [("output", &got.0, &exact.0, &cpu.0), ("gradient", &got.1, &exact.1, &cpu.1)]
        {
            let error = max_error(got, exact);
            let scale = exact.iter().flat_map(|t| t.to_f64_vec()).fold(1.0f64, |m, x| m.max(x.abs()));
            let allowed = 2.0 * max_error(cpu, exact) + 4.0 * eps * scale;
            assert!(error <= allowed, "{name}: {part} in {dtype:?} is off by {error:e}, allowed {allowed:e}");
        }
        let bits = |(y, g): &(Vec<Tensor>, Vec<Tensor>)| -> Vec<Vec<u8>> {
            y.iter().chain(g).map(|t| t.as_bytes().to_vec()).collect()
        };
        for threads in [Order::Backward, Order::Seed(7)] {
            let other = emulated(name, case, order, dtype, threads);
            assert!(
                bits(&got) == bits(&other),
                "{name}: the order of threads ({threads:?}) changes a bit in {dtype:?}"
            );
        }
    });
}

#[test]
fn kernels_agree_with_the_cpu_in_f32() {
    agrees(DType::F32, 1.2e-7);
}

#[test]
fn kernels_agree_with_the_cpu_in_bf16() {
    agrees(DType::BF16, 7.8e-3);
}

#[test]
fn kernels_agree_with_the_cpu_in_f16() {
    agrees(DType::F16, 9.8e-4);
}
