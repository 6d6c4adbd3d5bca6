//! `sample`: draw from a model.

use super::{Common, inputs, output};
use crate::data::{self, Schema};
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::models::SampleOptions;
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use std::path::PathBuf;

/// The stream of the seed from which samples are drawn.
pub const SAMPLES: u64 = 3;

#[derive(clap::Args)]
pub struct Args {
    /// A model file, or the folder that `train` wrote
    model: PathBuf,
    /// How many
    #[arg(short, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    n: u32,
    /// Where they go: .png (images side by side), .csv (tables), .txt (bytes, one sample after another) or .npy
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Below 1: closer to what is most likely
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// The class to draw, for conditional models
    #[arg(long, value_name = "CLASS")]
    label: Option<i32>,
}

/// Draws and writes.
pub fn run(args: &Args, common: &Common) -> Result<()> {
    let usage = |message: String| Err(Error::new(ErrorKind::Usage, message));
    let ending = args.out.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if !["png", "npy", "csv", "txt"].contains(&ending) {
        let out = args.out.display();
        return usage(format!("--out {out}: expected a name ending in .png, .csv, .txt or .npy"));
    }
    if !(args.temperature > 0.0 && args.temperature.is_finite()) {
        return usage(format!("--temperature {}: expected a number above 0", args.temperature));
    }
    let file = inputs::model_on(&args.model, common)?;
    let input = file.model.input();
    if let Some(label) = args.label {
        match input.classes {
            None => return usage(format!("--label {label}: the model is not conditioned on classes")),
            Some(n) if label < 0 || label as usize >= n => {
                return usage(format!("--label {label}: the model has classes 0..{n}"));
            }
            Some(_) => {}
        }
    }
    let (shape, tokens) = (&input.shape[..], !input.dtypes[0].is_float());
    let (fits, what) = match ending {
        "png" => (matches!(shape, [_, _, 1 | 3]), "images"),
        "csv" => (shape.len() == 1 && !tokens, "rows of a table"),
        "txt" => (shape.len() == 1 && tokens && input.levels == 256, "texts"),
        _ => (true, ""),
    };
    if !fits {
        return usage(format!("--out: the model draws examples {shape:?}, not {what}; expected a .npy"));
    }
    let options =
        SampleOptions { temperature: args.temperature, label: args.label, ..SampleOptions::default() };
    let mut rng = Philox::new(common.seed.unwrap_or(file.meta.seed)).fork(SAMPLES);
    let drawn = file.model.draw(args.n as usize, &options, &mut rng)?;
    match ending {
        "png" => data::write_png(&args.out, &bytes(&drawn), (args.n as f64).sqrt().ceil() as usize)?,
        "csv" => {
            let schema = file.meta.data.and_then(|d| d.schema);
            data::write_csv(&args.out, &drawn, &schema.unwrap_or_else(|| Schema::numeric(shape[0])))?;
        }
        "txt" => files::write_atomic(&args.out, &texts(&drawn))?,
        _ => data::write_npy(&args.out, &drawn)?,
    }
    output::print(&format!("{}\n", args.out.display()))
}

/// Samples of bytes, each on lines of its own; zero bytes, which fill up lines, are left out.
fn texts(drawn: &Tensor) -> Vec<u8> {
    let rows = drawn.as_slice::<u8>().chunks_exact(drawn.shape()[1]);
    rows.flat_map(|row| row.iter().copied().filter(|&b| b != 0).chain([b'\n'])).collect()
}

/// Images as bytes: those of models of fractions in [0, 1] are multiplied by 255.
pub fn bytes(images: &Tensor) -> Tensor {
    if images.dtype() == DType::U8 {
        return images.clone();
    }
    let values = images.to_f64_vec();
    Tensor::from_fn(images.shape(), |i| (values[i].clamp(0.0, 1.0) * 255.0).round() as u8)
}
