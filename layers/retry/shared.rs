//! What the services of a retry share with their calls.

use std::sync::{Arc, OnceLock};

use crate::{debug::impl_debug, mutex::Mutex, stripe::Lender};

/// The layer, and a service that is cloned for the second and later attempts.
///
/// The first attempt uses the service that is called. Few calls need another one, and a clone for each call would cost
/// two atomic operations, on lines that all threads write, for each layer inside.
pub(super) struct Shared<S, L> {
    pub(super) layer: Arc<L>,
    /// Never polled. Empty until the first call, and while a thread clones it.
    service: OnceLock<Mutex<Option<S>>>,
}

impl<S, L> Shared<S, L> {
    pub(super) fn new(layer: Arc<L>) -> Lender<Self> {
        Lender::new(Self { layer, service: OnceLock::new() })
    }

    /// Keeps a clone of `service`, unless there is one.
    #[inline]
    pub(super) fn keep(&self, service: &S)
    where
        S: Clone,
    {
        if self.service.get().is_none() {
            self.keep_clone(service);
        }
    }

    #[cold]
    fn keep_clone(&self, service: &S)
    where
        S: Clone,
    {
        // Cloned outside of the cell, because that is foreign code. Another thread may be first.
        let _kept = self.service.set(Mutex::new(Some(service.clone())));
    }

    /// Returns a clone of the service, or `None` while another thread clones it. No lock is held while it is cloned,
    /// because that is foreign code too.
    #[cold]
    pub(super) fn another(&self) -> Option<S>
    where
        S: Clone,
    {
        let place = self.service.get()?;
        let taken = place.lock().take()?;
        let taken = Taken { service: Some(taken), place };
        taken.service.clone()
    }
}

/// Goes back to its place, also if its clone panics.
struct Taken<'a, S> {
    service: Option<S>,
    place: &'a Mutex<Option<S>>,
}

impl<S> Drop for Taken<'_, S> {
    fn drop(&mut self) {
        *self.place.lock() = self.service.take();
    }
}

impl_debug!(Shared<S, L: std::fmt::Debug> { layer });

#[cfg(test)]
mod tests {
    use super::*;

    /// Tries to get another clone while it is cloned.
    struct Asks(Arc<OnceLock<Lender<Shared<Self, ()>>>>);

    impl Clone for Asks {
        fn clone(&self) -> Self {
            if let Some(shared) = self.0.get() {
                assert!(shared.another().is_none());
            }
            Self(Arc::clone(&self.0))
        }
    }

    #[test]
    fn the_service_is_cloned_under_no_lock_and_goes_back_to_its_place() {
        let shared = Shared::new(Arc::new(()));
        let service = Asks(Arc::default());
        assert!(shared.another().is_none());
        shared.keep(&service);
        let _first = service.0.set(shared.clone());
        for _ in 0..2 {
            assert!(shared.another().is_some());
        }
        // Not to keep itself alive.
        shared.service.get().unwrap().lock().take();
    }
}
