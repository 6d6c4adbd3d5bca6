//! The learning curve of a preset on the demonstration images: mean surprisal of every 50 steps.
//!
//! ```text
//! cargo run --release --example learning_curve -- pixelcnn28 500
//! ```

use std::ops::ControlFlow;
use surprisal::data;
use surprisal::models::{MODELS, config};
use surprisal::train::{Event, Observer, fit};

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

fn main() -> surprisal::Result<()> {
    let mut args = std::env::args().skip(1);
    let preset = args.next().unwrap_or_else(|| "pixelcnn28".into());
    let steps = args.next().unwrap_or_else(|| "500".into());
    let mut recipe = config::find(MODELS, &preset)?;
    recipe.set(&[format!("train.steps={steps}"), "train.lr=0.001".into()])?;
    recipe.set(&args.collect::<Vec<_>>())?;
    let images = data::demo(None)?;
    let model = recipe.build()?;
    fit(&*model, &images.train, None, &recipe.train, &mut Curve { preset, sum: 0.0 }).map(drop)
}
