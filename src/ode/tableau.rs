//! Explicit Runge-Kutta methods as data.
//!
//! x_{n+1} = x_n + h Σ b_i k_i, k_i = f(t + c_i h, x_n + h Σ_{j<i} a_ij k_j) (Butcher 1963). A method with an error
//! estimate has a second row of weights of another order; `error` is the difference of the two rows.

/// An explicit Runge-Kutta method.
#[derive(Debug, PartialEq)]
pub struct Tableau {
    /// Its name in configurations.
    pub name: &'static str,
    /// The global error is O(h^order).
    pub order: u32,
    /// Row i: the weights of the stages before i + 1 in the argument of stage i + 1.
    pub a: &'static [&'static [f64]],
    /// The weights of the stages in the step.
    pub b: &'static [f64],
    /// The times of the stages, as fractions of the step.
    pub c: &'static [f64],
    /// Weights of the stages in the error estimate; none for methods of fixed steps only.
    pub error: Option<&'static [f64]>,
    /// The weights of the stages half a step ahead, where they give one more order than a cubic.
    pub middle: Option<&'static [f64]>,
    /// Whether the last stage is the first of the next step (then a's last row is b).
    pub first_same_as_last: bool,
}

impl Tableau {
    /// Stages, the evaluations of f in one step.
    pub fn stages(&self) -> usize {
        self.b.len()
    }

    /// The weights of stages 0..i in the argument of stage i.
    pub fn row(&self, i: usize) -> &'static [f64] {
        if i == 0 { &[] } else { self.a[i - 1] }
    }
}

/// All methods.
pub static TABLEAUX: &[&Tableau] = &[&EULER, &MIDPOINT, &HEUN, &RK4, &BOSH3, &DOPRI5, &TSIT5];

/// Euler's method.
pub static EULER: Tableau = Tableau {
    name: "euler",
    order: 1,
    a: &[],
    b: &[1.0],
    c: &[0.0],
    error: None,
    middle: None,
    first_same_as_last: false,
};

/// The explicit midpoint rule.
pub static MIDPOINT: Tableau = Tableau {
    name: "midpoint",
    order: 2,
    a: &[&[0.5]],
    b: &[0.0, 1.0],
    c: &[0.0, 0.5],
    error: None,
    middle: None,
    first_same_as_last: false,
};

/// Heun's method with Euler's inside (Heun 1900).
pub static HEUN: Tableau = Tableau {
    name: "heun",
    order: 2,
    a: &[&[1.0]],
    b: &[0.5, 0.5],
    c: &[0.0, 1.0],
    error: Some(&[-0.5, 0.5]),
    middle: None,
    first_same_as_last: false,
};

/// The classical method of order 4 (Kutta 1901).
pub static RK4: Tableau = Tableau {
    name: "rk4",
    order: 4,
    a: &[&[0.5], &[0.0, 0.5], &[0.0, 0.0, 1.0]],
    b: &[1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0],
    c: &[0.0, 0.5, 0.5, 1.0],
    error: None,
    middle: None,
    first_same_as_last: false,
};

/// Order 3 with 2 (Bogacki & Shampine 1989).
pub static BOSH3: Tableau = Tableau {
    name: "bosh3",
    order: 3,
    a: &[&[0.5], &[0.0, 0.75], &[2.0 / 9.0, 1.0 / 3.0, 4.0 / 9.0]],
    b: &[2.0 / 9.0, 1.0 / 3.0, 4.0 / 9.0, 0.0],
    c: &[0.0, 0.5, 0.75, 1.0],
    error: Some(&[2.0 / 9.0 - 7.0 / 24.0, 1.0 / 3.0 - 0.25, 4.0 / 9.0 - 1.0 / 3.0, -0.125]),
    middle: None,
    first_same_as_last: true,
};

/// Order 5 with 4 (Dormand & Prince 1980).
pub static DOPRI5: Tableau = Tableau {
    name: "dopri5",
    order: 5,
    a: &[
        &[1.0 / 5.0],
        &[3.0 / 40.0, 9.0 / 40.0],
        &[44.0 / 45.0, -56.0 / 15.0, 32.0 / 9.0],
        &[19372.0 / 6561.0, -25360.0 / 2187.0, 64448.0 / 6561.0, -212.0 / 729.0],
        &[9017.0 / 3168.0, -355.0 / 33.0, 46732.0 / 5247.0, 49.0 / 176.0, -5103.0 / 18656.0],
        &[35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0],
    ],
    b: &[35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0, 0.0],
    c: &[0.0, 0.2, 0.3, 0.8, 8.0 / 9.0, 1.0, 1.0],
    error: Some(&[
        71.0 / 57600.0,
        0.0,
        -71.0 / 16695.0,
        71.0 / 1920.0,
        -17253.0 / 339200.0,
        22.0 / 525.0,
        -1.0 / 40.0,
    ]),
    // Shampine 1986, "Some practical Runge-Kutta formulas".
    middle: Some(&[
        6025192743.0 / 30085553152.0 / 2.0,
        0.0,
        51252292925.0 / 65400821598.0 / 2.0,
        -2691868925.0 / 45128329728.0 / 2.0,
        187940372067.0 / 1594534317056.0 / 2.0,
        -1776094331.0 / 19743644256.0 / 2.0,
        11237099.0 / 235043384.0 / 2.0,
    ]),
    first_same_as_last: true,
};

/// Order 5 with 4, smaller error terms (Tsitouras 2011, table 1).
pub static TSIT5: Tableau = Tableau {
    name: "tsit5",
    order: 5,
    a: &[
        &[0.161],
        &[-0.008480655492356989, 0.335480655492357],
        &[2.8971530571054935, -6.359448489975075, 4.3622954328695815],
        &[5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525],
        &[5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383],
        &[
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
        ],
    ],
    b: &[
        0.09646076681806523,
        0.01,
        0.4798896504144996,
        1.379008574103742,
        -3.290069515436081,
        2.324710524099774,
        0.0,
    ],
    c: &[0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0],
    error: Some(&[
        -0.001780011052225777,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        0.015151515151515152,
    ]),
    middle: None,
    first_same_as_last: true,
};

impl Tableau {
    /// The method called `name`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Usage`] suggesting the nearest.
    pub fn find(name: &str) -> crate::Result<&'static Tableau> {
        TABLEAUX.iter().copied().find(|t| t.name == name).ok_or_else(|| {
            let hint = crate::error::nearest(name, TABLEAUX.iter().map(|t| t.name));
            crate::Error::new(crate::ErrorKind::Usage, format!("no method is called \"{name}\"; {hint}"))
        })
    }
}
