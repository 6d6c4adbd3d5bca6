//! Masked convolution (van den Oord et al. 2016): a convolution whose kernel sees only pixels that come
//! earlier in raster order, and earlier colours of the same pixel.
//!
//! y = act(x ∗ (w ⊙ mask) + bias + residual), stride 1, same padding, odd square kernel (K, K, Cin, Cout).
//! Kind A excludes the pixel's own colour, kind B includes it. With `colours` = G the channels of input and
//! output are split into G equal groups in order; group g of the output sees groups < g (A) or ≤ g (B) of the
//! centre pixel. In row-major order the kept taps are a prefix of the kernel, so only they are multiplied:
//! ⌊K²/2⌋ (+ 1 when the centre takes part) of K² taps.

use super::conv::{self, ConvSpec, Weights};
use super::{Case, OpInfo, amp, binary, normal};
use crate::autograd::{self, Recipe, record};
use crate::cpu::conv::Conv;
use crate::cpu::gemm::Act;
use crate::cuda::{self, Gpu, Grid, Kernels, Optional, Output, Struct};
use crate::tensor::{DType, Tensor};
use std::sync::Arc;

/// The registry's line.
pub const OP: OpInfo = OpInfo {
    name: "masked_conv",
    family: "fused",
    summary: "causal 2-d convolution that computes only the taps its mask keeps (van den Oord et al. 2016)",
    cases,
};

const FORWARD: Kernels = Kernels::new(
    "masked_conv",
    ["masked_conv_forward_f32", "masked_conv_forward_bf16", "masked_conv_forward_f16"],
)
.or_tf32("masked_conv_forward_tf32");
const INPUT_GRAD: Kernels = Kernels::new(
    "masked_conv",
    ["masked_conv_input_grad_f32", "masked_conv_input_grad_bf16", "masked_conv_input_grad_f16"],
)
.or_tf32("masked_conv_input_grad_tf32");
const WEIGHT_GRAD: Kernels = Kernels::new(
    "masked_conv",
    ["masked_conv_weight_grad_f32", "masked_conv_weight_grad_bf16", "masked_conv_weight_grad_f16"],
)
.or_tf32("masked_conv_weight_grad_tf32");
const FINISH: Kernels = Kernels::new(
    "masked_conv",
    ["masked_conv_finish_f32", "masked_conv_finish_bf16", "masked_conv_finish_f16"],
);
const ACT_GRAD: Kernels = Kernels::new(
    "masked_conv",
    ["masked_conv_act_grad_f32", "masked_conv_act_grad_bf16", "masked_conv_act_grad_f16"],
);
const BIAS_GRAD: Kernels = Kernels::new(
    "masked_conv",
    ["masked_conv_bias_grad_f32", "masked_conv_bias_grad_bf16", "masked_conv_bias_grad_f16"],
);

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
    let narrow = amp::with_residual(x, residual, spec.act, |half, residual| {
        masked_conv2d_with(&half(x), &half(w), bias.map(half).as_ref(), residual, mask, spec)
    });
    if let Some(y) = narrow {
        return y;
    }
    if let (false, Some(gpu)) = (autograd::in_higher_order(), cuda::on("masked_conv2d", &[x, w])) {
        return launch(gpu, x, w, bias, residual, mask, spec);
    }
    if autograd::in_higher_order() || geometry.taps.is_empty() {
        return composite(x, w, bias, residual, mask, spec.act);
    }
    let weights = Weights::Prefix(Arc::new(centre));
    conv::fused("masked_conv2d", Arc::new(geometry), x, w, weights, bias, residual, spec)
}

/// As `Geometry` in kernels/masked_conv.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct DeviceGeometry {
    batch: i32,
    height: i32,
    width: i32,
    cin: i32,
    cout: i32,
    kernel: i32,
    whole: i32,
    partial: i32,
    colours: i32,
    strict: i32,
}

/// What the launches of a convolution share.
#[derive(Clone, Copy)]
struct Launch {
    gpu: Gpu,
    dtype: DType,
    pixels: usize,
    /// Of the weights: K, Cin, Cout.
    kernel: usize,
    channels: [usize; 2],
    /// Rows of the kept taps, taps · Cin.
    rows: usize,
    geometry: DeviceGeometry,
}

impl Launch {
    fn new(gpu: Gpu, x: &Tensor, w: &Tensor, mask: Mask) -> Self {
        let ([b, h, wd, _], [k, _, cin, cout]) = (x.dims(), w.dims());
        let (taps, centre) = mask.kept(k, cin, cout);
        let partial = usize::from(!centre.is_empty());
        let [batch, height, width] = [b, h, wd].map(|n| n as i32);
        let geometry = DeviceGeometry {
            batch,
            height,
            width,
            cin: cin as i32,
            cout: cout as i32,
            kernel: k as i32,
            whole: (taps - partial) as i32,
            partial: partial as i32,
            colours: mask.colours as i32,
            strict: i32::from(mask.kind == MaskKind::A),
        };
        let (pixels, rows) = (b * h * wd, taps * cin);
        Self { gpu, dtype: x.dtype(), pixels, kernel: k, channels: [cin, cout], rows, geometry }
    }

    /// Tiles for `rows` × `columns` results, in `splits` parts of the sum: narrow tiles where that fits, which only the
    /// kernels for whole vectors have.
    fn tiles(&self, rows: usize, columns: usize, splits: usize) -> Grid {
        let whole = self.channels.iter().all(|c| c.is_multiple_of(16 / self.dtype.size()));
        let n = if whole && columns <= 32 { 32 } else { 64 };
        let blocks = [rows.div_ceil(4096 / n) as u32, columns.div_ceil(n) as u32, splits as u32];
        Grid { blocks, threads: [128, 1, 1], shared: 26 << 10 }
    }

    fn forward(&self, [x, w]: [&Tensor; 2], extras: [Option<&Tensor>; 2], act: Act) -> Tensor {
        let y = self.gpu.empty([&x.shape()[..3], &[self.channels[1]]].concat(), self.dtype);
        let [bias, residual] = extras.map(|t| Optional(t, self.dtype));
        let grid = self.tiles(self.pixels, self.channels[1], 1);
        let args: &[&dyn cuda::Arg] = &[&y, x, w, &bias, &residual, &(act as i32), &Struct(self.geometry)];
        self.gpu.launch(amp::kernel(&FORWARD, self.dtype), grid, args);
        y.finish()
    }

    fn input_grad(&self, dy: &Tensor, w: &Tensor, x: &Tensor, gated: bool) -> Tensor {
        let dx = self.gpu.empty(x.shape(), self.dtype);
        let gate = Optional(gated.then_some(x), self.dtype);
        let grid = self.tiles(self.pixels, self.channels[0], 1);
        self.gpu.launch(
            amp::kernel(&INPUT_GRAD, self.dtype),
            grid,
            &[&dx, dy, w, &gate, &Struct(self.geometry)],
        );
        dx.finish()
    }

    fn weight_grad(&self, x: &Tensor, dy: &Tensor) -> Tensor {
        let [cin, cout] = self.channels;
        let one = self.tiles(self.rows, cout, 1).blocks;
        let splits = (264 / (one[0] * one[1]).max(1) as usize).clamp(1, self.pixels.div_ceil(256));
        let partial = self.gpu.empty([splits, self.rows, cout], DType::F32);
        let geometry = Struct(self.geometry);
        let grid = self.tiles(self.rows, cout, splits);
        self.gpu.launch(amp::kernel(&WEIGHT_GRAD, self.dtype), grid, &[&partial, x, dy, &geometry]);
        let dw = self.gpu.empty([self.kernel, self.kernel, cin, cout], self.dtype);
        let grid = Grid::flat(self.kernel * self.kernel * cin * cout);
        self.gpu.launch(FINISH.of(self.dtype), grid, &[&dw, &partial.finish(), &(splits as i32), &geometry]);
        dw.finish()
    }

    /// g act'(·), given act's result (for silu its argument), and the sum of it over the pixels.
    fn act_grad(&self, g: &Tensor, y: &Tensor, act: Act) -> (Tensor, Output) {
        let (n, width) = (self.channels[1], 16 / self.dtype.size());
        let vectors = if n.is_multiple_of(width) { n / width } else { n };
        let blocks = self.pixels.div_ceil(8 * (256 / vectors.min(256))).clamp(1, 256);
        let dz = self.gpu.empty(g.shape(), self.dtype);
        let (partial, db) = (self.gpu.empty([blocks, n], DType::F32), self.gpu.empty([n], self.dtype));
        let grid = Grid {
            blocks: [blocks as u32, vectors.div_ceil(256) as u32, 1],
            threads: [256, 1, 1],
            shared: 0,
        };
        let (rows, channels) = (self.pixels as i64, n as i32);
        let args: &[&dyn cuda::Arg] = &[&dz, &partial, g, y, &(act as i32), &rows, &channels];
        self.gpu.launch(ACT_GRAD.of(self.dtype), grid, args);
        let args: &[&dyn cuda::Arg] = &[&db, &partial.finish(), &(blocks as i32), &channels];
        self.gpu.launch(BIAS_GRAD.of(self.dtype), Grid::flat(n), args);
        (dz.finish(), db)
    }
}

fn launch(
    gpu: Gpu,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    mask: Mask,
    spec: ConvSpec,
) -> Tensor {
    let run = Launch::new(gpu, x, w, mask);
    let y = run.forward([x, w], [bias, residual], spec.act);
    let absent = Tensor::zeros([0], x.dtype());
    let inputs = [x, w, bias.unwrap_or(&absent), residual.unwrap_or(&absent)];
    let kept = inputs.map(Tensor::detach);
    let (has_bias, has_residual) = (bias.is_some(), residual.is_some());
    let recipe = Recipe { keep_outputs: spec.act != Act::None, ..Recipe::fused("masked_conv2d") };
    let [y] = record(recipe, &inputs, [y], move |back| {
        let [x, w, bias, residual] = &kept;
        let g = back.grad(0);
        let act = if spec.gated_by_consumer { Act::None } else { spec.act };
        let (dz, db) = match act {
            Act::None if !has_bias => (g, None),
            Act::None => (g.clone(), Some(run.act_grad(&g, &g, act).1)),
            Act::Silu => {
                // The derivative needs the sum itself, which the product did not keep.
                let extras = [has_bias.then_some(bias), has_residual.then_some(residual)];
                let (dz, db) = run.act_grad(&g, &run.forward([x, w], extras, Act::None), act);
                (dz, Some(db))
            }
            _ => {
                let (dz, db) = run.act_grad(&g, back.output(0), act);
                (dz, Some(db))
            }
        };
        let dx = back.needs(0).then(|| run.input_grad(&dz, w, x, spec.gates_input));
        let dw = back.needs(1).then(|| run.weight_grad(x, &dz));
        let db = db.filter(|_| has_bias && back.needs(2)).map(Output::finish);
        vec![dx, dw, db, (has_residual && back.needs(3)).then_some(dz)]
    });
    y
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
            .bench(4 * pixels * (cin + cout), 2 * pixels * taps * cin * cout)
            .backward(8 * pixels * (cin + cout), 4 * pixels * taps * cin * cout),
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
