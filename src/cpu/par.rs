//! Fixed chunks over rayon. A chunk's bounds depend on the size of the work alone, never on the number of
//! threads, so every reduction that works chunk by chunk gives the same bits on any machine.
//!
//! Everything goes through one function of a `dyn Fn`: instantiating rayon once per kernel is what made this
//! crate slow to compile.

use crate::ambient;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, TryLockError};

/// Elements that one task should own at least: below it a thread costs more than it brings.
pub const GRAIN: usize = 16 * 1024;

/// Bytes of stack of a thread that runs more than a kernel: a main thread's.
const STACK: usize = 8 << 20;

/// An address that tasks share; they write to disjoint parts behind it.
pub(crate) struct Shared<T>(pub(crate) *mut T);
// SAFETY: a plain address; the tasks that use it write to disjoint parts.
unsafe impl<T> Sync for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Send for Shared<T> {}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shared<T> {}

impl<T> Shared<T> {
    /// The part of `len` elements from `at`.
    ///
    /// # Safety
    /// The part lies in the memory and nobody else touches it during `'a`.
    pub(crate) unsafe fn slice<'a>(&self, at: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }
}

/// One thread's part of the calls: it takes them from the front, threads that are done with theirs from the back.
/// Neighbours stay together, and most calls meet the memory that the same thread touched before.
#[repr(align(64))]
struct Share {
    calls: Range<usize>,
    claimed: AtomicUsize,
    worked: AtomicUsize,
    helped: AtomicUsize,
}

impl Share {
    fn claim(&self) -> bool {
        self.claimed.fetch_add(1, Ordering::Relaxed) < self.calls.len()
    }

    fn work(&self, f: &(dyn Fn(usize) + Sync)) {
        while self.claim() {
            f(self.calls.start + self.worked.fetch_add(1, Ordering::Relaxed));
        }
    }

    fn help(&self, f: &(dyn Fn(usize) + Sync)) {
        while self.claim() {
            f(self.calls.end - 1 - self.helped.fetch_add(1, Ordering::Relaxed));
        }
    }
}

/// Calls `f(0..n)`, in parallel when asked and possible.
pub(crate) fn each(parallel: bool, n: usize, f: &(dyn Fn(usize) + Sync)) {
    let pool = rayon::current_num_threads();
    let threads = if parallel { pool.min(n) } else { 1 };
    if threads <= 1 {
        return (0..n).for_each(f);
    }
    let share = |t: usize| Share {
        calls: t * n / threads..(t + 1) * n / threads,
        claimed: AtomicUsize::new(0),
        worked: AtomicUsize::new(0),
        helped: AtomicUsize::new(0),
    };
    let shares: Vec<Share> = (0..threads).map(share).collect();
    let part = |t: usize| {
        // Who takes which part of the loop is chance; the share of a thread is not.
        let t = rayon::current_thread_index().filter(|_| threads == pool).unwrap_or(t);
        shares[t].work(f);
        (1..threads).for_each(|i| shares[(t + i) % threads].help(f));
    };
    ambient::aside(|| (0..threads).into_par_iter().with_max_len(1).for_each(part));
}

/// Calls `f(i)` for `i` in `0..n`, in parallel; `cost` is the rough number of elements touched per call.
pub fn for_each(n: usize, cost: usize, f: impl Fn(usize) + Sync + Send) {
    let per_task = (GRAIN / cost.max(1)).max(1);
    each(n * cost >= 2 * GRAIN, n.div_ceil(per_task), &|t| {
        (t * per_task..n.min((t + 1) * per_task)).for_each(&f);
    });
}

/// Splits `out` into chunks of `chunk` elements and calls `f(index, chunk)` on each, in parallel.
/// The last chunk may be shorter.
pub fn chunks_mut<T: Send>(out: &mut [T], chunk: usize, f: impl Fn(usize, &mut [T]) + Sync + Send) {
    let (chunk, len) = (chunk.max(1), out.len());
    let shared = Shared(out.as_mut_ptr());
    each(true, len.div_ceil(chunk), &|i| {
        // SAFETY: chunk i lies inside `out`, which is borrowed mutably, and belongs to this call alone.
        f(i, unsafe { shared.slice(i * chunk, chunk.min(len - i * chunk)) })
    });
}

/// As [`chunks_mut`] over two outputs at once: `a` in chunks of `ca`, `b` in chunks of `cb`.
pub fn chunks_mut2<A: Send, B: Send>(
    a: &mut [A],
    ca: usize,
    b: &mut [B],
    cb: usize,
    f: impl Fn(usize, &mut [A], &mut [B]) + Sync + Send,
) {
    let (ca, cb, la, lb) = (ca.max(1), cb.max(1), a.len(), b.len());
    let (sa, sb) = (Shared(a.as_mut_ptr()), Shared(b.as_mut_ptr()));
    each(true, la.div_ceil(ca).min(lb.div_ceil(cb)), &|i| {
        // SAFETY: part i of each lies inside it, both are borrowed mutably, and it belongs to this call alone.
        let (a, b) =
            unsafe { (sa.slice(i * ca, ca.min(la - i * ca)), sb.slice(i * cb, cb.min(lb - i * cb))) };
        f(i, a, b)
    });
}

/// `width` numbers for each of N rows, made group by group in parallel: `f(g)` gives those of the rows
/// `order[starts[g]..starts[g + 1]]`, one after the other.
///
/// # Panics
/// When `order` does not name each of 0..N once, `starts` does not cut it, or `f` gives too few numbers.
#[track_caller]
pub(crate) fn scattered<T: Copy + Default + Send>(
    order: &[u32],
    starts: &[usize],
    width: usize,
    f: impl Fn(usize) -> Vec<T> + Sync,
) -> Vec<T> {
    let n = order.len();
    let mut named = vec![false; n];
    assert!(
        order.iter().all(|&row| !std::mem::replace(&mut named[row as usize], true)),
        "scattered: a row is named twice"
    );
    let cuts = starts.windows(2).all(|w| w[0] <= w[1]) && starts.last().is_none_or(|end| *end <= n);
    assert!(cuts, "scattered: groups {starts:?} of {n} rows");
    let mut out = vec![T::default(); n * width];
    let shared = Shared(out.as_mut_ptr());
    each(true, starts.len().saturating_sub(1), &|g| {
        let (rows, found) = (&order[starts[g]..starts[g + 1]], f(g));
        for (i, &row) in rows.iter().enumerate() {
            // SAFETY: the row lies inside `out` and is named once, so that no other task writes it.
            let place = unsafe { shared.slice(row as usize * width, width) };
            place.copy_from_slice(&found[i * width..][..width]);
        }
    });
    out
}

/// `f(0..n)`, for tasks that are whole pieces of work (training a model): as many at a time as there are threads, each
/// with its share of them and all that it calls within. The last ones, fewer than the threads, share all of them.
///
/// A small product gains little from a second thread, so such tasks take less time side by side than one after the other
/// with all threads each. Results do not depend on it.
pub fn together<R: Send>(n: usize, f: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let mut out: Vec<Option<R>> = (0..n).map(|_| None).collect();
    let slots: Vec<Mutex<&mut Option<R>>> = out.iter_mut().map(Mutex::new).collect();
    rounds(n, &|i| {
        let found = f(i);
        **slots[i].lock().unwrap_or_else(|e| e.into_inner()) = Some(found);
    });
    drop(slots);
    out.into_iter().flatten().collect()
}

fn rounds(n: usize, f: &(dyn Fn(usize) + Sync)) {
    let threads = rayon::current_num_threads();
    let whole = n / threads * threads;
    for tasks in [0..whole, whole..n] {
        let workers = tasks.len().min(threads);
        let pool =
            || rayon::ThreadPoolBuilder::new().num_threads(threads / workers).stack_size(STACK).build();
        let pools: Vec<_> = (0..workers).map_while(|_| pool().ok()).collect();
        if pools.len() <= 1 {
            tasks.for_each(f);
            continue;
        }
        let next = AtomicUsize::new(tasks.start);
        std::thread::scope(|scope| {
            for pool in &pools {
                let (next, end) = (&next, tasks.end);
                let work = move || {
                    let claimed = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
                    claimed.take_while(|i| *i < end).for_each(f);
                };
                scope.spawn(move || pool.install(work));
            }
        });
    }
}

/// Calls `f` on a thread of the process-wide pool, of `threads` threads (0: all cores) when this is the first parallel
/// work. Whoever computes for long should do so there: from any other thread each parallel step first wakes a thread of
/// the pool and waits for it, which cost a twentieth to a tenth of a training step.
///
/// One caller at a time has that; others compute from the threads that they are on. Otherwise a short `f` could end up
/// waiting for a long one, which its thread took over while it waited for a loop.
pub fn inside<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    static ONE: Mutex<()> = Mutex::new(());
    // An error says that the pool runs already.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).stack_size(STACK).build_global();
    match ONE.try_lock() {
        Err(TryLockError::WouldBlock) => f(),
        _alone => rayon::scope(|_| f()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a thread takes over while it waits does not see its settings, and they are there again afterwards.
    #[test]
    fn loops_run_under_the_usual_settings() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("a pool");
        let off = |settings: &mut ambient::Ambient| settings.recording = false;
        let run = || {
            each(true, 8, &|_| assert!(ambient::now().recording));
            assert!(!ambient::now().recording);
        };
        pool.install(|| ambient::with(off, run));
        assert!(ambient::now().recording);
    }

    #[test]
    fn whoever_comes_second_stays_on_its_thread() {
        let pooled = || rayon::current_thread_index().is_some();
        let second = || std::thread::scope(|s| s.spawn(|| inside(0, pooled)).join().expect("no panic"));
        // Another test may be the first one.
        let (first, second) = inside(0, || (pooled(), second()));
        assert!(!(first && second));
    }

    /// Every task once, its result in its place, with its share of the threads.
    #[test]
    fn together_is_all_of_them_in_order() {
        for threads in [1, 2, 3, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            for n in [0, 1, 2, 3, 5, 8, 17] {
                let found = pool.install(|| together(n, |i| (i, rayon::current_num_threads())));
                assert!(found.iter().map(|f| f.0).eq(0..n), "{threads} threads: {found:?}");
                let whole = n / threads * threads;
                let share = |i: usize| if i < whole { 1 } else { threads / (n - whole) };
                assert!(found.iter().all(|&(i, t)| t == share(i)), "{threads} threads: {found:?}");
            }
        }
    }
}
