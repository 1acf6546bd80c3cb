//! The scopes of callers, which may end before the request that they share.

use http_body::Body as _;
use tokio::time::{Instant, sleep};
use ziggurat::{Scope, context::ContextLayer};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_caller_who_leaves_does_not_cancel_the_scope_of_the_request() {
    let origin = service_fn(|request: Request<Empty<Bytes>>| async move {
        let scope = request.extensions().get::<Scope>().cloned().unwrap();
        tokio::select! {
            () = scope.cancelled() => Err(Failed::Service("cancelled")),
            () = sleep(SECOND) => response(200, &["cache-control: max-age=60"], "done"),
        }
    });
    let service = tower::ServiceBuilder::new()
        .layer(ContextLayer::new(Scope::root("app")))
        .layer(CacheLayer::http())
        .service(origin);
    let service: BoxCloneSyncService<_, _, Failed> = BoxCloneSyncService::new(service);
    let ask = || {
        let call = service.clone().oneshot(request(Method::GET, "/", &[]));
        tokio::spawn(async move { call.await.map(|response| response.status().as_u16()) })
    };
    let first = ask();
    settle().await;
    let second = ask();
    settle().await;
    first.abort();
    assert_eq!(second.await.unwrap().unwrap(), 200);
}

/// Sends a GET in a scope that ends with the job of its caller.
async fn in_job(site: &Site) -> (Scope, Response<CacheBody<Streamed>>) {
    let job = Scope::root("job").grace(SECOND);
    let response = job.within(site.send(request(Method::GET, "/", &[]))).await.unwrap();
    (job, response)
}

/// Shows: W3
#[tokio::test(start_paused = true)]
async fn the_scope_of_one_caller_ends_the_body_of_no_other() {
    let (sender, body) = streamed();
    let body = Arc::new(Mutex::new(Some(body)));
    let answer = move |_, _| {
        let body = body.lock().unwrap().take().unwrap();
        async move { streams(200, &["cache-control: max-age=60"], body) }
    };
    let site = Site::new(CacheLayer::http(), answer);
    sender.send(data("12")).unwrap();
    let ((job, first), begun) = (in_job(&site).await, Instant::now());
    let second = site.send(request(Method::GET, "/", &[])).await.unwrap();
    drop(first);
    job.close().await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    sleep(10 * SECOND).await;
    assert!(!second.body().is_end_stream());
    sender.send(data("34")).unwrap();
    drop(sender);
    assert_eq!(Read::of(second).await.body, "1234");
    settle().await;
    assert_eq!((site.get("/", &[]).await.body, site.calls()), ("1234".to_owned(), 1));
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_in_other_scopes_ask_again() {
    let answer = |n: usize, _| async move {
        sleep(if n == 1 { 9 * SECOND } else { SECOND }).await;
        response(200, &["cache-control: max-age=60"], n.to_string())
    };
    let site = Site::new(CacheLayer::http(), answer);
    let job = Scope::root("job").grace(2 * SECOND);
    let begun = Instant::now();
    let first = tokio::spawn(job.within({
        let site = site.clone();
        async move { site.send(request(Method::GET, "/", &[])).await.is_err() }
    }));
    settle().await;
    let others = async { tokio::join!(site.get("/", &[]), site.get("/", &[])) };
    let ((one, other), closed) = tokio::join!(others, job.close());
    closed.unwrap();
    assert_eq!([&*one.body, &*other.body], ["2", "2"]);
    assert_eq!((first.await.unwrap(), begun.elapsed(), site.calls()), (true, 3 * SECOND, 2));
}
