//! Parameters: shared handles with torch-style dotted names.

mod columns;
mod mlp;

pub(crate) use columns::{restored, standardised};
pub use mlp::{MaskedMlp, Mlp};

use crate::ambient;
use crate::cuda::{Device, Gpu, Held, parameter_moved};
use crate::error::Result;
use crate::random::Philox;
use crate::tensor::{DType, Shape, Tensor};
use std::sync::{Arc, RwLock};

/// A tensor that belongs to a model: a trainable parameter, shared with its optimiser, or a buffer (statistics of the
/// data, a replay buffer, means of a mixture) that is saved with the model but has no gradient.
#[derive(Clone)]
pub struct Param(Arc<RwLock<Tensor>>);

impl Param {
    /// A trainable parameter with this initial value.
    pub fn new(value: Tensor) -> Self {
        Self(Arc::new(RwLock::new(value.requires_grad())))
    }

    /// A buffer with this initial value.
    pub fn buffer(value: Tensor) -> Self {
        Self(Arc::new(RwLock::new(value.detach())))
    }

    /// Whether gradients train it; buffers are set by the model itself.
    pub fn is_trainable(&self) -> bool {
        self.get().var().is_some()
    }

    /// The present value; of a trainable parameter as a leaf of the graph, every call returns the same leaf.
    pub fn get(&self) -> Tensor {
        self.0.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Changes the value in place (the memory is copied first if a graph still holds it).
    pub fn update<R>(&self, f: impl FnOnce(&mut Tensor) -> R) -> R {
        let mut value = self.0.write().unwrap_or_else(|e| e.into_inner());
        let place = |t: &Tensor| t.held().map(Held::address);
        let before = place(&value);
        let done = f(&mut value);
        if before != place(&value) {
            parameter_moved();
        }
        done
    }

    /// Replaces the value, keeping the leaf's identity and its device.
    ///
    /// # Panics
    /// When shape or dtype differ.
    #[track_caller]
    pub fn set(&self, value: &Tensor) {
        self.update(|t| {
            assert_eq!(
                (t.shape(), t.dtype()),
                (value.shape(), value.dtype()),
                "Param::set: shape or dtype differ"
            );
            // On a device in place where nobody else looks, so that recorded work finds it.
            if !t.overwrite(value) {
                *t = value.detach().beside(t).with_var(t.var().cloned());
            }
        });
    }
}

/// The named parameters of a model, in order of creation.
#[derive(Clone, Default)]
pub struct ParamStore {
    entries: Vec<(String, Param)>,
}

impl ParamStore {
    /// All parameters with their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Param)> {
        self.entries.iter().map(|(n, p)| (n.as_str(), p))
    }

    /// The parameter called `name`.
    pub fn get(&self, name: &str) -> Option<&Param> {
        self.entries.iter().find(|(n, _)| n == name).map(|(_, p)| p)
    }

    /// Adds the parameters of a part that is a model of its own, their names starting with `name.`.
    pub(crate) fn adopt(&mut self, name: &str, part: &ParamStore) {
        self.entries.extend(part.iter().map(|(inner, param)| (format!("{name}.{inner}"), param.clone())));
    }

    /// The trainable parameters with their names.
    pub fn trainable(&self) -> impl Iterator<Item = (&str, &Param)> {
        self.iter().filter(|(_, p)| p.is_trainable())
    }

    /// Moves every tensor to `device`; leaves keep their identity. f64, in which devices do not calculate, stays on
    /// the host.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Device`] when the device cannot be opened or has not enough memory.
    pub fn to(&self, device: Device) -> Result<()> {
        let gpu = Gpu::open(device)?;
        device.run(|| self.each(|t| t.moved(gpu)))
    }

    /// The device of the tensors that can be on one.
    pub fn device(&self) -> Device {
        let mut values = self.entries.iter().map(|(_, p)| p.get());
        values.find(|t| t.dtype() != DType::F64).map_or(Device::Cpu, |t| t.device())
    }

    /// Runs `f`, which is code of the host, with all tensors there; they go back to their device afterwards. Nobody else
    /// may use the model meanwhile.
    pub(crate) fn on_host<R>(&self, f: impl FnOnce() -> R) -> R {
        let mut values = self.entries.iter().map(|(_, p)| p.get());
        let Some(gpu) = values.find_map(|t| t.gpu()) else { return f() };
        self.each(|t| t.moved(None));
        let done = crate::cuda::on_host(f);
        self.each(|t| t.moved(Some(gpu)));
        done
    }

    /// Replaces every value that is not f64.
    fn each(&self, f: impl Fn(&Tensor) -> Tensor) {
        for (_, param) in self.iter() {
            param.update(|t| {
                if t.dtype() != DType::F64 {
                    *t = f(t).with_var(t.var().cloned());
                }
            });
        }
    }

    /// Number of tensors, buffers included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of scalar parameters, without buffers.
    pub fn count(&self) -> usize {
        self.trainable().map(|(_, p)| p.get().len()).sum()
    }
}

/// How a parameter starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Initial {
    /// All zeros.
    Zeros,
    /// All this value.
    Constant(f64),
    /// Normal with this standard deviation.
    Normal(f64),
    /// Uniform in ±bound.
    Uniform(f64),
    /// Uniform in ±1/sqrt(fan_in), as `torch.nn.Linear` and `Conv2d` start (He et al. 2015, a = sqrt 5).
    FanIn(usize),
    /// A random orthogonal matrix (square shapes).
    Orthogonal,
}

/// Unwinds out of a construction that has run out of room.
struct NoRoom;

/// Runs `build`, which may create at most `scalars` scalar parameters; `None` when it asked for more.
///
/// A file's configuration can ask for any size; this bounds the memory by what the file holds.
pub(crate) fn within<R>(scalars: usize, build: impl FnOnce() -> R) -> Option<R> {
    let build = || ambient::with(|settings| settings.room = Some(scalars), build);
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(build)) {
        Ok(built) => Some(built),
        Err(cause) if cause.is::<NoRoom>() => None,
        Err(cause) => std::panic::resume_unwind(cause),
    }
}

/// Creates named parameters for a model under construction.
pub struct Init<'a> {
    store: &'a mut ParamStore,
    rng: &'a mut Philox,
    prefix: String,
    dtype: DType,
}

impl<'a> Init<'a> {
    /// Starts at the root of `store`.
    pub fn new(store: &'a mut ParamStore, rng: &'a mut Philox, dtype: DType) -> Self {
        Self { store, rng, prefix: String::new(), dtype }
    }

    /// The same store one level deeper: names start with `name.`.
    pub fn sub(&mut self, name: impl std::fmt::Display) -> Init<'_> {
        let prefix = format!("{}{name}.", self.prefix);
        Init { store: self.store, rng: self.rng, prefix, dtype: self.dtype }
    }

    /// What the names of parameters made here start with: empty, or ending in a dot.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Creates the parameter `name`.
    ///
    /// # Panics
    /// When the name is taken.
    #[track_caller]
    pub fn param(&mut self, name: &str, shape: impl Into<Shape>, initial: Initial) -> Param {
        self.entry(name, shape.into(), self.dtype, initial, Param::new)
    }

    /// Creates the buffer `name`: saved with the model, not trained.
    ///
    /// # Panics
    /// When the name is taken.
    #[track_caller]
    pub fn buffer(&mut self, name: &str, shape: impl Into<Shape>, dtype: DType, initial: Initial) -> Param {
        self.entry(name, shape.into(), dtype, initial, Param::buffer)
    }

    #[track_caller]
    fn entry(
        &mut self,
        name: &str,
        shape: Shape,
        dtype: DType,
        initial: Initial,
        make: fn(Tensor) -> Param,
    ) -> Param {
        let full = format!("{}{name}", self.prefix);
        assert!(self.store.get(&full).is_none(), "a parameter is called {full} already");
        if let Some(room) = ambient::now().room {
            let len = shape.as_slice().iter().try_fold(1, |n: usize, &d| n.checked_mul(d));
            match len.and_then(|len| room.checked_sub(len)) {
                Some(left) => ambient::change(|settings| settings.room = Some(left)),
                None => std::panic::resume_unwind(Box::new(NoRoom)),
            }
        }
        let param = make(self.rng.initial(shape, dtype, initial));
        self.store.entries.push((full, param.clone()));
        param
    }
}
