//! Reports: metrics, result rows, the terminal's table, and one self-contained HTML page.

pub mod experiments;
mod figure;
mod finding;
mod heat;
mod html;
pub mod metrics;
mod page;
mod png;
mod rows;
mod svg;

pub use figure::{Axis, Figure, Series};
pub use finding::{Finding, finding};
pub use page::{
    Calibrated, Curve, Difference, FamilyRow, Gallery, Image, Page, Set, Shot, Stretch, Told, WorstRow,
    extremes,
};
pub use rows::{Behind, Row, table, warnings};

/// −log₂ p(x) per dimension from log p(x) in nats: `−nats / (dims · ln 2)`.
pub fn bits_per_dim(nats: f64, dims: usize) -> f64 {
    -nats / (dims as f64 * std::f64::consts::LN_2)
}
