//! The limit of a server, whose callers leave after a second and do not say so in a deadline: a fixed one, or one that
//! adapts.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneService};
use ziggurat::{
    Error,
    concurrency_limit::{Adaptive, ConcurrencyLimitLayer},
    timeout::TimeoutLayer,
};

use crate::{
    load::{Arrivals, Load},
    report::PATIENCE,
    seconds, seeds, simulate,
    upstream::{Failed, Plan, Upstream, Work},
};

#[derive(Clone, Copy, Debug)]
struct Scene {
    /// 16 workers serve calls of 25 ms, random. The rest waits in the server.
    times_capacity: f64,
    /// Half of the requests are for news, and take two seconds without a worker.
    has_long_polls: bool,
    /// Whether a handler ends when its caller leaves. One that has spawned its work does not.
    notices_callers_leaving: bool,
}

const CAPACITY: f64 = 640.0;
const LENGTH: f64 = 20.0;
const LONG_POLL: f64 = 2.0;

#[derive(Clone, Copy, Debug)]
enum Limit {
    /// That of `ServerStack`.
    Fixed,
    Adaptive,
}

impl Scene {
    /// The requests that are answered before their callers leave, of those sent in the second half.
    fn answered(&self, seed: u64, limit: Limit) -> f64 {
        let Self { times_capacity, has_long_polls, notices_callers_leaving } = *self;
        let work = Work::Random(seconds(0.025));
        let plan = Plan { workers: 16, work, queue: 100_000, notices_callers_leaving, weather: vec![], seed };
        let load =
            Load { per_second: CAPACITY * times_capacity, arrivals: Arrivals::Poisson, length: seconds(LENGTH), seed };
        let is_long = move |request| has_long_polls && request % 2 == 0;
        let calls = simulate(seed, async |watch| {
            let upstream = Upstream::new(plan);
            let handler = service_fn(move |request| {
                let upstream = upstream.clone();
                async move {
                    if is_long(request) {
                        sleep(seconds(LONG_POLL)).await;
                        return Ok(());
                    }
                    upstream.oneshot(request).await
                }
            });
            let service = ServiceBuilder::new().layer(TimeoutLayer::new(seconds(30.0)));
            let handler = handler.map_err(Error::<Failed>::Service);
            let server = match limit {
                Limit::Fixed => {
                    let limit = ConcurrencyLimitLayer::new(1000).max_waiting(0);
                    watch.client(limit.handle(), 1000, 0).around(&service.layer(limit), handler)
                }
                Limit::Adaptive => {
                    let limit = ConcurrencyLimitLayer::adaptive(Adaptive::gradient());
                    watch.client(limit.handle(), 1000, 0).around(&service.layer(limit), handler)
                }
            };
            let caller = service_fn(move |request| {
                let server = server.clone();
                let patience = PATIENCE + if is_long(request) { seconds(LONG_POLL) } else { Duration::ZERO };
                async move {
                    timeout(patience, server.oneshot(request)).await.unwrap_or_else(|_| Err(BoxError::from("left")))
                }
            });
            load.offer(&BoxCloneService::new(caller)).await
        });
        let later = || calls.iter().filter(|call| call.sent >= seconds(LENGTH / 2.0));
        later().filter(|call| call.error.is_none()).count() as f64 / later().count() as f64
    }
}

/// Why the limit of `ServerStack` is fixed: it does not know how long the calls of a server take. One that adapts is
/// better where handlers go on working for callers that have left, and takes calls that wait for news for a queue.
///
/// Shows: A1, A3
#[test]
fn an_adaptive_limit_suits_a_server_of_calls_that_are_alike() {
    let scene = Scene { times_capacity: 0.6, has_long_polls: false, notices_callers_leaving: true };
    for seed in seeds(2) {
        let answered = |scene: Scene| {
            let [fixed, adaptive] = [Limit::Fixed, Limit::Adaptive].map(|limit| scene.answered(seed, limit));
            println!("seed {seed:>3}  {scene:?}\n          fixed {fixed:.2}, adaptive {adaptive:.2}");
            (fixed, adaptive)
        };
        let (fixed, adaptive) = answered(scene);
        assert!(fixed >= 0.99 && adaptive >= 0.99, "seed {seed}: {fixed}, {adaptive}");

        let (fixed, adaptive) = answered(Scene { times_capacity: 2.0, ..scene });
        assert!(fixed >= 0.45 && adaptive >= 0.45, "seed {seed}: {fixed}, {adaptive}");

        let goes_on = Scene { times_capacity: 2.0, notices_callers_leaving: false, ..scene };
        let (fixed, adaptive) = answered(goes_on);
        assert!(fixed <= 0.05 && adaptive >= 0.45, "seed {seed}: {fixed}, {adaptive}");

        let (fixed, adaptive) = answered(Scene { has_long_polls: true, ..scene });
        assert!(fixed >= 0.99 && adaptive <= 0.8 * fixed, "seed {seed}: {fixed}, {adaptive}");
    }
}
