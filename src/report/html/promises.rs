//! What false-alarm rates were promised and kept.

use super::{Text, section, significant};
use crate::report::page::Calibrated;
use crate::report::{Page, svg};
use std::fmt::Write;

impl Page {
    pub(super) fn calibration(&self, out: &mut String) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_by_hand() {
        let (low, high) = wilson(10, 100);
        assert!((low - 0.0552).abs() < 1e-4 && (high - 0.1744).abs() < 1e-4, "{low} {high}");
        assert_eq!(wilson(0, 50).0, 0.0);
    }
}
