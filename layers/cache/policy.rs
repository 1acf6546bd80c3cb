//! The user's rules for a cache: ttl, weight, which outcomes are successes, and whose key it is.

use std::{fmt, hash::Hash, sync::Arc, time::Duration};

use super::{
    Stale,
    flight::Lead,
    handle::{CacheHandle, count},
    share::{Landed, Outcomes, ShareErrors},
    store::{Change, Entry, Hashed, New},
};
use crate::{
    ambient::deadline,
    caught::undisturbed,
    clock::{self, Instant},
    debug::impl_debug,
    outcome::{Class, Classify, Reason, Reject, Rejection, judged_as, reason_of},
    scope::Scope,
    telemetry::{LayerEvent, LayerInfo},
};

/// The pause after a failed background fetch for a key, unless the service asks for a longer one.
pub(super) const REFRESH_PAUSE: Duration = Duration::from_secs(1);

/// Decides how long a response stays fresh: a [`Duration`], or a function of the key and the response.
///
/// The function returns a `Duration` or an `Option<Duration>`, where `None` means that the response is not stored. It
/// runs when the response has arrived, in the scope of the request that fetched it.
///
/// In all cases, a response with [`Duration::ZERO`] is never stored, and with [`Duration::MAX`] it never expires.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot decide how long a response of type `{R}` under a key of type `{K}` is fresh",
    note = "give a `Duration`, or a closure that names its arguments' types: `|key: &{K}, response: &{R}| ..`, returning `Duration` or `Option<Duration>`"
)]
pub trait Ttl<K, R> {
    /// Returns how long this response stays fresh from now on. `None` if it must not be stored.
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

// Never applies: see `Classify`.
#[doc(hidden)]
#[diagnostic::do_not_recommend]
impl<K, R, F> Ttl<K, R> for F
where
    [R]: Sized,
{
    fn ttl(&self, _: &K, _: &R) -> Option<Duration> {
        None
    }
}

/// Makes the key of a request: a function of the request that returns an `Option` of the key.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not make a cache key of type `{K}` from a request of type `{Req}`",
    note = "give a closure that names its argument's type: `|req: &{Req}| ..`, returning `Option<{K}>`",
    note = "`http_key` needs an `http::Request`"
)]
#[doc(hidden)] // `Fn(&Req) -> Option<K>`, with a message of its own in compile errors
pub trait Key<Req, K> {
    /// Returns the key of this request, or `None` if the request bypasses the cache.
    fn key(&self, request: &Req) -> Option<K>;
}

#[diagnostic::do_not_recommend]
impl<Req, K, F> Key<Req, K> for F
where
    F: Fn(&Req) -> Option<K>,
{
    fn key(&self, request: &Req) -> Option<K> {
        self(request)
    }
}

// Never applies: see `Classify`.
#[doc(hidden)]
#[diagnostic::do_not_recommend]
impl<Req, K, F> Key<Req, K> for F
where
    [Req]: Sized,
{
    fn key(&self, _: &Req) -> Option<K> {
        None
    }
}

/// A response that a cache can store. It is `Clone`, because every caller gets a copy.
///
/// An [`http::Response`] needs a body such as `Full<Bytes>`. A streamed body must be collected inside the cache.
#[diagnostic::on_unimplemented(
    message = "a cache cannot store a response of type `{Self}`",
    label = "not `Clone`, so only one caller could get it",
    note = "a streamed body must be collected inside the cache, for example into an `http_body_util::Full<Bytes>`"
)]
#[doc(hidden)] // `Clone`, with a message of its own in compile errors
pub trait Storable: Clone {}

#[diagnostic::do_not_recommend]
impl<R: Clone> Storable for R {}

/// Adds the owner of a response to its key: the value of type `T` in the current scope.
///
/// The key consists of the value and of the result of `key`. One tenant therefore never gets the response of another,
/// whatever `key` returns. If there is no scope, or it has no such value, the request has no key and bypasses the
/// cache.
///
/// The cache must be inside a layer that opens the scope, such as the [`ContextLayer`](crate::context::ContextLayer).
/// If the value holds more than an identity, put the identity into the scope as a separate value.
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
pub(super) type Mark<R> = Arc<dyn Fn(&mut R, Stale) + Send + Sync>;

/// An entry of the store.
type Held<K, R> = Arc<Entry<K, Landed<R>>>;

/// All that a call needs when it completes.
pub(super) struct Policy<K, R, T, O> {
    pub(super) cache: CacheHandle<K, R>,
    pub(super) ttl: T,
    /// How long a failure is served from memory.
    pub(super) failure_ttl: Duration,
    pub(super) outcomes: O,
    pub(super) weigh: Option<Weigh<K, R>>,
    pub(super) mark_stale: Option<Mark<R>>,
    /// How long a stale response can replace a failure.
    pub(super) stale_if_error: Duration,
    /// How long a stale response is served while a fresh one is fetched.
    pub(super) stale_while_revalidate: Duration,
    pub(super) info: LayerInfo,
}

impl<K, R, T, O> Policy<K, R, T, O> {
    pub(super) fn outcomes<O2>(self, change: impl FnOnce(O) -> O2) -> Policy<K, R, T, O2> {
        let Self { cache, ttl, failure_ttl, outcomes, weigh, mark_stale, .. } = self;
        let Self { stale_if_error, stale_while_revalidate, info, .. } = self;
        let outcomes = change(outcomes);
        Policy { cache, ttl, failure_ttl, outcomes, weigh, mark_stale, stale_if_error, stale_while_revalidate, info }
    }

    /// Copies a response that expired `expired_for` ago, and marks the copy.
    pub(super) fn stale(&self, response: &R, expired_for: Duration) -> R
    where
        R: Clone,
    {
        let mut response = response.clone();
        if let Some(mark) = &self.mark_stale {
            mark(&mut response, Stale { expired_for });
        }
        response
    }

    pub(super) fn note_stale(&self, reason: &'static str) {
        count(&self.cache.state.counts.stale);
        self.info.emit(LayerEvent::Stale { reason });
    }
}

impl<K, R, T, C, H> Policy<K, R, T, Outcomes<C, H>>
where
    K: Hash + Eq,
    R: Clone,
    T: Ttl<K, R>,
{
    /// Stores the leader's outcome, or finds a stale response to replace it, and notifies the waiters.
    ///
    /// User code that runs before the flight has landed may panic. Then `lead` is dropped and passes to another waiter.
    /// After the landing, there is no flight, and the next request starts one.
    pub(super) fn land<E>(&self, lead: Lead<K, Landed<R>>, outcome: Result<R, E>, is_awaited: bool) -> Result<R, E>
    where
        E: Reject<R> + fmt::Display,
        C: Classify<R, E>,
        H: ShareErrors<E>,
    {
        let class = Class::of(&outcome, &self.outcomes.classify);
        let is_rejected = judged_as(&outcome).is_some();
        match outcome {
            Ok(response) if class == Class::Success && !is_rejected => {
                self.store(lead, &response);
                Ok(response)
            }
            outcome => self.fail(lead, outcome, class, is_awaited),
        }
    }

    fn store(&self, lead: Lead<K, Landed<R>>, response: &R) {
        let store = &self.cache.state.store;
        let new = self.new_entry(lead.key(), response, clock::now());
        let (change, waiters) = lead.land(|key| match new {
            Some(new) => store.insert(key, new),
            // If the newest response must not be stored, an older one must not stay either.
            None => store.remove(key.hash, &key.key),
        });
        if let Some(change) = change {
            self.note(&change);
        }
        waiters.tell(|| Landed::Answered(response.clone()));
    }

    /// Handles an outcome that is not a success.
    ///
    /// The leader gets the outcome, or a stale response instead. So do the waiters, unless the outcome concerns the
    /// leader alone.
    fn fail<E>(&self, lead: Lead<K, Landed<R>>, outcome: Result<R, E>, class: Class, is_awaited: bool) -> Result<R, E>
    where
        E: Reject<R> + fmt::Display,
        C: Classify<R, E>,
        H: ShareErrors<E>,
    {
        let (store, now) = (&self.cache.state.store, clock::now());
        let rejection = judged_as(&outcome);
        let is_rejected = rejection.is_some();
        let is_late = rejection.is_some_and(|rejection| match rejection.reason() {
            Reason::DeadlineExceeded { .. } => true,
            _ => rejection.is_timed_out() && deadline::has_passed(),
        });
        // The outcome concerns only this caller: its own response, or an upload that it stopped.
        let is_own = match rejection.map(Rejection::reason) {
            Some(reason) => matches!(reason, Reason::UploadStalled { .. } | Reason::UploadFailed { .. }),
            None => class == Class::Ignored && outcome.is_ok(),
        };
        let stand_in = |found: Option<Held<K, R>>| {
            let stale = self.stand_in(&*found?, now)?;
            if is_awaited {
                count(&self.cache.state.counts.stale_on_error);
                self.note_stale("error");
            }
            Some(stale)
        };
        let key = Arc::clone(lead.key());
        // A call that its caller's own deadline ended says nothing to waiters with more time.
        let lead = match is_late {
            true => match lead.pass_on() {
                Some(lead) => lead,
                None => return stand_in(store.peek(&key)).map_or(outcome, Ok),
            },
            false => lead,
        };
        let landed = || self.outcomes.landed(&self.info, &outcome, class);
        let is_kept = class.is_failure() && !is_rejected && !self.failure_ttl.is_zero();
        let kept = is_kept.then(landed);
        let new =
            kept.clone().map(|response| New { response, now, ttl: self.failure_ttl, stale: Duration::ZERO, weight: 1 });
        // Looked up now and not before the call, so that an entry that was invalidated in the meantime is not used.
        let (looked_up, waiters) = lead.land(|key| {
            let found = store.peek(&key);
            let is_of_use = found.as_ref().is_some_and(|found| self.is_of_use(found, now));
            (found, new.filter(|_| !is_of_use).map(|new| store.insert(key, new)))
        });
        let (found, change) = looked_up.unwrap_or_default();
        if let Some(change) = change {
            self.note(&change);
        }
        if !is_awaited {
            self.note_failed_refresh(found.as_deref(), &outcome, class, now);
        }
        // A rejection that the classifier calls a success is passed on.
        let is_lost = class.is_failure() || (is_rejected && class != Class::Success);
        if let Some(stale) = stand_in(found.filter(|_| is_lost)) {
            waiters.tell(|| Landed::Answered(stale.clone()));
            // A panic of its drop must not cost the caller the stale response.
            undisturbed(|| drop(outcome));
            return Ok(stale);
        }
        if is_own {
            waiters.release();
        } else {
            waiters.tell(|| kept.unwrap_or_else(landed));
        }
        outcome
    }

    /// Reports a failed background fetch, and pauses further ones for this entry.
    fn note_failed_refresh<E>(
        &self,
        found: Option<&Entry<K, Landed<R>>>,
        outcome: &Result<R, E>,
        class: Class,
        now: Instant,
    ) where
        E: Reject<R> + fmt::Display,
    {
        let asked = match class {
            Class::Failure { retry_after, .. } => retry_after,
            _ => None,
        };
        if let Some(found) = found {
            found.pause(now.checked_add(asked.unwrap_or_default().max(REFRESH_PAUSE)));
        }
        let reason = reason_of(outcome);
        match outcome {
            Err(error) => self.info.emit(LayerEvent::RefreshFailed { reason, error: format_args!("{error}") }),
            Ok(_) => {
                let error = format_args!("the response may not be stored");
                self.info.emit(LayerEvent::RefreshFailed { reason, error });
            }
        }
    }

    fn note(&self, change: &Change<K, Landed<R>>) {
        self.cache.state.note(change);
        if change.kept {
            self.info.emit(LayerEvent::Stored);
        }
    }

    fn new_entry(&self, key: &Hashed<K>, response: &R, now: Instant) -> Option<New<Landed<R>>> {
        let ttl = self.ttl.ttl(&key.key, response).filter(|ttl| !ttl.is_zero())?;
        let weight = self.weigh.as_ref().map_or(1, |weigh| weigh(&key.key, response));
        let stale = self.stale_if_error.max(self.stale_while_revalidate);
        Some(New { response: Landed::Answered(response.clone()), now, ttl, stale, weight })
    }

    /// Returns a copy of a response that may replace a failure.
    fn stand_in(&self, entry: &Entry<K, Landed<R>>, now: Instant) -> Option<R> {
        let stale_for = entry.stale_for(|| now).unwrap_or_default();
        let response = entry.response.answer().filter(|_| stale_for < self.stale_if_error)?;
        Some(self.stale(response, stale_for))
    }

    /// Returns whether this response can still be served, fresh or stale.
    fn is_of_use(&self, entry: &Entry<K, Landed<R>>, now: Instant) -> bool {
        let stale_for = entry.stale_for(|| now);
        let most = self.stale_if_error.max(self.stale_while_revalidate);
        entry.response.answer().is_some() && stale_for.is_none_or(|stale_for| stale_for < most)
    }
}

impl<K, R, T: Clone, O: Clone> Clone for Policy<K, R, T, O> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            ttl: self.ttl.clone(),
            outcomes: self.outcomes.clone(),
            weigh: self.weigh.clone(),
            mark_stale: self.mark_stale.clone(),
            info: self.info.clone(),
            ..*self
        }
    }
}

impl_debug!(Policy<K, R, T, O> {
    cache,
    ttl: T,
    failure_ttl,
    outcomes: O,
    weighted = |this| this.weigh.is_some(),
    stale_if_error,
    stale_while_revalidate,
    info,
});
