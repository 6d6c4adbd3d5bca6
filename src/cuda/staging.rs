//! Page-locked memory through which copies to the device go, so that the host does not wait for them.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

/// Slots of the ring.
const SLOTS: usize = 8;

/// A ring of slots, each free again when its event has passed.
#[derive(Default)]
pub(super) struct Staging {
    slots: Vec<Slot>,
    next: usize,
}

struct Slot {
    memory: *mut u8,
    bytes: usize,
    event: sys::CUevent,
}

// SAFETY: page-locked memory and events belong to the process, not to a thread.
unsafe impl Send for Slot {}

impl Staging {
    /// Queues a copy of `from` to the device.
    pub(super) fn upload(&mut self, to: u64, from: &[u8], stream: sys::CUstream) -> Result<(), DriverError> {
        let slot = self.slot(from.len())?;
        // SAFETY: the slot is free and has room; `to` holds at least as many bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(from.as_ptr(), slot.memory, from.len());
            sys::cuMemcpyHtoDAsync_v2(to, slot.memory.cast(), from.len(), stream).result()?;
            result::event::record(slot.event, stream)
        }
    }

    /// The next slot, when the copy that used it last is over, with room for `bytes`.
    fn slot(&mut self, bytes: usize) -> Result<&Slot, DriverError> {
        let at = self.next % SLOTS;
        self.next += 1;
        if self.slots.len() <= at {
            let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
            self.slots.push(Slot { memory: std::ptr::null_mut(), bytes: 0, event });
        }
        let slot = &mut self.slots[at];
        // SAFETY: the event lives; one that was never recorded has passed. Memory is freed only after that.
        unsafe {
            sys::cuEventSynchronize(slot.event).result()?;
            if slot.bytes < bytes {
                let old = std::mem::replace(&mut slot.memory, std::ptr::null_mut());
                slot.bytes = 0;
                if !old.is_null() {
                    result::free_host(old.cast())?;
                }
                let room = bytes.next_power_of_two().max(4096);
                (slot.memory, slot.bytes) = (result::malloc_host(room, 0)?.cast(), room);
            }
        }
        Ok(slot)
    }
}
