//! Bad input, and user functions that panic.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tower::{Layer, ServiceBuilder};
use ziggurat::{Classify, FailOnError, LayerEvent, LayerInfo, cache::CacheLayer};

use super::*;

#[test]
fn a_capacity_of_zero_is_refused() {
    let made = catch_unwind(|| CacheLayer::<_, String, _>::new(0, SECOND, itself));
    assert_eq!(*made.unwrap_err().downcast::<&str>().unwrap(), "capacity must be at least 1, not 0");
}

/// Every other capacity, ttl, window and weight is valid.
#[tokio::test(start_paused = true)]
async fn extremes_hold() {
    for capacity in [1, 2, usize::MAX] {
        for ttl in [Duration::ZERO, INSTANT, Duration::MAX] {
            for weight in [0, 1, u64::MAX] {
                let (calls, service) = counter();
                let layer = CacheLayer::new(capacity, ttl, itself)
                    .weigh(move |_, _| weight)
                    .stale_if_error(Duration::MAX)
                    .stale_while_revalidate(Duration::ZERO);
                let (cache, service) = (layer.handle(), layer.layer(service));
                for _ in 0..2 {
                    for request in ["a", "b", "c"] {
                        service.clone().oneshot(request).await.unwrap();
                    }
                }
                let stored = !ttl.is_zero() && weight <= capacity as u64;
                let all_fit = capacity > 2 && weight < u64::MAX;
                assert_eq!(cache.is_empty(), !stored);
                match calls.load(SeqCst) {
                    3 => assert!(stored && all_fit, "{capacity} {ttl:?} {weight}"),
                    6 => assert!(!stored || !all_fit, "{capacity} {ttl:?} {weight}"),
                    calls => assert!(stored && capacity <= 2, "{calls} {capacity} {ttl:?} {weight}"),
                }
            }
        }
    }
}

/// Panics once, at one point, after it was passed a number of times.
#[derive(Clone, Default)]
struct Trip(Arc<Mutex<Option<(&'static str, usize)>>>);

impl Trip {
    fn arm(&self, point: &'static str, passes: usize) {
        *self.0.lock().unwrap() = Some((point, passes));
    }

    fn pass(&self, point: &'static str) {
        let mut armed = self.0.lock().unwrap();
        match &mut *armed {
            Some((at, 0)) if *at == point => {
                *armed = None;
                drop(armed);
                panic!("tripped at {point}");
            }
            Some((at, passes)) if *at == point => *passes -= 1,
            _ => {}
        }
    }
}

/// A response and an error that may panic.
struct Answer(Trip);
struct Failure(Trip);

impl Clone for Answer {
    fn clone(&self) -> Self {
        self.0.pass("copy");
        Self(self.0.clone())
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.pass("message");
        f.write_str("failed")
    }
}

/// Wherever user code panics, it fails its own request and no other: waiters get a response, and so do later callers.
///
/// Shows: C4
#[tokio::test(start_paused = true)]
async fn a_function_that_panics_wedges_nothing() {
    let points = [
        ("key", 0),
        ("classify", 0),
        ("ttl", 0),
        ("weigh", 0),
        ("copy", 0),
        // for the waiters
        ("copy", 1),
        ("observer", 0),
        ("message", 0),
    ];
    for (point, passes) in points {
        let (trip, (backend, strict)) = (Trip::default(), backend());
        let at = |point| {
            let trip = trip.clone();
            move || trip.pass(point)
        };
        let (key, ttl, weigh, classify, observer) = (at("key"), at("ttl"), at("weigh"), at("classify"), at("observer"));
        let (answer, failure) = (trip.clone(), trip.clone());
        let layer = CacheLayer::new(
            10,
            move |_: &_, _: &_| {
                ttl();
                SECOND
            },
            move |request: &&'static str| {
                key();
                Some(*request)
            },
        )
        .weigh(move |_, _| {
            weigh();
            1
        })
        .classify(move |outcome: Result<&Answer, &Error<Failure>>| {
            classify();
            FailOnError.classify(outcome)
        })
        .observer(move |_: &LayerInfo, _: &LayerEvent<'_>| observer());
        let service = ServiceBuilder::new()
            .layer(layer)
            .map_response(move |_| Answer(answer.clone()))
            .map_err(move |_| Error::Service(Failure(failure.clone())))
            .service(strict);

        let call = || TestTask::new(service.clone().oneshot("a"));
        let (mut leader, mut first, mut second) = (call(), call(), call());
        for task in [&mut leader, &mut first, &mut second] {
            assert!(task.poll().is_pending());
        }
        trip.arm(point, passes);
        let panicked = if point == "key" {
            catch_unwind(AssertUnwindSafe(|| call().poll().is_ready()))
        } else {
            backend.answer(0, if point == "message" { Err(Error::Service("failed")) } else { ok("done") });
            catch_unwind(AssertUnwindSafe(|| leader.poll().is_ready()))
        };
        assert!(panicked.is_err(), "{point} {passes}");
        if point == "key" {
            backend.answer(0, ok("done"));
            assert!(answered(leader.poll()).is_ok());
        }
        for mut task in [first, second, call()] {
            if task.poll().is_pending() {
                assert_eq!(backend.calls(), 2, "{point} {passes}: one call in the place of the one that was lost");
                backend.answer(1, ok("done"));
                assert!(answered(task.poll()).is_ok(), "{point} {passes}");
            }
        }
    }
}

/// A key that can be hashed once. Each further time panics, and a double panic would abort the program.
#[derive(Clone)]
struct Once(&'static str, Arc<AtomicBool>);

impl PartialEq for Once {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Once {}

impl std::hash::Hash for Once {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        assert!(!self.1.swap(true, SeqCst), "hashed again");
        self.0.hash(state);
    }
}

/// Storing, handing on and giving up a flight do not use the key's `Hash`, which ran when the request arrived.
///
/// Shows: C4
#[tokio::test(start_paused = true)]
async fn a_key_is_hashed_once() {
    let (backend, strict) = backend();
    let key = |request: &&'static str| Some(Once(request, Arc::default()));
    let layer = CacheLayer::new(1, SECOND, key).stale_while_revalidate(SECOND);
    let (cache, service) = (layer.handle(), layer.layer(strict));
    let mut calls = ["a", "a", "a", "b", "b"].map(|request| Some(task(&service, request)));
    for call in calls.iter_mut().flatten() {
        assert!(call.poll().is_pending());
    }
    // Its waiter takes over.
    calls[0] = None;
    assert!(calls[1].as_mut().unwrap().poll().is_pending());
    for call in [2, 1] {
        backend.answer(call, ok("done"));
    }
    for call in calls.iter_mut().flatten() {
        assert_eq!(answered(call.poll()).unwrap(), "done");
    }
    assert_eq!(cache.len(), 1);
    tokio::time::advance(SECOND).await;
    assert!(task(&service, "b").poll().is_ready());
    tokio::task::yield_now().await;
    assert_eq!((cache.stats().refreshes, cache.invalidate_if(|_| true)), (1, 1));
}
