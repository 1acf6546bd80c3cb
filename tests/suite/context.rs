//! The context layer.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneSyncService};
use ziggurat::{
    Error, Scope,
    context::{ContextLayer, ScopeBody},
    retry::RetryLayer,
    scope::TaskError,
    testing::{Strict, TestTask},
};

use crate::scope_disposables::{Log, quick};

#[derive(Debug, Clone, PartialEq)]
struct Path(String);

#[derive(Debug, PartialEq)]
struct Length(usize);

fn request(path: &str) -> Request<String> {
    Request::get(path).body(String::new()).unwrap()
}

fn current_path() -> String {
    Scope::current().unwrap().require::<Path>().unwrap().0.clone()
}

/// Shows: X1, X7, X8
#[tokio::test]
async fn a_requests_scope_is_in_its_extensions_and_current_and_holds_its_state() {
    let app = Scope::root("app").with(7_u32);
    let layer = ContextLayer::new(app)
        .state(|req: &Request<String>| Path(req.uri().path().to_owned()))
        .state(|req: &Request<String>| Length(req.uri().path().len()))
        .named("checkout");
    let service =
        ServiceBuilder::new().layer(layer).service(Strict::new(service_fn(|req: Request<String>| async move {
            let scope = req.extensions().get::<Scope>().unwrap().clone();
            tokio::task::yield_now().await;
            assert_eq!(scope.id(), Scope::current().unwrap().id());
            assert_eq!(scope.name(), "checkout");
            assert_eq!(*scope.get::<u32>().unwrap(), 7);
            assert_eq!(*scope.get::<Length>().unwrap(), Length(5));
            Ok::<_, Infallible>(Response::new(current_path()))
        })));
    let response = service.oneshot(request("/path")).await.unwrap();
    assert!(Scope::current().is_none());
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "/path");
}

/// Shows: X7
#[tokio::test]
async fn two_interleaved_requests_never_see_each_others_scope() {
    let layer = ContextLayer::new(Scope::root("app")).state(|req: &Request<String>| Path(req.uri().path().to_owned()));
    let service = ServiceBuilder::new().layer(layer).service(service_fn(|req: Request<String>| async move {
        for _ in 0..10 {
            assert_eq!(current_path(), req.uri().path());
            tokio::task::yield_now().await;
        }
        Ok::<_, Infallible>(Response::new(String::new()))
    }));
    let (first, second) = tokio::join!(service.clone().oneshot(request("/first")), service.oneshot(request("/second")));
    assert!(first.is_ok() && second.is_ok());
}

/// Shows: X8
#[tokio::test(start_paused = true)]
async fn the_scope_survives_retries_and_each_attempt_sees_its_number() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let service = ServiceBuilder::new().layer(ContextLayer::new(Scope::root("app"))).layer(RetryLayer::http()).service(
        service_fn(move |req: Request<String>| {
            let scope = req.extensions().get::<Scope>().unwrap().id();
            log.lock().unwrap().push((scope, ziggurat::attempt()));
            async { Ok::<_, Infallible>(Response::builder().status(503).body(String::new()).unwrap()) }
        }),
    );
    assert_eq!(service.oneshot(request("/")).await.unwrap().status(), 503);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.iter().map(|(_, attempt)| *attempt).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(seen.iter().all(|(scope, _)| *scope == seen[0].0));
}

/// Shows: X8
#[tokio::test]
async fn any_other_request_has_a_scope_too() {
    let layer = ContextLayer::ambient(Scope::root("app")).state(|req: &&str| Path((*req).to_owned()));
    let service = ServiceBuilder::new().layer(layer).service(Strict::new(service_fn(|_: &str| async {
        tokio::task::yield_now().await;
        Ok::<_, Infallible>(current_path())
    })));
    assert_eq!(service.oneshot("plain").await.unwrap(), "plain");
    assert!(Scope::current().is_none());
}

/// Shows: X1, X8
#[tokio::test]
async fn a_client_inside_a_server_sees_the_state_of_the_request_that_it_serves() {
    let app = Scope::root("app");
    let client = |parent| {
        ServiceBuilder::new()
            .layer(ContextLayer::ambient(parent).named("call"))
            .service(service_fn(|()| async { Ok::<_, Infallible>(Scope::current().unwrap().get::<Path>()) }))
    };
    let same_app = client(app.clone());
    let other_app = client(Scope::root("other"));
    let server = ContextLayer::ambient(app).state(|path: &&str| Path((*path).to_owned()));
    let server = ServiceBuilder::new().layer(server).service(service_fn(move |_: &str| {
        let (same_app, other_app) = (same_app.clone(), other_app.clone());
        async move {
            assert_eq!(same_app.oneshot(()).await?.as_deref(), Some(&Path("served".to_owned())));
            assert_eq!(other_app.oneshot(()).await?, None);
            Ok::<_, Infallible>(())
        }
    }));
    server.oneshot("served").await.unwrap();
}

/// Records where it is polled and dropped.
struct Watched {
    frames: usize,
    log: Arc<Mutex<Vec<String>>>,
}

impl Watched {
    fn note(&self, what: &str) {
        let scope = Scope::current().map_or("none".to_owned(), |scope| scope.name().to_owned());
        self.log.lock().unwrap().push(format!("{what} in {scope}"));
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.note("polled");
        if self.frames == 0 {
            return Poll::Ready(None);
        }
        self.frames -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.note("dropped");
    }
}

/// Responds with a body that records where it is polled and dropped.
async fn watched(frames: usize) -> (Response<ScopeBody<Watched>>, Arc<Mutex<Vec<String>>>) {
    let log = Arc::new(Mutex::new(Vec::new()));
    let service = ServiceBuilder::new().layer(ContextLayer::new(Scope::root("app"))).service({
        let log = Arc::clone(&log);
        service_fn(move |_: Request<String>| {
            let body = Watched { frames, log: Arc::clone(&log) };
            async { Ok::<_, Infallible>(Response::new(body)) }
        })
    });
    (service.oneshot(request("/")).await.unwrap(), log)
}

/// Shows: X7, X8
#[tokio::test]
async fn the_body_is_polled_and_dropped_in_the_scope() {
    let (response, log) = watched(1).await;
    let mut body = response.into_body();
    assert!(body.frame().await.unwrap().is_ok());
    assert!(body.frame().await.is_none());
    // It has ended: dropped at once, and not polled again.
    assert_eq!(*log.lock().unwrap(), ["polled in request", "polled in request", "dropped in request"]);
    assert!(body.is_end_stream());
    assert!(body.frame().await.is_none());
    drop(body);
    assert_eq!(log.lock().unwrap().len(), 3);

    let (response, log) = watched(1).await;
    drop(response);
    assert_eq!(*log.lock().unwrap(), ["dropped in request"]);
}

/// Shows: X7
#[tokio::test]
async fn the_scope_is_let_go_when_the_body_ends() {
    let value = Arc::new(());
    let held = Arc::clone(&value);
    let layer = ContextLayer::new(Scope::root("app")).state(move |_: &Request<String>| Arc::clone(&held));
    let service = ServiceBuilder::new()
        .layer(layer)
        .service(service_fn(|_: Request<String>| async { Ok::<_, Infallible>(Response::new("body".to_owned())) }));
    let before = Arc::strong_count(&value);
    let mut body = service.oneshot(request("/")).await.unwrap().into_body();
    assert!(Arc::strong_count(&value) > before - 1);
    while body.frame().await.is_some() {}
    assert_eq!(Arc::strong_count(&value), before - 1);
}

/// Shows: X7
#[tokio::test]
async fn a_call_that_is_dropped_or_panics_is_dropped_in_its_scope_and_leaves_none_behind() {
    struct Dropped;
    impl Drop for Dropped {
        fn drop(&mut self) {
            assert_eq!(Scope::current().unwrap().name(), "request");
        }
    }
    let service = ServiceBuilder::new().layer(ContextLayer::new(Scope::root("app"))).service(service_fn(
        |req: Request<String>| async move {
            let _dropped = Dropped;
            tokio::task::yield_now().await;
            assert_ne!(req.uri().path(), "/panic");
            std::future::pending::<Result<Response<String>, Infallible>>().await
        },
    ));
    for polls in 0..3 {
        let mut response = TestTask::new(service.clone().oneshot(request("/")));
        (0..polls).for_each(|_| assert!(response.poll().is_pending()));
        drop(response);
        assert!(Scope::current().is_none());
    }
    assert!(tokio::spawn(service.oneshot(request("/panic"))).await.unwrap_err().is_panic());
    assert!(Scope::current().is_none());
}

/// A state function that panics ends its request, and affects nothing else.
#[tokio::test]
async fn a_state_function_that_panics_wedges_nothing() {
    let layer = ContextLayer::ambient(Scope::root("app")).state(|number: &u32| 100 / number);
    let service = ServiceBuilder::new()
        .layer(layer)
        .service(service_fn(|_| async { Ok::<_, Infallible>(*Scope::current().unwrap().get::<u32>().unwrap()) }));
    assert!(tokio::spawn(service.clone().oneshot(0)).await.unwrap_err().is_panic());
    assert_eq!(service.oneshot(4).await.unwrap(), 25);
}

/// Errors stay unchanged, and a body can be created without a request, as rejections in a server require.
#[tokio::test(start_paused = true)]
async fn errors_and_rejections_pass_through() {
    let service = ServiceBuilder::new()
        .layer(ziggurat::timeout::TimeoutLayer::new(Duration::from_secs(1)))
        .layer(ContextLayer::new(Scope::root("app")))
        .service(service_fn(|_: Request<String>| std::future::pending::<Result<Response<String>, Infallible>>()));
    let response = service.oneshot(request("/")).await.unwrap();
    assert_eq!(response.status(), 504);
    assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());

    let mut service = ServiceBuilder::new()
        .layer(ContextLayer::ambient(Scope::root("app")))
        .service(service_fn(|()| async { Err::<(), _>(Error::Service("own")) }));
    assert!(matches!(service.ready().await.unwrap().call(()).await, Err(Error::Service("own"))));
}

/// A service that spawns a task in the request's scope, and then responds, fails, panics or hangs as the path says. The
/// task records its observations.
fn spawning(log: &Log) -> BoxCloneSyncService<Request<String>, Response<ScopeBody<String>>, &'static str> {
    let log = log.clone();
    let inner = service_fn(move |req: Request<String>| {
        let log = log.clone();
        async move {
            let scope = Scope::current().unwrap();
            let told = scope.cancelled();
            drop(scope.spawn(async move {
                log.note("spawned");
                told.await;
                log.note("told");
                tokio::time::sleep(Duration::from_secs(1)).await;
                log.note(format_args!("done with {}", current_path()));
            }));
            tokio::task::yield_now().await;
            match req.uri().path() {
                "/fail" => return Err("own"),
                "/hang" => std::future::pending().await,
                "/panic" => panic!("on purpose"),
                _ => {}
            }
            Ok(Response::new(if req.uri().path() == "/empty" { String::new() } else { "body".to_owned() }))
        }
    });
    let layer = ContextLayer::new(Scope::root("app")).state(|req: &Request<String>| Path(req.uri().path().to_owned()));
    BoxCloneSyncService::new(ServiceBuilder::new().layer(layer).service(inner))
}

/// Shows: X5, X7
#[tokio::test(start_paused = true)]
async fn a_requests_scope_is_closed_when_the_request_ends_whatever_the_end() {
    let second = Duration::from_secs(1);
    let log = Log::default();
    let service = spawning(&log);
    let call = |path: &str| service.clone().oneshot(request(path));
    let closed = async || {
        tokio::time::sleep(2 * second).await;
        log.take()
    };

    // At the body's end, not at the response's.
    let mut body = call("/body").await.unwrap().into_body();
    tokio::time::sleep(60 * second).await;
    assert_eq!(log.take(), ["spawned"]);
    while body.frame().await.is_some() {}
    assert_eq!(closed().await, ["told", "done with /body"]);
    drop(body);

    drop(call("/dropped").await.unwrap());
    assert_eq!(closed().await, ["spawned", "told", "done with /dropped"]);

    let empty = call("/empty").await.unwrap();
    assert_eq!(closed().await, ["spawned", "told", "done with /empty"]);
    drop(empty);

    assert_eq!(call("/fail").await.unwrap_err(), "own");
    assert_eq!(closed().await, ["spawned", "told", "done with /fail"]);

    assert!(tokio::time::timeout(second, call("/hang")).await.is_err());
    assert_eq!(closed().await, ["spawned", "told", "done with /hang"]);

    assert!(tokio::spawn(call("/panic")).await.unwrap_err().is_panic());
    assert_eq!(closed().await, ["spawned", "told", "done with /panic"]);
}

/// Shows: X5
#[tokio::test(start_paused = true)]
async fn without_http_a_requests_scope_is_closed_with_the_answer() {
    let service = ServiceBuilder::new().layer(ContextLayer::ambient(Scope::root("app"))).service(service_fn(
        |fails: bool| async move {
            let scope = Scope::current().unwrap();
            let told = scope.cancelled();
            let task = scope.spawn(told);
            tokio::task::yield_now().await;
            assert!(!scope.is_cancelled());
            if fails { Err(task) } else { Ok(task) }
        },
    ));
    for fails in [true, false] {
        let (Ok(task) | Err(task)) = service.clone().oneshot(fails).await;
        task.await.unwrap();
    }
}

/// Shows: X4
#[tokio::test(start_paused = true)]
async fn what_a_handler_sets_up_in_the_requests_scope_is_torn_down_with_it() {
    let log = Log::default();
    let set_up = log.clone();
    let service = ServiceBuilder::new().layer(ContextLayer::new(Scope::root("app"))).service(service_fn(
        move |req: Request<String>| {
            let scope = req.extensions().get::<Scope>().unwrap().clone();
            let opening = scope.disposable(quick("a", &set_up));
            async move {
                opening.open().await.unwrap();
                Ok::<_, Infallible>(Response::new("body".to_owned()))
            }
        },
    ));
    let response = service.oneshot(request("/")).await.unwrap();
    assert_eq!(log.take(), ["up a in request"]);
    response.into_body().collect().await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(log.take(), ["down a in request"]);
}

/// For example a connection after its upgrade.
///
/// Shows: X5, X7
#[tokio::test(start_paused = true)]
async fn what_outlives_its_request_keeps_the_values_of_a_scope_that_is_closed() {
    let kept = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&kept);
    let layer = ContextLayer::new(Scope::root("app")).state(|req: &Request<String>| Path(req.uri().path().to_owned()));
    let service = ServiceBuilder::new().layer(layer).service(service_fn(move |_: Request<String>| {
        *keep.lock().unwrap() = Scope::current();
        async { Ok::<_, Infallible>(Response::new(String::new())) }
    }));
    drop(service.oneshot(request("/upgrade")).await.unwrap());
    let scope = kept.lock().unwrap().take().unwrap();
    assert_eq!(*scope.get::<Path>().unwrap(), Path("/upgrade".to_owned()));
    assert!(scope.is_cancelled());
    scope.cancelled().await;
    assert!(matches!(scope.spawn(async {}).await, Err(TaskError::Closed(_))));
    // A child of the application's scope can do what this one cannot.
    scope.parent().unwrap().child("upgraded").spawn(async {}).await.unwrap();
}

/// The application is closed while it handles a request.
///
/// Shows: X5
#[tokio::test(start_paused = true)]
async fn closing_the_application_tells_its_requests() {
    let app = Scope::root("app");
    let service = ServiceBuilder::new().layer(ContextLayer::new(app.clone())).service(service_fn(
        |req: Request<String>| async move {
            req.extensions().get::<Scope>().unwrap().cancelled().await;
            Ok::<_, Infallible>(Response::new("told".to_owned()))
        },
    ));
    let (response, closed) = tokio::join!(service.oneshot(request("/")), app.close());
    assert_eq!(response.unwrap().into_body().collect().await.unwrap().to_bytes(), "told");
    closed.unwrap();
}
