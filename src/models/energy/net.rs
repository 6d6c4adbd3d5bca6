//! Networks that give one number per example: the energies.
//!
//! Images (H, W, C): conv3x3 (C → c_1) silu, then conv4x4 of stride 2 (c_i → c_{i+1}) silu for the further `channels`,
//! then a linear map of all that is left to one number. Rows (D): linear maps with silu, `hidden` units each, to one
//! number; to it ½|x|² is added, so that E tilts a standard normal and Z is finite whenever the network grows more
//! slowly.
//!
//! With spectral normalisation every weight matrix (a kernel as (KH KW In, Out)) is divided by its largest singular
//! value, found by power iteration with a saved vector (Miyato et al. 2018).

use crate::autograd;
use crate::cpu::gemm::Act;
use crate::cpu::par::{self, Shared};
use crate::error::{Error, ErrorKind, Result};
use crate::nn::{Init, Initial, Param};
use crate::ops::amp;
use crate::ops::conv::{ConvSpec, conv2d};
use crate::ops::matmul::{linear, matmul};
use crate::ops::replay_buffer::Noise;
use crate::random::Philox;
use crate::tensor::{DType, NewTensor, Tensor, with_arithmetic};

/// The most parameters that a configuration may ask for.
const MAX_PARAMS: usize = 1 << 28;
/// Images whose activations stay in the last-level cache while a task works on them.
const IMAGES: usize = 8;

/// The parameters of an energy.
pub struct EnergyNet {
    layers: Vec<Layer>,
    shape: Vec<usize>,
}

struct Layer {
    weight: Param,
    /// None at the end of an energy that is known up to a constant only.
    bias: Option<Param>,
    /// The right singular vector of spectral normalisation.
    spectral: Option<Param>,
}

/// What kind of network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetKind {
    /// Whether weights are divided by their largest singular value.
    pub spectral: bool,
    /// Whether the number at the end has a bias.
    pub constant: bool,
}

/// The weights of one evaluation: recorded, or cut off from the parameters.
#[derive(Clone)]
pub struct Weights {
    layers: Vec<(Tensor, Option<Tensor>)>,
    image: bool,
}

/// Height and width behind a convolution of 4x4, stride 2, padding 1.
fn halved(side: [usize; 2]) -> [usize; 2] {
    side.map(|n| n.saturating_sub(2) / 2 + 1)
}

impl EnergyNet {
    /// Refuses sizes that cannot be built or would not fit any memory.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] naming the key and what was expected.
    pub fn check(model: &str, shape: &[usize], channels: &[usize], hidden: &[usize]) -> Result<()> {
        let fail = |m: String| Err(Error::new(ErrorKind::Usage, format!("configuration of {model}: {m}")));
        let (key, sizes) = match shape.len() {
            1 => ("hidden", hidden),
            3 => ("channels", channels),
            _ => return fail(format!("shape is {shape:?}; expected [D] or [H, W, C]")),
        };
        if shape.iter().any(|n| !(1..=1 << 16).contains(n)) {
            return fail(format!("shape is {shape:?}; expected sizes of 1 to {}", 1 << 16));
        }
        if !(1..=16).contains(&sizes.len()) || sizes.iter().any(|n| !(1..=1 << 14).contains(n)) {
            return fail(format!("{key} is {sizes:?}; expected 1 to 16 layers of 1 to {} units", 1 << 14));
        }
        let whole: Vec<usize> = [&shape[shape.len() - 1..], sizes].concat();
        let taps = if shape.len() == 3 { 16 } else { 1 };
        let inner: usize = whole.windows(2).map(|w| taps * w[0] * w[1]).sum();
        let mut last = sizes[sizes.len() - 1];
        if let &[h, w, _] = shape {
            let mut side = [h, w];
            for _ in 1..sizes.len() {
                if side.contains(&1) {
                    return fail(format!(
                        "{} layers of stride 2 are too many for {shape:?}",
                        sizes.len() - 1
                    ));
                }
                side = halved(side);
            }
            last = last.saturating_mul(side[0].saturating_mul(side[1]));
        }
        if inner.saturating_add(last) > MAX_PARAMS {
            return fail(format!("it asks for more than {MAX_PARAMS} parameters"));
        }
        Ok(())
    }

    /// Fresh parameters `net.{0,2,4,...}.{weight,bias}`, as PyTorch's layers start; call [`Self::check`] before.
    pub fn new(
        init: &mut Init,
        shape: &[usize],
        channels: &[usize],
        hidden: &[usize],
        kind: NetKind,
    ) -> Self {
        let mut sizes: Vec<(usize, Vec<usize>)> = Vec::new();
        let mut from = shape[shape.len() - 1];
        if let &[h, w, _] = shape {
            let mut side = [h, w];
            for (i, &to) in channels.iter().enumerate() {
                let k = if i == 0 { 3 } else { 4 };
                side = if i == 0 { side } else { halved(side) };
                sizes.push((2 * i, vec![k, k, from, to]));
                from = to;
            }
            sizes.push((2 * channels.len() + 1, vec![side[0] * side[1] * from, 1]));
        } else {
            for (i, &to) in hidden.iter().enumerate() {
                sizes.push((2 * i, vec![from, to]));
                from = to;
            }
            sizes.push((2 * hidden.len(), vec![from, 1]));
        }
        let last = sizes.len() - 1;
        let layer = |(i, (name, size)): (usize, (usize, Vec<usize>))| {
            let mut init = init.sub(format_args!("net.{name}"));
            let (out, fan) = (size[size.len() - 1], size[..size.len() - 1].iter().product());
            let start = Initial::FanIn(fan);
            let unit = Initial::Constant(1.0 / (out as f64).sqrt());
            Layer {
                weight: init.param("weight", &size[..], start),
                bias: (kind.constant || i < last).then(|| init.param("bias", [out], start)),
                spectral: kind.spectral.then(|| init.buffer("spectral", [out], DType::F32, unit)),
            }
        };
        Self { layers: sizes.into_iter().enumerate().map(layer).collect(), shape: shape.to_vec() }
    }

    /// The weights for one evaluation, recorded with the parameters.
    pub fn weights(&self) -> Weights {
        let of = |l: &Layer| {
            let weight = l.weight.get();
            (
                l.spectral.as_ref().map_or(weight.clone(), |u| normalised(&weight, u)),
                l.bias.as_ref().map(Param::get),
            )
        };
        Weights { layers: self.layers.iter().map(of).collect(), image: self.shape.len() == 3 }
    }

    /// Starts of `n` chains: uniform on [0, 1) for images, standard normal for rows.
    pub fn noise(&self, n: usize, dtype: DType, rng: &mut Philox) -> Tensor {
        let shape = [&[n], &self.shape[..]].concat();
        self.start().draw(shape, dtype, rng)
    }

    /// What chains start from: uniform pixels or standard normal columns.
    pub fn start(&self) -> Noise {
        if self.shape.len() == 3 { Noise::Uniform } else { Noise::Normal }
    }

    /// One power iteration of spectral normalisation, as each training step makes it.
    pub fn iterate(&self) {
        for layer in &self.layers {
            let Some(u) = &layer.spectral else { continue };
            autograd::no_grad(|| {
                let w = flat(&layer.weight.get());
                let [_, n] = w.dims();
                let left = unit(&matmul(&w, &u.get().cast(w.dtype()).reshape([n, 1]), false, false));
                u.set(&unit(&matmul(&w, &left, true, false)).reshape([n]).cast(DType::F32));
            });
        }
    }
}

/// (..., Out) as a matrix.
fn flat(w: &Tensor) -> Tensor {
    let out = *w.shape().last().expect("weights have an axis");
    w.reshape([w.len() / out, out])
}

fn unit(x: &Tensor) -> Tensor {
    x / &x.square().sum_all().affine(1.0, 1e-12).sqrt()
}

/// W / σ with σ = vᵀ W u, v = W u / |W u|, differentiable in W.
fn normalised(w: &Tensor, u: &Param) -> Tensor {
    let matrix = flat(w);
    let u = u.get().cast(w.dtype()).reshape([matrix.shape()[1], 1]);
    let moved = matmul(&matrix, &u, false, false);
    let left = unit(&moved.detach());
    w / &(&moved * &left).sum_all()
}

impl Weights {
    /// The same weights without their parameters: gradients go to x alone.
    pub fn detached(&self) -> Self {
        let layers = self.layers.iter().map(|(w, b)| (w.detach(), b.as_ref().map(Tensor::detach))).collect();
        Self { layers, image: self.image }
    }

    /// All of them, layer by layer.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.layers.iter().flat_map(|(w, b)| std::iter::once(w).chain(b))
    }

    /// The same network with other tensors in the order of [`Self::tensors`].
    pub(crate) fn with(&self, tensors: &[Tensor]) -> Self {
        let mut tensors = tensors.iter().cloned();
        let mut next = || tensors.next().expect("one for each of ours");
        let layers = self.layers.iter().map(|(_, b)| (next(), b.is_some().then(&mut next))).collect();
        Self { layers, image: self.image }
    }

    /// E(x) (B,) of x (B, ...) in model space.
    pub fn energy(&self, x: &Tensor) -> Tensor {
        let e = self.network(x);
        if self.image { e } else { &e + &x.square().sum_examples().affine(0.5, 0.0) }
    }

    /// The network's number (B,) alone.
    pub fn network(&self, x: &Tensor) -> Tensor {
        let b = x.shape()[0];
        let (last, inner) = self.layers.split_last().expect("a network has layers");
        let mut h = x.clone();
        for (i, (w, bias)) in inner.iter().enumerate() {
            let spec = if i == 0 { ConvSpec::same(3) } else { ConvSpec::strided(2, 1) };
            h = if self.image {
                conv2d(&h, w, bias.as_ref(), None, spec.act(Act::Silu))
            } else {
                linear(&h, w, bias.as_ref(), Act::Silu)
            };
        }
        let flat = h.reshape([b, h.len() / b]);
        linear(&flat, &last.0, last.1.as_ref(), Act::None).reshape([b])
    }

    /// E (B,) and ∂E/∂x of x (B, ...), unrecorded. Groups of images go through the whole network one after the other
    /// on each thread, so that their activations stay in cache.
    pub fn gradient(&self, x: &Tensor) -> (Tensor, Tensor) {
        let of = |x: &Tensor| {
            autograd::enable_grad(|| {
                let x = x.requires_grad();
                let e = self.energy(&x);
                (e.detach(), autograd::backward(e.sum_all(), &[&x]).remove(0))
            })
        };
        let b = x.shape()[0];
        if !self.image || b <= IMAGES || x.gpu().is_some() {
            return of(x);
        }
        with_arithmetic!(x.dtype(), T => {
            let per = x.len() / b;
            let (mut e, mut g) = (NewTensor::<T>::new([b]), NewTensor::<T>::new(x.shape()));
            let [to_e, to_g] = [e.as_mut(), g.as_mut()].map(|t| Shared(t.as_mut_ptr()));
            let products = amp::present();
            par::each(true, b.div_ceil(IMAGES), &|i| {
                let (at, n) = (i * IMAGES, IMAGES.min(b - i * IMAGES));
                let (e, g) = amp::mixed(products, || of(&x.detach().narrow(0, at, n)));
                // SAFETY: group i owns its rows of both.
                let (to_e, to_g) = unsafe { (to_e.slice(at, n), to_g.slice(at * per, n * per)) };
                to_e.copy_from_slice(e.as_slice::<T>());
                to_g.copy_from_slice(g.as_slice::<T>());
            });
            (e.finish(), g.finish())
        })
    }
}
