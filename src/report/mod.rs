//! Reports: metrics, result rows, terminal table, the HTML page.

pub mod metrics;
pub mod png;
mod rows;

pub use rows::{Row, table, warnings};

/// −log₂ p(x) per dimension from log p(x) in nats: `−nats / (dims · ln 2)`.
pub fn bits_per_dim(nats: f64, dims: usize) -> f64 {
    -nats / (dims as f64 * std::f64::consts::LN_2)
}
