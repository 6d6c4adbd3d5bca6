//! A model small enough for tests of what surrounds models.

use serde::Deserialize;
use serde_json::{Value, json};
use surprisal::data::Dataset;
use surprisal::models::{Batch, Input, Kind, LogProb, Model, ModelInfo, SampleOptions};
use surprisal::nn::{Init, Initial, Param, ParamStore};
use surprisal::random::Philox;
use surprisal::{DType, Error, ErrorKind, Result, Tensor};

/// Independent normal pixels with a mean and a log-scale each, in units of 64 grey levels around 128.
pub struct Gauss {
    config: Config,
    store: ParamStore,
    mean: Param,
    log_scale: Param,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    shape: Vec<usize>,
    noise: f64,
    name: String,
    extra: Extra,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Extra {
    layers: usize,
    deep: bool,
}

/// The registry of the tests.
pub static GAUSS: ModelInfo = ModelInfo {
    name: "gauss",
    family: "test",
    summary: "independent normal pixels",
    objective: "surprisal, nats",
    reproduce: "a test",
    presets: &[
        (
            "gauss4",
            "shape = [4, 4, 1]\nnoise = 0.5\nname = \"a\"\n[extra]\nlayers = 1\ndeep = false\n[train]\nbatch = 8",
        ),
        ("gauss8", "shape = [8, 8, 1]\nnoise = 0.0\nname = \"b\"\n[extra]\nlayers = 2\ndeep = true"),
    ],
    tiny: &["shape=[2, 2, 1]"],
    build,
};

/// The test's list of models.
pub static MODELS: &[&ModelInfo] = &[&GAUSS];

fn build(config: &Value, rng: &mut Philox) -> Result<Box<dyn Model>> {
    let wrong = |m: String| Error::new(ErrorKind::Usage, m);
    let config = Config::deserialize(config).map_err(|e| wrong(e.to_string()))?;
    if config.shape.is_empty() || config.shape.len() > 4 || config.shape.contains(&0) {
        return Err(wrong(format!("shape {:?}", config.shape)));
    }
    let mut store = ParamStore::default();
    let mut init = Init::new(&mut store, rng, DType::F32);
    let mean = init.sub("mean").param("weight", &config.shape, Initial::Normal(0.1));
    let log_scale = init.sub("scale").param("weight", &config.shape, Initial::Zeros);
    for i in 1..config.extra.layers {
        init.sub("unused").sub(i).param("bias", [3], Initial::Zeros);
    }
    Ok(Box::new(Gauss { config, store, mean, log_scale }))
}

impl Model for Gauss {
    fn config(&self) -> Value {
        let Config { shape, noise, name, extra } = &self.config;
        json!({"shape": shape, "noise": noise, "name": name, "extra": {"layers": extra.layers, "deep": extra.deep}})
    }

    fn input(&self) -> Input {
        Input { shape: self.config.shape.clone(), dtypes: &[DType::U8, DType::F32], ..Input::default() }
    }

    fn params(&self) -> &ParamStore {
        &self.store
    }

    fn log_prob(&self, batch: &Batch, rng: &mut Philox) -> LogProb {
        let noise = rng.uniform(batch.x.shape(), DType::F32).affine(self.config.noise, 0.0);
        let x = &batch.x.cast(DType::F32).affine(1.0 / 64.0, -2.0) + &noise;
        let z = &(&x - &self.mean.get()) * &self.log_scale.get().affine(-1.0, 0.0).exp();
        let nats = &(&z * &z).affine(-0.5, -0.918_938_5 - 64f64.ln()) - &self.log_scale.get();
        let nats = nats.sum_examples();
        LogProb { nats, kind: Kind::Exact, per_position: None }
    }

    fn sample(&self, n: usize, options: &SampleOptions, rng: &mut Philox) -> Result<Tensor> {
        let mut shape = vec![n];
        shape.extend(&self.config.shape);
        let z = rng.normal(shape, DType::F32).affine(options.temperature, 0.0);
        let x = &(&z * &self.log_scale.get().exp()) + &self.mean.get();
        let bytes = x.to_f64_vec().into_iter().map(|x| (64.0 * x + 128.0) as u8);
        Ok(Tensor::from_slice(&bytes.collect::<Vec<_>>(), x.shape()))
    }
}

/// `n` images of bytes: a bright diagonal on noise.
pub fn images(n: usize, side: usize, seed: u64) -> Dataset {
    let noise = Philox::new(seed).randint(0, 100, [n, side, side, 1]);
    let noise = noise.as_slice::<i32>();
    let values = Tensor::from_fn([n, side, side, 1], |i| {
        let (y, x) = (i / side % side, i % side);
        noise[i] as u8 + if x == y { 120 } else { 0 }
    });
    Dataset::new("diagonal", values)
}
