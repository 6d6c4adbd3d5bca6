//! A series with the intervals that stand out.

use super::{Text, section, significant};
use crate::report::page::{Page, Stretch};
use std::fmt::Write;

impl Page {
    /// The table of the intervals; the figures shade them.
    pub(super) fn found_stretches(&self, out: &mut String) {
        if self.stretches.is_empty() {
            return;
        }
        let mut body = String::from(
            "<table class=\"stretches\">\n<thead><tr><th scope=\"col\">From</th><th scope=\"col\">To</th>\
             <th scope=\"col\">Steps</th><th scope=\"col\">Peak, nats</th><th scope=\"col\">Severity</th>\
             <th scope=\"col\">Columns</th></tr></thead>\n<tbody>\n",
        );
        for Stretch { start, end, steps, nats, severity, columns } in &self.stretches {
            let columns: Vec<String> = columns
                .iter()
                .map(|(name, nats)| format!("<span>{} <b>{}</b></span>", Text(name), significant(*nats)))
                .collect();
            let _ = writeln!(
                body,
                "<tr><th scope=\"row\">{}</th><td data-label=\"To\">{}</td><td data-label=\"Steps\">{steps}</td>\
                 <td data-label=\"Peak, nats\" class=\"main\">{}</td><td data-label=\"Severity\">{}</td>\
                 <td data-label=\"Columns\" class=\"cells\">{}</td></tr>",
                Text(start),
                Text(end),
                significant(*nats),
                significant(*severity),
                columns.join(" ")
            );
        }
        body.push_str("</tbody>\n</table>\n");
        section(
            out,
            "What stands out",
            "Intervals of steps that are more surprising than the steps before them allow, with the columns behind them in \
             nats. Severity is the excess summed over the interval. They are shaded in the charts.",
            &body,
        );
    }
}
