//! The recommended stack of a server.

use std::{borrow::Cow, fmt, hash::Hash, sync::Arc};

use tower_layer::{Identity, Layer};

use super::{
    ServerSettings,
    live::{Live, LiveDuration, Tuned, update},
    ready::ReadyInCall,
    tenants::{TenantRate, TenantRates},
};
use crate::{
    body::BodyEnd,
    concurrency_limit::{ConcurrencyLimitHandle, ConcurrencyLimitLayer},
    context::ContextLayer,
    debug::impl_debug,
    drain::DrainLayer,
    headers::{AtMost, TimeoutHeader},
    per_key::{BorrowedKey, PerKeyLayer, Unkeyed},
    request_id::RequestIdLayer,
    scope::Scope,
    timeout::TimeoutLayer,
};

/// The recommended layers around an HTTP server.
///
/// The order, outermost first: `Context > RequestId > RejectionResponse > Timeout > ConcurrencyLimit`.
///
/// [`ServerSettings`] has the defaults and their sources. A request is in flight until the end of its response's body,
/// unless the body makes [no progress](ServerSettings::reclaim_after) and another request needs its permit. The timeout
/// ends with the response's head. By default no request waits: a server that is full rejects at once, with a
/// `Retry-After`. [`with_drain`](Self::with_drain) adds a graceful shutdown, and
/// [`with_rate_per`](Self::with_rate_per) a rate for each tenant.
///
/// ```
/// use axum::{Router, routing::get};
/// use ziggurat::{Scope, rejection_response::RejectionResponseLayer, stack::ServerStack};
///
/// let app = Scope::root("app");
/// let router: Router = Router::new()
///     .route("/", get(|| async { "hello" }))
///     .layer(ServerStack::new(&app).with_rejection_response(RejectionResponseLayer::problem_json()));
/// ```
///
/// Clones of a stack, and all services that it creates, share one concurrency limit. Two stacks share nothing. A layer
/// that replaces a part keeps its own values: settings do not apply to it.
#[derive(Clone)]
#[must_use]
pub struct ServerStack<
    C = ContextLayer,
    I = RequestIdLayer,
    W = Identity,
    T = TimeoutLayer<AtMost<LiveDuration>>,
    L = ConcurrencyLimitLayer<BodyEnd>,
    G = Identity,
    R = Identity,
> {
    context: C,
    request_id: I,
    rejection_response: W,
    timeout: T,
    concurrency_limit: L,
    drain: G,
    rate_limit: R,
    live: Live,
}

impl ServerStack {
    /// Creates a stack around the requests that `app` serves. Each request gets a child of this scope.
    ///
    /// The settings are the [`ServerSettings`] of `app` or its nearest parent, now and after each change
    /// ([`Scope::update`]), or else the defaults. A change applies from the next request on. Requests in flight are not
    /// affected.
    pub fn new(app: &Scope) -> Self {
        let settings = ServerSettings::default();
        let timeout = LiveDuration::new(settings.timeout);
        let concurrency_limit = ConcurrencyLimitLayer::new(settings.max_in_flight)
            .max_waiting(settings.max_waiting)
            .named("server")
            .until_body_end()
            .reclaim_after(settings.reclaim_after);
        let (time, gate) = (timeout.clone(), concurrency_limit.handle());
        let live = Live::new(app, move |before, now: &ServerSettings| {
            update(before, now, |it| it.timeout, |value| time.set(value));
            update(before, now, |it| it.max_in_flight, |value| gate.set_limit(value));
            update(before, now, |it| it.max_waiting, |value| gate.set_max_waiting(value));
            update(before, now, |it| it.reclaim_after, |value| gate.set_reclaim_after(value));
        });
        Self {
            context: ContextLayer::new(app.clone()),
            request_id: RequestIdLayer::new(),
            rejection_response: Identity::new(),
            timeout: TimeoutLayer::new(TimeoutHeader::grpc().at_most(timeout)).named("server"),
            concurrency_limit,
            drain: Identity::new(),
            rate_limit: Identity::new(),
            live,
        }
    }
}

impl<C, I, W, T, L, G, R> ServerStack<C, I, W, T, L, G, R> {
    /// Replaces the context with another layer, for example one that adds [state](ContextLayer::state) to each
    /// request's scope.
    pub fn with_context<C2>(self, context: C2) -> ServerStack<C2, I, W, T, L, G, R> {
        let Self { context: _, request_id, rejection_response, timeout, concurrency_limit, drain, rate_limit, live } =
            self;
        ServerStack { context, request_id, rejection_response, timeout, concurrency_limit, drain, rate_limit, live }
    }

    /// Removes the scope of each request.
    pub fn without_context(self) -> ServerStack<Identity, I, W, T, L, G, R> {
        self.with_context(Identity::new())
    }

    /// Replaces the request ids with another layer.
    pub fn with_request_id<I2>(self, request_id: I2) -> ServerStack<C, I2, W, T, L, G, R> {
        let Self { context, request_id: _, rejection_response, timeout, concurrency_limit, drain, rate_limit, live } =
            self;
        ServerStack { context, request_id, rejection_response, timeout, concurrency_limit, drain, rate_limit, live }
    }

    /// Removes the ids and traces of requests.
    pub fn without_request_id(self) -> ServerStack<C, Identity, W, T, L, G, R> {
        self.with_request_id(Identity::new())
    }

    /// Adds a layer directly outside the timeout and the concurrency limit, where it sees their rejections, such as a
    /// [`RejectionResponseLayer`](crate::rejection_response::RejectionResponseLayer).
    ///
    /// For several layers, pass a `tower::ServiceBuilder` that contains them. Without this layer, the response to a
    /// rejection is only a status.
    pub fn with_rejection_response<W2>(self, rejection_response: W2) -> ServerStack<C, I, W2, T, L, G, R> {
        let Self { context, request_id, rejection_response: _, timeout, concurrency_limit, drain, rate_limit, live } =
            self;
        ServerStack { context, request_id, rejection_response, timeout, concurrency_limit, drain, rate_limit, live }
    }

    /// Replaces the timeout with another layer.
    pub fn with_timeout<T2>(self, timeout: T2) -> ServerStack<C, I, W, T2, L, G, R> {
        let Self { context, request_id, rejection_response, timeout: _, concurrency_limit, drain, rate_limit, live } =
            self;
        ServerStack { context, request_id, rejection_response, timeout, concurrency_limit, drain, rate_limit, live }
    }

    /// Removes the time limit of each request.
    pub fn without_timeout(self) -> ServerStack<C, I, W, Identity, L, G, R> {
        self.with_timeout(Identity::new())
    }

    /// Replaces the concurrency limit with another layer.
    pub fn with_concurrency_limit<L2>(self, concurrency_limit: L2) -> ServerStack<C, I, W, T, L2, G, R> {
        let Self { context, request_id, rejection_response, timeout, concurrency_limit: _, drain, rate_limit, live } =
            self;
        ServerStack { context, request_id, rejection_response, timeout, concurrency_limit, drain, rate_limit, live }
    }

    /// Removes the concurrency limit.
    pub fn without_concurrency_limit(self) -> ServerStack<C, I, W, T, Identity, G, R> {
        self.with_concurrency_limit(Identity::new())
    }

    /// Adds a [`DrainLayer`], which shuts the server down gracefully, directly outside the timeout and the concurrency
    /// limit. Its grace period is [`drain_grace`](ServerSettings::drain_grace), if the settings have one.
    ///
    /// ```
    /// use ziggurat::{Scope, drain::DrainLayer, stack::ServerStack};
    ///
    /// let drain = DrainLayer::new();
    /// let handle = drain.handle(); // for the signal of the server: `handle.drain().await`
    /// let stack = ServerStack::new(&Scope::root("app")).with_drain(drain);
    /// ```
    pub fn with_drain(self, drain: DrainLayer) -> ServerStack<C, I, W, T, L, DrainLayer, R> {
        let handle = drain.handle();
        let stack = self.follow(move |before, now| {
            update(
                before,
                now,
                |it| it.drain_grace,
                |grace| grace.into_iter().for_each(|grace| handle.set_grace(grace)),
            );
        });
        let Self { context, request_id, rejection_response, timeout, concurrency_limit, drain: _, rate_limit, live } =
            stack;
        ServerStack { context, request_id, rejection_response, timeout, concurrency_limit, drain, rate_limit, live }
    }

    /// Applies the settings of the scope, now and after each change.
    fn follow(mut self, apply: impl Fn(Option<&ServerSettings>, &ServerSettings) + Send + Sync + 'static) -> Self {
        self.live = self.live.and(apply);
        self
    }

    /// Limits the rate of each tenant, between the timeout and the concurrency limit, to the
    /// [`tenant_rate`](ServerSettings::tenant_rate) of the settings. While they have none, no rate is limited.
    ///
    /// `tenant` returns the key of a request, as in [`PerKeyLayer::borrowed`]. A change of the settings applies to each
    /// tenant from its next request on.
    ///
    /// ```
    /// use axum::extract::Request;
    /// use ziggurat::{Scope, per_key::Unkeyed, stack::{ServerSettings, ServerStack}};
    ///
    /// fn tenant(request: &Request) -> Result<&str, Unkeyed> {
    ///     let header = request.headers().get("x-tenant").ok_or(Unkeyed::Reject)?;
    ///     header.to_str().map_err(|_| Unkeyed::Reject)
    /// }
    ///
    /// let app = Scope::root("app").with(ServerSettings::default().tenant_rate(50)); // requests in a second
    /// let stack = ServerStack::new(&app).with_rate_per(tenant);
    /// ```
    #[expect(clippy::type_complexity, reason = "the parts of a stack are parameters of its type")]
    pub fn with_rate_per<Req, F, Q>(
        self,
        tenant: F,
    ) -> ServerStack<
        C,
        I,
        W,
        T,
        L,
        G,
        PerKeyLayer<
            BorrowedKey<F, Q>,
            impl Fn(Option<&Q>) -> TenantRate + Clone + use<C, I, W, T, L, G, R, Req, F, Q>,
            Q::Owned,
            TenantRate,
        >,
    >
    where
        F: Fn(&Req) -> Result<&Q, Unkeyed>,
        Q: ToOwned<Owned: Hash + Eq + Clone + Send + 'static> + Hash + Eq + ?Sized,
    {
        let rates = Arc::new(TenantRates::default());
        let rate = Arc::clone(&rates);
        let limits = PerKeyLayer::borrowed(tenant, move |_: Option<&Q>| rate.layer());
        let tenants = limits.handle();
        let stack = self.follow(move |before, now| {
            update(before, now, |it| it.max_tenants, |max| tenants.set_max_keys(max));
            update(before, now, ServerSettings::rate_of_tenants, |rate| rates.set(rate));
        });
        stack.with_rate_limit(limits)
    }

    /// Adds a rate limit of your own between the timeout and the concurrency limit: a
    /// [`RateLimitLayer`](crate::rate_limit::RateLimitLayer), or one for each key. For a rate that the settings hold, see
    /// [`with_rate_per`](Self::with_rate_per).
    pub fn with_rate_limit<R2>(self, rate_limit: R2) -> ServerStack<C, I, W, T, L, G, R2> {
        let Self { context, request_id, rejection_response, timeout, concurrency_limit, drain, rate_limit: _, live } =
            self;
        ServerStack { context, request_id, rejection_response, timeout, concurrency_limit, drain, rate_limit, live }
    }
}

impl<C, I, W, D, L, G, R> ServerStack<C, I, W, TimeoutLayer<D>, L, G, R> {
    /// Extends the timeout to the end of the response's body. By default it ends with the head, because a download
    /// may take as long as its reader needs.
    pub fn until_body_end(self) -> ServerStack<C, I, W, TimeoutLayer<D, BodyEnd>, L, G, R> {
        let Self { context, request_id, rejection_response, timeout, concurrency_limit, drain, rate_limit, live } =
            self;
        let timeout = timeout.until_body_end();
        ServerStack { context, request_id, rejection_response, timeout, concurrency_limit, drain, rate_limit, live }
    }
}

impl<C, I, W, D, V, U, G, R> ServerStack<C, I, W, TimeoutLayer<D, V>, ConcurrencyLimitLayer<U>, G, R> {
    /// Names the timeout and the concurrency limit, to distinguish several servers in one program. Their events carry
    /// the name. The default is `server`.
    pub fn named(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        let name = name.into();
        self.timeout = self.timeout.named(name.clone());
        self.concurrency_limit = self.concurrency_limit.named(name);
        self
    }
}

impl<C, I, W, T, U, G, R> ServerStack<C, I, W, T, ConcurrencyLimitLayer<U>, G, R> {
    /// Returns the handle of the concurrency limit.
    #[must_use]
    pub fn gate(&self) -> ConcurrencyLimitHandle {
        self.concurrency_limit.handle()
    }
}

impl<S, C, I, W, T, L, G, R> Layer<S> for ServerStack<C, I, W, T, L, G, R>
where
    L: Layer<ReadyInCall<S>>,
    R: Layer<L::Service>,
    T: Layer<R::Service>,
    G: Layer<T::Service>,
    W: Layer<G::Service>,
    I: Layer<W::Service>,
    C: Layer<I::Service>,
{
    type Service = Tuned<C::Service>;

    fn layer(&self, service: S) -> Self::Service {
        let service = self.concurrency_limit.layer(ReadyInCall::new(service));
        let service = self.timeout.layer(self.rate_limit.layer(service));
        let service = self.rejection_response.layer(self.drain.layer(service));
        Tuned::new(self.context.layer(self.request_id.layer(service)), Some(self.live.look()))
    }
}

impl_debug!(ServerStack<C: fmt::Debug, I: fmt::Debug, W: fmt::Debug, T: fmt::Debug, L: fmt::Debug, G: fmt::Debug, R: fmt::Debug> {
    context, request_id, rejection_response, timeout, concurrency_limit, drain, rate_limit, ..
});
