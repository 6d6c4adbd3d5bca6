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

// Without devices nobody launches anything; the code is still type-checked.
#![cfg_attr(not(any(feature = "cuda", feature = "emulate")), allow(dead_code))]

#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "emulate")]
pub mod emulator;
mod found;
#[cfg(any(test, feature = "cuda"))]
mod gate;
#[cfg(feature = "cuda")]
mod graph;
mod handle;
mod launch;
mod pool;
pub(crate) mod replay;
#[cfg(feature = "cuda")]
mod staging;
mod wide;

pub(crate) use handle::{Gpu, Held};
pub(crate) use launch::{Arg, Draw, Grid, Kernels, Optional, Struct, Table, TensorMap, Wanted, Words};
pub(crate) use replay::parameter_moved;
pub use replay::{Replay, Work, kernels_of, replays, without_replay};
pub(crate) use wide::{GATHER_128X128, TILE_64X64, TILE_128X128, TILE_128X256, Wide};

use crate::ambient;
use crate::error::{Error, ErrorKind, Result};
use crate::tensor::{DType, Shape, Tensor};
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
    /// Whether it can be used: opens it.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] saying in one line what is missing: the feature, the driver, the device of this number.
    pub fn check(self) -> Result<()> {
        Gpu::open(self).map(drop)
    }

    /// Waits until everything that was asked of it is done.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] when something of it failed.
    pub fn wait(self) -> Result<()> {
        let Some(gpu) = Gpu::open(self)? else { return Ok(()) };
        self.run(|| gpu.check(gpu.context().backend.download(0, &mut [])))
    }

    /// Runs `f` with new tensors (zeros, random draws, copies of slices) made on this device. Faults of the device
    /// inside `f` become errors.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] when the device cannot be opened, runs out of memory or fails.
    pub fn run<R>(self, f: impl FnOnce() -> R) -> Result<R> {
        let there = Gpu::open(self)?;
        let f = || ambient::with(|settings| settings.device = there, f);
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)) {
            Ok(value) => Ok(value),
            Err(cause) => match cause.downcast::<Fault>() {
                Ok(fault) => Err(fault.0),
                Err(cause) => std::panic::resume_unwind(cause),
            },
        }
    }
}

/// Runs `f` with new tensors made in the host's memory.
pub(crate) fn on_host<R>(f: impl FnOnce() -> R) -> R {
    ambient::with(|settings| settings.device = None, f)
}

/// The device that this thread makes new tensors on.
pub(crate) fn current() -> Device {
    Gpu::current().map_or(Device::Cpu, Gpu::device)
}

/// What messages about memory say.
pub(crate) const OUT_OF_MEMORY: &str = "out of memory";

/// An error on its way out of an op.
struct Fault(Error);

fn fail(message: String) -> ! {
    fault(Error::new(ErrorKind::Device, message))
}

/// Leaves [`Device::run`] with this error, from code that cannot return one.
pub(crate) fn fault(error: Error) -> ! {
    std::panic::resume_unwind(Box::new(Fault(error)))
}

struct Context {
    device: Device,
    backend: Box<dyn Backend>,
}

/// What a device has to offer. Addresses are those that kernels see; errors are messages.
trait Backend: Queue {
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
    /// Gives memory that is kept for reuse back to the device.
    fn trim(&self);
}

/// How a device is given work.
trait Queue: Send + Sync {
    /// Queues a kernel.
    fn launch(&self, kernel: Kernel, grid: Grid, args: &[&dyn Arg]) -> std::result::Result<(), String>;
    /// From here on launches are recorded, not queued.
    fn begin(&self) -> std::result::Result<(), String>;
    /// How many blocks run side by side, at least.
    fn multiprocessors(&self) -> usize;
    /// How the copy engine reads a tensor of a half type with these dims, the first side by side, in boxes of 64 by
    /// `lines`, swizzled by 128 bytes; or why it does not.
    fn tensor_map(
        &self,
        from: u64,
        dtype: DType,
        dims: [u64; 3],
        lines: u32,
    ) -> std::result::Result<[u64; 16], String>;
    /// What was recorded.
    fn end(&self) -> std::result::Result<Box<dyn Graph>, String>;
}

/// Recorded launches.
trait Graph: Send + Sync {
    /// Queues all of them.
    fn launch(&self) -> std::result::Result<(), String>;
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
    home: replay::Home,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.home.free(self);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
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
        let Memory { gpu, address, bytes, .. } = *self.memory();
        gpu.check(replay::not_repeatable("values are read on the host"));
        let mut host = vec![0; bytes];
        gpu.check(gpu.context().backend.download(address, &mut host));
        host
    }

    /// Where it lies, to tell memory apart.
    pub(crate) fn address(&self) -> u64 {
        self.memory().address
    }

    /// Copies `from` here if both are on one device and nobody else holds this memory; a copy of itself is none.
    pub(crate) fn replace(&self, from: &Held) -> bool {
        let alone = self.is_unique() && self.gpu().device() == from.gpu().device();
        if alone {
            replay::changes(self);
            self.copy_from(from);
        }
        alone
    }

    /// Replaces the content by these bytes.
    fn overwrite(&self, bytes: &[u8]) {
        let Memory { gpu, address, .. } = *self.memory();
        gpu.check(gpu.context().backend.upload(address, bytes));
    }

    /// Replaces the content by that of memory of the same size.
    fn copy_from(&self, from: &Held) {
        let Memory { gpu, address, bytes, .. } = *self.memory();
        if address != from.address() {
            gpu.check(gpu.context().backend.copy(address, from.address(), bytes));
        }
    }

    /// Moves to a copy of the memory if anybody else holds it.
    fn make_unique(&mut self) {
        if !self.is_unique() {
            let Memory { gpu, bytes, .. } = *self.memory();
            gpu.check(replay::copied(self));
            let copy = gpu.alloc(bytes, false);
            copy.copy_from(self);
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
        let mut open = locked(&OPEN);
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
        ambient::now().device
    }

    pub(crate) fn device(self) -> Device {
        self.context().device
    }

    /// Its multiprocessors.
    pub(crate) fn multiprocessors(self) -> usize {
        self.context().backend.multiprocessors()
    }

    /// See [`Queue::tensor_map`].
    pub(crate) fn tensor_map(
        self,
        x: &Tensor,
        dims: [usize; 3],
        lines: u32,
    ) -> std::result::Result<TensorMap, String> {
        let dims = dims.map(|length| length as u64);
        let from = x.held().expect("a tensor of this device").address();
        let words = self.context().backend.tensor_map(from, x.dtype(), dims, lines)?;
        Ok(TensorMap { words, dims })
    }

    fn check<T>(self, done: std::result::Result<T, String>) -> T {
        done.unwrap_or_else(|e| fail(format!("{}: {e}", self.device())))
    }

    /// Memory that work writes, or bytes from the host if `constant`.
    fn alloc(self, bytes: usize, constant: bool) -> Held {
        let home = replay::Home::now(constant);
        let address = self.check(home.alloc(&*self.context().backend, bytes));
        self.hold(Memory { gpu: self, address, bytes, home })
    }

    /// Memory with these bytes.
    pub(crate) fn upload(self, bytes: &[u8]) -> Held {
        replay::uploaded(bytes);
        let held = self.alloc(bytes.len(), true);
        held.overwrite(bytes);
        held
    }

    /// Records in device memory for a kernel that works on many tensors. They may hold addresses, which differ from run
    /// to run: `same` is what must not.
    pub(crate) fn table<T: bytemuck::NoUninit>(self, records: &[T], same: &[u8]) -> Table {
        let bytes: &[u8] = bytemuck::cast_slice(records);
        replay::uploaded(same);
        let held = self.alloc(bytes.len(), true);
        held.overwrite(bytes);
        Table::new(held, std::mem::size_of::<T>())
    }

    /// Room for a tensor that kernels will write.
    pub(crate) fn empty(self, shape: impl Into<Shape>, dtype: DType) -> Output {
        let shape = shape.into();
        Output { held: self.alloc(shape.len() * dtype.size(), false), shape, dtype }
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
        replay::launched(kernel, grid, args);
        let done = self.context().backend.launch(kernel, grid, args);
        self.check(done.map_err(|e| format!("kernel {}: {e}", kernel.symbol)));
    }
}

#[allow(unreachable_patterns)]
fn backend(device: Device) -> std::result::Result<Box<dyn Backend>, String> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(n) => driver::open(n),
        #[cfg(feature = "emulate")]
        Device::Cuda(n) if emulator::stands_in() => emulator::open(n),
        #[cfg(feature = "emulate")]
        Device::Emulated => Ok(Box::new(emulator::Emulator)),
        // Written so that a build without the feature says what has it.
        Device::Cuda(_) => {
            Err("this executable was built without CUDA; `cargo build --release --features cuda` has it"
                .into())
        }
        Device::Emulated => Err("this executable was built without the emulator; \
             `cargo build --release --features emulate` has it"
            .into()),
        Device::Cpu => unreachable!("the CPU needs no backend"),
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

    /// Where it lies, for a [`Table`].
    pub(crate) fn address(&self) -> u64 {
        self.held.address()
    }

    /// The memory of a tensor, for kernels that change it in place.
    pub(crate) fn of(held: &mut Held, shape: Shape, dtype: DType) -> Self {
        held.make_unique();
        replay::changes(held);
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
        assert!(error.to_string().starts_with("cuda:0: this executable was built without CUDA"), "{error}");
    }
}
