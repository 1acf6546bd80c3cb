//! The removals that the store has not done yet.

use std::{collections::HashMap, mem, sync::Arc};

use crate::mutex::Mutex;

/// How many resources can wait for their removal.
const MOST: usize = 10_000;

#[derive(Default)]
pub(super) struct Removals {
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    /// The last removal of each resource.
    pending: HashMap<String, u64, ahash::RandomState>,
    numbers: u64,
    /// Whether a task repeats those that have failed.
    is_taken: bool,
    /// Whether there are some that no task makes.
    is_stalled: bool,
}

impl Table {
    /// Returns whether the last removal of this resource is not done, and has this number.
    fn has(&self, name: &str, number: u64) -> bool {
        self.pending.get(name) == Some(&number)
    }
}

/// A removal that is to be made.
pub(super) struct Removal {
    pub(super) name: String,
    number: u64,
}

impl Removals {
    /// Adds removals of these resources, for a first attempt at them. Returns `None` if too many wait: then all are
    /// forgotten.
    pub(super) fn add(&self, names: Vec<String>) -> Option<Attempt> {
        let mut table = self.table.lock();
        if table.pending.len() + names.len() > MOST {
            table.pending = HashMap::default();
            return None;
        }
        table.numbers += 1;
        let number = table.numbers;
        table.pending.extend(names.iter().map(|name| (name.clone(), number)));
        let removals = names.into_iter().map(|name| Removal { name, number }).collect();
        Some(Attempt { table: Arc::clone(&self.table), removals })
    }

    pub(super) fn include(&self, name: &str) -> bool {
        self.table.lock().pending.contains_key(name)
    }

    pub(super) fn are_stalled(&self) -> bool {
        self.table.lock().is_stalled
    }

    /// Notes that a removal is done. A later one of the same resource is not.
    pub(super) fn done(&self, Removal { name, number }: &Removal) {
        let mut table = self.table.lock();
        if table.has(name, *number) {
            table.pending.remove(name);
        }
    }

    /// Returns the turn to repeat removals, unless another task has it.
    pub(super) fn turn(&self) -> Option<Turn> {
        let mut table = self.table.lock();
        table.is_stalled = false;
        let is_taken = mem::replace(&mut table.is_taken, true);
        drop(table);
        (!is_taken).then(|| Turn(Some(Arc::clone(&self.table))))
    }
}

/// The first attempt at removals. Those that are not done when it is dropped, for want of a runtime or along with it,
/// wait for the next turn.
pub(super) struct Attempt {
    table: Arc<Mutex<Table>>,
    removals: Vec<Removal>,
}

impl Attempt {
    pub(super) fn removals(&self) -> &[Removal] {
        &self.removals
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        let is_left = self.removals.iter().any(|Removal { name, number }| table.has(name, *number));
        table.is_stalled |= is_left && !table.is_taken;
    }
}

/// The turn to repeat removals. It is over when none is left, or when it is dropped along with its task.
pub(super) struct Turn(Option<Arc<Mutex<Table>>>);

impl Turn {
    /// Returns a removal that is not done, at random: one that the store always refuses holds up no other.
    pub(super) fn next(&mut self) -> Option<Removal> {
        let mut table = self.0.as_ref()?.lock();
        let nth = fastrand::usize(..table.pending.len().max(1));
        let next = table.pending.iter().nth(nth).map(|(name, number)| Removal { name: name.clone(), number: *number });
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
            let mut table = table.lock();
            (table.is_taken, table.is_stalled) = (false, true);
        }
    }
}
