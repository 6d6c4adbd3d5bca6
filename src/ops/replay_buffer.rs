//! The replay buffer of persistent chains (Tieleman 2008; Du & Mordatch 2019): rows are taken out, some of them started
//! anew, and put back when the chains have moved. Unrecorded.
//! ```text
//! take:  y_i = noise with probability `restart`, else buffer at slot_i     (N, ...)
//! put:   buffer at slot_i = y_i, unless y_i has a number that is not finite or slot_i is negative
//! ```
//! buffer (S, ...), slots (N) i32, different where something is put. Taking makes two draws: word i of the first
//! says whether row i starts anew, the second is the noise. 8 bytes per number taken or put; one launch each on
//! devices, which draws as well, and nothing comes to the host.

use super::{Case, OpInfo, binary, index, normal, unary};
use crate::cuda::{self, Grid, Kernels};
use crate::random::{Philox, chance};
use crate::tensor::{DType, NewTensor, Plain, Shape, Tensor, with_float};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "replay_buffer",
    family: "fused",
    summary: "rows out of a replay buffer, some started anew, and back into it",
    cases,
};

/// What a chain starts from that does not go on from the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noise {
    /// Uniform in [0, 1): images.
    Uniform,
    /// Standard normal: rows that were standardised.
    Normal,
}

impl Noise {
    /// So many numbers of it, one draw of `rng`.
    pub fn draw(self, shape: impl Into<Shape>, dtype: DType, rng: &mut Philox) -> Tensor {
        match self {
            Self::Uniform => rng.uniform(shape, dtype),
            Self::Normal => rng.normal(shape, dtype),
        }
    }
}

const TAKE: Kernels =
    Kernels::new("replay_buffer", ["replay_take_f32", "replay_take_bf16", "replay_take_f16"]);
const PUT: Kernels = Kernels::new("replay_buffer", ["replay_put_f32", "replay_put_bf16", "replay_put_f16"]);

/// The numbers of a row, once `slots` fit a buffer.
#[track_caller]
fn slotted(op: &str, buffer: &Tensor, slots: &Tensor) -> usize {
    assert!(
        buffer.rank() > 0 && slots.rank() == 1 && slots.dtype() == DType::I32,
        "{op}: a buffer {:?} {:?}, {:?} slots {:?}",
        buffer.dtype(),
        buffer.shape(),
        slots.dtype(),
        slots.shape()
    );
    buffer.shape()[1..].iter().product()
}

/// The numbers of a row, once the shapes of rows to put fit.
#[track_caller]
pub(super) fn row(op: &str, buffer: &Tensor, slots: &Tensor, rows: &Tensor) -> usize {
    let n = slotted(op, buffer, slots);
    assert!(
        rows.shape().first() == slots.shape().first()
            && buffer.shape()[1..] == rows.shape()[1..]
            && buffer.dtype() == rows.dtype(),
        "{op}: a buffer {:?} {:?}, slots {:?}, rows {:?} {:?}",
        buffer.dtype(),
        buffer.shape(),
        slots.shape(),
        rows.dtype(),
        rows.shape()
    );
    n
}

/// Rows of `buffer` (S, ...) at `slots` (N), each replaced by `noise` with probability `restart`: where chains
/// start. Takes two draws of `rng`, [`Philox::bernoulli`] of (N) and the noise of (N, ...).
///
/// # Panics
/// When shapes or dtypes do not fit, `restart` is not in [0, 1], or a slot is outside the buffer (on devices it
/// gives NaN).
#[track_caller]
pub fn take(buffer: &Tensor, slots: &Tensor, restart: f64, noise: Noise, rng: &mut Philox) -> Tensor {
    let n = slotted("replay take", buffer, slots);
    let (dtype, rows) = (buffer.dtype(), slots.len());
    let shape = Shape::new(&[&[rows], &buffer.shape()[1..]].concat());
    if let Some(gpu) = cuda::on("replay take", &[buffer, slots]) {
        let y = gpu.empty(shape, dtype);
        let (count, n, size) = (shape.len() as i64, n as i64, buffer.shape()[0] as i32);
        let (threshold, normal) = (chance(restart), (noise == Noise::Normal) as i32);
        let (fresh, noise) = (rng.device_draw(), rng.device_draw());
        let args: &[&dyn cuda::Arg] =
            &[&y, buffer, slots, &count, &n, &size, &normal, &threshold, &fresh, &noise];
        gpu.launch(TAKE.of(dtype), Grid::flat(shape.len().div_ceil(4)), args);
        return y.finish();
    }
    let fresh = rng.bernoulli(restart, [rows], dtype);
    let noise = noise.draw(shape, dtype, rng);
    with_float!(dtype, T => {
        let (from, new, fresh) = (buffer.as_slice::<T>(), noise.as_slice::<T>(), fresh.as_slice::<T>());
        let mut y = NewTensor::<T>::new(shape);
        let slots = slots.as_slice::<i32>();
        for (i, y) in y.as_mut().chunks_mut(n.max(1)).enumerate() {
            let kept = fresh[i].to_f64() == 0.0;
            y.copy_from_slice(if kept { &from[slots[i] as usize * n..][..n] } else { &new[i * n..][..n] });
        }
        y.finish()
    })
}

/// Puts the rows (N, ...) that are finite into `buffer` (S, ...) at `slots` (N), which differ from each other. A row
/// with a negative slot stays out.
///
/// # Panics
/// When shapes or dtypes do not fit, or a slot is beyond the buffer (on devices its row is dropped).
#[track_caller]
pub fn put(buffer: &mut Tensor, slots: &Tensor, rows: &Tensor) {
    let n = row("replay put", buffer, slots, rows);
    if let Some(gpu) = cuda::on("replay put", &[buffer, slots, rows]) {
        let (n, size, count) = (n as i64, buffer.shape()[0] as i32, slots.len());
        let kernel = PUT.of(rows.dtype());
        gpu.launch(kernel, Grid::new(count, 256), &[&buffer.change(), slots, rows, &n, &size]);
        return;
    }
    with_float!(rows.dtype(), T => {
        let to = buffer.make_mut::<T>();
        for (slot, row) in slots.as_slice::<i32>().iter().zip(rows.as_slice::<T>().chunks(n.max(1))) {
            if *slot >= 0 && row.iter().all(|x| x.to_f64().is_finite()) {
                to[*slot as usize * n..][..n].copy_from_slice(row);
            }
        }
    });
}

/// [`take`] in primitives.
pub fn composite_take(
    buffer: &Tensor,
    slots: &Tensor,
    restart: f64,
    noise: Noise,
    rng: &mut Philox,
) -> Tensor {
    let (rows, dtype) = (slots.len(), buffer.dtype());
    let shape = Shape::new(&[&[rows], &buffer.shape()[1..]].concat());
    let mut column = vec![1; buffer.rank()];
    column[0] = rows;
    let fresh = rng.bernoulli(restart, &column[..], dtype).broadcast_to(shape);
    let kept = unary::affine(&fresh, -1.0, 1.0);
    let old = binary::keep_where(&kept, &index::gather_rows(buffer, slots));
    binary::add(&binary::keep_where(&fresh, &noise.draw(shape, dtype, rng)), &old)
}

/// [`put`] of finite rows in primitives.
pub fn composite_put(buffer: &Tensor, slots: &Tensor, rows: &Tensor) -> Tensor {
    let size = buffer.shape()[0];
    let new = index::scatter_rows(&Tensor::ones(rows.shape(), rows.dtype()).beside(rows), slots, size);
    let kept = unary::affine(&new, -1.0, 1.0);
    binary::add(&binary::keep_where(&kept, buffer), &index::scatter_rows(rows, slots, size))
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for rest in [&[1][..], &[3], &[7], &[3, 5, 2], &[8, 5], &[300]] {
        let of = |seed, rows: usize| normal(seed, &[&[rows], rest].concat());
        let slots = Tensor::from_slice(&[4i32, 0, 5, 2], [4]);
        for (restart, noise) in
            [(0.5, Noise::Uniform), (0.5, Noise::Normal), (0.0, Noise::Normal), (1.0, Noise::Uniform)]
        {
            // Slots and restarts of more rows than a thread has numbers.
            let slots = Tensor::from_slice(&[4i32, 0, 5, 2, 1, 3, 3], [7]);
            cases.push(
                Case::new(format!("take {rest:?}, {noise:?} {restart}"), vec![of(1, 6), slots], move |x| {
                    vec![take(&x[0], &x[1], restart, noise, &mut Philox::new(3))]
                })
                .composite(move |x| vec![composite_take(&x[0], &x[1], restart, noise, &mut Philox::new(3))])
                .order(0),
            );
        }
        cases.push(
            Case::new(format!("put {rest:?}"), vec![of(3, 6), slots, of(4, 4)], |x| {
                let mut buffer = x[0].detach();
                put(&mut buffer, &x[1], &x[2]);
                vec![buffer]
            })
            .composite(|x| vec![composite_put(&x[0], &x[1], &x[2])])
            .order(0),
        );
    }
    let (rows, n) = (1024, 1024 * 784);
    let slots = Tensor::from_fn([rows], |i| (i * 5 % 2048) as i32);
    let large = Case::new("take 1024 x 784", vec![normal(5, &[2048, 784]), slots.clone()], |x| {
        vec![take(&x[0], &x[1], 0.05, Noise::Uniform, &mut Philox::new(3))]
    });
    cases.push(large.order(0).bench(8 * n, 0));
    let inputs = vec![normal(5, &[2048, 784]), slots, normal(6, &[rows, 784])];
    let run = |x: &[Tensor]| {
        let mut buffer = x[0].detach();
        put(&mut buffer, &x[1], &x[2]);
        Vec::new()
    };
    cases.push(Case::new("put 1024 x 784", inputs, run).order(0).bench(8 * n, 0));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_not_finite_stay_out() {
        let mut buffer = Tensor::zeros([3, 2], DType::F32);
        let rows = Tensor::from_slice(&[1.0f32, f32::NAN, 2.0, 3.0], [2, 2]);
        put(&mut buffer, &Tensor::from_slice(&[0i32, 2], [2]), &rows);
        assert_eq!(buffer.to_f64_vec(), [0.0, 0.0, 0.0, 0.0, 2.0, 3.0]);
    }

    #[test]
    #[should_panic(expected = "replay put: a buffer F32 [3, 2], slots [1], rows F32 [1, 3]")]
    fn rows_that_do_not_fit_are_named() {
        let rows = Tensor::zeros([1, 3], DType::F32);
        put(&mut Tensor::zeros([3, 2], DType::F32), &Tensor::from_slice(&[0i32], [1]), &rows);
    }
}
