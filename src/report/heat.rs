//! Surprisal maps: nats per pixel as colours, dark = expected, bright = surprising.

use super::png;

/// The ramp in equal steps: perceptually ordered, dark to bright, legible in grey (stops of matplotlib's `inferno`,
/// van der Walt & Smith 2015).
const RAMP: [[u8; 3]; 9] = [
    [0, 0, 4],
    [31, 12, 72],
    [85, 15, 109],
    [136, 34, 106],
    [186, 54, 85],
    [227, 89, 51],
    [249, 140, 10],
    [249, 201, 50],
    [252, 255, 164],
];

/// The end of the common scale of all maps, in bits: their 99.5% quantile. `None` without a finite value.
pub(super) fn scale<'a>(maps: impl Iterator<Item = &'a [f32]>) -> Option<f64> {
    let mut bits: Vec<f64> = maps.flatten().map(|&nats| to_bits(nats)).filter(|b| b.is_finite()).collect();
    bits.sort_by(f64::total_cmp);
    (!bits.is_empty()).then(|| super::metrics::quantile(&bits, 0.995).max(1e-3))
}

/// The map (H, W) of nats as a PNG, 0 to `top` bits. Values that are not finite are shown as the ends.
pub(super) fn data_uri(nats: &[f32], h: usize, w: usize, top: f64) -> String {
    let pixels: Vec<u8> = nats.iter().flat_map(|&n| color(to_bits(n) / top)).collect();
    png::data_uri(&pixels, [h, w, 3])
}

/// The ramp for a legend.
pub(super) fn css_gradient() -> String {
    let stops: Vec<String> = RAMP.iter().map(|[r, g, b]| format!("rgb({r},{g},{b})")).collect();
    format!("linear-gradient(90deg,{})", stops.join(","))
}

fn to_bits(nats: f32) -> f64 {
    nats as f64 / std::f64::consts::LN_2
}

fn color(share: f64) -> [u8; 3] {
    // NaN is not above 0 either.
    let at = if share > 0.0 { share.min(1.0) } else { 0.0 } * (RAMP.len() - 1) as f64;
    let i = (at as usize).min(RAMP.len() - 2);
    let mix = |a: u8, b: u8| (a as f64 + (b as f64 - a as f64) * (at - i as f64)).round() as u8;
    std::array::from_fn(|c| mix(RAMP[i][c], RAMP[i + 1][c]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_span_the_ramp() {
        assert_eq!(color(0.0), RAMP[0]);
        assert_eq!(color(1.0), RAMP[8]);
        assert_eq!(color(0.5), RAMP[4]);
        assert_eq!(color(f64::NAN), RAMP[0]);
        assert_eq!(color(f64::INFINITY), RAMP[8]);
        assert_eq!(color(-1.0), RAMP[0]);
    }

    #[test]
    fn scale_ignores_what_is_not_finite() {
        assert_eq!(scale([&[f32::NAN][..]].into_iter()), None);
        let top = scale([&[0.0, f32::INFINITY, std::f32::consts::LN_2][..]].into_iter()).unwrap();
        assert!((0.9..=1.0 + 1e-6).contains(&top), "{top}");
    }
}
