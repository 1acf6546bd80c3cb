//! What a cache is told by its user: how long, how heavy, what counts as a success, and whose a key is.

use std::{any::type_name, fmt, hash::Hash, sync::Arc, time::Duration};

use super::{
    flight::{Lead, Waiters},
    handle::{Cache, Landed, count},
    store::{Entry, Hashed, New},
};
use crate::{
    Class, Classify, Event, Reject, Rejection, Scope, Site,
    clock::{self, Instant},
};

/// How long a response is fresh: a [`Duration`], or a function of key and response that returns one, or an `Option` of
/// one, where `None` means that this response is not stored.
///
/// The function runs when the response has arrived, where the scope of the request that fetched it is current.
///
/// Whatever comes out, [`Duration::ZERO`] is never stored, and [`Duration::MAX`] never expires.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not tell how long a response of type `{R}` under a key of type `{K}` is fresh",
    note = "give a `Duration`, or a closure that names its arguments' types: `|key: &{K}, response: &{R}| ..`, returning `Duration` or `Option<Duration>`"
)]
pub trait Ttl<K, R> {
    /// How long this response is fresh, from now on; `None` if it is not to be stored.
    fn ttl(&self, key: &K, response: &R) -> Option<Duration>;
}

impl<K, R> Ttl<K, R> for Duration {
    fn ttl(&self, _: &K, _: &R) -> Option<Duration> {
        Some(*self)
    }
}

#[diagnostic::do_not_recommend]
impl<K, R, F, O> Ttl<K, R> for F
where
    F: Fn(&K, &R) -> O,
    O: Into<Option<Duration>>,
{
    fn ttl(&self, key: &K, response: &R) -> Option<Duration> {
        self(key, response).into()
    }
}

/// What a cache can keep: what can be copied, because everybody who asks for it gets a copy.
///
/// For an [`http::Response`] that means a body such as `Full<Bytes>`. One that is streamed has to be collected inside
/// of the cache.
#[diagnostic::on_unimplemented(
    message = "a cache cannot keep a response of type `{Self}`",
    label = "not `Clone`, so it can be given to one caller only",
    note = "a body that is streamed is to be collected inside of the cache, into an `http_body_util::Full<Bytes>` for example"
)]
pub trait Storable: Clone {}

#[diagnostic::do_not_recommend]
impl<R: Clone> Storable for R {}

/// A key that says whose it is: the value of type `T` in the current scope, and what `key` makes of it and the request.
///
/// The value is part of the key, so what one tenant was answered is never another's answer, whatever `key` returns. If
/// the scope holds no such value, or there is no scope, the request has no key and goes past the cache.
///
/// It has to stand inside a layer that opens the scope, such as the [`ContextLayer`](crate::context::ContextLayer). If
/// the value holds more than an identity, put the identity into the scope as a value of its own.
///
/// ```
/// use std::{sync::{Arc, atomic::{AtomicUsize, Ordering}}, time::Duration};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
/// use ziggurat::{Error, Scope, cache::{CacheLayer, scoped_key}};
///
/// #[derive(Debug, PartialEq, Eq, Hash)]
/// struct Tenant(&'static str);
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let service = ServiceBuilder::new()
///     .layer(CacheLayer::new(
///         1_000,
///         Duration::from_secs(60),
///         scoped_key(|_: &Tenant, path: &&'static str| Some(*path)),
///     ))
///     .map_err(Error::Service)
///     .service(service_fn(|path| async move {
///         let tenant = Scope::current().unwrap().require::<Tenant>().unwrap();
///         Ok::<_, std::io::Error>(format!("{path} of {}", tenant.0))
///     }));
///
/// for name in ["acme", "globex"] {
///     let scope = Scope::root("request").with(Tenant(name));
///     let answer = scope.within(service.clone().oneshot("/bill")).await.unwrap();
///     assert_eq!(answer, format!("/bill of {name}"));
/// }
/// # }
/// ```
pub fn scoped_key<T, Req, K, F>(key: F) -> impl Fn(&Req) -> Option<(Arc<T>, K)> + Clone
where
    T: Hash + Eq + Send + Sync + 'static,
    F: Fn(&T, &Req) -> Option<K> + Clone,
{
    move |request| {
        let whose = Scope::current()?.get::<T>()?;
        let key = key(&whose, request)?;
        Some((whose, key))
    }
}

pub(super) type Weigh<K, R> = Arc<dyn Fn(&K, &R) -> u64 + Send + Sync>;

/// What a call needs to know when it comes back.
pub(super) struct Policy<K, R, T, C> {
    pub(super) cache: Cache<K, R>,
    pub(super) ttl: T,
    pub(super) classify: C,
    pub(super) weigh: Option<Weigh<K, R>>,
    /// For how long a stale response stands in for a failure.
    pub(super) stale_if_error: Duration,
    /// For how long a stale response is given while a fresh one is fetched.
    pub(super) stale_while_revalidate: Duration,
    pub(super) site: Site,
}

impl<K, R, T, C> Policy<K, R, T, C> {
    pub(super) fn classify<C2>(self, classify: C2) -> Policy<K, R, T, C2> {
        let Self { cache, ttl, classify: _, weigh, stale_if_error, stale_while_revalidate, site } = self;
        Policy { cache, ttl, classify, weigh, stale_if_error, stale_while_revalidate, site }
    }

    pub(super) fn note_stale(&self) {
        count(&self.cache.state.counts.stale);
        self.site.tell(Event::Stale);
    }
}

impl<K, R, T, C> Policy<K, R, T, C>
where
    K: Hash + Eq,
    R: Clone,
    T: Ttl<K, R>,
{
    /// Stores what the leader brought, or finds something stale in its place, and tells those who wait.
    ///
    /// Whatever of the user's runs before the flight has landed may panic: then `lead` is dropped, and goes to the next
    /// who waits. Afterwards the next one finds that there is no flight, and starts one.
    pub(super) fn land<E>(&self, lead: Lead<K, Landed<R>>, outcome: Result<R, E>, is_awaited: bool) -> Result<R, E>
    where
        E: Reject<R> + fmt::Display,
        C: Classify<R, E>,
    {
        let class = Class::of(&outcome, &self.classify);
        let is_rejected = E::rejection(&outcome).is_some();
        let (outcome, waiters) = match outcome {
            Ok(response) if class == Class::Success && !is_rejected => {
                let waiters = self.store(lead, &response);
                (Ok(response), waiters)
            }
            outcome => {
                // A rejection that the classifier calls a success is to be the answer.
                let is_lost = class.is_failure() || (is_rejected && class != Class::Success);
                // Looked up now and not before the call, so that nothing stands in that was invalidated meanwhile.
                let (found, waiters) = lead.land(|key| self.cache.state.store.peek(&key));
                match found.flatten().filter(|entry| is_lost && self.stands_in(entry)) {
                    Some(entry) => {
                        if is_awaited {
                            self.note_stale();
                        }
                        (Ok(entry.response.clone()), waiters)
                    }
                    None if class == Class::Ignored && outcome.is_ok() && E::rejection(&outcome).is_none() => {
                        waiters.release();
                        return outcome;
                    }
                    None => (outcome, waiters),
                }
            }
        };
        waiters.tell(|| match &outcome {
            Ok(response) => Landed::Answered(response.clone()),
            Err(_) => Landed::Rejected(Rejection::shared(&self.site, &outcome, class)),
        });
        outcome
    }

    fn store(&self, lead: Lead<K, Landed<R>>, response: &R) -> Waiters<K, Landed<R>> {
        let state = &self.cache.state;
        let new = self.new_entry(lead.key(), response, clock::now());
        let (change, waiters) = lead.land(|key| match new {
            Some(new) => state.store.insert(key, new),
            // The newest answer is not to be kept: then neither is an older one.
            None => state.store.remove(key.hash, &key.key),
        });
        if let Some(change) = change {
            state.note(&change);
            if change.kept {
                self.site.tell(Event::Stored);
            }
        }
        waiters
    }

    fn new_entry(&self, key: &Hashed<K>, response: &R, now: Instant) -> Option<New<R>> {
        let ttl = self.ttl.ttl(&key.key, response).filter(|ttl| !ttl.is_zero())?;
        let weight = self.weigh.as_ref().map_or(1, |weigh| weigh(&key.key, response));
        let stale = self.stale_if_error.max(self.stale_while_revalidate);
        Some(New { response: response.clone(), now, ttl, stale, weight })
    }

    /// Whether this entry may be given in the place of a failure.
    fn stands_in(&self, entry: &Entry<K, R>) -> bool {
        entry.stale_for(clock::now).unwrap_or_default() < self.stale_if_error
    }
}

impl<K, R, T: Clone, C: Clone> Clone for Policy<K, R, T, C> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            ttl: self.ttl.clone(),
            classify: self.classify.clone(),
            weigh: self.weigh.clone(),
            site: self.site.clone(),
            ..*self
        }
    }
}

impl<K, R, T, C> fmt::Debug for Policy<K, R, T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("cache", &self.cache)
            .field("ttl", &type_name::<T>())
            .field("classify", &type_name::<C>())
            .field("weighted", &self.weigh.is_some())
            .field("stale_if_error", &self.stale_if_error)
            .field("stale_while_revalidate", &self.stale_while_revalidate)
            .field("site", &self.site)
            .finish()
    }
}
