//! The removals that the store has not done yet.

use std::{collections::HashMap, mem, sync::Arc};

use crate::{
    clock::{self, Instant},
    mutex::Mutex,
};

/// How many resources can wait for their removal.
const MOST: usize = 10_000;

#[derive(Default)]
pub(super) struct Removals {
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    /// The last removal of each resource.
    pending: HashMap<String, Pending, ahash::RandomState>,
    numbers: u64,
    /// Whether a task repeats those that have failed.
    is_taken: bool,
}

struct Pending {
    number: u64,
    since: Instant,
}

/// A removal that is to be made.
pub(super) struct Removal {
    pub(super) name: String,
    number: u64,
}

impl Removals {
    /// Adds removals of these resources. Returns `None` if too many wait: then all are forgotten.
    pub(super) fn add(&self, names: Vec<String>) -> Option<Vec<Removal>> {
        let mut table = self.table.lock();
        if table.pending.len() + names.len() > MOST {
            table.pending = HashMap::default();
            return None;
        }
        table.numbers += 1;
        let (number, since) = (table.numbers, clock::now());
        table.pending.extend(names.iter().map(|name| (name.clone(), Pending { number, since })));
        Some(names.into_iter().map(|name| Removal { name, number }).collect())
    }

    /// Returns since when the removal of a resource waits, if it does.
    pub(super) fn since(&self, name: &str) -> Option<Instant> {
        self.table.lock().pending.get(name).map(|pending| pending.since)
    }

    /// Notes that a removal is done. A later one of the same resource is not.
    pub(super) fn done(&self, Removal { name, number }: &Removal) {
        let mut table = self.table.lock();
        if table.pending.get(name).is_some_and(|pending| pending.number == *number) {
            table.pending.remove(name);
        }
    }

    /// Returns the turn to repeat removals, unless another task has it.
    pub(super) fn turn(&self) -> Option<Turn> {
        let is_taken = mem::replace(&mut self.table.lock().is_taken, true);
        (!is_taken).then(|| Turn(Some(Arc::clone(&self.table))))
    }
}

/// The turn to repeat removals. It is over when none is left, or when it is dropped along with its task.
pub(super) struct Turn(Option<Arc<Mutex<Table>>>);

impl Turn {
    /// Returns any removal that is not done.
    pub(super) fn next(&mut self) -> Option<Removal> {
        let mut table = self.0.as_ref()?.lock();
        let next = table.pending.iter().next();
        let next = next.map(|(name, pending)| Removal { name: name.clone(), number: pending.number });
        table.is_taken = next.is_some();
        drop(table);
        if next.is_none() {
            self.0 = None;
        }
        next
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(table) = &self.0 {
            table.lock().is_taken = false;
        }
    }
}
