//! Real NVP on tables (Dinh, Sohl-Dickstein & Bengio 2017).
//!
//! `layers` times: the second half of the columns is scaled and shifted by a relu network of the first half
//! ([`Coupled`], scale e^(2 tanh(s / 2))), then an actnorm that starts from the data, or a batch norm, and the columns
//! change places. log p(x) is exact; standardisation, noise and the base are those of the flows on tables.

use super::table::{Mixing, Norm, Sizes, TableFlow};
use crate::bijections::{Bijection, Coupled, Elementwise};
use crate::error::{Error, ErrorKind, Result};
use crate::models::ModelInfo;
use crate::random::Philox;
use crate::tensor::DType;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub static REALNVP: ModelInfo = ModelInfo {
    name: "realnvp",
    family: "flow",
    summary: "affine couplings on tables (Dinh et al. 2017)",
    objective: "surprisal of the rows with training noise, nats",
    reproduce: "surprisal adbench FOLDER --models realnvp --seeds 1 --set train.steps=400: mean AUROC .818 \
                over 21 tables, one seed (benches/results/tables.md)",
    presets: &[("realnvp_table", TABLE)],
    tiny: &["shape=[2]", "layers=2", "hidden=[8]"],
    build: |config, rng| {
        let config =
            Config::deserialize(config).map_err(|e| Error::new(ErrorKind::Usage, format!("realnvp: {e}")))?;
        Ok(Box::new(build(config, DType::F32, rng)?))
    },
};

const TABLE: &str = r#"
shape = [8]
layers = 8
hidden = [64, 64]
mixing = "permutation"
norm = "actnorm"
noise = 0.1

[train]
steps = 1500
batch = 256
lr = 2e-3
schedule = { curve = "cosine" }
patience = 40
clip = 5.0
eval_batch = 1024
"#;

/// The complete configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// D, the number of columns, at least 2.
    pub shape: [usize; 1],
    /// Couplings.
    pub layers: usize,
    /// Units of the hidden layers of each network.
    pub hidden: Vec<usize>,
    /// How the columns change places between layers.
    pub mixing: Mixing,
    /// What keeps the columns well scaled between layers.
    #[serde(default)]
    pub norm: Norm,
    /// Deviation of the training noise, in standardised units.
    pub noise: f64,
}

fn build(config: Config, dtype: DType, rng: &mut Philox) -> Result<TableFlow> {
    let Config { shape: [columns], layers, ref hidden, noise, norm, mixing } = config;
    let sizes = Sizes { model: "realnvp", columns, layers, hidden, per: 2, noise };
    sizes.check()?;
    if columns < 2 {
        let message = format!("realnvp: shape [{columns}]; a coupling needs 2 columns");
        return Err(Error::new(ErrorKind::Usage, message));
    }
    Ok(TableFlow::new(&sizes, norm, &config, dtype, rng, |init| {
        let mut parts: Vec<Box<dyn Bijection>> = Vec::new();
        for k in 0..layers {
            let mut init = init.sub(format_args!("layers.{k}"));
            parts.push(Box::new(Coupled::new(&mut init, columns, hidden, Elementwise::Affine)));
            parts.push(norm.build(&mut init, columns));
            parts.extend(mixing.build(&mut init, columns));
        }
        parts
    }))
}
