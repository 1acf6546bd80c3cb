//! The happy path allocates nothing. This is a separate binary, because its allocator counts for each thread.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use std::{
    convert::Infallible,
    future::{Future, Ready, poll_fn, ready},
    mem,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use deadpool::managed::{Metrics, Pool, RecycleResult};
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full};
use tokio_stream::{Stream, StreamExt};
use tower::{Layer, Service, ServiceBuilder, layer::layer_fn, service_fn, util::BoxService};
use ziggurat::{
    Budget, Error, EventBus, Scope,
    batch::BatchLayer,
    body::{CopyBody, ReplayBody},
    cache::CacheLayer,
    chaos::{ChaosLayer, Fault},
    circuit_breaker::CircuitBreakerLayer,
    concurrency_limit::ConcurrencyLimitLayer,
    concurrent::process_concurrently,
    context::ContextLayer,
    drain::DrainLayer,
    events::{Lag, Subscription},
    fallback::{Failed, FallbackLayer},
    hedge::HedgeLayer,
    observe::ObserveLayer,
    per_key::PerKeyLayer,
    rate_limit::RateLimitLayer,
    rejection_response::RejectionResponseLayer,
    replay::ReplayLayer,
    resource::ResourceLayer,
    retry::RetryLayer,
    scope::Disposable,
    shared_rate_limit::{SharedRateLimitLayer, WhenAway},
    stack::{ClientSettings, ClientStack},
    store::{MemoryStore, Quota},
    timeout::TimeoutLayer,
    upload::UploadLayer,
};

const SECOND: Duration = Duration::from_secs(1);

/// Responds after `pending` pending polls, and never allocates.
#[derive(Clone)]
struct Inner {
    pending: usize,
}

struct Answer {
    pending: usize,
}

impl<Req> Service<Req> for Inner {
    type Response = &'static str;
    type Error = Error<Infallible>;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Req) -> Answer {
        Answer { pending: self.pending }
    }
}

impl Future for Answer {
    type Output = Result<&'static str, Error<Infallible>>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        if self.pending > 0 {
            self.pending -= 1;
            return Poll::Pending;
        }
        Poll::Ready(Ok("answer"))
    }
}

/// Returns the number of allocations of one call, from readiness to the end, after earlier calls.
fn allocations<L, Req>(layer: L, pending: usize, request: impl Fn() -> Req) -> u64
where
    L: Layer<Inner, Service: Service<Req, Response = &'static str, Error = Error<Infallible>>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _runtime = runtime.enter();
    let mut service = layer.layer(Inner { pending });
    let mut call = |request| {
        let mut context = Context::from_waker(Waker::noop());
        assert!(service.poll_ready(&mut context).is_ready());
        let mut response = pin!(service.call(request));
        for _ in 0..pending {
            assert!(response.as_mut().poll(&mut context).is_pending());
        }
        assert!(matches!(response.poll(&mut context), Poll::Ready(Ok("answer"))));
    };
    for _ in 0..8 {
        call(request());
    }
    let request = request();
    allocation_counter::measure(|| call(request)).count_total
}

/// Checks each layer with a response that is ready at once, and with one that is pending first.
macro_rules! these_allocate_nothing {
    ($($name:ident: $layer:expr;)*) => {$(
        #[test]
        fn $name() {
            for pending in [0, 1, 2] {
                assert_eq!(allocations($layer, pending, || 7_u64), 0, "pending {pending} times");
            }
        }
    )*};
}

these_allocate_nothing! {
    timeout: TimeoutLayer::new(SECOND);
    timeout_by_request: TimeoutLayer::new(|seconds: &u64| Duration::from_secs(*seconds));
    retry: RetryLayer::new();
    concurrency_limit: ConcurrencyLimitLayer::new(1);
    rate_limit: RateLimitLayer::new(1_000_000, SECOND).cost(|number: &u64| *number as u32);
    per_key: PerKeyLayer::new(|number: &u64| Ok(*number), |_| TimeoutLayer::new(SECOND));
    per_key_by_reference: PerKeyLayer::borrowed(|_: &u64| Ok("a key"), |_| ConcurrencyLimitLayer::new(1));
    shared_rate_limit: SharedRateLimitLayer::new(MemoryStore::new(), "api", Quota::new(1_000_000, SECOND), WhenAway::Reject).lease(100, 60 * SECOND);
    circuit_breaker_by_failures_in_a_row: CircuitBreakerLayer::consecutive(5);
    circuit_breaker_by_rate_over_time: CircuitBreakerLayer::failure_rate(0.5);
    circuit_breaker_by_rate_over_calls: CircuitBreakerLayer::failure_rate(0.5).over_calls(100);
    circuit_breaker_with_slow_calls: CircuitBreakerLayer::failure_rate(0.5).slow_calls(SECOND, 0.5);
    observe: ObserveLayer::new();
    chaos_that_is_off: ChaosLayer::new(Fault::Error).rate(1.0);
    chaos_that_strikes_nobody: {
        let layer = ChaosLayer::new(Fault::Error).rate(0.0);
        layer.handle().on();
        layer
    };
    fallback_value: FallbackLayer::value("fallback");
    fallback_function: FallbackLayer::new(|_: Failed<'_, _, _, u64>| "fallback").remember(|number: &u64| *number);
    fallback_service: FallbackLayer::service(Inner { pending: 0 });
    fallback_service_within_a_budget: FallbackLayer::service(Inner { pending: 0 }).budget(Budget::default());
    hedge_after_a_delay: HedgeLayer::after(SECOND);
    hedge_at_a_percentile: HedgeLayer::at_percentile(0.5).min_calls(1);
    the_clients_stack: ClientStack::new("stack").settings_from(&Scope::root("app").child("client").with(ClientSettings::default()));
    the_stack_of_the_four: ServiceBuilder::new()
        .layer(TimeoutLayer::new(10 * SECOND))
        .layer(RetryLayer::new())
        .layer(CircuitBreakerLayer::failure_rate(0.5))
        .layer(ConcurrencyLimitLayer::new(64))
        .layer(TimeoutLayer::new(SECOND))
        .into_inner();
}

/// The built-in functions for rejections need no copy of any part of the request.
#[test]
fn an_answer_to_rejections_allocates_nothing_where_there_is_none() {
    macro_rules! check {
        ($layer:expr) => {{
            let inner = service_fn(|_: Request<()>| ready(Ok::<_, Infallible>(Response::new(String::new()))));
            let mut service = $layer.layer(inner);
            let request = Request::get("/path?query").header("x", "y").extension(7_u8).body(()).unwrap();
            let counted = allocation_counter::measure(|| {
                let mut context = Context::from_waker(Waker::noop());
                assert!(service.poll_ready(&mut context).is_ready());
                assert!(pin!(service.call(request)).poll(&mut context).is_ready());
            });
            assert_eq!(counted.count_total, 0);
        }};
    }
    check!(RejectionResponseLayer::problem_json());
    check!(RejectionResponseLayer::grpc());
    check!(RejectionResponseLayer::grpc().until_body_end());
}

#[test]
fn of_a_retry_only_the_copy_of_the_request_allocates() {
    let request = || "a request that is copied".to_owned();
    assert_eq!(allocations(RetryLayer::new(), 0, request), 1);
    assert_eq!(allocations(RetryLayer::new().max_attempts(1), 0, request), 0);
}

/// The resource's place allocates, and for deadpool the future of the pool.
#[test]
fn of_a_resource_only_the_loan_allocates() {
    struct Manager;
    impl deadpool::managed::Manager for Manager {
        type Type = u64;
        type Error = Infallible;
        async fn create(&self) -> Result<u64, Infallible> {
            Ok(7)
        }
        async fn recycle(&self, _: &mut u64, _: &Metrics) -> RecycleResult<Infallible> {
            Ok(())
        }
    }
    for pending in [0, 1, 2] {
        let layer = ResourceLayer::new(|| ready(Ok::<_, Infallible>(7_u64)));
        assert_eq!(allocations(layer, pending, || 7_u64), 1);
        let none = ResourceLayer::by_request(|_: &u64| None::<Ready<Result<u64, Infallible>>>);
        assert_eq!(allocations(none, pending, || 7_u64), 0);
        let pool = Pool::<_>::builder(Manager).max_size(1).build().unwrap();
        assert_eq!(allocations(ResourceLayer::deadpool(&pool), pending, || 7_u64), 2);
    }
}

/// Yields `left` frames. With `pends` each of them is pending three times first.
struct Frames {
    left: u32,
    pends: bool,
    asked: u32,
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.asked += 1;
        if self.pends && !self.asked.is_multiple_of(4) {
            return Poll::Pending;
        }
        let more = self.left > 0;
        self.left = self.left.saturating_sub(1);
        Poll::Ready(more.then(|| Ok(Frame::data(Bytes::from_static(b"frame")))))
    }
}

/// Returns the number of allocations of a call through the guards of four layers, to the end of a body of `frames`
/// frames.
fn allocations_of_a_body(frames: u32, pends: bool) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _runtime = runtime.enter();
    let mut service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(10 * SECOND).until_body_end())
        .layer(CircuitBreakerLayer::failure_rate(0.5).until_body_end())
        .layer(ConcurrencyLimitLayer::new(64).until_body_end())
        .layer(TimeoutLayer::new(SECOND).idle(SECOND))
        .map_err(Error::Service)
        .service_fn(|()| ready(Ok::<_, Infallible>(Response::new(Frames { left: frames, pends, asked: 0 }))));
    let mut call = || {
        let mut context = Context::from_waker(Waker::noop());
        assert!(service.poll_ready(&mut context).is_ready());
        let Poll::Ready(Ok(response)) = pin!(service.call(())).poll(&mut context) else { panic!("no response") };
        let mut body = pin!(response.into_body());
        let mut passed = 0;
        loop {
            match body.as_mut().poll_frame(&mut context) {
                Poll::Pending => assert!(pends),
                Poll::Ready(Some(frame)) => passed += u32::from(frame.unwrap().is_data()),
                Poll::Ready(None) => break,
            }
        }
        assert_eq!(passed, frames);
    };
    call();
    allocation_counter::measure(call).count_total
}

#[test]
fn of_the_guards_of_a_body_only_timers_allocate_and_only_once() {
    assert_eq!(allocations_of_a_body(1, false), 0);
    assert_eq!(allocations_of_a_body(100_000, false), 0);
    // The two timeouts allocate one each, and the idle limit a waker.
    assert_eq!(allocations_of_a_body(1, true), 3);
    assert_eq!(allocations_of_a_body(100_000, true), 3);
}

#[test]
fn a_body_that_can_be_sent_again_allocates_twice_and_an_empty_one_not_at_all() {
    assert_eq!(allocations(ReplayLayer::new(), 0, || Request::new(Empty::<Bytes>::new())), 0);
    assert_eq!(allocations(ReplayLayer::new(), 0, || Request::new("streamed".to_owned())), 2);
}

#[test]
fn an_upload_that_is_looked_after_allocates_once_and_an_empty_one_not_at_all() {
    let layer = || UploadLayer::new(SECOND);
    assert_eq!(allocations(layer(), 2, || Request::new(Empty::<Bytes>::new())), 0);
    assert_eq!(allocations(layer(), 0, || Request::new(Full::new(Bytes::from_static(b"streamed")))), 1);
    assert_eq!(allocations(layer(), 2, || Request::new(Full::new(Bytes::from_static(b"streamed")))), 1);
}

#[test]
fn a_million_frames_past_what_may_be_kept_take_no_more_memory() {
    let used = allocation_counter::measure(|| {
        let mut body = ReplayBody::new(Frames { left: 1_000_000, pends: false, asked: 0 });
        let copy = body.copy_body().unwrap();
        let mut frames = 0;
        while let Poll::Ready(Some(frame)) = Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop())) {
            assert_eq!(frame.unwrap().into_data().unwrap(), "frame");
            frames += 1;
        }
        assert_eq!((frames, copy.claim_body()), (1_000_000, false));
    });
    // The first thousand frames are recorded, each with its overhead.
    assert!((16 * 1024..256 * 1024).contains(&used.bytes_max), "{used:?}");
}

/// The state that drains responses is boxed, and only a failure allocates it.
#[test]
fn a_retry_that_drains_responses_is_no_larger() {
    type Inner = tower::util::BoxCloneSyncService<Request<String>, Response<String>, Error<Infallible>>;
    let size =
        |service: &dyn Fn(Inner) -> usize| service(Inner::new(tower::service_fn(async |_| Ok(Response::default()))));
    let draining = size(&|inner| size_of_val(&RetryLayer::http().layer(inner).call(Request::default())));
    let dropping = size(&|inner| {
        let layer = RetryLayer::http().discard(ziggurat::retry::Dropped);
        size_of_val(&layer.layer(inner).call(Request::default()))
    });
    assert!(draining <= dropping + size_of::<usize>(), "{draining} {dropping}");
}

#[test]
fn a_hit_of_a_cache() {
    let layer = CacheLayer::new(10, SECOND, |number: &u64| Some(*number));
    assert_eq!(allocations(layer, 0, || 7_u64), 0);
}

/// The map of the headers, its entries, and the values of `Age` and `Cache-Status`.
///
/// Shows: C8
#[test]
fn a_hit_of_an_http_cache() {
    for vary in [None, Some("accept-language")] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let inner = service_fn(move |_: Request<Empty<Bytes>>| {
            let response =
                Response::builder().header("cache-control", "max-age=60").header("content-type", "text/plain");
            let response = response.header("etag", "\"a\"").header("server", "test").header("content-length", "1024");
            let mut response = response.body(Full::new(Bytes::from(vec![b'x'; 1024]))).unwrap();
            if let Some(vary) = vary {
                response.headers_mut().insert("vary", vary.parse().unwrap());
            }
            ready(Ok::<_, Error<Infallible>>(response))
        });
        let mut service = CacheLayer::http().layer(inner);
        let request = || {
            let request = Request::get("http://shop.test/prices?page=1").header("accept-language", "de, en");
            request.body(Empty::<Bytes>::new()).unwrap()
        };
        runtime.block_on(async {
            let response = service.call(request()).await.unwrap();
            response.into_body().collect().await.unwrap();
            tokio::task::yield_now().await;
        });
        let _runtime = runtime.enter();
        let mut hit = || {
            let mut context = Context::from_waker(Waker::noop());
            let Poll::Ready(Ok(response)) = pin!(service.call(request())).poll(&mut context) else { panic!("no hit") };
            assert!(response.headers().contains_key("age"));
            let Poll::Ready(Some(Ok(frame))) = pin!(response.into_body()).poll_frame(&mut context) else {
                panic!("no body")
            };
            assert_eq!(frame.into_data().unwrap().len(), 1024);
        };
        (0..3).for_each(|_| hit());
        let request = allocation_counter::measure(|| drop(request())).count_total;
        let hits = allocation_counter::measure(hit).count_total - request;
        let expected = if vary.is_some() { 5 } else { 4 };
        assert!(hits <= expected, "{hits} allocations, {vary:?}");
    }
}

/// Returns the number of allocations of all calls of a full batch, after earlier calls.
fn allocations_of_a_batch(size: usize) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    // The responses reuse the memory of the requests.
    let inner = service_fn(|numbers: Vec<u64>| {
        ready(Ok::<_, Error<Infallible>>(numbers.into_iter().map(Ok::<_, Error<Infallible>>).collect::<Vec<_>>()))
    });
    let service = BatchLayer::new(size, SECOND).layer(inner);
    let mut calls = Vec::with_capacity(size);
    let mut run = || {
        let mut context = Context::from_waker(Waker::noop());
        calls.extend((0..size as u64).map(|number| service.clone().call(number)));
        assert!(calls.iter_mut().all(|call| Pin::new(call).poll(&mut context).is_pending()));
        runtime.block_on(tokio::task::yield_now());
        assert!(calls.drain(..).all(|mut call| Pin::new(&mut call).poll(&mut context).is_ready()));
    };
    let _runtime = runtime.enter();
    (0..3).for_each(|_| run());
    allocation_counter::measure(run).count_total
}

/// Shows: P7
#[test]
fn a_call_in_a_batch_allocates_once_and_the_batch_a_dozen_times() {
    assert!(allocations_of_a_batch(1) <= 12);
    // The list of a batch grows by doubling.
    assert_eq!(allocations_of_a_batch(128) - allocations_of_a_batch(64), 64 + 1);
}

/// The event is allocated once, whether subscribers receive it, are dropped for their lag, or make the publisher wait.
/// Without subscribers, and on the receiving side, nothing is allocated. Only the queues double, once.
///
/// Shows: E1, E3
#[test]
fn an_event_to_a_thousand_subscribers_allocates_once() {
    let bus = EventBus::new();
    let event = Arc::new("an event".to_owned());
    assert_eq!(allocation_counter::measure(|| assert_eq!(bus.publish(Arc::clone(&event)), 0)).count_total, 0);

    let mut all: Vec<_> = (0..1_000).map(|_| bus.subscribe::<Arc<String>>()).collect();
    let mut context = Context::from_waker(Waker::noop());
    let poll = |events: &mut Subscription<_>, context: &mut _| Pin::new(events).poll_next(context);
    for _ in 0..3 {
        assert!(all.iter_mut().all(|events| poll(events, &mut context).is_pending()));
        let published = allocation_counter::measure(|| assert_eq!(bus.publish(Arc::clone(&event)), 1_000));
        assert_eq!(published.count_total, 1);
        let received = allocation_counter::measure(|| {
            assert!(all.iter_mut().all(|events| matches!(poll(events, &mut context), Poll::Ready(Some(Ok(_))))));
        });
        assert_eq!(received.count_total, 0);
    }
    // Some subscribers read late, in batches.
    let published = allocation_counter::measure(|| {
        for _ in 0..4 {
            bus.publish(Arc::clone(&event));
        }
    });
    assert_eq!(published.count_total, 4);
    let publish = || allocation_counter::measure(|| assert_eq!(bus.publish(Arc::clone(&event)), 1_000)).count_total;
    assert_eq!([publish(), publish(), publish(), publish()], [1_001, 1, 1, 1]);

    let lag: Vec<_> = (0..1_000).map(|_| bus.subscribe_with::<Arc<String>>(1, Lag::Drop)).collect();
    all.clear();
    bus.publish(Arc::clone(&event));
    let published = allocation_counter::measure(|| assert_eq!(bus.publish(Arc::clone(&event)), 0));
    assert_eq!((published.count_total, lag.len()), (1, 1_000));
}

/// Returns the peak memory while `items` items are processed, 16 at a time, each pending once.
fn memory_of_items(items: u32, ordered: bool) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let process = || {
        process_concurrently(0..items, |item| async move {
            tokio::task::yield_now().await;
            if item % 3 == 0 { Err(vec![item; 10]) } else { Ok(vec![item; 10]) }
        })
        .max_concurrency(16)
    };
    let mut ended = 0;
    let counted = allocation_counter::measure(|| {
        runtime.block_on(async {
            let mut results: Pin<Box<dyn Stream<Item = _>>> =
                if ordered { Box::pin(process().ordered()) } else { Box::pin(process().unordered()) };
            while let Some(result) = results.next().await {
                ended += result.map_or_else(|error| error.error().unwrap().len(), |values| values.len()) / 10;
            }
        });
    });
    assert_eq!(ended, items as usize);
    counted.bytes_max
}

/// Shows: P1, S3
#[test]
fn a_million_items_take_no_more_memory_than_those_in_flight() {
    for ordered in [false, true] {
        assert_eq!(memory_of_items(1_000_000, ordered), memory_of_items(1_000, ordered));
    }
}

/// The other tests compare with zero, so this one shows that an allocation is counted.
#[test]
fn an_allocation_is_counted() {
    assert_eq!(allocations(layer_fn(BoxService::<u64, _, _>::new), 0, || 7_u64), 1);
}

/// Returns the number of allocations of a request through a context layer, to the end of its body.
fn allocations_of_a_request() -> u64 {
    let inner = service_fn(|_: Request<()>| ready(Ok::<_, Infallible>(Response::new(String::from("body")))));
    let mut service = ContextLayer::new(Scope::root("app")).layer(inner);
    let mut call = || {
        let mut context = Context::from_waker(Waker::noop());
        assert!(service.poll_ready(&mut context).is_ready());
        let Poll::Ready(Ok(response)) = pin!(service.call(Request::new(()))).poll(&mut context) else { panic!() };
        let mut body = pin!(response.into_body());
        while let Poll::Ready(Some(_)) = body.as_mut().poll_frame(&mut context) {}
    };
    call();
    allocation_counter::measure(call).count_total
}

/// Closing a scope that owns nothing is free: the scope is one allocation, the body another one, and http's extensions
/// are three.
#[test]
fn a_requests_scope_without_tasks_allocates_itself_and_the_extensions() {
    assert_eq!(allocations_of_a_request(), 5);
}

/// The response, and then its body, are pending first.
///
/// Shows: D1
#[test]
fn a_call_through_a_drain_allocates_nothing() {
    let inner = service_fn(|_: Request<()>| async {
        let mut is_pending = true;
        poll_fn(|_| if mem::take(&mut is_pending) { Poll::Pending } else { Poll::Ready(()) }).await;
        Ok::<_, Error<Infallible>>(Response::new(Frames { left: 3, pends: true, asked: 0 }))
    });
    let mut service = DrainLayer::new().layer(inner);
    let mut call = || {
        let mut context = Context::from_waker(Waker::noop());
        assert!(service.poll_ready(&mut context).is_ready());
        let mut response = pin!(service.call(Request::new(())));
        assert!(response.as_mut().poll(&mut context).is_pending());
        let Poll::Ready(Ok(response)) = response.poll(&mut context) else { panic!() };
        let mut body = pin!(response.into_body());
        while !matches!(body.as_mut().poll_frame(&mut context), Poll::Ready(None)) {}
    };
    call();
    assert_eq!(allocation_counter::measure(call).count_total, 0);
}

/// With a longer series of keys: `KEYS=10000000 cargo test --release --all-features --test allocations distinct_keys`.
///
/// Shows: K2
#[test]
fn distinct_keys_beyond_the_maximum_take_no_more_memory() {
    const MAX: u64 = 10_000;
    let keys = std::env::var("KEYS").map_or(10 * MAX, |keys| keys.parse().expect("a number of keys"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _runtime = runtime.enter();
    let layer =
        PerKeyLayer::new(|number: &u64| Ok(*number), |_| CircuitBreakerLayer::consecutive(5)).max_keys(MAX as usize);
    let handle = layer.handle();
    let mut service = layer.layer(Inner { pending: 0 });
    let mut call = |number| {
        let mut context = Context::from_waker(Waker::noop());
        assert!(matches!(pin!(service.call(number)).poll(&mut context), Poll::Ready(Ok("answer"))));
    };
    // Each part of the keys has been full once, and so has grown as far as it does.
    let first = allocation_counter::measure(|| (0..2 * MAX).for_each(&mut call));
    let rest = allocation_counter::measure(|| (2 * MAX..keys).for_each(&mut call));
    assert_eq!((handle.key_count() as u64, handle.overflowed()), (MAX, 0));
    println!("{MAX} keys take {} bytes, and {keys} keys {} bytes more", first.bytes_current, rest.bytes_current);
    assert!(rest.bytes_max < first.bytes_current as u64 / 20, "{first:?} {rest:?}");
}

/// Returns the bytes that are allocated while `depth` nested scopes are closed.
fn memory_to_close(depth: usize) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let app = Scope::root("app");
    let innermost = (0..depth).fold(app.clone(), |scope, _| scope.child("in"));
    let value = Disposable::new(async |_: Scope| Ok::<_, Infallible>(()), async |_: Arc<()>| {});
    let innermost = runtime.block_on(innermost.disposable(value).open()).unwrap();
    let measured = allocation_counter::measure(|| runtime.block_on(app.close()).unwrap());
    drop(innermost);
    measured.bytes_total
}

/// Twice as many scopes take twice as much memory, not four times.
#[test]
fn closing_nested_scopes_allocates_in_proportion_to_their_number() {
    let [half, all] = [1_000, 2_000].map(memory_to_close);
    assert!(all < 3 * half, "{half} bytes for 1,000 and {all} for 2,000");
}
