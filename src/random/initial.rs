//! Initial values of parameters.

use super::Philox;
use crate::nn::Initial;
use crate::tensor::{DType, Elem, Plain, Shape, Tensor, with_float};

impl Philox {
    /// The value of a new parameter.
    ///
    /// # Panics
    /// When an orthogonal matrix is asked for in a shape other than (n, n).
    #[track_caller]
    pub fn initial(&mut self, shape: impl Into<Shape>, dtype: DType, initial: Initial) -> Tensor {
        let shape = shape.into();
        match initial {
            Initial::Zeros => Tensor::zeros(shape, dtype),
            Initial::Constant(value) => Tensor::full(value, shape, dtype),
            Initial::Normal(std) => {
                let mut z = vec![0.0; shape.len()];
                self.fill_normal(&mut z);
                rounded(&z, shape, dtype, |z: f64| z * std)
            }
            Initial::Uniform(bound) => self.symmetric(shape, dtype, bound),
            Initial::FanIn(fan_in) => self.symmetric(shape, dtype, 1.0 / (fan_in.max(1) as f64).sqrt()),
            Initial::Orthogonal => {
                let &[n, m] = shape.as_slice() else {
                    panic!("orthogonal: expected a shape (n, n), got {shape:?}")
                };
                assert_eq!(n, m, "orthogonal: expected a shape (n, n), got {shape:?}");
                rounded(&self.orthogonal(n), shape, dtype, |x| x)
            }
        }
    }

    /// Uniform in ±bound.
    fn symmetric(&mut self, shape: Shape, dtype: DType, bound: f64) -> Tensor {
        let mut u = vec![0.0; shape.len()];
        self.fill_open(&mut u);
        rounded(&u, shape, dtype, |u: f64| (2.0 * u - 1.0) * bound)
    }

    /// An n by n orthogonal matrix from the Haar measure: Gram-Schmidt on the rows of a Gaussian matrix, each
    /// row orthogonalised twice ("twice is enough", Giraud et al. 2005); keeping the rows' own signs makes it
    /// uniform (Mezzadri 2007).
    fn orthogonal(&mut self, n: usize) -> Vec<f64> {
        let mut q = vec![0.0; n * n];
        self.fill_normal(&mut q);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        for i in 0..n {
            let (done, rest) = q.split_at_mut(i * n);
            let row = &mut rest[..n];
            for _ in 0..2 {
                for earlier in done.chunks_exact(n) {
                    let along = dot(earlier, row);
                    row.iter_mut().zip(earlier).for_each(|(x, e)| *x -= along * e);
                }
                let norm = dot(row, row).sqrt();
                row.iter_mut().for_each(|x| *x /= norm);
            }
        }
        q
    }
}

/// `f` of each value, rounded to `dtype`: the same numbers in every dtype.
fn rounded(values: &[f64], shape: Shape, dtype: DType, f: impl Fn(f64) -> f64) -> Tensor {
    with_float!(dtype, T => Tensor::from_fn(shape, |i| T::store(<T as Elem>::Acc::from_f64(f(values[i])))))
}
