//! PNG files in memory: of images for the page, and as the compressor of the complexity score.

use std::io;

/// The PNG file of `pixels` (H, W, C), C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha; deflate level 9 and
/// row filters chosen by the minimum sum of absolute differences. The same pixels always give the same file.
///
/// # Panics
/// When the number of pixels is not H · W · C, an extent is 0 or beyond 2^31 − 1, or C is none of these.
#[track_caller]
pub fn encode(pixels: &[u8], [h, w, c]: [usize; 3]) -> Vec<u8> {
    assert_eq!(pixels.len(), h * w * c, "png: {} bytes for {h} x {w} x {c}", pixels.len());
    let color = match c {
        1 => png::ColorType::Grayscale,
        2 => png::ColorType::GrayscaleAlpha,
        3 => png::ColorType::Rgb,
        4 => png::ColorType::Rgba,
        _ => panic!("png: expected 1 to 4 channels, got {h} x {w} x {c}"),
    };
    let extent = |n: usize| u32::try_from(n).expect("png: an extent beyond 32 bits");
    let mut file = io::Cursor::new(Vec::new());
    let mut encoder = png::Encoder::new(&mut file, extent(w), extent(h));
    encoder.set_color(color);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_deflate_compression(png::DeflateCompression::Level(9));
    encoder.set_filter(png::Filter::Adaptive);
    encoder
        .write_header()
        .and_then(|mut writer| {
            writer.write_image_data(pixels)?;
            writer.finish()
        })
        .unwrap_or_else(|e| panic!("png: {h} x {w} x {c}: {e}"));
    file.into_inner()
}

/// `data:image/png;base64,...` of [`encode`].
#[track_caller]
pub fn data_uri(pixels: &[u8], dims: [usize; 3]) -> String {
    format!("data:image/png;base64,{}", base64(&encode(pixels, dims)))
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().enumerate().fold(0u32, |w, (i, &b)| w | (b as u32) << (16 - 8 * i));
        for i in 0..4 {
            let letter = ALPHABET[(word >> (18 - 6 * i) & 63) as usize] as char;
            out.push(if i <= chunk.len() { letter } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_rfc() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn every_channel_count_reads_back() {
        for c in 1..=4 {
            let pixels: Vec<u8> = (0..5 * 7 * c).map(|i| (i * 37 % 251) as u8).collect();
            let file = encode(&pixels, [5, 7, c]);
            let mut reader = png::Decoder::new(io::Cursor::new(file)).read_info().unwrap();
            let mut read = vec![0; reader.output_buffer_size().unwrap()];
            let info = reader.next_frame(&mut read).unwrap();
            assert_eq!((info.height, info.width, read), (5, 7, pixels));
        }
    }
}
