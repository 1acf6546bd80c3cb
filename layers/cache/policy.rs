//! What a cache is told by its user: how long, how heavy, what counts as a success, and whose a key is.

use std::{any::type_name, fmt, hash::Hash, sync::Arc, time::Duration};

use super::{
    Stale,
    flight::Lead,
    handle::{CacheHandle, count},
    share::{Landed, Outcomes, ShareErrors},
    store::{Change, Entry, Hashed, New},
};
use crate::{
    ambient::deadline,
    clock::{self, Instant},
    outcome::{Class, Classify, Reason, Reject, Rejection, judged_as},
    scope::Scope,
    telemetry::{LayerEvent, LayerInfo},
};

/// How long after a call behind a stale answer failed there is none for the same key, unless the service asked for
/// more.
const REFRESH_PAUSE: Duration = Duration::from_secs(1);

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
pub(super) type Mark<R> = Arc<dyn Fn(&mut R, Stale) + Send + Sync>;

/// An entry of the cache's memory.
type Held<K, R> = Arc<Entry<K, Landed<R>>>;

/// What a call needs to know when it comes back.
pub(super) struct Policy<K, R, T, O> {
    pub(super) cache: CacheHandle<K, R>,
    pub(super) ttl: T,
    /// How long a failure is an answer of its own.
    pub(super) failure_ttl: Duration,
    pub(super) outcomes: O,
    pub(super) weigh: Option<Weigh<K, R>>,
    pub(super) mark_stale: Option<Mark<R>>,
    /// For how long a stale response stands in for a failure.
    pub(super) stale_if_error: Duration,
    /// For how long a stale response is given while a fresh one is fetched.
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

    /// A copy of a response that expired so long ago.
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

    pub(super) fn note_stale(&self) {
        count(&self.cache.state.counts.stale);
        self.info.emit(LayerEvent::Stale);
    }
}

impl<K, R, T, C, H> Policy<K, R, T, Outcomes<C, H>>
where
    K: Hash + Eq,
    R: Clone,
    T: Ttl<K, R>,
{
    /// Stores what the leader brought, or finds something stale in its place, and tells those who wait.
    ///
    /// Whatever of the user's runs before the flight has landed may panic: then `lead` is dropped, and goes to another
    /// one who waits. Afterwards the next one finds that there is no flight, and starts one.
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
            // The newest answer is not to be kept: then neither is an older one.
            None => store.remove(key.hash, &key.key),
        });
        if let Some(change) = change {
            self.note(&change);
        }
        waiters.tell(|| Landed::Answered(response.clone()));
    }

    /// What is no success goes to the leader, or a stale answer in its place; and to those who wait, unless it is of no
    /// use to them.
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
        // It is about this caller alone: its response, or the upload that it stopped.
        let is_own = match rejection.map(Rejection::reason) {
            Some(reason) => matches!(reason, Reason::UploadStalled { .. } | Reason::UploadFailed { .. }),
            None => class == Class::Ignored && outcome.is_ok(),
        };
        let stand_in = |found: Option<Held<K, R>>| {
            let stale = self.stand_in(&*found?, now)?;
            if is_awaited {
                self.note_stale();
            }
            Some(stale)
        };
        let key = Arc::clone(lead.key());
        // What its caller's own deadline has ended says nothing to those who have more time.
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
        // Looked up now and not before the call, so that nothing stands in that was invalidated meanwhile.
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
        // A rejection that the classifier calls a success is to be the answer.
        let is_lost = class.is_failure() || (is_rejected && class != Class::Success);
        if let Some(stale) = stand_in(found.filter(|_| is_lost)) {
            waiters.tell(|| Landed::Answered(stale.clone()));
            return Ok(stale);
        }
        if is_own {
            waiters.release();
        } else {
            waiters.tell(|| kept.unwrap_or_else(landed));
        }
        outcome
    }

    /// Tells of a call behind a stale answer that brought no other one, and asks for none for a while.
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
        let reason = match (E::rejection(outcome), outcome) {
            (Some(rejection), _) => rejection.reason().as_str(),
            (None, Err(_)) => "error",
            (None, Ok(_)) => "response",
        };
        match outcome {
            Err(error) => self.info.emit(LayerEvent::RefreshFailed { reason, error: format_args!("{error}") }),
            Ok(_) => {
                let error = format_args!("the response is not to be stored");
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

    /// A copy of a response that may be given in the place of a failure.
    fn stand_in(&self, entry: &Entry<K, Landed<R>>, now: Instant) -> Option<R> {
        let stale_for = entry.stale_for(|| now).unwrap_or_default();
        let response = entry.response.answer().filter(|_| stale_for < self.stale_if_error)?;
        Some(self.stale(response, stale_for))
    }

    /// Whether this response may still be given in one way or another.
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

impl<K, R, T, O> fmt::Debug for Policy<K, R, T, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("cache", &self.cache)
            .field("ttl", &type_name::<T>())
            .field("failure_ttl", &self.failure_ttl)
            .field("outcomes", &type_name::<O>())
            .field("weighted", &self.weigh.is_some())
            .field("stale_if_error", &self.stale_if_error)
            .field("stale_while_revalidate", &self.stale_while_revalidate)
            .field("info", &self.info)
            .finish()
    }
}
