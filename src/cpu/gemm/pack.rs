//! Where operands come from: a [`Source`] is read in place when its memory allows, else copied block by block.

use super::kernel::{Kernels, Word, prefetch};
use crate::cpu::buffer::Buffer;
use crate::cpu::par::Shared;
use crate::cpu::simd::vectorize;
use crate::tensor::{Elem, Plain};
use half::bf16;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};

/// A matrix of words that can copy its blocks; convolution patches are one without ever being stored.
pub(crate) trait Source<W>: Sync {
    /// Copies the block of `rows` rows from `r0` and `cols` columns from `c0` to `out`, rows `ld` apart.
    fn fill(&self, r0: usize, rows: usize, c0: usize, cols: usize, out: &mut [W], ld: usize);
    /// The matrix itself with its row stride, when it lies in memory as words.
    fn in_place(&self) -> Option<(&[W], usize)> {
        None
    }
}

/// A row-major matrix in memory, as stored; `transposed` says that the product uses its transpose.
#[derive(Clone, Copy)]
pub struct Mat<'a, E> {
    /// The elements.
    pub data: &'a [E],
    /// Elements between the starts of stored rows.
    pub row_stride: usize,
    /// Whether the product uses the transpose of what is stored.
    pub transposed: bool,
}

impl<'a, E> Mat<'a, E> {
    /// The stored matrix itself.
    pub fn new(data: &'a [E], row_stride: usize) -> Self {
        Self { data, row_stride, transposed: false }
    }

    /// The transpose of the stored matrix.
    pub fn t(data: &'a [E], row_stride: usize) -> Self {
        Self { data, row_stride, transposed: true }
    }

    /// Panics unless `rows` x `cols` logical elements lie in memory.
    #[track_caller]
    pub(super) fn check(&self, name: &str, rows: usize, cols: usize) {
        let (r, c) = if self.transposed { (cols, rows) } else { (rows, cols) };
        assert!(
            r == 0 || c == 0 || (self.row_stride >= c && self.data.len() >= (r - 1) * self.row_stride + c),
            "gemm: {name} needs {r} stored rows of {c} elements {} apart, got {} elements",
            self.row_stride,
            self.data.len()
        );
    }
}

impl<E: Elem> Source<E::Acc> for Mat<'_, E> {
    fn fill(&self, r0: usize, rows: usize, c0: usize, cols: usize, out: &mut [E::Acc], ld: usize) {
        if let Some((data, stride)) = self.in_place()
            && cols * size_of::<E>() == 128
            && rows > 0
        {
            return pair_of_vectors(&data[r0 * stride + c0..], stride, rows, out, ld);
        }
        vectorize(
            #[inline(always)]
            || {
                for (i, row) in out.chunks_mut(ld.max(1)).take(rows).enumerate() {
                    let at = (r0 + i) * self.row_stride + c0;
                    for (o, x) in row[..cols].iter_mut().zip(&self.data[at..at + cols]) {
                        *o = x.load();
                    }
                }
            },
        )
    }

    fn in_place(&self) -> Option<(&[E::Acc], usize)> {
        (E::DTYPE == <E::Acc as Plain>::DTYPE).then(|| (bytemuck::cast_slice(self.data), self.row_stride))
    }
}

/// Copies `rows` rows of 128 bytes, the usual panel: short pieces far apart, which the processor does not foresee.
fn pair_of_vectors<T: Plain>(data: &[T], stride: usize, rows: usize, out: &mut [T], ld: usize) {
    const AHEAD: usize = 16;
    let width = 128 / size_of::<T>();
    vectorize(
        #[inline(always)]
        || {
            for (i, row) in out.chunks_mut(ld).take(rows).enumerate() {
                let from = &data[i * stride..][..width];
                let next = from.as_ptr().wrapping_add(AHEAD * stride).cast::<u8>();
                prefetch(next);
                prefetch(next.wrapping_add(64));
                let from: &[u8; 128] = bytemuck::cast_slice(from).try_into().expect("128 bytes");
                let to: &mut [u8; 128] =
                    bytemuck::cast_slice_mut(&mut row[..width]).try_into().expect("128 bytes");
                *to = *from;
            }
        },
    )
}

/// Two bf16 numbers adjacent in k: the word of `vdpbf16ps`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(crate) struct Pair([bf16; 2]);

/// A bf16 matrix of `rows` x `cols` elements as pairs along its columns, or along its rows; a last odd element
/// is paired with zero.
pub(super) struct Pairs<'a> {
    data: &'a [bf16],
    row_stride: usize,
    rows: usize,
    cols: usize,
    along_rows: bool,
}

impl<'a> Pairs<'a> {
    /// The pairs of a bf16 matrix of logical size `rows` x `cols`.
    pub(super) fn new<E: Elem>(x: &Mat<'a, E>, rows: usize, cols: usize, along_rows: bool) -> Self {
        let (rows, cols) = if x.transposed { (cols, rows) } else { (rows, cols) };
        Self { data: bytemuck::cast_slice(x.data), row_stride: x.row_stride, rows, cols, along_rows }
    }
}

impl Source<Pair> for Pairs<'_> {
    fn fill(&self, r0: usize, rows: usize, c0: usize, cols: usize, out: &mut [Pair], ld: usize) {
        vectorize(
            #[inline(always)]
            || {
                for (i, out) in out.chunks_mut(ld.max(1)).take(rows).enumerate() {
                    if self.along_rows {
                        let r = 2 * (r0 + i);
                        let first = &self.data[r * self.row_stride + c0..][..cols];
                        if r + 1 < self.rows {
                            let second = &self.data[(r + 1) * self.row_stride + c0..][..cols];
                            out.iter_mut()
                                .zip(first.iter().zip(second))
                                .for_each(|(o, (x, y))| *o = Pair([*x, *y]));
                        } else {
                            out.iter_mut().zip(first).for_each(|(o, x)| *o = Pair([*x, bf16::ZERO]));
                        }
                    } else {
                        let row =
                            &self.data[(r0 + i) * self.row_stride..][2 * c0..self.cols.min(2 * (c0 + cols))];
                        let (pairs, odd) = row.as_chunks::<2>();
                        out.iter_mut().zip(pairs).for_each(|(o, x)| *o = Pair(*x));
                        if let [x] = odd {
                            out[pairs.len()] = Pair([*x, bf16::ZERO]);
                        }
                    }
                }
            },
        )
    }

    fn in_place(&self) -> Option<(&[Pair], usize)> {
        let even = !self.along_rows && self.cols.is_multiple_of(2) && self.row_stride.is_multiple_of(2);
        even.then(|| (bytemuck::cast_slice(&self.data[..self.data.len() & !1]), self.row_stride / 2))
    }
}

/// A source and whether the product uses its transpose.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a, W> {
    pub src: &'a dyn Source<W>,
    pub transposed: bool,
}

/// A block of the left operand as the kernels read it: strides in words.
pub(super) struct Left<'a, W> {
    pub data: &'a [W],
    pub row: usize,
    pub step: usize,
}

/// The block of `rows` from `r0`, steps `k0..k0 + kc` of the left operand, in place or copied into `buffer`.
pub(super) fn left<'a, W: Word>(
    a: &Operand<'a, W>,
    (r0, rows): (usize, usize),
    (k0, kc): (usize, usize),
    whole_k: bool,
    buffer: &'a mut Option<Buffer>,
) -> Left<'a, W> {
    if let Some((data, ld)) = a.src.in_place()
        && kc > 0
    {
        let bytes = ld * size_of::<W>();
        // Far-apart rows cost address translations and fight for the same cache sets.
        if a.transposed && bytes <= 2048 {
            return Left { data: &data[k0 * ld + r0..], row: 1, step: ld };
        }
        if !a.transposed && (bytes <= 2048 && whole_k || rows <= 12) {
            return Left { data: &data[r0 * ld + k0..], row: ld, step: 1 };
        }
    }
    let (stored_rows, stored_cols) = if a.transposed { (kc, rows) } else { (rows, kc) };
    // Rows whose distance is a power of two would fight for the same cache sets.
    let line = 64 / size_of::<W>();
    let ld = if stored_cols.is_multiple_of(4 * line) { stored_cols + line } else { stored_cols };
    let (s, c) = if a.transposed { (k0, r0) } else { (r0, k0) };
    let bytes = stored_rows * ld * size_of::<W>();
    if buffer.as_ref().is_none_or(|b| b.as_ref().len() < bytes) {
        *buffer = Some(Buffer::uninit(bytes));
    }
    let out: &mut [W] = bytemuck::cast_slice_mut(&mut buffer.as_mut().expect("just made").as_mut()[..bytes]);
    a.src.fill(s, stored_rows, c, stored_cols, out, ld);
    if a.transposed { Left { data: out, row: 1, step: ld } } else { Left { data: out, row: ld, step: 1 } }
}

/// The panels of n columns: (first vector, vectors) of panel `i`. Pairs of vectors, and one triple or single
/// when their number is odd.
pub(super) fn panel(vectors: usize, i: usize) -> (usize, usize) {
    match (vectors, vectors % 2) {
        (1, _) => (0, 1),
        (_, 0) => (2 * i, 2),
        _ if i == 0 => (0, 3),
        _ => (2 * i + 1, 2),
    }
}

/// Panels that cover `vectors` vectors.
pub(super) fn panels(vectors: usize) -> usize {
    (vectors / 2).max(1)
}

/// The right operand for one block of k: in panels of full vectors that the first who needs one packs, or in place.
pub(crate) struct Right<'a, W> {
    pub k0: usize,
    pub kc: usize,
    store: Store<'a, W>,
    lanes: usize,
    vectors: usize,
}

enum Store<'a, W> {
    Packed(Panels<'a, W>),
    InPlace(&'a [W], usize),
}

/// Panels that are packed on first use: no pass over B before the product, and the panel is in cache when it is read.
struct Panels<'a, W> {
    b: Operand<'a, W>,
    n: usize,
    states: Vec<AtomicU8>,
    words: Shared<W>,
    /// What `words` points to.
    _memory: Buffer,
}

const EMPTY: u8 = 0;
const BUSY: u8 = 1;
const READY: u8 = 2;

/// Puts a panel's state back unless packing ended well, so that nobody waits for a thread that panicked.
struct Claim<'a>(&'a AtomicU8, u8);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.store(self.1, Ordering::Release);
    }
}

impl<'a, W: Word> Right<'a, W> {
    /// Steps `k0..k0 + kc` of the right operand of `n` columns; `uses` is how many rows of A it will meet.
    pub(super) fn new(
        b: &Operand<'a, W>,
        (k0, kc): (usize, usize),
        n: usize,
        uses: usize,
        kernels: &Kernels,
    ) -> Self {
        let lanes = kernels.lanes;
        let vectors = n.div_ceil(lanes);
        if let (false, Some((data, ld))) = (b.transposed, b.src.in_place())
            && n.is_multiple_of(lanes)
            && (uses <= 64 && ld * size_of::<W>() <= 2048 || ld == n && panels(vectors) == 1)
        {
            return Self { k0, kc, store: Store::InPlace(&data[k0 * ld..], ld), lanes, vectors };
        }
        let mut memory = Buffer::uninit(kc * vectors * lanes * size_of::<W>());
        let words = Shared(memory.as_mut().as_mut_ptr().cast::<W>());
        let states = (0..panels(vectors)).map(|_| AtomicU8::new(EMPTY)).collect();
        Self {
            k0,
            kc,
            store: Store::Packed(Panels { b: *b, n, states, words, _memory: memory }),
            lanes,
            vectors,
        }
    }

    /// Panels of this block.
    pub(crate) fn panels(&self) -> usize {
        panels(self.vectors)
    }

    /// How many of n columns lie in `panels`.
    pub(super) fn columns(&self, panels: &Range<usize>, n: usize) -> usize {
        let start = |i: usize| if i < self.panels() { panel(self.vectors, i).0 * self.lanes } else { n };
        start(panels.end) - start(panels.start)
    }

    /// Panel `i`: its first column, vectors, words and the words from one step of k to the next.
    pub(super) fn panel(&self, i: usize) -> (usize, usize, &[W], usize) {
        let (first, count) = panel(self.vectors, i);
        let (col, width) = (first * self.lanes, count * self.lanes);
        match &self.store {
            Store::Packed(panels) => {
                panels.pack(i, (self.k0, self.kc), (col, width));
                // SAFETY: the panel lies in the memory, and nobody writes to it any more.
                let words =
                    unsafe { std::slice::from_raw_parts(panels.words.0.add(self.kc * col), self.kc * width) };
                (col, count, words, width)
            }
            Store::InPlace(data, ld) => (col, count, &data[col..], *ld),
        }
    }

    /// The words of panel `i` when they lie packed in memory, to be asked for ahead of time.
    pub(super) fn packed(&self, i: usize) -> Option<&[W]> {
        match &self.store {
            Store::Packed(panels) if panels.states[i].load(Ordering::Relaxed) == READY => {
                Some(self.panel(i).2)
            }
            _ => None,
        }
    }
}

impl<W: Word> Panels<'_, W> {
    /// Returns when panel `i`, `width` columns from `col`, is packed; packs it unless somebody else does.
    fn pack(&self, i: usize, k: (usize, usize), (col, width): (usize, usize)) {
        let state = &self.states[i];
        let mut waited = 0;
        while state.load(Ordering::Acquire) != READY {
            if state.compare_exchange(EMPTY, BUSY, Ordering::Acquire, Ordering::Relaxed).is_err() {
                // Packing takes microseconds, unless whoever packs has lost the processor.
                waited += 1;
                if waited < 1000 {
                    std::hint::spin_loop()
                } else {
                    std::thread::yield_now()
                }
                continue;
            }
            let mut claim = Claim(state, EMPTY);
            // SAFETY: panels are disjoint parts of the memory, and the claim makes this one ours.
            let out = unsafe { self.words.slice(k.1 * col, k.1 * width) };
            pack_panel(&self.b, k, (col, width.min(self.n - col)), out, width);
            claim.1 = READY;
        }
    }
}

fn pack_panel<W: Word>(
    b: &Operand<'_, W>,
    (k0, kc): (usize, usize),
    (col, cols): (usize, usize),
    out: &mut [W],
    width: usize,
) {
    if !b.transposed {
        b.src.fill(k0, kc, col, cols, out, width);
        if cols < width {
            out.chunks_mut(width).for_each(|row| row[cols..].fill(W::zeroed()));
        }
    } else if let Some((data, ld)) = b.src.in_place() {
        transpose(&data[col * ld + k0..], ld, cols, kc, out, width);
    } else {
        let mut rows = Buffer::uninit(cols * kc * size_of::<W>());
        let rows: &mut [W] = bytemuck::cast_slice_mut(rows.as_mut());
        b.src.fill(col, cols, k0, kc, rows, kc);
        transpose(rows, kc, cols, kc, out, width);
    }
}

/// out[c, r] = src[r, c] for `rows` x `cols`, zeros in out[c, rows..width].
fn transpose<W: Word>(src: &[W], ld: usize, rows: usize, cols: usize, out: &mut [W], width: usize) {
    const BLOCK: usize = 8;
    for c0 in (0..cols).step_by(BLOCK) {
        for c in c0..cols.min(c0 + BLOCK) {
            out[c * width + rows..(c + 1) * width].fill(W::zeroed());
        }
        for r0 in (0..rows).step_by(BLOCK) {
            if c0 + BLOCK <= cols && r0 + BLOCK <= rows {
                let mut block = [[W::zeroed(); BLOCK]; BLOCK];
                for (i, line) in block.iter_mut().enumerate() {
                    line.copy_from_slice(&src[(r0 + i) * ld + c0..][..BLOCK]);
                }
                for j in 0..BLOCK {
                    let line = &mut out[(c0 + j) * width + r0..][..BLOCK];
                    for i in 0..BLOCK {
                        line[i] = block[i][j];
                    }
                }
            } else {
                for c in c0..cols.min(c0 + BLOCK) {
                    for r in r0..rows.min(r0 + BLOCK) {
                        out[c * width + r] = src[r * ld + c];
                    }
                }
            }
        }
    }
}
