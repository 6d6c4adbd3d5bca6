//! The images in this repository, and the larger sets beside it where they exist.

use super::*;
use std::path::PathBuf;

/// Mean and standard deviation over all values.
fn moments(set: &Dataset) -> (f64, f64) {
    let values = set.values.to_f64_vec();
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt())
}

#[test]
fn demo_images() {
    let demo = data::demo(None).unwrap();
    let described = [&demo.train, &demo.test, &demo.other].map(Dataset::describe);
    assert_eq!(
        described,
        [
            "fashion-mnist-train: 6,000 x 28x28x1 u8, 10 classes",
            "fashion-mnist-t10k: 1,000 x 28x28x1 u8, 10 classes",
            "mnist-t10k: 1,000 x 28x28x1 u8, 10 classes"
        ]
    );
    // The first labels of the published sets: an ankle boot, a T-shirt ... and the digits 7, 2, 1, 0, 4.
    assert_eq!(demo.train.labels.as_ref().unwrap()[..5], [9, 0, 0, 3, 0]);
    assert_eq!(demo.test.labels.as_ref().unwrap()[..5], [9, 2, 1, 1, 6]);
    assert_eq!(demo.other.labels.as_ref().unwrap()[..5], [7, 2, 1, 0, 4]);
    let (mean, std) = moments(&demo.train);
    assert!((mean - 72.94).abs() < 1.0 && (std - 90.02).abs() < 1.0, "mean {mean}, std {std}");
    let error = data::demo_folder(Some(Path::new("no/such/folder"))).unwrap_err().to_string();
    assert!(error.contains("no/such/folder") && error.contains("SURPRISAL_DATA"), "{error}");
}

/// The folder with the larger sets, or `None` with the reason printed.
fn shared(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("SURPRISAL_SHARED_DATA").map_or("../shared/data".into(), PathBuf::from);
    let path = folder.join(name);
    if !path.exists() {
        println!(
            "skipped: no {} (set SURPRISAL_SHARED_DATA to the folder of the larger sets)",
            path.display()
        );
        return None;
    }
    Some(path)
}

#[test]
fn fashion_mnist_has_its_published_moments() {
    let Some(path) = shared("fashion_mnist/train-images-idx3-ubyte.gz") else { return };
    let set = open(&path).unwrap();
    assert_eq!(set.describe(), "fashion_mnist-train: 60,000 x 28x28x1 u8, 10 classes");
    let (mean, std) = moments(&set);
    assert!((mean - 72.94035).abs() < 1e-5 && (std - 90.02118).abs() < 1e-5, "mean {mean}, std {std}");
    let first = data::demo(None).unwrap().train;
    assert_eq!(set.take(6000).values.as_slice::<u8>(), first.values.as_slice::<u8>());
    assert_eq!(set.take(6000).labels, first.labels);
}

#[test]
fn colour_images_and_tables() {
    if let Some(path) = shared("cifar10/cifar10_test.npz") {
        let set = limited(&path, 1000).unwrap();
        assert_eq!(set.describe(), "cifar10_test: 1,000 x 32x32x3 u8, 10 classes");
    }
    if let Some(path) = shared("omniglot/omniglot28-images-idx3-ubyte.gz") {
        assert_eq!(open(&path).unwrap().values.shape(), [4840, 28, 28, 1]);
    }
    let Some(folder) = shared("adbench") else { return };
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "npz"));
    assert_eq!(files.len(), 21);
    for path in files {
        let set = open(&path).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((set.values.rank(), set.values.dtype()), (2, DType::F64));
        let labels = set.labels.as_ref().unwrap();
        assert!(labels.contains(&0) && labels.contains(&1) && labels.iter().all(|l| [0, 1].contains(l)));
    }
}
