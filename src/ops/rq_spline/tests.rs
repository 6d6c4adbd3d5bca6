use super::*;
use crate::ops::normal;
use crate::random::Philox;

const SPLINE: Spline = Spline { bins: 8, bound: 3.0 };

fn params(seed: u64, n: usize, spread: f64) -> Tensor {
    Philox::new(seed).normal([n, SPLINE.params()], crate::DType::F32).affine(spread, 0.0)
}

#[test]
fn zero_parameters_make_the_bin_sizes_equal_and_the_ends_straight() {
    let x = Tensor::from_slice(&[-3.0f32, -2.25, 0.0, 0.75, 3.0, 7.0], [6]);
    let p = Tensor::zeros([6, SPLINE.params()], crate::DType::F32);
    let (y, _) = rq_spline(&x, &p, SPLINE);
    // Equal bins: every knot is a fixed point.
    assert!(crate::testing::max_error(&[y], &[x]) < 1e-6);
}

#[test]
fn the_inverse_inverts_in_f32_however_steep_the_spline() {
    for spread in [0.0, 1.0, 5.0, 20.0] {
        let n = 4000;
        let x = Philox::new(1).uniform([n], crate::DType::F32).affine(8.0, -4.0);
        let p = params(2, n, spread);
        let (y, _) = rq_spline(&x, &p, SPLINE);
        // Where the spline is nearly flat x is lost in y's rounding, so the way back is compared in y.
        let back = inverse(&y, &p, SPLINE);
        let (again, _) = rq_spline(&back, &p, SPLINE);
        let error = crate::testing::max_error(&[again], &[y]);
        assert!(error < 3e-5, "spread {spread}: off by {error:e}");
        assert!(back.to_f64_vec().iter().all(|x| x.is_finite()));
    }
}

#[test]
fn tails_and_ends_have_finite_gradients() {
    let at = [-3.0f32, 3.0, f32::MAX, f32::MIN, 1e20, -1e20, 2.999_999_8, -2.999_999_8];
    for spread in [0.0, 1.0, 100.0, 1e4] {
        let x = Tensor::from_slice(&at, [8]).requires_grad();
        let p = params(3, 8, spread).requires_grad();
        let (y, logdet) = rq_spline(&x, &p, SPLINE);
        assert!(y.to_f64_vec().iter().zip(&at).all(|(y, x)| x.abs() < 3.0 || *y == f64::from(*x)));
        let loss = &y.affine(1e-30, 0.0).sum_all() + &logdet.sum_all();
        for g in autograd::backward(loss, &[&x, &p]) {
            assert!(g.to_f64_vec().iter().all(|g| g.is_finite()), "spread {spread}");
        }
    }
}

#[test]
#[should_panic(expected = "rq_spline: params for x [2, 3]")]
fn the_parameters_must_fit() {
    rq_spline(&normal(1, &[2, 3]), &normal(2, &[2, 3, 22]), SPLINE);
}
