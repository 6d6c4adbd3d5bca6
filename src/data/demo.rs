//! The small real images that come with the repository.

use super::{Dataset, ReadOptions, open};
use crate::error::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

/// The variable that names the folder of the demonstration images.
const VARIABLE: &str = "SURPRISAL_DATA";
const TRAIN: &str = "fashion-mnist-train-images-idx3-ubyte.gz";
const TEST: &str = "fashion-mnist-t10k-images-idx3-ubyte.gz";
const OTHER: &str = "mnist-t10k-images-idx3-ubyte.gz";

/// Clothes to learn from, more clothes, and the digits that should look strange.
#[derive(Debug, Clone)]
pub struct Demo {
    /// The first 6,000 training images of FashionMNIST.
    pub train: Dataset,
    /// The first 1,000 test images of FashionMNIST.
    pub test: Dataset,
    /// The first 1,000 test images of MNIST.
    pub other: Dataset,
}

/// Reads the demonstration images from [`demo_folder`].
///
/// # Errors
/// When the folder is not found or a file in it is damaged.
pub fn demo(folder: Option<&Path>) -> Result<Demo> {
    let folder = demo_folder(folder)?;
    let read = |file: &str| open(folder.join(file), &ReadOptions::default());
    Ok(Demo { train: read(TRAIN)?, test: read(TEST)?, other: read(OTHER)? })
}

/// The folder with the demonstration images: `folder` if given, else what the variable `SURPRISAL_DATA`
/// names, else the nearest `data/` at or above the working directory, else at or above the executable.
///
/// # Errors
/// When no such folder has the files, with the places that were searched.
pub fn demo_folder(folder: Option<&Path>) -> Result<PathBuf> {
    let given = folder.map(Path::to_path_buf).or_else(|| std::env::var_os(VARIABLE).map(PathBuf::from));
    let complete = |folder: &Path| [TRAIN, TEST, OTHER].iter().all(|file| folder.join(file).is_file());
    let missing = |places: String| {
        let message = format!(
            "the demonstration images are not in {places}; expected {TRAIN}, {TEST} and {OTHER}: \
             run from the repository, or name its data folder in {VARIABLE}"
        );
        Error::new(ErrorKind::Io, message)
    };
    if let Some(folder) = given {
        return if complete(&folder) { Ok(folder) } else { Err(missing(folder.display().to_string())) };
    }
    let starts = [std::env::current_dir().ok(), std::env::current_exe().ok()];
    let starts: Vec<PathBuf> = starts.into_iter().flatten().collect();
    let found = starts.iter().flat_map(|s| s.ancestors()).map(|a| a.join("data")).find(|f| complete(f));
    found.ok_or_else(|| {
        let searched: Vec<String> = starts.iter().map(|s| s.display().to_string()).collect();
        missing(format!("a data folder at or above {}", searched.join(" or ")))
    })
}
