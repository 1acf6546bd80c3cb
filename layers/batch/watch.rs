//! Watches the rides of a service, to find tasks on runtimes that are no longer driven.

use std::{
    sync::{Arc, Weak},
    task::Wake,
};

use super::ride::Ride;
use crate::{
    caught::undisturbed,
    clock::Instant,
    mutex::Mutex,
    pulse::{ABANDONED, Pulse},
};

/// The number of rides at which ended rides are first removed. Afterwards they are removed each time the rest has
/// doubled.
const FIRST_PRUNING: usize = 16;

/// The rides of a service that may still be running.
pub(super) struct Watch {
    list: Mutex<List>,
}

struct List {
    rides: Vec<Watched>,
    prune_at: usize,
    /// The time before which no ride can count as abandoned.
    next_look: Option<Instant>,
}

struct Watched {
    batch: u64,
    // Weak: the last holder of the ride drops the call.
    ride: Weak<Ride>,
    pulse: Arc<Pulse>,
}

impl Watched {
    fn is_under_way(&self) -> bool {
        self.ride.strong_count() > 0
    }
}

impl Watch {
    pub(super) fn new() -> Self {
        Self { list: Mutex::new(List { rides: Vec::new(), prune_at: FIRST_PRUNING, next_look: None }) }
    }

    /// Watches the ride of this batch until it ends.
    pub(super) fn add(&self, batch: u64, ride: &Arc<Ride>) {
        let watched = Watched { batch, ride: Arc::downgrade(ride), pulse: Arc::clone(ride.pulse()) };
        let mut list = self.list.lock();
        if list.rides.len() >= list.prune_at {
            list.rides.retain(Watched::is_under_way);
            list.prune_at = FIRST_PRUNING.max(2 * list.rides.len());
        }
        list.rides.push(watched);
    }

    /// Returns the rides that count as abandoned at `now`, and wakes rides that sleep: the next check shows whether
    /// that got them polled.
    ///
    /// A check records when the next one can find anything. Until then, a check is a single comparison.
    pub(super) fn abandoned(&self, now: Instant) -> Vec<(u64, Arc<Ride>)> {
        let (mut abandoned, mut asleep) = (Vec::new(), Vec::new());
        let mut list = self.list.lock();
        // The clock of another runtime may have been far ahead.
        if list.next_look.is_some_and(|next| now < next && next.duration_since(now) <= ABANDONED) {
            return abandoned;
        }
        let mut next_look = now + ABANDONED;
        list.rides.retain(|watched| {
            match watched.pulse.abandoned_from() {
                Some(from) if from <= now => abandoned.extend(watched.ride.upgrade().map(|ride| (watched.batch, ride))),
                Some(from) => next_look = next_look.min(from),
                None => asleep.push(Arc::clone(&watched.pulse)),
            }
            watched.is_under_way()
        });
        list.next_look = Some(next_look);
        drop(list);
        for pulse in asleep {
            undisturbed(|| pulse.wake());
        }
        abandoned
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use tokio::runtime::Handle;

    use super::*;
    use crate::{clock, pulse::advance};

    const MILLI: Duration = Duration::from_millis(1);

    fn abandoned(watch: &Watch) -> Vec<u64> {
        watch.abandoned(clock::now()).into_iter().map(|(batch, _)| batch).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_finds_what_is_abandoned_at_that_time() {
        let watch = Watch::new();
        let [early, late] = [Ride::new(), Ride::new()];
        watch.add(1, &early);
        advance(ABANDONED / 2).await;
        late.pulse().restart();
        watch.add(2, &late);
        assert!(abandoned(&watch).is_empty());
        advance(ABANDONED / 2 - MILLI).await;
        assert!(abandoned(&watch).is_empty());
        advance(MILLI).await;
        assert_eq!(abandoned(&watch), [1]);
        advance(ABANDONED / 2).await;
        assert_eq!(abandoned(&watch), [1, 2], "a ride that was not taken over is found again");
    }

    #[tokio::test(start_paused = true)]
    async fn rides_that_have_ended_do_not_pile_up() {
        let watch = Watch::new();
        let waits = Ride::new();
        watch.add(0, &waits);
        for batch in 1..1_000 {
            watch.add(batch, &Ride::new());
            assert!(watch.list.lock().rides.len() <= FIRST_PRUNING);
        }
        advance(ABANDONED).await;
        assert_eq!(abandoned(&watch), [0]);
        assert_eq!(watch.list.lock().rides.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_ride_that_sleeps_is_woken_to_see_whether_it_is_polled() {
        let watch = Watch::new();
        let ride = Ride::new();
        watch.add(1, &ride);
        ride.start(&Handle::current(), pending());
        tokio::task::yield_now().await;
        for _ in 0..10 {
            advance(ABANDONED).await;
            assert!(abandoned(&watch).is_empty() && ride.seize().is_none(), "its task is polled");
            tokio::task::yield_now().await;
        }
        advance(ABANDONED).await;
        assert!(abandoned(&watch).is_empty());
        assert_eq!(ride.pulse().abandoned_from(), Some(clock::now() + ABANDONED), "it was woken");
    }
}
