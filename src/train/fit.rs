//! The training loop.

use super::evaluate::{Evaluate, label_tensor, log_probs, log_probs_while};
use super::noise::RowNoise;
use super::optim::{self, Optimiser};
use super::scale::Scaler;
use super::step::{gradients, least};
use super::{Amp, FitOptions, Noise, checkpoint};
use crate::autograd;
use crate::cuda::{Device, Replay, on_host};
use crate::data::{self, Dataset};
use crate::error::{Error, ErrorKind, Result};
use crate::models::container::first_non_finite;
use crate::models::{Batch, Kind, Model, file};
use crate::random::Philox;
use crate::report::bits_per_dim;
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Streams of the seed: the order of the examples, what is random within a step, and at the end.
const ORDER: u64 = 0;
const STEP: u64 = 1;
const FINISH: u64 = 3;

/// Times that a model which fits itself is fitted again to the examples that are left.
const CONCENTRATIONS: usize = 3;

/// What happens during training, for progress bars and for stopping.
pub enum Event<'a> {
    /// Before the first step.
    Start(&'a Plan),
    /// After a step.
    Step(&'a StepInfo),
    /// While validating: examples done, of how many.
    Validating(usize, usize),
    /// After an epoch, and after the last step.
    Epoch(&'a Epoch),
    /// The model file of a checkpoint was written.
    Saved(&'a Path),
}

/// Listens to a training run. `Break` in answer to a step, or while validating, ends the run: it is saved and the
/// result is an [`ErrorKind::Interrupted`].
pub trait Observer {
    /// Hears an event.
    fn on(&mut self, event: &Event) -> ControlFlow<()>;
}

/// Nobody listens.
impl Observer for () {
    fn on(&mut self, _: &Event) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// What is going to happen.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Steps already taken by the run that is continued.
    pub first: u64,
    /// Steps in all.
    pub steps: u64,
    /// Steps per epoch.
    pub per_epoch: u64,
    /// Examples per step.
    pub batch: usize,
    /// Training examples.
    pub examples: usize,
    /// Numbers per example.
    pub dims: usize,
    /// Scalar parameters.
    pub parameters: usize,
}

/// One step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepInfo {
    /// Its number, from 1.
    pub step: u64,
    /// Its epoch, from 1.
    pub epoch: u64,
    /// Mean of the objective over the batch: surprisal in nats per example, unless the model minimises something else.
    pub nats: f64,
    /// Norm of the gradient before clipping.
    pub norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// The factor on the loss, 1 but in f16.
    pub scale: f64,
}

/// One pass over the training examples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Its number, from 1.
    pub epoch: u64,
    /// Steps so far.
    pub step: u64,
    /// Mean surprisal of its batches, nats per example.
    pub train_nats: f64,
    /// Mean surprisal of the validation examples, nats per example.
    pub validation_nats: Option<f64>,
}

/// How far a run has got: everything but the weights.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    pub step: u64,
    /// Sum and number of the batch losses of the present epoch.
    sum: f64,
    count: u64,
    /// The finished epochs.
    epochs: Vec<Epoch>,
    /// Epoch and value of the best validation.
    best: Option<(u64, f64)>,
    stopped_early: bool,
    /// With gradients in f16.
    #[serde(default)]
    scaler: Option<Scaler>,
}

/// The result of a training run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fit {
    /// Steps taken.
    pub steps: u64,
    /// Training examples.
    pub examples: usize,
    /// Mean surprisal over the last epoch, nats per example.
    pub train_nats: f64,
    /// Mean surprisal of the validation examples under the kept weights, nats per example.
    pub validation_nats: Option<f64>,
    /// The same in bits per dimension.
    pub validation_bits_per_dim: Option<f64>,
    /// The epoch whose weights were kept, if validation chose.
    pub best_epoch: Option<u64>,
    /// Whether patience ran out.
    pub stopped_early: bool,
    /// All epochs.
    pub epochs: Vec<Epoch>,
    /// The options.
    pub options: FitOptions,
    /// Seconds that this call took; not in files, which are the same for the same seed.
    #[serde(skip)]
    pub seconds: f64,
}

struct Run<'a> {
    model: &'a dyn Model,
    device: Device,
    replay: Replay,
    /// An epoch and its order of the examples.
    order: Option<(u64, Vec<usize>)>,
    /// The batch of a coming step.
    ahead: Option<(u64, Batch, Philox)>,
    train: &'a Dataset,
    noise: Option<RowNoise>,
    validation: Option<&'a Dataset>,
    options: &'a FitOptions,
    plan: Plan,
    fingerprints: Vec<String>,
    optimiser: Optimiser,
    progress: Progress,
    best: Option<BTreeMap<String, Tensor>>,
    saved: Option<PathBuf>,
}

/// Trains `model` in place, on the device that it is on. With `validation` the weights of the best epoch are kept,
/// else the last (the moving average of them if there is one).
///
/// # Errors
/// [`ErrorKind::Data`] when the model does not take the data; [`ErrorKind::Interrupted`] when the observer broke
/// off; [`ErrorKind::NonFinite`] with the step, the parameter and the last good checkpoint; [`ErrorKind::Device`] when
/// the device fails, with the last checkpoint and, if its memory ran out, the batch that fits; files that cannot be
/// written, and checkpoints that cannot be continued.
pub fn fit(
    model: &dyn Model,
    train: &Dataset,
    validation: Option<&Dataset>,
    options: &FitOptions,
    observer: &mut dyn Observer,
) -> Result<Fit> {
    options.check()?;
    options.amp.check(model.device())?;
    let input = model.input();
    for data in [Some(train), validation].into_iter().flatten() {
        input.check(data)?;
    }
    let started = Instant::now();
    let device = model.device();
    let (batch, per_epoch, steps) = options.plan(train.len());
    let (examples, dims, parameters) = (train.len(), train.dims(), model.params().count());
    let plan = Plan { first: 0, steps, per_epoch, batch, examples, dims, parameters };
    let asked = if model.solves() { Noise::None } else { options.noise };
    let noise = RowNoise::find(asked, train, options.seed)?;
    let optimiser = device.run(|| Optimiser::new(model.params(), options.ema.is_some()))?;
    let fingerprints =
        [Some(train), validation].into_iter().flatten().map(|d| file::fingerprint(&d.values)).collect();
    let progress = Progress::default();
    let mut run = Run {
        model,
        device,
        replay: Replay::new(),
        order: None,
        ahead: None,
        train,
        noise,
        validation,
        options,
        plan,
        fingerprints,
        optimiser,
        progress,
        best: None,
        saved: None,
    };
    run.start()?;
    if options.amp == Amp::F16 {
        run.progress.scaler.get_or_insert_with(|| Scaler::new(options.loss_scale));
    }
    let _ = observer.on(&Event::Start(&run.plan));
    if run.epoch_ends() {
        run.end_of_step(ControlFlow::Continue(()), observer)?;
    }
    if run.progress.step == 0 && run.solve(observer)? {
        return run.finish(started);
    }
    while run.progress.step < run.plan.steps && !run.progress.stopped_early {
        let flow = run.step(observer).map_err(|e| run.lost(e))?;
        run.end_of_step(flow, observer)?;
    }
    run.finish(started)
}

impl Run<'_> {
    /// The place of the first step: of the checkpoint, or of a model with its data-dependent initialisation.
    fn start(&mut self) -> Result<()> {
        if let Some(place) = self.options.checkpoints.as_ref().filter(|place| place.resume) {
            let (progress, best) = checkpoint::load(
                &place.dir,
                self.model,
                self.options,
                &self.fingerprints,
                &mut self.optimiser,
            )?;
            self.plan.first = progress.step;
            (self.progress, self.best) = (progress, best);
            // A finished run may be continued with more epochs or more patience.
            self.progress.stopped_early = self.out_of_patience();
            self.saved = Some(place.dir.join(checkpoint::MODEL));
        } else {
            let (batch, mut rng) = self.batch(0)?;
            self.optimiser = self.device.run(|| {
                if !self.options.warm {
                    autograd::no_grad(|| self.model.init_from(self.train, &batch, &mut rng));
                }
                Optimiser::new(self.model.params(), self.options.ema.is_some())
            })?;
        }
        Ok(())
    }

    /// The batch of step `step` (from 0) and the generator for what else is random in that step. It is made on the host.
    fn batch(&mut self, step: u64) -> Result<(Batch, Philox)> {
        let seed = Philox::new(self.options.seed);
        let (epoch, place) = (step / self.plan.per_epoch, (step % self.plan.per_epoch) as usize);
        let shuffled = || (epoch, seed.fork(ORDER).at_step(epoch).permutation(self.train.len()));
        let known = self.order.take().filter(|(of, _)| *of == epoch);
        let (_, order) = self.order.insert(known.unwrap_or_else(shuffled));
        let which = &order[place * self.plan.batch..][..self.plan.batch];
        let mut rng = seed.fork(STEP).at_step(step);
        let batch = on_host(|| {
            let rows = self.train.select(which);
            let x = match self.options.mutation {
                rate if rate > 0.0 => data::mutate(&rows.values, rate, self.model.input().levels, &mut rng),
                _ => rows.values,
            };
            let x = match &self.noise {
                Some(noise) => noise.add(&x, which, &mut rng),
                None => x,
            };
            let labels = self.model.input().classes.and(rows.labels).map(|l| label_tensor(&l));
            Batch { x, labels }
        });
        Ok((batch.to(self.device)?, rng))
    }

    fn step(&mut self, observer: &mut dyn Observer) -> Result<ControlFlow<()>> {
        let step = self.progress.step;
        let (batch, mut rng) = match self.ahead.take() {
            Some((of, batch, rng)) if of == step => (batch, rng),
            _ => self.batch(step)?,
        };
        let lr = self.options.lr * self.options.schedule.factor(step, self.plan.steps);
        let (value, norm) = match self.device {
            Device::Cpu => self.options.amp.run(|| self.update(&batch, &mut rng, lr))?,
            device => {
                let amp = self.options.amp;
                device.run(|| amp.run(|| self.update_on_device(&batch, &rng, lr)))??
            }
        };
        self.progress.step += 1;
        self.progress.sum += value;
        self.progress.count += 1;
        let (step, epoch) = (step + 1, step / self.plan.per_epoch + 1);
        let scale = self.progress.scaler.as_ref().map_or(1.0, |s| s.scale);
        Ok(observer.on(&Event::Step(&StepInfo { step, epoch, nats: value, norm, lr, scale })))
    }

    /// The part of the examples that this step leaves out.
    fn trim(&self) -> f64 {
        if self.progress.step < self.plan.steps / 10 { 0.0 } else { self.options.trim }
    }

    /// Changes the weights; the mean objective and the norm of its gradient.
    fn update(&mut self, batch: &Batch, rng: &mut Philox, lr: f64) -> Result<(f64, f64)> {
        let (loss, values, grads) = gradients(self.model, &self.optimiser, batch, rng, self.trim(), None);
        let (value, norm) = (loss.item(), optim::norm(&grads));
        if !value.is_finite() || !norm.is_finite() {
            return Err(self.diagnose(value, &values, &grads));
        }
        let clip = self.options.clip.map_or(1.0, |most| (most / norm).min(1.0));
        self.optimiser.step(&grads, lr, clip, self.options);
        Ok((value, norm))
    }

    /// [`Self::update`] as work that is recorded and replayed; while the device is busy the next batch is made. A
    /// step whose gradient overflows f16 is made again with half the factor on the loss.
    fn update_on_device(&mut self, batch: &Batch, rng: &Philox, lr: f64) -> Result<(f64, f64)> {
        let trim = self.trim();
        if trim > 0.0 {
            // Which examples count is decided on the host.
            self.replay = Replay::new();
        }
        loop {
            let rates = self.optimiser.next_rates(lr, self.options);
            let scale = self.progress.scaler.as_ref().map(Scaler::tensor);
            let (model, optimiser) = (self.model, &mut self.optimiser);
            let outputs =
                self.replay.step(model, optimiser, batch, &rates, scale.as_ref(), &mut rng.clone(), trim);
            let next = self.progress.step + 1;
            if next < self.plan.steps && self.ahead.is_none() {
                let (batch, rng) = self.batch(next)?;
                self.ahead = Some((next, batch, rng));
            }
            let [value, square] = outputs[0].to_f64_vec()[..] else {
                unreachable!("the gate has two numbers")
            };
            if value.is_finite() && square.is_finite() {
                self.progress.scaler.iter_mut().for_each(Scaler::went_well);
                return Ok((value, square.sqrt()));
            }
            if !value.is_finite() || !self.progress.scaler.as_mut().is_some_and(Scaler::overflowed) {
                return Err(self.diagnose(value, &outputs[1], &outputs[2..]));
            }
            self.optimiser.take_back();
        }
    }

    /// What a failure of the device costs: says where the run can be continued, and, if memory ran out, with which
    /// batch.
    fn lost(&mut self, error: Error) -> Error {
        if error.kind() != ErrorKind::Device {
            return error;
        }
        let mut message = format!("step {}: {error}; {}", self.progress.step + 1, self.last());
        if error.to_string().contains(crate::cuda::OUT_OF_MEMORY) {
            message += &match self.fitting() {
                Some(batch) => format!("; train.batch={batch} fits, {} does not", self.plan.batch),
                None => "; not even one example per step fits".into(),
            };
        }
        Error::new(ErrorKind::Device, message)
    }

    /// The largest half, quarter, ... of the batch whose gradients fit in the device's memory, by trying.
    fn fitting(&mut self) -> Option<usize> {
        let (batch, rng) = self.batch(self.progress.step).ok()?;
        let halves = std::iter::successors(Some(self.plan.batch / 2), |n| Some(n / 2)).take_while(|n| *n > 0);
        halves.into_iter().find(|&n| {
            let part = |t: &Tensor| t.narrow(0, 0, n);
            let tried = self.device.run(|| {
                let batch = Batch { x: part(&batch.x), labels: batch.labels.as_ref().map(part) };
                gradients(self.model, &self.optimiser, &batch, &mut rng.clone(), 0.0, None).0.item()
            });
            tried.is_ok()
        })
    }

    /// Lets a model that has an algorithm of its own fit itself; each of its iterations counts as a step and an epoch.
    fn solve(&mut self, observer: &mut dyn Observer) -> Result<bool> {
        let mut rng = Philox::new(self.options.seed).fork(STEP);
        let solve = |data: &Dataset, rng: &mut Philox| {
            self.device.run(|| autograd::no_grad(|| self.model.solve(data, rng))).and_then(|found| found)
        };
        let Some(mut trace) = solve(self.train, &mut rng)? else {
            return Ok(false);
        };
        if self.options.trim > 0.0 {
            for _ in 0..CONCENTRATIONS {
                let found = log_probs(self.model, self.train, &self.evaluate())?;
                let surprisal: Vec<f64> = found.nats.iter().map(|l| -l).collect();
                let kept = self.train.select(&least(&surprisal, self.options.trim));
                trace.extend(solve(&kept, &mut rng)?.unwrap_or_default());
            }
        }
        self.optimiser =
            self.device.run(|| Optimiser::new(self.model.params(), self.options.ema.is_some()))?;
        let last = trace.len();
        let validation = self.validate(observer)?;
        for (i, train_nats) in trace.into_iter().enumerate() {
            let (number, validation_nats) = (i as u64 + 1, validation.filter(|_| i + 1 == last));
            let ended = Epoch { epoch: number, step: number, train_nats, validation_nats };
            let _ = observer.on(&Event::Epoch(&ended));
            self.progress.epochs.push(ended);
            self.progress.step = number;
        }
        self.progress.best = validation.map(|nats| (last as u64, nats));
        self.plan.steps = self.progress.step;
        self.save(observer)?;
        Ok(true)
    }

    /// Where the first number is that is not finite.
    fn diagnose(&self, loss: f64, values: &Tensor, grads: &[Tensor]) -> Error {
        let step = self.progress.step + 1;
        let params = || self.model.params().trainable();
        let what = if let Some((name, _)) = params().find(|(_, p)| first_non_finite(&p.get()).is_some()) {
            format!("the first value that is not finite is in the parameter {name}")
        } else if let Some(((name, _), _)) = params().zip(grads).find(|(_, g)| first_non_finite(g).is_some())
        {
            format!("the first gradient that is not finite is that of {name}")
        } else {
            "all parameters and gradients are finite".into()
        };
        let row = values.to_f64_vec().iter().position(|x| !x.is_finite());
        let row = row.map_or(String::new(), |row| format!(", from example {row} of the batch"));
        let last = self.last();
        let advice = "a smaller train.lr or train.clip = 1 may help";
        let message = format!("step {step}: the loss is {loss}{row}; {what}; {last}; {advice}");
        Error::new(ErrorKind::NonFinite, message)
    }

    fn last(&self) -> String {
        match &self.saved {
            Some(path) => format!("the last good checkpoint is {}", path.display()),
            None => "no checkpoint was written".into(),
        }
    }

    fn end_of_step(&mut self, mut flow: ControlFlow<()>, observer: &mut dyn Observer) -> Result<()> {
        let step = self.progress.step;
        let every = self.options.checkpoint_every;
        let mut due = every > 0 && step.is_multiple_of(every);
        if self.epoch_ends() && flow.is_continue() {
            flow = self.end_of_epoch(observer)?;
            due = true;
        }
        if due || flow.is_break() {
            self.save(observer)?;
        }
        if flow.is_continue() || (step == self.plan.steps && !self.epoch_ends()) {
            return Ok(());
        }
        let how = match (&self.options.checkpoints, &self.saved) {
            (Some(place), Some(_)) => format!("saved; continue with --resume {}", place.dir.display()),
            _ => "nothing was saved, as no folder was given".into(),
        };
        let message = format!("interrupted after step {step} of {}; {how}", self.plan.steps);
        Err(Error::new(ErrorKind::Interrupted, message))
    }

    /// Whether an epoch is complete but not yet closed; also true for a run that was interrupted there.
    fn epoch_ends(&self) -> bool {
        let step = self.progress.step;
        let complete = step > 0 && (step == self.plan.steps || step.is_multiple_of(self.plan.per_epoch));
        complete && self.progress.epochs.last().is_none_or(|e| e.step != step)
    }

    fn end_of_epoch(&mut self, observer: &mut dyn Observer) -> Result<ControlFlow<()>> {
        let validation_nats = match self.validate(observer) {
            Ok(found) => found,
            // Nothing of the epoch is lost: it ends again when the run is continued.
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(ControlFlow::Break(())),
            Err(e) => return Err(e),
        };
        let progress = &mut self.progress;
        let epoch = progress.step.div_ceil(self.plan.per_epoch);
        let train_nats = progress.sum / progress.count.max(1) as f64;
        (progress.sum, progress.count) = (0.0, 0);
        let ended = Epoch { epoch, step: progress.step, train_nats, validation_nats };
        if let Some(nats) = validation_nats
            && progress.best.is_none_or(|(_, best)| nats < best)
        {
            progress.best = Some((epoch, nats));
            self.best = Some(self.optimiser.averaged());
        }
        self.progress.epochs.push(ended.clone());
        self.progress.stopped_early = self.out_of_patience();
        Ok(observer.on(&Event::Epoch(&ended)))
    }

    fn out_of_patience(&self) -> bool {
        let (Some(patience), Some((best, _))) = (self.options.patience, self.progress.best) else {
            return false;
        };
        self.progress.epochs.last().is_some_and(|last| last.epoch >= best + patience.max(1))
    }

    /// Mean surprisal of the validation examples under the averaged weights; none for unnormalised models.
    fn validate(&self, observer: &mut dyn Observer) -> Result<Option<f64>> {
        let Some(data) = self.validation else { return Ok(None) };
        let how = self.evaluate();
        let present = file::tensors(self.model);
        file::assign(self.model, &self.optimiser.averaged())?;
        let n = data.len();
        let mut progress = |done: usize| observer.on(&Event::Validating(done, n));
        let found = log_probs_while(self.model, data, &how, &mut progress);
        file::assign(self.model, &present)?;
        let at = |e: Error| e.at(format!("validation after step {}", self.progress.step));
        let found = found.map_err(at)?;
        // Unnormalised likelihoods of different weights have different constants and cannot choose between them.
        if found.kind == Kind::Unnormalised {
            return Ok(None);
        }
        let surprisal: Vec<f64> = found.nats.iter().map(|l| -l).collect();
        let kept = least(&surprisal, self.options.trim);
        Ok(Some(kept.iter().map(|&i| surprisal[i]).sum::<f64>() / kept.len().max(1) as f64))
    }

    fn evaluate(&self) -> Evaluate {
        let FitOptions { eval_batch, seed, mutation, .. } = *self.options;
        Evaluate { batch: eval_batch, seed, mutation }
    }

    fn save(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let training = self.summary(0.0);
        let training = serde_json::to_value(training)
            .map_err(|e| Error::new(ErrorKind::Model, format!("training summary: {e}")))?;
        let saved = checkpoint::save(
            self.options,
            &self.fingerprints,
            &self.optimiser,
            self.best.as_ref(),
            &self.progress,
            training,
        )?;
        if let Some(path) = saved {
            let _ = observer.on(&Event::Saved(&path));
            self.saved = Some(path);
        }
        Ok(())
    }

    fn summary(&self, seconds: f64) -> Fit {
        let progress = &self.progress;
        let last = progress.epochs.last();
        let validation_nats = progress.best.map(|(_, nats)| nats);
        Fit {
            steps: progress.step,
            examples: self.plan.examples,
            train_nats: last.map_or(progress.sum / progress.count.max(1) as f64, |e| e.train_nats),
            validation_nats,
            validation_bits_per_dim: validation_nats.map(|nats| bits_per_dim(-nats, self.plan.dims)),
            best_epoch: progress.best.map(|(epoch, _)| epoch),
            stopped_early: progress.stopped_early,
            epochs: progress.epochs.clone(),
            options: self.options.clone(),
            seconds,
        }
    }

    fn finish(self, started: Instant) -> Result<Fit> {
        let kept = self.best.clone().unwrap_or_else(|| self.optimiser.averaged());
        file::assign(self.model, &kept)?;
        let mut rng = Philox::new(self.options.seed).fork(FINISH);
        let finished = self.device.run(|| autograd::no_grad(|| self.model.finish(&mut rng)));
        finished.and_then(|done| done).map_err(|e| e.at("the end of training"))?;
        Ok(self.summary(started.elapsed().as_secs_f64()))
    }
}
