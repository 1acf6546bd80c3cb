//! Bodies that turn out to be too large.

use super::*;

#[test]
fn a_body_that_is_streamed_ends_when_its_last_reader_leaves() {
    for is_held_up in [true, false] {
        let mut rig = Rig::new(5);
        let mut readings = [rig.reader(), rig.reader()];
        rig.send("one");
        for reading in &mut readings {
            reading.read();
        }
        rig.send("two");
        if is_held_up {
            rig.send("three");
        }
        let [first, second] = readings;
        drop(first);
        assert!(!rig.run());
        let before = rig.woken.times();
        drop(second);
        assert_eq!(rig.woken.times(), before + 1);
        assert!(rig.run() && rig.content.is_none() && rig.upstream.is_dropped());
    }
}

#[test]
fn one_reader_alone_gets_a_body_of_any_size_at_its_own_pace() {
    let mut rig = Rig::new(10);
    let mut only = rig.reader();
    for number in 0..100 {
        rig.upstream.then(Step::Data(chunk(number, 3)));
    }
    rig.upstream.then(Step::Trailers(trailers()));
    rig.upstream.then(Step::End);
    assert!(!rig.run());
    assert_eq!((held(&rig), rig.upstream.taken()), (9, 4), "one more than fits waits in the task");
    assert!(rig.try_reader().is_none());
    let mut expected = Vec::new();
    for number in 0..100 {
        assert_eq!(only.poll(), Read::Data(chunk(number, 3)));
        expected.extend_from_slice(&chunk(number, 3));
        assert!(held(&rig) <= 10);
        // It is woken once the reader has taken all that is there.
        let (before, has_all) = (rig.woken.times(), number >= 2);
        rig.run();
        assert!(
            rig.upstream.taken() <= 102 && rig.upstream.taken() <= number + 4 + if has_all { 1 } else { 0 },
            "{before}"
        );
    }
    assert_eq!(only.got, expected);
    assert!(rig.task.is_none() && rig.content.is_none() && rig.try_reader().is_none());
    assert_eq!((only.poll(), only.poll()), (Read::Trailers(trailers()), Read::End));
}

#[test]
fn a_single_chunk_that_is_too_large_reaches_every_reader() {
    for max in [0, 3] {
        let mut rig = Rig::new(max);
        let mut readings = [rig.reader(), rig.reader()];
        rig.send("large");
        rig.send("larger");
        for reading in &mut readings {
            assert_eq!((reading.read(), reading.text()), (Read::Pending, "large"));
        }
        rig.run();
        assert!(rig.end().is_none());
        for reading in &mut readings {
            assert_eq!((reading.read(), reading.text()), (Read::End, "largelarger"));
        }
        assert_eq!(held(&rig), 0);
    }
}

#[test]
fn a_reader_may_lag_by_what_may_be_kept_and_no_further() {
    let mut rig = Rig::new(10);
    let (mut fast, mut near, mut far) = (rig.reader(), rig.reader(), rig.reader());
    for number in 0..4 {
        rig.send(chunk(number, 3));
        fast.read();
        rig.run();
        if number == 0 {
            near.read();
        }
    }
    assert_eq!((fast.got.len(), held(&rig)), (12, 9));
    assert_eq!(far.poll(), failed(LAGGING));
    assert_eq!(far.poll(), Read::End);
    assert_eq!((near.read(), &near.got), (Read::Pending, &fast.got));
    assert_eq!(held(&rig), 0, "every reader has passed them");
    assert!(rig.end().is_none());
    assert_eq!((fast.read(), near.read()), (Read::End, Read::End));
}

/// Its runtime is no longer driven, for example, and it is ahead of the only one that goes on.
#[test]
fn a_forgotten_reader_does_not_stall_the_fastest() {
    let mut rig = Rig::new(10);
    let (mut forgotten, mut behind, mut other) = (rig.reader(), rig.reader(), rig.reader());
    for number in 0..3 {
        rig.send(chunk(number, 3));
        forgotten.read();
    }
    behind.poll();
    for number in 3..20 {
        rig.send(chunk(number, 3));
        behind.read();
        rig.run();
    }
    assert_eq!(behind.got.len(), 60);
    assert!(rig.end().is_none());
    assert_eq!(behind.read(), Read::End);
    assert_eq!((forgotten.read(), other.read()), (failed(LAGGING), failed(LAGGING)));
}

/// A reader that can no longer go on is no reason to receive the rest.
#[test]
fn readers_that_lag_too_far_do_not_keep_the_task() {
    let mut rig = Rig::new(4);
    let (mut fast, lagging) = (rig.reader(), rig.reader());
    for number in 0..3 {
        rig.send(chunk(number, 3));
        fast.read();
        rig.run();
    }
    drop(fast);
    assert!(rig.run() && rig.content.is_none());
    drop(lagging);
}

#[test]
fn when_the_fastest_reader_leaves_the_next_one_sets_the_pace() {
    let mut rig = Rig::new(10);
    let (mut fast, mut slow) = (rig.reader(), rig.reader());
    for number in 0..4 {
        rig.send(chunk(number, 3));
        fast.read();
        rig.run();
        slow.poll();
    }
    assert_eq!(slow.read(), Read::Pending);
    rig.send(chunk(4, 3));
    fast.read();
    drop(fast);
    rig.send(chunk(5, 3));
    assert!(!rig.send(chunk(6, 3)));
    assert_eq!(rig.upstream.taken(), 6, "the one that is left has not taken the fifth");
    assert_eq!((slow.read(), slow.got.len()), (Read::Pending, 15));
    rig.run();
    assert_eq!((slow.read(), slow.got.len()), (Read::Pending, 18));
}

#[test]
fn a_task_that_waits_for_upstream_is_not_woken_by_its_readers() {
    let mut rig = Rig::new(2);
    let mut readings = [rig.reader(), rig.reader()];
    for _ in 0..10 {
        rig.send("one");
        let before = rig.woken.times();
        readings.iter_mut().for_each(|reading| assert_eq!(reading.read(), Read::Pending));
        assert_eq!(rig.woken.times(), before);
    }
    assert_eq!(readings[0].text(), "one".repeat(10));
}

#[test]
fn a_window_takes_no_more_room_than_there_is() {
    let room = Room::new(300_000);
    let rig = || {
        let rig = Rig::of(Fill::new(200_000, SizeHint::new(), &room));
        let readers = [rig.reader(), rig.reader()];
        (rig, readers)
    };
    // The second reader has taken nothing yet.
    let send = |(rig, [leads, _]): &mut (Rig, [Reading; 2]), chunks| {
        for number in 0..chunks {
            rig.send(chunk(number, 10_000));
            leads.read();
            rig.run();
        }
        (held(rig), room.taken())
    };
    let (mut one, mut other, mut third) = (rig(), rig(), rig());
    assert_eq!(send(&mut one, 20), (200_000, 200_000));
    assert_eq!(send(&mut other, 10), (100_000, 300_000));
    assert_eq!(send(&mut third, 6), (60_000, 300_000), "a little in any case");
    assert_eq!(send(&mut third, 1), (0, 300_000));
    assert_eq!(third.1[1].read(), failed(LAGGING));
    // A window that is no longer needed makes room for others.
    assert_eq!(send(&mut other, 1), (0, 210_000));
    assert_eq!(send(&mut one, 1), (0, 20_000));
    let mut fourth = rig();
    assert_eq!(send(&mut fourth, 21), (0, 30_000));
    let mut fifth = rig();
    assert_eq!(send(&mut fifth, 19), (190_000, 220_000));
    // Also after its end, until its callers have read it.
    assert!(fifth.0.end().is_some());
    drop((one, other, third, fourth));
    let (fifth, readers) = fifth;
    drop(fifth);
    assert_eq!(room.taken(), 190_000);
    drop(readers);
    assert_eq!(room.taken(), 0);
}

#[test]
fn a_body_in_memory_takes_room_until_nobody_needs_it() {
    let room = Room::new(100);
    let mut rig = Rig::of(Fill::new(100, SizeHint::new(), &room));
    let reading = rig.reader();
    rig.send(chunk(0, 70));
    rig.end();
    let content = rig.content.take();
    drop(rig);
    assert_eq!(room.taken(), 70);
    drop(reading);
    assert_eq!(room.taken(), 70);
    let copy = content.clone();
    drop(content);
    assert_eq!(room.taken(), 70);
    drop(copy);
    assert_eq!(room.taken(), 0);
    // Nor may one that did not arrive here take more than there is.
    let [one, other] = [0, 1].map(|number| Content::from_bytes(chunk(number, 70), None).counted(&room));
    assert_eq!((one.is_some(), other.is_some(), room.taken()), (true, false, 70));
}
