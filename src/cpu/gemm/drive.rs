//! Blocks, threads and the order of sums around the micro-kernels.
//!
//! Every task owns some rows (and columns) of C and runs through all of k; panels of B are packed by the first task
//! that needs them. Every element of C is one chain over k, so the tasks may follow the number of threads. Long products
//! with a small C are cut along k into chunks whose number depends on the sizes alone; their results are added in order.

use super::kernel::{Kernels, Tile, Word};
use super::pack::{Operand, Right, left};
use super::{Act, activate};
use crate::cpu::buffer::Buffer;
use crate::cpu::par::{Shared, each};
use crate::cpu::simd::Isa;
use crate::tensor::Float;
use std::sync::atomic::{AtomicU64, Ordering};

/// Multiplications and additions of all products so far.
static FLOPS: AtomicU64 = AtomicU64::new(0);

/// Floating-point operations of all matrix products (and so convolutions) on the CPU since the program began.
pub fn flops() -> u64 {
    FLOPS.load(Ordering::Relaxed)
}

/// Multiply-adds below which a product stays on its thread.
const SERIAL: usize = 1 << 19;
/// Longest block of k. A panel of two vectors is read once per tile: longer blocks save passes over C and are still
/// fetched from the second-level cache faster than they are used.
const KC: usize = 512;
/// Rows of a task's block of A at the longest block of k: it stays in the second-level cache.
const MC: usize = 192;
/// Columns of a task.
const NC: usize = 4096;

/// C with what happens to it on the way: C = act(alpha A B + C? + bias + residual), gated.
pub(crate) struct Out<'a, T> {
    pub c: Shared<T>,
    pub ld: usize,
    pub alpha: f64,
    pub accumulate: bool,
    pub bias: Option<&'a [T]>,
    pub residual: Option<&'a [T]>,
    pub gate: Option<&'a [T]>,
    pub act: Act,
}

/// The blocks of k: equal, at most 1.5 KC long, in whole eights.
fn k_blocks(k0: usize, k1: usize) -> impl Iterator<Item = (usize, usize)> {
    let k = k1 - k0;
    let size = if k <= KC + KC / 2 { k.max(1) } else { k.div_ceil(k.div_ceil(KC)).next_multiple_of(8) };
    (k0..k1.max(k0 + 1)).step_by(size).map(move |at| (at, size.min(k1 - at)))
}

/// A product of m x k words by k x n words.
pub(crate) struct Product<'a, W> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Operand<'a, W>,
    pub b: Operand<'a, W>,
    pub isa: Isa,
}

impl<'a, W: Word> Product<'a, W> {
    /// Runs the product.
    ///
    /// # Safety
    /// `out.c` holds m rows of n columns `out.ld` apart that nobody else touches; bias holds n numbers,
    /// residual and gate hold rows as C.
    pub(crate) unsafe fn run(&self, out: &Out<'_, W::Acc>) {
        let (m, n, k) = (self.m, self.n, self.k);
        if m == 0 || n == 0 {
            return;
        }
        let parallel = m * n * k >= SERIAL;
        let chunks = (k / 512).min(8).max(k / 1024).min(16);
        if parallel && m * n <= 1 << 16 && k >= 2048 && k >= 8 * m.max(n) {
            // SAFETY: the caller's promise.
            unsafe { self.split(chunks, out) }
        } else {
            let rights = self.rights(0, k);
            // SAFETY: the caller's promise.
            unsafe { self.rows(&rights, parallel, out) }
        }
    }

    /// B for steps `k0..k1`.
    pub(crate) fn rights(&self, k0: usize, k1: usize) -> Vec<Right<'a, W>> {
        let kernels = W::kernels(self.isa);
        k_blocks(k0, k1).map(|block| Right::new(&self.b, block, self.n, self.m, kernels)).collect()
    }

    /// All rows of C against B.
    ///
    /// # Safety
    /// As [`Self::run`].
    unsafe fn rows(&self, rights: &[Right<'_, W>], parallel: bool, out: &Out<'_, W::Acc>) {
        let threads = if parallel { rayon::current_num_threads() } else { 1 };
        // Whole tiles of twelve rows, and as many tasks for every thread.
        let tiles = self.m.div_ceil(12);
        let panels = rights[0].panels();
        let mut groups = self.n.div_ceil(NC);
        // In a wide product every thread keeps to its own columns: its part of B stays in its cache.
        let wide =
            threads > 1 && self.a.src.in_place().is_some() && panels >= 4 * threads && self.n >= self.m / 2;
        let blocks = if wide {
            groups = groups.max(threads);
            self.m.div_ceil(MC)
        } else {
            let rows = (MC * KC / rights[0].kc.clamp(1, KC)).min(2 * MC);
            let least = if threads > 1 { (8 * threads).min(tiles / 4).max(1) } else { 1 };
            let blocks = self.m.div_ceil(rows).max(least).next_multiple_of(threads).min(tiles);
            if threads > 1 && blocks < 4 * threads {
                groups = groups.max((4 * threads).div_ceil(blocks).min(panels));
            }
            blocks
        };
        let tasks = blocks * groups;
        each(parallel, tasks, &|task| {
            // Threads begin at different panels, so that each packs its own share.
            let (i, g) = if wide {
                (task % blocks, task / blocks)
            } else {
                let i = task / groups;
                (i, (task + i * groups / blocks) % groups)
            };
            let (r0, r1) = (i * tiles / blocks * 12, ((i + 1) * tiles / blocks * 12).min(self.m));
            let panels = g * panels / groups..(g + 1) * panels / groups;
            let first = panels.start + task * panels.len() / tasks;
            // SAFETY: the caller's promise; tasks own disjoint rows or columns.
            unsafe { self.block(rights, (r0, r1 - r0), (panels, first), out) }
        });
    }

    /// Rows `r0..r0 + rows` of C in the columns of `panels`, `first` first, through all of k.
    ///
    /// # Safety
    /// As [`Self::run`] for this part of C.
    pub(crate) unsafe fn block(
        &self,
        rights: &[Right<'_, W>],
        (r0, rows): (usize, usize),
        (panels, first): (std::ops::Range<usize>, usize),
        out: &Out<'_, W::Acc>,
    ) {
        if rows == 0 {
            return;
        }
        let kernels: &Kernels = W::kernels(self.isa);
        let (word, acc) = (size_of::<W>(), size_of::<W::Acc>());
        let mut buffer = None;
        let simple = matches!(out.act, Act::None | Act::Relu);
        let words: usize = rights.iter().map(|right| right.kc).sum();
        let columns = rights[0].columns(&panels, self.n);
        FLOPS.fetch_add(2 * (W::NUMBERS * words * rows * columns) as u64, Ordering::Relaxed);
        for (kb, right) in rights.iter().enumerate() {
            let a = left(&self.a, (r0, rows), (right.k0, right.kc), rights.len() == 1, &mut buffer);
            let last = kb + 1 == rights.len();
            let mut order = (first..panels.end).chain(panels.start..first).peekable();
            while let Some(p) = order.next() {
                let (col, vectors, b, b_step) = right.panel(p);
                let cols = (self.n - col).min(vectors * kernels.lanes);
                // The first pass asks for the rows of the next tile, where they lie close together; later passes for
                // the next panel.
                let ahead = match (a.step, a.row) {
                    _ if p != first => None,
                    (1, row) if row <= right.kc + 64 => Some(64),
                    (step, 1) => Some(step * word),
                    _ => None,
                };
                let mut next_b =
                    order.peek().and_then(|&p| right.packed(p)).map_or(&[][..], bytemuck::cast_slice);
                let mut at = 0;
                for &(height, kernel) in kernels.by_vectors[vectors - 1] {
                    while rows - at >= height {
                        let corner = (r0 + at) * out.ld + col;
                        let aside = |x: Option<&[W::Acc]>, on: bool, at: usize| match x {
                            Some(x) if on => x[at..].as_ptr().cast(),
                            _ => std::ptr::null(),
                        };
                        let (next, next_step) = if let Some(step) = ahead {
                            (a.data.as_ptr().wrapping_add((at + height) * a.row).cast(), step)
                        } else {
                            let (now, later) = next_b.split_at(next_b.len().min(right.kc * 64));
                            next_b = later;
                            (now.as_ptr(), if now.is_empty() { 0 } else { 64 })
                        };
                        let tile = Tile {
                            k: right.kc,
                            a: a.data.as_ptr().wrapping_add(at * a.row).cast(),
                            a_row: a.row * word,
                            a_step: a.step * word,
                            next,
                            next_step,
                            next_c: out.c.0.wrapping_add(corner + height * out.ld).cast(),
                            b: b.as_ptr().cast(),
                            b_step: b_step * word,
                            // SAFETY: the corner lies in C by the caller's promise.
                            c: unsafe { out.c.0.add(corner) }.cast(),
                            c_row: out.ld * acc,
                            cols,
                            alpha: out.alpha,
                            accumulate: out.accumulate || kb > 0,
                            bias: aside(out.bias, last, col),
                            residual: aside(out.residual, last, corner),
                            gate: aside(out.gate, last && simple, corner),
                            relu: last && out.act == Act::Relu,
                        };
                        // SAFETY: the table belongs to an instruction set of this machine; `left`, `panel` and
                        // the caller's promise provide the memory.
                        unsafe { kernel(&tile) };
                        at += height;
                    }
                }
                if last && !simple {
                    for r in r0..r0 + rows {
                        let at = r * out.ld + col;
                        // SAFETY: this part of C is ours.
                        let c = unsafe { out.c.slice(at, cols) };
                        activate(out.act, c, out.gate.map(|g| &g[at..at + cols]));
                    }
                }
            }
        }
    }

    /// The sum over chunks of k, each chunk into its own C.
    ///
    /// # Safety
    /// As [`Self::run`].
    unsafe fn split(&self, chunks: usize, out: &Out<'_, W::Acc>) {
        let (m, n, k) = (self.m, self.n, self.k);
        let mut parts = Buffer::uninit(chunks * m * n * size_of::<W::Acc>());
        let parts: &mut [W::Acc] = bytemuck::cast_slice_mut(parts.as_mut());
        let shared = Shared(parts.as_mut_ptr());
        each(true, chunks, &|i| {
            let bound = |i: usize| (i * k / chunks).next_multiple_of(8).min(k);
            let rights = self.rights(bound(i), bound(i + 1));
            // SAFETY: chunk i owns part i.
            let c = Shared(unsafe { shared.slice(i * m * n, m * n) }.as_mut_ptr());
            let plain = Out {
                c,
                ld: n,
                alpha: out.alpha,
                accumulate: false,
                bias: None,
                residual: None,
                gate: None,
                act: Act::None,
            };
            for r0 in (0..m).step_by(MC) {
                // SAFETY: as above.
                unsafe { self.block(&rights, (r0, MC.min(m - r0)), (0..rights[0].panels(), 0), &plain) };
            }
        });
        let parts: &[W::Acc] = parts;
        each(m * n >= 1 << 13, m, &|r| {
            // SAFETY: every row of C is visited once.
            let c = unsafe { out.c.slice(r * out.ld, n) };
            let (first, rest) = parts.split_at(m * n);
            let first = &first[r * n..(r + 1) * n];
            if out.accumulate {
                c.iter_mut().zip(first).for_each(|(c, x)| *c += *x);
            } else {
                c.copy_from_slice(first);
            }
            for part in rest.chunks(m * n) {
                c.iter_mut().zip(&part[r * n..(r + 1) * n]).for_each(|(c, x)| *c += *x);
            }
            let at = r * out.ld;
            add(c, out.bias);
            add(c, out.residual.map(|x| &x[at..at + n]));
            activate(out.act, c, out.gate.map(|g| &g[at..at + n]));
        });
    }
}

fn add<T: Float>(c: &mut [T], x: Option<&[T]>) {
    if let Some(x) = x {
        c.iter_mut().zip(x).for_each(|(c, x)| *c += *x);
    }
}
