//! MADE on tables with mixed columns: p(x) = Π p(x_c | columns before c in the order), by masked perceptrons (Germain et
//! al. 2015, arXiv:1502.03509).
//!
//! What a column puts in and what comes out for it depends on its kind ([`crate::data::Schema`]):
//! ```text
//! numeric, date          in: arsinh of z = (x − mean) / std      out: K logits, means, log-scales: a mixture (below)
//! categorical, boolean   in: one-hot of the level                out: a logit per level: a softmax
//! may be missing         in: one more, 1 where missing
//! ```
//! A missing cell puts in zeros but for its mark and has 0 nats: the likelihood is that of the cells that are there,
//! with the missing ones integrated out under p(x_c | what is known before c). The masks are staircases
//! ([`crate::ops::masked_linear`]), so the half of the weights that does not count costs nothing.
//!
//! **Heavy tails.** z may be a thousand deviations. What the networks read of it is arsinh z, about z near 0 and ln
//! 2|z| far out. What they predict is a mixture of normals or, with `density = "logistic"`, of logistics, whose nats
//! and gradients grow with |z| instead of z².
//!
//! **Orders.** One order of the columns is a choice without a reason, so `orders` of them (the first is that of the
//! file, the others are random, but always the same) have a network each; p is their mean. Each is trained on its
//! own surprisal.
//! **Noise.** Numbers are trained with normal noise of `noise` deviations (Rothfuss et al. 2019), or half a gap
//! between the values of their column where that is more ([`crate::data::grain`]), as in the flows on tables, so
//! that repeated values do not draw the density to infinity.
//!
//! The likelihood is exact: a density over the numbers times a probability over the levels, in nats, cell by cell. With
//! several orders the nats of a cell are the mean over the orders, weighted by how well each explains the row, and what
//! is gained by averaging is spread evenly over the cells, so that they sum to log p(x).

use super::incremental::pick;
use crate::autograd;
use crate::data::{ColumnKind, Dataset, Schema, grain};
use crate::error::{Error, ErrorKind, Result};
use crate::models::{Batch, Input, Kind, LogProb, Model, ModelInfo, SampleOptions};
use crate::nn::{Init, Initial, MaskedMlp, Param, ParamStore};
use crate::ops::gaussian_mixture::{Component, mixture};
use crate::ops::index::gather_rows;
use crate::ops::shape::concat;
use crate::ops::softmax::{cross_entropy, logsumexp};
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// The registry's line.
pub const INFO: ModelInfo = ModelInfo {
    name: "made",
    family: "autoregressive",
    summary: "masked autoregressive perceptrons on tables of numbers, categories and missing cells (Germain et al. 2015)",
    objective: "surprisal of the rows with training noise, nats",
    reproduce: "surprisal adbench FOLDER --models made --seeds 1 --set train.steps=400: mean AUROC .808 \
                over 21 tables, one seed (benches/results/tables.md)",
    presets: &[("made_table", TABLE)],
    tiny: &["shape=[2]", "hidden=[12]", "components=3"],
    build: |config, rng| {
        let config = serde_json::from_value(config.clone())
            .map_err(|e| Error::new(ErrorKind::Usage, format!("made: {e}")))?;
        Ok(Box::new(Made::new(config, DType::F32, rng)?))
    },
};

const TABLE: &str = r#"
shape = [8]
columns = []
hidden = [128, 128]
components = 8
density = "logistic"
orders = 2
noise = 0.1
[train]
steps = 1500
batch = 256
lr = 2e-3
clip = 5.0
patience = 40
eval_batch = 1024
schedule.curve = "cosine"
"#;

/// The largest standardised number.
const FARTHEST: f64 = 1e5;
/// Log-deviations of a component, in deviations of the column, count as this at least.
const LOWEST: f64 = -7.0;
/// The most parameters that a configuration may ask for.
const MAX_PARAMS: usize = 1 << 28;

/// What a [`Made`] is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// D, the number of columns.
    pub shape: [usize; 1],
    /// What the columns are; all numeric when empty. Training takes it over from the table.
    pub columns: Schema,
    /// Units of the hidden layers.
    pub hidden: Vec<usize>,
    /// Components per number.
    pub components: usize,
    /// What they are.
    #[serde(default)]
    pub density: Component,
    /// Orders of the columns, each with a network.
    pub orders: usize,
    /// Deviation of the training noise on numbers, in deviations of the column.
    pub noise: f64,
}

impl Config {
    fn check(&self) -> Result<()> {
        let Self { shape: [d], columns, hidden, components, orders, noise, .. } = self;
        let fail = |what: String| Err(Error::new(ErrorKind::Usage, format!("made: {what}")));
        if !(1..=1 << 14).contains(d) {
            return fail(format!("shape = [{d}]; expected 1 to 16384 columns"));
        }
        let named = columns.columns.len();
        if named != 0 && named != *d {
            return fail(format!("{named} columns are described; shape = [{d}] has {d}"));
        }
        let levels = |kind: &ColumnKind| kind.levels().is_none_or(|l| (1..=1 << 16).contains(&l));
        if let Some(column) = columns.columns.iter().find(|c| !levels(&c.kind)) {
            return fail(format!("column {:?}: expected 1 to 65536 levels", column.name));
        }
        if hidden.len() > 16 || hidden.iter().any(|h| !(1..=1 << 14).contains(h)) {
            return fail(format!("hidden = {hidden:?}; expected at most 16 layers of 1 to 16384 units"));
        }
        if !(1..=256).contains(components) || !(1..=64).contains(orders) {
            return fail(format!(
                "components = {components}, orders = {orders}; expected 1..=256 and 1..=64"
            ));
        }
        if !(0.0..=10.0).contains(noise) {
            return fail(format!("noise = {noise}; expected 0 to 10 deviations"));
        }
        let cells = self.cells();
        let ends = [cells.iter().map(|c| c.inputs).sum(), cells.iter().map(|c| c.outputs).sum()];
        let sizes: Vec<usize> = [&ends[..1], hidden, &ends[1..]].concat();
        if orders * sizes.windows(2).map(|w| w[0] * w[1]).sum::<usize>() > MAX_PARAMS {
            return fail(format!("asks for more than {MAX_PARAMS} parameters"));
        }
        Ok(())
    }

    /// What each column puts in and gets out.
    fn cells(&self) -> Vec<Cell> {
        let numeric = Schema::numeric(self.shape[0]);
        let schema = if self.columns.columns.is_empty() { &numeric } else { &self.columns };
        let cell = |column: &crate::data::Column| {
            let levels = column.kind.levels();
            let inputs = levels.unwrap_or(1) + usize::from(column.nullable);
            Cell { levels, nullable: column.nullable, inputs, outputs: levels.unwrap_or(3 * self.components) }
        };
        schema.columns.iter().map(cell).collect()
    }
}

/// The sizes of one column.
#[derive(Debug, Clone, Copy)]
struct Cell {
    /// Of a discrete column.
    levels: Option<usize>,
    nullable: bool,
    inputs: usize,
    outputs: usize,
}

/// One order of the columns with its network.
struct Order {
    /// Column at each place.
    columns: Vec<usize>,
    net: MaskedMlp,
}

/// The model; see the module's description.
pub struct Made {
    config: Config,
    dtype: DType,
    store: ParamStore,
    cells: Vec<Cell>,
    /// (3, D) f64: mean, deviation and noise, in deviations, of the numeric columns; 0 and 1 elsewhere.
    moments: Param,
    orders: Vec<Order>,
}

impl Made {
    /// A model with fresh parameters in `dtype`.
    ///
    /// # Errors
    /// When the configuration is impossible.
    pub fn new(config: Config, dtype: DType, rng: &mut Philox) -> Result<Self> {
        config.check()?;
        let (cells, d) = (config.cells(), config.shape[0]);
        let mut order: Vec<usize> = (0..d).collect();
        let mut store = ParamStore::default();
        let mut init = Init::new(&mut store, rng, dtype);
        let moments = init.buffer("moments", [3, d], DType::F64, Initial::Zeros);
        moments.set(&Tensor::from_fn([3, d], |i| [0.0f64, 1.0, config.noise][i / d]));
        let mut orders = Vec::new();
        for k in 0..config.orders {
            if k > 0 {
                order = Philox::new(k as u64).permutation(d);
            }
            let of = |size: fn(&Cell) -> usize| -> Vec<usize> {
                order.iter().enumerate().flat_map(|(at, &c)| vec![at + 1; size(&cells[c])]).collect()
            };
            let (inputs, outputs) = (of(|c| c.inputs), of(|c| c.outputs));
            let mut init = init.sub(format_args!("orders.{k}"));
            let last = Initial::FanIn(*config.hidden.last().unwrap_or(&inputs.len()));
            let net = MaskedMlp::with_degrees(&mut init, inputs, &config.hidden, outputs, d, last);
            orders.push(Order { columns: order.clone(), net });
        }
        Ok(Self { config, dtype, store, cells, moments, orders })
    }

    /// The rows (B, D) with numbers standardised; what is missing stays NaN.
    fn standardised(&self, x: &Tensor) -> Vec<f64> {
        let (moments, d) = (self.moments.get().to_f64_vec(), self.cells.len());
        let mut rows = x.to_f64_vec();
        for (i, x) in rows.iter_mut().enumerate().filter(|(i, _)| self.cells[i % d].levels.is_none()) {
            let z = (*x - moments[i % d]) / moments[d + i % d];
            *x = if z.is_nan() { z } else { z.clamp(-FARTHEST, FARTHEST) };
        }
        rows
    }

    /// What the columns of standardised rows put in, in the order of the places.
    fn encode(&self, order: &Order, rows: &[f64]) -> Tensor {
        let d = self.cells.len();
        let width: usize = self.cells.iter().map(|c| c.inputs).sum();
        let mut out = vec![0.0f64; rows.len() / d * width];
        for (row, out) in rows.chunks_exact(d).zip(out.chunks_exact_mut(width.max(1))) {
            let mut at = 0;
            for &column in &order.columns {
                let (cell, value) = (self.cells[column], row[column]);
                match cell.levels {
                    _ if value.is_nan() => {
                        assert!(cell.nullable, "made: column {column} has no missing cells in the schema");
                        out[at + cell.inputs - 1] = 1.0;
                    }
                    Some(levels) => {
                        let level = value as usize;
                        assert!(
                            value >= 0.0 && level < levels,
                            "made: level {value} in column {column} of {levels} levels"
                        );
                        out[at + level] = 1.0;
                    }
                    None => out[at] = value.asinh(),
                }
                at += cell.inputs;
            }
        }
        Tensor::from_slice(&out, [rows.len() / d, width]).cast(self.dtype)
    }

    /// Nats of every cell (B, D) under one order, of standardised rows.
    fn cell_nats(&self, order: &Order, rows: &[f64]) -> Tensor {
        let (d, k) = (self.cells.len(), self.config.components);
        let b = rows.len() / d;
        let params = order.net.flat(&self.encode(order, rows));
        let (mut parts, mut places) = (Vec::new(), vec![0i32; d]);
        let (mut at, mut start) = (0, 0);
        while start < d {
            let cell = self.cells[order.columns[start]];
            // Neighbours that are numbers go through one call.
            let numbers =
                order.columns[start..].iter().take_while(|&&c| self.cells[c].levels.is_none()).count();
            let run = numbers.max(1);
            let columns = &order.columns[start..start + run];
            let outputs = run * cell.outputs;
            let params = params.narrow(1, at, outputs);
            let value = |i: usize| rows[i / run * d + columns[i % run]];
            parts.push(match cell.levels {
                None => {
                    let z = Tensor::from_fn([b, run], value).cast(self.dtype);
                    let params = params.reshape([b, run, 3 * k]);
                    mixture(&z, &params, self.config.density, LOWEST)
                }
                Some(_) => {
                    let known: Vec<f64> = (0..b).map(|i| f64::from(u8::from(!value(i).is_nan()))).collect();
                    let level = Tensor::from_fn([b], |i| value(i).max(0.0) as i32);
                    let nats = -&cross_entropy(&params, &level);
                    (&nats * &Tensor::from_slice(&known, [b]).cast(self.dtype)).reshape([b, 1])
                }
            });
            columns.iter().enumerate().for_each(|(i, &c)| places[c] = (start + i) as i32);
            (at, start) = (at + outputs, start + run);
        }
        let nats = concat(&parts.iter().collect::<Vec<_>>(), 1);
        let sorted = gather_rows(&nats.permute(&[1, 0]), &Tensor::from_slice(&places, [d])).permute(&[1, 0]);
        &sorted + &self.volume(rows)
    }

    /// −ln std of the cells (B, D) that are numbers and are there.
    fn volume(&self, rows: &[f64]) -> Tensor {
        let (moments, d) = (self.moments.get().to_f64_vec(), self.cells.len());
        let cell = |i: usize| if rows[i].is_nan() { 0.0 } else { -moments[d + i % d].ln() };
        Tensor::from_fn([rows.len() / d, d], cell).cast(self.dtype)
    }

    /// Column by column in the order of a network drawn for each row.
    fn drawn(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor> {
        let (d, k) = (self.cells.len(), self.config.components);
        let choice = rng.randint(0, self.orders.len() as i32, [n]);
        let (mut uniforms, mut noise) = (vec![0.0f64; n * d], vec![0.0f64; n * d]);
        rng.fill_open(&mut uniforms);
        match self.config.density {
            Component::Normal => rng.fill_normal(&mut noise),
            Component::Logistic => {
                rng.fill_open(&mut noise);
                noise.iter_mut().for_each(|u| *u = (*u / (1.0 - *u)).ln());
            }
        }
        let (mut rows, moments, mut scratch) =
            (vec![0.0f64; n * d], self.moments.get().to_f64_vec(), Vec::new());
        for (o, order) in self.orders.iter().enumerate() {
            let mine: Vec<usize> = (0..n).filter(|&i| choice.as_slice::<i32>()[i] as usize == o).collect();
            if mine.is_empty() {
                continue;
            }
            let mut part = vec![0.0f64; mine.len() * d];
            let mut at = 0;
            for &column in &order.columns {
                let cell = self.cells[column];
                let params = autograd::no_grad(|| {
                    order.net.flat(&self.encode(order, &part)).narrow(1, at, cell.outputs)
                });
                let params = params.cast(DType::F64);
                for ((row, params), &i) in part
                    .chunks_exact_mut(d)
                    .zip(params.as_slice::<f64>().chunks_exact(cell.outputs))
                    .zip(&mine)
                {
                    let logits = if cell.levels.is_some() { params } else { &params[..k] };
                    let j = pick(logits, options.temperature, uniforms[i * d + column], &mut scratch)?;
                    row[column] = match cell.levels {
                        Some(_) => j as f64,
                        None => {
                            let deviation = params[2 * k + j].max(LOWEST).exp() * options.temperature;
                            params[k + j] + deviation * noise[i * d + column]
                        }
                    };
                }
                at += cell.outputs;
            }
            for (row, &i) in part.chunks_exact(d).zip(&mine) {
                rows[i * d..(i + 1) * d].copy_from_slice(row);
            }
        }
        for (i, x) in rows.iter_mut().enumerate().filter(|(i, _)| self.cells[i % d].levels.is_none()) {
            *x = *x * moments[d + i % d] + moments[i % d];
        }
        Ok(Tensor::from_slice(&rows, [n, d]))
    }
}

impl Model for Made {
    fn config(&self) -> serde_json::Value {
        serde_json::to_value(&self.config).unwrap_or_default()
    }

    fn input(&self) -> Input {
        let missing = self.cells.iter().any(|c| c.nullable);
        Input {
            shape: self.config.shape.to_vec(),
            dtypes: &[DType::F64, DType::F32],
            missing,
            ..Input::default()
        }
    }

    fn params(&self) -> &ParamStore {
        &self.store
    }

    fn log_prob(&self, batch: &Batch, _rng: &mut Philox) -> LogProb {
        let rows = self.standardised(&batch.x);
        let (d, n) = (self.cells.len(), self.orders.len() as f64);
        let cells: Vec<Tensor> = self.orders.iter().map(|order| self.cell_nats(order, &rows)).collect();
        if let [cells] = &cells[..] {
            return LogProb {
                nats: cells.sum_examples(),
                kind: Kind::Exact,
                per_position: Some(cells.clone()),
            };
        }
        let b = rows.len() / d;
        let each: Vec<Tensor> = cells.iter().map(|c| c.sum_examples().reshape([b, 1])).collect();
        let each = concat(&each.iter().collect::<Vec<_>>(), 1);
        let total = logsumexp(&each);
        let nats = total.affine(1.0, -n.ln());
        let shares = (&each - &total.reshape([b, 1])).exp();
        let weighted = cells.iter().enumerate().map(|(k, c)| c * &shares.narrow(1, k, 1));
        let mean = weighted.reduce(|a, b| &a + &b).expect("there is at least one order");
        let gained = (&nats - &mean.sum_examples()).affine(1.0 / d as f64, 0.0);
        let per_position = Some(&mean + &gained.reshape([b, 1]));
        LogProb { nats, kind: Kind::Exact, per_position }
    }

    fn objective(&self, batch: &Batch, rng: &mut Philox) -> Tensor {
        let mut rows = self.standardised(&batch.x);
        if self.config.noise > 0.0 {
            let mut noise = vec![0.0f64; rows.len()];
            rng.fill_normal(&mut noise);
            let d = self.cells.len();
            let numbers =
                rows.iter_mut().zip(noise).enumerate().filter(|(i, _)| self.cells[i % d].levels.is_none());
            let moments = self.moments.get().to_f64_vec();
            numbers.for_each(|(i, (x, e))| *x += moments[2 * d + i % d] * e);
        }
        let each = self.orders.iter().map(|order| self.cell_nats(order, &rows).sum_examples());
        let sum = each.reduce(|a, b| &a + &b).expect("there is at least one order");
        sum.affine(-1.0 / self.orders.len() as f64, 0.0)
    }

    fn sample(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor> {
        options.check("made", 0)?;
        Ok(self.store.on_host(|| self.drawn(n, options, rng))?.placed())
    }

    /// Mean, deviation and noise of every numeric column, of the cells that are there; a constant column has the
    /// deviation 1.
    fn init_from(&self, train: &Dataset, _batch: &Batch, _rng: &mut Philox) {
        let d = self.cells.len();
        let values = train.values.to_f64_vec();
        let mut moments = vec![0.0; d];
        moments.resize(2 * d, 1.0);
        for column in (0..d).filter(|&c| self.cells[c].levels.is_none()) {
            let present = || values.iter().skip(column).step_by(d).copied().filter(|x| !x.is_nan());
            let n = present().count().max(1) as f64;
            let mean = present().sum::<f64>() / n;
            let variance = present().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            moments[column] = mean;
            if variance > (1e-12 * mean).powi(2) {
                moments[d + column] = variance.sqrt();
            }
        }
        let apart = grain::blur(&train.values, &moments[d..]);
        moments.extend(
            apart
                .into_iter()
                .map(|blur| if self.config.noise > 0.0 { blur.max(self.config.noise) } else { 0.0 }),
        );
        self.moments.set(&Tensor::from_slice(&moments, [3, d]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Column;

    fn mixed() -> Config {
        let column = |name: &str, kind, nullable| Column { name: name.into(), kind, nullable };
        let levels = ["a", "b", "c"].map(String::from).to_vec();
        let columns = vec![
            column("x", ColumnKind::Numeric, true),
            column("c", ColumnKind::Categorical { levels }, true),
            column("b", ColumnKind::Boolean, false),
            column("y", ColumnKind::Numeric, false),
        ];
        let columns = Schema { columns };
        let density = Component::Normal;
        Config { shape: [4], columns, hidden: vec![14, 11], components: 2, density, orders: 3, noise: 0.0 }
    }

    fn moved(config: Config) -> Made {
        let mut rng = Philox::new(4);
        let model = Made::new(config, DType::F64, &mut rng).unwrap();
        for (_, p) in model.params().trainable() {
            p.set(&(&p.get().detach() + &rng.normal(p.get().shape(), DType::F64).affine(0.2, 0.0)));
        }
        model
    }

    fn nats(model: &Made, rows: &[[f64; 4]]) -> LogProb {
        let x = Tensor::from_slice(&rows.concat(), [rows.len(), 4]);
        autograd::no_grad(|| model.log_prob(&Batch::new(x), &mut Philox::new(0)))
    }

    /// Summed over the levels and integrated over the numbers, p is 1, whatever is missing.
    #[test]
    fn mixed_tables_have_mass_one() {
        let step = 0.25;
        let axis: Vec<f64> = (-60..=60).map(|i| i as f64 * step).collect();
        let kinds =
            [Component::Normal, Component::Logistic].map(|density| [(density, false), (density, true)]);
        for (density, missing) in kinds.concat() {
            let model = moved(Config { density, ..mixed() });
            let mut rows = Vec::new();
            for &y in &axis {
                for c in 0..3 {
                    for b in 0..2 {
                        let numbers = if missing { &[f64::NAN][..] } else { &axis };
                        rows.extend(numbers.iter().map(|&x| [x, f64::from(c), f64::from(b), y]));
                    }
                }
            }
            let found = nats(&model, &rows);
            let cell = if missing { step } else { step * step };
            let mass = found.nats.to_f64_vec().iter().map(|l| l.exp() * cell).sum::<f64>();
            assert!((mass - 1.0).abs() < 1e-3, "{density:?}, missing {missing}: {mass}");
            let cells = found.per_position.unwrap();
            assert!(crate::testing::max_error(&[cells.sum_examples()], &[found.nats]) < 1e-12);
        }
    }

    #[test]
    fn a_missing_cell_has_no_nats_of_its_own() {
        let model = moved(Config { orders: 1, ..mixed() });
        let found = nats(&model, &[[f64::NAN, 1.0, 0.0, 0.3], [0.2, f64::NAN, 1.0, -0.3]]);
        let cells = found.per_position.unwrap().to_f64_vec();
        assert_eq!((cells[0], cells[5]), (0.0, 0.0));
        assert!(cells.iter().enumerate().all(|(i, c)| c.is_finite() && (*c != 0.0 || i == 0 || i == 5)));
    }

    /// A number a thousand deviations away costs thousands of nats at the start, not the half million of a normal.
    #[test]
    fn far_numbers_do_not_explode() {
        let config = Config { shape: [3], columns: Schema::default(), orders: 1, ..mixed() };
        let at = |density| {
            let model =
                Made::new(Config { density, ..config.clone() }, DType::F32, &mut Philox::new(1)).unwrap();
            let x = Tensor::from_slice(&[0.0f32, 0.0, 1000.0, 1000.0, 0.0, 0.0], [2, 3]);
            let batch = Batch::new(x);
            -autograd::no_grad(|| model.log_prob(&batch, &mut Philox::new(0))).nats.to_f64_vec()[0]
        };
        let (normal, logistic) = (at(Component::Normal), at(Component::Logistic));
        assert!(normal > 1e5 && logistic < 5e3, "{normal} and {logistic}");
    }

    #[test]
    fn impossible_configurations_are_named() {
        let good = mixed();
        assert!(good.check().is_ok());
        for (bad, what) in [
            (Config { shape: [3], ..good.clone() }, "4 columns are described"),
            (Config { shape: [0], columns: Schema::default(), ..good.clone() }, "shape"),
            (Config { hidden: vec![0], ..good.clone() }, "hidden"),
            (Config { orders: 0, ..good.clone() }, "orders"),
            (Config { noise: f64::NAN, ..good.clone() }, "noise"),
            (Config { hidden: vec![1 << 14; 16], ..good.clone() }, "parameters"),
        ] {
            let message = bad.check().unwrap_err().to_string();
            assert!(message.contains(what), "{message}");
        }
    }
}
