//! Writing arrays and images: npy, PNG, grids of images. Files appear whole or not at all.

use super::data;
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

/// The PNG encoding of one image (H, W, C) u8, C = 1 or 3.
///
/// # Panics
/// When the tensor is not such an image.
#[track_caller]
pub fn png(image: &Tensor) -> Vec<u8> {
    let [h, w, c] = image.dims();
    assert!(c == 1 || c == 3, "png: {c} channels; expected 1 or 3");
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, w as u32, h as u32);
    encoder.set_color(if c == 1 { png::ColorType::Grayscale } else { png::ColorType::Rgb });
    encoder.set_depth(png::BitDepth::Eight);
    let written =
        encoder.write_header().and_then(|mut writer| writer.write_image_data(image.as_slice::<u8>()));
    written.expect("png: an image of at least one pixel, written to memory");
    out
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
/// As [`grid`] and [`png`].
#[track_caller]
pub fn write_png(path: impl AsRef<Path>, images: &Tensor, columns: usize) -> Result<()> {
    write_atomic(path, &png(&grid(images, columns)))
}
