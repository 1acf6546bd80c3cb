//! Serves computed values from memory until their ttl expires, and keeps tenants apart.

use std::{
    convert::Infallible,
    error::Error as StdError,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, advance, sleep};
use tower::{ServiceBuilder, ServiceExt};
use ziggurat::{
    Error, Scope,
    cache::{CacheLayer, scoped_key},
    context::ContextLayer,
};

const SECOND: Duration = Duration::from_secs(1);

static COMPUTED: AtomicU32 = AtomicU32::new(0);

async fn sum((x, y): (u32, u32)) -> Result<u32, Infallible> {
    COMPUTED.fetch_add(1, Ordering::Relaxed);
    sleep(2 * SECOND).await;
    Ok(x + y)
}

/// The tenant of a request.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Tenant(&'static str);

/// A request of a tenant, about the user with this number.
type UserRequest = (&'static str, u32);

/// Looks the user up for the tenant in the current scope.
async fn user((_, id): UserRequest) -> Result<String, Infallible> {
    COMPUTED.fetch_add(1, Ordering::Relaxed);
    let tenant = Scope::current().and_then(|scope| scope.get::<Tenant>());
    Ok(format!("user {id} of {}", tenant.map_or("nobody", |tenant| tenant.0)))
}

// On a paused clock: the minutes below take no time.
#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn StdError>> {
    // At most a thousand responses, for five minutes each. The key is the whole request.
    let cache = CacheLayer::new(1_000, 300 * SECOND, |numbers: &(u32, u32)| Some(*numbers));
    let service = ServiceBuilder::new().layer(cache).map_err(Error::Service).service_fn(sum);
    let ask = async |x, y| {
        let start = Instant::now();
        let sum = service.clone().oneshot((x, y)).await?;
        Ok::<_, Error<Infallible>>((sum, start.elapsed()))
    };
    // Two concurrent calls: one computes, and the other waits for its response.
    let (first, second) = tokio::join!(ask(1, 2), ask(1, 2));
    assert_eq!((first?, second?), ((3, 2 * SECOND), (3, 2 * SECOND)));
    assert_eq!(ask(1, 2).await?, (3, Duration::ZERO));
    assert_eq!(ask(3, 4).await?, (7, 2 * SECOND));
    assert_eq!(COMPUTED.load(Ordering::Relaxed), 2);
    advance(300 * SECOND).await;
    assert_eq!(ask(1, 2).await?, (3, 2 * SECOND));

    // The same number is another user for another tenant, so the tenant is part of the key.
    let cache = CacheLayer::new(1_000, 300 * SECOND, scoped_key(|_: &Tenant, (_, id): &UserRequest| Some(*id)));
    let memory = cache.handle();
    let service = ServiceBuilder::new()
        .layer(ContextLayer::ambient(Scope::root("app")).state(|(tenant, _): &UserRequest| Tenant(tenant)))
        .layer(cache)
        .map_err(Error::Service)
        .service_fn(user);
    let ask = async |tenant| service.clone().oneshot((tenant, 7)).await;
    COMPUTED.store(0, Ordering::Relaxed);
    for _ in 0..2 {
        assert_eq!(ask("acme").await?, "user 7 of acme");
        assert_eq!(ask("globex").await?, "user 7 of globex");
    }
    assert_eq!((COMPUTED.load(Ordering::Relaxed), memory.stats().hits), (2, 2));

    // A user of one tenant has changed.
    memory.invalidate(&(Arc::new(Tenant("acme")), 7));
    ask("acme").await?;
    ask("globex").await?;
    assert_eq!((COMPUTED.load(Ordering::Relaxed), memory.len()), (3, 2));
    println!("two tenants, each with its own user 7: {:?}", memory.stats());
    Ok(())
}
