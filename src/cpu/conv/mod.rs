//! Convolutions over an explicit list of taps, channels last, as matrix products that pack patches on the fly.
//!
//! out[b, oy, ox, :] = sum_t x[b, oy s + dy_t, ox s + dx_t, :] W\[t], zero outside x; W is (T, Cin, Cout), which
//! for a dense kernel is the memory of (KH, KW, Cin, Cout), and for a masked one the taps that the mask keeps.
//! Cost: 2 B OH OW T Cin Cout flops. Which of the equivalent products runs is chosen by how well its columns
//! fill vectors; the choice depends on sizes and instruction set, never on the number of threads.

mod patches;
mod scatter;
#[cfg(test)]
mod tests;

use crate::cpu::gemm::{Epilogue, Mat, Operand, Product, Shared, Word, each, finish, gemm, product};
use crate::cpu::simd::{isa, vectorize};
use crate::tensor::{Elem, Plain};
use patches::{Patches, Planes};

/// The geometry of a convolution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conv {
    /// Images.
    pub batch: usize,
    /// Height and width of the input.
    pub size: (usize, usize),
    /// Channels of the input.
    pub cin: usize,
    /// Height and width of the output.
    pub out: (usize, usize),
    /// Channels of the output.
    pub cout: usize,
    /// Input pixels between neighbouring outputs.
    pub stride: usize,
    /// (dy, dx) of every tap: where it reads relative to `stride` times the output position.
    pub taps: Vec<(isize, isize)>,
}

impl Conv {
    /// A dense kernel of `kernel` taps with zero padding of `pad` pixels on every side.
    #[track_caller]
    pub fn dense(
        batch: usize,
        size: (usize, usize),
        (cin, cout): (usize, usize),
        kernel: (usize, usize),
        stride: usize,
        pad: usize,
    ) -> Self {
        assert!(
            stride > 0 && size.0 + 2 * pad >= kernel.0 && size.1 + 2 * pad >= kernel.1,
            "conv: a kernel of {kernel:?} with stride {stride} and padding {pad} does not fit {size:?}"
        );
        let taps = (0..kernel.0 as isize)
            .flat_map(|y| (0..kernel.1 as isize).map(move |x| (y - pad as isize, x - pad as isize)))
            .collect();
        let out = ((size.0 + 2 * pad - kernel.0) / stride + 1, (size.1 + 2 * pad - kernel.1) / stride + 1);
        Self { batch, size, cin, out, cout, stride, taps }
    }

    /// Elements of the input.
    pub fn input_len(&self) -> usize {
        self.batch * self.size.0 * self.size.1 * self.cin
    }

    /// Elements of the weights.
    pub fn weight_len(&self) -> usize {
        self.taps.len() * self.cin * self.cout
    }

    /// Elements of the output.
    pub fn output_len(&self) -> usize {
        self.pixels() * self.cout
    }

    /// Output pixels of all images.
    fn pixels(&self) -> usize {
        self.batch * self.out.0 * self.out.1
    }

    fn pointwise(&self) -> bool {
        self.stride == 1 && self.taps == [(0, 0)] && self.size == self.out
    }

    /// The convolution from output to input, for stride 1: the taps point the other way, and come in reverse, so that
    /// neighbours in the image stay neighbours.
    fn flipped(&self) -> Self {
        Self {
            size: self.out,
            cin: self.cout,
            out: self.size,
            cout: self.cin,
            taps: self.taps.iter().rev().map(|&(y, x)| (-y, -x)).collect(),
            ..*self
        }
    }

    #[track_caller]
    fn check(&self, op: &str, x: usize, w: usize, y: usize) {
        assert!(
            x == self.input_len() && w == self.weight_len() && y == self.output_len(),
            "{op}: input, weights and output must hold {}, {} and {} elements, got {x}, {w} and {y} ({self:?})",
            self.input_len(),
            self.weight_len(),
            self.output_len()
        );
    }
}

/// `n` columns in whole vectors of `E`'s arithmetic.
fn padded<E: Elem>(n: usize) -> usize {
    n.next_multiple_of(<E::Acc as Word>::kernels(isa()).lanes)
}

/// out = conv(x, w), with `epilogue` on the output. x (B, H, W, Cin), w (T, Cin, Cout), out (B, OH, OW, Cout).
///
/// # Panics
/// When a slice does not have the length that `conv` says.
#[track_caller]
pub fn forward<E: Elem>(conv: &Conv, x: &[E], w: &[E], out: &mut [E], epilogue: &Epilogue<'_, E>) {
    conv.check("conv", x.len(), w.len(), out.len());
    epilogue.check(conv.cout, out.len());
    let (taps, cin, cout) = (conv.taps.len(), conv.cin, conv.cout);
    let m = conv.pixels();
    if conv.pointwise() {
        return gemm(m, cout, cin, Mat::new(x, cin), Mat::new(w, cout), out, cout, epilogue);
    }
    if conv.stride == 1 && 4 * taps * padded::<E>(cout) >= 5 * padded::<E>(taps * cout) {
        // (T, Cin, Cout) to (Cin, T, Cout): few output channels share a vector with other taps.
        let side = permute(w, [taps, cin, cout], [1, 0, 2]);
        let offsets: Vec<_> = conv.taps.iter().map(|&(y, x)| (-y, -x)).collect();
        return scatter::run(conv, conv.size, cin, conv.out, cout, 1, &offsets, x, &side, out, epilogue);
    }
    let b = Mat::new(w, cout);
    let b = Operand { src: &b, transposed: false };
    let p = |a| Product { m, n: cout, k: taps * cin, a, b, isa: isa() };
    if cin < 8 {
        let planes = Planes::new(conv, x);
        product(&p(Operand { src: &planes, transposed: true }), out, cout, epilogue);
    } else {
        let patches = Patches::new(conv, x);
        product(&p(Operand { src: &patches, transposed: false }), out, cout, epilogue);
    }
}

/// dx = the gradient of the input for the gradient `dy` of the output, with `epilogue` on dx; also the forward
/// of the transposed convolution. Lengths as in [`forward`].
///
/// # Panics
/// When a slice does not have the length that `conv` says.
#[track_caller]
pub fn input_grad<E: Elem>(conv: &Conv, dy: &[E], w: &[E], dx: &mut [E], epilogue: &Epilogue<'_, E>) {
    conv.check("conv input gradient", dx.len(), w.len(), dy.len());
    epilogue.check(conv.cin, dx.len());
    let (taps, cin, cout) = (conv.taps.len(), conv.cin, conv.cout);
    if conv.pointwise() {
        let m = conv.pixels();
        return gemm(m, cin, cout, Mat::new(dy, cout), Mat::t(w, cout), dx, cin, epilogue);
    }
    if conv.stride == 1 {
        return forward(&conv.flipped(), dy, &flip(w, [taps, cin, cout]), dx, epilogue);
    }
    let side = permute(w, [taps, cin, cout], [2, 0, 1]);
    scatter::run(conv, conv.out, cout, conv.size, cin, conv.stride, &conv.taps, dy, &side, dx, epilogue);
}

/// dw (T, Cin, Cout) = the gradient of the weights, added to what dw holds if `accumulate`; `narrow` as in [`Epilogue`].
///
/// # Panics
/// When a slice does not have the length that `conv` says.
#[track_caller]
pub fn weight_grad<E: Elem>(conv: &Conv, x: &[E], dy: &[E], dw: &mut [E], accumulate: bool, narrow: bool) {
    conv.check("conv weight gradient", x.len(), dw.len(), dy.len());
    let (taps, cin, cout) = (conv.taps.len(), conv.cin, conv.cout);
    let epilogue = Epilogue { accumulate, narrow, ..Default::default() };
    if conv.pointwise() {
        return gemm(cin, cout, conv.pixels(), Mat::t(x, cin), Mat::new(dy, cout), dw, cout, &epilogue);
    }
    if conv.stride == 1 && cin * padded::<E>(cout) > cout * padded::<E>(cin) {
        // Few output channels: the patches of dy against x, which gives every tap transposed.
        let mut turned = vec![<E::Acc as Plain>::from_f64(0.0); dw.len()];
        patch_gradient(&conv.flipped(), dy, x, &mut turned, &Epilogue { narrow, ..Default::default() });
        let mut turned = flip(&turned, [taps, cout, cin]);
        finish(&mut turned, dw, 0, &epilogue);
    } else {
        patch_gradient(conv, x, dy, dw, &epilogue);
    }
}

/// dw = patches(x)^T dy.
fn patch_gradient<E: Elem, O: Elem<Acc = E::Acc>>(
    conv: &Conv,
    x: &[E],
    dy: &[E],
    dw: &mut [O],
    epilogue: &Epilogue<'_, O>,
) {
    let (m, n, k) = (conv.taps.len() * conv.cin, conv.cout, conv.pixels());
    let b = Mat::new(dy, n);
    let b = Operand { src: &b, transposed: false };
    if conv.cin < 8 {
        let planes = Planes::new(conv, x);
        let a = Operand { src: &planes, transposed: false };
        product(&Product { m, n, k, a, b, isa: isa() }, dw, n, epilogue);
    } else {
        let patches = Patches::new(conv, x);
        let a = Operand { src: &patches, transposed: true };
        product(&Product { m, n, k, a, b, isa: isa() }, dw, n, epilogue);
    }
}

/// out (n) = the sums of the columns of dy (rows, n), added to what out holds if `accumulate`. Where a `gate`
/// shaped as dy is given, only elements with gate > 0 count.
///
/// Rows are summed in fixed chunks, whose sums are added in order.
///
/// # Panics
/// When dy is not whole rows of `out.len()` or the gate is not shaped as dy.
#[track_caller]
pub fn bias_grad<E: Elem>(dy: &[E], gate: Option<&[E]>, out: &mut [E], accumulate: bool) {
    let n = out.len();
    assert!(
        n > 0 && dy.len().is_multiple_of(n) && gate.is_none_or(|g| g.len() == dy.len()),
        "bias gradient: {} elements are not rows of {n}, or the gate differs",
        dy.len()
    );
    let zero = <E::Acc as Plain>::from_f64(0.0);
    // Several short rows side by side fill vectors.
    let width = n * 64usize.div_ceil(n);
    let chunk = width * (32 * 1024usize).div_ceil(width);
    let chunks = dy.len().div_ceil(chunk);
    let mut sums = vec![zero; chunks * width];
    let shared = Shared(sums.as_mut_ptr());
    each(chunks > 1, chunks, &|i| {
        // SAFETY: chunk i owns part i.
        let sum = unsafe { shared.slice(i * width, width) };
        let part = i * chunk..dy.len().min((i + 1) * chunk);
        vectorize(
            #[inline(always)]
            || match gate {
                None => {
                    for row in dy[part].chunks(width) {
                        sum.iter_mut().zip(row).for_each(|(s, d)| *s += d.load());
                    }
                }
                Some(gate) => {
                    for (row, gate) in dy[part.clone()].chunks(width).zip(gate[part].chunks(width)) {
                        for ((s, d), g) in sum.iter_mut().zip(row).zip(gate) {
                            *s += if g.load() <= zero { zero } else { d.load() };
                        }
                    }
                }
            },
        );
    });
    for (j, out) in out.iter_mut().enumerate() {
        let sum = sums[j..].iter().step_by(n).fold(zero, |s, x| s + *x);
        *out = E::store(if accumulate { out.load() + sum } else { sum });
    }
}

/// The weights (T, Cin, Cout) of [`Conv::flipped`], (T, Cout, Cin) with the taps in reverse; and back.
fn flip<E: Elem>(w: &[E], [taps, cin, cout]: [usize; 3]) -> Vec<E> {
    let mut out = Vec::with_capacity(w.len());
    for tap in w.chunks((cin * cout).max(1)).take(taps).rev() {
        out.extend((0..cout).flat_map(|j| (0..cin).map(move |i| tap[i * cout + j])));
    }
    out
}

/// The axes of a (d0, d1, d2) array in another order: axis i of the result is axis `order[i]` of `x`.
fn permute<E: Elem>(x: &[E], dims: [usize; 3], order: [usize; 3]) -> Vec<E> {
    let strides = [dims[1] * dims[2], dims[2], 1];
    let [s0, s1, s2] = order.map(|i| strides[i]);
    let [d0, d1, d2] = order.map(|i| dims[i]);
    let mut out = Vec::with_capacity(x.len());
    for i in 0..d0 {
        for j in 0..d1 {
            let at = i * s0 + j * s1;
            out.extend((0..d2).map(|k| x[at + k * s2]));
        }
    }
    out
}
