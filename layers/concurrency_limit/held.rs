//! The permits that the running code holds: a call that would wait for one of its own would wait for ever.

use std::cell::RefCell;

use super::gate::Gate;

thread_local! {
    /// The gates whose permits are held around what is being polled, from the outside in.
    static HELD: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// As long as this lives, what runs on this thread runs with a permit of the gate.
pub(super) struct Held(());

impl Gate {
    pub(super) fn hold(&self) -> Held {
        with(|held| held.push(self.id()));
        Held(())
    }

    /// Whether all permits that there are lie with the calls that surround the caller: none can come free before the caller is done.
    #[cold]
    pub(super) fn is_all_held_here(&self) -> bool {
        let mut here = 0;
        with(|held| here = held.iter().filter(|&&gate| gate == self.id()).count());
        here >= self.limit()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        with(|held| {
            held.pop();
        });
    }
}

/// While its thread is torn down nothing is held.
fn with(f: impl FnOnce(&mut Vec<usize>)) {
    let _ = HELD.try_with(|held| held.try_borrow_mut().map(|mut held| f(&mut held)));
}
