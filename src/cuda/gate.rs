//! Who may ask a device for work while a thread records: on the one stream of a device, what others queued meanwhile
//! would become part of the recording.

use super::locked;
use std::sync::{Condvar, Mutex};
use std::thread::{self, ThreadId};

/// Open to all threads, or closed by one to all others.
#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Calls on their way.
    passing: usize,
    closed_by: Option<ThreadId>,
}

/// A call on its way.
pub(super) struct Pass<'a>(&'a Gate);

impl Gate {
    /// Waits while another thread has closed it.
    pub(super) fn pass(&self) -> Pass<'_> {
        let mut state = locked(&self.state);
        while state.closed_by.is_some_and(|thread| thread != thread::current().id()) {
            state = self.changed.wait(state).unwrap_or_else(|e| e.into_inner());
        }
        state.passing += 1;
        Pass(self)
    }

    /// Closes it to all other threads, when no call is on its way and nobody else has closed it. The thread itself must
    /// not be passing.
    pub(super) fn close(&self) {
        let mut state = locked(&self.state);
        while state.passing > 0 || state.closed_by.is_some() {
            state = self.changed.wait(state).unwrap_or_else(|e| e.into_inner());
        }
        state.closed_by = Some(thread::current().id());
    }

    /// Opens it to all.
    pub(super) fn open(&self) {
        locked(&self.state).closed_by = None;
        self.changed.notify_all();
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let left = {
            let mut state = locked(&self.0.state);
            state.passing -= 1;
            state.passing
        };
        if left == 0 {
            self.0.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Two threads record in turn, two others ask: nobody asks while somebody else records.
    #[test]
    fn recordings_are_alone() {
        let (gate, owner) = (Gate::default(), AtomicUsize::new(0));
        thread::scope(|scope| {
            for me in 1..=4 {
                let (gate, owner) = (&gate, &owner);
                scope.spawn(move || {
                    for _ in 0..200 {
                        if me <= 2 {
                            gate.close();
                            assert_eq!(owner.swap(me, Ordering::SeqCst), 0);
                            let pass = gate.pass();
                            thread::yield_now();
                            assert_eq!(owner.swap(0, Ordering::SeqCst), me);
                            drop(pass);
                            gate.open();
                        } else {
                            let _pass = gate.pass();
                            assert_eq!(owner.load(Ordering::SeqCst), 0);
                        }
                    }
                });
            }
        });
    }
}
