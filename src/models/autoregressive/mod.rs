//! Autoregressive models: log p(x) = Σ log p(x_i | x_<i), exact and per position.

pub mod causal_cnn;
mod incremental;
pub mod made;
pub mod pixelcnn;
pub mod pixelcnn_pp;
mod sequence;
pub mod transformer;
mod walk;
