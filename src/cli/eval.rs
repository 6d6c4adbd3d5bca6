//! `eval`: data sets held against a reference under a trained model.

use super::compare::{Comparing, publish};
use super::evidence::{calibrations, chosen, know, needs, needs_to_score, open};
use super::progress::{catch_interrupts, say};
use super::{Common, inputs};
use crate::calibrate::calibrate;
use crate::error::{Error, ErrorKind, Result};
use crate::scorers::{SCORERS, ScorerInfo};
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
    /// Only these scorers, or "all" [default: those that apply and cost no more than a forward pass]
    #[arg(long, value_name = "NAME")]
    scorer: Vec<String>,
    /// Folder that keeps log-likelihoods from one evaluation to the next
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
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
    let scorers = chosen(&args.scorer)?;
    let mut judges = open(&args.model, args.background.as_deref())?;
    judges.cache = args.cache.clone();
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
    args.cache.as_deref().map(inputs::writable).transpose()?;
    let mut reference = know(&judges, common, reference, &needs(&scorers))?;
    let named = |info: &ScorerInfo| args.scorer.iter().any(|name| name == info.name);
    if let Some(refused) = scorers.iter().find(|info| named(info) && info.applies(&reference).is_err()) {
        refused.applies(&reference)?;
    }
    let to_score = needs_to_score(&scorers);
    let wanted: Vec<_> = scorers.into_iter().filter(|info| info.applies(&reference).is_ok()).collect();
    let is_wanted = |name: &str| wanted.iter().any(|info| info.name == name);
    let mut calibrations = calibrations(&judges)?;
    calibrations.retain(|c| is_wanted(c.name()));
    if calibrations.len() < wanted.len() {
        let n = reference.len();
        let note =
            format!("the model file does not calibrate every scorer: {} of {n} reference rows do", n / 2);
        say(common, note);
        calibrations = calibrate(&reference.rows(0..n / 2), &|info| is_wanted(info.name))?;
        reference = reference.rows(n / 2..n);
    }
    calibrations.sort_by_key(|c| SCORERS.iter().position(|info| info.name == c.name()));
    let others =
        others.into_iter().map(|data| know(&judges, common, data, &to_score)).collect::<Result<Vec<_>>>()?;
    let comparing = Comparing { judges: &judges, calibrations, reference, others, alpha: args.alpha };
    let mut page = comparing.page(common)?;
    let meta = &judges.model.meta;
    page.title = format!("{} on {}", meta.preset, comparing.reference.data().name);
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
