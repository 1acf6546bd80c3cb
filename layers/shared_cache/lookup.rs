//! The requests to the store: the lookup of a response, and its storage. No call drives them, so a caller that hangs up
//! ends neither.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    entry::{self, Value},
    handle::{LONGEST_CALL, Shared},
};
use crate::{
    ambient::{self, Unsent},
    caught::contained,
    clock::{self, Instant},
    debug::impl_debug,
    outcome::{Class, Classify, Reject, judged_as},
    store::{Advice, Awaited, Codec, ValueStore, start},
    telemetry::{LayerEvent, LayerInfo},
};

pub(super) struct Settings<St, D, C> {
    pub(super) shared: Arc<Shared<St>>,
    pub(super) codec: D,
    pub(super) classify: C,
    pub(super) timeout: Duration,
    pub(super) max_bytes: usize,
    pub(super) info: LayerInfo,
}

/// A key in the store.
pub(super) struct Place<St, D, C> {
    pub(super) settings: Arc<Settings<St, D, C>>,
    pub(super) key: Arc<str>,
    /// The time of the response to come.
    pub(super) ttl: Duration,
    /// When the store was asked.
    pub(super) since: Option<Instant>,
}

/// The lookup of a call. It asks and starts its clock at the first poll.
pub(super) enum Lookup {
    New,
    Waits(Awaited<Found>),
    Done,
}

/// The value that a lookup has found, or `None` if the store does not answer.
type Found = Option<Option<Bytes>>;

/// The right of a call to store its response, in place of the value that it has found.
pub(super) struct Ticket<St, D, C> {
    place: Place<St, D, C>,
    found: Option<Bytes>,
    /// When the store was asked for it.
    since: Instant,
}

/// The result of a lookup.
pub(super) enum Looked<R, T> {
    Hit(R),
    /// The call is made. Without a ticket, its response is not stored, because the store is away.
    Miss(Option<T>),
}

impl Lookup {
    pub(super) fn poll<St, D, C>(&mut self, cx: &mut Context<'_>, place: &mut Place<St, D, C>) -> Poll<Found>
    where
        St: ValueStore,
        Settings<St, D, C>: Send + Sync + 'static,
    {
        let polled = match self {
            Self::New => match place.look() {
                Some(mut awaited) => {
                    let polled = awaited.poll(cx);
                    *self = Self::Waits(awaited);
                    polled
                }
                None => Poll::Ready(None),
            },
            Self::Waits(awaited) => awaited.poll(cx),
            Self::Done => Poll::Ready(None),
        };
        match polled {
            // A circuit breaker outside does not count a call that ends here.
            Poll::Pending => {
                ambient::set(Unsent(true));
                Poll::Pending
            }
            Poll::Ready(found) => {
                *self = Self::Done;
                Poll::Ready(found.flatten())
            }
        }
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        // In case the whole call is dropped along with this lookup: the service has not seen it.
        if !matches!(self, Self::Done) {
            ambient::set(Unsent(true));
        }
    }
}

impl<St, D, C> Place<St, D, C>
where
    St: ValueStore,
    Settings<St, D, C>: Send + Sync + 'static,
{
    /// Asks the store, unless it is away.
    fn look(&mut self) -> Option<Awaited<Found>> {
        let (now, link) = (clock::now(), &self.settings.shared.link);
        let is_probe = match link.advice(now) {
            Advice::Ask => false,
            Advice::Probe { .. } => true,
            Advice::Away { .. } => return None,
        };
        self.since = Some(now);
        let (settings, key, (tell, told)) = (Arc::clone(&self.settings), Arc::clone(&self.key), oneshot::channel());
        start(async move {
            let Settings { shared, timeout, info, .. } = &*settings;
            let get = async { shared.store.get(&key).await };
            let found = shared.link.ask(info, *timeout, is_probe, get).await;
            // The call may be gone.
            let _ = tell.send(found.ok());
        });
        (!is_probe).then(|| Awaited::new(told, now + self.settings.timeout))
    }
}

impl<St, D, C> Place<St, D, C> {
    /// Decides how a call goes on with the value that it has found.
    pub(super) fn read<R>(self, found: Found) -> Looked<R, Ticket<St, D, C>>
    where
        D: Codec<R>,
    {
        let Settings { shared, codec, info, .. } = &*self.settings;
        let value = found.as_ref().and_then(Option::as_ref).map(Value::read);
        let error = match value {
            Some(Value::Response(encoded)) => {
                match contained(|| codec.decode(encoded).map_err(|error| error.to_string())) {
                    Some(Ok(response)) => {
                        shared.hits.fetch_add(1, Relaxed);
                        info.emit(LayerEvent::Hit);
                        return Looked::Hit(response);
                    }
                    Some(Err(error)) => Some(error),
                    None => Some("the decoder panicked".to_owned()),
                }
            }
            Some(Value::Unknown) => Some("this is not a value of a shared cache".to_owned()),
            Some(Value::Removed) | None => None,
        };
        if let Some(error) = error {
            info.emit(LayerEvent::NotDecoded { error: &error });
        }
        shared.misses.fetch_add(1, Relaxed);
        info.emit(LayerEvent::Miss);
        Looked::Miss(found.zip(self.since).map(|(found, since)| Ticket { place: self, found, since }))
    }
}

impl<St, D, C> Ticket<St, D, C>
where
    St: ValueStore,
    Settings<St, D, C>: Send + Sync + 'static,
{
    /// Stores the response of a call if it may be stored. No call waits for that.
    pub(super) fn use_for<R, E>(self, outcome: &Result<R, E>)
    where
        E: Reject<R>,
        C: Classify<R, E>,
        D: Codec<R>,
    {
        let Self { place: Place { settings, key, ttl, .. }, found, since } = self;
        let Ok(response) = outcome else { return };
        let is_success = Class::of(outcome, &settings.classify) == Class::Success && judged_as(outcome).is_none();
        let now = clock::now();
        // An empty key may have had the mark of a removal since, and a response in place of the mark, which expires
        // after a ttl.
        let last = ttl.min(LONGEST_CALL).saturating_sub(settings.timeout);
        let is_sure = found.is_some() || now.saturating_duration_since(since) < last;
        if !is_success || ttl.is_zero() || !is_sure || settings.shared.link.is_away() {
            return;
        }
        let is_probe = match settings.shared.puts.advice(now) {
            Advice::Ask => false,
            Advice::Probe { .. } => true,
            Advice::Away { .. } => return,
        };
        let Some(encoded) = contained(|| settings.codec.encode(response)).flatten() else { return };
        if encoded.len() > settings.max_bytes {
            return;
        }
        let value = entry::response(&encoded);
        start(async move {
            let Settings { shared, timeout, info, .. } = &*settings;
            let put = async {
                match &found {
                    Some(found) => shared.store.replace(&key, found, Some(value), ttl).await,
                    None => shared.store.put_new(&key, value, ttl).await.map(|present| present.is_none()),
                }
            };
            if let Ok(true) = shared.puts.ask(info, *timeout, is_probe, put).await {
                info.emit(LayerEvent::Stored);
            }
        });
    }
}

impl_debug!(Settings<St, D, C> {
    shared,
    codec: D,
    classify: C,
    timeout,
    max_bytes,
    info,
});

// Manual: the store need not be `Clone`.
impl<St, D: Clone, C: Clone> Clone for Settings<St, D, C> {
    fn clone(&self) -> Self {
        let Self { shared, codec, classify, info, .. } = self;
        let (shared, codec, classify) = (Arc::clone(shared), codec.clone(), classify.clone());
        Self { shared, codec, classify, info: info.clone(), ..*self }
    }
}
