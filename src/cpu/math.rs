//! Branch-free `f32` functions that vectorise inside [`crate::cpu::simd::vectorize`]: integer tricks for the
//! exponent, fused multiply-adds for the polynomial, selections for the ends; no tables and no library calls.
//! `mul_add` rounds once on every machine, so a scalar call and every vector width give the same bits.
//!
//! The stated errors are maxima over all 2^32 arguments, in units in the last place of the exact result.
//! Polynomials were fitted here (Lawson's reweighted least squares on Chebyshev points, coefficients rounded to
//! f32 one by one); reductions follow Cody & Waite 1980 and Muller, "Elementary Functions", 2016.

use half::{bf16, f16};

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts; the first has 15 bits, so that n·LN2_HI is exact for every exponent n.
const LN2_HI: f32 = 0.693_145_75;
const LN2_LO: f32 = 1.428_606_8e-6;
/// Adding and subtracting 1.5·2^23 rounds to an integer, which then stands in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;

/// 2^n for −126 ≤ n ≤ 127.
#[inline(always)]
fn pow2(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// x = n ln 2 + r with |r| ≤ 0.3466: returns n and e^r − 1.
#[inline(always)]
fn reduce_exp(x: f32) -> (i32, f32) {
    let shifted = x.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, x));
    let q = 1.393_379e-3_f32;
    let q = q.mul_add(r, 8.366_716e-3);
    let q = q.mul_add(r, 4.166_647_8e-2);
    let q = q.mul_add(r, 1.666_654_2e-1);
    let q = q.mul_add(r, 0.5);
    ((shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32), (r * r).mul_add(q, r))
}

/// x within `[low, high]`; NaN stays NaN.
#[inline(always)]
fn clamp(x: f32, low: f32, high: f32) -> f32 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

/// e^x; error at most 1.5 ulp, gradual underflow included.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let (n, p) = reduce_exp(clamp(x, -104.0, 89.0));
    let half = n >> 1;
    // Two factors reach 2^128 and 2^-150; only the last product can round.
    (p + 1.0) * pow2(half) * pow2(n.wrapping_sub(half))
}

/// e^x − 1; error at most 2 ulp.
#[inline(always)]
pub fn expm1(x: f32) -> f32 {
    let (n, p) = reduce_exp(clamp(x, -20.0, 89.0));
    let (scale, twice) = if n > 127 { (pow2(127), 2.0) } else { (pow2(n), 1.0) };
    p.mul_add(scale, scale - 1.0) * twice
}

/// The exponent k and the mantissa m in [2/3, 4/3) of a positive normal number: u = m·2^k.
#[inline(always)]
fn split(u: f32) -> (i32, f32) {
    const TWO_THIRDS: i32 = 0x3F2A_AAAB;
    let above = (u.to_bits() as i32).wrapping_sub(TWO_THIRDS);
    let m = f32::from_bits(((above & 0x007F_FFFF) + TWO_THIRDS) as u32);
    (above >> 23, m)
}

/// ln(2^k · (1 + f)) for |f| ≤ 1/3.
#[inline(always)]
fn ln_split(k: f32, f: f32) -> f32 {
    let p = -0.131_809_f32;
    let p = p.mul_add(f, 0.139_619_83);
    let p = p.mul_add(f, -0.121_176_23);
    let p = p.mul_add(f, 0.140_110_37);
    let p = p.mul_add(f, -0.166_852_82);
    let p = p.mul_add(f, 0.200_100_35);
    let p = p.mul_add(f, -0.249_996_93);
    let p = p.mul_add(f, 0.333_332_24);
    let square = f * f;
    let tail = p.mul_add(f, -0.5) * square;
    k.mul_add(LN2_HI, f + k.mul_add(LN2_LO, tail))
}

/// Natural logarithm; error at most 1.5 ulp; ln 0 = −∞, NaN below 0.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    let tiny = x < f32::MIN_POSITIVE;
    let (k, m) = split(if tiny { x * 8_388_608.0 } else { x });
    let k = k as f32 - if tiny { 23.0 } else { 0.0 };
    let y = ln_split(k, m - 1.0);
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    let y = if x < 0.0 { f32::NAN } else { y };
    // +∞ and NaN pass through.
    if x < f32::INFINITY { y } else { x }
}

/// ln(1 + x); error at most 2 ulp; −∞ at −1, NaN below.
#[inline(always)]
pub fn log1p(x: f32) -> f32 {
    let u = 1.0 + x;
    let (k, m) = split(u);
    // f = (1 + x) / 2^k − 1 with one rounding; above 2^30 the 1 no longer counts.
    let scale = pow2(-k.min(126));
    let f = if k > 30 { m - 1.0 } else { x.mul_add(scale, scale - 1.0) };
    let y = ln_split(k as f32, f);
    let y = if x == -1.0 { f32::NEG_INFINITY } else { y };
    let y = if x < -1.0 { f32::NAN } else { y };
    // Below 2^-24 the result is x, which keeps −0 and subnormals exact.
    let y = if x.abs() < 5.96e-8 { x } else { y };
    if x < f32::INFINITY { y } else { x }
}

/// Hyperbolic tangent; error at most 2.5 ulp.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    // With e = e^(−2|x|): (1 − e)/(1 + e) where the difference is precise, else 1 − 2e/(1 + e).
    let (n, p) = reduce_exp(clamp(-2.0 * x.abs(), -20.0, 0.0));
    let scale = pow2(n);
    let e = p.mul_add(scale, scale);
    let minus = p.mul_add(-scale, 1.0 - scale);
    let large = e < 0.25;
    let q = (if large { 2.0 * e } else { minus }) / (1.0 + e);
    (if large { 1.0 - q } else { q }).copysign(x)
}

/// 1 / (1 + e^-x); error at most 3 ulp.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
}

/// ln(1 + e^x), without overflow; error at most 3 ulp.
#[inline(always)]
pub fn softplus(x: f32) -> f32 {
    let e = exp(-x.abs());
    // ln(1 + e) for 0 ≤ e ≤ 1: the mantissa of 1 + e is halved above 4/3.
    let large = e > 1.0 / 3.0;
    let f = if large { e.mul_add(0.5, -0.5) } else { e };
    let log = ln_split(if large { 1.0 } else { 0.0 }, f);
    (if x < 0.0 { 0.0 } else { x }) + log
}

/// The error function; error at most 1.5 ulp.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let (t, z) = (clamp(x.abs(), 0.0, 4.0), x * x);
    let p = -5.999_532_3e-4_f32;
    let p = p.mul_add(z, 4.994_86e-3);
    let p = p.mul_add(z, -2.676_774_6e-2);
    let p = p.mul_add(z, 1.128_184_7e-1);
    let p = p.mul_add(z, -3.761_249_8e-1);
    let p = p.mul_add(z, 1.283_791_5e-1);
    let near = p.mul_add(x, x);
    // Away from 0, −ln(1 − erf t) / t is smooth.
    let q = 4.938_216e-6_f32;
    let q = q.mul_add(t, -4.558_12e-5);
    let q = q.mul_add(t, -4.958_668_8e-5);
    let q = q.mul_add(t, 2.930_157_4e-3);
    let q = q.mul_add(t, -2.267_413_8e-2);
    let q = q.mul_add(t, 1.052_627e-1);
    let q = q.mul_add(t, 6.356_253e-1);
    let q = q.mul_add(t, 1.128_551_7);
    let far = (1.0 - exp(-(q * t))).copysign(x);
    if t < 0.92 { near } else { far }
}

/// The error function in f64; relative error below 1e-15. Below 2 its series of positive terms
/// 2 x / sqrt(π) e^{−x²} Σ (2 x²)^n / (2n + 1)!!, above 1 minus the continued fraction of erfc.
pub fn erf_f64(x: f64) -> f64 {
    use std::f64::consts::FRAC_2_SQRT_PI;
    let (t, z) = (x.abs(), x * x);
    if x.is_nan() || t > 6.5 {
        return if x.is_nan() { x } else { 1f64.copysign(x) };
    }
    if t < 2.0 {
        let (mut term, mut sum, mut n) = (1.0, 1.0, 0.0);
        while term > 1e-17 * sum {
            n += 1.0;
            term *= 2.0 * z / (2.0 * n + 1.0);
            sum += term;
        }
        return FRAC_2_SQRT_PI * x * (-z).exp() * sum;
    }
    let fraction = (1..=60).rev().fold(t, |rest, n| t + n as f64 / 2.0 / rest);
    (1.0 - FRAC_2_SQRT_PI / 2.0 * (-z).exp() / fraction).copysign(x)
}

/// −ln((w + ½) / 2^32) for a random word: exponential with mean 1, precise in both tails; error at most 3 ulp.
#[inline(always)]
pub fn exponential(word: u32) -> f32 {
    const UNIT: f32 = 1.0 / 4_294_967_296.0;
    let (k, m) = split((word as f32 + 0.5) * UNIT);
    // Near 1 the distance to 1 is an exact function of the word, while u itself has lost its low bits.
    let near = word >= 0xB000_0000;
    let f = if near { ((!word) as f32 + 0.5) * -UNIT } else { m - 1.0 };
    -ln_split(if near { 0.0 } else { k as f32 }, f)
}

/// (sin 2πt, cos 2πt) at t = word / 2^32; absolute error at most 2e-7.
#[inline(always)]
pub fn sin_cos_turns(word: u32) -> (f32, f32) {
    // The nearest quarter turn q and the rest, in (−1/8, 1/8] turns, are exact in integers.
    let quarter = word.wrapping_add(0x2000_0000) >> 30;
    let rest = word.wrapping_sub(quarter << 30) as i32 as f32;
    let x = rest * (std::f32::consts::TAU / 4_294_967_296.0);
    let z = x * x;
    // Coefficients of Cephes sinf and cosf (Moshier 1989).
    let s = (-1.951_529_6e-4_f32).mul_add(z, 8.332_161e-3).mul_add(z, -1.666_665_5e-1);
    let c = 2.443_315_7e-5_f32.mul_add(z, -1.388_731_6e-3).mul_add(z, 4.166_664_6e-2);
    let sin = (s * z).mul_add(x, x);
    let cos = (c * z).mul_add(z, z.mul_add(-0.5, 1.0));
    let (a, b) = if quarter & 1 == 1 { (cos, sin) } else { (sin, cos) };
    let flip = |v: f32, bit: u32| f32::from_bits(v.to_bits() ^ (bit << 31));
    (flip(a, quarter >> 1), flip(b, (quarter ^ (quarter >> 1)) & 1))
}

/// Widens a bf16; exact.
#[inline(always)]
pub fn bf16_to_f32(x: bf16) -> f32 {
    f32::from_bits((x.to_bits() as u32) << 16)
}

/// Rounds to the nearest bf16, ties to even; NaN stays NaN (quiet, with its sign).
#[inline(always)]
pub fn f32_to_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
    let nan = (bits >> 16) | 0x40;
    bf16::from_bits((if x.is_nan() { nan } else { rounded }) as u16)
}

/// Widens an f16; exact.
#[inline(always)]
pub fn f16_to_f32(x: f16) -> f32 {
    let bits = x.to_bits() as u32;
    let magnitude = f32::from_bits((bits & 0x7FFF) << 13);
    // Multiplying by 2^112 moves the exponent and normalises subnormals; ∞ and NaN need all exponent bits.
    let finite = magnitude * 5.192_297e33;
    let special = f32::from_bits(magnitude.to_bits() | 0x7F80_0000 | ((bits & 0x3FF != 0) as u32) << 22);
    let value = if bits & 0x7FFF >= 0x7C00 { special } else { finite };
    f32::from_bits(value.to_bits() | (bits & 0x8000) << 16)
}

/// Rounds to the nearest f16, ties to even, with subnormals and overflow to ∞; NaN stays NaN.
#[inline(always)]
pub fn f32_to_f16(x: f32) -> f16 {
    let bits = x.to_bits() & 0x7FFF_FFFF;
    let sign = (x.to_bits() >> 16) & 0x8000;
    // Subnormal results: adding ½ aligns the f16 mantissa with the low bits and rounds by the way.
    let subnormal = (f32::from_bits(bits) + 0.5).to_bits().wrapping_sub(0x3F00_0000);
    let normal = bits.wrapping_sub(112 << 23).wrapping_add(0xFFF + ((bits >> 13) & 1)) >> 13;
    let value = if bits < 113 << 23 { subnormal } else { normal };
    let value = if bits >= 0x4780_0000 { 0x7C00 } else { value };
    let value = if bits > 0x7F80_0000 { 0x7E00 | ((bits >> 13) & 0x3FF) } else { value };
    f16::from_bits((value | sign) as u16)
}

#[cfg(test)]
#[path = "math_tests.rs"]
mod tests;
