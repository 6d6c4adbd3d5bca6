//! Neural spline flows on tables: rational-quadratic splines whose parameters come from the other half of the columns
//! (coupling) or from the columns before (autoregressive) (Durkan, Bekasov, Murray & Papamakarios 2019).
//!
//! `layers` times: a spline layer ([`Autoregressive`] or [`Coupled`]) with a relu network of `hidden` units, then the
//! columns change places ([`Mixing`]). Standardisation, noise and the base are those of the flows on tables: log p(x) is
//! exact. Parameters `layers.k.0.weight`, `layers.k.0.bias`, ...: PyTorch's (out, in) weights are (in, out) here, and
//! the hidden units of a MADE are sorted by their degree.

use super::table::{Mixing, Norm, Sizes, TableFlow};
use crate::bijections::{Autoregressive, Bijection, Coupled, Elementwise};
use crate::error::{Error, ErrorKind, Result};
use crate::models::ModelInfo;
use crate::ops::rq_spline::Spline;
use crate::random::Philox;
use crate::tensor::DType;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub static NSF: ModelInfo = ModelInfo {
    name: "nsf",
    family: "flow",
    summary: "neural spline flow on tables, coupling or autoregressive (Durkan et al. 2019)",
    objective: "surprisal of the rows with training noise, nats",
    reproduce: "surprisal adbench FOLDER --models nsf --seeds 1 --set train.steps=400: mean AUROC .819 \
                over 21 tables, one seed (benches/results/tables.md)",
    presets: &[("nsf_table", TABLE), ("nsf_ar", AR), ("nsf_tab21", TAB21)],
    tiny: &["shape=[2]", "layers=2", "hidden=[8, 6]"],
    build: |config, rng| {
        let config =
            Config::deserialize(config).map_err(|e| Error::new(ErrorKind::Usage, format!("nsf: {e}")))?;
        Ok(Box::new(build(config, DType::F32, rng)?))
    },
};

const TABLE: &str = r#"
shape = [8]
transform = "coupling"
layers = 4
hidden = [64, 64]
bins = 8
bound = 4.0
mixing = "permutation"
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

const AR: &str = r#"
shape = [8]
transform = "autoregressive"
layers = 3
hidden = [64, 64]
bins = 8
bound = 4.0
mixing = "reverse"
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

const TAB21: &str = r#"
shape = [21]
transform = "autoregressive"
layers = 5
hidden = [128, 128]
bins = 8
bound = 3.0
mixing = "reverse"
noise = 0.0

[train]
batch = 512
"#;

/// Where a layer's parameters come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// From the other half of the columns: densities and samples take one pass.
    Coupling,
    /// From the columns before: densities take one pass, samples one per column.
    Autoregressive,
}

/// The complete configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// D, the number of columns.
    pub shape: [usize; 1],
    /// Where a layer's parameters come from.
    pub transform: Kind,
    /// Spline layers.
    pub layers: usize,
    /// Units of the hidden layers of each network.
    pub hidden: Vec<usize>,
    /// Bins of a spline.
    pub bins: usize,
    /// The splines live in ±bound, in deviations.
    pub bound: f64,
    /// How the columns change places between layers.
    pub mixing: Mixing,
    /// Deviation of the training noise, in standardised units.
    pub noise: f64,
}

fn build(config: Config, dtype: DType, rng: &mut Philox) -> Result<TableFlow> {
    let spline = Elementwise::Spline(Spline { bins: config.bins.min(1 << 10), bound: config.bound });
    spline.check().map_err(|e| e.at("nsf"))?;
    let Config { shape: [columns], layers, ref hidden, noise, .. } = config;
    let sizes = Sizes { model: "nsf", columns, layers, hidden, per: spline.params(), noise };
    sizes.check()?;
    let coupling = config.transform == Kind::Coupling;
    if coupling && columns < 2 {
        let message =
            "nsf: transform = \"coupling\" needs 2 columns; expected transform = \"autoregressive\"";
        return Err(Error::new(ErrorKind::Usage, message));
    }
    Ok(TableFlow::new(&sizes, Norm::Actnorm, &config, dtype, rng, |init| {
        let mut parts: Vec<Box<dyn Bijection>> = Vec::new();
        for k in 0..layers {
            let mut init = init.sub(format_args!("layers.{k}"));
            parts.push(match config.transform {
                Kind::Coupling => Box::new(Coupled::new(&mut init, columns, hidden, spline)),
                Kind::Autoregressive => Box::new(Autoregressive::new(&mut init, columns, hidden, spline)),
            });
            parts.extend(config.mixing.build(&mut init, columns));
        }
        parts
    }))
}
