//! The typed values of one scope.

use std::{
    any::{Any, TypeId, type_name},
    fmt,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// The values of a scope, by type. There are few, so a list is the fastest map. No user code runs under the lock: a
/// replaced value is dropped after it is released.
#[derive(Default)]
pub(super) struct State {
    values: RwLock<Vec<Value>>,
    /// The number of changes since the first watch.
    version: OnceLock<Arc<AtomicU64>>,
}

#[derive(Clone)]
struct Value {
    type_id: TypeId,
    type_name: &'static str,
    // Whether it was stored with `with`, and not by default or by a disposable.
    explicit: bool,
    value: Arc<dyn Any + Send + Sync>,
}

impl State {
    pub(super) fn get<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        let values = self.values.read().unwrap_or_else(PoisonError::into_inner);
        find(&values)
    }

    pub(super) fn put<T: Send + Sync + 'static>(&self, value: Arc<T>) {
        self.set(Value::new(value, true));
    }

    /// Stores a value that a disposable set up, unless there is an explicit one.
    pub(super) fn provide<T: Send + Sync + 'static>(&self, value: Arc<T>) {
        self.set(Value::new(value, false));
    }

    fn set(&self, value: Value) {
        let replaced = self.write(|values| match values.iter_mut().find(|held| held.type_id == value.type_id) {
            Some(held) if held.explicit && !value.explicit => Some(value),
            Some(held) => Some(std::mem::replace(held, value)),
            None => {
                values.push(value);
                None
            }
        });
        drop(replaced);
    }

    /// Returns the value that is held afterwards: this one, or the one that was there before.
    pub(super) fn put_if_absent<T: Send + Sync + 'static>(&self, value: Arc<T>) -> Arc<T> {
        self.write(|values| {
            find(values).unwrap_or_else(|| {
                values.push(Value::new(Arc::clone(&value), false));
                Arc::clone(&value)
            })
        })
    }

    /// Copies explicit values into `other`, except types that it holds already.
    pub(super) fn lend_to(&self, other: &Self) {
        let lent: Vec<_> = {
            let values = self.values.read().unwrap_or_else(PoisonError::into_inner);
            values.iter().filter(|value| value.explicit).cloned().collect()
        };
        other.write(|values| {
            for value in lent {
                if values.iter().all(|held| held.type_id != value.type_id) {
                    values.push(value);
                }
            }
        });
    }

    /// Replaces `old` by `new`. Returns false if another value has replaced it already.
    pub(super) fn replace<T: Send + Sync + 'static>(&self, old: &Arc<T>, new: Arc<T>) -> bool {
        self.write(|values| {
            let held = values.iter_mut().find(|held| {
                std::ptr::addr_eq(Arc::as_ptr(&held.value), Arc::as_ptr(old)) && held.type_id == TypeId::of::<T>()
            });
            match held {
                Some(held) => {
                    // The caller holds `old` too, so nothing is dropped here.
                    held.value = new;
                    true
                }
                None => false,
            }
        })
    }

    fn write<R>(&self, f: impl FnOnce(&mut Vec<Value>) -> R) -> R {
        let mut values = self.values.write().unwrap_or_else(PoisonError::into_inner);
        let written = f(&mut values);
        // Under the lock, so that a reader of the new version waits for the values that belong to it.
        if let Some(version) = self.version.get() {
            version.fetch_add(1, Ordering::Release);
        }
        written
    }

    /// A number that changes with the values. Read it before the values that it is the version of.
    pub(super) fn version(&self) -> Arc<AtomicU64> {
        Arc::clone(self.version.get_or_init(Arc::default))
    }
}

fn find<T: Send + Sync + 'static>(values: &[Value]) -> Option<Arc<T>> {
    let held = values.iter().find(|held| held.type_id == TypeId::of::<T>())?;
    Arc::clone(&held.value).downcast().ok()
}

impl Value {
    fn new<T: Send + Sync + 'static>(value: Arc<T>, explicit: bool) -> Self {
        Self { type_id: TypeId::of::<T>(), type_name: type_name::<T>(), explicit, value }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.values.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_list().entries(values.iter().map(|held| held.type_name)).finish()
    }
}
