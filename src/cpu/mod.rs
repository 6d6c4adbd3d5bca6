//! The CPU backend: memory, threads, instruction sets, matrix products. The only module with SIMD `unsafe`.

pub mod buffer;
pub mod cholesky;
pub mod conv;
pub(crate) mod field;
pub mod gemm;
pub mod math;
pub mod optim;
pub mod par;
pub mod simd;
