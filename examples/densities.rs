//! Densities in the plane: every continuous model of the registry on rings, moons, pinwheel and checkerboard.
//!
//!     cargo run --release --example densities -- [OUT [MODEL-OR-PRESET,...]] [--set key=value ...]
//!
//! Trains each on 20,000 points, prints the held-out surprisal in nats of 10,000 others as a table in Markdown, and
//! writes OUT/NAME.png (default OUT: densities): for each density the data, the model's p(x), and its samples.

use std::path::{Path, PathBuf};
use std::time::Instant;
use surprisal::autograd::no_grad;
use surprisal::data::planes::{PLANES, Plane};
use surprisal::data::{self, Dataset};
use surprisal::models::config::{self, Recipe};
use surprisal::models::{Kind, MODELS, Model, ModelInfo, SampleOptions};
use surprisal::random::Philox;
use surprisal::train::{Evaluate, fit, log_probs};
use surprisal::{Error, ErrorKind, Result, Tensor};

/// Training points.
const TRAIN: usize = 20_000;
/// Pixels of a picture's side, and how far it reaches from the origin.
const SIDE: usize = 160;
const EDGE: f64 = 5.0;

fn main() -> Result<()> {
    let (mut out, mut names, mut set) = (None, None, Vec::new());
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--set" => set.extend(words.next()),
            _ if out.is_none() => out = Some(PathBuf::from(word)),
            _ => names = Some(word),
        }
    }
    let out = out.unwrap_or_else(|| "densities".into());
    std::fs::create_dir_all(&out).map_err(|e| Error::io(&out, e))?;
    let recipes = match names {
        Some(names) => names.split(',').map(|name| plane_recipe(name, &set)).collect(),
        None => MODELS.iter().map(|info| first_recipe(info)).collect::<Result<Vec<_>>>(),
    };
    println!(
        "| model | parameters |{} seconds |",
        PLANES.iter().map(|p| format!(" {} |", p.name)).collect::<String>()
    );
    println!("|---|---|{}---|", "---|".repeat(PLANES.len()));
    for recipe in recipes?.into_iter().flatten() {
        row(&recipe, &out)?;
    }
    let entropy = |p: &Plane| p.entropy.map_or(" |".into(), |h| format!(" {h:.3} |"));
    println!("| entropy | |{} |", PLANES.iter().map(entropy).collect::<String>());
    Ok(())
}

/// The first preset that takes two numbers.
fn first_recipe(info: &ModelInfo) -> Result<Option<Recipe>> {
    let all = info.presets.iter().map(|(name, _)| plane_recipe(name, &[]));
    Ok(all.collect::<Result<Vec<_>>>()?.into_iter().flatten().next())
}

/// The recipe for two columns, if the model takes two numbers.
fn plane_recipe(name: &str, set: &[String]) -> Result<Option<Recipe>> {
    let mut recipe = config::find(MODELS, name)?;
    recipe.adapt(&PLANES[0].sample(TRAIN, &mut Philox::new(0)));
    recipe.set(set)?;
    let Ok(model) = recipe.build() else { return Ok(None) };
    let input = model.input();
    let fits = input.shape == [2] && input.dtypes[0].is_float() && input.classes.is_none();
    Ok(fits.then_some(recipe))
}

fn row(recipe: &Recipe, out: &Path) -> Result<()> {
    let (mut cells, mut pictures, started) = (String::new(), Vec::new(), Instant::now());
    let mut parameters = 0;
    for (i, plane) in PLANES.iter().enumerate() {
        let points = |n, part| plane.sample(n, &mut Philox::new(i as u64).fork(part));
        let (train, validation, test) = (points(TRAIN, 0), points(2_000, 1), points(10_000, 2));
        let model = recipe.build()?;
        parameters = model.params().count();
        let place = |e: Error| e.at(format!("{} on {}", recipe.preset, plane.name));
        fit(&*model, &train, Some(&validation), &recipe.train, &mut ()).map_err(place)?;
        let how = Evaluate { batch: 1000, ..Evaluate::default() };
        let found = log_probs(&*model, &test, &how).map_err(place)?;
        let mark = match found.kind {
            Kind::Exact => "",
            Kind::LowerBound => "≤",
            Kind::Estimate => "≈",
            Kind::Unnormalised => "unnormalised ",
        };
        cells += &format!(" {mark}{:.3} |", -found.mean());
        pictures.extend([scatter(&test.values), density(&*model), samples(&*model)?]);
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("| {} | {parameters} |{cells} {seconds:.0} |", recipe.preset);
    let images = Tensor::from_slice(&pictures.concat(), [pictures.len(), SIDE, SIDE, 1]);
    data::write_png(out.join(format!("{}.png", recipe.info.name)), &images, 3)
}

/// The number of points in each pixel, the fullest white.
fn scatter(points: &Tensor) -> Vec<u8> {
    let mut counts = vec![0.0; SIDE * SIDE];
    for point in points.to_f64_vec().chunks(2) {
        let [x, y] = [point[0], -point[1]].map(|v| (v + EDGE) / (2.0 * EDGE) * SIDE as f64);
        if (0.0..SIDE as f64).contains(&x) && (0.0..SIDE as f64).contains(&y) {
            counts[y as usize * SIDE + x as usize] += 1.0;
        }
    }
    shades(&counts, 0.5)
}

/// p(x) at the middle of each pixel.
fn density(model: &dyn Model) -> Vec<u8> {
    let at = |i: usize| (i as f64 + 0.5) / SIDE as f64 * 2.0 * EDGE - EDGE;
    let grid = Tensor::from_fn([SIDE * SIDE, 2], |i| {
        let (y, x) = (i / 2 / SIDE, i / 2 % SIDE);
        if i % 2 == 0 { at(x) as f32 } else { -at(y) as f32 }
    });
    let rng = Philox::new(0);
    let nats = no_grad(|| {
        Dataset::new("grid", grid)
            .batches(1600)
            .flat_map(|(_, x)| {
                model.log_prob(&surprisal::models::Batch::new(x), &mut rng.clone()).nats.to_f64_vec()
            })
            .collect::<Vec<_>>()
    });
    let top = nats.iter().copied().fold(f64::MIN, f64::max);
    shades(&nats.iter().map(|v| (v - top).exp()).collect::<Vec<_>>(), 0.5)
}

fn samples(model: &dyn Model) -> Result<Vec<u8>> {
    match model.sample(10_000, &SampleOptions::default(), &mut Philox::new(7)) {
        Ok(points) => Ok(scatter(&points)),
        Err(e) if e.kind() == ErrorKind::Usage => Ok(vec![0; SIDE * SIDE]),
        Err(e) => Err(e),
    }
}

/// Grey levels: the 995th of a thousand of the positive values, and above, is white.
fn shades(values: &[f64], gamma: f64) -> Vec<u8> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| *v > 0.0 && v.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let white = sorted.get(sorted.len() * 995 / 1000).copied().unwrap_or(1.0);
    values.iter().map(|v| (255.0 * (v / white).clamp(0.0, 1.0).powf(gamma)) as u8).collect()
}
