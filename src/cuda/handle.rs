//! The handle of an open device and a share of its memory. In builds without devices both are empty types of size zero,
//! so that the enum in `Tensor` and every `Option<Gpu>` collapse; in a room of its own so that the rest of the crate
//! does not see which of the two it is.

use super::{Context, Memory};

#[cfg(any(feature = "cuda", feature = "emulate"))]
mod kind {
    use super::*;
    pub(super) type Open = &'static Context;
    pub(super) type Share = std::sync::Arc<Memory>;
    pub(super) type Seen = std::sync::Weak<Memory>;

    pub(super) fn open(context: &'static Context) -> Option<Open> {
        Some(context)
    }
    pub(super) fn context(open: Open) -> &'static Context {
        open
    }
    pub(super) fn share(_: Open, memory: Memory) -> Share {
        std::sync::Arc::new(memory)
    }
    pub(super) fn memory(share: &Share) -> (&Memory, bool) {
        (share, std::sync::Arc::strong_count(share) == 1)
    }
    pub(super) fn watch(share: &Share) -> Seen {
        std::sync::Arc::downgrade(share)
    }
    pub(super) fn holders(seen: &Seen) -> usize {
        seen.strong_count()
    }
}

#[cfg(not(any(feature = "cuda", feature = "emulate")))]
mod kind {
    use super::*;
    pub(super) type Open = std::convert::Infallible;
    pub(super) type Share = std::convert::Infallible;
    pub(super) type Seen = std::convert::Infallible;

    pub(super) fn open(_: &'static Context) -> Option<Open> {
        None
    }
    pub(super) fn context(open: Open) -> &'static Context {
        match open {}
    }
    pub(super) fn share(open: Open, _: Memory) -> Share {
        open
    }
    pub(super) fn memory(share: &Share) -> (&Memory, bool) {
        match *share {}
    }
    pub(super) fn watch(share: &Share) -> Seen {
        *share
    }
    pub(super) fn holders(seen: &Seen) -> usize {
        match *seen {}
    }
}

/// An open device.
#[derive(Clone, Copy)]
pub(crate) struct Gpu(kind::Open);

impl Gpu {
    /// The handle of `context`, in builds that have devices.
    pub(super) fn with(context: &'static Context) -> Option<Self> {
        kind::open(context).map(Gpu)
    }

    pub(super) fn context(self) -> &'static Context {
        kind::context(self.0)
    }

    pub(super) fn hold(self, memory: Memory) -> Held {
        Held(kind::share(self.0, memory))
    }
}

/// A tensor's share of device memory.
#[derive(Clone)]
pub(crate) struct Held(kind::Share);

impl Held {
    pub(super) fn memory(&self) -> &Memory {
        kind::memory(&self.0).0
    }

    /// Whether nobody else holds this memory.
    pub(super) fn is_unique(&self) -> bool {
        kind::memory(&self.0).1
    }

    /// An eye on this memory that does not hold it.
    pub(super) fn watch(&self) -> Watched {
        Watched(kind::watch(&self.0))
    }
}

/// Memory that somebody wants to know the holders of.
pub(super) struct Watched(kind::Seen);

impl Watched {
    /// Whether exactly one holds it.
    pub(super) fn has_one_holder(&self) -> bool {
        kind::holders(&self.0) == 1
    }
}
