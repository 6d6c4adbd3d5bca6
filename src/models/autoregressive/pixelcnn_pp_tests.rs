use super::*;

/// The mixture parameters met on a walk along given images are those of the full forward pass.
#[test]
fn a_walk_sees_the_parameters_of_the_full_pass() {
    for (shape, classes, n) in [([6, 7, 1], 0, 1), ([5, 4, 3], 0, 5), ([4, 5, 1], 2, 7)] {
        let config = Config { shape, channels: 6, depth: 2, components: 3, classes, dropout: 0.5 };
        let mut rng = Philox::new(5);
        let model = PixelCnnPp::new(config, DType::F32, &mut rng).unwrap();
        let [h, w, c] = shape;
        let x = rng.randint(0, 256, [n, h, w, c]).cast(DType::U8);
        let label = (classes > 0).then_some(1);
        let labels = label.map(|l| Tensor::full(l as f64, [n], DType::I32));
        let pixels = x.cast(DType::F32).affine(1.0 / 127.5, -1.0);
        let full = autograd::no_grad(|| model.mixture(&pixels, labels.as_ref(), &mut rng));
        let (p, bytes) = (full.shape()[3], x.as_slice::<u8>());
        let mut worst = 0f32;
        Points::new(&model, label)
            .walk(n, |at, image, params| {
                let at = image * h * w + at;
                for (a, b) in params.iter().zip(&full.as_slice::<f32>()[at * p..][..p]) {
                    worst = worst.max((a - b).abs());
                }
                let mut values = [0; 3];
                values[..c].copy_from_slice(&bytes[at * c..][..c]);
                Ok(values)
            })
            .unwrap();
        assert!(worst <= 1e-5, "{shape:?}: parameters differ by {worst}");
    }
}
