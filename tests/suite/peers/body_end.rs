//! Timeouts and breakers that last to the end of the body, over HTTP/1 and HTTP/2.

use std::{
    convert::Infallible,
    error::Error as StdError,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    HttpStatus, Reason, Rejection, Scope,
    circuit_breaker::{CircuitBreakerLayer, State},
    concurrency_limit::ConcurrencyLimitLayer,
    context::ContextLayer,
    timeout::TimeoutLayer,
};

use super::{
    AnyBody, BOTH, FAR, Server, Streamed, Version, Watch, answer, any, get, next, pooled, serve, soon, streamed,
};

/// Long enough to measure, and short enough to wait for.
const SHORT: Duration = Duration::from_millis(20);

/// An upstream that responds to `/streams` with these bodies, one after the other, and to others with "hello".
async fn upstream(bodies: Vec<Streamed>) -> Server {
    let bodies = Arc::new(Mutex::new(bodies.into_iter()));
    serve(service_fn(move |request: Request<Incoming>| {
        let response = match request.uri().path() {
            "/streams" => Response::new(any(bodies.lock().unwrap().next().unwrap())),
            _ => answer("hello"),
        };
        async { Ok::<_, Infallible>(response) }
    }))
    .await
}

/// Shows: B1, B3
#[tokio::test]
async fn a_reset_after_200_is_a_failure_and_opens_the_circuit() {
    for version in BOTH {
        let (frames, bodies): (Vec<_>, Vec<_>) = (0..2).map(|_| streamed()).unzip();
        let server = upstream(bodies).await;
        let breaker = CircuitBreakerLayer::consecutive(2).classify(HttpStatus).open_for(FAR).until_body_end();
        let circuit = breaker.handle();
        let client =
            ServiceBuilder::new().layer(breaker).map_err(ziggurat::boxed).service(pooled::<Full<Bytes>>(version));
        for frames in frames {
            assert_eq!(circuit.state(), State::Closed);
            let mut response = soon(client.clone().oneshot(get(server.address, "/streams"))).await.unwrap();
            frames.send(Ok(Bytes::from("first"))).unwrap();
            assert_eq!(next(response.body_mut()).await.unwrap().unwrap(), "first");
            frames.send(Err(io::Error::other("disk full"))).unwrap();
            assert!(next(response.body_mut()).await.unwrap().is_err());
        }
        assert_eq!(circuit.state(), State::Open);
        let outcome = soon(client.oneshot(get(server.address, "/hello"))).await;
        assert!(ziggurat::rejection(&outcome).unwrap().is_circuit_open());
    }
}

/// The reader of a stalled body gets the rejection as the body's error, and the server notices.
///
/// Shows: T1, T5, L2
#[tokio::test]
async fn a_body_that_stalls_is_ended_by_the_limit_between_frames_and_by_the_total() {
    let idle = TimeoutLayer::new(FAR).idle(SHORT).named("idle");
    let total = TimeoutLayer::new(|req: &Request<_>| if req.uri().path() == "/streams" { SHORT } else { FAR })
        .until_body_end()
        .named("total");
    for version in BOTH {
        let (frames, bodies): (Vec<_>, Vec<_>) = (0..2).map(|_| streamed()).unzip();
        let server = upstream(bodies).await;
        let permits = ConcurrencyLimitLayer::new(1).until_body_end();
        let watch = Watch::new(permits.handle());
        macro_rules! client {
            ($timeout:expr) => {
                ServiceBuilder::new()
                    .layer(ContextLayer::new(Scope::root("client")).state(watch.held_by_a_scope()))
                    .layer(permits.clone())
                    .layer($timeout.clone())
                    .map_err(ziggurat::boxed)
                    .service(pooled::<Full<Bytes>>(version))
            };
        }
        let (idle, total) = (client!(idle), client!(total));
        for (frames, name) in frames.iter().zip(["idle", "total"]) {
            frames.send(Ok(Bytes::from("first"))).unwrap();
            let request = get(server.address, "/streams");
            // On a slow machine the total may pass before the head arrives.
            let error = match name {
                "idle" => soon(idle.clone().oneshot(request)).await.unwrap().collect().await.unwrap_err(),
                _ => match soon(total.clone().oneshot(request)).await {
                    Ok(response) => soon(response.collect()).await.unwrap_err(),
                    Err(error) => error,
                },
            };
            let rejection = Rejection::find(&*error).unwrap();
            assert_eq!((rejection.name(), rejection.reason()), (Some(name), &Reason::TimedOut { limit: SHORT }));
            watch.all_back().await;
            soon(frames.closed()).await;
        }
        let response = soon(total.oneshot(get(server.address, "/hello"))).await.unwrap();
        assert_eq!(soon(response.collect()).await.unwrap().to_bytes(), "hello");
    }
}

/// A server cuts the response off, so that its client does not take it for complete.
///
/// Shows: T1, L2
#[tokio::test]
async fn a_server_ends_a_response_whose_body_stalls() {
    for version in BOTH {
        let (frames, body) = streamed();
        let body = Arc::new(Mutex::new(Some(body)));
        let permits = ConcurrencyLimitLayer::new(1).until_body_end();
        let watch = Watch::new(permits.handle());
        let stack = ServiceBuilder::new()
            .map_response(|response: Response<_>| response.map(any))
            .layer(ContextLayer::new(Scope::root("server")).state(watch.held_by_a_scope()))
            .layer(permits)
            .layer(TimeoutLayer::new(FAR).idle(SHORT))
            .service(service_fn(move |_: Request<Incoming>| {
                let response =
                    body.lock().unwrap().take().map_or_else(|| answer("hello"), |body| Response::new(any(body)));
                async { Ok::<Response<AnyBody>, Infallible>(response) }
            }));
        let server = serve(stack).await;
        let client = pooled::<Full<Bytes>>(version);
        frames.send(Ok(Bytes::from("first"))).unwrap();
        let response = soon(client.request(get(server.address, "/"))).await.unwrap();
        let error = soon(response.collect()).await.unwrap_err();
        assert!(error.source().is_some(), "{error:?}");
        soon(frames.closed()).await;
        watch.all_back().await;
        let response = soon(client.request(get(server.address, "/"))).await.unwrap();
        assert_eq!(soon(response.collect()).await.unwrap().to_bytes(), "hello");
        assert_eq!(server.accepted(), if version == Version::Http1 { 2 } else { 1 });
        watch.all_back().await;
    }
}
