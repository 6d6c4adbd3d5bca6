//! Lines and clouds of points on two axes.

use super::page::Text;
use super::svg::nice_ticks;
use std::fmt::Write;

/// A chart with one series per data set.
#[derive(Debug, Clone, Default)]
pub struct Figure {
    /// What it shows.
    pub title: String,
    /// How to read it.
    pub intro: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// Whether the points of a series are joined, in the order given.
    pub joined: bool,
    /// The series.
    pub series: Vec<Series>,
    /// Intervals of the horizontal axis that are shaded.
    pub bands: Vec<(f64, f64)>,
}

/// An axis.
#[derive(Debug, Clone, Default)]
pub struct Axis {
    /// What it measures, with its unit.
    pub label: String,
    /// Whether it is logarithmic.
    pub log: bool,
    /// Its ends; those of the data by default.
    pub range: Option<(f64, f64)>,
}

/// Points of one data set, in its colour.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// The name of the set.
    pub name: String,
    /// (x, y); what is not finite is left out.
    pub points: Vec<(f64, f64)>,
}

/// Side of the square that paths are drawn in.
const SIDE: f64 = 1000.0;

impl Axis {
    /// A linear axis that fits the data.
    pub fn new(label: impl Into<String>) -> Self {
        Self { label: label.into(), ..Self::default() }
    }

    fn ends(&self, values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
        if let Some(range) = self.range {
            return Some(range);
        }
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
        if low > high {
            return None;
        }
        let margin = if self.log { 0.0 } else { ((high - low) * 0.04).max(1e-9 + low.abs() * 1e-3) };
        Some((low - margin, high + margin))
    }

    /// The place of `x` between 0 and 1.
    fn at(&self, x: f64, (low, high): (f64, f64)) -> f64 {
        let scale = |x: f64| if self.log { x.max(1e-300).ln() } else { x };
        let (low, high) = (scale(low), scale(high));
        (scale(x) - low) / if high > low { high - low } else { 1.0 }
    }

    fn ticks(&self, ends: (f64, f64), values: &[f64]) -> Vec<(f64, String)> {
        if !self.log {
            return nice_ticks(ends.0, ends.1, 5);
        }
        // A logarithmic axis here has few, chosen places: they are its ticks.
        let mut places = values.to_vec();
        places.sort_by(f64::total_cmp);
        places.dedup();
        let every = places.len().div_ceil(8).max(1);
        places.into_iter().step_by(every).map(|x| (x, format!("{x}"))).collect()
    }
}

impl Figure {
    /// The chart without title and intro; nothing when there is no point to draw. `color` gives a series its colour.
    pub(super) fn render(&self, color: impl Fn(&str) -> usize) -> String {
        let finite = |s: &Series| -> Vec<(f64, f64)> {
            s.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect()
        };
        let series: Vec<(&str, Vec<(f64, f64)>)> =
            self.series.iter().map(|s| (s.name.as_str(), finite(s))).filter(|(_, p)| !p.is_empty()).collect();
        let all = || series.iter().flat_map(|(_, points)| points);
        let ends = (self.x.ends(all().map(|p| p.0)), self.y.ends(all().map(|p| p.1)));
        let (Some(xs), Some(ys)) = ends else { return String::new() };
        let (mut svg, mut ticks, mut legend) = (String::new(), String::new(), String::new());
        for &(from, to) in &self.bands {
            let place = |x: f64| self.x.at(x, xs).clamp(0.0, 1.0) * SIDE;
            // Wide enough to be seen, however short.
            let (from, width) = (place(from), (place(to) - place(from)).max(2.0));
            let _ = write!(svg, r#"<path class="band" d="M{from:.1} 0h{width:.1}V{SIDE}h-{width:.1}Z"/>"#);
        }
        let places: Vec<f64> = all().map(|p| p.0).collect();
        for (x, label) in self.x.ticks(xs, &places) {
            let at = self.x.at(x, xs);
            let _ = write!(svg, r#"<path class="grid" d="M{:.1} 0V{SIDE}"/>"#, at * SIDE);
            let _ = write!(ticks, r#"<span class="x" style="left:{:.2}%">{label}</span>"#, at * 100.0);
        }
        let heights: Vec<f64> = all().map(|p| p.1).collect();
        for (y, label) in self.y.ticks(ys, &heights) {
            let at = 1.0 - self.y.at(y, ys);
            let _ = write!(svg, r#"<path class="grid" d="M0 {:.1}H{SIDE}"/>"#, at * SIDE);
            let _ = write!(ticks, r#"<span class="y" style="top:{:.2}%">{label}</span>"#, at * 100.0);
        }
        for (name, points) in &series {
            let (c, mut path) = (color(name) % 6, String::new());
            for (i, &(x, y)) in points.iter().enumerate() {
                let (x, y) = (self.x.at(x, xs) * SIDE, (1.0 - self.y.at(y, ys)) * SIDE);
                let _ = match (self.joined, i) {
                    // A stroke of no length with round ends is a dot that no stretching deforms.
                    (false, _) => write!(path, "M{x:.1} {y:.1}h0"),
                    (true, 0) => write!(path, "M{x:.1} {y:.1}"),
                    (true, _) => write!(path, "L{x:.1} {y:.1}"),
                };
            }
            let class = if self.joined { "line" } else { "dots" };
            let _ = write!(svg, r#"<path class="{class} c{c}" d="{path}"/>"#);
            let _ = write!(legend, r#"<li><i class="swatch c{c}"></i><b>{}</b></li>"#, Text(name));
        }
        format!(
            r#"<ul class="legend">{legend}</ul><p class="axis up">{}</p><div class="chart plot" role="img" aria-label="{}"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">{svg}</svg><div class="ticks">{ticks}</div></div><p class="axis">{}</p>"#,
            Text(&self.y.label),
            Text(&self.title),
            Text(&self.x.label)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_what_is_finite() {
        let series = |points: &[(f64, f64)]| Series { name: "a<b".into(), points: points.to_vec() };
        let mut figure = Figure { series: vec![series(&[(1.0, f64::NAN)])], ..Default::default() };
        assert_eq!(figure.render(|_| 0), "");
        figure.series.push(series(&[(1.0, 2.0), (10.0, 2.0), (f64::INFINITY, 0.0)]));
        figure.x.log = true;
        for joined in [false, true] {
            (figure.joined, figure.bands) = (joined, vec![(2.0, 2.0)]);
            let html = figure.render(|_| 7);
            assert!(
                html.contains("a&lt;b")
                    && html.contains("c1")
                    && !html.contains("NaN")
                    && !html.contains("inf")
            );
            assert!(html.contains("class=\"band\"") && html.contains("h2.0V1000"), "{html}");
            assert!(html.contains(if joined { "L1000.0" } else { "M1000.0" }), "{html}");
        }
    }
}
