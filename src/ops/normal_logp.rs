//! Log density of the standard normal distribution, summed over each example.
//!
//! log p(z) = −½ Σ z² − ½ D ln 2π in nats: z (B, ...) to (B,). One pass: 4 bytes per element at f32, 2 flops.

use super::{Case, OpInfo, cast, normal, unary};
use crate::autograd::{self, Recipe, record};
use crate::cpu::{par, simd};
use crate::cuda::{Gpu, Grid, Kernels};
use crate::tensor::{Float, NewTensor, Plain, Tensor, with_arithmetic};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "normal_logp",
    family: "fused",
    summary: "log density of the standard normal distribution per example",
    cases,
};

const FORWARD: Kernels = Kernels::new(
    "normal_logp",
    ["normal_logp_forward_f32", "normal_logp_forward_bf16", "normal_logp_forward_f16"],
);
const BACKWARD: Kernels = Kernels::new(
    "normal_logp",
    ["normal_logp_backward_f32", "normal_logp_backward_bf16", "normal_logp_backward_f16"],
);

/// ½ ln 2π.
const HALF_LN_TAU: f64 = 0.918_938_533_204_672_8;

/// Σ log N(z; 0, 1) over each example: (B, ...) to (B,), in nats.
///
/// # Panics
/// When `z` is not a float tensor of rank 1 or more.
#[track_caller]
pub fn normal_logp(z: &Tensor) -> Tensor {
    let b = *z.shape().first().expect("normal_logp: expected (B, ...), got a scalar");
    let d = z.len() / b.max(1);
    if autograd::in_higher_order() {
        return composite(z);
    }
    if let Some(gpu) = z.gpu() {
        return launch(gpu, z, b, d);
    }
    if let Some([wide]) = cast::widened([z]) {
        return cast::cast(&normal_logp(&wide), z.dtype());
    }
    let y = with_arithmetic!(z.dtype(), T => {
        let zs = z.as_slice::<T>();
        let mut out = NewTensor::<T>::new([b]);
        let per = (par::GRAIN / d.max(1)).max(1);
        par::chunks_mut(out.as_mut(), per, |k, out| {
            for (i, y) in out.iter_mut().enumerate() {
                let squares = sum_squares(&zs[(k * per + i) * d..][..d]);
                *y = <T as Plain>::from_f64(-0.5 * squares - d as f64 * HALF_LN_TAU);
            }
        });
        out.finish()
    });
    let saved = z.clone();
    let [y] = record(Recipe::fused("normal_logp"), &[z], [y], move |back| {
        let g = back.grad(0);
        let dz = with_arithmetic!(saved.dtype(), T => {
            let (zs, gs) = (saved.as_slice::<T>(), g.as_slice::<T>());
            let mut out = NewTensor::<T>::new(saved.shape());
            let per = (par::GRAIN / d.max(1)).max(1);
            par::chunks_mut(out.as_mut(), (per * d).max(1), |k, out| {
                for (i, row) in out.chunks_mut(d).enumerate() {
                    let (g, z) = (gs[k * per + i], &zs[(k * per + i) * d..][..d]);
                    simd::vectorize_for::<T, _>(#[inline(always)] || {
                        for (o, z) in row.iter_mut().zip(z) {
                            *o = -(g * *z);
                        }
                    });
                }
            });
            out.finish()
        });
        vec![Some(dz)]
    });
    y
}

/// On a device, with its gradient.
fn launch(gpu: Gpu, z: &Tensor, b: usize, d: usize) -> Tensor {
    let (nats, d) = (gpu.empty([b], z.dtype()), d as i64);
    gpu.launch(FORWARD.of(z.dtype()), Grid::new(b, 256), &[&nats, z, &d]);
    let saved = z.detach();
    let [y] = record(Recipe::fused("normal_logp"), &[z], [nats.finish()], move |back| {
        let (dz, n) = (gpu.empty(saved.shape(), saved.dtype()), saved.len());
        let grid = Grid::packs(n, saved.dtype());
        gpu.launch(BACKWARD.of(saved.dtype()), grid, &[&dz, &back.grad(0), &saved, &(n as i64), &d]);
        vec![Some(dz.finish())]
    });
    y
}

/// Σ z², in 16 interleaved partial sums per block of 1024, blocks added in f64.
fn sum_squares<T: Float>(zs: &[T]) -> f64 {
    simd::vectorize_for::<T, _>(
        #[inline(always)]
        || {
            let mut total = 0.0;
            for block in zs.chunks(1024) {
                let mut lanes = [T::from_f64(0.0); 16];
                let (whole, rest) = block.as_chunks::<16>();
                for z in whole {
                    lanes.iter_mut().zip(z).for_each(|(l, z)| *l += *z * *z);
                }
                lanes.iter_mut().zip(rest).for_each(|(l, z)| *l += *z * *z);
                total += lanes.into_iter().sum::<T>().to_f64();
            }
            total
        },
    )
}

fn composite(z: &Tensor) -> Tensor {
    let d = z.len() / z.shape()[0].max(1);
    unary::affine(&unary::square(z).sum_examples(), -0.5, -(d as f64) * HALF_LN_TAU)
}

fn cases() -> Vec<Case> {
    let case = |name: String, z: Tensor| {
        Case::new(name, vec![z], |x| vec![normal_logp(&x[0])]).composite(|x| vec![composite(&x[0])])
    };
    let mut cases: Vec<Case> = [&[1][..], &[1, 1], &[3, 7], &[2, 3, 5, 4], &[2, 5000]]
        .into_iter()
        .map(|s| case(format!("{s:?}"), normal(1, s)))
        .collect();
    cases.push(case("far out".into(), unary::affine(&normal(2, &[4, 33]), 100.0, 0.0)));
    let n = 64 * 14 * 14 * 32;
    cases.push(
        case("large".into(), normal(3, &[64, 14, 14, 32])).order(0).bench(4 * n, 2 * n).backward(8 * n, n),
    );
    cases
}
