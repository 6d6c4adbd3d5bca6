//! Products of bf16 and f16 by the tensor memory accelerator and warpgroups of Hopper (`kernels/matmul_sm90a.cu`).
//!
//! The kernel has run on a model alone (`ci/check-hopper.sh`), not on a device yet, so it is used only where
//! [`with_wgmma`] or SURPRISAL_WGMMA=1 asks for it, and a device computes a few products with it and with the plain
//! kernel before the first one that counts: where they disagree the plain kernel stays, and one line says so. A
//! kernel that hangs traps after some seconds, which is a fault of the device like any other.

use super::{Product, launch_plain, matmul};
use crate::ambient;
use crate::autograd;
use crate::cuda::{Device, Gpu, Grid, Kernel, Optional, Struct, on_host};
use crate::random::Philox;
use crate::tensor::{DType, Shape, Tensor};
use crate::testing::max_error;
use std::sync::{Mutex, OnceLock};

/// Devices that were checked, and whether they agreed.
static CHECKED: Mutex<Vec<(Device, bool)>> = Mutex::new(Vec::new());

/// Runs `f` with half-width products by wgmma, where the device has it and agrees with itself.
pub fn with_wgmma<R>(f: impl FnOnce() -> R) -> R {
    ambient::with(|settings| settings.wgmma = true, f)
}

fn asked() -> bool {
    static VARIABLE: OnceLock<bool> = OnceLock::new();
    ambient::now().wgmma
        || *VARIABLE.get_or_init(|| std::env::var_os("SURPRISAL_WGMMA").is_some_and(|v| v != "0"))
}

/// The product, if it was asked for and can be had.
pub(super) fn launch(
    gpu: Gpu,
    inputs: [&Tensor; 2],
    bias: Option<&Tensor>,
    shape: Shape,
    batch: usize,
    p: Product,
) -> Option<Tensor> {
    let fits = || p.rows().iter().all(|length| length % 8 == 0) && p.m * p.n * p.k > 0;
    if !asked() || !matches!(inputs[0].dtype(), DType::BF16 | DType::F16) || !fits() || !is_checked(gpu) {
        return None;
    }
    product(gpu, inputs, bias, shape, batch, p).ok()
}

/// A block to 128 x 256 of the product; four stages of 64 along k, their barriers, and room to begin at a multiple
/// of 1024.
fn product(
    gpu: Gpu,
    [a, b]: [&Tensor; 2],
    bias: Option<&Tensor>,
    shape: Shape,
    batch: usize,
    p: Product,
) -> Result<Tensor, String> {
    let [m, n, k] = [p.m, p.n, p.k].map(|length| length as usize);
    // Along k a box is as high as the tile; along rows it is 64 wide and 64 of k high.
    let map_a = match p.transpose_a {
        0 => gpu.tensor_map(a, [k, m, batch], 128),
        _ => gpu.tensor_map(a, [m, k, batch], 64),
    }?;
    let map_b = match p.transpose_b {
        0 => gpu.tensor_map(b, [n, k, batch], 64),
        _ => gpu.tensor_map(b, [k, n, batch], 256),
    }?;
    let symbol = if a.dtype() == DType::BF16 { "matmul_wgmma_bf16" } else { "matmul_wgmma_f16" };
    let mut grid = Grid::new(m.div_ceil(128) * n.div_ceil(256), 384);
    grid.blocks[2] = u32::try_from(batch).ok().filter(|n| *n <= 65_535).ok_or("too many products")?;
    grid.shared = 4 * (128 + 256) * 64 * 2 + 4 * 16 + 1024;
    let y = gpu.empty(shape, a.dtype());
    let kernel = Kernel { file: "matmul_sm90a", symbol };
    gpu.launch(kernel, grid, &[&y, &Optional(bias, a.dtype()), &map_a, &map_b, &Struct(p)]);
    Ok(y.finish())
}

/// Whether the device's products agree: looked at once.
fn is_checked(gpu: Gpu) -> bool {
    let mut checked = CHECKED.lock().unwrap_or_else(|e| e.into_inner());
    if let Some((_, agrees)) = checked.iter().find(|(device, _)| *device == gpu.device()) {
        return *agrees;
    }
    let outcome = autograd::no_grad(|| check(gpu));
    if let Err(why) = &outcome {
        eprintln!("{}: products stay with the plain kernel, wgmma is left out: {why}", gpu.device());
    }
    checked.push((gpu.device(), outcome.is_ok()));
    outcome.is_ok()
}

/// Ragged random products of every orientation: off by at most twice what the plain kernel is, and a rounding.
fn check(gpu: Gpu) -> Result<(), String> {
    for (dtype, eps) in [(DType::BF16, 7.8e-3), (DType::F16, 9.8e-4)] {
        // One slice; several rounds of the ring and tiles that are cut off; a batch.
        for (m, n, k, batch) in [(128, 256, 64, 1), (200, 520, 584, 1), (72, 40, 136, 3)] {
            for orientation in 0..4 {
                let [ta, tb] = [orientation % 2 == 1, orientation / 2 == 1];
                let [of_a, of_b] = [if ta { [k, m] } else { [m, k] }, if tb { [n, k] } else { [k, n] }];
                let (a, b, exact) = on_host(|| {
                    let mut rng = Philox::new(1 + orientation as u64);
                    let [a, b] = [of_a, of_b]
                        .map(|[rows, columns]| rng.normal([batch, rows, columns], DType::F32).cast(dtype));
                    let exact = matmul(&a.cast(DType::F64), &b.cast(DType::F64), ta, tb);
                    (a, b, exact)
                });
                let [a, b] = [a, b].map(|t| t.moved(Some(gpu)));
                let p = Product { transpose_a: ta.into(), transpose_b: tb.into(), ..Product::plain(m, n, k) };
                let shape: Shape = [batch, m, n].into();
                let got = product(gpu, [&a, &b], None, shape, batch, p)?;
                let plain = launch_plain(gpu, [&a, &b], None, shape, batch, p);
                let [got, plain] = [got, plain].map(|t| max_error(&[t], std::slice::from_ref(&exact)));
                if got > 2.0 * plain + eps {
                    return Err(format!(
                        "{m} x {n} x {k} ({dtype:?}, transposed: {ta}, {tb}) is off by {got:e}, the plain one by {plain:e}"
                    ));
                }
            }
        }
    }
    Ok(())
}
