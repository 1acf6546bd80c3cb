//! Hearing of changes of a scope's value, at the cost of an atomic read for each scope that could hold it.

use std::sync::{
    Arc, Mutex, TryLockError, Weak,
    atomic::{AtomicU64, Ordering},
};

use super::{Inner, Scope};

/// Tells of the value of type `T` in the nearest scope that holds one, and of every other one that takes its place.
///
/// It keeps no scope alive: what was told last is all there will be when the scope is gone.
pub(crate) struct Watch<T> {
    scope: Weak<Inner>,
    /// Of the scope and its parents.
    versions: Box<[Arc<AtomicU64>]>,
    /// Their sum when they were last looked at, which grows with each of them.
    seen: AtomicU64,
    /// What was told last. Held, so that nothing else can be made at its address.
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
    /// Tells of the value, and of the one before it, if it is another one than last time. Of several callers at once one is told, and
    /// the others go on.
    #[inline]
    pub(crate) fn look(&self, tell: impl FnOnce(Option<&T>, &T)) {
        if self.seen.load(Ordering::Acquire) != self.version() {
            self.look_closely(tell);
        }
    }

    #[cold]
    fn look_closely(&self, tell: impl FnOnce(Option<&T>, &T)) {
        let mut told = match self.told.try_lock() {
            Ok(told) => told,
            Err(TryLockError::Poisoned(told)) => told.into_inner(),
            // Whoever comes after them looks again.
            Err(TryLockError::WouldBlock) => return,
        };
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
