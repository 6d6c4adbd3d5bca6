//! The arguments and the geometry of a launch.

use super::{Held, Kernel, Output};
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use std::borrow::Cow;
use std::ffi::c_void;

/// Something that can be passed to a kernel.
pub(crate) trait Arg {
    /// Where the value is.
    fn address(&self) -> *const c_void;
    /// What the kernel must declare for it: `f32*` for memory it writes, `const f32*` for memory it reads, `i64`, ...
    #[cfg_attr(
        all(feature = "cuda", not(feature = "emulate")),
        allow(dead_code, reason = "the emulator reads it")
    )]
    fn kind(&self) -> String;
    /// What must be the same for a launch to be the same again: the value; of memory nothing; of a draw its distance
    /// from `base`.
    fn same(&self, base: &Philox) -> Cow<'_, [u8]>;
}

/// The element type in a kernel's signature.
fn element(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f32",
        DType::F64 => "f64",
        DType::BF16 => "bf16",
        DType::F16 => "f16",
        DType::U8 => "u8",
        DType::I32 => "i32",
    }
}

impl Arg for Tensor {
    fn address(&self) -> *const c_void {
        self.held().expect("a launch takes tensors of its device").slot()
    }
    fn kind(&self) -> String {
        format!("const {}*", element(self.dtype()))
    }
    fn same(&self, _: &Philox) -> Cow<'_, [u8]> {
        Cow::Borrowed(&[])
    }
}

impl Arg for Output {
    fn address(&self) -> *const c_void {
        self.held.slot()
    }
    fn kind(&self) -> String {
        format!("{}*", element(self.dtype))
    }
    fn same(&self, _: &Philox) -> Cow<'_, [u8]> {
        Cow::Borrowed(&[])
    }
}

/// A tensor that may be missing: the kernel sees a null pointer. The dtype is what it would have had.
pub(crate) struct Optional<'a>(pub(crate) Option<&'a Tensor>, pub(crate) DType);

/// Memory that a kernel writes if it is there: it sees a null pointer else.
pub(crate) struct Wanted<'a>(pub(crate) Option<&'a Output>, pub(crate) DType);

static NULL: u64 = 0;

impl Arg for Wanted<'_> {
    fn address(&self) -> *const c_void {
        self.0.map_or((&raw const NULL).cast(), Arg::address)
    }
    fn kind(&self) -> String {
        format!("{}*", element(self.1))
    }
    fn same(&self, _: &Philox) -> Cow<'_, [u8]> {
        Cow::Borrowed(if self.0.is_some() { &[1] } else { &[0] })
    }
}

impl Arg for Optional<'_> {
    fn address(&self) -> *const c_void {
        self.0.map_or((&raw const NULL).cast(), Arg::address)
    }
    fn kind(&self) -> String {
        format!("const {}*", element(self.1))
    }
    fn same(&self, _: &Philox) -> Cow<'_, [u8]> {
        Cow::Borrowed(if self.0.is_some() { &[1] } else { &[0] })
    }
}

macro_rules! scalar {
    ($($t:ty),*) => {$(
        impl Arg for $t {
            fn address(&self) -> *const c_void {
                (&raw const *self).cast()
            }
            fn kind(&self) -> String {
                stringify!($t).into()
            }
            fn same(&self, _: &Philox) -> Cow<'_, [u8]> {
                Cow::Borrowed(bytemuck::bytes_of(self))
            }
        }
    )*};
}
scalar!(f32, f64, i32, u32, i64, u64);

/// A tensor or output as plain words of this many bytes, for kernels that move without looking.
pub(crate) struct Words<'a>(pub(crate) &'a dyn Arg, pub(crate) usize);

impl Arg for Words<'_> {
    fn address(&self) -> *const c_void {
        self.0.address()
    }
    fn kind(&self) -> String {
        let reads = if self.0.kind().starts_with("const ") { "const " } else { "" };
        match self.1 {
            16 => format!("{reads}struct of 16*"),
            bytes => format!("{reads}u{}*", 8 * bytes),
        }
    }
    fn same(&self, base: &Philox) -> Cow<'_, [u8]> {
        self.0.same(base)
    }
}

/// A plain struct passed by value, laid out as in the kernel (`#[repr(C)]`).
pub(crate) struct Struct<T: bytemuck::NoUninit>(pub(crate) T);

impl<T: bytemuck::NoUninit> Arg for Struct<T> {
    fn address(&self) -> *const c_void {
        (&raw const self.0).cast()
    }
    fn kind(&self) -> String {
        format!("struct of {}", std::mem::size_of::<T>())
    }
    fn same(&self, _: &Philox) -> Cow<'_, [u8]> {
        Cow::Borrowed(bytemuck::bytes_of(&self.0))
    }
}

/// A tensor as the copy engine of Hopper reads it (`Gpu::tensor_map`), passed by value.
pub(crate) struct TensorMap {
    pub(super) words: [u64; 16],
    pub(super) dims: [u64; 3],
}

impl Arg for TensorMap {
    fn address(&self) -> *const c_void {
        self.words.as_ptr().cast()
    }
    fn kind(&self) -> String {
        "struct of 128".into()
    }
    fn same(&self, _: &Philox) -> Cow<'_, [u8]> {
        Cow::Borrowed(bytemuck::cast_slice(&self.dims))
    }
}

/// Records that a kernel reads, from [`super::Gpu::table`].
pub(crate) struct Table {
    held: Held,
    record: usize,
}

impl Table {
    /// Records of `record` bytes.
    pub(super) fn new(held: Held, record: usize) -> Self {
        Self { held, record }
    }
}

impl Arg for Table {
    fn address(&self) -> *const c_void {
        self.held.slot()
    }
    fn kind(&self) -> String {
        format!("const struct of {}*", self.record)
    }
    fn same(&self, _: &Philox) -> Cow<'_, [u8]> {
        Cow::Borrowed(&[])
    }
}

/// A draw of random numbers for kernels that make them: `Philox` in `kernels/philox.cuh`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
pub(crate) struct Draw {
    seed: u64,
    step: u64,
    draw: u64,
    /// Where the counter is that moves a recorded draw on; 0 for none.
    advance: u64,
}

impl Draw {
    /// The draw at the generator's place.
    pub(crate) fn of(rng: &Philox) -> Self {
        let (seed, step, draw) = rng.state();
        Self { seed, step, draw: draw.into(), advance: super::replay::counter() }
    }
}

impl Arg for Draw {
    fn address(&self) -> *const c_void {
        (&raw const *self).cast()
    }
    fn kind(&self) -> String {
        format!("struct of {}", std::mem::size_of::<Self>())
    }
    fn same(&self, base: &Philox) -> Cow<'_, [u8]> {
        let (seed, step, draw) = base.state();
        let distance =
            [self.seed ^ seed, self.step.wrapping_sub(step), self.draw.wrapping_sub(u64::from(draw))];
        Cow::Owned(bytemuck::cast_slice(&distance).to_vec())
    }
}

/// The three symbols of a kernel that exists for every element type of a device, and a fourth of one for f32 that
/// may round to TF32.
pub(crate) struct Kernels {
    file: &'static str,
    f32: &'static str,
    tf32: &'static str,
    bf16: &'static str,
    f16: &'static str,
}

impl Kernels {
    pub(crate) const fn new(file: &'static str, [f32, bf16, f16]: [&'static str; 3]) -> Self {
        Self { file, f32, tf32: f32, bf16, f16 }
    }

    /// With `tf32` for f32 where TF32 is asked for.
    pub(crate) const fn or_tf32(self, tf32: &'static str) -> Self {
        Self { tf32, ..self }
    }

    /// The kernel for elements of `dtype`, rounded to TF32 if they are f32 and `rounded`.
    #[track_caller]
    pub(crate) fn rounding(&self, dtype: DType, rounded: bool) -> Kernel {
        match dtype {
            DType::F32 if rounded => Kernel { file: self.file, symbol: self.tf32 },
            dtype => self.of(dtype),
        }
    }

    /// The kernel for elements of `dtype`.
    ///
    /// # Panics
    /// For dtypes that devices do not calculate in.
    #[track_caller]
    pub(crate) fn of(&self, dtype: DType) -> Kernel {
        let symbol = match dtype {
            DType::F32 => self.f32,
            DType::BF16 => self.bf16,
            DType::F16 => self.f16,
            other => panic!("{}: devices calculate in f32, bf16 and f16, got {other:?}", self.file),
        };
        Kernel { file: self.file, symbol }
    }
}

/// Blocks, threads per block and bytes of dynamic shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Grid {
    pub(crate) blocks: [u32; 3],
    pub(crate) threads: [u32; 3],
    pub(crate) shared: u32,
}

impl Grid {
    /// This many blocks of this many threads.
    #[track_caller]
    pub(crate) fn new(blocks: usize, threads: u32) -> Self {
        let blocks =
            u32::try_from(blocks).ok().filter(|b| *b <= i32::MAX as u32).expect("fewer than 2^31 blocks");
        Self { blocks: [blocks, 1, 1], threads: [threads, 1, 1], shared: 0 }
    }

    /// One thread for each of `n` pieces of work.
    #[track_caller]
    pub(crate) fn flat(n: usize) -> Self {
        Self::new(n.div_ceil(256), 256)
    }

    /// One thread for each 16-byte pack of `n` elements.
    #[track_caller]
    pub(crate) fn packs(n: usize, dtype: DType) -> Self {
        Self::flat(n.div_ceil(16 / dtype.size()))
    }

    /// Blocks of 128 threads for the 64 x 64 tiles of `m` x `n`, `layers` times (`kernels/gemm.cuh`).
    #[track_caller]
    pub(crate) fn tiles(m: usize, n: usize, layers: usize) -> Self {
        let [x, y, z] = [m.div_ceil(64), n.div_ceil(64), layers].map(|n| n as u32);
        assert!(
            y <= 65_535 && layers <= 65_535,
            "a product of {m} x {n}, {layers} times, is too large for a grid"
        );
        Self { blocks: [x, y, z], threads: [128, 1, 1], shared: 0 }
    }

    /// Nothing to do: a launch of an empty grid is skipped.
    pub(crate) fn is_empty(self) -> bool {
        self.blocks.contains(&0)
    }
}
