//! The CUDA kernels on the CPU: every CUDA thread is a fiber, blocks run one after the other, a launch is over when it
//! returns. Deterministic, a few million threads per second. See `kernels/emulator/cuda_cpu.h`.
//!
//! New memory holds NaN patterns and ends in a canary; launches check their arguments against the kernel's
//! parameters; barriers and warp collectives that threads do not reach together are errors with file and line, and
//! so are accesses that no barrier orders in a build that looks for them (`kernels/emulator/races.h`).

use super::{Arg, Backend, Device, Graph, Grid, Kernel, OUT_OF_MEMORY, Queue, found};
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use std::alloc::{Layout, alloc, dealloc};
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};

unsafe extern "C" {
    fn surprisal_emulator_launch(
        name: *const c_char,
        kinds: *const c_char,
        grid: *const c_uint,
        block: *const c_uint,
        shared: c_uint,
        args: *mut *mut c_void,
        order: u64,
        message: *mut c_char,
        message_len: usize,
    ) -> c_int;
    fn surprisal_emulator_finds_races() -> c_int;
}

/// Whether this build looks for accesses that no barrier orders (`ci/sanitize.sh thread`); a launch that has some fails.
pub fn finds_races() -> bool {
    // SAFETY: returns a constant.
    unsafe { surprisal_emulator_finds_races() != 0 }
}

/// What two blocks of 64 threads write under a kernel of `kernels/emulator/probe.cu`, which does one thing `right`
/// or wrong.
///
/// # Errors
/// [`crate::ErrorKind::Device`] with what the emulator says about the launch.
pub fn probe(symbol: &'static str, right: bool) -> crate::Result<Vec<f64>> {
    Device::Emulated.run(|| {
        let mut y = Tensor::zeros([128], DType::F32);
        let gpu = y.gpu().expect("made on the device");
        let grid = Grid { shared: 256, ..Grid::new(2, 64) };
        gpu.launch(Kernel { file: "probe", symbol }, grid, &[&y.change(), &i32::from(right)]);
        y.to_f64_vec()
    })
}

/// The order in which the threads of a block run between two barriers. No result may depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// By number.
    Forward,
    /// From the last to the first.
    Backward,
    /// A random order drawn from this seed.
    Seed(u64),
}

thread_local! {
    static ORDER: Cell<u64> = const { Cell::new(0) };
    /// Bytes that this thread may still ask for, when that is limited.
    static ROOM: Cell<Option<i64>> = const { Cell::new(None) };
    /// Bytes of device memory in all, then; and those that this thread holds.
    static TOTAL: Cell<usize> = const { Cell::new(0) };
    static HELD: Cell<i64> = const { Cell::new(0) };
    /// The kernel that is to fail, and whether it did.
    static FAULT: RefCell<Option<(String, bool)>> = const { RefCell::new(None) };
    /// Whether launches are counted only.
    static DRY: Cell<bool> = const { Cell::new(false) };
    /// What is being recorded.
    static TAPE: RefCell<Option<Vec<Step>>> = const { RefCell::new(None) };
}

/// From now on this thread may hold `bytes` more bytes of device memory; `None` lifts the limit.
pub fn set_room(bytes: Option<usize>) {
    ROOM.set(bytes.map(|b| b as i64));
    TOTAL.set(bytes.unwrap_or(0) + HELD.get().max(0) as usize);
}

/// Makes the next launch of the kernel `symbol` by this thread fail as a fault inside a kernel does: it is queued,
/// and the next copy to the host reports it.
pub fn set_fault(symbol: &str) {
    FAULT.set(Some((symbol.into(), false)));
}

/// From now on this thread's launches do nothing, or something again: to see what a large piece of work would launch.
pub fn set_dry(dry: bool) {
    DRY.set(dry);
}

/// Sets the order for this thread's launches from now on.
pub fn set_order(order: Order) {
    let code = match order {
        Order::Forward => 0,
        Order::Backward => 1,
        Order::Seed(seed) => seed.max(2),
    };
    ORDER.set(code);
}

/// Tests of programs set this variable to the driver that `--device cuda` is to find, emulated: `none`, or its
/// version (1000 major + 10 minor), its number of GPUs, and optionally bytes of memory: free, and in all.
const STAND_IN: &str = "SURPRISAL_EMULATED_DRIVER";

/// Whether the emulator stands in for CUDA devices.
pub(super) fn stands_in() -> bool {
    std::env::var_os(STAND_IN).is_some()
}

/// The emulator as CUDA device `index` of the driver that is described.
pub(super) fn open(index: usize) -> Result<Box<dyn Backend>, String> {
    let text = std::env::var(STAND_IN).unwrap_or_default();
    let numbers: Vec<usize> = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    found::check_driver(numbers.first().map(|v| *v as i32))?;
    found::check_index(index, numbers.get(1).map_or(0, |n| *n as i32))?;
    if let Some(&[free, total]) = numbers.get(2..4) {
        if free == 0 {
            return Err(found::none_left());
        }
        set_room(Some(free));
        TOTAL.set(total);
    }
    Ok(Box::new(Emulator))
}

pub(super) struct Emulator;

const ALIGN: usize = 256;
const CANARY: [u8; 32] = [0xC5; 32];
const POISON: u8 = 0xFF;

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes + CANARY.len(), ALIGN).expect("a size that fits an isize")
}

impl Backend for Emulator {
    fn alloc(&self, bytes: usize) -> Result<u64, String> {
        if let Some(room) = ROOM.get() {
            if room < bytes as i64 {
                let [free, ours] = [room, HELD.get()].map(|n| n.max(0) as usize);
                return Err(found::no_memory(bytes, free, TOTAL.get(), ours));
            }
            ROOM.set(Some(room - bytes as i64));
        }
        HELD.set(HELD.get() + bytes as i64);
        // SAFETY: the layout is not empty, and exactly its bytes are written.
        unsafe {
            let p = alloc(layout(bytes));
            if p.is_null() {
                return Err(format!("{OUT_OF_MEMORY}: {bytes} bytes asked for"));
            }
            p.write_bytes(POISON, bytes);
            p.add(bytes).copy_from_nonoverlapping(CANARY.as_ptr(), CANARY.len());
            Ok(p as u64)
        }
    }

    fn free(&self, address: u64, bytes: usize) {
        ROOM.set(ROOM.get().map(|room| room + bytes as i64));
        HELD.set(HELD.get() - bytes as i64);
        let p = address as *mut u8;
        // SAFETY: `alloc` made this memory with the same layout, and its canary was written then.
        let intact = unsafe { std::slice::from_raw_parts(p.add(bytes), CANARY.len()) == CANARY };
        // SAFETY: as above, and nobody uses it any more.
        unsafe { dealloc(p, layout(bytes)) };
        assert!(
            intact || std::thread::panicking(),
            "a kernel wrote past the end of device memory of {bytes} bytes"
        );
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<(), String> {
        // SAFETY: the memory behind `to` holds at least `from.len()` bytes and launches are over.
        unsafe { (to as *mut u8).copy_from_nonoverlapping(from.as_ptr(), from.len()) };
        Ok(())
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<(), String> {
        if let Some((symbol, _)) = FAULT.with_borrow_mut(|fault| fault.take_if(|(_, hit)| *hit)) {
            return Err(format!("an injected fault in or after one of the kernels {symbol}"));
        }
        if to.is_empty() {
            return Ok(());
        }
        // SAFETY: the memory behind `from` holds at least `to.len()` initialised bytes.
        unsafe { (from as *const u8).copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), String> {
        if record(|| Step::Copy { to, from, bytes }) {
            return Ok(());
        }
        // SAFETY: both hold at least `bytes` bytes and are different allocations.
        unsafe { (from as *const u8).copy_to_nonoverlapping(to as *mut u8, bytes) };
        Ok(())
    }

    fn trim(&self) {}
}

/// Something recorded.
enum Step {
    Launch { kernel: Kernel, grid: Grid, args: Vec<Kept> },
    Copy { to: u64, from: u64, bytes: usize },
}

/// An argument by value: a number, a struct, an address.
struct Kept {
    kind: String,
    words: Vec<u128>,
}

impl Kept {
    fn of(arg: &dyn Arg) -> Self {
        let kind = arg.kind();
        let bytes = match kind.strip_prefix("struct of ").map(str::parse) {
            Some(Ok(bytes)) => bytes,
            _ if matches!(&*kind, "f32" | "i32" | "u32") => 4,
            _ => 8,
        };
        let mut words = vec![0u128; usize::div_ceil(bytes, 16)];
        // SAFETY: the value behind an argument has the size of its kind; the words have room for it.
        unsafe { arg.address().cast::<u8>().copy_to_nonoverlapping(words.as_mut_ptr().cast(), bytes) };
        Self { kind, words }
    }
}

impl Arg for Kept {
    fn address(&self) -> *const c_void {
        self.words.as_ptr().cast()
    }
    fn kind(&self) -> String {
        self.kind.clone()
    }
    fn same(&self, _: &Philox) -> Cow<'_, [u8]> {
        Cow::Borrowed(&[])
    }
}

/// Adds a step where one is recorded.
fn record(step: impl FnOnce() -> Step) -> bool {
    TAPE.with_borrow_mut(|tape| tape.as_mut().map(|tape| tape.push(step())).is_some())
}

/// A recording, played back launch by launch.
struct Tape(Vec<Step>);

impl Graph for Tape {
    fn launch(&self) -> Result<(), String> {
        self.0.iter().try_for_each(|step| match step {
            Step::Copy { to, from, bytes } => Emulator.copy(*to, *from, *bytes),
            Step::Launch { kernel, grid, args } => {
                let args: Vec<&dyn Arg> = args.iter().map(|a| a as &dyn Arg).collect();
                let done = Emulator.launch(*kernel, *grid, &args);
                done.map_err(|e| format!("replayed kernel {}: {e}", kernel.symbol))
            }
        })
    }
}

impl Queue for Emulator {
    fn begin(&self) -> Result<(), String> {
        TAPE.set(Some(Vec::new()));
        Ok(())
    }

    /// One, so that small products are large enough for the kernels of large ones.
    fn multiprocessors(&self) -> usize {
        1
    }

    fn tensor_map(&self, _: u64, _: DType, _: [u64; 3], _: u32) -> Result<[u64; 16], String> {
        Err("it is not emulated".into())
    }

    fn end(&self) -> Result<Box<dyn Graph>, String> {
        Ok(Box::new(Tape(TAPE.take().unwrap_or_default())))
    }

    fn launch(&self, kernel: Kernel, grid: Grid, args: &[&dyn Arg]) -> Result<(), String> {
        let kept = || args.iter().map(|a| Kept::of(*a)).collect();
        if record(|| Step::Launch { kernel, grid, args: kept() }) {
            return Ok(());
        }
        if DRY.get() {
            return Ok(());
        }
        FAULT.with_borrow_mut(|fault| {
            if let Some((symbol, hit)) = fault {
                *hit |= symbol == kernel.symbol;
            }
        });
        let name = CString::new(kernel.symbol).expect("a symbol has no zero byte");
        let kinds: Vec<String> = args.iter().map(|a| a.kind()).collect();
        let kinds = CString::new(kinds.join(", ")).expect("a kind has no zero byte");
        let mut addresses: Vec<*mut c_void> = args.iter().map(|a| a.address().cast_mut()).collect();
        let mut message = [0u8; 1024];
        // SAFETY: the kernel's parameters are compared with `kinds` before anything runs; the addresses live
        // through the call. Whether a kernel stays inside its tensors is what the canaries and sanitizers check.
        let failed = unsafe {
            surprisal_emulator_launch(
                name.as_ptr(),
                kinds.as_ptr(),
                grid.blocks.as_ptr(),
                grid.threads.as_ptr(),
                grid.shared,
                addresses.as_mut_ptr(),
                ORDER.get(),
                message.as_mut_ptr().cast(),
                message.len(),
            )
        };
        if failed == 0 {
            return Ok(());
        }
        let message = CStr::from_bytes_until_nul(&message).unwrap_or(c"");
        Err(message.to_string_lossy().into_owned())
    }
}
