//! Folders of PNG and JPEG images, in the order of their names; sub-folders are classes.

use super::input::DEFLATE_MAX_RATIO;
use super::{Dataset, Probe, ReadOptions, SourceInfo, data, format};
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use image::{ColorType, DynamicImage, ImageDecoder, ImageReader, Limits};
use std::path::{Path, PathBuf};

/// The registry line.
pub(super) static FOLDER: SourceInfo = SourceInfo {
    name: "folder",
    family: "images",
    summary: "a folder of PNG or JPEG images of one size, grey or RGB (or a single image); sub-folders are classes",
    extensions: &[".png", ".jpg", ".jpeg"],
    has_keys: false,
    has_labels: false,
    probe,
    read,
};

const ENDINGS: [&str; 3] = ["png", "jpg", "jpeg"];
/// A single image may not take more memory than this while it is decoded.
const MAX_IMAGE_BYTES: u64 = 256 << 20;

fn probe(probe: &Probe) -> bool {
    probe.is_dir || probe.head.starts_with(b"\x89PNG\r\n\x1a\n") || probe.head.starts_with(b"\xff\xd8\xff")
}

fn read(path: &Path, options: &ReadOptions) -> Result<Dataset> {
    let (mut files, mut labels) = if path.is_dir() { list(path)? } else { (vec![path.to_path_buf()], None) };
    let keep = options.keep(files.len() as u64) as usize;
    files.truncate(keep);
    if let Some(labels) = &mut labels {
        labels.truncate(keep);
    }
    let (mut size, mut pixels) = ([0; 3], Vec::new());
    for (i, file) in files.iter().enumerate() {
        let accept = |this: [usize; 3]| {
            if i == 0 {
                size = this;
                let total = this.iter().product::<usize>() as u128 * files.len() as u128;
                let fits = total <= u128::from(options.max_bytes);
                return if fits { Ok(()) } else { Err(too_many(path, files.len(), size, options)) };
            }
            if this == size { Ok(()) } else { Err(mixed_sizes(path, (&files[0], size), (file, this))) }
        };
        pixels.extend_from_slice(&read_image(file, accept)?);
    }
    let [h, w, c] = size;
    let absolute = path.canonicalize().map_err(|e| Error::io(path, e))?;
    let name = absolute.file_stem().unwrap_or_default().to_string_lossy().to_string();
    Ok(Dataset::new(name, Tensor::from_slice(&pixels, [files.len(), h, w, c])).with_labels(labels))
}

/// The images of a folder, or those of its sub-folders with the index of each sub-folder as label.
fn list(folder: &Path) -> Result<(Vec<PathBuf>, Option<Vec<i32>>)> {
    let (images, folders) = entries(folder)?;
    let mut classes = Vec::new();
    for class in &folders {
        let (images, _) = entries(class)?;
        if !images.is_empty() {
            classes.push(images);
        }
    }
    match (images.is_empty(), classes.is_empty()) {
        (false, true) => Ok((images, None)),
        (true, false) => {
            let label = |(label, images): (usize, &Vec<PathBuf>)| vec![label as i32; images.len()];
            let labels = classes.iter().enumerate().flat_map(label).collect();
            Ok((classes.concat(), Some(labels)))
        }
        (true, true) => {
            Err(data(folder, "no PNG or JPEG images here or in its sub-folders; expected at least one"))
        }
        (false, false) => Err(data(
            folder,
            format_args!(
                "images beside class folders: {} and {}; expected one or the other",
                images[0].display(),
                classes[0][0].display()
            ),
        )),
    }
}

/// The images and the folders directly in `folder`, each sorted by name.
fn entries(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut images, mut folders) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if path.is_dir() {
            folders.push(path);
        } else if path.extension().is_some_and(|e| ENDINGS.iter().any(|x| e.eq_ignore_ascii_case(x))) {
            images.push(path);
        }
    }
    images.sort();
    folders.sort();
    Ok((images, folders))
}

fn too_many(path: &Path, n: usize, [h, w, c]: [usize; 3], options: &ReadOptions) -> Error {
    let most = options.max_bytes;
    data(
        path,
        format_args!("{n} images of {w}x{h}x{c} bytes, more than the {most} bytes allowed; set a limit"),
    )
}

fn mixed_sizes(path: &Path, first: (&Path, [usize; 3]), other: (&Path, [usize; 3])) -> Error {
    let [a, b] = [first, other].map(|(file, [h, w, c])| format!("{} is {w}x{h}x{c}", file.display()));
    data(path, format_args!("images of different sizes: {a}, {b}; expected one width x height x channels"))
}

/// The bytes (H, W, C) of an image, C = 1 or 3, once `accept` has agreed to the size in its header.
fn read_image(path: &Path, accept: impl FnOnce([usize; 3]) -> Result<()>) -> Result<Vec<u8>> {
    let io = |e| Error::io(path, e);
    let damaged = |e| format(path, format_args!("not a readable PNG or JPEG image: {e}"));
    let bytes = std::fs::metadata(path).map_err(io)?.len();
    let mut reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format).map_err(io)?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_IMAGE_BYTES);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    let channels = match decoder.color_type() {
        ColorType::L8 | ColorType::La8 => 1,
        ColorType::Rgb8 | ColorType::Rgba8 => 3,
        other => {
            return Err(data(path, format_args!("pixels of type {other:?}; expected 8-bit grey or RGB")));
        }
    };
    // One-bit PNG at deflate's best ratio; no honest image packs its pixels tighter.
    if u64::from(width) * u64::from(height) > bytes.saturating_mul(8 * DEFLATE_MAX_RATIO)
        || decoder.total_bytes() > MAX_IMAGE_BYTES
        || bytes > MAX_IMAGE_BYTES
    {
        return Err(format(
            path,
            format_args!("oversized: {width}x{height} pixels declared in {bytes} bytes"),
        ));
    }
    accept([height as usize, width as usize, channels])?;
    let image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    let opaque = |alpha: Option<u8>| {
        let error = || data(path, "transparent pixels; expected grey or RGB without an alpha channel");
        alpha.is_none().then_some(()).ok_or_else(error)
    };
    match image {
        DynamicImage::ImageLumaA8(pixels) => {
            opaque(pixels.pixels().map(|p| p.0[1]).find(|&a| a < 255))?;
            Ok(pixels.pixels().map(|p| p.0[0]).collect())
        }
        DynamicImage::ImageRgba8(pixels) => {
            opaque(pixels.pixels().map(|p| p.0[3]).find(|&a| a < 255))?;
            Ok(pixels.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]]).collect())
        }
        other => Ok(other.into_bytes()),
    }
}
