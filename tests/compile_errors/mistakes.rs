//! The mistakes. The compiler sees one of them at a time.

use std::{convert::Infallible, io, time::Duration};

use http::{Request, Response};
use tower::{ServiceBuilder, ServiceExt, service_fn, util::BoxCloneSyncService};
use ziggurat::{
    Error,
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

#[cfg(mistake = "none")]
fn mistake() {
    let layer = TimeoutLayer::new(|_: &String| SECOND);
    let service =
        ServiceBuilder::new().layer(RetryLayer::new()).layer(layer).map_err(Error::Service).service(service_fn(read));
    BoxCloneSyncService::new(service);
}

/// Each service says by itself where to look.
#[cfg(mistake = "no_service_at_all")]
async fn mistake() {
    use tower::Layer;
    use ziggurat::{
        Scope, batch::BatchLayer, circuit_breaker::CircuitBreakerLayer, concurrency_limit::ConcurrencyLimitLayer,
        context::ContextLayer, observe::ObserveLayer, propagate::PropagateLayer,
        rejection_response::RejectionResponseLayer, replay::ReplayLayer, request_id::RequestIdLayer,
        resource::ResourceLayer, stack::ServerStack, upload::UploadLayer,
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
    FallbackLayer::value(()).layer(()).oneshot(()).await;
    ObserveLayer::new().layer(()).oneshot(()).await;
    PropagateLayer::new().layer(()).oneshot(()).await;
    RejectionResponseLayer::problem_json().layer(()).oneshot(()).await;
    ReplayLayer::new().layer(()).oneshot(()).await;
    RequestIdLayer::new().layer(()).oneshot(()).await;
    ResourceLayer::new(|| async { io::Result::Ok(()) }).layer(()).oneshot(()).await;
    RetryLayer::new().layer(()).oneshot(()).await;
    TimeoutLayer::new(SECOND).layer(()).oneshot(()).await;
    UploadLayer::new(SECOND).layer(()).oneshot(()).await;
}
