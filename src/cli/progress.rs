//! Progress on stderr, and Ctrl-C.

use super::{Common, output::thousands};
use crate::error::{Error, ErrorKind, Result};
use crate::report::bits_per_dim;
use crate::train::{Epoch, Event, Observer, Plan};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::Instant;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on the first Ctrl-C asks the work to end at the next good place; the second one kills.
pub fn catch_interrupts() -> Result<()> {
    static ONCE: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let handler = || {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("\nsurprisal: stopping after this step; Ctrl-C once more stops at once");
    };
    let set = ONCE.get_or_init(|| ctrlc::set_handler(handler).map_err(|e| e.to_string()));
    set.clone().map_err(|e| Error::new(ErrorKind::Io, format!("Ctrl-C cannot be caught: {e}")))
}

fn flow() -> ControlFlow<()> {
    if INTERRUPTED.load(Ordering::SeqCst) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// All bars: models that are trained together have one each, below each other.
static BARS: LazyLock<MultiProgress> =
    LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(5)));

/// One line on stderr, above the bars, unless quiet.
pub fn say(common: &Common, line: impl AsRef<str>) {
    if !common.quiet {
        BARS.suspend(|| eprintln!("{}", line.as_ref()));
    }
}

/// A bar on a terminal, nothing elsewhere.
fn bar(common: &Common, len: u64, template: &str) -> ProgressBar {
    let shown = !common.quiet && std::io::stderr().is_terminal();
    let bar = ProgressBar::with_draw_target(Some(len), ProgressDrawTarget::hidden());
    let bar = if shown { BARS.add(bar) } else { bar };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("=> "));
    bar
}

/// A bar over `n` examples of the data set `name`, and the function that moves it.
pub fn counting(common: &Common, name: &str, n: usize) -> impl FnMut(usize) -> ControlFlow<()> + use<> {
    let bar = bar(common, n as u64, "{prefix} [{bar:30}] {pos}/{len}  {per_sec}  ETA {eta}");
    bar.set_prefix(name.to_string());
    move |done| {
        bar.set_position(done as u64);
        if done == n {
            bar.finish_and_clear();
        }
        flow()
    }
}

/// The progress of a training run.
pub struct Training<'a> {
    common: &'a Common,
    /// What is trained: `pixelcnn28`.
    name: String,
    /// What an example is called.
    unit: &'static str,
    plan: Option<Plan>,
    bar: Option<ProgressBar>,
    smooth: f64,
    started: Instant,
    steps: u64,
}

impl<'a> Training<'a> {
    /// A run of the preset `name` on examples that are images or something else.
    pub fn new(common: &'a Common, name: impl Into<String>, images: bool) -> Self {
        let unit = if images { "image" } else { "example" };
        Self {
            common,
            name: name.into(),
            unit,
            plan: None,
            bar: None,
            smooth: f64::NAN,
            started: Instant::now(),
            steps: 0,
        }
    }

    fn start(&mut self, plan: &Plan) {
        let per_bit = plan.dims as f64 * std::f64::consts::LN_2;
        let (parameters, examples) = (thousands(plan.parameters), thousands(plan.examples));
        let resumed =
            if plan.first > 0 { format!(", continuing after step {}", plan.first) } else { String::new() };
        say(
            self.common,
            format!(
                "{}: {parameters} parameters, {examples} {unit}s, {} steps of {} {unit}s, {} per epoch{resumed}\n\
                 surprisal -log p in nats per {unit}: lower is better; 1 bit/dim = {per_bit:.1} nats",
                self.name,
                plan.steps,
                plan.batch,
                plan.per_epoch,
                unit = self.unit,
            ),
        );
        let bar = bar(self.common, plan.steps, "{prefix} [{bar:24}] {pos}/{len}  {msg}  ETA {eta}");
        bar.set_position(plan.first);
        bar.reset_eta();
        bar.set_prefix(self.name.clone());
        self.bar = Some(bar);
        self.plan = Some(plan.clone());
        self.started = Instant::now();
    }

    fn step(&mut self, step: u64, nats: f64) {
        let (Some(plan), Some(bar)) = (&self.plan, &self.bar) else { return };
        self.smooth = if self.smooth.is_nan() { nats } else { 0.95 * self.smooth + 0.05 * nats };
        self.steps += 1;
        let rate = (self.steps * plan.batch as u64) as f64 / self.started.elapsed().as_secs_f64();
        bar.set_message(format!(
            "{:.1} nats/{}  {:.3} bits/dim  {rate:.0} {}s/s",
            self.smooth,
            self.unit,
            bits_per_dim(-self.smooth, plan.dims),
            self.unit
        ));
        bar.set_position(step);
    }

    fn epoch(&mut self, epoch: &Epoch) {
        let (Some(plan), Some(bar)) = (&self.plan, &self.bar) else { return };
        let figure = |nats: f64| {
            format!("{nats:.1} nats/{} ({:.3} bits/dim)", self.unit, bits_per_dim(-nats, plan.dims))
        };
        let validation =
            epoch.validation_nats.map_or(String::new(), |v| format!(", validation {}", figure(v)));
        let line =
            format!("{} epoch {}: training {}{validation}", self.name, epoch.epoch, figure(epoch.train_nats));
        say(self.common, line);
        if epoch.step == plan.steps {
            bar.finish_and_clear();
        }
    }
}

impl Observer for Training<'_> {
    fn on(&mut self, event: &Event) -> ControlFlow<()> {
        match event {
            Event::Start(plan) => self.start(plan),
            Event::Step(info) => self.step(info.step, info.nats),
            Event::Validating(done, n) => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("validating {done}/{n}"));
                }
            }
            Event::Epoch(epoch) => self.epoch(epoch),
            Event::Saved(_) => {}
        }
        flow()
    }
}

impl Drop for Training<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
