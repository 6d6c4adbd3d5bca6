//! Writing arrays, tables and images: npy, CSV, PNG, grids of images. Files appear whole or not at all.

use super::{Schema, data};
use crate::error::Result;
use crate::files::write_atomic;
use crate::tensor::{DType, NewTensor, Tensor};
use std::path::Path;

/// Writes a tensor of u8, i32, f16, f32 or f64 as npy.
///
/// # Errors
/// When the tensor is bf16, which npy does not know, or the file cannot be written.
pub fn write_npy(path: impl AsRef<Path>, values: &Tensor) -> Result<()> {
    let descr = match values.dtype() {
        DType::U8 => "|u1",
        DType::I32 => "<i4",
        DType::F16 => "<f2",
        DType::F32 => "<f4",
        DType::F64 => "<f8",
        DType::BF16 => return Err(data(path.as_ref(), "npy holds no bf16; convert to f32 first")),
    };
    let sizes: String = values.shape().iter().map(|s| format!("{s}, ")).collect();
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sizes}), }}");
    // The numbers start at a multiple of 64 bytes, as NumPy writes them.
    let padding = (64 - (10 + header.len() + 1) % 64) % 64;
    header.push_str(&" ".repeat(padding));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&(header.len() as u16).to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(values.as_bytes());
    write_atomic(path, &bytes)
}

/// Writes rows (N, D) as a CSV table with the names and texts of `schema`, which reads back as the same table.
///
/// # Errors
/// When the schema has another number of columns or the file cannot be written.
pub fn write_csv(path: impl AsRef<Path>, values: &Tensor, schema: &Schema) -> Result<()> {
    let (path, d, columns) = (path.as_ref(), values.shape()[values.rank() - 1], &schema.columns);
    if columns.len() != d {
        return Err(data(path, format_args!("{d} numbers per row for {} columns", columns.len())));
    }
    let broken = |e: csv::Error| data(path, e);
    let mut out = csv::Writer::from_writer(Vec::new());
    out.write_record(columns.iter().map(|c| &c.name)).map_err(broken)?;
    for row in values.to_f64_vec().chunks_exact(d) {
        out.write_record(columns.iter().zip(row).map(|(c, x)| c.kind.text(*x))).map_err(broken)?;
    }
    let bytes = out.into_inner().map_err(|e| data(path, e.to_string()))?;
    write_atomic(path, &bytes)
}

/// The PNG encoding of one image (H, W, C) u8 with 1 to 4 channels, as [`encode_png`].
///
/// # Panics
/// When the tensor is not such an image.
#[track_caller]
pub fn png(image: &Tensor) -> Vec<u8> {
    encode_png(image.as_slice(), image.dims())
}

/// The PNG file of `pixels` (H, W, C), C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha: deflate level 9, row
/// filters chosen by the smallest sum of absolute differences. The same pixels always give the same file, whose
/// length is the complexity of [`crate::scorers`]' `complexity_png`.
///
/// # Panics
/// When the number of pixels is not H · W · C, an extent is 0 or beyond 2^31 − 1, or C is none of these.
#[track_caller]
pub fn encode_png(pixels: &[u8], [h, w, c]: [usize; 3]) -> Vec<u8> {
    assert_eq!(pixels.len(), h * w * c, "png: {} bytes for {h} x {w} x {c}", pixels.len());
    let color = match c {
        1 => png::ColorType::Grayscale,
        2 => png::ColorType::GrayscaleAlpha,
        3 => png::ColorType::Rgb,
        4 => png::ColorType::Rgba,
        _ => panic!("png: expected 1 to 4 channels, got {h} x {w} x {c}"),
    };
    let extent = |n: usize| u32::try_from(n).expect("png: an extent beyond 32 bits");
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, extent(w), extent(h));
    encoder.set_color(color);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_deflate_compression(png::DeflateCompression::Level(9));
    encoder.set_filter(png::Filter::Adaptive);
    let written = encoder.write_header().and_then(|mut writer| {
        writer.write_image_data(pixels)?;
        writer.finish()
    });
    written.unwrap_or_else(|e| panic!("png: {h} x {w} x {c}: {e}"));
    file
}

/// Images (N, H, W, C) u8 side by side in `columns`, one pixel of black between them: one image (H', W', C).
///
/// # Panics
/// When the tensor is not of that kind, or without images or columns.
#[track_caller]
pub fn grid(images: &Tensor, columns: usize) -> Tensor {
    let [n, h, w, c] = images.dims();
    assert!(n > 0 && columns > 0, "grid: {n} images in {columns} columns");
    let columns = columns.min(n);
    let rows = n.div_ceil(columns);
    let (height, width) = (rows * (h + 1) - 1, columns * (w + 1) - 1);
    let mut out = NewTensor::<u8>::zeroed([height, width, c]);
    let (from, to) = (images.as_slice::<u8>(), out.as_mut());
    for i in 0..n {
        let (top, left) = (i / columns * (h + 1), i % columns * (w + 1));
        for y in 0..h {
            let source = (i * h + y) * w * c;
            let target = ((top + y) * width + left) * c;
            to[target..target + w * c].copy_from_slice(&from[source..source + w * c]);
        }
    }
    out.finish()
}

/// Writes images (N, H, W, C) u8 as one PNG, a [`grid`] of `columns`.
///
/// # Errors
/// When the file cannot be written.
///
/// # Panics
/// As [`grid`] and [`png()`].
#[track_caller]
pub fn write_png(path: impl AsRef<Path>, images: &Tensor, columns: usize) -> Result<()> {
    write_atomic(path, &png(&grid(images, columns)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn png_of_every_channel_count_reads_back() {
        for c in 1..=4 {
            let pixels: Vec<u8> = (0..5 * 7 * c).map(|i| (i * 37 % 251) as u8).collect();
            let file = std::io::Cursor::new(encode_png(&pixels, [5, 7, c]));
            let mut reader = png::Decoder::new(file).read_info().unwrap();
            let mut read = vec![0; reader.output_buffer_size().unwrap()];
            let info = reader.next_frame(&mut read).unwrap();
            assert_eq!((info.height, info.width, read), (5, 7, pixels));
        }
    }
}
