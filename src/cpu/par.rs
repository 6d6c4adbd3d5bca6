//! Fixed chunks over rayon. A chunk's bounds depend on the size of the work alone, never on the number of
//! threads, so every reduction that works chunk by chunk gives the same bits on any machine.

use rayon::prelude::*;

/// Elements that one task should own at least: below it a thread costs more than it brings.
pub const GRAIN: usize = 16 * 1024;

/// Calls `f(i)` for `i` in `0..n`, in parallel; `cost` is the rough number of elements touched per call.
pub fn for_each(n: usize, cost: usize, f: impl Fn(usize) + Sync + Send) {
    if n <= 1 || n * cost < 2 * GRAIN || rayon::current_num_threads() == 1 {
        (0..n).for_each(f);
    } else {
        (0..n).into_par_iter().with_min_len((GRAIN / cost.max(1)).max(1)).for_each(f);
    }
}

/// Splits `out` into chunks of `chunk` elements and calls `f(index, chunk)` on each, in parallel.
/// The last chunk may be shorter.
pub fn chunks_mut<T: Send>(out: &mut [T], chunk: usize, f: impl Fn(usize, &mut [T]) + Sync + Send) {
    let chunk = chunk.max(1);
    if out.len() <= chunk || rayon::current_num_threads() == 1 {
        out.chunks_mut(chunk).enumerate().for_each(|(i, c)| f(i, c));
    } else {
        out.par_chunks_mut(chunk).enumerate().for_each(|(i, c)| f(i, c));
    }
}

/// As [`chunks_mut`] over two outputs at once: `a` in chunks of `ca`, `b` in chunks of `cb`.
pub fn chunks_mut2<A: Send, B: Send>(
    a: &mut [A],
    ca: usize,
    b: &mut [B],
    cb: usize,
    f: impl Fn(usize, &mut [A], &mut [B]) + Sync + Send,
) {
    if a.len() <= ca || rayon::current_num_threads() == 1 {
        a.chunks_mut(ca).zip(b.chunks_mut(cb)).enumerate().for_each(|(i, (x, y))| f(i, x, y));
    } else {
        a.par_chunks_mut(ca).zip(b.par_chunks_mut(cb)).enumerate().for_each(|(i, (x, y))| f(i, x, y));
    }
}

/// Sets the number of threads of the process-wide pool. Has an effect only before the first parallel work.
pub fn set_threads(n: usize) -> bool {
    rayon::ThreadPoolBuilder::new().num_threads(n).build_global().is_ok()
}
