//! Charts: stretchable SVG for the lines, HTML for the labels, so that text keeps its size at any width.

use super::page::Text;
use std::fmt::Write;

/// Side of the square that all paths are drawn in; the page stretches it to the chart.
const SIDE: f64 = 1000.0;

/// Histograms of several sets on one axis, each with an area of 1; values beyond the axis enter the end bins.
///
/// The axis spans the sets' 0.1% to 99.9% quantiles. Returns nothing when no set has a finite value.
pub(super) fn histogram(sets: &[(&str, &[f64])], unit: &str) -> String {
    let sorted: Vec<(&str, Vec<f64>)> = sets
        .iter()
        .map(|(name, values)| {
            let mut values: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
            values.sort_by(f64::total_cmp);
            (*name, values)
        })
        .collect();
    let ends = sorted
        .iter()
        .filter(|(_, v)| !v.is_empty())
        .map(|(_, v)| (super::metrics::quantile(v, 0.001), super::metrics::quantile(v, 0.999)));
    let Some((low, high)) = ends.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))) else { return String::new() };
    let margin = ((high - low) * 0.02).max(1e-9 + low.abs() * 1e-3);
    let (low, high) = (low - margin, high + margin);
    let x = |v: f64| (v - low) / (high - low);

    let smallest = sorted.iter().map(|(_, v)| v.len()).filter(|n| *n > 0).min().unwrap_or(1);
    // Enough bins to show a shape, few enough to leave the noise of the smallest set out.
    let n_bins = ((2.4 * (smallest as f64).sqrt()) as usize).clamp(12, 64);
    let bins: Vec<Vec<f64>> = sorted
        .iter()
        .map(|(_, values)| {
            let mut bins = vec![0.0; n_bins];
            for v in values {
                bins[((x(*v) * n_bins as f64) as usize).min(n_bins - 1)] += 1.0 / values.len() as f64;
            }
            bins
        })
        .collect();
    let top = bins.iter().flatten().fold(0.0, |a: f64, b| a.max(*b)).max(1e-12) * 1.04;

    let (mut svg, mut ticks, mut legend) = (String::new(), String::new(), String::new());
    for (at, label) in nice_ticks(low, high, 6) {
        let _ = write!(svg, r#"<path class="grid" d="M{0:.1} 0V{SIDE}"/>"#, x(at) * SIDE);
        let _ = write!(ticks, r#"<span style="left:{:.2}%">{label}</span>"#, x(at) * 100.0);
    }
    for (i, ((name, values), bins)) in sorted.iter().zip(&bins).enumerate() {
        let Some(first) = bins.iter().position(|b| *b > 0.0) else { continue };
        let last = bins.iter().rposition(|b| *b > 0.0).unwrap_or(first);
        let edge = |bin: usize| bin as f64 * SIDE / n_bins as f64;
        let mut outline = format!("M{:.1} {SIDE}", edge(first));
        for bin in first..=last {
            let _ = write!(outline, "V{:.1}H{:.1}", SIDE * (1.0 - bins[bin] / top), edge(bin + 1));
        }
        let _ = write!(outline, "V{SIDE}");
        let (c, median) = (i % 6, super::metrics::quantile(values, 0.5));
        let _ = write!(
            svg,
            r#"<path class="area c{c}" d="{outline}Z"/><path class="line c{c}" d="{outline}"/><path class="median c{c}" d="M{:.1} {SIDE}V0"/>"#,
            x(median) * SIDE
        );
        let _ = write!(
            legend,
            r#"<li><i class="swatch c{c}"></i><b>{}</b> <span>{} rows, median {median:.2}</span></li>"#,
            Text(name),
            values.len()
        );
    }
    let names: Vec<&str> = sets.iter().map(|s| s.0).collect();
    format!(
        r#"<ul class="legend">{legend}</ul><div class="chart hist" role="img" aria-label="Histograms of {unit}: {}"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">{svg}</svg><div class="ticks">{ticks}</div></div><p class="axis">{}</p>"#,
        Text(&names.join(", ")),
        Text(unit)
    )
}

/// One square ROC panel: a curve per (colour, points).
pub(super) fn roc(curves: &[(usize, &[(f64, f64)])], label: &str) -> String {
    let mut svg = format!(r#"<path class="grid chance" d="M0 {SIDE}L{SIDE} 0"/>"#);
    for (color, points) in curves {
        let mut path = String::new();
        for (i, (x, y)) in thinned(points).into_iter().enumerate() {
            let _ = write!(path, "{}{:.1} {:.1}", if i == 0 { 'M' } else { 'L' }, x * SIDE, (1.0 - y) * SIDE);
        }
        let _ = write!(svg, r#"<path class="line c{}" d="{path}"/>"#, color % 6);
    }
    format!(
        r#"<div class="chart roc" role="img" aria-label="{}"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">{svg}</svg></div>"#,
        Text(label)
    )
}

/// Points of a monotone curve that lie at least half a unit of the drawing apart, ends included.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut kept: Vec<(f64, f64)> = Vec::new();
    for (i, p) in points.iter().enumerate() {
        let far = kept.last().is_none_or(|q| (p.0 - q.0) + (p.1 - q.1) > 0.5 / SIDE * 4.0);
        if far || i + 1 == points.len() {
            kept.push(*p);
        }
    }
    kept
}

/// An interval on the scale from 0 to 1 with its point, and chance in the middle.
pub(super) fn interval(low: f64, point: f64, high: f64) -> String {
    let at = |v: f64| 100.0 * v.clamp(0.0, 1.0);
    format!(
        r#"<span class="range" aria-hidden="true"><i class="bar" style="left:{:.2}%;width:{:.2}%"></i><i class="dot" style="left:{:.2}%"></i></span>"#,
        at(low),
        at(high) - at(low),
        at(point)
    )
}

/// Round numbers from `low` to `high`, about `n` of them, with as many decimals as their step needs.
pub(super) fn nice_ticks(low: f64, high: f64, n: usize) -> Vec<(f64, String)> {
    let rough = (high - low) / n as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough).unwrap_or(10.0 * power);
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last).map(|i| i as f64 * step).map(|at| (at, format!("{:.decimals$}", at + 0.0))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        let labels =
            |low, high| nice_ticks(low, high, 5).into_iter().map(|t| t.1).collect::<Vec<_>>().join(" ");
        assert_eq!(labels(0.3, 4.8), "1 2 3 4");
        assert_eq!(labels(-0.11, 0.12), "-0.10 -0.05 0.00 0.05 0.10");
        assert_eq!(labels(990.0, 2010.0), "1000 1500 2000");
    }

    #[test]
    fn histograms_of_nothing_and_of_one_value() {
        assert_eq!(histogram(&[("a", &[])], "bits"), "");
        assert_eq!(histogram(&[("a", &[f64::NAN])], "bits"), "");
        let constant = histogram(&[("a", &[2.0, 2.0]), ("b", &[])], "bits");
        assert!(constant.contains("median 2.00") && !constant.contains("NaN"), "{constant}");
    }

    #[test]
    fn thinning_keeps_the_ends() {
        let points: Vec<(f64, f64)> = (0..=100_000).map(|i| (i as f64 / 1e5, i as f64 / 1e5)).collect();
        let kept = thinned(&points);
        assert!(kept.len() < 1200 && kept[0] == (0.0, 0.0) && *kept.last().unwrap() == (1.0, 1.0));
    }
}
