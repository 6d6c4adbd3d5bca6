//! `sample`: draw from a model.

use super::{Common, inputs, output};
use crate::data;
use crate::error::{Error, ErrorKind, Result};
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
    /// Where they go: .png (images side by side) or .npy
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
    let png = match args.out.extension().and_then(|e| e.to_str()) {
        Some("png") => true,
        Some("npy") => false,
        _ => return usage(format!("--out {}: expected a name ending in .png or .npy", args.out.display())),
    };
    if !(args.temperature > 0.0 && args.temperature.is_finite()) {
        return usage(format!("--temperature {}: expected a number above 0", args.temperature));
    }
    let file = inputs::model(&args.model)?;
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
    if png && !(input.shape.len() == 3 && matches!(input.shape[2], 1 | 3)) {
        return usage(format!(
            "--out: the model draws examples {:?}, not images; expected a .npy",
            input.shape
        ));
    }
    let options = SampleOptions { temperature: args.temperature, label: args.label };
    let mut rng = Philox::new(common.seed.unwrap_or(file.meta.seed)).fork(SAMPLES);
    let drawn = file.model.sample(args.n as usize, &options, &mut rng)?;
    if png {
        data::write_png(&args.out, &bytes(&drawn), (args.n as f64).sqrt().ceil() as usize)?;
    } else {
        data::write_npy(&args.out, &drawn)?;
    }
    output::print(&format!("{}\n", args.out.display()))
}

/// Images as bytes: those of models of fractions in [0, 1] are multiplied by 255.
pub fn bytes(images: &Tensor) -> Tensor {
    if images.dtype() == DType::U8 {
        return images.clone();
    }
    let values = images.to_f64_vec();
    Tensor::from_fn(images.shape(), |i| (values[i].clamp(0.0, 1.0) * 255.0).round() as u8)
}
