//! IDX, the format of MNIST and its successors: `0 0 type rank`, big-endian sizes, big-endian numbers.

use super::elements::{Array, Element, checked_shape};
use super::input::Input;
use super::{Dataset, Probe, ReadOptions, SourceInfo, data, format};
use crate::error::Result;
use std::path::{Path, PathBuf};

/// The registry line.
pub(super) static IDX: SourceInfo = SourceInfo {
    name: "idx",
    family: "images",
    summary: "IDX arrays as MNIST is published (.gz too); a labels file of the usual name beside it is read along",
    extensions: &["-ubyte", ".idx", ".idx1", ".idx3"],
    has_keys: false,
    has_labels: false,
    probe,
    read,
};

fn probe(probe: &Probe) -> bool {
    matches!(probe.head, [0, 0, code, 1..=4, ..] if element(*code).is_some())
}

fn element(code: u8) -> Option<Element> {
    Some(match code {
        0x08 => Element::U8,
        0x09 => Element::I8,
        0x0B => Element::I16,
        0x0C => Element::I32,
        0x0D => Element::F32,
        0x0E => Element::F64,
        _ => return None,
    })
}

fn read(path: &Path, options: &ReadOptions) -> Result<Dataset> {
    let (array, all) = read_array(path, options)?;
    if array.shape.len() == 1 {
        return Err(data(
            path,
            "an array of rank 1, as labels have; expected images (rank 3) or a table (rank 2)",
        ));
    }
    let n = array.shape[0];
    let values = array.values(path)?;
    let labels = match labels_beside(path) {
        Some(beside) => {
            let (array, labelled) = read_array(&beside, options)?;
            if labelled != all {
                let message = format!("{labelled} labels for the {all} examples of {}", path.display());
                return Err(data(&beside, message));
            }
            Some(array.labels(n, &beside)?)
        }
        None => None,
    };
    Ok(Dataset::new(name(path), values).with_labels(labels))
}

/// The limited array, and how many examples the file holds.
fn read_array(path: &Path, options: &ReadOptions) -> Result<(Array, u64)> {
    let mut input = Input::open(path)?;
    let magic = input.header(4, "the magic number")?;
    let (code, rank) = (magic[2], usize::from(magic[3]));
    let Some(element) = element(code).filter(|_| magic[..2] == [0, 0] && (1..=4).contains(&rank)) else {
        return Err(format(
            path,
            format_args!(
                "magic number {:02x}{:02x}{code:02x}{rank:02x}; expected IDX: 0000, a type (08 bytes, 0c int32, 0d float32, 0e float64), a rank of 1 to 4",
                magic[0], magic[1]
            ),
        ));
    };
    let sizes = input.header(4 * rank, "the list of sizes")?;
    let sizes: Vec<u64> =
        sizes.as_chunks::<4>().0.iter().map(|&s| u64::from(u32::from_be_bytes(s))).collect();
    let (mut shape, declared) = checked_shape(&sizes, element).map_err(|e| format(path, e))?;
    let keep = options.keep(sizes[0]);
    let wanted = declared / u128::from(sizes[0]) * u128::from(keep);
    let raw = input.payload(declared, wanted, options)?;
    shape[0] = keep as usize;
    Ok((Array { raw, element, big_endian: true, shape }, sizes[0]))
}

/// `train-images-idx3-ubyte.gz` -> `train-labels-idx1-ubyte`, compressed or not, if it exists.
fn labels_beside(images: &Path) -> Option<PathBuf> {
    let name = images.file_name()?.to_str()?;
    if !name.contains("images") {
        return None;
    }
    let labels = name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1");
    let plain = labels.strip_suffix(".gz").unwrap_or(&labels);
    let beside = [labels.clone(), plain.to_string(), format!("{plain}.gz")];
    beside.iter().map(|name| images.with_file_name(name)).find(|path| path.is_file())
}

/// `…/fashion_mnist/t10k-images-idx3-ubyte.gz` -> `fashion_mnist-t10k`: the folder names what the usual
/// file names do not.
fn name(path: &Path) -> String {
    let file = super::plain_name(path);
    let stem = file.split("-images").next().unwrap_or(&file);
    let stem = stem.strip_suffix("-ubyte").or(stem.strip_suffix(".idx")).unwrap_or(stem);
    let folder = path.parent().and_then(Path::file_name).and_then(|f| f.to_str());
    match folder {
        Some(folder) if ["train", "t10k", "test"].contains(&stem) => format!("{folder}-{stem}"),
        _ => stem.to_string(),
    }
}
