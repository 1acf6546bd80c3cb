//! The metrics of events and calls, through the `metrics` facade. See the table at [`LayerEvent`].

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ::metrics::{
    Counter, Gauge, Histogram, SharedString, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};

use super::{LayerEvent, Outcome};
use crate::name::Name;

/// Counts the events of a layer.
#[derive(Clone, Default)]
pub(super) struct Counters {
    /// The counters of events that the happy path may emit: looking one up would allocate. Each is created for its
    /// first event, so that no series exists for an event that the layer never emits.
    frequent: OnceLock<Arc<[OnceLock<Counter>; 8]>>,
}

impl Counters {
    pub(super) const fn new() -> Self {
        Self { frequent: OnceLock::new() }
    }

    pub(super) fn count(&self, layer: &'static str, name: &Name, event: &LayerEvent<'_>) {
        let (reason, frequent) = match *event {
            LayerEvent::Started | LayerEvent::Ended { .. } => return,
            LayerEvent::Queued => ("", Some(0)),
            LayerEvent::Hit => ("", Some(1)),
            LayerEvent::Miss => ("", Some(2)),
            LayerEvent::Bypassed => ("", Some(3)),
            LayerEvent::Stale { reason: reason @ "error" } => (reason, Some(4)),
            LayerEvent::Stale { reason: reason @ "revalidate" } => (reason, Some(5)),
            // A layer outside this crate. A counter is kept for one reason only.
            LayerEvent::Stale { reason } => (reason, None),
            LayerEvent::Shared => ("", Some(6)),
            LayerEvent::Stored => ("", Some(7)),
            LayerEvent::Rejected(rejection) => (rejection.reason().as_str(), None),
            LayerEvent::GaveUp { reason, .. }
            | LayerEvent::NotRetried { reason, .. }
            | LayerEvent::NotRepeatable { reason }
            | LayerEvent::FellBack { reason }
            | LayerEvent::FallbackRefused { reason }
            | LayerEvent::FallbackFailed { reason, .. }
            | LayerEvent::Hedged { reason }
            | LayerEvent::HedgeRefused { reason }
            | LayerEvent::RefreshFailed { reason, .. }
            | LayerEvent::Injected { reason } => (reason, None),
            LayerEvent::Transition { to, .. } => {
                set_state(layer, name, to);
                (to, None)
            }
            LayerEvent::SettingsRefused { .. }
            | LayerEvent::StoreFailed { .. }
            | LayerEvent::NotDecoded { .. }
            | LayerEvent::Reclaimed { .. }
            | LayerEvent::Retrying { .. }
            | LayerEvent::Recovered { .. }
            | LayerEvent::HedgeWon
            | LayerEvent::Failed
            | LayerEvent::HandlerFailed { .. }
            | LayerEvent::HandlerLagged { .. } => ("", None),
        };
        let counter = || of(layer, name, event, reason);
        match frequent {
            Some(index) => self.frequent.get_or_init(Arc::default)[index].get_or_init(counter).increment(1),
            None => counter().increment(1),
        }
    }
}

fn of(layer: &'static str, name: &Name, event: &LayerEvent<'_>, reason: &'static str) -> Counter {
    describe();
    let name = label(name);
    counter!("ziggurat_events_total", "layer" => layer, "name" => name, "event" => event.name(), "reason" => reason)
}

/// Sets the gauge of a circuit's state. A state of another kind of layer has no number.
pub(super) fn set_state(layer: &'static str, name: &Name, state: &str) {
    let number = match state {
        "closed" => 0,
        "half_open" => 1,
        "open" => 2,
        _ => return,
    };
    describe();
    gauge!("ziggurat_circuit_state", "layer" => layer, "name" => label(name)).set(number);
}

/// Describes the metrics to the recorder. Costs one atomic read after the first time.
fn describe() {
    static DESCRIBED: AtomicBool = AtomicBool::new(false);
    if DESCRIBED.load(Ordering::Relaxed) || DESCRIBED.swap(true, Ordering::Relaxed) {
        return;
    }
    describe_counter!(
        "ziggurat_events_total",
        Unit::Count,
        "Events of layers, such as rejections, retries and cache hits."
    );
    describe_gauge!("ziggurat_circuit_state", "State of a circuit breaker: 0 closed, 1 half-open, 2 open.");
    describe_counter!("ziggurat_calls_total", Unit::Count, "Calls that ended, by outcome.");
    describe_histogram!("ziggurat_call_duration_seconds", Unit::Seconds, "Duration of calls, by outcome.");
    describe_gauge!("ziggurat_calls_in_flight", Unit::Count, "Calls that have started and not ended.");
}

/// The metrics of the calls through a layer.
pub(super) struct Meters {
    name: SharedString,
    in_flight: Gauge,
    /// `None` for rejected calls, whose reason is one of many.
    counts: [Option<Counter>; Outcome::ALL.len()],
    durations: [Histogram; Outcome::ALL.len()],
}

impl Meters {
    pub(super) fn new(name: &Name) -> Self {
        describe();
        let name = label(name);
        Self {
            in_flight: gauge!("ziggurat_calls_in_flight", "name" => name.clone()),
            counts: Outcome::ALL.map(|outcome| (outcome != Outcome::Rejected).then(|| calls(&name, outcome, ""))),
            durations: Outcome::ALL.map(
                |outcome| histogram!("ziggurat_call_duration_seconds", "name" => name.clone(), "outcome" => outcome.as_str()),
            ),
            name,
        }
    }

    pub(super) fn started(&self) {
        self.in_flight.increment(1);
    }

    pub(super) fn ended(&self, outcome: Outcome, reason: Option<&'static str>, elapsed: Duration) {
        self.in_flight.decrement(1);
        let meter = outcome as usize;
        self.durations[meter].record(elapsed);
        match &self.counts[meter] {
            Some(counter) if reason.is_none() => counter.increment(1),
            _ => calls(&self.name, outcome, reason.unwrap_or_default()).increment(1),
        }
    }
}

fn calls(name: &SharedString, outcome: Outcome, reason: &'static str) -> Counter {
    counter!("ziggurat_calls_total", "name" => name.clone(), "outcome" => outcome.as_str(), "reason" => reason)
}

/// Returns the label for a layer's name. It is empty for a layer without a name.
fn label(name: &Name) -> SharedString {
    match name {
        Name::Static(name) => SharedString::const_str(name),
        Name::Shared(name) => SharedString::from_owned(name.to_string()),
    }
}
