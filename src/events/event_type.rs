//! The types that can be events: all but references.

use std::any::type_name;

use form::{ByValue, PassTheEventByValueNotAReference};

/// A type of event: every type that is `Send`, `Sync` and `'static`, except a reference.
///
/// `publish(&event)` would publish an event of the type `&LayerEvent`, which no subscriber of `LayerEvent` hears, and a handler
/// `|event: &LayerEvent| ..` would wait for events of the type `&LayerEvent`. Neither compiles: an event is published, and
/// handled, by value. Texts (`&'static str`) are values.
///
/// The compiler infers `Form`. For a reference two implementations match, so that it cannot, and its message names
/// `PassTheEventByValueNotAReference`. Code that is generic over its event needs no bound for it.
pub trait EventType<Form>: Send + Sync + 'static {}

impl<E: Send + Sync + 'static> EventType<ByValue> for E {}

// A type that is not `Sized` stays a value behind its reference: `&'static str`.
impl<E: Sync> EventType<PassTheEventByValueNotAReference> for &'static E {}

// Callers use them by inference, so they are public; nobody can name them.
mod form {
    #[derive(Debug)]
    pub struct ByValue;

    #[derive(Debug)]
    pub struct PassTheEventByValueNotAReference;
}

/// Refuses a reference where the compiler did not see that it is one: as the argument of a type parameter.
///
/// # Panics
///
/// If it is one. The name of a type is known at compile time, and the check vanishes.
#[inline]
#[track_caller]
pub(super) fn refuse_references<E>() {
    let is_reference = type_name::<E>().starts_with('&') && size_of::<E>() == size_of::<&()>();
    assert!(
        !is_reference,
        "pass the event by value, not a reference: nothing that hears `{}` is told of it",
        pointee::<E>()
    );
}

fn pointee<E>() -> &'static str {
    type_name::<E>().trim_start_matches('&')
}
