//! The experiments with which the literature explains why likelihood fails, on the reader's own model and data.

use super::bits_per_dim;
use super::figure::{Axis, Figure, Series};
use crate::data::Dataset;
use crate::error::Result;
use crate::evidence::{Compressor, Evidence};
use crate::models::Kind;
use crate::random::Philox;
use crate::scorers::{Scorer, Typicality};
use crate::tensor::{DType, Tensor};

/// Points of one set in a scatter plot.
const POINTS: usize = 200;
/// Images that are pooled.
const POOLED: usize = 128;
/// Batches that are drawn for each size.
const BATCHES: u64 = 500;
/// The level of the test on batches.
const LEVEL: f64 = 0.01;

/// Likelihood against compressed length: simple images are likely whatever they show (Serra et al. 2020, figure 4).
/// `None` for data that is neither bytes nor tokens.
///
/// # Errors
/// A compressor that fails.
pub fn complexity(sets: &[&Evidence]) -> Result<Option<Figure>> {
    let whole = |e: &&Evidence| matches!(e.data().values.dtype(), DType::U8 | DType::I32);
    if !sets.iter().all(whole) || sets.iter().any(|e| e.kind == Kind::Unnormalised) {
        return Ok(None);
    }
    let compressor =
        if sets.iter().all(|e| Compressor::Png.takes(e.data())) { Compressor::Png } else { Compressor::Zstd };
    let points = |e: &Evidence| -> Result<Series> {
        let (lengths, dims) = (e.code_lengths(compressor)?, e.data().dims());
        let step = e.len().div_ceil(POINTS).max(1);
        let point = |i: usize| (lengths[i] / dims as f64, bits_per_dim(e.nats[i], dims));
        Ok(Series { name: e.data().name.clone(), points: (0..e.len()).step_by(step).map(point).collect() })
    };
    let name = if compressor == Compressor::Png { "PNG" } else { "zstd" };
    Ok(Some(Figure {
        title: "Surprisal against compressed length".into(),
        intro: format!(
            "Each point is one row: how many bits a {name} file takes, and how many the model needs. Where the clouds lie \
             along one line, the likelihood says little more than how simple a row is; a set above the line of the \
             reference is one that the model explains badly for its complexity."
        ),
        x: Axis::new(format!("{name} bits per dimension")),
        y: Axis::new("model bits per dimension"),
        joined: false,
        series: sets.iter().map(|e| points(e)).collect::<Result<_>>()?,
        ..Default::default()
    }))
}

/// Likelihood of the same images at lower resolution: averaged over s × s pixels and enlarged again (Serra et al. 2020,
/// figure 3). `log_p` gives log p of a data set. `None` for anything but u8 images.
///
/// # Errors
/// Those of `log_p`.
pub fn pooling(sets: &[&Evidence], log_p: &dyn Fn(Dataset) -> Result<Vec<f64>>) -> Result<Option<Figure>> {
    if !sets.iter().all(|e| Compressor::Png.takes(e.data())) {
        return Ok(None);
    }
    let mut series = Vec::new();
    for e in sets {
        let data = e.data().take(POOLED);
        let [_, h, w, _] = data.values.dims();
        let mean =
            |nats: &[f64]| bits_per_dim(nats.iter().sum::<f64>() / nats.len().max(1) as f64, data.dims());
        let mut points = vec![(1.0, mean(&e.nats[..data.len()]))];
        for size in [2, 4, 8, 16].into_iter().filter(|size| 2 * size <= h.min(w)) {
            let nats = log_p(Dataset { values: pooled(&data.values, size), ..data.clone() })?;
            points.push((size as f64, mean(&nats)));
        }
        series.push(Series { name: data.name.clone(), points });
    }
    Ok(Some(Figure {
        title: "Surprisal of the same images, pooled".into(),
        intro: "Every image is averaged over squares and enlarged again. Where a curve falls, the model finds the poorer \
                image more likely, although it has seen none like it."
            .into(),
        x: Axis { log: true, ..Axis::new("side of the squares, pixels") },
        y: Axis::new("mean bits per dimension"),
        joined: true,
        series,
        ..Default::default()
    }))
}

/// Images (N, H, W, C) averaged over `size` × `size` pixels (fewer at the edges), each square filled with its mean.
fn pooled(images: &Tensor, size: usize) -> Tensor {
    let [_, h, w, c] = images.dims();
    let from = images.as_slice::<u8>();
    Tensor::from_fn(images.shape(), |i| {
        let (channel, x, y, image) = (i % c, i / c % w, i / c / w % h, i / (c * w * h));
        let (y0, x0) = (y / size * size, x / size * size);
        let (mut sum, mut n) = (0, 0);
        for y in y0..(y0 + size).min(h) {
            for x in x0..(x0 + size).min(w) {
                sum += from[((image * h + y) * w + x) * c + channel] as usize;
                n += 1;
            }
        }
        ((sum + n / 2) / n) as u8
    })
}

/// The share of batches of M rows that are atypical, against M (Nalisnick et al. 2019, table 1): ε comes from `fit`,
/// rows like the reference that are in no set.
///
/// # Errors
/// Evidence that the scorer does not accept.
pub fn batch_typicality(fit: &Evidence, sets: &[&Evidence], seed: u64) -> Result<Figure> {
    let most = sets.iter().map(|e| e.len()).min().unwrap_or(0);
    let mut series: Vec<Series> =
        sets.iter().map(|e| Series { name: e.data().name.clone(), points: vec![] }).collect();
    for (draw, size) in [1, 2, 5, 10, 20, 50, 100].into_iter().filter(|m| 2 * m <= most).enumerate() {
        let mut scorer = Typicality::batches(size, LEVEL)?;
        scorer.fit(fit)?;
        let epsilon = scorer.epsilon().unwrap_or(f64::INFINITY);
        for (e, series) in sets.iter().zip(&mut series) {
            let mut words = Philox::new(seed).at_step(draw as u64).stream();
            let rows: Vec<usize> =
                (0..BATCHES * size as u64).map(|_| words.below(e.len() as u64) as usize).collect();
            let nats = rows.iter().map(|&i| e.nats[i]).collect();
            // The scorer looks at log p alone: the rows themselves need not be drawn.
            let shape: Vec<usize> = [rows.len()].iter().chain(e.data().example_shape()).copied().collect();
            let drawn = Evidence::new(
                Dataset::new(e.data().name.clone(), Tensor::zeros(shape, DType::U8)),
                nats,
                e.kind,
            );
            let atypical = scorer.score(&drawn)?.iter().filter(|s| **s > epsilon).count();
            series.points.push((size as f64, atypical as f64 / BATCHES as f64));
        }
    }
    Ok(Figure {
        title: "Typicality of batches".into(),
        intro: format!(
            "The share of batches whose mean surprisal is further from the entropy than {:.0}% of batches of reference rows \
             are. More rows at once tell more, in whichever direction the surprisal is off.",
            100.0 * (1.0 - LEVEL)
        ),
        x: Axis { log: true, ..Axis::new("rows per batch, M") },
        y: Axis { range: Some((0.0, 1.0)), ..Axis::new("share called atypical") },
        joined: true,
        series,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_averages_and_keeps_the_size() {
        let images = Tensor::from_slice(&[0u8, 4, 9, 8, 8, 9, 1, 1, 5], [1, 3, 3, 1]);
        assert_eq!(pooled(&images, 2).as_slice::<u8>(), [5, 5, 9, 5, 5, 9, 1, 1, 5]);
        assert_eq!(pooled(&images, 1).as_slice::<u8>(), images.as_slice::<u8>());
    }

    #[test]
    fn larger_batches_tell_more() {
        let normal = |name: &str, seed: u64, mean: f64| {
            let z = Philox::new(seed).normal([400], DType::F64);
            let nats = z.as_slice::<f64>().iter().map(|z| mean + z).collect();
            Evidence::new(Dataset::new(name, Tensor::zeros([400, 3], DType::F32)), nats, Kind::Exact)
        };
        let (fit, same, other) = (normal("r", 0, 0.0), normal("same", 1, 0.0), normal("other", 2, 0.7));
        let figure = batch_typicality(&fit, &[&same, &other], 0).unwrap();
        let share = |set: usize, at: usize| figure.series[set].points[at].1;
        assert!(share(1, 0) < 0.1 && share(1, 5) > 0.95, "{:?}", figure.series[1]);
        assert!((0..4).all(|i| share(0, i) < 0.08), "{:?}", figure.series[0]);
        assert!(complexity(&[&same]).unwrap().is_none());
    }
}
