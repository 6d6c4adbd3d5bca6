use super::*;
use crate::cpu::gemm::Act;
use half::bf16;

fn numbers<E: Elem>(n: usize, seed: u64) -> Vec<E> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..n).map(|_| E::from_f64(next())).collect()
}

/// Calls `f(input element, weight element, output element)` for every product of the convolution.
fn terms(conv: &Conv, mut f: impl FnMut(usize, usize, usize)) {
    let Conv { batch, size: (h, w), cin, out: (oh, ow), cout, stride, ref taps } = *conv;
    for b in 0..batch {
        for oy in 0..oh {
            for ox in 0..ow {
                for (t, &(dy, dx)) in taps.iter().enumerate() {
                    let (y, x) = ((oy * stride) as isize + dy, (ox * stride) as isize + dx);
                    if y < 0 || x < 0 || y >= h as isize || x >= w as isize {
                        continue;
                    }
                    let (i, o) =
                        (((b * h + y as usize) * w + x as usize) * cin, ((b * oh + oy) * ow + ox) * cout);
                    for ci in 0..cin {
                        for co in 0..cout {
                            f(i + ci, (t * cin + ci) * cout + co, o + co);
                        }
                    }
                }
            }
        }
    }
}

/// Masked 3x3: the five taps up to and including the centre.
fn masked(batch: usize, size: (usize, usize), cin: usize, cout: usize) -> Conv {
    let taps = vec![(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0)];
    Conv { batch, size, cin, out: size, cout, stride: 1, taps }
}

fn cases() -> Vec<Conv> {
    vec![
        Conv::dense(2, (5, 7), (3, 17), (3, 3), 1, 1),
        Conv::dense(3, (7, 7), (4, 33), (3, 3), 1, 1),
        Conv::dense(2, (14, 14), (2, 128), (3, 3), 1, 1),
        Conv::dense(3, (14, 14), (128, 4), (3, 3), 1, 1),
        Conv::dense(2, (7, 7), (64, 8), (3, 3), 1, 1),
        Conv::dense(2, (6, 5), (9, 3), (3, 3), 1, 0),
        Conv::dense(1, (9, 9), (1, 64), (7, 7), 1, 3),
        Conv::dense(2, (3, 4), (16, 20), (1, 1), 1, 0),
        Conv::dense(2, (5, 4), (16, 20), (1, 1), 2, 0),
        Conv::dense(2, (10, 8), (1, 32), (4, 4), 2, 1),
        Conv::dense(2, (9, 11), (17, 12), (4, 4), 2, 1),
        Conv::dense(1, (1, 1), (1, 1), (3, 3), 1, 1),
        Conv::dense(2, (2, 2), (5, 2), (5, 5), 1, 2),
        Conv::dense(40, (7, 7), (32, 16), (3, 3), 1, 1),
        masked(2, (28, 28), 32, 32),
        masked(3, (5, 6), 1, 9),
        masked(2, (6, 6), 40, 1),
    ]
}

/// `got` against sums of `count` products of magnitudes `size`, each chain in the precision of E::Acc, and one
/// rounding to E.
fn compare<E: Elem>(what: &str, conv: &Conv, got: &[E], want: &[f64], size: &[f64], count: usize) {
    let eps = |dtype| match dtype {
        crate::tensor::DType::F64 => f64::EPSILON,
        crate::tensor::DType::F32 => f32::EPSILON as f64,
        _ => 2f64.powi(-7),
    };
    for (i, g) in got.iter().enumerate() {
        let tolerance =
            (count as f64 + 4.0) * eps(<E::Acc as Plain>::DTYPE) * size[i] + eps(E::DTYPE) * want[i].abs();
        let off = (g.to_f64() - want[i]).abs();
        assert!(
            off <= tolerance,
            "{what} {conv:?} at {i}: {} for {}, tolerance {tolerance}",
            g.to_f64(),
            want[i]
        );
    }
}

/// With `narrow`, the operands are numbers that fit bf16, so that rounding them on the way changes nothing.
fn check<E: Elem>(conv: &Conv, with: bool, narrow: bool) {
    let operand = |n, seed| match narrow {
        true => numbers::<bf16>(n, seed).into_iter().map(|x| E::from_f64(x.to_f64())).collect(),
        false => numbers::<E>(n, seed),
    };
    let (x, w, dy) =
        (operand(conv.input_len(), 1), operand(conv.weight_len(), 2), operand(conv.output_len(), 3));
    let gate: Vec<E> = numbers(x.len().max(dy.len()), 4);
    let bias: Vec<E> = numbers(conv.cin.max(conv.cout), 5);
    let zero = || (vec![0f64; x.len()], vec![0f64; w.len()], vec![0f64; dy.len()]);
    let ((mut gx, mut gw, mut y), (mut sx, mut sw, mut sy)) = (zero(), zero());
    terms(conv, |i, j, o| {
        let (a, b, c) = (x[i].to_f64(), w[j].to_f64(), dy[o].to_f64());
        y[o] += a * b;
        gx[i] += c * b;
        gw[j] += a * c;
        sy[o] += (a * b).abs();
        sx[i] += (c * b).abs();
        sw[j] += (a * c).abs();
    });
    let (mut y_epilogue, mut x_epilogue) =
        (Epilogue { narrow, ..Default::default() }, Epilogue { narrow, ..Default::default() });
    if with {
        y_epilogue = Epilogue { bias: Some(&bias[..conv.cout]), act: Act::Relu, ..y_epilogue };
        x_epilogue = Epilogue { gate: Some(&gate[..x.len()]), residual: Some(&x), ..x_epilogue };
        for (i, y) in y.iter_mut().enumerate() {
            *y = (*y + bias[i % conv.cout].to_f64()).max(0.0);
            sy[i] += 1.0;
        }
        for (i, g) in gx.iter_mut().enumerate() {
            *g = if gate[i].to_f64() > 0.0 { *g + x[i].to_f64() } else { 0.0 };
            sx[i] += 1.0;
        }
    }
    let poison = |n: usize| vec![E::from_f64(f64::NAN); n];
    let mut got = poison(dy.len());
    forward(conv, &x, &w, &mut got, &y_epilogue);
    compare("forward", conv, &got, &y, &sy, conv.taps.len() * conv.cin);
    let mut got = poison(x.len());
    input_grad(conv, &dy, &w, &mut got, &x_epilogue);
    compare("input gradient", conv, &got, &gx, &sx, conv.taps.len() * conv.cout);
    let mut got = poison(w.len());
    if with {
        got = w.clone();
        gw.iter_mut().zip(&w).for_each(|(g, w)| *g += w.to_f64());
        sw.iter_mut().for_each(|s| *s += 1.0);
    }
    weight_grad(conv, &x, &dy, &mut got, with, narrow);
    compare("weight gradient", conv, &got, &gw, &sw, conv.pixels());
}

#[test]
fn agrees_with_the_naive_sum() {
    for conv in cases() {
        for with in [false, true] {
            check::<f32>(&conv, with, false);
            check::<f32>(&conv, with, true);
            check::<f64>(&conv, with, false);
            check::<bf16>(&conv, with, false);
        }
    }
}

#[test]
fn threads_do_not_change_bits() {
    for (conv, narrow) in cases().into_iter().flat_map(|c| [(c.clone(), false), (c, true)]) {
        let (x, w, dy): (Vec<f32>, Vec<f32>, Vec<f32>) =
            (numbers(conv.input_len(), 1), numbers(conv.weight_len(), 2), numbers(conv.output_len(), 3));
        let run = |threads: usize| {
            let (mut y, mut dx, mut dw) = (dy.clone(), x.clone(), w.clone());
            let mut db = vec![0f32; conv.cout];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| {
                forward(&conv, &x, &w, &mut y, &Epilogue { narrow, ..Default::default() });
                input_grad(&conv, &dy, &w, &mut dx, &Epilogue { narrow, ..Default::default() });
                weight_grad(&conv, &x, &dy, &mut dw, false, narrow);
                bias_grad(&dy, Some(&y), &mut db, false);
            });
            (y, dx, dw, db)
        };
        let one = run(1);
        assert!(one == run(2) && one == run(3), "{conv:?}");
    }
}

#[test]
fn bias_gradients_sum_columns() {
    for (rows, n) in [(1, 1), (3, 5), (700, 4), (5000, 18), (130, 256)] {
        let (dy, gate): (Vec<f32>, Vec<f32>) = (numbers(rows * n, 1), numbers(rows * n, 2));
        for gated in [false, true] {
            let mut got = vec![1f32; n];
            bias_grad(&dy, gated.then_some(&gate[..]), &mut got, true);
            for j in 0..n {
                let terms = (0..rows).map(|r| r * n + j).filter(|&i| !gated || gate[i] > 0.0);
                let want = 1.0 + terms.map(|i| dy[i] as f64).sum::<f64>();
                let tolerance = (rows as f64 + 1.0) * (rows as f64 + 1.0) * f32::EPSILON as f64;
                assert!((got[j] as f64 - want).abs() <= tolerance, "{rows} x {n} column {j}");
            }
        }
    }
}

#[test]
#[should_panic(expected = "conv: input, weights and output must hold 75, 27 and 25")]
fn wrong_lengths_are_refused() {
    let conv = Conv::dense(1, (5, 5), (3, 1), (3, 3), 1, 1);
    forward(&conv, &[0f32; 75], &[0f32; 26], &mut [0f32; 25], &Epilogue::default());
}
