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
                let zero = <E::Acc as Plain>::from_f64(0.0);
                let Conv { size: (h, w), cin, out: (oh, ow), stride, .. } = *self.conv;
                let (mut b, mut oy, mut ox) = (r0 / (oh * ow), r0 / ow % oh, r0 % ow);
                for i in 0..rows {
                    let row = &mut out[i * ld..i * ld + cols];
                    let mut at = 0;
                    while at < cols {
                        let (t, ci) = ((c0 + at) / cin, (c0 + at) % cin);
                        let run = (cin - ci).min(cols - at);
                        let (dy, dx) = self.conv.taps[t];
                        let (y, x) = ((oy * stride) as isize + dy, (ox * stride) as isize + dx);
                        let to = &mut row[at..at + run];
                        if y >= 0 && y < h as isize && x >= 0 && x < w as isize {
                            let from = ((b * h + y as usize) * w + x as usize) * cin + ci;
                            let from = &self.x[from..from + run];
                            for (o, x) in to.iter_mut().zip(from) {
                                *o = x.load();
                            }
                        } else {
                            to.fill(zero);
                        }
                        at += run;
                    }
                    ox += 1;
                    if ox == ow {
                        ox = 0;
                        oy += 1;
                    }
                    if oy == oh {
                        oy = 0;
                        b += 1;
                    }
                }
            },
        )
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
                    // Outputs lo..hi of a row read inside the image.
                    let lo = ((-dx).max(0) as usize).div_ceil(stride).min(ow);
                    let hi = ((w as isize - dx).max(0) as usize).div_ceil(stride).clamp(lo, ow);
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
