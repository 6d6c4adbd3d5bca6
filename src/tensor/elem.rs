//! Element types. [`Plain`] is anything a tensor can hold, [`Elem`] what one can calculate with, and
//! [`Float`] the two types in which the calculating is done.

use crate::cpu::math;
use half::{bf16, f16};

/// The element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum DType {
    F32,
    F64,
    BF16,
    F16,
    U8,
    I32,
}

impl DType {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::BF16 | DType::F16 => 2,
            DType::U8 => 1,
        }
    }

    /// Whether the type is a floating-point one.
    pub fn is_float(self) -> bool {
        !matches!(self, DType::U8 | DType::I32)
    }
}

/// Anything a tensor can hold.
pub trait Plain: bytemuck::Pod + PartialOrd + Send + Sync {
    /// The dtype of tensors of this element.
    const DTYPE: DType;
    /// The nearest value of this type (integers saturate).
    fn from_f64(x: f64) -> Self;
    /// The value as `f64`.
    fn to_f64(self) -> f64;
}

/// A floating-point element: stored as `Self`, calculated in `Acc` (f32, or f64 for f64).
pub trait Elem: Plain {
    /// The type of arithmetic and accumulation.
    type Acc: Float;
    /// Widens to the arithmetic type.
    fn load(self) -> Self::Acc;
    /// Rounds to the stored type.
    fn store(x: Self::Acc) -> Self;
}

/// The two types of arithmetic. The transcendental functions of `f32` are branch-free polynomials that
/// vectorise (see [`crate::cpu::math`] for their errors); those of `f64` are the standard library's.
pub trait Float:
    Elem<Acc = Self>
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::iter::Sum
{
    /// `self * a + b`, rounded once.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// e^x.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// 1 / (1 + e^-x).
    fn sigmoid(self) -> Self;
    /// ln(1 + e^x), without overflow.
    fn softplus(self) -> Self;
    /// The error function.
    fn erf(self) -> Self;
    /// The larger of the two (the other one when one is NaN).
    fn max(self, other: Self) -> Self;
    /// The smaller of the two (the other one when one is NaN).
    fn min(self, other: Self) -> Self;
}

macro_rules! plain {
    ($t:ty, $d:ident, $from:expr, $to:expr) => {
        impl Plain for $t {
            const DTYPE: DType = DType::$d;
            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                $from(x)
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                $to(self)
            }
        }
    };
}
plain!(f32, F32, |x| x as f32, |x| x as f64);
plain!(f64, F64, |x| x, |x| x);
plain!(bf16, BF16, bf16::from_f64, bf16::to_f64);
plain!(f16, F16, f16::from_f64, f16::to_f64);
plain!(u8, U8, |x| x as u8, |x| x as f64);
plain!(i32, I32, |x| x as i32, |x| x as f64);

macro_rules! elem {
    ($t:ty, $acc:ty, $load:expr, $store:expr) => {
        impl Elem for $t {
            type Acc = $acc;
            #[inline(always)]
            fn load(self) -> $acc {
                $load(self)
            }
            #[inline(always)]
            fn store(x: $acc) -> Self {
                $store(x)
            }
        }
    };
}
elem!(f32, f32, |x| x, |x| x);
elem!(f64, f64, |x| x, |x| x);
elem!(bf16, f32, math::bf16_to_f32, math::f32_to_bf16);
elem!(f16, f32, math::f16_to_f32, math::f32_to_f16);

impl Float for f32 {
    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        f32::mul_add(self, a, b)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        f32::abs(self)
    }
    #[inline(always)]
    fn exp(self) -> Self {
        math::exp(self)
    }
    #[inline(always)]
    fn ln(self) -> Self {
        math::ln(self)
    }
    #[inline(always)]
    fn tanh(self) -> Self {
        math::tanh(self)
    }
    #[inline(always)]
    fn sigmoid(self) -> Self {
        math::sigmoid(self)
    }
    #[inline(always)]
    fn softplus(self) -> Self {
        math::softplus(self)
    }
    #[inline(always)]
    fn erf(self) -> Self {
        math::erf(self)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        if self > other || other.is_nan() { self } else { other }
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        if self < other || other.is_nan() { self } else { other }
    }
}

impl Float for f64 {
    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        f64::mul_add(self, a, b)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        f64::abs(self)
    }
    fn exp(self) -> Self {
        f64::exp(self)
    }
    fn ln(self) -> Self {
        f64::ln(self)
    }
    fn tanh(self) -> Self {
        f64::tanh(self)
    }
    fn sigmoid(self) -> Self {
        1.0 / (1.0 + f64::exp(-self))
    }
    fn softplus(self) -> Self {
        f64::max(self, 0.0) + f64::exp(-f64::abs(self)).ln_1p()
    }
    fn erf(self) -> Self {
        math::erf_f64(self)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        f64::max(self, other)
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        f64::min(self, other)
    }
}

/// Runs the body with `$T` bound to the floating-point element type of `$dtype`.
macro_rules! with_float {
    ($dtype:expr, $T:ident => $body:expr) => {{
        use $crate::tensor::DType;
        match $dtype {
            DType::F32 => {
                type $T = f32;
                $body
            }
            DType::F64 => {
                type $T = f64;
                $body
            }
            DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            DType::F16 => {
                type $T = half::f16;
                $body
            }
            other => panic!("expected a floating-point tensor, got {other:?}"),
        }
    }};
}
pub(crate) use with_float;

/// As [`with_float`], but only for the two arithmetic types: ops widen the half types first. Inside `$T` is f32 or f64
/// itself, so `x.exp()` is the standard library's scalar function; `Float::exp(x)` is ours, which becomes vectors.
macro_rules! with_arithmetic {
    ($dtype:expr, $T:ident => $body:expr) => {{
        use $crate::tensor::DType;
        match $dtype {
            DType::F32 => {
                type $T = f32;
                $body
            }
            DType::F64 => {
                type $T = f64;
                $body
            }
            other => panic!("expected an f32 or f64 tensor, got {other:?}"),
        }
    }};
}
pub(crate) use with_arithmetic;

/// Runs the body with `$T` bound to the element type of `$dtype`, integers included.
macro_rules! with_plain {
    ($dtype:expr, $T:ident => $body:expr) => {{
        use $crate::tensor::DType;
        match $dtype {
            DType::F32 => {
                type $T = f32;
                $body
            }
            DType::F64 => {
                type $T = f64;
                $body
            }
            DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            DType::F16 => {
                type $T = half::f16;
                $body
            }
            DType::U8 => {
                type $T = u8;
                $body
            }
            DType::I32 => {
                type $T = i32;
                $body
            }
        }
    }};
}
pub(crate) use with_plain;
