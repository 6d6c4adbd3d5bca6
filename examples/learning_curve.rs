//! The learning curve of a preset on the demonstration images: mean surprisal of every 50 steps.
//!
//! ```text
//! cargo run --release --example learning_curve -- pixelcnn28 500
//! cargo run --release --example learning_curve -- glow28 500 'prepare=[]' --dump DIR
//! ```
//!
//! A model of numbers gets the images dequantised once. `--dump` writes the parameters at the first step
//! (`start.safetensors`) and all batches (`batches.bin`, elements as trained on), so that another implementation can
//! walk the same way.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Mutex;
use surprisal::data::{self, Dataset};
use surprisal::models::{Batch, Input, LogProb, MODELS, Model, SampleOptions, config, container};
use surprisal::nn::ParamStore;
use surprisal::random::Philox;
use surprisal::train::{Event, Observer, fit};
use surprisal::{DType, Result, Tensor};

/// Steps per printed line.
const EVERY: u64 = 50;

struct Curve {
    preset: String,
    sum: f64,
}

impl Observer for Curve {
    fn on(&mut self, event: &Event) -> ControlFlow<()> {
        if let Event::Step(info) = event {
            self.sum += info.nats;
            if info.step.is_multiple_of(EVERY) {
                println!("{} {} {:.2}", self.preset, info.step, self.sum / EVERY as f64);
                self.sum = 0.0;
            }
        }
        ControlFlow::Continue(())
    }
}

/// A model that writes down where it starts and what it is shown.
struct Recorded {
    model: Box<dyn Model>,
    folder: PathBuf,
    batches: Mutex<Option<File>>,
}

impl Recorded {
    fn record(&self, batch: &Batch) -> std::io::Result<()> {
        let mut batches = self.batches.lock().expect("one thread trains");
        if batches.is_none() {
            let start: BTreeMap<String, Tensor> =
                self.model.params().iter().map(|(name, p)| (name.to_string(), p.get())).collect();
            container::write(self.folder.join("start.safetensors"), &start, &serde_json::json!({}))
                .map_err(std::io::Error::other)?;
            *batches = Some(File::create(self.folder.join("batches.bin"))?);
        }
        let file = batches.as_mut().expect("just made");
        match batch.x.dtype() {
            DType::U8 => file.write_all(batch.x.as_slice::<u8>()),
            _ => file.write_all(bytemuck::cast_slice(batch.x.cast(DType::F32).as_slice::<f32>())),
        }
    }
}

impl Model for Recorded {
    fn config(&self) -> serde_json::Value {
        self.model.config()
    }
    fn input(&self) -> Input {
        self.model.input()
    }
    fn params(&self) -> &ParamStore {
        self.model.params()
    }
    fn log_prob(&self, batch: &Batch, rng: &mut Philox) -> LogProb {
        self.model.log_prob(batch, rng)
    }
    fn sample(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor> {
        self.model.sample(n, options, rng)
    }
    fn objective(&self, batch: &Batch, rng: &mut Philox) -> Tensor {
        self.record(batch).expect("the folder takes the record");
        self.model.objective(batch, rng)
    }
    fn init_from(&self, train: &Dataset, batch: &Batch, rng: &mut Philox) {
        self.model.init_from(train, batch, rng);
    }
}

fn main() -> Result<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let dump = args.iter().position(|a| a == "--dump").map(|at| {
        args.remove(at);
        PathBuf::from(if at < args.len() { args.remove(at) } else { ".".into() })
    });
    let mut args = args.into_iter();
    let preset = args.next().unwrap_or_else(|| "pixelcnn28".into());
    let steps = args.next().unwrap_or_else(|| "500".into());
    let mut recipe = config::find(MODELS, &preset)?;
    recipe.set(&[format!("train.steps={steps}"), "train.lr=0.001".into()])?;
    recipe.set(&args.collect::<Vec<_>>())?;
    let mut images = data::demo(None)?.train;
    let mut model = recipe.build()?;
    if !model.input().dtypes.contains(&DType::U8) {
        let x = images.values.cast(DType::F32);
        let noise = Philox::new(recipe.train.seed).uniform(x.shape(), DType::F32);
        images.values = (&x + &noise).affine(1.0 / 256.0, 0.0);
    }
    if let Some(folder) = dump {
        std::fs::create_dir_all(&folder).map_err(|e| {
            surprisal::Error::new(surprisal::ErrorKind::Io, format!("{}: {e}", folder.display()))
        })?;
        model = Box::new(Recorded { model, folder, batches: Mutex::new(None) });
    }
    fit(&*model, &images, None, &recipe.train, &mut Curve { preset, sum: 0.0 }).map(drop)
}
