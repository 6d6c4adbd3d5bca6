//! `train`: fit a model to data and write what scoring needs.

use super::progress::{self, Training, say};
use super::{Common, inputs, output};
use crate::calibrate::{MOST_HELD_OUT, held_out};
use crate::cpu::par;
use crate::cuda::Device;
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::{Compressor, Evidence};
use crate::models::config::{self, Recipe};
use crate::models::file::{self, DataStats, Meta};
use crate::models::{Kind, MODELS, Model};
use crate::train::{Amp, Checkpoints, Curve, Fit, FitOptions, Schedule, checkpoint, fit};
use std::path::{Path, PathBuf};

/// Mutation rate of background models unless `train.mutation` is set: the upper end of the rates that Ren et al. 2019
/// tried.
pub const BACKGROUND_MUTATION: f64 = 0.3;
/// Background models of images take this part of the steps, unless `train.steps` or `train.epochs` is set for them: what
/// they should know (levels, smoothness) is learned first, and what they learn after that is missing in the ratio. That
/// does not hold for sequences, whose composition takes longer (benches/results/scorers.md).
pub const BACKGROUND_PART: u64 = 10;

#[derive(clap::Args)]
pub struct Args {
    /// A model, a preset, or a TOML file that starts with preset = "..." (not needed with --resume)
    #[arg(required_unless_present = "resume")]
    model: Option<String>,
    /// Training data (`list sources`)
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// Validation data, instead of setting aside a part of the training data
    #[arg(long, value_name = "PATH")]
    validation: Option<PathBuf>,
    #[command(flatten)]
    reading: inputs::Reading,
    /// Override a setting, e.g. --set train.epochs=4; `info PRESET` lists them
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Folder for model.safetensors and the checkpoint [default: surprisal-out/PRESET]
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    out: Option<PathBuf>,
    /// Mixed precision, off, bf16, f16 or tf32: the setting train.amp
    #[arg(long, value_name = "AMP")]
    amp: Option<Amp>,
    /// Replace the model that is already in the folder
    #[arg(long)]
    overwrite: bool,
    /// Continue the run in this folder, bit for bit
    #[arg(long, value_name = "DIR")]
    resume: Option<PathBuf>,
    /// Train a background model for likelihood ratios: on inputs that are partly replaced at random, of images for a
    /// tenth of the steps unless --set says how many
    #[arg(long)]
    background: bool,
    /// Train M models from different seeds on the same rows, for the scorers ensemble, waic and ess; on the CPU side by
    /// side, each with its share of the threads
    #[arg(long, value_name = "M", conflicts_with = "resume", value_parser = clap::value_parser!(u16).range(2..=64))]
    ensemble: Option<u16>,
    /// With --ensemble: the further models continue the first one, each with a fifth of its steps, another order of the
    /// rows and a learning rate that starts anew (snapshots, Huang et al. 2017): 5 models for 1.8 runs, less unlike
    #[arg(long, requires = "ensemble")]
    snapshots: bool,
}

/// The part of the steps of a run that each further snapshot takes.
const SNAPSHOT: u64 = 5;

/// Changes what trains a model on `data` into what trains its background model; `set` are the assignments that the user
/// made.
pub fn make_background(options: &mut FitOptions, set: &[String], data: &Dataset) {
    if options.mutation == 0.0 {
        options.mutation = BACKGROUND_MUTATION;
    }
    let chosen = |key: &&str| set.iter().any(|s| s.split('=').next().is_some_and(|k| k.trim() == *key));
    let images = data.example_shape().len() == 3;
    if images && !["train.steps", "train.epochs"].iter().any(chosen) {
        let (_, _, steps) = options.plan(data.len());
        let steps = (steps / BACKGROUND_PART).max(1);
        options.steps = Some(steps);
        options.schedule.warmup = options.schedule.warmup.min(steps / 4);
    }
}

/// Trains, calibrates, writes.
pub fn run(args: &Args, common: &Common) -> Result<()> {
    let mut recipe = recipe(args)?;
    if let Some(seed) = common.seed {
        recipe.train.seed = seed;
    }
    recipe.set(&args.set)?;
    if let Some(amp) = args.amp {
        recipe.train.amp = amp;
    }
    let data = args.reading.open(&args.data)?;
    let validation =
        args.validation.as_ref().map(|path| args.reading.open_beside(path, &data)).transpose()?;
    if args.resume.is_none() && !args.set.iter().any(|s| s.starts_with("shape=")) && recipe.adapt(&data) {
        let note =
            format!("{}: shape set to {:?}, that of {}", recipe.preset, data.example_shape(), data.name);
        say(common, note);
    }
    let dir = match (&args.resume, &args.out) {
        (Some(dir), _) | (None, Some(dir)) => dir.clone(),
        (None, None) => {
            let name = Path::new(&recipe.preset).file_stem().unwrap_or_default().to_string_lossy();
            let suffix = if args.background { "-background" } else { "" };
            Path::new("surprisal-out").join(format!("{name}{suffix}"))
        }
    };
    if args.resume.is_none() && !args.overwrite && dir.join(checkpoint::MODEL).exists() {
        let dir = dir.display();
        return Err(Error::new(
            ErrorKind::Usage,
            format!("{dir} holds a model already: --resume {dir} continues it, --overwrite replaces it"),
        ));
    }
    inputs::writable(&dir)?;
    let (data, validation) = split(&recipe, data, validation)?;
    if args.background && args.resume.is_none() {
        make_background(&mut recipe.train, &args.set, &data);
    }
    let members = args.ensemble.map_or(1, usize::from);
    let validation = validation.as_ref().map(Validation::new);
    if let Some(validation) = validation.as_ref().filter(|_| members > 1) {
        validation.compress()?;
    }
    let trained = if args.snapshots {
        snapshots(common, &recipe, &data, validation.as_ref(), &dir, members)?
    } else {
        let start = || if args.resume.is_some() { Start::Resumed } else { Start::Fresh };
        let one = |i: usize| {
            let (recipe, dir) = member(&recipe, &dir, i + 1)?;
            train(common, &recipe, &data, validation.as_ref(), &dir, start())
        };
        // A device is not shared out; the cores of the CPU are.
        let trained = match common.device {
            Device::Cpu => par::together(members, one),
            _ => (0..members).map(one).collect(),
        };
        let mut trained = trained.into_iter().collect::<Result<Vec<_>>>()?;
        trained.swap_remove(0)
    };
    let path = dir.join(checkpoint::MODEL);
    if common.json {
        let report = serde_json::json!({
            "path": path, "model": recipe.info.name, "preset": recipe.preset,
            "seconds": trained.fit.seconds, "training": trained.fit,
        });
        output::print(&(output::json(&report, true)? + "\n"))
    } else {
        output::print(&format!("{}\n", path.display()))
    }
}

/// Member `i` (from 1) of an ensemble: its recipe and its folder.
fn member(recipe: &Recipe, dir: &Path, i: usize) -> Result<(Recipe, PathBuf)> {
    if i == 1 {
        return Ok((recipe.clone(), dir.into()));
    }
    let mut member = recipe.clone();
    member.train.seed = recipe.train.seed.wrapping_add(i as u64 - 1);
    let dir = inputs::member_dir(dir, i);
    inputs::writable(&dir)?;
    Ok((member, dir))
}

/// A model, and further ones that continue it one after the other; the first of them.
fn snapshots(
    common: &Common,
    recipe: &Recipe,
    data: &Dataset,
    validation: Option<&Validation>,
    dir: &Path,
    members: usize,
) -> Result<Trained> {
    let one = |recipe: &Recipe, dir: &Path, start: Start| train(common, recipe, data, validation, dir, start);
    let first = one(recipe, dir, Start::Fresh)?;
    let mut last: Option<Box<dyn Model>> = None;
    for i in 2..=members {
        let (mut member, dir) = member(recipe, dir, i)?;
        let (.., steps) = recipe.train.plan(data.len());
        let steps = steps.div_ceil(SNAPSHOT);
        member.train.steps = Some(steps);
        // Adam begins anew as well, and would step as far as it can in every parameter at once.
        member.train.schedule = Schedule { curve: Curve::Cosine, warmup: steps / 4, ..Schedule::default() };
        let start = Start::From(last.as_deref().unwrap_or(&*first.model));
        last = Some(one(&member, &dir, start)?.model);
    }
    Ok(first)
}

fn recipe(args: &Args) -> Result<Recipe> {
    let Some(dir) = &args.resume else {
        return config::find(MODELS, args.model.as_deref().unwrap_or_default());
    };
    let origin = checkpoint::origin(dir)?;
    let info = config::find_model(MODELS, &origin.model)?;
    Ok(Recipe { info, preset: origin.preset, config: origin.config, train: origin.options })
}

/// Sets a part of `data` aside for validation unless there is some already.
pub fn split(
    recipe: &Recipe,
    data: Dataset,
    validation: Option<Dataset>,
) -> Result<(Dataset, Option<Dataset>)> {
    match validation {
        None if recipe.train.validation > 0.0 => {
            let (rest, aside) = data.split(recipe.train.validation, recipe.train.seed)?;
            Ok((rest, Some(aside)))
        }
        validation => Ok((data, validation)),
    }
}

/// A trained model with what its file says.
pub struct Trained {
    /// The model, with the weights that were kept.
    pub model: Box<dyn Model>,
    /// The description in its file.
    pub meta: Meta,
    /// How it went.
    pub fit: Fit,
}

/// Where a run starts.
pub enum Start<'a> {
    /// From weights drawn by the seed.
    Fresh,
    /// From the checkpoint in the folder.
    Resumed,
    /// From the weights of this model.
    From(&'a dyn Model),
}

/// Rows that are held out from training: they choose the weights that are kept and calibrate the scorers.
pub struct Validation {
    rows: Dataset,
    /// About those that calibrate; the models of an ensemble share the code lengths in it.
    shared: Evidence,
}

impl Validation {
    /// `rows`, the first of which calibrate.
    pub fn new(rows: &Dataset) -> Self {
        let shared = Evidence::new(rows.take(MOST_HELD_OUT), Vec::new(), Kind::Exact);
        Self { rows: rows.clone(), shared }
    }

    /// Finds the code lengths that the scorers of several models will ask for.
    pub fn compress(&self) -> Result<()> {
        let mut taken = Compressor::ALL.into_iter().filter(|c| c.takes(self.shared.data()));
        taken.try_for_each(|compressor| self.shared.code_lengths(compressor).map(drop))
    }
}

/// Trains the model of `recipe` on `data` and writes it to `dir` with its calibration by `validation`.
pub fn train(
    common: &Common,
    recipe: &Recipe,
    data: &Dataset,
    validation: Option<&Validation>,
    dir: &Path,
    start: Start,
) -> Result<Trained> {
    progress::catch_interrupts()?;
    let model = recipe.build()?;
    inputs::to_device(&*model, common)?;
    if let Start::From(other) = start {
        file::assign(&*model, &file::tensors(other))?;
    }
    model.input().check(data)?;
    let meta = Meta { data: Some(DataStats::of(data)), ..Meta::new(recipe, &*model) };
    let resume = matches!(start, Start::Resumed);
    let checkpoints = Checkpoints { dir: dir.into(), meta: meta.clone(), resume };
    let warm = matches!(start, Start::From(_));
    let options = FitOptions { warm, checkpoints: Some(checkpoints), ..recipe.train.clone() };
    let background = if options.mutation > 0.0 { " (background)" } else { "" };
    let member = dir.file_name().and_then(|name| name.to_str()?.strip_prefix("member-"));
    let member = member.map_or(String::new(), |i| format!(" (member {i})"));
    let images = data.example_shape().len() == 3;
    let mut observer = Training::new(common, format!("{}{background}{member}", recipe.preset), images);
    let fit = fit(&*model, data, validation.map(|v| &v.rows), &options, &mut observer)?;
    drop(observer);
    let calibration = validation.map(|v| {
        let found = inputs::evaluate(common, &*model, options.seed, v.shared.data())?;
        let watch = |name: &str, n: usize| progress::counting(common, name, n);
        let evidence = v.shared.judged_by(found.nats, found.kind);
        held_out(&*model, evidence, options.seed, &|name, n| Box::new(watch(name, n)))
    });
    let calibration = calibration.transpose()?;
    let training = serde_json::to_value(&fit)
        .map_err(|e| Error::new(ErrorKind::Model, format!("training summary: {e}")))?;
    let meta = Meta { training: Some(training), calibration, ..meta };
    file::save(dir.join(checkpoint::MODEL), &file::tensors(&*model), &meta)?;
    Ok(Trained { model, meta, fit })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{DType, Tensor};

    #[test]
    fn a_background_model_of_images_takes_a_tenth_of_the_steps_unless_told() {
        let data = |shape: &[usize]| Dataset::new("zeros", Tensor::zeros(shape, DType::U8));
        let (images, rows) = (data(&[3200, 1, 1, 1]), data(&[3200, 1]));
        let made = |data, set: &[&str]| {
            let mut options = FitOptions { epochs: 4, batch: 32, ..FitOptions::default() };
            options.schedule.warmup = 100;
            let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
            make_background(&mut options, &set, data);
            (options.steps, options.schedule.warmup, options.mutation)
        };
        assert_eq!(made(&images, &[]), (Some(40), 10, BACKGROUND_MUTATION));
        assert_eq!(made(&images, &["train.epochs=4"]), (None, 100, BACKGROUND_MUTATION));
        assert_eq!(made(&rows, &[]), (None, 100, BACKGROUND_MUTATION));
    }
}
