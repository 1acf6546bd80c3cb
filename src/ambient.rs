//! What surrounds a call: its scope, its deadline and the number of its attempt, in thread-locals.
//!
//! A future that brings such a value swaps it in for the length of each poll and out again afterwards. Nothing is cloned,
//! and it works for every request type, in `join!` and `select!`, and for many requests on one task.

use std::{cell::Cell, mem, thread::LocalKey};

use tokio::task::{self, Id};

use crate::{
    caller::Caller,
    deadline::{Limit, Told},
    scope::{Member, Scope},
};

// Each on its own: a thread-local without a destructor, as a limit and a number are, costs a plain access.
thread_local! {
    static SCOPE: Cell<Option<Scope>> = const { Cell::new(None) };
    static LIMIT: Cell<Limit> = const { Cell::new(Limit::NONE) };
    static TOLD: Cell<Told> = const { Cell::new(Told(Limit::NONE)) };
    static ATTEMPT: Cell<Attempt> = const { Cell::new(Attempt(1)) };
    static MEMBER: Cell<Option<Member>> = const { Cell::new(None) };
    static UNSENT: Cell<Unsent> = const { Cell::new(Unsent(false)) };
    static CALLER: Cell<Option<Caller>> = const { Cell::new(None) };
    static URGENT: Cell<Urgent> = const { Cell::new(Urgent(false)) };
    static HAD_ITS_TIME: Cell<HadItsTime> = const { Cell::new(HadItsTime(false)) };
    static TASK: Cell<Option<Id>> = const { Cell::new(None) };
}

/// A value that has its place in the surroundings.
pub(crate) trait Slot: Default + Clone + 'static {
    fn place() -> &'static LocalKey<Cell<Self>>;
}

impl Slot for Option<Scope> {
    #[inline]
    fn place() -> &'static LocalKey<Cell<Self>> {
        &SCOPE
    }
}

impl Slot for Limit {
    #[inline]
    fn place() -> &'static LocalKey<Cell<Self>> {
        &LIMIT
    }
}

impl Slot for Told {
    #[inline]
    fn place() -> &'static LocalKey<Cell<Self>> {
        &TOLD
    }
}

impl Slot for Option<Member> {
    #[inline]
    fn place() -> &'static LocalKey<Cell<Self>> {
        &MEMBER
    }
}

impl Slot for Option<Caller> {
    #[inline]
    fn place() -> &'static LocalKey<Cell<Self>> {
        &CALLER
    }
}

/// Whether the call that was just dropped had not reached the service, or the one that was just polled still has not: it waits for its turn
/// on this side.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Unsent(pub(crate) bool);

impl Slot for Unsent {
    #[inline]
    fn place() -> &'static LocalKey<Cell<Self>> {
        &UNSENT
    }
}

/// Whether others wait for what this call finds out, so that it waits behind none of them: a circuit breaker's probe.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Urgent(pub(crate) bool);

impl Slot for Urgent {
    #[inline]
    fn place() -> &'static LocalKey<Cell<Self>> {
        &URGENT
    }
}

/// Whether the call that was just dropped had all the time that a limit beneath gives to it: the service was given its chance.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct HadItsTime(pub(crate) bool);

impl Slot for HadItsTime {
    #[inline]
    fn place() -> &'static LocalKey<Cell<Self>> {
        &HAD_ITS_TIME
    }
}

/// The number of an attempt, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attempt(pub(crate) u32);

impl Default for Attempt {
    fn default() -> Self {
        Self(1)
    }
}

impl Slot for Attempt {
    #[inline]
    fn place() -> &'static LocalKey<Cell<Self>> {
        &ATTEMPT
    }
}

/// As long as the guard lives, `value` is in place; afterwards (also after a panic) the outer value is back, and `value` is
/// what was left in place.
#[inline]
pub(crate) fn enter<T: Slot>(value: &mut T) -> Entered<'_, T> {
    enter_with(value, |_, _| {})
}

/// The same for what `combine` makes of `value`, its first argument, and the outer value.
#[inline]
pub(crate) fn enter_with<T: Slot>(value: &mut T, combine: impl FnOnce(&mut T, &mut T)) -> Entered<'_, T> {
    with(|cell| {
        let mut outer = cell.take();
        combine(value, &mut outer);
        cell.set(mem::replace(value, outer));
    });
    Entered { outer: value }
}

/// The guard of [`enter`].
pub(crate) struct Entered<'a, T: Slot> {
    /// The value that was in place before, and will be again.
    pub(crate) outer: &'a mut T,
}

impl<T: Slot> Drop for Entered<'_, T> {
    #[inline]
    fn drop(&mut self) {
        with(|cell| *self.outer = cell.replace(mem::take(self.outer)));
    }
}

/// Notes, as long as the guard lives, that the surroundings are those of the running task.
#[inline]
pub(crate) fn enter_task() -> EnteredTask {
    EnteredTask { outer: TASK.try_with(|cell| cell.replace(task::try_id())).unwrap_or_default() }
}

/// Whether the surroundings are those of the running task. A task that is polled by another one, as those of a
/// `LocalSet` are, sees the other's.
#[inline]
pub(crate) fn are_of_this_task() -> bool {
    TASK.try_with(Cell::get).unwrap_or_default() == task::try_id()
}

/// The guard of [`enter_task`].
pub(crate) struct EnteredTask {
    outer: Option<Id>,
}

impl Drop for EnteredTask {
    #[inline]
    fn drop(&mut self) {
        let _no_surroundings = TASK.try_with(|cell| cell.set(self.outer));
    }
}

/// A copy of the value that is in place.
#[inline]
pub(crate) fn get<T: Slot>() -> T {
    with(|cell: &Cell<T>| {
        let value = cell.take();
        cell.set(value.clone());
        value
    })
}

/// Changes the value that is in place.
pub(crate) fn change<T: Slot, R: Default>(f: impl FnOnce(&mut T) -> R) -> R {
    with(|cell: &Cell<T>| {
        let mut value = cell.take();
        let answer = f(&mut value);
        cell.set(value);
        answer
    })
}

/// Puts `value` in place of the one that is there.
#[inline]
pub(crate) fn set<T: Slot>(value: T) {
    with(|cell| cell.set(value));
}

/// While its thread is torn down there are no surroundings: then everything is as if outside of any layer.
#[inline]
fn with<T: Slot, R: Default>(f: impl FnOnce(&Cell<T>) -> R) -> R {
    T::place().try_with(f).unwrap_or_default()
}

/// The number of the attempt that the caller runs in: 1 for the first, and outside of any retry.
///
/// Every layer and service inside a [`RetryLayer`](crate::retry::RetryLayer) can ask, in `poll_ready`, `call`, and while its
/// response future is polled. Of nested retries the innermost answers. A spawned task starts at 1 again.
///
/// ```
/// assert_eq!(ziggurat::attempt(), 1);
/// ```
#[must_use]
pub fn attempt() -> u32 {
    get::<Attempt>().0
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn what_was_in_place_is_back_after_a_panic() {
        let mut second = Attempt(2);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _entered = enter(&mut second);
            assert_eq!(attempt(), 2);
            panic!("inside");
        }));
        assert!(panicked.is_err());
        assert_eq!(attempt(), 1);
        assert_eq!(second.0, 2);
    }

    #[test]
    fn nested_values_are_seen_from_the_inside_out() {
        let (mut outer, mut inner) = (Attempt(2), Attempt(5));
        let entered = enter(&mut outer);
        {
            let _inner = enter(&mut inner);
            assert_eq!(attempt(), 5);
        }
        assert_eq!(attempt(), 2);
        drop(entered);
        assert_eq!(attempt(), 1);
    }
}
