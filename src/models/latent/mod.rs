//! Latent-variable models: log p(x) = log ∫ p(x | z) p(z) dz, in closed form for mixtures and hidden Markov
//! models, as a bound or an estimate by sampling for the variational ones.

mod gaussian;
pub mod gmm;
pub mod hmm;
pub mod hvae;
pub(crate) mod kernel;
pub mod kmeans;
pub mod likelihood;
mod network;
pub mod parzen;
pub mod posterior;
mod scaling;
pub mod vae;
pub mod vqvae;
