//! Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
//!
//! Every number is a pure function of (seed, step, draw, element), so neither threads nor chunks nor the launch
//! geometry of a device change it. The layout is a contract with `kernels/philox.cuh`:
//! ```text
//! key     = [seed low, seed high]
//! counter = [element / 4, draw, step low, step high]      output word = element % 4
//! ```
//! A *draw* is one call that fills a tensor; each call takes the present draw number and advances it by one.
//! One 32-bit word `w` serves one element, in every dtype:
//! - uniform: `w / 2^32` cut to the bits of the dtype (f64 keeps 32, f32 24, f16 11, bf16 8), so it stays below 1;
//! - normal: Box & Muller 1958 on the words (0, 1) and (2, 3) of a counter, radius `sqrt(−2 ln((w + ½) / 2^32))`
//!   and angle `2π w' / 2^32`; calculated in f64 for f64 and in f32 (absolute error below 4e-6 where the radius is
//!   below its maximum of 6.76) for the others, then rounded. The same seed thus gives the same noise in every dtype.

mod device;
mod initial;
mod stream;

pub use stream::WordStream;

use crate::cpu::{math, par, simd::vectorize};
use crate::tensor::{DType, Elem, Float, NewTensor, Plain, Shape, Tensor, with_float};
use device::Law;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// Counters per block of the vectorised fill.
const BLOCK: usize = 128;
/// Elements per parallel chunk; a multiple of `4 * BLOCK`.
const CHUNK: usize = 16 * 1024;

/// One Philox4x32-10 evaluation.
#[inline(always)]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let p = 0xD251_1F53_u64 * c0 as u64;
        let q = 0xCD9E_8D57_u64 * c2 as u64;
        (c0, c1, c2, c3) = ((q >> 32) as u32 ^ c1 ^ k0, q as u32, (p >> 32) as u32 ^ c3 ^ k1, p as u32);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

/// A generator: a seed and the place (step, draw) of the next draw. Saved with a checkpoint by serde.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Philox {
    seed: u64,
    step: u64,
    draw: u32,
}

/// Element types that random numbers can be drawn in.
pub trait Draw: Elem {
    /// `w / 2^32`, cut to the precision of the type: in [0, 1).
    fn uniform(word: u32) -> Self;
    /// The middle of the cell of `w / 2^32`: in (0, 1), ends excluded.
    fn open(word: u32) -> Self;
    /// Two independent standard normal values.
    fn normal_pair(w0: u32, w1: u32) -> (Self, Self);
}

macro_rules! draw {
    ($t:ty, $bits:literal) => {
        impl Draw for $t {
            #[inline(always)]
            fn uniform(word: u32) -> Self {
                Self::store((word >> (32 - $bits)) as i32 as f32 * (1.0 / (1u32 << $bits) as f32))
            }
            #[inline(always)]
            fn open(word: u32) -> Self {
                let cell = (word >> (33 - $bits)) as i32 as f32;
                Self::store((cell + 0.5) * (2.0 / (1u32 << $bits) as f32))
            }
            #[inline(always)]
            fn normal_pair(w0: u32, w1: u32) -> (Self, Self) {
                let radius = (2.0 * math::exponential(w0)).sqrt();
                let (sin, cos) = math::sin_cos_turns(w1);
                (Self::store(radius * cos), Self::store(radius * sin))
            }
        }
    };
}
draw!(f32, 24);
draw!(f16, 11);
draw!(bf16, 8);

const UNIT: f64 = 1.0 / 4_294_967_296.0;

/// The number that words stay below with probability `p`.
///
/// # Panics
/// When `p` is not in [0, 1].
#[track_caller]
pub(crate) fn chance(p: f64) -> u64 {
    assert!((0.0..=1.0).contains(&p), "a probability of {p}; expected one in [0, 1]");
    (p / UNIT).round() as u64
}

impl Draw for f64 {
    #[inline(always)]
    fn uniform(word: u32) -> Self {
        word as f64 * UNIT
    }
    #[inline(always)]
    fn open(word: u32) -> Self {
        (word as f64 + 0.5) * UNIT
    }
    fn normal_pair(w0: u32, w1: u32) -> (Self, Self) {
        let radius = (-2.0 * Self::open(w0).ln()).sqrt();
        let (sin, cos) = (Self::uniform(w1) * std::f64::consts::TAU).sin_cos();
        (radius * cos, radius * sin)
    }
}

impl Philox {
    /// A generator keyed by `seed`, at step 0, draw 0.
    pub fn new(seed: u64) -> Self {
        Self { seed, step: 0, draw: 0 }
    }

    /// The generator of training step `step`: same seed, draw 0.
    pub fn at_step(&self, step: u64) -> Self {
        Self { seed: self.seed, step, draw: 0 }
    }

    /// A generator with an independent key, for a part of the program that must not disturb the others (data
    /// order, augmentation, sampling). The key is the first two words of the block at counter
    /// `[stream low, stream high, 2^32 − 1, 2^32 − 1]`; it depends on seed and `stream` alone, not on the place.
    pub fn fork(&self, stream: u64) -> Self {
        let [a, b, ..] = philox4x32([stream as u32, (stream >> 32) as u32, !0, !0], self.key());
        Self::new(a as u64 | (b as u64) << 32)
    }

    /// (seed, step, draw), for checkpoints.
    pub fn state(&self) -> (u64, u64, u32) {
        (self.seed, self.step, self.draw)
    }

    /// The generator at a place given by [`Self::state`].
    pub fn from_state((seed, step, draw): (u64, u64, u32)) -> Self {
        Self { seed, step, draw }
    }

    fn key(&self) -> [u32; 2] {
        [self.seed as u32, (self.seed >> 32) as u32]
    }

    /// The words of counter `index` of the present draw.
    #[inline(always)]
    fn block(&self, index: u32) -> [u32; 4] {
        philox4x32([index, self.draw, self.step as u32, (self.step >> 32) as u32], self.key())
    }

    /// Takes the present draw and moves on to the next one.
    fn take_draw(&mut self) -> Self {
        let taken = self.clone();
        self.draw = self.draw.wrapping_add(1);
        taken
    }

    /// Writes `f(words of a counter)`, four elements at a time, over `out`: the one loop under all draws.
    ///
    /// # Panics
    /// With more than 2^34 elements, the range of the counter.
    #[track_caller]
    #[expect(clippy::redundant_closure, reason = "a call through a reference to `f` would not be inlined")]
    fn fill<T: Copy + Send>(&mut self, out: &mut [T], f: impl Fn([u32; 4]) -> [T; 4] + Sync + Send) {
        assert!(out.len() <= 1 << 34, "a random draw has at most 2^34 elements, got {}", out.len());
        let rng = self.take_draw();
        par::chunks_mut(out, CHUNK, |index, chunk| {
            let first = (index * (CHUNK / 4)) as u32;
            vectorize(
                #[inline(always)]
                || {
                    fill_chunk(
                        &rng,
                        first,
                        chunk,
                        #[inline(always)]
                        |w| f(w),
                    )
                },
            );
        });
    }

    /// Fills with uniform values in [0, 1).
    pub fn fill_uniform<T: Draw>(&mut self, out: &mut [T]) {
        self.fill(
            out,
            #[inline(always)]
            |w| w.map(T::uniform),
        );
    }

    /// Fills with uniform values in (0, 1), both ends excluded: for logarithms and logits.
    pub fn fill_open<T: Draw>(&mut self, out: &mut [T]) {
        self.fill(
            out,
            #[inline(always)]
            |w| w.map(T::open),
        );
    }

    /// Fills with standard normal values.
    pub fn fill_normal<T: Draw>(&mut self, out: &mut [T]) {
        self.fill(
            out,
            #[inline(always)]
            |w| normals::<T>(w),
        );
    }

    /// The present draw, taken, for kernels that make their noise as they go.
    pub(crate) fn draw(&mut self) -> Self {
        self.take_draw()
    }

    /// Standard normal values of the elements `first..` of this draw: what [`Self::normal`] would have put there.
    ///
    /// # Panics
    /// When `first` is not a multiple of four.
    #[track_caller]
    pub(crate) fn normal_part<T: Draw>(&self, first: usize, out: &mut [T]) {
        assert!(first.is_multiple_of(4), "normal_part: element {first} does not begin a counter");
        vectorize(
            #[inline(always)]
            || {
                fill_chunk(
                    self,
                    (first / 4) as u32,
                    out,
                    #[inline(always)]
                    |w| normals::<T>(w),
                )
            },
        );
    }

    fn tensor<T: Plain>(shape: Shape, fill: impl FnOnce(&mut [T])) -> Tensor {
        let mut out = NewTensor::<T>::new(shape);
        fill(out.as_mut());
        out.finish().placed()
    }

    /// Uniform values in [0, 1).
    #[track_caller]
    pub fn uniform(&mut self, shape: impl Into<Shape>, dtype: DType) -> Tensor {
        if let Some(gpu) = Self::device_for(dtype) {
            return self.drawn(gpu, Law::Uniform, shape.into(), dtype);
        }
        with_float!(dtype, T => Self::tensor::<T>(shape.into(), |out| self.fill_uniform(out)))
    }

    /// Uniform values in (0, 1), both ends excluded.
    #[track_caller]
    pub fn uniform_open(&mut self, shape: impl Into<Shape>, dtype: DType) -> Tensor {
        if let Some(gpu) = Self::device_for(dtype) {
            return self.drawn(gpu, Law::Open, shape.into(), dtype);
        }
        with_float!(dtype, T => Self::tensor::<T>(shape.into(), |out| self.fill_open(out)))
    }

    /// Standard normal values.
    #[track_caller]
    pub fn normal(&mut self, shape: impl Into<Shape>, dtype: DType) -> Tensor {
        if let Some(gpu) = Self::device_for(dtype) {
            return self.drawn(gpu, Law::Normal, shape.into(), dtype);
        }
        with_float!(dtype, T => Self::tensor::<T>(shape.into(), |out| self.fill_normal(out)))
    }

    /// −1 or 1, each with probability ½ (Hutchinson's probe vectors).
    #[track_caller]
    pub fn rademacher(&mut self, shape: impl Into<Shape>, dtype: DType) -> Tensor {
        if let Some(gpu) = Self::device_for(dtype) {
            return self.drawn(gpu, Law::Rademacher, shape.into(), dtype);
        }
        with_float!(dtype, T => Self::tensor::<T>(shape.into(), |out| {
            let (plus, minus) = (<T as Plain>::from_f64(1.0), <T as Plain>::from_f64(-1.0));
            self.fill(out, #[inline(always)] |w| w.map(|w| if w >> 31 == 0 { plus } else { minus }));
        }))
    }

    /// 1 with probability `p` (to within 2^-33), else 0.
    ///
    /// # Panics
    /// When `p` is not in [0, 1].
    #[track_caller]
    pub fn bernoulli(&mut self, p: f64, shape: impl Into<Shape>, dtype: DType) -> Tensor {
        let threshold = chance(p);
        if let Some(gpu) = Self::device_for(dtype) {
            return self.drawn(gpu, Law::Bernoulli(threshold), shape.into(), dtype);
        }
        with_float!(dtype, T => Self::tensor::<T>(shape.into(), |out| {
            let (one, zero) = (<T as Plain>::from_f64(1.0), <T as Plain>::from_f64(0.0));
            self.fill(out, #[inline(always)] |w| w.map(|w| if (w as u64) < threshold { one } else { zero }));
        }))
    }

    /// Integers in `low..high` as i32, `low + floor(w · (high − low) / 2^32)`: no value's probability is off by
    /// more than 2^-32.
    ///
    /// # Panics
    /// When the range is empty.
    #[track_caller]
    pub fn randint(&mut self, low: i32, high: i32, shape: impl Into<Shape>) -> Tensor {
        assert!(low < high, "randint: the range {low}..{high} is empty");
        let range = high.wrapping_sub(low) as u32 as u64;
        if let Some(gpu) = Self::device_for(DType::I32) {
            return self.drawn_integers(gpu, low, range as u32, shape.into());
        }
        Self::tensor::<i32>(shape.into(), |out| {
            self.fill(
                out,
                #[inline(always)]
                |w| w.map(|w| low.wrapping_add(((w as u64 * range) >> 32) as i32)),
            );
        })
    }

    /// One category per row of unnormalised log-probabilities `logits` (..., K), as i32 of shape (...).
    ///
    /// Inverse distribution function with one word per row: the first k whose cumulated weight exceeds
    /// u · total, u in (0, 1). A category of logit −∞ is never drawn.
    ///
    /// # Panics
    /// When `logits` is not a float tensor of rank 1 or more with K > 0, or a row has a NaN, +∞ or only −∞ (on
    /// devices such a row gives −1).
    #[track_caller]
    pub fn categorical(&mut self, logits: &Tensor) -> Tensor {
        let (&k, rows) =
            logits.shape().split_last().expect("categorical: expected logits (..., K), got a scalar");
        assert!(k > 0, "categorical: expected at least one category, got {:?}", logits.shape());
        if let Some(gpu) = logits.gpu() {
            return self.drawn_categories(gpu, logits, k);
        }
        let mut words = vec![0u32; rows.iter().product()];
        self.fill_words(&mut words);
        with_float!(logits.dtype(), T => Self::tensor::<i32>(rows.into(), |out| {
            let x = logits.as_slice::<T>();
            par::chunks_mut(out, (par::GRAIN / k).max(1), |index, chunk| {
                let first = index * (par::GRAIN / k).max(1);
                let mut weights = vec![0.0; k];
                for (r, o) in (first..).zip(chunk) {
                    *o = pick(&x[r * k..][..k], f64::open(words[r]), &mut weights) as i32;
                }
            });
        }))
    }

    /// Fills with the raw words, for draws made elsewhere: word `i` belongs to element `i`.
    pub fn fill_words(&mut self, out: &mut [u32]) {
        self.fill(
            out,
            #[inline(always)]
            |w| w,
        );
    }

    /// A uniformly random order of `0..n`: Fisher & Yates (Durstenfeld 1964) with exactly uniform indices.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        let mut words = self.stream();
        for i in (1..n).rev() {
            order.swap(i, words.below(i as u64 + 1) as usize);
        }
        order
    }

    /// The next draw as a sequence of words with `rand`'s traits, for host code.
    pub fn stream(&mut self) -> WordStream {
        WordStream::new(self.take_draw())
    }
}

/// The index drawn by `u` from the softmax of `logits`; `weights` is scratch of the same length.
#[track_caller]
fn pick<T: Elem>(logits: &[T], u: f64, weights: &mut [f64]) -> usize {
    let top = logits.iter().fold(f64::NEG_INFINITY, |m, x| m.max(x.to_f64()));
    let top = T::Acc::from_f64(top);
    vectorize(
        #[inline(always)]
        || weights.iter_mut().zip(logits).for_each(|(w, x)| *w = (x.load() - top).exp().to_f64()),
    );
    let total: f64 = weights.iter().sum();
    assert!(total > 0.0, "categorical: a row has NaN, +inf or only -inf among its {} logits", logits.len());
    let (target, mut sum, mut last) = (u * total, 0.0, 0);
    for (k, &w) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
        sum += w;
        last = k;
        if sum > target {
            break;
        }
    }
    last
}

/// Four standard normal values from the words of one counter.
#[inline(always)]
fn normals<T: Draw>([w0, w1, w2, w3]: [u32; 4]) -> [T; 4] {
    let ((a, b), (c, d)) = (T::normal_pair(w0, w1), T::normal_pair(w2, w3));
    [a, b, c, d]
}

/// Elements of counters `first..` into `out`. Words of many counters are produced first, each of the four in its
/// own array, so that both loops vectorise; the last block is cut short.
#[inline(always)]
fn fill_chunk<T: Copy>(rng: &Philox, first: u32, out: &mut [T], f: impl Fn([u32; 4]) -> [T; 4]) {
    let mut words = [[0u32; BLOCK]; 4];
    for (block, out) in out.chunks_mut(4 * BLOCK).enumerate() {
        let base = first.wrapping_add((block * BLOCK) as u32);
        for i in 0..BLOCK {
            let w = rng.block(base.wrapping_add(i as u32));
            for j in 0..4 {
                words[j][i] = w[j];
            }
        }
        let (fours, rest) = out.as_chunks_mut::<4>();
        for (i, four) in fours.iter_mut().enumerate().take(BLOCK) {
            *four = f(of(&words, i));
        }
        if !rest.is_empty() {
            rest.copy_from_slice(&f(of(&words, fours.len()))[..rest.len()]);
        }
    }
}

/// The words of counter `i` of a block.
#[inline(always)]
fn of(words: &[[u32; BLOCK]; 4], i: usize) -> [u32; 4] {
    [words[0][i], words[1][i], words[2][i], words[3][i]]
}

#[cfg(test)]
mod tests;
