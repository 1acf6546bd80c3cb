use std::{convert::Infallible, task::Waker};

use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::cache::rfc9111::{fill::Fill, interest::Callers};

/// The body of the inner service in these tests.
type Inner = http_body_util::Full<Bytes>;

fn interest() -> Interest {
    Callers::default().interest()
}

fn poll<B: Body<Error: Into<BoxError>> + Unpin>(body: &mut CacheBody<B>) -> Poll<Option<Frame<Bytes>>> {
    Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop())).map(|frame| frame.map(|frame| frame.unwrap()))
}

/// Returns the data frames of a body that is always ready, and its trailers.
fn frames(body: &mut CacheBody<Inner>) -> (Vec<Bytes>, Option<HeaderMap>) {
    let (mut data, mut trailers) = (Vec::new(), None);
    while let Poll::Ready(Some(frame)) = poll(body) {
        match frame.into_data() {
            Ok(part) => data.push(part),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    assert!(matches!(poll(body), Poll::Ready(None)) && body.is_end_stream());
    (data, trailers)
}

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([("sum".parse().unwrap(), HeaderValue::from_static("7"))])
}

/// A content of chunks of these sizes, which differ from each other.
fn content(sizes: &[usize]) -> (Content, Vec<u8>) {
    let mut all = Vec::new();
    let chunks = sizes.iter().map(|size| {
        let chunk: Bytes = (0..*size).map(|at| (all.len() + at * 7) as u8).collect();
        all.extend_from_slice(&chunk);
        Ok::<_, Infallible>(Frame::data(chunk))
    });
    let chunks: Vec<_> = chunks.collect();
    let body = http_body_util::StreamBody::new(futures_util::stream::iter(chunks));
    let fill = Fill::alone(usize::MAX, SizeHint::new());
    let content = futures_util::FutureExt::now_or_never(tokio::task::unconstrained(fill.receive(body)));
    (content.unwrap().unwrap(), all)
}

#[test]
fn a_body_of_the_inner_service_passes_through() {
    let mut body = CacheBody::inner(Inner::from("one"));
    assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(3), false));
    assert_eq!(frames(&mut body), (vec![Bytes::from("one")], None));
    assert!(CacheBody::inner(Inner::default()).is_end_stream());
}

#[test]
fn an_empty_body_ends_at_once() {
    let of_nothing = CacheBody::stored(Content::from_bytes(Bytes::new(), None));
    for mut body in [CacheBody::empty(), CacheBody::default(), of_nothing, CacheBody::from(String::new())] {
        assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(0), true));
        assert_eq!(frames(&mut body), (Vec::new(), None));
    }
}

#[test]
fn a_stored_body_is_the_same_as_often_as_it_is_read() {
    let data = Bytes::from(vec![7; 10]);
    let content = Content::from_bytes(data.clone(), None);
    for _ in 0..2 {
        let mut body = CacheBody::stored(content.clone());
        assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(10), false));
        let (read, None) = frames(&mut body) else { panic!("no trailers were stored") };
        assert_eq!((read.len(), read[0].as_ptr()), (1, data.as_ptr()), "nothing is copied");
        assert_eq!(body.size_hint().exact(), Some(0));
    }
    assert_eq!(content.to_bytes().as_ptr(), data.as_ptr());
    assert_eq!(frames(&mut CacheBody::from("text".to_owned())), (vec![Bytes::from("text")], None));
}

#[test]
fn a_stored_body_with_trailers_claims_no_exact_size() {
    let mut body = CacheBody::<Inner>::stored(Content::from_bytes("one".into(), Some(trailers())));
    let hint = body.size_hint();
    assert_eq!((hint.lower(), hint.upper(), body.is_end_stream()), (3, None, false));
    assert!(matches!(poll(&mut body), Poll::Ready(Some(frame)) if frame.is_data()));
    assert_eq!((body.size_hint().exact(), body.is_end_stream()), (None, false));
    assert_eq!(frames(&mut body), (Vec::new(), Some(trailers())));
    assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(0), true));
    let mut only = CacheBody::stored(Content::from_bytes(Bytes::new(), Some(trailers())));
    assert!(!only.is_end_stream());
    assert_eq!(frames(&mut only), (Vec::new(), Some(trailers())));
}

#[test]
fn a_content_weighs_what_it_takes_up() {
    let empty = Content::from_bytes(Bytes::new(), None);
    let one = Content::from_bytes("one".into(), None);
    assert!((3..200).contains(&(one.weight() - empty.weight())));
    assert!(Content::from_bytes("one".into(), Some(trailers())).weight() > one.weight() + 100);
    let (large, all) = content(&[100_000, 5_000, 7]);
    assert!((all.len() + 300..all.len() + 800).contains(&large.weight()), "{}", large.weight());
    assert_eq!((large.len(), large.to_bytes()), (105_007, Bytes::from(all)));
}

#[test]
fn a_debug_text_shows_no_content() {
    let content = Content::from_bytes("secret".into(), None);
    assert_eq!(format!("{content:?}"), "Content { len: 6, chunks: 1, trailers: None }");
    let reader = || Fill::alone(10, SizeHint::new()).reader().unwrap();
    let bodies = [CacheBody::<Inner>::empty(), CacheBody::stored(content), CacheBody::filling(reader(), interest())];
    let texts = bodies.map(|body| format!("{body:?}"));
    assert_eq!(texts, ["empty", "stored", "filling"].map(|state| format!("CacheBody {{ state: {state:?} }}")));
}

/// Clients need a body that is `Send` and `Unpin`, and some need `Sync`.
#[test]
fn a_body_is_all_that_a_client_may_ask_for() {
    fn check<B: Send + Sync + Unpin + Default>() {}
    check::<CacheBody<Inner>>();
}

/// For example `body.collect()` behind a cache, which would never let another task run.
#[tokio::test(start_paused = true)]
async fn a_body_that_is_always_ready_does_not_keep_the_thread() {
    let (content, all) = content(&[5_000; 1_000]);
    let fill = Fill::alone(usize::MAX, SizeHint::new());
    let filling = CacheBody::filling(fill.reader().unwrap(), interest());
    let body = CacheBody::<Inner>::stored(content.clone());
    tokio::task::unconstrained(fill.receive(body)).await.unwrap();
    for body in [CacheBody::<Inner>::stored(content), filling] {
        let task = tokio::spawn(http_body_util::BodyExt::collect(body));
        let mut turns = 0;
        while !task.is_finished() {
            turns += 1;
            tokio::task::yield_now().await;
        }
        assert!(turns > 5, "{turns}");
        assert_eq!(task.await.unwrap().unwrap().to_bytes(), all);
    }
}

/// A caller that looks whether a stored body is there need not wait.
#[tokio::test]
async fn a_body_of_one_frame_is_always_ready() {
    for _ in 0..1_000 {
        let mut body = CacheBody::<Inner>::stored(Content::from_bytes("one".into(), None));
        assert!(poll(&mut body).is_ready());
    }
}

proptest! {
    #[test]
    fn a_part_is_a_slice(
        sizes in prop::collection::vec(prop_oneof![1..10_usize, 4_000..30_000_usize], 0..12),
        start in 0..200_000_u64,
        end in prop_oneof![0..200_000_u64, Just(u64::MAX)],
    ) {
        let (content, all) = content(&sizes);
        let len = all.len() as u64;
        // Half of the positions are near the content.
        let (start, end) = (start % (2 * len + 1), if end < 200_000 { end % (2 * len + 1) } else { end });
        let clamped = start.min(end.min(len)) as usize..end.min(len) as usize;
        let mut body = CacheBody::part(content.clone(), start..end);
        prop_assert_eq!(body.size_hint().exact(), Some(clamped.len() as u64));
        prop_assert_eq!(body.is_end_stream(), clamped.is_empty());
        let (parts, trailers) = frames(&mut body);
        prop_assert!(trailers.is_none());
        prop_assert!(parts.iter().all(|part| !part.is_empty()));
        prop_assert_eq!(parts.concat(), &all[clamped]);
        // The same memory as the whole.
        let whole = frames(&mut CacheBody::stored(content)).0;
        let is_shared = |part: &Bytes| whole.iter().any(|chunk| chunk.as_ptr_range().contains(&part.as_ptr()));
        prop_assert!(parts.iter().all(is_shared));
    }
}

#[test]
fn a_part_has_no_trailers() {
    let content = Content::from_bytes("one".into(), Some(trailers()));
    let mut part = CacheBody::part(content, 1..3);
    assert_eq!(part.size_hint().exact(), Some(2));
    assert_eq!(frames(&mut part), (vec![Bytes::from("ne")], None));
}
