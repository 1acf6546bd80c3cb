//! Unread response bodies lose their permits to calls that find none.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, routing::get};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::yield_now,
    time::advance,
};
use tower::{Layer, Service, ServiceExt, service_fn};
use ziggurat::{
    Error, LayerEvent, LayerInfo, Scope,
    concurrency_limit::ConcurrencyLimitLayer,
    stack::{ServerSettings, ServerStack},
    testing::TestTask,
};

const SECOND: Duration = Duration::from_secs(1);

/// Yields this many frames on demand, and reports each poll.
#[derive(Default)]
struct Frames {
    left: usize,
    frame: Bytes,
    asked: Option<Arc<Semaphore>>,
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(asked) = &self.asked {
            asked.add_permits(1);
        }
        Poll::Ready(self.left.checked_sub(1).map(|left| {
            self.left = left;
            Ok(Frame::data(self.frame.clone()))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }
}

fn three_frames() -> impl Service<Request<String>, Response = Response<Frames>, Error = Infallible, Future: Send> + Clone
{
    service_fn(|_| async { Ok(Response::new(Frames { left: 3, ..Frames::default() })) })
}

/// Shows: G4
#[tokio::test(start_paused = true)]
async fn ten_thousand_bodies_that_make_no_progress_give_way_to_the_next_request_and_give_back_nothing_later() {
    let app = Scope::root("app").with(ServerSettings::default().max_in_flight(10_000));
    let stack = ServerStack::new(&app);
    let gate = stack.gate();
    assert_eq!(gate.reclaim_after(), 30 * SECOND);
    let service = stack.layer(three_frames());
    let call = || service.clone().oneshot(Request::new(String::new()));
    let mut bodies = Vec::new();
    for number in 0..10_000 {
        let mut body = call().await.unwrap().into_body();
        // Some were never polled for a frame.
        if number % 2 == 0 {
            body.frame().await.unwrap().unwrap();
        }
        bodies.push(body);
    }
    assert_eq!(gate.in_flight(), 10_000);
    advance(29 * SECOND).await;
    assert_eq!(call().await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    // This one continues.
    bodies[0].frame().await.unwrap().unwrap();
    advance(SECOND).await;
    let held = call().await.unwrap();
    assert_eq!(held.status(), StatusCode::OK);
    assert_eq!(gate.in_flight(), 2, "the one that goes on, and the one that came");

    // The bodies are intact, and release only their own permits.
    let read = bodies.pop().unwrap().collect().await.unwrap();
    assert_eq!(gate.in_flight(), 2);
    drop((read, bodies));
    assert_eq!(gate.in_flight(), 1);
    drop(held);
    assert_eq!(gate.in_flight(), 0);
}

/// Shows: G4
#[tokio::test(start_paused = true)]
async fn a_permit_that_is_reclaimed_goes_to_the_first_that_waits_and_is_an_event() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&events);
    let limit = ConcurrencyLimitLayer::new(1)
        .until_body_end()
        .reclaim_after(SECOND)
        .observer(move |_: &LayerInfo, event: &LayerEvent<'_>| heard.lock().unwrap().push(event.name()));
    let gate = limit.handle();
    let service = limit.layer(service_fn(|_: ()| async {
        Ok::<_, Error<Infallible>>(Response::new(Frames { left: 3, ..Frames::default() }))
    }));
    let stuck = service.clone().oneshot(()).await.unwrap();
    let mut first = TestTask::new(service.clone().oneshot(()));
    assert!(first.poll().is_pending());
    advance(SECOND).await;
    let mut second = TestTask::new(service.clone().oneshot(()));
    assert!(second.poll().is_pending());
    let Poll::Ready(Ok(response)) = first.poll() else { panic!("the first did not get the permit") };
    assert_eq!((gate.in_flight(), gate.waiting()), (1, 1));
    drop(stuck);
    assert!(second.poll().is_pending(), "a permit was released twice");
    drop(response);
    assert!(second.poll().is_ready());
    assert_eq!(*events.lock().unwrap(), ["queued", "reclaimed", "queued"]);
}

/// The first frame alone exceeds the socket buffers, so no body is polled for another one.
///
/// Shows: G4
#[tokio::test(start_paused = true)]
async fn a_server_whose_clients_never_read_serves_others_again() {
    const CLIENTS: usize = 4;
    let app = Scope::root("app").with(ServerSettings::default().max_in_flight(CLIENTS));
    let stack = ServerStack::new(&app);
    let gate = stack.gate();
    let asked = Arc::new(Semaphore::new(0));
    let (frame, asks) = (Bytes::from(vec![0; 64 << 20]), Arc::clone(&asked));
    let flood = move || {
        let body = Frames { left: 1000, frame: frame.clone(), asked: Some(Arc::clone(&asks)) };
        async { axum::body::Body::new(body) }
    };
    let router = Router::new().route("/flood", get(flood)).route("/", get(|| async { "hello" })).layer(stack);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async { axum::serve(listener, router).await });
    let connect = async |path: &str| {
        let mut client = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        client
    };
    let status = async || {
        let mut answer = String::new();
        connect("/").await.read_to_string(&mut answer).await.unwrap();
        answer[9..12].to_owned()
    };

    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(connect("/flood").await);
        asked.acquire().await.unwrap().forget();
    }
    assert_eq!(gate.in_flight(), CLIENTS);
    assert_eq!(status().await, "503");
    advance(31 * SECOND).await;
    assert_eq!(status().await, "200");
    assert_eq!(status().await, "200");
    drop(clients);
    while gate.in_flight() > 0 {
        yield_now().await;
    }
    assert_eq!(status().await, "200");
}
