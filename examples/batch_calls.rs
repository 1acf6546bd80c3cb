//! Turns many single calls into few: handlers ask for one user each, and the backend has an endpoint for many.

use std::{
    collections::HashMap,
    fmt,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::{task::JoinSet, time::sleep};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{Error, batch::BatchLayer, retry::RetryLayer, timeout::TimeoutLayer};

#[derive(Debug)]
enum ApiError {
    NotFound(u64),
    Unavailable,
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound(id) => write!(f, "there is no user {id}"),
            Self::Unavailable => write!(f, "the API is not available"),
        }
    }
}

static CALLS: AtomicUsize = AtomicUsize::new(0);

/// `GET /users?id=1,2,3`: returns users in any order, and leaves out unknown ids. The first call fails.
async fn get_users(ids: &[u64]) -> Result<HashMap<u64, String>, ApiError> {
    sleep(Duration::from_millis(20)).await;
    if CALLS.fetch_add(1, Ordering::Relaxed) == 0 {
        return Err(ApiError::Unavailable);
    }
    Ok(ids.iter().filter(|id| **id <= 100).map(|id| (*id, format!("user {id}"))).collect())
}

/// Adapts the endpoint to the layer: one result for each request, in order.
async fn get_each(ids: Vec<u64>) -> Result<Vec<Result<String, ApiError>>, ApiError> {
    let mut found = get_users(&ids).await?;
    Ok(ids.into_iter().map(|id| found.remove(&id).ok_or(ApiError::NotFound(id))).collect())
}

// On a paused clock: the waits below take no time.
#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Error<ApiError>> {
    let users = ServiceBuilder::new()
        .layer(TimeoutLayer::new(Duration::from_secs(2))) // one for each caller
        .layer(BatchLayer::new(25, Duration::from_millis(5)).named("users"))
        .layer(RetryLayer::new()) // from here on there is one call for each batch
        .layer(TimeoutLayer::new(Duration::from_secs(1)))
        .map_err(Error::Service)
        .service(service_fn(get_each));

    // A hundred concurrent handlers, and one that asks for an unknown user.
    let mut handlers = JoinSet::new();
    for id in 1..=100 {
        handlers.spawn(users.clone().oneshot(id));
    }
    let nobody = tokio::spawn(users.clone().oneshot(4711));
    let mut found = 0;
    while let Some(Ok(user)) = handlers.join_next().await {
        assert!(user?.starts_with("user "));
        found += 1;
    }
    // Only the caller that asked for the unknown user gets its error.
    assert!(matches!(nobody.await, Ok(Err(Error::Service(ApiError::NotFound(4711))))));

    // Four batches of twenty-five, one call for the unknown user, and the retry of the call that failed.
    let calls = CALLS.load(Ordering::Relaxed);
    assert_eq!((found, calls), (100, 4 + 1 + 1));
    println!("{found} users found, one unknown, in {calls} calls");

    // A lone call waits five milliseconds for others, and then goes alone.
    assert_eq!(users.oneshot(7).await?, "user 7");
    Ok(())
}
