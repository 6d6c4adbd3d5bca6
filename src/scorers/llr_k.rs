//! LLR^{>k}: what the lowest latent layers of a hierarchical model add to the likelihood.
//!
//! ```text
//! score(x) = L(x) − L^{>k}(x)        nats per example
//! ```
//! L^{>k} is the bound with the lowest k latent layers drawn from their conditional prior, so that only the upper,
//! semantic layers know x; k is the number of layers that keep the image's grid, one where there are none. Where low-level
//! detail alone carries the likelihood, the difference is large. Havtorn et al. 2021, "Hierarchical VAEs know what they
//! don't know", arXiv:2102.08248. The model computes both bounds ([`crate::models::Statistics`]).

use super::{ANY_KIND, Need, Plain, ScorerInfo};
use crate::models::Statistic;

/// The registry's line.
pub static LLR_K: ScorerInfo = ScorerInfo {
    name: "llr_k",
    family: "latent",
    summary: "likelihood ratio of a hierarchical VAE with and without its lowest latents, in nats (Havtorn et al. 2021)",
    unit: "nats",
    accepts: ANY_KIND,
    needs: &[Need::Statistic(Statistic::LlrK)],
    uses: &[],
    build: || Plain::boxed(&LLR_K, |evidence| Ok(evidence.statistics[&Statistic::LlrK][0].clone())),
};
