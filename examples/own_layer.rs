//! A custom layer, written with the crate's vocabulary: it obeys `Retry-After` on behalf of all callers.
//!
//! When the service asks for a pause, the layer rejects calls until the pause is over. The vocabulary is [`Class`]
//! (what an outcome says about the service), [`Rejection`] and [`Reject`] (a layer's own result, in the service's
//! types) and [`LayerInfo`] (the layer's name and its observers). With it the layer works wherever the other layers do,
//! and they understand it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::sync::watch;
use tokio::time::{Instant, advance};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{Class, Classify, Error, HttpStatus, LayerInfo, Reason, Reject};

/// The state belongs to the layer value. All services that it makes, and all their clones, share it.
#[derive(Clone)]
struct QuietLayer {
    quiet_until: watch::Sender<Instant>,
    info: LayerInfo,
}

impl QuietLayer {
    fn new() -> Self {
        Self { quiet_until: watch::Sender::new(Instant::now()), info: LayerInfo::new("quiet") }
    }
}

impl<S> Layer<S> for QuietLayer {
    type Service = Quiet<S>;

    fn layer(&self, inner: S) -> Quiet<S> {
        Quiet { inner, layer: self.clone() }
    }
}

#[derive(Clone)]
struct Quiet<S> {
    inner: S,
    layer: QuietLayer,
}

impl<S, Req> Service<Req> for Quiet<S>
where
    S: Service<Req>,
    S::Error: Reject<S::Response>,
    HttpStatus: Classify<S::Response, S::Error>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let may_call = *self.layer.quiet_until.borrow() <= Instant::now();
        ResponseFuture { response: may_call.then(|| self.inner.call(request)), layer: self.layer.clone() }
    }
}

pin_project! {
    struct ResponseFuture<F> {
        // `None`: the service was not called.
        #[pin]
        response: Option<F>,
        layer: QuietLayer,
    }
}

impl<F, R, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<R, E>>,
    E: Reject<R>,
    HttpStatus: Classify<R, E>,
{
    type Output = Result<R, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Some(response) = this.response.as_pin_mut() else {
            let wait = this.layer.quiet_until.borrow().saturating_duration_since(Instant::now());
            return Poll::Ready(E::reject(this.layer.info.reject_with_retry_after(Reason::RateLimited, wait)));
        };
        let outcome = ready!(response.poll(cx));
        if let Some(wait) = Class::of(&outcome, &HttpStatus).retry_after() {
            this.layer.quiet_until.send_replace(Instant::now() + wait.min(Duration::from_secs(300)));
        }
        Poll::Ready(outcome)
    }
}

/// Asks for a pause of five seconds on `/busy`.
async fn serve(path: &'static str) -> Result<http::Response<&'static str>, http::Error> {
    match path {
        "/busy" => http::Response::builder().status(503).header("retry-after", 5).body("busy"),
        _ => http::Response::builder().body("served"),
    }
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Error<http::Error>> {
    let service = ServiceBuilder::new().layer(QuietLayer::new()).map_err(Error::Service).service(service_fn(serve));
    assert_eq!(service.clone().oneshot("/busy").await?.status(), 503);

    // Now the layer rejects, and the service is not called. In an `Infallible` service this would be a response with
    // status 429.
    let outcome = service.clone().oneshot("/").await;
    let rejection = ziggurat::rejection(&outcome).map(ToString::to_string);
    assert_eq!(rejection.as_deref(), Some("quiet: the rate limit is exceeded; try again in 5s"));

    advance(Duration::from_secs(5)).await;
    assert_eq!(service.oneshot("/").await?.body(), &"served");
    println!("rejected calls for as long as the service asked");
    Ok(())
}
