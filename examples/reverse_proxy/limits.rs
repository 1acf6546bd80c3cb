//! The proxy's limits of time, number and size.

use std::time::Duration;

use http::Request;
use hyper::body::Body;

/// A body up to this size takes almost no time to send, so the usual limits apply to its request.
const SMALL: u64 = 64 * 1024;

/// How long the proxy waits for each step, and how much it accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// For the head of a request, from its first byte, and for the first byte of a connection.
    pub(crate) request_head: Duration,
    /// For the next request of a connection.
    pub(crate) keep_alive: Duration,
    /// For the head of the response, with all attempts.
    pub(crate) total: Duration,
    /// For the head of the response, in one attempt.
    pub(crate) attempt: Duration,
    /// For both, if the request's body is large or of unknown length.
    pub(crate) upload: Duration,
    /// In the middle of a response, for the upstream to send more of it.
    pub(crate) idle: Duration,
    /// For the caller, in the middle of a response to take more of it, and in the middle of a request to send more of
    /// it.
    pub(crate) stalled: Duration,
    /// For calls in flight to end, once the proxy is stopping.
    pub(crate) grace: Duration,
    /// The number of callers' connections. Further ones wait in the operating system's queue.
    pub(crate) connections: usize,
    /// The number of calls in flight, to the end of the response's body.
    pub(crate) in_flight: usize,
    /// The number of calls that wait for a permit.
    pub(crate) waiting: usize,
    /// The maximum size in bytes of the head of a request or a response.
    pub(crate) head: u32,
    /// Whether every outcome of the upstream goes to the caller: one attempt, and a circuit that never opens.
    pub(crate) bare: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_head: Duration::from_secs(10),
            keep_alive: Duration::from_secs(60),
            total: Duration::from_secs(30),
            attempt: Duration::from_secs(10),
            upload: Duration::from_secs(3600),
            idle: Duration::from_secs(10),
            stalled: Duration::from_secs(60),
            grace: Duration::from_secs(30),
            // With an upstream connection for each call in flight, these stay below the usual limit of 1,024 open
            // files.
            connections: 512,
            in_flight: 256,
            waiting: 256,
            head: 16 * 1024,
            bare: false,
        }
    }
}

impl Limits {
    /// An upload may take as long as it needs, but no call holds a permit forever.
    pub(crate) fn unless_upload<B: Body>(&self, limit: Duration, request: &Request<B>) -> Duration {
        let is_small = request.body().size_hint().upper().is_some_and(|size| size <= SMALL);
        if is_small { limit } else { self.upload }
    }
}
