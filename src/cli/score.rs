//! `score`: one line per example with its log-likelihood, score, p-value and decision.

use super::evidence::{calibrations, know, needs, needs_to_score, open};
use super::progress::{catch_interrupts, say};
use super::{Common, inputs, output, stream};
use crate::calibrate::{Calibration, Dependence, adjusted, calibrate};
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::explain::{per_cell, per_position, place, worst};
use crate::evidence::{Evidence, Judges};
use crate::report::bits_per_dim;
use crate::scorers::{self, Scorer};
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The false-alarm rate when none is asked for.
const ALPHA: f64 = 0.01;

#[derive(clap::Args)]
pub struct Args {
    /// A model file, or the folder that `train` wrote
    model: PathBuf,
    /// The data to score; - reads rows from standard input, line by line: cells as in CSV (a header may name them)
    /// or JSON
    data: PathBuf,
    #[command(flatten)]
    reading: inputs::Reading,
    /// The scorer (`list scorers`) [default: likelihood_ratio with a background model, else auto]
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
    /// Decide by the share of reported anomalies that may be false instead: Benjamini-Hochberg; LORD++ on a stream
    #[arg(long, value_name = "RATE", conflicts_with = "alpha")]
    fdr: Option<f64>,
    /// With --fdr: rows may depend on each other in any way (Benjamini-Yekutieli)
    #[arg(long, requires = "fdr")]
    dependent: bool,
    /// Name the K most surprising pixels, steps or cells of each anomaly, with their nats
    #[arg(long, value_name = "K")]
    explain: Option<usize>,
    /// On a stream: warn of drift, with false alarms at least ROWS apart in the mean
    #[arg(long, value_name = "ROWS")]
    drift: Option<f64>,
    /// CSV, the default
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

/// One example.
#[derive(Default, Serialize)]
pub struct Line {
    /// When the example began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    pub index: usize,
    pub nats: f64,
    pub bits_per_dim: f64,
    pub score: Option<f64>,
    pub p_value: Option<f64>,
    pub decision: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Vec<Part>>,
}

/// One surprising part of an example.
#[derive(Serialize)]
pub struct Part {
    place: String,
    nats: f64,
}

/// How decisions are made.
pub struct Decider {
    pub calibration: Calibration,
    pub scorer: Box<dyn Scorer>,
    pub rule: Rule,
}

/// What a decision promises.
pub enum Rule {
    /// Scores above the threshold: a false-alarm rate.
    Threshold(f64),
    /// A false-discovery rate.
    Fdr(f64, Dependence),
}

/// Scores and prints.
pub fn run(args: &Args, common: &Common) -> Result<()> {
    catch_interrupts()?;
    let scorer = args.scorer.as_deref().map(scorers::find).transpose()?;
    let judges = open(common, &args.model, args.background.as_deref())?;
    let input = judges.model.model.input();
    let scorer = match scorer {
        Some(scorer) => scorer,
        None => scorers::find(if args.background.is_some() { "likelihood_ratio" } else { "auto" })?,
    };
    let stdin = args.data == Path::new("-");
    let data = if stdin { None } else { Some(args.reading.open_for(&args.data, &judges.model)?) };
    data.as_ref().map(|data| input.check(data)).transpose()?;
    let reference = match &args.reference {
        Some(path) => {
            let reference =
                know(&judges, common, args.reading.open_for(path, &judges.model)?, &needs(&[scorer]))?;
            scorer.applies(&reference)?;
            calibrate(&reference, &|info| info.name == scorer.name)?
        }
        None => calibrations(&judges)?,
    };
    let calibration = reference.into_iter().find(|c| c.name() == scorer.name);
    let decider = calibration.map(|calibration| decider(args, common, calibration)).transpose()?;
    if decider.is_none()
        && args.scorer.is_some()
        && args.background.is_none()
        && scorer.name == "likelihood_ratio"
    {
        let message = format!("the scorer \"{}\" needs a background model: --background FILE", scorer.name);
        return Err(Error::new(ErrorKind::Usage, message));
    }
    if decider.is_none() {
        if args.alpha.or(args.fdr).is_some() || args.scorer.is_some() {
            return Err(uncalibrated(scorer.name));
        }
        say(common, format!("{}; without, there are log-likelihoods only", uncalibrated(scorer.name)));
    }
    let Some(data) = data else {
        let options =
            stream::Options { drift: args.drift, json: common.json, needs: needs_to_score(&[scorer]) };
        if args.explain.is_some() || args.dependent {
            let message = "--explain and --dependent need a file, not standard input";
            return Err(Error::new(ErrorKind::Usage, message));
        }
        return stream::run(&judges, decider, &options, common);
    };
    if args.drift.is_some() {
        return Err(Error::new(ErrorKind::Usage, "--drift watches a stream: give - as the data"));
    }
    let known = know(&judges, common, data, &needs_to_score(&[scorer]))?;
    scorer.applies(&known)?;
    let mut lines = judge(&known, decider.as_ref())?;
    if let Some(k) = args.explain {
        explain(&judges, known.data(), &mut lines, k)?;
    }
    if common.json {
        return output::print(&output::json_lines(&lines)?);
    }
    let mut text = header(known.data().times.is_some(), args.explain.is_some());
    lines.iter().for_each(|line| csv(&mut text, line));
    output::print(&text)
}

fn decider(args: &Args, common: &Common, calibration: Calibration) -> Result<Decider> {
    let (name, rows) = (calibration.name(), calibration.rows());
    let rule = match args.fdr {
        Some(q) => {
            let smallest = calibration.smallest_alpha();
            say(
                common,
                format!(
                    "{name}: of the anomalies reported, at most a share {q} is expected to be false; {rows} held-out scores, so no p-value is below {smallest:.2e}"
                ),
            );
            Rule::Fdr(q, if args.dependent { Dependence::Any } else { Dependence::Positive })
        }
        None => {
            let alpha = args.alpha.unwrap_or(ALPHA.max(calibration.smallest_alpha()));
            let threshold = calibration.threshold(alpha)?;
            say(
                common,
                format!(
                    "{name}: above {threshold:.3} is an anomaly; {} of normal data is expected there, by {rows} held-out scores",
                    output::short(alpha)
                ),
            );
            Rule::Threshold(threshold)
        }
    };
    Ok(Decider { scorer: calibration.scorer()?, calibration, rule })
}

/// The first line of a CSV.
pub fn header(timed: bool, explained: bool) -> String {
    let (time, more) = (if timed { "time," } else { "" }, if explained { ",explanation" } else { "" });
    format!("{time}index,nats,bits_per_dim,score,p_value,decision{more}\n")
}

/// Adds one line of CSV.
pub fn csv(text: &mut String, l: &Line) {
    let cell = |x: Option<f64>| x.map_or(String::new(), |x| x.to_string());
    let (score, p, decision) = (cell(l.score), cell(l.p_value), l.decision.unwrap_or_default());
    let time = l.time.as_ref().map_or(String::new(), |time| format!("{time},"));
    let _ = write!(text, "{time}{},{},{},{score},{p},{decision}", l.index, l.nats, l.bits_per_dim);
    if let Some(parts) = &l.explanation {
        let parts: Vec<String> = parts
            .iter()
            .map(|p| format!("{}={:.3}", p.place.replace([',', ';', '\n', '"'], " "), p.nats))
            .collect();
        let _ = write!(text, ",{}", parts.join(";"));
    }
    text.push('\n');
}

fn uncalibrated(scorer: &str) -> Error {
    let message = format!(
        "\"{scorer}\" is not calibrated in the model file; --reference PATH names normal data to do it"
    );
    Error::new(ErrorKind::Usage, message)
}

fn judge(known: &Evidence, decider: Option<&Decider>) -> Result<Vec<Line>> {
    let dims = known.data().dims();
    let times = known.data().times.as_ref();
    let line = |(index, &nats): (usize, &f64)| Line {
        time: times.map(|times| times[index].clone()),
        index,
        nats,
        bits_per_dim: bits_per_dim(nats, dims),
        ..Default::default()
    };
    let mut lines: Vec<Line> = known.nats.iter().enumerate().map(line).collect();
    let Some(decider) = decider else { return Ok(lines) };
    let scores = decider.scorer.score(known)?;
    let p_values: Vec<f64> = scores.iter().map(|s| decider.calibration.p_value(*s)).collect();
    let anomalies: Vec<bool> = match decider.rule {
        Rule::Threshold(threshold) => scores.iter().map(|s| *s > threshold).collect(),
        Rule::Fdr(q, dependence) => {
            if !(q > 0.0 && q < 1.0) {
                let message = format!("--fdr {q}: expected a rate between 0 and 1");
                return Err(Error::new(ErrorKind::Usage, message));
            }
            adjusted(&p_values, dependence)?.into_iter().map(|p| p <= q).collect()
        }
    };
    for (i, line) in lines.iter_mut().enumerate() {
        let i = i / decider.scorer.rows_per_score();
        line.score = scores.get(i).copied();
        line.p_value = p_values.get(i).copied();
        line.decision = anomalies.get(i).map(|&a| if a { "anomaly" } else { "normal" });
    }
    Ok(lines)
}

/// Explains the anomalies, or all rows when nothing was decided.
fn explain(judges: &Judges, data: &Dataset, lines: &mut [Line], k: usize) -> Result<()> {
    let rows: Vec<usize> = (0..lines.len()).filter(|&i| lines[i].decision != Some("normal")).collect();
    let (model, picked) = (&*judges.model.model, data.select(&rows));
    lines.iter_mut().for_each(|line| line.explanation = Some(vec![]));
    if rows.is_empty() {
        return Ok(());
    }
    let found = if data.values.rank() == 2 {
        per_cell(model, &picked, data)?
    } else {
        per_position(model, &picked)?.ok_or_else(|| {
            let name = &judges.model.meta.model;
            let message = format!("--explain: {name} does not say which part of an example is surprising");
            Error::new(ErrorKind::Usage, message)
        })?
    };
    for (row, nats) in rows.into_iter().zip(found) {
        let part = |i: usize| Part { place: place(data, row, i), nats: nats[i] };
        lines[row].explanation = Some(worst(&nats, k).into_iter().map(part).collect());
    }
    Ok(())
}
