//! Removals from the second level: after an unsafe method, by hand, and while the store is away.

use futures_util::future::{join, join_all};

use super::*;

/// How many orders of events a random test tries.
const SEEDS: u64 = 30;

/// Shows: C8, W3
#[tokio::test(start_paused = true)]
async fn an_unsafe_method_removes_the_responses_for_all_processes() {
    let server = Server::new(Behaviour::Delays(20 * MILLI));
    let headers = &["cache-control: max-age=60", "location: /b"];
    let [first, second, third] = processes(&server, headers);
    for path in ["/a", "/b", "/c"] {
        first.get(path, &[]).await;
        sleep(TIMEOUT).await;
    }
    // A request that names the scheme.
    first.ask(Method::POST, "http://SHOP.test/a", &[]).await;
    for path in ["/a", "/b", "/c"] {
        second.get(path, &[]).await;
    }
    assert_eq!(second.calls(), 2);
    sleep(TIMEOUT).await;
    for path in ["/a", "/b", "/c"] {
        third.get(path, &[]).await;
        first.get(path, &[]).await;
    }
    assert_eq!((third.calls(), first.calls()), (0, 4), "those of the second process, or its own");
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn the_caller_of_an_unsafe_method_waits_until_the_store_has_removed_the_responses() {
    let server = Server::new(Behaviour::Answers);
    let [first] = processes(&server, &["cache-control: max-age=60"]);
    first.get("/", &[]).await;
    for seed in 0..20 {
        fastrand::seed(seed);
        server.becomes(Behaviour::Delays(40 * MILLI));
        first.ask(Method::POST, "/", &[]).await;
        // A process that starts now, and a store that answers at once.
        server.becomes(Behaviour::Answers);
        let [cold] = processes(&server, &["cache-control: max-age=60"]);
        cold.get("/", &[]).await;
        assert_eq!(cold.calls(), 1, "seed {seed}");
        settle().await;
    }
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn a_store_that_forgets_an_invalidation_lets_nothing_from_before_in() {
    let server = Server::new(Behaviour::Answers);
    let [first, cold] = processes(&server, &["cache-control: max-age=60"]);
    let slow = slow_process(&server);
    let call = sent(&slow, "/", &[]).await;
    first.ask(Method::POST, "/", &[]).await;
    server.memory.remove("//shop.test/").await.unwrap();
    assert_eq!(call.await.unwrap().body, "old");
    settle().await;
    assert_eq!((cold.get("/", &[]).await.body, cold.calls()), ("1".into(), 1));
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn invalidations_leave_no_copies_behind() {
    let server = Server::new(Behaviour::Answers);
    let [site] = processes(&server, &["cache-control: max-age=60", "etag: \"v\""]);
    let mut sizes = Vec::new();
    for _ in 0..100 {
        site.get("/", &[]).await;
        settle().await;
        sizes.push(server.memory.bytes());
        site.ask(Method::POST, "/", &[]).await;
    }
    assert!(sizes[99] <= sizes[0] + 10, "{sizes:?}");
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn a_removal_waits_for_the_store_and_no_longer() {
    let server = Server::new(Behaviour::Answers);
    let headers = &["cache-control: max-age=60"];
    let [first] = processes(&server, headers);
    for (behaviour, at_most) in
        [(Behaviour::Hangs, TIMEOUT), (Behaviour::Fails, Duration::ZERO), (Behaviour::Panics, Duration::ZERO)]
    {
        first.get("/", &[]).await;
        let [before, after] = processes(&server, headers);
        before.get("/", &[]).await;
        assert_eq!(before.calls(), 0, "the copy is there");
        server.becomes(behaviour);
        let begin = Instant::now();
        first.ask(Method::POST, "/", &[]).await;
        assert!(begin.elapsed() <= at_most, "{behaviour:?}");
        // Back, but the removal has not been repeated yet: this process does not use the copy.
        server.becomes(Behaviour::Answers);
        let calls = first.calls();
        first.get("/", &[]).await;
        assert_eq!(first.calls(), calls + 1, "{behaviour:?}");
        sleep(5 * SECOND).await;
        // Repeated: no process gets it.
        assert_eq!(after.get("/", &[]).await.header("cache-status"), "ziggurat; fwd=uri-miss; stored", "{behaviour:?}");
    }
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn an_invalidation_by_hand_reaches_the_store_even_without_a_runtime() {
    let server = Server::new(Behaviour::Answers);
    let [first, second] = processes(&server, &["cache-control: max-age=60"]);
    first.get("/", &[]).await;
    let handle = first.handle.clone();
    std::thread::spawn(move || handle.invalidate(&"https://shop.test/".parse().unwrap())).join().unwrap();
    first.get("/", &[]).await;
    assert_eq!(first.calls(), 2, "this process");
    first.handle.invalidate(&"https://shop.test/".parse().unwrap());
    assert_eq!((second.get("/", &[]).await.body, second.calls()), ("1".into(), 1), "its own");

    // A removal that was never sent is made after a while.
    let [third] = processes(&server, &["cache-control: max-age=60"]);
    let handle = second.handle.clone();
    std::thread::spawn(move || handle.invalidate(&"https://shop.test/".parse().unwrap())).join().unwrap();
    second.get("/other", &[]).await;
    settle().await;
    assert_eq!((third.get("/", &[]).await.body, third.calls()), ("1".into(), 1));
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn a_response_from_before_an_invalidation_is_not_stored() {
    let server = Server::new(Behaviour::Answers);
    for known in [false, true] {
        let [first, cold] = processes(&server, &["cache-control: max-age=60"]);
        let path = format!("/{known}");
        if known {
            first.get(&path, &[]).await;
        }
        let slow = slow_process(&server);
        // Its own request: the response that is stored does not do.
        let call = sent(&slow, &path, &["cache-control: no-cache"]).await;
        first.ask(Method::POST, &path, &[]).await;
        assert_eq!(call.await.unwrap().body, "old");
        settle().await;
        assert_eq!((cold.get(&path, &[]).await.body, cold.calls()), ("1".into(), 1), "{known}");
    }
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn whatever_the_store_does_no_response_outlives_an_invalidation() {
    for seed in 0..SEEDS {
        fastrand::seed(seed);
        let server = Server::new(Behaviour::Delays(20 * MILLI));
        let (version, removed) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let process = {
            let (server, version) = (server.clone(), Arc::clone(&version));
            move || {
                let version = Arc::clone(&version);
                Site::new(layer(&server), move |_, asked| {
                    let version = Arc::clone(&version);
                    async move {
                        sleep(MILLI * fastrand::u32(0..50)).await;
                        let change = u32::from(asked.method == Method::POST);
                        let read = version.fetch_add(change, SeqCst) + change;
                        sleep(MILLI * fastrand::u32(0..50)).await;
                        let headers: &[_] = if fastrand::bool() {
                            &["cache-control: max-age=60"]
                        } else {
                            &["cache-control: max-age=60", "vary: x-a"]
                        };
                        response(200, headers, read.to_string())
                    }
                })
            }
        };
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let (process, removed) = (process.clone(), Arc::clone(&removed));
            tasks.spawn(async move {
                for _ in 0..10 {
                    sleep(MILLI * fastrand::u32(0..200)).await;
                    // A new process has nothing in memory.
                    let (site, at_least) = (process(), removed.load(SeqCst));
                    let read: u32 =
                        site.get("/", &[["x-a: 1", "x-a: 2"][fastrand::usize(0..2)]]).await.body.parse().unwrap();
                    assert!(read >= at_least, "{read} after {at_least}");
                }
            });
        }
        let (process, removed) = (process.clone(), Arc::clone(&removed));
        tasks.spawn(async move {
            for _ in 0..5 {
                sleep(MILLI * fastrand::u32(0..300)).await;
                let written = process().ask(Method::POST, "/", &[]).await.body.parse().unwrap();
                removed.store(written, SeqCst);
            }
        });
        while let Some(task) = tasks.join_next().await {
            task.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
    }
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn a_process_serves_nothing_from_before_its_invalidation_while_the_store_comes_and_goes() {
    const PHASES: [Behaviour; 7] = [
        Behaviour::Answers,
        Behaviour::Delays(Duration::from_millis(20)),
        Behaviour::Delays(Duration::from_millis(200)),
        Behaviour::PutsHang,
        Behaviour::Fails,
        Behaviour::Hangs,
        Behaviour::Panics,
    ];
    const PATHS: [&str; 4] = ["/0", "/1", "/2", "/3"];
    let pause = |most: u32| sleep(MILLI * fastrand::u32(0..most));
    for seed in 0..SEEDS {
        fastrand::seed(seed);
        let server = Server::new(Behaviour::Answers);
        let versions: Arc<[AtomicU32; 4]> = Arc::default();
        let process = || {
            let versions = Arc::clone(&versions);
            // In memory is a place for one or two, so that others are looked up.
            Site::new(layer(&server).capacity(2000), move |_, asked| {
                let versions = Arc::clone(&versions);
                async move {
                    sleep(MILLI * fastrand::u32(0..50)).await;
                    let change = u32::from(asked.method == Method::POST);
                    let path = PATHS.iter().position(|path| *path == asked.uri.path()).unwrap();
                    let read = versions[path].fetch_add(change, SeqCst) + change;
                    sleep(MILLI * fastrand::u32(0..50)).await;
                    let vary = ["x-b: c", "vary: x-a"][fastrand::usize(0..2)];
                    response(200, &["cache-control: max-age=60", vary], read.to_string())
                }
            })
        };
        let read = async |site: &Site, path: usize, at_least: u32| {
            let header = ["x-a: 1", "x-a: 2"][fastrand::usize(0..2)];
            let read: u32 = site.get(PATHS[path], &[header]).await.body.parse().unwrap();
            assert!(read >= at_least, "seed {seed}: {read} after {at_least}");
        };
        let phases = async {
            for _ in 0..20 {
                server.becomes(PHASES[fastrand::usize(0..PHASES.len())]);
                pause(300).await;
                if fastrand::bool() {
                    let evicted = format!("//shop.test{}", PATHS[fastrand::usize(0..4)]);
                    server.memory.remove(&evicted).await.unwrap();
                }
            }
            server.becomes(Behaviour::Answers);
        };
        let processes = join_all((0..3).map(async |_| {
            let (site, at_least) = (process(), <[AtomicU32; 4]>::default());
            let reads = join_all((0..3).map(async |_| {
                for _ in 0..30 {
                    pause(200).await;
                    let path = fastrand::usize(0..4);
                    read(&site, path, at_least[path].load(SeqCst)).await;
                }
            }));
            let removals = async {
                for _ in 0..20 {
                    pause(300).await;
                    let path = fastrand::usize(0..4);
                    let changed = match fastrand::u32(0..5) {
                        0 => {
                            site.handle.clear();
                            continue;
                        }
                        1 => {
                            let known = versions[path].load(SeqCst);
                            site.handle.invalidate(&format!("https://shop.test{}", PATHS[path]).parse().unwrap());
                            known
                        }
                        _ => site.ask(Method::POST, PATHS[path], &[]).await.body.parse().unwrap(),
                    };
                    at_least[path].fetch_max(changed, SeqCst);
                }
            };
            join(reads, removals).await;
            (site, at_least)
        }));
        let (_, processes) = join(phases, processes).await;
        sleep(5 * SECOND).await;
        for (site, at_least) in &processes {
            for path in 0..4 {
                // A removal that has failed is repeated, for all processes.
                let at_least = at_least[path].load(SeqCst);
                read(site, path, at_least).await;
                read(&process(), path, at_least).await;
            }
        }
    }
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn what_was_cleared_does_not_come_back_from_the_store() {
    let server = Server::new(Behaviour::Answers);
    let [site] = processes(&server, &["cache-control: max-age=60"]);
    for (n, clear) in [(|handle| HttpCacheHandle::clear(handle)) as fn(&HttpCacheHandle), |handle| {
        handle.invalidate_if(|_| true);
    }]
    .into_iter()
    .enumerate()
    {
        site.get("/", &[]).await;
        clear(&site.handle);
        site.get("/", &[]).await;
        assert_eq!(site.calls(), n + 2);
    }
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn a_request_that_is_under_way_brings_nothing_back_after_a_clear() {
    let server = Server::new(Behaviour::Answers);
    let slow = slow_process(&server);
    let call = sent(&slow, "/", &[]).await;
    // The predicate sees no flight, so the request goes on, and its response is in memory when it ends.
    slow.handle.invalidate_if(|_| false);
    assert_eq!(call.await.unwrap().body, "old");
    let [other] = processes(&server, &["cache-control: max-age=60"]);
    assert_eq!((other.get("/", &[]).await.body, other.calls()), ("1".into(), 1), "no copy was written");
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn a_head_that_shows_another_version_removes_the_copy() {
    let server = Server::new(Behaviour::Answers);
    let origin = |_, asked: request::Parts| async move {
        match asked.method {
            Method::HEAD => response(200, &["cache-control: max-age=60", "etag: \"new\""], ""),
            _ => response(200, &["cache-control: max-age=60", "etag: \"old\""], "old"),
        }
    };
    let [first, second] = std::array::from_fn(|_| Site::new(layer(&server), origin));
    first.get("/", &[]).await;
    first.ask(Method::HEAD, "/", &["cache-control: no-cache"]).await;
    settle().await;
    second.get("/", &[]).await;
    assert_eq!(second.calls(), 1);
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn a_response_that_is_not_written_removes_its_older_copy() {
    let server = Server::new(Behaviour::Answers);
    for (path, headers, size) in [
        ("/large", &["cache-control: max-age=60"][..], (1 << 20) + 1),
        ("/cookie", &["cache-control: max-age=60", "vary: cookie"], 1),
    ] {
        let site = Site::new(layer(&server), move |n, _| async move {
            match n {
                1 => response(200, &["cache-control: max-age=60"], "small"),
                _ => response(200, headers, "a".repeat(size)),
            }
        });
        site.get(path, &[]).await;
        site.get(path, &["cache-control: no-cache"]).await;
        settle().await;
        let [cold] = processes(&server, &["cache-control: max-age=60"]);
        assert_eq!((cold.get(path, &[]).await.body, cold.calls()), ("1".into(), 1), "{path}");
    }
}

/// Runs this on a runtime of its own.
fn run(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        work.await;
        settle().await;
    });
}

/// Shows: C8
#[test]
fn a_removal_that_ends_with_its_runtime_is_made_on_the_next_one() {
    let server = Server::new(Behaviour::Answers);
    let [site, cold] = processes(&server, &["cache-control: max-age=60"]);
    run(async { drop(site.get("/", &[]).await) });
    server.becomes(Behaviour::Hangs);
    run(async { site.handle.invalidate(&"https://shop.test/".parse().unwrap()) });
    server.becomes(Behaviour::Answers);
    run(async { drop(site.get("/other", &[]).await) });
    run(async { drop(cold.get("/", &[]).await) });
    assert_eq!(cold.calls(), 1);
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn a_lookup_that_runs_out_of_time_ends_no_wait_for_a_removal() {
    let server = Server::new(Behaviour::Answers);
    let headers = &["cache-control: max-age=60"];
    let [first, cold] = processes(&server, headers);
    first.get("/", &[]).await;
    server.becomes(Behaviour::Takes(60 * MILLI));
    // The record of a new resource takes the rest of the time, and more.
    first.get("/new", &[]).await;
    first.ask(Method::POST, "/", &[]).await;
    server.becomes(Behaviour::Answers);
    cold.get("/", &[]).await;
    assert_eq!(cold.calls(), 1);
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn a_response_to_a_request_from_before_a_clear_is_not_used() {
    let server = Server::new(Behaviour::Answers);
    let [site] = processes(&server, &["cache-control: max-age=60"]);
    let slow = slow_process(&server);
    let call = sent(&slow, "/", &[]).await;
    site.handle.clear();
    call.await.unwrap();
    settle().await;
    assert_eq!((site.get("/", &[]).await.body, site.calls()), ("1".into(), 1));
}
