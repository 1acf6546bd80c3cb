//! The requests to the upstream that are under way, so that callers who want the same response share one (*single
//! flight*).

use std::{collections::HashMap, sync::Arc, time::Duration};

use http::HeaderMap;
use tokio::sync::watch;

use super::{
    super::{http::HttpKey, leads::Leads},
    fill::Fill,
    interest::{Callers, Interest},
    page::{Head, Page},
    pages::Found,
};
use crate::{
    clock::{self, Instant},
    mutex::Mutex,
    outcome::Rejection,
};

/// How long requests join another one whose response has not begun.
const JOINED: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct Flights {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    resources: HashMap<HttpKey, Resource, ahash::RandomState>,
    numbers: u64,
}

/// The flights for a resource that no invalidation has overtaken.
#[derive(Default)]
struct Resource {
    current: HashMap<u64, Arc<Flight>, ahash::RandomState>,
    /// Those that other requests can join, by the values of the request that select a response.
    open: HashMap<Box<[u8]>, Arc<Flight>, ahash::RandomState>,
}

/// A request that is under way.
pub(super) struct Flight {
    number: u64,
    begun: Instant,
    /// The headers of the request.
    asked: HeaderMap,
    landed: watch::Sender<Option<Landed>>,
    pub(super) callers: Callers,
}

/// The outcome of a flight, for the callers that did not make the request.
#[derive(Clone)]
pub(super) enum Landed {
    /// The response is arriving.
    Filling(Arc<Head>, Arc<Fill>),
    /// A stored response that was validated, or one that has no content.
    Page(Arc<Page>),
    /// A fresh response of the second level.
    Hit(Arc<Page>),
    /// A stale response in place of a failure.
    StandIn(Arc<Page>),
    /// The response is for one caller alone.
    Alone,
    Failed(Rejection),
    /// The request has no outcome: its task has ended early.
    Lost,
}

/// How a request that found nothing goes on.
pub(super) enum Arrival {
    /// It makes the request to the upstream.
    Lead(Lead),
    /// It waits for the flight of another caller.
    Join(Joined),
    /// A response was stored in the meantime.
    Found(Found),
}

impl Flights {
    /// Joins the flight for these selecting values of a resource, or starts one.
    ///
    /// A flight whose response is arriving is joined only if that `may_be_reused`, and one without a response only for
    /// a while: it may hang. `find` looks into the store again, at a moment when no flight can end.
    pub(super) fn arrive(
        self: &Arc<Self>,
        key: &HttpKey,
        selected: &[u8],
        asked: &HeaderMap,
        may_be_reused: impl FnOnce(&Head) -> bool,
        find: impl FnOnce() -> Option<Found>,
    ) -> Arrival {
        let mut table = self.table.lock();
        let open = table.resources.get(key).and_then(|resource| resource.open.get(selected));
        if let Some(flight) = open
            && flight.is_joined(may_be_reused)
        {
            return Arrival::Join(Joined::new(flight));
        }
        if let Some(found) = find() {
            return Arrival::Found(found);
        }
        Arrival::Lead(self.start(&mut table, key, Some(selected), asked))
    }

    /// Starts a flight that no other request joins.
    pub(super) fn alone(self: &Arc<Self>, key: &HttpKey, asked: &HeaderMap) -> Lead {
        self.start(&mut self.table.lock(), key, None, asked)
    }

    fn start(self: &Arc<Self>, table: &mut Table, key: &HttpKey, selected: Option<&[u8]>, asked: &HeaderMap) -> Lead {
        table.numbers += 1;
        let flight = Arc::new(Flight::new(table.numbers, asked.clone()));
        let resource = table.resources.entry(key.clone()).or_default();
        resource.current.insert(flight.number, Arc::clone(&flight));
        if let Some(selected) = selected {
            resource.open.insert(selected.into(), Arc::clone(&flight));
        }
        Lead { flights: Arc::clone(self), key: key.clone(), selected: selected.map(Box::from), flight }
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Returns whether the request is made from inside that flight, which would then wait for itself.
    pub(super) fn is_inside(&self, joined: &Joined) -> bool {
        Leads::current().include(self.address(), joined.flight.number)
    }

    /// Returns the resources that have flights.
    pub(super) fn keys(&self) -> Vec<HttpKey> {
        self.table.lock().resources.keys().cloned().collect()
    }

    /// Detaches the flights for these resources: those who wait get their outcomes, but nothing is stored, and no
    /// request joins them.
    ///
    /// `remove` runs before any other flight for them can start or store something.
    pub(super) fn detach<T>(&self, keys: &[HttpKey], remove: impl FnOnce() -> T) -> T {
        let mut table = self.table.lock();
        let detached: Vec<_> = keys.iter().filter_map(|key| table.resources.remove_entry(key)).collect();
        let removed = remove();
        drop(table);
        drop(detached);
        removed
    }

    /// Detaches all flights.
    pub(super) fn detach_all<T>(&self, remove: impl FnOnce() -> T) -> T {
        let mut table = self.table.lock();
        let detached = std::mem::take(&mut table.resources);
        let removed = remove();
        drop(table);
        drop(detached);
        removed
    }
}

impl Flight {
    fn is_joined(&self, may_be_reused: impl FnOnce(&Head) -> bool) -> bool {
        match &*self.landed.borrow() {
            None => clock::now().saturating_duration_since(self.begun) < JOINED,
            Some(Landed::Filling(head, _)) => may_be_reused(head),
            Some(Landed::Page(page) | Landed::Hit(page) | Landed::StandIn(page)) => may_be_reused(&page.head),
            Some(Landed::Alone | Landed::Failed(_) | Landed::Lost) => false,
        }
    }

    fn new(number: u64, asked: HeaderMap) -> Self {
        Self { number, begun: clock::now(), asked, landed: watch::Sender::new(None), callers: Callers::default() }
    }
}

/// The duty to bring a response. If it is dropped without one, those who wait start over.
pub(super) struct Lead {
    flights: Arc<Flights>,
    pub(super) key: HttpKey,
    /// `None` if no other request joins.
    selected: Option<Box<[u8]>>,
    pub(super) flight: Arc<Flight>,
}

impl Lead {
    /// Returns whether other requests can join.
    pub(super) fn is_open(&self) -> bool {
        self.selected.is_some()
    }

    /// Returns the headers of the request.
    pub(super) fn asked(&self) -> &HeaderMap {
        &self.flight.asked
    }

    /// Returns the calls that surround the request, with itself.
    pub(super) fn leads(&self) -> Leads {
        Leads::current().and((self.flights.address(), self.flight.number))
    }

    /// Tells those who wait. Later requests join until the lead is closed.
    pub(super) fn land(&self, landed: Landed) {
        self.flight.landed.send_replace(Some(landed));
    }

    /// Stores something, unless an invalidation has overtaken the flight.
    pub(super) fn store<T>(&self, store: impl FnOnce() -> T) -> Option<T> {
        let table = self.flights.table.lock();
        let resource = table.resources.get(&self.key)?;
        resource.current.contains_key(&self.flight.number).then(store)
    }

    /// Makes later requests start over.
    pub(super) fn close(&mut self) {
        if let Some(selected) = self.selected.take() {
            let mut table = self.flights.table.lock();
            let closed =
                table.resources.get_mut(&self.key).and_then(|resource| resource.close(&selected, &self.flight));
            drop(table);
            drop(closed);
        }
    }

    fn end(&mut self) {
        let mut table = self.flights.table.lock();
        let Some(resource) = table.resources.get_mut(&self.key) else { return };
        let ended = resource.current.remove(&self.flight.number);
        let closed = self.selected.take().and_then(|selected| resource.close(&selected, &self.flight));
        let emptied = resource.current.is_empty().then(|| table.resources.remove_entry(&self.key));
        drop(table);
        drop((ended, closed, emptied));
    }
}

impl Resource {
    fn close(&mut self, selected: &[u8], flight: &Arc<Flight>) -> Option<(Box<[u8]>, Arc<Flight>)> {
        let is_this = self.open.get(selected).is_some_and(|open| Arc::ptr_eq(open, flight));
        if is_this { self.open.remove_entry(selected) } else { None }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.end();
        if self.flight.landed.borrow().is_none() {
            self.flight.landed.send_replace(Some(Landed::Lost));
        }
    }
}

/// A caller's place in the flight of another one.
pub(super) struct Joined {
    flight: Arc<Flight>,
    landed: watch::Receiver<Option<Landed>>,
    pub(super) interest: Interest,
}

impl Joined {
    fn new(flight: &Arc<Flight>) -> Self {
        Self { flight: Arc::clone(flight), landed: flight.landed.subscribe(), interest: flight.callers.interest() }
    }

    /// Returns the headers of the request that is under way.
    pub(super) fn asked(&self) -> &HeaderMap {
        &self.flight.asked
    }

    pub(super) async fn landed(&mut self) -> Landed {
        match self.landed.wait_for(Option::is_some).await {
            Ok(landed) => landed.clone().unwrap_or(Landed::Lost),
            Err(_) => Landed::Lost,
        }
    }
}
