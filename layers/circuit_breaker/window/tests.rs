use std::{sync::Barrier, thread};

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Records a call at this moment, and returns the sums over the window.
fn record(window: &Window, at: Instant, bad: bool) -> Tally {
    let (slot, _) = window.record(0, || at, bad);
    window.tally(slot)
}

#[test]
fn a_rate_is_reached_exactly_at_the_number_that_was_written() {
    for percent in 1..=100 {
        let rate = format!("{percent}e-2").parse().unwrap();
        for hundreds in 1..=20 {
            let (calls, bad) = (100 * hundreds, percent * hundreds);
            assert!(Tally { calls, bad }.reaches(rate), "{bad} of {calls}");
            assert!(!Tally { calls: calls + 1, bad }.reaches(rate), "{bad} of {calls} + 1");
        }
    }
    assert!(!Tally::default().reaches(f64::MIN_POSITIVE), "no call is no rate");
}

#[test]
fn a_time_window_drops_what_is_older_than_itself() {
    let start = Instant::now();
    let window = Window::new(Extent::Time(10 * SECOND), start);
    record(&window, start, true);
    assert_eq!(record(&window, start + 9 * SECOND, false), Tally { calls: 2, bad: 1 });
    assert_eq!(record(&window, start + 10 * SECOND, false), Tally { calls: 2, bad: 0 });
    assert_eq!(record(&window, start + 3600 * SECOND, true), Tally { calls: 1, bad: 1 });
}

#[test]
fn a_window_of_calls_holds_at_least_so_many_and_at_most_a_fifth_more() {
    let now = Instant::now();
    for calls in (1..=60).chain([99, 100, 101, 1000, 12_345]) {
        let window = Window::new(Extent::Calls(calls), now);
        for recorded in 1..=3 * calls {
            let held = record(&window, now, false).calls;
            let most = calls + calls / 5;
            assert!((recorded.min(calls)..=most).contains(&held), "{held} of {recorded} in {calls}");
        }
    }
}

#[test]
fn a_window_of_ten_calls_or_fewer_is_exact() {
    let now = Instant::now();
    for calls in 1..=10 {
        let window = Window::new(Extent::Calls(calls), now);
        record(&window, now, true);
        for _ in 1..calls {
            assert_eq!(record(&window, now, false).bad, 1);
        }
        assert_eq!(record(&window, now, false), Tally { calls, bad: 0 });
    }
}

#[test]
fn a_full_bucket_keeps_its_rate() {
    let now = Instant::now();
    let window = Window::new(Extent::Time(SECOND), now);
    for call in 0..3_000_000_u32 {
        window.record(0, || now, call % 4 == 0);
    }
    let held = record(&window, now, false);
    assert!((1 << 19..1 << 20).contains(&held.calls), "{held:?}");
    let rate = f64::from(held.bad) / f64::from(held.calls);
    assert!((rate - 0.25).abs() < 1e-5, "{held:?}");
}

#[test]
fn a_late_record_of_an_older_generation_changes_nothing() {
    let start = Instant::now();
    for extent in [Extent::Time(10 * SECOND), Extent::Calls(10), Extent::Calls(1), Extent::Calls(95)] {
        let window = Window::new(extent, start);
        for second in 0..300 {
            let now = start + second * SECOND / 10;
            let (slot, _) = window.record(7, || now, true);
            let before = window.tally(slot);
            for _ in 0..30 {
                window.record(6, || now, true);
                window.record(0, || start, true);
            }
            assert_eq!(window.tally(slot), before, "{extent:?} after {second}");
        }
    }
}

#[test]
fn a_new_generation_starts_from_nothing() {
    let start = Instant::now();
    for extent in [Extent::Time(10 * SECOND), Extent::Calls(10), Extent::Calls(95)] {
        let window = Window::new(extent, start);
        for generation in 0..100 {
            for calls in 1..=20 {
                let (slot, _) = window.record(generation, || start, true);
                let most = if extent == Extent::Calls(10) { 10 } else { 20 };
                assert_eq!(window.tally(slot).calls, calls.min(most), "{extent:?}");
            }
        }
    }
}

#[test]
fn a_record_that_is_a_whole_window_late_is_dropped() {
    let start = Instant::now();
    let window = Window::new(Extent::Time(10 * SECOND), start);
    let (slot, _) = window.record(0, || start + 25 * SECOND, false);
    window.record(0, || start + 15 * SECOND, true); // too old
    window.record(0, || start + 9 * SECOND, true); // so old that its bucket is taken
    window.record(0, || start, true); // older still
    window.record(0, || start + 16 * SECOND, true); // just in time
    assert_eq!(window.tally(slot), Tally { calls: 2, bad: 1 });
}

/// No call is lost or counted twice while threads fill one bucket after another.
#[test]
fn a_window_of_calls_holds_all_of_its_calls_whoever_opens_the_next_bucket() {
    let now = Instant::now();
    let window = Window::new(Extent::Calls(20), now);
    let barrier = Barrier::new(4);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                barrier.wait();
                (0..20_000).for_each(|_| _ = window.record(0, || now, true));
            });
        }
    });
    let held = record(&window, now, true);
    assert!((20..=24).contains(&held.calls), "{held:?}");
    assert_eq!(held.calls, held.bad);
}

#[test]
fn extreme_extents_work() {
    let start = Instant::now();
    for time in [Duration::from_nanos(1), Duration::from_nanos(9), Duration::MAX] {
        let window = Window::new(Extent::Time(time), start);
        assert_eq!(record(&window, start, true), Tally { calls: 1, bad: 1 });
        assert!(record(&window, start + 1_000_000_000 * SECOND, true).bad >= 1);
    }
    let window = Window::new(Extent::Calls(u32::MAX), start);
    for calls in 1..100 {
        assert_eq!(record(&window, start, true), Tally { calls, bad: calls });
    }
}

#[test]
fn bad_calls_of_eight_threads_are_all_counted() {
    let now = Instant::now();
    for extent in [Extent::Time(SECOND), Extent::Calls(80_000)] {
        let window = Window::new(extent, now);
        let barrier = Barrier::new(8);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    barrier.wait();
                    (0..10_000).for_each(|_| _ = window.record(0, || now, true));
                });
            }
        });
        let (slot, _) = window.record(0, || now, false);
        assert_eq!(window.tally(slot), Tally { calls: 80_001, bad: 80_000 });
    }
}

/// If the bad calls of two threads fall into neighbouring buckets, at least one thread sees both.
#[test]
fn of_two_bad_calls_at_once_one_sees_both() {
    let now = Instant::now();
    let window = Window::new(Extent::Calls(4), now);
    let barrier = Barrier::new(2);
    let round = |generation| {
        barrier.wait();
        let (slot, _) = window.record(generation, || now, true);
        window.tally(slot).bad
    };
    let rounds = || (0..20_000).map(round).collect::<Vec<_>>();
    let (left, right) = thread::scope(|scope| {
        let left = scope.spawn(rounds);
        (rounds(), left.join().unwrap())
    });
    for (left, right) in left.into_iter().zip(right) {
        assert_eq!(left.max(right), 2);
    }
}

/// As above, with a ring for each of the threads.
#[test]
fn of_two_bad_calls_in_two_rings_one_sees_both() {
    let start = Instant::now();
    let window = Window::new(Extent::Time(10 * SECOND), start);
    window.divide();
    let barrier = Barrier::new(2);
    let rounds = |second: u32| {
        let round = |generation| {
            barrier.wait();
            let (slot, _) = window.record(generation, || start + second * SECOND, true);
            window.tally(slot).bad
        };
        (0..20_000).map(round).collect::<Vec<_>>()
    };
    let (left, right) = thread::scope(|scope| {
        let left = scope.spawn(|| rounds(0));
        (rounds(1), left.join().unwrap())
    });
    for (left, right) in left.into_iter().zip(right) {
        assert_eq!(left.max(right), 2);
    }
}

/// Threads that have met divide a window of time, and nothing else.
#[test]
fn a_window_of_time_is_divided_if_threads_meet_and_one_of_calls_never_is() {
    let now = Instant::now();
    for (extent, is_divided) in [(Extent::Time(SECOND), true), (Extent::Calls(10), false)] {
        let window = Window::new(extent, now);
        record(&window, now, false);
        assert!(window.more.get().is_none());
        window.divide();
        assert_eq!(window.more.get().is_some(), is_divided);
        assert_eq!(record(&window, now, true), Tally { calls: 2, bad: 1 });
    }
}

/// A recorded call, in the list that the naive window keeps.
#[derive(Clone, Copy, Debug)]
struct Call {
    generation: u64,
    /// The time, in tenths of the window.
    step: u64,
    bad: bool,
}

fn naive(calls: &[Call], buckets: u64, seen_from: &Call) -> Tally {
    let of_now = |call: &&Call| call.generation == seen_from.generation;
    let newest = calls.iter().filter(of_now).map(|call| call.step).max().unwrap();
    let held = || calls.iter().filter(of_now).filter(|call| newest - call.step < buckets);
    Tally { calls: held().count() as u32, bad: held().filter(|call| call.bad).count() as u32 }
}

proptest! {
    /// Time passes in any steps, even longer than the window. Generations change, and some calls are recorded late.
    #[test]
    fn a_time_window_agrees_with_a_list_of_all_calls(
        script in prop::collection::vec((0..3_000_u64, 0..1_200_u64, 0..20_u8, any::<bool>()), 1..200),
        divided in prop::option::of(0..200_usize),
    ) {
        let start = Instant::now();
        let window = Window::new(Extent::Time(SECOND), start);
        let (mut now, mut generation, mut calls) = (0, 0, Vec::new());
        for (passed, late, turn, bad) in script {
            if divided == Some(calls.len()) {
                window.divide();
            }
            now += if passed < 2_000 { passed / 40 } else { passed }; // ms
            generation += u64::from(turn == 0);
            // At most two windows late: an older record could not be told from a current one.
            let at = if turn < 5 { now.saturating_sub(late) } else { now };
            let call = Call { generation: generation - u64::from(turn == 1 && generation > 0), step: at / 100, bad };
            let (slot, _) = window.record(call.generation, || start + Duration::from_millis(at), bad);
            calls.push(call);
            let newest = calls.iter().filter(|c| c.generation == generation).map(|c| c.step).max();
            if call.generation == generation && newest.unwrap() - call.step < 10 {
                prop_assert_eq!(window.tally(slot), naive(&calls, 10, &call));
            }
        }
    }

    #[test]
    fn a_window_of_calls_agrees_with_a_list_of_all_calls(
        size in 1..150_u32,
        script in prop::collection::vec((0..40_u8, any::<bool>()), 1..600),
    ) {
        let now = Instant::now();
        let window = Window::new(Extent::Calls(size), now);
        let width = u64::from(size).div_ceil(10);
        let buckets = (u64::from(size) - 1).div_ceil(width) + 1;
        let (mut generation, mut calls) = (0, Vec::<Call>::new());
        for (turn, bad) in script {
            generation += u64::from(turn == 0);
            let before = calls.iter().filter(|call| call.generation == generation).count() as u64;
            let call = Call { generation, step: before / width, bad };
            let (slot, _) = window.record(generation, || now, bad);
            calls.push(call);
            prop_assert_eq!(window.tally(slot), naive(&calls, buckets, &call));
        }
    }
}

/// Shows: A5
#[test]
fn a_rate_is_clear_if_it_is_hardly_reached_by_chance() {
    for (rate, calls, least) in [
        (0.5, 20, 19),
        (0.5, 100, 70),
        (0.5, 1_000, 564),
        (0.5, 100_000, 50_633),
        (0.1, 20, 9),
        (0.1, 1_000, 140),
        (0.9, 20, 20),
        (0.9, 1_000, 936),
        (1.0, 20, 20),
        (1.0, 1_000_000, 1_000_000),
    ] {
        let clear = |bad| Tally { calls, bad }.clearly_reaches(rate);
        assert_eq!((clear(least - 1), clear(least)), (false, true), "{least} of {calls} at {rate}");
    }
}
