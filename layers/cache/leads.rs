//! The calls for keys that surround the caller. A request that comes from inside such a call and asks for the same key
//! would wait for itself.
//!
//! They are found through the surroundings, as the deadline is: a spawned task has none.

use std::sync::Arc;

use crate::ambient::{self, Entered, slot};

/// The innermost call, and those around it.
#[derive(Clone, Default)]
pub(super) struct Leads(Option<Arc<Leading>>);

struct Leading {
    flights: usize,
    number: u64,
    outer: Leads,
}

slot!(Leads, Leads(None));

impl Leads {
    /// Those that surround the caller.
    pub(super) fn current() -> Self {
        ambient::get()
    }

    /// A call for this flight, inside of these.
    pub(super) fn and(self, (flights, number): (usize, u64)) -> Self {
        Self(Some(Arc::new(Leading { flights, number, outer: self })))
    }

    pub(super) fn include(&self, flights: usize, number: u64) -> bool {
        let mut next = self.0.as_ref();
        while let Some(lead) = next {
            if (lead.flights, lead.number) == (flights, number) {
                return true;
            }
            next = lead.outer.0.as_ref();
        }
        false
    }

    /// As long as the guard lives, these are the current ones.
    pub(super) fn enter(&mut self) -> Entered<'_, Self> {
        ambient::enter(self)
    }
}
