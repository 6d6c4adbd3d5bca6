//! Launches of the kernels over kernels/field.cuh and kernels/field_grad.cuh, for one evaluation and for whole solves.

use super::{Field, Probe, Smooth};
use crate::autograd::{self, Recipe, record};
use crate::cuda::{Arg, Gpu, Grid, Kernels, Optional, Output, Struct, Wanted};
use crate::ops::{cast, reduce, shape};
use crate::tensor::{DType, Tensor};

/// As `FieldSizes` in kernels/field.cuh.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Sizes {
    rows: i32,
    dims: i32,
    hidden: i32,
    widths: [i32; 3],
    softplus: i32,
    pitch: i32,
}

/// The gradients of a field's results, and whether those of the parameters are asked for.
pub(in crate::ops) struct Grads {
    f: Tensor,
    trace: Tensor,
    params: bool,
}

/// A field's evaluation on a device, for the kernels over kernels/field.cuh.
pub(in crate::ops) struct Launch {
    gpu: Gpu,
    /// As [`Field::inputs`].
    inputs: Vec<Tensor>,
    sizes: Sizes,
    stages: usize,
}

impl Launch {
    /// Shared memory that every device has, some of it left to the kernels' own.
    const SHARED: usize = 160 << 10;

    /// With room for `stages` results; `None` for more than three hidden layers, and for layers too wide for the shared
    /// memory that the kernel, or its backward pass where something is recorded, takes.
    pub(in crate::ops) fn new(
        gpu: Gpu,
        x: &Tensor,
        field: &Field,
        probe: &Probe,
        stages: usize,
    ) -> Option<Self> {
        let ([b, d], hidden) = (x.dims(), field.layers.len() - 1);
        if hidden > 3 {
            return None;
        }
        let mut widths = [0; 3];
        widths.iter_mut().zip(&field.layers[..hidden]).for_each(|(w, (_, b))| *w = b.len() as i32);
        let widest = widths.into_iter().fold(d as i32, i32::max);
        let pitch = (widest as usize).next_multiple_of(4);
        let softplus = i32::from(matches!(field.act, Smooth::Softplus));
        let [rows, dims, layers, pitch] = [b, d, hidden, pitch].map(|n| n as i32);
        let sizes = Sizes { rows, dims, hidden: layers, widths, softplus, pitch };
        let launch = Self { gpu, inputs: field.inputs(x, probe), sizes, stages };
        let tiles = if launch.is_recording() { launch.backward_tiles() } else { 6 + stages };
        (launch.bytes(tiles) <= Self::SHARED).then_some(launch)
    }

    fn is_recording(&self) -> bool {
        autograd::is_recording(&self.inputs.iter().collect::<Vec<_>>())
    }

    fn backward_tiles(&self) -> usize {
        3 * self.sizes.hidden as usize + 9 + self.stages
    }

    /// Bytes of `tiles` tiles of 8 rows.
    fn bytes(&self, tiles: usize) -> usize {
        4 * 8 * self.sizes.pitch as usize * tiles
    }

    pub(in crate::ops) fn x(&self) -> &Tensor {
        &self.inputs[0]
    }

    /// Bytes of the parameters, if they fit into what the forward pass leaves of the shared memory.
    pub(in crate::ops) fn held(&self) -> Option<usize> {
        let numbers: usize = self.inputs[3..].iter().map(Tensor::len).sum();
        let bytes = numbers * self.x().dtype().size();
        (bytes + self.bytes(6 + self.stages) <= Self::SHARED).then_some(bytes)
    }

    /// Memory for the inputs of `evaluations` stages (evaluations, B, D), where something is recorded.
    pub(in crate::ops) fn room(&self, evaluations: usize) -> Option<Output> {
        let [b, d] = self.x().dims();
        self.is_recording().then(|| self.gpu.empty([evaluations, b, d], DType::F32))
    }

    /// W_1, b_1, W_2, ... and `mix` of four layers, missing ones as null pointers.
    fn params(&self) -> Vec<Optional<'_>> {
        let (dtype, layers) = (self.x().dtype(), &self.inputs[3..self.inputs.len() - 1]);
        let mix = self.inputs.last().filter(|mix| !mix.is_empty());
        let layers = (0..8).map(|i| Optional(layers.get(i), dtype));
        layers.chain([Optional(mix, dtype)]).collect()
    }

    /// (B, D) and (B,) of `kernels`, which take `extra` behind their results and `how` before the sizes, with `bytes`
    /// more of shared memory.
    pub(in crate::ops) fn run(
        &self,
        kernels: &Kernels,
        extra: &[&dyn Arg],
        how: &dyn Arg,
        bytes: usize,
    ) -> [Tensor; 2] {
        let ([b, d], dtype) = (self.x().dims(), self.x().dtype());
        let (f, nats) = (self.gpu.empty([b, d], dtype), self.gpu.empty([b], dtype));
        let (params, sizes) = (self.params(), Struct(self.sizes));
        let mut args: Vec<&dyn Arg> = vec![&f, &nats];
        args.extend(extra);
        args.extend(self.inputs[..3].iter().map(|t| t as &dyn Arg));
        args.extend(params.iter().map(|p| p as &dyn Arg));
        args.extend([how, &sizes]);
        let shared = (self.bytes(6 + self.stages) + bytes) as u32;
        self.gpu.launch(kernels.of(dtype), Grid { shared, ..Grid::new(b.div_ceil(8), 128) }, &args);
        [f.finish(), nats.finish()]
    }

    /// Records `found` with the gradients that `backward` launches for those of the results.
    pub(in crate::ops) fn record(
        self,
        op: &'static str,
        found: [Tensor; 2],
        backward: impl Fn(&Self, &Grads) -> Vec<Option<Tensor>> + Send + Sync + 'static,
    ) -> (Tensor, Tensor) {
        let kept = Self { inputs: self.inputs.iter().map(Tensor::detach).collect(), ..self };
        let inputs = self.inputs;
        let refs: Vec<&Tensor> = inputs.iter().collect();
        let [f, nats] = record(Recipe::fused(op), &refs, found, move |back| {
            let params = (3..kept.inputs.len()).any(|i| back.needs(i));
            let grads = backward(&kept, &Grads { f: back.grad(0), trace: back.grad(1), params });
            grads.into_iter().enumerate().map(|(i, g)| g.filter(|_| back.needs(i))).collect()
        });
        (f, nats)
    }

    /// The gradients of all inputs by `kernels`, which take `from` (x, or what was saved) before v and `how` before the
    /// sizes. Those of the parameters are added up per block, in a number of blocks that depends on B alone.
    pub(in crate::ops) fn backward(
        &self,
        kernels: &Kernels,
        grads: &Grads,
        from: &Tensor,
        how: &dyn Arg,
    ) -> Vec<Option<Tensor>> {
        let ([b, _], dtype) = (self.x().dims(), self.x().dtype());
        let rows = [0, 1, 2].map(|i| self.gpu.empty(self.inputs[i].shape(), dtype));
        let numbers: usize = self.inputs[3..].iter().map(Tensor::len).sum();
        let blocks = b.div_ceil(8).clamp(1, 128);
        let partial = grads.params.then(|| self.gpu.empty([blocks, numbers], DType::F32));
        let wanted = Wanted(partial.as_ref(), DType::F32);
        let turn = |w: &Tensor| shape::permute(w, &[1, 0]);
        let layers = &self.inputs[3..self.inputs.len() - 1];
        let mut turned: Vec<Tensor> = layers.iter().step_by(2).map(turn).collect();
        turned.extend(self.inputs.last().filter(|mix| !mix.is_empty()).map(turn));
        let hidden = self.sizes.hidden as usize;
        let place = |i: usize| Optional(turned.get(i).filter(|_| i <= hidden), dtype);
        let [t0, t1, t2, t3] = [0, 1, 2, 3].map(place);
        let mix = Optional(turned.get(hidden + 1), dtype);
        let (params, sizes, count) = (self.params(), Struct(self.sizes), numbers as i32);
        let mut args: Vec<&dyn Arg> = rows.iter().map(|t| t as &dyn Arg).collect();
        args.extend([&wanted as &dyn Arg, from, &self.inputs[1], &self.inputs[2], &grads.f, &grads.trace]);
        args.extend(params.iter().map(|p| p as &dyn Arg));
        args.extend([&t0 as &dyn Arg, &t1, &t2, &t3, &mix, &count, how, &sizes]);
        let grid = Grid { shared: self.bytes(self.backward_tiles()) as u32, ..Grid::new(blocks, 128) };
        self.gpu.launch(kernels.of(dtype), grid, &args);
        let total = partial.map(|partial| cast::cast(&reduce::sum(&partial.finish(), &[0]), dtype));
        let mut at = 0;
        let params = self.inputs[3..].iter().map(|input| {
            let from = at;
            at += input.len();
            let part = |all: &Tensor| shape::narrow(all, 0, from, input.len());
            total.as_ref().map(|all| shape::reshape(&part(all), input.shape()))
        });
        rows.into_iter().map(|t| Some(t.finish())).chain(params).collect()
    }
}
