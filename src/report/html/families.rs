//! Models side by side: what each family is good for, in figures measured on one machine.

use super::{Text, section, significant};
use crate::models::Kind;
use crate::report::finding::Finding;
use crate::report::page::{FamilyRow, Page, Told};
use std::fmt::Write;

impl Page {
    /// The headline of a page that compares models.
    pub(super) fn of_families(&self) -> Finding {
        let mut families: Vec<&str> = self.families.iter().map(|f| f.family.as_str()).collect();
        families.sort_unstable();
        families.dedup();
        let (n, k) = (self.families.len(), families.len());
        let comparable = |f: &&FamilyRow| f.kind != Kind::Unnormalised && f.bits_per_dim.is_finite();
        let best = self.families.iter().filter(comparable);
        let best = best.min_by(|a, b| a.bits_per_dim.total_cmp(&b.bits_per_dim));
        let paragraph = best.map_or(String::new(), |best| {
            format!(
                "{} needs the fewest bits of the reference, {:.3} per dimension ({}).",
                best.model,
                best.bits_per_dim,
                words(best.kind)
            )
        });
        let family = if k == 1 { "family" } else { "families" };
        Finding { headline: format!("{n} models of {k} {family}, measured."), paragraph }
    }

    /// The table of the models.
    pub(super) fn compared_families(&self, out: &mut String) {
        if self.families.is_empty() {
            return;
        }
        let others: Vec<&str> = self.families[0].found.iter().map(|told| told.other.as_str()).collect();
        let mut body = String::from(
            "<table class=\"families\">\n<thead><tr><th scope=\"col\">Model</th><th scope=\"col\">Likelihood</th>\
             <th scope=\"col\">Bits per dim</th><th scope=\"col\">Training</th><th scope=\"col\">Scoring</th>\
             <th scope=\"col\">Sampling</th>",
        );
        for other in &others {
            let _ = write!(body, "<th scope=\"col\">{}</th>", Text(other));
        }
        body.push_str("</tr></thead>\n<tbody>\n");
        self.families.iter().for_each(|f| body.push_str(&row(f)));
        body.push_str("</tbody>\n</table>\n");
        section(
            out,
            "The families side by side",
            "Density estimation on the reference, and the speed of a training step, of log p and of sampling in examples per \
             second, measured on this machine with these batches. Bits of different kinds of likelihood are not the same \
             thing: a bound is above the truth, an unnormalised number says nothing. To the right, the AUROC of raw \
             likelihood and of the best score on each other set.",
            &body,
        );
    }
}

fn row(f: &FamilyRow) -> String {
    let bits = match f.kind {
        Kind::Unnormalised => "&mdash;".to_string(),
        _ => format!("{:.3}", f.bits_per_dim),
    };
    let speed = |x: Option<f64>| x.map_or("&mdash;".into(), |x| format!("{}/s", significant(x)));
    let link = match &f.report {
        Some(report) => format!("<a href=\"{}\">{}</a>", Text(report), Text(&f.model)),
        None => Text(&f.model).to_string(),
    };
    let mut html = format!(
        "<tr><th scope=\"row\"><span class=\"name\">{link}</span><small>{}, {} parameters</small></th>\
         <td data-label=\"Likelihood\">{}</td><td data-label=\"Bits per dim\" class=\"main\">{bits}</td>\
         <td data-label=\"Training\">{}</td><td data-label=\"Scoring\">{}</td><td data-label=\"Sampling\">{}</td>",
        Text(&f.family),
        f.parameters,
        words(f.kind),
        speed(f.training),
        speed(f.scoring),
        speed(f.sampling)
    );
    for Told { other, raw, best } in &f.found {
        let raw = raw.map_or(String::new(), |raw| format!("{raw:.3}"));
        let best = best
            .as_ref()
            .map_or(String::new(), |(name, auroc)| format!(" <small>{} {auroc:.3}</small>", Text(name)));
        let _ = write!(html, "<td data-label=\"{}\">{raw}{best}</td>", Text(other));
    }
    html + "</tr>\n"
}

fn words(kind: Kind) -> &'static str {
    match kind {
        Kind::Exact => "exact",
        Kind::LowerBound => "lower bound",
        Kind::Estimate => "estimated",
        Kind::Unnormalised => "unnormalised",
    }
}
