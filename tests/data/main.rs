//! Everything between a file and a model: sources, bad files, fuzzed files, transforms, real data.

mod bad;
mod fuzz;
#[cfg(feature = "parquet")]
mod parquet;
mod prepare;
mod real;
mod sequences;
mod tables;

use std::io::Write;
use std::path::{Path, PathBuf};
use surprisal::data::{self, Dataset, ReadOptions, SOURCES};
use surprisal::tensor::{DType, Tensor};
use tempfile::TempDir;

/// An IDX file: type code, big-endian sizes, elements as given.
fn idx(code: u8, sizes: &[u32], elements: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, code, sizes.len() as u8];
    bytes.extend(sizes.iter().flat_map(|s| s.to_be_bytes()));
    bytes.extend_from_slice(elements);
    bytes
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// An npy file of version 1 with this dictionary.
fn npy(dictionary: &str, elements: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&(dictionary.len() as u16).to_le_bytes());
    bytes.extend_from_slice(dictionary.as_bytes());
    bytes.extend_from_slice(elements);
    bytes
}

fn npy_of(descr: &str, shape: &str, elements: &[u8]) -> Vec<u8> {
    npy(&format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n"), elements)
}

/// A WAV file of this format, channels and bits.
fn wav(kind: u16, channels: u16, bits: u16, frames: &[u8]) -> Vec<u8> {
    let frame = channels * bits / 8;
    let mut bytes = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0".to_vec();
    [kind, channels].iter().for_each(|w| bytes.extend(w.to_le_bytes()));
    [8000u32, 8000 * u32::from(frame)].iter().for_each(|w| bytes.extend(w.to_le_bytes()));
    [frame, bits].iter().for_each(|w| bytes.extend(w.to_le_bytes()));
    bytes.extend(b"data");
    bytes.extend((frames.len() as u32).to_le_bytes());
    bytes.extend(frames);
    bytes
}

fn npz(arrays: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut out = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (key, array) in arrays {
        out.start_file(format!("{key}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
        out.write_all(array).unwrap();
    }
    out.finish().unwrap().into_inner()
}

/// `f(0), f(1), ...` as little-endian f64.
fn f64s(n: usize, f: impl Fn(usize) -> f64) -> Vec<u8> {
    (0..n).flat_map(|i| f(i).to_le_bytes()).collect()
}

fn ramp(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 37 % 251) as u8).collect()
}

fn put(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

fn open(path: &Path) -> surprisal::Result<Dataset> {
    data::open(path, &ReadOptions::default())
}

fn limited(path: &Path, limit: usize) -> surprisal::Result<Dataset> {
    data::open(path, &ReadOptions { limit: Some(limit), ..Default::default() })
}

fn with_key(path: &Path, key: &str, labels: Option<&str>) -> surprisal::Result<Dataset> {
    let labels = labels.map(str::to_string);
    data::open(path, &ReadOptions { key: Some(key.into()), labels, ..Default::default() })
}

#[test]
fn the_registry_is_complete() {
    let mut names: Vec<&str> = SOURCES.iter().map(|s| s.name).collect();
    assert!(
        SOURCES.iter().all(|s| !s.family.is_empty() && !s.summary.is_empty() && !s.extensions.is_empty())
    );
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), SOURCES.len());
}

#[test]
fn idx_images_find_their_labels() {
    let folder = TempDir::new().unwrap();
    let pixels = ramp(5 * 2 * 3);
    let images = idx(8, &[5, 2, 3], &pixels);
    let labels = idx(8, &[5], &[3, 1, 4, 1, 5]);
    for (prefix, images_name, labels_name) in [
        ("plain", "train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        ("gz", "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
        ("mixed", "train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz"),
    ] {
        let write = |name: &str, bytes: &[u8]| {
            let bytes = if name.ends_with("gz") { gz(bytes) } else { bytes.to_vec() };
            put(&folder, &format!("{prefix}/{name}"), &bytes)
        };
        write(labels_name, &labels);
        let path = write(images_name, &images);
        let set = open(&path).unwrap();
        assert_eq!(set.values.shape(), [5, 2, 3, 1]);
        assert_eq!(set.values.as_slice::<u8>(), pixels);
        assert_eq!(set.labels.as_deref(), Some(&[3, 1, 4, 1, 5][..]));
        assert_eq!(set.describe(), format!("{prefix}-train: 5 x 2x3x1 u8, 4 classes"));
        let two = limited(&path, 2).unwrap();
        assert_eq!((two.len(), two.values.as_slice::<u8>()), (2, &pixels[..12]));
        assert_eq!(two.labels.unwrap(), [3, 1]);
    }
}

#[test]
fn idx_holds_other_numbers() {
    let folder = TempDir::new().unwrap();
    let numbers = [1.5f64, -2.0, 3.25, 1e9, 0.0, -0.125];
    let f32s: Vec<u8> = numbers.iter().flat_map(|&x| (x as f32).to_be_bytes()).collect();
    let f64s: Vec<u8> = numbers.iter().flat_map(|x| x.to_be_bytes()).collect();
    let i32s: Vec<u8> = numbers.iter().flat_map(|&x| (x as i32).to_be_bytes()).collect();
    for (code, bytes, dtype) in [(0x0D, f32s, DType::F32), (0x0E, f64s, DType::F64), (0x0C, i32s, DType::I32)]
    {
        let set = open(&put(&folder, "table.idx", &idx(code, &[3, 2], &bytes))).unwrap();
        assert_eq!((set.values.dtype(), set.values.shape()), (dtype, &[3, 2][..]));
        let expected = numbers.map(|x| if dtype == DType::I32 { x.trunc() } else { x });
        assert_eq!(set.values.to_f64_vec(), expected);
    }
}

#[test]
fn npy_and_npz_are_read_in_either_order() {
    let folder = TempDir::new().unwrap();
    let numbers: Vec<f64> = (0..12).map(f64::from).collect();
    let rows = f64s(12, |i| i as f64);
    let columns = f64s(12, |i| (i % 4 * 3 + i / 4) as f64);
    let fortran = npy("{'descr': '<f8', 'fortran_order': True, 'shape': (4, 3), }", &columns);
    for bytes in [npy_of("<f8", "(4, 3)", &rows), fortran.clone()] {
        let path = put(&folder, "table.npy", &bytes);
        let set = open(&path).unwrap();
        assert_eq!((set.values.shape(), set.values.to_f64_vec()), (&[4, 3][..], numbers.clone()));
        assert_eq!(limited(&path, 2).unwrap().values.to_f64_vec(), numbers[..6]);
    }
    let labels: Vec<u8> = [0i64, 1, 1, 0].iter().flat_map(|l| l.to_le_bytes()).collect();
    let labels = npy_of("<i8", "(4,)", &labels);
    let other = npy_of("|u1", "(2, 2, 2)", &ramp(8));
    let path = put(&folder, "set.npz", &npz(&[("other", other), ("y", labels), ("X", fortran)]));
    let set = open(&path).unwrap();
    assert_eq!((set.values.to_f64_vec(), set.labels.as_deref()), (numbers, Some(&[0, 1, 1, 0][..])));
    let set = with_key(&path, "other", None).unwrap();
    assert_eq!(set.describe(), "set:other: 2 x 2x2x1 u8");
    assert_eq!(with_key(&path, "X", Some("y")).unwrap().labels.unwrap().len(), 4);
}

#[test]
fn folders_are_sorted_and_classed() {
    let folder = TempDir::new().unwrap();
    let image = |value: u8| Tensor::full(value.into(), [1, 3, 2, 3], DType::U8);
    for (name, value) in [("shoe/b.png", 2), ("shoe/a.PNG", 1), ("bag/z.png", 7), ("empty/readme.txt", 0)] {
        let path = put(&folder, name, b"");
        data::write_png(&path, &image(value), 1).unwrap();
    }
    let set = open(folder.path()).unwrap();
    assert_eq!(set.values.shape(), [3, 3, 2, 3]);
    assert_eq!([0, 18, 36].map(|i| set.values.as_slice::<u8>()[i]), [7, 1, 2]);
    assert_eq!(set.labels.unwrap(), [0, 1, 1]);
    let flat = open(&folder.path().join("shoe")).unwrap();
    assert_eq!((flat.len(), flat.labels, flat.name.as_str()), (2, None, "shoe"));
    assert_eq!(open(&folder.path().join("bag/z.png")).unwrap().len(), 1);
}

#[test]
fn alpha_must_be_opaque() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.png");
    image::RgbaImage::from_pixel(2, 2, image::Rgba([1, 2, 3, 255])).save(&path).unwrap();
    assert_eq!(open(&path).unwrap().values.as_slice::<u8>()[..6], [1, 2, 3, 1, 2, 3]);
    image::RgbaImage::from_pixel(2, 2, image::Rgba([1, 2, 3, 254])).save(&path).unwrap();
    assert!(open(&path).unwrap_err().to_string().contains("transparent"));
}

#[test]
fn written_arrays_are_read_back() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("x.npy");
    for values in [
        Tensor::from_fn([4, 3], |i| i as f32 / 7.0),
        Tensor::from_fn([4, 3], |i| i as f64 / 7.0),
        Tensor::from_fn([3, 2, 2, 3], |i| i as u8),
    ] {
        data::write_npy(&path, &values).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!((bytes.len() - values.as_bytes().len()) % 64, 0, "numbers start at a multiple of 64");
        let back = open(&path).unwrap().values;
        assert_eq!((back.shape(), back.as_bytes()), (values.shape(), values.as_bytes()));
    }
    let nowhere = folder.path().join("missing/x.npy");
    let error = data::write_npy(&nowhere, &Tensor::zeros([2, 2], DType::F32)).unwrap_err().to_string();
    assert!(error.contains("missing/x.npy"), "{error}");
}

#[test]
fn grids_keep_every_pixel() {
    let images = Tensor::from_fn([5, 2, 3, 1], |i| i as u8 + 1);
    let grid = data::grid(&images, 2);
    assert_eq!(grid.shape(), [3 * 3 - 1, 2 * 4 - 1, 1]);
    let sum = |t: &Tensor| t.as_slice::<u8>().iter().map(|&x| u32::from(x)).sum::<u32>();
    assert_eq!(sum(&grid), sum(&images));
    assert_eq!(grid.as_slice::<u8>()[..7], [1, 2, 3, 0, 7, 8, 9]);
    let decoded = image::load_from_memory(&data::png(&grid)).unwrap();
    assert_eq!(decoded.into_luma8().into_raw(), grid.as_slice::<u8>());
}

#[test]
fn datasets_are_cut_and_split() {
    let values = Tensor::from_fn([10, 2], |i| i as f32);
    let set = Dataset::new("ten", values).with_labels(Some((0..10).collect()));
    assert_eq!((set.len(), set.dims(), set.example_shape()), (10, 2, &[2][..]));
    assert_eq!(set.select(&[7, 0]).values.as_slice::<f32>(), [14.0, 15.0, 0.0, 1.0]);
    assert_eq!(set.select(&[7, 0]).labels.unwrap(), [7, 0]);
    assert_eq!((set.take(3).len(), set.take(30).len()), (3, 10));
    let batches: Vec<_> = set.batches(4).map(|(range, x)| (range, x.shape()[0])).collect();
    assert_eq!(batches, [(0..4, 4), (4..8, 4), (8..10, 2)]);

    let (train, validation) = set.split(0.3, 5).unwrap();
    assert_eq!((train.len(), validation.len()), (7, 3));
    let mut all = [train.labels.clone().unwrap(), validation.labels.clone().unwrap()].concat();
    all.sort_unstable();
    assert_eq!(all, (0..10).collect::<Vec<_>>());
    assert_eq!(set.split(0.3, 5).unwrap().1.labels, validation.labels);
    let others = (6..20).any(|seed| set.split(0.3, seed).unwrap().1.labels != validation.labels);
    assert!(others, "the seed decides the split");
    assert_eq!(set.split(0.001, 0).unwrap().1.len(), 1);
    for fraction in [0.0, 1.0, -1.0, f64::NAN] {
        assert!(set.split(fraction, 0).unwrap_err().to_string().contains("fraction"));
    }
    assert!(set.take(1).split(0.5, 0).unwrap_err().to_string().contains("at least 2"));
}
