//! Runtimes that are not driven, stores that talk nonsense, and a bound that holds whatever a store does.

use tokio::runtime::{Builder, Runtime};

use super::*;

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// As in a program whose threads each block on one call: nothing drives the probe that a call has started.
///
/// Shows: Q5
#[test]
fn a_probe_that_is_no_longer_driven_does_not_keep_the_store_away() {
    let (undriven, driven) = (runtime(), runtime());
    let server = driven.block_on(async { Server::new(Behaviour::Fails) });
    let layer = driven.block_on(async {
        let layer = limit(&server, Quota::new(10, DAY), WhenAway::Reject);
        assert_eq!(unavailable(&call(&layer, 1).await), "refused");
        layer
    });
    server.becomes(Behaviour::AnswersAfter(MILLI));
    undriven.block_on(async { sleep(SECOND).await });
    {
        let _undriven = undriven.enter();
        assert!(start(&mut layer.layer(echo()), 1).poll().is_ready(), "it waits for no probe");
    }
    assert_eq!(server.requests(), 2);
    driven.block_on(async {
        sleep(SECOND).await;
        assert!(call(&layer, 1).await.is_err(), "no other probe at the same time");
        assert_eq!(server.requests(), 0);
        sleep(10 * SECOND).await;
        assert!(call(&layer, 1).await.is_err());
        assert_eq!(server.requests(), 1, "another probe");
        sleep(2 * MILLI).await;
        assert!(call(&layer, 1).await.is_ok());
    });
}

/// A request that counted as lost is answered after all, when another has filled the lease.
///
/// Shows: Q5
#[test]
fn a_request_that_was_given_up_does_not_fill_a_lease_twice() {
    let (late, driven) = (runtime(), runtime());
    let server = driven.block_on(async { Server::new(Behaviour::AnswersAfter(2 * MILLI)) });
    let layer = limit(&server, Quota::new(1_000, DAY), WhenAway::Reject).lease(50, 60 * 60 * SECOND);
    let send = || Vec::from_iter((0..51).map(|_| start(&mut layer.layer(echo()), 1)));
    let mut calls = send();
    late.block_on(async {
        calls.iter_mut().for_each(|call| assert!(call.poll().is_pending()));
        // The first answer comes, for the first call, and a request for all others is under way.
        sleep(3 * MILLI).await;
    });
    assert_eq!(server.requests(), 2);
    drop(calls);
    let mut others = send();
    driven.block_on(async {
        sleep(10 * TIMEOUT).await;
        others.iter_mut().for_each(|call| drop(call.poll()));
        sleep(10 * MILLI).await;
    });
    assert!(server.requests() > 0);
    // Every caller leaves, and its tokens return to the lease.
    drop(others);
    late.block_on(async { sleep(10 * MILLI).await });
    let leased = driven.block_on(async { layer.handle().leased() });
    assert!((1..=50).contains(&leased), "{leased} tokens");
}

/// Shows: Q5
#[tokio::test(start_paused = true)]
async fn a_denial_holds_no_longer_than_a_bucket_could_be_empty() {
    for nonsense in [Duration::MAX, 365 * DAY, Duration::ZERO] {
        let server = Server::new(Behaviour::Denies(nonsense));
        let limit = limit(&server, Quota::new(10, SECOND), WhenAway::Reject);
        assert!(wait(&call(&limit, 1).await) <= 2 * SECOND, "{nonsense:?}");
        server.becomes(Behaviour::Answers);
        sleep(2 * SECOND).await;
        assert!(call(&limit, 1).await.is_ok(), "{nonsense:?}");
    }
}

/// A store that decides late, answers late or never, and fails before or after its decision.
#[derive(Clone)]
struct Moody {
    memory: MemoryStore,
    random: Arc<Mutex<fastrand::Rng>>,
}

impl Moody {
    async fn hesitate(&self) -> Result<(), &'static str> {
        let (mood, millis) = {
            let mut random = self.random.lock().unwrap();
            (random.u32(0..100), random.u64(0..30))
        };
        match mood {
            0..40 => {}
            40..90 => sleep(Duration::from_millis(millis)).await,
            90..93 => sleep(TIMEOUT + Duration::from_millis(millis)).await,
            93..95 => pending().await,
            95..97 => panic!("in a store"),
            _ => return Err("refused"),
        }
        Ok(())
    }
}

impl TokenStore for Moody {
    type Error = &'static str;

    async fn take(&self, key: &str, tokens: RangeInclusive<u32>, quota: &Quota) -> Result<Taken, &'static str> {
        self.hesitate().await?;
        let Ok(taken) = self.memory.take(key, tokens, quota).await;
        self.hesitate().await?;
        Ok(taken)
    }

    async fn give_back(&self, key: &str, tokens: u32, at: u64, quota: &Quota) -> Result<(), &'static str> {
        self.hesitate().await?;
        let Ok(()) = self.memory.give_back(key, tokens, at, quota).await;
        self.hesitate().await
    }
}

/// Many processes, which start and end, with three keys and at most two places for them, and callers that give up.
/// Compares with the list of all calls.
///
/// Shows: Q5
#[tokio::test(start_paused = true)]
async fn no_store_and_no_caller_makes_the_processes_exceed_the_bound() {
    const BURST: u64 = 40;
    const PER_SECOND: u64 = 100;
    const LEASE: u64 = 6;
    const PROCESSES: usize = 8;
    const LIVES: u64 = 3;
    let key = |call: &(usize, u32)| call.0.to_string();
    let cost = |call: &(usize, u32)| call.1;
    for seed in 0..6 {
        let mut random = fastrand::Rng::with_seed(seed);
        let store = Moody { memory: MemoryStore::new(), random: Arc::new(Mutex::new(random.fork())) };
        let quota = Quota::new(PER_SECOND as u32, SECOND).burst(BURST as u32);
        let begin = Instant::now();
        let (mut callers, made): (_, [Made; 3]) = (JoinSet::new(), Default::default());
        for (process, life) in (0..PROCESSES).flat_map(|process| (0..LIVES).map(move |life| (process, life))) {
            // It ends, and its lease returns, when its last caller has left.
            let keep = Duration::from_millis(random.u64(1..300));
            let limit = SharedRateLimitLayer::new(store.clone(), key, quota, WhenAway::Reject)
                .cost(cost)
                .lease(LEASE as u32, keep)
                .max_keys(process % 3);
            for _ in 0..150 {
                let key = random.usize(0..made.len());
                let service = recording(begin, Arc::clone(&made[key])).map_request(|(_, cost): (usize, u32)| cost);
                let service = limit.layer(service);
                let at = Duration::from_millis(life * 2_000 + random.u64(0..1_500));
                let (patience, cost) = (Duration::from_millis(random.u64(0..200)), random.u32(1..5));
                callers.spawn(async move {
                    sleep(at).await;
                    let _gave_up = tokio::time::timeout(patience, service.oneshot((key, cost))).await;
                });
            }
        }
        callers.join_all().await;
        for made in made {
            let made = std::mem::take(&mut *made.lock().unwrap());
            for (first, (from, _)) in made.iter().enumerate() {
                let mut tokens = 0;
                for (until, cost) in &made[first..] {
                    tokens += cost;
                    let bound = (BURST + PROCESSES as u64 * LEASE) * 1_000 + PER_SECOND * (until - from);
                    assert!(tokens * 1_000 <= bound, "seed {seed}: {made:?}");
                }
            }
            assert!(made.len() > 100, "seed {seed}: {}", made.len());
        }
    }
}
