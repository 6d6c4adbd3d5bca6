//! One step of Langevin dynamics (Roberts & Tweedie 1996; Welling & Teh 2011; Du & Mordatch 2019):
//!   y = clamp(x − step · clip(g) + noise · ξ),  ξ ~ N(0, 1),
//! elementwise for a gradient g shaped as x. The noise of element i is element i of one draw of the generator, so it
//! is the same on every device and for any number of threads. One pass: 12 bytes per element at f32.
//!
//! [`langevin_put`] is the last step of a persistent chain: finite rows also go back into the replay buffer.
//!
//! Backward, y known: dx = dy where y lies strictly inside the range; dg = −step dx where |g| < clip.

use super::{Case, OpInfo, binary, cast, normal, replay_buffer, unary};
use crate::autograd::{self, Recipe, record};
use crate::cpu::{par, simd};
use crate::cuda::{self, Gpu, Grid, Kernels, Struct};
use crate::random::{Draw, Philox};
use crate::tensor::{Float, NewTensor, Plain, Tensor, with_arithmetic};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "langevin",
    family: "fused",
    summary: "a step of Langevin dynamics: gradient, Philox noise, clamp",
    cases,
};

const FORWARD: Kernels =
    Kernels::new("langevin", ["langevin_forward_f32", "langevin_forward_bf16", "langevin_forward_f16"]);
const BACKWARD: Kernels =
    Kernels::new("langevin", ["langevin_backward_f32", "langevin_backward_bf16", "langevin_backward_f16"]);
const PUT: Kernels = Kernels::new("langevin", ["langevin_put_f32", "langevin_put_bf16", "langevin_put_f16"]);

/// The numbers of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Langevin {
    /// Factor on the gradient.
    pub step: f64,
    /// Standard deviation of the noise; 0 draws none. Unadjusted Langevin at temperature 1 has √(2 step).
    pub noise: f64,
    /// Elements of the gradient are held within ± this; infinite for none.
    pub clip: f64,
    /// Where the result is held; infinite for nowhere.
    pub range: [f64; 2],
}

impl Langevin {
    /// Unadjusted Langevin dynamics at temperature 1, unbounded.
    pub fn unadjusted(step: f64) -> Self {
        Self {
            step,
            noise: (2.0 * step).sqrt(),
            clip: f64::INFINITY,
            range: [f64::NEG_INFINITY, f64::INFINITY],
        }
    }
}

/// A step from x against the gradient g (shaped as x); takes one draw of `rng` unless the noise is 0.
///
/// # Panics
/// When shapes or dtypes differ.
#[track_caller]
pub fn langevin(x: &Tensor, g: &Tensor, how: Langevin, rng: &mut Philox) -> Tensor {
    assert_eq!((x.shape(), x.dtype()), (g.shape(), g.dtype()), "langevin: x and its gradient differ");
    if autograd::in_higher_order() {
        return composite(x, g, how, rng);
    }
    if let Some(gpu) = cuda::on("langevin", &[x, g]) {
        return launch(gpu, x, g, how, rng);
    }
    if let Some([wide, g]) = cast::widened([x, g]) {
        return cast::cast(&langevin(&wide, &g, how, rng), x.dtype());
    }
    let draw = (how.noise != 0.0).then(|| rng.draw());
    let y = with_arithmetic!(x.dtype(), T => forward::<T>(x, g, how, draw.as_ref()));
    let slope = g.detach();
    let [y] = record(Recipe::fused("langevin").keeping_outputs(), &[x, g], [y], move |back| {
        let [low, high] = how.range;
        let dx = pass(&back.grad(0), back.output(0), 1.0, [low, high]);
        let dg = back.needs(1).then(|| pass(&dx, &slope, -how.step, [-how.clip, how.clip]));
        vec![Some(dx), dg]
    });
    y
}

/// A step of the rows x (N, ...), unrecorded; those whose numbers are all finite are also put into `buffer` (S, ...) at
/// `slots` (N) i32, which differ from each other. A row with a negative slot stays out. One launch on devices.
///
/// # Panics
/// When shapes or dtypes do not fit, or a slot is beyond the buffer (on devices its row is dropped).
#[track_caller]
pub fn langevin_put(
    x: &Tensor,
    g: &Tensor,
    how: Langevin,
    rng: &mut Philox,
    buffer: &mut Tensor,
    slots: &Tensor,
) -> Tensor {
    assert_eq!((x.shape(), x.dtype()), (g.shape(), g.dtype()), "langevin: x and its gradient differ");
    let n = replay_buffer::row("langevin put", buffer, slots, x);
    let Some(gpu) = cuda::on("langevin put", &[x, g, buffer, slots]) else {
        let y = autograd::no_grad(|| langevin(x, g, how, rng));
        replay_buffer::put(buffer, slots, &y);
        return y;
    };
    let (y, step, draw) = (gpu.empty(x.shape(), x.dtype()), Struct(Step::of(&how)), device_draw(&how, rng));
    let threads = n.div_ceil(4).next_multiple_of(32).clamp(32, 256) as u32;
    let (grid, n, size) = (Grid::new(slots.len(), threads), n as i64, buffer.shape()[0] as i32);
    let args: &[&dyn cuda::Arg] = &[&y, &buffer.change(), x, g, slots, &n, &size, &step, &draw];
    gpu.launch(PUT.of(x.dtype()), grid, args);
    y.finish()
}

/// As `Step` in kernels/langevin.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Step {
    step: f32,
    noise: f32,
    clip: f32,
    range: [f32; 2],
}

impl Step {
    fn of(how: &Langevin) -> Self {
        let [step, noise, clip] = [how.step, how.noise, how.clip].map(|x| x as f32);
        Self { step, noise, clip, range: how.range.map(|x| x as f32) }
    }
}

/// The noise of a step; none is drawn where its deviation is 0.
fn device_draw(how: &Langevin, rng: &mut Philox) -> cuda::Draw {
    if how.noise == 0.0 { rng.clone().device_draw() } else { rng.device_draw() }
}

/// A step on a device, with its gradient: the noise is made again instead of kept.
fn launch(gpu: Gpu, x: &Tensor, g: &Tensor, how: Langevin, rng: &mut Philox) -> Tensor {
    let (draw, step) = (device_draw(&how, rng), Struct(Step::of(&how)));
    let (y, n) = (gpu.empty(x.shape(), x.dtype()), x.len());
    let (grid, count) = (Grid::flat(n.div_ceil(4)), n as i64);
    gpu.launch(FORWARD.of(x.dtype()), grid, &[&y, x, g, &count, &step, &draw]);
    let (from, slope) = (x.detach(), g.detach());
    let [y] = record(Recipe::fused("langevin"), &[x, g], [y.finish()], move |back| {
        let [dx, dg] = [(); 2].map(|()| gpu.empty(from.shape(), from.dtype()));
        let args: &[&dyn cuda::Arg] = &[&dx, &dg, &back.grad(0), &from, &slope, &count, &step, &draw];
        gpu.launch(BACKWARD.of(from.dtype()), grid, args);
        vec![Some(dx.finish()), Some(dg.finish())]
    });
    y
}

fn forward<T: Float + Draw>(x: &Tensor, g: &Tensor, how: Langevin, draw: Option<&Philox>) -> Tensor {
    let (xs, gs) = (x.as_slice::<T>(), g.as_slice::<T>());
    let [step, noise, clip] = [-how.step, how.noise, how.clip].map(<T as Plain>::from_f64);
    let [low, high] = how.range.map(<T as Plain>::from_f64);
    let mut y = NewTensor::<T>::new(x.shape());
    par::chunks_mut(y.as_mut(), par::GRAIN, |i, y| {
        let at = i * par::GRAIN;
        match draw {
            Some(draw) => draw.normal_part(at, y),
            None => y.fill(T::from_f64(0.0)),
        }
        let (xs, gs) = (&xs[at..][..y.len()], &gs[at..][..y.len()]);
        simd::vectorize_for::<T, _>(
            #[inline(always)]
            || {
                for ((y, x), g) in y.iter_mut().zip(xs).zip(gs) {
                    let g = g.max(-clip).min(clip);
                    *y = noise.mul_add(*y, step.mul_add(g, *x)).max(low).min(high);
                }
            },
        );
    });
    y.finish()
}

/// factor · g where x lies strictly inside the range, else 0.
fn pass(g: &Tensor, x: &Tensor, factor: f64, range: [f64; 2]) -> Tensor {
    with_arithmetic!(g.dtype(), T => {
        let (zero, factor) = (T::from_f64(0.0), T::from_f64(factor));
        let [low, high] = range.map(<T as Plain>::from_f64);
        binary::zip::<T>("langevin", g, x, move |g, x| if x > low && x < high { factor * g } else { zero })
    })
}

/// [`langevin`] in primitives.
pub fn composite(x: &Tensor, g: &Tensor, how: Langevin, rng: &mut Philox) -> Tensor {
    let within = |x: &Tensor, [low, high]: [f64; 2]| {
        if low.is_finite() || high.is_finite() { unary::clamp(x, low, high) } else { x.clone() }
    };
    let g = within(g, [-how.clip, how.clip]);
    let mut y = x + &unary::affine(&g, -how.step, 0.0);
    if how.noise != 0.0 {
        y = &y + &unary::affine(&rng.normal(x.shape(), x.dtype()), how.noise, 0.0);
    }
    within(&y, how.range)
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let bounded = Langevin { step: 0.5, noise: 0.1, clip: 1.0, range: [-0.7, 0.9] };
    for (name, how) in [
        ("bounded", bounded),
        ("unadjusted", Langevin::unadjusted(0.01)),
        ("without noise", Langevin { noise: 0.0, ..bounded }),
    ] {
        for shape in [&[1][..], &[3, 7], &[2, 5, 33]] {
            cases.push(
                Case::new(format!("{name} {shape:?}"), vec![normal(1, shape), normal(2, shape)], move |x| {
                    vec![langevin(&x[0], &x[1], how, &mut Philox::new(3))]
                })
                .composite(move |x| vec![composite(&x[0], &x[1], how, &mut Philox::new(3))]),
            );
        }
    }
    for rest in [&[1][..], &[7], &[3, 5, 2], &[8, 8, 16], &[301]] {
        let of = |seed, rows: usize| normal(seed, &[&[rows], rest].concat());
        for slots in [[4i32, 0, 5, 2], [1, -1, 3, 0]] {
            let inputs = vec![of(1, 4), of(2, 4), of(3, 6), Tensor::from_slice(&slots, [4])];
            let run = move |x: &[Tensor]| {
                let mut buffer = x[2].detach();
                let y = langevin_put(&x[0], &x[1], bounded, &mut Philox::new(3), &mut buffer, &x[3]);
                vec![y, buffer]
            };
            let composite = move |x: &[Tensor]| {
                let y = composite(&x[0], &x[1], bounded, &mut Philox::new(3));
                let buffer = replay_buffer::composite_put(&x[2], &x[3], &y);
                vec![y, buffer]
            };
            let case = Case::new(format!("put {rest:?} at {slots:?}"), inputs, run).order(0);
            cases.push(if slots[1] < 0 { case } else { case.composite(composite) });
        }
    }
    let shape = [64, 28, 28, 16];
    let n: usize = shape.iter().product();
    cases.push(
        Case::new("64x28x28x16", vec![normal(1, &shape), normal(2, &shape)], move |x| {
            vec![langevin(&x[0], &x[1], bounded, &mut Philox::new(3))]
        })
        .order(0)
        .bench(12 * n, 40 * n)
        .backward(20 * n, 40 * n),
    );
    let (n, slots) = (1024 * 784, Tensor::from_fn([1024], |i| (i * 5 % 2048) as i32));
    let inputs = vec![normal(4, &[1024, 784]), normal(5, &[1024, 784]), normal(6, &[2048, 784]), slots];
    let run = move |x: &[Tensor]| {
        let mut buffer = x[2].detach();
        vec![langevin_put(&x[0], &x[1], bounded, &mut Philox::new(3), &mut buffer, &x[3])]
    };
    cases.push(Case::new("put 1024 x 784", inputs, run).order(0).bench(16 * n, 40 * n));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn rows_that_are_not_finite_or_have_no_slot_stay_out() {
        let (x, g) = (
            Tensor::ones([3, 2], DType::F32),
            Tensor::from_slice(&[0.0f32, 1.0, f32::NAN, 0.0, 2.0, 3.0], [3, 2]),
        );
        let (how, mut buffer) =
            (Langevin { noise: 0.0, ..Langevin::unadjusted(1.0) }, Tensor::zeros([4, 2], DType::F32));
        let slots = Tensor::from_slice(&[3i32, 1, -1], [3]);
        let y = langevin_put(&x, &g, how, &mut Philox::new(1), &mut buffer, &slots);
        assert_eq!(buffer.to_f64_vec(), [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
        assert_eq!(y.to_f64_vec()[4..], [-1.0, -2.0]);
    }
}
