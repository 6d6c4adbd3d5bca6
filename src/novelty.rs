//! Novelty detection in three calls: learn what is normal, judge what comes, keep what was learned.
//!
//! ```
//! use surprisal::{Dataset, Novelty, Tensor, random::Philox};
//!
//! # fn main() -> surprisal::Result<()> {
//! // 2,000 rows near the line y = 2x.
//! let noise = Philox::new(1).normal([2000, 2], surprisal::DType::F64).to_f64_vec();
//! let near = |row: usize, column: usize| [1.0, 2.0][column] * noise[2 * row] + 0.1 * noise[2 * row + 1];
//! let normal = Dataset::new("normal", Tensor::from_fn([2000, 2], |i| near(i / 2, i % 2)));
//!
//! let novelty = Novelty::train("gmm", &["components=1"], &normal)?;
//!
//! let new = Dataset::new("new", Tensor::from_slice(&[0.5, 1.0, 1.0, 0.0], [2, 2]));
//! let verdicts = novelty.judge(&new)?;
//! assert!(verdicts[0].p_value > 0.05); // on the line
//! assert!(verdicts[1].p_value < 0.01); // beside it, though each number alone is usual
//! # Ok(())
//! # }
//! ```
//! What the rooms behind it offer beyond that (several models and scorers at once, false-discovery rates, streams,
//! drift) is put together by hand from [`evidence`](crate::evidence), [`scorers`] and
//! [`calibrate`](crate::calibrate); the commands in [`cli`](crate::cli) show how.

use crate::calibrate::{Calibration, MOST_HELD_OUT, held_out};
use crate::cpu::par;
use crate::cuda::{self, Device};
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result, nearest};
use crate::evidence::{Evidence, Judges, Need, silent};
use crate::models::config::{self, Recipe};
use crate::models::file::{self, DataStats, Meta, ModelFile};
use crate::models::{MODELS, Model};
use crate::scorers::{self, Scorer};
use crate::train::{Evaluate, Observer, checkpoint, fit, log_probs};
use std::path::Path;

/// The scorer until [`Novelty::with_scorer`] chooses another.
const SCORER: &str = "auto";
/// The share of the data that is set aside for calibration, unless the recipe asks for more.
const ASIDE: f64 = 0.2;

/// A trained model with a scorer that is calibrated on rows it was not trained on.
pub struct Novelty {
    judges: Judges,
    calibration: Calibration,
    scorer: Box<dyn Scorer>,
}

/// What is to be said about one example.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// log p(x), nats per example.
    pub nats: f64,
    /// The score: higher = more anomalous.
    pub score: f64,
    /// The share of normal examples that score at least so high ([`Calibration::p_value`]): calling those with p ≤ α
    /// anomalies raises a false alarm on at most a share α of normal examples. At least 1 / (held-out rows + 1).
    pub p_value: f64,
}

impl Novelty {
    /// Trains the model or preset called `name` (as `surprisal list models` has it), changed by the assignments
    /// `settings` (as `--set`), on normal data. The shape of an example is that of the data. A fifth of it, at most
    /// 2,000 examples (or the share `train.validation`, if that is more), is set aside: it chooses the weights that are
    /// kept and calibrates the scores. Inside [`Device::run`](crate::Device::run) it trains, and later judges, on that device;
    /// `model().to(device)` moves it.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for an unknown name or setting; data that the model does not take; a loss that is not
    /// finite.
    pub fn train(name: &str, settings: &[&str], normal: &Dataset) -> Result<Self> {
        let mut recipe = config::find(MODELS, name)?;
        recipe.set(settings)?;
        recipe.adapt(normal);
        let device = cuda::current();
        par::inside(0, || device.run(|| Self::train_watched(&recipe, normal, &mut ())))?
    }

    /// As [`Self::train`], by a complete recipe; `observer` hears how it goes and may break off. Inside
    /// [`par::inside`] it is as fast as `train`.
    ///
    /// # Errors
    /// Those of [`Self::train`]; [`ErrorKind::Interrupted`] when broken off.
    pub fn train_watched(recipe: &Recipe, normal: &Dataset, observer: &mut dyn Observer) -> Result<Self> {
        let device = cuda::current();
        cuda::on_host(|| Self::train_on(device, recipe, normal, observer))
    }

    fn train_on(
        device: Device,
        recipe: &Recipe,
        normal: &Dataset,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let options = &recipe.train;
        let enough = ASIDE.min(MOST_HELD_OUT as f64 / normal.len().max(1) as f64);
        let (rest, aside) = normal.split(options.validation.max(enough), options.seed)?;
        let model = recipe.build()?;
        model.input().check(&rest)?;
        model.to(device)?;
        let meta = Meta { data: Some(DataStats::of(&rest)), ..Meta::new(recipe, &*model) };
        let fit = fit(&*model, &rest, Some(&aside), options, observer)?;
        let aside = aside.take(MOST_HELD_OUT);
        let found = log_probs(&*model, &aside, &Evaluate { seed: options.seed, ..Evaluate::default() })?;
        let calibration =
            Some(held_out(&*model, Evidence::new(aside, found.nats, found.kind), options.seed, &silent)?);
        let training = serde_json::to_value(&fit)
            .map_err(|e| Error::new(ErrorKind::Model, format!("training summary: {e}")))?;
        Self::of(ModelFile { model, meta: Meta { training: Some(training), calibration, ..meta } })
    }

    /// Reads what [`Self::save`] or `surprisal train` wrote: a model file, or the folder with it.
    ///
    /// # Errors
    /// Those of [`file::load`]; [`ErrorKind::Usage`] for a model that was trained without held-out rows.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = if path.is_dir() { path.join(checkpoint::MODEL) } else { path.to_path_buf() };
        Self::of(file::load(file)?).map_err(|e| e.at(path.display()))
    }

    fn of(file: ModelFile) -> Result<Self> {
        let calibration = calibration(&file.meta, SCORER)?;
        let scorer = calibration.scorer()?;
        Ok(Self { judges: Judges::new(file, Vec::new(), None)?, calibration, scorer })
    }

    /// Writes the model with its calibration beside `path` and renames; the command line reads it too.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let ModelFile { model, meta } = &self.judges.model;
        file::save(path, &file::tensors(&**model), meta)
    }

    /// The same model judging by another scorer.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a scorer that is unknown, that is not calibrated by one model and its held-out rows
    /// alone, or that judges several rows at once.
    pub fn with_scorer(self, name: &str) -> Result<Self> {
        let calibration = calibration(&self.judges.model.meta, scorers::find(name)?.name)?;
        let scorer = calibration.scorer()?;
        if scorer.rows_per_score() > 1 {
            let message = format!("\"{name}\" judges {} rows at once", scorer.rows_per_score());
            return Err(Error::new(ErrorKind::Usage, message));
        }
        Ok(Self { calibration, scorer, ..self })
    }

    /// One verdict per example.
    ///
    /// # Errors
    /// Data of another shape or type; a log-likelihood that is not finite, naming the row.
    pub fn judge(&self, data: &Dataset) -> Result<Vec<Verdict>> {
        self.model().input().check(data)?;
        let needs: Vec<Need> = scorers::find(self.calibration.name())?.asks().collect();
        let known =
            par::inside(0, || cuda::on_host(|| self.judges.know(data.clone(), &needs, None, &silent)))?;
        let scores = cuda::on_host(|| self.scorer.score(&known))?;
        let verdict = |(&nats, score)| Verdict { nats, score, p_value: self.calibration.p_value(score) };
        Ok(known.nats.iter().zip(scores).map(verdict).collect())
    }

    /// The calibration: thresholds, the number of held-out rows, p-values of scores.
    pub fn calibration(&self) -> &Calibration {
        &self.calibration
    }

    /// The model, to sample from or to ask for more than log p.
    pub fn model(&self) -> &dyn Model {
        &*self.judges.model.model
    }

    /// What the model's file says about it.
    pub fn meta(&self) -> &Meta {
        &self.judges.model.meta
    }
}

fn calibration(meta: &Meta, scorer: &str) -> Result<Calibration> {
    let known = meta.calibration.as_ref().map_or(&[][..], |held_out| &held_out.scorers);
    known.iter().find(|c| c.name() == scorer).cloned().ok_or_else(|| {
        let hint = match known {
            [] => "it was trained without held-out rows".into(),
            _ => nearest(scorer, known.iter().map(Calibration::name)),
        };
        Error::new(ErrorKind::Usage, format!("\"{scorer}\" is not calibrated in this model; {hint}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Philox;
    use crate::tensor::{DType, Tensor};

    fn normal(n: usize, seed: u64) -> Dataset {
        Dataset::new("normal", Philox::new(seed).normal([n, 3], DType::F64))
    }

    #[test]
    fn false_alarms_are_as_rare_as_promised() {
        let novelty = Novelty::train("gmm", &["components=2"], &normal(5000, 1)).unwrap();
        assert_eq!(novelty.calibration().rows(), 500);
        let n = 4000;
        let verdicts = novelty.judge(&normal(n, 2)).unwrap();
        let share = verdicts.iter().filter(|v| v.p_value <= 0.05).count() as f64 / n as f64;
        // Four standard deviations, of 500 reference rows and of 4,000 judged.
        let spread = (0.05 * 0.95 * (1.0 / 500.0 + 1.0 / n as f64)).sqrt();
        assert!((share - 0.05).abs() < 4.0 * spread, "{share}");
        let far = Dataset::new("far", Tensor::from_slice(&[9.0, -9.0, 9.0], [1, 3]));
        assert!(novelty.judge(&far).unwrap()[0].p_value < 0.003);
    }

    #[test]
    fn what_is_saved_judges_alike() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(checkpoint::MODEL);
        let novelty = Novelty::train("gmm", &["components=1"], &normal(400, 1)).unwrap();
        novelty.save(&path).unwrap();
        let new = normal(20, 3);
        let verdicts = novelty.judge(&new).unwrap();
        assert_eq!(Novelty::open(&path).unwrap().judge(&new).unwrap(), verdicts);
        let nll = Novelty::open(dir.path()).unwrap().with_scorer("nll").unwrap();
        assert!(nll.judge(&new).unwrap().iter().all(|v| v.score == -v.nats));
    }

    /// Work of several threads meets in one pool, where a waiting thread takes over what it finds.
    #[test]
    fn what_other_threads_do_changes_nothing() {
        let (known, new) = (normal(300, 1), normal(20, 2));
        let train = || {
            let novelty = Novelty::train("realnvp_table", &["hidden=[8]", "train.steps=10"], &known).unwrap();
            novelty.judge(&new).unwrap()
        };
        let alone = train();
        let other = Novelty::train("gmm", &["components=2"], &normal(400, 3)).unwrap();
        let many = normal(60_000, 4);
        std::thread::scope(|scope| {
            let judging = [(); 3].map(|()| scope.spawn(|| other.judge(&many).unwrap()));
            assert_eq!(train(), alone);
            let [first, others @ ..] = judging.map(|thread| thread.join().unwrap());
            assert!(others.iter().all(|found| *found == first));
        });
    }

    #[test]
    fn refusals_say_what_was_expected() {
        let says = |found: Result<Novelty>, words: &[&str]| {
            let message = found.err().expect("a refusal").to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        };
        let train = |name, settings: &[&str]| Novelty::train(name, settings, &normal(60, 1));
        says(train("gnm", &[]), &["gnm", "\"gmm\""]);
        says(train("gmm", &["compnents=2"]), &["components"]);
        says(train("glow28", &[]), &["normal", "[28, 28, 1]"]);
        says(Novelty::train("gmm", &[], &normal(1, 1)), &["1"]);
        says(Novelty::open("no/such/file"), &["no/such/file"]);
        let novelty = || train("gmm", &["components=1"]).unwrap();
        says(novelty().with_scorer("likelihood_ratio"), &["likelihood_ratio", "not calibrated"]);
        says(novelty().with_scorer("typicality_batch"), &["typicality_batch"]);
        let error = novelty().judge(&Dataset::new("new", Tensor::zeros([2, 4], DType::F64))).unwrap_err();
        assert!(error.to_string().contains("new"), "{error}");
    }
}
