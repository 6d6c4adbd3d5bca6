//! npy, NumPy's format for one array (NEP 1): a magic number, a Python dictionary, the numbers.

use super::elements::{Array, Element, checked_shape};
use super::input::Input;
use super::{Dataset, Probe, ReadOptions, SourceInfo, format};
use crate::error::Result;
use std::path::Path;

/// The registry line.
pub(super) static NPY: SourceInfo = SourceInfo {
    name: "npy",
    family: "arrays",
    summary: "one NumPy array: bytes (N, H, W[, C]) or (N, D), or finite float32/float64 (N, D)",
    extensions: &[".npy"],
    has_keys: false,
    has_labels: false,
    probe,
    read,
};

const MAGIC: &[u8] = b"\x93NUMPY";
/// NumPy itself refuses longer headers unless told to trust them.
const MAX_HEADER: usize = 10_000;

fn probe(probe: &Probe) -> bool {
    probe.head.starts_with(MAGIC)
}

fn read(path: &Path, options: &ReadOptions) -> Result<Dataset> {
    let (array, _) = read_array(Input::open(path)?, options)?;
    let name = super::plain_name(path);
    let name = name.strip_suffix(".npy").unwrap_or(&name).to_string();
    Ok(Dataset::new(name, array.values(path)?))
}

/// The array limited to its first rows, and how many rows there are.
pub(super) fn read_array(mut input: Input, options: &ReadOptions) -> Result<(Array, usize)> {
    let start = input.header(8, "the magic number")?;
    if !start.starts_with(MAGIC) {
        return Err(format(input.path(), "no npy magic number; expected \\x93NUMPY"));
    }
    let length = match start[6] {
        1 => {
            let bytes = input.header(2, "the header length")?;
            usize::from(u16::from_le_bytes([bytes[0], bytes[1]]))
        }
        2 | 3 => {
            let bytes = input.header(4, "the header length")?;
            u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize
        }
        other => return Err(format(input.path(), format_args!("npy version {other}; expected 1, 2 or 3"))),
    };
    if length > MAX_HEADER {
        return Err(format(
            input.path(),
            format_args!("oversized: a header of {length} bytes; expected at most {MAX_HEADER}"),
        ));
    }
    let text = input.header(length, "the header")?;
    let header = Header::parse(&text).map_err(|e| format(input.path(), e))?;
    let (mut shape, declared) =
        checked_shape(&header.shape, header.element).map_err(|e| format(input.path(), e))?;
    let rows = shape.first().copied().unwrap_or(1);
    let keep = options.keep(rows as u64) as usize;
    let row = declared / rows as u128;
    // In column-major order every row is spread over the whole file.
    let wanted = if header.fortran { declared } else { row * keep as u128 };
    let mut raw = input.payload(declared, wanted, options)?;
    if header.fortran && shape.len() > 1 {
        raw = row_major(&raw, &shape, header.element.size(), keep);
    }
    raw.truncate(row as usize * keep);
    if let Some(first) = shape.first_mut() {
        *first = keep;
    }
    Ok((Array { raw, element: header.element, big_endian: header.big_endian, shape }, rows))
}

/// The first `keep` rows of a column-major array, row-major.
fn row_major(raw: &[u8], shape: &[usize], size: usize, keep: usize) -> Vec<u8> {
    let rows = shape[0];
    let row: usize = shape[1..].iter().product();
    let mut out = vec![0; keep * row * size];
    for j in 0..row {
        // Index within the row -> offset of its column in the file, where the first axis runs fastest.
        let (mut rest, mut column) = (j, 0);
        for axis in (1..shape.len()).rev() {
            let inner: usize = shape[1..axis].iter().product();
            column += rest % shape[axis] * inner;
            rest /= shape[axis];
        }
        for i in 0..keep {
            let from = (column * rows + i) * size;
            let to = (i * row + j) * size;
            out[to..to + size].copy_from_slice(&raw[from..from + size]);
        }
    }
    out
}

#[derive(Debug, PartialEq)]
struct Header {
    element: Element,
    big_endian: bool,
    fortran: bool,
    shape: Vec<u64>,
}

impl Header {
    /// `{'descr': '<f4', 'fortran_order': False, 'shape': (60000, 28, 28), }`.
    fn parse(text: &[u8]) -> std::result::Result<Self, String> {
        let text = std::str::from_utf8(text).map_err(|_| "the npy header is not text".to_string())?;
        let after = |key: &str| {
            let quoted = format!("'{key}':");
            let at = text.find(&quoted).ok_or(format!("the npy header names no '{key}'"))?;
            Ok::<&str, String>(text[at + quoted.len()..].trim_start())
        };
        let descr = after("descr")?;
        let Some(descr) = descr.strip_prefix('\'').and_then(|d| d.split('\'').next()) else {
            return Err("an array of records; expected one type of number".into());
        };
        let (order, code) = descr.split_at_checked(1).unwrap_or_default();
        let element = match code {
            "b1" => Element::Bool,
            "u1" => Element::U8,
            "i1" => Element::I8,
            "u2" => Element::U16,
            "i2" => Element::I16,
            "u4" => Element::U32,
            "i4" => Element::I32,
            "u8" => Element::U64,
            "i8" => Element::I64,
            "f4" => Element::F32,
            "f8" => Element::F64,
            _ => return Err(format!("numbers of type '{descr}'; expected uint8, float32 or float64")),
        };
        if !["<", ">", "|", "="].contains(&order) {
            return Err(format!("numbers of byte order '{order}'; expected <, > or |"));
        }
        let fortran = after("fortran_order")?;
        let fortran = match (fortran.starts_with("True"), fortran.starts_with("False")) {
            (true, _) => true,
            (_, true) => false,
            _ => return Err("fortran_order is neither True nor False".into()),
        };
        let shape = after("shape")?;
        let inner = shape.strip_prefix('(').and_then(|s| s.split_once(')')).map(|(inner, _)| inner);
        let inner = inner.ok_or("the shape in the npy header is not a tuple")?;
        let sizes = inner.split(',').map(str::trim).filter(|s| !s.is_empty());
        let shape: std::result::Result<Vec<u64>, _> = sizes.map(str::parse).collect();
        let shape =
            shape.map_err(|_| format!("the shape ({inner}) in the npy header is no list of sizes"))?;
        Ok(Self { element, big_endian: order == ">", fortran, shape })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_parsed() {
        let header =
            Header::parse(b"{'descr': '>f8', 'fortran_order': True, 'shape': (3, 4), }   \n").unwrap();
        let expected = Header { element: Element::F64, big_endian: true, fortran: true, shape: vec![3, 4] };
        assert_eq!(header, expected);
        let scalar = Header::parse(b"{'shape': (), 'descr': '|u1', 'fortran_order': False}").unwrap();
        assert!(scalar.shape.is_empty());
        for (bad, why) in [
            ("{'descr': '|O', 'fortran_order': False, 'shape': (3,), }", "type '|O'"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,), }", "records"),
            ("{'descr': '<f4', 'fortran_order': 0, 'shape': (3,), }", "fortran_order"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-3,), }", "no list of sizes"),
            ("{'descr': '<f4', 'fortran_order': False, }", "'shape'"),
            ("{'descr': '', 'fortran_order': False, 'shape': (3,), }", "type ''"),
        ] {
            let error = Header::parse(bad.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn column_major_becomes_row_major() {
        // a[i, j, k] = 100 i + 10 j + k, written with i running fastest.
        let shape = [3, 2, 4];
        let mut raw = Vec::new();
        for k in 0..4u8 {
            for j in 0..2 {
                raw.extend((0..3).map(|i| 100 * i + 10 * j + k));
            }
        }
        let expected: Vec<u8> = vec![0, 1, 2, 3, 10, 11, 12, 13, 100, 101, 102, 103, 110, 111, 112, 113];
        assert_eq!(row_major(&raw, &shape, 1, 2), expected);
    }
}
