//! `score`: one line per example with its log-likelihood, score, p-value and decision.

use super::evidence::{calibrations, know, needs, needs_to_score, open};
use super::progress::{catch_interrupts, say};
use super::{Common, inputs, output};
use crate::calibrate::{Calibration, calibrate};
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::Evidence;
use crate::report::bits_per_dim;
use crate::scorers;
use serde::Serialize;
use std::fmt::Write;
use std::path::PathBuf;

/// The false-alarm rate when none is asked for.
const ALPHA: f64 = 0.01;

#[derive(clap::Args)]
pub struct Args {
    /// A model file, or the folder that `train` wrote
    model: PathBuf,
    /// The data to score
    data: PathBuf,
    #[command(flatten)]
    reading: inputs::Reading,
    /// The scorer (`list scorers`) [default: likelihood_ratio with a background model, else complexity_png for images,
    /// else typicality]
    #[arg(long, value_name = "NAME")]
    scorer: Option<String>,
    /// The background model of likelihood ratios
    #[arg(long, value_name = "FILE")]
    background: Option<PathBuf>,
    /// Normal data that the model was not trained on, to calibrate p-values [default: what training held out]
    #[arg(long, value_name = "PATH")]
    reference: Option<PathBuf>,
    /// The share of normal examples that may be called anomalies [default: 0.01]
    #[arg(long, value_name = "RATE")]
    alpha: Option<f64>,
    /// CSV, the default
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

/// One example.
#[derive(Serialize)]
struct Line {
    index: usize,
    nats: f64,
    bits_per_dim: f64,
    score: Option<f64>,
    p_value: Option<f64>,
    decision: Option<&'static str>,
}

/// Scores and prints.
pub fn run(args: &Args, common: &Common) -> Result<()> {
    catch_interrupts()?;
    let scorer = args.scorer.as_deref().map(scorers::find).transpose()?;
    let judges = open(&args.model, args.background.as_deref())?;
    let data = args.reading.open(&args.data)?;
    judges.model.model.input().check(&data)?;
    let image = data.example_shape().len() == 3 && data.values.dtype() == crate::DType::U8;
    let scorer = match scorer {
        Some(scorer) => scorer,
        None => scorers::find(match (&args.background, image) {
            (Some(_), _) => "likelihood_ratio",
            (None, true) => "complexity_png",
            (None, false) => "typicality",
        })?,
    };
    let reference = match &args.reference {
        Some(path) => {
            let reference = know(&judges, common, args.reading.open(path)?, &needs(&[scorer]))?;
            scorer.applies(&reference)?;
            calibrate(&reference, &|info| info.name == scorer.name)?
        }
        None => calibrations(&judges)?,
    };
    let calibration = reference.iter().find(|c| c.name() == scorer.name);
    let known = know(&judges, common, data, &needs_to_score(&[scorer]))?;
    let calibrated = calibration.map(|c| Ok::<_, Error>((c.scorer()?, c))).transpose()?;
    let lines = match calibrated {
        Some((scorer, calibration)) => {
            let alpha = args.alpha.unwrap_or(ALPHA.max(calibration.smallest_alpha()));
            let threshold = calibration.threshold(alpha)?;
            let (name, rows) = (calibration.name(), calibration.rows());
            say(
                common,
                format!(
                    "{name}: above {threshold:.3} is an anomaly; {alpha} of normal data is expected there, by {rows} held-out scores"
                ),
            );
            judge(&known, &scorer.score(&known)?, scorer.rows_per_score(), Some((calibration, threshold)))
        }
        None => {
            if args.alpha.is_some() || args.scorer.is_some() {
                return Err(uncalibrated(scorer.name));
            }
            say(common, format!("{}; without, there are log-likelihoods only", uncalibrated(scorer.name)));
            judge(&known, &[], 1, None)
        }
    };
    if common.json {
        return output::print(&output::json_lines(&lines)?);
    }
    let mut text = String::from("index,nats,bits_per_dim,score,p_value,decision\n");
    let cell = |x: Option<f64>| x.map_or(String::new(), |x| x.to_string());
    for l in &lines {
        let (score, p, decision) = (cell(l.score), cell(l.p_value), l.decision.unwrap_or_default());
        let _ = writeln!(text, "{},{},{},{score},{p},{decision}", l.index, l.nats, l.bits_per_dim);
    }
    output::print(&text)
}

fn uncalibrated(scorer: &str) -> Error {
    let message = format!(
        "\"{scorer}\" is not calibrated in the model file; --reference PATH names normal data to do it"
    );
    Error::new(ErrorKind::Usage, message)
}

fn judge(
    known: &Evidence,
    scores: &[f64],
    per: usize,
    calibration: Option<(&Calibration, f64)>,
) -> Vec<Line> {
    let dims = known.data().dims();
    let line = |(index, &nats): (usize, &f64)| {
        let score = scores.get(index / per).copied();
        let p_value = score.zip(calibration).map(|(s, (c, _))| c.p_value(s));
        let decision = score.zip(calibration).map(|(s, (_, t))| if s > t { "anomaly" } else { "normal" });
        Line { index, nats, bits_per_dim: bits_per_dim(nats, dims), score, p_value, decision }
    };
    known.nats.iter().enumerate().map(line).collect()
}
