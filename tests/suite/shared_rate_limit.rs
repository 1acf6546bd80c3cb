//! The shared rate limit over a store whose behaviour can be changed, on a paused clock. `tests/redis.rs` has a real
//! server.

use std::{
    future::pending,
    ops::RangeInclusive,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    task::Poll,
    time::Duration,
};

use tokio::{
    task::{JoinSet, yield_now},
    time::{Instant, advance, sleep},
};
use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimitLayer as TowerLimitLayer, service_fn};
use ziggurat::{
    Error, LayerEvent, LayerInfo, Reason,
    shared_rate_limit::{SharedRateLimitLayer, WhenAway},
    store::{MemoryStore, Quota, Taken, TokenStore},
    testing::{Strict, TestTask},
};

use super::{
    concurrency_limit::start,
    rate_limit::{Made, recording},
};

mod edges;

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The defaults.
const TIMEOUT: Duration = Duration::from_millis(100);
const KEEP: Duration = Duration::from_millis(100);

type Failed = Error<&'static str>;

/// How a store behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Behaviour {
    Answers,
    /// Decides at once, and answers after this time.
    AnswersAfter(Duration),
    Fails,
    Panics,
    Hangs,
    /// Grants nothing, as no store may.
    GrantsNothing,
    /// Denies for this time, as no bucket would.
    Denies(Duration),
}

/// A store of the test. Clones are the connections of several processes to one server.
#[derive(Clone)]
struct Server {
    memory: Arc<MemoryStore>,
    behaviour: Arc<Mutex<Behaviour>>,
    requests: Arc<AtomicU32>,
}

impl Server {
    fn new(behaviour: Behaviour) -> Self {
        let memory = Arc::new(MemoryStore::new());
        Self { memory, behaviour: Arc::new(Mutex::new(behaviour)), requests: Arc::default() }
    }

    fn becomes(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    /// Returns the number of requests since the last time.
    fn requests(&self) -> u32 {
        self.requests.swap(0, Ordering::Relaxed)
    }

    /// Takes all tokens that there are.
    async fn drain(&self, quota: Quota) -> u32 {
        let mut taken = 0;
        while let Ok(Taken::Granted { tokens, .. }) = self.memory.take("api", 1..=u32::MAX, &quota).await {
            taken += tokens;
        }
        taken
    }
}

impl TokenStore for Server {
    type Error = &'static str;

    async fn take(&self, key: &str, tokens: RangeInclusive<u32>, quota: &Quota) -> Result<Taken, &'static str> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let behaviour = *self.behaviour.lock().unwrap();
        match behaviour {
            Behaviour::Answers | Behaviour::AnswersAfter(_) => {}
            Behaviour::Fails => return Err("refused"),
            Behaviour::Panics => panic!("at the disco"),
            Behaviour::Hangs => pending().await,
            Behaviour::GrantsNothing => return Ok(Taken::Granted { tokens: 0, at: 0 }),
            Behaviour::Denies(wait) => return Ok(Taken::Denied { wait }),
        }
        let Ok(taken) = self.memory.take(key, tokens, quota).await;
        if let Behaviour::AnswersAfter(time) = behaviour {
            sleep(time).await;
        }
        Ok(taken)
    }

    async fn give_back(&self, key: &str, tokens: u32, at: u64, quota: &Quota) -> Result<(), &'static str> {
        let Ok(()) = self.memory.give_back(key, tokens, at, quota).await;
        Ok(())
    }
}

/// Its requests are their own cost.
fn echo() -> impl Service<u32, Response = u32, Error = Failed, Future: Send> + Clone + Send + Sync {
    Strict::new(service_fn(async |cost: u32| Ok(cost)))
}

fn itself(cost: &u32) -> u32 {
    *cost
}

type Limit = SharedRateLimitLayer<Server, &'static str, fn(&u32) -> u32>;

fn limit(server: &Server, quota: Quota, when_away: WhenAway) -> Limit {
    SharedRateLimitLayer::new(server.clone(), "api", quota, when_away).cost(itself as fn(&u32) -> u32)
}

async fn call(limit: &Limit, cost: u32) -> Result<u32, Failed> {
    limit.layer(echo()).oneshot(cost).await
}

fn wait<R>(outcome: &Result<R, Failed>) -> Duration {
    let rejection = ziggurat::rejection(outcome).unwrap();
    assert!(rejection.is_rate_limited(), "{rejection}");
    rejection.retry_after().unwrap()
}

/// The message of a rejection because the store is away.
fn unavailable<R>(outcome: &Result<R, Failed>) -> String {
    let rejection = ziggurat::rejection(outcome).unwrap();
    let Reason::StoreUnavailable { message } = rejection.reason() else { panic!("{rejection}") };
    assert!(rejection.is_unprocessed());
    assert_eq!(rejection.status(), 503);
    message.to_string()
}

/// Shows: Q5
#[tokio::test(start_paused = true)]
async fn processes_share_the_bucket_of_a_key() {
    let server = Server::new(Behaviour::Answers);
    let processes = [(); 3].map(|()| limit(&server, Quota::new(4, SECOND), WhenAway::Reject));
    for process in processes.iter().cycle().take(4) {
        assert!(call(process, 1).await.is_ok());
    }
    for process in &processes {
        assert_eq!(wait(&call(process, 1).await), 250 * MILLI);
        assert_eq!(wait(&call(process, 3).await), 750 * MILLI);
    }
    advance(250 * MILLI).await;
    let mut admitted = 0;
    for process in &processes {
        admitted += u32::from(call(process, 1).await.is_ok());
    }
    assert_eq!(admitted, 1);
    let other = SharedRateLimitLayer::new(server, "other", Quota::new(4, SECOND), WhenAway::Reject);
    assert!(other.layer(echo()).oneshot(1).await.is_ok());
}

/// Shows: Q5
#[tokio::test(start_paused = true)]
async fn a_busy_process_asks_rarely_and_an_idle_one_holds_nothing() {
    let server = Server::new(Behaviour::Answers);
    let busy = limit(&server, Quota::new(1000, SECOND), WhenAway::Reject);
    for _ in 0..2000 {
        assert!(call(&busy, 1).await.is_ok());
        advance(2 * MILLI).await;
    }
    // Twenty times a second, or a little more often.
    let requests = server.requests();
    assert!(requests <= 4 * 25, "{requests}");
    assert_eq!(busy.handle().requests(), u64::from(requests));
    assert!(busy.handle().leased() <= 50);
    advance(KEEP).await;
    assert_eq!(busy.handle().leased(), 0);

    let idle = limit(&server, Quota::new(1000, SECOND), WhenAway::Reject);
    for _ in 0..10 {
        assert!(call(&idle, 1).await.is_ok());
        assert_eq!(idle.handle().leased(), 0);
        advance(SECOND).await;
    }
}

/// Shows: Q5
#[tokio::test(start_paused = true)]
async fn an_empty_bucket_is_asked_again_only_when_it_may_have_tokens() {
    let server = Server::new(Behaviour::Answers);
    let limit = limit(&server, Quota::new(10, SECOND), WhenAway::Reject);
    assert!(call(&limit, 10).await.is_ok());
    assert_eq!(server.requests(), 1);
    for _ in 0..100 {
        assert_eq!(wait(&call(&limit, 3).await), 300 * MILLI);
        assert_eq!(wait(&call(&limit, 5).await), 500 * MILLI);
    }
    assert_eq!(server.requests(), 1);
    // A cheaper call may come earlier.
    assert_eq!(wait(&call(&limit, 1).await), 100 * MILLI);
    assert_eq!(server.requests(), 1);
    advance(300 * MILLI - Duration::from_nanos(1)).await;
    assert!(call(&limit, 3).await.is_err());
    advance(Duration::from_nanos(1)).await;
    assert!(call(&limit, 3).await.is_ok());
}

/// Shows: Q5
#[tokio::test(start_paused = true)]
async fn calls_at_the_same_time_share_one_request_and_are_admitted_in_order() {
    let server = Server::new(Behaviour::AnswersAfter(5 * MILLI));
    let layer = limit(&server, Quota::new(1, SECOND).burst(60), WhenAway::Reject).lease(100, KEEP);
    let mut service = layer.layer(echo());
    let mut calls = Vec::from_iter((0..100).map(|_| start(&mut service, 1)));
    let begin = Instant::now();
    assert!(calls.iter_mut().all(|call| call.poll().is_pending()));
    assert_eq!((server.requests(), layer.handle().waiting()), (1, 100));
    while calls.iter().any(|call| call.times_woken() == 0) {
        sleep(MILLI).await;
        assert!(begin.elapsed() <= TIMEOUT);
    }
    let admitted = Vec::from_iter(calls.iter_mut().map(|call| matches!(call.poll(), Poll::Ready(Ok(_)))));
    assert!(admitted[..60].iter().all(|admitted| *admitted), "{admitted:?}");
    assert!(!admitted[60..].contains(&true), "{admitted:?}");
    // The first asked for its own token, the next for all others, of which the store grants at least half of those
    // that it has.
    let requests = server.requests();
    assert!(requests <= 8, "{requests}");
    assert_eq!(layer.handle().waiting(), 0);
}

/// Shows: Q5
#[tokio::test(start_paused = true)]
async fn a_caller_that_is_dropped_while_its_request_is_under_way_takes_nothing_with_it() {
    let server = Server::new(Behaviour::AnswersAfter(5 * MILLI));
    let quota = Quota::new(10, DAY).burst(3);
    let layer = limit(&server, quota, WhenAway::Reject);
    let mut service = layer.layer(echo());
    let mut leader = start(&mut service, 1);
    assert!(leader.poll().is_pending());
    let mut follower = start(&mut service, 1);
    assert!(follower.poll().is_pending());
    drop(leader);
    assert_eq!(layer.handle().waiting(), 1);
    sleep(6 * MILLI).await;
    // It has the token that the leader had asked for.
    assert!(matches!(follower.poll(), Poll::Ready(Ok(_))));
    assert_eq!((server.requests(), layer.handle().waiting(), layer.handle().leased()), (1, 0, 0));

    // If no other call waits, the token is kept for the next call.
    let mut only = start(&mut service, 1);
    assert!(only.poll().is_pending());
    drop(only);
    sleep(6 * MILLI).await;
    assert_eq!(layer.handle().leased(), 1);
    assert!(matches!(start(&mut service, 1).poll(), Poll::Ready(Ok(_))));
    assert_eq!((server.requests(), server.drain(quota).await), (1, 1));
}

/// Shows: Q5
#[tokio::test(start_paused = true)]
async fn tokens_of_a_call_that_is_dropped_before_it_was_made_return_to_the_lease() {
    let server = Server::new(Behaviour::AnswersAfter(5 * MILLI));
    let layer = limit(&server, Quota::new(10, DAY), WhenAway::Reject);
    // Granted, but dropped before it knew.
    let mut call = start(&mut layer.layer(echo()), 2);
    assert!(call.poll().is_pending());
    sleep(6 * MILLI).await;
    assert_eq!(layer.handle().leased(), 0);
    drop(call);
    assert_eq!(layer.handle().leased(), 2);
    assert!(matches!(start(&mut layer.layer(echo()), 2).poll(), Poll::Ready(Ok(_))));

    // Granted, and waiting for the inner service.
    let inner = TowerLimitLayer::new(1).layer(echo());
    let mut taken = inner.clone();
    let mut call = TestTask::new(layer.layer(inner).oneshot(2));
    assert!(call.poll().is_pending());
    let _ready = taken.ready().await.unwrap();
    sleep(6 * MILLI).await;
    assert!(call.poll().is_pending());
    assert_eq!(layer.handle().leased(), 0);
    drop(call);
    assert_eq!(layer.handle().leased(), 2);
}

/// tower's limit stands for every inner service that reserves something when it is made ready.
#[tokio::test(start_paused = true)]
async fn a_call_that_waits_or_is_rejected_does_not_hoard_what_the_inner_service_reserved() {
    let server = Server::new(Behaviour::Hangs);
    let layer = limit(&server, Quota::new(10, SECOND), WhenAway::Reject);
    let inner = TowerLimitLayer::new(1).layer(echo());
    let mut service = layer.layer(inner.clone());
    for cost in [1, 11] {
        let _waiting = start(&mut service, cost);
        assert!(start(&mut inner.clone(), 1).poll().is_ready());
    }
}

/// Shows: Q5
#[tokio::test(start_paused = true)]
async fn while_the_store_fails_the_choice_decides() {
    let server = Server::new(Behaviour::Fails);
    let quota = Quota::new(1000, SECOND);
    let admit = limit(&server, quota, WhenAway::Admit);
    for _ in 0..5_000 {
        assert!(call(&admit, 1).await.is_ok());
    }
    let reject = limit(&server, quota, WhenAway::Reject);
    for _ in 0..100 {
        let outcome = call(&reject, 1).await;
        assert_eq!(unavailable(&outcome), "refused");
        let wait = ziggurat::rejection(&outcome).unwrap().retry_after().unwrap();
        assert!(wait <= 100 * MILLI, "{wait:?}");
    }
    // Two of ten at once, and then one each tenth of a second, in each of two processes.
    for _ in 0..2 {
        let share = limit(&server, quota, WhenAway::Share(Quota::new(10, SECOND).burst(2)));
        assert!(call(&share, 1).await.is_ok() && call(&share, 1).await.is_ok());
        assert_eq!(wait(&call(&share, 1).await), 100 * MILLI);
        assert_eq!(wait(&call(&share, 2).await), 200 * MILLI);
        assert_eq!(unavailable(&call(&share, 3).await), "refused");
        advance(100 * MILLI).await;
        assert!(call(&share, 1).await.is_ok());
        assert_eq!(wait(&call(&share, 1).await), 100 * MILLI);
    }
    // One request found out, and one in a tenth of a second looked again.
    assert!(server.requests() <= 6);
    for limit in [admit, reject] {
        assert!(limit.handle().is_away());
    }
}

/// Shows: Q5
#[tokio::test(start_paused = true)]
async fn no_call_waits_for_a_store_that_hangs_longer_than_its_timeout_and_later_ones_do_not_wait() {
    for when_away in [WhenAway::Admit, WhenAway::Reject, WhenAway::Share(Quota::new(1, DAY))] {
        let server = Server::new(Behaviour::Hangs);
        let limit = limit(&server, Quota::new(100, SECOND), when_away);
        let begin = Instant::now();
        let mut calls = JoinSet::new();
        for late in 0..50 {
            let service = limit.layer(echo());
            calls.spawn(async move {
                sleep(late * MILLI).await;
                let at = Instant::now();
                let outcome = service.oneshot(1).await;
                assert!(at.elapsed() <= TIMEOUT);
                outcome.is_ok()
            });
        }
        let admitted = calls.join_all().await.into_iter().filter(|admitted| *admitted).count();
        assert_eq!((begin.elapsed(), server.requests()), (TIMEOUT, 1), "{when_away:?}");
        let expected = match when_away {
            WhenAway::Admit => 50,
            WhenAway::Reject => 0,
            WhenAway::Share(_) => 1,
        };
        assert_eq!(admitted, expected);
        // Those to come do not wait, while one request at a time probes it.
        let away = Instant::now();
        for _ in 0..1_000 {
            let at = Instant::now();
            let _decided = call(&limit, 1).await;
            assert!(at.elapsed().is_zero());
            advance(10 * MILLI).await;
        }
        let (probes, elapsed) = (server.requests(), away.elapsed());
        assert!((5..=15).contains(&probes), "{probes} in {elapsed:?}");
        assert!(limit.handle().is_away());
    }
}

/// Shows: Q5
#[tokio::test(start_paused = true)]
async fn the_first_answer_ends_the_absence() {
    let server = Server::new(Behaviour::Fails);
    let limit = limit(&server, Quota::new(10, DAY), WhenAway::Reject);
    assert!(call(&limit, 1).await.is_err());
    server.becomes(Behaviour::Answers);
    assert_eq!(unavailable(&call(&limit, 1).await), "refused");
    advance(100 * MILLI).await;
    // This store decides about the probe at once, so the call has its tokens too.
    assert!(call(&limit, 1).await.is_ok());
    assert!(!limit.handle().is_away());

    server.becomes(Behaviour::Fails);
    assert!(call(&limit, 1).await.is_err());
    server.becomes(Behaviour::AnswersAfter(MILLI));
    advance(100 * MILLI).await;
    // The call that sends the probe does not wait for it.
    let begin = Instant::now();
    assert_eq!(unavailable(&call(&limit, 1).await), "refused");
    assert!(begin.elapsed().is_zero());
    sleep(2 * MILLI).await;
    assert!(!limit.handle().is_away());
    assert!(call(&limit, 1).await.is_ok());
}

/// Shows: Q5
#[tokio::test(start_paused = true)]
async fn a_store_that_answers_too_late_loses_tokens_but_never_grants_them_twice() {
    let server = Server::new(Behaviour::AnswersAfter(150 * MILLI));
    let quota = Quota::new(5, DAY);
    let limit = limit(&server, quota, WhenAway::Reject);
    let begin = Instant::now();
    assert_eq!(unavailable(&call(&limit, 1).await), "no answer within 100ms");
    assert_eq!(begin.elapsed(), TIMEOUT);
    sleep(SECOND).await;
    assert_eq!((limit.handle().leased(), server.drain(quota).await), (0, 4));
}

/// Shows: Q5
#[tokio::test(start_paused = true)]
async fn a_lease_is_spent_while_the_store_is_away() {
    let server = Server::new(Behaviour::Answers);
    let limit = limit(&server, Quota::new(1000, SECOND), WhenAway::Reject);
    for _ in 0..4 {
        assert!(call(&limit, 1).await.is_ok());
    }
    let held = limit.handle().leased();
    assert_eq!(held, 3);
    server.becomes(Behaviour::Fails);
    assert!(call(&limit, 4).await.is_err());
    for _ in 0..held {
        assert!(call(&limit, 1).await.is_ok());
    }
    assert!(call(&limit, 1).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_or_grants_nothing_has_failed() {
    for (behaviour, message) in [
        (Behaviour::Panics, "panicked: at the disco"),
        (Behaviour::GrantsNothing, "asked for 2..=2 tokens, it granted 0"),
    ] {
        let server = Server::new(behaviour);
        let limit = limit(&server, Quota::new(10, SECOND), WhenAway::Reject);
        assert_eq!(unavailable(&call(&limit, 2).await), message);
        assert!(limit.handle().is_away());
    }
}

/// Shows: Q5
#[tokio::test(start_paused = true)]
async fn each_key_has_a_bucket_and_a_request_without_one_is_not_limited() {
    let key = |request: &String| (request != "free").then(|| request.clone());
    let limit = SharedRateLimitLayer::new(MemoryStore::new(), key, Quota::new(1, SECOND), WhenAway::Reject);
    let service = limit.layer(service_fn(async |request: String| Ok::<_, Failed>(request)));
    for tenant in ["a", "b"] {
        assert!(service.clone().oneshot(tenant.to_owned()).await.is_ok());
        assert_eq!(wait(&service.clone().oneshot(tenant.to_owned()).await), SECOND);
    }
    for _ in 0..10 {
        assert!(service.clone().oneshot("free".to_owned()).await.is_ok());
    }
    assert_eq!(limit.handle().keys(), 2);
}

/// Shows: Q5
#[tokio::test(start_paused = true)]
async fn any_number_of_keys_takes_bounded_memory_and_decides_rightly() {
    let server = Server::new(Behaviour::Answers);
    let share = WhenAway::Share(Quota::new(1, DAY));
    let limit = SharedRateLimitLayer::new(server.clone(), u32::to_string, Quota::new(2, SECOND), share).max_keys(10);
    let service = limit.layer(echo());
    let admits = async |key| service.clone().oneshot(key).await.is_ok();
    for key in 0..1_000 {
        assert!(admits(key).await && admits(key).await && !admits(key).await, "{key}");
        assert!(limit.handle().keys() <= 10);
    }
    // Idle ones make room.
    advance(2 * SECOND).await;
    assert!(admits(1_000).await);
    assert_eq!(limit.handle().keys(), 10);

    // Nine find places, and have a share each. Those without have one together.
    server.becomes(Behaviour::Fails);
    let mut admitted = 0;
    for key in 2_000..2_100 {
        admitted += u32::from(admits(key).await);
    }
    assert_eq!((admitted, limit.handle().keys()), (10, 10));
}

/// Shows: Q3
#[tokio::test(start_paused = true)]
async fn a_call_may_cost_nothing_or_more_than_is_ever_possible() {
    let server = Server::new(Behaviour::Fails);
    let limit = limit(&server, Quota::new(5, SECOND), WhenAway::Reject);
    assert!(call(&limit, 0).await.is_ok());
    let outcome = call(&limit, 6).await;
    assert_eq!(ziggurat::rejection(&outcome).unwrap().reason(), &Reason::CostTooHigh { cost: 6, burst: 5 });
    assert_eq!(server.requests(), 0);
}

/// Shows: Q5
#[tokio::test(start_paused = true)]
async fn when_the_last_service_is_dropped_its_lease_returns_to_the_store() {
    let server = Server::new(Behaviour::Answers);
    let quota = Quota::new(100, DAY);
    let layer = limit(&server, quota, WhenAway::Reject).lease(50, KEEP);
    let service = layer.layer(echo());
    for _ in 0..8 {
        assert!(call(&layer, 1).await.is_ok());
    }
    assert_eq!((layer.handle().leased(), server.drain(quota).await), (7, 85));
    let handle = layer.handle();
    drop(layer);
    yield_now().await;
    assert_eq!(handle.leased(), 7);
    drop(service);
    yield_now().await;
    assert_eq!((handle.leased(), server.drain(quota).await), (0, 7));
}

/// The runtime of the call that had sent the request has ended, and the request with it.
#[test]
fn a_request_whose_runtime_ends_or_is_no_longer_driven_holds_up_no_call() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let (first, second) = (runtime(), runtime());
    let server = Server::new(Behaviour::AnswersAfter(MILLI));
    let layer = second.block_on(async { limit(&server, Quota::new(10, DAY), WhenAway::Reject) });
    let sends = || {
        let _first = first.enter();
        let mut call = start(&mut layer.layer(echo()), 1);
        assert!(call.poll().is_pending());
    };
    sends();
    second.block_on(async {
        // Not driven: it waits for as long as it may, and then another request is sent.
        let begin = Instant::now();
        assert_eq!(unavailable(&call(&layer, 1).await), "no answer within 100ms");
        assert_eq!(begin.elapsed(), TIMEOUT);
        sleep(TIMEOUT).await;
        assert!(call(&layer, 1).await.is_ok());
    });
    sends();
    let mut waits = {
        let _second = second.enter();
        start(&mut layer.layer(echo()), 1)
    };
    {
        let _second = second.enter();
        assert!(waits.poll().is_pending());
    }
    drop(first);
    let _second = second.enter();
    let Poll::Ready(outcome) = waits.poll() else { panic!("it waits") };
    assert_eq!(unavailable(&outcome), "the runtime of the request has ended");
}

#[tokio::test(start_paused = true)]
async fn an_observer_hears_of_the_stores_absence_and_return() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let observer = {
        let heard = Arc::clone(&heard);
        move |_: &LayerInfo, event: &LayerEvent<'_>| {
            heard.lock().unwrap().push(match event {
                LayerEvent::Rejected(rejection) => rejection.to_string().split(';').next().unwrap().to_owned(),
                LayerEvent::StoreFailed { error } => format!("store_failed: {error}"),
                LayerEvent::Transition { from, to } => format!("{from} to {to}"),
                event => event.name().to_owned(),
            });
        }
    };
    let server = Server::new(Behaviour::Fails);
    let limit = limit(&server, Quota::new(1, DAY), WhenAway::Reject).named("api").observer(observer);
    assert!(call(&limit, 1).await.is_err() && call(&limit, 1).await.is_err());
    server.becomes(Behaviour::Answers);
    advance(100 * MILLI).await;
    assert!(call(&limit, 1).await.is_ok() && call(&limit, 1).await.is_err());
    let away = "shared_rate_limit `api`: the store is away: refused";
    let limited = "shared_rate_limit `api`: the rate limit is exceeded";
    let expected =
        ["store_failed: refused", "answering to away", "queued", away, away, "away to answering", "queued", limited];
    assert_eq!(*heard.lock().unwrap(), expected);
}

#[test]
fn settings_that_admit_nothing_or_contradict_each_other_are_mistakes() {
    let share = |quota, share| {
        drop(SharedRateLimitLayer::new(MemoryStore::new(), "api", quota, WhenAway::Share(share)));
    };
    let hundred = Quota::new(100, SECOND);
    share(hundred, hundred);
    share(Quota::new(1, SECOND), Quota::new(60, 60 * SECOND).burst(1));
    for (mistake, named) in [
        (Box::new(|| _ = Quota::new(0, SECOND)) as Box<dyn Fn()>, "`quantity`"),
        (Box::new(|| _ = Quota::new(1, Duration::ZERO)), "`period`"),
        (Box::new(|| _ = Quota::new(1, SECOND).burst(0)), "`burst`"),
        (Box::new(move || share(hundred, Quota::new(101, SECOND).burst(1))), "101"),
        (Box::new(move || share(hundred, hundred.burst(101))), "101"),
        (
            Box::new(move || {
                drop(SharedRateLimitLayer::new(MemoryStore::new(), "api", hundred, WhenAway::Admit).lease(0, KEEP));
            }),
            "`most`",
        ),
    ] {
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mistake)).unwrap_err();
        let message = panic.downcast_ref::<String>().cloned();
        let message = message.or_else(|| panic.downcast_ref::<&str>().map(|message| (*message).to_owned())).unwrap();
        assert!(message.contains(named), "{message}");
    }
}

/// Any duration is valid.
#[tokio::test(start_paused = true)]
async fn settings_at_their_extremes_work() {
    for (timeout, keep) in [(Duration::ZERO, Duration::ZERO), (Duration::MAX, Duration::MAX)] {
        let server = Server::new(Behaviour::Answers);
        let quota = Quota::new(3, Duration::MAX).burst(u32::MAX);
        let limit = limit(&server, quota, WhenAway::Reject).timeout(timeout).lease(u32::MAX, keep);
        let mut admitted = 0;
        while call(&limit, 1).await.is_ok() && admitted < 100 {
            admitted += 1;
        }
        assert!(admitted > 0);
    }
}

/// Processes call at random, with leases, a server that is slow, and callers that give up.
///
/// Shows: Q5
#[tokio::test(start_paused = true)]
async fn random_processes_together_never_exceed_the_bound() {
    const BURST: u64 = 60;
    const PER_SECOND: u64 = 200;
    const LEASE: u64 = 8;
    const PROCESSES: u64 = 3;
    for seed in 0..4 {
        let mut random = fastrand::Rng::with_seed(seed);
        let server = Server::new(Behaviour::AnswersAfter(2 * MILLI));
        let quota = Quota::new(PER_SECOND as u32, SECOND).burst(BURST as u32);
        let (begin, made) = (Instant::now(), Made::default());
        let mut callers = JoinSet::new();
        let processes =
            Vec::from_iter((0..PROCESSES).map(|_| limit(&server, quota, WhenAway::Reject).lease(LEASE as u32, KEEP)));
        for number in 0..2_000 {
            let made = Arc::clone(&made);
            let service = processes[number % processes.len()].layer(recording(begin, made));
            let (at, patience, cost) = (random.u64(0..3_000), random.u64(0..6), random.u32(1..4));
            callers.spawn(async move {
                sleep(Duration::from_millis(at)).await;
                let patience = Duration::from_millis(patience);
                let _gave_up = tokio::time::timeout(patience, service.oneshot(cost)).await;
            });
        }
        callers.join_all().await;
        let made = std::mem::take(&mut *made.lock().unwrap());
        for (first, (from, _)) in made.iter().enumerate() {
            let mut tokens = 0;
            for (until, cost) in &made[first..] {
                tokens += cost;
                let bound = (BURST + PROCESSES * LEASE) * 1_000 + PER_SECOND * (until - from);
                assert!(tokens * 1_000 <= bound, "seed {seed}: {made:?}");
            }
        }
        let tokens: u64 = made.iter().map(|(_, cost)| cost).sum();
        assert!(tokens >= 3 * PER_SECOND / 2, "seed {seed}: {tokens}");
        assert!(processes.iter().all(|process| process.handle().waiting() == 0));
    }
}
