//! The hit ratio of the cache, in percent, beside an LRU and two popular caches: the same keys for all, without and
//! with weights. `tests/suite/cache/working_set.rs` asserts the figures of our cache.
//!
//! `cargo bench -p ziggurat-benches --bench hit_ratio`

use std::{collections::HashMap, future::ready, time::Duration};

use lru::LruCache;
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter};
use tower::{Layer, Service, service_fn};
use ziggurat::{Error, cache::CacheLayer};
use ziggurat_benches::Failed;

const CAPACITY: u64 = 1_000;
const SET: u64 = 800;

/// Looks up a key of this weight, inserts it if it is missing, and returns whether it was there.
type Subject = Box<dyn FnMut(u64, u64) -> bool>;
type Named = (&'static str, fn(u64) -> Subject);

fn ours(capacity: u64) -> Subject {
    let service = service_fn(|(key, _): (u64, u64)| ready(Ok::<_, Error<Failed>>(key)));
    let layer = CacheLayer::new(capacity as usize, Duration::MAX, |request: &(u64, u64)| Some(*request))
        .weigh(|request: &(u64, u64), _: &u64| request.1);
    let (cache, mut service) = (layer.handle(), layer.layer(service));
    Box::new(move |key, weight| {
        let misses = cache.stats().misses;
        drop(futures_util::FutureExt::now_or_never(service.call((key, weight))));
        cache.stats().misses == misses
    })
}

fn lru(capacity: u64) -> Subject {
    let (mut held, mut total) = (LruCache::unbounded(), 0);
    Box::new(move |key, weight| {
        if held.get(&key).is_some() {
            return true;
        }
        held.put(key, weight);
        total += weight;
        while total > capacity {
            total -= held.pop_lru().map_or(0, |(_, weight)| weight);
        }
        false
    })
}

fn moka(capacity: u64) -> Subject {
    let held =
        moka::sync::Cache::builder().max_capacity(capacity).weigher(|_: &u64, weight: &u64| *weight as u32).build();
    Box::new(move |key, weight| {
        let is_hit = held.get(&key).is_some();
        if !is_hit {
            held.insert(key, weight);
        }
        held.run_pending_tasks();
        is_hit
    })
}

#[derive(Clone)]
struct Weigh;

impl Weighter<u64, u64> for Weigh {
    fn weight(&self, _: &u64, weight: &u64) -> u64 {
        *weight
    }
}

#[derive(Clone)]
struct Forget;

impl Lifecycle<u64, u64> for Forget {
    type RequestState = ();

    fn begin_request(&self) {}

    fn on_evict(&self, _: &mut (), _: u64, _: u64) {}
}

/// As preset by its authors, but with one shard, so that keys which happen to share a shard cost nothing.
fn quick_cache(capacity: u64) -> Subject {
    let options = OptionsBuilder::new()
        .shards(1)
        .estimated_items_capacity(CAPACITY as usize)
        .weight_capacity(capacity)
        .build()
        .expect("all is set");
    let held = quick_cache::sync::Cache::with_options(options, Weigh, DefaultHashBuilder::default(), Forget);
    Box::new(move |key, weight| {
        let is_hit = held.get(&key).is_some();
        if !is_hit {
            held.insert(key, weight);
        }
        is_hit
    })
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

fn rotation(rounds: u64, first: u64, size: u64) -> impl Iterator<Item = u64> {
    (0..rounds).flat_map(move |_| first..first + size)
}

fn zipf(keys: u64) -> Vec<u64> {
    let sums: Vec<u64> = (1..=keys)
        .scan(0, |sum, rank| {
            *sum += 1_000_000 / rank;
            Some(*sum)
        })
        .collect();
    let (end, mut numbers) = (sums.last().copied().unwrap_or(1), Numbers(11));
    (0..100_000).map(|_| numbers.below(end)).map(|at| sums.partition_point(|sum| *sum <= at) as u64).collect()
}

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

fn loads() -> Vec<(&'static str, Vec<u64>)> {
    let others = || rotation(3, 1_000_000, CAPACITY);
    let mut numbers = Numbers(7);
    let with_new = rotation(100, 0, SET).flat_map(|key| {
        let new = (numbers.below(100) < 6).then(|| 5_000_000 + numbers.below(1 << 30));
        [Some(key), new].into_iter().flatten()
    });
    let shifts = |rounds| (0..20).flat_map(move |set| rotation(rounds, 10_000 * set, SET)).collect();
    let scans = |turn: u64| rotation(5, 0, SET).chain(rotation(1, 10_000_000 + 5_000 * turn, 5_000));
    let popular = zipf(20_000);
    let popular_and_new = popular.iter().zip(10_000_000..).flat_map(|(key, new)| [*key, new]).collect();
    vec![
        ("800 keys in rotation, once full of others", others().chain(rotation(100, 0, SET)).collect()),
        ("950 keys in rotation, once full of others", others().chain(rotation(100, 0, 950)).collect()),
        ("1,200 keys in rotation", rotation(100, 0, 1_200).collect()),
        ("800 keys in rotation, and 6 % that come once", others().chain(with_new).collect()),
        ("another 800 keys every ten rounds", shifts(10)),
        ("another 800 keys every hundred rounds", shifts(100)),
        ("800 keys, and a scan of 5,000 every five rounds", (0..20).flat_map(scans).collect()),
        ("zipf over 20,000 keys", popular),
        ("zipf over 20,000 keys, and as many that come once", popular_and_new),
        ("400 sessions of 8 requests", sessions()),
    ]
}

fn main() {
    let subjects: [Named; 4] = [("ziggurat", ours), ("lru", lru), ("moka", moka), ("quick_cache", quick_cache)];
    for (what, capacity, weigh) in [
        ("without weights", CAPACITY, (|_| 1) as fn(u64) -> u64),
        ("every third key weighs three", CAPACITY * 5 / 3, |key| if key.is_multiple_of(3) { 3 } else { 1 }),
        (
            "a tenth of the keys weighs a hundred",
            CAPACITY * 109 / 10,
            |key| if key.is_multiple_of(10) { 100 } else { 1 },
        ),
    ] {
        println!("{what:51}{}", subjects.map(|(name, _)| format!("{name:>13}")).concat());
        for (load, keys) in loads() {
            let mut results = HashMap::new();
            for (name, subject) in &subjects {
                let mut subject = subject(capacity);
                let hits = keys.iter().filter(|key| subject(**key, weigh(**key))).count();
                results.insert(name, 100.0 * hits as f64 / keys.len() as f64);
            }
            println!("{load:51}{}", subjects.map(|(name, _)| format!("{:13.2}", results[&name])).concat());
        }
        println!();
    }
}
