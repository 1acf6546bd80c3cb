//! Retries an operation that fails now and then, after a pause. In the end the caller gets its last error.

use std::{error::Error as StdError, io, time::Duration};

use tokio::time::Instant;
use tower::{ServiceBuilder, ServiceExt};
use ziggurat::{Backoff, Class, Error, Jitter, attempt, retry::RetryLayer};

const SECOND: Duration = Duration::from_secs(1);

/// Fails its first `failures` attempts.
async fn unreliable(failures: u32) -> Result<&'static str, io::Error> {
    match attempt() {
        number if number <= failures => Err(io::Error::other(format!("attempt {number} failed"))),
        _ => Ok("success"),
    }
}

/// Opens a file. That it is missing is no reason to try again.
async fn open(path: &'static str) -> Result<std::fs::File, io::Error> {
    std::fs::File::open(path)
}

fn class<R>(outcome: Result<&R, &Error<io::Error>>) -> Class {
    match outcome {
        Ok(_) => Class::Success,
        Err(Error::Service(error)) if error.kind() == io::ErrorKind::NotFound => Class::PERMANENT,
        Err(_) => Class::TRANSIENT,
    }
}

// On a paused clock: the seconds below take no time.
#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn StdError>> {
    // Three attempts, including the first, with a second between them.
    let retry = RetryLayer::new().max_attempts(3).backoff(SECOND);
    let service = ServiceBuilder::new().layer(retry).map_err(Error::Service).service_fn(unreliable);
    let start = Instant::now();
    assert_eq!(service.clone().oneshot(2).await?, "success");
    assert_eq!(start.elapsed(), 2 * SECOND);

    let error = service.oneshot(3).await.err().ok_or("it always fails")?;
    assert_eq!(error.to_string(), "attempt 3 failed");

    // Growing pauses. There is no jitter here, so that they are exact. By default jitter keeps callers apart.
    let backoff = Backoff::exponential(2 * SECOND).max(30 * SECOND).jitter(Jitter::None);
    let retry = RetryLayer::new().max_attempts(4).backoff(backoff);
    let service = ServiceBuilder::new().layer(retry).map_err(Error::Service).service_fn(unreliable);
    let start = Instant::now();
    assert_eq!(service.oneshot(3).await?, "success");
    assert_eq!(start.elapsed(), (2 + 4 + 8) * SECOND);

    // A permanent failure is not retried.
    let service =
        ServiceBuilder::new().layer(RetryLayer::new().classify(class)).map_err(Error::Service).service_fn(open);
    let start = Instant::now();
    assert!(service.oneshot("/there/is/no/such/file").await.is_err());
    assert_eq!(start.elapsed(), Duration::ZERO);

    println!("two failures and a success, the last of three errors, and one error that was not retried");
    Ok(())
}
