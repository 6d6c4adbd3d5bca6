//! Normalising flows: log p(x) = log p_base(f(x)) + log |det df/dx|.

pub mod glow;
