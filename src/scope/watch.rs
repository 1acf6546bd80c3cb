//! Watching a scope's value, at the cost of an atomic read for each scope that could hold it.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicU64, Ordering},
};

use super::{Inner, Scope};

use crate::mutex::Mutex;

/// Reports the value of type `T` in the nearest scope that holds one, and each later value that replaces it.
///
/// It keeps no scope alive: when the scope is gone, the last reported value stays.
pub(crate) struct Watch<T> {
    scope: Weak<Inner>,
    /// The versions of the scope and its parents.
    versions: Box<[Arc<AtomicU64>]>,
    /// The sum of the versions when they were last read. Any change increases it.
    seen: AtomicU64,
    /// The value that was reported last. Held, so that no other value can have its address.
    told: Mutex<Option<Arc<T>>>,
}

impl Scope {
    pub(crate) fn watch<T>(&self) -> Watch<T> {
        Watch {
            scope: Arc::downgrade(&self.inner),
            versions: self.outwards().map(|scope| scope.inner.state.version()).collect(),
            seen: AtomicU64::new(u64::MAX),
            told: Mutex::new(None),
        }
    }
}

impl<T: Send + Sync + 'static> Watch<T> {
    /// Reports the value and its predecessor, if the value has changed since the last report. Of several concurrent
    /// callers one reports, and the others return at once.
    #[inline]
    pub(crate) fn look(&self, tell: impl FnOnce(Option<&T>, &T)) {
        if self.seen.load(Ordering::Acquire) != self.version() {
            self.look_closely(tell);
        }
    }

    #[cold]
    fn look_closely(&self, tell: impl FnOnce(Option<&T>, &T)) {
        // Otherwise another thread looks, and the next caller after it looks again.
        let Some(mut told) = self.told.try_lock() else { return };
        let version = self.version();
        let scope = self.scope.upgrade().map(|inner| Scope { inner });
        if let Some(value) = scope.and_then(|scope| scope.get::<T>())
            && !told.as_ref().is_some_and(|told| Arc::ptr_eq(told, &value))
        {
            tell(told.as_deref(), &value);
            *told = Some(value);
        }
        self.seen.store(version, Ordering::Release);
    }

    fn version(&self) -> u64 {
        self.versions.iter().fold(0, |sum, version| sum.wrapping_add(version.load(Ordering::Acquire)))
    }
}
