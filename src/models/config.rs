//! Configurations: presets, TOML files of the user, and `key=value` assignments.
//!
//! A preset is TOML text that names every key of its model; a table `[train]` in it overrides the defaults of
//! [`FitOptions`]. A user's file starts from a preset (`preset = "glow28"`) or a model (`model = "glow"`) and
//! overrides what it names. Nothing may be set that the preset does not have, so a misspelt key is found, and
//! every value keeps the type it has there.

use super::{ModelInfo, Registry};
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result, nearest};
use crate::random::Philox;
use crate::train::FitOptions;
use serde_json::{Map, Value};
use std::path::Path;

/// The longest configuration file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// A model to build and how to train it.
#[derive(Clone)]
pub struct Recipe {
    /// The model.
    pub info: &'static ModelInfo,
    /// Name of the preset or path of the file it came from.
    pub preset: String,
    /// The complete configuration of the model.
    pub config: Value,
    /// How to train it.
    pub train: FitOptions,
}

/// The model called `name`.
///
/// # Errors
/// [`ErrorKind::Model`] when the registry has none: model names come from files.
pub fn find_model(registry: Registry, name: &str) -> Result<&'static ModelInfo> {
    let known = || nearest(name, registry.iter().map(|m| m.name));
    registry.iter().copied().find(|m| m.name == name).ok_or_else(|| {
        Error::new(ErrorKind::Model, format!("no model is called \"{name}\" in this version; {}", known()))
    })
}

/// The recipe called `name`: a preset, a model (its first preset), or the path of a TOML file.
///
/// # Errors
/// [`ErrorKind::Usage`] when there is none, suggesting the nearest; also what is wrong with the file.
pub fn find(registry: Registry, name: &str) -> Result<Recipe> {
    if let Some(recipe) = known(registry, name)? {
        return Ok(recipe);
    }
    if name.ends_with(".toml") || Path::new(name).is_file() {
        return read(registry, Path::new(name));
    }
    let mut names: Vec<&str> = registry.iter().flat_map(|m| m.presets.iter().map(|p| p.0)).collect();
    names.extend(registry.iter().map(|m| m.name));
    Err(usage(format!("no model or preset is called \"{name}\": {}", nearest(name, names))))
}

/// The first preset of `info`, shrunk by [`ModelInfo::tiny`] for tests.
///
/// # Errors
/// [`ErrorKind::Usage`] when the registry's line is wrong.
pub fn tiny(info: &'static ModelInfo) -> Result<Recipe> {
    let mut recipe = find(&[info], info.name)?;
    recipe.set(info.tiny)?;
    Ok(recipe)
}

fn known(registry: Registry, name: &str) -> Result<Option<Recipe>> {
    let by_preset = registry.iter().find_map(|m| Some((*m, m.presets.iter().find(|p| p.0 == name)?)));
    let by_model = || registry.iter().find(|m| m.name == name).and_then(|m| Some((*m, m.presets.first()?)));
    let Some((info, &(preset, text))) = by_preset.or_else(by_model) else { return Ok(None) };
    let mut config = parse(preset, text)?;
    let mut train = defaults();
    if let Some(overrides) = config.shift_remove("train") {
        overlay(&mut train, &overrides, "train.", preset)?;
    }
    let train = typed(&Value::Object(train), preset)?;
    Ok(Some(Recipe { info, preset: preset.to_string(), config: Value::Object(config), train }))
}

/// Reads the TOML file of a user.
///
/// # Errors
/// When it cannot be read, is not TOML, names no preset or model, or has an unknown key or a value of another type.
pub fn read(registry: Registry, path: &Path) -> Result<Recipe> {
    let place = path.display().to_string();
    let size = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if size > MAX_BYTES {
        return Err(usage(format!("{place}: {size} bytes; a configuration has at most {MAX_BYTES}")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let mut table = parse(&place, &text)?;
    let base = ["preset", "model"].iter().find_map(|key| table.shift_remove(*key));
    let Some(Value::String(base)) = base else {
        return Err(usage(format!(
            "{place}: expected a line preset = \"...\" or model = \"...\" to start from"
        )));
    };
    let Some(mut recipe) = known(registry, &base)? else {
        let names =
            registry.iter().flat_map(|m| std::iter::once(m.name).chain(m.presets.iter().map(|p| p.0)));
        return Err(usage(format!(
            "{place}: no model or preset is called \"{base}\": {}",
            nearest(&base, names)
        )));
    };
    let mut all = recipe.combined();
    overlay(&mut all, &Value::Object(table), "", &place)?;
    recipe.separate(all, &place)?;
    recipe.preset = place;
    Ok(recipe)
}

impl Recipe {
    /// Applies assignments `key=value` with dotted keys, in order; a key of the training options starts with `train.`.
    /// A value has the type of the one it replaces; `none` empties an optional one.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for an unknown key, suggesting the nearest, and for a value of another type.
    pub fn set<S: AsRef<str>>(&mut self, assignments: &[S]) -> Result<()> {
        let mut all = self.combined();
        for assignment in assignments {
            let assignment = assignment.as_ref();
            let Some((key, text)) = assignment.split_once('=') else {
                return Err(usage(format!("--set {assignment}: expected key=value")));
            };
            let (key, text) = (key.trim(), text.trim());
            let names = keys(&all);
            match slot(&mut all, key) {
                Some(value) if !value.is_object() => *value = parse_as(value, key, text)?,
                _ => {
                    let hint = nearest(key, names.iter().map(String::as_str));
                    return Err(usage(format!("--set {key}: {} has no such key; {hint}", self.preset)));
                }
            }
        }
        self.separate(all, "--set")
    }

    /// Takes over the shape of the data when the configuration has a `shape` of the same rank, the columns of a
    /// table when it has `columns`, and the number of examples when it has more `rows`; whether the shape differed.
    pub fn adapt(&mut self, data: &Dataset) -> bool {
        if let (Some(columns), Some(schema)) = (self.config.get_mut("columns"), &data.schema) {
            *columns = serde_json::to_value(&**schema).unwrap_or_default();
        }
        if let Some(rows) = self.config.get_mut("rows")
            && let Some(most) = rows.as_u64()
        {
            *rows = most.min(data.len() as u64).max(1).into();
        }
        let example_shape = data.example_shape();
        let Some(Value::Array(shape)) = self.config.get_mut("shape") else { return false };
        let wanted: Vec<Value> = example_shape.iter().map(|&n| n.into()).collect();
        let differs = *shape != wanted && shape.len() == wanted.len();
        if differs {
            *shape = wanted;
        }
        differs
    }

    /// Builds the model with parameters drawn from the seed of the training options.
    ///
    /// # Errors
    /// When the configuration is impossible.
    pub fn build(&self) -> Result<Box<dyn super::Model>> {
        let mut rng = Philox::new(self.train.seed);
        (self.info.build)(&self.config, &mut rng).map_err(|e| e.at(&self.preset))
    }

    fn combined(&self) -> Map<String, Value> {
        let mut all = self.config.as_object().cloned().unwrap_or_default();
        all.insert("train".into(), serde_json::to_value(&self.train).unwrap_or_default());
        all
    }

    fn separate(&mut self, mut all: Map<String, Value>, place: &str) -> Result<()> {
        let train = all.shift_remove("train").unwrap_or_default();
        self.train = typed(&train, place)?;
        self.config = Value::Object(all);
        Ok(())
    }
}

fn usage(message: String) -> Error {
    Error::new(ErrorKind::Usage, message)
}

fn defaults() -> Map<String, Value> {
    match serde_json::to_value(FitOptions::default()) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

fn typed(train: &Value, place: &str) -> Result<FitOptions> {
    let options: FitOptions =
        serde_json::from_value(train.clone()).map_err(|e| usage(format!("{place}: train: {e}")))?;
    options.check().map_err(|e| e.at(place))?;
    Ok(options)
}

fn parse(place: &str, text: &str) -> Result<Map<String, Value>> {
    let table: toml::Table = text.parse().map_err(|e| usage(format!("{place}: {e}")))?;
    match serde_json::to_value(table) {
        Ok(Value::Object(map)) => Ok(map),
        _ => Err(usage(format!(
            "{place}: a value cannot be used here; expected numbers, text, lists and tables"
        ))),
    }
}

/// The place of a dotted key.
fn slot<'a>(map: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Value> {
    match key.split_once('.') {
        None => map.get_mut(key),
        Some((head, rest)) => slot(map.get_mut(head)?.as_object_mut()?, rest),
    }
}

/// All dotted keys that hold a value.
fn keys(map: &Map<String, Value>) -> Vec<String> {
    let mut out = Vec::new();
    for (key, value) in map {
        match value {
            Value::Object(inner) => out.extend(keys(inner).into_iter().map(|k| format!("{key}.{k}"))),
            _ => out.push(key.clone()),
        }
    }
    out
}

/// Lays `over` on `base`: known keys and like types only.
fn overlay(base: &mut Map<String, Value>, over: &Value, prefix: &str, place: &str) -> Result<()> {
    let Value::Object(over) = over else {
        let found = kind(over);
        return Err(usage(format!("{place}: {} is {found}; expected a table", prefix.trim_end_matches('.'))));
    };
    for (key, value) in over {
        let names = keys(base);
        let Some(old) = base.get_mut(key) else {
            let hint = nearest(key, names.iter().map(String::as_str));
            return Err(usage(format!("{place}: unknown key \"{prefix}{key}\"; {hint}")));
        };
        match old {
            Value::Object(inner) => overlay(inner, value, &format!("{prefix}{key}."), place)?,
            _ if like(old, value) => *old = value.clone(),
            _ => {
                let (found, wanted) = (kind(value), kind(old));
                return Err(usage(format!("{place}: {prefix}{key} is {found}; expected {wanted}")));
            }
        }
    }
    Ok(())
}

/// Whether `new` may stand where `old` stood; an integer may stand for a fraction, anything for nothing.
fn like(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Null, _) => true,
        (Value::Number(a), Value::Number(b)) => a.is_f64() || !b.is_f64(),
        (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(n) if n.is_f64() => "a number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a table",
    }
}

/// `text` as a value of the type of `old`.
fn parse_as(old: &Value, key: &str, text: &str) -> Result<Value> {
    if old.is_string() {
        return Ok(text.trim_matches('"').into());
    }
    if text == "none" {
        return Ok(Value::Null);
    }
    let table: Option<Map<String, Value>> = parse("", &format!("v = {text}")).ok();
    let parsed = table.and_then(|mut t| t.shift_remove("v"));
    match parsed {
        Some(new) if like(old, &new) => Ok(new),
        None if old.is_null() => Ok(text.into()),
        _ => Err(usage(format!("--set {key}={text}: expected {}, as in the present {key}={old}", kind(old)))),
    }
}
