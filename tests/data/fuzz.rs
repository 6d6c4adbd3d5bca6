//! Valid files with random damage are read or refused; they never panic and never take long.

use super::*;
use proptest::prelude::*;
use std::sync::LazyLock;

/// Valid small files of every source, by name.
static VALID: LazyLock<Vec<(&str, Vec<u8>)>> = LazyLock::new(|| {
    let labels: Vec<u8> = (0..4i64).flat_map(|l| l.to_le_bytes()).collect();
    let table = npy("{'descr': '<f8', 'fortran_order': True, 'shape': (4, 3), }", &f64s(12, |i| i as f64));
    let arrays = npz(&[("X", table.clone()), ("y", npy_of("<i8", "(4,)", &labels))]);
    let grey = Tensor::from_fn([8, 8, 1], |i| (i * 5) as u8);
    let rgb = image::RgbImage::from_fn(16, 16, |x, y| image::Rgb([(x * 9) as u8, (y * 7) as u8, 80]));
    let mut jpeg = std::io::Cursor::new(Vec::new());
    rgb.write_to(&mut jpeg, image::ImageFormat::Jpeg).unwrap();
    vec![
        ("f.idx", idx(8, &[4, 3, 3], &ramp(36))),
        ("g.idx.gz", gz(&idx(0x0D, &[4, 2], &[0x3f, 0x80, 0, 0].repeat(8)))),
        ("t.npy", table),
        ("u.npy", npy_of("|u1", "(2, 3, 3)", &ramp(18))),
        ("a.npz", arrays),
        ("p.png", data::png(&grey)),
        ("j.jpg", jpeg.into_inner()),
        ("c.csv", TABLE.to_vec()),
        ("d.csv.gz", gz(TABLE)),
        ("s.csv", b"timestamp,a\n2014-07-01 00:00,1\n2014-07-01 01:00,2.5\n2014-07-01 02:00,3\n2014-07-01 03:00,-4\n".to_vec()),
        ("s.txt", b"to be, or not to be\nthat is\n".to_vec()),
        ("s.wav", wav(1, 2, 16, &ramp(64))),
    ]
});

/// Sequences are cut into short windows.
fn reading(name: &str) -> ReadOptions {
    ReadOptions { window: name.starts_with("s.").then_some(3), ..Default::default() }
}

/// A table with a column of every kind.
const TABLE: &[u8] = b"x,colour,when,on,n\n1.5,red,2014-07-01,true,3\n-2,\"blue, dark\",2014-07-02 10:00,false,NA\n\n0,red,,yes,1e3\n";

/// Whether every value is finite, or missing where that is allowed.
fn whole(set: &Dataset) -> bool {
    let nullable = |i: usize| set.schema.as_ref().is_some_and(|s| s.columns[i % set.dims()].nullable);
    set.values.to_f64_vec().iter().enumerate().all(|(i, x)| x.is_finite() || x.is_nan() && nullable(i))
}

/// One act of damage; positions are fractions of the length.
#[derive(Debug, Clone)]
enum Damage {
    Set(f64, u8),
    Flip(f64, u8),
    Cut(f64),
    Insert(f64, Vec<u8>),
    Remove(f64, usize),
    Fill(f64, usize, u8),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let place = |at: f64| ((bytes.len() as f64 * at) as usize).min(bytes.len().saturating_sub(1));
        match self {
            _ if bytes.is_empty() => {}
            Damage::Set(at, value) => {
                let at = place(*at);
                bytes[at] = *value;
            }
            Damage::Flip(at, bit) => {
                let at = place(*at);
                bytes[at] ^= 1 << bit;
            }
            Damage::Cut(at) => bytes.truncate(place(*at)),
            Damage::Insert(at, extra) => {
                let at = place(*at);
                bytes.splice(at..at, extra.iter().copied());
            }
            Damage::Remove(at, n) => {
                let at = place(*at);
                bytes.drain(at..(at + n).min(bytes.len()));
            }
            Damage::Fill(at, n, value) => {
                let at = place(*at);
                let end = (at + n).min(bytes.len());
                bytes[at..end].fill(*value);
            }
        }
    }
}

/// Headers stand at the front (and, in archives, at the end): half of the damage goes there.
fn place() -> impl Strategy<Value = f64> {
    prop_oneof![0.0..1.0, (0.0..1.0f64).prop_map(|x| x * x * x), (0.0..1.0f64).prop_map(|x| 1.0 - x * x * x)]
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (place(), any::<u8>()).prop_map(|(at, value)| Damage::Set(at, value)),
        4 => (place(), 0..8u8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        1 => place().prop_map(Damage::Cut),
        1 => (place(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, extra)| Damage::Insert(at, extra)),
        1 => (place(), 1..9usize).prop_map(|(at, n)| Damage::Remove(at, n)),
        2 => (place(), 1..9usize, prop_oneof![Just(0xff), Just(0), Just(0x7f), Just(b'9')])
            .prop_map(|(at, n, value)| Damage::Fill(at, n, value)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn damaged_files_are_read_or_refused(
        which in 0..VALID.len(),
        damages in prop::collection::vec(damage(), 1..5),
        limit in prop::option::of(1..6usize),
    ) {
        let (name, valid) = &VALID[which];
        let mut bytes = valid.clone();
        damages.iter().for_each(|d| d.apply(&mut bytes));
        let folder = TempDir::new().unwrap();
        let path = put(&folder, name, &bytes);
        match data::open(&path, &ReadOptions { limit, ..reading(name) }) {
            Ok(set) => prop_assert!(!set.is_empty() && whole(&set)),
            Err(error) => prop_assert!(error.to_string().contains(name), "{} not named: {}", name, error),
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(
        which in 0..VALID.len(),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let (name, valid) = &VALID[which];
        let folder = TempDir::new().unwrap();
        // Behind a right magic number, so that the source's own checks are reached.
        let path = put(&folder, name, &[&valid[..8.min(valid.len())], &bytes].concat());
        let _ = data::open(&path, &reading(name));
    }
}

#[test]
fn undamaged_files_are_read() {
    let folder = TempDir::new().unwrap();
    for (name, bytes) in VALID.iter() {
        let set = data::open(put(&folder, name, bytes), &reading(name)).unwrap_or_else(|e| panic!("{e}"));
        assert!(!set.is_empty());
    }
}
