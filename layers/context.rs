//! Opens a scope for every request, and puts it where everything inside finds it.
//!
//! The request's [`Scope`] is a child of the one that the layer was given, holds what the [`state`](ContextLayer::state) functions
//! make of the request, and is
//!
//! - in the request's extensions, so that handlers take it from there (axum: `Extension<Scope>`); it survives retries, because a
//!   copy of a request carries the extensions of the original;
//! - current ([`Scope::current`]) during every call and poll of the inner service's future, during every poll of the response's
//!   body, and while either is dropped (a body that is empty from the start it has left already). It is not during `poll_ready`, which
//!   belongs to no request.
//!
//! A request that is made inside another scope of the same program (a handler calls a client, both stacks have this layer with the
//! same scope) gets a child of *that* scope, so it sees the state of the request that it serves.
//!
//! **What it counts**: one scope for each request, from `call` until the response's body has ended, failed or was dropped, or the call
//! has failed, panicked or was dropped. It keeps no clock.
//!
//! **Then the scope is closed.** What waits for [`Scope::cancelled`] is told at once; where the scope has tasks
//! ([`Scope::spawn`]) or something set up, the rest of [`Scope::close`] happens on a task, so no response waits for it: what
//! could not be torn down is told in `tracing`. What outlives its request (a connection after its upgrade, a task that was spawned
//! elsewhere and given the scope) keeps the scope's values, and what it logs stands in its span; but
//! the scope is cancelled, what was set up for it is torn down, and nothing can be spawned or set up in it. Give such work a child of
//! the application's scope, as the [cache](crate::cache) gives to the refresh of an entry.
//!
//! **Where it belongs**: outermost, so that every other layer can read the scope: a limit, a cache key or a ttl by tenant. Inside
//! of a retry each attempt would have a scope of its own; inside of a cache, a hit would have none.
//!
//! **Cancellation.** Dropping the response future, or the body, drops the call inside its scope, and then closes the scope.
//!
//! It needs no `S: Clone`, never rejects and leaves errors as they are. It allocates the scope, and where the request has no
//! extensions yet, those. Closing a scope that owns nothing allocates nothing, and spawns nothing.
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
    any::type_name,
    borrow::Cow,
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context as TaskContext, Poll, ready},
};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    body::{Guard, GuardBody, PollFrame},
    scope::{self, Ending, Scope, WithScope},
};

/// For HTTP: the scope is in the request's extensions, and lasts until the response's body ends.
#[derive(Debug, Clone, Copy)]
pub struct Http;

/// For any request type: the scope lasts until the response is there.
#[derive(Debug, Clone, Copy)]
pub struct Ambient;

/// Opens a scope for every request: see the [module](self).
#[must_use]
pub struct ContextLayer<F = (), M = Http> {
    parent: Scope,
    name: Cow<'static, str>,
    states: F,
    mode: PhantomData<fn() -> M>,
}

impl ContextLayer {
    /// For HTTP: every request gets a child of `parent`.
    pub fn new(parent: Scope) -> Self {
        Self::under(parent)
    }
}

impl ContextLayer<(), Ambient> {
    /// For any other request type: every request gets a child of `parent`, which is current while it is worked on.
    pub fn ambient(parent: Scope) -> Self {
        Self::under(parent)
    }
}

impl<M> ContextLayer<(), M> {
    fn under(parent: Scope) -> Self {
        Self { parent, name: Cow::Borrowed("request"), states: (), mode: PhantomData }
    }
}

impl<F, M> ContextLayer<F, M> {
    /// Gives each request's scope a value: what `make` returns, under exactly that type (an `Option` too is a type of its own).
    ///
    /// It may be called several times; the functions run in that order, in `call`, before
    /// the new scope is current.
    pub fn state<G>(self, make: G) -> ContextLayer<(F, G), M> {
        let Self { parent, name, states, mode } = self;
        ContextLayer { parent, name, states: (states, make), mode }
    }

    /// The name of the scopes; `request` if it is not set.
    pub fn named(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.name = name.into();
        self
    }

    /// The scope of a request, with everything in it.
    fn open<Req>(&self, request: &Req) -> Scope
    where
        F: States<Req>,
    {
        let within = Scope::current().filter(|current| current.is_within(&self.parent));
        let scope = within.as_ref().unwrap_or(&self.parent).child(self.name.clone()).ends_with_request();
        self.states.put(request, scope)
    }
}

impl<F: Clone, M> Clone for ContextLayer<F, M> {
    fn clone(&self) -> Self {
        Self { parent: self.parent.clone(), name: self.name.clone(), states: self.states.clone(), mode: PhantomData }
    }
}

impl<S, F: Clone, M> Layer<S> for ContextLayer<F, M> {
    type Service = Context<S, F, M>;

    fn layer(&self, inner: S) -> Self::Service {
        Context { inner, layer: self.clone() }
    }
}

impl<F, M> fmt::Debug for ContextLayer<F, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContextLayer")
            .field("parent", &self.parent)
            .field("name", &self.name)
            .field("states", &type_name::<F>())
            .finish()
    }
}

/// The functions that make a scope's values of a request, each of its own type.
#[diagnostic::on_unimplemented(
    message = "a state function does not take the request, which is `{Req}`",
    note = "write `.state(|req: &{Req}| ..)`, with the type of the argument"
)]
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

/// The service of [`ContextLayer`].
pub struct Context<S, F = (), M = Http> {
    inner: S,
    layer: ContextLayer<F, M>,
}

impl<S: Clone, F: Clone, M> Clone for Context<S, F, M> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<S: fmt::Debug, F, M> fmt::Debug for Context<S, F, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("inner", &self.inner).field("layer", &self.layer).finish()
    }
}

impl<S, F, B, R> Service<Request<B>> for Context<S, F, Http>
where
    S: Service<Request<B>, Response = Response<R>>,
    F: States<Request<B>>,
    R: Body,
{
    type Response = Response<ScopeBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let scope = self.layer.open(&request);
        request.extensions_mut().insert(scope.clone());
        ResponseFuture::start(scope, || self.inner.call(request))
    }
}

impl<S, F, Req> Service<Req> for Context<S, F, Ambient>
where
    S: Service<Req>,
    F: States<Req>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, Ambient>;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let scope = self.layer.open(&request);
        ResponseFuture::start(scope, || self.inner.call(request))
    }
}

pin_project! {
    /// The response future of [`Context`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, M = Http> {
        #[pin]
        response: WithScope<F>,
        // None: the call has ended. After the call, and so dropped after it.
        in_scope: Option<InScope>,
        mode: PhantomData<fn() -> M>,
    }
}

impl<F, M> ResponseFuture<F, M> {
    fn start(scope: Scope, call: impl FnOnce() -> F) -> Self {
        let in_scope = Some(InScope { scope: Some(scope.clone()), ending: None });
        Self { response: WithScope::start(scope, call), in_scope, mode: PhantomData }
    }
}

impl<F, R, E> Future for ResponseFuture<F, Http>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Body,
{
    type Output = Result<Response<ScopeBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.response.poll(cx));
        let in_scope = this.in_scope.take().map(|in_scope| in_scope.answered(&response));
        Poll::Ready(response.map(|response| response.map(|body| GuardBody::new(body, in_scope))))
    }
}

impl<F, R, E> Future for ResponseFuture<F, Ambient>
where
    F: Future<Output = Result<R, E>>,
{
    type Output = Result<R, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Result<R, E>> {
        let this = self.project();
        let response = ready!(this.response.poll(cx));
        drop(this.in_scope.take().map(|in_scope| in_scope.answered(&response)));
        Poll::Ready(response)
    }
}

/// A response's body, in the scope of its request: the scope is current while the body is polled and when it is dropped. When the
/// body has ended or failed, it is dropped, and the scope is closed.
pub type ScopeBody<B> = GuardBody<B, InScope>;

/// What [`ScopeBody`] keeps: the request's scope, which is closed when this is dropped.
#[derive(Debug)]
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

    fn poll_frame(&mut self, body: Pin<&mut B>, cx: &mut TaskContext<'_>) -> PollFrame<B::Data, B::Error> {
        let _entered = scope::enter(&mut self.scope);
        let frame = body.poll_frame(cx);
        if matches!(frame, Poll::Ready(Some(Err(_)))) {
            self.ending = Some(Ending::Failed);
        }
        frame
    }

    fn drop_body(&mut self, drop: impl FnOnce()) {
        let _entered = scope::enter(&mut self.scope);
        drop();
    }
}
