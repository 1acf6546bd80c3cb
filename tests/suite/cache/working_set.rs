//! Which entries stay when the cache is full, compared with an LRU list.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    convert::Infallible,
    future::Ready,
    pin::pin,
    task::Waker,
};

use tower::Layer;
use ziggurat::cache::{CacheHandle, CacheLayer};

use super::*;

const CAPACITY: usize = 1_000;
/// The size of the working sets, which fit.
const SET: u64 = 800;

/// A naive LRU.
#[derive(Default)]
struct Lru {
    held: HashMap<u64, (u64, u64)>,
    order: BTreeMap<u64, u64>,
    weight: u64,
    uses: u64,
}

impl Lru {
    fn hits(&mut self, capacity: u64, key: u64, weight: u64) -> bool {
        self.uses += 1;
        let is_hit = self.held.contains_key(&key);
        if let Some((last, _)) = self.held.insert(key, (self.uses, weight)) {
            self.order.remove(&last);
        } else {
            self.weight += weight;
        }
        self.order.insert(self.uses, key);
        while self.weight > capacity {
            let (_, oldest) = self.order.pop_first().unwrap();
            self.weight -= self.held.remove(&oldest).unwrap().1;
        }
        is_hit
    }
}

/// xorshift64*: the same numbers on every machine.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % end
    }
}

/// A hundred thousand requests for keys with a Zipf distribution: the key of rank n is requested n times less often
/// than the first.
fn zipf(keys: u64) -> impl Iterator<Item = u64> {
    let sums: Vec<u64> = (1..=keys)
        .scan(0, |sum, rank| {
            *sum += 1_000_000 / rank;
            Some(*sum)
        })
        .collect();
    let mut numbers = Numbers(11);
    (0..100_000).map(move |_| {
        let at = numbers.below(*sums.last().unwrap());
        sums.partition_point(|sum| *sum <= at) as u64
    })
}

/// Keys that are requested eight times each while 400 such keys are in use, and never again.
fn sessions() -> Vec<u64> {
    let (mut numbers, mut live, mut next, mut keys) = (Numbers(3), Vec::new(), 0, Vec::new());
    while keys.len() < 100_000 {
        while live.len() < 400 {
            live.push((next, 8));
            next += 1;
        }
        let at = numbers.below(400) as usize;
        keys.push(live[at].0);
        live[at].1 -= 1;
        if live[at].1 == 0 {
            live.swap_remove(at);
        }
    }
    keys
}

/// Returns the misses in our cache, and in the LRU. With weights, every third key weighs three, and the capacity is the
/// weight of as many such keys.
fn misses(keys: impl IntoIterator<Item = u64>, is_weighted: bool) -> (u64, u64) {
    let weigh = move |key: u64| if is_weighted && key.is_multiple_of(3) { 3 } else { 1 };
    let capacity = if is_weighted { CAPACITY * 5 / 3 } else { CAPACITY };
    let service = service_fn(|key: u64| -> Ready<Result<u64, Error<Infallible>>> { ready(Ok(key)) });
    let layer = CacheLayer::new(capacity, Duration::MAX, |key: &u64| Some(*key));
    let layer = if is_weighted { layer.weigh(move |key: &u64, _: &u64| weigh(*key)) } else { layer };
    let cache: CacheHandle<u64, u64> = layer.handle();
    let (mut service, mut lru, mut missed) = (layer.layer(service), Lru::default(), 0);
    let mut context = Context::from_waker(Waker::noop());
    for key in keys {
        assert!(pin!(service.call(key)).poll(&mut context).is_ready());
        missed += u64::from(!lru.hits(capacity as u64, key, weigh(key)));
    }
    (cache.stats().misses, missed)
}

/// Fills a cache with keys that were requested three times each.
fn full_of_others() -> impl Iterator<Item = u64> {
    (0..3).flat_map(|_| 1_000_000..1_000_000 + CAPACITY as u64)
}

fn rounds(rounds: usize, set: std::ops::Range<u64>) -> impl Iterator<Item = u64> {
    (0..rounds).flat_map(move |_| set.clone())
}

/// Shows: F5
#[test]
fn a_working_set_that_fits_stays_from_its_third_round_on() {
    for is_weighted in [false, true] {
        for size in [100, SET, 950] {
            let (ours, lru) = misses(full_of_others().chain(rounds(100, 0..size)), is_weighted);
            let before = CAPACITY as u64;
            assert_eq!(lru, before + size);
            assert!(ours <= before + 2 * size, "{ours}, {lru} by an LRU, {size} {is_weighted}");
        }
    }
}

/// Six new keys in a hundred evict none of the working set for long.
///
/// Shows: F5
#[test]
fn a_working_set_that_fits_stays_beside_keys_that_come_once() {
    for is_weighted in [false, true] {
        let mut numbers = Numbers(7);
        let mut keys: Vec<_> = full_of_others().collect();
        for key in rounds(100, 0..SET) {
            keys.push(key);
            if numbers.below(100) < 6 {
                keys.push(5_000_000 + keys.len() as u64);
            }
        }
        let distinct = keys.iter().collect::<HashSet<_>>().len() as u64;
        let (ours, lru) = misses(keys, is_weighted);
        // A new key has to be requested once more than in an LRU.
        assert!(ours <= distinct + 2 * SET, "{ours}, {lru} by an LRU, at least {distinct}, {is_weighted}");
    }
}

/// Shows: F5
#[test]
fn another_working_set_is_in_memory_after_three_rounds() {
    for is_weighted in [false, true] {
        let (sets, length) = (20, 10);
        let shifts = |length| (0..sets).flat_map(move |set| rounds(length, 10_000 * set..10_000 * set + SET));
        let (ours, lru) = misses(shifts(length), is_weighted);
        assert!(ours <= 3 * sets * SET, "{ours}, {lru} by an LRU, {is_weighted}");
    }
}

/// A backup or a crawler: keys that are never requested again, five times as many as fit, between the rounds of the
/// working set.
#[test]
fn a_scan_leaves_the_working_set_where_it_is() {
    for is_weighted in [false, true] {
        let keys = (0..20).flat_map(|turn| {
            let scan = 10_000_000 + 5_000 * turn;
            rounds(5, 0..SET).chain(scan..scan + 5_000)
        });
        let (ours, lru) = misses(keys, is_weighted);
        let (scanned, sets) = (20 * 5_000, 2);
        assert!(ours <= scanned + sets * SET, "{ours}, {lru} by an LRU, {is_weighted}");
        assert_eq!(lru, scanned + 20 * SET);
    }
}

/// If a few keys receive most requests, it misses less than an LRU, even while every other request has a unique key.
#[test]
fn popular_keys_stay() {
    for is_weighted in [false, true] {
        let (ours, lru) = misses(zipf(20_000), is_weighted);
        assert!(ours < lru, "{ours}, {lru} by an LRU, {is_weighted}");
        let mut number = 10_000_000;
        let keys = zipf(20_000).flat_map(|key| {
            number += 1;
            [key, number]
        });
        let (ours, lru) = misses(keys, is_weighted);
        assert!(ours < lru, "{ours}, {lru} by an LRU, {is_weighted}");
    }
}

/// Keys that are used for a while and never again suit an LRU best: here a key costs at most a quarter of a miss more.
#[test]
fn sessions_miss_little_more_than_in_an_lru() {
    for is_weighted in [false, true] {
        let (ours, lru) = misses(sessions(), is_weighted);
        assert!(4 * ours <= 5 * lru, "{ours}, {lru} by an LRU, {is_weighted}");
    }
}
