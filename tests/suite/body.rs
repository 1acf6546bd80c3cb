//! Bodies that keep something until they have ended.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full};
use ziggurat::body::GuardBody;

type Step = Result<Frame<Bytes>, &'static str>;

/// Gives these frames, and says nothing of its end before it is there.
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

fn is_held(guard: &Arc<()>) -> bool {
    Arc::strong_count(guard) > 1
}

#[tokio::test]
async fn frames_trailers_and_size_pass_and_the_guard_goes_at_the_end() {
    let guard = Arc::new(());
    let trailers = HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("x"))]);
    let steps = [data("one"), data("two"), Ok(Frame::trailers(trailers.clone()))];
    let mut body = GuardBody::new(Scripted::new(steps), Arc::clone(&guard));
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
}

#[tokio::test]
async fn the_guard_goes_with_an_error_and_with_a_drop() {
    let guard = Arc::new(());
    let mut body = GuardBody::new(Scripted::new([data("one"), Err("reset")]), Arc::clone(&guard));
    assert!(body.frame().await.unwrap().is_ok());
    assert!(is_held(&guard));
    assert_eq!(body.frame().await.unwrap().unwrap_err(), "reset");
    assert!(!is_held(&guard));

    let body = GuardBody::new(Scripted::new([data("one")]), Arc::clone(&guard));
    assert!(is_held(&guard));
    drop(body);
    assert!(!is_held(&guard));
}

/// A server does not poll a body that says that it has ended.
#[tokio::test]
async fn a_body_that_says_that_it_has_ended_is_taken_at_its_word() {
    let guard = Arc::new(());
    let body = GuardBody::new(Empty::<Bytes>::new(), Arc::clone(&guard));
    assert!(!is_held(&guard) && body.is_end_stream());

    let mut body = GuardBody::new(Full::new(Bytes::from_static(b"all")), Arc::clone(&guard));
    assert!(is_held(&guard));
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "all");
    assert!(!is_held(&guard));
}

/// What cleans up a body still happens under the guard.
#[test]
fn the_body_is_dropped_before_its_guard() {
    struct Dropped(&'static str, Arc<std::sync::Mutex<Vec<&'static str>>>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.1.lock().unwrap().push(self.0);
        }
    }
    impl Body for Dropped {
        type Data = Bytes;
        type Error = &'static str;
        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Step>> {
            Poll::Ready(None)
        }
    }
    let log = Arc::default();
    for polled in [false, true] {
        let body = Dropped("body", Arc::clone(&log));
        let mut body = Box::pin(GuardBody::new(body, Dropped("guard", Arc::clone(&log))));
        if polled {
            let ended = body.as_mut().poll_frame(&mut Context::from_waker(std::task::Waker::noop()));
            assert!(matches!(ended, Poll::Ready(None)));
        }
        drop(body);
        assert_eq!(std::mem::take(&mut *log.lock().unwrap()), ["body", "guard"]);
    }
}

#[tokio::test]
async fn a_million_frames_come_in_their_order() {
    struct Counting(u32);
    impl Body for Counting {
        type Data = Bytes;
        type Error = &'static str;
        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Step>> {
            self.0 += 1;
            Poll::Ready((self.0 <= 1_000_000).then(|| Ok(Frame::data(Bytes::copy_from_slice(&self.0.to_be_bytes())))))
        }
    }
    let mut body = GuardBody::new(Counting(0), ());
    let mut expected = 0_u32;
    while let Some(frame) = body.frame().await {
        expected += 1;
        assert_eq!(*frame.unwrap().into_data().unwrap(), expected.to_be_bytes());
    }
    assert_eq!(expected, 1_000_000);
}
