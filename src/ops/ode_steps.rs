//! A whole solve of fixed steps with an explicit Runge-Kutta method: x(t_1) and ∫ trace dt for dx/dt = f(t, x), f and
//! the trace as in [`super::ode_trace`].
//!
//! x (B, D) and the probe of the solve give y (B, D) and the integral (B,), in nats for a log-density. With S stages
//! and N steps that is S N evaluations (less the last stage of a method whose last stage is the first of the next
//! step, which has no weight). Rows do not depend on each other, so each tile of 64 rows runs through all evaluations
//! while it lies in cache, forward and backward: no pass over memory between the stages.
//!
//! Backward is the exact gradient of the steps ("discretise, then optimise"). With λ the gradient of x_{n+1}:
//!   k̄_i = h b_i λ + h Σ_{j>i} a_ji x̄_j,  x̄_i = k̄_i ∂f/∂x + h b_i ḡ ∂trace/∂x at stage i,  λ += Σ x̄_i.
//! It keeps 4 (D + Σ H_l + Σ_{l>1} H_l) bytes per row and evaluation at f32.

use super::ode_trace::{Field, Launch, Probe, Sums, case_flops, case_inputs, tile_of, widened};
use super::{Case, OpInfo, cast, ode_trace, runge_kutta, unary};
use crate::autograd::{self, Recipe, record};
use crate::cpu::field::{Net, Products, ROWS, Scratch, Smooth};
use crate::cpu::gemm::Word;
use crate::cpu::{par, simd};
use crate::cuda::{self, Kernels, Output, Struct, Wanted};
use crate::ode::{self, Tableau};
use crate::tensor::{DType, Float, NewTensor, Plain, Tensor, with_arithmetic};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "ode_steps",
    family: "fused",
    summary: "a whole solve of fixed Runge-Kutta steps of a field with the integral of its trace",
    cases,
};

const FORWARD: Kernels = Kernels::new("ode_steps", ["ode_steps_f32", "ode_steps_bf16", "ode_steps_f16"]);
const BACKWARD: Kernels = Kernels::new(
    "ode_steps",
    ["ode_steps_backward_f32", "ode_steps_backward_bf16", "ode_steps_backward_f16"],
);
/// Stages of the largest method that kernels/ode_steps.cu takes.
const MOST_STAGES: usize = 7;

/// Equal steps between two times.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Steps {
    /// The method.
    pub tableau: &'static Tableau,
    /// The first and the last time; the last may be the smaller.
    pub span: [f64; 2],
    /// How many.
    pub count: usize,
}

impl Steps {
    /// Evaluations of f in each step.
    fn stages(&self) -> usize {
        self.tableau.stages() - usize::from(self.tableau.first_same_as_last)
    }

    /// Evaluations of f in the solve.
    pub fn evaluations(&self) -> usize {
        self.stages() * self.count
    }

    /// The length of a step.
    fn length(&self) -> f64 {
        (self.span[1] - self.span[0]) / self.count as f64
    }

    /// The time of stage `i` of step `n`.
    fn time(&self, n: usize, i: usize) -> f64 {
        self.span[0] + self.length() * (n as f64 + self.tableau.c[i])
    }
}

/// x(t_1) (B, D) and ∫ trace dt (B,) for x(t_0) = x (B, D).
///
/// # Panics
/// When shapes or dtypes do not fit, or there are no steps.
#[track_caller]
pub fn ode_steps(x: &Tensor, field: &Field, probe: &Probe, steps: Steps) -> (Tensor, Tensor) {
    field.check("ode_steps", x, probe);
    assert!(steps.count > 0, "ode_steps: no steps");
    if autograd::in_higher_order() {
        return composite(x, field, probe, steps);
    }
    if let Some(gpu) = cuda::on("ode_steps", &[x, &probe.v, &probe.p]) {
        let stages = steps.stages();
        return match Launch::new(gpu, x, field, probe, stages).filter(|_| stages <= MOST_STAGES) {
            Some(launch) => launched(launch, steps),
            None => composite(x, field, probe, steps),
        };
    }
    if let Some((wide, field, probe)) = widened(x, field, probe) {
        let (y, total) = ode_steps(&wide, &field, &probe, steps);
        return (cast::cast(&y, x.dtype()), cast::cast(&total, x.dtype()));
    }
    let inputs = field.inputs(x, probe);
    let refs: Vec<&Tensor> = inputs.iter().collect();
    let recording = autograd::is_recording(&refs);
    let [y, total, saved] = with_arithmetic!(x.dtype(), T => {
        let [b, d] = x.dims();
        let net = field.net::<T>(probe.mix.as_ref());
        let mats = net.mats(false);
        let products = Products::new(&mats, b);
        let (mut y, mut total) = (NewTensor::<T>::new([b, d]), NewTensor::<T>::new([b]));
        let per = d + net.saved();
        let mut saved = NewTensor::<T>::new([if recording { b * per * steps.evaluations() } else { 0 }]);
        let [xs, vs, ps] = [x, &probe.v, &probe.p].map(|t| t.as_slice::<T>());
        let kept = par::Shared(saved.as_mut().as_mut_ptr());
        par::chunks_mut2(y.as_mut(), ROWS * d, total.as_mut(), ROWS, |i, y, total| {
            let (rows, at) = (total.len(), i * ROWS);
            let mut own = vec![T::from_f64(0.0); if recording { 0 } else { rows * per }];
            let saved = if recording {
                let len = per * steps.evaluations();
                // SAFETY: tile i owns its part of the memory, which holds b rows of `len`.
                unsafe { kept.slice(at * len, rows * len) }
            } else {
                &mut own[..]
            };
            y.copy_from_slice(&xs[at * d..][..rows * d]);
            forward(&net, &products, steps, tile_of([vs, ps], b, at, rows), saved, y, total);
        });
        [y.finish(), total.finish(), saved.finish()]
    });
    let act = field.act;
    let kept: Vec<Tensor> = inputs.iter().map(Tensor::detach).collect();
    let [y, total] = record(Recipe::fused("ode_steps"), &refs, [y, total], move |back| {
        let needs: Vec<bool> = (0..kept.len()).map(|i| back.needs(i)).collect();
        let (gy, gtotal) = (back.grad(0), back.grad(1));
        with_arithmetic!(saved.dtype(), T => {
            let (x, field, probe) = Field::from_inputs(act, &kept);
            let [b, d] = x.dims();
            let net = field.net::<T>(probe.mix.as_ref());
            let mats = net.mats(true);
            let products = Products::new(&mats, b);
            let [vs, ps] = [&probe.v, &probe.p].map(|t| t.as_slice::<T>());
            let [gy, gt, saved] = [&gy, &gtotal, &saved].map(|t| t.as_slice::<T>());
            let mut sums = Sums::<T>::new(&net, b, d, &needs);
            let len = (d + net.saved()) * steps.evaluations();
            sums.each(b, |at, rows, [dx, dv, dp], dparams, scratch| {
                dx.copy_from_slice(&gy[at * d..][..rows * d]);
                let own = &saved[at * len..][..rows * len];
                let probe = tile_of([vs, ps], b, at, rows);
                backward(&net, &products, steps, probe, own, &gt[at..][..rows], dx, [dv, dp], dparams, scratch);
            });
            sums.finish(&kept, &needs)
        })
    });
    (y, total)
}

/// On a device, with its gradients; the inputs of all stages are kept for them.
fn launched(launch: Launch, steps: Steps) -> (Tensor, Tensor) {
    let (held, saved) = (launch.held(), launch.room(steps.evaluations()));
    let plan = Struct(Plan::new(steps, held.is_some()));
    let room = Wanted(saved.as_ref(), DType::F32);
    let found = launch.run(&FORWARD, &[&room], &plan, held.unwrap_or(0));
    let saved = saved.map(Output::finish);
    launch.record("ode_steps", found, move |launch, grads| {
        let saved = saved.as_ref().expect("kept where something is recorded");
        launch.backward(&BACKWARD, grads, saved, &plan)
    })
}

/// As `Plan` in kernels/ode_steps.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Plan {
    stages: i32,
    steps: i32,
    hold: i32,
    start: f32,
    length: f32,
    b: [f32; MOST_STAGES],
    c: [f32; MOST_STAGES],
    a: [[f32; MOST_STAGES]; MOST_STAGES],
}

impl Plan {
    fn new(steps: Steps, hold: bool) -> Self {
        let row = |values: &[f64]| {
            let mut row = [0.0; MOST_STAGES];
            row.iter_mut().zip(values).for_each(|(to, from)| *to = *from as f32);
            row
        };
        let mut a = [[0.0; MOST_STAGES]; MOST_STAGES];
        a.iter_mut().take(steps.stages()).enumerate().for_each(|(i, to)| *to = row(steps.tableau.row(i)));
        Self {
            stages: steps.stages() as i32,
            steps: steps.count as i32,
            hold: i32::from(hold),
            start: steps.span[0] as f32,
            length: steps.length() as f32,
            b: row(steps.tableau.b),
            c: row(steps.tableau.c),
            a,
        }
    }
}

/// y += Σ weights_j rows_j, rows of `y.len()` in a row.
fn add_rows<T: Float>(y: &mut [T], rows: &[T], weights: impl Iterator<Item = f64>) {
    for (weight, row) in weights.zip(rows.chunks_exact(y.len())) {
        if weight != 0.0 {
            let weight = T::from_f64(weight);
            simd::vectorize_for::<T, _>(
                #[inline(always)]
                || y.iter_mut().zip(row).for_each(|(y, k)| *y = Float::mul_add(weight, *k, *y)),
            );
        }
    }
}

/// Runs a tile through all steps: y from x(t_0) to x(t_1). `saved` holds one evaluation, or all of them.
fn forward<T: Float + Word<Acc = T>>(
    net: &Net<'_, T>,
    products: &Products<'_, T>,
    steps: Steps,
    probe: [&[T]; 2],
    saved: &mut [T],
    y: &mut [T],
    total: &mut [T],
) {
    let (stages, h, n, rows) = (steps.stages(), steps.length(), y.len(), total.len());
    let zero = T::from_f64(0.0);
    let mut scratch = net.scratch();
    let (mut ks, mut traces) = (vec![zero; stages * n], vec![zero; stages * rows]);
    let per = n + rows * net.saved();
    let all = saved.len() > per;
    total.fill(zero);
    for step in 0..steps.count {
        for i in 0..stages {
            let at = if all { (step * stages + i) * per } else { 0 };
            let (x, saved) = saved[at..][..per].split_at_mut(n);
            x.copy_from_slice(y);
            add_rows(x, &ks, steps.tableau.row(i).iter().map(|a| a * h));
            let (k, trace) = (&mut ks[i * n..][..n], &mut traces[i * rows..][..rows]);
            net.forward(products, steps.time(step, i), x, probe, saved, k, trace, &mut scratch);
        }
        add_rows(y, &ks, steps.tableau.b.iter().map(|b| b * h));
        add_rows(total, &traces, steps.tableau.b.iter().map(|b| b * h));
    }
}

/// The gradients of a tile; `dx` comes in as the gradient of x(t_1) and leaves as that of x(t_0).
fn backward<T: Float + Word<Acc = T>>(
    net: &Net<'_, T>,
    products: &Products<'_, T>,
    steps: Steps,
    probe: [&[T]; 2],
    saved: &[T],
    gtotal: &[T],
    dx: &mut [T],
    [dv, dp]: [&mut [T]; 2],
    dparams: &mut [T],
    scratch: &mut Scratch<T>,
) {
    let (stages, h, n, rows) = (steps.stages(), steps.length(), dx.len(), gtotal.len());
    let zero = T::from_f64(0.0);
    let (mut xs, mut gk, mut gt) = (vec![zero; stages * n], vec![zero; n], vec![zero; rows]);
    let per = n + rows * net.saved();
    for step in (0..steps.count).rev() {
        for i in (0..stages).rev() {
            let weight = steps.tableau.b[i] * h;
            gk.fill(zero);
            add_rows(&mut gk, dx, std::iter::once(weight));
            let later = (i + 1..stages).map(|j| steps.tableau.row(j)[i] * h);
            add_rows(&mut gk, &xs[((i + 1) * n).min(xs.len())..], later);
            gt.iter_mut().zip(gtotal).for_each(|(g, t)| *g = T::from_f64(weight) * *t);
            let (x, saved) = saved[(step * stages + i) * per..][..per].split_at(n);
            let (t, grads) = (steps.time(step, i), [&gk[..], &gt[..]]);
            let to = &mut xs[i * n..][..n];
            net.backward(products, t, x, probe, saved, grads, to, [&mut *dv, &mut *dp], dparams, scratch);
        }
        add_rows(dx, &xs, std::iter::repeat_n(1.0, stages));
    }
}

/// [`ode_steps`] in primitives.
#[track_caller]
pub fn composite(x: &Tensor, field: &Field, probe: &Probe, steps: Steps) -> (Tensor, Tensor) {
    let (mut y, mut total) = (x.clone(), unary::affine(&x.sum(&[1]), 0.0, 0.0));
    let h = steps.length();
    for step in 0..steps.count {
        let (mut ks, mut traces) = (Vec::new(), Vec::new());
        for i in 0..steps.stages() {
            let x = runge_kutta::composite_stage(&y, steps.tableau.row(i), h, &ks);
            let (k, trace) = ode_trace::composite(steps.time(step, i), &x, field, probe);
            ks.push(k);
            traces.push(trace);
        }
        y = runge_kutta::composite_stage(&y, steps.tableau.b, h, &ks);
        total = runge_kutta::composite_stage(&total, steps.tableau.b, h, &traces);
    }
    (y, total)
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (act, tableau, b, d, widths, mix, count) in [
        (Smooth::Tanh, &ode::EULER, 2, 3, &[4][..], false, 1),
        (Smooth::Softplus, &ode::HEUN, 67, 2, &[5, 4], false, 2),
        (Smooth::Tanh, &ode::RK4, 5, 3, &[6, 5], true, 2),
        (Smooth::Tanh, &ode::DOPRI5, 3, 2, &[4, 3, 5], false, 1),
    ] {
        let steps = Steps { tableau, span: [0.1, 0.9], count };
        let run = move |x: &[Tensor], f: fn(&Tensor, &Field, &Probe, Steps) -> (Tensor, Tensor)| {
            let (x, field, probe) = Field::from_inputs(act, x);
            let (y, total) = f(&x, &field, &probe, steps);
            vec![y, total]
        };
        let name = format!("{act:?} {} {b}x{d} {widths:?} mix={mix} {count} steps", tableau.name);
        cases.push(
            Case::new(name, case_inputs(b, d, widths, mix), move |x| run(x, ode_steps))
                .composite(move |x| run(x, composite)),
        );
    }
    let (b, d, widths) = (512, 43, [128, 128]);
    let steps = Steps { tableau: &ode::RK4, span: [0.0, 1.0], count: 8 };
    cases.push(
        Case::new("512x43 [128, 128] rk4 8 steps", case_inputs(b, d, &widths, false), move |x| {
            let (x, field, probe) = Field::from_inputs(Smooth::Tanh, x);
            let (y, total) = ode_steps(&x, &field, &probe, steps);
            vec![y, total]
        })
        .order(0)
        .bench(4 * b * (2 * d + 256), 32 * case_flops(b, d, &widths))
        .backward(8 * b * (2 * d + 256), 96 * case_flops(b, d, &widths)),
    );
    cases
}
