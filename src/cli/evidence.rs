//! From files to what scorers work on.

use super::{Common, inputs, progress};
use crate::calibrate::{Calibration, calibrate};
use crate::data::Dataset;
use crate::error::Result;
use crate::evidence::{Evidence, Judges, Need};
use crate::scorers::{self, SCORERS, ScorerInfo};
use std::path::Path;

/// Reads the model, the other members of its ensemble that `train --ensemble` left beside it, and the background model.
pub fn open(common: &Common, model: &Path, background: Option<&Path>) -> Result<Judges> {
    let read = |path: &Path| inputs::model_on(path, common);
    let members = inputs::members(&inputs::model_path(model));
    let members = members.iter().map(|p| read(p)).collect::<Result<Vec<_>>>()?;
    Judges::new(read(model)?, members, background.map(read).transpose()?)
}

/// All that the models say about `data`, with a bar per pass.
pub fn know(judges: &Judges, common: &Common, data: Dataset, needs: &[Need]) -> Result<Evidence> {
    judges.know(data, needs, common.seed, &|name, n| Box::new(progress::counting(common, name, n)))
}

/// The scorers called `names`; without names, all that cost no more than a forward pass per model.
pub fn chosen(names: &[String]) -> Result<Vec<&'static ScorerInfo>> {
    match names {
        [] => Ok(SCORERS.iter().copied().filter(|info| info.is_cheap()).collect()),
        [all] if all == "all" => Ok(SCORERS.to_vec()),
        names => names.iter().map(|name| scorers::find(name)).collect(),
    }
}

/// What these scorers need to know of reference rows.
pub fn needs(scorers: &[&ScorerInfo]) -> Vec<Need> {
    scorers.iter().flat_map(|info| info.asks()).collect()
}

/// What they need to know of rows to be scored.
pub fn needs_to_score(scorers: &[&ScorerInfo]) -> Vec<Need> {
    needs(scorers).into_iter().filter(|need| *need != Need::Samples).collect()
}

/// The calibrations in the model's file, and those that follow from what it and the other models held out: scorers that
/// look at log-likelihoods alone need no rows.
pub fn calibrations(judges: &Judges) -> Result<Vec<Calibration>> {
    let Some(held_out) = &judges.model.meta.calibration else { return Ok(Vec::new()) };
    let mut out = held_out.scorers.clone();
    if let Some(evidence) = judges.held_out()? {
        let missing = |info: &ScorerInfo| {
            info.judges_numbers() && !held_out.scorers.iter().any(|c| c.name() == info.name)
        };
        out.extend(calibrate(&evidence, &missing)?);
    }
    Ok(out)
}
