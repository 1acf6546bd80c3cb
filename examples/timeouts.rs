//! Timeouts: one for each call, one that the scope decides, and a total around attempts with their own limits.

use std::{
    convert::Infallible,
    error::Error as StdError,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tower::{ServiceBuilder, ServiceExt};
use ziggurat::{Error, Scope, retry::RetryLayer, timeout::TimeoutLayer};

const SECOND: Duration = Duration::from_secs(1);

static CLEANED_UP: AtomicU32 = AtomicU32::new(0);

struct CleanUp;

impl Drop for CleanUp {
    fn drop(&mut self) {
        CLEANED_UP.fetch_add(1, Ordering::Relaxed);
    }
}

async fn operation(seconds: u32) -> Result<&'static str, Infallible> {
    let _clean_up = CleanUp;
    sleep(seconds * SECOND).await;
    Ok("completed")
}

/// The setting: how long a caller is willing to wait.
struct Patience(Duration);

fn patience(_seconds: &u32) -> Option<Duration> {
    Some(Scope::current()?.get::<Patience>()?.0)
}

// On a paused clock: the seconds below take no time.
#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn StdError>> {
    let service =
        ServiceBuilder::new().layer(TimeoutLayer::new(2 * SECOND)).map_err(Error::Service).service_fn(operation);
    assert_eq!(service.clone().oneshot(1).await?, "completed");

    let start = Instant::now();
    let outcome = service.oneshot(5).await;
    assert!(ziggurat::rejection(&outcome).is_some_and(|rejection| rejection.is_timed_out()));
    assert_eq!(start.elapsed(), 2 * SECOND);
    // The operation is dropped before the caller is notified, so its resources are free by now.
    assert_eq!(CLEANED_UP.load(Ordering::Relaxed), 2);

    // The limit can be a function of the request, which sees the scope. `None` means no limit.
    let service =
        ServiceBuilder::new().layer(TimeoutLayer::new(patience)).map_err(Error::Service).service_fn(operation);
    let app = Scope::root("app").with(Patience(3 * SECOND));
    let in_a_hurry = app.child("request").with(Patience(SECOND));
    assert_eq!(app.within(service.clone().oneshot(2)).await?, "completed");
    let outcome = in_a_hurry.within(service.clone().oneshot(2)).await;
    assert!(ziggurat::rejection(&outcome).is_some_and(|rejection| rejection.is_timed_out()));
    assert_eq!(service.oneshot(3_600).await?, "completed");

    // An attempt that takes too long is retried, and the total ends the call in the middle of the third.
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(5 * SECOND).named("total"))
        .layer(RetryLayer::new().max_attempts(10).backoff(Duration::ZERO))
        .layer(TimeoutLayer::new(2 * SECOND).named("attempt"))
        .map_err(Error::Service)
        .service_fn(operation);
    let (start, before) = (Instant::now(), CLEANED_UP.load(Ordering::Relaxed));
    let outcome = service.oneshot(60).await;
    let rejection = ziggurat::rejection(&outcome).ok_or("it takes too long")?;
    assert_eq!((rejection.name(), start.elapsed()), (Some("total"), 5 * SECOND));
    assert_eq!(CLEANED_UP.load(Ordering::Relaxed) - before, 3);
    println!("{rejection}, after three attempts");
    Ok(())
}
