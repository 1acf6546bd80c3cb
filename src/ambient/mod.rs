//! The ambient state of a call, in thread-locals: its deadline, its attempt number, and its caller. Modules that build
//! on this one add their own, such as the scope.
//!
//! A future that carries such a value swaps it in at the start of each poll, and out at the end. Nothing is cloned. It
//! works for every request type, in `join!` and `select!`, and with many requests on one task.

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
    notes::{HadItsTime, Spare, Unsent, Urgent},
};
pub use self::{
    attempt::attempt,
    deadline::{Deadline, WithDeadline},
};

thread_local! {
    static TASK: Cell<Option<Id>> = const { Cell::new(None) };
}

/// A value of the ambient state.
pub(crate) trait Slot: Default + Clone + 'static {
    fn place() -> &'static LocalKey<Cell<Self>>;
}

/// Declares a type's thread-local. `$outside` is the value outside any layer.
///
/// Each type has its own thread-local, because one without a destructor, such as a limit or a number, costs only a
/// plain access.
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

/// Makes `value` current until the guard is dropped, also by a panic. Then the outer value is restored, and `value`
/// receives the last value that was current inside.
#[inline]
pub(crate) fn enter<T: Slot>(value: &mut T) -> Entered<'_, T> {
    enter_with(value, |_, _| {})
}

/// Makes `value` current until the guard is dropped, after `combine` has changed it. The arguments of `combine` are
/// `value` and the outer value.
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
    /// The value that was current before, and will be again.
    pub(crate) outer: &'a mut T,
}

impl<T: Slot> Drop for Entered<'_, T> {
    #[inline]
    fn drop(&mut self) {
        with(|cell| *self.outer = cell.replace(mem::take(self.outer)));
    }
}

/// Records, until the guard is dropped, that the ambient state belongs to the running task.
#[inline]
pub(crate) fn enter_task() -> EnteredTask {
    EnteredTask { outer: TASK.try_with(|cell| cell.replace(task::try_id())).unwrap_or_default() }
}

/// Returns whether the ambient state belongs to the running task. A task that is polled by another task, such as a task
/// of a `LocalSet`, sees that task's state.
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

/// Returns a copy of the current value.
#[inline]
pub(crate) fn get<T: Slot>() -> T {
    with(|cell: &Cell<T>| {
        let value = cell.take();
        cell.set(value.clone());
        value
    })
}

/// Changes the current value.
pub(crate) fn change<T: Slot, R: Default>(f: impl FnOnce(&mut T) -> R) -> R {
    with(|cell: &Cell<T>| {
        let mut value = cell.take();
        let answer = f(&mut value);
        cell.set(value);
        answer
    })
}

/// Replaces the current value with `value`.
#[inline]
pub(crate) fn set<T: Slot>(value: T) {
    with(|cell| cell.set(value));
}

/// While a thread is torn down, its ambient state is gone: everything behaves as if outside any layer.
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
