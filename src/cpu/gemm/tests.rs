use super::*;
use half::{bf16, f16};

/// Every instruction set that this machine can run.
fn isas() -> Vec<Isa> {
    let all = [Isa::Portable, Isa::Neon, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];
    let here = if cfg!(target_arch = "aarch64") { &all[..2] } else { &[all[0], all[2], all[3], all[4]] };
    here.iter().copied().filter(|&i| i <= isa()).collect()
}

/// Numbers in (-1, 1), the same for the same seed.
fn numbers<E: Elem>(n: usize, seed: u64) -> Vec<E> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..n).map(|_| E::from_f64(next())).collect()
}

fn epsilon(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::EPSILON,
        DType::F32 => f32::EPSILON as f64,
        DType::BF16 => 2f64.powi(-7),
        _ => 2f64.powi(-10),
    }
}

struct Case {
    m: usize,
    n: usize,
    k: usize,
    ta: bool,
    tb: bool,
    pad: usize,
    full: bool,
    act: Act,
}

/// The case against a naive sum in f64. A chain of k fused operations on magnitudes below 1 errs by at most
/// k * eps * sum|a b|, the sums of the epilogue by a few eps of their terms; storing rounds once more.
fn check<E: Elem>(isa: Isa, case: &Case) {
    let Case { m, n, k, ta, tb, pad, full, act } = *case;
    let (lda, ldb, ldc) = (if ta { m } else { k } + pad, if tb { k } else { n } + pad, n + pad);
    let a: Vec<E> = numbers(if ta { k } else { m } * lda, 1);
    let b: Vec<E> = numbers(if tb { n } else { k } * ldb, 2);
    let c0: Vec<E> = numbers(m * ldc, 3);
    let (bias, residual, gate): (Vec<E>, Vec<E>, Vec<E>) =
        (numbers(n, 4), numbers(m * ldc, 5), numbers(m * ldc, 6));
    let mut epilogue = Epilogue { act, ..Default::default() };
    if full {
        epilogue = Epilogue {
            alpha: 0.5,
            accumulate: true,
            bias: Some(&bias),
            residual: Some(&residual),
            act,
            gate: Some(&gate),
            narrow: false,
        };
    }
    let mut c = c0.clone();
    let (ma, mb) = (
        Mat { data: &a, row_stride: lda, transposed: ta },
        Mat { data: &b, row_stride: ldb, transposed: tb },
    );
    gemm_on(isa, m, n, k, ma, mb, &mut c, ldc, &epilogue);
    let eps = epsilon(E::DTYPE);
    let acc_eps = epsilon(<E::Acc as Plain>::DTYPE);
    for i in 0..m {
        for j in 0..ldc {
            let at = i * ldc + j;
            if j >= n {
                assert!(c[at] == c0[at], "{isa:?} wrote between the rows of C");
                continue;
            }
            let (mut sum, mut size) = (0.0, 0.0);
            for l in 0..k {
                let x = a[if ta { l * lda + i } else { i * lda + l }].to_f64();
                let y = b[if tb { j * ldb + l } else { l * ldb + j }].to_f64();
                sum += x * y;
                size += (x * y).abs();
            }
            if full {
                sum = 0.5 * sum + c0[at].to_f64() + bias[j].to_f64() + residual[at].to_f64();
                size = 0.5 * size + 3.0;
            }
            let mut want = act.apply(sum);
            if full && gate[at].to_f64() <= 0.0 {
                want = 0.0;
            }
            // The slopes of the activations are at most 1.1; 16 eps for their own error.
            let tolerance = 1.1 * (k as f64 + 4.0) * acc_eps * size + eps * want.abs() + 16.0 * acc_eps;
            let got = c[at].to_f64();
            assert!(
                (got - want).abs() <= tolerance,
                "{isa:?} {:?} m={m} n={n} k={k} ta={ta} tb={tb} pad={pad} full={full} at ({i}, {j}): \
                 {got} for {want}, tolerance {tolerance}",
                E::DTYPE
            );
        }
    }
}

#[test]
fn agrees_with_the_naive_sum() {
    let sizes = [1, 2, 3, 7, 17, 31, 33, 65];
    for isa in isas() {
        for (i, &m) in sizes.iter().enumerate() {
            for (j, &n) in sizes.iter().enumerate() {
                let k = sizes[(i + 3 * j) % 8];
                for t in 0..4 {
                    let act = if (i + j) % 2 == 0 { Act::None } else { Act::Relu };
                    let case = Case {
                        m,
                        n,
                        k,
                        ta: t & 1 > 0,
                        tb: t & 2 > 0,
                        pad: (i + j) % 3,
                        full: (i + t) % 2 > 0,
                        act,
                    };
                    check::<f32>(isa, &case);
                    check::<f64>(isa, &case);
                    check::<bf16>(isa, &case);
                    check::<f16>(isa, &case);
                }
            }
        }
    }
}

#[test]
fn agrees_on_several_blocks_and_chunks() {
    let sizes = [
        (50, 40, 700),
        (205, 70, 401),
        (24, 18, 5001),
        (3, 1100, 20),
        (130, 96, 128),
        (0, 3, 4),
        (2, 3, 0),
        (2, 130, 0),
    ];
    for isa in isas() {
        for (m, n, k) in sizes {
            for (t, act) in [Act::None, Act::Sigmoid, Act::Tanh, Act::Silu].into_iter().enumerate() {
                let case =
                    Case { m, n, k, ta: t & 1 > 0, tb: t & 2 > 0, pad: 0, full: act != Act::None, act };
                check::<f32>(isa, &case);
                check::<f64>(isa, &case);
                check::<bf16>(isa, &case);
            }
        }
    }
}

#[test]
fn threads_do_not_change_bits() {
    for (m, n, k, ta) in
        [(300, 130, 270, false), (70, 40, 9000, true), (18, 128, 12544, true), (5, 3000, 600, false)]
    {
        let a: Vec<f32> = numbers(m * k, 1);
        let b: Vec<f32> = numbers(k * n, 2);
        let run = |threads: usize| {
            let mut c = vec![0f32; m * n];
            let a = Mat { data: &a, row_stride: if ta { m } else { k }, transposed: ta };
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| gemm(m, n, k, a, Mat::new(&b, n), &mut c, n, &Epilogue::default()));
            c
        };
        let one = run(1);
        assert!(one == run(2) && one == run(3), "m={m} n={n} k={k}");
    }
}

#[test]
fn rows_do_not_depend_on_their_neighbours() {
    let (n, k) = (40, 500);
    let a: Vec<f32> = numbers(100 * k, 1);
    let b: Vec<f32> = numbers(k * n, 2);
    let run = |m: usize| {
        let mut c = vec![0f32; m * n];
        gemm(m, n, k, Mat::new(&a, k), Mat::new(&b, n), &mut c, n, &Epilogue::default());
        c
    };
    let all = run(100);
    for m in [1, 3, 12, 31] {
        assert!(run(m) == all[..m * n], "m={m}");
    }
}

#[test]
fn batches_are_products() {
    let (batch, m, n, k) = (7, 33, 20, 9);
    let a: Vec<f32> = numbers(batch * m * k, 1);
    let b: Vec<f32> = numbers(batch * k * n, 2);
    let mut c = vec![0f32; batch * m * n];
    let none = Epilogue::default();
    gemm_batched(batch, (m, n, k), (Mat::new(&a, k), m * k), (Mat::new(&b, n), k * n), &mut c, &none);
    for i in 0..batch {
        let mut one = vec![0f32; m * n];
        gemm(m, n, k, Mat::new(&a[i * m * k..], k), Mat::new(&b[i * k * n..], n), &mut one, n, &none);
        assert!(one == c[i * m * n..(i + 1) * m * n]);
    }
}

/// Rounding on the way into the product gives the bits of a product of rounded numbers, which fit bf16 exactly.
#[test]
fn narrowed_products_are_those_of_rounded_numbers() {
    if !has_bf16() {
        eprintln!("skipped: this machine does not multiply bf16 numbers");
        return;
    }
    for (m, n, k) in [(1, 1, 1), (7, 33, 5), (50, 40, 701), (130, 96, 128), (24, 18, 5001), (3, 1100, 20)] {
        for t in 0..4 {
            let (ta, tb) = (t & 1 > 0, t & 2 > 0);
            let (lda, ldb) = (if ta { m } else { k } + t, if tb { k } else { n } + t);
            let a: Vec<f32> = numbers(if ta { k } else { m } * lda, 1);
            let b: Vec<f32> = numbers(if tb { n } else { k } * ldb, 2);
            let narrow = Epilogue { accumulate: true, narrow: true, ..Default::default() };
            let run = |a: &[f32], b: &[f32]| {
                let mut c: Vec<f32> = numbers(m * n, 3);
                let a = Mat { data: a, row_stride: lda, transposed: ta };
                let b = Mat { data: b, row_stride: ldb, transposed: tb };
                gemm(m, n, k, a, b, &mut c, n, &narrow);
                c
            };
            let round = |x: &[f32]| x.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>();
            let wide = |x: &[bf16]| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
            let (half_a, half_b) = (round(&a), round(&b));
            let got = run(&a, &b);
            assert!(got == run(&wide(&half_a), &wide(&half_b)), "m={m} n={n} k={k} ta={ta} tb={tb}");
            let mut want = vec![bf16::ZERO; m * n];
            let x = Mat { data: &half_a[..], row_stride: lda, transposed: ta };
            let y = Mat { data: &half_b[..], row_stride: ldb, transposed: tb };
            gemm(m, n, k, x, y, &mut want, n, &Epilogue::default());
            let before: Vec<f32> = numbers(m * n, 3);
            for ((got, before), want) in got.iter().zip(&before).zip(&want) {
                let (got, want) = (got - before, want.to_f32());
                assert!((got - want).abs() <= 0.008 * want.abs() + 1e-3, "{got} for {want}");
            }
        }
    }
}

#[test]
fn relu_passes_nan_on() {
    let none = Epilogue { act: Act::Relu, ..Default::default() };
    for isa in isas() {
        let mut c = [0f32; 2];
        gemm_on(isa, 2, 1, 1, Mat::new(&[f32::NAN, -1.0], 1), Mat::new(&[1.0], 1), &mut c, 1, &none);
        assert!(c[0].is_nan() && c[1] == 0.0, "{isa:?}");
    }
}

#[test]
#[should_panic(expected = "gemm: A needs 3 stored rows of 4 elements")]
fn short_slices_are_refused() {
    let (a, b, mut c) = ([0f32; 11], [0f32; 8], [0f32; 6]);
    gemm(3, 2, 4, Mat::new(&a, 4), Mat::new(&b, 2), &mut c, 2, &Epilogue::default());
}
