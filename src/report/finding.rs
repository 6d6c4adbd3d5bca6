//! What the rows say, in words: which score failed, which repaired it, and where none did.

use super::Row;
use crate::scorers;

/// A headline and a paragraph, as plain text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// One or two short sentences.
    pub headline: String,
    /// The figures behind it.
    pub paragraph: String,
}

/// How raw likelihood did on one other set; an AUROC is called good from 0.9 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Raw {
    /// The anomalies are *more* likely: the interval lies below 0.5.
    Fooled,
    /// The interval contains 0.5.
    Blind,
    /// Better than chance, below 0.9.
    Weak,
    /// 0.9 or more.
    Good,
    /// There is no `nll` row.
    Absent,
}

/// The rows of one other set.
pub(super) struct Verdict<'a> {
    pub other: &'a str,
    pub raw: Option<&'a Row>,
    /// The highest AUROC among the scorers that judge single rows, `nll` apart.
    pub best: Option<&'a Row>,
}

impl<'a> Verdict<'a> {
    /// One verdict per other set, in the order of the rows.
    pub(super) fn all(rows: &'a [Row]) -> Vec<Self> {
        let mut others: Vec<&str> = Vec::new();
        rows.iter().for_each(|r| {
            if !others.contains(&r.other.as_str()) {
                others.push(&r.other);
            }
        });
        let verdict = |other| {
            let of_set = || rows.iter().filter(move |r| r.other == other);
            let repairs = of_set().filter(|r| r.scorer != "nll" && !judges_batches(&r.scorer));
            Self {
                other,
                raw: of_set().find(|r| r.scorer == "nll"),
                best: repairs.max_by(|a, b| a.auroc.total_cmp(&b.auroc)),
            }
        };
        others.into_iter().map(verdict).collect()
    }

    fn kind(&self) -> Raw {
        match self.raw {
            None => Raw::Absent,
            Some(r) if r.auroc_high < 0.5 => Raw::Fooled,
            Some(r) if r.auroc_low <= 0.5 => Raw::Blind,
            Some(r) if r.auroc < 0.9 => Raw::Weak,
            Some(_) => Raw::Good,
        }
    }

    /// The best other score is clearly better than the raw one.
    fn helped(&self) -> bool {
        matches!((self.raw, self.best), (Some(raw), Some(best)) if best.auroc_low > raw.auroc_high.max(0.5))
    }

    fn repaired(&self) -> bool {
        self.helped() && self.best.is_some_and(|b| b.auroc >= 0.9)
    }
}

/// Scorers that see many rows at once are not compared with those that see one.
pub(super) fn judges_batches(scorer: &str) -> bool {
    rows_per_score(scorer) > 1
}

/// Rows per score of a registered scorer with its default settings; 1 for a name that is not registered.
pub(super) fn rows_per_score(scorer: &str) -> usize {
    scorers::find(scorer).map_or(1, |info| (info.build)().rows_per_score())
}

/// Writes the finding from the rows, whatever they say.
pub fn finding(rows: &[Row]) -> Finding {
    let verdicts = Verdict::all(rows);
    let headline = match &verdicts[..] {
        [] => "What the model finds surprising".to_owned(),
        [one] => headline_of_one(one, &rows[0].reference),
        many => headline_of_many(many),
    };
    if verdicts.is_empty() {
        let paragraph = "No second data set was scored, so there is nothing to compare the reference with. The \
                         histogram shows how many bits per dimension the model needs for it.";
        return Finding { headline, paragraph: paragraph.to_owned() };
    }
    let mut sentences: Vec<String> = verdicts.iter().map(sentence).collect();
    sentences.push("Ranges are 95% bootstrap intervals.".to_owned());
    if verdicts.iter().any(|v| v.best.is_some()) {
        sentences.push(
            "The best score was named after seeing these figures; to rely on one, choose it before."
                .to_owned(),
        );
    }
    Finding { headline, paragraph: sentences.join(" ") }
}

fn headline_of_one(v: &Verdict, reference: &str) -> String {
    let other = v.other;
    let first = match v.kind() {
        Raw::Fooled => format!("The model finds {other} more likely than {reference}."),
        Raw::Blind => format!("Raw likelihood cannot tell {other} from {reference}."),
        Raw::Weak => format!("Raw likelihood tells {other} from {reference}, but not well."),
        Raw::Good => return format!("Raw likelihood tells {other} from {reference}."),
        Raw::Absent => format!("{other} against {reference}."),
    };
    match v.best {
        Some(best) if v.repaired() => format!("{first} The score {} repairs it.", best.scorer),
        Some(best) if v.helped() => format!("{first} The score {} repairs it in part.", best.scorer),
        Some(_) if v.raw.is_some() => format!("{first} No other score repairs it."),
        _ => first,
    }
}

fn headline_of_many(verdicts: &[Verdict]) -> String {
    let n = verdicts.len();
    let count = |kind| verdicts.iter().filter(|v| v.kind() == kind).count();
    let (fooled, good, absent) = (count(Raw::Fooled), count(Raw::Good), count(Raw::Absent));
    if absent == n {
        return format!("{n} data sets against the reference.");
    }
    if good == n {
        return format!("Raw likelihood tells all {n} data sets from the reference.");
    }
    let first = match fooled {
        0 => format!("Raw likelihood is good enough for {good} of {n} data sets."),
        _ => format!("The model finds {fooled} of {n} data sets more likely than its own reference."),
    };
    let failed: Vec<&Verdict> =
        verdicts.iter().filter(|v| !matches!(v.kind(), Raw::Good | Raw::Absent)).collect();
    let repaired = failed.iter().filter(|v| v.repaired()).count();
    let second = match repaired {
        0 => "No other score repairs that.".to_owned(),
        r if r == failed.len() => "Other scores repair it.".to_owned(),
        r => format!("Other scores repair {r} of {}.", failed.len()),
    };
    format!("{first} {second}")
}

fn sentence(v: &Verdict) -> String {
    let mut text = String::new();
    if let Some(raw) = v.raw {
        let (other, reference) = (v.other, &raw.reference);
        let figures = figures(raw);
        text += &match v.kind() {
            Raw::Fooled => format!(
                "Raw surprisal puts {other} above {reference} in only {} of pairs ({figures}; a coin would reach \
                 0.5): the anomalies look more normal than the reference itself.",
                percent(raw.auroc)
            ),
            Raw::Blind => {
                format!("Raw surprisal ranks {other} against {reference} no better than a coin ({figures}).")
            }
            Raw::Weak | Raw::Good | Raw::Absent => {
                format!(
                    "Raw surprisal puts {other} above {reference} in {} of pairs ({figures}).",
                    percent(raw.auroc)
                )
            }
        };
    }
    let Some(best) = v.best else { return text };
    if !text.is_empty() {
        text.push(' ');
    }
    let (name, share, figures) = (&best.scorer, percent(best.auroc), figures(best));
    text += &match (v.raw, v.helped()) {
        (None, _) => {
            format!("On {} the best score is {name}: right in {share} of pairs ({figures}).", v.other)
        }
        (Some(_), true) => format!("With {name} it is {share} ({figures})."),
        (Some(raw), false) if raw.auroc >= best.auroc => {
            format!("No other score does better; the next is {name} ({figures}).")
        }
        (Some(_), false) => format!("The best other score, {name}, is not clearly better ({figures})."),
    };
    text
}

fn figures(row: &Row) -> String {
    format!("AUROC {:.3}, {:.3} to {:.3}", row.auroc, row.auroc_low, row.auroc_high)
}

fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(scorer: &str, other: &str, auroc: f64) -> Row {
        Row {
            model: "m".into(),
            scorer: scorer.into(),
            reference: "R".into(),
            other: other.into(),
            n_reference: 100,
            n_other: 100,
            auroc,
            auroc_low: auroc - 0.02,
            auroc_high: auroc + 0.02,
            aupr_in: 0.5,
            aupr_out: 0.5,
            fpr95: 0.5,
            behind: None,
        }
    }

    #[test]
    fn every_case_is_told_as_it_is() {
        let say =
            |nll: f64, best: f64| finding(&[row("nll", "O", nll), row("complexity_png", "O", best)]).headline;
        assert_eq!(
            say(0.03, 0.98),
            "The model finds O more likely than R. The score complexity_png repairs it."
        );
        assert!(say(0.03, 0.80).ends_with("repairs it in part."));
        assert!(say(0.30, 0.31).ends_with("No other score repairs it."));
        assert!(say(0.30, 0.45).ends_with("No other score repairs it."));
        assert!(say(0.51, 0.95).starts_with("Raw likelihood cannot tell"));
        assert!(say(0.80, 0.95).starts_with("Raw likelihood tells O from R, but not well. The score"));
        assert_eq!(say(0.97, 0.5), "Raw likelihood tells O from R.");
        assert!(
            finding(&[row("nll", "O", 0.97), row("typicality", "O", 0.5)])
                .paragraph
                .contains("No other score")
        );
        assert_eq!(finding(&[]).headline, "What the model finds surprising");
        assert_eq!(finding(&[row("typicality", "O", 0.9)]).headline, "O against R.");
    }

    #[test]
    fn scorers_of_batches_are_not_the_best() {
        let rows = [row("nll", "O", 0.1), row("typicality_batch", "O", 0.99), row("typicality", "O", 0.92)];
        assert!(finding(&rows).headline.contains("The score typicality repairs it"));
    }

    #[test]
    fn many_sets() {
        let rows =
            [row("nll", "A", 0.1), row("typicality", "A", 0.95), row("nll", "B", 0.97), row("nll", "C", 0.7)];
        let said = finding(&rows);
        assert!(
            said.headline.starts_with("The model finds 1 of 3 data sets more likely"),
            "{}",
            said.headline
        );
        assert!(said.headline.ends_with("Other scores repair 1 of 2."), "{}", said.headline);
        for other in ["A", "B", "C"] {
            assert!(said.paragraph.contains(&format!("puts {other} above R")));
        }
    }
}
