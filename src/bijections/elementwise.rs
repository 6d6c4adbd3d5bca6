//! Monotone functions of single numbers with parameters from a network, and the two ways of asking it: of the features
//! before (autoregressive) or of the other half (coupling).

use super::{Bijection, BijectionInfo};
use crate::cpu::gemm::Act;
use crate::error::{Error, ErrorKind, Result};
use crate::nn::{Init, Initial, MaskedMlp, Mlp, Param};
use crate::ops::coupling::{Coupling, coupling, inverse as coupling_inverse, kept_half};
use crate::ops::mixture_cdf::{self, Mixture};
use crate::ops::rq_spline::{self, Spline};
use crate::ops::shape;
use crate::tensor::Tensor;

/// A monotone function y = f(x; parameters) of each number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Elementwise {
    /// y = (x + t) e^ℓ with ℓ = 2 tanh(s / 2), which keeps the scale in e^±2; parameters s, t.
    Affine,
    /// A rational-quadratic spline ([`rq_spline`]).
    Spline(Spline),
    /// The logit of the CDF of a mixture of logistics, then affine (`mixture_cdf`).
    Mixture(Mixture),
}

impl Elementwise {
    /// Parameters per number.
    pub fn params(self) -> usize {
        match self {
            Self::Affine => 2,
            Self::Spline(spline) => spline.params(),
            Self::Mixture(mixture) => mixture.params(),
        }
    }

    /// Whether the settings are possible.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] naming them.
    pub fn check(self) -> Result<()> {
        let ok = match self {
            Self::Affine => true,
            Self::Spline(spline) => spline.is_valid(),
            Self::Mixture(mixture) => mixture.is_valid(),
        };
        let fail = || {
            Error::new(
                ErrorKind::Usage,
                format!("{self:?}: expected 1 to 256 bins or components and a bound above 0"),
            )
        };
        if ok { Ok(()) } else { Err(fail()) }
    }

    /// y (B, ...) and log |det| (B,): x (B, ...), params (B, ..., P).
    #[track_caller]
    pub fn forward(self, x: &Tensor, params: &Tensor) -> (Tensor, Tensor) {
        match self {
            Self::Affine => {
                let [log, shift] = affine_parts(x, params);
                (&(x + &shift) * &log.exp(), log.sum_examples())
            }
            Self::Spline(spline) => rq_spline::rq_spline(x, params, spline),
            Self::Mixture(mixture) => mixture_cdf::mixture_cdf(x, params, mixture),
        }
    }

    /// x such that [`Self::forward`] gives y, for the same params.
    #[track_caller]
    pub fn inverse(self, y: &Tensor, params: &Tensor) -> Tensor {
        match self {
            Self::Affine => {
                let [log, shift] = affine_parts(y, params);
                &(y * &(-&log).exp()) - &shift
            }
            Self::Spline(spline) => rq_spline::inverse(y, params, spline),
            Self::Mixture(mixture) => mixture_cdf::inverse(y, params, mixture),
        }
    }

    /// Sets the bias of a network whose last weights are 0 so that the function is the identity, or near it.
    pub(super) fn identity(self, bias: &Param) {
        let per = match self {
            Self::Affine => return,
            Self::Spline(spline) => spline.identity(),
            Self::Mixture(mixture) => mixture.identity(),
        };
        let value = bias.get();
        bias.set(&Tensor::from_fn(value.shape(), |i| per[i % per.len()]).cast(value.dtype()));
    }
}

/// (ℓ, t) of [`Elementwise::Affine`].
fn affine_parts(x: &Tensor, params: &Tensor) -> [Tensor; 2] {
    let last = params.rank() - 1;
    let part = |i| shape::narrow(params, last, i, 1).reshape(x.shape());
    [part(0).affine(0.5, 0.0).tanh().affine(2.0, 0.0), part(1)]
}

/// y_d = f(x_d; net(x_1, ..., x_{d−1})): x (B, D), the network a MADE. Densities take one pass (MAF, Papamakarios et al.
/// 2017), the inverse D passes, feature by feature; [`super::Inverse`] of it exchanges the two (IAF, Kingma et al.
/// 2016). Starts as the identity, or near it.
pub struct Autoregressive {
    net: MaskedMlp,
    kind: Elementwise,
}

impl Autoregressive {
    /// For D = `features`, with layers of `hidden` units.
    pub fn new(init: &mut Init, features: usize, hidden: &[usize], kind: Elementwise) -> Self {
        let net = MaskedMlp::new(init, features, hidden, kind.params(), Initial::Zeros);
        kind.identity(net.last_bias());
        Self { net, kind }
    }
}

impl Bijection for Autoregressive {
    fn forward(&self, x: &Tensor) -> (Tensor, Tensor) {
        self.kind.forward(x, &self.net.forward(x))
    }

    fn inverse(&self, y: &Tensor) -> Tensor {
        let [b, d] = y.dims();
        (0..d).fold(Tensor::zeros([b, d], y.dtype()), |x, k| {
            let params = self.net.column(&x, k).reshape([b, 1, self.kind.params()]);
            let column = self.kind.inverse(&y.narrow(1, k, 1), &params);
            &x + &column.pad(1, k, d - k - 1)
        })
    }

    fn params(&self) -> Vec<Param> {
        self.net.params()
    }
}

/// y = (a, f(b; net(a))), a the first ⌈D/2⌉ features, b the others: x (B, D), the network a perceptron.
/// Starts as the identity, or near it.
pub struct Coupled {
    net: Mlp,
    kind: Elementwise,
}

impl Coupled {
    /// For D = `features`, with layers of `hidden` units.
    ///
    /// # Panics
    /// When there are fewer than two features.
    #[track_caller]
    pub fn new(init: &mut Init, features: usize, hidden: &[usize], kind: Elementwise) -> Self {
        assert!(features >= 2, "a coupling needs two features, got {features}");
        let moved = features / 2;
        let net = Mlp::new(init, features - moved, hidden, moved * kind.params(), Act::Relu, Initial::Zeros);
        kind.identity(net.last_bias());
        Self { net, kind }
    }

    /// (a, b, params of b); nothing but `b`'s half is cut off for the affine kind, whose op does it.
    fn parts(&self, x: &Tensor) -> [Tensor; 3] {
        let [b, d] = x.dims();
        let a = kept_half(x);
        let params = self.net.forward(&a).reshape([b, d / 2, self.kind.params()]);
        [a, x.narrow(1, d - d / 2, d / 2), params]
    }
}

impl Bijection for Coupled {
    fn forward(&self, x: &Tensor) -> (Tensor, Tensor) {
        if self.kind == Elementwise::Affine {
            return coupling(x, &self.net.forward(&kept_half(x)), Coupling::Tanh);
        }
        let [a, b, params] = self.parts(x);
        let (b, logdet) = self.kind.forward(&b, &params);
        (shape::concat(&[&a, &b], 1), logdet)
    }

    fn inverse(&self, y: &Tensor) -> Tensor {
        if self.kind == Elementwise::Affine {
            return coupling_inverse(y, &self.net.forward(&kept_half(y)), Coupling::Tanh);
        }
        let [a, b, params] = self.parts(y);
        shape::concat(&[&a, &self.kind.inverse(&b, &params)], 1)
    }

    fn params(&self) -> Vec<Param> {
        self.net.params()
    }
}

const TABLES: &[&[usize]] = &[&[2], &[5]];
const SPLINE: Elementwise = Elementwise::Spline(Spline { bins: 4, bound: 3.0 });
const MIXTURE: Elementwise = Elementwise::Mixture(Mixture { components: 3 });

macro_rules! infos {
    ($($id:ident, $name:literal, $shapes:expr, $layer:ident, $kind:expr, $summary:literal;)*) => {
        $(pub(super) static $id: BijectionInfo = BijectionInfo {
            name: $name,
            summary: $summary,
            shapes: $shapes,
            build: |init, shape| Box::new($layer::new(init, shape[0], &[6, 5], $kind)),
        };)*
    };
}
infos! {
    MAF, "autoregressive_affine", TABLES, Autoregressive, Elementwise::Affine,
        "masked autoregressive affine map (Papamakarios et al. 2017)";
    NSF_AR, "autoregressive_spline", TABLES, Autoregressive, SPLINE,
        "masked autoregressive rational-quadratic spline (Durkan et al. 2019)";
    TABLE_AFFINE, "coupling_table_affine", TABLES, Coupled, Elementwise::Affine,
        "affine coupling of columns, scale e^(2 tanh(s / 2)) (Dinh et al. 2017)";
    NSF_C, "coupling_spline", TABLES, Coupled, SPLINE,
        "rational-quadratic spline coupling of columns (Durkan et al. 2019)";
    MIXTURE_C, "coupling_mixture", TABLES, Coupled, MIXTURE,
        "coupling of columns by the CDF of a mixture of logistics (Ho et al. 2019)";
}
