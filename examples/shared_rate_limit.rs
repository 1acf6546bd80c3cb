//! Two processes share one rate limit through Redis or Valkey: 20 calls at once, and 20 in each second.
//!
//! The example starts a server of its own on a free port, and itself twice more, as the two processes. Without
//! `redis-server` or `valkey-server` on this machine it says so, and ends.

use std::{
    env,
    error::Error,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use redis::{Client, aio::ConnectionManager};
use tokio::time::sleep;
use tower::{Layer, ServiceExt, service_fn};
use ziggurat::{
    shared_rate_limit::{SharedRateLimitLayer, WhenAway},
    store::{Quota, RedisStore},
};

const RATE: u32 = 20;
const SECOND: Duration = Duration::from_secs(1);
/// The number of tokens that a process may take ahead of its calls.
const LEASE: u32 = 2;

/// Ends the program when it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    if let [_, name, port] = &Vec::from_iter(env::args())[..] {
        return process(name, port.parse()?).await;
    }
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let Some(_server) = serve(port) else {
        println!("This example needs redis-server or valkey-server. On Debian: apt-get install redis-server");
        return Ok(());
    };
    connect(port).await?;

    let begin = Instant::now();
    let program = env::current_exe()?;
    let run = |name: &str| Command::new(&program).args([name, &port.to_string()]).stdout(Stdio::piped()).spawn();
    let mut total = 0;
    for process in [run("first")?, run("second")?] {
        let output = String::from_utf8(process.wait_with_output()?.stdout)?;
        print!("{output}");
        total += output.rsplit(' ').next().ok_or("no number")?.trim().parse::<u32>()?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!("{total} calls in all, in {seconds:.1} s");
    assert!(total >= RATE);
    assert!(f64::from(total) <= f64::from(RATE) * (1.0 + seconds) + f64::from(2 * LEASE));
    Ok(())
}

/// Calls a service as often as it may, for two seconds.
async fn process(name: &str, port: u16) -> Result<(), Box<dyn Error>> {
    let store = RedisStore::new(connect(port).await?);
    let quota = Quota::new(RATE, SECOND);
    // While the store is away, each of the two processes has half of the rate.
    let share = WhenAway::Share(Quota::new(RATE / 2, SECOND));
    let limit = SharedRateLimitLayer::new(store, "example", quota, share).lease(LEASE, Duration::from_millis(100));
    let service = limit.layer(service_fn(|()| async { Ok::<_, ziggurat::Error<String>>(()) }));

    let (begin, mut admitted) = (Instant::now(), 0);
    while begin.elapsed() < 2 * SECOND {
        match service.clone().oneshot(()).await {
            Ok(()) => admitted += 1,
            Err(error) => assert!(error.is_rate_limited(), "{error}"),
        }
        sleep(Duration::from_millis(10)).await;
    }
    let requests = limit.handle().requests();
    println!("the {name} process asked the store {requests} times, and made this number of calls: {admitted}");
    Ok(())
}

fn serve(port: u16) -> Option<Server> {
    let start = |program| {
        let mut command = Command::new(program);
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string()]);
        command.stdout(Stdio::null()).spawn().ok()
    };
    start("redis-server").or_else(|| start("valkey-server")).map(Server)
}

/// Connects as soon as the server listens.
async fn connect(port: u16) -> Result<ConnectionManager, Box<dyn Error>> {
    let client = Client::open(format!("redis://127.0.0.1:{port}/"))?;
    for _ in 0..100 {
        if let Ok(connection) = ConnectionManager::new(client.clone()).await {
            return Ok(connection);
        }
        sleep(Duration::from_millis(50)).await;
    }
    Err("the server does not start".into())
}
