//! `train`: fit a model to data and write what scoring needs.

use super::progress::{self, Training, say};
use super::{Common, inputs, output};
use crate::calibrate::calibrate;
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::{Evidence, Need};
use crate::models::config::{self, Recipe};
use crate::models::file::{self, DataStats, HeldOut, Meta};
use crate::models::{MODELS, Model};
use crate::train::{Amp, Checkpoints, Curve, Fit, FitOptions, Schedule, checkpoint, fit};
use std::path::{Path, PathBuf};

/// Mutation rate of background models unless `train.mutation` is set: the upper end of the rates that Ren et al. 2019
/// tried.
pub const BACKGROUND_MUTATION: f64 = 0.3;
/// The most held-out rows that are kept for calibration: they promise false-alarm rates down to 0.001.
const MAX_HELD_OUT: usize = 2000;

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
    /// Mixed precision, off or bf16: the setting train.amp
    #[arg(long, value_name = "AMP")]
    amp: Option<Amp>,
    /// Replace the model that is already in the folder
    #[arg(long)]
    overwrite: bool,
    /// Continue the run in this folder, bit for bit
    #[arg(long, value_name = "DIR")]
    resume: Option<PathBuf>,
    /// Train a background model for likelihood ratios: on inputs that are partly replaced at random
    #[arg(long)]
    background: bool,
    /// Train M models from different seeds on the same rows, for the scorers ensemble, waic and ess
    #[arg(long, value_name = "M", conflicts_with = "resume", value_parser = clap::value_parser!(u16).range(2..=64))]
    ensemble: Option<u16>,
    /// With --ensemble: the further models continue the first one, each with a fifth of its steps, another order of the
    /// rows and a learning rate that starts anew (snapshots, Huang et al. 2017): 5 models for 1.8 runs, less unlike
    #[arg(long, requires = "ensemble")]
    snapshots: bool,
}

/// The part of the steps of a run that each further snapshot takes.
const SNAPSHOT: u64 = 5;

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
    if args.background && recipe.train.mutation == 0.0 {
        recipe.train.mutation = BACKGROUND_MUTATION;
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
    let trained = match args.resume {
        Some(_) => train(common, &recipe, data.clone(), validation.clone(), &dir, Start::Resumed)?,
        None => train(common, &recipe, data.clone(), validation.clone(), &dir, Start::Fresh)?,
    };
    let mut last: Option<Box<dyn Model>> = None;
    for i in 2..=args.ensemble.map_or(1, usize::from) {
        let mut member = recipe.clone();
        member.train.seed = recipe.train.seed.wrapping_add(i as u64 - 1);
        let start = match args.snapshots {
            true => {
                let (.., steps) = recipe.train.plan(data.len());
                member.train.steps = Some(steps.div_ceil(SNAPSHOT));
                member.train.schedule = Schedule { curve: Curve::Cosine, ..Schedule::default() };
                Start::From(last.as_deref().unwrap_or(&*trained.model))
            }
            false => Start::Fresh,
        };
        let dir = inputs::member_dir(&dir, i);
        inputs::writable(&dir)?;
        last = Some(train(common, &member, data.clone(), validation.clone(), &dir, start)?.model);
    }
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

fn recipe(args: &Args) -> Result<Recipe> {
    let Some(dir) = &args.resume else {
        return config::find(MODELS, args.model.as_deref().unwrap_or_default());
    };
    let origin = checkpoint::origin(dir)?;
    let info = config::find_model(MODELS, &origin.model)?;
    Ok(Recipe { info, preset: origin.preset, config: origin.config, train: origin.options })
}

/// Sets a part of `data` aside for validation unless there is some already.
fn split(recipe: &Recipe, data: Dataset, validation: Option<Dataset>) -> Result<(Dataset, Option<Dataset>)> {
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

/// Trains the model of `recipe` on `data` and writes it to `dir` with its calibration; a part of `data` is set aside
/// for validation unless `validation` is given.
pub fn train(
    common: &Common,
    recipe: &Recipe,
    data: Dataset,
    validation: Option<Dataset>,
    dir: &Path,
    start: Start,
) -> Result<Trained> {
    progress::catch_interrupts()?;
    let model = recipe.build()?;
    inputs::to_device(&*model, common)?;
    if let Start::From(other) = start {
        file::assign(&*model, &file::tensors(other))?;
    }
    model.input().check(&data)?;
    let (data, validation) = split(recipe, data, validation)?;
    let meta = Meta { data: Some(DataStats::of(&data)), ..Meta::new(recipe, &*model) };
    let resume = matches!(start, Start::Resumed);
    let checkpoints = Checkpoints { dir: dir.into(), meta: meta.clone(), resume };
    let warm = matches!(start, Start::From(_));
    let options = FitOptions { warm, checkpoints: Some(checkpoints), ..recipe.train.clone() };
    let background = if options.mutation > 0.0 { " (background)" } else { "" };
    let images = data.example_shape().len() == 3;
    let mut observer = Training::new(common, format!("{}{background}", recipe.preset), images);
    let fit = fit(&*model, &data, validation.as_ref(), &options, &mut observer)?;
    drop(observer);
    let calibration = validation.map(|rows| held_out(common, &*model, &options, &rows)).transpose()?;
    let training = serde_json::to_value(&fit)
        .map_err(|e| Error::new(ErrorKind::Model, format!("training summary: {e}")))?;
    let meta = Meta { training: Some(training), calibration, ..meta };
    file::save(dir.join(checkpoint::MODEL), &file::tensors(&*model), &meta)?;
    Ok(Trained { model, meta, fit })
}

/// Fits and calibrates every scorer that needs this model alone and no costly statistics.
fn held_out(common: &Common, model: &dyn Model, options: &FitOptions, rows: &Dataset) -> Result<HeldOut> {
    let rows = rows.take(MAX_HELD_OUT);
    let found = inputs::evaluate(common, model, options.seed, &rows)?;
    let evidence = Evidence::new(rows, found.nats, found.kind);
    let alone = |need: &Need| matches!(need, Need::Values | Need::Images);
    Ok(HeldOut {
        fingerprint: file::fingerprint(&evidence.data().values),
        shape: evidence.data().example_shape().to_vec(),
        kind: evidence.kind,
        scorers: calibrate(&evidence, &|info| info.needs.iter().all(alone))?,
        nats: evidence.nats,
    })
}
