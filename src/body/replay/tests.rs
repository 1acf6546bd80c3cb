use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::Wake,
};

use http::{HeaderMap, HeaderValue};

use super::*;
use crate::telemetry::{LayerEvent, LayerInfo};

mod property;

/// A frame in a form that can be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Seen {
    fn bytes(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Trailers(trailers) => trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum(),
        }
    }

    fn of(frame: Frame<Bytes>) -> Self {
        match frame.into_data() {
            Ok(data) => Self::Data(data),
            Err(frame) => Self::Trailers(frame.into_trailers().unwrap()),
        }
    }
}

enum Step {
    Frame(Seen),
    Pending,
    Fail,
    /// Runs a closure in the middle of a poll, then continues with the next step.
    Meanwhile(Box<dyn FnMut() + Send>),
}

/// Yields these frames, and reports its end and size as configured.
struct Scripted {
    steps: VecDeque<Step>,
    says_end: bool,
    size: SizeHint,
}

impl Scripted {
    fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self { steps: steps.into_iter().collect(), says_end: false, size: SizeHint::new() }
    }

    fn of(texts: &[&'static str]) -> Self {
        Self::new(texts.iter().map(|text| data(text)))
    }

    fn with_size(mut self, size: u64) -> Self {
        self.size = SizeHint::with_exact(size);
        self
    }
}

impl Body for Scripted {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        loop {
            return match self.steps.pop_front() {
                None => Poll::Ready(None),
                Some(Step::Frame(Seen::Data(data))) => Poll::Ready(Some(Ok(Frame::data(data)))),
                Some(Step::Frame(Seen::Trailers(trailers))) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Some(Step::Pending) => Poll::Pending,
                Some(Step::Fail) => Poll::Ready(Some(Err("reset"))),
                Some(Step::Meanwhile(mut act)) => {
                    act();
                    continue;
                }
            };
        }
    }

    fn is_end_stream(&self) -> bool {
        self.says_end && self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        self.size
    }
}

fn data(text: &'static str) -> Step {
    Step::Frame(Seen::Data(Bytes::from_static(text.as_bytes())))
}

fn trailers(value: &'static str) -> Step {
    Step::Frame(Seen::Trailers(HeaderMap::from_iter([("sum".parse().unwrap(), HeaderValue::from_static(value))])))
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Woken {
    fn times(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

type Replayed = ReplayBody<Scripted>;

fn poll_as(body: &mut Replayed, woken: &Arc<Woken>) -> Poll<Option<Result<Seen, String>>> {
    let waker = Arc::clone(woken).into();
    let polled = Pin::new(body).poll_frame(&mut Context::from_waker(&waker));
    polled.map(|frame| frame.map(|frame| frame.map(Seen::of).map_err(|error| error.to_string())))
}

fn poll(body: &mut Replayed) -> Poll<Option<Result<Seen, String>>> {
    poll_as(body, &Arc::default())
}

/// Returns the next frame's text.
fn text(body: &mut Replayed) -> String {
    match poll(body) {
        Poll::Ready(Some(Ok(Seen::Data(data)))) => String::from_utf8(data.to_vec()).unwrap(),
        other => panic!("no data: {other:?}"),
    }
}

fn error(body: &mut Replayed) -> String {
    match poll(body) {
        Poll::Ready(Some(Err(error))) => error,
        other => panic!("no error: {other:?}"),
    }
}

/// Returns all remaining frames. The body must never be pending.
fn rest(body: &mut Replayed) -> Vec<Seen> {
    let mut all = Vec::new();
    loop {
        match poll(body) {
            Poll::Ready(None) => return all,
            Poll::Ready(Some(Ok(seen))) => all.push(seen),
            other => panic!("neither a frame nor the end: {other:?}"),
        }
    }
}

fn texts(body: &mut Replayed) -> Vec<String> {
    let text = |seen| match seen {
        Seen::Data(data) => String::from_utf8(data.to_vec()).unwrap(),
        Seen::Trailers(trailers) => format!("{trailers:?}"),
    };
    rest(body).into_iter().map(text).collect()
}

/// Returns an allowance, and the reasons that it reports.
fn allowing(max_bytes: usize, max_total_bytes: usize) -> (Arc<Allowance>, Arc<Mutex<Vec<&'static str>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&told);
    let mut allowance = Allowance::default();
    (allowance.max_bytes, allowance.max_total_bytes) = (max_bytes, max_total_bytes);
    allowance.info = allowance.info.observer(move |info: &LayerInfo, event: &LayerEvent<'_>| {
        assert_eq!(info.layer(), "replay");
        let LayerEvent::NotRepeatable { reason } = event else { panic!("{event:?}") };
        hears.lock().unwrap().push(*reason);
    });
    (Arc::new(allowance), told)
}

const TAKEN_OVER: &str = "a later attempt took over this body";
const NOT_KEPT: &str = "the start of this body was not kept, so it cannot be sent again";
const FAILED: &str = "this body has already failed, in this attempt or an earlier one";

#[test]
fn a_copy_gives_the_same_frames_and_trailers() {
    let mut first = ReplayBody::new(Scripted::new([data("one"), data(""), data("two"), trailers("7")]));
    let (mut second, mut third) = (first.copy_body().unwrap(), first.copy_body().unwrap());
    let sent = rest(&mut first);
    assert_eq!(sent.len(), 4);
    assert_eq!(rest(&mut second), sent);
    assert_eq!(rest(&mut third), sent);
    // An attempt that has received every frame has lost nothing.
    assert_eq!(rest(&mut first), []);
}

#[test]
fn a_first_attempt_that_was_dropped_in_the_middle_leaves_the_rest_to_the_next_one() {
    let mut first = ReplayBody::new(Scripted::of(&["one", "two", "three"]));
    let mut second = first.copy_body().unwrap();
    let third = second.copy_body().unwrap();
    assert_eq!(text(&mut first), "one");
    drop(first);
    assert_eq!(text(&mut second), "one");
    assert_eq!(text(&mut second), "two");
    drop(second);
    assert_eq!(texts(&mut { third }), ["one", "two", "three"]);
}

/// A replay body of linkerd2-proxy yielded the first chunk twice (linkerd2 #15649).
#[test]
fn a_body_of_which_nothing_was_read_comes_once() {
    let first = ReplayBody::new(Scripted::of(&["one", "two"]));
    let mut second = first.copy_body().unwrap();
    drop(first);
    assert_eq!(texts(&mut second), ["one", "two"]);
}

/// A connection that is still sending the previous attempt learns that it can stop.
#[test]
fn a_later_attempt_that_is_polled_takes_the_body_over_and_wakes_the_one_before() {
    let mut first = ReplayBody::new(Scripted::new([data("one"), Step::Pending, data("two")]));
    let mut second = first.copy_body().unwrap();
    let (one, two) = (Arc::default(), Arc::default());
    assert_eq!(text(&mut first), "one");
    assert!(poll_as(&mut first, &one).is_pending());
    assert!(poll_as(&mut second, &two).is_ready());
    assert_eq!((one.times(), two.times()), (1, 0));
    assert_eq!(error(&mut first), TAKEN_OVER);
    assert_eq!(error(&mut first), TAKEN_OVER);
    assert!(!first.is_end_stream());
    assert_eq!(texts(&mut second), ["two"]);
    assert!(second.is_end_stream() && !first.is_end_stream());
    assert_eq!(error(&mut first), TAKEN_OVER);
}

/// During the pause of a retry, the previous attempt must not read more than may be kept.
#[test]
fn a_copy_can_claim_the_body_before_it_is_polled() {
    let mut first = ReplayBody::new(Scripted::new([data("one"), Step::Pending, data("two")]));
    let mut second = first.copy_body().unwrap();
    let woken = Arc::default();
    assert_eq!(text(&mut first), "one");
    assert!(poll_as(&mut first, &woken).is_pending());
    assert!(second.claim_body() && second.claim_body());
    assert_eq!(woken.times(), 1);
    assert_eq!(error(&mut first), TAKEN_OVER);
    assert!(!first.claim_body());
    assert_eq!(texts(&mut second), ["one", "two"]);
}

/// Takes over while the previous attempt is in the middle of its poll, for example on another thread.
#[test]
fn what_a_poll_brings_that_was_overtaken_is_for_the_later_attempt() {
    let overtaken = |then: Step, max_bytes| {
        let (second, woken) = (Arc::new(Mutex::new(None::<Replayed>)), Arc::<Woken>::default());
        let (later, waking) = (Arc::clone(&second), Arc::clone(&woken));
        let meanwhile = Step::Meanwhile(Box::new(move || {
            let mut later = later.lock().unwrap();
            assert_eq!(poll_as(later.as_mut().unwrap(), &waking).map(|_| ()), Poll::Pending);
        }));
        let (allowance, told) = allowing(max_bytes, 1000);
        let mut first = ReplayBody::within(Scripted::new([meanwhile, then, data("end")]), &allowance);
        *second.lock().unwrap() = first.copy_body();
        assert_eq!(error(&mut first), TAKEN_OVER);
        assert_eq!(woken.times(), 1);
        assert_eq!(error(&mut first), TAKEN_OVER);
        assert_eq!(*told.lock().unwrap(), [""; 0]);
        second.lock().unwrap().take().unwrap()
    };
    assert_eq!(texts(&mut overtaken(data("one"), 1000)), ["one", "end"]);
    assert_eq!(texts(&mut overtaken(Step::Pending, 1000)), ["end"]);
    // The whole body was promised before the frame came that is too large.
    assert_eq!(texts(&mut overtaken(data("one"), 2)), ["one", "end"]);
    let mut failed = overtaken(Step::Fail, 1000);
    assert_eq!(error(&mut failed), "reset");
    assert_eq!(error(&mut failed), FAILED);
}

#[test]
fn an_error_is_for_the_attempt_that_met_it_and_no_copy_is_whole_after_it() {
    let (allowance, _) = allowing(1000, 1000);
    let mut first = ReplayBody::within(Scripted::new([data("one"), Step::Fail]), &allowance);
    let mut second = first.copy_body().unwrap();
    assert_eq!(text(&mut first), "one");
    assert_eq!(error(&mut first), "reset");
    assert_eq!(allowance.kept(), 0);
    assert!(first.copy_body().is_none() && !second.claim_body());
    assert_eq!(error(&mut second), FAILED);
    assert_eq!(error(&mut first), FAILED);
}

#[test]
fn a_panic_of_the_inner_body_leaves_nobody_behind() {
    let (second, woken) = (Arc::new(Mutex::new(None::<Replayed>)), Arc::<Woken>::default());
    let (later, waking) = (Arc::clone(&second), Arc::clone(&woken));
    let panics = Step::Meanwhile(Box::new(move || {
        assert!(poll_as(later.lock().unwrap().as_mut().unwrap(), &waking).is_pending());
        std::panic::resume_unwind(Box::new("in the middle"));
    }));
    let mut first = ReplayBody::new(Scripted::new([panics]));
    *second.lock().unwrap() = first.copy_body();
    assert!(catch_unwind(AssertUnwindSafe(|| poll(&mut first))).is_err());
    assert_eq!(woken.times(), 1);
    let mut second = second.lock().unwrap().take().unwrap();
    assert_eq!(error(&mut second), FAILED);
    assert_eq!(error(&mut first), TAKEN_OVER);
    assert!(!second.claim_body() && second.copy_body().is_none());
}

#[test]
fn exactly_what_is_allowed_is_kept() {
    for (allowed, kept) in [(9, true), (8, false)] {
        let (allowance, told) = allowing(allowed, 1000);
        // Both are 9 bytes: 3 + 6 of data, or 5 of data and a trailer of 3 + 1.
        for steps in [vec![data("one"), data("three!")], vec![data("three"), trailers("7")]] {
            let mut first = ReplayBody::within(Scripted::new(steps), &allowance);
            let mut second = first.copy_body().unwrap();
            assert_eq!(rest(&mut first).len(), 2);
            assert_eq!((allowance.kept(), second.claim_body()), (if kept { 9 } else { 0 }, kept));
            if kept {
                assert_eq!(rest(&mut second).len(), 2);
            } else {
                assert_eq!(error(&mut second), NOT_KEPT);
                assert!(!second.is_end_stream() && first.copy_body().is_none());
            }
            drop((first, second));
            assert_eq!(allowance.kept(), 0);
        }
        assert_eq!(told.lock().unwrap().as_slice(), if kept { &[] } else { &["size", "size"][..] });
    }
}

#[test]
fn what_is_known_to_be_too_large_is_never_kept_but_can_be_sent_again_while_nothing_was_read() {
    let (allowance, told) = allowing(9, 1000);
    let mut first = ReplayBody::within(Scripted::of(&["one", "three", "ten"]).with_size(11), &allowance);
    let mut second = first.copy_body().unwrap();
    assert!(second.claim_body());
    assert_eq!(error(&mut first), TAKEN_OVER);
    let third = second.copy_body().unwrap();
    assert_eq!(text(&mut second), "one");
    assert_eq!((allowance.kept(), third.claim_body()), (0, false));
    assert_eq!(texts(&mut second), ["three", "ten"]);
    assert_eq!(*told.lock().unwrap(), ["size"]);
}

/// Otherwise an upload that is sent once would be kept for no reader.
#[test]
fn nothing_is_kept_for_nobody() {
    let (allowance, told) = allowing(1000, 1000);
    let mut alone = ReplayBody::within(Scripted::of(&["one", "two"]), &allowance);
    assert_eq!(text(&mut alone), "one");
    assert_eq!(allowance.kept(), 0);
    assert!(alone.copy_body().is_none());

    let mut first = ReplayBody::within(Scripted::of(&["one", "two", "three"]), &allowance);
    let mut second = first.copy_body().unwrap();
    assert_eq!(text(&mut first), "one");
    assert_eq!(allowance.kept(), 3);
    assert_eq!(text(&mut second), "one");
    // This is the last attempt. The previous one still exists, but can receive nothing more.
    assert_eq!(text(&mut second), "two");
    assert_eq!(allowance.kept(), 0);
    assert_eq!(texts(&mut second), ["three"]);
    assert!(told.lock().unwrap().is_empty());
}

/// An outer layer copies the request before an inner one does, and is the last to need its copy.
#[test]
fn the_order_in_which_copies_ask_for_the_body_counts_and_not_that_in_which_they_were_made() {
    let mut first = ReplayBody::new(Scripted::of(&["one", "two"]));
    let mut outer = first.copy_body().unwrap();
    let mut inner = first.copy_body().unwrap();
    assert_eq!(text(&mut first), "one");
    assert_eq!(texts(&mut inner), ["one", "two"]);
    assert_eq!(error(&mut first), TAKEN_OVER);
    let mut again = outer.copy_body().unwrap();
    assert!(outer.claim_body() && !first.claim_body() && !inner.claim_body());
    assert_eq!(text(&mut outer), "one");
    assert_eq!(texts(&mut again), ["one", "two"]);
    assert_eq!(error(&mut outer), TAKEN_OVER);
}

/// A request that may be sent again only if it was not processed costs no memory.
#[test]
fn for_a_copy_of_what_was_not_read_nothing_is_kept() {
    let (allowance, told) = allowing(1000, 1000);
    let mut first = ReplayBody::within(Scripted::new([Step::Pending, data("one"), data("two")]), &allowance);
    let mut second = first.copy_unread().unwrap();
    assert!(poll(&mut first).is_pending());
    // The frame was requested but has not come, so nothing has been read.
    assert!(second.claim_body());
    assert_eq!(error(&mut first), TAKEN_OVER);
    let mut third = second.copy_unread().unwrap();
    assert_eq!(text(&mut second), "one");
    assert_eq!((allowance.kept(), third.claim_body()), (0, false));
    assert_eq!(error(&mut third), NOT_KEPT);
    assert!(second.copy_unread().is_none());
    assert_eq!(texts(&mut second), ["two"]);
    assert!(told.lock().unwrap().is_empty(), "no copy was promised more");

    // Frames that are kept for another copy serve this one too.
    let mut first = ReplayBody::within(Scripted::of(&["one", "two"]), &allowance);
    let (mut unread, whole) = (first.copy_unread().unwrap(), first.copy_body().unwrap());
    assert_eq!(text(&mut first), "one");
    assert_eq!(texts(&mut unread), ["one", "two"]);
    drop(whole);
}

/// A slice keeps its whole buffer: a thousand slices of one byte could hold 65 MB under a bound of 64 KiB.
#[test]
fn what_is_kept_is_no_slice_of_a_larger_buffer() {
    let buffer = Bytes::from(vec![b'x'; 64 * 1024]);
    let mut first = ReplayBody::new(Scripted::new([Step::Frame(Seen::Data(buffer.slice(7..8)))]));
    let mut second = first.copy_body().unwrap();
    assert_eq!(text(&mut first), "x");
    assert!(buffer.is_unique(), "only the test holds it");
    assert_eq!(texts(&mut second), ["x"]);
    assert!(buffer.is_unique());
}

#[test]
fn all_together_keep_no_more_than_is_allowed_and_give_it_back() {
    let (allowance, told) = allowing(1000, 10);
    let sent = |steps: Vec<Step>, frames| {
        let mut first = ReplayBody::within(Scripted::new(steps), &allowance);
        let second = first.copy_body().unwrap();
        for _ in 0..frames {
            assert!(poll(&mut first).is_ready());
        }
        (first, second)
    };
    let six = || vec![data("sixsix"), data("")];
    // All ways in which an attempt can end: complete, halfway, with an error, with a panic, or too large.
    let ends: [(Vec<Step>, usize); 4] =
        [(six(), 3), (six(), 1), (vec![data("sixsix"), Step::Fail], 2), (vec![data("ten bytes."), data("more")], 2)];
    for (steps, frames) in ends {
        drop(sent(steps, frames));
        assert_eq!(allowance.kept(), 0);
    }
    assert_eq!(std::mem::take(&mut *told.lock().unwrap()), ["total"]);

    let first = sent(six(), 1);
    let (mut other, copy) = sent(vec![data("four"), data("1"), data("2")], 1);
    assert_eq!((allowance.kept(), copy.claim_body()), (10, true));
    drop((other, copy));
    (other, _) = sent(vec![data("five!"), data("1")], 1);
    assert_eq!(allowance.kept(), 6);
    assert_eq!(texts(&mut other), ["1"]);
    assert_eq!(*told.lock().unwrap(), ["total"]);
    drop(first);
    assert_eq!(allowance.kept(), 0);
}

/// Otherwise frames without data would be kept without bound.
#[test]
fn many_small_frames_are_too_much_too() {
    let (allowance, told) = allowing(6400, 6400);
    for (frames, kept) in [(164, true), (165, false)] {
        let mut first = ReplayBody::within(Scripted::new((0..frames).map(|_| data(""))), &allowance);
        let second = first.copy_body().unwrap();
        assert_eq!(rest(&mut first).len(), frames);
        assert_eq!(second.claim_body(), kept, "{frames}");
    }
    assert_eq!(*told.lock().unwrap(), ["size"]);
}

#[test]
fn an_empty_body_is_empty_as_often_as_it_is_sent() {
    let empty = Scripted { says_end: true, ..Scripted::of(&[]) };
    for mut body in [ReplayBody::new(empty), Replayed::default()] {
        let mut copy = body.copy_body().unwrap();
        assert!(copy.claim_body() && body.claim_body());
        for body in [&mut body, &mut copy] {
            assert!(body.is_end_stream());
            assert_eq!(body.size_hint().exact(), Some(0));
            assert_eq!(texts(body), [""; 0]);
        }
    }
    assert_eq!(ReplayBody::<String>::from("text".to_owned()).size_hint().exact(), Some(4));
}

/// Clients need a body that is `Send` and `Unpin`, and some need `Sync`.
#[test]
fn it_is_all_that_a_client_may_ask_for_whatever_the_inner_body_is() {
    struct Awkward(std::cell::Cell<()>, std::marker::PhantomPinned);
    fn check<B: Send + Sync + Unpin + Default>() {}
    check::<ReplayBody<Awkward>>();
}

#[test]
fn each_attempt_has_the_size_of_the_whole() {
    let mut first = ReplayBody::new(Scripted::of(&["one", "three"]).with_size(8));
    let mut second = first.copy_body().unwrap();
    assert_eq!(text(&mut first), "one");
    assert_eq!((first.size_hint().exact(), second.size_hint().exact()), (Some(5), Some(8)));
    assert_eq!(texts(&mut first), ["three"]);
    assert_eq!(text(&mut second), "one");
    assert_eq!((first.size_hint().exact(), second.size_hint().exact()), (Some(0), Some(5)));
}

/// Two threads: halfway through, the inner body stays in a poll of the earlier attempt until the later one has polled
/// too.
#[test]
fn two_attempts_can_be_polled_at_the_same_time() {
    fn collect(mut body: Replayed, mut polled: impl FnMut()) -> Result<Vec<Seen>, String> {
        let mut all = Vec::new();
        loop {
            let next = poll(&mut body);
            polled();
            match next {
                // It would be woken. Polling again has the same effect, but keeps the thread busy.
                Poll::Pending => std::thread::yield_now(),
                Poll::Ready(None) => return Ok(all),
                Poll::Ready(Some(frame)) => all.push(frame?),
            }
        }
    }
    let half = || (0..50).flat_map(|_| [data("one"), Step::Pending, data("two")]);
    let expected = collect(ReplayBody::new(Scripted::new(half().chain(half()))), || {}).unwrap();
    for _ in 0..100 {
        let (begun, begins) = std::sync::mpsc::channel();
        let meets = Step::Meanwhile(Box::new(move || begins.recv().unwrap()));
        let first = ReplayBody::new(Scripted::new(half().chain([meets]).chain(half())));
        let second = first.copy_body().unwrap();
        let (first, second) = std::thread::scope(|threads| {
            let first = threads.spawn(|| collect(first, || {}));
            let second = threads.spawn(|| collect(second, move || _ = begun.send(())));
            (first.join().unwrap(), second.join().unwrap())
        });
        assert_eq!((first, second), (Err(TAKEN_OVER.to_owned()), Ok(expected.clone())));
    }
}
