//! The CUDA driver, found at run time: the one file that knows cudarc.
//!
//! One stream per device. Launches are queued without waiting; a fault inside a kernel shows at the next copy to the
//! host, which then names what was queued since the last one. `SURPRISAL_CUDA_SYNC=1` waits after every launch, so
//! that the message names the kernel itself.

use super::pool::Pool;
use super::{Arg, Backend, Grid, Kernel};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Mutex, MutexGuard};

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// What nvcc 13.0 makes is understood by drivers from this version on.
const NEEDED: i32 = 13_000;
/// Kernels that a fault message names.
const REMEMBERED: usize = 12;

struct Driver {
    context: sys::CUcontext,
    stream: sys::CUstream,
    pool: Mutex<Pool>,
    functions: Mutex<HashMap<Kernel, sys::CUfunction>>,
    modules: Mutex<HashMap<&'static str, sys::CUmodule>>,
    /// Kernels queued since the last wait, newest last.
    queued: Mutex<Vec<&'static str>>,
    synchronous: bool,
}

// SAFETY: contexts, streams, modules and functions are handles that the driver lets any thread use; each call makes
// the context current first.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}

fn told(error: DriverError) -> String {
    let name = error.error_name().ok().and_then(|s| s.to_str().ok()).unwrap_or("unknown error");
    let text = error.error_string().ok().and_then(|s| s.to_str().ok()).unwrap_or("no description");
    format!("{text} ({name})")
}

/// Opens device `index`.
pub(super) fn open(index: usize) -> Result<Box<dyn Backend>, String> {
    // SAFETY: only asks whether the library is there. (cudarc panics later where it is not.)
    if !unsafe { sys::is_culib_present() } {
        return Err("there is no NVIDIA driver (libcuda.so.1) on this machine".into());
    }
    if FATBINS.is_empty() {
        return Err("this executable was built without kernels (SURPRISAL_NO_NVCC)".into());
    }
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(told)?;
    if version < NEEDED {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return Err(format!(
            "the driver is made for CUDA {major}.{minor}; 13.0 (driver 580) or newer is needed"
        ));
    }
    result::init().map_err(told)?;
    let count = result::device::get_count().map_err(told)?;
    if index >= count as usize {
        return Err(match count {
            0 => "the driver sees no GPU".into(),
            1 => "there is one GPU, cuda:0".into(),
            n => format!("there are {n} GPUs, cuda:0 to cuda:{}", n - 1),
        });
    }
    let device = result::device::get(index as i32).map_err(told)?;
    // SAFETY: the device exists; the primary context is kept for the life of the process.
    let context = unsafe { result::primary_ctx::retain(device) }.map_err(told)?;
    // SAFETY: the context was just retained.
    unsafe { result::ctx::set_current(context) }.map_err(told)?;
    let stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(told)?;
    Ok(Box::new(Driver {
        context,
        stream,
        pool: Mutex::default(),
        functions: Mutex::default(),
        modules: Mutex::default(),
        queued: Mutex::default(),
        synchronous: std::env::var_os("SURPRISAL_CUDA_SYNC").is_some_and(|v| v != "0"),
    }))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Driver {
    fn enter(&self) -> Result<(), String> {
        // SAFETY: the context lives as long as the process.
        unsafe { result::ctx::set_current(self.context) }.map_err(told)
    }

    /// Waits for everything queued.
    fn wait(&self) -> Result<(), String> {
        // SAFETY: the stream lives as long as the process.
        let done = unsafe { result::stream::synchronize(self.stream) };
        let queued = std::mem::take(&mut *locked(&self.queued));
        done.map_err(|e| {
            let last = queued.iter().rev().take(REMEMBERED).rev().copied().collect::<Vec<_>>().join(", ");
            let hint = if self.synchronous { "" } else { "; SURPRISAL_CUDA_SYNC=1 finds the one" };
            format!("{} in or after one of the kernels {last}{hint}", told(e))
        })
    }

    fn function(&self, kernel: Kernel) -> Result<sys::CUfunction, String> {
        let mut functions = locked(&self.functions);
        if let Some(&function) = functions.get(&kernel) {
            return Ok(function);
        }
        let mut modules = locked(&self.modules);
        let module = match modules.get(kernel.file) {
            Some(&module) => module,
            None => {
                let image = FATBINS.iter().find(|(stem, _)| *stem == kernel.file);
                let (_, image) = image.ok_or_else(|| format!("kernels/{}.cu was not built", kernel.file))?;
                // SAFETY: the image is a complete fatbin made by nvcc.
                let module = unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(told)?;
                modules.insert(kernel.file, module);
                module
            }
        };
        let name = CString::new(kernel.symbol).expect("a symbol has no zero byte");
        // SAFETY: the module is loaded and never unloaded.
        let function = unsafe { result::module::get_function(module, name) }.map_err(told)?;
        functions.insert(kernel, function);
        Ok(function)
    }

    fn try_alloc(&self, bytes: usize) -> Result<u64, DriverError> {
        // SAFETY: the memory is owned by the caller until `free`.
        unsafe { result::malloc_sync(bytes) }
    }

    /// Gives kept memory back to the device.
    fn trim(&self) {
        let _ = self.wait();
        for address in locked(&self.pool).drain() {
            // SAFETY: a kept block is owned by the pool, and nothing queued uses it any more.
            let _ = unsafe { result::free_sync(address) };
        }
    }
}

impl Backend for Driver {
    fn alloc(&self, bytes: usize) -> Result<u64, String> {
        self.enter()?;
        if let Some(address) = locked(&self.pool).take(bytes) {
            return Ok(address);
        }
        let rounded = Pool::rounded(bytes);
        self.try_alloc(rounded)
            .or_else(|_| {
                self.trim();
                self.try_alloc(rounded)
            })
            .map_err(|e| match result::mem_get_info() {
                Ok((free, total)) if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                    let mib = |bytes: usize| bytes.div_ceil(1 << 20);
                    format!(
                        "out of memory: {} MiB asked for, {} of {} MiB free (other processes included); \
                         a smaller batch needs less",
                        mib(rounded),
                        mib(free),
                        mib(total)
                    )
                }
                _ => told(e),
            })
    }

    fn free(&self, address: u64, bytes: usize) {
        locked(&self.pool).keep(address, bytes);
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<(), String> {
        self.enter()?;
        // SAFETY: `to` holds at least as many bytes; pageable memory is staged before the call returns.
        unsafe { result::memcpy_htod_async(to, from, self.stream) }.map_err(told)
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<(), String> {
        self.enter()?;
        // SAFETY: `from` holds at least as many bytes, and the wait below ends the copy.
        let queued = unsafe { result::memcpy_dtoh_async(to, from, self.stream) };
        self.wait()?;
        queued.map_err(told)
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), String> {
        self.enter()?;
        // SAFETY: both hold at least `bytes` bytes; the stream orders the copy before any reuse.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) }.map_err(told)
    }

    fn launch(&self, kernel: Kernel, grid: Grid, args: &[&dyn Arg]) -> Result<(), String> {
        self.enter()?;
        let function = self.function(kernel)?;
        if grid.shared > 48 * 1024 {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is loaded.
            unsafe { result::function::set_function_attribute(function, attribute, grid.shared as i32) }
                .map_err(told)?;
        }
        let mut addresses: Vec<_> = args.iter().map(|a| a.address().cast_mut()).collect();
        let ([bx, by, bz], [tx, ty, tz]) = (grid.blocks, grid.threads);
        // SAFETY: the driver copies the arguments before it returns. The emulated tests prove that op files pass what
        // the kernel declares; buffers outlive the launch because the stream orders their reuse.
        unsafe {
            result::launch_kernel(
                function,
                (bx, by, bz),
                (tx, ty, tz),
                grid.shared,
                self.stream,
                &mut addresses,
            )
        }
        .map_err(told)?;
        locked(&self.queued).push(kernel.symbol);
        if self.synchronous { self.wait() } else { Ok(()) }
    }
}
