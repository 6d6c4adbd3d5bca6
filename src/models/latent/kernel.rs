//! Widths of normal kernels at the rows of a table, found from the rows alone.
//!
//! In standardised columns the kernel at row i is N(x_i, diag(h_i² + b_c²)): h_i = α r_i with r_i the distance of
//! row i to a near neighbour over √D (Breiman, Meisel & Purcell 1977) and α the number for which the rows are
//! likeliest, each under the kernels of the others (leave-one-out maximum likelihood, Habbema, Hermans & van den
//! Broek 1974; Duin 1976). b_c keeps columns of few values and rows that occur twice from shrinking the kernels to
//! nothing; r_i is held above a tenth of its median for the same reason.

use super::gaussian::Gaussians;
use crate::cpu::par;
use crate::ops::matmul::matmul;
use crate::ops::softmax::logsumexp;
use crate::tensor::Tensor;

/// Rows whose likelihood chooses the widths.
const JUDGES: usize = 500;
/// The values of α that are tried.
const FACTORS: [f64; 13] = [0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5];
/// Numbers (rows x kernels) that are held at once.
pub(super) const CHUNK: usize = 1 << 20;

/// The deviation of kernel i in column c is √(rows_i² + columns_c²), in standardised units.
pub(crate) struct Widths {
    /// (N,).
    pub rows: Vec<f64>,
    /// (D,), positive.
    pub columns: Vec<f64>,
}

impl Widths {
    /// By the distances to the `neighbour`-th of the first `kernels` rows of y (N, D), with these b_c; and the mean
    /// log density (nats per row) of the first [`JUDGES`] rows, each under the kernels at the others. 0 when there
    /// is but one row.
    pub(crate) fn of(y: &Tensor, kernels: usize, neighbour: usize, columns: &[f64]) -> (Self, f64) {
        let reach = reach(y, kernels, neighbour);
        let placed = y.narrow(0, 0, kernels);
        let judged = FACTORS.map(|factor| {
            let rows = reach.iter().map(|r| factor * r).collect();
            let widths = Self { rows, columns: columns.to_vec() };
            let nats = if kernels > 1 { widths.left_out(&placed) } else { 0.0 };
            (widths, nats)
        });
        judged.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are factors")
    }

    /// 1 / deviation of the first `kernels` kernels (`kernels` · D).
    pub(super) fn inverse(&self, kernels: usize) -> Vec<f64> {
        let of = |r: &f64, c: &f64| 1.0 / (r * r + c * c).sqrt();
        self.rows[..kernels].iter().flat_map(|r| self.columns.iter().map(move |c| of(r, c))).collect()
    }

    /// Mean log density of the first rows of y (kernels, D), each under the kernels at the other rows.
    fn left_out(&self, y: &Tensor) -> f64 {
        let [n, d] = y.dims();
        let kernels = Gaussians::diagonal(y, &self.inverse(n));
        let judges = JUDGES.min(n);
        let rows = (CHUNK / n).max(1);
        let mut sum = 0.0;
        for start in (0..judges).step_by(rows) {
            let part = rows.min(judges - start);
            let mut joint = kernels.log_density(&y.narrow(0, start, part).reshape([part, d]));
            let own = joint.make_mut::<f64>();
            (0..part).for_each(|i| own[i * n + start + i] = f64::NEG_INFINITY);
            sum += logsumexp(&joint).sum_all().item();
        }
        sum / judges as f64 - ((n - 1) as f64).ln()
    }
}

/// The distance of each row of `y` (N, D) to its `k`-th neighbour among the first `kernels` rows over √D, and at
/// least a tenth of the median of these.
fn reach(y: &Tensor, kernels: usize, k: usize) -> Vec<f64> {
    let [n, d] = y.dims();
    if kernels == 1 {
        return vec![1.0; n];
    }
    let k = k.min(kernels - 1);
    let placed = y.narrow(0, 0, kernels);
    let squares = y.square().sum(&[1]).to_f64_vec();
    let mut out = vec![0.0; n];
    let rows = (CHUNK / kernels).max(1);
    for (chunk, out) in out.chunks_mut(rows).enumerate() {
        let start = chunk * rows;
        let products = matmul(&y.narrow(0, start, out.len()), &placed, false, true);
        let products = products.as_slice::<f64>();
        par::chunks_mut(out, 1, |i, reach| {
            let own = squares[start + i];
            let far = products[i * kernels..][..kernels].iter().zip(&squares);
            let far = far.map(|(p, s)| own + s - 2.0 * p).enumerate();
            let mut far: Vec<f64> = far.filter(|(j, _)| *j != start + i).map(|(_, x)| x).collect();
            let (_, square, _) = far.select_nth_unstable_by(k - 1, f64::total_cmp);
            reach[0] = (square.max(0.0) / d as f64).sqrt();
        });
    }
    let mut sorted = out.clone();
    let (_, median, _) = sorted.select_nth_unstable_by(n / 2, f64::total_cmp);
    let least = 0.1 * *median;
    out.iter_mut().for_each(|r| *r = r.max(least));
    out
}
