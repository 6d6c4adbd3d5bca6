//! scratch
use std::time::Instant;
use surprisal::models::{Batch, MODELS, Model, SampleOptions};
use surprisal::random::Philox;
use surprisal::{DType, Tensor, autograd};

struct Adam {
    m: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
    t: i32,
}
impl Adam {
    fn step(&mut self, model: &dyn Model, grads: &[Tensor], lr: f32, l2: f32, wd: f32, b2: f32) {
        self.t += 1;
        let (c1, c2) = (1.0 - 0.9f32.powi(self.t), 1.0 - b2.powi(self.t));
        for (i, (_, p)) in model.params().iter().enumerate() {
            let g = grads[i].as_slice::<f32>();
            if self.m.len() <= i {
                self.m.push(vec![0.0; g.len()]);
                self.v.push(vec![0.0; g.len()]);
            }
            let (m, v) = (&mut self.m[i], &mut self.v[i]);
            p.update(|t| {
                let w = t.make_mut::<f32>();
                for k in 0..w.len() {
                    let g = g[k] + l2 * w[k];
                    m[k] += 0.1 * (g - m[k]);
                    v[k] += (1.0 - b2) * (g * g - v[k]);
                    w[k] -= lr * ((m[k] / c1) / ((v[k] / c2).sqrt() + 1e-8) + wd * w[k]);
                }
            });
        }
    }
}
fn rows(x: &Tensor, at: &[usize]) -> Tensor {
    let s = x.as_slice::<u8>();
    let out: Vec<u8> = at.iter().flat_map(|&i| s[i * 784..][..784].iter().copied()).collect();
    Tensor::from_slice(&out, [at.len(), 28, 28, 1])
}
fn step(model: &dyn Model, x: Tensor, rng: &mut Philox) -> (f64, Vec<Tensor>) {
    let leaves: Vec<Tensor> = model.params().iter().map(|(_, p)| p.get()).collect();
    let wrt: Vec<&Tensor> = leaves.iter().collect();
    let loss = -&model.log_prob(&Batch::new(x), rng).nats.mean_all();
    let l = loss.item();
    (l, autograd::backward(loss, &wrt))
}
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let get = |k: &str, d: f64| {
        a.iter().find_map(|s| s.strip_prefix(&format!("{k}="))).map_or(d, |v| v.parse().unwrap())
    };
    let name = a.get(2).map_or("pixelcnn28", String::as_str);
    let mut recipe = surprisal::models::config::find(MODELS, name).unwrap();
    for s in a.iter().filter_map(|s| s.strip_prefix("set:")) {
        recipe.set(&[s]).unwrap();
    }
    let model = recipe.build().unwrap();
    let mut rng = Philox::new(1);
    match a[1].as_str() {
        "time" => {
            let x = rng.randint(0, 256, [32, 28, 28, 1]).cast(DType::U8);
            let mut adam = Adam { m: vec![], v: vec![], t: 0 };
            let (mut t, mut tf) = (vec![], vec![]);
            for _ in 0..get("n", 10.0) as usize {
                let t0 = Instant::now();
                let (_, g) = step(&*model, x.clone(), &mut rng);
                adam.step(&*model, &g, 1e-4, 0.0, 0.0, 0.999);
                t.push(t0.elapsed().as_secs_f64());
                let t0 = Instant::now();
                autograd::no_grad(|| model.log_prob(&Batch::new(x.clone()), &mut rng));
                tf.push(t0.elapsed().as_secs_f64());
            }
            t.sort_by(f64::total_cmp);
            tf.sort_by(f64::total_cmp);
            println!(
                "step median {:.1} ms min {:.1} -> {:.0}/s (best {:.0}); forward {:.1} ms min {:.1}",
                1e3 * t[t.len() / 2],
                1e3 * t[0],
                32.0 / t[t.len() / 2],
                32.0 / t[0],
                1e3 * tf[tf.len() / 2],
                1e3 * tf[0]
            );
            let mut ts = vec![];
            for _ in 0..3 {
                let t0 = Instant::now();
                model.sample(16, &SampleOptions::default(), &mut rng).unwrap();
                ts.push(t0.elapsed().as_secs_f64());
            }
            ts.sort_by(f64::total_cmp);
            println!(
                "sample 16: median {:.1} ms min {:.1} -> {:.0} images/s",
                1e3 * ts[1],
                1e3 * ts[0],
                16.0 / ts[1]
            );
        }
        "train" => {
            let read = |p: &str| {
                use std::io::Read;
                let mut v = vec![];
                flate2::read::GzDecoder::new(std::fs::File::open(p).unwrap()).read_to_end(&mut v).unwrap();
                let n = (v.len() - 16) / 784;
                Tensor::from_slice(&v[16..], [n, 28, 28, 1])
            };
            let x = read("data/fashion-mnist-train-images-idx3-ubyte.gz");
            let n = x.shape()[0] - 600;
            let (batch, steps, lr, l2, wd, mutation, clip, warm, b2) = (
                get("batch", 32.0) as usize,
                get("steps", 300.0) as usize,
                get("lr", 1e-3),
                get("l2", 0.0),
                get("wd", 0.0),
                get("mut", 0.0),
                get("clip", 0.0),
                get("warm", 0.0),
                get("b2", 0.999),
            );
            let mut adam = Adam { m: vec![], v: vec![], t: 0 };
            let mut order = vec![];
            let t0 = Instant::now();
            let mut avg = 0.0;
            for s in 0..steps {
                if order.len() < batch {
                    order = rng.permutation(n);
                }
                let at: Vec<usize> = order.drain(..batch).collect();
                let mut b = rows(&x, &at);
                if mutation > 0.0 {
                    let m = rng.bernoulli(mutation, b.shape(), DType::F32);
                    let r = rng.randint(0, 256, b.shape());
                    let (m, r) = (m.as_slice::<f32>().to_vec(), r.as_slice::<i32>().to_vec());
                    for (k, v) in b.make_mut::<u8>().iter_mut().enumerate() {
                        if m[k] > 0.0 {
                            *v = r[k] as u8
                        }
                    }
                }
                let (l, mut g) = step(&*model, b, &mut rng);
                if clip > 0.0 {
                    let norm = g
                        .iter()
                        .map(|g| g.as_slice::<f32>().iter().map(|x| (x * x) as f64).sum::<f64>())
                        .sum::<f64>()
                        .sqrt();
                    if norm > clip {
                        g = g.iter().map(|g| g.affine(clip / norm, 0.0)).collect();
                    }
                }
                let f = if (s as f64) < warm {
                    (s as f64 + 1.0) / warm
                } else {
                    0.5 * (1.0 + (std::f64::consts::PI * (s as f64 - warm) / (steps as f64 - warm)).cos())
                };
                adam.step(&*model, &g, (lr * f) as f32, l2 as f32, wd as f32, b2 as f32);
                avg = if s == 0 { l } else { 0.95 * avg + 0.05 * l };
                if (s + 1) % (get("every", 50.0) as usize) == 0 {
                    println!(
                        "step {} loss {:.1} avg {:.1} {:.0} samples/s",
                        s + 1,
                        l,
                        avg,
                        ((s + 1) * batch) as f64 / t0.elapsed().as_secs_f64()
                    );
                }
            }
            let mut total = 0.0;
            autograd::no_grad(|| {
                for c in 0..6 {
                    let at: Vec<usize> = (n + c * 100..n + c * 100 + 100).collect();
                    total += model.log_prob(&Batch::new(rows(&x, &at)), &mut rng).nats.sum_all().item();
                }
            });
            println!(
                "RESULT {} valid nats {:.1} bits/dim {:.4} time {:.1}",
                a[3..].join(" "),
                -total / 600.0,
                -total / 600.0 / 784.0 / 2f64.ln(),
                t0.elapsed().as_secs_f64()
            );
        }
        _ => {}
    }
}
