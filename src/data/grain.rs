//! How finely columns are resolved: numbers that only take separate values.
//!
//! A count, a code or a rounded measurement says of its quantity no more than the gap to the neighbouring value
//! allows, yet a density may rise without bound on the values themselves, and then such columns decide alone how
//! likely a row is. Smoothed by normal noise of half a gap, two equally frequent neighbours have no valley between
//! them: the sum of N(0, σ²) and N(δ, σ²) has one mode exactly when δ ≤ 2σ.

use crate::cpu::par;
use crate::tensor::Tensor;

/// The gap of each column of `values` (N, D): the median over its cells of the distance to the nearest different
/// value; 0 for a column with fewer than two values. Cells that are NaN are left out.
///
/// # Panics
/// When `values` is not a matrix.
#[track_caller]
pub fn gaps(values: &Tensor) -> Vec<f64> {
    let [_, d] = values.dims();
    let cells = values.to_f64_vec();
    let mut out = vec![0.0; d];
    par::chunks_mut(&mut out, 1, |column, gap| {
        let mut own: Vec<f64> =
            cells.iter().skip(column).step_by(d).copied().filter(|x| !x.is_nan()).collect();
        own.sort_by(f64::total_cmp);
        gap[0] = gap_of_sorted(&own);
    });
    out
}

/// Deviations of the noise that smooths the columns of `values` (N, D): half a gap, but no more than half of the
/// deviation `scale` of the column, so that no column drowns; in units of that deviation.
pub fn blur(values: &Tensor, scale: &[f64]) -> Vec<f64> {
    gaps(values).iter().zip(scale).map(|(gap, scale)| 0.5 * (gap / scale).min(1.0)).collect()
}

fn gap_of_sorted(cells: &[f64]) -> f64 {
    let mut distances = Vec::with_capacity(cells.len());
    let mut runs = cells.chunk_by(|a, b| a == b).peekable();
    let mut before = f64::INFINITY;
    while let Some(run) = runs.next() {
        let after = runs.peek().map_or(f64::INFINITY, |next| next[0] - run[0]);
        distances.extend(std::iter::repeat_n(before.min(after), run.len()));
        before = after;
    }
    if distances.first().is_none_or(|gap| gap.is_infinite()) {
        return 0.0;
    }
    let middle = (distances.len() - 1) / 2;
    *distances.select_nth_unstable_by(middle, f64::total_cmp).1
}
