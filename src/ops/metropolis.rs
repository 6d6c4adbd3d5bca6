//! A leapfrog step of Hamiltonian dynamics and the decision on its end (Duane et al. 1987; Neal 2011), for chains
//! side by side, x (C, ...); unrecorded. With the potential's gradient g at x and a momentum p,
//! ```text
//! leapfrog:    p½ = p − ε/2 g,  x' = x + ε p½
//! metropolis:  accepted with min(1, e^{H − H'}),  H = U + ½ |p|²          (C,)
//! ```
//! On a bounded range x' is folded back at the walls, as often as needed, and the momentum turned as often, which keeps
//! volume and reversibility. Between the two lies the other half of the momentum's step, p½ − ε/2 g(x'). One leapfrog
//! step is MALA (Rossky et al. 1978; Roberts & Tweedie 1996).
//!
//! Energies are compared as (U − U') + ½ Σ (p − p')(p + p'), which keeps the digits of large potentials. 20 bytes and
//! 10 flops per number for a leapfrog step, 32 bytes and 4 flops for a decision.

use super::{Case, OpInfo, binary, normal, shape, unary};
use crate::autograd;
use crate::cpu::par;
use crate::cuda::{self, Grid, Kernels};
use crate::random::Philox;
use crate::tensor::{Elem, NewTensor, Plain, Tensor, with_float};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "metropolis",
    family: "fused",
    summary: "a leapfrog step with walls, and the Metropolis decision between two places of every chain",
    cases,
};

const LEAPFROG: Kernels = Kernels::new("metropolis", ["leapfrog_f32", "leapfrog_bf16", "leapfrog_f16"]);
const DECIDE: Kernels = Kernels::new("metropolis", ["metropolis_f32", "metropolis_bf16", "metropolis_f16"]);

/// Where chains are: x (C, ...), the potential U (C,) there, and its gradient, shaped as x.
#[derive(Debug, Clone)]
pub struct Place {
    /// x.
    pub x: Tensor,
    /// U(x).
    pub u: Tensor,
    /// ∇U(x).
    pub gradient: Tensor,
}

#[track_caller]
fn alike(op: &str, like: &Tensor, others: &[&Tensor]) {
    for t in others {
        let (x, y) = ((like.shape(), like.dtype()), (t.shape(), t.dtype()));
        assert!(x == y && like.rank() > 0, "{op}: {x:?} beside {y:?}");
    }
}

/// x' and p½ (turned at walls) of a step of length `epsilon`, with x' held in `range`.
///
/// # Panics
/// When shapes or dtypes differ, or the range is empty.
#[track_caller]
pub fn leapfrog(x: &Tensor, p: &Tensor, gradient: &Tensor, epsilon: f64, range: [f64; 2]) -> [Tensor; 2] {
    alike("leapfrog", x, &[p, gradient]);
    assert!(range[0] < range[1], "leapfrog: the range {range:?} is empty");
    if let Some(gpu) = cuda::on("leapfrog", &[x, p, gradient]) {
        let [to, turned] = [(); 2].map(|()| gpu.empty(x.shape(), x.dtype()));
        let [low, high] = range.map(|wall| wall as f32);
        let (n, epsilon) = (x.len() as i64, epsilon as f32);
        let kernel = LEAPFROG.of(x.dtype());
        let grid = Grid::packs(x.len(), x.dtype());
        gpu.launch(kernel, grid, &[&to, &turned, x, p, gradient, &n, &epsilon, &low, &high]);
        return [to.finish(), turned.finish()];
    }
    with_float!(x.dtype(), T => {
        type Acc = <T as Elem>::Acc;
        let (xs, ps, gs) = (x.as_slice::<T>(), p.as_slice::<T>(), gradient.as_slice::<T>());
        let (mut to, mut turned) = (NewTensor::<T>::new(x.shape()), NewTensor::<T>::new(x.shape()));
        let [half, whole] = [-0.5 * epsilon, epsilon].map(<Acc as Plain>::from_f64);
        par::chunks_mut2(to.as_mut(), par::GRAIN, turned.as_mut(), par::GRAIN, |i, to, turned| {
            let at = i * par::GRAIN;
            for (j, (to, turned)) in to.iter_mut().zip(turned).enumerate() {
                let p = gs[at + j].load() * half + ps[at + j].load();
                let (x, flipped) = folded((p * whole + xs[at + j].load()).to_f64(), range);
                *to = T::store(Acc::from_f64(x));
                *turned = T::store(if flipped { -p } else { p });
            }
        });
        [to.finish(), turned.finish()]
    })
}

/// x folded back into the range, and whether an odd number of walls was met.
fn folded(x: f64, [low, high]: [f64; 2]) -> (f64, bool) {
    if x >= low && x <= high || x.is_nan() {
        return (x, false);
    }
    match (low.is_finite(), high.is_finite()) {
        (true, false) => (low + (low - x), true),
        (false, _) => (high - (x - high), true),
        (true, true) => {
            let width = high - low;
            let turns = (x - low) / (2.0 * width);
            let part = turns - turns.floor();
            let odd = part > 0.5;
            ((low + 2.0 * width * if odd { 1.0 - part } else { part }).clamp(low, high), odd)
        }
    }
}

/// Per chain the new place or the old one, and the probability (C,) of the new one; `p` and `p_new` are the momenta
/// there. Takes one draw of `rng`. A new energy that is not finite is refused.
///
/// # Panics
/// When shapes or dtypes differ.
#[track_caller]
pub fn metropolis(old: &Place, new: &Place, p: &Tensor, p_new: &Tensor, rng: &mut Philox) -> (Place, Tensor) {
    alike("metropolis", &old.x, &[&new.x, &old.gradient, &new.gradient, p, p_new]);
    alike("metropolis", &old.u, &[&new.u]);
    let (chains, dtype) = (old.x.shape()[0], old.x.dtype());
    assert_eq!((old.u.shape(), old.u.dtype()), (&[chains][..], dtype), "metropolis: the potential");
    let n = old.x.len() / chains.max(1);
    let inputs = [&old.x, &new.x, &old.gradient, &new.gradient, &old.u, &new.u, p, p_new];
    if let Some(gpu) = cuda::on("metropolis", &inputs) {
        let [x, gradient] = [(); 2].map(|()| gpu.empty(old.x.shape(), dtype));
        let [u, odds] = [(); 2].map(|()| gpu.empty([chains], dtype));
        let draw = rng.device_draw();
        let mut args: Vec<&dyn cuda::Arg> = vec![&x, &gradient, &u, &odds];
        args.extend(inputs.iter().map(|t| *t as &dyn cuda::Arg));
        let size = n as i64;
        args.extend([&size as &dyn cuda::Arg, &draw]);
        gpu.launch(DECIDE.of(dtype), Grid::new(chains, 256), &args);
        return (Place { x: x.finish(), u: u.finish(), gradient: gradient.finish() }, odds.finish());
    }
    let mut uniform = vec![0.0f64; chains];
    rng.fill_open(&mut uniform);
    with_float!(dtype, T => {
        let [from, to] = [p, p_new].map(|t| t.as_slice::<T>());
        let [u, u_new] = [&old.u, &new.u].map(|t| t.as_slice::<T>());
        let odds: Vec<f64> = (0..chains).map(|c| {
            let pairs = from[c * n..][..n].iter().zip(&to[c * n..][..n]);
            let kinetic: f64 = pairs.map(|(a, b)| (a.to_f64() - b.to_f64()) * (a.to_f64() + b.to_f64())).sum();
            let gain = (u[c].to_f64() - u_new[c].to_f64()) + 0.5 * kinetic;
            if gain.is_nan() { 0.0 } else { gain.min(0.0).exp() }
        }).collect();
        let chosen = |a: &Tensor, b: &Tensor| {
            let (a, b, mut out) = (a.as_slice::<T>(), b.as_slice::<T>(), NewTensor::<T>::new(a.shape()));
            let each = a.len() / chains.max(1);
            for (c, out) in out.as_mut().chunks_mut(each.max(1)).enumerate() {
                out.copy_from_slice(&if uniform[c] < odds[c] { b } else { a }[c * each..][..each]);
            }
            out.finish()
        };
        let place = Place {
            x: chosen(&old.x, &new.x),
            u: chosen(&old.u, &new.u),
            gradient: chosen(&old.gradient, &new.gradient),
        };
        (place, Tensor::from_fn([chains], |c| <T as Plain>::from_f64(odds[c])))
    })
}

/// [`leapfrog`] in primitives.
pub fn composite_leapfrog(
    x: &Tensor,
    p: &Tensor,
    gradient: &Tensor,
    epsilon: f64,
    [low, high]: [f64; 2],
) -> [Tensor; 2] {
    let p = p + &unary::affine(gradient, -0.5 * epsilon, 0.0);
    let x = x + &unary::affine(&p, epsilon, 0.0);
    let width = 2.0 * (high - low);
    let turns = unary::affine(&x, 1.0 / width, -low / width);
    let part = &turns - &unary::floor(&turns);
    let back = binary::minimum(&part, &unary::affine(&part, -1.0, 1.0));
    let odd = unary::step(&unary::affine(&part, 1.0, -0.5));
    [unary::affine(&back, width, low), &p * &unary::affine(&odd, -2.0, 1.0)]
}

/// [`metropolis`] in primitives.
pub fn composite(old: &Place, new: &Place, p: &Tensor, p_new: &Tensor, rng: &mut Philox) -> (Place, Tensor) {
    let chains = old.u.len();
    let kinetic = |p: &Tensor| unary::affine(&unary::square(p).sum_examples(), 0.5, 0.0);
    let gain = &(&old.u - &new.u) + &(&kinetic(p) - &kinetic(p_new));
    let odds = unary::exp(&unary::clamp(&gain, f64::MIN, 0.0));
    let uniform = rng.uniform_open([chains], odds.dtype());
    let accept = binary::gt(&odds, &uniform);
    let refuse = unary::affine(&accept, -1.0, 1.0);
    let choose = |a: &Tensor, b: &Tensor| {
        let mut column = vec![1; a.rank()];
        column[0] = chains;
        let mask = |m: &Tensor| shape::reshape(m, &column[..]).broadcast_to(a.shape());
        binary::add(&binary::keep_where(&mask(&refuse), a), &binary::keep_where(&mask(&accept), b))
    };
    let place = Place {
        x: choose(&old.x, &new.x),
        u: choose(&old.u, &new.u),
        gradient: choose(&old.gradient, &new.gradient),
    };
    (place, odds)
}

fn cases() -> Vec<Case> {
    let run = |x: &[Tensor], f: fn(&Place, &Place, &Tensor, &Tensor, &mut Philox) -> (Place, Tensor)| {
        let [old, new] =
            [0, 1].map(|i| Place { x: x[i].clone(), u: x[4 + i].clone(), gradient: x[2 + i].clone() });
        let (place, odds) = f(&old, &new, &x[6], &x[7], &mut Philox::new(5));
        vec![place.x, place.u, place.gradient, odds]
    };
    let mut cases = Vec::new();
    for shape in [&[1, 1][..], &[5, 7], &[3, 4, 33]] {
        let inputs: Vec<Tensor> = (0..3).map(|i| normal(i, shape)).collect();
        let walls = [-0.6, 0.9];
        cases.push(
            Case::new(format!("leapfrog {shape:?}"), inputs, move |x| {
                leapfrog(&x[0], &x[1], &x[2], 0.7, walls).into()
            })
            .composite(move |x| composite_leapfrog(&x[0], &x[1], &x[2], 0.7, walls).into())
            .order(0),
        );
        let chains = &shape[..1];
        let inputs = [shape, shape, shape, shape, chains, chains, shape, shape];
        let inputs: Vec<Tensor> = inputs.iter().zip(10..).map(|(s, i)| normal(i, s)).collect();
        cases.push(
            Case::new(format!("metropolis {shape:?}"), inputs, move |x| run(x, metropolis))
                .composite(move |x| run(x, composite))
                .order(0),
        );
    }
    let shape = [256, 784];
    let n = 256 * 784;
    let inputs: Vec<Tensor> = (0..3).map(|i| normal(i, &shape)).collect();
    let everywhere = [f64::NEG_INFINITY, f64::INFINITY];
    cases.push(
        Case::new("leapfrog 256 x 784", inputs, move |x| {
            autograd::no_grad(|| leapfrog(&x[0], &x[1], &x[2], 0.1, everywhere).into())
        })
        .order(0)
        .bench(20 * n, 10 * n),
    );
    let chains = [256];
    let inputs = [&shape[..], &shape, &shape, &shape, &chains, &chains, &shape, &shape];
    let inputs: Vec<Tensor> = inputs.iter().zip(10..).map(|(s, i)| normal(i, s)).collect();
    let run = move |x: &[Tensor]| run(x, metropolis);
    cases.push(Case::new("metropolis 256 x 784", inputs, run).order(0).bench(24 * n, 4 * n));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn walls_turn_what_meets_them() {
        assert_eq!(folded(0.5, [0.0, 1.0]), (0.5, false));
        assert_eq!(folded(1.25, [0.0, 1.0]), (0.75, true));
        assert_eq!(folded(-0.25, [0.0, 1.0]), (0.25, true));
        assert_eq!(folded(2.25, [0.0, 1.0]), (0.25, false));
        assert_eq!(folded(-1.5, [-1.0, f64::INFINITY]), (-0.5, true));
        assert_eq!(folded(3.0, [f64::NEG_INFINITY, 1.0]), (-1.0, true));
    }

    #[test]
    fn energies_that_are_not_finite_are_refused() {
        let place = |x: f64, u: f64| Place {
            x: Tensor::full(x, [1, 2], DType::F32),
            u: Tensor::full(u, [1], DType::F32),
            gradient: Tensor::zeros([1, 2], DType::F32),
        };
        let p = Tensor::zeros([1, 2], DType::F32);
        for u in [f64::INFINITY, f64::NAN] {
            let (kept, odds) = metropolis(&place(1.0, 0.0), &place(2.0, u), &p, &p, &mut Philox::new(1));
            assert_eq!((kept.x.to_f64_vec(), odds.item()), (vec![1.0, 1.0], 0.0));
        }
    }
}
