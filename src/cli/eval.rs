//! `eval`: data sets held against a reference under a trained model.

use super::compare::{Comparing, publish};
use super::evidence::Judges;
use super::progress::{catch_interrupts, say};
use super::{Common, inputs};
use crate::error::{Error, ErrorKind, Result};
use crate::scorers::{self, SCORERS};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// A model file, or the folder that `train` wrote
    model: PathBuf,
    /// Normal data that the model was not trained on
    #[arg(long, value_name = "PATH")]
    reference: PathBuf,
    /// Data to hold against it
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    other: Vec<PathBuf>,
    #[command(flatten)]
    reading: inputs::Reading,
    /// The background model of likelihood ratios
    #[arg(long, value_name = "FILE")]
    background: Option<PathBuf>,
    /// Only these scorers [default: all that apply]
    #[arg(long, value_name = "NAME")]
    scorer: Vec<String>,
    /// The false-alarm rate whose keeping the report shows
    #[arg(long, value_name = "RATE", default_value_t = 0.05)]
    alpha: f64,
    /// Folder for results.json and report.html
    #[arg(long, value_name = "DIR", default_value = "surprisal-out/eval")]
    out: PathBuf,
}

/// Compares, writes, prints.
pub fn run(args: &Args, common: &Common) -> Result<()> {
    catch_interrupts()?;
    if !(args.alpha > 0.0 && args.alpha < 1.0) {
        let message = format!("--alpha {}: expected a rate between 0 and 1", args.alpha);
        return Err(Error::new(ErrorKind::Usage, message));
    }
    for name in &args.scorer {
        scorers::find(name)?;
    }
    let judges = Judges::open(&args.model, args.background.as_deref())?;
    let open = |path: &PathBuf| {
        let data = args.reading.open_for(path, &judges.model.meta)?;
        judges.model.model.input().check(&data)?;
        Ok(data)
    };
    let reference = open(&args.reference)?;
    let others = args.other.iter().map(open).collect::<Result<Vec<_>>>()?;
    let mut names = std::iter::once(&reference).chain(&others).map(|d| d.name.as_str()).collect::<Vec<_>>();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|w| w[0] == w[1]) {
        let message = format!("two data sets are called \"{}\": rename one of the files", twice[0]);
        return Err(Error::new(ErrorKind::Usage, message));
    }
    inputs::writable(&args.out)?;
    let mut reference = judges.know(common, reference)?;
    let chosen = |name: &str| args.scorer.is_empty() || args.scorer.iter().any(|s| s == name);
    let wanted =
        SCORERS.iter().filter(|info| chosen(info.name) && info.applies(&reference.evidence()).is_ok());
    let wanted: Vec<&str> = wanted.map(|info| info.name).collect();
    if let Some(missing) = args.scorer.iter().find(|s| !wanted.contains(&s.as_str())) {
        scorers::find(missing)?.applies(&reference.evidence())?;
    }
    let mut calibrations = judges.calibrations()?;
    calibrations.retain(|c| wanted.contains(&c.name()));
    if calibrations.len() < wanted.len() {
        let n = reference.nats.len();
        say(
            common,
            format!("the model file does not calibrate every scorer: {} of {n} reference rows do", n / 2),
        );
        calibrations = reference.rows(0..n / 2).calibrations()?;
        calibrations.retain(|c| wanted.contains(&c.name()));
        reference = reference.rows(n / 2..n);
    }
    calibrations.sort_by_key(|c| SCORERS.iter().position(|info| info.name == c.name()));
    let others = others.into_iter().map(|data| judges.know(common, data)).collect::<Result<Vec<_>>>()?;
    let comparing = Comparing { judges: &judges, calibrations, reference, others, alpha: args.alpha };
    let mut page = comparing.page(common)?;
    let meta = &judges.model.meta;
    page.title = format!("{} on {}", meta.preset, comparing.reference.data.name);
    page.settings = vec![
        ("model file".into(), args.model.display().to_string()),
        ("model".into(), format!("{} ({})", meta.preset, meta.model)),
        ("parameters".into(), super::output::thousands(judges.model.model.params().count())),
        (
            "trained on".into(),
            meta.data.as_ref().map_or(String::new(), |d| format!("{} x {}", d.examples, d.name)),
        ),
        ("background".into(), args.background.as_ref().map_or("none".into(), |b| b.display().to_string())),
        ("seed".into(), meta.seed.to_string()),
    ];
    publish(common, &page, &args.out)
}
