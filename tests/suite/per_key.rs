//! One instance of a layer for each key: on a paused clock, and from many threads.

use std::{
    cell::Cell,
    convert::Infallible,
    future::{Future, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::{sync::oneshot, time::advance};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, layer::layer_fn, service_fn};
use ziggurat::{
    Class, Error, LayerEvent, LayerInfo, Reason, Scope,
    circuit_breaker::{CircuitBreakerLayer, State},
    concurrency_limit::ConcurrencyLimitLayer,
    drain::DrainLayer,
    per_key::{OwnedKey, PerKeyHandle, PerKeyLayer, Unkeyed, keep_while},
    rate_limit::RateLimitLayer,
    stack::{ClientSettings, ClientStack},
    testing::TestTask,
    timeout::TimeoutLayer,
};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

type Outcome = Result<u32, Error<&'static str>>;

/// The key of an even number is the number itself, and an odd one has none.
fn even(number: &u32) -> Result<u32, Unkeyed> {
    if number.is_multiple_of(2) { Ok(*number) } else { Err(Unkeyed::Reject) }
}

/// Every number is its own key.
fn itself(number: &u32) -> Result<u32, Unkeyed> {
    Ok(*number)
}

/// A service that returns the number, or fails with zero.
fn echo() -> impl Service<u32, Response = u32, Error = Error<&'static str>, Future: Send> + Clone + Send + 'static {
    service_fn(|number: u32| ready(if number == 0 { Err(Error::Service("zero")) } else { Ok(number) }))
}

/// Calls a service at once.
fn now<S: Service<Req, Future: Future> + Clone, Req>(service: &S, request: Req) -> Result<S::Response, S::Error> {
    service.clone().oneshot(request).now_or_never().expect("an outcome at once")
}

/// A layer that knows how many of its kind there are, and may hold its instance.
#[derive(Clone)]
struct Counted {
    _one: Arc<()>,
    matters: Arc<AtomicBool>,
}

impl<S> Layer<S> for Counted {
    type Service = S;

    fn layer(&self, inner: S) -> S {
        let matters = self.matters.clone();
        keep_while(move || matters.load(SeqCst));
        inner
    }
}

type ByItself = fn(&u32) -> Result<u32, Unkeyed>;

/// The keys of the layers that were made, and whether each is still there.
type Made = Vec<(Option<u32>, Weak<()>)>;

/// Makes layers of a kind, and counts them.
#[derive(Clone, Default)]
struct Kind {
    made: Arc<Mutex<Made>>,
    matters: Arc<AtomicBool>,
}

impl Kind {
    fn make(&self, key: Option<&u32>) -> Counted {
        let one = Arc::new(());
        self.made.lock().unwrap().push((key.copied(), Arc::downgrade(&one)));
        Counted { _one: one, matters: self.matters.clone() }
    }

    fn made(&self) -> usize {
        self.made.lock().unwrap().len()
    }

    fn alive(&self) -> Vec<Option<u32>> {
        let made = self.made.lock().unwrap();
        made.iter().filter(|(_, one)| one.strong_count() > 0).map(|(key, _)| *key).collect()
    }

    fn layer(&self) -> PerKeyLayer<OwnedKey<ByItself>, impl Fn(Option<&u32>) -> Counted + Clone, u32, Counted> {
        let kind = self.clone();
        PerKeyLayer::new(itself as ByItself, move |key: Option<&u32>| kind.make(key))
    }
}

/// Shows: K1
#[tokio::test(start_paused = true)]
async fn each_key_has_an_instance_of_its_own_which_all_services_of_the_layer_share() {
    let layer = PerKeyLayer::new(itself, |_| RateLimitLayer::new(1, DAY));
    let (first, second) = (layer.layer(echo()), layer.clone().layer(echo()));
    let other = PerKeyLayer::new(itself, |_| RateLimitLayer::new(1, DAY)).layer(echo());
    assert!(now(&first, 2).is_ok());
    assert!(now(&second, 2).unwrap_err().is_rate_limited(), "the services of one layer value share its instances");
    assert!(now(&second, 4).is_ok());
    assert!(now(&first.clone(), 4).unwrap_err().is_rate_limited());
    assert!(now(&other, 2).is_ok(), "another layer value shares nothing");
}

/// Shows: K1
#[tokio::test(start_paused = true)]
async fn the_layer_of_a_key_may_depend_on_it() {
    let layer = PerKeyLayer::new(even, |key| RateLimitLayer::new(key.map_or(1, |key| *key), DAY));
    let service = layer.layer(echo());
    let admitted = |number| (0..10).filter(|_| now(&service, number).is_ok()).count();
    assert_eq!((admitted(2), admitted(4)), (2, 4));
}

/// Shows: K1
#[tokio::test(start_paused = true)]
async fn a_request_without_a_key_shares_one_instance_or_passes_or_is_rejected() {
    let keyless = Mutex::new(Unkeyed::Share);
    let keyless = &*Box::leak(Box::new(keyless));
    let layer = PerKeyLayer::new(
        |_: &u32| Err::<u32, _>(*keyless.lock().unwrap()),
        |key| {
            assert_eq!(key, None);
            RateLimitLayer::new(1, DAY)
        },
    );
    let handle = layer.handle();
    let service = layer.layer(echo());
    assert!(handle.shared().is_none());
    assert!(now(&service, 1).is_ok());
    assert!(now(&service, 2).unwrap_err().is_rate_limited());
    assert!(handle.shared().unwrap().still_matters);

    *keyless.lock().unwrap() = Unkeyed::Pass;
    assert!((1..10).all(|number| now(&service, number).is_ok()));

    *keyless.lock().unwrap() = Unkeyed::Reject;
    let rejected = now(&service, 1);
    let rejection = ziggurat::rejection(&rejected).unwrap();
    assert_eq!((rejection.layer(), rejection.reason(), rejection.status().as_u16()), ("per_key", &Reason::NoKey, 400));
    assert_eq!(rejection.class(), Class::Ignored);
    assert_eq!((handle.key_count(), handle.overflowed()), (0, 0));
}

/// Shows: K2
#[tokio::test(start_paused = true)]
async fn an_idle_key_makes_room_for_a_new_one() {
    let kind = Kind::default();
    let layer = kind.layer().max_keys(8);
    let handle = layer.handle();
    let service = layer.layer(echo());
    for number in 1..1000 {
        assert!(now(&service, number).is_ok());
        assert!(handle.key_count() <= 8 && kind.alive().len() <= 8);
    }
    assert_eq!((kind.made(), handle.overflowed()), (999, 0));
    assert!(kind.alive().contains(&Some(999)));
}

/// Shows: K2
#[tokio::test(start_paused = true)]
async fn a_key_that_is_used_is_not_the_one_that_goes() {
    let kind = Kind::default();
    let service = kind.layer().max_keys(4).layer(echo());
    for number in 2..100 {
        assert!(now(&service, 1).is_ok() && now(&service, number).is_ok());
    }
    // Keys of few parts: the used one may be all that a look finds.
    assert!(kind.made.lock().unwrap().iter().filter(|(key, _)| *key == Some(1)).count() < 40);
}

/// Fills the cap with other keys, and returns whether key 0 is still there.
fn is_kept<S, L>(service: &S, handle: &PerKeyHandle<u32, L>) -> bool
where
    S: Service<u32> + Clone,
{
    for number in (2..200).step_by(2) {
        let _outcome = service.clone().oneshot(number).now_or_never();
    }
    handle.instance(&0).is_some()
}

/// Shows: K2
#[tokio::test(start_paused = true)]
async fn a_circuit_that_is_not_closed_keeps_its_key() {
    let layer = PerKeyLayer::new(itself, |_| CircuitBreakerLayer::consecutive(1).open_for(SECOND)).max_keys(4);
    let handle = layer.handle();
    let service = layer.layer(echo());
    assert!(now(&service, 0).is_err());
    assert!(is_kept(&service, &handle));
    assert!(now(&service, 0).unwrap_err().is_circuit_open());
    let circuit = handle.instance(&0).unwrap().layer.handle();
    advance(2 * SECOND).await;
    assert_ne!(circuit.state(), State::Closed);
    assert!(is_kept(&service, &handle));
    circuit.close();
    assert!(!is_kept(&service, &handle));
}

/// Shows: K2
#[tokio::test(start_paused = true)]
async fn an_open_circuit_of_which_nobody_asks_any_more_makes_room() {
    let layer = PerKeyLayer::new(itself, |_| CircuitBreakerLayer::consecutive(1).open_for(SECOND)).max_keys(4);
    let handle = layer.handle();
    let service = layer.layer(echo());
    assert!(now(&service, 0).is_err());
    // The open time is drawn at random.
    advance(60 * SECOND).await;
    assert!(is_kept(&service, &handle));
    advance(10 * SECOND).await;
    assert!(!is_kept(&service, &handle));

    // One that was opened by hand stays.
    assert!(now(&service, 0).is_err());
    handle.instance(&0).unwrap().layer.handle().force_open();
    advance(DAY).await;
    assert!(is_kept(&service, &handle));
}

/// Shows: K2
#[tokio::test(start_paused = true)]
async fn a_true_cost_that_is_not_known_yet_keeps_its_key() {
    let inner = service_fn(|_: u32| ready(Ok::<_, Error<Infallible>>(Response::new("ten bytes!".to_owned()))));
    let limit = |_: Option<&u32>| RateLimitLayer::new(1, SECOND).settle_bytes();
    let layer = PerKeyLayer::new(itself, limit).max_keys(4);
    let (handle, service) = (layer.handle(), layer.layer(inner));
    let response = now(&service, 0).unwrap();
    advance(DAY).await;
    assert!(is_kept(&service, &handle), "the bucket is full, but not for long");
    response.into_body().collect().await.unwrap();
    assert!(is_kept(&service, &handle));
    assert!(now(&service, 0).unwrap_err().is_rate_limited());
    advance(10 * SECOND).await;
    assert!(!is_kept(&service, &handle));
}

/// Shows: K2
#[tokio::test(start_paused = true)]
async fn a_bucket_that_is_not_full_keeps_its_key() {
    let layer =
        PerKeyLayer::new(itself, |key: Option<&u32>| RateLimitLayer::new(1, SECOND * (1 + u32::from(key == Some(&0)))))
            .max_keys(4);
    let handle = layer.handle();
    let service = layer.layer(echo());
    let _zero_fails = now(&service, 0);
    advance(SECOND).await;
    assert!(is_kept(&service, &handle));
    assert!(now(&service, 0).unwrap_err().is_rate_limited());
    advance(SECOND).await;
    assert!(!is_kept(&service, &handle));
}

/// Shows: K2
#[tokio::test(start_paused = true)]
async fn permits_that_a_body_holds_keep_their_key() {
    let inner = service_fn(|_: u32| ready(Ok::<_, Error<Infallible>>(Response::new("a body".to_owned()))));
    let limit = |_: Option<&u32>| ConcurrencyLimitLayer::new(1).max_waiting(0).until_body_end();
    let layer = PerKeyLayer::new(itself, limit).max_keys(4);
    let (handle, service) = (layer.handle(), layer.layer(inner));
    let response = now(&service, 0).unwrap();
    assert_eq!(handle.instance(&0).unwrap().in_flight, 0);
    assert!(is_kept(&service, &handle));
    assert!(now(&service, 0).unwrap_err().is_overloaded());
    response.into_body().collect().await.unwrap();
    assert!(!is_kept(&service, &handle));
}

/// Shows: K2
#[tokio::test(start_paused = true)]
async fn a_drain_that_has_begun_keeps_its_key() {
    let inner = service_fn(|_: Request<u32>| ready(Ok::<_, Error<Infallible>>(Response::new("a body".to_owned()))));
    let layer = PerKeyLayer::new(|request: &Request<u32>| Ok(*request.body()), |_| DrainLayer::new()).max_keys(4);
    let (handle, service) = (layer.handle(), layer.layer(inner));
    let service = ServiceBuilder::new().map_request(Request::new).service(service);
    let response = now(&service, 0).unwrap();
    assert!(is_kept(&service, &handle));
    drop(response);
    drop(handle.instance(&0).unwrap().layer.handle().drain());
    assert!(is_kept(&service, &handle));
    assert!(now(&service, 0).is_err());
}

/// Shows: K2
#[tokio::test(start_paused = true)]
async fn a_call_under_way_keeps_its_key_in_any_layer() {
    let (answer, answered) = oneshot::channel::<()>();
    let answered = answered.shared();
    let inner = service_fn(move |number: u32| {
        let answered = answered.clone();
        async move {
            if number == 0 {
                let _sent = answered.await;
            }
            Ok::<_, Error<&str>>(number)
        }
    });
    // A layer that says nothing about its state.
    let layer = PerKeyLayer::new(itself, |_| layer_fn(|inner| inner)).max_keys(4);
    let (handle, service) = (layer.handle(), layer.layer(inner));
    let mut call = TestTask::new(service.clone().oneshot(0));
    assert!(call.poll().is_pending());
    assert_eq!(handle.instance(&0).unwrap().in_flight, 1);
    assert!(is_kept(&service, &handle));
    answer.send(()).unwrap();
    assert!(call.poll().is_ready());
    assert!(!is_kept(&service, &handle));

    // A call that was not polled, and is dropped.
    let unpolled = service.clone().call(0);
    assert!(is_kept(&service, &handle));
    drop(unpolled);
    assert!(!is_kept(&service, &handle));
}

/// Shows: K2
#[tokio::test(start_paused = true)]
async fn state_in_the_service_of_any_route_keeps_its_key() {
    // Each service has a circuit of its own.
    let layer = PerKeyLayer::new(itself, |_| layer_fn(|inner| CircuitBreakerLayer::consecutive(1).layer(inner)));
    let layer = layer.max_keys(4);
    let route = |fails: bool| service_fn(move |_: u32| ready(if fails { Err(Error::Service("down")) } else { Ok(0) }));
    let (handle, first, second) = (layer.handle(), layer.layer(route(false)), layer.layer(route(true)));
    assert!(now(&first, 0).is_ok() && now(&second, 0).is_err());
    assert!(is_kept(&first, &handle));
    assert!(now(&first, 0).is_ok());
    assert!(now(&second, 0).unwrap_err().is_circuit_open());
    drop(second);
    assert!(!is_kept(&first, &handle), "the circuit is gone");
}

/// Shows: K2
#[tokio::test(start_paused = true)]
async fn a_layer_of_another_crate_can_keep_its_key_too() {
    let kind = Kind::default();
    let layer = kind.layer().max_keys(4);
    let (handle, service) = (layer.handle(), layer.layer(echo()));
    kind.matters.store(true, SeqCst);
    let _zero_fails = now(&service, 0);
    assert!(is_kept(&service, &handle));
    kind.matters.store(false, SeqCst);
    assert!(!is_kept(&service, &handle));
}

/// Shows: K2
#[tokio::test(start_paused = true)]
async fn keys_beyond_the_maximum_share_one_instance_or_pass_or_are_rejected() {
    let outcomes = |beyond: Option<Unkeyed>| {
        let layer = PerKeyLayer::new(itself, |_| RateLimitLayer::new(1, DAY)).max_keys(2);
        let layer = beyond.into_iter().fold(layer, PerKeyLayer::overflow);
        let (handle, service) = (layer.handle(), layer.layer(echo()));
        let outcomes: Vec<Outcome> = [1, 2, 3, 4, 5, 1].into_iter().map(|number| now(&service, number)).collect();
        assert_eq!((handle.key_count(), handle.overflowed()), (2, 3));
        outcomes
    };
    let reasons = |outcomes: Vec<Outcome>| {
        let reason = |outcome| ziggurat::rejection(outcome).map(|rejection| rejection.reason().as_str());
        outcomes.iter().map(|outcome| reason(outcome).unwrap_or("ok")).collect::<Vec<_>>()
    };
    let limited = "rate_limited";
    assert_eq!(reasons(outcomes(None)), ["ok", "ok", "ok", limited, limited, limited]);
    assert_eq!(reasons(outcomes(Some(Unkeyed::Pass))), ["ok", "ok", "ok", "ok", "ok", limited]);
    let rejected = outcomes(Some(Unkeyed::Reject));
    let rejection = ziggurat::rejection(&rejected[2]).unwrap();
    assert_eq!((rejection.reason(), rejection.status().as_u16()), (&Reason::TooManyKeys { max: 2 }, 503));
    let too_many = "too_many_keys";
    assert_eq!(reasons(rejected), ["ok", "ok", too_many, too_many, too_many, limited]);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_is_an_event_of_the_named_layer() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let events = seen.clone();
    let layer = PerKeyLayer::new(even, |_| TimeoutLayer::new(SECOND)).named("tenants").observer(
        move |info: &LayerInfo, event: &LayerEvent<'_>| {
            events.lock().unwrap().push((info.name().unwrap().to_owned(), format!("{event:?}")));
        },
    );
    assert!(now(&layer.layer(echo()), 1).is_err());
    assert_eq!(seen.lock().unwrap().len(), 1);
    let (name, event) = seen.lock().unwrap().remove(0);
    assert_eq!(name, "tenants");
    assert!(event.contains("NoKey"), "{event}");
}

#[tokio::test(start_paused = true)]
async fn the_maximum_can_be_lowered_while_it_is_in_use() {
    let kind = Kind::default();
    let layer = kind.layer().max_keys(100);
    let (handle, service) = (layer.handle(), layer.layer(echo()));
    assert!((1..=100).all(|number| now(&service, number).is_ok()));
    assert_eq!(handle.key_count(), 100);
    handle.set_max_keys(10);
    assert!((101..=200).all(|number| now(&service, number).is_ok()));
    assert_eq!((handle.key_count(), handle.max_keys(), kind.alive().into_iter().flatten().count()), (10, 10, 10));
}

#[test]
#[should_panic(expected = "the maximum number of keys must be at least 1")]
fn a_maximum_of_zero_is_a_mistake() {
    let _ = PerKeyLayer::new(itself, |_| TimeoutLayer::new(SECOND)).max_keys(0);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_dropped_releases_what_it_has_inside() {
    let held = Arc::new(());
    let inner = |held: &Arc<()>| {
        let held = held.clone();
        service_fn(move |number: u32| {
            let _held = &held;
            ready(Ok::<_, Error<&str>>(number))
        })
    };
    let layer = PerKeyLayer::new(
        |number: &u32| if *number < 100 { Ok(*number) } else { Err(Unkeyed::Share) },
        |_| TimeoutLayer::new(SECOND),
    );
    let (first, second) = (layer.layer(inner(&held)), layer.layer(inner(&held)));
    for number in 0..200 {
        assert!(now(&first, number).is_ok() && now(&second, number).is_ok());
    }
    assert!(Arc::strong_count(&held) > 200);
    let clone = first.clone();
    drop((first, second));
    assert!((0..200).all(|number| now(&clone, number).is_ok()));
    drop(clone);
    assert_eq!(Arc::strong_count(&held), 1);
    assert_eq!(layer.handle().key_count(), 100, "the layer keeps its instances");
}

#[tokio::test(start_paused = true)]
async fn a_key_whose_layer_could_not_be_made_is_new_to_its_next_request() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let layer = PerKeyLayer::new(itself, move |_| {
        assert!(count.fetch_add(1, SeqCst) % 2 == 1, "the first of two");
        TimeoutLayer::new(SECOND)
    })
    .max_keys(2);
    let (handle, service) = (layer.handle(), layer.layer(echo()));
    for number in [2, 4] {
        assert!(catch_unwind(AssertUnwindSafe(|| now(&service, number))).is_err());
        assert_eq!(handle.key_count(), number as usize / 2 - 1, "the room was given back");
        assert!(now(&service, number).is_ok());
    }
    assert_eq!((handle.key_count(), handle.overflowed()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn keys_of_keys_keep_the_outer_key() {
    let by_tens = |number: &u32| Ok::<_, Unkeyed>(number / 10);
    let layer =
        PerKeyLayer::new(by_tens, move |_| PerKeyLayer::new(itself, |_| RateLimitLayer::new(1, DAY))).max_keys(1);
    let (handle, service) = (layer.handle(), layer.layer(echo()));
    assert!(now(&service, 1).is_ok() && now(&service, 2).is_ok());
    assert!(now(&service, 1).unwrap_err().is_rate_limited());
    assert!(now(&service, 10).is_ok());
    assert!(now(&service, 1).unwrap_err().is_rate_limited(), "the instance of the first ten was not replaced");
    assert_eq!((handle.key_count(), handle.overflowed()), (1, 1));
}

/// Shows: K2
///
/// Each thread calls the same few keys, and there are more keys than instances. A call checks that no second instance
/// of its key is in use meanwhile.
#[test]
fn no_key_has_two_instances_in_use() {
    const KEYS: u32 = 12;
    struct Used(Arc<Mutex<Vec<(u64, usize)>>>, u32);
    impl Drop for Used {
        fn drop(&mut self) {
            self.0.lock().unwrap()[self.1 as usize].1 -= 1;
        }
    }
    thread_local!(static PICK: Cell<u32> = const { Cell::new(1) });
    let (next, in_use) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(vec![(0_u64, 0_usize); KEYS as usize])));
    let layer = PerKeyLayer::new(itself, move |key: Option<&u32>| {
        let (id, key, in_use) = (next.fetch_add(1, SeqCst) as u64, key.copied(), in_use.clone());
        layer_fn(move |inner| {
            let in_use = in_use.clone();
            ServiceBuilder::new()
                .map_request(move |number: u32| {
                    let used = key.map(|key| {
                        let mut all = in_use.lock().unwrap();
                        let (user, count) = &mut all[key as usize];
                        assert!(*count == 0 || *user == id, "two instances of {key} are in use");
                        (*user, *count) = (id, *count + 1);
                        drop(all);
                        Used(in_use.clone(), key)
                    });
                    (number, used)
                })
                .service(inner)
        })
    })
    .max_keys(5);
    let handle = layer.handle();
    let service = layer.layer(service_fn(|(number, _used): (u32, Option<Used>)| async move {
        tokio::task::yield_now().await;
        Ok::<_, Error<Infallible>>(number)
    }));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    runtime.block_on(async {
        let calls = (0..4_u32).map(|task| {
            let service = service.clone();
            tokio::spawn(async move {
                for round in 0..2_000_u32 {
                    let number = PICK.with(|pick| {
                        pick.set(pick.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223 + task + round));
                        (pick.get() >> 16) % KEYS
                    });
                    assert_eq!(service.clone().oneshot(number).await.unwrap(), number);
                }
            })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap();
        }
    });
    assert!(handle.key_count() <= 5);
    assert!(handle.instances().iter().all(|instance| instance.in_flight == 0));
}

/// Shows: K1
#[tokio::test(start_paused = true)]
async fn the_handle_lists_keys_and_states() {
    let layer = PerKeyLayer::new(itself, |_| CircuitBreakerLayer::consecutive(1)).max_keys(10);
    let (handle, service) = (layer.handle(), layer.layer(echo()));
    let _outcomes = [now(&service, 0), now(&service, 1)];
    let mut listed = handle.instances();
    listed.sort_by_key(|instance| instance.key);
    let states: Vec<_> = listed.iter().map(|one| (one.key, one.layer.handle().state(), one.still_matters)).collect();
    assert_eq!(states, [(0, State::Open, true), (1, State::Closed, false)]);
    assert_eq!((handle.key_count(), handle.max_keys()), (2, 10));
    assert!(handle.instance(&2).is_none());
}

/// Shows: K1
#[tokio::test(start_paused = true)]
async fn the_recommended_client_can_be_one_for_each_host() {
    let app = Scope::root("app").with(ClientSettings::default().min_calls(1));
    let stacks = PerKeyLayer::host(Unkeyed::Share, {
        let app = app.clone();
        move |_| ClientStack::http("api").settings_from(&app).without_retry()
    });
    let hosts = stacks.handle();
    let client =
        ServiceBuilder::new().layer(stacks).map_err(Error::Service).service(service_fn(|request: Request<String>| {
            let status = if request.uri().host() == Some("down.test") { 503 } else { 200 };
            ready(Ok::<_, Infallible>(Response::builder().status(status).body(String::new()).unwrap()))
        }));
    let call = async |uri: &str| client.clone().oneshot(Request::get(uri).body(String::new()).unwrap()).await;
    assert_eq!(call("http://down.test/").await.unwrap().status(), 503);
    assert!(call("http://down.test/").await.unwrap_err().is_circuit_open());
    assert_eq!(call("http://up.test/").await.unwrap().status(), 200);
    // A change of the settings reaches each of them with its next request.
    let limit = || hosts.instance("up.test").unwrap().layer.gate().limit();
    assert!(limit() > 1);
    app.update(|settings: &ClientSettings| settings.max_in_flight(1)).unwrap();
    assert_eq!(call("http://up.test/").await.unwrap().status(), 200);
    assert_eq!(limit(), 1);
}
