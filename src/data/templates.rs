//! Templates of log lines, mined online in the manner of Drain (He et al. 2017, "Drain: an online log parsing
//! approach with fixed depth tree").
//!
//! ```text
//! line -> words, numbers masked -> group by (number of words, first two words) -> the most similar template
//! ```
//! A word's runs of letters and digits that contain a digit become `<*>`. Within a group a line joins the template
//! with the largest share of equal words if that is at least one half, and the words in which they differ become
//! `<*>`; else it starts a template. Mined templates are frozen: [`Templates::find`] changes nothing, so that what a
//! model has learned of template 7 stays true, and a line of a new kind is told as such.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// What stands for a variable part.
const ANY: &str = "<*>";
/// Words that a group has in common.
const PREFIX: usize = 2;
/// The most templates that are kept.
const MOST: usize = 10_000;
/// The share of equal words from which lines are of one kind.
const SIMILAR: f64 = 0.5;

/// Frozen templates; a file has them as texts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Vec<String>", into = "Vec<String>")]
pub struct Templates {
    /// Words of each.
    templates: Vec<Vec<String>>,
    /// Templates of each group.
    groups: HashMap<Group, Vec<usize>>,
}

/// Number of words, and the first of them.
type Group = (usize, Vec<String>);

impl Templates {
    /// Mines `lines`. The `most` templates of the most lines come first, then the others, `MOST` in all; both in the
    /// order of their first lines.
    pub fn mine<'a>(lines: impl Iterator<Item = &'a str>, most: usize) -> Self {
        let mut mined = Self::default();
        let mut counts: Vec<usize> = Vec::new();
        for line in lines {
            let words = words(line);
            let group = mined.groups.entry(group(&words)).or_default();
            match nearest(&mined.templates, group, &words) {
                Some(id) => {
                    counts[id] += 1;
                    for (known, word) in mined.templates[id].iter_mut().zip(words) {
                        if *known != word {
                            *known = ANY.into();
                        }
                    }
                }
                None => {
                    group.push(counts.len());
                    counts.push(1);
                    mined.templates.push(words);
                }
            }
        }
        let mut order: Vec<usize> = (0..counts.len()).collect();
        order.sort_by_key(|&id| std::cmp::Reverse(counts[id]));
        order.truncate(MOST);
        let own = most.min(order.len());
        let (frequent, rare) = order.split_at_mut(own);
        frequent.sort_unstable();
        rare.sort_unstable();
        Self::of(order.into_iter().map(|id| std::mem::take(&mut mined.templates[id])).collect())
    }

    fn of(templates: Vec<Vec<String>>) -> Self {
        let mut groups: HashMap<Group, Vec<usize>> = HashMap::new();
        templates.iter().enumerate().for_each(|(id, words)| groups.entry(group(words)).or_default().push(id));
        Self { templates, groups }
    }

    /// The template of a line, if it is of a known kind.
    pub fn find(&self, line: &str) -> Option<usize> {
        let words = words(line);
        nearest(&self.templates, self.groups.get(&group(&words))?, &words)
    }

    /// A template as text.
    ///
    /// # Panics
    /// When there is no such template.
    #[track_caller]
    pub fn text(&self, id: usize) -> String {
        self.templates[id].join(" ")
    }

    /// Number of templates.
    pub fn len(&self) -> usize {
        self.templates.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.templates.is_empty()
    }
}

impl From<Vec<String>> for Templates {
    fn from(texts: Vec<String>) -> Self {
        Self::of(texts.iter().map(|t| t.split(' ').map(String::from).collect()).collect())
    }
}

impl From<Templates> for Vec<String> {
    fn from(templates: Templates) -> Self {
        (0..templates.len()).map(|id| templates.text(id)).collect()
    }
}

/// The member of `group` with the most words in common, if they are enough; of equals the first.
fn nearest(templates: &[Vec<String>], group: &[usize], words: &[String]) -> Option<usize> {
    let equal = |id: usize| templates[id].iter().zip(words).filter(|(a, b)| a == b).count();
    let best = group.iter().copied().rev().max_by_key(|&id| equal(id))?;
    (equal(best) as f64 >= SIMILAR * words.len() as f64).then_some(best)
}

/// Words with a variable part do not tell groups apart.
fn group(words: &[String]) -> Group {
    let plain = |word: &String| if word.contains(ANY) { ANY.into() } else { word.clone() };
    (words.len(), words.iter().take(PREFIX).map(plain).collect())
}

/// The words of a line, masked.
fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(masked).collect()
}

/// Runs of letters and digits that contain a digit, with a minus sign before them, become `<*>`.
fn masked(word: &str) -> String {
    let mut out = String::with_capacity(word.len());
    let mut rest = word;
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len());
        let (run, behind) = rest.split_at(end.max(first.len_utf8()));
        if end > 0 && run.contains(|c: char| c.is_ascii_digit()) {
            if out.ends_with('-')
                && !out.trim_end_matches('-').ends_with(|c: char| c.is_alphanumeric() || c == '>')
            {
                out.pop();
            }
            out.push_str(ANY);
        } else {
            out.push_str(run);
        }
        rest = behind;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_masked() {
        for (word, expected) in [
            ("blk_-1608999687919862906", "blk_<*>"),
            ("/10.250.19.102:54106", "/<*>.<*>.<*>.<*>:<*>"),
            ("R02-M1-N0", "<*>-<*>-<*>"),
            ("dfs.DataNode$PacketResponder:", "dfs.DataNode$PacketResponder:"),
            ("size=0x1f", "size=<*>"),
            ("-3", "<*>"),
            ("größe", "größe"),
        ] {
            assert_eq!(masked(word), expected);
        }
    }

    #[test]
    fn lines_of_one_kind_share_a_template() {
        let lines = [
            "session opened for user root by 7",
            "session opened for user alice by 12",
            "session closed for user root",
            "Received block blk_12 of size 67 from /10.0.0.1",
            "session opened for user bob by 1",
        ];
        let mined = Templates::mine(lines.into_iter(), 100);
        assert_eq!(mined.len(), 3);
        assert_eq!(mined.text(0), "session opened for user <*> by <*>");
        let ids: Vec<_> = lines.iter().map(|l| mined.find(l)).collect();
        assert_eq!(ids, [Some(0), Some(0), Some(1), Some(2), Some(0)]);
        assert_eq!(mined.find("kernel panic: not syncing"), None);
        assert_eq!(mined.find("session opened at dawn for no reason"), None);
        let saved: Templates = serde_json::from_str(&serde_json::to_string(&mined).unwrap()).unwrap();
        assert_eq!(saved, mined);
        let last_first = Templates::mine(lines.iter().rev().copied(), 1);
        assert_eq!(last_first.text(0), mined.text(0), "the most frequent comes first");
        assert_eq!(last_first.len(), 3, "the others behind it");
    }
}
