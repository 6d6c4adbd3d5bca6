//! 64-byte aligned memory from a size-class pool.
//!
//! Training allocates the same sizes again and again; the pool hands the same memory back, warm in cache and
//! without page faults. Large buffers ask for huge pages: matrix products walk through more 4-KiB pages than the
//! processor remembers addresses for. Memory is zeroed when it is first taken from the system, so every byte is
//! initialised. While [`guard`] is on, each buffer is poisoned with NaN patterns and followed by a canary that is
//! checked when the buffer is dropped: an op that reads what it did not write, or writes past its end, is found.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const ALIGN: usize = 64;
/// Buffers from this size on start at a multiple of it and ask for pages of this size.
const HUGE_PAGE: usize = 2 << 20;
const CANARY: u8 = 0xC5;
const POISON: u8 = 0xFF;
/// Free memory above this is given back to the system instead of being kept, unless so much has been live before: a
/// step of training needs again what the one before it needed.
const KEEP_BYTES: usize = 1 << 30;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// The largest value of `LIVE` ever.
static HIGH: AtomicUsize = AtomicUsize::new(0);
static FREE_BYTES: AtomicUsize = AtomicUsize::new(0);
static GUARD: AtomicBool = AtomicBool::new(false);
static POOL: [Mutex<Vec<FreeBlock>>; 192] = [const { Mutex::new(Vec::new()) }; 192];

struct FreeBlock(NonNull<u8>);
// SAFETY: a free block is owned memory that nobody else points to.
unsafe impl Send for FreeBlock {}

/// Four classes per power of two: at most a quarter of a buffer is slack.
pub(crate) fn class_of(bytes: usize) -> usize {
    let n = bytes.max(ALIGN).div_ceil(ALIGN);
    if n <= 4 {
        return n - 1;
    }
    let top = usize::BITS as usize - 1 - (n - 1).leading_zeros() as usize;
    let quarter = ((n - 1) >> (top - 2)) & 3;
    4 + (top - 2) * 4 + quarter
}

pub(crate) fn class_bytes(class: usize) -> usize {
    if class < 4 {
        return (class + 1) * ALIGN;
    }
    let (top, quarter) = ((class - 4) / 4 + 2, (class - 4) % 4);
    ((4 + quarter + 1) << (top - 2)) * ALIGN
}

/// Poisons new buffers and checks canaries behind them until called with `false`; for tests.
pub fn guard(on: bool) {
    GUARD.store(on, Ordering::SeqCst);
}

/// Bytes of all live buffers.
pub fn live_bytes() -> usize {
    LIVE.load(Ordering::Relaxed)
}

/// The largest value of [`live_bytes`] since [`reset_peak`].
pub fn peak_bytes() -> usize {
    PEAK.load(Ordering::Relaxed)
}

/// Starts a new measurement of [`peak_bytes`] at the present [`live_bytes`].
pub fn reset_peak() {
    PEAK.store(live_bytes(), Ordering::Relaxed);
}

/// Owned, 64-byte aligned, initialised bytes.
pub struct Buffer {
    ptr: NonNull<u8>,
    len: usize,
    class: usize,
    guarded: bool,
}

// SAFETY: the buffer owns its memory; shared access is read-only through `&self`.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// A buffer of `len` bytes with arbitrary (but initialised) content.
    pub fn uninit(len: usize) -> Self {
        let guarded = GUARD.load(Ordering::Relaxed);
        let class = class_of(len + if guarded { ALIGN } else { 0 });
        let bytes = class_bytes(class);
        let reused = POOL[class].lock().unwrap_or_else(|e| e.into_inner()).pop();
        let ptr = match reused {
            Some(block) => {
                FREE_BYTES.fetch_sub(bytes, Ordering::Relaxed);
                block.0
            }
            None => {
                let layout = Self::layout(class);
                // SAFETY: the layout is not empty.
                let raw = unsafe { alloc(layout) };
                let ptr = NonNull::new(raw).unwrap_or_else(|| handle_alloc_error(layout));
                ask_for_huge_pages(ptr, layout);
                // SAFETY: `bytes` bytes were just allocated.
                unsafe { ptr.as_ptr().write_bytes(0, bytes) };
                ptr
            }
        };
        let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
        PEAK.fetch_max(live, Ordering::Relaxed);
        HIGH.fetch_max(live, Ordering::Relaxed);
        let mut buffer = Self { ptr, len, class, guarded };
        if guarded {
            buffer.whole()[..len].fill(POISON);
            buffer.whole()[len..].fill(CANARY);
        }
        buffer
    }

    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let mut buffer = Self::uninit(len);
        buffer.as_mut().fill(0);
        buffer
    }

    fn layout(class: usize) -> Layout {
        let bytes = class_bytes(class);
        let align = if bytes >= HUGE_PAGE { HUGE_PAGE } else { ALIGN };
        Layout::from_size_align(bytes, align).expect("size classes fit an isize")
    }

    fn whole(&mut self) -> &mut [u8] {
        // SAFETY: the class size is what was allocated, all of it initialised, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), class_bytes(self.class)) }
    }
}

/// A hint that may be ignored; before the first touch, or the pages are small already.
fn ask_for_huge_pages(ptr: NonNull<u8>, layout: Layout) {
    #[cfg(target_os = "linux")]
    if layout.align() == HUGE_PAGE {
        // SAFETY: the range was just allocated, and the advice changes no content.
        unsafe { libc::madvise(ptr.as_ptr().cast(), layout.size(), libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (ptr, layout);
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `len` bytes were allocated and initialised.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_ref`, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.guarded && !std::thread::panicking() {
            let len = self.len;
            assert!(
                self.whole()[len..].iter().all(|&b| b == CANARY),
                "a kernel wrote past the end of a buffer of {len} bytes"
            );
        }
        let bytes = class_bytes(self.class);
        let live = LIVE.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        let keep = KEEP_BYTES.max(HIGH.load(Ordering::Relaxed).saturating_sub(live));
        if FREE_BYTES.fetch_add(bytes, Ordering::Relaxed) + bytes <= keep {
            POOL[self.class].lock().unwrap_or_else(|e| e.into_inner()).push(FreeBlock(self.ptr));
        } else {
            FREE_BYTES.fetch_sub(bytes, Ordering::Relaxed);
            // SAFETY: allocated in `uninit` with the same layout.
            unsafe { dealloc(self.ptr.as_ptr(), Self::layout(self.class)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_cover_and_waste_at_most_a_quarter() {
        for bytes in (1..100_000).chain([1 << 20, (1 << 20) + 1, 6_422_528, 1 << 33]) {
            let got = class_bytes(class_of(bytes));
            assert!(got >= bytes, "{bytes} in {got}");
            assert!(got <= (bytes + ALIGN) * 5 / 4 + ALIGN, "{bytes} in {got}");
        }
    }

    #[test]
    fn buffers_are_aligned_and_zeroed() {
        let b = Buffer::zeroed(1001);
        assert_eq!(b.as_ref().as_ptr() as usize % ALIGN, 0);
        assert!(b.as_ref().iter().all(|&x| x == 0));
    }
}
