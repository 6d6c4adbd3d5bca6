//! `info`: what a model file, a model or a preset is.

use super::{Common, inputs, output};
use crate::data::{self, Column, ColumnKind, Dataset};
use crate::error::Result;
use crate::models::file::{HeldOut, Meta};
use crate::models::{MODELS, Model, config};
use crate::report::bits_per_dim;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

#[derive(clap::Args)]
pub struct Args {
    /// A model file, a folder that `train` wrote, a model, a preset, a TOML file, or a data file
    model: String,
    #[command(flatten)]
    reading: inputs::Reading,
}

/// Prints the description.
pub fn run(args: &Args, common: &Common) -> Result<()> {
    let path = inputs::model_path(Path::new(&args.model));
    if data::knows(&path) {
        let found = data_set(&args.reading.open(&path)?);
        return match common.json {
            true => output::print(&(output::json(&found, true)? + "\n")),
            false => output::print(&columns(&found)),
        };
    }
    let is_file = path.is_file() && path.extension().is_none_or(|e| e != "toml");
    let (model, meta) = if is_file {
        let file = inputs::model(&path)?;
        (file.model, file.meta)
    } else {
        let recipe = config::find(MODELS, &args.model)?;
        let model = recipe.build()?;
        let training = Some(json!({ "options": recipe.train }));
        let meta = Meta { training, ..Meta::new(&recipe, &*model) };
        (model, meta)
    };
    let described = describe(&*model, &meta);
    if common.json {
        return output::print(&(output::json(&described, true)? + "\n"));
    }
    output::print(&text(&described))
}

/// What a data set is: its size, and the columns of a table with what is in them.
fn data_set(set: &Dataset) -> Value {
    let dims = set.dims();
    let values = set.values.to_f64_vec();
    let column = |(i, column): (usize, &Column)| {
        let present: Vec<f64> =
            values.iter().skip(i).step_by(dims).copied().filter(|x| !x.is_nan()).collect();
        let (low, high) =
            present.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &x| (a.min(x), b.max(x)));
        let range = match &column.kind {
            ColumnKind::Categorical { levels } => {
                let shown: Vec<&str> = levels.iter().take(6).map(String::as_str).collect();
                let more = if levels.len() > 6 { ", ..." } else { "" };
                format!("{} values: {}{more}", levels.len(), shown.join(", "))
            }
            kind => format!("{} to {}", kind.text(low), kind.text(high)),
        };
        json!({
            "name": column.name, "kind": column.kind.name(), "missing": set.len() - present.len(), "range": range,
            "mean": present.iter().sum::<f64>() / present.len().max(1) as f64,
        })
    };
    let schema = set.schema.as_ref().filter(|schema| schema.columns.len() == dims);
    let columns: Option<Vec<Value>> = schema.map(|s| s.columns.iter().enumerate().map(column).collect());
    json!({
        "data": set.name, "summary": set.describe(), "examples": set.len(), "shape": set.example_shape(),
        "columns": columns, "templates": kinds_of_lines(set),
    })
}

/// The templates of a log with the number of steps of each, the most frequent first.
fn kinds_of_lines(set: &Dataset) -> Option<Vec<Value>> {
    set.cut.as_ref()?.templates.as_ref()?;
    let mut found: BTreeMap<u8, (usize, String)> = BTreeMap::new();
    for (at, &byte) in set.values.as_slice::<u8>().iter().enumerate() {
        let text = || set.kind_of_line(at / set.dims(), at % set.dims());
        found.entry(byte).or_insert_with(|| (0, text())).0 += 1;
    }
    let mut found: Vec<(usize, String)> = found.into_values().collect();
    found.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let kinds = found.iter().map(|(steps, text)| json!({"steps": steps, "template": text}));
    Some(kinds.collect())
}

fn columns(found: &Value) -> String {
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
    let mut text = word(&found["summary"]) + "\n";
    if let Some(columns) = found["columns"].as_array() {
        let row = |c: &Value| ["name", "kind", "missing", "range"].map(|key| word(&c[key])).to_vec();
        let head = ["column", "kind", "missing", "range"].map(str::to_string).to_vec();
        text += &output::columns(&std::iter::once(head).chain(columns.iter().map(row)).collect::<Vec<_>>());
    }
    if let Some(templates) = found["templates"].as_array() {
        let row = |t: &Value| ["steps", "template"].map(|key| word(&t[key])).to_vec();
        let head = ["steps", "template"].map(str::to_string).to_vec();
        text += &output::columns(&std::iter::once(head).chain(templates.iter().map(row)).collect::<Vec<_>>());
    }
    text
}

fn describe(model: &dyn Model, meta: &Meta) -> Value {
    let parameters: Vec<Value> = model
        .params()
        .iter()
        .map(|(name, p)| {
            let value = p.get();
            json!({"name": name, "shape": value.shape(), "dtype": format!("{:?}", value.dtype()).to_lowercase()})
        })
        .collect();
    let input = model.input();
    let dtypes: Vec<String> = input.dtypes.iter().map(|d| format!("{d:?}").to_lowercase()).collect();
    let info = MODELS.iter().find(|m| m.name == meta.model);
    let dims = input.shape.iter().product();
    json!({
        "model": meta.model,
        "family": info.map(|i| i.family),
        "summary": info.map(|i| i.summary),
        "preset": meta.preset,
        "version": meta.version,
        "seed": meta.seed,
        "input": {"shape": input.shape, "dtypes": dtypes, "classes": input.classes},
        "config": meta.config,
        "parameter_count": model.params().count(),
        "parameters": parameters,
        "data": meta.data,
        "training": meta.training,
        "calibration": meta.calibration.as_ref().map(|c| calibration(c, dims)),
    })
}

/// What the held-out data of a model file promises.
fn calibration(held_out: &HeldOut, dims: usize) -> Value {
    let n = held_out.nats.len();
    let mean = held_out.nats.iter().sum::<f64>() / n.max(1) as f64;
    let scorers: Vec<Value> = held_out
        .scorers
        .iter()
        .map(|c| {
            let at = |alpha: f64| c.threshold(alpha).ok();
            json!({
                "scorer": c.name(), "rows": c.rows(), "smallest_alpha": c.smallest_alpha(),
                "thresholds": {"0.1": at(0.1), "0.05": at(0.05), "0.01": at(0.01)},
            })
        })
        .collect();
    json!({
        "rows": n, "mean_nats": mean, "mean_bits_per_dim": bits_per_dim(mean, dims),
        "kind": held_out.kind, "scorers": scorers,
    })
}

/// The description for people: one line per value, long lists cut.
fn text(described: &Value) -> String {
    let mut rows = Vec::new();
    flatten("", described, &mut rows);
    output::columns(&rows)
}

fn flatten(prefix: &str, value: &Value, rows: &mut Vec<Vec<String>>) {
    let join = |key: &str| if prefix.is_empty() { key.to_string() } else { format!("{prefix}.{key}") };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| flatten(&join(key), value, rows)),
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for (i, item) in items.iter().enumerate() {
                match (item.get("name").and_then(Value::as_str), item.get("shape")) {
                    (Some(name), Some(shape)) => rows.push(vec![join(name), shape.to_string()]),
                    _ => flatten(&join(&i.to_string()), item, rows),
                }
            }
        }
        Value::Null => {}
        Value::String(text) => rows.push(vec![prefix.to_string(), text.clone()]),
        other => rows.push(vec![prefix.to_string(), other.to_string()]),
    }
}
