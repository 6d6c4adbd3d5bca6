//! Work that is done again and again: recorded once, then replayed as one launch (a CUDA graph).
//!
//! The first two times the work runs as it is, and what it asks of the device is compared: the kernels, their
//! geometry and numbers, what is copied to the device; draws of random numbers by their distance from the
//! generator's place at the start. Where both agree, and nothing was read back by the host, the third time is
//! recorded and every later one is a replay: same kernels, same addresses, the random numbers moved on through a
//! counter in device memory. Work that does not repeat itself goes on as it is (SURPRISAL_REPLAY_LOG=1 says why).
//! Results are bit for bit those of running the work.

use super::handle::Watched;
use super::{Arg, Backend, Fault, Gpu, Graph, Grid, Held, Kernel, Memory, pool::Pool};
use crate::ambient;
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex};

/// Repeated work, on the CPU or on a device.
#[derive(Default)]
pub struct Replay {
    state: State,
    /// Runs that could not be repeated, or differed from the one before.
    failures: u32,
}

/// So many failures, and the work is not looked at any more. A first run may fail that sets things up.
const PATIENCE: u32 = 3;

#[derive(Default)]
enum State {
    #[default]
    New,
    /// It ran once, and asked this of the device.
    Seen {
        trace: Vec<Asked>,
        like: Like,
    },
    /// It ran twice alike.
    Due {
        like: Like,
    },
    Ready(Box<Recorded>),
    /// It does not repeat itself.
    Never,
}

/// Shapes and dtypes of inputs.
type Like = Vec<(Vec<usize>, DType)>;

/// Something that was asked of a device: the kernel, and a sum of everything that a repetition must have in common.
type Asked = (&'static str, u64);

/// What bytes from the host and copies of shared memory are called among kernels.
const FROM_HOST: &str = "bytes from the host";
const A_COPY: &str = "a copy of shared memory";

/// What [`Replay::run`] runs.
pub type Work<'a> = &'a mut dyn FnMut(&[Tensor], &mut Philox) -> Vec<Tensor>;

impl Replay {
    /// Work that has not run yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the next run with such inputs is a replay.
    pub fn is_recorded(&self) -> bool {
        matches!(self.state, State::Ready(_))
    }

    /// The outputs of `work` for `inputs`, which may be on the host. `work` reads its inputs, parameters, and tensors
    /// that stay where they are as long as this lives; what it keeps it writes in place. The outputs are overwritten by
    /// the next run.
    pub fn run(&mut self, inputs: &[&Tensor], rng: &mut Philox, work: Work) -> Vec<Tensor> {
        let Some(gpu) = Gpu::current() else {
            return work(&inputs.iter().map(|t| t.detach()).collect::<Vec<_>>(), rng);
        };
        if let State::Ready(recorded) = &self.state {
            if recorded.generation != GENERATION.get() || !recorded.changes_nothing_shared() {
                self.state = State::New;
            } else if recorded.fits(inputs, rng) && !ambient::now().eager {
                return recorded.replay(inputs, rng);
            }
        }
        let there = |t: &&Tensor| if t.gpu().is_some() { t.detach() } else { t.moved(Some(gpu)) };
        let inputs: Vec<Tensor> = inputs.iter().map(there).collect();
        if active() || ambient::now().eager || matches!(self.state, State::Never | State::Ready(_)) {
            return work(&inputs, rng);
        }
        let like = like(&inputs);
        if matches!(&self.state, State::Due { like: before } if *before == like) {
            return self.record(gpu, inputs, rng, work);
        }
        let before = GENERATION.get();
        let session = Session::Tracing { trace: Vec::new(), base: rng.clone(), refused: None };
        let (outputs, session) = within(session, || work(&inputs, rng));
        let Session::Tracing { trace, refused, .. } = session else { unreachable!("it was tracing") };
        let moved = (before != GENERATION.get()).then(|| "a parameter moved to other memory".to_string());
        let (failed, state) = match &self.state {
            State::Seen { trace: other, like: before } if *before == like && refused.is_none() => {
                match difference(other, &trace) {
                    None => (moved, State::Due { like }),
                    failed => (failed, State::Seen { trace, like }),
                }
            }
            _ => (refused.or(moved), State::Seen { trace, like }),
        };
        self.state = if failed.is_some() && matches!(state, State::Due { .. }) { State::New } else { state };
        if let Some(why) = failed {
            self.failures += 1;
            if std::env::var_os("SURPRISAL_REPLAY_LOG").is_some() {
                eprintln!("replay: run {} is not repeated: {why}", self.failures);
            }
            if self.failures >= PATIENCE {
                self.state = State::Never;
            }
        }
        outputs
    }

    /// Records `work`, or gives up where the memory does not suffice, and runs it.
    fn record(&mut self, gpu: Gpu, inputs: Vec<Tensor>, rng: &mut Philox, work: Work) -> Vec<Tensor> {
        let place = rng.clone();
        match catch_unwind(AssertUnwindSafe(|| Recorded::new(gpu, &inputs, rng, work))) {
            Ok(recorded) => {
                let outputs = recorded.replay(&inputs.iter().collect::<Vec<_>>(), &mut place.clone());
                self.state = State::Ready(Box::new(recorded));
                self.failures = 0;
                outputs
            }
            Err(cause) if cause.is::<Fault>() => {
                self.state = State::Never;
                *rng = place;
                work(&inputs, rng)
            }
            Err(cause) => resume_unwind(cause),
        }
    }
}

struct Recorded {
    gpu: Gpu,
    graph: Box<dyn Graph>,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    /// `Advance` in kernels/philox.cuh: how far the generator is from where it was recorded.
    counter: Held,
    base: Philox,
    /// Draws that the work takes.
    draws: u32,
    /// What it changes in place: nobody else may hold that, or would see it change.
    changed: Vec<Watched>,
    like: Like,
    generation: u64,
}

impl Recorded {
    fn new(gpu: Gpu, inputs: &[Tensor], rng: &mut Philox, work: Work) -> Self {
        let backend = &*gpu.context().backend;
        let inputs: Vec<Tensor> = inputs.iter().map(|t| t.moved(Some(gpu))).collect();
        let counter = gpu.upload(&[0; 16]);
        let (base, generation) = (rng.clone(), GENERATION.get());
        // What is kept for reuse would stand beside the memory of the recording.
        backend.trim();
        let private = Arc::new(Private { gpu, pool: Mutex::default(), retired: Mutex::default() });
        let session = Session::Recording { private, counter: counter.address(), changed: BTreeMap::new() };
        gpu.check(backend.begin());
        let done = catch_unwind(AssertUnwindSafe(|| within(session, || work(&inputs, rng))));
        let graph = backend.end();
        let (outputs, session) = done.unwrap_or_else(|cause| resume_unwind(cause));
        let Session::Recording { changed, .. } = session else { unreachable!("it was recording") };
        let changed = changed.into_values().collect();
        let (graph, draws) = (gpu.check(graph), rng.state().2.wrapping_sub(base.state().2));
        let like = like(&inputs);
        Self { gpu, graph, inputs, outputs, counter, base, draws, changed, like, generation }
    }

    fn changes_nothing_shared(&self) -> bool {
        self.changed.iter().all(Watched::has_one_holder)
    }

    fn fits(&self, inputs: &[&Tensor], rng: &Philox) -> bool {
        rng.state().0 == self.base.state().0
            && inputs.len() == self.like.len()
            && inputs
                .iter()
                .zip(&self.like)
                .all(|(t, (shape, dtype))| t.shape() == shape && t.dtype() == *dtype)
    }

    fn replay(&self, inputs: &[&Tensor], rng: &mut Philox) -> Vec<Tensor> {
        for (from, to) in inputs.iter().zip(&self.inputs) {
            let to = to.held().expect("inputs are on the device");
            match from.held() {
                Some(from) => to.copy_from(from),
                None => to.overwrite(from.as_bytes()),
            }
        }
        let ((seed, step, draw), (_, from, first)) = (rng.state(), self.base.state());
        let mut advance = [0u8; 16];
        advance[..8].copy_from_slice(&step.wrapping_sub(from).to_le_bytes());
        advance[8..12].copy_from_slice(&draw.wrapping_sub(first).to_le_bytes());
        self.counter.overwrite(&advance);
        self.gpu.check(self.graph.launch());
        COUNT.set(COUNT.get() + 1);
        *rng = Philox::from_state((seed, step, draw.wrapping_add(self.draws)));
        self.outputs.clone()
    }
}

/// What differs first.
fn difference(before: &[Asked], now: &[Asked]) -> Option<String> {
    let at = before.iter().zip(now).position(|(a, b)| a != b);
    match at {
        Some(at) => {
            Some(format!("of {}, number {at} ({}) differs from the run before", now.len(), now[at].0))
        }
        None if before.len() == now.len() => None,
        None => Some(format!("{} launches and copies, then {}", before.len(), now.len())),
    }
}

fn like<T: std::borrow::Borrow<Tensor>>(inputs: &[T]) -> Like {
    inputs.iter().map(|t| (t.borrow().shape().to_vec(), t.borrow().dtype())).collect()
}

/// What happens to what this thread asks of a device.
#[derive(Default)]
enum Session {
    /// It is done.
    #[default]
    Idle,
    /// It is done and summed up.
    Tracing { trace: Vec<Asked>, base: Philox, refused: Option<String> },
    /// It is recorded, with memory of its own.
    Recording { private: Arc<Private>, counter: u64, changed: BTreeMap<u64, Watched> },
}

thread_local! {
    static SESSION: RefCell<Session> = const { RefCell::new(Session::Idle) };
    /// Counts the parameters that moved to other memory, where recordings would not find them.
    static GENERATION: Cell<u64> = const { Cell::new(0) };
    static NAMES: RefCell<Option<Vec<&'static str>>> = const { RefCell::new(None) };
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// Replays of this thread so far.
pub fn replays() -> u64 {
    COUNT.get()
}

/// Runs `f` without recording or replaying anything: to find out whether a replay is to blame, and to compare.
pub fn without_replay<R>(f: impl FnOnce() -> R) -> R {
    ambient::with(|settings| settings.eager = true, f)
}

/// A parameter lies elsewhere now.
pub(crate) fn parameter_moved() {
    GENERATION.set(GENERATION.get() + 1);
}

/// Keeps what this thread records away from work of others that it does meanwhile.
pub(crate) struct Aside(Session);

/// Whether there can be a recording: without devices, loops need not look.
const RECORDS: bool = cfg!(any(feature = "cuda", feature = "emulate"));

impl Aside {
    #[inline]
    pub(crate) fn new() -> Self {
        Self(if RECORDS { SESSION.take() } else { Session::Idle })
    }
}

impl Drop for Aside {
    #[inline]
    fn drop(&mut self) {
        if RECORDS {
            SESSION.set(std::mem::take(&mut self.0));
        }
    }
}

fn active() -> bool {
    SESSION.with_borrow(|s| !matches!(s, Session::Idle))
}

/// Runs `f` in `session`, which comes back.
fn within<R>(session: Session, f: impl FnOnce() -> R) -> (R, Session) {
    SESSION.set(session);
    let done = catch_unwind(AssertUnwindSafe(f));
    let session = SESSION.take();
    (done.unwrap_or_else(|cause| resume_unwind(cause)), session)
}

/// The names of the kernels that `f` launches on this thread, in order, replays left out.
pub fn kernels_of<R>(f: impl FnOnce() -> R) -> (R, Vec<&'static str>) {
    let before = NAMES.replace(Some(Vec::new()));
    let done = f();
    (done, NAMES.replace(before).unwrap_or_default())
}

/// A launch.
pub(super) fn launched(kernel: Kernel, grid: Grid, args: &[&dyn Arg]) {
    NAMES.with_borrow_mut(|names| names.as_mut().map(|names| names.push(kernel.symbol)));
    SESSION.with_borrow_mut(|session| {
        if let Session::Tracing { trace, base, .. } = session {
            let mut hash = DefaultHasher::new();
            (kernel, grid).hash(&mut hash);
            args.iter().for_each(|a| a.same(base).hash(&mut hash));
            trace.push((kernel.symbol, hash.finish()));
        }
    });
}

/// Bytes from the host.
pub(super) fn uploaded(bytes: &[u8]) {
    SESSION.with_borrow_mut(|session| {
        if let Session::Tracing { trace, .. } = session {
            let mut hash = DefaultHasher::new();
            bytes.hash(&mut hash);
            trace.push((FROM_HOST, hash.finish()));
        }
    });
}

/// Memory that is shared and about to be changed is copied first. A recording may do that with its own memory only:
/// of other memory every replay would take the same old copy.
pub(super) fn copied(memory: &Held) -> std::result::Result<(), String> {
    SESSION.with_borrow_mut(|session| match session {
        Session::Tracing { trace, .. } => {
            trace.push((A_COPY, memory.memory().bytes as u64));
            Ok(())
        }
        Session::Recording { .. } if matches!(memory.memory().home, Home::Device) => {
            Err("shared memory is changed in work that is recorded".into())
        }
        _ => Ok(()),
    })
}

/// Something that a replay cannot do: reading on the host. Says why a recording fails.
pub(super) fn not_repeatable(what: &str) -> std::result::Result<(), String> {
    SESSION.with_borrow_mut(|session| match session {
        Session::Tracing { trace, refused, .. } => {
            let last = trace.last().map_or("the start", |(kernel, _)| kernel);
            refused.get_or_insert_with(|| format!("{what} after {last}"));
            Ok(())
        }
        Session::Recording { .. } => Err(format!("{what} in work that is recorded")),
        Session::Idle => Ok(()),
    })
}

/// Memory that is changed in place.
pub(super) fn changes(memory: &Held) {
    SESSION.with_borrow_mut(|session| {
        if let Session::Recording { changed, .. } = session {
            changed.insert(memory.address(), memory.watch());
        }
    });
}

/// The counter that moves the draws of a recording; 0 outside of one.
pub(super) fn counter() -> u64 {
    SESSION.with_borrow(|session| match session {
        Session::Recording { counter, .. } => *counter,
        _ => 0,
    })
}

/// The memory of a recording: never shared with other work, which would not know when a replay writes it.
pub(super) struct Private {
    gpu: Gpu,
    pool: Mutex<Pool>,
    /// Constants from the host whose last handle is gone: replays still read them.
    retired: Mutex<Vec<(u64, usize)>>,
}

/// Whose memory it is.
#[derive(Default)]
pub(super) enum Home {
    #[default]
    Device,
    Recording(Arc<Private>),
    Constant(Arc<Private>),
}

impl Home {
    /// That of memory for work, or for bytes from the host.
    pub(super) fn now(constant: bool) -> Self {
        SESSION.with_borrow(|session| match session {
            Session::Recording { private, .. } if constant => Self::Constant(private.clone()),
            Session::Recording { private, .. } => Self::Recording(private.clone()),
            _ => Self::Device,
        })
    }

    /// Memory of `bytes` bytes.
    pub(super) fn alloc(&self, backend: &dyn Backend, bytes: usize) -> std::result::Result<u64, String> {
        match self {
            Self::Device => backend.alloc(bytes),
            Self::Constant(_) => backend.alloc(Pool::rounded(bytes)),
            Self::Recording(private) => match super::locked(&private.pool).take(bytes) {
                Some(address) => Ok(address),
                None => backend.alloc(Pool::rounded(bytes)),
            },
        }
    }

    /// Takes it back.
    pub(super) fn free(&self, memory: &Memory) {
        let Memory { gpu, address, bytes, .. } = *memory;
        match self {
            Self::Device => gpu.context().backend.free(address, bytes),
            Self::Recording(private) => super::locked(&private.pool).keep(address, bytes),
            Self::Constant(private) => super::locked(&private.retired).push((address, Pool::rounded(bytes))),
        }
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let backend = &self.gpu.context().backend;
        let kept = super::locked(&self.pool).drain();
        let retired = std::mem::take(&mut *super::locked(&self.retired));
        kept.into_iter().chain(retired).for_each(|(address, bytes)| backend.free(address, bytes));
    }
}
