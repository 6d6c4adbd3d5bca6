//! A program that links the library: it learns clothes, is shown digits, and keeps what it learned.
//!
//! ```text
//! cargo run --release --example novelty [PRESET [STEPS]]
//! ```

use surprisal::{Novelty, data};

/// The share of normal images that may be called anomalies.
const ALPHA: f64 = 0.02;

fn main() -> surprisal::Result<()> {
    let mut args = std::env::args().skip(1);
    let preset = args.next().unwrap_or_else(|| "vae28_logistic".into());
    let steps = format!("train.steps={}", args.next().unwrap_or_else(|| "300".into()));

    let images = data::demo(None)?;
    let novelty = Novelty::train(&preset, &[&steps], &images.train)?;
    println!("{preset}, {steps}, calibrated by {} images", novelty.calibration().rows());
    for (what, set) in [("clothes", &images.test), ("digits", &images.other)] {
        let verdicts = novelty.judge(set)?;
        let flagged = verdicts.iter().filter(|verdict| verdict.p_value <= ALPHA).count();
        let nats = verdicts.iter().map(|verdict| verdict.nats).sum::<f64>() / verdicts.len() as f64;
        println!("{what}: {flagged} of {} are novel, mean log p {nats:.0} nats", verdicts.len());
    }

    let path = std::env::temp_dir().join("novelty.safetensors");
    novelty.save(&path)?;
    let again = Novelty::open(&path)?;
    let first = |novelty: &Novelty| novelty.judge(&images.other.take(5));
    assert_eq!(first(&novelty)?, first(&again)?);
    println!("kept in {}", path.display());
    Ok(())
}
