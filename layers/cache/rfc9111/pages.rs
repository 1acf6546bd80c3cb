//! The stored responses of a cache, by the requests that they are for.

use std::{
    hash::{Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use http::HeaderMap;

use super::{
    super::{
        http::HttpKey,
        store::{Change, Hashed, New, Store},
    },
    page::Page,
    rules::Vary,
};
use crate::clock::{self, Instant};

/// How many different `Vary` fields of one resource are known at a time. Most resources have one.
const MOST_VARY: usize = 4;

/// How long requests for a resource are not held back for one another, after a response that was for one caller alone.
const PASS: Duration = Duration::from_secs(30);

/// A place in the store.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Place {
    /// The response for all requests, or what the responses depend on.
    Resource(HttpKey),
    /// The response for requests with these values.
    Variant { family: u64, vary: VaryKey, selected: Vec<u8> },
}

#[derive(Debug, PartialEq, Eq)]
struct VaryKey(Vary);

impl Hash for VaryKey {
    fn hash<H: Hasher>(&self, _: &mut H) {
        // The values tell them apart.
    }
}

#[derive(Debug, Clone)]
enum Slot {
    Page(HttpKey, Arc<Page>),
    Resource(Arc<Resource>),
}

/// What is known of a resource that has no response for all requests.
#[derive(Debug, Clone)]
pub(super) struct Resource {
    /// The family of its variants. After an invalidation it has another one.
    family: u64,
    /// The most recent is the first.
    vary: Vec<Vary>,
    pass_until: Option<Instant>,
}

/// What the store has for a request.
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
pub(super) struct Removed {
    pub(super) is_kept: bool,
    _changes: Vec<Change<Place, Slot>>,
}

pub(super) struct Pages {
    store: Store<Place, Slot>,
    families: AtomicU64,
    pub(super) evicted: AtomicU64,
}

impl Pages {
    /// Creates a store for this many bytes.
    pub(super) fn new(capacity: usize) -> Self {
        Self { store: Store::new(capacity), families: AtomicU64::new(0), evicted: AtomicU64::new(0) }
    }

    pub(super) fn find(&self, key: &HttpKey, headers: &HeaderMap) -> Found {
        let Some(resource) = self.store.get(&self.resource(key)) else { return Found::default() };
        let resource = match &resource.response {
            Slot::Page(_, page) => return Found { page: Some(Arc::clone(page)), ..Found::default() },
            Slot::Resource(resource) => resource,
        };
        let mut found = Found {
            has_others: !resource.vary.is_empty(),
            pass: resource.pass_until.is_some_and(|until| clock::now() < until),
            ..Found::default()
        };
        for vary in &resource.vary {
            let selected = vary.select(headers);
            let variant =
                self.hashed(Place::Variant { family: resource.family, vary: VaryKey(vary.clone()), selected });
            if let Some(entry) = self.store.get(&variant)
                && let Slot::Page(_, page) = &entry.response
            {
                found.page = Some(Arc::clone(page));
                found.selected = selected_of(variant);
                break;
            }
            found.selected = [found.selected, selected_of(variant)].concat();
        }
        found
    }

    /// Stores a response to a request with these headers, unless there is the response to a later request. Locked by the
    /// flights, so that nothing comes between.
    pub(super) fn put(&self, key: &HttpKey, headers: &HeaderMap, page: Arc<Page>) -> Removed {
        let key = key.compact();
        let vary = page.head.vary.clone();
        let (weight, useful) = (page.weight() as u64, page.useful());
        let mut changes = Vec::new();
        let place = if vary.is_empty() {
            Place::Resource(key.clone())
        } else {
            let family = self.learn(&key, &vary, &mut changes);
            let mut selected = vary.select(headers);
            selected.shrink_to_fit();
            Place::Variant { family, vary: VaryKey(vary), selected }
        };
        let place = self.hashed(place);
        let before = self.store.peek(&place);
        let is_late = before.as_ref().is_some_and(|before| match &before.response {
            Slot::Page(_, before) => before.head.terms.are_newer_than(&page.head.terms),
            Slot::Resource(_) => false,
        });
        if is_late {
            return Removed { is_kept: false, _changes: changes };
        }
        let change = self.insert(place, Slot::Page(key, page), weight, useful);
        let is_kept = change.kept;
        changes.push(change);
        Removed { is_kept, _changes: changes }
    }

    /// Notes what responses of the resource depend on. Returns the family of its variants.
    fn learn(&self, key: &HttpKey, vary: &Vary, changes: &mut Vec<Change<Place, Slot>>) -> u64 {
        let known = self.known(key);
        if let Some(known) = &known
            && known.vary.first() == Some(vary)
        {
            return known.family;
        }
        let mut resource = known.map_or_else(|| self.new_family(), |known| Resource::clone(&known));
        resource.vary.retain(|other| other != vary);
        resource.vary.insert(0, vary.clone());
        resource.vary.truncate(MOST_VARY);
        let family = resource.family;
        changes.push(self.put_resource(key, resource));
        family
    }

    /// Notes that a response was for one caller alone. A response for all requests stays.
    pub(super) fn pass(&self, key: &HttpKey) -> Removed {
        let known = self.store.peek(&self.resource(key));
        let known = match known.as_ref().map(|entry| &entry.response) {
            Some(Slot::Page(..)) => return Removed { is_kept: false, _changes: Vec::new() },
            Some(Slot::Resource(known)) => Some(known),
            None => None,
        };
        let mut resource = known.map_or_else(|| self.new_family(), |known| Resource::clone(known));
        resource.pass_until = clock::now().checked_add(PASS);
        let change = self.put_resource(&key.compact(), resource);
        Removed { is_kept: change.kept, _changes: vec![change] }
    }

    fn known(&self, key: &HttpKey) -> Option<Arc<Resource>> {
        match &self.store.peek(&self.resource(key))?.response {
            Slot::Resource(resource) => Some(Arc::clone(resource)),
            Slot::Page(..) => None,
        }
    }

    fn new_family(&self) -> Resource {
        Resource { family: self.families.fetch_add(1, Relaxed), vary: Vec::new(), pass_until: None }
    }

    fn put_resource(&self, key: &HttpKey, resource: Resource) -> Change<Place, Slot> {
        let weight = 512 + resource.vary.iter().map(Vary::weight).sum::<usize>() as u64;
        let useful = if resource.vary.is_empty() { PASS } else { Duration::MAX };
        self.insert(self.resource(key), Slot::Resource(Arc::new(resource)), weight, useful)
    }

    fn insert(&self, place: Hashed<Place>, slot: Slot, weight: u64, ttl: Duration) -> Change<Place, Slot> {
        let weight = weight + place.key.weight();
        let new = New { response: slot, now: clock::now(), ttl, stale: Duration::ZERO, weight };
        let change = self.store.insert(Arc::new(place), new);
        self.evicted.fetch_add(change.evicted, Relaxed);
        change
    }

    /// Removes all responses of a resource.
    pub(super) fn remove(&self, key: &HttpKey) -> Removed {
        // Its variants are never found again, and evicted first.
        let resource = self.resource(key);
        let change = self.store.remove(resource.hash, &resource.key);
        Removed { is_kept: false, _changes: vec![change] }
    }

    /// Removes the responses of all resources that match. Returns their number.
    pub(super) fn remove_if(&self, predicate: impl Fn(&HttpKey) -> bool) -> usize {
        let matching = |slot: &Slot, place: &Place| match (slot, place) {
            (Slot::Page(key, _), _) | (_, Place::Resource(key)) => predicate(key),
            (Slot::Resource(_), Place::Variant { .. }) => false,
        };
        let entries = self.store.parts().flatten().filter(|entry| matching(&entry.response, entry.key()));
        let removed = entries.filter(|entry| self.store.remove_this(entry));
        removed.filter(|entry| matches!(entry.response, Slot::Page(..))).count()
    }

    pub(super) fn clear(&self) -> Removed {
        Removed { is_kept: false, _changes: vec![self.store.clear()] }
    }

    /// Returns the number of responses that are of use.
    pub(super) fn len(&self) -> usize {
        let _ = self.store.len(clock::now());
        self.store.parts().flatten().filter(|entry| matches!(entry.response, Slot::Page(..))).count()
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

fn selected_of(variant: Hashed<Place>) -> Vec<u8> {
    match variant.key {
        Place::Variant { selected, .. } => selected,
        Place::Resource(_) => Vec::new(),
    }
}

impl Place {
    fn weight(&self) -> u64 {
        let size = match self {
            Self::Resource(key) => key.authority().len() + key.path().len() + key.query().map_or(0, str::len),
            Self::Variant { vary, selected, .. } => vary.0.weight() + selected.len(),
        };
        // With what the store needs for an entry.
        size as u64 + 256
    }
}
