//! The patch matrix (B OH OW, T Cin) as a source that copies its blocks from the image.

use super::Conv;
use crate::cpu::buffer::Buffer;
use crate::cpu::gemm::Source;
use crate::cpu::simd::vectorize;
use crate::tensor::{Elem, Plain};

/// Patches by pixel: a row is a pixel, and taps beside each other one run of the image's channels.
pub(super) struct Patches<'a, E> {
    conv: &'a Conv,
    x: &'a [E],
    runs: Vec<Run>,
}

/// Taps that read one piece of a line of the image: from column `at` of the patch on, `len` numbers, those of the
/// pixels from (dy, dx) on.
struct Run {
    at: usize,
    len: usize,
    dy: isize,
    dx: isize,
}

impl<'a, E> Patches<'a, E> {
    pub(super) fn new(conv: &'a Conv, x: &'a [E]) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        for (t, &(dy, dx)) in conv.taps.iter().enumerate() {
            match runs.last_mut() {
                Some(run) if run.dy == dy && run.dx + (run.len / conv.cin) as isize == dx => {
                    run.len += conv.cin
                }
                _ => runs.push(Run { at: t * conv.cin, len: conv.cin, dy, dx }),
            }
        }
        Self { conv, x, runs }
    }
}

impl<E: Elem> Source<E::Acc> for Patches<'_, E> {
    fn fill(&self, r0: usize, rows: usize, c0: usize, cols: usize, out: &mut [E::Acc], ld: usize) {
        vectorize(
            #[inline(always)]
            || {
                let Conv { size: (h, w), cin, out: (oh, ow), stride, .. } = *self.conv;
                // Along each row of the image at once: its lines are read, and the patches written, in order.
                let (mut b, mut oy, mut ox) = (r0 / (oh * ow), r0 / ow % oh, r0 % ow);
                let mut i = 0;
                while i < rows {
                    let span = (ow - ox).min(rows - i);
                    for run in &self.runs {
                        let (from, to) = (run.at.max(c0), (run.at + run.len).min(c0 + cols));
                        if from >= to {
                            continue;
                        }
                        let len = to - from;
                        let y = (oy * stride) as isize + run.dy;
                        let block = &mut out[i * ld + from - c0..];
                        if y < 0 || y >= h as isize {
                            block.chunks_mut(ld).take(span).for_each(|to| clear(&mut to[..len]));
                            continue;
                        }
                        let line = &self.x[(b * h + y as usize) * w * cin..][..w * cin];
                        let mut at =
                            ((ox * stride) as isize + run.dx) * cin as isize + (from - run.at) as isize;
                        for to in block.chunks_mut(ld).take(span) {
                            let to = &mut to[..len];
                            if at >= 0 && at as usize + len <= line.len() {
                                copy(&line[at as usize..][..len], to);
                            } else {
                                let lo = (-at).clamp(0, len as isize) as usize;
                                let hi = (line.len() as isize - at).clamp(lo as isize, len as isize) as usize;
                                clear(&mut to[..lo]);
                                if lo < hi {
                                    let first = (at + lo as isize) as usize;
                                    copy(&line[first..][..hi - lo], &mut to[lo..hi]);
                                }
                                clear(&mut to[hi..]);
                            }
                            at += (stride * cin) as isize;
                        }
                    }
                    i += span;
                    ox = 0;
                    oy += 1;
                    if oy == oh {
                        oy = 0;
                        b += 1;
                    }
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

#[inline(always)]
fn clear<T: Plain>(out: &mut [T]) {
    out.fill(T::from_f64(0.0));
}

/// In whole vectors, the last one over the end of the one before: the usual runs are 48 to 256 numbers long, too
/// short for the loops that compilers unroll.
#[inline(always)]
fn copy<E: Elem>(from: &[E], to: &mut [E::Acc]) {
    let n = from.len();
    if n < LANES {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = from.load());
        return;
    }
    copy_vectors(from, to);
    if !n.is_multiple_of(LANES) {
        copy_vectors(&from[n - LANES..], &mut to[n - LANES..]);
    }
}

const LANES: usize = 16;

/// All whole vectors, and nothing of the rest.
#[inline(always)]
fn copy_vectors<E: Elem>(from: &[E], to: &mut [E::Acc]) {
    let (from, _) = from.as_chunks::<LANES>();
    let (to, _) = to.as_chunks_mut::<LANES>();
    for (to, from) in to.iter_mut().zip(from) {
        for j in 0..LANES {
            to[j] = from[j].load();
        }
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
