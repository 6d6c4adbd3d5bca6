//! Which part of an observation is surprising.
//!
//! - [`per_position`]: −log p of each pixel or step given those before it, of models that factorise.
//! - [`per_cell`]: for tables, how much less likely each cell is than other values of its column would be in its place,
//!   given all other cells; any model, any order of columns.

use crate::autograd::no_grad;
use crate::data::Dataset;
use crate::error::{Error, ErrorKind, Result};
use crate::models::{Batch, Model};
use crate::random::Philox;
use crate::tensor::{Tensor, with_plain};
use crate::train::{Evaluate, log_probs};

/// Values that stand in for a cell.
const DRAWS: usize = 16;

/// −log p of each position in nats, channels summed: one vector per row; `None` when the model does not factorise.
/// The shape of a row's vector is [`positions`].
///
/// # Errors
/// Data that the model does not take.
pub fn per_position(model: &dyn Model, data: &Dataset) -> Result<Option<Vec<Vec<f64>>>> {
    model.input().check(data)?;
    let places: usize = positions(data).iter().product();
    let mut out = Vec::with_capacity(data.len());
    for (range, x) in data.batches(64) {
        let labels = model.input().classes.and(data.labels.as_ref());
        let labels = labels.map(|l| Tensor::from_slice(&l[range.clone()], [range.len()]));
        let batch = Batch { x, labels }.to(model.device())?;
        let found = model.run(|| {
            let found = no_grad(|| model.log_prob(&batch, &mut Philox::new(0)));
            found.per_position.map(|p| p.to_f64_vec())
        });
        let Some(values) = found? else { return Ok(None) };
        let each = values.len() / range.len();
        if each == 0 || !each.is_multiple_of(places) {
            return Ok(None);
        }
        let sums = |row: &[f64]| row.chunks(each / places).map(|p| -p.iter().sum::<f64>()).collect();
        out.extend(values.chunks(each).map(sums));
    }
    Ok(Some(out))
}

/// The shape of an explanation: that of an example, without the channels of an image.
pub fn positions(data: &Dataset) -> &[usize] {
    let shape = data.example_shape();
    if shape.len() == 3 { &shape[..2] } else { shape }
}

/// For tables (N, D): the surprisal of each cell given the rest, relative to its column.
///
/// ```text
/// s_j(x) = ln ( (1/V) Σ_v p(x with x_j = v) ) − ln p(x) = −ln p(x_j | x_rest) + ln E_v p(v | x_rest)        nats
/// ```
/// v are V = 16 values of the column, drawn from `column_values`. A cell as usual as its neighbours in the column has
/// about 0; one that the other cells rule out is far above. It costs V · D evaluations per row.
///
/// # Errors
/// [`ErrorKind::Usage`] for data that is no table; data that the model does not take.
pub fn per_cell(model: &dyn Model, data: &Dataset, column_values: &Dataset) -> Result<Vec<Vec<f64>>> {
    let (shape, like) = (data.values.shape(), column_values.values.shape());
    if shape.len() != 2
        || like.len() != 2
        || shape[1] != like[1]
        || data.values.dtype() != column_values.values.dtype()
    {
        let message =
            format!("{}: cells are explained in tables (N, D), got {shape:?} and {like:?}", data.name);
        return Err(Error::new(ErrorKind::Usage, message));
    }
    let (n, d) = (shape[0], shape[1]);
    let how = Evaluate { batch: 256, ..Default::default() };
    let evaluate = |values: Tensor| {
        let repeat = values.shape()[0] / n.max(1);
        let labels = data.labels.as_ref().map(|l| l.iter().flat_map(|l| vec![*l; repeat]).collect());
        log_probs(model, &Dataset { values, labels, ..data.clone() }, &how).map(|found| found.nats)
    };
    let present = evaluate(data.values.clone())?;
    let mut out = vec![vec![0.0; d]; n];
    let mut words = Philox::new(0).stream();
    for j in 0..d {
        let rows: Vec<usize> = (0..DRAWS).map(|_| words.below(like[0] as u64) as usize).collect();
        let replaced = with_plain!(data.values.dtype(), T => {
            let (x, values) = (data.values.as_slice::<T>(), column_values.values.as_slice::<T>());
            Tensor::from_fn([n * DRAWS, d], |i| {
                let (row, column) = (i / d, i % d);
                if column == j { values[rows[row % DRAWS] * d + j] } else { x[row / DRAWS * d + column] }
            })
        });
        let nats = evaluate(replaced)?;
        for ((row, found), nats) in out.iter_mut().zip(nats.chunks(DRAWS)).zip(&present) {
            let top = found.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
            let mean = found.iter().map(|l| (l - top).exp()).sum::<f64>() / DRAWS as f64;
            row[j] = top + mean.ln() - nats;
        }
    }
    Ok(out)
}

/// The name of position `i` of example `row`: a column's name, the line of a log and what kind of line it is, or
/// coordinates.
pub fn place(data: &Dataset, row: usize, i: usize) -> String {
    if let Some(lines) = data.lines.as_ref().map(|lines| &lines[row]) {
        let kind = data.kind_of_line(row, i);
        return match lines.get(i) {
            Some(line) => format!("line {line}: {kind}"),
            None => format!("after line {}: {kind}", lines.last().unwrap_or(&0)),
        };
    }
    if let Some(column) =
        data.schema.as_ref().filter(|_| data.values.rank() == 2).and_then(|s| s.columns.get(i))
    {
        return column.name.clone();
    }
    let (mut rest, mut parts) = (i, Vec::new());
    for size in positions(data).iter().rev() {
        parts.push((rest % size).to_string());
        rest /= size;
    }
    parts.reverse();
    parts.join(":")
}

/// The `k` most surprising positions, most surprising first.
pub fn worst(surprisal: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..surprisal.len()).collect();
    order.sort_by(|&a, &b| surprisal[b].total_cmp(&surprisal[a]).then(a.cmp(&b)));
    order.truncate(k);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_names() {
        let data = Dataset::new("x", Tensor::from_fn([2, 3, 4, 1], |i| i as u8));
        assert_eq!((positions(&data), place(&data, 0, 7).as_str()), (&[3, 4][..], "1:3"));
        let table = Dataset::new("t", Tensor::from_fn([2, 5], |i| i as f32));
        assert_eq!(place(&table, 0, 4), "4");
        let named = Dataset { schema: Some(std::sync::Arc::new(crate::data::Schema::numeric(5))), ..table };
        assert_eq!(place(&named, 0, 4), "x4");
        assert_eq!(worst(&[0.1, 3.0, 3.0, -1.0], 3), [1, 2, 0]);
    }
}
