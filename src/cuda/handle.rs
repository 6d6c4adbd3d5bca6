//! The handle of an open device. In a room of its own so that the rest of the crate does not see whether it has values.

use super::Context;

/// Proof that a build has devices at all.
#[cfg(any(feature = "cuda", feature = "emulate"))]
type Exists = ();
#[cfg(not(any(feature = "cuda", feature = "emulate")))]
type Exists = std::convert::Infallible;

/// An open device.
#[derive(Clone, Copy)]
pub(crate) struct Gpu {
    context: &'static Context,
    _exists: Exists,
}

impl Gpu {
    /// The handle of `context`.
    #[cfg(any(feature = "cuda", feature = "emulate"))]
    pub(super) fn with(context: &'static Context) -> Option<Self> {
        Some(Self { context, _exists: () })
    }

    /// There are no devices in this build.
    #[cfg(not(any(feature = "cuda", feature = "emulate")))]
    pub(super) fn with(_: &'static Context) -> Option<Self> {
        None
    }

    pub(super) fn context(self) -> &'static Context {
        self.context
    }
}
