//! Which instances of a layer hold state that a new one would not have.
//!
//! A layer that makes one instance of a stack for each key drops those that are not used. While it makes one, the
//! layers of the stack say how to find out whether their state still matters. That needs no trait that every layer of a
//! stack would have to implement, and works through types that erase a layer.

use std::{fmt, sync::Arc};

use crate::ambient::{self, slot};

/// Returns whether the state of a layer still matters.
#[derive(Clone)]
pub(crate) struct Check(Arc<dyn Fn() -> bool + Send + Sync>);

impl Check {
    pub(crate) fn still_matters(&self) -> bool {
        (self.0)()
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Check")
    }
}

/// The checks of the instance that is being made on this thread, if one is.
#[derive(Debug, Clone, Default)]
struct Checks(Option<Vec<Check>>);

slot!(Checks, Checks(None));

/// Keeps the instance that is being made for as long as `still_matters` returns true. A layer calls it while it makes
/// its service. Outside a [`PerKeyLayer`](crate::per_key::PerKeyLayer) it does nothing.
///
/// The function must be fast and must not block: it runs under a lock, for a few instances whenever one of them has to
/// make room. It must not use a service or a handle of the `PerKeyLayer`, which would wait for that lock forever.
///
/// ```
/// use std::sync::{Arc, atomic::{AtomicUsize, Ordering::Relaxed}};
/// use tower::Layer;
/// use ziggurat::per_key::keep_while;
///
/// #[derive(Clone, Default)]
/// struct SessionsLayer {
///     open: Arc<AtomicUsize>,
/// }
///
/// impl<S> Layer<S> for SessionsLayer {
///     type Service = S;
///
///     fn layer(&self, inner: S) -> S {
///         let open = self.open.clone();
///         keep_while(move || open.load(Relaxed) > 0);
///         inner
///     }
/// }
/// ```
pub fn keep_while(still_matters: impl Fn() -> bool + Send + Sync + 'static) {
    ambient::change(|checks: &mut Checks| {
        if let Some(checks) = &mut checks.0 {
            checks.push(Check(Arc::new(still_matters)));
        }
    });
}

/// Returns what `make` returns, and the checks of the layers that it has applied.
pub(crate) fn collect<T>(make: impl FnOnce() -> T) -> (T, Vec<Check>) {
    let mut checks = Checks(Some(Vec::new()));
    let made = {
        let _entered = ambient::enter(&mut checks);
        make()
    };
    (made, checks.0.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_belongs_to_the_innermost_instance_that_is_being_made() {
        keep_while(|| unreachable!("no instance is being made"));
        let (inner, outer) = collect(|| {
            keep_while(|| true);
            let ((), inner) = collect(|| keep_while(|| false));
            keep_while(|| true);
            inner
        });
        assert_eq!(inner.iter().map(Check::still_matters).collect::<Vec<_>>(), [false]);
        assert_eq!(outer.iter().map(Check::still_matters).collect::<Vec<_>>(), [true, true]);
    }
}
