//! Device memory that is kept for reuse, by size class.
//!
//! Everything runs on one stream, so memory that is handed out again is written only after what was queued before.

use crate::cpu::buffer::{class_bytes, class_of};

/// Free blocks of each class.
#[derive(Default)]
pub(super) struct Pool {
    free: Vec<Vec<u64>>,
}

impl Pool {
    /// What a request for `bytes` takes from the device.
    pub(super) fn rounded(bytes: usize) -> usize {
        class_bytes(class_of(bytes.max(256)))
    }

    /// A free block for `bytes` bytes.
    pub(super) fn take(&mut self, bytes: usize) -> Option<u64> {
        self.free.get_mut(class_of(bytes.max(256)))?.pop()
    }

    /// Keeps a block that was made for `bytes` bytes.
    pub(super) fn keep(&mut self, address: u64, bytes: usize) {
        let class = class_of(bytes.max(256));
        if self.free.len() <= class {
            self.free.resize_with(class + 1, Vec::new);
        }
        self.free[class].push(address);
    }

    /// All free blocks and what each takes from the device, to be given back.
    pub(super) fn drain(&mut self) -> Vec<(u64, usize)> {
        let classes = self.free.drain(..).enumerate();
        classes.flat_map(|(class, blocks)| blocks.into_iter().map(move |b| (b, class_bytes(class)))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_for_requests_of_their_class() {
        let mut pool = Pool::default();
        assert_eq!(pool.take(1000), None);
        pool.keep(7, 1000);
        assert_eq!(pool.take(100_000), None);
        assert_eq!(pool.take(990), Some(7));
        assert_eq!(pool.take(990), None);
        pool.keep(1, 10);
        pool.keep(2, 1 << 20);
        assert_eq!(pool.drain(), [(1, Pool::rounded(10)), (2, Pool::rounded(1 << 20))]);
        assert!(Pool::rounded(1 << 20) >= 1 << 20 && Pool::rounded(1) >= 256);
    }
}
