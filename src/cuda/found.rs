//! What is there to run on, and what is said when it does not suffice: the same for the driver and the emulator.

use super::OUT_OF_MEMORY;

/// What nvcc 13.0 makes is understood by drivers from this version on.
const NEEDED: i32 = 13_000;

/// Whether a driver made for CUDA `version` (1000 major + 10 minor; none without a driver) loads our kernels.
pub(super) fn check_driver(version: Option<i32>) -> Result<(), String> {
    match version {
        None => Err("there is no NVIDIA driver (libcuda.so.1) on this machine".into()),
        Some(version) if version >= NEEDED => Ok(()),
        Some(version) => {
            let (major, minor) = (version / 1000, version % 1000 / 10);
            Err(format!("the driver is made for CUDA {major}.{minor}; 13.0 (driver 580) or newer is needed"))
        }
    }
}

/// Whether there is a device `index` among `count`.
pub(super) fn check_index(index: usize, count: i32) -> Result<(), String> {
    match count {
        count if index < count as usize => Ok(()),
        0 => Err("the driver sees no GPU".into()),
        1 => Err("there is one GPU, cuda:0".into()),
        n => Err(format!("there are {n} GPUs, cuda:0 to cuda:{}", n - 1)),
    }
}

/// What was asked for, what is there, and who holds the rest: `ours` bytes are this process's.
pub(super) fn no_memory(asked: usize, free: usize, total: usize, ours: usize) -> String {
    let others = total.saturating_sub(free).saturating_sub(ours);
    let [asked, free, total, ours, others] = [asked, free, total, ours, others].map(size);
    format!(
        "{OUT_OF_MEMORY}: {asked} asked for, {free} of {total} free; this process holds {ours}, \
         the driver and other processes {others}"
    )
}

/// There is not even memory for the driver's own state of this process.
pub(super) fn none_left() -> String {
    format!("{OUT_OF_MEMORY}: none is left to start with; other processes hold it (nvidia-smi names them)")
}

fn size(bytes: usize) -> String {
    match bytes {
        bytes if bytes < 10 << 20 => format!("{bytes} bytes"),
        bytes => format!("{} MiB", bytes.div_ceil(1 << 20)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_in_one_line() {
        assert!(check_driver(Some(NEEDED)).is_ok() && check_index(1, 2).is_ok());
        assert_eq!(
            check_driver(None).unwrap_err(),
            "there is no NVIDIA driver (libcuda.so.1) on this machine"
        );
        let message = check_driver(Some(12_040)).unwrap_err();
        assert!(message.starts_with("the driver is made for CUDA 12.4; 13.0"), "{message}");
        assert_eq!(check_index(0, 0).unwrap_err(), "the driver sees no GPU");
        assert_eq!(check_index(3, 1).unwrap_err(), "there is one GPU, cuda:0");
        assert_eq!(check_index(8, 8).unwrap_err(), "there are 8 GPUs, cuda:0 to cuda:7");
        assert_eq!(
            no_memory(3 << 30, 100 << 20, 80 << 30, 20 << 30),
            "out of memory: 3072 MiB asked for, 100 MiB of 81920 MiB free; this process holds 20480 MiB, \
             the driver and other processes 61340 MiB"
        );
    }
}
