//! Adam and AdamW over all parameters of a model, with gradient norms and an exponential moving average.
//!
//! For step t = 1, 2, ... (Kingma & Ba 2015; decoupled decay: Loshchilov & Hutter 2019):
//! ```text
//! g ← clip · gradient + l2 · w
//! m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) g²
//! w ← (1 − lr · decay) w − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
//! ```

use super::FitOptions;
use crate::cpu::optim::{self, Rates};
use crate::cuda::{self, Gpu, Grid, Kernel, Optional, Output, Table};
use crate::error::{Error, ErrorKind, Result};
use crate::nn::{Param, ParamStore};
use crate::tensor::{DType, Float, Tensor};
use std::collections::BTreeMap;

/// The parameters of a model with their moments.
pub struct Optimiser {
    slots: Vec<Slot>,
    /// What the model keeps beside its parameters: saved with them, never stepped.
    buffers: Vec<(String, Param)>,
    step: u64,
}

struct Slot {
    name: String,
    param: Param,
    m: Tensor,
    v: Tensor,
    ema: Option<Tensor>,
}

impl Optimiser {
    /// Moments at zero; the moving average, if asked for, starts at the present weights.
    ///
    /// # Panics
    /// When a parameter is neither f32 nor f64.
    pub fn new(params: &ParamStore, ema: bool) -> Self {
        let slot = |(name, param): (&str, &Param)| {
            let value = param.get().detach();
            let known = matches!(value.dtype(), DType::F32 | DType::F64);
            assert!(known, "Optimiser: parameters are f32 or f64, {name} is {:?}", value.dtype());
            let zeros = value.zeros_like();
            let ema = ema.then_some(value);
            Slot { name: name.to_string(), param: param.clone(), m: zeros.clone(), v: zeros, ema }
        };
        let buffers = params.iter().filter(|(_, p)| !p.is_trainable());
        let buffers = buffers.map(|(name, p)| (name.to_string(), p.clone())).collect();
        Self { slots: params.trainable().map(slot).collect(), buffers, step: 0 }
    }

    /// Number of steps taken.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// The parameters as leaves of the graph, in the order in which [`Self::step`] wants their gradients.
    pub fn leaves(&self) -> Vec<Tensor> {
        self.slots.iter().map(|s| s.param.get()).collect()
    }

    /// The numbers of the next step, which counts as taken.
    fn advance(&mut self, lr: f64, clip: f64, options: &FitOptions) -> Rates {
        self.step += 1;
        let t = self.step.min(i32::MAX as u64) as i32;
        let [beta1, beta2] = options.betas;
        // Early averages lean on the present weights, or they would remember the initial ones for long.
        let decay = options.ema.map_or(1.0, |d| d.min((1.0 + self.step as f64) / (10.0 + self.step as f64)));
        Rates {
            beta1,
            beta2,
            lr: lr / (1.0 - beta1.powi(t)),
            v_scale: 1.0 / (1.0 - beta2.powi(t)).sqrt(),
            eps: options.eps,
            keep: 1.0 - lr * options.weight_decay,
            l2: options.l2,
            clip,
            part: 1.0 - decay,
        }
    }

    /// One update with the learning rate `lr` and gradients scaled by `clip`. Drop what [`Self::leaves`] returned
    /// first, or every weight is copied.
    ///
    /// # Panics
    /// When the gradients are not those of the parameters in shape and dtype.
    #[track_caller]
    pub fn step(&mut self, grads: &[Tensor], lr: f64, clip: f64, options: &FitOptions) {
        let rates = self.advance(lr, clip, options);
        if let Some(first) = grads.iter().find(|g| g.gpu().is_some()) {
            // A norm above the largest one by as much as the gradients are to be scaled down.
            let numbers = on_device(&rates, 1.0).beside(first);
            let gate = Tensor::from_slice(&[0.0, clip.recip().powi(2) as f32], [2]).beside(first);
            return self.step_on_device(grads, &numbers, &gate);
        }
        self.fits(grads);
        self.step_those_of::<f32>(grads, &rates);
        self.step_those_of::<f64>(grads, &rates);
    }

    /// One update of the parameters of dtype `T`. The weights are out of their places meanwhile.
    fn step_those_of<T: Float>(&mut self, grads: &[Tensor], rates: &Rates) {
        let mine = |g: &&Tensor| g.dtype() == T::DTYPE;
        let grads = grads.iter().filter(mine);
        let mut slots: Vec<&mut Slot> = self.slots.iter_mut().filter(|s| mine(&&s.m)).collect();
        let out = |s: &&mut Slot| s.param.update(|w| std::mem::replace(w, Tensor::zeros([0], T::DTYPE)));
        let mut weights: Vec<Tensor> = slots.iter().map(out).collect();
        let tensors = slots.iter_mut().zip(&mut weights).zip(grads).map(|((slot, weight), g)| optim::Slot {
            weight: weight.make_mut::<T>(),
            grad: g.as_slice::<T>(),
            m: slot.m.make_mut::<T>(),
            v: slot.v.make_mut::<T>(),
            average: slot.ema.as_mut().map(|e| e.make_mut::<T>()),
        });
        rates.step(tensors.collect());
        slots.iter().zip(weights).for_each(|(slot, weight)| slot.param.update(|w| *w = weight));
    }

    /// The numbers of the next step for [`Self::step_on_device`], on the host; the step counts as taken.
    pub(crate) fn next_rates(&mut self, lr: f64, options: &FitOptions) -> Tensor {
        let most = options.clip.unwrap_or(f64::INFINITY);
        crate::cuda::on_host(|| on_device(&self.advance(lr, 1.0, options), most))
    }

    /// The step of the last [`Self::next_rates`] was not taken.
    pub(super) fn take_back(&mut self) {
        self.step -= 1;
    }

    /// One update on a device in one launch, with everything that differs from step to step in its memory: `rates` from
    /// [`Self::next_rates`] and the `gate` of [`gate`].
    pub(super) fn step_on_device(&mut self, grads: &[Tensor], rates: &Tensor, gate: &Tensor) {
        self.fits(grads);
        let gpu = rates.gpu().expect("the numbers of a step are on its device");
        let mut chunks = Vec::new();
        // Kept until the launch is queued.
        let mut changed: Vec<Output> = Vec::new();
        for (Slot { name, param, m, v, ema }, g) in self.slots.iter_mut().zip(grads) {
            assert_eq!(g.dtype(), DType::F32, "Optimiser: parameters on devices are f32, {name} is not");
            let mut place = |output: Output| {
                changed.push(output);
                changed[changed.len() - 1].address()
            };
            let whole = Chunk {
                w: place(param.update(Tensor::change)),
                m: place(m.change()),
                v: place(v.change()),
                average: ema.as_mut().map_or(0, |e| place(e.change())),
                ..Chunk::of(g)
            };
            whole.cut(&mut chunks);
        }
        let kernel = Kernel { file: "adam", symbol: "adam_f32" };
        gpu.launch(kernel, Grid::new(chunks.len(), 256), &[&table(gpu, &chunks), rates, gate]);
    }

    #[track_caller]
    fn fits(&self, grads: &[Tensor]) {
        assert_eq!(grads.len(), self.slots.len(), "Optimiser::step: one gradient per parameter");
        for (Slot { name, m, .. }, g) in self.slots.iter().zip(grads) {
            assert_eq!((g.shape(), g.dtype()), (m.shape(), m.dtype()), "Optimiser::step: gradient of {name}");
        }
    }

    /// The weights to evaluate and keep: the moving average if there is one, else the present weights.
    pub fn averaged(&self) -> BTreeMap<String, Tensor> {
        let value = |s: &Slot| s.ema.clone().unwrap_or_else(|| s.param.get().detach());
        let buffers = self.buffers.iter().map(|(name, p)| (name.clone(), p.get()));
        self.slots.iter().map(|s| (s.name.clone(), value(s))).chain(buffers).collect()
    }

    /// Adds the state to `out`: `param.NAME` (of buffers too), `m.NAME`, `v.NAME` and `ema.NAME`.
    pub fn save(&self, out: &mut BTreeMap<String, Tensor>) {
        for (name, buffer) in &self.buffers {
            out.insert(format!("param.{name}"), buffer.get());
        }
        for Slot { name, param, m, v, ema } in &self.slots {
            out.insert(format!("param.{name}"), param.get().detach());
            out.insert(format!("m.{name}"), m.clone());
            out.insert(format!("v.{name}"), v.clone());
            if let Some(ema) = ema {
                out.insert(format!("ema.{name}"), ema.clone());
            }
        }
    }

    /// Takes on a saved state after `step` steps.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] naming the tensor that is missing or of another shape or dtype; nothing is changed then.
    pub fn restore(&mut self, saved: &BTreeMap<String, Tensor>, step: u64) -> Result<()> {
        let find = |part: &str, name: &str, like: &Tensor| {
            let name = format!("{part}.{name}");
            let wanted = (like.shape(), like.dtype());
            match saved.get(&name) {
                Some(t) if (t.shape(), t.dtype()) == wanted => Ok(t.clone()),
                Some(t) => {
                    Err(format!("tensor \"{name}\" is {:?} {:?}; expected {wanted:?}", t.dtype(), t.shape()))
                }
                None => Err(format!("tensor \"{name}\" is missing")),
            }
            .map_err(|message| Error::new(ErrorKind::Model, message))
        };
        let mut found = Vec::new();
        for Slot { name, m, ema, .. } in &self.slots {
            let ema = ema.as_ref().map(|_| find("ema", name, m)).transpose()?;
            found.push((find("param", name, m)?, find("m", name, m)?, find("v", name, m)?, ema));
        }
        let buffers = self.buffers.iter().map(|(name, buffer)| find("param", name, &buffer.get()));
        let buffers = buffers.collect::<Result<Vec<_>>>()?;
        for ((_, buffer), value) in self.buffers.iter().zip(&buffers) {
            buffer.set(value);
        }
        for (slot, (w, m, v, ema)) in self.slots.iter_mut().zip(found) {
            slot.param.set(&w);
            let place = slot.m.clone();
            (slot.m, slot.v, slot.ema) = (m.beside(&place), v.beside(&place), ema.map(|e| e.beside(&place)));
        }
        self.step = step;
        Ok(())
    }
}

/// As `Chunk` in `kernels/adam.cu`: addresses and the number of elements there.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Chunk {
    w: u64,
    m: u64,
    v: u64,
    /// 0 where there is none.
    average: u64,
    g: u64,
    n: i64,
}

/// Elements of a chunk at most: a multiple of a pack.
const CHUNK: usize = 4096;

impl Chunk {
    /// A whole gradient on a device.
    fn of(g: &Tensor) -> Self {
        let held = g.held().expect("the gradient is on a device");
        Self { w: 0, m: 0, v: 0, average: 0, g: held.address(), n: g.len() as i64 }
    }

    /// Its chunks.
    fn cut(self, into: &mut Vec<Self>) {
        let Self { w, m, v, average, g, n } = self;
        into.extend((0..n).step_by(CHUNK).map(|at| {
            let moved = |address: u64| if address == 0 { 0 } else { address + 4 * at as u64 };
            let [w, m, v, average, g] = [w, m, v, average, g].map(moved);
            Self { w, m, v, average, g, n: (n - at).min(CHUNK as i64) }
        }));
    }
}

/// Chunks where kernels find them; what repeats itself from step to step is their lengths.
fn table(gpu: Gpu, chunks: &[Chunk]) -> Table {
    let lengths: Vec<i64> = chunks.iter().map(|c| c.n).collect();
    gpu.table(chunks, bytemuck::cast_slice(&lengths))
}

/// √Σ g² over all gradients, summed in f64 in a fixed order. Not finite if and only if a gradient is not, or, on
/// devices, the sum is beyond f32.
pub fn norm(grads: &[Tensor]) -> f64 {
    if let Some(gpu) = grads.iter().find_map(|g| g.gpu()) {
        return device_gate(gpu, None, grads).to_f64_vec()[1].sqrt();
    }
    (squares::<f32>(grads) + squares::<f64>(grads)).sqrt()
}

fn squares<T: Float>(grads: &[Tensor]) -> f64 {
    let mine: Vec<&[T]> = grads.iter().filter(|g| g.dtype() == T::DTYPE).map(|g| g.as_slice::<T>()).collect();
    optim::sum_of_squares(&mine)
}

/// (2,) the loss and Σ g² on a device: a step with numbers that are not finite is not taken.
pub(super) fn gate(loss: &Tensor, grads: &[Tensor]) -> Tensor {
    let gpu = loss.gpu().expect("the loss is on the device of the step");
    device_gate(gpu, Some(&loss.cast(DType::F32)), grads)
}

/// (2,) the loss or 0, and Σ g²: sums of chunks, added in order.
fn device_gate(gpu: Gpu, loss: Option<&Tensor>, grads: &[Tensor]) -> Tensor {
    let grads: Vec<Tensor> = grads.iter().map(|g| g.cast(DType::F32)).collect();
    let mut chunks = Vec::new();
    grads.iter().for_each(|g| Chunk::of(g).cut(&mut chunks));
    let parts = gpu.empty([chunks.len().max(1)], DType::F64);
    let kernel = |symbol| Kernel { file: "adam", symbol };
    gpu.launch(kernel("squares_f32"), Grid::new(chunks.len(), 256), &[&parts, &table(gpu, &chunks)]);
    let gate = gpu.empty([2], DType::F32);
    let (parts, count) = (parts.finish(), chunks.len() as i32);
    let args: &[&dyn cuda::Arg] = &[&gate, &Optional(loss, DType::F32), &parts, &count];
    gpu.launch(kernel("gate_f32"), Grid::new(1, 256), args);
    gate.finish()
}

/// As `Rates` in `kernels/adam.cu`, with the largest norm `most` of the gradient.
fn on_device(rates: &Rates, most: f64) -> Tensor {
    let Rates { beta1, beta2, lr, v_scale, eps, keep, l2, part, .. } = *rates;
    Tensor::from_slice(&[beta1, beta2, lr, v_scale, eps, keep, l2, most, part].map(|x| x as f32), [9])
}
