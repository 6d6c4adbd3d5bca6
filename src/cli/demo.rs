//! `demo`: train on clothes, be shown digits.

use super::compare::{Comparing, publish};
use super::evidence::{calibrations, know};
use super::output::thousands;
use super::progress::say;
use super::train::{Start, Validation, make_background, split, train};
use super::{Common, inputs};
use crate::data::{self, Dataset};
use crate::error::Result;
use crate::evidence::Judges;
use crate::models::file::ModelFile;
use crate::models::{MODELS, config};
use crate::report::finding;
use crate::scorers::SCORERS;
use std::path::PathBuf;
use std::time::Instant;

#[derive(clap::Args)]
pub struct Args {
    /// Folder for the models, results.json and report.html
    #[arg(long, value_name = "DIR", default_value = "surprisal-out/demo")]
    out: PathBuf,
    /// Folder with the demonstration images [default: data/ of the repository]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Override a setting of both models, e.g. --set train.epochs=1
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// What is trained. Nothing here was chosen by looking at the digits, but for the length of the background model
/// (`BACKGROUND_PART`).
const PRESET: &str = "pixelcnn28";
const SETTINGS: &[&str] = &["train.epochs=4", "train.batch=32"];

/// Trains both models, compares, writes.
pub fn run(args: &Args, common: &Common) -> Result<()> {
    let started = Instant::now();
    let mut recipe = config::find(MODELS, PRESET)?;
    recipe.set(SETTINGS)?;
    recipe.set(&args.set)?;
    if let Some(seed) = common.seed {
        recipe.train.seed = seed;
    }
    let images = data::demo(args.data.as_deref())?;
    inputs::writable(&args.out)?;
    let mut background = recipe.clone();
    let (rows, aside) = split(&recipe, images.train.clone(), None)?;
    make_background(&mut background.train, &args.set, &rows);
    let (_, _, steps) = background.train.plan(rows.len());
    let about_background =
        format!("{steps} steps on inputs with {} of the bytes replaced", background.train.mutation);
    let validation = aside.as_ref().map(Validation::new);
    validation.as_ref().map_or(Ok(()), Validation::compress)?;
    let fit = |recipe, part: &str| {
        let dir = args.out.join(part);
        inputs::writable(&dir)?;
        train(common, recipe, &rows, validation.as_ref(), &dir, Start::Fresh)
    };
    let model = fit(&recipe, "model")?;
    let background = fit(&background, "background")?;
    let seconds = model.fit.seconds + background.fit.seconds;
    let file = |t: super::train::Trained| ModelFile { model: t.model, meta: t.meta };
    let judges = Judges::new(file(model), vec![], Some(file(background)))?;
    let named = |data: Dataset, name: &str| Dataset { name: name.into(), ..data };
    let reference = know(&judges, common, named(images.test, "FashionMNIST"), &[])?;
    let other = know(&judges, common, named(images.other, "MNIST"), &[])?;
    let mut calibrations = calibrations(&judges)?;
    calibrations.sort_by_key(|c| SCORERS.iter().position(|info| info.name == c.name()));
    let comparing = Comparing { judges: &judges, calibrations, reference, others: vec![other], alpha: 0.05 };
    let mut page = comparing.page(common)?;
    page.title = format!("{PRESET} on FashionMNIST");
    let train = &recipe.train;
    let count = judges.model.model.params().count();
    page.settings = [
        ("model", PRESET.to_string()),
        ("parameters", thousands(count)),
        ("training images", format!("{} of FashionMNIST", thousands(images.train.len()))),
        ("held out for validation and calibration", format!("{:.0}%", 100.0 * train.validation)),
        ("epochs", train.epochs.to_string()),
        ("batch", train.batch.to_string()),
        ("optimiser", format!("Adam, learning rate {}", train.lr)),
        ("background model", about_background),
        ("seed", train.seed.to_string()),
        ("threads", rayon::current_num_threads().to_string()),
        ("training time", format!("{seconds:.0} s")),
    ]
    .map(|(key, value)| (key.to_string(), value))
    .to_vec();
    publish(common, &page, &args.out)?;
    let found = finding(&page.rows);
    say(common, format!("\n{}\n{}", found.headline, found.paragraph));
    say(common, format!("{:.0} s in all", started.elapsed().as_secs_f64()));
    Ok(())
}
