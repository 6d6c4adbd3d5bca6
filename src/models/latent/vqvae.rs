//! Vector-quantised autoencoder with an autoregressive prior (van den Oord, Vinyals & Kavukcuoglu 2017).
//!
//! The encoder gives a vector of `width` numbers for each cell of a grid; each is replaced by the nearest of `codes`
//! entries of a codebook, and the decoder sees those. A [PixelCNN](crate::models::autoregressive::pixelcnn) over the
//! grid of indices is the prior. Trained together, in nats:
//! ```text
//! −ln p(x | e) − ln p(indices) + commitment · Σ |z − sg(e)|²
//! ```
//! Gradients pass the quantisation as if it were the identity (straight-through). The codebook has no gradient: each
//! entry follows the mean of the vectors assigned to it, as an exponential moving average with decay `decay` over
//! batches, and one that is used less than once in a while takes the place of a vector of the batch (Dhariwal et al.
//! 2020). The codebook and its averages are buffers.
//!
//! `log_prob` is ln p(x, indices(x)) = ln p(x | e) + ln p(indices): one term of the sum over all grids of indices, so a
//! deterministic lower bound on ln p(x).

use super::likelihood::{Likelihood, Observation, Observer};
use super::network::{Down, Layer, Sizes, Up};
use crate::autograd;
use crate::cpu::gemm::Act;
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::models::autoregressive::pixelcnn::{self, PixelCnn};
use crate::models::statistic::table;
use crate::models::{Batch, Input, LogProb, Model, ModelInfo, SampleOptions, Statistic, Statistics};
use crate::nn::{Init, Initial, Param, ParamStore};
use crate::ops::index::{gather_rows, scatter_rows};
use crate::ops::matmul::matmul;
use crate::ops::{binary, shape};
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// The registry's line.
pub const INFO: ModelInfo = ModelInfo {
    name: "vqvae",
    family: "latent",
    summary: "vector-quantised autoencoder with a PixelCNN over the codes (van den Oord et al. 2017)",
    objective: "surprisal of data and codes plus commitment, nats",
    reproduce: "surprisal train vqvae28 --data fashion-mnist-train-images --set train.steps=10500, as in benches/results/images.md: \
                at most 3.47 bits/dim on the test images",
    presets: &[("vqvae28", VQVAE28)],
    tiny: &[
        "shape=[8, 8, 1]",
        "channels=[4]",
        "codes=5",
        "width=3",
        "components=1",
        "prior_channels=16",
        "prior_depth=1",
    ],
    build: |config, rng| {
        let config = serde_json::from_value(config.clone())
            .map_err(|e| Error::new(ErrorKind::Usage, format!("vqvae: {e}")))?;
        Ok(Box::new(VqVae::new(config, DType::F32, rng)?))
    },
};

const VQVAE28: &str = r#"
shape = [28, 28, 1]
channels = [32, 64]
codes = 64
width = 32
commitment = 0.25
decay = 0.99
likelihood = "logistic"
levels = 256
components = 5
prior_channels = 64
prior_depth = 4
[train]
batch = 64
"#;

/// What a [`VqVae`] is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Of an image: `[H, W, C]`.
    pub shape: Vec<usize>,
    /// Channels behind each 4x4/2 convolution of the encoder, mirrored in the decoder.
    pub channels: Vec<usize>,
    /// Entries of the codebook, 2 to 256.
    pub codes: usize,
    /// Numbers in an entry.
    pub width: usize,
    /// The weight of the commitment term.
    pub commitment: f64,
    /// The decay of the codebook's moving averages, in [0, 1).
    pub decay: f64,
    /// The family of p(x | z).
    pub likelihood: Likelihood,
    /// Values of a byte, 2 or 256.
    pub levels: usize,
    /// Components of a mixture of logistics.
    pub components: usize,
    /// Channels of the prior.
    pub prior_channels: usize,
    /// Residual blocks of the prior.
    pub prior_depth: usize,
}

/// The codebook with its moving averages, per batch.
struct Codebook {
    /// (K, width).
    entries: Param,
    /// (K,) vectors assigned.
    counts: Param,
    /// (K, width) their sum.
    sums: Param,
}

/// The model; see the module's description.
pub struct VqVae {
    config: Config,
    store: ParamStore,
    observer: Observer,
    encoder: Down,
    /// From the encoder's channels to the width of the entries, and back.
    narrow: Layer,
    widen: Layer,
    codebook: Codebook,
    decoder: Up,
    prior: PixelCnn,
}

impl VqVae {
    /// A model with fresh parameters in `dtype`.
    ///
    /// # Errors
    /// When the configuration is impossible.
    pub fn new(config: Config, dtype: DType, rng: &mut Philox) -> Result<Self> {
        let fail = |what: String| Err(Error::new(ErrorKind::Usage, format!("vqvae: {what}")));
        let Config {
            shape, channels, codes, width, commitment, decay, likelihood, levels, components, ..
        } = config.clone();
        if !(2..=256).contains(&codes) || !(1..=1 << 12).contains(&width) {
            return fail(format!("codes = {codes}, width = {width}; expected 2 to 256 and 1 to 4096"));
        }
        if !(commitment >= 0.0 && commitment.is_finite() && (0.0..1.0).contains(&decay)) {
            return fail(format!(
                "commitment = {commitment}, decay = {decay}; expected at least 0, and [0, 1)"
            ));
        }
        if components == 0 || components > 64 || channels.is_empty() || shape.len() != 3 {
            return fail("expected an image, at least one convolution and 1 to 64 components".into());
        }
        let sizes = Sizes { shape, channels, hidden: Vec::new() };
        let per_pixel = Observer::per_pixel(likelihood, &sizes.shape, components);
        sizes.check("vqvae", width, per_pixel)?;
        let [h, w, top] = sizes.bottom();
        let mut store = ParamStore::default();
        let mut init = Init::new(&mut store, rng, dtype);
        let observer =
            Observer::new(&mut init, "vqvae", likelihood, &sizes.shape, (levels, components), dtype)?;
        let encoder = Down::new(&mut init.sub("enc"), &sizes);
        let narrow = Layer::dense(&mut init, "narrow", top, width);
        let mut book = init.sub("codebook");
        let codebook = Codebook {
            entries: book.buffer("entries", [codes, width], dtype, Initial::Normal(1.0)),
            counts: book.buffer("counts", [codes], dtype, Initial::Constant(1.0)),
            sums: book.buffer("sums", [codes, width], dtype, Initial::Zeros),
        };
        codebook.sums.set(&codebook.entries.get());
        let widen = Layer::dense(&mut init, "widen", width, top);
        let decoder = Up::new(&mut init.sub("dec"), 0, &sizes, per_pixel);
        let prior = pixelcnn::Config {
            shape: [h, w, 1],
            channels: config.prior_channels,
            depth: config.prior_depth,
            levels: codes,
            classes: 0,
        };
        let prior = PixelCnn::new(prior, dtype, rng).map_err(|e| e.at("vqvae: prior"))?;
        store.adopt("prior", prior.params());
        Ok(Self { config, store, observer, encoder, narrow, widen, codebook, decoder, prior })
    }

    /// The indices (B, h, w, 1) u8 of the examples x (B, ...).
    ///
    /// # Panics
    /// When x is of another shape.
    #[track_caller]
    pub fn indices(&self, x: &Tensor, rng: &mut Philox) -> Tensor {
        autograd::no_grad(|| self.nearest(&self.vectors(&self.observer.observe(x, rng))))
    }

    /// z (B, h, w, width).
    fn vectors(&self, of: &Observation) -> Tensor {
        self.narrow.apply(&self.encoder.run(&of.input), Act::None)
    }

    /// The nearest entry of each vector, (B, h, w, 1) u8.
    fn nearest(&self, z: &Tensor) -> Tensor {
        let ([b, h, w, width], entries) = (z.dims(), self.codebook.entries.get());
        let flat = z.detach().reshape([b * h * w, width]);
        // −|z − e|² / 2 + |z|² / 2
        let closeness = &matmul(&flat, &entries, false, true) - &entries.square().sum(&[1]).affine(0.5, 0.0);
        let codes = self.config.codes;
        // The first of the closest; of a row without numbers the last entry.
        let best = binary::eq(&closeness, &closeness.max(&[1]).reshape([b * h * w, 1]));
        let from_behind = shape::arange(codes).cast(z.dtype()).affine(-1.0, codes as f64);
        let first = (&best * &from_behind).max(&[1]).affine(-1.0, codes as f64);
        first.clamp(0.0, codes as f64 - 1.0).cast(DType::U8).reshape([b, h, w, 1])
    }

    /// The entries (B, h, w, width) at indices (B, h, w, 1).
    fn entries(&self, indices: &Tensor) -> Tensor {
        let [b, h, w, _] = indices.dims();
        gather_rows(&self.codebook.entries.get(), &indices.reshape([b, h, w]))
    }

    /// ln p(x | codes), in the units of the data, and ln p(codes), both (B,).
    fn parts(&self, x: &Tensor, rng: &mut Philox) -> (Tensor, Tensor) {
        let of = self.observer.observe(x, rng);
        let indices = autograd::no_grad(|| self.nearest(&self.vectors(&of)));
        let data = self.observer.log_likelihood(&self.decode(&self.entries(&indices)), &of);
        let codes = self.prior.log_prob(&Batch::new(indices), rng).nats;
        (data.affine(1.0, of.log_det), codes)
    }

    /// The decoder's outputs for entries (B, h, w, width).
    fn decode(&self, entries: &Tensor) -> Tensor {
        self.decoder.run(&self.widen.apply(entries, Act::Relu))
    }

    /// Moves the codebook towards the vectors z that were assigned to its entries.
    fn follow(&self, z: &Tensor, indices: &Tensor, rng: &mut Philox) {
        let [b, h, w, width] = z.dims();
        let (rows, codes, decay) = (b * h * w, self.config.codes, self.config.decay);
        let (flat, at) = (z.detach().reshape([rows, width]), indices.reshape([rows]));
        let Codebook { entries, counts, sums } = &self.codebook;
        let blend = |old: &Param, new: Tensor| &old.get().affine(decay, 0.0) + &new.affine(1.0 - decay, 0.0);
        let used = blend(counts, scatter_rows(&Tensor::ones([rows], z.dtype()), &at, codes));
        let sum = blend(sums, scatter_rows(&flat, &at, codes));
        let elsewhere = gather_rows(&flat, &rng.randint(0, rows as i32, [codes]).beside(&flat));
        let dead = binary::gt(&Tensor::scalar(LEAST, z.dtype()), &used);
        let sum = binary::select(&dead.reshape([codes, 1]), &elsewhere, &sum);
        let used = binary::select(&dead, &used.ones_like(), &used);
        entries.set(&(&sum / &used.reshape([codes, 1])));
        counts.set(&used);
        sums.set(&sum);
    }
}

/// An entry with fewer vectors per batch than this starts again elsewhere.
const LEAST: f64 = 0.05;

impl Model for VqVae {
    fn config(&self) -> serde_json::Value {
        serde_json::to_value(&self.config).expect("a configuration is plain data")
    }

    fn input(&self) -> Input {
        let (dtypes, levels) = (self.observer.dtypes(), self.observer.levels());
        Input { shape: self.config.shape.clone(), dtypes, levels, ..Input::default() }
    }

    fn params(&self) -> &ParamStore {
        &self.store
    }

    fn log_prob(&self, batch: &Batch, rng: &mut Philox) -> LogProb {
        let (data, codes) = self.parts(&batch.x, rng);
        LogProb { nats: &data + &codes, kind: self.observer.kind(), per_position: None }
    }

    fn sample(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor> {
        options.check("vqvae", 0)?;
        let indices = self.prior.sample(n, options, rng)?;
        Ok(autograd::no_grad(|| {
            self.observer.sample(&self.decode(&self.entries(&indices)), options.temperature, rng)
        }))
    }

    /// Also moves the codebook, where gradients are recorded.
    fn objective(&self, batch: &Batch, rng: &mut Philox) -> Tensor {
        let of = self.observer.observe(&batch.x, rng);
        let z = self.vectors(&of);
        let indices = self.nearest(&z);
        let entries = self.entries(&indices);
        let through = &z + &(&entries - &z).detach();
        let data = self.observer.log_likelihood(&self.decode(&through), &of);
        let codes = self.prior.log_prob(&Batch::new(indices.clone()), rng).nats;
        let committed = (&z - &entries).square().sum_examples().affine(self.config.commitment, -of.log_det);
        if z.var().is_some() {
            autograd::no_grad(|| self.follow(&z, &indices, rng));
        }
        &committed - &(&data + &codes)
    }

    /// The codebook starts with vectors of the first batch.
    fn init_from(&self, train: &Dataset, batch: &Batch, rng: &mut Philox) {
        self.observer.fit(train);
        let z = self.vectors(&self.observer.observe(&batch.x, rng));
        let (codes, width) = (self.config.codes, self.config.width);
        let rows = z.len() / width;
        let order = rng.permutation(rows);
        let vectors = z.to_f64_vec();
        let entries =
            Tensor::from_fn([codes, width], |i| vectors[order[i / width % rows] * width + i % width]);
        self.codebook.entries.set(&entries.cast(z.dtype()));
        self.codebook.sums.set(&entries.cast(z.dtype()));
        self.codebook.counts.set(&Tensor::ones([codes], z.dtype()));
    }

    fn statistics(&self) -> Option<&dyn Statistics> {
        Some(self)
    }
}

impl Statistics for VqVae {
    fn offered(&self) -> &'static [Statistic] {
        &[Statistic::Terms]
    }

    /// ln p(x | codes) and ln p(codes).
    fn compute(&self, which: Statistic, batch: &Batch, rng: &mut Philox) -> Tensor {
        assert_eq!(which, Statistic::Terms, "vqvae: a statistic that it does not offer");
        autograd::no_grad(|| {
            let (data, codes) = self.parts(&batch.x, rng);
            table(&[data, codes])
        })
    }
}
