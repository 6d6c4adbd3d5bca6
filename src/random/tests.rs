use super::*;
use crate::nn::Initial;
use rand::{Rng, RngExt, SeedableRng};

/// Known answers of Random123 1.09, `kat_vectors`.
#[test]
fn published_vectors() {
    let cases = [
        ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([!0; 4], [!0; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ];
    for (counter, key, expected) in cases {
        assert_eq!(philox4x32(counter, key), expected);
    }
}

#[test]
fn words_follow_the_documented_layout() {
    let (seed, step) = (0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210);
    let mut rng = Philox::new(seed).at_step(step);
    rng.uniform([3], DType::F32);
    let mut words = vec![0; 3 * CHUNK + 7];
    rng.fill_words(&mut words);
    for (e, &w) in words.iter().enumerate() {
        let block = philox4x32([(e / 4) as u32, 1, 0x7654_3210, 0xfedc_ba98], [0x89ab_cdef, 0x0123_4567]);
        assert_eq!(w, block[e % 4], "element {e}");
    }
    assert_eq!(rng.state(), (seed, step, 2));
}

#[test]
fn neither_length_nor_threads_change_a_draw() {
    let draw = |n| Philox::new(7).normal([n], DType::F32);
    let long = draw(5 * CHUNK + 3);
    for n in [0, 1, 2, 3, 5, 511, 513, CHUNK + 1] {
        assert_eq!(draw(n).as_slice::<f32>(), &long.as_slice::<f32>()[..n]);
    }
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| draw(5 * CHUNK + 3)).as_bytes(), long.as_bytes());
    }
}

#[test]
fn state_resumes_and_forks_differ() {
    let mut rng = Philox::new(1).at_step(9);
    rng.normal([4], DType::F32);
    let json = serde_json::to_string(&rng).unwrap();
    let mut saved: Philox = serde_json::from_str(&json).unwrap();
    assert_eq!(saved, Philox::from_state(rng.state()));
    assert_eq!(saved.normal([9], DType::F64).as_bytes(), rng.normal([9], DType::F64).as_bytes());
    assert_ne!(rng.fork(0), rng.fork(1));
    assert_ne!(rng.fork(0), Philox::new(1));
    assert_eq!(rng.fork(3), Philox::new(1).fork(3));
}

/// Mean over sixteen seeds of the Kolmogorov-Smirnov statistic √n·sup |F_n − F|, which has mean 0.869 and standard
/// deviation 0.260 when `cdf` is right; the bound lies 4 standard errors above. Single seeds do stray: the first
/// 200,000 normals of seed 5 reach 2.26 (one in 14,000), those of seeds 0..1500 together follow the law.
fn follows(draw: impl Fn(&mut Philox) -> Tensor, cdf: impl Fn(f64) -> f64) {
    let statistic = |seed| {
        let mut x = draw(&mut Philox::new(seed)).to_f64_vec();
        x.sort_by(f64::total_cmp);
        let n = x.len() as f64;
        let gap = |(i, x): (usize, &f64)| {
            (cdf(*x) - i as f64 / n).abs().max((cdf(*x) - (i as f64 + 1.0) / n).abs())
        };
        x.iter().enumerate().map(gap).fold(0.0, f64::max) * n.sqrt()
    };
    let mean = (0..16).map(statistic).sum::<f64>() / 16.0;
    assert!(mean < 0.869 + 4.0 * 0.260 / 4.0, "mean Kolmogorov-Smirnov statistic {mean}");
}

/// Normal distribution function, linear between points 0.001 apart (error below 4e-8).
fn normal_cdf() -> impl Fn(f64) -> f64 {
    let density = |t: f64| (-0.5 * t * t).exp() / std::f64::consts::TAU.sqrt();
    let h = 1e-3;
    let mut table = vec![0.0];
    for i in 0..16_000 {
        let t = i as f64 * h - 8.0;
        let simpson = h / 6.0 * (density(t) + 4.0 * density(t + h / 2.0) + density(t + h));
        table.push(table[i] + simpson);
    }
    move |x| {
        let t = (x + 8.0) / h;
        let i = t as usize;
        table[i] + (t - i as f64) * (table[i + 1] - table[i])
    }
}

const N: usize = 200_000;

#[test]
fn uniform_is_uniform_in_every_dtype() {
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
        let u = Philox::new(11).uniform([N], dtype).to_f64_vec();
        assert!(u.iter().all(|u| (0.0..1.0).contains(u)));
        let open = Philox::new(12).uniform_open([N], dtype).to_f64_vec();
        assert!(open.iter().all(|&u| u > 0.0 && u < 1.0));
        let mean = open.iter().sum::<f64>() / N as f64;
        assert!((mean - 0.5).abs() < 4.0 / (12.0 * N as f64).sqrt(), "{dtype:?} {mean}");
        if dtype.size() >= 4 {
            follows(|rng| rng.uniform([N], dtype), |x| x);
            follows(|rng| rng.uniform_open([N], dtype), |x| x);
        }
    }
    for word in [0, 1, 0x7FFF_FFFF, 0x8000_0000, u32::MAX] {
        let exact = <f64 as Draw>::uniform(word);
        assert!((0.0..2.0f64.powi(-24)).contains(&(exact - <f32 as Draw>::uniform(word) as f64)));
        assert!((0.0..2.0f64.powi(-11)).contains(&(exact - <f16 as Draw>::uniform(word).to_f64())));
        assert!((0.0..2.0f64.powi(-8)).contains(&(exact - <bf16 as Draw>::uniform(word).to_f64())));
    }
}

#[test]
fn normal_is_normal_and_the_same_in_every_dtype() {
    let exact = Philox::new(5).normal([N], DType::F64).to_f64_vec();
    follows(|rng| rng.normal([N], DType::F32), normal_cdf());
    for (power, moment, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
        let mean = exact.iter().map(|z| z.powi(power)).sum::<f64>() / N as f64;
        assert!((mean - moment).abs() < 4.0 * (variance / N as f64).sqrt(), "moment {power}: {mean}");
    }
    // Neighbours share a radius: their product must still have mean 0.
    let product = exact.chunks(2).map(|p| p[0] * p[1]).sum::<f64>() / (N / 2) as f64;
    assert!(product.abs() < 4.0 / ((N / 2) as f64).sqrt());
    for (dtype, tolerance) in
        [(DType::F32, 4e-6), (DType::F16, 2.0f64.powi(-9)), (DType::BF16, 2.0f64.powi(-6))]
    {
        let rounded = Philox::new(5).normal([N], dtype).to_f64_vec();
        let error = exact.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(error < tolerance, "{dtype:?}: {error}");
    }
}

#[test]
fn the_ends_of_the_words_give_finite_normals() {
    let ends = [0, 1, 0xAFFF_FFFF, 0xB000_0000, u32::MAX - 1, u32::MAX];
    for (w0, w1) in ends.iter().flat_map(|&a| ends.map(|b| (a, b))) {
        let (x, y) = f32::normal_pair(w0, w1);
        let (ex, ey) = f64::normal_pair(w0, w1);
        assert!(
            (x as f64 - ex).abs() < 4e-6 && (y as f64 - ey).abs() < 4e-6,
            "{w0:x} {w1:x}: {x} {ex} {y} {ey}"
        );
    }
}

#[test]
fn discrete_draws_have_their_frequencies() {
    let mut rng = Philox::new(21);
    let near = |count: f64, p: f64| {
        let sigma = (N as f64 * p * (1.0 - p)).sqrt();
        assert!((count - N as f64 * p).abs() <= 4.0 * sigma, "{count} of {N}, expected {p}");
    };
    let signs = rng.rademacher([N], DType::BF16).to_f64_vec();
    assert!(signs.iter().all(|s| s.abs() == 1.0));
    near(signs.iter().filter(|s| **s > 0.0).count() as f64, 0.5);
    near(rng.bernoulli(0.1, [N], DType::F32).to_f64_vec().iter().sum(), 0.1);
    assert!(rng.bernoulli(0.0, [N], DType::F32).to_f64_vec().iter().all(|&x| x == 0.0));
    assert!(rng.bernoulli(1.0, [N], DType::F32).to_f64_vec().iter().all(|&x| x == 1.0));
    let dice = rng.randint(-2, 4, [N]);
    (-2..4).for_each(|v| near(dice.as_slice::<i32>().iter().filter(|x| **x == v).count() as f64, 1.0 / 6.0));
    let wide = rng.randint(i32::MIN, i32::MAX, [N]);
    near(wide.as_slice::<i32>().iter().filter(|x| **x < 0).count() as f64, 0.5);
    let p = [0.05, 0.0, 0.6, 0.25, 0.1, 0.0];
    let rows = Tensor::from_fn([N / 100, 100, 6], |i| (3.0 + p[i % 6].ln()) as f32);
    let drawn = rng.categorical(&rows);
    assert_eq!(drawn.shape(), [N / 100, 100]);
    for (k, &p) in p.iter().enumerate() {
        near(drawn.as_slice::<i32>().iter().filter(|x| **x == k as i32).count() as f64, p);
    }
}

#[test]
#[should_panic(expected = "categorical")]
fn categorical_refuses_nan() {
    Philox::new(0).categorical(&Tensor::from_slice(&[0.0, f32::NAN, 1.0], [1, 3]));
}

#[test]
fn permutations_are_valid_and_uniform() {
    let mut rng = Philox::new(3);
    for n in [0, 1, 2, 1000] {
        let mut p = rng.permutation(n);
        p.sort_unstable();
        assert!(p.into_iter().eq(0..n));
    }
    let mut counts = [0; 24];
    for _ in 0..24_000 {
        let p = rng.permutation(4);
        let rank = |i: usize| p[i + 1..].iter().filter(|x| **x < p[i]).count();
        counts[rank(0) * 6 + rank(1) * 2 + rank(2)] += 1;
    }
    let chi2: f64 = counts.iter().map(|&c| (c as f64 - 1000.0).powi(2) / 1000.0).sum();
    assert!(chi2 < 49.7, "chi-square with 23 degrees of freedom: {chi2}");
}

#[test]
fn rand_traits_work() {
    let mut words = WordStream::from_seed(5u64.to_le_bytes());
    let mut direct = vec![0; 6];
    Philox::new(5).fill_words(&mut direct);
    assert_eq!(words.next_u32(), direct[0]);
    assert_eq!(words.next_u64(), direct[1] as u64 | (direct[2] as u64) << 32);
    let mut bytes = [0; 6];
    words.fill_bytes(&mut bytes);
    assert_eq!(bytes[..4], direct[3].to_le_bytes());
    let die: u8 = words.random_range(1..=6);
    assert!((1..=6).contains(&die));
    assert_ne!(WordStream::seed_from_u64(1).next_u64(), WordStream::seed_from_u64(2).next_u64());
}

#[test]
fn initial_values() {
    let mut rng = Philox::new(2);
    let std = |t: &Tensor| (t.to_f64_vec().iter().map(|x| x * x).sum::<f64>() / t.len() as f64).sqrt();
    assert_eq!(std(&rng.initial([3, 4], DType::F32, Initial::Zeros)), 0.0);
    assert_eq!(std(&rng.initial([3, 4], DType::F32, Initial::Constant(2.0))), 2.0);
    assert!((std(&rng.initial([200, 200], DType::F32, Initial::Normal(0.05))) - 0.05).abs() < 1e-3);
    let u = rng.initial([200, 200], DType::BF16, Initial::Uniform(0.5));
    assert!(u.to_f64_vec().iter().all(|x| x.abs() <= 0.5) && (std(&u) - 0.5 / 3f64.sqrt()).abs() < 5e-3);
    let f = rng.initial([100, 400], DType::F32, Initial::FanIn(100));
    assert!(f.to_f64_vec().iter().all(|x| x.abs() <= 0.1) && (std(&f) - 0.1 / 3f64.sqrt()).abs() < 1e-3);
    let n = 48;
    let q = rng.initial([n, n], DType::F64, Initial::Orthogonal);
    let q = q.as_slice::<f64>();
    for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
        let dot: f64 = (0..n).map(|k| q[i * n + k] * q[j * n + k]).sum();
        assert!((dot - (i == j) as u8 as f64).abs() < 1e-13, "{i} {j}: {dot}");
    }
}
