//! The spline in primitives, and its cases.

use super::{MIN_SIZE, Spline, inverse, rq_spline};
use crate::ops::{Case, binary, index, normal, reduce, shape, softmax, unary};
use crate::tensor::Tensor;

/// The bin of each number and whether it is inside, in primitives: widths or heights looked up as `side` says.
struct Found {
    inside: Tensor,
    at: Tensor,
    /// x₀, w, y₀, h, d₀, d₁.
    bin: [Tensor; 6],
}

fn found(numbers: &Tensor, params: &Tensor, spline: Spline, side: usize) -> Found {
    let Spline { bins: k, bound } = spline;
    let last = params.rank() - 1;
    let dtype = params.dtype();
    let flat = |t: &Tensor| reduce::sum(t, &[last]);
    let size = |from: usize| {
        let p = softmax::composite_log_softmax(&shape::narrow(params, last, from, k)).exp();
        p.affine(2.0 * bound * (1.0 - MIN_SIZE * k as f64), 2.0 * bound * MIN_SIZE)
    };
    let sizes = [size(0), size(k)];
    let lows = sizes.each_ref().map(|s| (&index::cumsum(s, false) - s).affine(1.0, -bound));
    let mut edge = numbers.shape().to_vec();
    edge.push(1);
    let slope = shape::narrow(params, last, 2 * k, k - 1).softplus().affine(1.0, MIN_SIZE);
    let unit = Tensor::ones(&edge, dtype);
    let d0 = shape::concat(&[&unit, &slope], last);
    let d1 = shape::concat(&[&slope, &unit], last);
    let at = unary::clamp(numbers, -bound, bound);
    let column = shape::reshape(&at, &edge);
    // Reached knots, 1 for the lower end; a bin is the last reached one.
    let reached = binary::ge(&column, &lows[side]);
    let first = Tensor::from_fn([k], |i| if i == 0 { 1.0f64 } else { 0.0 }).cast(dtype);
    let reached = binary::maximum(&reached.detach(), &first);
    let next = shape::pad(&shape::narrow(&reached, last, 1, k - 1), last, 0, 1);
    let chosen = (&reached - &next).detach();
    let pick = |t: &Tensor| flat(&(t * &chosen));
    let bin = [pick(&lows[0]), pick(&sizes[0]), pick(&lows[1]), pick(&sizes[1]), pick(&d0), pick(&d1)];
    let limit = |r: f64| Tensor::scalar(r, dtype);
    let inside = &binary::gt(numbers, &limit(-bound)) * &binary::gt(&limit(bound), numbers);
    Found { inside: inside.detach(), at, bin }
}

pub(super) fn composite(x: &Tensor, params: &Tensor, spline: Spline) -> (Tensor, Tensor) {
    let Found { inside, at, bin: [x0, w, y0, h, d0, d1] } = found(x, params, spline, 0);
    let (t, s) = (&(&at - &x0) / &w, &h / &w);
    let u = t.affine(-1.0, 1.0);
    let q = &t * &u;
    let e = &s + &(&(&(&d0 + &d1) - &s.affine(2.0, 0.0)) * &q);
    let n = &(&(&d1 * &t.square()) + &(&s * &q).affine(2.0, 0.0)) + &(&d0 * &u.square());
    let y = &y0 + &(&(&h * &(&(&s * &t.square()) + &(&d0 * &q))) / &e);
    let log = &(&s / &e).ln().affine(2.0, 0.0) + &n.ln();
    (binary::select(&inside, &y, x), binary::keep_where(&inside, &log).sum_examples())
}

pub(super) fn composite_inverse(y: &Tensor, params: &Tensor, spline: Spline) -> Tensor {
    let Found { inside, at, bin: [x0, w, y0, h, d0, d1] } = found(y, params, spline, 1);
    let (u, s) = ((&(&at - &y0) / &h).clamp(0.0, 1.0), &h / &w);
    let b = &d0 - &(&(&d0 + &d1) * &u);
    let v = (&s * &u).affine(2.0, 0.0);
    let rest = (&s * &u.affine(-1.0, 1.0)).affine(2.0, 0.0);
    let root = (&b.square() + &(&v * &rest)).sqrt();
    let falls = binary::gt(&Tensor::scalar(0.0, b.dtype()), &b).detach();
    let one = Tensor::ones(b.shape(), b.dtype());
    // Where a form is not taken its denominator may be 0: 1 stands in.
    let high = binary::select(&falls, &(&root - &b), &one);
    let low = binary::select(&falls, &one, &(&(&b + &v) + &root));
    let t = binary::select(&falls, &(&rest / &high).affine(1.0, 1.0).recip(), &(&v / &low));
    binary::select(&inside, &(&x0 + &(&t * &w)), y)
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: String, x: Tensor, params: Tensor, spline: Spline, order: u8| {
        cases.push(
            Case::new(name.clone(), vec![x.clone(), params.clone()], move |x| {
                let (y, logdet) = rq_spline(&x[0], &x[1], spline);
                vec![y, logdet]
            })
            .composite(move |x| {
                let (y, logdet) = composite(&x[0], &x[1], spline);
                vec![y, logdet]
            })
            .order(order),
        );
        cases.push(
            Case::new(format!("{name}, inverse"), vec![x, params], move |x| {
                vec![inverse(&x[0], &x[1], spline)]
            })
            .composite(move |x| vec![composite_inverse(&x[0], &x[1], spline)])
            .order(order),
        );
    };
    let params = |seed, dims: &[usize], spline: Spline, spread| {
        normal(seed, &[dims, &[spline.params()]].concat()).affine(spread, 0.0)
    };
    for (dims, bins, bound) in
        [(&[1][..], 1, 2.0), (&[1, 1], 2, 3.0), (&[3, 5], 8, 3.0), (&[2, 2, 3], 5, 1.5), (&[2, 17], 3, 4.0)]
    {
        let spline = Spline { bins, bound };
        // Mostly inside, some in the tails.
        add(
            format!("{dims:?}, {bins} bins"),
            normal(1, dims).affine(1.5, 0.1),
            params(2, dims, spline, 1.0),
            spline,
            2,
        );
    }
    let spline = Spline { bins: 8, bound: 3.0 };
    // The ends, the far tails and the middle, under parameters that make bins narrow and slopes steep.
    let hard = [-3.0, 3.0, -1e6, 1e6, 0.0, 2.999_999, -2.999_999, 1.0];
    let x = Tensor::from_fn([8, 8], |i| hard[i % 8]);
    add("extreme".into(), x, params(3, &[8, 8], spline, 30.0), spline, 0);
    let (b, d) = (512, 21);
    let n = b * d;
    let inputs = vec![normal(4, &[b, d]), params(5, &[b, d], spline, 1.0)];
    let of = move |x: &[Tensor]| vec![inverse(&x[0], &x[1], spline)];
    let large = Case::new("512x21, 8 bins, inverse", inputs.clone(), of);
    let large = large.composite(move |x| vec![composite_inverse(&x[0], &x[1], spline)]);
    cases.push(large.order(0).bench(4 * n * 25, n * 220));
    cases.push(
        Case::new("512x21, 8 bins", inputs, move |x| {
            let (y, logdet) = rq_spline(&x[0], &x[1], spline);
            vec![y, logdet]
        })
        .composite(move |x| {
            let (y, logdet) = composite(&x[0], &x[1], spline);
            vec![y, logdet]
        })
        .order(0)
        .bench(4 * n * 25, n * 220)
        .backward(4 * n * 49, n * 360),
    );
    cases
}
