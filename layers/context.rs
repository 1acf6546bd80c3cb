//! Opens a scope for every request, and makes it available to everything inside.
//!
//! The request's [`Scope`] is a child of the layer's scope, and holds the values that the
//! [`state`](ContextLayer::state) functions derive from the request. It is
//!
//! - in the request's extensions, where handlers find it (axum: `Extension<Scope>`). It survives retries, because a
//!   copy of a request carries the extensions of the original.
//! - current ([`Scope::current`]) during every call and poll of the inner service's future, during every poll of the
//!   response's body, and while either is dropped. A body that is empty from the start has already left the scope.
//!   The scope is not current during `poll_ready`, which belongs to no request.
//!
//! If a request is made within another scope of the same program (for example, a handler calls a client, and both
//! stacks have this layer with the same scope), its scope is a child of *that* scope. It therefore sees the state of
//! the request being served.
//!
//! # Lifetime
//!
//! Each request has one scope. It lives from `call` until the response's body has ended, failed, or was dropped, or
//! until the call has failed, panicked, or was dropped.
//!
//! Then the scope is closed. Waiters of [`Scope::cancelled`] are notified at once. If the scope has tasks
//! ([`Scope::spawn`]) or disposables, the rest of [`Scope::close`] runs on a task, so that no response waits for it.
//! Failed tear-downs are reported in `tracing`.
//!
//! Work that outlives its request, such as an upgraded connection or a task that was spawned elsewhere and given the
//! scope, keeps the scope's values, and its logs stay in the scope's span. However, the scope is cancelled, its
//! disposables are torn down, and nothing can be spawned or set up in it. Give such work a child of the application's
//! scope, as the [cache](crate::cache) does for the refresh of an entry.
//!
//! # Order
//!
//! Place the layer outermost, so that every other layer can read the scope: for example, a limit, a cache key, or a
//! ttl per tenant. Inside a retry, each attempt would have its own scope. Inside a cache, a hit would have none.
//!
//! # Cancellation safety
//!
//! Dropping the response future, or the body, drops the call inside its scope, and then closes the scope.
//!
//! # Cost
//!
//! The layer does not require `S: Clone`, never rejects, leaves errors unchanged, and reads no clock. It allocates
//! the scope, and the request's extensions if there are none yet. Closing a scope that owns nothing neither allocates
//! nor spawns.
//!
//! # Examples
//!
//! ```
//! use http::{Request, Response};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{Scope, context::ContextLayer};
//!
//! struct Tenant(String);
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let app = Scope::root("app");
//! let service = ServiceBuilder::new()
//!     .layer(ContextLayer::new(app).state(|req: &Request<_>| Tenant(req.uri().path().to_owned())))
//!     .service(service_fn(|req: Request<String>| async move {
//!         let scope = req.extensions().get::<Scope>().unwrap();
//!         assert_eq!(scope.id(), Scope::current().unwrap().id());
//!         Ok::<_, std::convert::Infallible>(Response::new(scope.require::<Tenant>().unwrap().0.clone()))
//!     }));
//!
//! let response = service.oneshot(Request::get("/acme").body(String::new()).unwrap()).await.unwrap();
//! assert_eq!(response.status(), 200);
//! # }
//! ```

use std::{
    borrow::Cow,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context as TaskContext, Poll, ready},
};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    accessors::inner_accessors,
    body::{Guard, GuardBody, PollFrame},
    debug::impl_debug,
    scope::{self, Ending, Scope, WithScope},
};

/// The HTTP mode: the scope is in the request's extensions, and lasts until the response's body ends.
#[derive(Debug, Clone, Copy)]
pub struct Http;

/// The mode for any request type: the scope lasts until the response is returned.
#[derive(Debug, Clone, Copy)]
pub struct Ambient;

/// How a mode, [`Http`] or [`Ambient`], passes the scope on with a request.
#[diagnostic::on_unimplemented(
    message = "`ContextLayer::new` needs a service that takes an `http::Request` and returns an `http::Response` with a body, not one from `{Req}` to `{R}`",
    note = "for any other service, such as a `reqwest::Client`, write `ContextLayer::ambient(scope)`"
)]
#[doc(hidden)] // implemented by `Http` and `Ambient` alone
pub trait Mode<Req, R>: EndsWith<R> {
    #[doc(hidden)]
    fn announce(request: &mut Req, scope: &Scope);
}

/// When the scope of a request ends in a mode, [`Http`] or [`Ambient`].
#[diagnostic::on_unimplemented(
    message = "`ContextLayer::new` needs a service that returns an `http::Response` with a body, not `{R}`",
    note = "for any other service, such as a `reqwest::Client`, write `ContextLayer::ambient(scope)`"
)]
#[doc(hidden)] // a part of `Mode` that the response future, which has no request, can name
pub trait EndsWith<R>: Copy {
    /// The layer's response.
    type Output;

    #[doc(hidden)]
    fn answer(response: R, in_scope: Option<InScope>) -> Self::Output;
}

impl<B, R: Body> Mode<Request<B>, Response<R>> for Http {
    #[inline]
    fn announce(request: &mut Request<B>, scope: &Scope) {
        request.extensions_mut().insert(scope.clone());
    }
}

impl<R: Body> EndsWith<Response<R>> for Http {
    type Output = Response<ScopeBody<R>>;

    #[inline]
    fn answer(response: Response<R>, in_scope: Option<InScope>) -> Self::Output {
        response.map(|body| GuardBody::new(body, in_scope))
    }
}

impl<Req, R> Mode<Req, R> for Ambient {
    #[inline]
    fn announce(_: &mut Req, _: &Scope) {}
}

impl<R> EndsWith<R> for Ambient {
    type Output = R;

    #[inline]
    fn answer(response: R, in_scope: Option<InScope>) -> R {
        drop(in_scope);
        response
    }
}

/// Opens a scope for every request: see the [module](self).
#[derive(Clone)]
#[must_use]
pub struct ContextLayer<F = (), M = Http> {
    parent: Scope,
    name: Cow<'static, str>,
    states: F,
    mode: M,
}

impl ContextLayer {
    /// Opens a child of `parent` for every request. For HTTP.
    pub fn new(parent: Scope) -> Self {
        Self::under(parent, Http)
    }
}

impl ContextLayer<(), Ambient> {
    /// Opens a child of `parent` for every request, which is current while the request is processed. For any request
    /// type.
    pub fn ambient(parent: Scope) -> Self {
        Self::under(parent, Ambient)
    }
}

impl<M> ContextLayer<(), M> {
    fn under(parent: Scope, mode: M) -> Self {
        Self { parent, name: Cow::Borrowed("request"), states: (), mode }
    }
}

impl<F, M> ContextLayer<F, M> {
    /// Stores a value in each request's scope: the result of `make`, under exactly that type (`Option<T>` is a type
    /// of its own).
    ///
    /// It may be called several times. The functions run in that order, in `call`, before the new scope is current.
    pub fn state<G>(self, make: G) -> ContextLayer<(F, G), M> {
        let Self { parent, name, states, mode } = self;
        ContextLayer { parent, name, states: (states, make), mode }
    }

    /// Sets the name of the scopes. The default is `request`.
    pub fn named(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.name = name.into();
        self
    }

    /// Opens the scope of a request and stores its values.
    fn open<Req>(&self, request: &Req) -> Scope
    where
        F: States<Req>,
    {
        let within = Scope::current().filter(|current| current.is_within(&self.parent));
        let scope = within.as_ref().unwrap_or(&self.parent).child(self.name.clone()).ends_with_request();
        self.states.put(request, scope)
    }
}

impl<S, F: Clone, M: Copy> Layer<S> for ContextLayer<F, M> {
    type Service = Context<S, F, M>;

    fn layer(&self, inner: S) -> Self::Service {
        Context { inner, layer: self.clone() }
    }
}

impl_debug!(ContextLayer<F, M> { parent, name, states: F });

/// The functions that derive a scope's values from a request. Each value has its own type.
#[diagnostic::on_unimplemented(
    message = "this state function does not accept a request of type `{Req}`",
    note = "write `.state(|req: &{Req}| ..)`, with the type of the argument"
)]
#[doc(hidden)] // what `ContextLayer::state` takes
pub trait States<Req> {
    #[doc(hidden)]
    fn put(&self, request: &Req, scope: Scope) -> Scope;
}

impl<Req> States<Req> for () {
    fn put(&self, _: &Req, scope: Scope) -> Scope {
        scope
    }
}

impl<Req, F, G, T> States<Req> for (F, G)
where
    F: States<Req>,
    G: Fn(&Req) -> T,
    T: Send + Sync + 'static,
{
    fn put(&self, request: &Req, scope: Scope) -> Scope {
        let (before, make) = self;
        let scope = before.put(request, scope);
        scope.with(make(request))
    }
}

// Never applies: see `Classify`.
#[doc(hidden)]
#[diagnostic::do_not_recommend]
impl<Req, F, G> States<Req> for (F, G)
where
    [Req]: Sized,
{
    fn put(&self, _: &Req, scope: Scope) -> Scope {
        scope
    }
}

/// The service of [`ContextLayer`].
#[derive(Clone)]
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct Context<S, F = (), M = Http> {
    inner: S,
    layer: ContextLayer<F, M>,
}

impl<S, F, M> Context<S, F, M> {
    inner_accessors!();
}

impl_debug!(Context<S: fmt::Debug, F, M> { inner, layer });

impl<S, F, M, Req> Service<Req> for Context<S, F, M>
where
    S: Service<Req>,
    F: States<Req>,
    M: Mode<Req, S::Response>,
{
    type Response = M::Output;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, M>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, mut request: Req) -> Self::Future {
        let scope = self.layer.open(&request);
        M::announce(&mut request, &scope);
        ResponseFuture::start(scope, self.layer.mode, || self.inner.call(request))
    }
}

pin_project! {
    /// The response future of [`Context`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, M = Http> {
        #[pin]
        response: WithScope<F>,
        // None: the call has ended. After the response, and therefore dropped after it.
        in_scope: Option<InScope>,
        mode: M,
    }
}

impl<F, M> ResponseFuture<F, M> {
    #[inline]
    fn start(scope: Scope, mode: M, call: impl FnOnce() -> F) -> Self {
        let in_scope = Some(InScope { scope: Some(scope.clone()), ending: None });
        Self { response: WithScope::start(scope, call), in_scope, mode }
    }
}

impl<F, M, R, E> Future for ResponseFuture<F, M>
where
    F: Future<Output = Result<R, E>>,
    M: EndsWith<R>,
{
    type Output = Result<M::Output, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.response.poll(cx));
        let in_scope = this.in_scope.take().map(|in_scope| in_scope.answered(&response));
        Poll::Ready(response.map(|response| M::answer(response, in_scope)))
    }
}

/// A response's body, in the scope of its request.
///
/// The scope is current while the body is polled and while it is dropped. When the body has ended or failed, it is
/// dropped, and the scope is closed.
pub type ScopeBody<B> = GuardBody<B, InScope>;

/// The guard of a [`ScopeBody`]: holds the request's scope, which is closed when this is dropped.
#[derive(Debug)]
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub struct InScope {
    scope: Option<Scope>,
    // None: there is no response yet.
    ending: Option<Ending>,
}

impl InScope {
    fn answered<R, E>(mut self, response: &Result<R, E>) -> Self {
        self.ending = Some(if response.is_ok() { Ending::Completed } else { Ending::Failed });
        self
    }
}

impl Drop for InScope {
    fn drop(&mut self) {
        if let Some(scope) = &self.scope {
            scope.end(self.ending.unwrap_or_else(Ending::of_what_is_dropped));
        }
    }
}

impl<B: Body> Guard<B> for InScope {
    type Error = B::Error;

    #[inline]
    fn poll_frame(&mut self, body: Pin<&mut B>, cx: &mut TaskContext<'_>) -> PollFrame<B::Data, B::Error> {
        let _entered = scope::enter(&mut self.scope);
        let frame = body.poll_frame(cx);
        if matches!(frame, Poll::Ready(Some(Err(_)))) {
            self.ending = Some(Ending::Failed);
        }
        frame
    }

    #[inline]
    fn drop_body(&mut self, drop: impl FnOnce()) {
        let _entered = scope::enter(&mut self.scope);
        drop();
    }
}
