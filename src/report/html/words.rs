//! What the page explains in words.

use super::{Text, section};
use crate::report::Page;
use std::fmt::Write;

/// What the numbers mean: term and explanation.
const GLOSSARY: &[(&str, &str)] = &[
    (
        "Surprisal",
        "−log p(x): how unexpected the model finds x. In nats with the natural logarithm, in bits with the \
                   logarithm to base 2 (1 nat = 1.443 bits).",
    ),
    (
        "Bits per dimension",
        "The surprisal in bits divided by the number of values in x (pixels times channels). A model \
                            that knows nothing about bytes needs 8. Negative values are no error for continuous data, \
                            where p is a density.",
    ),
    (
        "Score and sign",
        "Every score here is higher for the more anomalous. Scores of different scorers have different \
                        units and zeros; compare their rankings, not their values.",
    ),
    (
        "AUROC",
        "The share of pairs (one anomaly, one reference row) in which the anomaly has the higher score, ties counted \
               as half. 1 is perfect, 0.5 a coin; below 0.5 the score is misled. The interval is the 95% bootstrap interval \
               over the rows, for this one trained model.",
    ),
    (
        "AUPR in, AUPR out",
        "Average precision with the reference, or the anomalies, as the class to be found. Unlike the \
                           AUROC it depends on how many rows each set has.",
    ),
    (
        "FPR95",
        "The share of reference rows called anomalous by the threshold that finds 95% of the anomalies. Lower is better.",
    ),
    (
        "p-value",
        "(1 + number of reference scores at or above this one) / (n + 1): how rare so high a score is among \
                 reference rows. Flagging p ≤ α raises a false alarm on at most a share α of rows like the reference.",
    ),
];

/// What each family of scorers measures, for readers of the table.
pub(super) const FAMILIES: &[(&str, &str)] = &[
    ("likelihood", "The raw surprisal −log p(x)."),
    ("ratio", "Surprisal beyond that of a background model which knows only population statistics."),
    ("complexity", "Bits of the model minus bits of a general-purpose compressor."),
    ("typicality", "Distance of the surprisal from what the model expects, on either side."),
    (
        "combined",
        "Surprisal and code lengths at once: how far from what the reference shows, in any direction.",
    ),
    ("geometry", "Directions in which the reference spreads around the row; no model is asked."),
    ("ensemble", "What several models, trained from different seeds, say together."),
    ("gradient", "How far one training step on the row would move each layer."),
    ("batch norm", "Likelihood that is lost when normalisation looks at the row's own batch."),
    ("step", "The surprisal of the one step or position that the model expected least."),
    ("latent", "What a latent-variable model could gain, or loses, on this row alone."),
    ("divergence", "A classifier's log-odds that the row is one of the model's samples."),
];

impl Page {
    pub(super) fn meaning(&self, out: &mut String) {
        let mut body = String::from("<dl class=\"glossary\">\n");
        for (term, text) in GLOSSARY {
            let _ = writeln!(body, "<div><dt>{}</dt><dd>{}</dd></div>", Text(term), Text(text));
        }
        body.push_str("</dl>\n");
        section(out, "What the numbers mean", "", &body);
    }
}
