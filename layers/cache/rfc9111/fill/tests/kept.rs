//! Bodies that are kept whole, and what holds for all bodies.

use super::*;

#[test]
fn a_thousand_readers_share_one_copy_and_each_has_a_chunk_before_the_next_is_sent() {
    const LEN: usize = 16 * 1024;
    const CHUNKS: usize = 640;
    let mut rig = Rig::new(16 * 1024 * 1024);
    let mut readers: Vec<_> = (0..1_000).map(|_| rig.fill.reader().unwrap()).collect();
    let mut cx = Context::from_waker(Waker::noop());
    let mut shared = Vec::new();
    for number in 0..CHUNKS {
        let sent = chunk(number, LEN);
        assert!(!rig.send(sent.clone()));
        assert!(sent.is_unique(), "only the test holds what came from upstream");
        let frames = readers.iter_mut().map(|reader| match reader.poll_frame(&mut cx) {
            Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap(),
            other => panic!("no data: {other:?}"),
        });
        let frames: Vec<Bytes> = frames.collect();
        assert_eq!(frames[0], sent);
        assert!(frames.iter().all(|frame| (frame.as_ptr(), frame.len()) == (frames[0].as_ptr(), LEN)));
        shared.push(frames[0].as_ptr());
    }
    rig.end().unwrap();
    assert!(readers.iter_mut().all(|reader| matches!(reader.poll_frame(&mut cx), Poll::Ready(None))));
    let content = rig.content.unwrap();
    assert_eq!(content.len(), (CHUNKS * LEN) as u64);
    assert!(content.weight() < CHUNKS * LEN * 101 / 100);
    let mut stored = Rest::new(content, 0);
    let stored: Vec<_> =
        std::iter::from_fn(|| stored.next()).map(|frame| frame.into_data().unwrap().as_ptr()).collect();
    assert_eq!(stored, shared, "the cache keeps the very bytes that the readers have");
}

#[test]
fn a_reader_sees_bytes_as_they_come_and_may_come_late() {
    let mut rig = Rig::new(100);
    let mut first = rig.reader();
    assert_eq!(first.poll(), Read::Pending);
    rig.send("one");
    assert_eq!(first.woken.times(), 1);
    assert_eq!((first.read(), first.text()), (Read::Pending, "one"));
    let mut second = rig.reader();
    assert_eq!((second.read(), second.text()), (Read::Pending, "one"));
    rig.send("");
    assert_eq!([&first, &second].map(|reading| reading.woken.times()), [1, 0], "there is nothing new");
    rig.send("two");
    assert_eq!([&first, &second].map(|reading| reading.woken.times()), [2, 1]);
    assert_eq!(rig.end().unwrap(), b"onetwo");
    let mut third = rig.reader();
    for reading in [&mut first, &mut second, &mut third] {
        assert_eq!((reading.read(), reading.text()), (Read::End, "onetwo"));
        assert_eq!(reading.read(), Read::End);
    }
}

/// A thousand readers that were woken and have not been polled yet cost nothing for the next chunks.
#[test]
fn a_reader_is_woken_once_until_it_is_polled_and_by_its_latest_waker() {
    let mut rig = Rig::new(100);
    let mut reading = rig.reader();
    assert_eq!((reading.poll(), reading.poll()), (Read::Pending, Read::Pending));
    let before = Arc::clone(&reading.woken);
    assert_eq!(Arc::strong_count(&before), 3);
    reading.woken = Arc::default();
    assert_eq!(reading.poll(), Read::Pending);
    assert_eq!(Arc::strong_count(&before), 1, "the waker that was replaced is dropped");
    for text in ["one", "two", "three"] {
        rig.send(text);
    }
    assert_eq!((before.times(), reading.woken.times()), (0, 1));
    assert_eq!((reading.read(), reading.text()), (Read::Pending, "onetwothree"));
    rig.send("four");
    assert_eq!(reading.woken.times(), 2);
}

#[test]
fn a_reader_that_leaves_takes_its_waker_along_and_its_place_is_used_again() {
    let mut rig = Rig::new(100);
    let waits = |rig: &Rig| {
        let mut reading = rig.reader();
        assert_eq!(reading.poll(), Read::Pending);
        reading
    };
    for _ in 0..1_000 {
        let reading = waits(&rig);
        let woken = Arc::clone(&reading.woken);
        drop(reading);
        assert_eq!(Arc::strong_count(&woken), 1);
    }
    let [first, second] = [waits(&rig), waits(&rig)];
    assert_eq!(rig.fill.state.lock().wakers.len(), [2, 2]);
    rig.send("one");
    assert_eq!([first, second].map(|reading| reading.woken.times()), [1, 1]);
}

#[test]
fn slow_and_forgotten_readers_hold_up_neither_the_task_nor_the_others() {
    let mut rig = Rig::new(1_000);
    let (mut fast, mut slow, forgotten) = (rig.reader(), rig.reader(), rig.reader());
    for round in 0..100 {
        assert_eq!(rig.upstream.taken(), round);
        rig.send("0123456789");
        assert_eq!((fast.read(), fast.got.len()), (Read::Pending, (round + 1) * 10));
        if round % 3 == 0 {
            slow.poll();
        }
    }
    assert_eq!(rig.end().unwrap(), fast.got);
    assert_eq!(slow.got.len(), 340);
    assert_eq!((slow.read(), slow.got), (Read::End, fast.got));
    drop(forgotten);
}

#[test]
fn the_task_goes_on_without_readers_while_the_body_may_be_kept() {
    let mut rig = Rig::new(6);
    drop(rig.reader());
    rig.send("one");
    assert!(!rig.send("two"));
    assert_eq!(rig.end().unwrap(), b"onetwo");
    assert_eq!(rig.reader().read(), Read::End);

    let mut rig = Rig::new(5);
    drop(rig.reader());
    rig.send("one");
    assert!(rig.send("two"), "it goes on for nobody");
    assert!(rig.content.is_none() && rig.upstream.is_dropped() && rig.try_reader().is_none());
}

#[test]
fn trailers_go_to_every_reader_and_into_the_cache() {
    let mut rig = Rig::new(100);
    let mut readings = [rig.reader(), rig.reader()];
    rig.send("one");
    rig.then(Step::Trailers(trailers()));
    let other = HeaderMap::from_iter([("other".parse().unwrap(), HeaderValue::from_static("8"))]);
    rig.then(Step::Trailers(other.clone()));
    assert_eq!(readings[0].read(), Read::Pending);
    rig.end().unwrap();
    let [first, second] = readings;
    let mut all = trailers();
    all.extend(other);
    for mut reading in [first, second, rig.reader()] {
        assert!(!reading.reader.is_end_stream());
        assert_eq!((reading.read(), reading.text()), (Read::Trailers(all.clone()), "one"));
        assert!(reading.reader.is_end_stream());
        assert_eq!(reading.read(), Read::End);
    }
    assert_eq!(rig.content.unwrap().trailers(), Some(&all));

    // Trailers without a field are none.
    for max in [100, 2] {
        let mut rig = Rig::new(max);
        let mut reading = rig.reader();
        rig.send("one");
        reading.read();
        rig.run();
        rig.then(Step::Trailers(HeaderMap::new()));
        rig.then(Step::End);
        assert!(reading.reader.is_end_stream());
        assert_eq!(reading.read(), Read::End);
    }
}

/// Otherwise each of a thousand readers of a small body might be woken twice.
#[test]
fn with_the_last_part_readers_are_woken_when_the_end_is_there_too() {
    struct Looks(Arc<Fill>, AtomicUsize);
    impl Wake for Looks {
        fn wake(self: Arc<Self>) {
            let is_end = matches!(self.0.state.lock().end, End::Whole(_));
            self.1.fetch_add(1 + usize::from(is_end), SeqCst);
        }
    }
    let mut rig = Rig::new(100);
    let (mut reading, looks) = (rig.reader(), Arc::new(Looks(Arc::clone(&rig.fill), AtomicUsize::new(0))));
    assert!(reading.reader.poll_frame(&mut Context::from_waker(&Arc::clone(&looks).into())).is_pending());
    rig.run();
    rig.upstream.then(Step::Data("one".into()));
    rig.upstream.0.lock().says_end = true;
    assert!(rig.run(), "it needs no poll to know the end");
    assert_eq!(looks.1.load(SeqCst), 2);
    assert_eq!(reading.poll(), Read::Data("one".into()));
    assert!(reading.reader.is_end_stream());

    let mut rig = Rig::new(100);
    rig.upstream.0.lock().says_end = true;
    let mut reading = rig.reader();
    assert!(rig.run());
    assert!(reading.reader.is_end_stream());
    assert_eq!(reading.poll(), Read::End);
}

#[test]
fn a_reader_tells_its_size_and_its_end_as_far_as_they_are_known() {
    let hint = |reading: &Reading| {
        let hint = reading.reader.size_hint();
        (hint.lower(), hint.upper(), reading.reader.is_end_stream())
    };
    // The size is known from the head.
    for max in [100, 4] {
        let mut rig = Rig::sized(max, SizeHint::with_exact(6));
        let mut reading = rig.reader();
        assert_eq!(hint(&reading), (6, Some(6), false));
        rig.send("one");
        assert_eq!(hint(&reading), (6, Some(6), false));
        reading.read();
        assert_eq!(hint(&reading), (3, Some(3), false));
        rig.send("two");
        reading.read();
        assert_eq!(hint(&reading), (0, Some(0), false), "trailers may come");
        rig.then(Step::End);
        assert_eq!(hint(&reading), (0, Some(0), true));
        assert_eq!(reading.read(), Read::End);
        assert_eq!(hint(&reading), (0, Some(0), true));
    }
    // It is not.
    let mut rig = Rig::new(100);
    let mut reading = rig.reader();
    assert_eq!(hint(&reading), (0, None, false));
    rig.send("one");
    assert_eq!(hint(&reading), (3, None, false));
    rig.send("two");
    rig.end();
    assert_eq!(hint(&reading), (6, Some(6), false));
    reading.read();
    assert_eq!(hint(&reading), (0, Some(0), true));
    // With trailers, the size must stay unknown over HTTP/1.
    for max in [100, 4] {
        let mut rig = Rig::new(max);
        let mut reading = rig.reader();
        rig.send("one");
        reading.read();
        rig.send("two");
        rig.then(Step::Trailers(trailers()));
        rig.then(Step::End);
        assert_eq!(hint(&reading), (3, None, false));
        assert_eq!(reading.poll(), Read::Data("two".into()));
        assert_eq!(hint(&reading), (0, None, false));
        assert_eq!(reading.poll(), Read::Trailers(trailers()));
        assert_eq!(hint(&reading), (0, Some(0), true));
    }
}

/// Each chunk takes up more than its bytes.
#[test]
fn small_parts_are_joined() {
    let texts: Vec<u8> = (0..100_000_u32).map(|at| at as u8).collect();
    for len in [1, 100, 3_000] {
        let mut rig = Rig::new(1_000_000);
        let (mut early, mut late) = (rig.reader(), rig.reader());
        for (number, part) in texts.chunks(len).enumerate() {
            rig.send(Bytes::copy_from_slice(part));
            assert_eq!(early.poll(), Read::Data(Bytes::copy_from_slice(part)));
            if number % 50 == 0 {
                late.poll();
            }
            assert!(rig.fill.state.lock().tape.chunks() <= 4_096 + number * len / 2_048 + 1);
        }
        rig.end().unwrap();
        assert_eq!((late.read(), &late.got), (Read::End, &texts));
        assert_eq!((early.read(), &early.got), (Read::End, &texts));
        let content = rig.content.take().unwrap();
        assert_eq!(content.to_bytes(), texts);
        assert!(content.weight() < 110_000, "{len}: {}", content.weight());
    }
    // A few small parts between large ones.
    let mut rig = Rig::new(10_000_000);
    for _ in 0..100 {
        (0..1_000).for_each(|_| _ = rig.send("x"));
        rig.send(chunk(1, 5_000));
    }
    rig.end().unwrap();
    assert!(rig.content.unwrap().weight() < 6_300 * 100);
    // A body that is small as a whole is in one piece, which is not copied any more.
    let mut rig = Rig::new(1_000_000);
    (0..4).for_each(|number| _ = rig.send(chunk(number, 16 * 1024)));
    rig.end().unwrap();
    let content = rig.content.unwrap();
    assert_eq!(content.to_bytes().as_ptr(), content.to_bytes().as_ptr());
}

/// A slice keeps its whole buffer: a thousand slices of one byte could hold 65 MB under a bound of 64 KiB.
#[test]
fn parts_of_any_type_are_copied_into_memory_of_their_size() {
    struct Chained;
    impl Body for Chained {
        type Data = bytes::buf::Chain<Bytes, io::Cursor<Vec<u8>>>;
        type Error = io::Error;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Self::Data>>>> {
            Poll::Ready(Some(Ok(Frame::data(Bytes::from("one").chain(io::Cursor::new(b"two".to_vec()))))))
        }
    }
    let fill = Fill::alone(10, SizeHint::new());
    let mut reader = fill.reader().unwrap();
    let mut task = Box::pin(Arc::clone(&fill).receive(Chained));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(task.as_mut().poll(&mut cx).is_pending());
    let Poll::Ready(Some(Ok(frame))) = reader.poll_frame(&mut cx) else { panic!("no data") };
    assert_eq!(frame.into_data().unwrap(), "onetwo");

    let buffer = Bytes::from(vec![b'x'; 64 * 1024]);
    let mut rig = Rig::new(10);
    rig.send(buffer.slice(7..8));
    assert!(buffer.is_unique(), "only the test holds it");
}

/// Clients need a body that is `Send` and `Sync`.
#[test]
fn a_reader_is_send_and_sync_and_the_task_is_send_whatever_its_body_is() {
    fn check<T: Send + Sync + Unpin>() {}
    fn is_send<T: Send>(_: T) {}
    struct Awkward;
    impl Body for Awkward {
        type Data = io::Cursor<std::rc::Rc<[u8]>>;
        type Error = &'static str;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
            Poll::Ready(None)
        }
    }
    check::<Reader>();
    check::<Content>();
    is_send(Fill::alone(10, SizeHint::new()).receive(Awkward));
}

/// A body that is always ready, of this many chunks.
struct Ready(usize);

impl Body for Ready {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0 -= 1;
        Poll::Ready(if self.0 == 0 { None } else { Some(Ok(Frame::data(chunk(self.0, 10)))) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_always_ready_does_not_keep_the_thread() {
    let fill = Fill::alone(1_000_000, SizeHint::new());
    let task = tokio::spawn(Arc::clone(&fill).receive(Ready(10_000)));
    let mut turns = 0;
    while !task.is_finished() {
        turns += 1;
        tokio::task::yield_now().await;
    }
    assert!(turns > 10, "{turns}");
    assert_eq!(task.await.unwrap().unwrap().len(), 99_990);
}

/// On several threads, with readers of all kinds: no wake is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_on_many_threads_get_all_or_an_error() {
    for max in [1_000_000, 20_000] {
        let fill = Fill::alone(max, SizeHint::new());
        let readers: Vec<_> = (0..40)
            .map(|number| {
                let mut reader = fill.reader().unwrap();
                tokio::spawn(async move {
                    let (mut bytes, mut frames) = (0, 0);
                    while let Some(frame) = poll_fn(|cx| reader.poll_frame(cx)).await {
                        let Ok(frame) = frame else { return None };
                        bytes += frame.into_data().unwrap().len();
                        frames += 1;
                        if number % 4 == 1 && frames == number {
                            return None;
                        }
                        if number % 4 == 2 {
                            tokio::task::yield_now().await;
                        }
                    }
                    Some(bytes)
                })
            })
            .collect();
        let content = tokio::spawn(Arc::clone(&fill).receive(Ready(10_000))).await.unwrap();
        assert_eq!(content.map(|content| content.len()), (max > 99_990).then_some(99_990));
        let mut whole = 0;
        for reader in readers {
            if let Some(bytes) = reader.await.unwrap() {
                assert_eq!(bytes, 99_990);
                whole += 1;
            }
        }
        assert!(whole >= if max > 99_990 { 30 } else { 1 }, "{whole}");
    }
}
