//! The metrics of events and calls, through the `metrics` facade: see the table at [`Event`].

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use ::metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super::{Event, Outcome};

/// Counts the events of a site.
#[derive(Clone, Default)]
pub(super) struct Counters {
    // Of those that a call on the happy path may tell: looking one up would allocate.
    frequent: OnceLock<Arc<[Counter; 6]>>,
}

impl Counters {
    pub(super) const fn new() -> Self {
        Self { frequent: OnceLock::new() }
    }

    pub(super) fn count(&self, layer: &'static str, name: Option<&'static str>, event: &Event<'_>) {
        let frequent = [Event::Queued, Event::Hit, Event::Miss, Event::Stale, Event::Shared, Event::Stored];
        let index = match event {
            Event::Queued => 0,
            Event::Hit => 1,
            Event::Miss => 2,
            Event::Stale => 3,
            Event::Shared => 4,
            Event::Stored => 5,
            Event::Started | Event::Ended { .. } => return,
            Event::SettingsRefused { .. } | Event::Reclaimed { .. } => return of(layer, name, event, "").increment(1),
            Event::Rejected(rejection) => return of(layer, name, event, rejection.reason().as_str()).increment(1),
            Event::GaveUp { reason, .. }
            | Event::NotRetried { reason, .. }
            | Event::NotRepeatable { reason }
            | Event::FellBack { reason }
            | Event::FallbackFailed { reason, .. }
            | Event::RefreshFailed { reason, .. }
            | Event::Injected { reason } => return of(layer, name, event, reason).increment(1),
            Event::Transition { to, .. } => return of(layer, name, event, to).increment(1),
            Event::Retrying { .. }
            | Event::Recovered { .. }
            | Event::Failed
            | Event::HandlerFailed { .. }
            | Event::HandlerLagged { .. } => {
                return of(layer, name, event, "").increment(1);
            }
        };
        let counters = self.frequent.get_or_init(|| Arc::new(frequent.map(|event| of(layer, name, &event, ""))));
        counters[index].increment(1);
    }
}

fn of(layer: &'static str, name: Option<&'static str>, event: &Event<'_>, reason: &'static str) -> Counter {
    let name = name.unwrap_or_default();
    counter!("ziggurat_events_total", "policy" => layer, "name" => name, "event" => event.name(), "reason" => reason)
}

/// The meters of the calls at a site.
pub(super) struct Meters {
    name: &'static str,
    in_flight: Gauge,
    counts: [Counter; Outcome::ALL.len()],
    durations: [Histogram; Outcome::ALL.len()],
}

impl Meters {
    pub(super) fn new(name: Option<&'static str>) -> Self {
        let name = name.unwrap_or_default();
        Self {
            name,
            in_flight: gauge!("ziggurat_calls_in_flight", "name" => name),
            counts: Outcome::ALL.map(|outcome| calls(name, outcome, "")),
            durations: Outcome::ALL.map(
                |outcome| histogram!("ziggurat_call_duration_seconds", "name" => name, "outcome" => outcome.as_str()),
            ),
        }
    }

    pub(super) fn started(&self) {
        self.in_flight.increment(1);
    }

    pub(super) fn ended(&self, outcome: Outcome, reason: Option<&'static str>, elapsed: Duration) {
        self.in_flight.decrement(1);
        let meter = outcome as usize;
        self.durations[meter].record(elapsed);
        match reason {
            Some(reason) => calls(self.name, outcome, reason).increment(1),
            None => self.counts[meter].increment(1),
        }
    }
}

fn calls(name: &'static str, outcome: Outcome, reason: &'static str) -> Counter {
    counter!("ziggurat_calls_total", "name" => name, "outcome" => outcome.as_str(), "reason" => reason)
}
