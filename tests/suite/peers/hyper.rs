//! A stack around a hyper-util client, over HTTP/1 and HTTP/2.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Request, Response, StatusCode, body::Incoming};
use tokio::task::JoinHandle;
use tower::service_fn;
use ziggurat::Error;

use super::{
    BOTH, Client, Door, Outcome, Server, Streamed, Version, answer, any, call, get, hello, next, only, pooled, serve,
    settle, soon, stack, streamed,
};

/// An upstream that holds `/waits` and `/hangs` at the door, streams one body, and responds to others with "hello".
async fn upstream(door: &Door, body: Streamed) -> Server {
    let (door, body) = (door.clone(), only(body));
    serve(service_fn(move |request: Request<Incoming>| {
        let (door, body) = (door.clone(), body.clone());
        async move {
            match request.uri().path() {
                "/waits" | "/hangs" => {
                    door.pass().await;
                    Ok::<_, Infallible>(answer("waited"))
                }
                "/streams" => Ok(Response::new(any(body()))),
                _ => Ok(answer("hello")),
            }
        }
    }))
    .await
}

fn spawn(client: &Client, to: SocketAddr, path: &str) -> JoinHandle<Outcome> {
    tokio::spawn(call(client, get(to, path)))
}

async fn text(outcome: Outcome) -> Bytes {
    soon(outcome.unwrap().collect()).await.unwrap().to_bytes()
}

#[tokio::test]
async fn one_connection_serves_one_call_after_the_other() {
    for version in BOTH {
        let server = upstream(&Door::default(), Streamed::default()).await;
        let (client, watch) = stack(3, pooled(version));
        for _ in 0..20 {
            hello(&client, server.address).await;
            watch.all_back().await;
        }
        assert_eq!(server.accepted(), 1, "{version:?}");
    }
}

/// Over HTTP/1 the connection ends, over HTTP/2 only the stream.
///
/// Shows: L2
#[tokio::test]
async fn a_body_that_breaks_off_is_an_error_of_the_body_and_gives_everything_back() {
    for version in BOTH {
        let (frames, body) = streamed();
        let server = upstream(&Door::default(), body).await;
        let (client, watch) = stack(3, pooled(version));
        let mut response = call(&client, get(server.address, "/streams")).await.unwrap();
        frames.send(Ok(Bytes::from_static(b"first"))).unwrap();
        assert_eq!(next(response.body_mut()).await.unwrap().unwrap(), "first");
        assert_eq!(watch.gate.in_flight(), 1);

        frames.send(Err(io::Error::other("disk full"))).unwrap();
        let error = next(response.body_mut()).await.unwrap().unwrap_err();
        assert!(error.is::<hyper::Error>(), "{error}");
        watch.all_back().await;
        assert!(next(response.body_mut()).await.is_none());

        settle().await;
        hello(&client, server.address).await;
        assert_eq!(server.accepted(), if version == Version::Http1 { 2 } else { 1 });
    }
}

/// Shows: L2
#[tokio::test]
async fn a_body_that_is_dropped_is_dropped_at_the_server_too() {
    for version in BOTH {
        let (frames, body) = streamed();
        let server = upstream(&Door::default(), body).await;
        let (client, watch) = stack(3, pooled(version));
        let mut response = call(&client, get(server.address, "/streams")).await.unwrap();
        frames.send(Ok(Bytes::from_static(b"first"))).unwrap();
        assert_eq!(next(response.body_mut()).await.unwrap().unwrap(), "first");

        drop(response);
        watch.all_back().await;
        soon(frames.closed()).await;
        hello(&client, server.address).await;
        assert_eq!(server.accepted(), if version == Version::Http1 { 2 } else { 1 });
    }
}

/// Shows: T5, L2
#[tokio::test]
async fn a_call_that_is_dropped_is_dropped_at_the_server_too() {
    for version in BOTH {
        let door = Door::default();
        let server = upstream(&door, Streamed::default()).await;
        let (client, watch) = stack(3, pooled(version));
        let waiting = spawn(&client, server.address, "/waits");
        door.entered.heard().await;
        assert_eq!(watch.gate.in_flight(), 1);
        waiting.abort();
        door.left.heard().await;
        watch.all_back().await;

        // A timeout does so too, if the call has reached the server by then.
        while !door.entered.rang() {
            let outcome = call(&client, get(server.address, "/hangs")).await;
            assert!(ziggurat::rejection(&outcome).unwrap().is_timed_out());
            watch.all_back().await;
        }
        door.left.heard().await;

        hello(&client, server.address).await;
        if version == Version::Http2 {
            assert_eq!(server.accepted(), 1);
        }
    }
}

#[tokio::test]
async fn a_server_that_says_goodbye_ends_what_runs_and_other_calls_go_elsewhere() {
    for version in BOTH {
        let door = Door::default();
        let server = upstream(&door, Streamed::default()).await;
        let (client, watch) = stack(3, pooled(version));
        for round in 1..=5 {
            let waiting = spawn(&client, server.address, "/waits");
            door.entered.heard().await;
            server.say_goodbye();
            for _ in 0..3 {
                hello(&client, server.address).await;
            }
            door.leave.ring();
            assert_eq!(text(waiting.await.unwrap()).await, "waited");
            watch.all_back().await;
            assert!(server.accepted() > round, "{version:?}");
        }
    }
}

/// Shows: R5
#[tokio::test]
async fn a_connection_that_breaks_off_during_a_call_is_tried_again_only_for_what_may_be_repeated() {
    for version in BOTH {
        let (door, calls) = (Door::default(), Arc::new(AtomicUsize::new(0)));
        let server = {
            let (door, calls) = (door.clone(), Arc::clone(&calls));
            serve(service_fn(move |_: Request<Incoming>| {
                let (door, call) = (door.clone(), calls.fetch_add(1, Ordering::SeqCst));
                async move {
                    if call.is_multiple_of(2) {
                        door.pass().await;
                    }
                    Ok::<_, Infallible>(answer("hello"))
                }
            }))
            .await
        };
        let (client, watch) = stack(3, pooled(version));
        for (method, made) in [("GET", 2), ("POST", 1)] {
            calls.store(0, Ordering::SeqCst);
            let mut request = get(server.address, "/");
            *request.method_mut() = method.parse().unwrap();
            let calling = tokio::spawn(call(&client, request));
            door.entered.heard().await;
            server.break_off();
            let outcome = calling.await.unwrap();
            assert_eq!(calls.load(Ordering::SeqCst), made, "{version:?} {method}: {outcome:?}");
            match outcome {
                Ok(response) => assert_eq!((method, response.status()), ("GET", StatusCode::OK)),
                Err(error) => assert!(matches!((method, &error), ("POST", Error::Service(_))), "{error}"),
            }
            watch.all_back().await;
        }
    }
}

/// The server allows two open streams. Other calls wait in the client's connection, where the stack counts them as in
/// flight: they hold permits, and their timeouts run.
///
/// Shows: L1, L2
#[tokio::test]
async fn calls_beyond_what_http_2_lets_through_wait_and_those_that_are_dropped_make_room() {
    let (door, inside, most) = (Door::default(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let server = {
        let (door, inside, most) = (door.clone(), Arc::clone(&inside), Arc::clone(&most));
        serve(service_fn(move |request: Request<Incoming>| {
            let (door, inside, most) = (door.clone(), Arc::clone(&inside), Arc::clone(&most));
            async move {
                if request.uri().path() == "/waits" {
                    most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let _left = Decrement(inside);
                    door.pass().await;
                }
                Ok::<_, Infallible>(answer("hello"))
            }
        }))
        .await
    };
    let (client, watch) = stack(1, pooled(Version::Http2));
    // The connection learns the server's limit with its first response.
    hello(&client, server.address).await;

    let calls: Vec<_> = (0..8).map(|_| spawn(&client, server.address, "/waits")).collect();
    door.entered.heard().await;
    door.entered.heard().await;
    assert_eq!(watch.gate.in_flight(), 8);
    for dropped in &calls[..4] {
        dropped.abort();
    }
    door.left.heard().await;
    door.left.heard().await;
    // Two of the waiting calls are inside now.
    door.entered.heard().await;
    door.entered.heard().await;
    assert_eq!(watch.gate.in_flight(), 4);
    (0..4).for_each(|_| door.leave.ring());
    for call in calls.into_iter().skip(4) {
        assert_eq!(text(call.await.unwrap()).await, "hello");
    }
    watch.all_back().await;
    assert_eq!((most.load(Ordering::SeqCst), inside.load(Ordering::SeqCst), server.accepted()), (2, 0, 1));
}

struct Decrement(Arc<AtomicUsize>);

impl Drop for Decrement {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
