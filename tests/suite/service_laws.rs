//! Every layer, and the recommended stack, obey the laws of a service.

use std::{
    ops::RangeInclusive,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, Uri, request::Parts};
use tokio::sync::Semaphore;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn, util::MapRequestLayer};
use ziggurat::{
    Budget, Error, HttpStatus, Rejection, Scope,
    batch::BatchLayer,
    body::ResponseEnd,
    cache::CacheLayer,
    chaos::{ChaosLayer, Fault, Schedule},
    circuit_breaker::CircuitBreakerLayer,
    concurrency_limit::{Adaptive, ConcurrencyLimitLayer, Priority},
    context::ContextLayer,
    drain::DrainLayer,
    fallback::{Backup, Failed, FallbackLayer},
    headers::TimeoutHeader,
    hedge::HedgeLayer,
    idempotency::IdempotencyLayer,
    idempotency_key::IdempotencyKeyLayer,
    observe::ObserveLayer,
    per_key::{PerKeyLayer, Unkeyed},
    propagate::PropagateLayer,
    rate_limit::RateLimitLayer,
    rejection_response::RejectionResponseLayer,
    replay::ReplayLayer,
    request_id::RequestIdLayer,
    resource::{Acquire, ResourceLayer},
    retry::RetryLayer,
    shared_cache::SharedCacheLayer,
    shared_rate_limit::{SharedRateLimitLayer, WhenAway},
    stack::{ClientSettings, ClientStack, ServerSettings, ServerStack},
    store::{MemoryStore, Quota, Taken, TokenStore, ValueStore},
    testing::{Act, Law, Script, Scripted, TestTask, laws, laws_with_gauges},
    timeout::TimeoutLayer,
    upload::UploadLayer,
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn tight_settings() -> ClientSettings {
    ClientSettings::default().max_in_flight(1).max_waiting(1).min_calls(1)
}

/// Declares a test for each layer: a line that makes the tightest possible layer value, with the gauges of its handle.
macro_rules! these_keep_to_the_laws {
    ($($(#[$meta:meta])* $name:ident: $laws:expr;)*) => {$(
        $(#[$meta])*
        #[test]
        fn $name() {
            $laws.check();
        }
    )*};
}

/// A macro, because the type of a stack is impractical to write.
macro_rules! recommended_stack {
    ($key:expr) => {
        laws_with_gauges(|| {
            let limit = ConcurrencyLimitLayer::new(1).max_waiting(1);
            let gate = limit.handle();
            let stack = ServiceBuilder::new()
                .layer(ContextLayer::new(around()).state(|req: &Request<String>| req.uri().clone()))
                .layer(CacheLayer::<Uri, _, _>::new(10, MINUTE, $key).classify(HttpStatus))
                .layer(TimeoutLayer::new(10 * SECOND))
                .layer(RetryLayer::http().budget(no_budget()))
                .layer(CircuitBreakerLayer::http().over_calls(1))
                .layer(limit)
                .layer(TimeoutLayer::new(|_: &Request<String>| Scope::current().map(|_| SECOND)))
                .into_inner();
            (stack, move || (gate.in_flight(), gate.waiting()))
        })
        .stateful()
    };
}

these_keep_to_the_laws! {
    /// Shows: T2, T6
    timeout: laws(|| TimeoutLayer::new(SECOND));
    timeout_until_the_body_ends: laws(|| TimeoutLayer::new(SECOND).until_body_end().idle(SECOND));
    timeout_without_a_limit: laws(|| TimeoutLayer::new(|_: &Request<String>| None));
    /// Shows: R8
    retry: laws(|| RetryLayer::http().budget(tight_budget())).stateful();
    retry_without_a_pause: laws(|| RetryLayer::new().max_attempts(5).backoff(Duration::ZERO));
    retry_of_what_is_sent_once: laws(|| RetryLayer::new().copy(|_: &Request<String>| None));
    /// Shows: R9
    replay: laws(ReplayLayer::new);
    replay_around_a_retry: laws_with_gauges(|| {
        let layer = ReplayLayer::new();
        let gauge = layer.clone();
        let retry = RetryLayer::http().budget(tight_budget());
        (ServiceBuilder::new().layer(layer).layer(retry).into_inner(), move || gauge.bytes())
    }).stateful();
    /// Shows: L2, L4
    concurrency_limit: laws_with_gauges(|| limited(ConcurrencyLimitLayer::new(1))).stateful();
    concurrency_limit_that_waits_a_second: laws_with_gauges(|| limited(ConcurrencyLimitLayer::new(1).max_wait(SECOND))).stateful();
    concurrency_limit_that_adapts: laws_with_gauges(|| limited(ConcurrencyLimitLayer::adaptive(Adaptive::gradient().between(1..=1)))).stateful();
    concurrency_limit_that_sheds: laws_with_gauges(|| limited(ConcurrencyLimitLayer::new(1).max_waiting(0))).stateful();
    concurrency_limit_until_the_body_ends: laws_with_gauges(|| {
        let layer = ConcurrencyLimitLayer::new(1).until_body_end();
        let gate = layer.handle();
        (layer, move || (gate.in_flight(), gate.waiting()))
    }).stateful();
    /// Shows: A4
    concurrency_limit_with_priorities: laws_with_gauges(|| limited(ConcurrencyLimitLayer::new(2).priority(by_body).reserve(Priority::High, 0.5))).stateful();
    concurrency_limit_with_priorities_that_adapts: laws_with_gauges(|| {
        limited(ConcurrencyLimitLayer::adaptive(Adaptive::gradient().between(1..=1)).priority(by_body))
    }).stateful();
    concurrency_limit_of_exempt_calls: laws_with_gauges(|| limited(ConcurrencyLimitLayer::new(1).max_waiting(0).priority(Priority::Exempt)));
    /// Shows: Q1
    rate_limit: laws(|| RateLimitLayer::new(1_000_000, SECOND));
    /// Shows: Q2
    rate_limit_that_lets_calls_wait: laws_with_gauges(|| {
        let layer = RateLimitLayer::new(1, SECOND).max_wait(DAY);
        let bucket = layer.handle();
        (layer, move || bucket.waiting())
    });
    rate_limit_that_rejects: laws(|| RateLimitLayer::new(1, SECOND).cost(2_u32)).rejects(|_| Request::new(String::new()));
    /// Shows: Q4
    rate_limit_with_headers: laws(|| RateLimitLayer::new(1_000_000, SECOND).headers());
    /// Shows: Q3
    rate_limit_of_bytes: laws(|| RateLimitLayer::new(1_000_000, SECOND).settle_bytes());
    rate_limit_of_calls_that_cost_nothing: laws(|| RateLimitLayer::new(1, DAY).cost(0_u32));
    /// Shows: Q5
    shared_rate_limit: laws_with_gauges(|| shared(MemoryStore::new(), WhenAway::Reject));
    shared_rate_limit_without_leases: laws_with_gauges(|| {
        let (layer, gauges) = shared(MemoryStore::new(), WhenAway::Reject);
        (layer.lease(1, SECOND), gauges)
    });
    shared_rate_limit_whose_store_is_away: laws_with_gauges(|| shared(Away, WhenAway::Admit));
    shared_rate_limit_whose_store_is_away_and_that_rejects: laws(|| shared(Away, WhenAway::Reject).0).rejects(|_| Request::new(String::new()));
    /// Shows: B5
    circuit_breaker: laws(|| CircuitBreakerLayer::consecutive(1)).stateful();
    circuit_breaker_by_rate: laws(|| CircuitBreakerLayer::http().over_calls(1).slow_calls(SECOND, 1.0)).stateful();
    circuit_breaker_until_the_body_ends: laws(|| CircuitBreakerLayer::consecutive(1).until_body_end()).stateful();
    /// Shows: C4
    cache: laws(cached).stateful();
    cache_that_stores_nothing: laws(|| CacheLayer::new(1, Duration::ZERO, key)).stateful();
    http_cache_that_is_passed_by: laws(CacheLayer::http);
    // The request is made on a task of its own: it outlives its caller, and reaches the service later than the laws assume.
    /// Shows: C8
    http_cache: laws(|| (without_content(), CacheLayer::http(), with_content())).except(Law::Release).except(Law::Wakes);
    cache_that_is_passed_by: laws(|| CacheLayer::new(1, MINUTE, |_: &Request<String>| None::<Uri>));
    cache_that_answers_stale_if_error: laws(|| cached().stale_if_error(DAY)).stateful();
    cache_that_revalidates: laws(|| cached().stale_while_revalidate(DAY)).stateful().except(Law::Release);
    /// Shows: M2
    shared_cache: laws(|| in_store(MemoryStore::new())).stateful();
    shared_cache_that_stores_nothing: laws(|| in_store(MemoryStore::new().max_bytes(0)));
    shared_cache_whose_store_is_away: laws(|| in_store(Away));
    shared_cache_that_is_passed_by: laws(|| SharedCacheLayer::new(MemoryStore::new(), MINUTE, |_: &Request<String>| None::<String>, HTTP_CODEC));
    /// Shows: P7
    batch: laws(|| batched(BatchLayer::new(1, SECOND))).over(|n| n, |n| n, |answer: &u64| *answer);
    // These share a call: if it hangs for one caller, it hangs for all of them.
    batch_of_what_comes_by_now: laws(|| batched(BatchLayer::new(10, Duration::ZERO))).over(|n| n, |n| n, |answer: &u64| *answer).except(Law::Wakes);
    batch_that_waits: laws(|| batched(BatchLayer::new(2, SECOND))).over(|n| n, |n| n, |answer: &u64| *answer).except(Law::Wakes);
    batch_of_all_scopes: laws(|| batched(BatchLayer::new(2, SECOND).by(|_: &u64| ()))).over(|n| n, |n| n, |answer: &u64| *answer).except(Law::Wakes);
    answer_with_a_problem: laws(RejectionResponseLayer::problem_json);
    answer_with_a_grpc_status: laws(RejectionResponseLayer::grpc);
    answer_with_a_grpc_status_until_the_body_ends: laws(|| RejectionResponseLayer::grpc().until_body_end());
    answer_with_a_function: laws(|| RejectionResponseLayer::new(|rejection: &Rejection, request: &Parts| {
        Response::new(format!("{}: {rejection}", request.uri))
    }));
    observe: laws(ObserveLayer::http);
    observe_until_the_body_ends: laws(|| ObserveLayer::http().until_body_end());
    /// Shows: G3
    chaos_that_is_off: laws(|| ChaosLayer::new(Fault::Hang).rate(1.0));
    chaos_that_leaves_calls_alone: laws(|| on(ChaosLayer::new(|_: &Request<String>| None::<Fault>).rate(1.0)));
    chaos_delay: laws(|| on(ChaosLayer::new(Fault::Delay(SECOND)).rate(1.0)));
    // The first call does not reach the service in the order that the laws assume: a call with a fault arrives later.
    chaos_error_beneath_a_retry: laws(|| {
        let retry = RetryLayer::new().max_attempts(9).backoff(Duration::ZERO).budget(None);
        (retry, on(ChaosLayer::new(Fault::Error).schedule(Schedule::every(2))))
    }).except(Law::Wakes);
    /// Shows: G2
    fallback_value: laws(|| FallbackLayer::value(Response::new(String::new())).http()).except(Law::Unchanged);
    fallback_function_without_an_answer: laws(|| {
        FallbackLayer::new(|_: Failed<'_, _, _, String>| None::<Response<String>>).remember(|req: &Request<String>| req.body().clone())
    });
    fallback_service_that_answers: laws_with_gauges(|| backed_up(Act::answer())).except(Law::Unchanged);
    fallback_service_without_budget: laws_with_gauges(|| {
        let (layer, gauges) = backed_up(Act::answer());
        (layer.budget(no_budget()), gauges)
    });
    fallback_service_that_fails: laws_with_gauges(|| backed_up(Act::error()));
    fallback_service_that_is_never_ready: laws_with_gauges(|| backed_up(Act::error().at_readiness()));
    /// If both attempts fail, the first error is returned, and not the last.
    ///
    /// Shows: H1
    hedge: laws(|| HedgeLayer::after(SECOND).http().budget(Budget::new(0.5).min_per_second(0))).stateful().except(Law::Unchanged);
    /// Shows: H2
    hedge_at_once: laws(|| HedgeLayer::after(Duration::ZERO).budget(None)).except(Law::Unchanged);
    hedge_at_once_over_a_limit: laws_with_gauges(|| {
        let limit = ConcurrencyLimitLayer::new(1);
        let gate = limit.handle();
        let (timeout, hedge) = (TimeoutLayer::new(10 * SECOND), HedgeLayer::after(Duration::ZERO).budget(None));
        (ServiceBuilder::new().layer(timeout).layer(hedge).layer(limit).into_inner(), move || (gate.in_flight(), gate.waiting()))
    }).stateful().except(Law::Unchanged);
    hedge_without_budget: laws(|| HedgeLayer::after(Duration::ZERO).budget(no_budget()));
    hedge_at_a_percentile: laws(|| HedgeLayer::at_percentile(0.5).min_calls(1).min_delay(Duration::ZERO).budget(None)).except(Law::Unchanged);
    hedge_of_what_is_sent_once: laws(|| HedgeLayer::after(Duration::ZERO).copy(|_: &Request<String>| None)).except(Law::Unchanged);
    hedge_of_nothing: laws(|| HedgeLayer::after(|_: &Request<String>| None));
    /// Shows: X7
    context: laws(|| ContextLayer::new(around()).state(|req: &Request<String>| req.uri().clone()));
    context_without_http: laws(|| ContextLayer::ambient(around())).over(|n| n, |n| n, |answer: &u64| *answer);
    /// Shows: D1
    drain: laws_with_gauges(|| {
        let layer = DrainLayer::new();
        let handle = layer.handle();
        (layer, move || handle.in_flight())
    });
    drain_that_has_begun: laws(|| {
        let layer = DrainLayer::new();
        drop(layer.handle().drain());
        layer
    }).rejects(|number: u64| Request::new(number.to_string()));
    /// Shows: K1
    per_key: laws_with_gauges(|| {
        let layer = PerKeyLayer::new(|req: &Request<String>| Ok(req.body().clone()), |_| TimeoutLayer::new(SECOND));
        let handle = layer.handle();
        (layer, move || handle.instances().iter().map(|instance| instance.in_flight).sum::<usize>())
    });
    // Of two: a call that becomes ready late may find a permit taken by a later call that the laws do not poll.
    per_key_of_limits: laws_with_gauges(|| {
        let layer = PerKeyLayer::new(|_: &Request<String>| Ok(()), |_| ConcurrencyLimitLayer::new(2)).max_keys(1);
        let handle = layer.handle();
        (layer, move || handle.instance(&()).map_or((0, 0), |one| (one.layer.handle().in_flight(), one.layer.handle().waiting())))
    });
    per_key_of_circuits: laws(|| {
        PerKeyLayer::new(|_: &Request<String>| Ok(()), |_| CircuitBreakerLayer::http().over_calls(1)).max_keys(1)
    }).stateful();
    per_key_of_requests_that_share: laws(|| {
        PerKeyLayer::new(|_: &Request<String>| Err::<(), _>(Unkeyed::Share), |_| TimeoutLayer::new(SECOND))
    });
    per_key_of_requests_that_pass: laws(|| {
        PerKeyLayer::new(|_: &Request<String>| Err::<(), _>(Unkeyed::Pass), |_| TimeoutLayer::new(SECOND))
    });
    per_key_of_requests_without_a_key: laws(|| {
        PerKeyLayer::new(|_: &Request<String>| Err::<(), _>(Unkeyed::Reject), |_| TimeoutLayer::new(SECOND))
    }).rejects(|_| Request::new(String::new()));
    identity: laws(RequestIdLayer::new);
    /// Shows: X8
    identity_in_a_scope: laws(|| (ContextLayer::new(around()), RequestIdLayer::new()));
    idempotency_key: laws(IdempotencyKeyLayer::new);
    idempotency_of_requests_without_a_key: laws(|| idempotent(Some("caller")));
    /// Shows: Y2
    idempotency_that_requires_a_key: laws(|| idempotent(Some("caller")).required()).rejects(|_| {
        Request::post("/").body(String::new()).unwrap()
    });
    // The handler runs on a task of its own: it outlives its caller, and reaches the service later than the laws assume.
    idempotency: laws(|| (with_key(), idempotent(Some("caller")))).except(Law::Release).except(Law::Wakes);
    idempotency_of_nobody: laws(|| (with_key(), idempotent(None)));
    upload: laws(|| UploadLayer::new(SECOND));
    upload_around_a_limit: laws(|| (UploadLayer::new(SECOND), TimeoutLayer::new(MINUTE)));
    propagate: laws(PropagateLayer::new);
    /// Shows: O1, O2
    resource: laws_with_gauges(one_resource).stateful();
    resource_that_waits_a_second: laws_with_gauges(|| {
        let (layer, free) = one_resource();
        (layer.max_wait(SECOND), free)
    }).stateful();
    resource_that_waits_for_nobody: laws_with_gauges(|| {
        let (layer, free) = one_resource();
        (layer.max_wait(Duration::ZERO), free)
    }).stateful();
    resource_until_the_body_ends: laws_with_gauges(|| {
        let (layer, free) = one_resource();
        (layer.until_body_end(), free)
    }).stateful();
    resource_that_no_request_needs: laws(|| {
        ResourceLayer::by_request(|_: &Request<String>| None::<std::future::Ready<Result<(), String>>>)
    });
    propagate_the_deadline: laws(|| (TimeoutLayer::new(SECOND), PropagateLayer::new().deadline(TimeoutHeader::grpc())));
    /// Shows: G4
    the_clients_stack: laws_with_gauges(|| {
        let stack = ClientStack::http("laws").settings_from(&around().with(tight_settings())).with_retry(RetryLayer::http().budget(no_budget()));
        let gate = stack.gate();
        (stack, move || (gate.in_flight(), gate.waiting()))
    }).stateful();
    the_clients_stack_until_the_body_ends: laws_with_gauges(|| {
        let stack = ClientStack::http("laws").until_body_end().settings(tight_settings()).without_retry();
        let gate = stack.gate();
        (stack, move || (gate.in_flight(), gate.waiting()))
    }).stateful();
    the_servers_stack: laws_with_gauges(|| {
        let stack = ServerStack::new(&around().with(ServerSettings::default().max_in_flight(1)));
        let gate = stack.gate();
        (stack, move || (gate.in_flight(), gate.waiting()))
    }).stateful();
    the_servers_stack_with_a_drain: laws_with_gauges(|| {
        let layer = DrainLayer::new();
        let handle = layer.handle();
        let stack = ServerStack::new(&around().with(ServerSettings::default().max_in_flight(1))).with_drain(layer);
        (stack, move || handle.in_flight())
    }).stateful();
    the_recommended_stack: recommended_stack!(key);
    the_recommended_stack_past_its_cache: recommended_stack!(|_: &Request<String>| None);
}

/// A call is dropped before its response is returned, so its resources are free for the receiver of the response.
#[test]
fn the_call_is_gone_before_its_answer_is_handed_out() {
    fn check<S>(name: &str, service: S, held: &Arc<()>)
    where
        S: Service<(), Error = Error<String>>,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        let before = Arc::strong_count(held);
        let mut call = TestTask::new(service.oneshot(()));
        assert!(call.poll().is_ready(), "{name}");
        assert_eq!(Arc::strong_count(held), before - 1, "{name} still holds a completed call");
    }
    /// Holds a value until it is dropped, also after it has responded. The service itself holds one too.
    struct Holds(#[expect(dead_code, reason = "kept for its drop")] Arc<()>);
    impl Future for Holds {
        type Output = Result<(), Error<String>>;
        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
            Poll::Ready(Ok(()))
        }
    }
    let held = Arc::new(());
    let holding = || {
        let held = Arc::clone(&held);
        service_fn(move |()| Holds(Arc::clone(&held)))
    };
    let scope = Scope::root("app");
    let key = |(): &()| Some(());
    check("timeout", TimeoutLayer::new(SECOND).layer(holding()), &held);
    check("limit", ConcurrencyLimitLayer::new(1).layer(holding()), &held);
    check("rate limit", RateLimitLayer::new(1, SECOND).layer(holding()), &held);
    check("shared rate limit", shared(MemoryStore::new(), WhenAway::Reject).0.layer(holding()), &held);
    check("breaker", CircuitBreakerLayer::consecutive(1).layer(holding()), &held);
    check("context", ContextLayer::ambient(scope).layer(holding()), &held);
    check("resource", ResourceLayer::new(|| std::future::ready(Ok::<_, String>(()))).layer(holding()), &held);
    check("retry", RetryLayer::new().layer(holding()), &held);
    check("per key", PerKeyLayer::new(|(): &()| Ok(()), |_| TimeoutLayer::new(SECOND)).layer(holding()), &held);
    check("chaos", ChaosLayer::new(Fault::Error).layer(holding()), &held);
    check("hedge", HedgeLayer::after(SECOND).layer(holding()), &held);
    check("fallback", FallbackLayer::value(()).layer(holding()), &held);
    check("cache", CacheLayer::new(1, MINUTE, key).layer(holding()), &held);
    let codec = (|(): &()| Some(Bytes::new()), |_: Bytes| Ok::<_, String>(()));
    let shared = SharedCacheLayer::new(MemoryStore::new(), MINUTE, |(): &()| "key".to_owned(), codec);
    check("shared cache", shared.layer(holding()), &held);
}

/// A first failure earns a retry for the second one.
fn tight_budget() -> Budget {
    Budget::new(1.0).min_per_second(0)
}

/// If the first failure opens a circuit inside the retry, the next attempt ends with a rejection.
fn no_budget() -> Budget {
    Budget::new(0.0).min_per_second(0)
}

fn limited<A, P>(
    limit: ConcurrencyLimitLayer<ResponseEnd, A, P>,
) -> (ConcurrencyLimitLayer<ResponseEnd, A, P>, impl Fn() -> (usize, usize)) {
    let gate = limit.handle();
    (limit, move || (gate.in_flight(), gate.waiting()))
}

fn idempotent(
    caller: Option<&'static str>,
) -> IdempotencyLayer<MemoryStore, impl Fn(&Request<String>) -> Option<String> + Clone> {
    IdempotencyLayer::new(MemoryStore::new(), move |_: &Request<String>| caller.map(str::to_owned))
}

/// Makes a `GET` of each request, for a resource with the name of its body.
fn without_content() -> MapRequestLayer<fn(Request<String>) -> Request<String>> {
    MapRequestLayer::new(|mut request| {
        let name = std::mem::take(request.body_mut());
        *request.uri_mut() = format!("/{:x?}", name.as_bytes()).replace([' ', '[', ']'], "").parse().unwrap();
        request.headers_mut().insert("x-body", name.parse().unwrap());
        request
    })
}

/// The other way round.
fn with_content() -> MapRequestLayer<fn(Request<String>) -> Request<String>> {
    MapRequestLayer::new(|mut request| {
        let body = request.headers_mut().remove("x-body").unwrap();
        *request.body_mut() = body.to_str().unwrap().to_owned();
        request
    })
}

/// Makes a `POST` of each request, with its body as the key.
fn with_key() -> MapRequestLayer<fn(Request<String>) -> Request<String>> {
    MapRequestLayer::new(|mut request| {
        let key = request.body().parse().unwrap();
        request.headers_mut().insert("idempotency-key", key);
        *request.method_mut() = Method::POST;
        request
    })
}

/// Returns a layer over a store, and a gauge of the calls that wait for it.
fn shared<St: TokenStore>(
    store: St,
    when_away: WhenAway,
) -> (SharedRateLimitLayer<St, &'static str>, impl Fn() -> usize) {
    let layer = SharedRateLimitLayer::new(store, "laws", Quota::new(1_000_000, SECOND), when_away);
    let handle = layer.handle();
    (layer, move || handle.waiting())
}

type HttpCodec = (fn(&Response<String>) -> Option<Bytes>, fn(Bytes) -> Result<Response<String>, &'static str>);

/// The responses of the laws have their number in a header.
const HTTP_CODEC: HttpCodec = (
    |response| Some(Bytes::copy_from_slice(response.headers().get("x-number")?.as_bytes())),
    |bytes| {
        let number = HeaderValue::from_maybe_shared(bytes).map_err(|_| "no number")?;
        let mut response = Response::default();
        response.headers_mut().insert("x-number", number);
        Ok(response)
    },
);

type InStore<St> = SharedCacheLayer<St, fn(&Request<String>) -> String, HttpCodec>;

fn in_store<St: ValueStore>(store: St) -> InStore<St> {
    SharedCacheLayer::new(store, MINUTE, |request: &Request<String>| request.uri().to_string(), HTTP_CODEC)
}

/// A store that cannot be reached.
struct Away;

impl ValueStore for Away {
    type Error = &'static str;

    async fn get(&self, _: &str) -> Result<Option<Bytes>, &'static str> {
        Err("refused")
    }

    async fn put(&self, _: &str, _: Bytes, _: Duration) -> Result<(), &'static str> {
        Err("refused")
    }

    async fn put_new(&self, _: &str, _: Bytes, _: Duration) -> Result<Option<Bytes>, &'static str> {
        Err("refused")
    }

    async fn replace(&self, _: &str, _: &[u8], _: Option<Bytes>, _: Duration) -> Result<bool, &'static str> {
        Err("refused")
    }

    async fn remove(&self, _: &str) -> Result<(), &'static str> {
        Err("refused")
    }
}

impl TokenStore for Away {
    type Error = &'static str;

    async fn take(&self, _: &str, _: RangeInclusive<u32>, _: &Quota) -> Result<Taken, &'static str> {
        Err("refused")
    }
}

/// The requests of the laws are numbers.
fn by_body(request: &Request<String>) -> Priority {
    if request.body().len().is_multiple_of(2) { Priority::Normal } else { Priority::Low }
}

fn on<F, W>(layer: ChaosLayer<F, W>) -> ChaosLayer<F, W> {
    layer.handle().on();
    layer
}

type Answers = fn(u64) -> Response<String>;

/// Returns a layer whose backup acts like this, and a gauge of its use.
fn backed_up(act: Act) -> (FallbackLayer<Backup<Scripted<Answers>>>, impl Fn() -> (usize, usize)) {
    let script = Script::new();
    script.always(act.pending_at_readiness(1).pending(2));
    let layer = FallbackLayer::service(script.service((|_| Response::new(String::new())) as Answers));
    (layer, move || (script.in_flight(), script.ready()))
}

/// Returns a layer over a pool of one, and a gauge of the pool.
fn one_resource() -> (
    ResourceLayer<impl Acquire<Request<String>, Resource: Send, Future: Send> + Clone + Send + Sync>,
    impl Fn() -> usize,
) {
    let pool = Arc::new(Semaphore::new(1));
    let gauge = Arc::clone(&pool);
    let layer = ResourceLayer::new(move || Arc::clone(&pool).acquire_owned());
    (layer, move || gauge.available_permits())
}

/// The inner service responds with one number to any request. This wrapper responds with one for each of many.
fn batched<G, C>(layer: BatchLayer<u64, G, C>) -> (BatchLayer<u64, G, C>, ForEachLayer) {
    (layer, ForEachLayer)
}

#[derive(Clone)]
struct ForEachLayer;

impl<S> Layer<S> for ForEachLayer {
    type Service = ForEach<S>;

    fn layer(&self, inner: S) -> ForEach<S> {
        ForEach(inner)
    }
}

#[derive(Clone)]
struct ForEach<S>(S);

impl<S: Service<Vec<u64>, Response = u64, Future: Send + 'static>> Service<Vec<u64>> for ForEach<S> {
    type Response = Vec<Result<u64, S::Error>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, requests: Vec<u64>) -> Self::Future {
        let (many, answer) = (requests.len(), self.0.call(requests));
        Box::pin(async move {
            let answer = answer.await?;
            Ok((0..many).map(|_| Ok(answer)).collect())
        })
    }
}

#[expect(clippy::unnecessary_wraps, reason = "`None` would bypass the cache")]
fn key(request: &Request<String>) -> Option<Uri> {
    Some(request.uri().clone())
}

type Caching = CacheLayer<Uri, Response<String>, fn(&Request<String>) -> Option<Uri>>;

fn cached() -> Caching {
    CacheLayer::new(10, MINUTE, key)
}

fn around() -> Scope {
    Scope::current().unwrap()
}

/// A service that no layer calls.
#[derive(Clone, Debug, PartialEq)]
struct Inner(u8);

impl Service<Vec<u8>> for Inner {
    type Response = Vec<Result<u8, Error<&'static str>>>;
    type Error = Error<&'static str>;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Pending
    }

    fn call(&mut self, _: Vec<u8>) -> Self::Future {
        unreachable!("it is never ready")
    }
}

#[test]
fn every_service_gives_access_to_the_one_inside() {
    macro_rules! check {
        ($($layer:expr;)*) => {$({
            let mut service = $layer.layer(Inner(1));
            assert_eq!(service.get_ref(), &Inner(1));
            *service.get_mut() = Inner(2);
            assert_eq!(service.into_inner(), Inner(2));
        })*};
    }
    let (scope, pool) = (Scope::root("app"), Arc::new(Semaphore::new(1)));
    check! {
        CacheLayer::<_, (), _>::new(1, SECOND, key);
        CacheLayer::http();
        ChaosLayer::new(Fault::Error);
        CircuitBreakerLayer::http();
        ConcurrencyLimitLayer::new(1);
        ContextLayer::new(scope);
        DrainLayer::new();
        FallbackLayer::value(());
        IdempotencyKeyLayer::new();
        IdempotencyLayer::new(MemoryStore::new(), |_: &Request<()>| None);
        HedgeLayer::after(SECOND);
        ObserveLayer::new();
        PerKeyLayer::new(|_: &Vec<u8>| Ok(0), |_| TimeoutLayer::new(SECOND));
        PropagateLayer::new();
        RateLimitLayer::new(1, SECOND);
        RejectionResponseLayer::problem_json();
        ReplayLayer::new();
        RequestIdLayer::new();
        ResourceLayer::new(move || std::future::ready(Ok::<_, std::io::Error>(Arc::clone(&pool))));
        RetryLayer::http();
        TimeoutLayer::new(SECOND);
        UploadLayer::new(SECOND);
    }
    let mut batch: ziggurat::batch::Batch<_, u8, u8> = BatchLayer::new(1, SECOND).layer(Inner(1));
    assert_eq!(batch.get_ref(), &Inner(1));
    assert_eq!(batch.get_mut(), &mut Inner(1));
    assert_eq!(batch.into_inner(), Inner(1));
}
