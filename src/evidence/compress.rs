//! Code lengths of general-purpose compressors, L(x) in bits per example.
//!
//! L includes a file's fixed overhead (57 bytes for PNG, about 10 for JPEG XL and zstd), which shifts all of one shape
//! alike.

use crate::cpu::par;
use crate::data::{Dataset, encode_png};
use crate::error::{Error, ErrorKind, Result};
use std::sync::Mutex;
use zune_core::{bit_depth::BitDepth, colorspace::ColorSpace, options::EncoderOptions};

/// zstd's highest level that does not ask for an extraordinary amount of memory.
const ZSTD_LEVEL: i32 = 19;
/// Examples that one task compresses.
const ROWS: usize = 16;

/// A compressor that stands for the complexity of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Compressor {
    /// PNG at its best compression with adaptive filters, for u8 images.
    Png,
    /// Lossless JPEG XL (gradient prediction, prefix codes), for u8 images.
    Jxl,
    /// zstd at level 19, for bytes of any kind.
    Zstd,
}

impl Compressor {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Png, Self::Jxl, Self::Zstd];

    /// Whether it works on such examples.
    pub fn takes(self, data: &Dataset) -> bool {
        self == Self::Zstd || super::has_images(data)
    }
}

/// L(x) of each example in bits, in parallel.
///
/// # Errors
/// [`ErrorKind::Data`] when PNG or JPEG XL is asked of something that is not a u8 image, or the compressor fails.
pub fn compressed_bits(data: &Dataset, compressor: Compressor) -> Result<Vec<f64>> {
    let fail = |what: String| Error::new(ErrorKind::Data, format!("{}: {what}", data.name));
    let (shape, dtype) = (data.values.shape(), data.values.dtype());
    let n = shape.first().copied().unwrap_or(0);
    if n == 0 {
        return Ok(Vec::new());
    }
    let bytes = data.values.as_bytes();
    let size = bytes.len() / n;
    if size == 0 {
        return Err(fail("examples without values".into()));
    }
    if !compressor.takes(data) {
        return Err(fail(format!(
            "{compressor:?} compresses u8 images (N, H, W, 1 to 4), got {dtype:?} {shape:?}"
        )));
    }
    let failed = Mutex::new(None);
    let mut bits = vec![0.0; n];
    par::chunks_mut(&mut bits, ROWS, |chunk, bits| {
        let mut zstd = None;
        for (i, bits) in bits.iter_mut().enumerate() {
            let row = chunk * ROWS + i;
            let example = &bytes[row * size..][..size];
            let length = match compressor {
                Compressor::Png => Ok(encode_png(example, [shape[1], shape[2], shape[3]]).len()),
                Compressor::Jxl => jxl(example, [shape[1], shape[2], shape[3]]),
                Compressor::Zstd => zstd_frame(&mut zstd, example),
            };
            match length {
                Ok(length) => *bits = 8.0 * length as f64,
                Err(e) => *failed.lock().unwrap_or_else(|e| e.into_inner()) = Some(format!("row {row}: {e}")),
            }
        }
    });
    match failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some(what) => Err(fail(what)),
        None => Ok(bits),
    }
}

fn zstd_frame(
    kept: &mut Option<zstd::bulk::Compressor<'static>>,
    example: &[u8],
) -> std::result::Result<usize, String> {
    let zstd = match kept {
        Some(zstd) => zstd,
        None => kept.insert(zstd::bulk::Compressor::new(ZSTD_LEVEL).map_err(|e| format!("zstd: {e}"))?),
    };
    zstd.compress(example).map(|frame| frame.len()).map_err(|e| format!("zstd: {e}"))
}

fn jxl(pixels: &[u8], [h, w, c]: [usize; 3]) -> std::result::Result<usize, String> {
    let space = [ColorSpace::Luma, ColorSpace::LumaA, ColorSpace::RGB, ColorSpace::RGBA][c - 1];
    // The encoder refuses images of less than two pixels on a side: their last row or column stands twice.
    let (h2, w2) = (h.max(2), w.max(2));
    let grown: Vec<u8>;
    let pixels = if (h2, w2) == (h, w) {
        pixels
    } else {
        let at = |y: usize, x: usize| &pixels[(y.min(h - 1) * w + x.min(w - 1)) * c..][..c];
        grown = (0..h2).flat_map(|y| (0..w2).flat_map(move |x| at(y, x).to_vec())).collect();
        &grown
    };
    let options = EncoderOptions::new(w2, h2, space, BitDepth::Eight).set_num_threads(1);
    let mut file = Vec::new();
    zune_jpegxl::JxlSimpleEncoder::new(pixels, options)
        .encode(&mut file)
        .map_err(|e| format!("JPEG XL: {e:?}"))?;
    Ok(file.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Philox;
    use crate::tensor::DType;
    use crate::tensor::Tensor;

    #[test]
    fn every_shape_has_a_length() {
        for shape in [[3, 1, 1, 1], [3, 1, 5, 3], [3, 7, 1, 2], [3, 2, 2, 4], [3, 28, 28, 1], [3, 33, 17, 3]]
        {
            let noise = Philox::new(1).randint(0, 256, shape);
            let noise = Tensor::from_fn(shape, |i| noise.as_slice::<i32>()[i] as u8);
            let flat = Tensor::zeros(shape, DType::U8);
            for compressor in Compressor::ALL {
                let bits = |t: &Tensor| compressed_bits(&Dataset::new("x", t.clone()), compressor).unwrap();
                let (noise, flat) = (bits(&noise), bits(&flat));
                assert!(flat.iter().all(|b| *b > 0.0 && *b == flat[0]), "{compressor:?} {shape:?}: {flat:?}");
                assert!(noise.iter().zip(&flat).all(|(n, f)| n >= f), "{compressor:?} {shape:?}");
            }
        }
        let floats = Dataset::new("floats", Tensor::zeros([2, 3], DType::F32));
        assert!(compressed_bits(&floats, Compressor::Zstd).is_ok());
        assert!(compressed_bits(&floats, Compressor::Jxl).unwrap_err().to_string().contains("floats"));
    }
}
