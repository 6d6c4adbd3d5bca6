//! Normalising flows: log p(x) = log p_base(f(x)) + log |det df/dx|.

pub mod ffjord;
pub mod flowpp;
pub mod glow;
pub mod idf;
pub mod maf;
pub mod nsf;
pub mod realnvp;
pub mod residual_flow;
mod table;

pub use table::Mixing;
