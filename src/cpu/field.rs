//! Rows of a field f(t, x), a multilayer perceptron, together with a bilinear form in its Jacobian: the arithmetic
//! under [`crate::ops::ode_trace`] and [`crate::ops::ode_steps`], forward and backward, for one tile of rows that
//! stays in the second-level cache while it goes through all layers (and all steps of a solver).
//!
//! With H_0 = x, for layers l = 1..=L:  a_l = h_{l-1} W_l + b_l,  h_l = φ(a_l),  s_l = φ'(a_l), and beside it the
//! tangent  u_l = s_l ⊙ v_l,  v_{l+1} = u_l M_{l+1}.  Outputs f = h_L W_{L+1} + b_{L+1} and trace = Σ u_L ⊙ p.
//! The first layer's W has one more row, which multiplies t. M is W, or for the second layer the matrix `mix`.
//!
//! φ' and φ'' are functions of h, so h_l and v_l are all that the backward pass needs.

use super::gemm::{Mat, Packed, Word};
use super::simd;
use crate::tensor::Float;

/// Rows of a tile.
pub(crate) const ROWS: usize = 64;

/// A smooth activation whose derivatives are functions of its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Smooth {
    /// tanh a.
    Tanh,
    /// ln(1 + e^a).
    Softplus,
}

/// The parameters of a field, as memory: weights (In, Out), biases (Out).
pub(crate) struct Net<'a, T> {
    pub act: Smooth,
    /// Numbers per row of x.
    pub d: usize,
    /// Hidden units of the layers.
    pub widths: Vec<usize>,
    pub weights: Vec<&'a [T]>,
    pub biases: Vec<&'a [T]>,
    /// Stands in for the second layer's weights in the tangent.
    pub mix: Option<&'a [T]>,
}

/// The matrices of a [`Net`] or their transposes, which [`Products`] packs.
pub(crate) struct Mats<'a, T> {
    layers: Vec<Mat<'a, T>>,
    sizes: Vec<(usize, usize)>,
    mix: Option<Mat<'a, T>>,
}

/// The packed matrices: of the forward pass, or transposed for the backward pass.
pub(crate) struct Products<'a, T> {
    layers: Vec<Packed<'a, T>>,
    mix: Option<Packed<'a, T>>,
}

/// What one tile works on besides its inputs and outputs.
pub(crate) struct Scratch<T> {
    /// A row of the widest layer.
    sums: Vec<T>,
    /// Four tiles of the widest layer.
    tiles: [Vec<T>; 4],
}

impl<T: Float + Word<Acc = T>> Products<'_, T> {
    pub(crate) fn new<'a>(mats: &'a Mats<'a, T>, rows: usize) -> Products<'a, T> {
        let pack = |(mat, size): (&'a Mat<'a, T>, &(usize, usize))| Packed::new(mat, *size, rows);
        Products {
            layers: mats.layers.iter().zip(&mats.sizes).map(pack).collect(),
            mix: mats.mix.as_ref().map(|mix| pack((mix, &mats.sizes[1]))),
        }
    }
}

impl<'p, T> Products<'p, T> {
    /// The matrix that layer `l` multiplies tangents with.
    fn tangent(&self, l: usize) -> &Packed<'p, T> {
        self.mix.as_ref().filter(|_| l == 1).unwrap_or(&self.layers[l])
    }
}

impl<'a, T: Float + Word<Acc = T>> Net<'a, T> {
    /// Rows of W and columns of layer `l`, without the row of the time.
    fn size(&self, l: usize) -> (usize, usize) {
        let at = |l: usize| self.widths.get(l).copied().unwrap_or(self.d);
        (if l == 0 { self.d } else { at(l - 1) }, at(l))
    }

    fn hidden(&self) -> usize {
        self.widths.len()
    }

    fn widest(&self) -> usize {
        self.widths.iter().copied().max().unwrap_or(0).max(self.d)
    }

    /// The matrices as they are, or transposed for the backward pass.
    pub(crate) fn mats(&self, transposed: bool) -> Mats<'a, T> {
        let turn = |data: &'a [T], n: usize| if transposed { Mat::t(data, n) } else { Mat::new(data, n) };
        let sizes: Vec<_> = (0..=self.hidden()).map(|l| self.size(l)).collect();
        Mats {
            layers: self.weights.iter().zip(&sizes).map(|(w, (_, n))| turn(w, *n)).collect(),
            mix: self.mix.map(|mix| turn(mix, sizes[1].1)),
            sizes: sizes.into_iter().map(|(k, n)| if transposed { (n, k) } else { (k, n) }).collect(),
        }
    }

    /// Numbers per row that one evaluation keeps for its backward pass: h of all layers, then v of all but the first.
    pub(crate) fn saved(&self) -> usize {
        self.widths.iter().sum::<usize>() + self.widths[1..].iter().sum::<usize>()
    }

    /// Numbers in all parameters, in the order of [`Self::offsets`].
    pub(crate) fn params(&self) -> usize {
        let lens = self.weights.iter().chain(&self.biases).map(|p| p.len());
        lens.sum::<usize>() + self.mix.map_or(0, <[T]>::len)
    }

    /// Where the gradients of W_1, b_1, W_2, ... and last of `mix` begin.
    fn offsets(&self) -> (Vec<(usize, usize)>, usize) {
        let mut at = 0;
        let pairs = self.weights.iter().zip(&self.biases).map(|(w, b)| {
            let pair = (at, at + w.len());
            at += w.len() + b.len();
            pair
        });
        (pairs.collect(), at)
    }

    pub(crate) fn scratch(&self) -> Scratch<T> {
        let zero = T::from_f64(0.0);
        Scratch {
            sums: vec![zero; self.widest()],
            tiles: std::array::from_fn(|_| vec![zero; ROWS * self.widest()]),
        }
    }

    /// Where h_l begins in a tile's saved numbers; l = L is the end.
    fn h_at(&self, rows: usize, l: usize) -> usize {
        rows * self.widths[..l].iter().sum::<usize>()
    }

    /// Where v_l of the layers l > 0 begins behind the last h.
    fn v_at(&self, rows: usize, l: usize) -> usize {
        rows * self.widths[1..l].iter().sum::<usize>()
    }

    /// f and the trace of one tile; x (rows, D), v (rows, H_1), p (rows, H_L), f (rows, D), trace (rows).
    pub(crate) fn forward(
        &self,
        products: &Products<'_, T>,
        t: f64,
        x: &[T],
        [v, p]: [&[T]; 2],
        saved: &mut [T],
        f: &mut [T],
        trace: &mut [T],
        scratch: &mut Scratch<T>,
    ) {
        let (rows, hidden, d) = (trace.len(), self.hidden(), self.d);
        let Scratch { sums: bias, tiles: [u, next, ..] } = scratch;
        let bias = &mut bias[..self.widths[0]];
        self.bias_at(t, bias);
        let (hs, vs) = saved.split_at_mut(self.h_at(rows, hidden));
        for (l, &n) in self.widths.iter().enumerate() {
            let (k, _) = self.size(l);
            let (done, rest) = hs.split_at_mut(self.h_at(rows, l));
            let h = &mut rest[..rows * n];
            let input = if l == 0 { x } else { &done[self.h_at(rows, l - 1)..] };
            let offset = if l == 0 { &bias[..] } else { self.biases[l] };
            products.layers[l].multiply(rows, Mat::new(input, k), h, Some(offset), false);
            let v: &[T] = if l == 0 {
                v
            } else {
                let to = &mut vs[self.v_at(rows, l)..][..rows * n];
                products.tangent(l).multiply(rows, Mat::new(u, k), to, None, false);
                to
            };
            activate(self.act, h, v, &mut next[..rows * n]);
            std::mem::swap(u, next);
        }
        let n = self.widths[hidden - 1];
        dots(&u[..rows * n], p, n, trace);
        let h = Mat::new(&hs[self.h_at(rows, hidden - 1)..], n);
        products.layers[hidden].multiply(rows, h, &mut f[..rows * d], Some(self.biases[hidden]), false);
    }

    /// Given the gradients of f and the trace of a tile: that of x into `dx`; those of v, p and the parameters are
    /// added to `dv`, `dp` and `dparams` (nothing when that is empty).
    pub(crate) fn backward(
        &self,
        products: &Products<'_, T>,
        t: f64,
        x: &[T],
        [v, p]: [&[T]; 2],
        saved: &[T],
        [gf, gtrace]: [&[T]; 2],
        dx: &mut [T],
        [dv, dp]: [&mut [T]; 2],
        dparams: &mut [T],
        scratch: &mut Scratch<T>,
    ) {
        let (rows, last, d) = (gtrace.len(), self.hidden() - 1, self.d);
        let Scratch { sums, tiles: [da, du, other, u] } = scratch;
        let (offsets, mix_at) = self.offsets();
        let (hs, vs) = saved.split_at(self.h_at(rows, last + 1));
        let of = |l: usize| {
            let n = rows * self.widths[l];
            (&hs[self.h_at(rows, l)..][..n], if l == 0 { &v[..n] } else { &vs[self.v_at(rows, l)..][..n] })
        };
        // da is the gradient of h_l, then of a_l; du that of u_l, then of v_l.
        let n = self.widths[last];
        products.layers[last + 1].multiply(rows, Mat::new(gf, d), &mut da[..rows * n], None, false);
        spread(gtrace, p, n, &mut du[..rows * n]);
        if !dparams.is_empty() {
            let (w, b) = offsets[last + 1];
            add_product(rows, (of(last).0, n), (gf, d), &mut dparams[w..][..n * d]);
            column_sums(gf, &mut sums[..d]);
            add(&sums[..d], &mut dparams[b..][..d]);
        }
        if !dp.is_empty() {
            let (h, v) = of(last);
            derivative(self.act, h, v, &mut u[..rows * n]);
            add_scaled(gtrace, &u[..rows * n], n, dp);
        }
        for l in (0..=last).rev() {
            let ((k, n), (h, tangent)) = (self.size(l), of(l));
            pull_back(self.act, h, tangent, &mut da[..rows * n], &mut du[..rows * n]);
            if !dparams.is_empty() {
                let (w, b) = offsets[l];
                let input = if l == 0 { x } else { of(l - 1).0 };
                add_product(rows, (input, k), (&da[..rows * n], n), &mut dparams[w..][..k * n]);
                let sums = &mut sums[..n];
                column_sums(&da[..rows * n], sums);
                add(sums, &mut dparams[b..][..n]);
                if l == 0 {
                    let (time, t) = (&mut dparams[w + k * n..][..n], T::from_f64(t));
                    time.iter_mut().zip(sums).for_each(|(d, s)| *d = Float::mul_add(t, *s, *d));
                } else {
                    let (h, v) = of(l - 1);
                    derivative(self.act, h, v, &mut u[..rows * k]);
                    let at = if self.mix.is_some() && l == 1 { mix_at } else { w };
                    add_product(rows, (&u[..rows * k], k), (&du[..rows * n], n), &mut dparams[at..][..k * n]);
                }
            }
            if l == 0 {
                if !dv.is_empty() {
                    add(&du[..rows * n], dv);
                }
                products.layers[0].multiply(rows, Mat::new(&da[..rows * n], n), dx, None, false);
            } else {
                let (layer, tangent) = (&products.layers[l], products.tangent(l));
                layer.multiply(rows, Mat::new(&da[..rows * n], n), &mut other[..rows * k], None, false);
                std::mem::swap(da, other);
                tangent.multiply(rows, Mat::new(&du[..rows * n], n), &mut other[..rows * k], None, false);
                std::mem::swap(du, other);
            }
        }
    }

    /// b_1 + t times the last row of W_1.
    fn bias_at(&self, t: f64, out: &mut [T]) {
        let n = self.widths[0];
        let time = &self.weights[0][self.d * n..];
        let t = T::from_f64(t);
        for ((o, b), w) in out.iter_mut().zip(self.biases[0]).zip(time) {
            *o = Float::mul_add(*w, t, *b);
        }
    }
}

/// C += Aᵀ G for A (rows, k) and G (rows, n).
fn add_product<T: Float + Word<Acc = T>>(
    rows: usize,
    (a, k): (&[T], usize),
    (g, n): (&[T], usize),
    c: &mut [T],
) {
    let g = Mat::new(g, n);
    Packed::new(&g, (rows, n), 1).multiply(k, Mat::t(a, k), c, None, true);
}

/// φ with its derivatives.
trait Phi {
    /// φ(a) and φ'(a).
    fn value<T: Float>(a: T) -> (T, T);
    /// φ' and φ'' where φ is h.
    fn slopes<T: Float>(h: T) -> (T, T);
}

struct Tanh;
struct Softplus;

impl Phi for Tanh {
    #[inline(always)]
    fn value<T: Float>(a: T) -> (T, T) {
        let h = a.tanh();
        (h, T::from_f64(1.0) - h * h)
    }
    #[inline(always)]
    fn slopes<T: Float>(h: T) -> (T, T) {
        let s = T::from_f64(1.0) - h * h;
        (s, -(h + h) * s)
    }
}

impl Phi for Softplus {
    #[inline(always)]
    fn value<T: Float>(a: T) -> (T, T) {
        (a.softplus(), a.sigmoid())
    }
    #[inline(always)]
    fn slopes<T: Float>(h: T) -> (T, T) {
        let one = T::from_f64(1.0);
        let s = one - (-h).exp();
        (s, s * (one - s))
    }
}

/// Runs the loop with `$P` bound to the activation.
macro_rules! with_phi {
    ($T:ty, $act:expr, $P:ident => $body:expr) => {
        match $act {
            Smooth::Tanh => {
                type $P = Tanh;
                simd::vectorize_for::<$T, _>(
                    #[inline(always)]
                    || $body,
                )
            }
            Smooth::Softplus => {
                type $P = Softplus;
                simd::vectorize_for::<$T, _>(
                    #[inline(always)]
                    || $body,
                )
            }
        }
    };
}

/// h = φ(a) in place of a, u = φ'(a) v.
fn activate<T: Float>(act: Smooth, h: &mut [T], v: &[T], u: &mut [T]) {
    with_phi!(T, act, P => for ((h, v), u) in h.iter_mut().zip(v).zip(u) {
        let (y, slope) = P::value(*h);
        *h = y;
        *u = slope * *v;
    })
}

/// u = φ' v.
fn derivative<T: Float>(act: Smooth, h: &[T], v: &[T], u: &mut [T]) {
    with_phi!(T, act, P => for ((h, v), u) in h.iter().zip(v).zip(u) {
        *u = P::slopes(*h).0 * *v;
    })
}

/// From the gradients of h and u those of a and v: da = φ' dh + φ'' v du, dv = φ' du.
fn pull_back<T: Float>(act: Smooth, h: &[T], v: &[T], da: &mut [T], du: &mut [T]) {
    with_phi!(T, act, P => for (((h, v), da), du) in h.iter().zip(v).zip(da).zip(du) {
        let (first, second) = P::slopes(*h);
        *da = Float::mul_add(first, *da, second * *v * *du);
        *du = first * *du;
    })
}

/// out_r = Σ_j u_rj p_rj, in 16 interleaved sums.
fn dots<T: Float>(u: &[T], p: &[T], n: usize, out: &mut [T]) {
    simd::vectorize_for::<T, _>(
        #[inline(always)]
        || {
            for ((out, u), p) in out.iter_mut().zip(u.chunks_exact(n)).zip(p.chunks_exact(n)) {
                let mut lanes = [T::from_f64(0.0); 16];
                for (u, p) in u.chunks(16).zip(p.chunks(16)) {
                    lanes.iter_mut().zip(u).zip(p).for_each(|((l, u), p)| *l = Float::mul_add(*u, *p, *l));
                }
                *out = lanes.into_iter().sum();
            }
        },
    )
}

/// out_rj = g_r p_rj.
fn spread<T: Float>(g: &[T], p: &[T], n: usize, out: &mut [T]) {
    simd::vectorize_for::<T, _>(
        #[inline(always)]
        || {
            for ((g, p), out) in g.iter().zip(p.chunks_exact(n)).zip(out.chunks_exact_mut(n)) {
                out.iter_mut().zip(p).for_each(|(o, p)| *o = *g * *p);
            }
        },
    )
}

/// out_rj += g_r u_rj.
fn add_scaled<T: Float>(g: &[T], u: &[T], n: usize, out: &mut [T]) {
    simd::vectorize_for::<T, _>(
        #[inline(always)]
        || {
            for ((g, u), out) in g.iter().zip(u.chunks_exact(n)).zip(out.chunks_exact_mut(n)) {
                out.iter_mut().zip(u).for_each(|(o, u)| *o = Float::mul_add(*g, *u, *o));
            }
        },
    )
}

/// out_j = Σ_r x_rj for rows of `out.len()`.
fn column_sums<T: Float>(x: &[T], out: &mut [T]) {
    out.fill(T::from_f64(0.0));
    simd::vectorize_for::<T, _>(
        #[inline(always)]
        || x.chunks_exact(out.len()).for_each(|row| out.iter_mut().zip(row).for_each(|(o, x)| *o += *x)),
    )
}

/// out += x.
fn add<T: Float>(x: &[T], out: &mut [T]) {
    simd::vectorize_for::<T, _>(
        #[inline(always)]
        || out.iter_mut().zip(x).for_each(|(o, x)| *o += *x),
    )
}
