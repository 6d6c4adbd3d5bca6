//! One fixed combination of likelihood and complexity, for use when nothing is known about the anomalies.
//!
//! ```text
//! p₁(x) = 2 min(F(s), 1 − F(s)),  s = −log p(x)             too surprising, or too little
//! p₂(x) = 1 − G(S),               S = −log₂ p(x) − L(x)     surprising for its complexity
//! score(x) = −ln min(p₁, p₂)                                nats
//! ```
//! L is the shortest code of the general-purpose compressors (as `complexity`); F and G are smooth distribution
//! functions of the reference (logistic kernels, bandwidth of Silverman 1986), so there are no ties and no end
//! beyond the largest reference value. Each part answers one way in which raw likelihood fails: p₁ is the two-sided
//! typicality of Nalisnick et al. 2019 (atypically *likely* inputs), p₂ the input complexity of Serra et al. 2020,
//! one-sided as there (an input that the model codes better than a compressor is no anomaly). The minimum flags what
//! either finds, at the price of a factor of two in p: so a pair that fools one of them in one direction is held in
//! both.
//!
//! There is no constant to tune, and the parts are taken from the literature as they are. Data that is neither bytes nor
//! tokens has no code length that means anything: then p₁ stands alone. The constant that an unnormalised likelihood
//! lacks is the same for the reference, and falls out of both parts.

use super::complexity::code_lengths;
use super::{ANY_KIND, Evidence, Fitted, Learn, Need, ScorerInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::report::metrics::quantile;
use crate::tensor::DType;
use serde::{Deserialize, Serialize};
use std::f64::consts::LN_2;

/// The registry's line.
pub static AUTO: ScorerInfo = ScorerInfo {
    name: "auto",
    family: "combined",
    summary: "the rarer of two: two-sided surprisal, and surprisal beyond the compressed length",
    unit: "nats",
    accepts: ANY_KIND,
    needs: &[Need::Values],
    uses: &[],
    build: Fitted::<Auto>::boxed,
};

#[derive(Serialize, Deserialize)]
struct Auto {
    surprisal: Distribution,
    /// Of S, where there are code lengths.
    excess: Option<Distribution>,
}

/// A smooth distribution of reference values.
#[derive(Serialize, Deserialize)]
struct Distribution {
    /// Ascending.
    values: Vec<f64>,
    bandwidth: f64,
}

/// The most reference values behind a distribution: enough for its shape.
const MOST_VALUES: usize = 1000;

impl Learn for Auto {
    const INFO: &'static ScorerInfo = &AUTO;

    fn learn(reference: &Evidence) -> Result<Self> {
        Ok(Self {
            surprisal: Distribution::of(surprisal(reference)),
            excess: excess(reference)?.map(Distribution::of),
        })
    }

    fn judge(&self, evidence: &Evidence) -> Result<Vec<f64>> {
        let two_sided = |s: f64| self.surprisal.ln_above(s).min(self.surprisal.ln_below(s)) + LN_2;
        // 0 − 0 is 0, −0 is printed with its sign.
        let mut scores: Vec<f64> = surprisal(evidence).into_iter().map(|s| 0.0 - two_sided(s)).collect();
        let Some(known) = &self.excess else { return Ok(scores) };
        let Some(found) = excess(evidence)? else {
            let name = &evidence.data().name;
            let message = format!("{name}: \"auto\" was fitted on bytes or tokens");
            return Err(Error::new(ErrorKind::Data, message));
        };
        scores.iter_mut().zip(found).for_each(|(score, s)| *score = score.max(-known.ln_above(s)));
        Ok(scores)
    }

    fn check(&self) -> std::result::Result<(), &'static str> {
        let whole = |d: &Distribution| !d.values.is_empty() && d.bandwidth > 0.0;
        if whole(&self.surprisal) && self.excess.as_ref().is_none_or(whole) {
            Ok(())
        } else {
            Err("a distribution without values")
        }
    }
}

fn surprisal(evidence: &Evidence) -> Vec<f64> {
    evidence.nats.iter().map(|l| -l).collect()
}

/// S in bits.
fn excess(evidence: &Evidence) -> Result<Option<Vec<f64>>> {
    let whole = matches!(evidence.data().values.dtype(), DType::U8 | DType::I32);
    if !whole {
        return Ok(None);
    }
    let lengths = code_lengths(evidence)?;
    let shortest = |i: usize| lengths.iter().map(|l| l[i]).fold(f64::INFINITY, f64::min);
    Ok(Some(evidence.nats.iter().enumerate().map(|(i, l)| -l / LN_2 - shortest(i)).collect()))
}

impl Distribution {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let bandwidth = bandwidth(&values);
        Self { values: thinned(values, MOST_VALUES), bandwidth }
    }

    /// ln (1/n) Σ 1 / (1 + e^((x − v)/h)): the logarithm of the share above x.
    fn ln_above(&self, x: f64) -> f64 {
        self.ln_mean(|v| ln_sigmoid((v - x) / self.bandwidth))
    }

    fn ln_below(&self, x: f64) -> f64 {
        self.ln_mean(|v| ln_sigmoid((x - v) / self.bandwidth))
    }

    fn ln_mean(&self, f: impl Fn(f64) -> f64) -> f64 {
        // The largest term belongs to one of the ends.
        let ends = [self.values[0], self.values[self.values.len() - 1]];
        let top = f(ends[0]).max(f(ends[1]));
        let sum: f64 = self.values.iter().map(|v| (f(*v) - top).exp()).sum();
        top + (sum / self.values.len() as f64).ln()
    }
}

/// ln 1/(1 + e^(−z)) without overflow.
fn ln_sigmoid(z: f64) -> f64 {
    z.min(0.0) - (-z.abs()).exp().ln_1p()
}

/// Silverman's rule for sorted values: 0.9 min(std, IQR / 1.34) n^(−1/5); above 0 for constant ones.
pub(super) fn bandwidth(sorted: &[f64]) -> f64 {
    let n = sorted.len() as f64;
    let mean = sorted.iter().sum::<f64>() / n;
    let std = (sorted.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
    let iqr = (quantile(sorted, 0.75) - quantile(sorted, 0.25)) / 1.34;
    let spread = if iqr > 0.0 { std.min(iqr) } else { std };
    0.9 * n.powf(-0.2) * if spread > 0.0 { spread } else { mean.abs().max(1.0) * 1e-3 }
}

/// At most `most` of the sorted values, at even ranks: they keep the shape.
pub(super) fn thinned(sorted: Vec<f64>, most: usize) -> Vec<f64> {
    let n = sorted.len();
    if n <= most { sorted } else { (0..most).map(|i| sorted[i * (n - 1) / (most - 1)]).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Dataset;
    use crate::models::Kind;
    use crate::random::Philox;

    /// An unknown constant in log p is one of the reference too.
    #[test]
    fn a_constant_changes_nothing() {
        let images = Philox::new(1).randint(0, 256, [40, 6, 6, 1]).cast(DType::U8);
        let noise = Philox::new(2).normal([40], DType::F64).to_f64_vec();
        let with = |constant: f64| {
            let nats = noise.iter().map(|z| -190.0 + 5.0 * z + constant).collect();
            Evidence::new(Dataset::new("images", images.clone()), nats, Kind::Unnormalised)
        };
        let scores = |constant: f64| {
            let (evidence, mut scorer) = (with(constant), (AUTO.build)());
            scorer.fit(&evidence.rows(0..30)).unwrap();
            scorer.score(&evidence.rows(30..40)).unwrap()
        };
        for (a, b) in scores(0.0).into_iter().zip(scores(1e4)) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
    }

    /// Close to the normal distribution inside, monotone and finite far outside.
    #[test]
    fn distributions_are_smooth() {
        let z = Philox::new(4).normal([5000], DType::F64);
        let d = Distribution::of(z.as_slice::<f64>().to_vec());
        assert_eq!(d.values.len(), MOST_VALUES);
        for (x, above) in [(0.0, 0.5), (1.0, 0.1587), (-1.0, 0.8413), (2.0, 0.0228)] {
            let found = d.ln_above(x).exp();
            assert!((found - above).abs() < 0.03, "{x}: {found}");
            assert!((d.ln_below(x).exp() + found - 1.0).abs() < 1e-9);
        }
        let far: Vec<f64> = (0..60).map(|i| d.ln_above(10f64.powi(i / 3) * (1.0 + (i % 3) as f64))).collect();
        assert!(far.windows(2).all(|w| w[1] < w[0]) && far.iter().all(|x| x.is_finite()), "{far:?}");
        let constant = Distribution::of(vec![3.0; 10]);
        assert!(constant.ln_above(4.0) < -100.0 && constant.ln_below(4.0) > -1e-9);
    }
}
