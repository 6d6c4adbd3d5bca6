//! The report as data: everything that the HTML page shows, without any HTML.

use super::metrics::Paired;
use super::{Figure, Finding, Row};
use crate::error::{Error, ErrorKind, Result};
use crate::models::Kind;
use crate::tensor::{DType, Tensor};
use std::fmt;

/// The content of a report; [`Page::render`] makes it a web page.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// What was done, for the window's title and the top line: `pixelcnn28 on FashionMNIST`.
    pub title: String,
    /// The data sets; the first is the reference.
    pub sets: Vec<Set>,
    /// One row per scorer and other set, grouped by other set.
    pub rows: Vec<Row>,
    /// ROC curves, at most one per row.
    pub curves: Vec<Curve>,
    /// Charts that explain the likelihoods.
    pub figures: Vec<Figure>,
    /// Which differences between scorers are real.
    pub differences: Vec<Difference>,
    /// Images that the model drew.
    pub samples: Vec<Image>,
    /// What false-alarm rates were promised and kept.
    pub calibrations: Vec<Calibrated>,
    /// The headline and what is behind it, where they do not follow from the rows.
    pub said: Option<Finding>,
    /// Models side by side, of a page that compares them.
    pub families: Vec<FamilyRow>,
    /// Intervals of a series.
    pub stretches: Vec<Stretch>,
    /// Settings of the run, in the order in which they are shown.
    pub settings: Vec<(String, String)>,
}

/// One model among others.
#[derive(Debug, Clone)]
pub struct FamilyRow {
    /// Its preset.
    pub model: String,
    /// `autoregressive`, `latent`, `flow` or `energy`.
    pub family: String,
    /// What its log-likelihoods are.
    pub kind: Kind,
    /// Mean of the reference.
    pub bits_per_dim: f64,
    /// Number of parameters, for people.
    pub parameters: String,
    /// Examples per second of a training step, of log p, of sampling; none where there is no such thing.
    pub training: Option<f64>,
    /// See `training`.
    pub scoring: Option<f64>,
    /// See `training`.
    pub sampling: Option<f64>,
    /// How well the other sets are told from the reference.
    pub found: Vec<Told>,
    /// Where its own page is.
    pub report: Option<String>,
}

/// How well one other set is told from the reference.
#[derive(Debug, Clone)]
pub struct Told {
    /// Its name.
    pub other: String,
    /// AUROC of raw likelihood.
    pub raw: Option<f64>,
    /// The best of the other scores that judge single rows, with its AUROC.
    pub best: Option<(String, f64)>,
}

/// An interval of a series that stands out.
#[derive(Debug, Clone)]
pub struct Stretch {
    /// When it begins.
    pub start: String,
    /// When it ends.
    pub end: String,
    /// Its length.
    pub steps: usize,
    /// Surprisal of its peak.
    pub nats: f64,
    /// Sum of what is above the threshold, nats.
    pub severity: f64,
    /// The columns behind it with their nats, the worst first.
    pub columns: Vec<(String, f64)>,
}

/// One data set.
#[derive(Debug, Clone, Default)]
pub struct Set {
    /// Its name, the `reference` or `other` of the rows.
    pub name: String,
    /// −log₂ p(x) per dimension, one per row.
    pub bits_per_dim: Vec<f64>,
    /// Its most and least anomalous images, by one scorer or several.
    pub galleries: Vec<Gallery>,
    /// Of a table: its most anomalous rows, most anomalous first.
    pub worst: Vec<WorstRow>,
}

/// A row of a table and the cells that make it anomalous.
#[derive(Debug, Clone)]
pub struct WorstRow {
    /// Row in the data set.
    pub row: usize,
    /// The scorer that ranks.
    pub scorer: String,
    /// Its score, in the scorer's unit.
    pub score: f64,
    /// Its conformal p-value.
    pub p_value: f64,
    /// Column, value, and surprisal of the cell given the others in nats; most surprising first.
    pub cells: Vec<(String, String, f64)>,
}

/// The images at both ends of a ranking.
#[derive(Debug, Clone)]
pub struct Gallery {
    /// The scorer that ranks.
    pub scorer: String,
    /// Most anomalous first.
    pub most: Vec<Shot>,
    /// Least anomalous first.
    pub least: Vec<Shot>,
}

/// One image with its score.
#[derive(Debug, Clone)]
pub struct Shot {
    /// Row in the data set.
    pub row: usize,
    /// The image.
    pub image: Image,
    /// Its score, in the scorer's unit.
    pub score: f64,
    /// Its conformal p-value, if calibrated.
    pub p_value: Option<f64>,
    /// −log p of each pixel in nats, H · W values (summed over channels), where the model factorises.
    pub surprisal: Option<Vec<f32>>,
}

/// A u8 image, (H, W, C) with 1 to 4 channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub(super) pixels: Vec<u8>,
    pub(super) dims: [usize; 3],
}

/// The ROC curve of one row.
#[derive(Debug, Clone)]
pub struct Curve {
    /// Scorer of the row.
    pub scorer: String,
    /// Other set of the row.
    pub other: String,
    /// Corners (false-positive rate, true-positive rate): [`super::metrics::Comparison::roc`].
    pub points: Vec<(f64, f64)>,
}

/// A scorer's threshold at a promised false-alarm rate, and the rates that were measured with it.
#[derive(Debug, Clone)]
pub struct Calibrated {
    /// The scorer.
    pub scorer: String,
    /// The promised false-alarm rate α.
    pub alpha: f64,
    /// Scores above it are flagged.
    pub threshold: f64,
    /// Reference scores behind the threshold.
    pub rows: usize,
    /// Held-out reference scores that were flagged.
    pub false_alarms: usize,
    /// Held-out reference scores.
    pub tested: usize,
    /// Share of each other set that was flagged.
    pub found: Vec<(String, f64)>,
    /// For each set (false-alarm rate promised, share flagged) at many rates.
    pub kept: Vec<(String, Vec<(f64, f64)>)>,
}

/// Two scorers on the same rows.
#[derive(Debug, Clone)]
pub struct Difference {
    /// The other set.
    pub other: String,
    /// The first scorer, the one that is better.
    pub better: String,
    /// The second scorer.
    pub worse: String,
    /// Their AUROCs' difference.
    pub paired: Paired,
}

impl Image {
    /// Row `row` of u8 images (N, H, W, C).
    ///
    /// # Errors
    /// [`ErrorKind::Data`] when `images` is not that, or has no such row.
    pub fn of(images: &Tensor, row: usize) -> Result<Self> {
        match *images.shape() {
            [n, h, w, c @ 1..=4] if images.dtype() == DType::U8 && row < n && h > 0 && w > 0 => {
                let pixels = images.as_slice::<u8>()[row * h * w * c..][..h * w * c].to_vec();
                Ok(Self { pixels, dims: [h, w, c] })
            }
            _ => Err(Error::new(
                ErrorKind::Data,
                format!(
                    "image {row}: expected u8 images (N, H, W, 1 to 4), got {:?} {:?}",
                    images.dtype(),
                    images.shape()
                ),
            )),
        }
    }

    /// All rows of u8 images (N, H, W, C).
    ///
    /// # Errors
    /// Those of [`Self::of`].
    pub fn all(images: &Tensor) -> Result<Vec<Self>> {
        (0..images.shape().first().copied().unwrap_or(0)).map(|row| Self::of(images, row)).collect()
    }
}

/// The rows with the `k` highest scores, highest first, and those with the `k` lowest, lowest first. Equal scores
/// keep the order of the rows.
pub fn extremes(scores: &[f64], k: usize) -> (Vec<usize>, Vec<usize>) {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let least = order.iter().take(k).copied().collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.truncate(k);
    (order, least)
}

/// Text from outside, escaped for HTML content and quoted attributes.
pub(super) struct Text<'a>(pub &'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // Control characters have no place in HTML, not even escaped.
                c if c.is_control() && !matches!(c, '\n' | '\t') => f.write_str("\u{FFFD}")?,
                c => fmt::Write::write_char(f, c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes_are_in_order() {
        assert_eq!(extremes(&[1.0, 3.0, 2.0, 3.0, 0.0], 2), (vec![1, 3], vec![4, 0]));
        assert_eq!(extremes(&[1.0], 4), (vec![0], vec![0]));
        assert_eq!(extremes(&[], 4), (vec![], vec![]));
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(
            Text("<a href=\"x\">'&'\u{0}</a>").to_string(),
            "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;\u{FFFD}&lt;/a&gt;"
        );
    }

    #[test]
    fn images_are_checked() {
        let images = Tensor::from_fn([2, 2, 3, 1], |i| i as u8);
        assert_eq!(Image::of(&images, 1).unwrap().pixels, [6, 7, 8, 9, 10, 11]);
        assert!(Image::of(&images, 2).is_err());
        assert!(Image::all(&Tensor::zeros([2, 6], DType::U8)).is_err());
        assert!(Image::all(&Tensor::zeros([2, 2, 3, 1], DType::F32)).is_err());
    }
}
