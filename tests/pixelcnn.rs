//! What makes an autoregressive image model one: causality, total mass 1, exact sums, seeded samples.

use surprisal::models::autoregressive::pixelcnn::{Config, PixelCnn};
use surprisal::models::autoregressive::pixelcnn_pp::{self, PixelCnnPp};
use surprisal::models::{Batch, Kind, MODELS, Model, SampleOptions};
use surprisal::random::Philox;
use surprisal::{DType, Tensor, autograd};

fn model(shape: [usize; 3], levels: usize, classes: usize, dtype: DType) -> PixelCnn {
    // Wide enough that no relu cuts a path off for all channels of a colour.
    let config = Config { shape, channels: 48, depth: 2, levels, classes };
    PixelCnn::new(config, dtype, &mut Philox::new(1)).unwrap()
}

/// All images of `len` values below `levels`.
fn all_images(len: usize, levels: usize) -> Vec<u8> {
    (0..levels.pow(len as u32))
        .flat_map(|n| (0..len).map(move |i| (n / levels.pow(i as u32) % levels) as u8))
        .collect()
}

#[test]
fn the_preset_is_the_reference_architecture() {
    let recipe = surprisal::models::config::find(MODELS, "pixelcnn28").unwrap();
    let model = recipe.build().unwrap();
    assert_eq!(model.params().count(), 104_640);
    assert_eq!(model.config(), recipe.config);
}

#[test]
fn no_output_sees_its_own_pixel_or_a_later_one() {
    for shape in [[6, 5, 1], [4, 5, 3], [3, 3, 2]] {
        let model = model(shape, 5, 0, DType::F64);
        let [h, w, c] = shape;
        let pixels = Philox::new(2).normal([1, h, w, c], DType::F64).requires_grad();
        let logits = model.logits_of(&pixels, None).reshape([h * w * c, 5]);
        let mut earlier = 0;
        for at in 0..h * w * c {
            let one = logits.narrow(0, at, 1).sum_all();
            let unit = Tensor::scalar(1.0, DType::F64);
            let grads = autograd::grad(&[&one], &[&unit], &[&pixels], false);
            let grads = grads[0].as_ref().map_or(vec![0.0; h * w * c], Tensor::to_f64_vec);
            assert!(grads[at..].iter().all(|g| *g == 0.0), "{shape:?}: output {at} sees {:?}", &grads[at..]);
            earlier += grads[..at].iter().filter(|g| **g != 0.0).count();
            // The neighbours to the left, above, and the colours before are seen.
            if at % c > 0 {
                assert!(grads[at - 1] != 0.0, "{shape:?}: output {at} does not see the colour before");
            }
            if at / c % w > 0 {
                assert!(grads[at - c] != 0.0, "{shape:?}: output {at} does not see its left neighbour");
            }
            if at / c >= w {
                assert!(grads[at - w * c] != 0.0, "{shape:?}: output {at} does not see the pixel above");
            }
        }
        assert!(earlier > 0);
    }
}

#[test]
fn probabilities_of_all_images_sum_to_one() {
    for (shape, levels, classes) in
        [([2, 2, 1], 3, 0), ([1, 2, 3], 2, 0), ([2, 2, 1], 2, 2), ([1, 1, 1], 7, 0)]
    {
        let model = model(shape, levels, classes, DType::F64);
        let len = shape.iter().product();
        let images = all_images(len, levels);
        let n = images.len() / len;
        let x = Tensor::from_slice(&images, [n, shape[0], shape[1], shape[2]]);
        for label in 0..classes.max(1) {
            let labels = (classes > 0).then(|| Tensor::full(label as f64, [n], DType::I32));
            let got = model.log_prob(&Batch { x: x.clone(), labels }, &mut Philox::new(0));
            assert_eq!(got.kind, Kind::Exact);
            let total: f64 = got.nats.exp().to_f64_vec().iter().sum();
            assert!((total - 1.0).abs() < 1e-12, "{shape:?}: total probability {total}");
        }
    }
}

#[test]
fn positions_sum_to_the_whole_and_every_parameter_has_a_gradient() {
    for (shape, classes) in [([7, 6, 1], 0), ([5, 6, 3], 0), ([6, 6, 1], 4)] {
        let model = model(shape, 256, classes, DType::F64);
        let x = Philox::new(3).randint(0, 256, [8, shape[0], shape[1], shape[2]]).cast(DType::U8);
        let labels = (classes > 0).then(|| Tensor::from_fn([8], |i| (i % classes) as i32));
        let got = model.log_prob(&Batch { x, labels }, &mut Philox::new(0));
        let per = got.per_position.as_ref().unwrap();
        assert_eq!(per.shape(), [8, shape[0], shape[1], shape[2]]);
        for (sum, nats) in per.sum_examples().to_f64_vec().iter().zip(got.nats.to_f64_vec()) {
            assert!((sum - nats).abs() < 1e-9 * nats.abs());
        }
        let leaves: Vec<(&str, Tensor)> = model.params().iter().map(|(name, p)| (name, p.get())).collect();
        let wrt: Vec<&Tensor> = leaves.iter().map(|(_, t)| t).collect();
        let grads = autograd::backward(got.nats.mean_all(), &wrt);
        for ((name, _), g) in leaves.iter().zip(&grads) {
            assert!(g.to_f64_vec().iter().any(|g| *g != 0.0), "{name} has no gradient");
        }
    }
}

#[test]
fn samples_follow_the_seed_and_not_the_threads_or_the_number() {
    let model = model([6, 5, 3], 4, 0, DType::F32);
    let draw = |n: usize| model.sample(n, &SampleOptions::default(), &mut Philox::new(9)).unwrap();
    let many = draw(30);
    assert_eq!((many.shape(), many.dtype()), (&[30, 6, 5, 3][..], DType::U8));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(pool.install(|| draw(30)).as_bytes(), many.as_bytes());
    assert_eq!(draw(3).as_bytes(), &many.as_bytes()[..3 * 90]);
    let other = model.sample(30, &SampleOptions::default(), &mut Philox::new(10)).unwrap();
    assert!(other.as_bytes() != many.as_bytes());
}

/// With the last layer set by hand the distribution is known: samples must follow it.
#[test]
fn samples_follow_the_probabilities() {
    let model = model([1, 1, 1], 3, 0, DType::F32);
    for (name, param) in model.params().iter() {
        let value = match name {
            "logits.weight" => Tensor::zeros(param.get().shape(), DType::F32),
            "logits.bias" => Tensor::from_slice(&[0.6f32.ln(), 0.1f32.ln(), 0.3f32.ln()], [3]),
            _ => continue,
        };
        param.set(&value);
    }
    let n = 20_000;
    let x = model.sample(n, &SampleOptions::default(), &mut Philox::new(4)).unwrap();
    for (value, p) in [0.6, 0.1, 0.3].into_iter().enumerate() {
        let share = x.as_slice::<u8>().iter().filter(|b| **b as usize == value).count() as f64 / n as f64;
        // Five standard deviations.
        assert!((share - p).abs() < 5.0 * (p * (1.0 - p) / n as f64).sqrt(), "{value}: {share} for {p}");
    }
}

#[test]
fn a_class_changes_the_likelihood_and_is_asked_for() {
    let model = model([3, 3, 1], 4, 2, DType::F64);
    let x = Philox::new(3).randint(0, 4, [2, 3, 3, 1]).cast(DType::U8);
    let nats = |label: i32| {
        let labels = Some(Tensor::full(label as f64, [2], DType::I32));
        model.log_prob(&Batch { x: x.clone(), labels }, &mut Philox::new(0)).nats.to_f64_vec()
    };
    assert!(nats(0) != nats(1));
    let mut rng = Philox::new(1);
    for label in [None, Some(-1), Some(2)] {
        let options = SampleOptions { label, ..SampleOptions::default() };
        assert!(model.sample(1, &options, &mut rng).is_err(), "{label:?}");
    }
    let options = SampleOptions { label: Some(1), ..SampleOptions::default() };
    assert!(model.sample(1, &options, &mut rng).is_ok());
}

fn gated(shape: [usize; 3], classes: usize, dropout: f64, dtype: DType) -> PixelCnnPp {
    let config = pixelcnn_pp::Config { shape, channels: 6, depth: 2, components: 3, classes, dropout };
    PixelCnnPp::new(config, dtype, &mut Philox::new(1)).unwrap()
}

#[test]
fn gated_mixtures_see_all_earlier_pixels_and_no_other() {
    for c in [1, 3] {
        let (h, w) = (5, 6);
        let model = gated([h, w, c], 0, 0.0, DType::F64);
        let pixels = Philox::new(2).normal([1, h, w, c], DType::F64).requires_grad();
        let mixture = model.mixture(&pixels, None, &mut Philox::new(0));
        let mixture = mixture.reshape([h * w, mixture.shape()[3]]);
        for at in 0..h * w {
            let one = mixture.narrow(0, at, 1).sum_all();
            let grads = autograd::grad(&[&one], &[&Tensor::scalar(1.0, DType::F64)], &[&pixels], false);
            let grads = grads[0].as_ref().map_or(vec![0.0; h * w * c], Tensor::to_f64_vec);
            assert!(grads[at * c..].iter().all(|g| *g == 0.0), "pixel {at} sees {:?}", &grads[at * c..]);
            // Two blocks reach three rows up and any column there within reach: no blind spot.
            let (i, j) = (at / w, at % w);
            for (y, x) in [
                (i.wrapping_sub(1), j),
                (i.wrapping_sub(1), j + 1),
                (i, j.wrapping_sub(1)),
                (i.wrapping_sub(2), j + 2),
            ] {
                if y < h && x < w {
                    assert!(grads[(y * w + x) * c] != 0.0, "pixel ({i}, {j}) does not see ({y}, {x})");
                }
            }
        }
    }
}

#[test]
fn gated_mixtures_are_normalised() {
    let model = gated([1, 2, 1], 0, 0.0, DType::F64);
    let x = Tensor::from_slice(&all_images(2, 256), [65536, 1, 2, 1]);
    let got = autograd::no_grad(|| model.log_prob(&Batch::new(x), &mut Philox::new(0)));
    let total: f64 = got.nats.exp().to_f64_vec().iter().sum();
    assert!((total - 1.0).abs() < 1e-10, "total probability {total}");
    let model = gated([1, 1, 3], 0, 0.0, DType::F64);
    // Blue given every red and green, at a few of them.
    for (red, green) in [(0u8, 0u8), (255, 13), (100, 200)] {
        let x: Vec<u8> = (0..=255).flat_map(|blue| [red, green, blue]).collect();
        let got = model.log_prob(&Batch::new(Tensor::from_slice(&x, [256, 1, 1, 3])), &mut Philox::new(0));
        assert!(got.nats.exp().to_f64_vec().iter().sum::<f64>() <= 1.0);
    }
}

#[test]
fn gated_mixtures_have_gradients_classes_dropout_and_seeded_samples() {
    let model = gated([6, 5, 3], 2, 0.5, DType::F64);
    let x = Philox::new(3).randint(0, 256, [4, 6, 5, 3]).cast(DType::U8);
    let batch = Batch { x, labels: Some(Tensor::from_slice(&[0i32, 1, 1, 0], [4])) };
    let nats = |seed: u64| model.log_prob(&batch, &mut Philox::new(seed));
    let leaves: Vec<(&str, Tensor)> = model.params().iter().map(|(name, p)| (name, p.get())).collect();
    let grads =
        autograd::backward(nats(0).nats.mean_all(), &leaves.iter().map(|(_, t)| t).collect::<Vec<_>>());
    for ((name, _), g) in leaves.iter().zip(&grads) {
        assert!(g.to_f64_vec().iter().any(|g| *g != 0.0), "{name} has no gradient");
    }
    assert!(nats(0).nats.to_f64_vec() != nats(1).nats.to_f64_vec(), "dropout acts while recording");
    let scored = |seed: u64| autograd::no_grad(|| nats(seed).nats.to_f64_vec());
    assert_eq!(scored(0), scored(1));
    let options = SampleOptions { label: Some(1), ..SampleOptions::default() };
    let draw = |n: usize| model.sample(n, &options, &mut Philox::new(9)).unwrap();
    let many = draw(14);
    assert_eq!(many.shape(), [14, 6, 5, 3]);
    assert_eq!(draw(3).as_bytes(), &many.as_bytes()[..3 * 90]);
}
