//! The patch matrix (B OH OW, T Cin) as a source that copies its blocks from the image.

use super::Conv;
use crate::cpu::buffer::Buffer;
use crate::cpu::gemm::Source;
use crate::cpu::simd::vectorize;
use crate::tensor::{Elem, Plain};

/// Patches by pixel: a row is a pixel, and every tap a run of Cin channels.
pub(super) struct Patches<'a, E> {
    pub conv: &'a Conv,
    pub x: &'a [E],
}

impl<E: Elem> Source<E::Acc> for Patches<'_, E> {
    fn fill(&self, r0: usize, rows: usize, c0: usize, cols: usize, out: &mut [E::Acc], ld: usize) {
        vectorize(
            #[inline(always)]
            || {
                let Conv { size: (h, w), cin, out: (oh, ow), stride, .. } = *self.conv;
                // Tap by tap, and along each row of the image at once: nothing is decided per pixel.
                let mut at = 0;
                while at < cols {
                    let (t, ci) = ((c0 + at) / cin, (c0 + at) % cin);
                    let run = (cin - ci).min(cols - at);
                    let (dy, dx) = self.conv.taps[t];
                    let (lo, hi) = inside(dx, w, ow, stride);
                    let (mut b, mut oy, mut ox) = (r0 / (oh * ow), r0 / ow % oh, r0 % ow);
                    let mut i = 0;
                    while i < rows {
                        let span = (ow - ox).min(rows - i);
                        let y = (oy * stride) as isize + dy;
                        let (lo, hi) = if y >= 0 && y < h as isize {
                            (lo.clamp(ox, ox + span), hi.clamp(ox, ox + span))
                        } else {
                            (ox, ox)
                        };
                        let line = &mut out[i * ld + at..];
                        clear(line, 0..lo - ox, run, ld);
                        if lo < hi {
                            let x = (lo * stride) as isize + dx;
                            let from = ((b * h + y as usize) * w + x as usize) * cin + ci;
                            for (k, from) in self.x[from..].chunks(stride * cin).take(hi - lo).enumerate() {
                                copy(&from[..run], &mut line[(lo - ox + k) * ld..][..run]);
                            }
                        }
                        clear(line, hi.max(lo) - ox..span, run, ld);
                        i += span;
                        ox = 0;
                        oy += 1;
                        if oy == oh {
                            oy = 0;
                            b += 1;
                        }
                    }
                    at += run;
                }
            },
        )
    }
}

/// The outputs lo..hi of a row of `ow` that a tap at `dx` reads inside an image `w` wide.
#[inline(always)]
fn inside(dx: isize, w: usize, ow: usize, stride: usize) -> (usize, usize) {
    let lo = ((-dx).max(0) as usize).div_ceil(stride).min(ow);
    (lo, ((w as isize - dx).max(0) as usize).div_ceil(stride).clamp(lo, ow))
}

/// Zeroes the first `run` of every row in `rows`.
#[inline(always)]
fn clear<T: Plain>(out: &mut [T], rows: std::ops::Range<usize>, run: usize, ld: usize) {
    for i in rows {
        out[i * ld..][..run].fill(T::from_f64(0.0));
    }
}

/// In whole vectors: the usual runs are 16 to 128 numbers long, too short for the loops that compilers unroll.
#[inline(always)]
fn copy<E: Elem>(from: &[E], to: &mut [E::Acc]) {
    const LANES: usize = 16;
    let (from, from_rest) = from.as_chunks::<LANES>();
    let (to, to_rest) = to.as_chunks_mut::<LANES>();
    for (to, from) in to.iter_mut().zip(from) {
        for j in 0..LANES {
            to[j] = from[j].load();
        }
    }
    for (to, from) in to_rest.iter_mut().zip(from_rest) {
        *to = from.load();
    }
}

/// Patches by tap, for few channels: a row is one channel of one tap at every pixel, so that runs along the
/// image's rows are copied at once. Holds the image as planes (Cin, B, H, W).
pub(super) struct Planes<'a, T> {
    conv: &'a Conv,
    planes: Buffer,
    elem: std::marker::PhantomData<T>,
}

impl<'a, T: Plain> Planes<'a, T> {
    pub(super) fn new<E: Elem<Acc = T>>(conv: &'a Conv, x: &[E]) -> Self {
        let mut planes = Buffer::uninit(x.len() * size_of::<T>());
        let to: &mut [T] = bytemuck::cast_slice_mut(planes.as_mut());
        let pixels = x.len() / conv.cin.max(1);
        for (c, plane) in to.chunks_mut(pixels.max(1)).enumerate() {
            plane.iter_mut().zip(x[c..].iter().step_by(conv.cin)).for_each(|(o, x)| *o = x.load());
        }
        Self { conv, planes, elem: std::marker::PhantomData }
    }
}

impl<T: Plain> Source<T> for Planes<'_, T> {
    fn fill(&self, r0: usize, rows: usize, c0: usize, cols: usize, out: &mut [T], ld: usize) {
        vectorize(
            #[inline(always)]
            || {
                let zero = T::from_f64(0.0);
                let Conv { batch, size: (h, w), cin, out: (oh, ow), stride, .. } = *self.conv;
                let planes: &[T] = bytemuck::cast_slice(self.planes.as_ref());
                for i in 0..rows {
                    let (t, ci) = ((r0 + i) / cin, (r0 + i) % cin);
                    let (dy, dx) = self.conv.taps[t];
                    let (lo, hi) = inside(dx, w, ow, stride);
                    let row = &mut out[i * ld..i * ld + cols];
                    let (mut b, mut oy, mut ox) = (c0 / (oh * ow), c0 / ow % oh, c0 % ow);
                    let mut at = 0;
                    while at < cols {
                        let run = (ow - ox).min(cols - at);
                        let to = &mut row[at..at + run];
                        let y = (oy * stride) as isize + dy;
                        if y < 0 || y >= h as isize {
                            to.fill(zero);
                        } else {
                            let (l, r) = (lo.clamp(ox, ox + run), hi.clamp(ox, ox + run));
                            to[..l - ox].fill(zero);
                            to[r - ox..].fill(zero);
                            if l < r {
                                let x = ((l * stride) as isize + dx) as usize;
                                let from = &planes[((ci * batch + b) * h + y as usize) * w + x..];
                                let to = &mut to[l - ox..r - ox];
                                if stride == 1 {
                                    to.iter_mut().zip(from).for_each(|(o, x)| *o = *x);
                                } else {
                                    to.iter_mut().zip(from.iter().step_by(stride)).for_each(|(o, x)| *o = *x);
                                }
                            }
                        }
                        at += run;
                        ox = 0;
                        oy += 1;
                        if oy == oh {
                            oy = 0;
                            b += 1;
                        }
                    }
                }
            },
        )
    }
}
