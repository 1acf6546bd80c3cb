//! Spreads what all threads write over several cache lines. A write to a line that another thread has written last
//! waits for that line, which takes longer than anything else in a call.

use std::{
    cell::Cell,
    fmt,
    ops::Deref,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// The maximum number of stripes. More would rarely be faster, and each takes memory. (And loom more time.)
pub(crate) const MOST: usize = if cfg!(all(test, ziggurat_loom)) { 1 } else { 8 };

thread_local! {
    static HERE: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// A value on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Apart<T>(pub(crate) T);

/// Returns the number of the stripe of this thread. There are as many as processors, rounded up to a power of two, and
/// at most [`MOST`]. Threads take them in turn, so several threads may have the same.
#[inline]
pub(crate) fn here() -> usize {
    let here = HERE.try_with(Cell::get).unwrap_or(0);
    if here == usize::MAX { choose() } else { here }
}

#[cold]
fn choose() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    static STRIPES: OnceLock<usize> = OnceLock::new();
    let stripes = *STRIPES.get_or_init(|| {
        let processors = thread::available_parallelism().map_or(MOST, usize::from);
        processors.next_power_of_two().min(MOST)
    });
    let chosen = NEXT.fetch_add(1, Ordering::Relaxed) % stripes;
    let _torn_down = HERE.try_with(|here| here.set(chosen));
    chosen
}

/// The owner of a value that many calls hold at the same time. A clone is the same owner.
///
/// A call holds a [`Loan`], whose reference count is that of a stripe. So calls of different threads write nothing in
/// common.
pub(crate) struct Lender<T> {
    home: Arc<Home<T>>,
}

struct Home<T> {
    value: Arc<T>,
    /// Each is made by the first call of a thread with that stripe.
    stripes: [OnceLock<Loan<T>>; MOST],
}

/// A value that is held by a call. It outlives the [`Lender`].
pub(crate) struct Loan<T> {
    stripe: Arc<Apart<Arc<T>>>,
}

impl<T> Lender<T> {
    pub(crate) fn new(value: T) -> Self {
        Self::of(Arc::new(value))
    }

    fn of(value: Arc<T>) -> Self {
        Self { home: Arc::new(Home { value, stripes: Default::default() }) }
    }

    /// Returns the value for a call.
    #[inline]
    pub(crate) fn lend(&self) -> Loan<T> {
        let Home { value, stripes } = &*self.home;
        stripes[here() % MOST].get_or_init(|| Loan { stripe: Arc::new(Apart(Arc::clone(value))) }).clone()
    }
}

impl<T> Loan<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { stripe: Arc::new(Apart(Arc::new(value))) }
    }

    /// Returns a lender of the same value.
    pub(crate) fn lender(&self) -> Lender<T> {
        Lender::of(Arc::clone(&self.stripe.0))
    }
}

impl<T> Deref for Lender<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.home.value
    }
}

impl<T> Deref for Loan<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.stripe.0
    }
}

impl<T: fmt::Debug> fmt::Debug for Lender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: fmt::Debug> fmt::Debug for Loan<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T> Clone for Lender<T> {
    #[inline]
    fn clone(&self) -> Self {
        Self { home: Arc::clone(&self.home) }
    }
}

impl<T> Clone for Loan<T> {
    #[inline]
    fn clone(&self) -> Self {
        Self { stripe: Arc::clone(&self.stripe) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_its_stripe_and_others_have_theirs() {
        let stripes: Vec<_> = (0..2 * MOST)
            .map(|_| {
                thread::spawn(|| {
                    assert_eq!(here(), here());
                    here()
                })
            })
            .map(|thread| thread.join().unwrap())
            .collect();
        assert!(stripes.iter().all(|stripe| *stripe < MOST));
        let processors = thread::available_parallelism().unwrap().get();
        assert!(processors == 1 || stripes.iter().any(|stripe| *stripe != stripes[0]));
    }

    /// The value is dropped with the last of its owners and calls, whichever that is.
    #[test]
    fn the_value_lives_as_long_as_an_owner_or_a_call() {
        for owner_first in [true, false] {
            let value = Arc::new(7);
            let lender = Lender::new(Arc::clone(&value));
            let loans: Vec<_> = (0..2 * MOST)
                .map(|_| {
                    let lender = lender.clone();
                    thread::spawn(move || lender.lend()).join().unwrap()
                })
                .chain([lender.lend()])
                .collect();
            assert!(loans.iter().all(|loan| **loan == value && *lender == value));
            if owner_first {
                drop(lender);
                assert_eq!(Arc::strong_count(&value), 2);
                drop(loans);
            } else {
                drop(loans);
                assert_eq!(Arc::strong_count(&value), 2);
                drop(lender);
            }
            assert_eq!(Arc::strong_count(&value), 1);
        }
    }
}
