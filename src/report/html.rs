//! The HTML page: one file, no network, no script; it reads from top to bottom, on paper too.

use super::finding::{Verdict, finding, judges_batches, rows_per_score};
use super::metrics::Paired;
use super::page::{Calibrated, Gallery, Page, Set, Shot, Text, WorstRow};
use super::{Row, heat, png, svg};
use crate::error::Result;
use crate::scorers;
use std::fmt::Write;
use std::path::Path;

const CSS: &str = include_str!("page.css");

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
const FAMILIES: &[(&str, &str)] = &[
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
    ("latent", "What a latent-variable model could gain, or loses, on this row alone."),
    ("divergence", "A classifier's log-odds that the row is one of the model's samples."),
];

impl Page {
    /// The page as one self-contained HTML document. The same page always gives the same text.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
             content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
             <meta name=\"generator\" content=\"surprisal {}\">\n<title>{}</title>\n<style>\n{CSS}</style>\n</head>\n<body>",
            env!("CARGO_PKG_VERSION"),
            Text(&self.title)
        );
        self.header(&mut out);
        out.push_str("<main>\n");
        self.likelihoods(&mut out);
        self.figures(&mut out);
        self.scores(&mut out);
        self.galleries(&mut out);
        self.worst_rows(&mut out);
        self.drawn(&mut out);
        self.calibration(&mut out);
        self.meaning(&mut out);
        self.run(&mut out);
        let _ = writeln!(
            out,
            "</main>\n<footer>Written by surprisal {}. Higher scores are more anomalous.</footer>\n</body>\n</html>",
            env!("CARGO_PKG_VERSION")
        );
        out
    }

    /// Renders the page and replaces the file at `path` in one step.
    ///
    /// # Errors
    /// Those of [`crate::files::write_atomic`].
    pub fn write_atomic(&self, path: impl AsRef<Path>) -> Result<()> {
        crate::files::write_atomic(path, self.render().as_bytes())
    }

    fn header(&self, out: &mut String) {
        let said = finding(&self.rows);
        let _ = writeln!(
            out,
            "<header>\n<p class=\"eyebrow\">{}</p>\n<h1>{}</h1>\n<p class=\"lede\">{}</p>",
            Text(&self.title),
            Text(&said.headline),
            Text(&said.paragraph)
        );
        let tiles: Vec<String> = Verdict::all(&self.rows).iter().filter_map(tile).collect();
        if !tiles.is_empty() {
            let _ = writeln!(out, "<div class=\"tiles\">{}</div>", tiles.concat());
        }
        out.push_str("</header>\n");
    }

    fn likelihoods(&self, out: &mut String) {
        let sets: Vec<(&str, &[f64])> =
            self.sets.iter().map(|s| (s.name.as_str(), &s.bits_per_dim[..])).collect();
        let chart = svg::histogram(&sets, "bits per dimension");
        if chart.is_empty() {
            return;
        }
        section(
            out,
            "How many bits the model needs",
            "The surprisal of every row, per dimension; the further right, the less likely. A detector that trusts raw \
             likelihood calls the right-hand side anomalous.",
            &format!("<figure>{chart}</figure>\n"),
        );
    }

    fn figures(&self, out: &mut String) {
        let mut body = String::new();
        for figure in &self.figures {
            let chart = figure.render(|name| self.color(name));
            if !chart.is_empty() {
                let (title, intro) = (Text(&figure.title), Text(&figure.intro));
                let _ = writeln!(
                    body,
                    "<div class=\"figure-block\"><h3>{title}</h3>\n<p>{intro}</p>\n<figure>{chart}</figure></div>"
                );
            }
        }
        if !body.is_empty() {
            let intro = "Experiments that show what the likelihood depends on.";
            section(
                out,
                "What the likelihood measures",
                intro,
                &format!("<div class=\"figures\">{body}</div>\n"),
            );
        }
    }

    /// A table of paired comparisons.
    fn differences(&self) -> String {
        let mut body = String::from(
            "<h3>Which differences are real</h3>\n<p>The AUROC of each score against the best of its set, on the same rows \
             (DeLong). An interval that contains 0 is no difference.</p>\n<table class=\"differences\">\n<thead><tr>\
             <th scope=\"col\">Best, against</th><th scope=\"col\">Set</th><th scope=\"col\">Difference</th>\
             <th scope=\"col\">95% interval</th><th scope=\"col\">p</th></tr></thead>\n<tbody>\n",
        );
        for d in &self.differences {
            let Paired { difference, low, high, p_value } = d.paired;
            let _ = writeln!(
                body,
                "<tr><th scope=\"row\"><span class=\"name\">{}, {}</span></th><td data-label=\"Set\">{}</td>\
                 <td data-label=\"Difference\" class=\"main\">{difference:.3}</td><td data-label=\"95% interval\">{} to {high:.3}</td>\
                 <td data-label=\"p\">{}</td></tr>",
                Text(&d.better),
                Text(&d.worse),
                Text(&d.other),
                format!("{low:.3}").replace('-', "−"),
                probability(p_value)
            );
        }
        body + "</tbody>\n</table>\n"
    }

    fn scores(&self, out: &mut String) {
        if self.rows.is_empty() {
            return;
        }
        let mut body = self.table();
        let panels = self.panels();
        if !panels.is_empty() {
            let _ = writeln!(
                body,
                "<h3>ROC curves</h3>\n<p>Across: the share of reference rows flagged. Up: the share of anomalies found. \
                 The dashed diagonal is a coin.</p>\n<div class=\"panels\">{panels}</div>"
            );
        }
        if !self.differences.is_empty() {
            body += &self.differences();
        }
        section(
            out,
            "Which score tells them apart",
            "Anomalies are the positive class. The best single-row score of \
                 each set is marked; a score below 0.5 ranks the anomalies as more normal than the reference.",
            &body,
        );
    }

    fn table(&self) -> String {
        let mut body = String::from(
            "<table class=\"scores\">\n<thead><tr><th scope=\"col\">Score</th><th scope=\"col\" class=\"scale\"><span>0</span>\
             <span>chance</span><span>1</span></th><th scope=\"col\">AUROC</th><th scope=\"col\">95% interval</th>\
             <th scope=\"col\">AUPR in</th><th scope=\"col\">AUPR out</th><th scope=\"col\">FPR95</th></tr></thead>\n",
        );
        for (i, verdict) in Verdict::all(&self.rows).iter().enumerate() {
            let rows: Vec<&Row> = self.rows.iter().filter(|r| r.other == verdict.other).collect();
            let best = rows
                .iter()
                .filter(|r| !judges_batches(&r.scorer))
                .fold(f64::NEG_INFINITY, |best, r| best.max(r.auroc));
            let n = rows.iter().find(|r| !judges_batches(&r.scorer)).unwrap_or(&rows[0]);
            let _ = writeln!(
                body,
                "<tbody>\n<tr class=\"group\"><th colspan=\"7\" scope=\"rowgroup\">{} <span>{} rows, against {} of {} \
                 ({})</span></th></tr>",
                Text(verdict.other),
                n.n_other,
                n.n_reference,
                Text(&n.reference),
                Text(&n.model)
            );
            for row in rows {
                let best = row.auroc == best && !judges_batches(&row.scorer);
                body.push_str(&table_row(row, best, i == 0));
            }
            body.push_str("</tbody>\n");
        }
        body.push_str("</table>\n");
        body
    }

    /// A small ROC chart per scorer, a curve per other set in the set's colour.
    fn panels(&self) -> String {
        let mut scorers: Vec<&str> = Vec::new();
        for curve in &self.curves {
            if !scorers.contains(&curve.scorer.as_str()) {
                scorers.push(&curve.scorer);
            }
        }
        let mut panels = String::new();
        for scorer in scorers {
            let curves: Vec<_> = self.curves.iter().filter(|c| c.scorer == scorer).collect();
            let lines: Vec<_> = curves.iter().map(|c| (self.color(&c.other), &c.points[..])).collect();
            let mut legend = String::new();
            for curve in &curves {
                let row = self.rows.iter().find(|r| r.scorer == scorer && r.other == curve.other);
                let _ = write!(
                    legend,
                    "<li><i class=\"swatch c{}\"></i>{}{}</li>",
                    self.color(&curve.other),
                    Text(&curve.other),
                    row.map(|r| format!(" <b>{:.3}</b>", r.auroc)).unwrap_or_default()
                );
            }
            let _ = write!(
                panels,
                "<figure class=\"panel\"><figcaption>{}</figcaption>{}<ul class=\"legend\">{legend}</ul></figure>",
                Text(scorer),
                svg::roc(&lines, &format!("ROC curves of {scorer}"))
            );
        }
        panels
    }

    /// Colour of a set: its place in `sets`.
    fn color(&self, name: &str) -> usize {
        self.sets.iter().position(|s| s.name == name).unwrap_or(1) % 6
    }

    fn galleries(&self, out: &mut String) {
        let shots =
            || self.sets.iter().flat_map(|s| &s.galleries).flat_map(|g| g.most.iter().chain(&g.least));
        if shots().next().is_none() {
            return;
        }
        let scale = heat::scale(shots().filter_map(|s| s.surprisal.as_deref()));
        let mut body = String::new();
        if let Some(top) = scale {
            let _ = writeln!(
                body,
                "<p class=\"ramp\"><span>0</span><i style=\"background:{}\"></i><span>{top:.1} bits or more</span></p>",
                heat::css_gradient()
            );
        }
        for set in &self.sets {
            for gallery in &set.galleries {
                body.push_str(&gallery_html(set, gallery, self.color(&set.name), scale));
            }
        }
        let intro = match scale {
            Some(_) => {
                "The images at both ends of each ranking, with score, p-value and row. Beside each, the surprisal of \
                 its pixels: bright pixels are those that the model did not expect, given the ones before."
            }
            None => "The images at both ends of each ranking, with score, p-value and row.",
        };
        section(out, "The most and the least anomalous", intro, &body);
    }

    fn worst_rows(&self, out: &mut String) {
        let mut body = String::new();
        for set in self.sets.iter().filter(|s| !s.worst.is_empty()) {
            let (color, name) = (self.color(&set.name), Text(&set.name));
            let _ = writeln!(
                body,
                "<h3><i class=\"swatch c{color}\"></i>{name} <span>by {}</span></h3>\n<table class=\"worst\"><thead><tr>\
                 <th scope=\"col\">Row</th><th scope=\"col\">Score</th><th scope=\"col\">p</th><th scope=\"col\">Cells</th></tr></thead>\n<tbody>",
                Text(&set.worst[0].scorer)
            );
            for WorstRow { row, score, p_value, cells, .. } in &set.worst {
                let cell = |(column, value, nats): &(String, String, f64)| {
                    format!("<span>{} = {} <b>{}</b></span>", Text(column), Text(value), significant(*nats))
                };
                let cells: Vec<String> = cells.iter().map(cell).collect();
                let _ = writeln!(
                    body,
                    "<tr><th scope=\"row\">#{row}</th><td data-label=\"Score\">{}</td><td data-label=\"p\">{}</td>\
                     <td data-label=\"Cells\" class=\"cells\">{}</td></tr>",
                    significant(*score),
                    probability(*p_value),
                    cells.join(" ")
                );
            }
            body.push_str("</tbody></table>\n");
        }
        if !body.is_empty() {
            let intro = "The most anomalous rows, and in each the cells that are least likely given all others: by how many nats \
                         other values of the column would be likelier there.";
            section(out, "Rows and the cells behind them", intro, &body);
        }
    }

    fn drawn(&self, out: &mut String) {
        if self.samples.is_empty() {
            return;
        }
        let mut body = String::from("<div class=\"sheet\">");
        for (i, image) in self.samples.iter().enumerate() {
            let _ = write!(
                body,
                "<img alt=\"sample {}\" src=\"{}\">",
                i + 1,
                png::data_uri(&image.pixels, image.dims)
            );
        }
        body.push_str("</div>\n");
        section(
            out,
            "What the model draws",
            "Samples from the model itself: what it takes the reference to be.",
            &body,
        );
    }

    fn calibration(&self, out: &mut String) {
        if self.calibrations.is_empty() {
            return;
        }
        let mut body = String::from(
            "<table class=\"calibration\">\n<thead><tr><th scope=\"col\">Score</th><th scope=\"col\">α</th>\
             <th scope=\"col\">Threshold</th><th scope=\"col\">False alarms</th><th scope=\"col\">Found</th></tr></thead>\n<tbody>\n",
        );
        self.calibrations.iter().for_each(|c| body.push_str(&calibration_row(c)));
        body.push_str("</tbody>\n</table>\n");
        let panels: String =
            self.calibrations.iter().filter(|c| !c.kept.is_empty()).map(|c| self.kept(c)).collect();
        if !panels.is_empty() {
            let _ = writeln!(
                body,
                "<h3>Every rate at once</h3>\n<p>Across: the false-alarm rate α that is promised, 0 to 1. Up: the share of rows \
                 with p ≤ α. Held-out reference rows should follow the diagonal; anomalies should rise at once.</p>\n\
                 <div class=\"panels\">{panels}</div>"
            );
        }
        section(
            out,
            "Thresholds that keep a promise",
            "The threshold comes from reference rows alone. Flagging scores above it promises a false-alarm rate of at \
             most α on average; beside it, what was measured on other held-out reference rows, with its 95% interval.",
            &body,
        );
    }

    /// A calibration curve per set.
    fn kept(&self, c: &Calibrated) -> String {
        let lines: Vec<_> = c.kept.iter().map(|(name, points)| (self.color(name), &points[..])).collect();
        let chart = svg::roc(&lines, &format!("calibration of {}", c.scorer));
        format!("<figure class=\"panel\"><figcaption>{}</figcaption>{chart}</figure>", Text(&c.scorer))
    }

    fn meaning(&self, out: &mut String) {
        let mut body = String::from("<dl class=\"glossary\">\n");
        for (term, text) in GLOSSARY {
            let _ = writeln!(body, "<div><dt>{}</dt><dd>{}</dd></div>", Text(term), Text(text));
        }
        body.push_str("</dl>\n");
        section(out, "What the numbers mean", "", &body);
    }

    fn run(&self, out: &mut String) {
        if self.settings.is_empty() {
            return;
        }
        let mut body = String::from("<dl class=\"settings\">\n");
        for (key, value) in &self.settings {
            let _ = writeln!(body, "<div><dt>{}</dt><dd>{}</dd></div>", Text(key), Text(value));
        }
        body.push_str("</dl>\n");
        section(out, "The run", "", &body);
    }
}

fn section(out: &mut String, title: &str, intro: &str, body: &str) {
    let _ = writeln!(out, "<section>\n<h2>{}</h2>", Text(title));
    if !intro.is_empty() {
        let _ = writeln!(out, "<p>{}</p>", Text(intro));
    }
    let _ = writeln!(out, "{body}</section>");
}

/// Raw and best AUROC of one other set, side by side.
fn tile(v: &Verdict) -> Option<String> {
    let raw = v.raw?;
    let figure = |row: &Row| {
        format!(
            "<div class=\"figure{}\"><b>{:.3}</b><span>{}</span></div>",
            match row.auroc {
                a if a < 0.5 => " bad",
                a if a >= 0.9 => " good",
                _ => "",
            },
            row.auroc,
            Text(if row.scorer == "nll" { "raw likelihood" } else { &row.scorer })
        )
    };
    let best = v.best.map(|best| format!("<i>→</i>{}", figure(best))).unwrap_or_default();
    Some(format!(
        "<div class=\"tile\"><h2>{} <span>AUROC</span></h2><div class=\"pair\">{}{best}</div></div>",
        Text(v.other),
        figure(raw)
    ))
}

/// A row of the table; `explained` once per scorer is enough.
fn table_row(row: &Row, best: bool, explained: bool) -> String {
    let class = match (best, row.auroc < 0.5) {
        (true, _) => " class=\"best\"",
        (false, true) => " class=\"misled\"",
        _ => "",
    };
    let mark = match (best, row.auroc < 0.5) {
        (true, false) => " <em>best</em>",
        (_, true) => " <em>misled</em>",
        _ => "",
    };
    let about = scorers::find(&row.scorer).ok().filter(|_| explained).and_then(|info| {
        let (_, text) = FAMILIES.iter().find(|(family, _)| *family == info.family)?;
        let batch = rows_per_score(info.name);
        let batch = if batch > 1 { format!(" One score per {batch} rows.") } else { String::new() };
        Some(format!("<small>{text}{batch}</small>"))
    });
    format!(
        "<tr{class}><th scope=\"row\"><span class=\"name\">{}{mark}</span>{}</th><td class=\"wide\">{}</td>\
         <td data-label=\"AUROC\" class=\"main\">{:.3}</td><td data-label=\"95% interval\">{:.3} to {:.3}</td>\
         <td data-label=\"AUPR in\">{:.3}</td><td data-label=\"AUPR out\">{:.3}</td><td data-label=\"FPR95\">{:.3}</td></tr>\n",
        Text(&row.scorer),
        about.unwrap_or_default(),
        svg::interval(row.auroc_low, row.auroc, row.auroc_high),
        row.auroc,
        row.auroc_low,
        row.auroc_high,
        row.aupr_in,
        row.aupr_out,
        row.fpr95
    )
}

fn gallery_html(set: &Set, gallery: &Gallery, color: usize, scale: Option<f64>) -> String {
    let unit = scorers::find(&gallery.scorer).map_or("", |info| info.unit);
    let mut html = format!(
        "<div class=\"gallery\"><h3><i class=\"swatch c{color}\"></i>{} <span>by {}{}</span></h3>\n",
        Text(&set.name),
        Text(&gallery.scorer),
        if unit.is_empty() { String::new() } else { format!(", in {unit}") }
    );
    for (title, shots) in [("Most anomalous", &gallery.most), ("Least anomalous", &gallery.least)] {
        if shots.is_empty() {
            continue;
        }
        let _ = write!(html, "<h4>{title}</h4>\n<div class=\"shots\">");
        shots.iter().for_each(|shot| html.push_str(&shot_html(shot, scale)));
        html.push_str("</div>\n");
    }
    html + "</div>\n"
}

fn shot_html(shot: &Shot, scale: Option<f64>) -> String {
    let Shot { row, image, score, p_value, surprisal } = shot;
    let [h, w, _] = image.dims;
    let mut html = format!(
        "<figure class=\"shot\"><div><img alt=\"row {row}\" src=\"{}\">",
        png::data_uri(&image.pixels, image.dims)
    );
    if let (Some(map), Some(top)) = (surprisal, scale)
        && map.len() == h * w
    {
        let _ = write!(
            html,
            "<img alt=\"surprisal map of row {row}\" src=\"{}\">",
            heat::data_uri(map, h, w, top)
        );
    }
    let p = p_value.map(|p| format!("<span>p {}</span>", probability(p))).unwrap_or_default();
    let _ = write!(
        html,
        "</div><figcaption><b>{}</b>{p}<span>#{row}</span></figcaption></figure>",
        significant(*score)
    );
    html
}

fn calibration_row(c: &Calibrated) -> String {
    let (low, high) = wilson(c.false_alarms, c.tested);
    let rate = c.false_alarms as f64 / c.tested.max(1) as f64;
    let found: Vec<String> =
        c.found.iter().map(|(name, share)| format!("{} {:.1}%", Text(name), 100.0 * share)).collect();
    format!(
        "<tr><th scope=\"row\"><span class=\"name\">{}</span><small>from {} reference scores</small></th>\
         <td data-label=\"α\">{}</td><td data-label=\"Threshold\">{}</td>\
         <td data-label=\"False alarms\"><b>{:.1}%</b> <small>{} of {}; {:.1}% to {:.1}%</small></td>\
         <td data-label=\"Found\">{}</td></tr>\n",
        Text(&c.scorer),
        c.rows,
        c.alpha,
        significant(c.threshold),
        100.0 * rate,
        c.false_alarms,
        c.tested,
        100.0 * low,
        100.0 * high,
        found.join("<br>")
    )
}

/// 95% interval of a share (Wilson 1927), sensible near 0 where alarms are rare.
fn wilson(hits: usize, n: usize) -> (f64, f64) {
    let (n, z) = (n.max(1) as f64, 1.96f64);
    let p = hits as f64 / n;
    let center = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let half = z / (1.0 + z * z / n) * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    ((center - half).max(0.0), (center + half).min(1.0))
}

fn probability(p: f64) -> String {
    if p < 0.001 { "&lt; 0.001".to_owned() } else { format!("{p:.3}") }
}

/// About three significant digits, all digits before the point.
fn significant(x: f64) -> String {
    let decimals = match x.abs() {
        a if a >= 100.0 => 0,
        a if a >= 10.0 => 1,
        a if a >= 1.0 => 2,
        a if a >= 0.01 => 3,
        0.0 => 0,
        _ => 5,
    };
    format!("{x:.decimals$}").replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (x, text) in
            [(1823.4, "1823"), (-12.34, "−12.3"), (0.00234, "0.00234"), (0.0, "0"), (1.0, "1.00")]
        {
            assert_eq!(significant(x), text);
        }
    }

    #[test]
    fn wilson_by_hand() {
        let (low, high) = wilson(10, 100);
        assert!((low - 0.0552).abs() < 1e-4 && (high - 0.1744).abs() < 1e-4, "{low} {high}");
        assert_eq!(wilson(0, 50).0, 0.0);
    }
}
