//! The second level: a store that many processes share, behind the memory of each.

use std::{
    future::poll_fn,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::HeaderMap;
use tokio::{runtime::Handle, sync::oneshot};

use self::{
    copy::{Decoded, Now},
    record::{Record, identity, millis, name_of, resource},
    removals::{Removal, Removals},
    store::AnyStore,
};
use super::{
    super::http::HttpKey,
    fill::{Content, Room},
    page::Page,
    rules::{Asked, Rules, has_validator},
};
use crate::{
    clock::{self, Instant},
    store::{Advice, Awaited, Link, ValueStore, start},
    telemetry::{LayerEvent, LayerInfo, layer_info},
};

mod copy;
mod record;
mod removals;
mod store;

/// How long a request waits for an answer of the store, as in a shared cache.
const TIMEOUT: Duration = Duration::from_millis(100);

/// The size of the largest body that is in the store: Memcached's limit for an item. A larger one takes a while to
/// send, and other requests over the same connection wait for it.
const MAX_BODY: u64 = 1024 * 1024;

/// How long a record without responses is in the store: that of a lookup, or of an invalidation. The response of a
/// longer call is not stored.
const LONGEST_CALL: Duration = Duration::from_secs(60);

/// How long a response is in the store that can be validated, after its other use.
const VALIDATED: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a response is in the store at most.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How much longer the record of a resource is there than its responses, so that it need not be written for each.
const SPARE: Duration = Duration::from_secs(60 * 60);

/// The shortest pause between two attempts at a removal.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

pub(super) struct Second {
    store: Box<dyn AnyStore>,
    /// For the bodies that are read and written.
    room: Arc<Room>,
    reads: Link,
    /// Records. A store that refuses writes may still be read.
    writes: Link,
    /// Copies. One that is slow, because it is large, holds up no removal.
    copies: Link,
    removals: Removals,
    /// Copies from before this time, in milliseconds since 1970, are not used.
    not_before: AtomicU64,
    info: OnceLock<LayerInfo>,
}

/// The result of a lookup.
#[derive(Default)]
pub(super) struct Looked {
    pub(super) page: Option<Page>,
    pub(super) ticket: Option<Ticket>,
}

/// The right to store the response of a request, unless the resource has been invalidated since the lookup.
pub(super) struct Ticket {
    name: String,
    /// The record of the resource, with its bytes. If another one is there when the response comes, it is not stored.
    bytes: Bytes,
    record: Record,
    /// From before which time copies were not used.
    not_before: u64,
    /// Whether the lookup found a copy.
    has_copy: bool,
}

impl Ticket {
    /// Returns whether the store may have responses of the resource.
    pub(super) fn has_others(&self) -> bool {
        !self.record.vary.is_empty()
    }
}

impl Second {
    pub(super) fn new(store: impl ValueStore, room: &Arc<Room>) -> Self {
        let (reads, writes, copies, removals, not_before, info) = Default::default();
        Self { store: Box::new(store), room: Arc::clone(room), reads, writes, copies, removals, not_before, info }
    }

    /// Sets the layer in whose name events are emitted.
    pub(super) fn belongs_to(&self, info: &LayerInfo) {
        let _ = self.info.set(info.clone());
    }

    pub(super) fn is_away(&self) -> bool {
        self.reads.is_away() || self.writes.is_away()
    }

    fn info(&self) -> LayerInfo {
        // Before the first service there is no name and no observer.
        self.info.get().cloned().unwrap_or_else(|| layer_info!("cache"))
    }

    async fn get(&self, name: &str, is_probe: bool, end: Instant) -> Option<Option<Bytes>> {
        let timeout = end.saturating_duration_since(clock::now());
        self.reads.ask(&self.info(), timeout, is_probe, self.store.get(name)).await.ok()
    }

    /// Looks a response to this request up. Asks nothing while the store is away.
    pub(super) async fn look(self: &Arc<Self>, key: &HttpKey, headers: &HeaderMap, rules: (&Rules, &Asked)) -> Looked {
        let (name, since, oldest) = (resource(key), clock::now(), self.not_before.load(Relaxed));
        let end = since + TIMEOUT;
        if self.removals.are_stalled() {
            self.repeat_removals();
        }
        // The copies are about to be removed.
        if self.removals.include(&name) {
            return Looked::default();
        }
        match self.reads.advice(since) {
            Advice::Ask => {}
            Advice::Away { .. } => return Looked::default(),
            Advice::Probe { .. } => {
                let this = Arc::clone(self);
                start(async move { drop(this.get(&name, true, end).await) });
                return Looked::default();
            }
        }
        let Some(found) = self.get(&name, false, end).await else { return Looked::default() };
        let Some((bytes, record)) = self.record(&name, found, end).await else { return Looked::default() };
        let text = key.to_string();
        let (mut page, mut has_copy): (Option<Page>, _) = (None, false);
        for vary in &record.vary {
            let identity = identity(&text, vary, headers);
            let Some(copy) = self.get(&name_of(&identity), false, end).await else { return Looked::default() };
            let Some(copy) = copy else { continue };
            let now = Now { instant: clock::now(), date: SystemTime::now() };
            let not_before = UNIX_EPOCH + Duration::from_millis(self.not_before.load(Relaxed));
            match copy::decode(copy, (record.number, &identity, vary), rules, not_before, now) {
                Decoded::Page(found) => {
                    has_copy = true;
                    let Page { head, content, .. } = *found;
                    // Of several, the newest one (RFC 9111, section 4).
                    if page.as_ref().is_none_or(|known| head.terms.are_newer_than(&known.head.terms)) {
                        page = content.counted(&self.room).map(|content| Page::new(head, content));
                    }
                }
                Decoded::Other => {}
                Decoded::Unknown => {
                    self.info().emit(LayerEvent::NotDecoded { error: "this is not a response of an HTTP cache" });
                }
            }
        }
        Looked { page, ticket: Some(Ticket { name, bytes, record, not_before: oldest, has_copy }) }
    }

    /// Returns the record of a resource, with its bytes. Makes one if there is none: a response replaces the record of
    /// its lookup, so that one from before an invalidation is not stored, even if the store has lost the invalidation.
    async fn record(self: &Arc<Self>, name: &str, found: Option<Bytes>, end: Instant) -> Option<(Bytes, Record)> {
        let bytes = match (found, self.writes.advice(clock::now())) {
            (Some(bytes), _) => bytes,
            (None, Advice::Ask) => {
                let mut put = Awaited::new(self.put_record(name, false), end);
                poll_fn(|cx| put.poll(cx)).await?
            }
            (None, Advice::Away { .. }) => return None,
            (None, Advice::Probe { .. }) => {
                drop(self.put_record(name, true));
                return None;
            }
        };
        let record = Record::decode(bytes.clone()).unwrap_or_else(|| {
            self.info().emit(LayerEvent::NotDecoded { error: "this is not the record of an HTTP cache" });
            Record::empty()
        });
        Some((bytes, record))
    }

    /// Puts a record without responses. Sends the one that is there then.
    ///
    /// It has the time of a request of its own, because a removal waits for no store that has failed to write.
    fn put_record(self: &Arc<Self>, name: &str, is_probe: bool) -> oneshot::Receiver<Bytes> {
        let (this, name, (done, is_done)) = (Arc::clone(self), name.to_owned(), oneshot::channel());
        start(async move {
            let new = Record::empty().encode();
            let put = this.store.put_new(&name, new.clone(), LONGEST_CALL);
            if let Ok(present) = this.writes.ask(&this.info(), TIMEOUT, is_probe, put).await {
                let _ = done.send(present.unwrap_or(new));
            }
        });
        is_done
    }

    /// Stores a response to a request with these headers, in the background.
    pub(super) fn put(self: &Arc<Self>, ticket: &Ticket, key: &HttpKey, headers: &HeaderMap, page: &Page) {
        let (terms, now) = (&page.head.terms, Now { instant: clock::now(), date: SystemTime::now() });
        let validated = if has_validator(&page.head.headers) { VALIDATED } else { Duration::ZERO };
        let ttl = terms.useful().saturating_add(validated).min(LONGEST);
        let Ticket { name, bytes, record, not_before, has_copy } = ticket;
        // The time is read before, so that a copy from before a change of it is not used after the change.
        let is_current = self.not_before.load(Relaxed) == *not_before;
        if ttl.is_zero() || !is_current || self.removals.include(name) {
            return;
        }
        let vary = &page.head.vary;
        if vary.selects_by_secret(headers) || page.content.len() > MAX_BODY || copy::has_secret(page) {
            if *has_copy {
                // This response has superseded it.
                drop(self.remove_named(vec![name.clone()]));
            }
            return;
        }
        let is_probe = match self.copies.advice(now.instant) {
            Advice::Ask => false,
            Advice::Probe { .. } => true,
            Advice::Away { .. } => return,
        };
        let identity = identity(&key.to_string(), vary, headers);
        let copy = copy::encode(page, record.number, &identity, now);
        let Some(counted) = Content::from_bytes(copy.clone(), None).counted(&self.room) else { return };
        let changed = (!record.knows(vary, now.date + ttl)).then(|| record.with(vary, now.date + ttl + SPARE));
        let (this, name, bytes, copy_name) = (Arc::clone(self), name.clone(), bytes.clone(), name_of(&identity));
        let (number, sent) = (record.number, copy::sent(page, now));
        start(async move {
            let write = async {
                if let Some(record) = changed {
                    let (new, ttl) = (record.encode(), record.ttl(now.date));
                    if !this.store.replace(&name, &bytes, new, ttl).await? {
                        return Ok(());
                    }
                }
                let present = this.store.put_new(&copy_name, copy.clone(), ttl).await?;
                // The response to a later request comes first, though it has come earlier.
                match present.map(|present| copy::is_newer(present, (number, &identity), sent)) {
                    Some(false) => this.store.put(&copy_name, copy, ttl).await,
                    Some(true) | None => Ok(()),
                }
            };
            let _ = this.copies.ask(&this.info(), TIMEOUT, is_probe, write).await;
            drop(counted);
        });
    }

    /// Removes all responses of these resources, for all processes. This one uses none of them from now on.
    ///
    /// Returns the wait for the store, or `None` if it is away. The removal is then made once it is back.
    pub(super) fn remove(self: &Arc<Self>, keys: &[HttpKey]) -> Option<Awaited<()>> {
        self.remove_named(keys.iter().map(resource).collect())
    }

    fn remove_named(self: &Arc<Self>, names: Vec<String>) -> Option<Awaited<()>> {
        let Some(attempt) = self.removals.add(names) else {
            self.ignore_all();
            return None;
        };
        Handle::try_current().ok()?;
        let now = clock::now();
        if self.writes.advice(now) != Advice::Ask {
            self.repeat_removals();
            return None;
        }
        let (this, (done, is_done)) = (Arc::clone(self), oneshot::channel());
        start(async move {
            for removal in attempt.removals() {
                if !this.remove_one(removal, false).await {
                    this.repeat_removals();
                    break;
                }
            }
            let _ = done.send(());
        });
        Some(Awaited::new(is_done, now + TIMEOUT))
    }

    /// Makes a removal. Returns whether the store has done it.
    async fn remove_one(&self, removal: &Removal, is_probe: bool) -> bool {
        let put = self.store.put(&removal.name, Record::empty().encode(), LONGEST_CALL);
        let is_done = self.writes.ask(&self.info(), TIMEOUT, is_probe, put).await.is_ok();
        if is_done {
            self.removals.done(removal);
        }
        is_done
    }

    /// Makes the removals that have failed, on a task, until none is left.
    fn repeat_removals(self: &Arc<Self>) {
        let Some(mut turn) = self.removals.turn() else { return };
        let this = Arc::clone(self);
        tokio::spawn(async move {
            while let Some(removal) = turn.next() {
                let wait = match this.writes.advice(clock::now()) {
                    Advice::Away { wait, .. } => wait.max(SHORTEST_PAUSE),
                    advice if this.remove_one(&removal, advice != Advice::Ask).await => Duration::ZERO,
                    _ => SHORTEST_PAUSE,
                };
                if !wait.is_zero() {
                    clock::sleep(wait).await;
                }
            }
        });
    }

    /// Uses no copy any more that is in the store now.
    pub(super) fn ignore_all(&self) {
        self.not_before.fetch_max(millis(SystemTime::now()) + 1, Relaxed);
    }
}
