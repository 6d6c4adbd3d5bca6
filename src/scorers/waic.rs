//! WAIC: the mean log-likelihood over an ensemble, less its variance.
//!
//! ```text
//! score(x) = −( E_θ[log p(x | θ)] − Var_θ[log p(x | θ)] )        nats, θ over the M members
//! ```
//! Where the members have seen no data they disagree, and the variance marks it. Choi, Jang & Alemi 2018, "WAIC, but
//! why? Generative ensembles for robust anomaly detection", arXiv:1810.01392 (after Watanabe 2010). The variance is the
//! unbiased one. The members' spread grows with the dimension, and with M = 5 it is a noisy number; Ren et al. 2019
//! measured an AUROC of .221 on FashionMNIST against MNIST with it.

use super::ensemble::per_row;
use super::{NORMALISED, Need, Plain, ScorerInfo};

/// The registry's line.
pub static WAIC: ScorerInfo = ScorerInfo {
    name: "waic",
    family: "ensemble",
    summary: "mean surprisal of an ensemble plus the variance over its members (Choi et al. 2018)",
    unit: "nats",
    accepts: NORMALISED,
    needs: &[Need::Members],
    uses: &[],
    build: || {
        Plain::boxed(&WAIC, |evidence| {
            Ok(per_row(evidence, |nats| {
                let n = nats.len() as f64;
                let mean = nats.iter().sum::<f64>() / n;
                nats.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / (n - 1.0) - mean
            }))
        })
    },
};
