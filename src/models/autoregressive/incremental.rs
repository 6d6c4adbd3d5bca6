//! Sampling pixel by pixel without repeating work: what each new pixel needs of every layer is calculated at that
//! pixel alone, from cached activations of the pixels before it.
//!
//! Images are independent, so a few of them make the rows of small matrix products (weights stay in cache) and
//! each such group runs on its own thread from the first pixel to the last. Every pixel of every image has its own
//! random number, so neither the groups nor the threads change a sample.

use crate::cpu::gemm::{Act, Epilogue, Mat, gemm};
use crate::cpu::{par, simd};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::masked_conv::{Mask, MaskKind};
use crate::random::Philox;
use crate::tensor::{Elem, Float, Plain, Tensor};
use std::sync::Mutex;

/// Images per group: the height of the tallest matrix tile of two vectors.
const GROUP: usize = 12;

/// Activations of all pixels so far, (position, image, channel), zero where not yet known.
pub(super) struct Grid<E> {
    size: [usize; 2],
    rows: usize,
    channels: usize,
    data: Vec<E>,
}

impl<E: Elem> Grid<E> {
    /// Room for `rows` images of `size` [height, width].
    pub(super) fn new(size: [usize; 2], rows: usize, channels: usize) -> Self {
        Self { size, rows, channels, data: vec![E::from_f64(0.0); size[0] * size[1] * rows * channels] }
    }

    /// The activations (image, channel) at one pixel.
    pub(super) fn at(&mut self, [i, j]: [usize; 2]) -> &mut [E] {
        let len = self.rows * self.channels;
        &mut self.data[(i * self.size[1] + j) * len..][..len]
    }

    /// The values that a convolution reads at `[i, j]`, (image, tap, channel), into `out`; zeros outside the image.
    pub(super) fn gather(&self, taps: &[[isize; 2]], [i, j]: [usize; 2], out: &mut Vec<E>) {
        let (c, row) = (self.channels, self.channels * taps.len());
        out.clear();
        out.resize(self.rows * row, E::from_f64(0.0));
        for (t, &[dy, dx]) in taps.iter().enumerate() {
            let (y, x) = (i as isize + dy, j as isize + dx);
            if y < 0 || x < 0 || y as usize >= self.size[0] || x as usize >= self.size[1] {
                continue;
            }
            let from =
                &self.data[(y as usize * self.size[1] + x as usize) * self.rows * c..][..self.rows * c];
            for (to, from) in out.chunks_exact_mut(row).zip(from.chunks_exact(c)) {
                to[t * c..][..c].copy_from_slice(from);
            }
        }
    }
}

/// A convolution evaluated at single pixels, for the channels of one colour at a time.
pub(super) struct PointConv<E> {
    /// Offsets (rows, columns) of the taps that the mask keeps.
    pub(super) taps: Vec<[isize; 2]>,
    pub(super) inputs: usize,
    /// Output channels of each colour.
    pub(super) outputs: usize,
    /// Per colour (taps · inputs, outputs) and (outputs).
    pub(super) weights: Vec<(Vec<E>, Vec<E>)>,
}

impl<E: Elem> PointConv<E> {
    /// The masked convolution of `weight` (K, K, Cin, Cout) and `bias` (Cout), to which `extra` (Cout) is added.
    pub(super) fn masked(weight: &Tensor, bias: &Tensor, extra: Option<&[E]>, mask: Mask) -> Self {
        let [k, _, cin, cout] = weight.dims();
        let (ws, bs) = (weight.as_slice::<E>(), with_extra(bias.as_slice::<E>(), extra));
        let (group_in, outputs) = (cin / mask.colours, cout / mask.colours);
        let middle = k / 2;
        let centre = mask.kind == MaskKind::B || mask.colours > 1;
        let kept: Vec<(usize, usize)> = (0..k * k)
            .map(|t| (t / k, t % k))
            .filter(|&(y, x)| y < middle || y == middle && (x < middle || centre && x == middle))
            .collect();
        let sees = |from: usize, to: usize| if mask.kind == MaskKind::B { from <= to } else { from < to };
        let of_colour = |colour: usize| {
            let mut w = Vec::with_capacity(kept.len() * cin * outputs);
            for &(y, x) in &kept {
                for i in 0..cin {
                    let row = &ws[((y * k + x) * cin + i) * cout + colour * outputs..][..outputs];
                    let seen = (y, x) != (middle, middle) || sees(i / group_in, colour);
                    w.extend(row.iter().map(|v| if seen { *v } else { E::from_f64(0.0) }));
                }
            }
            (w, bs[colour * outputs..][..outputs].to_vec())
        };
        let offset = |&(y, x): &(usize, usize)| [y as isize - middle as isize, x as isize - middle as isize];
        Self {
            taps: kept.iter().map(offset).collect(),
            inputs: cin,
            outputs,
            weights: (0..mask.colours).map(of_colour).collect(),
        }
    }

    /// The convolution of `weight` (KH, KW, Cin, Cout) whose taps read at these offsets, for all colours at once.
    pub(super) fn dense(weight: &Tensor, bias: &Tensor, extra: Option<&[E]>, taps: Vec<[isize; 2]>) -> Self {
        let [_, _, inputs, outputs] = weight.dims();
        let weights = vec![(weight.as_slice::<E>().to_vec(), with_extra(bias.as_slice::<E>(), extra))];
        Self { taps, inputs, outputs, weights }
    }

    /// The channels of `colour` from what the taps see, `x` (rows, taps · inputs), into those columns of `out`
    /// (rows, all channels): act(sum + bias + residual).
    pub(super) fn apply(&self, colour: usize, x: &[E], residual: Option<&[E]>, act: Act, out: &mut [E]) {
        let (w, bias) = &self.weights[colour];
        let k = self.taps.len() * self.inputs;
        let all = self.outputs * self.weights.len();
        let at = colour * self.outputs;
        let residual = residual.map(|r| &r[at..]);
        let epilogue = Epilogue { bias: Some(bias.as_slice()), residual, act, ..Epilogue::default() };
        let (x, w, out) = (Mat::new(x, k), Mat::new(w, self.outputs), &mut out[at..]);
        gemm(x.data.len() / k, self.outputs, k, x, w, out, all, &epilogue);
    }
}

fn with_extra<E: Elem>(bias: &[E], extra: Option<&[E]>) -> Vec<E> {
    match extra {
        Some(extra) => bias.iter().zip(extra).map(|(b, e)| E::store(b.load() + e.load())).collect(),
        None => bias.to_vec(),
    }
}

/// Rows for `n` images, such that the matrix tiles are full.
pub(super) fn padded(n: usize) -> usize {
    [1, 4, 6].into_iter().find(|&rows| n <= rows).unwrap_or(GROUP)
}

/// Draws `n` images of `bytes` bytes each: `group(uniforms, images)` fills the images of a group from
/// `uniforms_each` numbers in (0, 1) per image.
pub(super) fn in_groups(
    n: usize,
    bytes: usize,
    uniforms_each: usize,
    rng: &mut Philox,
    group: impl Fn(&[f64], &mut [u8]) -> Result<()> + Sync + Send,
) -> Result<Vec<u8>> {
    let mut uniforms = vec![0.0f64; n * uniforms_each];
    rng.fill_open(&mut uniforms);
    let mut out = vec![0u8; n * bytes];
    let each = n.div_ceil(n.div_ceil(GROUP).max(1)).max(1);
    let failed = Mutex::new(None);
    par::chunks_mut(&mut out, each * bytes, |i, images| {
        let count = images.len() / bytes;
        if let Err(e) = group(&uniforms[i * each * uniforms_each..][..count * uniforms_each], images) {
            failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(e);
        }
    });
    match failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some(e) => Err(e),
        None => Ok(out),
    }
}

/// The category of softmax(logits / temperature) at which the distribution function passes `u`; `weights` is scratch.
///
/// # Errors
/// When a logit is NaN or +∞, or all are −∞.
pub(super) fn pick<E: Elem>(
    logits: &[E],
    temperature: f64,
    u: f64,
    weights: &mut Vec<E::Acc>,
) -> Result<usize> {
    const BLOCK: usize = 16;
    let zero = E::Acc::from_f64(0.0);
    weights.clear();
    weights.resize(logits.len(), zero);
    let sums = simd::vectorize(
        #[inline(always)]
        || {
            let mut top = [E::Acc::from_f64(f32::MIN as f64); BLOCK];
            for block in logits.chunks(BLOCK) {
                top.iter_mut().zip(block).for_each(|(t, x)| *t = t.max(x.load()));
            }
            let top = top.into_iter().fold(top[0], Float::max);
            let factor = E::Acc::from_f64(1.0 / temperature);
            weights.iter_mut().zip(logits).for_each(|(w, x)| *w = ((x.load() - top) * factor).exp());
            weights
                .chunks(BLOCK)
                .map(|block| block.iter().copied().sum::<E::Acc>().to_f64())
                .collect::<Vec<_>>()
        },
    );
    let total: f64 = sums.iter().sum();
    if !(total > 0.0 && total.is_finite()) {
        return Err(Error::new(ErrorKind::NonFinite, "sample: the model's logits are not finite"));
    }
    let mut left = u * total;
    let block = sums.iter().position(|s| {
        let found = left < *s;
        left -= if found { 0.0 } else { *s };
        found
    });
    // Rounding may leave a little at the end: the last possible category takes it.
    let first = block.map_or(0, |b| b * BLOCK);
    let mut last = None;
    for (k, w) in weights.iter().enumerate().skip(first).filter(|(_, w)| **w > zero) {
        if block.is_some() {
            left -= w.to_f64();
        }
        last = Some(k);
        if block.is_some() && (left < 0.0 || k + 1 == first + BLOCK) {
            break;
        }
    }
    Ok(last.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_follow_the_distribution_function() {
        let p = [0.1f64, 0.0, 0.4, 0.2, 0.3];
        let logits: Vec<f64> =
            (0..40).map(|k| if k % 8 == 3 { p[k / 8].ln() } else { f64::NEG_INFINITY }).collect();
        let mut weights = Vec::new();
        for (u, k) in [(1e-9, 0), (0.099, 0), (0.101, 2), (0.499, 2), (0.501, 3), (0.71, 4), (1.0 - 1e-16, 4)]
        {
            assert_eq!(pick(&logits, 1.0, u, &mut weights).unwrap(), 8 * k + 3, "at {u}");
        }
        assert!(pick(&[f32::NAN, 0.0], 1.0, 0.5, &mut Vec::new()).is_err());
        assert!(pick(&[f32::NEG_INFINITY; 3], 1.0, 0.5, &mut Vec::new()).is_err());
    }
}
