//! Devices other than the CPU: where a tensor's memory is, and how an op file starts its kernels there.
//!
//! An op asks `on` for the device of its inputs and, if there is one, launches its kernels with
//! `Gpu::launch`; the answer is `None` on the CPU. Two backends stand behind a `Gpu`: the CUDA driver (feature
//! `cuda`, the only code that knows cudarc) and the emulator (feature `emulate`), which runs the same kernels and
//! the same launches on the CPU, one fiber per CUDA thread, so that both are proven without a GPU.
//!
//! Without either feature `Gpu` has no values: `Option<Gpu>` takes no room, every device branch is removed by the
//! compiler, and yet all launch code is type-checked.
//!
//! Errors of the world (no driver, no memory, a kernel that failed) cannot be returned through an op's `Tensor`; they
//! unwind as a fault, which [`Device::run`] turns into an [`Error`].

// Without devices nothing reads what launches say; it is still type-checked.
#![cfg_attr(not(any(feature = "cuda", feature = "emulate")), allow(dead_code))]

#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "emulate")]
pub mod emulator;
mod handle;
mod launch;
#[cfg(feature = "cuda")]
mod pool;

pub(crate) use handle::{Gpu, Held};
pub(crate) use launch::{Arg, Grid, Kernels, Optional, Struct, Wanted, Words};

use crate::error::{Error, ErrorKind, Result};
use crate::tensor::{DType, Shape, Tensor};
use std::cell::Cell;
use std::ffi::c_void;
use std::sync::Mutex;

/// Where a tensor lives and an op runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Device {
    /// The host's memory and processor.
    #[default]
    Cpu,
    /// The CUDA device of this number (feature `cuda`).
    Cuda(usize),
    /// The CUDA kernels, emulated on the CPU (feature `emulate`): slow, for tests.
    Emulated,
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => write!(f, "cpu"),
            Device::Cuda(n) => write!(f, "cuda:{n}"),
            Device::Emulated => write!(f, "emulated"),
        }
    }
}

impl std::str::FromStr for Device {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match (name, name.strip_prefix("cuda:").map(str::parse)) {
            ("cpu", _) => Ok(Device::Cpu),
            ("cuda", _) => Ok(Device::Cuda(0)),
            ("emulated", _) => Ok(Device::Emulated),
            (_, Some(Ok(n))) => Ok(Device::Cuda(n)),
            _ => Err(Error::new(ErrorKind::Usage, format!("device {name:?}: expected cpu, cuda or cuda:N"))),
        }
    }
}

impl Device {
    /// Runs `f` with new tensors (zeros, random draws, copies of slices) made on this device. Faults of the device
    /// inside `f` become errors.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] when the device cannot be opened, runs out of memory or fails.
    pub fn run<R>(self, f: impl FnOnce() -> R) -> Result<R> {
        let _restore = Restore(CURRENT.replace(Gpu::open(self)?));
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)) {
            Ok(value) => Ok(value),
            Err(cause) => match cause.downcast::<Fault>() {
                Ok(fault) => Err(fault.0),
                Err(cause) => std::panic::resume_unwind(cause),
            },
        }
    }
}

thread_local! {
    static CURRENT: Cell<Option<Gpu>> = const { Cell::new(None) };
}

struct Restore(Option<Gpu>);

impl Drop for Restore {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// An error on its way out of an op.
struct Fault(Error);

fn fail(message: String) -> ! {
    std::panic::resume_unwind(Box::new(Fault(Error::new(ErrorKind::Device, message))))
}

struct Context {
    device: Device,
    backend: Box<dyn Backend>,
}

/// What a device has to offer. Addresses are those that kernels see; errors are messages.
trait Backend: Send + Sync {
    /// Memory of `bytes` bytes, aligned to 256.
    fn alloc(&self, bytes: usize) -> std::result::Result<u64, String>;
    /// Takes memory back; work that was queued before may still use it.
    fn free(&self, address: u64, bytes: usize);
    /// Copies from the host.
    fn upload(&self, to: u64, from: &[u8]) -> std::result::Result<(), String>;
    /// Copies to the host, after everything that was queued; reports failures of earlier launches too.
    fn download(&self, from: u64, to: &mut [u8]) -> std::result::Result<(), String>;
    /// Copies within the device.
    fn copy(&self, to: u64, from: u64, bytes: usize) -> std::result::Result<(), String>;
    /// Queues a kernel.
    fn launch(&self, kernel: Kernel, grid: Grid, args: &[&dyn Arg]) -> std::result::Result<(), String>;
}

/// A kernel: the stem of its file under `kernels/`, and its symbol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Kernel {
    pub(crate) file: &'static str,
    pub(crate) symbol: &'static str,
}

/// Device memory, given back on drop.
struct Memory {
    gpu: Gpu,
    address: u64,
    bytes: usize,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.gpu.context().backend.free(self.address, self.bytes);
    }
}

impl Held {
    pub(crate) fn gpu(&self) -> Gpu {
        self.memory().gpu
    }

    /// The address, where a launch finds it.
    fn slot(&self) -> *const c_void {
        (&raw const self.memory().address).cast()
    }

    /// The bytes, on the host.
    pub(crate) fn download(&self) -> Vec<u8> {
        let Memory { gpu, address, bytes } = *self.memory();
        let mut host = vec![0; bytes];
        gpu.check(gpu.context().backend.download(address, &mut host));
        host
    }

    /// Moves to a copy of the memory if anybody else holds it.
    fn make_unique(&mut self) {
        if !self.is_unique() {
            let Memory { gpu, address, bytes } = *self.memory();
            let copy = gpu.alloc(bytes);
            gpu.check(gpu.context().backend.copy(copy.memory().address, address, bytes));
            *self = copy;
        }
    }
}

static OPEN: Mutex<Vec<&'static Context>> = Mutex::new(Vec::new());

impl Gpu {
    /// The device, opened on first use; `None` is the CPU.
    pub(crate) fn open(device: Device) -> Result<Option<Gpu>> {
        if device == Device::Cpu {
            return Ok(None);
        }
        let mut open = OPEN.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(context) = open.iter().find(|c| c.device == device) {
            return Ok(Gpu::with(context));
        }
        let backend = backend(device).map_err(|e| Error::new(ErrorKind::Device, format!("{device}: {e}")))?;
        let context: &'static Context = Box::leak(Box::new(Context { device, backend }));
        open.push(context);
        Ok(Gpu::with(context))
    }

    /// The device that new tensors of this thread are made on.
    pub(crate) fn current() -> Option<Gpu> {
        CURRENT.get()
    }

    pub(crate) fn device(self) -> Device {
        self.context().device
    }

    fn check<T>(self, done: std::result::Result<T, String>) -> T {
        done.unwrap_or_else(|e| fail(format!("{}: {e}", self.device())))
    }

    fn alloc(self, bytes: usize) -> Held {
        let address = self.check(self.context().backend.alloc(bytes));
        self.hold(Memory { gpu: self, address, bytes })
    }

    /// Memory with these bytes.
    pub(crate) fn upload(self, bytes: &[u8]) -> Held {
        let held = self.alloc(bytes.len());
        self.check(self.context().backend.upload(held.memory().address, bytes));
        held
    }

    /// Room for a tensor that kernels will write.
    pub(crate) fn empty(self, shape: impl Into<Shape>, dtype: DType) -> Output {
        let shape = shape.into();
        Output { held: self.alloc(shape.len() * dtype.size()), shape, dtype }
    }

    /// Queues `kernel` with these arguments, in the order of its parameters.
    ///
    /// # Panics
    /// When the arguments do not fit the kernel (the emulator checks number, kinds and constness).
    #[track_caller]
    pub(crate) fn launch(self, kernel: Kernel, grid: Grid, args: &[&dyn Arg]) {
        if grid.is_empty() {
            return;
        }
        let done = self.context().backend.launch(kernel, grid, args);
        self.check(done.map_err(|e| format!("kernel {}: {e}", kernel.symbol)));
    }
}

#[allow(clippy::match_single_binding)]
fn backend(device: Device) -> std::result::Result<Box<dyn Backend>, String> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(n) => driver::open(n),
        #[cfg(feature = "emulate")]
        Device::Emulated => Ok(Box::new(emulator::Emulator)),
        _ => {
            Err("this executable was built without this device (cargo features `cuda` and `emulate`)".into())
        }
    }
}

/// A tensor being written by kernels: pass `&output` where the kernel writes, then [`finish`](Output::finish).
pub(crate) struct Output {
    held: Held,
    shape: Shape,
    dtype: DType,
}

impl Output {
    /// The finished tensor, unrecorded.
    pub(crate) fn finish(self) -> Tensor {
        Tensor::on_device(self.held, self.shape, self.dtype)
    }

    /// The memory of a tensor, for kernels that change it in place.
    pub(crate) fn of(held: &mut Held, shape: Shape, dtype: DType) -> Self {
        held.make_unique();
        Self { held: held.clone(), shape, dtype }
    }
}

/// The device of an op's inputs; `None` is the CPU. Tensors without elements belong everywhere.
///
/// # Panics
/// With the op's name, when the inputs are on different devices.
#[track_caller]
pub(crate) fn on(op: &str, inputs: &[&Tensor]) -> Option<Gpu> {
    let mut places = inputs.iter().filter(|t| !t.is_empty()).map(|t| t.gpu());
    let first = places.next().unwrap_or_else(|| inputs.first().and_then(|t| t.gpu()));
    let device = |gpu: Option<Gpu>| gpu.map_or(Device::Cpu, Gpu::device);
    if let Some(other) = places.find(|&other| device(other) != device(first)) {
        panic!("{op}: one input is on {}, another on {}", device(first), device(other));
    }
    first
}

#[cfg(all(test, not(any(feature = "cuda", feature = "emulate"))))]
mod tests {
    use super::*;

    #[test]
    fn devices_cost_nothing_where_there_are_none() {
        assert_eq!(std::mem::size_of::<Option<Gpu>>(), 0);
        assert_eq!(std::mem::size_of::<Option<Held>>(), 0);
    }

    #[test]
    fn a_device_that_was_not_built_in_is_an_error() {
        let error = Device::Cuda(0).run(|| ()).unwrap_err();
        assert!(error.to_string().starts_with("cuda:0: this executable was built without"), "{error}");
    }
}
