//! Which score tells the sets apart: tiles, the table, ROC curves, paired differences.

use super::words::FAMILIES;
use super::{Text, probability, section};
use crate::report::finding::{Verdict, judges_batches, rows_per_score};
use crate::report::metrics::Paired;
use crate::report::{Page, Row, svg};
use crate::scorers;
use std::fmt::Write;

impl Page {
    pub(super) fn scores(&self, out: &mut String) {
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
}

/// Raw and best AUROC of one other set, side by side.
pub(super) fn tile(v: &Verdict) -> Option<String> {
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
