//! The calls for keys that surround the current code. A request from inside such a call that asks for the same key
//! would wait for itself.
//!
//! They are found through the surroundings, like the deadline. A spawned task has none.

use std::sync::Arc;

use crate::ambient::{self, Entered, slot};

/// The innermost call and those around it.
#[derive(Clone, Default)]
pub(super) struct Leads(Option<Arc<Leading>>);

struct Leading {
    flights: usize,
    number: u64,
    outer: Leads,
}

slot!(Leads, Leads(None));

impl Leads {
    /// Returns the calls that surround the caller.
    pub(super) fn current() -> Self {
        ambient::get()
    }

    /// Adds a call for this flight, inside these.
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

    /// Makes these the current ones while the guard lives.
    pub(super) fn enter(&mut self) -> Entered<'_, Self> {
        ambient::enter(self)
    }
}
