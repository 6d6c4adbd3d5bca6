//! npz, NumPy's zip archive of named npy arrays.

use super::elements::Array;
use super::input::Input;
use super::npy::read_array;
use super::{Dataset, Probe, ReadOptions, SourceInfo, data, format};
use crate::error::{Error, ErrorKind, Result, nearest};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use zip::ZipArchive;

/// The registry line.
pub(super) static NPZ: SourceInfo = SourceInfo {
    name: "npz",
    family: "arrays",
    summary: "a NumPy archive; reads the array named by `key`, else x, X, images, data or arr_0, with labels y or labels",
    extensions: &[".npz"],
    has_keys: true,
    has_labels: true,
    probe,
    read,
};

const VALUES: [&str; 5] = ["x", "X", "images", "data", "arr_0"];
const LABELS: [&str; 4] = ["y", "Y", "labels", "label"];

fn probe(probe: &Probe) -> bool {
    probe.head.starts_with(b"PK\x03\x04") || probe.head.starts_with(b"PK\x05\x06")
}

struct Archive<'a> {
    path: &'a Path,
    zip: ZipArchive<BufReader<File>>,
    keys: Vec<String>,
    file_size: u64,
}

fn read(path: &Path, options: &ReadOptions) -> Result<Dataset> {
    let mut archive = Archive::open(path)?;
    let key = archive.find(options.key.as_deref(), &VALUES)?;
    let Some(key) = key.or_else(|| archive.only_one()) else {
        let keys = archive.keys.join(", ");
        return Err(Error::new(
            ErrorKind::Usage,
            format!("{}: none of its arrays has a usual name; choose one with a key: {keys}", path.display()),
        ));
    };
    let (array, all) = archive.array(&key, options)?;
    let n = array.shape.first().copied().unwrap_or(0);
    let place = archive.place(&key);
    let values = array.values(&place)?;
    // The usual labels belong to the usual values; an array chosen by key is labelled only on demand.
    let usual: &[&str] = if options.key.is_none() { &LABELS } else { &[] };
    let labels = match archive.find(options.labels.as_deref(), usual)? {
        Some(key) => {
            let (array, labelled) = archive.array(&key, options)?;
            let place = archive.place(&key);
            if labelled != all {
                return Err(data(&place, format_args!("{labelled} labels for {all} examples")));
            }
            Some(array.labels(n, &place)?)
        }
        None => None,
    };
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = options.key.as_ref().map_or(stem.to_string(), |key| format!("{stem}:{key}"));
    Ok(Dataset::new(name, values).with_labels(labels))
}

impl<'a> Archive<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let file = File::open(path).map_err(io)?;
        let file_size = file.metadata().map_err(io)?.len();
        let zip = ZipArchive::new(BufReader::new(file))
            .map_err(|e| format(path, format_args!("not a readable npz archive: {e}")))?;
        let names = zip.file_names().filter_map(|name| name.ok());
        let keys = names.filter_map(|name| name.strip_suffix(".npy").map(str::to_string)).collect::<Vec<_>>();
        if keys.is_empty() {
            return Err(format(path, "a zip archive without npy arrays; expected npz"));
        }
        Ok(Self { path, zip, keys, file_size })
    }

    /// The key asked for, or the first of the usual ones that is there.
    fn find(&self, asked: Option<&str>, usual: &[&str]) -> Result<Option<String>> {
        let has = |key: &str| self.keys.iter().any(|k| k == key);
        match asked {
            Some(key) if !has(key) => {
                let hint = nearest(key, self.keys.iter().map(String::as_str));
                let message = format!("{}: no array \"{key}\"; {hint}", self.path.display());
                Err(Error::new(ErrorKind::Usage, message))
            }
            Some(key) => Ok(Some(key.to_string())),
            None => Ok(usual.iter().find(|key| has(key)).map(|key| key.to_string())),
        }
    }

    /// The key of the only array that is not called like labels.
    fn only_one(&self) -> Option<String> {
        let mut others = self.keys.iter().filter(|key| !LABELS.contains(&key.as_str()));
        others.next().filter(|_| others.next().is_none()).cloned()
    }

    /// `file.npz[key]`, for messages.
    fn place(&self, key: &str) -> std::path::PathBuf {
        format!("{}[{key}]", self.path.display()).into()
    }

    fn array(&mut self, key: &str, options: &ReadOptions) -> Result<(Array, usize)> {
        let place = self.place(key);
        let entry = self.zip.by_name(&format!("{key}.npy"));
        let entry = entry.map_err(|e| format(&place, format_args!("not readable: {e}")))?;
        let compressed = entry.compressed_size().min(self.file_size);
        read_array(Input::compressed(Box::new(entry), &place, compressed), options)
    }
}
