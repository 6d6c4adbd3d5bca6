//! `info`: what a model file, a model or a preset is.

use super::{Common, inputs, output};
use crate::error::Result;
use crate::models::file::{HeldOut, Meta};
use crate::models::{MODELS, Model, config};
use crate::report::bits_per_dim;
use serde_json::{Value, json};
use std::path::Path;

#[derive(clap::Args)]
pub struct Args {
    /// A model file, a folder that `train` wrote, a model, a preset, or a TOML file
    model: String,
}

/// Prints the description.
pub fn run(args: &Args, common: &Common) -> Result<()> {
    let path = inputs::model_path(Path::new(&args.model));
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
