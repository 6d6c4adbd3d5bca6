//! Autoregressive models: log p(x) = Σ log p(x_i | x_<i), exact and per position.

mod incremental;
pub mod pixelcnn;
pub mod pixelcnn_pp;
