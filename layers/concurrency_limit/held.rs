//! The permits held by the calls around the running code: a call that waited for one of them would wait forever. And
//! the gate that a call is passing without a permit.

use std::cell::{Cell, RefCell};

use super::{gate::ConcurrencyLimitHandle, priority::Rank};

/// The number of nested limits that are stored inline. More are rare, and cost an allocation.
const IN_PLACE: usize = 8;

thread_local! {
    // Needs no destructor, so an access costs no check.
    static HELD: Chain = const { Chain { depth: Cell::new(0), outermost: [const { Cell::new(0) }; IN_PLACE] } };
    static DEEPER: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
    /// The gate whose service is being called by an exempt call; zero if there is none.
    static EXEMPT: Cell<usize> = const { Cell::new(0) };
}

/// The gates whose permits are held around the current poll, outermost first.
struct Chain {
    depth: Cell<usize>,
    /// The outermost gates. The rest are in [`DEEPER`].
    outermost: [Cell<usize>; IN_PLACE],
}

/// While this guard lives, code on this thread runs with a permit of the gate.
pub(super) struct Held(());

impl ConcurrencyLimitHandle {
    #[inline]
    pub(super) fn hold(&self) -> Held {
        HELD.with(|held| {
            let depth = held.depth.get();
            match held.outermost.get(depth) {
                Some(place) => place.set(self.id()),
                None => deeper(|deeper| deeper.push(self.id())),
            }
            held.depth.set(depth + 1);
        });
        Held(())
    }

    /// Whether all permits that a call of this rank may use are held by calls around the caller, so that none can be
    /// released before the caller is done.
    #[cold]
    pub(super) fn is_all_held_here(&self, rank: Rank) -> bool {
        let mut here = HELD
            .with(|held| held.outermost.iter().take(held.depth.get()).filter(|gate| gate.get() == self.id()).count());
        deeper(|deeper| here += deeper.iter().filter(|&&gate| gate == self.id()).count());
        here >= self.usable(rank)
    }

    /// Calls the service for an exempt call.
    pub(super) fn exempt<T>(&self, call: impl FnOnce() -> T) -> T {
        struct Restore(usize);
        impl Drop for Restore {
            fn drop(&mut self) {
                EXEMPT.set(self.0);
            }
        }
        let _restore = Restore(EXEMPT.replace(self.id()));
        call()
    }

    /// Whether the service is being called by an exempt call. Calls that it makes in turn are not.
    pub(super) fn take_exempt(&self) -> bool {
        let exempt = EXEMPT.get() == self.id();
        if exempt {
            EXEMPT.set(0);
        }
        exempt
    }
}

impl Drop for Held {
    #[inline]
    fn drop(&mut self) {
        HELD.with(|held| {
            let depth = held.depth.get() - 1;
            held.depth.set(depth);
            if depth >= IN_PLACE {
                deeper(|deeper| {
                    deeper.pop();
                });
            }
        });
    }
}

/// During the teardown of its thread, no permit is held there.
#[cold]
fn deeper(f: impl FnOnce(&mut Vec<usize>)) {
    let _torn_down = DEEPER.try_with(|deeper| f(&mut deeper.borrow_mut()));
}
