//! Bodies, tasks and wakers that fail.

use super::*;

#[test]
fn a_waker_that_panics_disturbs_neither_the_task_nor_the_other_readers() {
    let mut rig = Rig::new(4);
    let mut readings = [(); 3].map(|()| rig.reader());
    readings[1].woken = Arc::new(Woken { panics: true, ..Woken::default() });
    for text in ["one", "two", "three"] {
        for reading in &mut readings {
            assert_eq!(reading.read(), Read::Pending);
        }
        assert!(!rig.send(text));
    }
    assert_eq!(readings.each_ref().map(|reading| reading.woken.times()), [3; 3]);
    assert!(rig.then(Step::End));
    for reading in &mut readings {
        assert_eq!((reading.read(), reading.text()), (Read::End, "onetwothree"));
    }
}

#[test]
fn a_body_that_is_not_as_long_as_its_head_said_has_failed() {
    for (size, texts, failure) in [
        (7, &["one", "two"][..], "the response ended after 6 of 7 bytes"),
        (5, &["one", "two"][..], "the response is longer than the 5 bytes that it announced"),
        (1, &[][..], "the response ended after 0 of 1 bytes"),
    ] {
        for max in [100, 2] {
            let mut rig = Rig::sized(max, SizeHint::with_exact(size));
            let mut reading = rig.reader();
            let mut end = Read::Pending;
            for text in texts {
                rig.send(*text);
                end = reading.read();
                rig.run();
            }
            if end == Read::Pending && rig.task.is_some() {
                rig.then(Step::End);
                end = reading.read();
            }
            assert_eq!(end, failed(failure));
            assert_eq!(reading.text(), if size == 7 { "onetwo" } else { texts.first().copied().unwrap_or("") });
            assert_eq!(reading.read(), Read::End);
            assert!(rig.content.is_none() && rig.try_reader().is_none() && rig.upstream.is_dropped());
        }
    }
    let mut rig = Rig::sized(100, SizeHint::with_exact(6));
    rig.send("one");
    rig.send("two");
    assert_eq!(rig.end().unwrap(), b"onetwo");
}

#[test]
fn an_error_comes_behind_the_bytes_so_far_and_each_reader_gets_the_original() {
    for max in [100, 4] {
        let mut rig = Rig::new(max);
        let mut readings = [rig.reader(), rig.reader(), rig.reader()];
        rig.send("one");
        readings.iter_mut().for_each(|reading| assert_eq!(reading.read(), Read::Pending));
        rig.send("two");
        readings[0].read();
        rig.then(Step::Fail(io::Error::from(io::ErrorKind::ConnectionReset).into()));
        assert!(rig.task.is_none() && rig.content.is_none() && rig.try_reader().is_none());
        for reading in &mut readings {
            let mut cx = Context::from_waker(Waker::noop());
            let error = loop {
                match reading.reader.poll_frame(&mut cx) {
                    Poll::Ready(Some(Ok(frame))) => reading.got.extend(frame.into_data().unwrap()),
                    Poll::Ready(Some(Err(error))) => break error,
                    other => panic!("neither data nor an error: {other:?}"),
                }
            };
            assert_eq!((error.to_string().as_str(), reading.text()), ("connection reset", "onetwo"));
            let original = error.source().and_then(<dyn StdError>::downcast_ref::<io::Error>);
            assert_eq!(original.map(io::Error::kind), Some(io::ErrorKind::ConnectionReset));
            assert_eq!(reading.read(), Read::End);
        }
    }
}

#[test]
fn a_body_that_panics_has_failed() {
    for max in [100, 4] {
        let mut rig = Rig::new(max);
        let mut readings = [rig.reader(), rig.reader()];
        for text in ["one", "two"] {
            rig.send(text);
            readings.iter_mut().for_each(|reading| assert_eq!(reading.read(), Read::Pending));
        }
        rig.upstream.0.lock().panics_in_drop = true;
        assert!(rig.then(Step::Panic) && rig.content.is_none() && rig.try_reader().is_none());
        for reading in &mut readings {
            assert_eq!((reading.read(), reading.text()), (failed(LOST), "onetwo"));
            assert_eq!(reading.read(), Read::End);
        }
        assert_eq!(readings[0].woken.times(), 2);
    }
}

#[test]
fn a_body_that_arrived_whole_is_kept_even_if_it_panics_when_it_is_dropped() {
    let mut rig = Rig::new(100);
    let mut reading = rig.reader();
    rig.upstream.0.lock().panics_in_drop = true;
    rig.send("one");
    assert_eq!(rig.end().unwrap(), b"one");
    assert_eq!((reading.read(), reading.text()), (Read::End, "one"));
}

#[test]
fn a_task_that_is_dropped_leaves_no_reader_behind() {
    for polls in 0..4 {
        let mut rig = Rig::new(5);
        let mut reading = rig.reader();
        for _ in 0..polls {
            rig.send("one");
        }
        assert_eq!(reading.read(), Read::Pending);
        rig.task = None;
        assert!(rig.upstream.is_dropped() && rig.try_reader().is_none());
        assert_eq!(reading.woken.times(), 1);
        assert_eq!(reading.read(), failed(LOST));
        assert_eq!(reading.text(), "one".repeat(polls.min(1)), "a part that waits in the task is lost with it");
    }
}
