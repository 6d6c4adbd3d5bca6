//! Elementwise functions of one tensor: y_i = f(x_i).
//!
//! Gradients are written in primitives: dx = g f'(x).

use super::{Case, OpInfo, cast::cast, normal};
use crate::autograd::{self, Back, Recipe, record};
use crate::cpu::{par, simd};
use crate::cuda::{Gpu, Grid, Kernels};
use crate::tensor::{DType, Float, NewTensor, Plain, Tensor, with_arithmetic};

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "unary",
    family: "primitive",
    summary: "elementwise neg, exp, ln, sqrt, recip, abs, square, tanh, sigmoid, softplus, erf, gelu, relu, sign, floor, affine, clamp",
    cases,
};

const KERNELS: Kernels = Kernels::new("unary", ["unary_f32", "unary_bf16", "unary_f16"]);

/// The functions in the order of `kernels/unary.cu`.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
enum Function {
    neg,
    exp,
    ln,
    sqrt,
    recip,
    abs,
    square,
    tanh,
    sigmoid,
    softplus,
    erf,
    gelu,
    relu,
    sign,
    step,
    floor,
    affine,
    clamp,
}

/// f(x) on a device, with the two constants that `affine` and `clamp` take.
fn launch(gpu: Gpu, f: Function, x: &Tensor, [a, b]: [f64; 2]) -> Tensor {
    let y = gpu.empty(x.shape(), x.dtype());
    let (n, f, a, b) = (x.len() as i64, f as i32, a as f32, b as f32);
    gpu.launch(KERNELS.of(x.dtype()), Grid::packs(x.len(), x.dtype()), &[&y, x, &n, &f, &a, &b]);
    y.finish()
}

/// f of an unrecorded tensor, the half types through f32.
#[track_caller]
pub(crate) fn widened(x: &Tensor, f: impl FnOnce(&Tensor) -> Tensor) -> Tensor {
    match x.dtype() {
        DType::BF16 | DType::F16 => cast(&f(&cast(&x.detach(), DType::F32)), x.dtype()),
        _ => f(x),
    }
}

/// Applies `f` to each element of `x`, in the arithmetic type, vectorised and in parallel.
pub(crate) fn map<T: Float>(x: &Tensor, f: impl Fn(T) -> T + Sync + Send) -> Tensor {
    let input = x.as_slice::<T>();
    let mut out = NewTensor::<T>::new(x.shape());
    par::chunks_mut(out.as_mut(), par::GRAIN, |i, chunk| {
        let input = &input[i * par::GRAIN..][..chunk.len()];
        simd::vectorize_for::<T, _>(
            #[inline(always)]
            || {
                for (y, &x) in chunk.iter_mut().zip(input) {
                    *y = f(x);
                }
            },
        )
    });
    out.finish()
}

macro_rules! unary {
    ($(#[$doc:meta])* $name:ident, $f:expr, keep $grad:expr) => {
        unary!(@ $(#[$doc])* $name, $f, $grad, Recipe::primitive(stringify!($name)).keeping_outputs());
    };
    ($(#[$doc:meta])* $name:ident, $f:expr, $grad:expr) => {
        unary!(@ $(#[$doc])* $name, $f, $grad, Recipe::primitive(stringify!($name)));
    };
    (@ $(#[$doc:meta])* $name:ident, $f:expr, $grad:expr, $recipe:expr) => {
        $(#[$doc])*
        #[track_caller]
        pub fn $name(x: &Tensor) -> Tensor {
            #[inline(always)]
            fn f<F: Float>(x: F) -> F {
                let f: fn(F) -> F = $f;
                f(x)
            }
            let y = match x.gpu() {
                Some(gpu) => launch(gpu, Function::$name, x, [0.0; 2]),
                None => widened(x, |x| with_arithmetic!(x.dtype(), T => map::<T>(x, |x| f(x)))),
            };
            let saved = x.clone();
            let grad: fn(&Back, &Tensor) -> Tensor = $grad;
            let [y] = record($recipe, &[x], [y], move |back| vec![Some(grad(back, &saved))]);
            y
        }
    };
}

unary!(
    /// −x.
    neg, |x| -x, |b, _| neg(&b.grad(0))
);
unary!(
    /// e^x.
    exp, |x| x.exp(), keep |b, _| &b.grad(0) * b.output(0)
);
unary!(
    /// Natural logarithm.
    ln, |x| x.ln(), |b, x| &b.grad(0) / x
);
unary!(
    /// Square root.
    sqrt, |x| x.sqrt(), keep |b, _| &affine(&b.grad(0), 0.5, 0.0) / b.output(0)
);
unary!(
    /// 1 / x.
    recip, |x| F::from_f64(1.0) / x, keep |b, _| neg(&(&b.grad(0) * &square(b.output(0))))
);
unary!(
    /// |x|, with derivative 0 at 0.
    abs, |x| x.abs(), |b, x| &b.grad(0) * &sign(x)
);
unary!(
    /// x².
    square, |x| x * x, |b, x| &affine(&b.grad(0), 2.0, 0.0) * x
);
unary!(
    /// Hyperbolic tangent.
    tanh, |x| x.tanh(), keep |b, _| &b.grad(0) * &affine(&square(b.output(0)), -1.0, 1.0)
);
unary!(
    /// 1 / (1 + e^−x).
    sigmoid, |x| x.sigmoid(), keep |b, _| {
        let y = b.output(0);
        &b.grad(0) * &(y * &affine(y, -1.0, 1.0))
    }
);
unary!(
    /// ln(1 + e^x), without overflow.
    softplus, |x| x.softplus(), |b, x| &b.grad(0) * &sigmoid(x)
);
unary!(
    /// The error function 2 / sqrt(π) ∫_0^x e^{−t²} dt.
    erf, |x| x.erf(), |b, x| {
        &b.grad(0) * &affine(&exp(&neg(&square(x))), std::f64::consts::FRAC_2_SQRT_PI, 0.0)
    }
);
unary!(
    /// max(x, 0), with derivative 0 at 0.
    relu, |x| x.max(F::from_f64(0.0)), |b, x| &b.grad(0) * &step(x)
);
unary!(
    /// −1, 0 or 1; derivative 0.
    sign, |x| {
        let (zero, one) = (F::from_f64(0.0), F::from_f64(1.0));
        if x > zero { one } else if x < zero { -one } else { zero }
    }, |_, x| x.zeros_like()
);
unary!(
    /// 1 where x > 0, else 0; derivative 0.
    step, |x| if x > F::from_f64(0.0) { F::from_f64(1.0) } else { F::from_f64(0.0) },
    |_, x| x.zeros_like()
);
unary!(
    /// The largest integer not above x; derivative 0.
    floor, |x| F::from_f64(x.to_f64().floor()), |_, x| x.zeros_like()
);

/// x Φ(x) with Φ the distribution function of the standard normal (Hendrycks & Gimpel 2016, "Gaussian error linear
/// units", the exact form); derivative Φ(x) + x φ(x) in one pass.
#[track_caller]
pub fn gelu(x: &Tensor) -> Tensor {
    if autograd::in_higher_order() {
        return composite_gelu(x);
    }
    let y = match x.gpu() {
        Some(gpu) => launch(gpu, Function::gelu, x, [0.0; 2]),
        None => widened(x, |x| with_arithmetic!(x.dtype(), T => map::<T>(x, |x| x * cdf(x)))),
    };
    let saved = x.detach();
    let [y] = record(Recipe::fused("gelu"), &[x], [y], move |b| {
        let g = b.grad(0);
        if let Some(gpu) = g.gpu() {
            return vec![Some(super::binary::launch(gpu, super::binary::Function::gelu_grad, &g, &saved))];
        }
        let g = super::binary::widened(&g, &saved, |g, x| {
            with_arithmetic!(g.dtype(), T => super::binary::zip::<T>("gelu", g, x, |g, x| {
                let density = Float::exp(x * x * T::from_f64(-0.5)) * T::from_f64(0.398_942_280_401_432_7);
                g * (cdf(x) + x * density)
            }))
        });
        vec![Some(g)]
    });
    y
}

/// Φ(x).
#[inline(always)]
pub(crate) fn cdf<T: Float>(x: T) -> T {
    let half = T::from_f64(0.5);
    (x * T::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf().mul_add(half, half)
}

/// [`gelu`] in primitives.
pub fn composite_gelu(x: &Tensor) -> Tensor {
    x * &affine(&erf(&affine(x, std::f64::consts::FRAC_1_SQRT_2, 0.0)), 0.5, 0.5)
}

/// [`relu`] for consumers that all zero the gradient where this is 0 (`ConvSpec::gates_input`): its own backward is
/// nothing.
pub(crate) fn gated_relu(x: &Tensor) -> Tensor {
    if super::by_composite(x) {
        return relu(x);
    }
    let y = autograd::no_grad(|| relu(x));
    let [y] = record(Recipe::fused("gated_relu"), &[x], [y], |b| vec![Some(b.grad(0))]);
    y
}

/// `mul` · x + `add`.
#[track_caller]
pub fn affine(x: &Tensor, mul: f64, add: f64) -> Tensor {
    let y = match x.gpu() {
        Some(gpu) => launch(gpu, Function::affine, x, [mul, add]),
        None => widened(x, |x| {
            with_arithmetic!(x.dtype(), T => {
                let (m, a) = (T::from_f64(mul), T::from_f64(add));
                map::<T>(x, move |x| Float::mul_add(x, m, a))
            })
        }),
    };
    let [y] =
        record(Recipe::primitive("affine"), &[x], [y], move |b| vec![Some(affine(&b.grad(0), mul, 0.0))]);
    y
}

/// min(max(x, `low`), `high`); the derivative is 1 strictly inside and 0 elsewhere.
#[track_caller]
pub fn clamp(x: &Tensor, low: f64, high: f64) -> Tensor {
    let y = match x.gpu() {
        Some(gpu) => launch(gpu, Function::clamp, x, [low, high]),
        None => widened(x, |x| {
            with_arithmetic!(x.dtype(), T => {
                let (lo, hi) = (T::from_f64(low), T::from_f64(high));
                map::<T>(x, move |x| if x < lo { lo } else if x > hi { hi } else { x })
            })
        }),
    };
    let saved = x.clone();
    let [y] = record(Recipe::primitive("clamp"), &[x], [y], move |b| {
        let inside = &step(&affine(&saved, 1.0, -low)) * &step(&affine(&saved, -1.0, high));
        vec![Some(&b.grad(0) * &inside)]
    });
    y
}

fn cases() -> Vec<Case> {
    type F = fn(&Tensor) -> Tensor;
    let smooth: [(&str, F); 10] = [
        ("erf", erf),
        ("gelu", gelu),
        ("neg", neg),
        ("exp", exp),
        ("square", square),
        ("tanh", tanh),
        ("sigmoid", sigmoid),
        ("softplus", softplus),
        ("relu", relu),
        ("abs", abs),
    ];
    let positive: [(&str, F); 3] = [("ln", ln), ("sqrt", sqrt), ("recip", recip)];
    let mut cases = Vec::new();
    for (k, (name, f)) in smooth.into_iter().enumerate() {
        for shape in [&[1][..], &[3, 7], &[2, 5, 33]] {
            // Away from the kink of relu and abs, where differences would straddle it.
            let x = normal(k as u64, shape);
            let x = &x + &affine(&sign(&x), 0.05, 0.0);
            let case = Case::new(format!("{name} {shape:?}"), vec![x], move |x| vec![f(&x[0])]);
            cases.push(if name == "gelu" { case.composite(|x| vec![composite_gelu(&x[0])]) } else { case });
        }
        cases.push(
            Case::new(format!("{name} large"), vec![normal(9, &[4, 100_003])], move |x| vec![f(&x[0])])
                .order(0)
                .bench(8 * 400_012, 400_012)
                .backward(12 * 400_012, 2 * 400_012),
        );
    }
    for (name, f) in positive {
        let x = affine(&square(&normal(3, &[4, 19])), 1.0, 0.1);
        cases.push(Case::new(name, vec![x], move |x| vec![f(&x[0])]));
    }
    for (name, f) in [("sign", sign as F), ("step", step), ("floor", floor)] {
        cases.push(Case::new(name, vec![normal(4, &[5, 17])], move |x| vec![f(&x[0])]).order(1));
    }
    cases.push(Case::new("affine", vec![normal(5, &[5, 17])], |x| vec![affine(&x[0], -1.5, 0.25)]));
    cases.push(Case::new("clamp", vec![normal(6, &[5, 17])], |x| vec![clamp(&x[0], -0.5, 0.7)]));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extreme_values_stay_defined() {
        let x = Tensor::from_slice(&[-1e30f32, -200.0, 0.0, 200.0, 1e30], [5]);
        assert_eq!(sigmoid(&x).as_slice::<f32>(), &[0.0, 0.0, 0.5, 1.0, 1.0]);
        assert_eq!(softplus(&x).as_slice::<f32>()[3..], [200.0, 1e30]);
        assert_eq!(tanh(&x).as_slice::<f32>(), &[-1.0, -1.0, 0.0, 1.0, 1.0]);
        assert_eq!(relu(&x).as_slice::<f32>(), &[0.0, 0.0, 0.0, 200.0, 1e30]);
    }
}
