//! Density of states: how often does the reference show such values of the model's statistics?
//!
//! ```text
//! score(x) = −Σ_j ln ( (1/n) Σ_i N(T_j(x); T_j(x_i), h_j²) ),        h_j = 0.9 min(std, IQR/1.34) n^(−1/5)
//! ```
//! T_j are statistics of the model and the input, x_i the reference; one kernel density estimate per statistic, as in
//! DoSE_KDE of Morningstar et al. 2021, "Density of states estimation for out-of-distribution detection",
//! arXiv:2006.09273 (bandwidth: Silverman 1986, eq. 3.31). Too high and too low are both rare. It takes what the
//! evidence has: log p and, as there, the terms that it is the sum of ([`Statistic::Terms`]); for bytes the code
//! lengths; log p under a background model; spread of an ensemble; every statistic of the model that was asked for
//! (of gradients, the logarithm of the norm over all parameters). What the reference had must be there again.

use super::auto::{bandwidth, thinned};
use super::complexity::code_lengths;
use super::ensemble::per_row;
use super::{ANY_KIND, Evidence, Fitted, Learn, Need, ScorerInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::models::Statistic;
use crate::tensor::DType;
use serde::{Deserialize, Serialize};

/// The registry's line.
pub static DOSE: ScorerInfo = ScorerInfo {
    name: "dose",
    family: "combined",
    summary: "rarity of the model's statistics by kernel densities of the reference (Morningstar et al. 2021)",
    unit: "nats",
    accepts: ANY_KIND,
    needs: &[Need::Values],
    uses: &[Need::Statistic(Statistic::Terms)],
    build: Fitted::<States>::boxed,
};

#[derive(Serialize, Deserialize)]
struct States(Vec<State>);

/// One statistic of the reference.
#[derive(Serialize, Deserialize)]
struct State {
    name: String,
    /// Ascending.
    values: Vec<f64>,
    bandwidth: f64,
}

/// The most reference values behind a density: enough for its shape.
const MOST_VALUES: usize = 1000;

impl Learn for States {
    const INFO: &'static ScorerInfo = &DOSE;

    fn learn(reference: &Evidence) -> Result<Self> {
        Ok(Self(statistics(reference)?.into_iter().map(|(name, values)| State::new(name, values)).collect()))
    }

    fn judge(&self, evidence: &Evidence) -> Result<Vec<f64>> {
        let found = statistics(evidence)?;
        let mut scores = vec![0.0; evidence.len()];
        for state in &self.0 {
            let Some((_, values)) = found.iter().find(|(name, _)| *name == state.name) else {
                let (name, wanted) = (&evidence.data().name, &state.name);
                let message =
                    format!("{name}: \"dose\" was fitted on {wanted}, which is not known of these rows");
                return Err(Error::new(ErrorKind::Data, message));
            };
            scores.iter_mut().zip(values).for_each(|(score, value)| *score += state.rarity(*value));
        }
        Ok(scores)
    }

    fn check(&self) -> std::result::Result<(), &'static str> {
        let whole = |s: &State| !s.values.is_empty() && s.bandwidth > 0.0;
        if !self.0.is_empty() && self.0.iter().all(whole) { Ok(()) } else { Err("a density without values") }
    }
}

impl State {
    fn new(name: String, mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let bandwidth = bandwidth(&values);
        let values = thinned(values, MOST_VALUES);
        Self { name, values, bandwidth }
    }

    /// −ln of the density, finite however far off.
    fn rarity(&self, x: f64) -> f64 {
        let exponent = |v: &f64| -0.5 * ((x - v) / self.bandwidth).powi(2);
        let at = self.values.partition_point(|v| *v < x);
        let nearest = self.values[at.saturating_sub(1)..].iter().take(2).map(exponent);
        let top = nearest.fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = self.values.iter().map(|v| (exponent(v) - top).exp()).sum();
        let scale = self.bandwidth * (2.0 * std::f64::consts::PI).sqrt() * self.values.len() as f64;
        scale.ln() - top - sum.ln()
    }
}

/// All that is known, by name.
fn statistics(evidence: &Evidence) -> Result<Vec<(String, Vec<f64>)>> {
    let mut found = vec![("log p".to_string(), evidence.nats.clone())];
    if matches!(evidence.data().values.dtype(), DType::U8 | DType::I32) {
        let lengths = code_lengths(evidence)?;
        found.extend(lengths.iter().enumerate().map(|(i, l)| (format!("code length {i}"), l.to_vec())));
    }
    if let Some(background) = &evidence.background {
        found.push(("log p of the background".into(), background.clone()));
    }
    if !evidence.members.is_empty() {
        let spread = per_row(evidence, |nats| {
            let mean = nats.iter().sum::<f64>() / nats.len() as f64;
            (nats.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / nats.len() as f64).sqrt()
        });
        found.push(("spread of the ensemble".into(), spread));
    }
    for (which, parts) in &evidence.statistics {
        if *which == Statistic::Terms {
            let named = |(i, part): (usize, &Vec<f64>)| (format!("term {i} of log p"), part.clone());
            found.extend(parts.iter().enumerate().map(named));
            continue;
        }
        let total = |row: usize| {
            let top = parts.iter().map(|p| p[row]).fold(f64::NEG_INFINITY, f64::max);
            top + parts.iter().map(|p| (p[row] - top).exp()).sum::<f64>().ln()
        };
        let values = match &parts[..] {
            [one] => one.clone(),
            _ => (0..evidence.len()).map(total).collect(),
        };
        found.push((which.name().into(), values));
    }
    Ok(found)
}
