//! Masked autoregressive flow on tables (Papamakarios, Pavlakou & Murray 2017), and its inverse (IAF, Kingma et al.
//! 2016).
//!
//! `layers` times: each column shifted and scaled by a function of the columns before, a MADE ([`Autoregressive`]), then
//! an actnorm that starts from the data and the columns backwards. `direction = "forward"` (MAF) has fast densities and
//! samples column by column; `"inverse"` (IAF) the reverse, so that training takes D passes per layer. log p(x) is
//! exact; standardisation, noise and the base are those of the flows on tables.

use super::table::{Mixing, Norm, Sizes, TableFlow};
use crate::bijections::{Autoregressive, Bijection, Elementwise, Inverse};
use crate::error::{Error, ErrorKind, Result};
use crate::models::ModelInfo;
use crate::random::Philox;
use crate::tensor::DType;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub static MAF: ModelInfo = ModelInfo {
    name: "maf",
    family: "flow",
    summary: "masked autoregressive flow on tables, or its inverse (Papamakarios et al. 2017; Kingma et al. 2016)",
    objective: "surprisal of the rows with training noise, nats",
    reproduce: "surprisal adbench FOLDER --models maf --seeds 1 --set train.steps=400: mean AUROC .827 \
                over 21 tables, one seed (benches/results/tables.md)",
    presets: &[("maf_table", TABLE), ("iaf_table", IAF)],
    tiny: &["shape=[2]", "layers=2", "hidden=[8]"],
    build: |config, rng| {
        let config =
            Config::deserialize(config).map_err(|e| Error::new(ErrorKind::Usage, format!("maf: {e}")))?;
        Ok(Box::new(build(config, DType::F32, rng)?))
    },
};

const TABLE: &str = r#"
shape = [8]
direction = "forward"
layers = 5
hidden = [64, 64]
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

const IAF: &str = r#"
shape = [8]
direction = "inverse"
layers = 4
hidden = [64]
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

/// Which way is fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Densities (MAF).
    Forward,
    /// Samples (IAF).
    Inverse,
}

/// The complete configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// D, the number of columns.
    pub shape: [usize; 1],
    /// Which way is fast.
    pub direction: Direction,
    /// Autoregressive layers.
    pub layers: usize,
    /// Units of the hidden layers of each network.
    pub hidden: Vec<usize>,
    /// What keeps the columns well scaled between layers.
    #[serde(default)]
    pub norm: Norm,
    /// Deviation of the training noise, in standardised units.
    pub noise: f64,
}

fn build(config: Config, dtype: DType, rng: &mut Philox) -> Result<TableFlow> {
    let Config { shape: [columns], layers, ref hidden, noise, norm, direction } = config;
    let kind = Elementwise::Affine;
    let sizes = Sizes { model: "maf", columns, layers, hidden, per: kind.params(), noise };
    sizes.check()?;
    Ok(TableFlow::new(&sizes, norm, &config, dtype, rng, |init| {
        let mut parts: Vec<Box<dyn Bijection>> = Vec::new();
        for k in 0..layers {
            let mut init = init.sub(format_args!("layers.{k}"));
            let layer = Box::new(Autoregressive::new(&mut init, columns, hidden, kind));
            parts.push(match direction {
                Direction::Forward => layer,
                Direction::Inverse => Box::new(Inverse(layer)),
            });
            parts.push(norm.build(&mut init, columns));
            parts.extend(Mixing::Reverse.build(&mut init, columns));
        }
        parts
    }))
}
