//! Densities in the plane that every introduction to flows draws: rings, moons, pinwheel, checkerboard.

use super::Dataset;
use crate::random::Philox;
use crate::tensor::{DType, Tensor};
use std::f64::consts::{PI, TAU};

/// One line of the list: a density in the plane.
pub struct Plane {
    /// Its name.
    pub name: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// Its differential entropy in nats, where it has a closed form: no model can have a smaller mean surprisal.
    pub entropy: Option<f64>,
    /// A point from four uniforms in (0, 1) and two standard normal numbers.
    point: fn([f64; 4], [f64; 2]) -> [f64; 2],
}

/// All of them, about as wide as [−4, 4]².
pub static PLANES: &[Plane] = &[
    Plane {
        name: "rings",
        summary: "four circles of radius 1 to 4 around the origin, 0.08 wide",
        entropy: None,
        point: |[ring, turn, ..], [x, y]| {
            let radius = 1.0 + (4.0 * ring).floor();
            [radius * (TAU * turn).cos() + 0.08 * x, radius * (TAU * turn).sin() + 0.08 * y]
        },
    },
    Plane {
        name: "moons",
        summary: "two half circles that reach into each other, 0.2 wide",
        entropy: None,
        point: |[which, turn, ..], [x, y]| {
            let (a, upper) = (PI * turn, which < 0.5);
            let [u, v] = if upper { [a.cos(), a.sin()] } else { [1.0 - a.cos(), 0.5 - a.sin()] };
            [2.0 * u - 1.0 + 0.2 * x, 2.0 * v - 0.5 + 0.2 * y]
        },
    },
    Plane {
        name: "pinwheel",
        summary: "five arms of normal points, twisted by their distance",
        entropy: None,
        point: |[arm, ..], [x, y]| {
            let (along, across) = (1.0 + 0.3 * x, 0.1 * y);
            let angle = TAU * (5.0 * arm).floor() / 5.0 + 0.25 * along.exp();
            [
                2.0 * (along * angle.cos() - across * angle.sin()),
                2.0 * (along * angle.sin() + across * angle.cos()),
            ]
        },
    },
    Plane {
        name: "checkerboard",
        summary: "uniform on the eight black squares, 2 wide, of a board of four by four",
        // ln of the area, 32.
        entropy: Some(3.465_735_902_799_726_5),
        point: |[square, column, u, v], _| {
            let (row, pair) = ((4.0 * square).floor(), (2.0 * column).floor());
            let column = 2.0 * pair + row % 2.0;
            [2.0 * (column + u) - 4.0, 2.0 * (row + v) - 4.0]
        },
    },
];

impl Plane {
    /// `n` points, (n, 2) f32.
    pub fn sample(&self, n: usize, rng: &mut Philox) -> Dataset {
        let uniforms = rng.uniform_open([n, 4], DType::F64);
        let normals = rng.normal([n, 2], DType::F64);
        let (u, z) = (uniforms.as_slice::<f64>(), normals.as_slice::<f64>());
        let mut values = Vec::with_capacity(2 * n);
        for (u, z) in u.as_chunks::<4>().0.iter().zip(z.as_chunks::<2>().0) {
            values.extend((self.point)(*u, *z).map(|x| x as f32));
        }
        Dataset::new(self.name, Tensor::from_slice(&values, [n, 2]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_lie_where_they_should() {
        for plane in PLANES {
            let data = plane.sample(2000, &mut Philox::new(1));
            let again = plane.sample(2000, &mut Philox::new(1));
            assert_eq!(data.values.as_bytes(), again.values.as_bytes());
            assert!(data.values.to_f64_vec().iter().all(|x| x.abs() < 8.0), "{}", plane.name);
        }
        let board = PLANES.iter().find(|p| p.name == "checkerboard").expect("it is listed");
        let mut squares = [0; 16];
        for point in board.sample(8000, &mut Philox::new(2)).values.to_f64_vec().chunks(2) {
            let [column, row] = [0, 1].map(|i| ((point[i] + 4.0) / 2.0).floor() as usize);
            squares[4 * row + column] += 1;
        }
        for (i, count) in squares.into_iter().enumerate() {
            let black = (i / 4 + i % 4) % 2 == 0;
            assert!(if black { (800..1200).contains(&count) } else { count == 0 }, "square {i}: {count}");
        }
    }
}
