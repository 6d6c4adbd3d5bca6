//! The CUDA driver, found at run time: the one file that knows cudarc.
//!
//! One stream per device, which any thread may use; while one records, the others wait. Launches are queued without
//! waiting; a fault inside a kernel shows at the next copy to the host, which then names what was queued since the last
//! one. `SURPRISAL_CUDA_SYNC=1` waits after every launch, so that the message names the kernel itself.

use super::gate::{Gate, Pass};
use super::graph::Executable;
use super::pool::Pool;
use super::staging::Staging;
use super::{Arg, Backend, Graph, Grid, Kernel, Queue, found, locked};
use crate::tensor::DType;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::collections::{HashMap, VecDeque};
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// The kernels. Evaluated where code is generated: `cargo check`, clippy and doc work without nvcc, a build says what is
/// missing.
struct Built<const COMPLETE: bool>;

impl<const COMPLETE: bool> Built<COMPLETE> {
    const FATBINS: &[(&str, &[u8])] = match MISSING {
        Some(why) if !COMPLETE => panic!("{}", why),
        _ => FATBINS,
    };
}

/// Kernels that a fault message names.
const REMEMBERED: usize = 12;

struct Driver {
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// For copies from the host while the other one is recorded.
    aside: sys::CUstream,
    recording: AtomicBool,
    staging: Mutex<Staging>,
    pool: Mutex<Pool>,
    /// Bytes that the device gave, those in the pool included.
    held: AtomicUsize,
    functions: Mutex<HashMap<Kernel, sys::CUfunction>>,
    modules: Mutex<HashMap<&'static str, sys::CUmodule>>,
    recent: Recent,
    gate: Arc<Gate>,
    synchronous: bool,
    multiprocessors: usize,
    /// The first number of the compute capability.
    generation: i32,
}

// SAFETY: contexts, streams, modules and functions are handles that the driver lets any thread use; each call makes
// the context current first.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}

/// What the driver says about an error.
pub(super) fn told(error: DriverError) -> String {
    let name = error.error_name().ok().and_then(|s| s.to_str().ok()).unwrap_or("unknown error");
    let text = error.error_string().ok().and_then(|s| s.to_str().ok()).unwrap_or("no description");
    format!("{text} ({name})")
}

/// Opens device `index`.
pub(super) fn open(index: usize) -> Result<Box<dyn Backend>, String> {
    // SAFETY: only asks whether the library is there. (cudarc panics later where it is not.)
    if !unsafe { sys::is_culib_present() } {
        return found::check_driver(None).map(|()| unreachable!("a driver is needed"));
    }
    if Built::<{ MISSING.is_none() }>::FATBINS.is_empty() {
        return Err("this executable was built without kernels (SURPRISAL_NO_NVCC)".into());
    }
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(told)?;
    found::check_driver(Some(version))?;
    result::init().map_err(told)?;
    found::check_index(index, result::device::get_count().map_err(told)?)?;
    let device = result::device::get(index as i32).map_err(told)?;
    // SAFETY: the device exists; the primary context is kept for the life of the process.
    let context = unsafe { result::primary_ctx::retain(device) }.map_err(|e| match e.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => found::none_left(),
        _ => told(e),
    })?;
    // SAFETY: the context was just retained.
    unsafe { result::ctx::set_current(context) }.map_err(told)?;
    // SAFETY: the device exists.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) }.map_err(told);
    let multiprocessors = attribute(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let generation = attribute(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let stream = || result::stream::create(result::stream::StreamKind::NonBlocking).map_err(told);
    Ok(Box::new(Driver {
        context,
        stream: stream()?,
        aside: stream()?,
        recording: AtomicBool::new(false),
        staging: Mutex::default(),
        pool: Mutex::default(),
        held: AtomicUsize::new(0),
        functions: Mutex::default(),
        modules: Mutex::default(),
        recent: Recent::default(),
        gate: Arc::default(),
        synchronous: std::env::var_os("SURPRISAL_CUDA_SYNC").is_some_and(|v| v != "0"),
        multiprocessors: multiprocessors as usize,
        generation,
    }))
}

/// The last kernels queued since the last wait, oldest first: what a message about a fault names.
#[derive(Clone, Default)]
pub(super) struct Recent(Arc<Mutex<VecDeque<&'static str>>>);

impl Recent {
    pub(super) fn add(&self, symbol: &'static str) {
        let mut kept = locked(&self.0);
        if kept.len() == REMEMBERED {
            kept.pop_front();
        }
        kept.push_back(symbol);
    }

    pub(super) fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut *locked(&self.0)).into()
    }
}

impl Driver {
    /// Begins to record, behind the closed gate.
    fn begin_alone(&self) -> Result<(), String> {
        let _pass = self.enter()?;
        self.wait()?;
        // Relaxed: memory is asked for while recording.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives as long as the process.
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(told)?;
        self.recording.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Makes this thread one that asks; it waits while another one records.
    fn enter(&self) -> Result<Pass<'_>, String> {
        let pass = self.gate.pass();
        // SAFETY: the context lives as long as the process.
        unsafe { result::ctx::set_current(self.context) }.map_err(told)?;
        Ok(pass)
    }

    /// Waits for everything queued.
    fn wait(&self) -> Result<(), String> {
        // SAFETY: the stream lives as long as the process.
        let done = unsafe { result::stream::synchronize(self.stream) };
        let recent = self.recent.take();
        done.map_err(|e| {
            let last = recent.join(", ");
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
        let address = unsafe { result::malloc_sync(bytes) }?;
        self.held.fetch_add(bytes, Ordering::Relaxed);
        Ok(address)
    }
}

impl Backend for Driver {
    fn alloc(&self, bytes: usize) -> Result<u64, String> {
        let _pass = self.enter()?;
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
                    found::no_memory(rounded, free, total, self.held.load(Ordering::Relaxed))
                }
                _ => told(e),
            })
    }

    fn free(&self, address: u64, bytes: usize) {
        locked(&self.pool).keep(address, bytes);
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<(), String> {
        let _pass = self.enter()?;
        if !self.recording.load(Ordering::Relaxed) {
            return locked(&self.staging).upload(to, from, self.stream).map_err(told);
        }
        // A constant of recorded work: there before the first replay.
        // SAFETY: `to` holds at least as many bytes, the stream lives, and the wait ends the copy.
        unsafe {
            let queued = result::memcpy_htod_async(to, from, self.aside);
            result::stream::synchronize(self.aside).and(queued).map_err(told)
        }
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<(), String> {
        let _pass = self.enter()?;
        if to.is_empty() {
            return self.wait();
        }
        // SAFETY: `from` holds at least as many bytes, and the wait below ends the copy.
        let queued = unsafe { result::memcpy_dtoh_async(to, from, self.stream) };
        self.wait()?;
        queued.map_err(told)
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), String> {
        let _pass = self.enter()?;
        // SAFETY: both hold at least `bytes` bytes; the stream orders the copy before any reuse.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) }.map_err(told)
    }

    fn trim(&self) {
        if self.recording.load(Ordering::Relaxed) {
            return;
        }
        let _ = self.wait();
        for (address, bytes) in locked(&self.pool).drain() {
            // SAFETY: a kept block is owned by the pool, and nothing queued uses it any more.
            let _ = unsafe { result::free_sync(address) };
            self.held.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl Queue for Driver {
    fn launch(&self, kernel: Kernel, grid: Grid, args: &[&dyn Arg]) -> Result<(), String> {
        let _pass = self.enter()?;
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
        self.recent.add(kernel.symbol);
        let waits = self.synchronous && !self.recording.load(Ordering::Relaxed);
        if waits { self.wait() } else { Ok(()) }
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    fn tensor_map(&self, from: u64, dtype: DType, dims: [u64; 3], lines: u32) -> Result<[u64; 16], String> {
        if self.generation != 9 {
            return Err(format!("it needs compute capability 9.0, this is {}.x", self.generation));
        }
        let _pass = self.enter()?;
        let kind = match dtype {
            DType::BF16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            _ => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        };
        let strides = [dims[0], dims[0] * dims[1]].map(|elements| 2 * elements);
        let (boxes, steps) = ([64, lines, 1], [1u32; 3]);
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: all pointers are to arrays of the lengths that rank 3 asks for; the tensor is not looked at.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                kind,
                3,
                from as *mut std::ffi::c_void,
                dims.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(told)?;
        Ok(map.opaque)
    }

    fn begin(&self) -> Result<(), String> {
        self.gate.close();
        let begun = self.begin_alone();
        if begun.is_err() {
            self.gate.open();
        }
        begun
    }

    fn end(&self) -> Result<Box<dyn Graph>, String> {
        self.recording.store(false, Ordering::Relaxed);
        let recorded = self.enter().and_then(|_pass| {
            Executable::end(self.context, self.stream, &self.recent, &self.gate).map_err(told)
        });
        self.gate.open();
        Ok(Box::new(recorded?))
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_last_kernels() {
        let recent = Recent::default();
        (0..REMEMBERED + 3).for_each(|i| recent.add(if i % 2 == 0 { "even" } else { "odd" }));
        assert_eq!(recent.take().len(), REMEMBERED);
        assert!(recent.take().is_empty());
    }
}
