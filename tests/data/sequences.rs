//! Sequences: text in windows and lines, series with their times, sound.

use super::*;
use surprisal::ErrorKind;

fn windowed(window: usize, stride: Option<usize>) -> ReadOptions {
    ReadOptions { window: Some(window), stride, ..Default::default() }
}

#[track_caller]
fn refused(path: &Path, options: &ReadOptions, kind: ErrorKind, words: &[&str]) {
    let error = data::open(path, options).map(|set| set.describe()).expect_err("a bad file was read");
    let message = error.to_string();
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(words.iter().chain([&name]).all(|w| message.contains(w)) && !message.contains('\n'), "{message}");
    assert_eq!(error.kind(), kind, "{message}");
}

#[test]
fn text_is_cut_into_windows_or_lines() {
    let folder = TempDir::new().unwrap();
    let path = put(&folder, "poem.txt.gz", &gz(b"abcdefghij"));
    let set = data::open(&path, &windowed(4, None)).unwrap();
    assert_eq!(set.describe(), "poem: 2 x 4 u8");
    assert_eq!(set.values.as_slice::<u8>(), b"abcdefgh");
    let set = data::open(&path, &windowed(4, Some(3))).unwrap();
    assert_eq!(set.values.as_slice::<u8>(), b"abcddefgghij");
    let lines = ReadOptions { lines: true, ..windowed(3, None) };
    let set = data::open(put(&folder, "log.txt", b"ab\r\n\nwxyz\nq"), &lines).unwrap();
    assert_eq!(set.values.as_slice::<u8>(), b"ab\0wxyq\0\0");
    refused(&path, &windowed(11, None), ErrorKind::Data, &["10 bytes", "window of 11"]);
    refused(&path, &windowed(0, None), ErrorKind::Usage, &["window of 0"]);
    refused(&path, &windowed(4, Some(0)), ErrorKind::Usage, &["stride 0"]);
    refused(&put(&folder, "z.txt", b"a\0b\n"), &lines, ErrorKind::Data, &["line 1", "zero byte"]);
    refused(&put(&folder, "n.txt", b"\n\n"), &lines, ErrorKind::Data, &["no lines"]);
}

#[test]
fn logs_are_kinds_of_lines() {
    let folder = TempDir::new().unwrap();
    let log =
        b"open file 1\nread file 1 of 20\nopen file 22\n\nread file 22 of 3\nclose file 1\nclose file 22\n";
    let path = put(&folder, "app.log", log);
    let set = data::open(&path, &windowed(3, None)).unwrap();
    assert_eq!(
        (set.describe().as_str(), set.values.as_slice::<u8>()),
        ("app: 2 x 3 u8", &[2, 3, 2, 3, 4, 4][..])
    );
    assert_eq!(set.lines.as_ref().unwrap()[1], [5, 6, 7], "numbers of lines count empty ones");
    assert_eq!(set.kind_of_line(0, 1), "read file <*> of <*>");
    let cut = set.cut.clone().unwrap();
    // Later files are held against what was mined: a new kind of line is told, and changes nothing.
    let later = put(&folder, "later.log", b"close file 9\npanic at once\nopen file 9\n");
    let options = windowed(3, None).cut_like(&cut);
    let later = data::open(&later, &options).unwrap();
    assert_eq!(later.values.as_slice::<u8>(), [4, 1, 2]);
    assert_eq!(later.kind_of_line(0, 1), "a line of no known kind");
    let sessions = ReadOptions { session: Some("s_".into()), ..windowed(3, None) };
    let text = b"open s_1\nopen s_2\nread s_1\nclose s_1\nclose s_1\n";
    let set = data::open(put(&folder, "s.log", text), &sessions).unwrap();
    assert_eq!(set.values.as_slice::<u8>(), [2, 3, 4, 2, 0, 0], "cut and filled");
    refused(&path, &sessions, ErrorKind::Data, &["s_"]);
    refused(&path, &windowed(100, None), ErrorKind::Data, &["6 lines", "window of 100"]);

    let events = ReadOptions { format: Some("events".into()), ..windowed(4, None) };
    let set = data::open(put(&folder, "e.txt", b"5 5 22\n1 2 3 4 5\n"), &events).unwrap();
    assert_eq!(set.values.as_slice::<u8>(), [5, 5, 22, 0, 1, 2, 3, 4]);
    refused(&put(&folder, "b.txt", b"5 0\n"), &events, ErrorKind::Data, &["line 1", "1 to 255"]);
    refused(&put(&folder, "c.txt", b"\n"), &events, ErrorKind::Data, &["no sequences"]);
}

#[test]
fn series_keep_their_times() {
    let folder = TempDir::new().unwrap();
    let text = |times: &[&str]| {
        let rows = times.iter().enumerate().map(|(i, t)| format!("{t},{i},{}\n", 10 * i));
        format!("timestamp,a,b\n{}", rows.collect::<String>())
    };
    let hours: Vec<String> =
        (0..9).map(|h| format!("2014-07-01 {:02}:00:00", if h < 5 { h } else { h + 3 })).collect();
    let hours: Vec<&str> = hours.iter().map(String::as_str).collect();
    let path = put(&folder, "load.csv", text(&hours).as_bytes());
    let set = data::open(&path, &windowed(3, Some(1))).unwrap();
    // Five hours, a gap, four hours: 3 + 2 windows.
    assert_eq!(set.values.shape(), [5, 3, 2]);
    let times = set.times.clone().unwrap();
    assert_eq!((times[0].as_str(), times[3].as_str()), ("2014-07-01 00:00:00", "2014-07-01 08:00:00"));
    assert_eq!(set.values.to_f64_vec()[..6], [0.0, 0.0, 1.0, 10.0, 2.0, 20.0]);
    assert_eq!(set.select(&[4, 0]).times.unwrap(), [times[4].clone(), times[0].clone()]);
    assert_eq!(data::open(&path, &windowed(3, None)).unwrap().len(), 2);
    let table = open(&path).unwrap();
    assert_eq!((table.values.shape(), table.times.is_none()), (&[9, 3][..], true));

    let bad = |name: &str, text: String, words: &[&str]| {
        refused(&put(&folder, name, text.as_bytes()), &windowed(2, None), ErrorKind::Data, words);
    };
    let swapped = [hours[0], hours[2], hours[1]];
    bad("back.csv", text(&swapped), &["line 4", "01:00:00 after 2014-07-01 02:00:00", "do not decrease"]);
    bad("word.csv", "t,v\n1,up\n2,down\n".into(), &["\"v\"", "texts", "drop"]);
    bad("hole.csv", "t,v\n1,2\n2,NA\n3,4\n".into(), &["\"v\"", "missing"]);
    bad("two.csv", "a,b,v\n2014-07-01,2014-07-01,1\n2014-07-02,2014-07-02,2\n".into(), &["\"b\"", "second"]);
    bad("alone.csv", "time\n1\n2\n3\n".into(), &["no column but the times"]);
    bad("short.csv", "time,v\n1,1\n".into(), &["1 steps", "hold no window"]);
}

#[test]
fn sound_is_cut_into_windows() {
    let folder = TempDir::new().unwrap();
    let stereo = wav(1, 2, 16, &[0i16, 16384, -32768, 32767, 1, -1].map(i16::to_le_bytes).concat());
    let path = put(&folder, "a.wav", &stereo);
    let set = data::open(&path, &windowed(1, Some(2))).unwrap();
    assert_eq!((set.values.shape(), set.values.dtype()), (&[2, 1, 2][..], DType::F32));
    assert_eq!(set.values.as_slice::<f32>(), [0.0, 0.5, 1.0 / 32768.0, -1.0 / 32768.0]);
    for (kind, bits, bytes, expected) in [
        (1, 8, vec![0u8, 128, 192], [-1.0f32, 0.0, 0.5]),
        (1, 24, vec![0, 0, 0x80, 0, 0, 0, 0, 0, 0x40], [-1.0, 0.0, 0.5]),
        (1, 32, vec![0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x40], [-1.0, 0.0, 0.5]),
        (3, 32, [-1.0f32, 0.0, 0.5].map(f32::to_le_bytes).concat(), [-1.0, 0.0, 0.5]),
    ] {
        let path = put(&folder, "b", &wav(kind, 1, bits, &bytes));
        let set = data::open(&path, &windowed(3, None)).unwrap();
        assert_eq!(set.values.as_slice::<f32>(), expected, "{bits} bits");
    }
    let bad = |bytes: Vec<u8>, kind: ErrorKind, words: &[&str]| {
        refused(&put(&folder, "c.wav", &bytes), &windowed(3, None), kind, words);
    };
    bad(stereo[..stereo.len() - 1].to_vec(), ErrorKind::Format, &["truncated", "data", "12 bytes"]);
    bad(wav(7, 1, 8, &[0; 9]), ErrorKind::Format, &["format 7"]);
    bad(wav(1, 1, 12, &[0; 9]), ErrorKind::Format, &["12 bits"]);
    bad(wav(1, 0, 16, &[0; 8]), ErrorKind::Format, &["0 channels"]);
    bad(wav(1, 1, 16, &[0; 4]), ErrorKind::Data, &["2 frames"]);
    bad(wav(3, 1, 32, &f32::NAN.to_le_bytes().repeat(3)), ErrorKind::Data, &["NaN in row 0"]);
    bad(stereo[..36].to_vec(), ErrorKind::Format, &["no chunk \"data\""]);
}
