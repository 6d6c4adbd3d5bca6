//! The ops as methods and operators of [`Tensor`], for readable formulas.

use super::{binary, cast, reduce, shape, unary};
use crate::tensor::{DType, Shape, Tensor};

macro_rules! operator {
    ($trait:ident, $method:ident, $f:path) => {
        impl std::ops::$trait for &Tensor {
            type Output = Tensor;
            #[track_caller]
            fn $method(self, other: &Tensor) -> Tensor {
                $f(self, other)
            }
        }
    };
}
operator!(Add, add, binary::add);
operator!(Sub, sub, binary::sub);
operator!(Mul, mul, binary::mul);
operator!(Div, div, binary::div);

impl std::ops::Neg for &Tensor {
    type Output = Tensor;
    fn neg(self) -> Tensor {
        unary::neg(self)
    }
}

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) = $f:path;)*) => {
        impl Tensor {
            $($(#[$doc])*
            #[track_caller]
            pub fn $name(&self $(, $arg: $ty)*) -> Tensor {
                $f(self $(, $arg)*)
            })*
        }
    };
}
methods! {
    /// See [`unary::exp`].
    exp() = unary::exp;
    /// See [`unary::ln`].
    ln() = unary::ln;
    /// See [`unary::sqrt`].
    sqrt() = unary::sqrt;
    /// See [`unary::square`].
    square() = unary::square;
    /// See [`unary::abs`].
    abs() = unary::abs;
    /// See [`unary::recip`].
    recip() = unary::recip;
    /// See [`unary::tanh`].
    tanh() = unary::tanh;
    /// See [`unary::sigmoid`].
    sigmoid() = unary::sigmoid;
    /// See [`unary::softplus`].
    softplus() = unary::softplus;
    /// See [`unary::erf`].
    erf() = unary::erf;
    /// See [`unary::gelu`].
    gelu() = unary::gelu;
    /// See [`unary::relu`].
    relu() = unary::relu;
    /// See [`unary::affine`].
    affine(mul: f64, add: f64) = unary::affine;
    /// See [`unary::clamp`].
    clamp(low: f64, high: f64) = unary::clamp;
    /// See [`reduce::sum`].
    sum(axes: &[usize]) = reduce::sum;
    /// See [`reduce::mean`].
    mean(axes: &[usize]) = reduce::mean;
    /// See [`reduce::max`].
    max(axes: &[usize]) = reduce::max;
    /// See [`shape::permute`].
    permute(order: &[usize]) = shape::permute;
    /// See [`shape::narrow`].
    narrow(axis: usize, start: usize, len: usize) = shape::narrow;
    /// See [`shape::pad`].
    pad(axis: usize, before: usize, after: usize) = shape::pad;
    /// See [`shape::flip`].
    flip(axis: usize) = shape::flip;
    /// See [`cast::cast`].
    cast(dtype: DType) = cast::cast;
}

impl Tensor {
    /// See [`shape::reshape`].
    #[track_caller]
    pub fn reshape(&self, to: impl Into<Shape>) -> Tensor {
        shape::reshape(self, to)
    }

    /// See [`shape::broadcast_to`].
    #[track_caller]
    pub fn broadcast_to(&self, to: impl Into<Shape>) -> Tensor {
        shape::broadcast_to(self, to)
    }

    /// The sum of all elements, a scalar.
    #[track_caller]
    pub fn sum_all(&self) -> Tensor {
        reduce::sum(self, &(0..self.rank()).collect::<Vec<_>>())
    }

    /// The mean of all elements, a scalar.
    #[track_caller]
    pub fn mean_all(&self) -> Tensor {
        reduce::mean(self, &(0..self.rank()).collect::<Vec<_>>())
    }

    /// The sum over all axes but the first: (B, ...) to (B,).
    #[track_caller]
    pub fn sum_examples(&self) -> Tensor {
        reduce::sum(self, &(1..self.rank()).collect::<Vec<_>>())
    }
}
