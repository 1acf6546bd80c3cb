//! Room for callers that find all permits held by response bodies.
//!
//! A limit that adapts knows nothing of bodies: their calls have ended. While they hold all permits, no call ends that
//! could raise the limit, so it is raised here.

#[cfg(all(test, ziggurat_loom))]
use loom::sync::atomic::{AtomicUsize, Ordering, fence};
use std::panic::{RefUnwindSafe, UnwindSafe};
#[cfg(not(all(test, ziggurat_loom)))]
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use super::{super::priority::Rank, ConcurrencyLimitHandle, State};

/// Raises the limit above a number of permits.
pub(in super::super) type MakeRoom = Box<dyn Fn(usize) + Send + Sync + UnwindSafe + RefUnwindSafe>;

/// The permits that bodies hold.
pub(super) struct Bodies {
    count: AtomicUsize,
    make_room: MakeRoom,
}

impl ConcurrencyLimitHandle {
    /// Counts the permits of bodies from now on. Calls `make_room` with the number of permits that the limit must
    /// exceed whenever a call finds none free and bodies hold all that are in use.
    pub(in super::super) fn watch_bodies(&self, make_room: MakeRoom) {
        let _already = self.shared.bodies.set(Bodies { count: AtomicUsize::new(0), make_room });
    }

    /// Counts a permit that a body holds from now on.
    pub(in super::super) fn body_begins(&self) {
        if let Some(bodies) = self.shared.bodies.get() {
            bodies.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts permits that bodies hold no longer.
    pub(in super::super) fn bodies_end(&self, number: usize) {
        if let Some(bodies) = self.shared.bodies.get() {
            bodies.count.fetch_sub(number, Ordering::Relaxed);
        }
    }

    /// Makes room for a call of this rank that finds no permit free, if bodies hold all that are in use.
    #[cold]
    pub(in super::super) fn make_room(&self, rank: Rank) {
        let kept = self.kept(rank);
        self.make_room_if(|state| state.available <= kept);
    }

    /// Makes room for those that wait, if bodies hold all permits in use. Called after a call has joined the queue, and
    /// after one has ended or continues as a body.
    pub(in super::super) fn make_room_for_waiters(&self) {
        self.make_room_if(|state| state.waiting > 0);
    }

    fn make_room_if(&self, is_needed: impl FnOnce(State) -> bool) {
        let Some(bodies) = self.shared.bodies.get() else { return };
        // If one call joins the queue while another becomes a body, at least one of them sees the other.
        fence(Ordering::SeqCst);
        let (state, limit) = (self.state(), self.limit());
        let in_use = usize::try_from(limit as i32 - state.available).unwrap_or(0);
        if is_needed(state) && in_use <= bodies.count.load(Ordering::Relaxed) {
            (bodies.make_room)(in_use.max(limit));
        }
    }
}
