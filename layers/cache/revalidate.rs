//! Whether a stale response is given at once while a fresh one is fetched behind it.

use std::future::Future;

use tokio::runtime::Handle;

use crate::scope::Scope;

/// Whether, and how, a cache fetches a fresh response behind a stale one: [`OnDemand`] or [`InBackground`].
///
/// `F` is the future that fetches.
#[diagnostic::on_unimplemented(
    message = "with `.stale_while_revalidate(..)` a response is fetched on a task of its own, and this call cannot run there",
    note = "the inner service, its future, the request, the response and the cache's key and functions have to be `Send + 'static`"
)]
pub trait Revalidate<F> {
    /// Whether a fetch can run, here and now, without anybody waiting for it.
    fn is_possible(&self) -> bool;

    /// Sees to it that `refresh` runs, whatever becomes of the request that it started with.
    fn run(&self, refresh: F);
}

/// A response is fetched when somebody waits for it. The default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OnDemand;

impl<F> Revalidate<F> for OnDemand {
    fn is_possible(&self) -> bool {
        false
    }

    fn run(&self, _: F) {}
}

/// A response is fetched on a task of its own while the stale one is given: the type of a layer with
/// [`stale_while_revalidate`](super::CacheLayer::stale_while_revalidate).
///
/// Outside of a tokio runtime there is nowhere to fetch: there, who finds a stale response waits for a fresh one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InBackground;

impl<F> Revalidate<F> for InBackground
where
    F: Future + Send + 'static,
{
    fn is_possible(&self) -> bool {
        Handle::try_current().is_ok()
    }

    fn run(&self, refresh: F) {
        let refresh = async move { drop(refresh.await) };
        match Scope::current() {
            // With the request's values, for the ttl and the call may need them, but neither with its deadline nor with
            // its end.
            Some(scope) => scope.spawn_behind("refresh", refresh),
            None => drop(tokio::spawn(refresh)),
        }
    }
}
