//! Masked convolution (van den Oord et al. 2016): a convolution whose kernel sees only pixels that come
//! earlier in raster order, and earlier colours of the same pixel.
//!
//! y = act(x ∗ (w ⊙ mask) + bias + residual), stride 1, same padding, odd square kernel (K, K, Cin, Cout).
//! Kind A excludes the pixel's own colour, kind B includes it. With `colours` = G the channels of input and
//! output are split into G equal groups in order; group g of the output sees groups < g (A) or ≤ g (B) of the
//! centre pixel. In row-major order the kept taps are a prefix of the kernel, so only they are multiplied:
//! ⌊K²/2⌋ (+ 1 when the centre takes part) of K² taps.

use super::conv::{self, ConvSpec, Weights};
use super::{Case, OpInfo, binary, normal};
use crate::autograd;
use crate::cpu::conv::Conv;
use crate::cpu::gemm::Act;
use crate::tensor::{DType, Tensor};
use std::sync::Arc;

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "masked_conv",
    family: "fused",
    summary: "causal 2-d convolution that computes only the taps its mask keeps (van den Oord et al. 2016)",
    cases,
};

/// Whether a pixel's own colour is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskKind {
    /// Not seen: for the first layer.
    A,
    /// Seen: for all further layers.
    B,
}

/// What a masked kernel may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mask {
    /// Whether the pixel's own colour is seen.
    pub kind: MaskKind,
    /// Number of channel groups with an order among them: 1 (grey), or 3 (red, green, blue).
    pub colours: usize,
}

impl Mask {
    /// Whether output channel `o` of `cout` sees input channel `i` of `cin` at the centre tap.
    pub fn centre(&self, i: usize, cin: usize, o: usize, cout: usize) -> bool {
        let group = |c: usize, n: usize| c * self.colours / n;
        let (gi, go) = (group(i, cin), group(o, cout));
        if self.kind == MaskKind::A { gi < go } else { gi <= go }
    }

    /// The number of kept taps of a k × k kernel, and the mask (Cin × Cout) over the last of them when it is
    /// kept in part.
    pub(crate) fn kept(&self, k: usize, cin: usize, cout: usize) -> (usize, Vec<bool>) {
        let before = (k / 2) * k + k / 2;
        let centre: Vec<bool> = (0..cin * cout).map(|e| self.centre(e / cout, cin, e % cout, cout)).collect();
        match (centre.iter().any(|&s| s), centre.iter().all(|&s| s)) {
            (false, _) => (before, Vec::new()),
            (_, true) => (before + 1, Vec::new()),
            _ => (before + 1, centre),
        }
    }

    /// The mask as a tensor of zeros and ones, (k, k, Cin, Cout).
    pub fn tensor(&self, k: usize, cin: usize, cout: usize, dtype: DType) -> Tensor {
        let (taps, centre) = self.kept(k, cin, cout);
        let area = cin * cout;
        let keep =
            |e: usize| e / area < taps && (e / area + 1 < taps || centre.is_empty() || centre[e % area]);
        Tensor::from_fn([k, k, cin, cout], |e| f64::from(keep(e))).cast(dtype)
    }
}

/// The convolution's geometry with the kept taps only.
fn geometry(x: &Tensor, w: &Tensor, mask: Mask) -> (Conv, Vec<bool>) {
    let [b, h, wd, c] = x.dims();
    let [k, k2, cin, cout] = w.dims();
    assert!(k == k2 && k % 2 == 1, "masked_conv2d: the kernel must be square and odd, w {:?}", w.shape());
    assert_eq!(c, cin, "masked_conv2d: x {:?}, w {:?}", x.shape(), w.shape());
    assert_eq!(x.dtype(), w.dtype(), "masked_conv2d: dtypes differ");
    assert!(
        mask.colours > 0 && cin % mask.colours == 0 && cout % mask.colours == 0,
        "masked_conv2d: {cin} -> {cout} channels do not split into {} colours",
        mask.colours
    );
    let (taps, centre) = mask.kept(k, cin, cout);
    let mut geometry = Conv::dense(b, (h, wd), (cin, cout), (k, k), 1, k / 2);
    geometry.taps.truncate(taps);
    (geometry, centre)
}

/// act(x ∗ (w ⊙ mask) + bias + residual); see the module.
///
/// # Panics
/// When shapes or dtypes do not fit, or the channels do not split into the mask's colours.
#[track_caller]
pub fn masked_conv2d(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    mask: Mask,
    act: Act,
) -> Tensor {
    masked_conv2d_with(x, w, bias, residual, mask, ConvSpec::same(1).act(act))
}

/// As [`masked_conv2d`], with the gating flags of `spec`.
#[track_caller]
pub(crate) fn masked_conv2d_with(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    mask: Mask,
    spec: ConvSpec,
) -> Tensor {
    let (geometry, centre) = geometry(x, w, mask);
    conv::check_extras("masked_conv2d", &geometry, bias, residual);
    if autograd::in_higher_order() || geometry.taps.is_empty() {
        return composite(x, w, bias, residual, mask, spec.act);
    }
    let weights = Weights::Prefix(Arc::new(centre));
    conv::fused("masked_conv2d", Arc::new(geometry), x, w, weights, bias, residual, spec)
}

/// [`masked_conv2d`] in primitives: the masked kernel, then a whole convolution.
pub fn composite(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    mask: Mask,
    act: Act,
) -> Tensor {
    let [k, _, cin, cout] = w.dims();
    let masked = binary::mul(w, &mask.tensor(k, cin, cout, w.dtype()));
    conv::composite(x, &masked, bias, residual, ConvSpec::same(k).act(act))
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in [MaskKind::A, MaskKind::B] {
        for (sx, k, cout, colours) in [
            ([1, 1, 1, 1], 1, 1, 1),
            ([2, 5, 4, 2], 3, 5, 1),
            ([1, 6, 6, 1], 7, 4, 1),
            ([2, 3, 4, 3], 3, 6, 3),
            ([1, 2, 2, 6], 1, 9, 3),
        ] {
            let mask = Mask { kind, colours };
            let inputs = vec![
                normal(1, &sx),
                normal(2, &[k, k, sx[3], cout]),
                normal(3, &[cout]),
                normal(4, &[sx[0], sx[1], sx[2], cout]),
            ];
            cases.push(
                Case::new(
                    format!("{kind:?} {sx:?} {k}x{k} -> {cout}, {colours} colours"),
                    inputs,
                    move |x| vec![masked_conv2d(&x[0], &x[1], Some(&x[2]), Some(&x[3]), mask, Act::Relu)],
                )
                .composite(move |x| vec![composite(&x[0], &x[1], Some(&x[2]), Some(&x[3]), mask, Act::Relu)]),
            );
        }
    }
    for (kind, k, cin, cout, taps) in [(MaskKind::A, 7, 1, 64, 24), (MaskKind::B, 3, 32, 32, 5)] {
        let mask = Mask { kind, colours: 1 };
        let inputs = vec![normal(1, &[32, 28, 28, cin]), normal(2, &[k, k, cin, cout]), normal(3, &[cout])];
        let pixels = 32 * 784;
        cases.push(
            Case::new(format!("{kind:?} 28x28 {k}x{k} {cin}->{cout}"), inputs, move |x| {
                vec![masked_conv2d(&x[0], &x[1], Some(&x[2]), None, mask, Act::Relu)]
            })
            .order(0)
            .bench(4 * pixels * (cin + cout), 2 * pixels * taps * cin * cout),
        );
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_keeps_what_comes_before() {
        let a = Mask { kind: MaskKind::A, colours: 1 };
        assert_eq!(a.tensor(3, 1, 1, DType::F64).to_f64_vec(), [1., 1., 1., 1., 0., 0., 0., 0., 0.]);
        let b = Mask { kind: MaskKind::B, colours: 1 };
        assert_eq!(b.tensor(3, 1, 1, DType::F64).to_f64_vec(), [1., 1., 1., 1., 1., 0., 0., 0., 0.]);
        let rgb = Mask { kind: MaskKind::A, colours: 3 };
        assert_eq!(rgb.tensor(1, 3, 3, DType::F64).to_f64_vec(), [0., 1., 1., 0., 0., 1., 0., 0., 0.]);
    }
}
