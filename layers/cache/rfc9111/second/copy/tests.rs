use http::HeaderMap;
use proptest::{collection::vec, option, prelude::*};

use super::{
    super::super::{
        fill::Fill,
        rules::{Reuse, headers},
    },
    *,
};

const SECOND: Duration = Duration::from_secs(1);

fn now() -> Now {
    Now { instant: Instant::now(), date: UNIX_EPOCH + 1_000_000_000 * SECOND }
}

fn after(Now { instant, date }: Now, time: Duration) -> Now {
    Now { instant: instant + time, date: date + time }
}

/// A response with these headers, which has arrived at this time after a second.
fn page(lines: &[(&str, &str)], at: Now) -> Page {
    let mut headers = headers(lines);
    let date = httpdate::fmt_http_date(at.date);
    headers.entry("date").or_insert(date.parse().unwrap());
    let times = Times { sent: at.instant, received: at.instant + SECOND, date: at.date };
    let terms = Rules::default().terms(&Asked::default(), StatusCode::OK, &mut headers, times).unwrap();
    let vary = Vary::read(&headers).unwrap();
    Page::new(Head::new(StatusCode::OK, &headers, terms, vary), Content::from_bytes("body".into(), None))
}

/// The `Vary` of a response that is for all requests.
fn all() -> Vary {
    Vary::read(&headers(&[])).unwrap()
}

fn read(bytes: &Bytes, at: Now) -> Option<Page> {
    match decode(bytes.clone(), (1, b"id", &all()), (&Rules::default(), &Asked::default()), UNIX_EPOCH, at) {
        Decoded::Page(page) => Some(*page),
        Decoded::Other => None,
        Decoded::Unknown => panic!("unknown"),
    }
}

#[test]
fn a_copy_ages_in_the_store() {
    let begin = now();
    let page = page(&[("cache-control", "max-age=60"), ("age", "10")], begin);
    // Written two seconds after the request was sent, and read after half a second more.
    let copy = encode(&page, 1, b"id", after(begin, 2 * SECOND));
    let at = after(begin, 2 * SECOND + SECOND / 2);
    let terms = read(&copy, at).unwrap().head.terms;
    assert_eq!(terms.age(at.instant), 12 * SECOND + SECOND / 2);
    assert_eq!(terms.since_sent(at.instant), 2 * SECOND + SECOND / 2);
    assert!(!terms.are_newer_than(&page.head.terms) && !page.head.terms.are_newer_than(&terms));
    let late = after(begin, 51 * SECOND);
    assert_eq!(read(&copy, late).unwrap().head.terms.reuse(&Asked::default(), late.instant), Reuse::Validate);
}

#[test]
fn a_wrong_clock_makes_no_copy_younger_than_its_date() {
    let begin = now();
    let copy = encode(&page(&[("cache-control", "max-age=60")], begin), 1, b"id", after(begin, 100 * SECOND));
    // The writer's clock was 100 seconds ahead.
    let at = after(begin, 50 * SECOND);
    assert!(read(&copy, at).unwrap().head.terms.age(at.instant) >= 49 * SECOND);
    let future = after(begin, 150 * SECOND);
    let copy = encode(&page(&[("cache-control", "max-age=60")], future), 1, b"id", future);
    // As old as it was when it was written.
    assert_eq!(read(&copy, begin).unwrap().head.terms.age(begin.instant), SECOND);
}

#[test]
fn a_copy_is_for_its_identity_and_not_from_before_a_time() {
    let begin = now();
    let copy = encode(&page(&[("cache-control", "max-age=60")], begin), 1, b"id", begin);
    let of = |number, identity: &[u8], not_before| {
        let decoded =
            decode(copy.clone(), (number, identity, &all()), (&Rules::default(), &Asked::default()), not_before, begin);
        matches!(decoded, Decoded::Page(_))
    };
    assert!(!of(2, b"id", begin.date));
    assert!(of(1, b"id", begin.date) && !of(1, b"di", begin.date) && !of(1, b"id", begin.date + SECOND));
    // Written later, but its request is from before.
    let copy = encode(&page(&[("cache-control", "max-age=60")], begin), 1, b"id", after(begin, 2 * SECOND));
    let decoded = |not_before| {
        let wanted = (1, &b"id"[..], &all());
        decode(copy.clone(), wanted, (&Rules::default(), &Asked::default()), not_before, after(begin, 2 * SECOND))
    };
    assert!(matches!(decoded(begin.date), Decoded::Page(_)));
    assert!(matches!(decoded(begin.date + SECOND), Decoded::Other));
}

#[test]
fn the_reader_decides_what_a_copy_may_be_used_for() {
    let begin = now();
    let copy = encode(&page(&[("cache-control", "max-age=60")], begin), 1, b"id", begin);
    let asked = Asked { has_authorization: true, ..Asked::default() };
    let decoded = decode(copy.clone(), (1, b"id", &all()), (&Rules::default(), &asked), UNIX_EPOCH, begin);
    assert!(matches!(decoded, Decoded::Other));
    let rules = Rules { targeted: Some("x-control".parse().unwrap()), ..Rules::default() };
    let page = page(&[("cache-control", "max-age=60"), ("x-control", "no-store")], begin);
    let copy = encode(&page, 1, b"id", begin);
    assert!(matches!(decode(copy, (1, b"id", &all()), (&rules, &Asked::default()), UNIX_EPOCH, begin), Decoded::Other));
}

proptest! {
    #[test]
    fn a_copy_is_read_as_it_was_written(
        lines in vec(("x-[a-c]", "[ -~]{0,5}"), 0..4), frames in vec(vec(any::<u8>(), 1..9), 0..4),
        trailers in option::of(vec(("x-[a-c]", "[a-z]{0,5}"), 1..3)), other in option::of("[a-z]{1,9}; hit"),
    ) {
        let begin = now();
        let map = |lines: &[(String, String)]| {
            let lines: Vec<_> = lines.iter().map(|(name, value)| (&**name, value.trim())).collect();
            headers(&lines)
        };
        let Page { head, .. } = page(&[("cache-control", "max-age=60")], begin);
        let mut headers = head.headers.clone();
        headers.extend(map(&lines));
        headers.extend(other.map(|other| (CACHE_STATUS, other.parse().unwrap())));
        let content = content(&frames, trailers.map(|trailers| map(&trailers)));
        let page = Page::new(Head::new(StatusCode::NOT_FOUND, &headers, head.terms, head.vary), content);
        let read = read(&encode(&page, 1, b"id", begin), begin).unwrap();
        prop_assert_eq!(&read.head.headers, &page.head.headers);
        prop_assert_eq!((read.head.status, read.head.cache_status), (page.head.status, page.head.cache_status));
        prop_assert_eq!(read.content.to_bytes(), frames.concat());
        prop_assert_eq!(read.content.trailers(), page.content.trailers());
    }

    #[test]
    fn a_copy_that_is_cut_off_is_unknown(cut in 0..200_usize, noise in vec(any::<u8>(), 0..99)) {
        let begin = now();
        let copy = encode(&page(&[("cache-control", "max-age=60")], begin), 1, b"id", begin);
        let decoded = |bytes| decode(bytes, (1, b"id", &all()), (&Rules::default(), &Asked::default()), UNIX_EPOCH, begin);
        let cut = copy.slice(..cut.min(copy.len() - 1));
        prop_assert!(matches!(decoded(cut.clone()), Decoded::Unknown));
        decoded([&cut[..], &noise].concat().into());
        decoded(noise.into());
    }
}

fn content(frames: &[Vec<u8>], trailers: Option<HeaderMap>) -> Content {
    use http_body::Frame;
    use http_body_util::StreamBody;

    let frames = frames.iter().map(|frame| Frame::data(Bytes::from(frame.clone())));
    let frames: Vec<Result<_, std::convert::Infallible>> =
        frames.chain(trailers.map(Frame::trailers)).map(Ok).collect();
    let fill = Fill::alone(usize::MAX, http_body::SizeHint::new());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(fill.receive(StreamBody::new(futures_util::stream::iter(frames)))).unwrap()
}
