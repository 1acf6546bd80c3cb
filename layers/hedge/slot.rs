//! The place of an attempt in the response future, and how it is dropped.

use std::pin::Pin;

use pin_project_lite::pin_project;

use crate::{
    ambient::{self, Attempt, HadItsTime, Unsent},
    caught::undisturbed,
};

pin_project! {
    /// An attempt, in place.
    #[project = SlotProj]
    pub(super) enum Slot<F> {
        // The attempt has not started, or has ended.
        Empty,
        // Its service becomes ready.
        Readying,
        Calling {
            #[pin]
            response: F,
        },
    }
}

impl<F> Slot<F> {
    pub(super) fn is_running(&self) -> bool {
        matches!(self, Self::Calling { .. })
    }
}

/// Drops an attempt. Returns its notes for a circuit breaker outside.
fn dropped<F>(mut slot: Pin<&mut Slot<F>>, mut number: Attempt) -> (Unsent, HadItsTime) {
    let (mut unsent, mut had_its_time) = (Unsent(false), HadItsTime(false));
    let entered = (ambient::enter(&mut number), ambient::enter(&mut unsent), ambient::enter(&mut had_its_time));
    slot.set(Slot::Empty);
    drop(entered);
    (unsent, had_its_time)
}

/// Drops an attempt whose outcome is not needed. A panic of its drop must not cost the caller the other's response, and
/// its notes concern no layer outside: the call goes on.
#[cold]
pub(super) fn lost<F>(slot: Pin<&mut Slot<F>>, number: Attempt) {
    undisturbed(|| {
        dropped(slot, number);
    });
}

/// Drops both attempts of a call that is dropped, and leaves one note for a circuit breaker outside: the call was sent
/// if one of its attempts was. `second_waits` says that the second one was not.
#[cold]
pub(super) fn abandon<F>(first: Pin<&mut Slot<F>>, second: Pin<&mut Slot<F>>, number: Attempt, second_waits: bool) {
    let first_runs = first.is_running();
    let (first_unsent, first_had_its_time) = dropped(first, before(number));
    let (second_unsent, second_had_its_time) = dropped(second, number);
    if (first_unsent.0 || !first_runs) && (second_unsent.0 || second_waits) {
        ambient::set(Unsent(true));
    }
    if first_had_its_time.0 || second_had_its_time.0 {
        ambient::set(HadItsTime(true));
    }
}

/// Returns the number of the first attempt, from that of the second.
pub(super) fn before(second: Attempt) -> Attempt {
    Attempt(second.0.saturating_sub(1))
}
