//! Instruction sets, found once at run time, and [`vectorize`]: the same Rust loop compiled for each of them.

use crate::tensor::{DType, Plain};
use std::sync::OnceLock;

/// The instruction sets that the CPU kernels are compiled for, best last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Whatever the target guarantees.
    Portable,
    /// 128-bit NEON (aarch64).
    Neon,
    /// 256-bit AVX2 with FMA.
    Avx2,
    /// 512-bit AVX-512 (F, BW, DQ, VL).
    Avx512,
    /// AVX-512 with `vdpbf16ps`.
    Avx512Bf16,
}

/// The best instruction set of this machine. `SURPRISAL_ISA=portable|avx2|avx512` lowers it (for tests).
pub fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        let best = detect();
        match std::env::var("SURPRISAL_ISA").as_deref() {
            Ok("portable") => Isa::Portable,
            Ok("avx2") => best.min(Isa::Avx2),
            Ok("avx512") => best.min(Isa::Avx512),
            _ => best,
        }
    })
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("f16c");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (avx2, avx512, is_x86_feature_detected!("avx512bf16")) {
        (_, true, true) => Isa::Avx512Bf16,
        (_, true, false) => Isa::Avx512,
        (true, ..) => Isa::Avx2,
        _ => Isa::Portable,
    }
}

#[cfg(target_arch = "aarch64")]
fn detect() -> Isa {
    Isa::Neon
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detect() -> Isa {
    Isa::Portable
}

/// Runs `f` in a copy compiled for the best instruction set, so that its plain loops vectorise.
///
/// Write the argument as `#[inline(always)] || ...` and keep everything it calls `#[inline(always)]`: only
/// code that is inlined here is compiled with the wide instructions.
#[inline(always)]
pub fn vectorize<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    match isa() {
        // SAFETY: `isa` found these features on this machine.
        Isa::Avx512 | Isa::Avx512Bf16 => return unsafe { with_avx512(f) },
        // SAFETY: as above.
        Isa::Avx2 => return unsafe { with_avx2(f) },
        _ => {}
    }
    f()
}

/// [`vectorize`] for loops over `T`: only f32 gets the wide copies, because f64 serves gradient checks and
/// every copy costs compile time.
#[inline(always)]
pub fn vectorize_for<T: Plain, R>(f: impl FnOnce() -> R) -> R {
    if const { matches!(T::DTYPE, DType::F32) } { vectorize(f) } else { f() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi1,bmi2,f16c")]
fn with_avx512<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,f16c")]
fn with_avx2<R>(f: impl FnOnce() -> R) -> R {
    f()
}
