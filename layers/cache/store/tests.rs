use std::sync::{
    Weak,
    atomic::{AtomicUsize, Ordering},
};

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn new<R>(response: R, now: Instant, ttl: Duration) -> New<R> {
    New { response, now, ttl, stale: Duration::ZERO, weight: 1 }
}

/// Returns the response that a caller gets without stale responses.
fn fresh<K: Hash + Eq, R: Clone>(store: &Store<K, R>, key: K, now: Instant) -> Option<R> {
    let entry = store.find(key)?;
    entry.stale_for(|| now).is_none().then(|| entry.response.clone())
}

impl<K: Hash + Eq, R> Store<K, R> {
    fn hashed(&self, key: K) -> Hashed<K> {
        Hashed { hash: self.hash(&key), key }
    }

    fn find(&self, key: K) -> Option<Arc<Entry<K, R>>> {
        self.get(&self.hashed(key))
    }

    fn put(&self, key: K, new: New<R>) -> Change<K, R> {
        self.insert(Arc::new(self.hashed(key)), new)
    }

    fn forget(&self, key: &K) -> Change<K, R> {
        self.remove(self.hash(key), key)
    }

    /// Returns whether the index holds exactly the entries of the table that expire, and the order of eviction has as
    /// many entries as the table.
    fn agrees(&self) -> bool {
        let (orders, all) = (self.orders.lock(), self.parts().flatten().collect::<Vec<_>>());
        let mut expiring: Vec<_> = all.iter().filter_map(|entry| entry.due()).collect();
        expiring.sort();
        expiring == Vec::from_iter(orders.expiry.keys().copied()) && orders.eviction.len() == all.len()
    }
}

#[test]
fn an_entry_expires_exactly_at_the_ttl() {
    let (store, start) = (Store::new(10), Instant::now());
    let _ = store.put("a", new(1, start, SECOND));
    let last = start + SECOND - Duration::from_nanos(1);
    assert_eq!(fresh(&store, "a", last), Some(1));
    assert_eq!(store.len(last), 1);
    assert_eq!(fresh(&store, "a", start + SECOND), None);
    assert_eq!(store.len(start + SECOND), 0);
}

#[test]
fn an_entry_without_an_end_never_asks_for_the_time() {
    let now = Instant::now();
    let store = Store::new(1);
    let _ = store.put((), new((), now, Duration::MAX));
    assert_eq!(store.find(()).unwrap().stale_for(|| unreachable!("asked for the time")), None);
}

#[test]
fn a_stale_entry_is_kept_as_long_as_it_may_be_used() {
    let (store, start) = (Store::new(10), Instant::now());
    let _ = store.put("a", New { stale: 2 * SECOND, ..new(1, start, SECOND) });
    let found = store.find("a").unwrap();
    assert_eq!(found.stale_for(|| start), None);
    assert_eq!(found.stale_for(|| start + SECOND), Some(Duration::ZERO));
    assert_eq!(found.stale_for(|| start + 3 * SECOND), Some(2 * SECOND));
    assert_eq!(store.len(start + 3 * SECOND - Duration::from_nanos(1)), 1);
    assert_eq!(store.len(start + 3 * SECOND), 0);
}

#[test]
fn expired_entries_are_taken_out_while_others_come_in() {
    let (store, start) = (Store::new(100_000), Instant::now());
    let alive = Arc::new(());
    for key in 0..1000 {
        let _ = store.put(key, new(Arc::clone(&alive), start, SECOND));
    }
    assert_eq!(Arc::strong_count(&alive), 1001);
    let later = start + SECOND;
    for key in 1000..1000 + 1000 / SWEPT_PER_INSERT {
        let _ = store.put(key, new(Arc::new(()), later, SECOND));
    }
    assert_eq!(Arc::strong_count(&alive), 1);
    assert!(store.agrees());
}

#[test]
fn a_stream_of_keys_that_expire_at_once_does_not_grow() {
    let (store, start) = (Store::new(100_000), Instant::now());
    for key in 0..10_000 {
        let now = start + key * SECOND;
        let _ = store.put(key, new((), now, SECOND));
        assert!(store.orders.lock().eviction.len() <= 2);
    }
}

#[test]
fn what_is_used_outlives_a_scan() {
    let (store, now) = (Store::new(64), Instant::now());
    let _ = store.put(0, new((), now, Duration::MAX));
    for key in 1..10_000 {
        assert!(store.find(0).is_some(), "lost after {key}");
        let _ = store.put(key, new((), now, Duration::MAX));
    }
}

#[test]
fn a_full_store_holds_as_much_as_it_may() {
    let now = Instant::now();
    for capacity in [1, 2, 65, 67, 129, 1_001] {
        let store = Store::new(capacity);
        for key in 0..10 * capacity {
            let _ = store.put(key, new((), now, SECOND));
        }
        assert_eq!(store.len(now), capacity);
    }
}

#[test]
fn who_is_replaced_is_not_evicted() {
    let (store, now) = (Store::new(1), Instant::now());
    assert_eq!(store.put("a", new(1, now, SECOND)).evicted, 0);
    assert_eq!(store.put("a", new(2, now, SECOND)).evicted, 0);
    assert_eq!(store.put("b", new(3, now, SECOND)).evicted, 1);
}

#[test]
fn an_entry_that_is_too_heavy_is_not_kept_and_displaces_the_one_before() {
    let (store, now) = (Store::new(1000), Instant::now());
    let weighing = |weight| New { weight, ..new((), now, SECOND) };
    assert!(store.put("b", weighing(1)).kept);
    assert!(store.put("a", weighing(1000)).kept, "exactly the capacity fits");
    assert!(store.find("b").is_none());
    assert!(!store.put("a", weighing(1001)).kept);
    assert!(!store.put("a", weighing(u64::MAX)).kept);
    assert!(store.find("a").is_none());
    assert!(store.agrees());
}

#[test]
fn weightless_entries_count_as_one() {
    let (store, now) = (Store::new(50), Instant::now());
    for key in 0..1000 {
        let _ = store.put(key, New { weight: 0, ..new((), now, Duration::MAX) });
    }
    assert!(store.len(now) <= 50);
}

#[test]
fn the_extremes_of_capacity_and_time_hold() {
    let now = Instant::now();
    for capacity in [1, 2, 3, 31, 33, usize::MAX] {
        let store = Store::new(capacity);
        for key in 0..40 {
            assert!(store.put(key, New { stale: Duration::MAX, ..new(key, now, Duration::MAX) }).kept);
            assert_eq!(fresh(&store, key, now), Some(key));
        }
        assert!(store.len(now) <= capacity);
    }
}

#[test]
fn responses_are_dropped_where_no_lock_is_held() {
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    /// A response whose drop uses the store, like a guard in user code might.
    struct Nosy(Weak<Store<u32, Nosy>>);
    impl Drop for Nosy {
        fn drop(&mut self) {
            let Some(store) = self.0.upgrade() else { return };
            store.len(Instant::now());
            drop(store.forget(&7));
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
    let (store, start) = (Arc::new(Store::new(4)), Instant::now());
    for key in 0..100 {
        let now = start + key % 3 * SECOND;
        drop(store.put(key % 10, new(Nosy(Arc::downgrade(&store)), now, SECOND)));
    }
    drop(store.clear());
    assert!(DROPPED.load(Ordering::Relaxed) >= 99);
}

#[derive(Debug, Clone)]
enum Step {
    Insert { key: u8, ttl: u64, stale: u64, weight: u64 },
    Get { key: u8 },
    Remove { key: u8 },
    Clear,
    Len,
    Wait { by: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let insert = (0..12_u8, 0..6_u64, 0..3_u64, 0..5_u64);
    prop_oneof![
        6 => insert.prop_map(|(key, ttl, stale, weight)| Step::Insert { key, ttl, stale, weight }),
        6 => (0..12_u8).prop_map(|key| Step::Get { key }),
        1 => (0..12_u8).prop_map(|key| Step::Remove { key }),
        1 => Just(Step::Clear),
        2 => Just(Step::Len),
        4 => (0..4_u64).prop_map(|by| Step::Wait { by }),
    ]
}

/// A naive model: the list of all events, searched from the end. It never evicts.
#[derive(Default)]
struct Model {
    now: u64,
    /// The time, the key (`None`: all keys), and the entry that was stored, if any.
    past: Vec<(u64, Option<u8>, Option<Put>)>,
}

#[derive(Clone, Copy)]
struct Put {
    number: usize,
    ttl: u64,
    stale: u64,
    weight: u64,
}

impl Model {
    fn last(&self, key: u8) -> Option<(u64, Put)> {
        let (at, _, put) = self.past.iter().rev().find(|(_, of, _)| of.is_none_or(|of| of == key))?;
        put.map(|put| (*at, put))
    }

    fn get(&self, key: u8) -> Option<usize> {
        let (at, put) = self.last(key)?;
        (self.now < at + put.ttl).then_some(put.number)
    }

    fn kept(&self) -> impl Iterator<Item = Put> {
        (0..12)
            .filter_map(|key| self.last(key))
            .filter(|(at, put)| self.now < at + put.ttl + put.stale)
            .map(|(_, put)| put)
    }
}

/// Runs `steps` on a store of `capacity`. `exact` means that nothing can be evicted.
fn compare(steps: &[Step], capacity: usize, weighted: bool, exact: bool) {
    let (store, start) = (Store::new(capacity), Instant::now());
    let (at, mut model) = (|seconds: u64| start + Duration::from_secs(seconds), Model::default());
    for (number, step) in steps.iter().enumerate() {
        let now = model.now;
        match *step {
            Step::Insert { key, ttl, stale, weight } => {
                let [ttl_, stale_] = [ttl, stale].map(Duration::from_secs);
                let weight_ = if weighted { weight } else { 1 };
                let made = New { response: number, now: at(now), ttl: ttl_, stale: stale_, weight: weight_ };
                let inserted = store.put(key, made);
                let put = inserted.kept.then_some(Put { number, ttl, stale, weight: weight.max(1) });
                assert!(put.is_some() || !exact);
                model.past.push((now, Some(key), put));
            }
            Step::Get { key } => {
                let (found, expected) = (fresh(&store, key, at(now)), model.get(key));
                assert!(found == expected || found.is_none() && !exact, "{number}: {found:?} for {expected:?}");
            }
            Step::Remove { key } => {
                drop(store.forget(&key));
                model.past.push((now, Some(key), None));
            }
            Step::Clear => {
                drop(store.clear());
                model.past.push((now, None, None));
            }
            Step::Len => {
                let (len, expected) = (store.len(at(now)), model.kept().count());
                assert!(len == expected || len < expected && !exact, "{number}: {len} for {expected}");
            }
            Step::Wait { by } => model.now += by,
        }
        assert!(store.agrees());
        assert!(store.weight() <= capacity as u64);
        if weighted && exact {
            store.len(at(model.now));
            assert_eq!(store.weight(), model.kept().map(|put| put.weight).sum::<u64>());
        }
    }
}

proptest! {
    #[test]
    fn a_roomy_store_does_what_the_list_of_all_events_says(steps in prop::collection::vec(step(), 0..80)) {
        compare(&steps, 1_000, false, true);
        compare(&steps, 10_000, true, true);
    }

    #[test]
    fn a_small_store_holds_no_more_than_its_capacity_and_nothing_but_the_truth(
        steps in prop::collection::vec(step(), 0..80),
        capacity in 1..12_usize,
        weighted: bool,
    ) {
        compare(&steps, capacity, weighted, false);
    }
}
