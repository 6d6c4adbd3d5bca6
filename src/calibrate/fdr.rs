//! False-discovery rate of a batch of decisions.
//!
//! ```text
//! p_(1) ≤ ... ≤ p_(m)     k = max { i : p_(i) ≤ i q / (m c) }     the k smallest are discoveries,  E[false / k] ≤ q
//! ```
//! c = 1: Benjamini & Hochberg 1995, valid for independent p-values and for those with positive regression dependence.
//! Conformal p-values that share one reference set are of that kind (Bates et al. 2023, "Testing for outliers with
//! conformal p-values", theorem 2). c = Σ_{i≤m} 1/i: Benjamini & Yekutieli 2001, valid under any dependence, at the
//! price of a factor of about ln m.
//!
//! With n reference rows no p-value is below 1/(n + 1): of m rows, at least k = m c / ((n + 1) q) must be that small
//! before any is reported.

use crate::error::{Error, ErrorKind, Result};

/// What is known about how the p-values depend on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dependence {
    /// Independent or positively dependent, as conformal p-values of independent rows are: Benjamini-Hochberg.
    Positive,
    /// Anything (neighbouring steps of a series, duplicates): Benjamini-Yekutieli.
    Any,
}

/// Which p-values are discoveries at the false-discovery rate `q`.
///
/// # Errors
/// [`ErrorKind::Usage`] when `q` is not in (0, 1); [`ErrorKind::NonFinite`] naming the first p-value outside [0, 1].
pub fn discoveries(p_values: &[f64], q: f64, dependence: Dependence) -> Result<Vec<bool>> {
    if !(q > 0.0 && q < 1.0) {
        let message = format!("fdr: expected a false-discovery rate between 0 and 1, got {q}");
        return Err(Error::new(ErrorKind::Usage, message));
    }
    Ok(adjusted(p_values, dependence)?.into_iter().map(|p| p <= q).collect())
}

/// The smallest q at which each row would be a discovery: min over j ≥ rank of p_(j) m c / j, at most 1.
///
/// # Errors
/// [`ErrorKind::NonFinite`] naming the first p-value outside [0, 1].
pub fn adjusted(p_values: &[f64], dependence: Dependence) -> Result<Vec<f64>> {
    if let Some(row) = p_values.iter().position(|p| !(0.0..=1.0).contains(p)) {
        return Err(Error::new(ErrorKind::NonFinite, format!("row {row}: a p-value of {}", p_values[row])));
    }
    let m = p_values.len();
    let price = match dependence {
        Dependence::Positive => 1.0,
        Dependence::Any => (1..=m).map(|i| 1.0 / i as f64).sum(),
    };
    let mut order: Vec<usize> = (0..m).collect();
    order.sort_by(|&a, &b| p_values[b].total_cmp(&p_values[a]));
    let (mut out, mut least) = (vec![1.0; m], 1.0f64);
    for (i, &row) in order.iter().enumerate() {
        least = least.min(p_values[row] * price * m as f64 / (m - i) as f64);
        out[row] = least;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Philox;

    /// The example of Benjamini & Hochberg 1995, section 4: four of fifteen at q = 0.05.
    #[test]
    fn the_example_of_the_paper() {
        let p = [
            0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719,
            0.6528, 0.7590, 1.0,
        ];
        let found = discoveries(&p, 0.05, Dependence::Positive).unwrap();
        assert_eq!(found.iter().filter(|d| **d).count(), 4);
        assert!(found[..4].iter().all(|d| *d));
        let careful = discoveries(&p, 0.05, Dependence::Any).unwrap();
        assert_eq!(careful.iter().filter(|d| **d).count(), 3);
        assert!(discoveries(&[], 0.1, Dependence::Any).unwrap().is_empty());
        assert!(discoveries(&[0.5], 1.0, Dependence::Any).is_err());
        assert!(
            discoveries(&[0.5, f64::NAN], 0.1, Dependence::Any).unwrap_err().to_string().contains("row 1")
        );
    }

    /// Against the definition with its search for k, with ties.
    #[test]
    fn against_the_definition() {
        let mut words = Philox::new(2).stream();
        for round in 0..50 {
            let m = 1 + round % 17;
            let p: Vec<f64> = (0..m).map(|_| (1 + words.below(40)) as f64 / 40.0 * 0.3).collect();
            let mut sorted = p.clone();
            sorted.sort_by(f64::total_cmp);
            for q in [0.05, 0.2, 0.6] {
                let k = (1..=m).rev().find(|&i| sorted[i - 1] <= i as f64 * q / m as f64 + 1e-15);
                let bound = k.map_or(-1.0, |k| sorted[k - 1]);
                let found = discoveries(&p, q + 1e-12, Dependence::Positive).unwrap();
                assert_eq!(found, p.iter().map(|p| *p <= bound).collect::<Vec<_>>(), "{p:?} {q}");
            }
        }
    }

    /// The mean share of false discoveries over many batches is at most q · (share of normal rows).
    #[test]
    fn keeps_its_promise() {
        let (m, anomalies, q, trials) = (100, 20, 0.2, 400);
        let mut total = 0.0;
        for trial in 0..trials {
            let u = Philox::new(trial).uniform_open([m], crate::tensor::DType::F64);
            let p: Vec<f64> = u
                .as_slice::<f64>()
                .iter()
                .enumerate()
                .map(|(i, u)| if i < anomalies { u * 1e-3 } else { *u })
                .collect();
            let found = discoveries(&p, q, Dependence::Positive).unwrap();
            let (all, wrong) =
                (found.iter().filter(|d| **d).count(), found[anomalies..].iter().filter(|d| **d).count());
            total += wrong as f64 / all.max(1) as f64;
        }
        let rate = total / trials as f64;
        // Exactly 0.16 in expectation; the standard error over 400 batches is about 0.004.
        assert!((0.145..0.175).contains(&rate), "{rate}");
    }
}
