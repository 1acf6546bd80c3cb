//! The resources whose responses were for one caller alone, so that requests for them do not wait for one another.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use crate::{
    clock::{self, Instant},
    mutex::Mutex,
};

/// How long requests for a resource are not held back for one another.
const PASS: Duration = Duration::from_secs(30);

/// How many resources are known at a time. Requests for others may wait for one another once more.
const MOST: usize = 1024;

/// They are known by their hashes. Where two have the same, requests of one make a call too many.
#[derive(Debug, Default)]
pub(super) struct Passes {
    until: Mutex<HashMap<u64, Instant, ahash::RandomState>>,
    /// Lets a hit do without the lock while there are none.
    has_some: AtomicBool,
}

impl Passes {
    pub(super) fn add(&self, resource: u64) {
        let now = clock::now();
        let mut until = self.until.lock();
        if until.len() >= MOST && !until.contains_key(&resource) {
            until.retain(|_, until| now < *until);
            let first = until.iter().min_by_key(|(_, until)| **until).map(|(resource, _)| *resource);
            if let Some(first) = first.filter(|_| until.len() >= MOST) {
                until.remove(&first);
            }
        }
        until.insert(resource, now + PASS);
        self.has_some.store(true, Relaxed);
    }

    pub(super) fn remove(&self, resource: u64) {
        if self.has_some() {
            let mut until = self.until.lock();
            until.remove(&resource);
            self.has_some.store(!until.is_empty(), Relaxed);
        }
    }

    pub(super) fn clear(&self) {
        let mut until = self.until.lock();
        until.clear();
        self.has_some.store(false, Relaxed);
    }

    pub(super) fn has_some(&self) -> bool {
        self.has_some.load(Relaxed)
    }

    pub(super) fn contains(&self, resource: u64) -> bool {
        self.until.lock().get(&resource).is_some_and(|until| clock::now() < *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn they_are_bounded_and_the_oldest_goes_first() {
        let passes = Passes::default();
        for resource in 0..2000 {
            passes.add(resource);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(passes.until.lock().len(), MOST);
        assert!(!passes.contains(2000 - MOST as u64 - 1) && passes.contains(2000 - MOST as u64));
        tokio::time::advance(PASS).await;
        assert!(!passes.contains(1999));
        passes.add(1);
        assert_eq!(passes.until.lock().len(), 1);
        assert!(passes.contains(1));
        passes.remove(1);
        assert!(!passes.contains(1) && !passes.has_some());
    }
}
