//! Latent-variable models: exact likelihoods against quadrature and sampling, recovery, degenerate data, bounds.

#[path = "latent/gmm.rs"]
mod gmm;
#[path = "latent/hmm.rs"]
mod hmm;
#[path = "latent/hvae.rs"]
mod hvae;
#[path = "latent/smoothing.rs"]
mod smoothing;
#[path = "latent/vae.rs"]
mod vae;
#[path = "latent/vqvae.rs"]
mod vqvae;
