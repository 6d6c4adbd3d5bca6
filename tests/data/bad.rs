//! Bad files: one message each, which names the file and says what was expected; nothing panics, and no
//! header makes the program ask for memory that the file cannot fill.

use super::*;
use surprisal::ErrorKind;

#[track_caller]
fn refused(result: surprisal::Result<Dataset>, kind: ErrorKind, words: &[&str]) {
    let error = result.map(|set| set.describe()).expect_err("a bad file was read");
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "no \"{word}\" in: {message}");
    }
    assert_eq!(error.kind(), kind, "{message}");
    assert!(!message.contains('\n'), "more than one line: {message}");
}

#[test]
fn missing_and_unknown_files() {
    let folder = TempDir::new().unwrap();
    refused(open(&folder.path().join("none.npy")), ErrorKind::Io, &["none.npy", "No such file"]);
    let text = put(&folder, "notes.pdf", b"hello, this is no data");
    refused(
        open(&text),
        ErrorKind::Format,
        &["notes.pdf", "idx, npy, npz, folder, csv, series, text, log, events, wav"],
    );
    let empty = put(&folder, "empty", b"");
    refused(open(&empty), ErrorKind::Format, &["empty", "no known data format"]);
    let path = put(&folder, "a.npy", &npy_of("|u1", "(2, 2)", &ramp(4)));
    refused(limited(&path, 0), ErrorKind::Usage, &["a.npy", "limit of 0"]);
    refused(with_key(&path, "x", None), ErrorKind::Usage, &["a.npy", "key \"x\"", "no named arrays"]);
}

#[test]
fn bad_idx() {
    let folder = TempDir::new().unwrap();
    let good = idx(8, &[4, 2, 3], &ramp(24));
    let case = |bytes: &[u8], words: &[&str]| {
        for (name, bytes) in [("x-images-idx3-ubyte", bytes.to_vec()), ("x-images-idx3-ubyte.gz", gz(bytes))]
        {
            let path = put(&folder, name, &bytes);
            refused(open(&path), ErrorKind::Format, &[&[name], words].concat());
        }
    };
    case(&good[..2], &["truncated", "magic number"]);
    case(&good[..9], &["truncated", "sizes"]);
    case(&good[..30], &["truncated", "24"]);
    case(&[&good[..], b"x"].concat(), &["too long", "24"]);
    case(&[b"\0\0\x07\x03", &good[4..]].concat(), &["00000703", "expected IDX"]);
    case(&[b"\x01\0\x08\x03", &good[4..]].concat(), &["01000803", "expected IDX"]);
    case(&idx(8, &[0, 2, 3], &[]), &["empty along axis 0"]);
    case(&idx(8, &[u32::MAX; 4], &[]), &["oversized"]);
    case(&idx(8, &[u32::MAX, 28, 28], &ramp(24)), &["declares 3367254359", "at"]);

    let case = |bytes: &[u8], words: &[&str]| {
        refused(open(&put(&folder, "y.idx", bytes)), ErrorKind::Data, &[&["y.idx"], words].concat());
    };
    case(&idx(8, &[24], &ramp(24)), &["rank 1", "expected images"]);
    case(&idx(8, &[4, 1, 1, 6], &ramp(24)), &["channels last"]);
    case(&idx(9, &[4, 6], &ramp(24)), &["int8", "expected uint8"]);

    let cut = gz(&good);
    let cut = put(&folder, "cut-images-idx3-ubyte.gz", &cut[..cut.len() - 9]);
    refused(open(&cut), ErrorKind::Format, &["cut-images", "damaged compressed data"]);
    let mut flipped = gz(&good);
    let end = flipped.len() - 6;
    flipped[end] ^= 1;
    let path = put(&folder, "crc-images-idx3-ubyte.gz", &flipped);
    refused(open(&path), ErrorKind::Format, &["crc-images", "damaged compressed data"]);
}

#[test]
fn labels_that_do_not_fit() {
    let folder = TempDir::new().unwrap();
    let images = put(&folder, "x-images-idx3-ubyte", &idx(8, &[4, 2, 3], &ramp(24)));
    put(&folder, "x-labels-idx1-ubyte", &idx(8, &[3], &ramp(3)));
    refused(open(&images), ErrorKind::Data, &["x-labels-idx1-ubyte", "3 labels", "4 examples"]);
    put(&folder, "x-labels-idx1-ubyte", &idx(8, &[4, 2], &ramp(8)));
    refused(open(&images), ErrorKind::Data, &["x-labels-idx1-ubyte", "rank 2", "expected rank 1"]);
    put(&folder, "x-labels-idx1-ubyte", &idx(0x0D, &[4], &[0x3f, 0, 0, 0].repeat(4)));
    refused(open(&images), ErrorKind::Data, &["x-labels-idx1-ubyte", "label 0.5 in row 0"]);
}

#[test]
fn non_finite_values() {
    let folder = TempDir::new().unwrap();
    for (bad, shown) in [(f64::NAN, "NaN"), (f64::INFINITY, "inf"), (f64::NEG_INFINITY, "-inf")] {
        let numbers = |i| if i == 7 { bad } else { i as f64 };
        let path = put(&folder, "t.npy", &npy_of("<f8", "(4, 3)", &f64s(12, numbers)));
        refused(open(&path), ErrorKind::Data, &["t.npy", shown, "row 2, column 1", "finite"]);
        let path = put(&folder, "t.npz", &npz(&[("X", npy_of("<f8", "(2, 3, 2)", &f64s(12, numbers)))]));
        refused(open(&path), ErrorKind::Data, &["t.npz[X]", shown, "row 1, column 0, 1"]);
        let singles: Vec<u8> = (0..12).flat_map(|i| (numbers(i) as f32).to_be_bytes()).collect();
        let path = put(&folder, "t.idx", &idx(0x0D, &[4, 3], &singles));
        refused(open(&path), ErrorKind::Data, &["t.idx", shown, "row 2, column 1"]);
    }
}

#[test]
fn bad_npy() {
    let folder = TempDir::new().unwrap();
    let case = |kind: ErrorKind, bytes: &[u8], words: &[&str]| {
        refused(open(&put(&folder, "x.npy", bytes)), kind, &[&["x.npy"], words].concat());
        // The same array as a member of an archive, where its length is not known beforehand.
        let archive = put(&folder, "x.npz", &npz(&[("x", bytes.to_vec())]));
        refused(open(&archive), kind, &[&["x.npz[x]"], words].concat());
    };
    let good = npy_of("<f4", "(3, 2)", &[0; 24]);
    case(ErrorKind::Format, &good[..5], &["truncated", "magic number"]);
    case(ErrorKind::Format, &good[..9], &["truncated", "header length"]);
    case(ErrorKind::Format, &good[..30], &["truncated", "the header"]);
    case(ErrorKind::Format, &good[..good.len() - 1], &["truncated", "24"]);
    case(ErrorKind::Format, &[&good[..], b"x"].concat(), &["too long", "24"]);
    case(ErrorKind::Format, &[b"\x93NUMPX", &good[6..]].concat(), &["magic number"]);
    case(ErrorKind::Format, &[b"\x93NUMPY\x04", &good[7..]].concat(), &["version 4", "expected 1, 2 or 3"]);
    case(ErrorKind::Format, b"\x93NUMPY\x02\x00\xff\xff\xff\x7f", &["oversized", "2147483647"]);
    case(ErrorKind::Format, &npy_of("|O", "(3,)", &[0; 24]), &["type '|O'", "expected uint8"]);
    case(ErrorKind::Format, &npy_of("<f4", "(-1, 2)", &[0; 24]), &["(-1, 2)"]);
    case(ErrorKind::Format, &npy_of("<f4", "(0, 2)", &[]), &["empty along axis 0"]);
    case(
        ErrorKind::Format,
        &npy_of("<f4", "(18446744073709551615, 18446744073709551615)", &[0; 24]),
        &["oversized"],
    );
    case(ErrorKind::Format, &npy_of("<f4", "(1, 1, 1, 1, 6)", &[0; 24]), &["rank 5"]);
    case(ErrorKind::Format, &npy("{'descr': '<f4', }", &[0; 24]), &["'fortran_order'"]);
    case(
        ErrorKind::Data,
        &npy_of("<i8", "(3, 2)", &[0; 48]),
        &["int64", "expected uint8, int32, float32 or float64"],
    );
    case(ErrorKind::Data, &npy_of("<f4", "(6,)", &[0; 24]), &["rank 1", "(N, H, W, C)"]);
    case(ErrorKind::Data, &npy_of("<f4", "()", &[0; 4]), &["a single float32 number"]);
    case(ErrorKind::Data, &npy_of("|u1", "(2, 3, 32, 32)", &[0; 6144]), &["[3, 32, 32]", "channels last"]);
}

#[test]
fn bad_npz() {
    let folder = TempDir::new().unwrap();
    let table = || npy_of("<f4", "(3, 2)", &[0; 24]);
    let path = put(&folder, "two.npz", &npz(&[("alpha", table()), ("beta", table())]));
    refused(open(&path), ErrorKind::Usage, &["two.npz", "alpha, beta"]);
    refused(
        with_key(&path, "alpa", None),
        ErrorKind::Usage,
        &["two.npz", "\"alpa\"", "did you mean \"alpha\""],
    );
    refused(with_key(&path, "alpha", Some("none")), ErrorKind::Usage, &["\"none\"", "alpha, beta"]);
    refused(with_key(&path, "alpha", Some("beta")), ErrorKind::Data, &["two.npz[beta]", "rank 2"]);
    let labels = npy_of("<i8", "(2,)", &[0; 16]);
    let path = put(&folder, "labels.npz", &npz(&[("x", table()), ("y", labels)]));
    refused(open(&path), ErrorKind::Data, &["labels.npz[y]", "2 labels for 3 examples"]);
    let huge: Vec<u8> = [0, 1, i64::MAX].iter().flat_map(|l| l.to_le_bytes()).collect();
    let path = put(&folder, "huge.npz", &npz(&[("x", table()), ("y", npy_of("<i8", "(3,)", &huge))]));
    refused(open(&path), ErrorKind::Data, &["huge.npz[y]", "row 2", "32 bits"]);
    let none = put(&folder, "none.npz", &npz(&[]));
    refused(open(&none), ErrorKind::Format, &["none.npz", "without npy arrays"]);
    let good = npz(&[("x", table())]);
    let cut = put(&folder, "cut.npz", &good[..good.len() - 30]);
    refused(open(&cut), ErrorKind::Format, &["cut.npz", "not a readable npz"]);
    let text = put(&folder, "text.npz", b"no archive at all");
    refused(open(&text), ErrorKind::Format, &["text.npz", "not a readable npz"]);
}

#[test]
fn bad_folders() {
    let folder = TempDir::new().unwrap();
    refused(open(folder.path()), ErrorKind::Data, &["no PNG or JPEG images"]);
    let image = |h: usize, w: usize, c: usize| Tensor::zeros([1, h, w, c], DType::U8);
    let write = |name: &str, image: &Tensor| {
        data::write_png(put(&folder, name, b""), image, 1).unwrap();
    };
    write("size/a.png", &image(4, 5, 1));
    write("size/b.png", &image(4, 6, 1));
    let both = ["a.png is 5x4x1", "b.png is 6x4x1"];
    refused(open(&folder.path().join("size")), ErrorKind::Data, &both);
    write("colour/a.png", &image(4, 5, 1));
    write("colour/b.png", &image(4, 5, 3));
    refused(open(&folder.path().join("colour")), ErrorKind::Data, &["a.png is 5x4x1", "b.png is 5x4x3"]);
    write("level/a.png", &image(4, 5, 1));
    write("level/class/a.png", &image(4, 5, 1));
    refused(open(&folder.path().join("level")), ErrorKind::Data, &["level/a.png", "class/a.png"]);
    put(&folder, "junk/a.png", b"not a picture");
    refused(open(&folder.path().join("junk")), ErrorKind::Format, &["a.png", "not a readable PNG"]);
    let deep = folder.path().join("deep/a.png");
    std::fs::create_dir(folder.path().join("deep")).unwrap();
    image::ImageBuffer::from_pixel(2, 2, image::Luma([9u16])).save(&deep).unwrap();
    refused(open(&deep), ErrorKind::Data, &["deep/a.png", "L16", "8-bit"]);
    write("cut/a.png", &image(40, 50, 3));
    let cut = folder.path().join("cut/a.png");
    let bytes = std::fs::read(&cut).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    refused(open(&cut), ErrorKind::Format, &["cut/a.png", "not a readable PNG"]);
}

/// The most address space the process has ever had, in bytes; Linux only.
fn peak_address_space() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmPeak"))?;
    Some(line.split_whitespace().nth(1)?.parse::<usize>().ok()? * 1024)
}

/// A PNG that declares `side` x `side` grey pixels and holds none.
fn hollow_png(side: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, side, side);
    encoder.set_color(png::ColorType::Grayscale);
    let writer = encoder.write_header().unwrap();
    drop(writer);
    bytes
}

#[test]
fn bombs_do_not_go_off() {
    let folder = TempDir::new().unwrap();
    let before = peak_address_space();
    let zeros = vec![0; 64 << 20];
    // 64 MiB of zeros behind a header that declares 1,000 bytes: reading stops there.
    let bomb = gz(&[&idx(8, &[10, 10, 10], &[])[..], &zeros].concat());
    assert!(bomb.len() < 100_000);
    refused(open(&put(&folder, "gz.idx", &bomb)), ErrorKind::Format, &["gz.idx", "too long"]);
    let bomb = npz(&[("x", [npy_of("|u1", "(10, 10)", &[]), zeros.clone()].concat())]);
    refused(open(&put(&folder, "zip.npz", &bomb)), ErrorKind::Format, &["zip.npz[x]", "too long"]);
    // The header declares terabytes: more than so few compressed bytes can hold.
    let bomb = gz(&idx(8, &[1 << 20, 1 << 10, 1 << 10], &[]));
    refused(open(&put(&folder, "tera.idx", &bomb)), ErrorKind::Format, &["tera.idx", "oversized"]);
    let bomb = npz(&[("x", npy_of("<f8", "(1000000000, 1000)", &[]))]);
    refused(open(&put(&folder, "tera.npz", &bomb)), ErrorKind::Format, &["tera.npz[x]", "oversized"]);
    // Declared and possible, but more than is allowed.
    let bomb = gz(&[&idx(8, &[64, 1024, 1024], &[])[..], &zeros].concat());
    let path = put(&folder, "big.idx", &bomb);
    let options = ReadOptions { max_bytes: 1 << 20, ..Default::default() };
    refused(data::open(&path, &options), ErrorKind::Data, &["big.idx", "limit"]);
    assert_eq!(data::open(&path, &ReadOptions { limit: Some(1), ..options }).unwrap().len(), 1);
    // An archive whose directory claims gigabytes: what is there decides.
    let mut bomb = npz(&[("x", npy_of("|u1", "(10, 10)", &[0; 100]))]);
    let at = bomb.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    bomb[at + 20..at + 28].fill(0xff);
    assert!(open(&put(&folder, "claims.npz", &bomb)).is_ok_and(|set| set.len() == 10));
    // Pixels that no file of this length can hold.
    for side in [20_000, 200_000, i32::MAX as u32] {
        let path = put(&folder, "hollow.png", &hollow_png(side));
        let error = open(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Format, "{error}");
    }
    match (before, peak_address_space()) {
        (Some(before), Some(after)) => {
            let grown = (after - before) >> 20;
            assert!(grown < 1024, "the address space grew by {grown} MiB");
        }
        _ => println!("peak memory not checked: no /proc/self/status here"),
    }
}
