//! The server's stack around an axum router, over sockets.

use std::{convert::Infallible, future::ready, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, routing::get};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{net::TcpListener, sync::Semaphore};
use tower::{Layer, ServiceExt};
use ziggurat::{
    Rejection, Scope,
    context::ContextLayer,
    drain::DrainLayer,
    headers::RequestIds,
    per_key::{PerKeyLayer, Unkeyed},
    rate_limit::RateLimitLayer,
    rejection_response::RejectionResponseLayer,
    stack::{ServerSettings, ServerStack},
};

struct Tenant(String);

/// Counts the calls inside, and the calls that may leave.
struct Door {
    entered: Semaphore,
    leave: Semaphore,
}

async fn take(one: &Semaphore) {
    one.acquire().await.unwrap().forget();
}

struct Served {
    address: SocketAddr,
    client: Client<HttpConnector, Empty<Bytes>>,
    door: Arc<Door>,
}

impl Served {
    async fn by(layers: impl FnOnce(Router) -> Router) -> Self {
        let door = Arc::new(Door { entered: Semaphore::new(0), leave: Semaphore::new(0) });
        let waiting = Arc::clone(&door);
        let router = Router::new()
            .route(
                "/",
                get(|scope: Scope| async move { scope.require::<RequestIds>().unwrap().request_id().to_string() }),
            )
            .route("/tenant", get(|scope: Scope| async move { scope.require::<Tenant>().unwrap().0.clone() }))
            .route("/hangs", get(std::future::pending::<StatusCode>))
            .route(
                "/door",
                get(|| async move {
                    waiting.entered.add_permits(1);
                    take(&waiting.leave).await;
                }),
            );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = layers(router);
        tokio::spawn(async { axum::serve(listener, router).await });
        Self { address, client: Client::builder(TokioExecutor::new()).build_http(), door }
    }

    async fn ask(&self, path: &str, timeout: Option<&str>) -> Response<Bytes> {
        let mut request = Request::get(format!("http://{}{path}", self.address));
        if let Some(timeout) = timeout {
            request = request.header("grpc-timeout", timeout);
        }
        let (head, body) = self.client.request(request.body(Empty::new()).unwrap()).await.unwrap().into_parts();
        Response::from_parts(head, body.collect().await.unwrap().to_bytes())
    }
}

/// Shows: G4
#[tokio::test]
async fn every_request_has_an_id_a_scope_and_a_limit_of_time() {
    let app = Scope::root("app").with(ServerSettings::default().timeout(Duration::from_millis(20)));
    let served = Served::by(|router| router.layer(ServerStack::new(&app))).await;
    let answer = served.ask("/", None).await;
    assert_eq!(answer.headers()["x-request-id"].as_bytes(), answer.body());

    let late = served.ask("/hangs", None).await;
    assert_eq!(late.status(), StatusCode::GATEWAY_TIMEOUT);
    assert!(late.headers().contains_key("x-request-id"));

    // The caller has less time than that, or much less after this change.
    app.update(|settings: &ServerSettings| settings.timeout(Duration::from_secs(3600))).unwrap();
    assert_eq!(served.ask("/hangs", Some("20m")).await.status(), StatusCode::GATEWAY_TIMEOUT);
}

/// Shows: G4
#[tokio::test]
async fn who_comes_when_the_server_is_full_is_told_so_at_once_and_when_to_come_back() {
    let app = Scope::root("app").with(ServerSettings::default().max_in_flight(1));
    let stack = ServerStack::new(&app).with_rejection_response(RejectionResponseLayer::problem_json());
    let gate = stack.gate();
    let served = Arc::new(Served::by(|router| router.layer(stack)).await);
    let inside = tokio::spawn({
        let served = Arc::clone(&served);
        async move { served.ask("/door", None).await.status() }
    });
    take(&served.door.entered).await;
    assert_eq!(gate.in_flight(), 1);
    let full = served.ask("/", None).await;
    assert_eq!(full.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(full.headers()["content-type"], "application/problem+json");
    assert!(full.headers().contains_key("retry-after") && full.headers().contains_key("x-request-id"));

    // Room for one more, while the first is still inside.
    app.update(|settings: &ServerSettings| settings.max_in_flight(2)).unwrap();
    assert_eq!(served.ask("/", None).await.status(), StatusCode::OK);
    served.door.leave.add_permits(1);
    assert_eq!(inside.await.unwrap(), StatusCode::OK);
}

/// Shows: G4
#[tokio::test]
async fn every_part_can_be_replaced_or_left_out() {
    let app = Scope::root("app").with(ServerSettings::default().timeout(Duration::from_millis(20)).max_in_flight(1));
    let tenant = |_: &Request<_>| Tenant("acme".to_owned());
    let context = ContextLayer::new(app.clone()).state(tenant);
    let served = Served::by(|router| {
        router.layer(
            ServerStack::new(&app)
                .with_context(context)
                .without_request_id()
                .without_timeout()
                .without_concurrency_limit(),
        )
    })
    .await;
    let answer = served.ask("/tenant", None).await;
    assert_eq!(answer.body(), "acme");
    assert!(!answer.headers().contains_key("x-request-id"));

    // Two calls at once, without time pressure: the door opens after the second one has entered.
    let served = Arc::new(served);
    let calls = [(); 2].map(|()| {
        let served = Arc::clone(&served);
        tokio::spawn(async move { served.ask("/door", None).await.status() })
    });
    for _ in &calls {
        take(&served.door.entered).await;
    }
    served.door.leave.add_permits(2);
    for call in calls {
        assert_eq!(call.await.unwrap(), StatusCode::OK);
    }
}

#[tokio::test]
async fn by_default_a_thousand_are_in_flight_and_nobody_waits() {
    let stack = ServerStack::new(&Scope::root("app"));
    assert_eq!((stack.gate().limit(), stack.gate().max_waiting()), (1000, 0));
}

#[tokio::test]
async fn its_rejections_carry_its_name() {
    let scope = Scope::root("app").with(ServerSettings::default().timeout(Duration::from_millis(1)));
    let stack = ServerStack::new(&scope).named("admin");
    assert_eq!(stack.gate().limit(), 1000);
    let hangs = tower::service_fn(|_: Request<String>| std::future::pending::<Result<Response<String>, Infallible>>());
    let outcome = stack.layer(hangs).oneshot(Request::new(String::new())).await;
    assert_eq!(ziggurat::rejection(&outcome).unwrap().name(), Some("admin"));
}

#[tokio::test(start_paused = true)]
async fn its_timeout_can_cover_the_body() {
    let scope = Scope::root("app").with(ServerSettings::default().timeout(Duration::from_secs(1)));
    let stalls = || StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>());
    let service = tower::service_fn(move |_: Request<String>| {
        ready(Ok::<_, ziggurat::Error<Infallible>>(Response::new(stalls())))
    });
    let stack = ServerStack::new(&scope).until_body_end().named("uploads");
    let response = stack.layer(service).oneshot(Request::new(String::new())).await.unwrap();
    let error = response.into_body().collect().await.unwrap_err();
    let rejection = Rejection::find(&*error).unwrap();
    assert_eq!((rejection.is_timed_out(), rejection.name()), (true, Some("uploads")));

    // By default a download may take as long as its reader needs.
    let response = ServerStack::new(&scope).layer(service).oneshot(Request::new(String::new())).await.unwrap();
    let body = tokio::time::timeout(Duration::from_secs(3600), response.into_body().collect()).await;
    assert!(body.is_err(), "it still waits");
}

/// Shows: D1
#[tokio::test(start_paused = true)]
async fn while_it_drains_its_rejections_are_responses_like_all_others() {
    let layer = DrainLayer::new().named("api");
    let drain = layer.handle();
    let stack = ServerStack::new(&Scope::root("app"))
        .with_rejection_response(RejectionResponseLayer::problem_json())
        .with_drain(layer)
        .named("server");
    let service = tower::service_fn(|_: Request<String>| ready(Ok::<_, Infallible>(Response::new(String::new()))));
    let service = stack.layer(service);
    drain.drain().await;
    let response = service.oneshot(Request::new(String::new())).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["connection"], "close");
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert!(response.headers().contains_key("x-request-id"));
    assert_eq!(response.extensions().get::<Rejection>().unwrap().name(), Some("api"));
}

/// Shows: K1, Q1
#[tokio::test(start_paused = true)]
async fn each_tenant_can_have_a_rate_of_its_own() {
    fn tenant(request: &axum::extract::Request) -> Result<&str, Unkeyed> {
        request.headers().get("x-tenant").and_then(|tenant| tenant.to_str().ok()).ok_or(Unkeyed::Reject)
    }
    let limits = PerKeyLayer::borrowed(tenant, |_| RateLimitLayer::new(2, Duration::from_secs(1)).named("tenant"));
    let tenants = limits.handle();
    let stack = ServerStack::new(&Scope::root("app"))
        .with_rejection_response(RejectionResponseLayer::problem_json())
        .with_rate_limit(limits)
        .with_drain(DrainLayer::new());
    let router: Router =
        Router::new().route("/a", get(|| async { "a" })).route("/b", get(|| async { "b" })).layer(stack);
    let call = async |path: &str, tenant: Option<&str>| {
        let request = Request::get(path);
        let request = tenant.into_iter().fold(request, |request, tenant| request.header("x-tenant", tenant));
        router.clone().oneshot(request.body(axum::body::Body::empty()).unwrap()).await.unwrap()
    };
    // All routes share the rate of a tenant.
    assert_eq!(call("/a", Some("adam")).await.status(), StatusCode::OK);
    assert_eq!(call("/b", Some("adam")).await.status(), StatusCode::OK);
    let rejected = call("/a", Some("adam")).await;
    assert_eq!(rejected.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(rejected.headers()["retry-after"], "1");
    assert_eq!(rejected.headers()["content-type"], "application/problem+json");
    assert_eq!(call("/a", Some("eve")).await.status(), StatusCode::OK);
    assert_eq!(call("/a", None).await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(tenants.key_count(), 2);
    assert!(tenants.instance("adam").unwrap().still_matters);
}

/// Shows: K1, Q1, D1
#[tokio::test(start_paused = true)]
async fn the_rate_of_each_tenant_and_the_grace_period_follow_the_settings() {
    fn tenant(request: &Request<axum::body::Body>) -> Result<&str, Unkeyed> {
        Ok(request.headers().get("x-tenant").and_then(|tenant| tenant.to_str().ok()).unwrap_or("none"))
    }
    let app = Scope::root("app").with(ServerSettings::default());
    let drain = DrainLayer::new();
    let grace = drain.handle();
    let stack = ServerStack::new(&app).with_rate_per(tenant).with_drain(drain);
    let router: Router = Router::new().route("/", get(|| async { "hello" })).layer(stack);
    // Returns how many of ten calls are admitted.
    let admitted = async |tenant: &str| {
        let mut admitted = 0;
        for _ in 0..10 {
            let request = Request::get("/").header("x-tenant", tenant).body(axum::body::Body::empty()).unwrap();
            admitted += u32::from(router.clone().oneshot(request).await.unwrap().status() == StatusCode::OK);
        }
        admitted
    };
    let change = |settings: &str| {
        let settings: ServerSettings = toml::from_str(settings).unwrap();
        app.update(move |_: &ServerSettings| settings).unwrap();
    };
    assert_eq!((admitted("adam").await, grace.grace()), (10, Duration::from_secs(20)));
    change("tenant_rate = 2\ntenant_period = '1m'\ndrain_grace = '5s'");
    assert_eq!((admitted("adam").await, admitted("eve").await), (2, 2));
    assert_eq!(grace.grace(), Duration::from_secs(5));
    // A burst for those that are there already, and for new ones.
    change("tenant_rate = 2\ntenant_period = '1m'\ntenant_burst = 7");
    tokio::time::advance(Duration::from_secs(600)).await;
    assert_eq!((admitted("adam").await, admitted("abel").await), (7, 7));
    assert_eq!(grace.grace(), Duration::from_secs(5), "it stays as it was set");
    // Others share one rate.
    change("tenant_rate = 3\ntenant_period = '1h'\nmax_tenants = 3");
    tokio::time::advance(Duration::from_secs(36_000)).await;
    assert_eq!(admitted("adam").await, 3);
    let mut others = 0;
    for tenant in 0..20 {
        others += admitted(&tenant.to_string()).await;
    }
    assert!(others <= 3 * 3, "{others}");
    change("");
    assert_eq!(admitted("adam").await, 10);
    for wrong in ["tenant_rate = 0", "tenant_burst = 0", "tenant_period = '0s'", "max_tenants = 0"] {
        let field = wrong.split(' ').next().unwrap();
        let error = toml::from_str::<ServerSettings>(wrong).unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}` must be")), "{error}");
    }
}
