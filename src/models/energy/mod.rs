//! Energy-based models: p(x) = e^{−E(x)} / Z with a network E and a constant Z that nobody knows exactly.

pub mod ebm;
pub mod nce;
mod net;
mod partition;
mod rows;
pub mod score_matching;

pub use net::{EnergyNet, NetKind, Weights};
pub use partition::{Annealing, Partition, sum};
