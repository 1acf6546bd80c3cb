//! The mistakes. The compiler sees one of them at a time.

use std::{convert::Infallible, io, time::Duration};

use http::{Request, Response};
use tower::{ServiceBuilder, ServiceExt, service_fn, util::BoxCloneSyncService};
use ziggurat::{
    Class, Error,
    cache::CacheLayer,
    chaos::{ChaosLayer, Fault},
    events::{EventBus, Lag},
    fallback::{Failed, FallbackLayer},
    retry::RetryLayer,
    stack::ClientStack,
    timeout::TimeoutLayer,
};

const SECOND: Duration = Duration::from_secs(1);

async fn read(path: String) -> io::Result<String> {
    Ok(path)
}

#[cfg(mistake = "no_map_err")]
fn mistake() {
    let service = ServiceBuilder::new().layer(TimeoutLayer::new(SECOND)).service_fn(read);
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "no_map_err_and_a_call")]
async fn mistake() {
    let service = ServiceBuilder::new().layer(RetryLayer::new()).layer(TimeoutLayer::new(SECOND)).service_fn(read);
    service.oneshot(String::new()).await;
}

#[cfg(mistake = "no_map_err_in_a_recommended_stack")]
async fn mistake() {
    let service = ServiceBuilder::new().layer(ClientStack::new("files")).service_fn(read);
    service.oneshot(String::new()).await;
}

#[cfg(mistake = "no_map_err_and_a_call_to_a_cache")]
async fn mistake() {
    let cache = CacheLayer::new(1, SECOND, |path: &String| Some(path.clone()));
    let service = ServiceBuilder::new().layer(cache).service_fn(read);
    service.oneshot(String::new()).await;
}

#[cfg(mistake = "cache_of_a_stream")]
fn mistake() {
    struct Stream;
    let cache = CacheLayer::new(1, SECOND, |req: &Request<String>| Some(req.uri().clone()));
    let send = |_: Request<String>| async { io::Result::Ok(Response::new(Stream)) };
    let service = ServiceBuilder::new().layer(cache).map_err(Error::Service).service_fn(send);
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "body_without_default")]
fn mistake() {
    struct Traced;
    let handler = |_: Request<String>| async { Ok::<_, Infallible>(Response::new(Traced)) };
    let service = ServiceBuilder::new().layer(TimeoutLayer::new(SECOND)).service_fn(handler);
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "setting_of_another_type")]
fn mistake() {
    let layer = TimeoutLayer::new(|_: &String| 1_000_u64);
    let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(read);
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "bare_closure")]
fn mistake() {
    let layer = TimeoutLayer::new(|_| SECOND);
    let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(read);
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "request_that_is_not_clone")]
fn mistake() {
    struct Upload;
    let send = |_: Upload| async { io::Result::Ok(()) };
    let service = ServiceBuilder::new().layer(RetryLayer::new()).map_err(Error::Service).service_fn(send);
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "body_that_is_not_clone")]
fn mistake() {
    struct Upload;
    let send = |_: Request<Upload>| async { io::Result::Ok(Response::new(String::new())) };
    let service = ServiceBuilder::new().layer(RetryLayer::http()).map_err(Error::Service).service_fn(send);
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "answer_that_has_no_body")]
fn mistake() {
    let send = |_: Request<String>| async { io::Result::Ok(Response::new(7)) };
    let service = ServiceBuilder::new().layer(RetryLayer::http()).map_err(Error::Service).service_fn(send);
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "fallback_of_another_type")]
fn mistake() {
    let layer = FallbackLayer::new(|_: Failed<'_, _, _>| 7);
    let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(read);
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "fallback_that_is_not_clone")]
fn mistake() {
    struct Report;
    let report = |_: String| async { io::Result::Ok(Report) };
    let layer = FallbackLayer::value(Report);
    let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(report);
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "backup_with_another_error")]
fn mistake() {
    let backup = service_fn(|path: String| async { Ok::<_, Infallible>(path) });
    let layer = FallbackLayer::service(backup);
    let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(read);
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "degraded_without_extensions")]
fn mistake() {
    let layer = FallbackLayer::value(String::new()).http().classify(ziggurat::FailOnError);
    let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(read);
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "fault_of_another_type")]
fn mistake() {
    let layer = ChaosLayer::new(|_: &String| "an error");
    let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(read);
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "rate_of_another_type")]
fn mistake() {
    let layer = ChaosLayer::new(Fault::Error).rate_by(|_: &String| 1_u32);
    let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(read);
    BoxCloneSyncService::new(service);
}

#[derive(Clone)]
struct UserCreated;

#[cfg(mistake = "handler_of_a_reference")]
fn mistake() {
    EventBus::new().on(async |_: &UserCreated| {}).detach();
}

#[cfg(mistake = "bounded_handler_of_a_reference")]
fn mistake() {
    let handler = |user: &'static UserCreated| async move { drop(user.clone()) };
    EventBus::new().on_with(1, Lag::Drop, handler).detach();
}

#[cfg(mistake = "published_reference")]
fn mistake() {
    let event = UserCreated;
    EventBus::new().publish(&event);
}

#[cfg(mistake = "published_reference_to_a_static")]
async fn mistake() {
    static EVENT: UserCreated = UserCreated;
    EventBus::new().publish_and_wait(&EVENT).await;
}

#[cfg(mistake = "published_and_joined_reference")]
async fn mistake() {
    EventBus::new().publish_and_join(&UserCreated).await;
}

#[cfg(mistake = "none")]
async fn events_of_every_other_kind<E: Clone + Send + Sync + 'static, I>(event: E, items: I)
where
    I: Iterator<Item: Clone + Send + Sync + 'static>,
{
    let bus = EventBus::new();
    bus.on(async |_: UserCreated| {}).detach();
    bus.on(|_: UserCreated| async { io::Result::Ok(()) }).detach();
    bus.on(|_: E| async {}).detach();
    bus.on(|_: std::sync::Arc<UserCreated>| async {}).detach();
    bus.publish("text");
    bus.publish((1, Some(UserCreated)));
    bus.publish_and_wait(event.clone()).await;
    bus.publish_and_join(event).await;
    items.for_each(|item| drop(bus.publish(item)));
}

/// The fixes that the sentences name.
#[cfg(mistake = "none")]
async fn what_is_right() -> Result<(), Box<dyn std::error::Error>> {
    use deadpool::managed::{Manager, Metrics, Pool, RecycleResult};
    use tokio_stream::StreamExt as _;
    use ziggurat::{
        Scope,
        concurrent::process_concurrently,
        context::ContextLayer,
        resource::ResourceLayer,
        stream::{StreamExt as _, generate},
        testing::laws,
    };

    let app = Scope::root("app");
    let service = ServiceBuilder::new()
        .layer(ContextLayer::ambient(app.clone()).state(|path: &String| path.len()))
        .layer(FallbackLayer::new(|_: Failed<'_, _, _>| None).classify(|_: Result<&_, &_>| Class::Success))
        .layer(CacheLayer::new(1, |_: &_, _: &_| SECOND, |_| Some(1)).classify(|_: Result<&_, &_>| Class::Success))
        .layer(RetryLayer::new().backoff(|_, _: Result<&_, &_>| SECOND).copy(|path: &String| Some(path.clone())))
        .layer(TimeoutLayer::new(|_: &_| SECOND))
        .map_err(Error::Service)
        .service_fn(read);
    BoxCloneSyncService::new(service.clone());

    let send = |_: String| async { Err::<(), &'static str>("broken") };
    let borrowed = ServiceBuilder::new().layer(TimeoutLayer::new(SECOND)).map_err(Error::Service).service_fn(send);
    let borrowed = BoxCloneSyncService::new(borrowed);
    tokio::spawn(async move { borrowed.oneshot(String::new()).await });

    struct Numbers;
    impl Manager for Numbers {
        type Type = u32;
        type Error = io::Error;
        async fn create(&self) -> io::Result<u32> {
            Ok(1)
        }
        async fn recycle(&self, _: &mut u32, _: &Metrics) -> RecycleResult<io::Error> {
            Ok(())
        }
    }
    let in_scope = app.require::<Pool<Numbers>>()?;
    ResourceLayer::deadpool(&in_scope);
    ResourceLayer::deadpool(&*in_scope);
    ResourceLayer::deadpool(&app.require::<Pool<Numbers>>()?);
    let _: ResourceLayer<ziggurat::resource::Deadpool<Numbers>> = ResourceLayer::deadpool(&app.require::<Pool<_>>()?);

    process_concurrently([1, 2], async |number: u32| Ok::<_, Infallible>(number + 1)).await?;

    let mut generated = generate(async |numbers| numbers.send(1).await.unwrap_or_default());
    generated.next().await;
    let mut batches = generated.then(async |number| number).batches(2);
    batches.next().await;

    laws(|| TimeoutLayer::new(SECOND)).over(|number| number.to_string(), |number| number, |n: &u64| *n).check();
    Ok(())
}

#[cfg(mistake = "none")]
fn mistake() {
    let layer = TimeoutLayer::new(|_: &String| SECOND);
    let service =
        ServiceBuilder::new().layer(RetryLayer::new()).layer(layer).map_err(Error::Service).service(service_fn(read));
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "classifier_of_the_services_own_error")]
fn mistake() {
    let classify = |outcome: Result<&String, &io::Error>| Class::Success;
    let layer = RetryLayer::new().classify(classify);
    let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(read);
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "bare_classifier")]
fn mistake() {
    let layer = RetryLayer::new().classify(|_| Class::Success);
    let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(read);
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "bare_backoff")]
fn mistake() {
    let layer = RetryLayer::new().backoff(|_, _| SECOND);
    let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(read);
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "bare_copy")]
fn mistake() {
    let layer = RetryLayer::new().copy(|_| None);
    let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(read);
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "bare_key")]
fn mistake() {
    CacheLayer::new(1, SECOND, |path| Some(path.clone()));
}

#[cfg(mistake = "key_of_another_request")]
fn mistake() {
    let layer = CacheLayer::new(1, SECOND, |path: &&str| Some(path.len()));
    let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(read);
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "bare_ttl")]
fn mistake() {
    let layer = CacheLayer::new(1, |_, _| SECOND, |path: &String| Some(path.clone()));
    let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(read);
    BoxCloneSyncService::new(service);
}

#[cfg(any(mistake = "the_readme_over_reqwest", mistake = "the_readme_over_reqwest_named"))]
async fn mistake() {
    use ziggurat::{
        Backoff, Scope, circuit_breaker::CircuitBreakerLayer, concurrency_limit::ConcurrencyLimitLayer,
        context::ContextLayer,
    };

    let service = ServiceBuilder::new()
        .layer(ContextLayer::new(Scope::root("app")))
        .layer(
            CacheLayer::new(10_000, Duration::from_secs(30), ziggurat::cache::http_key::<String>)
                .classify(ziggurat::cache::HttpStorable),
        )
        .layer(TimeoutLayer::new(Duration::from_secs(10)).named("total"))
        .layer(RetryLayer::http().max_attempts(3).backoff(Backoff::exponential(Duration::from_millis(100))))
        .layer(CircuitBreakerLayer::http().open_for(Duration::from_secs(5)))
        .layer(ConcurrencyLimitLayer::new(64).max_waiting(128))
        .layer(TimeoutLayer::new(Duration::from_secs(2)).named("attempt"))
        .map_err(Error::Service)
        .service(reqwest::Client::new());
    #[cfg(mistake = "the_readme_over_reqwest_named")]
    BoxCloneSyncService::<reqwest::Request, reqwest::Response, Error<reqwest::Error>>::new(service.clone());
    #[cfg(mistake = "the_readme_over_reqwest")]
    service.oneshot(reqwest::Request::new(reqwest::Method::GET, "http://localhost".parse().unwrap())).await;
}

#[cfg(mistake = "borrowed_error_in_a_task")]
fn mistake() {
    let send = async |_: String| Err::<(), &'static str>("broken");
    let service = ServiceBuilder::new().layer(TimeoutLayer::new(SECOND)).map_err(Error::Service).service_fn(send);
    tokio::spawn(async move { service.oneshot(String::new()).await });
}

#[cfg(mistake = "error_that_is_not_named")]
async fn mistake() {
    let send = |_: String| async { Ok(()) };
    let service = ServiceBuilder::new().layer(TimeoutLayer::new(SECOND)).map_err(Error::Service).service_fn(send);
    service.oneshot(String::new()).await;
}

#[cfg(mistake = "handler_of_a_plain_value")]
async fn mistake() {
    ziggurat::concurrent::process_concurrently([1, 2], async |number: u32| number + 1).await;
}

#[cfg(mistake = "bare_state")]
fn mistake() {
    let layer = ziggurat::context::ContextLayer::ambient(ziggurat::Scope::root("app")).state(|_| 1);
    let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(read);
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "bare_resource")]
fn mistake() {
    let layer = ziggurat::resource::ResourceLayer::by_request(|_| Some(async { io::Result::Ok(1) }));
    let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(read);
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "bare_fallback")]
fn mistake() {
    let layer = FallbackLayer::new(|_| String::new());
    let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service_fn(read);
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "bare_number")]
fn mistake() {
    ziggurat::testing::laws(|| TimeoutLayer::new(SECOND)).over(|number| number, |number| number, |_| 1).check();
}

#[cfg(mistake = "status_of_another_response")]
fn mistake() {
    struct Response;
    let send = |_: String| async { io::Result::Ok(Response) };
    let service = ServiceBuilder::new().layer(RetryLayer::http()).map_err(Error::Service).service_fn(send);
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "until_the_body_end_of_another_response")]
fn mistake() {
    struct Response;
    let send = |_: String| async { io::Result::Ok(Response) };
    let limit = TimeoutLayer::new(SECOND).until_body_end();
    let service = ServiceBuilder::new().layer(limit).map_err(Error::Service).service_fn(send);
    BoxCloneSyncService::new(service);
}

#[cfg(mistake = "half_a_migration")]
fn mistake() {
    use axum::{BoxError, Router, error_handling::HandleErrorLayer, http::StatusCode};
    async fn handle(_: BoxError) -> StatusCode {
        StatusCode::GATEWAY_TIMEOUT
    }
    let limit = ServiceBuilder::new().layer(HandleErrorLayer::new(handle)).layer(TimeoutLayer::new(SECOND));
    Router::<()>::new().layer(limit);
}

#[cfg(mistake = "streamed_upload_in_a_client_stack")]
fn mistake() {
    let send = |_: Request<axum::body::Body>| async { io::Result::Ok(Response::new(String::new())) };
    let service = ServiceBuilder::new().layer(ClientStack::http("files")).map_err(Error::Service).service_fn(send);
    BoxCloneSyncService::new(service);
}

/// Each service says by itself where to look.
#[cfg(mistake = "no_service_at_all")]
async fn mistake() {
    use tower::Layer;
    use ziggurat::{
        Scope, batch::BatchLayer, circuit_breaker::CircuitBreakerLayer, concurrency_limit::ConcurrencyLimitLayer,
        context::ContextLayer, drain::DrainLayer, observe::ObserveLayer, propagate::PropagateLayer,
        rate_limit::RateLimitLayer, rejection_response::RejectionResponseLayer, replay::ReplayLayer,
        request_id::RequestIdLayer, resource::ResourceLayer, stack::ServerStack, upload::UploadLayer,
    };

    let app = Scope::root("app");
    let read_all = service_fn(async |paths: Vec<String>| io::Result::Ok(Vec::<io::Result<String>>::new()));
    BatchLayer::new(1, SECOND).layer(read_all).oneshot(String::new()).await;
    CacheLayer::new(1, SECOND, |path: &String| Some(path.clone())).layer(()).oneshot(()).await;
    ChaosLayer::new(Fault::Error).layer(()).oneshot(()).await;
    CircuitBreakerLayer::http().layer(()).oneshot(()).await;
    ClientStack::new("files").layer(()).oneshot(()).await;
    ConcurrencyLimitLayer::new(1).layer(()).oneshot(()).await;
    ContextLayer::new(app.clone()).layer(()).oneshot(()).await;
    DrainLayer::new().layer(()).oneshot(()).await;
    FallbackLayer::value(()).layer(()).oneshot(()).await;
    ObserveLayer::new().layer(()).oneshot(()).await;
    PropagateLayer::new().layer(()).oneshot(()).await;
    RateLimitLayer::new(1, SECOND).layer(()).oneshot(()).await;
    RejectionResponseLayer::problem_json().layer(()).oneshot(()).await;
    ReplayLayer::new().layer(()).oneshot(()).await;
    RequestIdLayer::new().layer(()).oneshot(()).await;
    ResourceLayer::new(|| async { io::Result::Ok(()) }).layer(()).oneshot(()).await;
    RetryLayer::new().layer(()).oneshot(()).await;
    TimeoutLayer::new(SECOND).layer(()).oneshot(()).await;
    UploadLayer::new(SECOND).layer(()).oneshot(()).await;
}
