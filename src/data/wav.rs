//! WAV: uncompressed sound (RIFF/WAVE, little endian), as windows (N, T, channels) of f32 in −1..1.
//!
//! ```text
//! "RIFF" size "WAVE", then chunks: 4 bytes name, 4 bytes size, content, padded to an even size;
//! "fmt ": format (1 integers, 3 floats, 0xFFFE extensible), channels, rate, bytes/s, bytes per frame, bits
//! "data": frames of channels; 8 bits unsigned, 16, 24 and 32 signed, 32 and 64 floating
//! ```
//! (Microsoft & IBM 1991, "Multimedia Programming Interface and Data Specifications".) The sound is cut into windows of
//! [`ReadOptions::window`] frames, one every [`ReadOptions::stride`].

use super::elements::check_finite;
use super::input::Input;
use super::{Dataset, Probe, ReadOptions, SourceInfo, data, format};
use crate::error::Result;
use crate::tensor::Tensor;
use std::path::Path;

/// The registry line.
pub(super) static WAV: SourceInfo = SourceInfo {
    name: "wav",
    family: "sequences",
    summary: "uncompressed sound of 8 to 32 bits or floats, cut into windows of frames with a stride",
    extensions: &[".wav"],
    has_keys: false,
    has_labels: false,
    probe: |probe: &Probe| probe.head.starts_with(b"RIFF") && probe.head.get(8..12) == Some(b"WAVE"),
    read,
};

/// Frames of a window when none are asked for.
const WINDOW: usize = 1024;
const INTEGERS: u16 = 1;
const FLOATS: u16 = 3;
const EXTENSIBLE: u16 = 0xFFFE;

fn read(path: &Path, options: &ReadOptions) -> Result<Dataset> {
    let (window, stride) = options.windows(WINDOW, path)?;
    let bytes = Input::open(path)?.all(options)?;
    let Sound { channels, decode, size, frames } = Sound::parse(path, &bytes)?;
    let each = size * channels;
    let steps = frames.len() / each;
    let starts = (0..).map(|i| i * stride).take_while(|at| at + window <= steps);
    let mut values = Vec::new();
    for at in starts.take(options.limit.unwrap_or(usize::MAX)) {
        values.extend(frames[at * each..(at + window) * each].chunks_exact(size).map(decode));
    }
    if values.is_empty() {
        return Err(data(
            path,
            format_args!("{steps} frames are fewer than one window of {window}; see --window"),
        ));
    }
    let name = super::plain_name(path);
    let name = name.strip_suffix(".wav").unwrap_or(&name).to_string();
    let values = Tensor::from_slice(&values, [values.len() / window / channels, window, channels]);
    check_finite(&values, path)?;
    Ok(Dataset::new(name, values))
}

/// Reads one number.
type Decode = fn(&[u8]) -> f32;

struct Sound<'a> {
    channels: usize,
    /// Of one number.
    decode: Decode,
    /// Bytes of one number.
    size: usize,
    frames: &'a [u8],
}

impl<'a> Sound<'a> {
    fn parse(path: &Path, bytes: &'a [u8]) -> Result<Self> {
        if !bytes.starts_with(b"RIFF") || bytes.get(8..12) != Some(b"WAVE") {
            return Err(format(path, "no RIFF/WAVE header; expected a WAV file"));
        }
        let (mut rest, mut about) = (&bytes[12..], None);
        while let Some((head, behind)) = rest.split_at_checked(8) {
            let size = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
            let name = &head[..4];
            let Some(content) = behind.get(..size) else {
                let name = String::from_utf8_lossy(name).escape_default().to_string();
                let left = behind.len();
                return Err(format(
                    path,
                    format_args!("truncated: chunk \"{name}\" of {size} bytes, {left} follow"),
                ));
            };
            match name {
                b"fmt " => about = Some(Self::describe(path, content)?),
                b"data" => {
                    let Some((channels, size, decode)) = about else {
                        return Err(format(
                            path,
                            "data before its description; expected a chunk \"fmt \" first",
                        ));
                    };
                    return Ok(Self { channels, decode, size, frames: content });
                }
                _ => {}
            }
            rest = behind.get(size + size % 2..).unwrap_or_default();
        }
        Err(format(path, "no chunk \"data\"; expected a WAV file with sound"))
    }

    /// Channels, bytes per number, and how to read one.
    fn describe(path: &Path, content: &[u8]) -> Result<(usize, usize, Decode)> {
        let word = |at: usize| content.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        let (Some(mut kind), Some(channels), Some(frame), Some(bits)) =
            (word(0), word(2), word(12), word(14))
        else {
            return Err(format(path, format_args!("a description of {} bytes; expected 16", content.len())));
        };
        if kind == EXTENSIBLE {
            kind = word(24).unwrap_or(kind);
        }
        let decode: Decode = match (kind, bits) {
            (INTEGERS, 8) => |b| (f32::from(b[0]) - 128.0) / 128.0,
            (INTEGERS, 16) => |b| f32::from(i16::from_le_bytes([b[0], b[1]])) / 32_768.0,
            (INTEGERS, 24) => |b| (i32::from_le_bytes([0, b[0], b[1], b[2]]) >> 8) as f32 / 8_388_608.0,
            (INTEGERS, 32) => {
                |b| (f64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])) / 2_147_483_648.0) as f32
            }
            (FLOATS, 32) => |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            (FLOATS, 64) => |b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32,
            _ => {
                let what =
                    format_args!("format {kind} of {bits} bits; expected integers of 8 to 32 bits or floats");
                return Err(format(path, what));
            }
        };
        let (channels, size) = (usize::from(channels), usize::from(bits / 8));
        if !(1..=64).contains(&channels) || usize::from(frame) != channels * size {
            return Err(format(
                path,
                format_args!("{channels} channels of {bits} bits in frames of {frame} bytes"),
            ));
        }
        Ok((channels, size, decode))
    }
}
