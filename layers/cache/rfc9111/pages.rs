//! The stored responses of a cache, by the requests that they are for.

use std::{
    collections::VecDeque,
    mem,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{HeaderMap, header::COOKIE};

use self::place::{Place, VaryKey};
use super::{
    super::{
        http::HttpKey,
        store::{Change, Entry, Hashed, New, Store},
    },
    page::{Head, Page},
    passes::Passes,
    rules::{Terms, Vary},
};
use crate::{clock, mutex::Mutex};

mod place;

/// How many variants of a resource are removed together with it. Further ones are never found again, and evicted first.
const MOST_PLACES: usize = 64;

#[derive(Debug, Clone)]
enum Slot {
    Page(HttpKey, Arc<Page>),
    Resource(Arc<Resource>),
}

/// A resource whose responses depend on more than its key.
#[derive(Debug)]
struct Resource {
    /// A copy in memory of its own, which the entries of its variants share.
    key: HttpKey,
    /// The family of its variants. After an invalidation it has another one.
    family: u64,
    /// The most recent is the first.
    vary: Vec<Vary>,
    /// The terms of the response whose request was sent last.
    newest: Mutex<Terms>,
    /// The oldest is the first.
    places: Mutex<VecDeque<Weak<Hashed<Place>>>>,
}

/// The result of a lookup.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) page: Option<Arc<Page>>,
    /// The values of the request that select a response, as far as it is known which do.
    pub(super) selected: Vec<u8>,
    /// Whether there are variants for other requests.
    pub(super) has_others: bool,
    /// Whether requests should not be held back for one another.
    pub(super) pass: bool,
}

/// The entries that a change has removed. Dropped without a lock, because they may be large.
#[must_use = "drop it without holding a lock"]
#[derive(Default)]
pub(super) struct Removed {
    pub(super) is_kept: bool,
    changes: Vec<Change<Place, Slot>>,
}

pub(super) struct Pages {
    store: Store<Place, Slot>,
    families: AtomicU64,
    passes: Passes,
    pub(super) evicted: AtomicU64,
}

impl Pages {
    /// Creates a store for this many bytes.
    pub(super) fn new(capacity: usize) -> Self {
        let (families, passes, evicted) = Default::default();
        Self { store: Store::new(capacity), families, passes, evicted }
    }

    pub(super) fn find(&self, key: &HttpKey, headers: &HeaderMap) -> Found {
        let place = self.resource(key);
        let mut found = self.find_page(&place, headers);
        // A hit does not need to know.
        let is_fresh = |page: &Arc<Page>| page.head.terms.are_fresh(clock::now());
        found.pass = self.passes.has_some()
            && !found.page.as_ref().is_some_and(is_fresh)
            && self.passes.contains(of_kind(place.hash, headers));
        found
    }

    fn find_page(&self, place: &Hashed<Place>, headers: &HeaderMap) -> Found {
        let mut found = Found::default();
        let Some(resource) = self.store.get(place) else { return found };
        let resource = match &resource.response {
            Slot::Page(_, page) => {
                found.page = Some(Arc::clone(page));
                return found;
            }
            Slot::Resource(resource) => resource,
        };
        found.has_others = true;
        for vary in &resource.vary {
            let selected = vary.select(headers);
            let variant =
                self.hashed(Place::Variant { family: resource.family, vary: VaryKey(vary.clone()), selected });
            if let Some(entry) = self.store.get(&variant)
                && let Slot::Page(_, page) = &entry.response
            {
                found.page = Some(Arc::clone(page));
                found.selected = variant.key.into_selected();
                break;
            }
            found.selected = [found.selected, variant.key.into_selected()].concat();
        }
        found
    }

    /// Stores a response to a request with these headers, unless there is the response to a later request. Locked by
    /// the flights, so that nothing comes between.
    pub(super) fn put(&self, key: &HttpKey, headers: &HeaderMap, page: Arc<Page>) -> Removed {
        let mut removed = Removed::default();
        let at = self.resource(key);
        self.passes.remove(of_kind(at.hash, headers));
        let vary = page.head.vary.clone();
        let known = self.store.peek(&at);
        let known = known.as_ref().map(|entry| &entry.response);
        let is_late = match known {
            Some(Slot::Page(_, before)) => before.head.terms.are_newer_than(&page.head.terms),
            // A response for the same requests is compared with its own variant alone.
            Some(Slot::Resource(known)) if known.vary.first() == Some(&vary) => false,
            Some(Slot::Resource(known)) => known.newest.lock().are_newer_than(&page.head.terms),
            None => false,
        };
        if is_late {
            return removed;
        }
        let before = match known {
            Some(Slot::Resource(known)) => Some(known),
            Some(Slot::Page(..)) | None => None,
        };
        let (weight, useful) = (page.weight() as u64, page.useful());
        if vary.is_empty() {
            let key = key.compact();
            let place = Arc::new(self.hashed(Place::Resource(key.clone())));
            if let Some(before) = before {
                self.remove_variants(before, |_| false, &mut removed);
            }
            removed.is_kept = self.insert(place, Slot::Page(key, page), weight, useful, &mut removed);
            return removed;
        }
        let Some(resource) = self.learn(key, before, &page, &mut removed) else { return removed };
        let mut selected = vary.select(headers);
        selected.shrink_to_fit();
        let place = self.hashed(Place::Variant { family: resource.family, vary: VaryKey(vary), selected });
        let before = self.store.peek(&place);
        if let Some(Slot::Page(_, before)) = before.as_ref().map(|entry| &entry.response)
            && before.head.terms.are_newer_than(&page.head.terms)
        {
            return removed;
        }
        let (place, key) = (Arc::new(place), resource.key.clone());
        // If the resource is evicted for its variant, so is the variant.
        resource.add(&place);
        removed.is_kept = self.insert(place, Slot::Page(key, page), weight, useful, &mut removed);
        removed
    }

    /// Notes what responses of the resource depend on. Returns `None` if there is no room for that.
    fn learn(
        &self,
        key: &HttpKey,
        known: Option<&Arc<Resource>>,
        page: &Page,
        removed: &mut Removed,
    ) -> Option<Arc<Resource>> {
        let Head { terms, vary, .. } = &page.head;
        if let Some(known) = known.filter(|known| known.vary.first() == Some(vary)) {
            let mut newest = known.newest.lock();
            if !newest.are_newer_than(terms) {
                *newest = terms.clone();
            }
            return Some(Arc::clone(known));
        }
        let all = vary.before(known.map_or(&[], |known| &known.vary));
        if let Some(known) = known {
            // Nothing finds the others any more.
            self.remove_variants(known, |vary| all.contains(vary), removed);
        }
        let resource = Arc::new(Resource {
            key: known.map_or_else(|| key.compact(), |known| known.key.clone()),
            family: known.map_or_else(|| self.families.fetch_add(1, Relaxed), |known| known.family),
            vary: all,
            newest: Mutex::new(terms.clone()),
            places: Mutex::new(known.map(|known| mem::take(&mut *known.places.lock())).unwrap_or_default()),
        });
        let weight = (size_of::<Resource>() + MOST_PLACES * size_of::<Weak<Hashed<Place>>>()) as u64;
        let weight = weight + resource.vary.iter().map(Vary::weight).sum::<usize>() as u64;
        let place = Arc::new(self.resource(&resource.key));
        let slot = Slot::Resource(Arc::clone(&resource));
        if self.insert(place, slot, weight, Duration::MAX, removed) {
            return Some(resource);
        }
        self.remove_variants(&resource, |_| false, removed);
        None
    }

    /// Removes the variants of a resource, apart from those with a `Vary` to keep.
    fn remove_variants(&self, resource: &Resource, keep: impl Fn(&Vary) -> bool, removed: &mut Removed) -> u64 {
        let mut places = resource.places.lock();
        let mut count = 0;
        places.retain(|place| {
            let Some(place) = place.upgrade() else { return false };
            let is_kept = matches!(&place.key, Place::Variant { vary, .. } if keep(&vary.0));
            if !is_kept {
                let change = self.store.remove(place.hash, &place.key);
                count += change.removed_entries().len() as u64;
                removed.changes.push(change);
            }
            is_kept
        });
        count
    }

    /// Removes the entry of a resource after its last variant, unless it was inserted just now. It would only take
    /// room from responses.
    fn remove_if_empty(&self, key: &HttpKey, family: u64, inserted: Option<&HttpKey>) -> Option<Change<Place, Slot>> {
        let place = self.resource(key);
        let entry = self.store.peek(&place)?;
        let Slot::Resource(resource) = &entry.response else { return None };
        let is_stored = |place: &Weak<Hashed<Place>>| place.upgrade().is_some_and(|at| self.store.peek(&at).is_some());
        let is_empty = || !resource.places.lock().iter().any(is_stored);
        let is_over = resource.family == family && inserted != Some(key) && is_empty();
        is_over.then(|| self.store.remove(place.hash, &place.key))
    }

    /// Notes that a response was for one caller alone. It is forgotten when one is stored.
    ///
    /// It says nothing about requests of the other kind: those with a cookie, or those without one.
    pub(super) fn pass(&self, key: &HttpKey, headers: &HeaderMap) {
        self.passes.add(of_kind(self.resource(key).hash, headers));
    }

    /// Stores an entry. Returns whether it was stored.
    fn insert(&self, place: Arc<Hashed<Place>>, slot: Slot, weight: u64, ttl: Duration, removed: &mut Removed) -> bool {
        let weight = weight + place.key.weight();
        let new = New { response: slot, now: clock::now(), ttl, stale: Duration::ZERO, weight };
        let change = self.store.insert(Arc::clone(&place), new);
        let inserted = match &place.key {
            Place::Resource(key) => Some(key),
            Place::Variant { .. } => None,
        };
        let is_kept = change.kept;
        self.follow(change, inserted, removed);
        is_kept
    }

    /// Removes the entries that are of no use without those that a change has removed.
    fn follow(&self, change: Change<Place, Slot>, inserted: Option<&HttpKey>, removed: &mut Removed) {
        let resources = change.evicted_entries().iter().filter_map(|entry| match &entry.response {
            Slot::Resource(resource) => Some(resource),
            Slot::Page(..) => None,
        });
        let resources: Vec<_> = resources.collect();
        let was_found = |entry: &&Arc<Entry<Place, Slot>>| match entry.key() {
            Place::Variant { family, .. } if resources.iter().any(|resource| resource.family == *family) => true,
            _ => self.is_found(entry),
        };
        let mut evicted = change.evicted_entries().iter().filter(was_found).count() as u64;
        for resource in &resources {
            // Nothing would find its variants.
            evicted += self.remove_variants(resource, |_| false, removed);
        }
        self.evicted.fetch_add(evicted, Relaxed);
        for entry in change.removed_entries() {
            if let (Slot::Page(key, _), Place::Variant { family, .. }) = (&entry.response, entry.key()) {
                removed.changes.extend(self.remove_if_empty(key, *family, inserted));
            }
        }
        removed.changes.push(change);
    }

    /// Sets the number of bytes. Locked by the flights.
    pub(super) fn resize(&self, capacity: usize) -> Removed {
        let mut removed = Removed::default();
        self.follow(self.store.resize(capacity), None, &mut removed);
        removed
    }

    /// Removes expired entries. Locked by the flights.
    pub(super) fn sweep(&self) -> Removed {
        let mut removed = Removed::default();
        self.follow(self.store.remove_expired(clock::now()), None, &mut removed);
        removed
    }

    /// Removes exactly this response to a request with these headers, unless another one has replaced it.
    pub(super) fn remove_page(&self, key: &HttpKey, headers: &HeaderMap, page: &Arc<Page>) -> Removed {
        let mut removed = Removed::default();
        let mut place = self.resource(key);
        if let Some(Slot::Resource(resource)) = self.store.peek(&place).as_ref().map(|entry| &entry.response) {
            let vary = page.head.vary.clone();
            let selected = vary.select(headers);
            place = self.hashed(Place::Variant { family: resource.family, vary: VaryKey(vary), selected });
        }
        let stored = self.store.peek(&place);
        let is_this = matches!(
            stored.as_ref().map(|entry| &entry.response),
            Some(Slot::Page(_, stored)) if Arc::ptr_eq(stored, page)
        );
        if is_this {
            self.follow(self.store.remove(place.hash, &place.key), None, &mut removed);
        }
        removed
    }

    /// Removes all responses of a resource.
    pub(super) fn remove(&self, key: &HttpKey) -> Removed {
        let mut removed = Removed::default();
        let place = self.resource(key);
        for kind in KINDS {
            self.passes.remove(place.hash ^ kind);
        }
        if let Some(Slot::Resource(resource)) = self.store.peek(&place).as_ref().map(|entry| &entry.response) {
            self.remove_variants(resource, |_| false, &mut removed);
        }
        removed.changes.push(self.store.remove(place.hash, &place.key));
        removed
    }

    /// Removes the responses of all resources that match. Returns their number.
    pub(super) fn remove_if(&self, predicate: impl Fn(&HttpKey) -> bool) -> usize {
        let matching = |entry: &Entry<Place, Slot>| match &entry.response {
            Slot::Page(key, _) => predicate(key),
            Slot::Resource(resource) => predicate(&resource.key),
        };
        let entries = self.store.parts().flatten().filter(|entry| matching(entry));
        let entries: Vec<_> = entries.map(|entry| (self.is_found(&entry), entry)).collect();
        entries.into_iter().filter(|(is_found, entry)| self.store.remove_this(entry) && *is_found).count()
    }

    pub(super) fn clear(&self) -> Removed {
        self.passes.clear();
        Removed { is_kept: false, changes: vec![self.store.clear()] }
    }

    /// Returns the number of responses that are of use, and removes the variants that nothing finds.
    pub(super) fn len(&self) -> usize {
        let is_of_use = |entry: &Arc<Entry<Place, Slot>>| match entry.response {
            Slot::Page(..) if self.is_found(entry) => true,
            Slot::Page(..) => {
                self.store.remove_this(entry);
                false
            }
            Slot::Resource(_) => false,
        };
        self.store.parts().flatten().filter(is_of_use).count()
    }

    /// Returns whether an entry is a response that requests may get.
    fn is_found(&self, entry: &Entry<Place, Slot>) -> bool {
        match (&entry.response, entry.key()) {
            (Slot::Resource(_), _) => false,
            (Slot::Page(..), Place::Resource(_)) => true,
            (Slot::Page(key, _), Place::Variant { family, vary, .. }) => {
                let resource = self.store.peek(&self.resource(key));
                matches!(
                    resource.as_ref().map(|entry| &entry.response),
                    Some(Slot::Resource(known)) if known.family == *family && known.vary.contains(&vary.0)
                )
            }
        }
    }

    pub(super) fn weight(&self) -> u64 {
        self.store.weight()
    }

    fn resource(&self, key: &HttpKey) -> Hashed<Place> {
        self.hashed(Place::Resource(key.clone()))
    }

    fn hashed(&self, key: Place) -> Hashed<Place> {
        Hashed { hash: self.store.hash(&key), key }
    }
}

impl Resource {
    /// Notes a variant that goes with the resource.
    fn add(&self, place: &Arc<Hashed<Place>>) {
        let mut places = self.places.lock();
        places.retain(|known| known.upgrade().is_some_and(|known| known.key != place.key));
        if places.len() >= MOST_PLACES {
            places.pop_front();
        }
        places.push_back(Arc::downgrade(place));
    }
}

/// Told apart in the hash of a resource: requests without a cookie, and those with one.
const KINDS: [u64; 2] = [0, 1];

fn of_kind(resource: u64, headers: &HeaderMap) -> u64 {
    resource ^ KINDS[usize::from(headers.contains_key(COOKIE))]
}
