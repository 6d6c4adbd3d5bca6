//! Energy-based models: p(x) = e^{−E(x)} / Z with a network E and a constant Z that nobody knows exactly.

pub mod ebm;
mod net;
mod partition;

pub use net::{EnergyNet, Weights};
pub use partition::{Annealing, Partition, sum};
