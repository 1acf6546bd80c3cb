//! The proxy's limits: of time, of number and of size.

use std::time::Duration;

use http::Request;
use hyper::body::Body;

/// A body of up to this size is sent in no time, and says no more than other requests about how long a response takes.
const SMALL: u64 = 64 * 1024;

/// How long the proxy waits, and for what; and how much of everything it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// For the head of a request, from its first byte; and for the first byte of a connection.
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
    /// In the middle of a response, for the caller to take more of it; in the middle of a request, to send more of it.
    pub(crate) stalled: Duration,
    /// For calls in flight to end, once the proxy is told to stop.
    pub(crate) grace: Duration,
    /// The number of connections of callers. More of them wait in the operating system's queue.
    pub(crate) connections: usize,
    /// The number of calls in flight, to the end of the response's body.
    pub(crate) in_flight: usize,
    /// The number of calls that wait for that.
    pub(crate) waiting: usize,
    /// The bytes of a head, of a request or a response.
    pub(crate) head: u32,
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
            // With a connection to the upstream for each call in flight: fewer than the 1,024 files that a process may usually open.
            connections: 512,
            in_flight: 256,
            waiting: 256,
            head: 16 * 1024,
        }
    }
}

impl Limits {
    /// An upload may take as long as it needs, but nothing holds a permit for ever.
    pub(crate) fn unless_upload<B: Body>(&self, limit: Duration, request: &Request<B>) -> Duration {
        let is_small = request.body().size_hint().upper().is_some_and(|size| size <= SMALL);
        if is_small { limit } else { self.upload }
    }
}
