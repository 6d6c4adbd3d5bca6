//! `rand`'s traits on a draw, for host code that wants numbers one after the other.

use super::Philox;
use rand::rand_core::{Infallible, utils};
use rand::{SeedableRng, TryRng};

/// The words of one draw in order: word `n` is element `n` of the draw, up to 2^34 words.
#[derive(Debug, Clone)]
pub struct WordStream {
    rng: Philox,
    block: [u32; 4],
    position: u64,
}

impl WordStream {
    pub(super) fn new(rng: Philox) -> Self {
        Self { rng, block: [0; 4], position: 0 }
    }

    fn word(&mut self) -> u32 {
        if self.position.is_multiple_of(4) {
            self.block = self.rng.block((self.position / 4) as u32);
        }
        self.position += 1;
        self.block[((self.position - 1) % 4) as usize]
    }

    /// An exactly uniform integer in `0..n` (Lemire 2019: multiply, reject the few biased words).
    pub fn below(&mut self, n: u64) -> u64 {
        loop {
            let word = self.word() as u64 | (self.word() as u64) << 32;
            let product = word as u128 * n as u128;
            if product as u64 >= n.wrapping_neg() % n {
                return (product >> 64) as u64;
            }
        }
    }
}

impl TryRng for WordStream {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.word())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.word() as u64 | (self.word() as u64) << 32)
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        utils::fill_bytes_via_next_word(out, || self.try_next_u32())
    }
}

impl SeedableRng for WordStream {
    type Seed = [u8; 8];

    fn from_seed(seed: [u8; 8]) -> Self {
        Philox::new(u64::from_le_bytes(seed)).stream()
    }
}
