//! Writing files so that a reader never sees half of one.

use crate::error::{Error, ErrorKind, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Replaces the content of `path` by `bytes` in one step: a file beside it is written, flushed to the disk and
/// renamed. A full disk, an error or a crash leaves the old file as it was.
///
/// The folder must exist. A path that is no regular file (a device, a pipe) is written to as it is, never replaced.
///
/// # Errors
/// [`ErrorKind::Io`] naming `path` when the folder is missing or not writable, the disk is full, or `path` is a folder.
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let path = path.as_ref();
    let Some(name) = path.file_name() else {
        return Err(Error::new(ErrorKind::Io, format!("{}: expected the path of a file", path.display())));
    };
    if fs::metadata(path).is_ok_and(|about| !about.is_file() && !about.is_dir()) {
        let written = File::options().write(true).open(path).and_then(|mut file| file.write_all(bytes));
        return written.map_err(|e| Error::io(path, e));
    }
    let mut beside = name.to_os_string();
    beside.push(format!(".{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    let beside = path.with_file_name(beside);
    let written = File::create(&beside).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    });
    written.map_err(|e| {
        let _ = fs::remove_file(&beside);
        Error::io(path, e)
    })?;
    // The rename itself is durable only once the folder is on the disk; not every file system can be asked.
    #[cfg(unix)]
    if let Some(folder) = path.parent() {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let _ = File::open(folder).and_then(|f| f.sync_all());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// Not the real /dev/full: a mistake here, run as root, would replace it.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_device_is_written_to_and_not_replaced() {
        use std::os::unix::fs::FileTypeExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("full");
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let message = write_atomic(&path, b"x").unwrap_err().to_string();
        assert!(message.contains("space"), "{message}");
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
        assert!(fs::metadata(&path).unwrap().file_type().is_char_device());
    }

    #[test]
    fn names_the_path_when_it_cannot_write() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("no/such/report.html");
        let message = write_atomic(&missing, b"x").unwrap_err().to_string();
        assert!(message.contains(&missing.display().to_string()), "{message}");
        let folder = dir.path().join("folder");
        fs::create_dir(&folder).unwrap();
        let message = write_atomic(&folder, b"x").unwrap_err().to_string();
        assert!(message.contains(&folder.display().to_string()), "{message}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something was left beside the folder");
    }
}
