//! Result rows: one per scorer and data set, as `results.json` and the terminal's table show them.

use super::metrics::{Comparison, Paired};
use crate::error::Result;
use serde::{Deserialize, Serialize};

/// How well one scorer tells one other set from the reference; `results.json` is an array of these.
///
/// Anomalies are positive and higher scores more anomalous; see [`Comparison`] for the conventions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The model whose likelihoods were used.
    pub model: String,
    /// The scorer's registry name.
    pub scorer: String,
    /// Name of the reference set (negatives).
    pub reference: String,
    /// Name of the other set (anomalies, positives).
    pub other: String,
    /// Scores of the reference set.
    pub n_reference: usize,
    /// Scores of the other set.
    pub n_other: usize,
    /// Area under the ROC curve.
    pub auroc: f64,
    /// Lower end of its 95% bootstrap interval.
    pub auroc_low: f64,
    /// Upper end of its 95% bootstrap interval.
    pub auroc_high: f64,
    /// Average precision, reference positive.
    pub aupr_in: f64,
    /// Average precision, anomalies positive.
    pub aupr_out: f64,
    /// False-positive rate at 95% true-positive rate.
    pub fpr95: f64,
    /// How far it is behind the best scorer of the set that judges single rows; none for the best itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<Behind>,
}

/// A paired comparison with the best scorer of a set, on the same rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Behind {
    /// The best scorer.
    pub best: String,
    /// Its AUROC minus that of the row's scorer.
    #[serde(flatten)]
    pub paired: Paired,
}

impl Row {
    /// Compares two named sets of scores; `seed` draws the bootstrap.
    ///
    /// # Errors
    /// Those of [`Comparison::new`], with scorer and sets named.
    pub fn new(
        model: &str,
        scorer: &str,
        (reference, reference_scores): (&str, &[f64]),
        (other, other_scores): (&str, &[f64]),
        seed: u64,
    ) -> Result<Self> {
        let comparison = Comparison::new(reference_scores, other_scores)
            .map_err(|e| e.at(format_args!("\"{scorer}\", {reference} against {other}")))?;
        let (auroc_low, auroc_high) = comparison.auroc_interval(seed);
        Ok(Self {
            model: model.into(),
            scorer: scorer.into(),
            reference: reference.into(),
            other: other.into(),
            n_reference: reference_scores.len(),
            n_other: other_scores.len(),
            auroc: comparison.auroc(),
            auroc_low,
            auroc_high,
            aupr_in: comparison.aupr_in(),
            aupr_out: comparison.aupr_out(),
            fpr95: comparison.fpr_at(0.95),
            behind: None,
        })
    }
}

/// The rows as an aligned table in plain text, a blank line between the other sets.
pub fn table(rows: &[Row]) -> String {
    const HEAD: [&str; 7] = ["other", "scorer", "AUROC", "95% interval", "AUPR in", "AUPR out", "FPR95"];
    let cells: Vec<[String; 7]> = rows
        .iter()
        .map(|r| {
            [
                r.other.clone(),
                r.scorer.clone(),
                format!("{:.3}", r.auroc),
                format!("{:.3} to {:.3}", r.auroc_low, r.auroc_high),
                format!("{:.3}", r.aupr_in),
                format!("{:.3}", r.aupr_out),
                format!("{:.3}", r.fpr95),
            ]
        })
        .collect();
    let width = |i: usize| {
        cells.iter().map(|c| c[i].chars().count()).chain([HEAD[i].len()]).max().unwrap_or_default()
    };
    let widths: [usize; 7] = std::array::from_fn(width);
    let line = |cells: [&str; 7]| {
        let padded = cells.iter().zip(widths).enumerate().map(|(i, (c, w))| match i {
            0 | 1 => format!("{c:<w$}"),
            _ => format!("{c:>w$}"),
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(HEAD);
    let rule = widths.map(|w| "-".repeat(w));
    text += &line(std::array::from_fn(|i| rule[i].as_str()));
    for (i, row) in cells.iter().enumerate() {
        if i > 0 && row[0] != cells[i - 1][0] {
            text.push('\n');
        }
        text += &line(std::array::from_fn(|j| row[j].as_str()));
    }
    text
}

/// A sentence for each set that the model finds *more* likely than its own reference (`nll` AUROC below 0.5).
pub fn warnings(rows: &[Row]) -> Vec<String> {
    let misled = rows.iter().filter(|r| r.scorer == "nll" && r.auroc < 0.5);
    misled
        .map(|r| {
            format!(
                "{} finds {} MORE likely than its reference {} (nll AUROC {:.3}, below 0.5): raw likelihood would call \
                 the anomalies normal",
                r.model, r.other, r.reference, r.auroc
            )
        })
        .collect()
}
