//! Operations: one file each, holding formula, checks, composite, CPU code, gradient and cases.

pub mod binary;
