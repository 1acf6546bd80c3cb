//! Stores, and the layers over them, with a real server: Redis or Valkey.
//!
//! Each test starts a server of its own on a free port of the loopback interface. Without a server on this machine, the
//! tests say so, and pass.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails should say where")]

use std::{
    env,
    io::Write,
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use redis::{
    AsyncTypedCommands, Client, Cmd, Pipeline, RedisFuture, Value,
    aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig},
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tower::{Layer, ServiceExt, service_fn};
use ziggurat::{
    Error, LayerEvent, LayerInfo, Reason, Scope,
    cache::{CacheLayer, HttpCache},
    events::Subscription,
    relay::{RedisRelay, RelayHandle},
    shared_cache::SharedCacheLayer,
    shared_rate_limit::{SharedRateLimitLayer, WhenAway},
    store::{Codec, Quota, RedisStore, Taken, TokenStore, ValueStore},
};

#[path = "suite/store/laws.rs"]
mod laws;

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// More than a busy machine needs for anything.
const LONG: Duration = Duration::from_secs(30);

// === The server ===

struct Server {
    program: &'static str,
    port: u16,
    process: Child,
}

impl Server {
    /// Starts a server, or says how to get one.
    fn start() -> Option<Self> {
        let is_there = |program: &&&str| Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok();
        let Some(program) = ["redis-server", "valkey-server"].iter().find(is_there) else {
            tell(
                "SKIPPED: this test needs `redis-server` or `valkey-server` in the PATH; on Debian: apt-get install redis-server",
            );
            return None;
        };
        // Another program may take the port in between.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut process = Self::spawn(program, port);
            if Self::is_up(&mut process, port) {
                return Some(Self { program, port, process });
            }
        }
        panic!("{program} does not start");
    }

    fn spawn(program: &str, port: u16) -> Child {
        let mut command = Command::new(program);
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"]).arg(port.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
    }

    fn is_up(process: &mut Child, port: u16) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < LONG && process.try_wait().unwrap().is_none() {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return true;
            }
            thread::sleep(5 * MILLI);
        }
        false
    }

    /// Ends the server without a warning. It loses its data.
    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn restart(&mut self) {
        self.process = Self::spawn(self.program, self.port);
        assert!(Self::is_up(&mut self.process, self.port));
    }

    fn signal(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.process.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    async fn connect(&self) -> ConnectionManager {
        connect(self.port).await
    }
}

/// Tells the user, even if the output of tests that pass is captured.
fn tell(message: &str) {
    let _ = writeln!(std::io::stderr(), "\n!! tests/redis.rs: {message}\n");
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn connect(port: u16) -> ConnectionManager {
    let config = ConnectionManagerConfig::new().set_min_delay(MILLI).set_max_delay(50 * MILLI);
    let client = Client::open(format!("redis://127.0.0.1:{port}/")).unwrap();
    ConnectionManager::new_with_config(client, config).await.unwrap()
}

// === The load ===

type Limit = SharedRateLimitLayer<RedisStore<ConnectionManager>, &'static str>;

fn limit(connection: ConnectionManager, quota: Quota, when_away: WhenAway) -> Limit {
    SharedRateLimitLayer::new(RedisStore::new(connection), "api", quota, when_away)
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Admitted,
    Limited,
    Unavailable,
}

async fn call(limit: &Limit) -> Outcome {
    let service = limit.layer(service_fn(|()| async { Ok::<_, Error<String>>(()) }));
    let begin = Instant::now();
    let outcome = service.oneshot(()).await;
    // Its timeout is 100 ms.
    assert!(begin.elapsed() < 5 * SECOND, "a call took {:?}", begin.elapsed());
    match ziggurat::rejection(&outcome).map(ziggurat::Rejection::reason) {
        None => Outcome::Admitted,
        Some(Reason::RateLimited) => Outcome::Limited,
        Some(Reason::StoreUnavailable { .. }) => Outcome::Unavailable,
        Some(reason) => panic!("{reason:?}"),
    }
}

/// Callers that call until the end of the load.
struct Load {
    ends: Arc<AtomicBool>,
    counts: Arc<[AtomicU64; 3]>,
    callers: JoinSet<()>,
}

impl Load {
    fn of(limits: &[&Limit]) -> Self {
        let (ends, counts) = (Arc::new(AtomicBool::new(false)), Arc::new([const { AtomicU64::new(0) }; 3]));
        let mut callers = JoinSet::new();
        for limit in limits.iter().flat_map(|limit| [*limit; 8]) {
            let (ends, counts, limit) = (Arc::clone(&ends), Arc::clone(&counts), limit.clone());
            callers.spawn(async move {
                while !ends.load(Ordering::Relaxed) {
                    let outcome = call(&limit).await;
                    counts[outcome as usize].fetch_add(1, Ordering::Relaxed);
                    sleep(MILLI / 2).await;
                }
            });
        }
        Self { ends, counts, callers }
    }

    fn count(&self, outcome: Outcome) -> u64 {
        self.counts[outcome as usize].load(Ordering::Relaxed)
    }

    /// Ends the load, and returns the number of calls that were admitted.
    async fn end(self) -> u64 {
        self.ends.store(true, Ordering::Relaxed);
        self.callers.join_all().await;
        self.counts[Outcome::Admitted as usize].load(Ordering::Relaxed)
    }
}

/// Waits until this is so.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waits = async {
        while !is_so() {
            sleep(5 * MILLI).await;
        }
    };
    assert!(timeout(LONG, waits).await.is_ok(), "waited {LONG:?} until {what}");
}

/// Runs a test on two threads, if there is a server.
fn with_server(test: impl AsyncFnOnce(Server)) {
    let Some(server) = Server::start() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test(server));
}

// === The script ===

/// Shows: Q5
#[test]
fn the_script_grants_denies_and_takes_back_as_a_bucket_does() {
    with_server(async |server| {
        let store = RedisStore::new(server.connect().await).prefix("test:");
        let quota = Quota::new(10, DAY).burst(20);
        let granted = |taken: Result<Taken, redis::RedisError>| match taken.unwrap() {
            Taken::Granted { tokens, at } => (tokens, at),
            denied => panic!("{denied:?}"),
        };
        let (tokens, at) = granted(store.take("api", 1..=16, &quota).await);
        assert_eq!(tokens, 16);
        // The largest of 16, 8, 4, 2 and 1 that is there.
        assert_eq!(granted(store.take("api", 1..=16, &quota).await).0, 4);
        let Taken::Denied { wait } = store.take("api", 3..=16, &quota).await.unwrap() else { panic!("granted") };
        assert!(wait <= quota.time(3) && wait > quota.time(3) - LONG, "{wait:?}");
        store.give_back("api", 5, at, &quota).await.unwrap();
        assert_eq!(granted(store.take("api", 4..=4, &quota).await).0, 4);
        // Tokens that it has gained since do not come back.
        let long_ago = at - 2 * DAY.as_micros() as u64;
        store.give_back("api", 16, long_ago, &quota).await.unwrap();
        assert!(matches!(store.take("api", 2..=2, &quota).await.unwrap(), Taken::Denied { .. }));
        // Never more than the bucket holds, also one that is not known.
        store.give_back("api", u32::MAX, at, &quota).await.unwrap();
        store.give_back("other", 20, at, &quota).await.unwrap();
        for key in ["api", "other"] {
            assert_eq!(granted(store.take(key, 1..=20, &quota).await).0, 20);
            assert!(matches!(store.take(key, 1..=1, &quota).await.unwrap(), Taken::Denied { .. }));
        }

        let mut connection = server.connect().await;
        assert_eq!(connection.keys("*").await.unwrap().len(), 2);
        let expiry = connection.pttl("test:tokens:api").await.unwrap();
        let redis::IntegerReplyOrNoOp::IntegerReply(millis) = expiry else { panic!("{expiry:?}") };
        assert!(Duration::from_millis(millis as u64) <= quota.time(20) + MILLI, "{millis}");
    });
}

/// Shows: Q5
#[test]
fn a_key_expires_when_its_bucket_is_full_and_rates_are_exact_to_a_microsecond() {
    with_server(async |server| {
        let store = RedisStore::new(server.connect().await);
        let quota = Quota::new(3, 300 * MILLI);
        assert!(matches!(store.take("api", 3..=3, &quota).await.unwrap(), Taken::Granted { .. }));
        let Taken::Denied { wait } = store.take("api", 3..=3, &quota).await.unwrap() else { panic!("granted") };
        assert!(wait <= 300 * MILLI);
        sleep(wait + MILLI).await;
        assert!(matches!(store.take("api", 3..=3, &quota).await.unwrap(), Taken::Granted { .. }));
        let mut connection = server.connect().await;
        assert!(connection.exists("ziggurat:tokens:api").await.unwrap());
        sleep(302 * MILLI).await;
        assert!(!connection.exists("ziggurat:tokens:api").await.unwrap());

        // Thousands at once, at rates that are no whole numbers of microseconds.
        for quantity in [7, 700_000, u32::MAX] {
            let (key, quota) = (quantity.to_string(), Quota::new(quantity, SECOND));
            let (begin, mut taken) = (Instant::now(), 0);
            for _ in 0..200 {
                if let Taken::Granted { tokens, .. } = store.take(&key, 1..=quantity, &quota).await.unwrap() {
                    taken += u64::from(tokens);
                }
            }
            let elapsed = begin.elapsed().as_micros() as u64 + 1;
            let bound = u64::from(quantity) + u64::from(quantity) * elapsed / 1_000_000 + 1;
            assert!(taken >= u64::from(quantity) && taken <= bound, "{taken} of {quantity} in {elapsed} us");
        }
    });
}

/// Shows: Q5
#[test]
fn a_server_clock_that_was_set_back_empties_a_bucket_and_does_not_lock_it() {
    with_server(async |server| {
        let store = RedisStore::new(server.connect().await);
        let quota = Quota::new(10, SECOND);
        let mut connection = server.connect().await;
        // In the year 2100: a clock of that year has been here.
        connection.set("ziggurat:tokens:api", "4102444800000000").await.unwrap();
        let Taken::Denied { wait } = store.take("api", 1..=1, &quota).await.unwrap() else { panic!("granted") };
        assert_eq!(wait, 100 * MILLI);
        sleep(wait).await;
        assert!(matches!(store.take("api", 1..=1, &quota).await.unwrap(), Taken::Granted { .. }));
        // A value that is no bucket counts as a full one, and another type of value is an error.
        connection.set("ziggurat:tokens:text", "hello").await.unwrap();
        assert!(matches!(store.take("text", 10..=10, &quota).await.unwrap(), Taken::Granted { .. }));
        connection.lpush("ziggurat:tokens:list", "hello").await.unwrap();
        assert!(store.take("list", 1..=1, &quota).await.is_err());
    });
}

// === Values ===

mod the_server_keeps_the_laws {
    use super::*;

    fn with_store(law: impl AsyncFnOnce(RedisStore<ConnectionManager>)) {
        with_server(async |server| law(RedisStore::new(server.connect().await)).await);
    }

    laws::value_store_laws!(with_store);
}

/// Shows: M1
#[test]
fn values_and_buckets_of_equal_names_are_apart_and_stores_with_other_prefixes_too() {
    with_server(async |server| {
        let store = RedisStore::new(server.connect().await);
        let (quota, other) = (Quota::new(1, DAY), store.clone().prefix("other:"));
        for (store, value) in [(&store, "1"), (&other, "2")] {
            assert_eq!(store.put_new("key", value.into(), DAY).await.unwrap(), None);
            assert!(matches!(store.take("key", 1..=1, &quota).await.unwrap(), Taken::Granted { .. }));
        }
        assert_eq!(store.get("key").await.unwrap(), Some("1".into()));
        assert_eq!(other.get("key").await.unwrap(), Some("2".into()));
        let mut connection = server.connect().await;
        let mut keys = connection.keys("*").await.unwrap();
        keys.sort();
        assert_eq!(keys, ["other:tokens:key", "other:value:key", "ziggurat:tokens:key", "ziggurat:value:key"]);
    });
}

/// A connection that loses the answers to requests after they were executed.
#[derive(Clone)]
struct Lossy {
    connection: ConnectionManager,
    loses: Arc<AtomicBool>,
    /// Whether the server then forgets its scripts, as a replica that takes over does.
    forgets: bool,
}

impl Lossy {
    async fn new(server: &Server, forgets: bool) -> (Self, Arc<AtomicBool>) {
        let loses = Arc::new(AtomicBool::new(false));
        (Self { connection: server.connect().await, loses: Arc::clone(&loses), forgets }, loses)
    }
}

impl ConnectionLike for Lossy {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async {
            let answer = self.connection.req_packed_command(cmd).await;
            if !self.loses.swap(false, Ordering::Relaxed) {
                return answer;
            }
            if self.forgets {
                redis::cmd("SCRIPT").arg("FLUSH").query_async::<()>(&mut self.connection).await?;
            }
            Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe).into())
        })
    }

    fn req_packed_commands<'a>(&'a mut self, _: &'a Pipeline, _: usize, _: usize) -> RedisFuture<'a, Vec<Value>> {
        unreachable!("a request is one command")
    }

    fn get_db(&self) -> i64 {
        0
    }
}

/// Shows: M1
#[test]
fn a_request_whose_answer_was_lost_is_repeated_and_recognizes_its_own_value() {
    with_server(async |server| {
        let (connection, loses) = Lossy::new(&server, false).await;
        let store = RedisStore::new(connection);
        // The server learns the scripts.
        assert_eq!(store.put_new("known", "1".into(), DAY).await.unwrap(), None);
        assert!(store.replace("known", b"1", None, DAY).await.unwrap());

        let lost = || loses.store(true, Ordering::Relaxed);
        lost();
        assert_eq!(store.put_new("key", "1".into(), DAY).await.unwrap(), None);
        lost();
        assert_eq!(store.put_new("key", "2".into(), DAY).await.unwrap(), Some("1".into()));
        lost();
        assert!(store.replace("key", b"1", Some("2".into()), DAY).await.unwrap());
        lost();
        assert!(!store.replace("key", b"1", Some("3".into()), DAY).await.unwrap());
        // Without a loss, the value of another caller is no success, even if it is equal.
        assert!(!store.replace("key", b"1", Some("2".into()), DAY).await.unwrap());
        assert_eq!(store.put_new("key", "2".into(), DAY).await.unwrap(), Some("2".into()));
        lost();
        assert_eq!(store.get("key").await.unwrap(), Some("2".into()));
        lost();
        assert!(store.replace("key", b"2", None, DAY).await.unwrap());
        assert!(!store.replace("key", b"2", None, DAY).await.unwrap());
        lost();
        store.put("key", "4".into(), DAY).await.unwrap();
        lost();
        store.remove("key").await.unwrap();
        assert_eq!(store.get("key").await.unwrap(), None);
        assert!(!loses.load(Ordering::Relaxed));
    });
}

/// Shows: M1
#[test]
fn a_repeated_request_recognizes_its_own_value_also_if_the_server_has_forgotten_the_script() {
    with_server(async |server| {
        let (connection, loses) = Lossy::new(&server, true).await;
        let store = RedisStore::new(connection);
        // The server learns the scripts.
        assert_eq!(store.put_new("known", "1".into(), DAY).await.unwrap(), None);
        assert!(store.replace("known", b"1", None, DAY).await.unwrap());

        loses.store(true, Ordering::Relaxed);
        assert_eq!(store.put_new("key", "1".into(), DAY).await.unwrap(), None);
        assert!(!store.replace("known", b"1", None, DAY).await.unwrap(), "the server learns it again");
        loses.store(true, Ordering::Relaxed);
        assert!(store.replace("key", b"1", Some("2".into()), DAY).await.unwrap());
        assert!(!loses.load(Ordering::Relaxed));
    });
}

// === Processes ===

const BURST: u64 = 100;
const PER_SECOND: u64 = 200;
const LEASE: u64 = 10;

fn shared_quota() -> Quota {
    Quota::new(PER_SECOND as u32, SECOND).burst(BURST as u32)
}

/// The most calls that `processes` make in this time, if the server has lost its data `losses` times.
fn bound(elapsed: Duration, processes: u64, losses: u64) -> u64 {
    let gained = PER_SECOND * (elapsed.as_millis() as u64 + 1) / 1_000 + 1;
    BURST * (1 + losses) + gained + processes * LEASE
}

const CHILD: &str = "ZIGGURAT_TEST_CHILD";

/// Not a test: it does nothing unless [`two_processes_share_one_limit`] runs it, as a process.
#[test]
fn child() {
    let Ok(port) = env::var(CHILD) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let limit = limit(connect(port.parse().unwrap()).await, shared_quota(), WhenAway::Reject)
            .lease(LEASE as u32, 100 * MILLI);
        let load = Load::of(&[&limit]);
        sleep(2 * SECOND).await;
        println!("admitted {} at {}", load.end().await, clock());
    });
}

/// The time of the wall clock, in seconds.
fn clock() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// Shows: Q5
#[test]
fn two_processes_share_one_limit() {
    let Some(server) = Server::start() else { return };
    let begin = Instant::now();
    // One of them has a clock that is three hours fast, if there is a program that does that.
    let skew = Command::new("faketime").args(["-f", "+3h", "true"]).status().is_ok_and(|status| status.success());
    if !skew {
        tell("this test has all processes on one clock, unless `faketime` is in the PATH");
    }
    let run = |skew: bool| {
        let mut command = Command::new(if skew { "faketime".into() } else { env::current_exe().unwrap() });
        if skew {
            command.args(["-f", "+3h"]).arg(env::current_exe().unwrap());
        }
        command.args(["child", "--exact", "--nocapture"]).env(CHILD, server.port.to_string());
        command.stdout(Stdio::piped()).spawn().unwrap()
    };
    let (mut total, mut is_fast) = (0, false);
    for child in [run(false), run(skew)] {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find_map(|line| line.split_once("admitted ")).unwrap_or_else(|| panic!("{text}")).1;
        let (admitted, at) = line.split_once(" at ").unwrap();
        let (admitted, at): (u64, u64) = (admitted.parse().unwrap(), at.trim().parse().unwrap());
        assert!(admitted > 0, "{text}");
        is_fast |= at > clock() + 3600;
        total += admitted;
    }
    assert_eq!(is_fast, skew);
    let bound = bound(begin.elapsed(), 2, 0);
    assert!(total >= BURST && total <= bound, "{total} of {bound}");
}

// === A shared cache ===

/// Shows: M2
#[test]
fn a_shared_cache_survives_a_server_that_is_paused_killed_and_restarted() {
    with_server(async |mut server| {
        let codec = (
            |number: &u64| Some(Bytes::from(number.to_string())),
            |bytes: Bytes| {
                std::str::from_utf8(&bytes)
                    .map_err(|error| error.to_string())?
                    .parse()
                    .map_err(|_| "no number".to_owned())
            },
        );
        let calls = Arc::new(AtomicU64::new(0));
        let service = {
            let calls = Arc::clone(&calls);
            service_fn(move |()| {
                let call = calls.fetch_add(1, Ordering::Relaxed) + 1;
                async move { Ok::<_, Error<String>>(call) }
            })
        };
        let mut layers = Vec::new();
        for _ in 0..2 {
            layers.push(SharedCacheLayer::new(
                RedisStore::new(server.connect().await),
                DAY,
                |(): &()| "key".to_owned(),
                codec,
            ));
        }
        let call = async |process: usize| {
            let begin = Instant::now();
            let response = layers[process].layer(service.clone()).oneshot(()).await.unwrap();
            assert!(begin.elapsed() < 5 * SECOND, "a call took {:?}", begin.elapsed());
            response
        };
        let shared = async || {
            let begin = Instant::now();
            // A task stores it.
            while call(0).await != call(1).await {
                assert!(begin.elapsed() < LONG);
                sleep(5 * MILLI).await;
            }
            call(0).await
        };
        let is_away = async |process: usize, is_away: bool| {
            let begin = Instant::now();
            while layers[process].handle().is_away() != is_away {
                assert!(begin.elapsed() < LONG);
                call(process).await;
                sleep(5 * MILLI).await;
            }
        };
        let first = shared().await;
        server.signal("STOP");
        for process in 0..2 {
            is_away(process, true).await;
            assert_ne!(call(process).await, first);
        }
        server.signal("CONT");
        for process in 0..2 {
            is_away(process, false).await;
        }
        assert_eq!(shared().await, first);

        layers[0].handle().remove("key").await.unwrap();
        assert!(shared().await > first);

        server.kill();
        for process in 0..2 {
            is_away(process, true).await;
        }
        assert!(layers[0].handle().remove("key").await.is_err());
        let before = calls.load(Ordering::Relaxed);
        server.restart();
        for process in 0..2 {
            is_away(process, false).await;
        }
        assert!(shared().await > before, "the server has lost its data");
    });
}

// === The second level of an HTTP cache ===

/// Shows: C8
#[test]
fn http_caches_share_their_responses_through_a_server() {
    with_server(async |server| {
        let calls = Arc::new(AtomicU64::new(0));
        let origin = {
            let calls = Arc::clone(&calls);
            service_fn(move |_: Request<Full<Bytes>>| {
                let call = calls.fetch_add(1, Ordering::Relaxed) + 1;
                let response = Response::builder().header("cache-control", "max-age=3600").header("vary", "x-a");
                let response = response.body(Full::new(Bytes::from(call.to_string()))).unwrap();
                async move { Ok::<_, Error<String>>(response) }
            })
        };
        let store = RedisStore::new(server.connect().await).prefix("pages:");
        // A process that has just started.
        let process = || CacheLayer::http().second_level(store.clone()).layer(origin.clone());
        let call = async |service: HttpCache<_>, method: &str| {
            let begin = Instant::now();
            let request = Request::builder().method(method).uri("http://shop.test/a?b").header("x-a", "1");
            let response = service.oneshot(request.body(Full::default()).unwrap()).await.unwrap();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert!(begin.elapsed() < 5 * SECOND, "a call took {:?}", begin.elapsed());
            body
        };
        // A task stores it.
        let shared = async || {
            let begin = Instant::now();
            loop {
                let (first, second) = (call(process(), "GET").await, call(process(), "GET").await);
                if first == second {
                    return first;
                }
                assert!(begin.elapsed() < LONG);
                sleep(5 * MILLI).await;
            }
        };
        let first = shared().await;
        call(process(), "POST").await;
        let second = shared().await;
        assert_ne!(second, first);

        // An invalidation while the server is away is made up for.
        let changing = process();
        server.signal("STOP");
        call(changing.clone(), "POST").await;
        assert_ne!(call(changing.clone(), "GET").await, second);
        server.signal("CONT");
        let begin = Instant::now();
        while shared().await == second {
            assert!(begin.elapsed() < LONG);
            sleep(5 * MILLI).await;
        }
    });
}

// === Events ===

#[derive(Debug, Clone, PartialEq)]
struct Event(u64);

/// Zero stays in its process, and the word `bad` is no number.
fn relay(server: &Server) -> RedisRelay<impl Codec<Event> + Send + Sync + 'static> {
    let codec = (
        |Event(number): &Event| (*number > 0).then(|| Bytes::from(number.to_string())),
        |bytes: Bytes| match std::str::from_utf8(&bytes).map(str::parse) {
            Ok(Ok(number)) => Ok(Event(number)),
            _ => Err(format!("no number: {bytes:?}")),
        },
    );
    let client = Client::open(format!("redis://127.0.0.1:{}/", server.port)).unwrap();
    RedisRelay::new(client, "events", codec)
}

/// A process: its scope, its relay and a subscriber.
async fn process(server: &Server) -> (Scope, RelayHandle, Subscription<Event>) {
    let scope = Scope::root("process");
    let (events, relay) = (scope.events().subscribe(), relay(server).start(&scope));
    until("it is connected", || relay.is_connected()).await;
    (scope, relay, events)
}

async fn next(events: &mut Subscription<Event>) -> u64 {
    let Event(number) = timeout(LONG, events.next()).await.expect("no event").unwrap().unwrap();
    number
}

/// Shows: M3
#[test]
fn an_event_reaches_each_process_once_and_never_comes_back() {
    with_server(async |server| {
        let mut processes = Vec::new();
        for _ in 0..3 {
            processes.push(process(&server).await);
        }
        // A second relay of each process, which must not send the events that the first has received.
        let client = Client::open(format!("redis://127.0.0.1:{}/", server.port)).unwrap();
        let codec = (|_: &Event| Some(Bytes::new()), |_: Bytes| Err::<Event, _>("not for events of this process"));
        let mut others = Vec::new();
        for (scope, _, _) in &processes {
            let other = RedisRelay::new(client.clone(), "other", codec).start(scope);
            until("it is connected", || other.is_connected()).await;
            others.push(other);
        }
        for round in 0..50 {
            for (number, (scope, _, _)) in processes.iter().enumerate() {
                scope.events().publish(Event(1 + round * 3 + number as u64));
            }
        }
        for (own, (_, _, events)) in processes.iter_mut().enumerate() {
            let mut all = Vec::new();
            while all.len() < 150 {
                all.push(next(events).await);
            }
            // The events of each process are in order.
            for other in 0..3 {
                let its = Vec::from_iter(all.iter().copied().filter(|number| (number - 1) % 3 == other));
                assert_eq!(its, Vec::from_iter((0..50).map(|round| 1 + round * 3 + other)), "{own}");
            }
        }
        // No event came twice, and those that are not encoded stay.
        processes[0].0.events().publish(Event(0));
        assert_eq!(next(&mut processes[0].2).await, 0);
        processes[0].0.events().publish(Event(1000));
        for (_, _, events) in &mut processes {
            assert_eq!(next(events).await, 1000);
        }
        for (scope, _, _) in &processes {
            assert!(timeout(LONG, scope.close()).await.unwrap().is_ok());
        }
        let counts = processes.iter().map(|(_, relay, _)| (relay.sent(), relay.received(), relay.lost()));
        assert_eq!(Vec::from_iter(counts), [(51, 100, 0), (50, 101, 0), (50, 101, 0)]);
        assert_eq!(Vec::from_iter(others.iter().map(RelayHandle::sent)), [52, 50, 50]);
    });
}

/// Shows: M3
#[test]
fn a_message_that_cannot_be_decoded_is_reported_and_skipped() {
    with_server(async |server| {
        let heard = Arc::new(std::sync::Mutex::new(Vec::new()));
        let observer = {
            let heard = Arc::clone(&heard);
            move |_: &LayerInfo, event: &LayerEvent<'_>| {
                if let LayerEvent::NotDecoded { error } = event {
                    heard.lock().unwrap().push((*error).to_owned());
                }
            }
        };
        let scope = Scope::root("process");
        let mut events = scope.events().subscribe();
        let relay = relay(&server).observer(observer).start(&scope);
        until("it is connected", || relay.is_connected()).await;
        let mut connection = server.connect().await;
        for message in ["short", "of another relaybad", "of another relay7"] {
            connection.publish("events", message).await.unwrap();
        }
        assert_eq!(next(&mut events).await, 7);
        assert_eq!(*heard.lock().unwrap(), ["this is not a message of a relay", "no number: b\"bad\""]);
        assert_eq!(relay.received(), 1);
    });
}

/// Shows: M3
#[test]
fn relays_survive_a_server_that_is_killed_and_restarted_and_end_with_their_scope() {
    with_server(async |mut server| {
        let (first, sends, _) = process(&server).await;
        let (second, receives, mut events) = process(&server).await;
        first.events().publish(Event(1));
        assert_eq!(next(&mut events).await, 1);
        server.kill();
        until("it is away", || !receives.is_connected()).await;
        // Publishing does not wait, and each event is lost or sent.
        for number in 2..100 {
            first.events().publish(Event(number));
        }
        until("all are lost", || sends.lost() == 98).await;
        assert!(sends.is_away());
        server.restart();
        until("both are connected", || sends.is_connected() && receives.is_connected()).await;
        let begin = Instant::now();
        let mut number = 100;
        while receives.received() == 1 {
            assert!(begin.elapsed() < LONG);
            first.events().publish(Event(number));
            number += 1;
            sleep(5 * MILLI).await;
        }
        assert!(next(&mut events).await >= 100);

        // A server that hangs does not hold up the end of a scope for long.
        server.signal("STOP");
        first.events().publish(Event(1000));
        for scope in [&first, &second] {
            assert!(timeout(LONG, scope.close()).await.unwrap().is_ok());
        }
        assert!(!sends.is_connected() && !receives.is_connected());
    });
}

/// Shows: M3
#[test]
fn a_relay_with_a_long_timeout_waits_for_a_server_that_pauses() {
    with_server(async |server| {
        let scope = Scope::root("process");
        let relay = relay(&server).timeout(Duration::MAX).start(&scope);
        scope.events().publish(Event(1));
        until("it has a connection", || relay.sent() == 1).await;
        server.signal("STOP");
        scope.events().publish(Event(2));
        // Longer than the client waits by default.
        sleep(700 * MILLI).await;
        server.signal("CONT");
        until("it has its answer", || relay.sent() + relay.lost() == 2).await;
        assert_eq!(relay.lost(), 0);
    });
}

/// Shows: M3
#[test]
fn events_that_wait_when_a_scope_closes_are_sent() {
    with_server(async |server| {
        let (first, _, _) = process(&server).await;
        let (_second, _, mut events) = process(&server).await;
        for number in 1..=100 {
            first.events().publish(Event(number));
        }
        first.close().await.unwrap();
        for number in 1..=100 {
            assert_eq!(next(&mut events).await, number);
        }
    });
}

// === Failures under load ===

/// Shows: Q5
#[test]
fn a_server_that_is_killed_and_restarted_costs_one_burst() {
    with_server(async |mut server| {
        let begin = Instant::now();
        let mut limits = Vec::new();
        for _ in 0..2 {
            let limit = limit(server.connect().await, shared_quota(), WhenAway::Reject);
            limits.push(limit.lease(LEASE as u32, 100 * MILLI));
        }
        let handles = Vec::from_iter(limits.iter().map(Limit::handle));
        let load = Load::of(&Vec::from_iter(&limits));
        until("the bucket is empty", || load.count(Outcome::Limited) > 0).await;
        for _ in 0..2 {
            server.kill();
            until("both know", || handles.iter().all(|handle| handle.is_away())).await;
            let unavailable = load.count(Outcome::Unavailable);
            until("calls are rejected", || load.count(Outcome::Unavailable) > unavailable + 100).await;
            server.restart();
            until("both know", || handles.iter().all(|handle| !handle.is_away())).await;
            let admitted = load.count(Outcome::Admitted);
            until("calls are admitted", || load.count(Outcome::Admitted) > admitted).await;
        }
        let admitted = load.end().await;
        let bound = bound(begin.elapsed(), 2, 2);
        assert!(admitted >= 3 && admitted <= bound, "{admitted} of {bound}");
    });
}

/// Shows: Q5
#[test]
fn a_server_that_is_paused_holds_up_no_call_and_keeps_its_counters() {
    with_server(async |server| {
        let begin = Instant::now();
        let quota = shared_quota();
        let reject = limit(server.connect().await, quota, WhenAway::Reject).lease(LEASE as u32, 100 * MILLI);
        // A key of its own, so that it has tokens when it asks.
        let admit = SharedRateLimitLayer::new(RedisStore::new(server.connect().await), "other", quota, WhenAway::Admit);
        let load = Load::of(&[&reject]);
        until("calls are admitted", || load.count(Outcome::Admitted) > 0).await;
        assert_eq!(call(&admit).await, Outcome::Admitted);
        server.signal("STOP");
        until("it is away", || reject.handle().is_away()).await;
        let unavailable = load.count(Outcome::Unavailable);
        until("calls are rejected", || load.count(Outcome::Unavailable) > unavailable + 100).await;
        for _ in 0..2 * BURST {
            assert_eq!(call(&admit).await, Outcome::Admitted);
        }
        assert!(admit.handle().is_away());
        server.signal("CONT");
        until("it is back", || !reject.handle().is_away()).await;
        let admitted = load.count(Outcome::Admitted);
        until("calls are admitted", || load.count(Outcome::Admitted) > admitted).await;
        let admitted = load.end().await;
        let bound = bound(begin.elapsed(), 1, 0);
        assert!(admitted <= bound, "{admitted} of {bound}");
    });
}

/// Shows: Q5
#[test]
fn a_key_or_a_script_that_is_lost_in_flight_stops_nothing() {
    with_server(async |server| {
        let begin = Instant::now();
        let limit = limit(server.connect().await, shared_quota(), WhenAway::Reject).lease(LEASE as u32, 100 * MILLI);
        let load = Load::of(&[&limit]);
        until("the bucket is empty", || load.count(Outcome::Limited) > 0).await;
        let mut connection = server.connect().await;
        for _ in 0..5 {
            connection.pexpire("ziggurat:tokens:api", 1).await.unwrap();
            redis::cmd("SCRIPT").arg("FLUSH").query_async::<()>(&mut connection).await.unwrap();
            sleep(50 * MILLI).await;
        }
        assert_eq!(load.count(Outcome::Unavailable), 0);
        let admitted = load.end().await;
        let bound = bound(begin.elapsed(), 1, 5);
        assert!(admitted > BURST && admitted <= bound, "{admitted} of {bound}");
    });
}

/// Shows: Q5
#[test]
fn a_connection_that_was_closed_while_it_was_idle_costs_no_call() {
    with_server(async |server| {
        let limit = limit(server.connect().await, shared_quota(), WhenAway::Reject).timeout(5 * SECOND);
        let mut connection = server.connect().await;
        for _ in 0..5 {
            assert_eq!(call(&limit).await, Outcome::Admitted);
            redis::cmd("CLIENT")
                .arg("KILL")
                .arg("TYPE")
                .arg("normal")
                .query_async::<i64>(&mut connection)
                .await
                .unwrap();
            sleep(150 * MILLI).await;
        }
        assert!(!limit.handle().is_away());
    });
}

/// Shows: Q5
#[test]
fn what_is_left_of_a_lease_returns_to_the_server() {
    with_server(async |server| {
        let quota = Quota::new(100, DAY);
        let first = limit(server.connect().await, quota, WhenAway::Reject).lease(64, LONG);
        for _ in 0..8 {
            assert_eq!(call(&first).await, Outcome::Admitted);
        }
        let handle = first.handle();
        assert_eq!(handle.leased(), 7);
        drop(first);
        // A task returns it: 85 are left, and then 92.
        let store = RedisStore::new(server.connect().await);
        let (begin, mut taken) = (Instant::now(), 0);
        while taken < 92 {
            assert!(begin.elapsed() < LONG, "{taken} of 92");
            if let Taken::Granted { tokens, .. } = store.take("api", 1..=100, &quota).await.unwrap() {
                taken += tokens;
            }
            sleep(MILLI).await;
        }
    });
}

// === Idempotency ===

/// Shows: Y2
#[test]
fn two_processes_run_a_handler_once_also_if_the_server_is_paused_meanwhile() {
    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::{BodyExt, Full};
    use tokio::sync::Semaphore;
    use ziggurat::idempotency::IdempotencyLayer;

    with_server(async |server| {
        let (runs, finish) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
        let handler = {
            let (runs, finish) = (Arc::clone(&runs), Arc::clone(&finish));
            service_fn(move |_: Request<_>| {
                let (run, finish) = (runs.fetch_add(1, Ordering::Relaxed) + 1, Arc::clone(&finish));
                async move {
                    finish.acquire().await.unwrap().forget();
                    Ok::<_, Error<String>>(Response::new(Full::<Bytes>::from(format!("run {run}"))))
                }
            })
        };
        let mut processes = Vec::new();
        for _ in 0..2 {
            let caller = |_: &Request<Full<Bytes>>| Some("eve".to_owned());
            let layer = IdempotencyLayer::new(RedisStore::new(server.connect().await), caller);
            processes.push(layer.timeout(5 * SECOND).max_wait(LONG).layer(handler.clone()));
        }
        // Returns whether the response is a replay, and its text. `None`: the store is away.
        let call = |process: usize, key: &str| {
            let request = Request::post("/orders").header("idempotency-key", key).body(Full::from("a book")).unwrap();
            let call = processes[process].clone().oneshot(request);
            async move {
                let response = match call.await {
                    Ok(response) => response,
                    Err(Error::Rejected(rejection))
                        if matches!(rejection.reason(), Reason::StoreUnavailable { .. }) =>
                    {
                        return None;
                    }
                    Err(error) => panic!("{error}"),
                };
                let is_replay = response.headers().contains_key("idempotent-replayed");
                let text = response.into_body().collect().await.unwrap().to_bytes();
                Some((is_replay, String::from_utf8(text.into()).unwrap()))
            }
        };
        let count = || runs.load(Ordering::Relaxed);

        // Duplicates at once, in both processes.
        let calls = Vec::from_iter((0..8).map(|n| tokio::spawn(call(n % 2, "1"))));
        until("the handler runs", || count() == 1).await;
        finish.add_permits(1);
        let mut replays = 0;
        for call in calls {
            let (is_replay, text) = call.await.unwrap().unwrap();
            assert_eq!(text, "run 1");
            replays += u32::from(is_replay);
        }
        assert_eq!(replays, 7);

        // The server pauses while the handler runs.
        let first = tokio::spawn(call(0, "2"));
        until("the handler runs", || count() == 2).await;
        server.signal("STOP");
        let second = tokio::spawn(call(1, "2"));
        finish.add_permits(1);
        assert_eq!(first.await.unwrap(), Some((false, "run 2".to_owned())), "the caller does not wait for the store");
        let in_the_same_process = call(0, "2").await;
        assert_eq!(in_the_same_process, Some((true, "run 2".to_owned())));
        server.signal("CONT");
        let _may_have_been_rejected = second.await.unwrap();
        let replays = async {
            while call(1, "2").await != Some((true, "run 2".to_owned())) {
                sleep(5 * MILLI).await;
            }
        };
        timeout(LONG, replays).await.unwrap();
        assert_eq!(count(), 2);
    });
}
