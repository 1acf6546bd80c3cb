//! A setting in the program's scope changes how long a cache keeps its values, at run time.
//!
//! The cache reads the scope that is current when a response arrives. That is the request's scope, whose parent is the
//! program's, so a request can also have its own setting.

use std::{
    error::Error as StdError,
    io,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tokio::time::advance;
use tower::{ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{Error, Scope, cache::CacheLayer, context::ContextLayer};

/// The setting. The default applies unless a scope overrides it.
struct CacheConfig {
    ttl: Duration,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(300) }
    }
}

fn ttl(_key: &&'static str, _answer: &u32) -> Duration {
    Scope::current().map_or_else(Duration::default, |scope| scope.state::<CacheConfig>().ttl)
}

static CALLS: AtomicU32 = AtomicU32::new(0);

/// Returns the number of the call, which shows the call that a value came from.
async fn compute(_question: &'static str) -> Result<u32, io::Error> {
    Ok(CALLS.fetch_add(1, Ordering::Relaxed) + 1)
}

// On a paused clock: the minutes below take no time.
#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn StdError>> {
    let app = Scope::root("app").with(CacheConfig { ttl: Duration::from_secs(600) });
    let service = ServiceBuilder::new()
        // `ambient`, because these requests are not HTTP and have no extensions for the scope.
        .layer(ContextLayer::ambient(app.clone()))
        .layer(CacheLayer::new(1_000, ttl, |question: &&'static str| Some(*question)))
        .map_err(Error::Service)
        .service(service_fn(compute));
    let ask = async |question| service.clone().oneshot(question).await;

    // Ten minutes, as the program's scope says.
    assert_eq!(ask("what").await?, 1);
    advance(Duration::from_secs(599)).await;
    assert_eq!(ask("what").await?, 1);
    advance(Duration::from_secs(1)).await;
    assert_eq!(ask("what").await?, 2);

    // From now on ten seconds. Entries that are in the cache already keep their ttl.
    app.update(|_: &CacheConfig| CacheConfig { ttl: Duration::from_secs(10) })?;
    assert_eq!(ask("when").await?, 3);
    advance(Duration::from_secs(10)).await;
    assert_eq!(ask("when").await?, 4);
    assert_eq!(ask("what").await?, 2);

    // And now not at all.
    app.update(|_: &CacheConfig| CacheConfig { ttl: Duration::ZERO })?;
    assert_eq!(ask("why").await?, 5);
    assert_eq!(ask("why").await?, 6);

    println!("one cache, three settings at run time: {} calls", CALLS.load(Ordering::Relaxed));
    Ok(())
}
