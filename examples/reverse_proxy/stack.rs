//! Handles a request: the server's stack around the client's.

use std::{convert::Infallible, error::Error as StdError};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use hyper::body::{Body, Incoming};
use hyper_util::{
    client::legacy::{self, Client},
    rt::{TokioExecutor, TokioTimer},
};
use tower::{Service, ServiceBuilder, ServiceExt, util::BoxCloneService};
use tracing::{info, warn};
use ziggurat::{
    Error, Reject, Scope,
    cache::CacheBody,
    circuit_breaker::CircuitBreakerLayer,
    concurrency_limit::{Adaptive, ConcurrencyLimitLayer},
    context::{ContextLayer, ScopeBody},
    drain::{DrainBody, DrainLayer},
    propagate::PropagateLayer,
    replay::ReplayLayer,
    request_id::RequestIdLayer,
    retry::RetryLayer,
    timeout::TimeoutLayer,
    upload::UploadLayer,
};

use super::{BoxError, cache::Caching, limits::Limits, rfc9110};

type ProxyBody = UnsyncBoxBody<Bytes, BoxError>;
pub(crate) type ProxyResponse = Response<ScopeBody<ProxyBody>>;

/// Builds the stack, from the outside in.
pub(crate) fn proxy(
    upstream: Uri,
    limits: Limits,
    caching: Caching,
    drain: DrainLayer,
) -> impl Service<Request<Incoming>, Response = ProxyResponse, Error = Infallible, Future: Send> + Clone {
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .http1_max_buf_size(limits.head as usize)
        .build_http();
    let attempt = TimeoutLayer::new(move |req: &Request<_>| limits.unless_upload(limits.attempt, req));
    let in_flight = ConcurrencyLimitLayer::adaptive(Adaptive::http().between(1..=limits.in_flight))
        .max_waiting(limits.waiting)
        .until_body_end()
        .reclaim_after(limits.stalled);
    let (mut retry, mut breaker) = (RetryLayer::http(), CircuitBreakerLayer::http());
    if limits.bare {
        (retry, breaker) = (retry.max_attempts(1), breaker.watch_only());
    }
    let client = ServiceBuilder::new()
        .layer(TimeoutLayer::new(move |req: &Request<Incoming>| limits.unless_upload(limits.total, req)).named("total"))
        // A stalled upload gets a 408, a broken one a 400. Neither counts against the upstream.
        .layer(UploadLayer::new(limits.stalled))
        .layer(ReplayLayer::new())
        .layer(retry)
        .layer(breaker.until_body_end())
        .layer(in_flight)
        .layer(attempt.idle(limits.idle).named("attempt"))
        .layer(PropagateLayer::new())
        .map_err(Error::Service)
        .service(client);
    // A cache outside of this sees the caller's name of the host, and the messages as they are sent on.
    let upstream =
        ServiceBuilder::new().map_request(move |request| to(&upstream, request)).map_response(from).service(client);
    let upstream = match caching.layer() {
        None => BoxCloneService::new(upstream),
        Some(cache) => BoxCloneService::new(
            ServiceBuilder::new()
                .map_response(|response: Response<CacheBody<_>>| response.map(ProxyBody::new))
                .layer(cache)
                .service(upstream),
        ),
    };
    ServiceBuilder::new()
        .layer(ContextLayer::new(Scope::root("proxy")))
        .layer(RequestIdLayer::new())
        .map_response(|response: Response<DrainBody<_>>| response.map(ProxyBody::new))
        .layer(drain)
        .service_fn(move |mut request: Request<Incoming>| {
            // Neither the authority nor the query is logged: they may contain a password or a token.
            info!(method = %request.method(), path = request.uri().path(), "request");
            let upstream = upstream.clone();
            async move {
                let response = match rfc9110::send_on(&mut request) {
                    Ok(()) => answer(upstream.oneshot(request).await),
                    Err(status) => empty(status),
                };
                info!(status = response.status().as_u16(), "response");
                Ok(response)
            }
        })
}

/// Addresses the request to the upstream.
fn to(upstream: &Uri, mut request: Request<Incoming>) -> Request<Incoming> {
    let mut uri = upstream.clone().into_parts();
    uri.path_and_query = request.uri().path_and_query().cloned().or(uri.path_and_query);
    *request.uri_mut() = Uri::from_parts(uri).unwrap_or_else(|_| upstream.clone());
    *request.version_mut() = Version::HTTP_11;
    // hyper assumes that a GET has no body, unless a header says otherwise.
    if request.body().size_hint().exact().is_none() {
        request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    request
}

/// Takes the upstream's response: an invalid one is a 502.
fn from<B>(mut response: Response<B>) -> Response<ProxyBody>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    match rfc9110::send_back(&mut response) {
        Ok(()) => response.map(|body| ProxyBody::new(body.map_err(Into::into))),
        Err(status) => empty(status),
    }
}

/// Builds the caller's response: a rejection is a 400, 408, 503 or 504, and an unreachable upstream a 502.
fn answer(outcome: Result<Response<ProxyBody>, Error<legacy::Error>>) -> Response<ProxyBody> {
    match outcome {
        Ok(response) => response,
        Err(Error::Rejected(rejection)) => {
            let Ok(response) = Infallible::reject(rejection);
            response
        }
        Err(Error::Service(error)) => {
            warn!(error = &error as &dyn StdError, "upstream");
            empty(StatusCode::BAD_GATEWAY)
        }
    }
}

fn empty(status: StatusCode) -> Response<ProxyBody> {
    let mut response = Response::default();
    *response.status_mut() = status;
    response
}
