//! Tables cut into blocks of rows that lie together, at medians of their widest column (Friedman, Bentley & Finkel
//! 1977).

use super::Table;
use crate::cpu::par;

/// A table cut into blocks of rows that lie together.
#[derive(Debug, Clone)]
pub(super) struct Blocks {
    /// The rows, block after block.
    pub order: Vec<u32>,
    /// Start of each block in `order`, and the end of the last.
    pub starts: Vec<usize>,
    /// (blocks, 2, D): lowest and highest value of each column.
    pub boxes: Vec<f64>,
}

impl Blocks {
    /// Cuts at the median of the widest column until no block has more than `most` rows.
    pub fn new(x: &Table, most: usize) -> Self {
        let d = x.columns();
        let mut order: Vec<u32> = (0..x.rows() as u32).collect();
        let mut pieces: Vec<Piece> = vec![Piece { rows: &mut order, bounds: vec![0.0; 2 * d] }];
        pieces.retain(|piece| !piece.rows.is_empty());
        // A level of cuts at a time, the pieces of a level in parallel.
        loop {
            par::chunks_mut(&mut pieces, 1, |_, piece| bounding_box(x, piece[0].rows, &mut piece[0].bounds));
            if pieces.iter().all(|piece| piece.rows.len() <= most) {
                break;
            }
            let mut halves: Vec<(Option<Piece>, Option<Piece>)> =
                pieces.into_iter().map(|piece| (Some(piece), None)).collect();
            par::chunks_mut(&mut halves, 1, |_, pair| {
                let whole = pair[0].0.take();
                pair[0] = match whole {
                    Some(piece) if piece.rows.len() > most => {
                        let (left, right) = piece.cut(x, most);
                        (Some(left), Some(right))
                    }
                    piece => (piece, None),
                };
            });
            pieces = halves.into_iter().flat_map(|(left, right)| [left, right]).flatten().collect();
        }
        let boxes = pieces.iter().flat_map(|piece| piece.bounds.iter().copied()).collect();
        let mut starts = vec![0];
        starts.extend(pieces.iter().scan(0, |at, piece| {
            *at += piece.rows.len();
            Some(*at)
        }));
        drop(pieces);
        Self { order, starts, boxes }
    }

    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// The numbers of the rows of a block.
    pub fn rows(&self, block: usize) -> &[u32] {
        &self.order[self.starts[block]..self.starts[block + 1]]
    }

    /// Lowest and highest value of each column of a block.
    pub fn bounds(&self, block: usize) -> (&[f64], &[f64]) {
        let d = self.boxes.len() / self.len().max(1) / 2;
        self.boxes[block * 2 * d..][..2 * d].split_at(d)
    }
}

/// Rows that may be cut further, and their box.
struct Piece<'a> {
    rows: &'a mut [u32],
    bounds: Vec<f64>,
}

impl<'a> Piece<'a> {
    /// At the median of the widest column; whole blocks on the left, so that only the last one is short.
    fn cut(self, x: &Table, most: usize) -> (Piece<'a>, Piece<'a>) {
        let d = x.columns();
        let (low, high) = self.bounds.split_at(d);
        let width = |j: &usize| high[*j] - low[*j];
        let widest = (0..d).max_by(|a, b| width(a).total_cmp(&width(b)).then(b.cmp(a))).unwrap_or(0);
        let half = (self.rows.len() / 2).next_multiple_of(most).min(self.rows.len() - 1);
        let value = |i: u32| x.row(i as usize)[widest];
        self.rows.select_nth_unstable_by(half, |&a, &b| value(a).total_cmp(&value(b)).then(a.cmp(&b)));
        let (left, right) = self.rows.split_at_mut(half);
        let piece = |rows: &'a mut [u32]| Piece { rows, bounds: vec![0.0; 2 * d] };
        (piece(left), piece(right))
    }
}

fn bounding_box(x: &Table, rows: &[u32], bounds: &mut [f64]) {
    let (low, high) = bounds.split_at_mut(x.columns());
    low.fill(f64::INFINITY);
    high.fill(f64::NEG_INFINITY);
    for &i in rows {
        let row = x.row(i as usize);
        low.iter_mut().zip(row).for_each(|(l, x)| *l = l.min(*x));
        high.iter_mut().zip(row).for_each(|(h, x)| *h = h.max(*x));
    }
}

/// The squared distance between two boxes, each (lowest, highest).
pub(super) fn box_distance((la, ha): (&[f64], &[f64]), (lb, hb): (&[f64], &[f64])) -> f64 {
    let gap = |i: usize| (lb[i] - ha[i]).max(la[i] - hb[i]).max(0.0);
    (0..la.len()).map(|i| gap(i) * gap(i)).sum()
}
