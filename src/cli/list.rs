//! `list`: what there is.

use super::{Common, output};
use crate::data::SOURCES;
use crate::detectors::DETECTORS;
use crate::error::Result;
use crate::models::MODELS;
use crate::ops::OPS;
use crate::scorers::SCORERS;
use clap::ValueEnum;
use serde::Serialize;

#[derive(clap::Args)]
pub struct Args {
    /// What to list
    what: What,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    Models,
    Detectors,
    Scorers,
    Sources,
    Ops,
}

#[derive(Default, Serialize)]
struct Entry {
    name: &'static str,
    family: &'static str,
    summary: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    presets: Option<Vec<&'static str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    objective: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reproduce: Option<&'static str>,
}

/// Prints the registry.
pub fn run(args: &Args, common: &Common) -> Result<()> {
    macro_rules! entries {
        ($registry:expr) => {
            $registry
                .iter()
                .map(|i| Entry { name: i.name, family: i.family, summary: i.summary, ..Default::default() })
                .collect::<Vec<_>>()
        };
    }
    let entries = match args.what {
        What::Models => MODELS
            .iter()
            .map(|m| {
                let presets = Some(m.presets.iter().map(|p| p.0).collect());
                let (objective, reproduce) = (Some(m.objective), Some(m.reproduce));
                Entry { name: m.name, family: m.family, summary: m.summary, presets, objective, reproduce }
            })
            .collect(),
        What::Detectors => entries!(DETECTORS),
        What::Scorers => entries!(SCORERS),
        What::Sources => entries!(SOURCES),
        What::Ops => entries!(OPS),
    };
    if common.json {
        return output::print(&output::json_lines(&entries)?);
    }
    let row = |e: &Entry| {
        let presets = e.presets.as_ref().map_or(String::new(), |p| format!(" [presets: {}]", p.join(", ")));
        vec![e.name.to_string(), e.family.to_string(), format!("{}{presets}", e.summary)]
    };
    output::print(&output::columns(&entries.iter().map(row).collect::<Vec<_>>()))
}
