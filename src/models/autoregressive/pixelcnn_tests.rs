use super::*;
use crate::autograd;

/// The logits met on a walk along given images are those of the full forward pass.
#[test]
fn a_walk_sees_the_logits_of_the_full_pass() {
    for (shape, channels, classes, n) in
        [([9, 8, 1], 8, 0, 1), ([6, 4, 1], 16, 3, 13), ([5, 7, 3], 12, 0, 5), ([1, 1, 2], 4, 2, 2)]
    {
        let config = Config { shape, channels, depth: 2, levels: 19, classes };
        let mut rng = Philox::new(5);
        let model = PixelCnn::new(config, DType::F32, &mut rng).unwrap();
        let x = rng.randint(0, 19, [n, shape[0], shape[1], shape[2]]).cast(DType::U8);
        let label = (classes > 0).then_some(1);
        let labels = label.map(|l| Tensor::full(l as f64, [n], DType::I32));
        let full = autograd::no_grad(|| model.logits(&x, labels.as_ref()));
        let (full, bytes) = (full.as_slice::<f32>(), x.as_slice::<u8>());
        let each: usize = shape.iter().product();
        let mut worst = 0f32;
        Points::<f32>::new(&model, label)
            .walk(n.min(12), |at, image, logits, _| {
                let at = image * each + at;
                for (a, b) in logits.iter().zip(&full[at * 19..][..19]) {
                    worst = worst.max((a - b).abs());
                }
                Ok(bytes[at])
            })
            .unwrap();
        assert!(worst <= 1e-5, "{shape:?}: logits differ by {worst}");
    }
}

#[test]
fn impossible_configurations_are_named() {
    let good = Config { shape: [4, 4, 1], channels: 8, depth: 1, levels: 4, classes: 0 };
    assert!(good.check().is_ok());
    for (bad, what) in [
        (Config { shape: [0, 4, 1], ..good.clone() }, "shape"),
        (Config { channels: 7, ..good.clone() }, "multiple of 2"),
        (Config { shape: [4, 4, 3], ..good.clone() }, "multiple of 6"),
        (Config { levels: 1, ..good.clone() }, "levels"),
        (Config { channels: 65536, ..good.clone() }, "parameters"),
        (Config { classes: usize::MAX, ..good.clone() }, "parameters"),
    ] {
        let message = bad.check().unwrap_err().to_string();
        assert!(message.contains(what), "{message}");
    }
}

/// Relus that leave their gradient to the next convolution give the gradients of the primitives.
#[test]
fn gradients_are_those_of_the_primitives() {
    for (shape, channels, classes) in [([5, 6, 1], 8, 2), ([3, 4, 3], 24, 0)] {
        let config = Config { shape, channels, depth: 2, levels: 11, classes };
        let mut rng = Philox::new(6);
        let model = PixelCnn::new(config, DType::F64, &mut rng).unwrap();
        let x = rng.randint(0, 11, [3, shape[0], shape[1], shape[2]]).cast(DType::U8);
        let batch = Batch { x, labels: (classes > 0).then(|| Tensor::from_slice(&[0i32, 1, 1], [3])) };
        let grads = || {
            let leaves: Vec<Tensor> = model.params().iter().map(|(_, p)| p.get()).collect();
            let nats = model.log_prob(&batch, &mut Philox::new(0)).nats.mean_all();
            autograd::backward(nats, &leaves.iter().collect::<Vec<_>>())
        };
        let error = crate::testing::max_error(&grads(), &autograd::higher_order(grads));
        assert!(error < 1e-10, "{shape:?}: gradients differ by {error:e}");
    }
}
