//! What holds on a thread while a function runs: whether ops are recorded, where new tensors are made, how precise
//! products are.
//!
//! A thread that waits for a parallel loop takes over whatever work it finds, which may be that of another caller, a
//! whole training among it. That work must not run under the settings of the one that waits, so [`crate::cpu::par`]
//! waits [`aside`].

use crate::cuda::{Gpu, replay};
use crate::tensor::DType;
use std::cell::Cell;

/// The settings of a thread.
#[derive(Clone, Copy)]
pub(crate) struct Ambient {
    /// Ops on recorded tensors are recorded.
    pub recording: bool,
    /// Fused ops run as their composites.
    pub higher_order: bool,
    /// What f32 operands of products are narrowed to.
    pub narrow: Option<DType>,
    /// Devices round operands of f32 products to TF32.
    pub tf32: bool,
    /// Products by wgmma were asked for.
    pub wgmma: bool,
    /// Where new tensors are made; `None` is the host.
    pub device: Option<Gpu>,
    /// Nothing is recorded on devices to be replayed.
    pub eager: bool,
    /// How many more scalar parameters may be created, when that is limited.
    pub room: Option<usize>,
}

const USUAL: Ambient = Ambient {
    recording: true,
    higher_order: false,
    narrow: None,
    tf32: false,
    wgmma: false,
    device: None,
    eager: false,
    room: None,
};

thread_local! {
    static NOW: Cell<Ambient> = const { Cell::new(USUAL) };
}

struct Restore(Ambient);

impl Drop for Restore {
    fn drop(&mut self) {
        NOW.set(self.0);
    }
}

/// The settings of this thread.
#[inline]
pub(crate) fn now() -> Ambient {
    NOW.get()
}

/// Changes them.
pub(crate) fn change(change: impl FnOnce(&mut Ambient)) {
    let mut settings = now();
    change(&mut settings);
    NOW.set(settings);
}

/// Runs `f` with settings that are changed so; afterwards, also when `f` unwinds, they are what they were.
#[inline]
pub(crate) fn with<R>(different: impl FnOnce(&mut Ambient), f: impl FnOnce() -> R) -> R {
    let _restore = Restore(now());
    change(different);
    f()
}

/// Runs `f`, in which this thread may do the work of others, with the usual settings.
#[inline]
pub(crate) fn aside<R>(f: impl FnOnce() -> R) -> R {
    let _session = replay::Aside::new();
    with(|settings| *settings = USUAL, f)
}
