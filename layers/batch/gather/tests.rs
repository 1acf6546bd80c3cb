use std::{cell::Cell, cmp::Ordering, hash::RandomState};

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::clock;

thread_local! {
    static COMPARED: Cell<u64> = const { Cell::new(0) };
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        COMPARED.set(COMPARED.get() + 1);
        self.0.cmp(&other.0)
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

const SECOND: Duration = Duration::from_secs(1);

fn joined(gather: &mut Gather<u8, &'static str, ()>, key: u8, item: &'static str) -> Joined<()> {
    joined_at(clock::now(), gather, key, item)
}

fn joined_at(now: Instant, gather: &mut Gather<u8, &'static str, ()>, key: u8, item: &'static str) -> Joined<()> {
    join(now, gather, key, item)
}

fn join<T>(now: Instant, gather: &mut Gather<u8, T, ()>, key: u8, item: T) -> Joined<()> {
    let key = Key { hash: key.into(), key };
    gather.join(&mut Some(key), &mut Some(item), || now, Some(|| ())).unwrap()
}

fn taken(gather: &mut Gather<u8, &'static str, ()>, batch: u64) -> Vec<&'static str> {
    gather.take(batch).into_iter().flat_map(Batch::into_items).collect()
}

#[test]
fn a_batch_is_due_when_it_is_full_or_its_first_has_waited_long_enough() {
    let mut gather = Gather::new(2, SECOND);
    let start = clock::now();
    let first = joined_at(start, &mut gather, 1, "a");
    assert!(first.is_first && !first.is_full);
    assert_eq!(gather.due(first.place.batch), Due::At(start + SECOND));
    let other = joined_at(start + SECOND / 2, &mut gather, 2, "x");
    assert_eq!(gather.due(other.place.batch), Due::At(start + SECOND * 3 / 2));
    let second = joined(&mut gather, 1, "b");
    assert!(!second.is_first && second.is_full);
    assert_eq!((first.place.batch, gather.due(first.place.batch)), (second.place.batch, Due::Now));
    // The next item opens another batch, although this one was not taken yet.
    assert!(joined(&mut gather, 1, "c").is_first);
    assert_eq!(gather.len(), 4);
    assert_eq!(taken(&mut gather, first.place.batch), ["a", "b"]);
    assert_eq!(taken(&mut gather, other.place.batch), ["x"]);
    assert_eq!((gather.len(), gather.open.len()), (1, 1));
}

#[test]
fn no_delay_is_now_and_one_without_an_end_waits_until_it_is_full() {
    let mut gather = Gather::new(2, Duration::ZERO);
    let place = joined(&mut gather, 1, "a").place;
    assert_eq!(gather.due(place.batch), Due::Now);
    // Others can join until it is taken.
    assert!(!joined(&mut gather, 1, "b").is_first);
    let mut gather = Gather::new(2, Duration::MAX);
    let place = joined(&mut gather, 1, "a").place;
    assert_eq!(gather.due(place.batch), Due::WhenFull);
}

#[test]
fn who_leaves_makes_room_and_the_last_takes_the_batch_along() {
    let mut gather = Gather::new(2, Duration::MAX);
    let (a, b) = (joined(&mut gather, 1, "a").place, joined(&mut gather, 2, "b").place);
    let left = |gather: &mut Gather<_, _, _>, place| gather.leave(place).map(|(item, batch)| (item, batch.is_some()));
    assert_eq!(left(&mut gather, a), Some(("a", true)));
    assert!(gather.leave(a).is_none() && gather.take(a.batch).is_none());
    let c = joined(&mut gather, 2, "c");
    assert!(c.is_full);
    assert_eq!(left(&mut gather, b), Some(("b", false)));
    assert_eq!(gather.due(b.batch), Due::Now, "it was full");
    assert_eq!(taken(&mut gather, c.place.batch), ["c"]);
    assert_eq!((left(&mut gather, c.place), gather.len(), gather.open.len(), gather.batches.len()), (None, 0, 0, 0));
}

#[test]
fn a_batch_that_has_its_next_turn_is_taken_in_that_turn_alone() {
    let mut gather = Gather::new(3, Duration::MAX);
    let a = joined(&mut gather, 1, "a").place;
    assert_eq!(gather.next_turn(a.batch), Some(1));
    assert!(gather.take_in_turn(a.batch, 0).is_none(), "taken over");
    let b = joined(&mut gather, 1, "b");
    assert_eq!((b.is_first, b.place.batch), (false, a.batch), "still open");
    assert_eq!(gather.take_in_turn(a.batch, 1).map(Batch::into_items), Some(vec!["a", "b"]));
    assert!(gather.next_turn(a.batch).is_none(), "sent");
    assert_eq!((gather.len(), gather.open.len()), (0, 0));
}

/// Callers with the same deadline leave together, and each of them holds the shared lock while it leaves.
#[test]
fn to_leave_costs_no_more_than_a_few_comparisons_however_many_wait() {
    const CALLERS: usize = 80_000;
    for reversed in [false, true] {
        let mut gather = Gather::new(usize::MAX, Duration::MAX);
        let now = clock::now();
        let mut places: Vec<_> = (0..CALLERS).map(|caller| join(now, &mut gather, 1, caller).place).collect();
        if reversed {
            places.reverse();
        }
        COMPARED.set(0);
        let mut most = 0;
        for place in places {
            let before = COMPARED.get();
            assert!(gather.leave(place).is_some());
            most = most.max(COMPARED.get() - before);
        }
        // A binary search over 80,000 items, which is less than 2^17.
        assert!(most <= 18, "{most}");
        assert_eq!((gather.len(), gather.open.len(), gather.batches.len()), (0, 0, 0));
    }
}

#[test]
fn callers_who_come_and_leave_take_no_more_room_than_those_who_wait() {
    let mut gather = Gather::new(usize::MAX, Duration::MAX);
    let waits = joined(&mut gather, 1, "a").place;
    for _ in 0..1_000 {
        let leaves = joined(&mut gather, 1, "b").place;
        assert_eq!(gather.leave(leaves).map(|(item, _)| item), Some("b"));
    }
    assert!(gather.batches.values().all(|batch| batch.items.capacity() <= 4));
    assert_eq!((gather.len(), taken(&mut gather, waits.batch)), (1, vec!["a"]));
}

#[test]
fn without_anything_to_keep_no_batch_is_begun_and_one_that_is_open_is_joined() {
    let mut gather = Gather::new(2, Duration::MAX);
    let now = clock::now();
    let join = |gather: &mut Gather<u8, &'static str, ()>| {
        let (mut key, mut item) = (Some(Key::new(1, &RandomState::new())), Some("a"));
        key.as_mut().unwrap().hash = 1;
        let joined = gather.join(&mut key, &mut item, || now, None::<fn()>);
        (joined.is_some(), key.is_some(), item.is_some())
    };
    assert_eq!(join(&mut gather), (false, true, true), "key and item are returned");
    assert_eq!((gather.len(), gather.open.len(), gather.batches.len()), (0, 0, 0));
    joined(&mut gather, 1, "b");
    assert_eq!(join(&mut gather), (true, true, false), "the key is not needed");
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Join(u8),
    /// The n-th arrival leaves.
    Leave(usize),
    /// This number of milliseconds pass, and batches that become due are sent.
    Wait(u64),
}

/// A naive model: computes the batches that are sent, as lists of arrivals, from the list of all steps.
fn expected(steps: &[Step], max_size: usize, delay: u64) -> Vec<Vec<usize>> {
    struct Arrival {
        key: u8,
        at: u64,
        left: bool,
        sent: bool,
    }
    let (mut arrivals, mut batches): (Vec<Arrival>, Vec<Vec<usize>>) = (Vec::new(), Vec::new());
    // For each batch its key, its start, and whether it is open.
    let mut begun: Vec<(u8, u64, bool)> = Vec::new();
    let (mut now, mut sent) = (0, Vec::new());
    for step in steps {
        let here = |arrivals: &[Arrival], batch: &[usize]| -> Vec<usize> {
            batch.iter().copied().filter(|who| !arrivals[*who].left && !arrivals[*who].sent).collect()
        };
        match *step {
            Step::Join(key) => {
                let who = arrivals.len();
                arrivals.push(Arrival { key, at: now, left: false, sent: false });
                let open = (0..batches.len()).find(|b| begun[*b].0 == key && begun[*b].2);
                let batch = open.unwrap_or_else(|| {
                    batches.push(vec![]);
                    begun.push((arrivals[who].key, arrivals[who].at, true));
                    batches.len() - 1
                });
                batches[batch].push(who);
                if here(&arrivals, &batches[batch]).len() == max_size {
                    begun[batch].2 = false;
                    let all = here(&arrivals, &batches[batch]);
                    all.iter().for_each(|who| arrivals[*who].sent = true);
                    sent.push(all);
                }
            }
            Step::Leave(who) => {
                if let Some(arrival) = arrivals.get_mut(who) {
                    arrival.left = true;
                }
                for batch in 0..batches.len() {
                    if here(&arrivals, &batches[batch]).is_empty() {
                        begun[batch].2 = false;
                    }
                }
            }
            Step::Wait(millis) => {
                for _ in 0..millis {
                    now += 1;
                    for batch in 0..batches.len() {
                        if begun[batch].2 && now == begun[batch].1 + delay {
                            begun[batch].2 = false;
                            let all = here(&arrivals, &batches[batch]);
                            all.iter().for_each(|who| arrivals[*who].sent = true);
                            sent.push(all);
                        }
                    }
                }
            }
        }
    }
    sent
}

proptest! {
    #[test]
    fn batches_are_those_that_a_list_of_all_who_came_says(
        steps in vec(
            prop_oneof![
                6 => (0..3_u8).prop_map(Step::Join),
                2 => (0..30_usize).prop_map(Step::Leave),
                2 => (1..8_u64).prop_map(Step::Wait),
            ],
            0..60,
        ),
        max_size in 1_usize..5,
        delay in 1_u64..12,
    ) {
        let millis = Duration::from_millis;
        let mut gather = Gather::new(max_size, millis(delay));
        let (mut now, mut places, mut sent, mut alive) = (clock::now(), Vec::new(), Vec::new(), Vec::new());
        let items = |taken: Option<Batch<u8, usize, ()>>| -> Vec<usize> {
            taken.into_iter().flat_map(Batch::into_items).collect()
        };
        for step in &steps {
            match *step {
                Step::Join(key) => {
                    let joined = join(now, &mut gather, key, places.len());
                    let batch = joined.place.batch;
                    places.push(joined.place);
                    if joined.is_first {
                        alive.push(batch);
                    }
                    prop_assert_eq!(joined.is_full, gather.due(batch) == Due::Now);
                    if joined.is_full {
                        sent.push(items(gather.take(batch)));
                    }
                }
                Step::Leave(who) => if let Some(place) = places.get(who) {
                    gather.leave(*place);
                },
                Step::Wait(passed) => for _ in 0..passed {
                    now += millis(1);
                    for batch in &alive {
                        if gather.items(*batch).count() > 0 && gather.due(*batch) == Due::At(now) {
                            sent.push(items(gather.take(*batch)));
                        }
                    }
                },
            }
        }
        prop_assert_eq!(sent, expected(&steps, max_size, delay));
        let waiting: usize = alive.iter().map(|batch| gather.items(*batch).count()).sum();
        prop_assert_eq!(gather.len(), waiting);
        prop_assert!(gather.batches.len() >= gather.open.len());
    }
}
