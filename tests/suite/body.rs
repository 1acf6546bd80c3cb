//! Bodies with a guard that lasts until their end.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full};
use ziggurat::{
    body::{End, Guard, GuardBody, PollFrame},
    timeout::InTime,
};

type Step = Result<Frame<Bytes>, &'static str>;

/// Yields these frames, and does not announce its end.
struct Scripted(VecDeque<Step>);

impl Scripted {
    fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self(steps.into_iter().collect())
    }
}

impl Body for Scripted {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Step>> {
        Poll::Ready(self.0.pop_front())
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(7)
    }
}

fn data(text: &'static str) -> Step {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

/// A guard that lives as long as its `Arc`, and records how the body ended.
struct Held(#[expect(dead_code, reason = "kept for its drop")] Arc<()>, Arc<Mutex<Vec<End>>>);

impl Held {
    fn new(guard: &Arc<()>, ends: &Arc<Mutex<Vec<End>>>) -> Self {
        Self(Arc::clone(guard), Arc::clone(ends))
    }
}

impl<B: Body> Guard<B> for Held {
    type Error = B::Error;

    fn poll_frame(&mut self, body: Pin<&mut B>, cx: &mut Context<'_>) -> PollFrame<B::Data, B::Error> {
        body.poll_frame(cx)
    }

    fn ended(self, end: End) {
        self.1.lock().unwrap().push(end);
    }
}

fn is_held(guard: &Arc<()>) -> bool {
    Arc::strong_count(guard) > 1
}

#[tokio::test]
async fn frames_trailers_and_size_pass_and_the_guard_goes_at_the_end() {
    let (guard, ends) = Default::default();
    let trailers = HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("x"))]);
    let steps = [data("one"), data("two"), Ok(Frame::trailers(trailers.clone()))];
    let mut body = GuardBody::new(Scripted::new(steps), Held::new(&guard, &ends));
    assert_eq!(body.size_hint().exact(), Some(7));
    for text in ["one", "two"] {
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), text);
        assert!(is_held(&guard) && !body.is_end_stream());
    }
    assert_eq!(body.frame().await.unwrap().unwrap().into_trailers().unwrap(), trailers);
    assert!(is_held(&guard));
    assert!(body.frame().await.is_none());
    assert!(!is_held(&guard) && body.is_end_stream());
    assert_eq!(body.size_hint().exact(), Some(0));
    assert!(body.frame().await.is_none());
    drop(body);
    assert_eq!(*ends.lock().unwrap(), [End::Complete]);
}

#[tokio::test]
async fn the_guard_goes_with_an_error_and_with_a_drop() {
    let (guard, ends) = Default::default();
    let mut body = GuardBody::new(Scripted::new([data("one"), Err("reset")]), Held::new(&guard, &ends));
    assert!(body.frame().await.unwrap().is_ok());
    assert!(is_held(&guard));
    assert_eq!(body.frame().await.unwrap().unwrap_err(), "reset");
    assert!(!is_held(&guard));
    assert!(body.frame().await.is_none());

    let body = GuardBody::new(Scripted::new([data("one")]), Held::new(&guard, &ends));
    assert!(is_held(&guard));
    drop(body);
    assert!(!is_held(&guard));
    assert_eq!(*ends.lock().unwrap(), [End::Failed, End::Dropped { waiting: false }]);
}

/// Distinguishes a service that hangs from a reader that has stopped reading.
#[test]
fn a_guard_learns_whether_the_reader_of_a_dropped_body_was_waiting() {
    struct Hangs;
    impl Body for Hangs {
        type Data = Bytes;
        type Error = &'static str;
        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Step>> {
            Poll::Pending
        }
    }
    let (guard, ends) = Default::default();
    let mut body = Box::pin(GuardBody::new(Hangs, Held::new(&guard, &ends)));
    assert!(body.as_mut().poll_frame(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(body);
    assert_eq!(*ends.lock().unwrap(), [End::Dropped { waiting: true }]);
}

#[test]
fn the_bound_that_everybody_writes_is_enough() {
    type BoxError = Box<dyn std::error::Error + Send + Sync>;
    fn guarded<B>(body: GuardBody<B, InTime>) -> impl Body<Data = B::Data, Error = BoxError>
    where
        B: Body<Error: Into<BoxError>>,
    {
        body
    }
    assert!(guarded(GuardBody::<Full<Bytes>, _>::default()).is_end_stream());
}

/// A server does not poll a body that reports its end.
#[tokio::test]
async fn a_body_that_says_that_it_has_ended_is_taken_at_its_word() {
    let (guard, ends) = Default::default();
    let body = GuardBody::new(Empty::<Bytes>::new(), Held::new(&guard, &ends));
    assert!(!is_held(&guard) && body.is_end_stream());

    let mut body = GuardBody::new(Full::new(Bytes::from_static(b"all")), Held::new(&guard, &ends));
    assert!(is_held(&guard));
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "all");
    assert!(!is_held(&guard));
    assert_eq!(*ends.lock().unwrap(), [End::Complete, End::Complete]);
}

type Log = Arc<Mutex<Vec<&'static str>>>;

/// Records its drop and, as a guard, its calls.
struct Noisy(&'static str, Log);

impl Drop for Noisy {
    fn drop(&mut self) {
        self.1.lock().unwrap().push(self.0);
    }
}

impl Body for Noisy {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Step>> {
        Poll::Ready(None)
    }
}

impl<B: Body> Guard<B> for Noisy {
    type Error = B::Error;

    fn poll_frame(&mut self, body: Pin<&mut B>, cx: &mut Context<'_>) -> PollFrame<B::Data, B::Error> {
        body.poll_frame(cx)
    }

    fn drop_body(&mut self, drop: impl FnOnce()) {
        self.1.lock().unwrap().push("around");
        drop();
        self.1.lock().unwrap().push("the body");
    }
}

/// The clean-up of a body still runs under the guard.
#[test]
fn the_body_is_dropped_before_its_guard() {
    let log = Log::default();
    for polled in [false, true] {
        let body = Noisy("body", Arc::clone(&log));
        let mut body = Box::pin(GuardBody::new(body, Noisy("guard", Arc::clone(&log))));
        if polled {
            let ended = body.as_mut().poll_frame(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(ended, Poll::Ready(None)));
        }
        drop(body);
        assert_eq!(std::mem::take(&mut *log.lock().unwrap()), ["around", "body", "the body", "guard"]);
    }
}
