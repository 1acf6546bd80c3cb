//! The types that can be events: all but references.

use std::any::type_name;

use form::{ByValue, PassTheEventByValueNotAReference};

/// A type of event: any type that is `Send`, `Sync` and `'static`, except a reference.
///
/// `publish(&order)` would publish an event of type `&OrderPlaced`, which no subscriber to `OrderPlaced` receives, and
/// a handler `|order: &OrderPlaced| ..` would wait for events of type `&OrderPlaced`. Neither compiles: events are
/// published and handled by value. String literals (`&'static str`) are values.
///
/// The compiler infers `Form`. For a reference two implementations match, so inference fails, and the compiler's
/// message names `PassTheEventByValueNotAReference`. Code that is generic over its event needs no bound for it.
pub trait EventType<Form>: Send + Sync + 'static {}

impl<E: Send + Sync + 'static> EventType<ByValue> for E {}

// A reference to a type that is not `Sized`, such as `&'static str`, stays a value.
impl<E: Sync> EventType<PassTheEventByValueNotAReference> for &'static E {}

// Public because callers use them by inference, but private to this module by name.
mod form {
    #[derive(Debug)]
    pub struct ByValue;

    #[derive(Debug)]
    pub struct PassTheEventByValueNotAReference;
}

/// Refuses a reference that the compiler could not see, behind a type parameter.
///
/// # Panics
///
/// If `E` is a reference to a sized type. A type's name is known at compile time, so the check vanishes.
#[inline]
#[track_caller]
pub(super) fn refuse_references<E>() {
    let is_reference = type_name::<E>().starts_with('&') && size_of::<E>() == size_of::<&()>();
    assert!(
        !is_reference,
        "pass the event by value, not a reference: no subscriber to `{}` would receive it",
        pointee::<E>()
    );
}

fn pointee<E>() -> &'static str {
    type_name::<E>().trim_start_matches('&')
}
