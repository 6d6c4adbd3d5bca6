use super::*;
use crate::cpu::simd::vectorize;
use rayon::prelude::*;

/// |got − exact| in units of the f32 spacing at `exact`; 0 where both are NaN or the same infinity.
fn ulps(got: f32, exact: f64) -> f64 {
    if got.is_nan() || exact.is_nan() {
        return if got.is_nan() && exact.is_nan() { 0.0 } else { f64::INFINITY };
    }
    let overflow = exact.abs() >= f32::MAX as f64 * (1.0 + 2f64.powi(-25));
    if got.is_infinite() || overflow {
        return if got as f64 == exact || (overflow && got == exact as f32) { 0.0 } else { f64::INFINITY };
    }
    let exponent = ((exact.to_bits() >> 52) as i32 & 0x7FF) - 1023;
    (got as f64 - exact).abs() / 2f64.powi(exponent.max(-126) - 23)
}

/// Checks `f` against `exact` on every `stride`-th bit pattern, calculated in vectors, and that scalar calls give
/// the bits of the vectors on one in sixteen of them.
fn check(name: &str, f: impl Fn(f32) -> f32 + Sync, exact: fn(f64) -> f64, bound: f64, stride: usize) {
    let slice = 1u64 << 20;
    let larger = |a: (f64, f32), b: (f64, f32)| if b.0 > a.0 { b } else { a };
    let worst_of_slice = |s: u64| {
        // Each slice starts at its own offset, so that a sweep meets many low bits.
        let bits = s * slice + (s * 7919) % stride as u64..(s + 1) * slice;
        let x: Vec<f32> = bits.step_by(stride).map(|b| f32::from_bits(b as u32)).collect();
        let mut y = vec![0.0; x.len()];
        vectorize(
            #[inline(always)]
            || y.iter_mut().zip(&x).for_each(|(y, x)| *y = f(*x)),
        );
        for (x, y) in x.iter().zip(&y).step_by(16) {
            let scalar = f(*x);
            assert!(
                scalar.to_bits() == y.to_bits() || scalar.is_nan() && y.is_nan(),
                "{name}: bits at {x:e}"
            );
        }
        x.iter().zip(&y).map(|(&x, &y)| (ulps(y, exact(x as f64)), x)).fold((0.0, 0.0), larger)
    };
    let (error, x) =
        (0..(1u64 << 32) / slice).into_par_iter().map(worst_of_slice).reduce(|| (0.0, 0.0), larger);
    println!("{name}: {error:.3} ulp at {x:e}");
    assert!(error <= bound, "{name}: {error} ulp at {x:e}, stated {bound}");
}

fn check_all(stride: usize) {
    check("exp", exp, f64::exp, 1.5, stride);
    check("expm1", expm1, f64::exp_m1, 2.0, stride);
    check("ln", ln, f64::ln, 1.5, stride);
    check("log1p", log1p, f64::ln_1p, 2.0, stride);
    check("tanh", tanh, f64::tanh, 2.5, stride);
    check("sigmoid", sigmoid, |x| 1.0 / (1.0 + (-x).exp()), 3.0, stride);
    check("softplus", softplus, |x| x.max(0.0) + (-x.abs()).exp().ln_1p(), 3.0, stride);
    check("erf", erf, erf_f64, 1.5, stride);
}

/// Values of Abramowitz & Stegun 1964, table 7.1, and of the series where it meets the fraction.
#[test]
fn erf_has_its_published_values() {
    for (x, y) in
        [(0.5, 0.520_499_877_813_046_5), (1.0, 0.842_700_792_949_714_9), (2.0, 0.995_322_265_018_952_7)]
    {
        assert!((erf_f64(x) - y).abs() < 1e-15 && (erf_f64(-x) + y).abs() < 1e-15, "{x}: {}", erf_f64(x));
    }
    let meeting = (erf_f64(2.0) - erf_f64(2.0f64.next_down())).abs();
    assert!(meeting < 1e-15, "{meeting}");
}

#[test]
fn errors_stay_within_the_stated_ulps() {
    check_all(499);
}

#[test]
#[ignore = "exhaustive: about 10 minutes"]
fn errors_stay_within_the_stated_ulps_for_every_argument() {
    check_all(1);
}

#[test]
fn ends_of_the_range() {
    let inf = f32::INFINITY;
    assert_eq!((exp(-inf), exp(-104.0), exp(89.0), exp(inf)), (0.0, 0.0, inf, inf));
    assert_eq!((exp(0.0), exp(-103.0)), (1.0, f32::from_bits(1)));
    assert_eq!((ln(0.0), ln(-0.0), ln(inf), ln(1.0)), (-inf, -inf, inf, 0.0));
    assert!(ln(-1.0).is_nan() && ln(-inf).is_nan() && log1p(-1.5).is_nan());
    assert_eq!((log1p(-1.0), log1p(inf), log1p(f32::MAX)), (-inf, inf, f32::MAX.ln()));
    assert_eq!((expm1(-inf), expm1(inf)), (-1.0, inf));
    assert_eq!((tanh(-inf), tanh(inf), tanh(-0.0).to_bits()), (-1.0, 1.0, (-0.0f32).to_bits()));
    assert_eq!((sigmoid(-inf), sigmoid(0.0), sigmoid(inf)), (0.0, 0.5, 1.0));
    assert_eq!((softplus(-inf), softplus(inf)), (0.0, inf));
    let all = [exp, expm1, ln, log1p, tanh, sigmoid, softplus];
    assert!(all.iter().all(|f| f(f32::NAN).is_nan() && f(-f32::NAN).is_nan()));
}

#[test]
fn random_words_become_exponentials_and_angles() {
    let (mut worst, mut angle) = (0.0f64, 0.0f64);
    for word in (0..1u64 << 32).step_by(997).map(|w| w as u32).chain([u32::MAX, 0xAFFF_FFFF, 0xB000_0000]) {
        let u = (word as f64 + 0.5) / 4_294_967_296.0;
        let error = ulps(exponential(word), -(u.ln()));
        worst = worst.max(error);
        assert!(error <= 3.0, "exponential({word:#x}): {error} ulp");
        let (sin, cos) = sin_cos_turns(word);
        let (s, c) = (word as f64 * std::f64::consts::TAU / 4_294_967_296.0).sin_cos();
        angle = angle.max((sin as f64 - s).abs()).max((cos as f64 - c).abs());
    }
    println!("sin, cos: {angle:.3e} absolute");
    assert!(angle < 2e-7, "sin_cos_turns: {angle}");
    println!("exponential: {worst:.3} ulp");
}

#[test]
fn half_precision_conversions_match_the_definition() {
    for bits in 0..=u16::MAX {
        let (x, ours) = (f16::from_bits(bits).to_f32_const(), f16_to_f32(f16::from_bits(bits)));
        assert!(x.to_bits() == ours.to_bits() || x.is_nan() && ours.is_nan(), "f16 {bits:#x}");
        let (x, ours) = (bf16::from_bits(bits).to_f32_const(), bf16_to_f32(bf16::from_bits(bits)));
        assert!(x.to_bits() == ours.to_bits() || x.is_nan() && ours.is_nan(), "bf16 {bits:#x}");
    }
    let ends = [f32::INFINITY, f32::NAN, 65519.99, 65520.0, 5.96e-8, 2.98e-8, 2.981e-8, f32::MAX];
    let ends = ends.iter().flat_map(|x| [*x, -*x]);
    for x in (0..1u64 << 32).step_by(211).map(|bits| f32::from_bits(bits as u32)).chain(ends) {
        let (half, ours) = (f16::from_f32_const(x), f32_to_f16(x));
        assert!(half.to_bits() == ours.to_bits() || half.is_nan() && ours.is_nan(), "{x:e}: {half} {ours}");
        let (half, ours) = (bf16::from_f32_const(x), f32_to_bf16(x));
        assert!(half.to_bits() == ours.to_bits() || half.is_nan() && ours.is_nan(), "{x:e}: {half} {ours}");
    }
}
