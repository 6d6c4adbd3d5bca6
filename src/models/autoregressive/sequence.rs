//! What models of sequences share: how a step enters the network, which distribution comes out, how to draw.
//!
//! A sequence is (T) tokens in 0..levels or (T, D) numbers. A network maps embeddings of the steps before t, (B, T, C),
//! to features of step t, (B, T, C); its input at t = 0 is token 0, or the zero vector. From the features come
//! - for tokens the logits of a softmax, (B, T, levels);
//! - for numbers K normal components for each of the D columns, which are independent given the past. Columns are
//!   standardised with the mean and deviation of the training data, whose log-determinant is counted.

use super::incremental::pick;
use crate::cpu::gemm::{Act, Epilogue, Mat, gemm};
use crate::cpu::par;
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::models::{Input, Kind, LogProb};
use crate::nn::{Init, Initial, Param, standardised};
use crate::ops::gaussian_mixture::gaussian_mixture;
use crate::ops::index::gather_rows;
use crate::ops::matmul::linear;
use crate::ops::softmax::cross_entropy;
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use std::sync::Mutex;

/// Log-deviations of a component, in deviations of the data, count as this at least.
const LOWEST: f64 = -7.0;
/// Sequences that are drawn together: the rows of small matrix products.
const GROUP: usize = 12;

/// The part of a configuration that says what a sequence is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Steps {
    /// `[T]` or `[T, D]`.
    pub(super) shape: Vec<usize>,
    /// Tokens are in `0..levels`; 0 for numbers.
    pub(super) levels: usize,
    /// Normal components per number; 0 for tokens.
    pub(super) components: usize,
}

impl Steps {
    /// # Errors
    /// When the sizes are impossible.
    pub(super) fn check(&self, model: &str) -> Result<()> {
        let Self { shape, levels, components } = self;
        let fail = |what: String| Err(Error::new(ErrorKind::Usage, format!("{model}: {what}")));
        if !(1..=2).contains(&shape.len()) || shape.iter().any(|n| !(1..=1 << 16).contains(n)) {
            return fail(format!(
                "shape = {shape:?}; expected [T] tokens or [T, D] numbers, each at most 65536"
            ));
        }
        match shape.len() {
            1 if !(2..=1 << 16).contains(levels) => {
                fail(format!("levels = {levels}; expected 2..=65536 for tokens"))
            }
            1 if *components != 0 => fail(format!("components = {components}; expected 0 for tokens")),
            2 if *levels != 0 => fail(format!("levels = {levels}; expected 0 for numbers (T, D)")),
            2 if !(1..=256).contains(components) => {
                fail(format!("components = {components}; expected 1..=256 for numbers"))
            }
            _ => Ok(()),
        }
    }

    /// Steps.
    pub(super) fn time(&self) -> usize {
        self.shape[0]
    }

    /// Numbers per step; 1 for tokens.
    fn width(&self) -> usize {
        self.shape.get(1).copied().unwrap_or(1)
    }

    fn tokens(&self) -> bool {
        self.shape.len() == 1
    }

    /// Parameters of a step's distribution.
    fn outputs(&self) -> usize {
        if self.tokens() { self.levels } else { self.width() * 3 * self.components }
    }

    /// Scalar parameters of both ends with `channels` features.
    pub(super) fn params(&self, channels: usize) -> usize {
        let rows = if self.tokens() { self.levels } else { self.width() };
        channels.saturating_mul(rows.saturating_add(self.outputs())).saturating_add(self.outputs())
    }

    pub(super) fn input(&self) -> Input {
        if self.tokens() {
            return Input::tokens(self.shape.clone(), self.levels);
        }
        Input { shape: self.shape.clone(), dtypes: &[DType::F32, DType::F64], ..Input::default() }
    }
}

/// Turns the embeddings (rows, C) of step t into features, for t = 0, 1, ..., remembering what it needs.
pub(super) type Walk<'a> = Box<dyn FnMut(usize, &mut [f32]) + 'a>;

/// Both ends of a network over sequences.
pub(super) struct Ends {
    steps: Steps,
    channels: usize,
    /// (levels, C) or (D, C).
    embedding: Param,
    /// (C, outputs); its bias only for numbers.
    head: Param,
    bias: Option<Param>,
    /// (2, D) f64: mean and deviation of the columns.
    moments: Option<Param>,
}

impl Ends {
    /// The embedding; [`Self::head`] is to follow behind the network's own parameters.
    pub(super) fn new(steps: Steps, channels: usize, init: &mut Init) -> Self {
        let outputs = steps.outputs();
        let (rows, start) = match steps.tokens() {
            true => (steps.levels, Initial::Normal(0.02)),
            false => (steps.width(), Initial::FanIn(steps.width())),
        };
        let embedding = init.sub("embedding").param("weight", [rows, channels], start);
        let head = init.sub("head").param("weight", [channels, outputs], Initial::FanIn(channels));
        let (bias, moments) = match steps.tokens() {
            true => (None, None),
            false => {
                // Components start apart, at means in ±1.
                let bias = init.sub("head").param("bias", [outputs], Initial::Uniform(1.0));
                let moments = init.buffer("moments", [2, steps.width()], DType::F64, Initial::Constant(1.0));
                moments.set(&Tensor::from_fn([2, steps.width()], |i| {
                    if i < steps.width() { 0.0f64 } else { 1.0 }
                }));
                (Some(bias), Some(moments))
            }
        };
        Self { steps, channels, embedding, head, bias, moments }
    }

    pub(super) fn steps(&self) -> &Steps {
        &self.steps
    }

    /// Takes the moments of the training data.
    pub(super) fn fit(&self, train: &Dataset) {
        let Some(moments) = &self.moments else { return };
        let d = self.steps.width();
        let values = train.values.to_f64_vec();
        let n = (values.len() / d) as f64;
        let (mut mean, mut std) = (vec![0.0; d], vec![0.0; d]);
        values.iter().enumerate().for_each(|(i, x)| mean[i % d] += x / n);
        values.iter().enumerate().for_each(|(i, x)| std[i % d] += (x - mean[i % d]).powi(2) / n);
        for (variance, mean) in std.iter_mut().zip(&mean) {
            // A constant column leaves rounding noise, not exactly 0.
            *variance = if *variance > (1e-12 * mean).powi(2) { variance.sqrt() } else { 1.0 };
        }
        moments.set(&Tensor::from_slice(&[mean, std].concat(), [2, d]));
    }

    /// The numbers (B, T, D), standardised, in the dtype of the parameters.
    fn standardised(&self, x: &Tensor) -> Tensor {
        let Some(moments) = &self.moments else { return x.clone() };
        let (moments, d) = (moments.get().to_f64_vec(), self.steps.width());
        standardised(x, &moments[..d], &moments[d..], self.embedding.get().dtype())
    }

    /// The network's input (B, T, C) for sequences x: step t holds what came before it.
    #[track_caller]
    pub(super) fn embed(&self, x: &Tensor) -> Tensor {
        let time = self.steps.time();
        assert!(
            x.rank() == self.steps.shape.len() + 1 && x.shape()[1..] == self.steps.shape,
            "sequences of shape {:?}; expected (B, {:?})",
            x.shape(),
            self.steps.shape
        );
        if self.steps.tokens() {
            let before = x.cast(DType::I32).narrow(1, 0, time - 1).pad(1, 1, 0);
            return gather_rows(&self.embedding.get(), &before);
        }
        let z = self.standardised(x);
        let before = z.narrow(1, 0, time - 1).pad(1, 1, 0);
        linear(&before, &self.embedding.get(), None, Act::None)
    }

    /// Nats of every step (B, T) or number (B, T, D) of x from the features (B, T, C).
    pub(super) fn log_prob(&self, features: &Tensor, x: &Tensor) -> LogProb {
        let bias = self.bias.as_ref().map(Param::get);
        let params = linear(features, &self.head.get(), bias.as_ref(), Act::None);
        let nats = match &self.moments {
            None => -&cross_entropy(&params, x),
            Some(moments) => {
                let [b, t, d] = x.dims();
                let params = params.reshape([b, t, d, 3 * self.steps.components]);
                let moments = moments.get().to_f64_vec();
                let log_std = Tensor::from_fn([d], |i| moments[d + i].ln()).cast(params.dtype());
                &gaussian_mixture(&self.standardised(x), &params, LOWEST) - &log_std
            }
        };
        LogProb { nats: nats.sum_examples(), kind: Kind::Exact, per_position: Some(nats) }
    }

    /// `n` sequences, in groups that `walk(rows)` leads through the network.
    pub(super) fn draw<'a>(
        &self,
        n: usize,
        temperature: f64,
        rng: &mut Philox,
        walk: &(dyn Fn(usize) -> Walk<'a> + Sync),
    ) -> Result<Tensor> {
        let Steps { levels, components, .. } = self.steps;
        let (time, width, c) = (self.steps.time(), self.steps.width(), self.channels);
        let wide = |p: &Param| p.get().detach().cast(DType::F32);
        let (embedding, head, bias) = (wide(&self.embedding), wide(&self.head), self.bias.as_ref().map(wide));
        let outputs = self.steps.outputs();
        let mut uniforms = vec![0.0f64; n * time * width];
        rng.fill_open(&mut uniforms);
        let mut normals = vec![0.0f64; if levels > 0 { 0 } else { uniforms.len() }];
        rng.fill_normal(&mut normals);
        let each = n.div_ceil(n.div_ceil(GROUP).max(1)).max(1);
        let mut out = vec![0.0f32; n * time * width];
        let failed = Mutex::new(None);
        par::chunks_mut(&mut out, each * time * width, |group, out| {
            let rows = out.len() / (time * width);
            let mut step = walk(rows);
            let (mut features, mut params) = (vec![0.0f32; rows * c], vec![0.0f32; rows * outputs]);
            let mut scratch = Vec::new();
            for t in 0..time {
                self.embed_step(&embedding, out, t, &mut features);
                step(t, &mut features);
                let bias = bias.as_ref().map(|b| b.as_slice::<f32>());
                let epilogue = Epilogue { bias, ..Epilogue::default() };
                let (x, w) = (Mat::new(&features, c), Mat::new(head.as_slice::<f32>(), outputs));
                gemm(rows, outputs, c, x, w, &mut params, outputs, &epilogue);
                for row in 0..rows {
                    for (d, y) in out[(row * time + t) * width..][..width].iter_mut().enumerate() {
                        let at = ((group * each + row) * time + t) * width + d;
                        let params = &params[row * outputs..][..outputs];
                        let params =
                            if levels > 0 { params } else { &params[d * 3 * components..][..3 * components] };
                        let logits = if levels > 0 { params } else { &params[..components] };
                        match pick(logits, temperature, uniforms[at], &mut scratch) {
                            Ok(k) if levels > 0 => *y = k as f32,
                            Ok(k) => {
                                let (mean, scale) = (params[components + k], params[2 * components + k]);
                                let deviation = f64::from(scale).max(LOWEST).exp() * temperature;
                                *y = (f64::from(mean) + deviation * normals[at]) as f32;
                            }
                            Err(e) => {
                                failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(e);
                                return;
                            }
                        }
                    }
                }
            }
        });
        if let Some(e) = failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
            return Err(e);
        }
        let shape: Vec<usize> = [&[n], &self.steps.shape[..]].concat();
        let Some(moments) = &self.moments else {
            let tokens = Tensor::from_fn(shape, |i| out[i] as i32);
            return Ok(tokens.cast(self.steps.input().dtypes[0]));
        };
        let moments = moments.get().to_f64_vec();
        Ok(Tensor::from_fn(shape, |i| {
            (f64::from(out[i]) * moments[width + i % width] + moments[i % width]) as f32
        }))
    }

    /// The embeddings (rows, C) of the step before `t` of the sequences `out` (rows, T, D).
    fn embed_step(&self, embedding: &Tensor, out: &[f32], t: usize, features: &mut [f32]) {
        let (time, width, c) = (self.steps.time(), self.steps.width(), self.channels);
        let table = embedding.as_slice::<f32>();
        for (row, features) in features.chunks_exact_mut(c).enumerate() {
            let before = (t > 0).then(|| &out[(row * time + t - 1) * width..][..width]);
            if self.steps.tokens() {
                let token = before.map_or(0, |x| x[0] as usize);
                features.copy_from_slice(&table[token * c..][..c]);
                continue;
            }
            features.fill(0.0);
            for (x, table) in before.into_iter().flatten().zip(table.chunks_exact(c)) {
                features.iter_mut().zip(table).for_each(|(f, w)| *f = x.mul_add(*w, *f));
            }
        }
    }
}

/// An affine map's parameters, (In, Out) and (Out).
pub(super) struct Linear {
    weight: Param,
    bias: Param,
}

impl Linear {
    pub(super) fn new(init: &mut Init, name: &str, [from, to]: [usize; 2], scale: f64) -> Self {
        let mut init = init.sub(name);
        let weight = init.param("weight", [from, to], Initial::Uniform(scale / (from as f64).sqrt()));
        Self { weight, bias: init.param("bias", [to], Initial::Zeros) }
    }

    pub(super) fn run(&self, x: &Tensor, act: Act) -> Tensor {
        linear(x, &self.weight.get(), Some(&self.bias.get()), act)
    }

    /// The parameters for evaluation step by step.
    pub(super) fn point(&self) -> Point {
        let wide = |p: &Param| p.get().detach().cast(DType::F32);
        Point { weight: wide(&self.weight), bias: wide(&self.bias) }
    }
}

/// [`Linear`] for a few rows at a time.
pub(super) struct Point {
    weight: Tensor,
    bias: Tensor,
}

impl Point {
    /// act(x W + bias + residual): x (rows, In), out and residual (rows, Out).
    pub(super) fn apply(&self, x: &[f32], residual: Option<&[f32]>, act: Act, out: &mut [f32]) {
        let [k, n] = self.weight.dims();
        let epilogue =
            Epilogue { bias: Some(self.bias.as_slice::<f32>()), residual, act, ..Epilogue::default() };
        let (x, w) = (Mat::new(x, k), Mat::new(self.weight.as_slice::<f32>(), n));
        gemm(x.data.len() / k, n, k, x, w, out, n, &epilogue);
    }
}

/// The largest difference between features of the whole pass (B, T, C) and those of a walk over the embeddings of x.
#[cfg(test)]
pub(super) fn walk_error(
    ends: &Ends,
    x: &Tensor,
    features: &Tensor,
    mut step: impl FnMut(usize, &mut [f32]),
) -> f32 {
    let embedded = ends.embed(x);
    let [b, time, c] = embedded.dims();
    let (from, to) = (embedded.as_slice::<f32>(), features.as_slice::<f32>());
    let mut worst = 0f32;
    for t in 0..time {
        let at = |row: usize| (row * time + t) * c..(row * time + t + 1) * c;
        let mut h: Vec<f32> = (0..b).flat_map(|row| from[at(row)].to_vec()).collect();
        step(t, &mut h);
        let whole = (0..b).flat_map(|row| to[at(row)].to_vec());
        worst = h.iter().zip(whole).fold(worst, |w, (a, b)| w.max((a - b).abs()));
    }
    worst
}
