//! The HTML page: one file, no network, no script; it reads from top to bottom, on paper too.

mod families;
mod pictures;
mod promises;
mod scores;
mod stretches;
mod words;

use super::finding::{Verdict, finding};
use super::page::{Page, Text};
use super::svg;
use crate::error::Result;
use std::fmt::Write;
use std::path::Path;

const CSS: &str = include_str!("../page.css");

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
        self.compared_families(&mut out);
        self.found_stretches(&mut out);
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
        let said = match &self.said {
            Some(said) => said.clone(),
            None if !self.families.is_empty() => self.of_families(),
            None => finding(&self.rows),
        };
        let _ = writeln!(
            out,
            "<header>\n<p class=\"eyebrow\">{}</p>\n<h1>{}</h1>\n<p class=\"lede\">{}</p>",
            Text(&self.title),
            Text(&said.headline),
            Text(&said.paragraph)
        );
        let tiles: Vec<String> = Verdict::all(&self.rows).iter().filter_map(scores::tile).collect();
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

    /// Colour of a set: its place in `sets`.
    fn color(&self, name: &str) -> usize {
        self.sets.iter().position(|s| s.name == name).unwrap_or(1) % 6
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
}
