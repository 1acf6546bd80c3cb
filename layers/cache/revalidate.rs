//! Fetching a fresh response in the background while a stale one is served.

use std::future::Future;

use tokio::runtime::Handle;

use crate::scope::Scope;

/// Decides whether and how a cache fetches a fresh response in the background: [`OnDemand`] or [`InBackground`].
///
/// `F` is the future that fetches.
#[diagnostic::on_unimplemented(
    message = "`.stale_while_revalidate(..)` fetches responses on a separate task, where this call cannot run",
    note = "the inner service, its future, the request, the response and the cache's key and functions must be `Send + 'static`"
)]
#[doc(hidden)] // implemented by `OnDemand` and `InBackground` alone
pub trait Revalidate<F> {
    /// Returns whether a background fetch can run here and now.
    fn is_possible(&self) -> bool;

    /// Runs `refresh` to its end, whatever becomes of the request that started it.
    fn run(&self, refresh: F);
}

/// Fetches a response only when a request waits for it. This is the default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OnDemand;

impl<F> Revalidate<F> for OnDemand {
    fn is_possible(&self) -> bool {
        false
    }

    fn run(&self, _: F) {}
}

/// Fetches a response on a separate task while a stale one is served.
///
/// The type of a layer with [`stale_while_revalidate`](super::CacheLayer::stale_while_revalidate). Outside a tokio
/// runtime there is no task to fetch on: a request that finds a stale response there waits for a fresh one.
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
            // Keeps the request's values, which the ttl and the call may need, but neither its deadline nor its
            // cancellation.
            Some(scope) => scope.spawn_behind("refresh", refresh),
            None => drop(tokio::spawn(refresh)),
        }
    }
}
