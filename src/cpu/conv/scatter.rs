//! The other form of a convolution: one product gives what every source pixel sends through every tap, and
//! shifted sums bring it to the destination, image by image while it is in cache.

use super::Conv;
use crate::cpu::buffer::Buffer;
use crate::cpu::gemm::{Act, Epilogue, Mat, Operand, Out, Product, Shared, Source, Word, each, finish};
#[cfg(target_arch = "x86_64")]
use crate::cpu::gemm::{Narrow, narrows};
use crate::cpu::simd::{isa, vectorize};
use crate::tensor::{Elem, Float};

/// dst[b, stride p + offset_t, :] += src[b, p, :] W[:, t, :] over all p and t, then `epilogue`.
///
/// `src` (B, sh, sw, cs), `w` (cs, T, cd), `dst` (B, dh, dw, cd); contributions outside dst are dropped.
pub(super) fn run<E: Elem>(
    conv: &Conv,
    (sh, sw): (usize, usize),
    cs: usize,
    (dh, dw): (usize, usize),
    cd: usize,
    stride: usize,
    offsets: &[(isize, isize)],
    src: &[E],
    w: &[E],
    dst: &mut [E],
    epilogue: &Epilogue<'_, E>,
) {
    let n = offsets.len() * cd;
    let b = Mat::new(w, n);
    let b = Operand { src: &b, transposed: false };
    let geometry = ((sh, sw), (dh, dw), cd, stride, offsets);
    #[cfg(target_arch = "x86_64")]
    if narrows(isa(), epilogue) {
        let b = Narrow::right(&b, cs);
        let b = Operand { src: &b, transposed: false };
        return spread(conv.batch, cs.div_ceil(2), b, geometry, dst, epilogue, &|i, product| {
            let image = Mat::new(&src[i * sh * sw * cs..], cs);
            product(&Narrow::left(&Operand { src: &image, transposed: false }, cs));
        });
    }
    spread(conv.batch, cs, b, geometry, dst, epilogue, &|i, product| {
        product(&Mat::new(&src[i * sh * sw * cs..], cs));
    });
}

/// The sizes of source and destination, channels of the destination, stride and offsets.
type Geometry<'a> = ((usize, usize), (usize, usize), usize, usize, &'a [(isize, isize)]);

/// Hands image i of the source to a product.
type Images<'a, W> = dyn Fn(usize, &mut dyn FnMut(&dyn Source<W>)) + Sync + 'a;

/// [`run`] on words, `k` of them for each pixel of an image.
fn spread<E: Elem, W: Word>(
    batch: usize,
    k: usize,
    b: Operand<'_, W>,
    ((sh, sw), (dh, dw), cd, stride, offsets): Geometry<'_>,
    dst: &mut [E],
    epilogue: &Epilogue<'_, E>,
    image: &Images<'_, W>,
) {
    let (rows, n, per) = (sh * sw, offsets.len() * cd, dh * dw * cd);
    let rights = Product { m: batch * rows, n, k, a: b, b, isa: isa() }.rights(0, k);
    let shared = Shared(dst.as_mut_ptr());
    let size = size_of::<E::Acc>();
    each(batch * rows * n * k * W::NUMBERS >= 1 << 19, batch, &|i| {
        let mut sent = Buffer::uninit(rows * n * size);
        let sent: &mut [W::Acc] = bytemuck::cast_slice_mut(sent.as_mut());
        let mut sums = Buffer::zeroed(per * size);
        let sums: &mut [E::Acc] = bytemuck::cast_slice_mut(sums.as_mut());
        let out = Out {
            c: Shared(sent.as_mut_ptr()),
            ld: n,
            alpha: epilogue.alpha,
            accumulate: false,
            bias: None,
            residual: None,
            gate: None,
            act: Act::None,
        };
        image(i, &mut |src| {
            let a = Operand { src, transposed: false };
            let product = Product { m: rows, n, k, a, b, isa: isa() };
            // SAFETY: `sent` is ours and holds `rows` rows of `n`.
            unsafe { product.block(&rights, (0, rows), (0..rights[0].panels(), 0), &out) };
        });
        let sent: &[E::Acc] = bytemuck::cast_slice(sent);
        let add = match cd {
            1 => add_shifted::<E::Acc, 1>,
            2 => add_shifted::<E::Acc, 2>,
            4 => add_shifted::<E::Acc, 4>,
            8 => add_shifted::<E::Acc, 8>,
            _ => add_shifted::<E::Acc, 0>,
        };
        vectorize(
            #[inline(always)]
            || {
                for (t, &offset) in offsets.iter().enumerate() {
                    add(&sent[t * cd..], n, (sh, sw), sums, (dh, dw), cd, stride, offset);
                }
            },
        );
        // SAFETY: image i owns part i of dst.
        let dst = unsafe { shared.slice(i * per, per) };
        finish(sums, dst, i * per, epilogue);
    });
}

/// to[stride p + offset, ..c] += from[p, ..c]; rows of `from` are `ld` apart. C is c, or 0 for any c.
#[inline(always)]
fn add_shifted<T: Float, const C: usize>(
    from: &[T],
    ld: usize,
    (sh, sw): (usize, usize),
    to: &mut [T],
    (dh, dw): (usize, usize),
    c: usize,
    stride: usize,
    (dy, dx): (isize, isize),
) {
    let first = |d: isize| ((-d).max(0) as usize).div_ceil(stride);
    let end = |d: isize, size: usize, n: usize| ((size as isize - d).max(0) as usize).div_ceil(stride).min(n);
    let (x0, x1) = (first(dx), end(dx, dw, sw));
    if x0 >= x1 {
        return;
    }
    for y in first(dy)..end(dy, dh, sh) {
        let row = ((y * stride) as isize + dy) as usize * dw;
        let to = &mut to[(row + ((x0 * stride) as isize + dx) as usize) * c..];
        let from = &from[(y * sw + x0) * ld..];
        for i in 0..x1 - x0 {
            if C > 0 {
                let (a, b) = (&mut to[i * stride * C..][..C], &from[i * ld..][..C]);
                for j in 0..C {
                    a[j] += b[j];
                }
            } else {
                let (a, b) = (&mut to[i * stride * c..][..c], &from[i * ld..][..c]);
                a.iter_mut().zip(b).for_each(|(a, b)| *a += *b);
            }
        }
    }
}
