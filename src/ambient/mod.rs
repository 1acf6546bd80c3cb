//! The surroundings of a call, in thread-locals: its deadline, the number of its attempt, its caller. The modules above add their own, such
//! as the scope.
//!
//! A future that brings such a value swaps it in for the length of each poll and out again afterwards. Nothing is cloned,
//! and it works for every request type, in `join!` and `select!`, and for many requests on one task.

use std::{cell::Cell, mem, thread::LocalKey};

use tokio::task::{self, Id};

mod attempt;
pub(crate) mod caller;
pub(crate) mod deadline;
mod limit;
pub(crate) mod limited;
mod notes;

pub(crate) use self::{
    attempt::Attempt,
    deadline::Told,
    limit::Limit,
    notes::{HadItsTime, Unsent, Urgent},
};
pub use self::{
    attempt::attempt,
    deadline::{Deadline, WithDeadline},
};

thread_local! {
    static TASK: Cell<Option<Id>> = const { Cell::new(None) };
}

/// A value that has its place in the surroundings.
pub(crate) trait Slot: Default + Clone + 'static {
    fn place() -> &'static LocalKey<Cell<Self>>;
}

/// Gives a type its place in the surroundings: `$outside` is there where nothing else was put in place.
///
/// Each on its own: a thread-local without a destructor, as that of a limit or a number is, costs a plain access.
macro_rules! slot {
    ($value:ty, $outside:expr) => {
        impl $crate::ambient::Slot for $value {
            #[inline]
            fn place() -> &'static std::thread::LocalKey<std::cell::Cell<Self>> {
                std::thread_local! {
                    static PLACE: std::cell::Cell<$value> = const { std::cell::Cell::new($outside) };
                }
                &PLACE
            }
        }
    };
}

pub(crate) use slot;

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
