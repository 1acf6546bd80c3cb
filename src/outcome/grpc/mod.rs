//! gRPC: maps rejections to status codes, and classifies services by their status.
//!
//! # Servers
//!
//! A server puts [`RejectionResponseLayer::grpc`](crate::rejection_response::RejectionResponseLayer::grpc) outside the
//! layers that reject. A rejection then becomes a status that clients in any language understand: see
//! [`Rejection::grpc_code`]. With tonic, the whole stack goes into `Server::builder().layer(..)` and needs no feature
//! of this crate: see `examples/tonic_server.rs`.
//!
//! If a timeout inside covers the response body, use
//! [`until_body_end`](crate::rejection_response::RejectionResponseLayer::until_body_end) on that layer too. A stream
//! that times out after its first message then ends with a status.
//!
//! # Clients
//!
//! A client classifies with [`GrpcStatus`], in every layer that takes a classifier. The HTTP status is 200 for almost
//! every gRPC response and says nothing.
//!
//! With tonic (feature `tonic`), put `.map_err(ziggurat::grpc::status)` innermost, next to the `Channel`. The stack's
//! error is then a `tonic::Status`, and the generated client takes the stack in place of the channel. Its callers
//! receive the status of a rejection as if a server had sent it, and [`Rejection::find`] finds the rejection in it. See
//! `examples/tonic_client.rs`.
//!
//! If a timeout covers the response body, the body's error needs the same conversion, outermost:
//! `.map_response(|response: http::Response<_>| response.map(|body| body.map_err(ziggurat::grpc::status)))` (with
//! `BodyExt` of http-body-util).
//!
//! # Retries
//!
//! Every gRPC call is a `POST` whose body is a stream, so a layer cannot see which calls are safe to repeat. Declare it
//! in one of two places:
//!
//! - Around the generated client, where a request is a message that can be cloned: wrap a `service_fn` that makes the
//!   call in `RetryLayer::new().classify(GrpcStatus)`, for the methods that are safe to repeat. The example does this.
//! - Inside it, around the channel: put `ReplayLayer::new()` outside
//!   `RetryLayer::new().classify(GrpcStatus).copy(CopyIf(..))`, with a function that checks the path
//!   (`/package.Service/Method`). Next to the channel, put
//!   `.map_request(|request: http::Request<_>| request.map(tonic::body::Body::new))`.
//!
//! `RetryLayer::http()` treats every gRPC call as an ordinary `POST` and sends it once, unless the call was [not
//! processed](crate::is_unprocessed): the channel could not connect, or the server refused the stream.

#[cfg(feature = "tonic")]
mod status;

use std::{convert::Infallible, error::Error as StdError, fmt, time::Duration};

use http::{HeaderMap, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};

use crate::outcome::{Class, Classify, Degraded, Error, Reason, Rejection, retry_after};
#[cfg(feature = "tonic")]
#[cfg_attr(docsrs, doc(cfg(feature = "tonic")))]
pub use status::status;

/// The codes of <https://grpc.github.io/grpc/core/md_doc_statuscodes.html> that this module uses.
pub(crate) mod code {
    pub(crate) const OK: i32 = 0;
    pub(crate) const CANCELLED: i32 = 1;
    pub(crate) const UNKNOWN: i32 = 2;
    pub(crate) const INVALID_ARGUMENT: i32 = 3;
    pub(crate) const DEADLINE_EXCEEDED: i32 = 4;
    pub(crate) const PERMISSION_DENIED: i32 = 7;
    pub(crate) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(crate) const ABORTED: i32 = 10;
    pub(crate) const UNIMPLEMENTED: i32 = 12;
    pub(crate) const INTERNAL: i32 = 13;
    pub(crate) const UNAVAILABLE: i32 = 14;
    pub(crate) const DATA_LOSS: i32 = 15;
    pub(crate) const UNAUTHENTICATED: i32 = 16;
}

/// How long to wait before a retry, in milliseconds. Any value but a non-negative number forbids a retry (gRPC A6).
pub(crate) const PUSHBACK: &str = "grpc-retry-pushback-ms";

const STATUS: &str = "grpc-status";

const GRPC: &[u8] = b"application/grpc";

impl Rejection {
    /// Returns the status code for a gRPC response.
    ///
    /// | reason | code |
    /// |---|---|
    /// | timeout or deadline | 4 (`DEADLINE_EXCEEDED`) |
    /// | concurrency limit, rate limit (also for a cost that is too high), or empty pool | 8 (`RESOURCE_EXHAUSTED`) |
    /// | more keys than instances | 8 (`RESOURCE_EXHAUSTED`) |
    /// | request without a key | 3 (`INVALID_ARGUMENT`) |
    /// | stalled or failed request body | 1 (`CANCELLED`) |
    /// | failure of a shared call that another attempt would meet again | 2 (`UNKNOWN`) |
    /// | call that would wait for itself | 13 (`INTERNAL`) |
    /// | [`Reason::Custom`] | the code that corresponds to its status |
    /// | all others | 14 (`UNAVAILABLE`) |
    #[must_use]
    pub fn grpc_code(&self) -> i32 {
        match self.reason() {
            Reason::TimedOut { .. } | Reason::DeadlineExceeded { .. } => code::DEADLINE_EXCEEDED,
            Reason::Overloaded { .. }
            | Reason::RateLimited
            | Reason::CostTooHigh { .. }
            | Reason::BodyTooLarge { .. }
            | Reason::TooManyKeys { .. }
            | Reason::Exhausted { .. } => code::RESOURCE_EXHAUSTED,
            Reason::NoKey | Reason::KeyReused => code::INVALID_ARGUMENT,
            Reason::Duplicate => code::ABORTED,
            // The caller gave up the call.
            Reason::UploadStalled { .. } | Reason::UploadFailed { .. } => code::CANCELLED,
            // Clients retry `UNAVAILABLE`.
            Reason::Shared { class, .. } if !matches!(class, Class::Failure { transient: true, .. }) => code::UNKNOWN,
            Reason::Recursive => code::INTERNAL,
            Reason::Custom { status, .. } => code_of(*status),
            _ => code::UNAVAILABLE,
        }
    }

    /// Returns the value of [`PUSHBACK`], if the layer knows it: whole milliseconds, rounded up, up to the format's
    /// maximum.
    pub(crate) fn grpc_pushback(&self) -> Option<i32> {
        let wait = self.retry_after()?;
        let millis = wait.as_millis() + u128::from(wait.subsec_nanos() % 1_000_000 > 0);
        Some(i32::try_from(millis).unwrap_or(i32::MAX))
    }
}

/// Returns the code that corresponds to an HTTP status.
fn code_of(status: StatusCode) -> i32 {
    match status {
        StatusCode::UNAUTHORIZED => code::UNAUTHENTICATED,
        StatusCode::FORBIDDEN => code::PERMISSION_DENIED,
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => code::DEADLINE_EXCEEDED,
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::TOO_MANY_REQUESTS => code::RESOURCE_EXHAUSTED,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => code::UNAVAILABLE,
        _ => code::UNKNOWN,
    }
}

/// Classifies a gRPC response by its status.
///
/// | status | class |
/// |---|---|
/// | `UNAVAILABLE` | a transient failure |
/// | `RESOURCE_EXHAUSTED` with a non-negative `grpc-retry-pushback-ms` | [declined](Class::Declined), and retried |
/// | `DEADLINE_EXCEEDED`, `INTERNAL`, `UNKNOWN`, `DATA_LOSS` | a failure, not retried: its work may be done |
/// | `CANCELLED`, any other `RESOURCE_EXHAUSTED` | ignored: the caller hung up, used up its quota, or sent too much |
/// | all others | a success: `NOT_FOUND` or `PERMISSION_DENIED` is a valid response |
///
/// The failures are those of linkerd2-proxy, except for `PERMISSION_DENIED`, which says more about the caller. Only
/// `UNAVAILABLE` is retried, as in the policy of gRPC A6: a status is retried if it means that the service did not
/// process the request. The pushback of a transient failure is the time to leave the service alone. A pushback that is
/// negative or does not parse forbids a retry (A6).
///
/// # Source of the status
///
/// The status is read from the response's headers. Servers put it there if an error occurs before the first message (a
/// *trailers-only* response).
///
/// A response without a status is classified by its HTTP status, according to [gRPC's
/// table](https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md), with `Retry-After` as the
/// pushback. A 429 is declined. A 200 counts as a success if its `content-type` is `application/grpc`, because its
/// trailers are still to come. With any other `content-type` it is `UNKNOWN`, a failure.
///
/// A layer that waits for the end of the body also classifies the trailers, for example a circuit breaker with
/// [`until_body_end`](crate::circuit_breaker::CircuitBreakerLayer::until_body_end). A body that ends without a status
/// is then `UNKNOWN`. A body that its reader drops early is not. The status of gRPC-Web (`application/grpc-web`) is in
/// the last message, which no layer reads.
///
/// A success that is [`Degraded`](crate::Degraded) is ignored, as with [`HttpStatus`](crate::HttpStatus).
///
/// # Errors of the service
///
/// An error is a transient failure, as with [`HttpStatus`](crate::HttpStatus): no response came. A `tonic::Status` as
/// the error (feature `tonic`) is classified by its code. If tonic created it from a transport error for which it has
/// no better code, it is a transient failure.
///
/// For your own error type, implement [`Classify`]:
///
/// ```
/// use ziggurat::{Class, Classify, GrpcStatus};
///
/// enum MyError {
///     Network,
///     NotAllowed,
/// }
///
/// impl<B> Classify<http::Response<B>, MyError> for GrpcStatus {
///     fn classify(&self, outcome: Result<&http::Response<B>, &MyError>) -> Class {
///         match outcome {
///             Ok(response) => self.judge(response),
///             Err(MyError::Network) => Class::TRANSIENT,
///             Err(MyError::NotAllowed) => Class::Ignored,
///         }
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GrpcStatus;

impl GrpcStatus {
    /// Returns the class of this response.
    #[must_use]
    pub fn judge<B>(&self, response: &Response<B>) -> Class {
        Degraded::unless(self.judge_head(response), response.extensions())
    }

    fn judge_head<B>(&self, response: &Response<B>) -> Class {
        let headers = response.headers();
        if let Some(class) = read(headers) {
            return class;
        }
        let code = match response.status() {
            // The status is in the trailers, which are still to come.
            StatusCode::OK if Content::of(headers) != Content::Other => return Class::Success,
            StatusCode::BAD_REQUEST | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => code::INTERNAL,
            StatusCode::UNAUTHORIZED => code::UNAUTHENTICATED,
            StatusCode::FORBIDDEN => code::PERMISSION_DENIED,
            StatusCode::NOT_FOUND => code::UNIMPLEMENTED,
            StatusCode::TOO_MANY_REQUESTS => {
                return Class::Declined { retry_after: retry_after(headers) };
            }
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                code::UNAVAILABLE
            }
            _ => code::UNKNOWN,
        };
        class(code, || retry_after(headers).map_or(Pushback::Unsaid, Pushback::After))
    }

    fn judge_or_transient<B, E>(&self, outcome: Result<&Response<B>, &E>) -> Class {
        outcome.map_or(Class::TRANSIENT, |response| self.judge(response))
    }
}

/// Defines the methods of a classifier that do not depend on the type of its error.
macro_rules! judge_the_response {
    ($body:ident) => {
        fn classify_trailers(&self, trailers: &HeaderMap) -> Class {
            judge_trailers(trailers)
        }

        fn classify_without_trailers(&self, response: &Response<$body>) -> Class {
            judge_without_trailers(response)
        }

        fn describe(&self, response: &Response<$body>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            describe(response, f)
        }
    };
}

#[cfg(feature = "tonic")]
use judge_the_response;

// A blanket impl for every error would leave no room for an error that has its own code.
impl<B> Classify<Response<B>, Infallible> for GrpcStatus {
    fn classify(&self, outcome: Result<&Response<B>, &Infallible>) -> Class {
        self.judge_or_transient(outcome)
    }

    judge_the_response!(B);
}

impl<B, E> Classify<Response<B>, Error<E>> for GrpcStatus {
    fn classify(&self, outcome: Result<&Response<B>, &Error<E>>) -> Class {
        self.judge_or_transient(outcome)
    }

    judge_the_response!(B);
}

impl<'a, B> Classify<Response<B>, Box<dyn StdError + Send + Sync + 'a>> for GrpcStatus {
    fn classify(&self, outcome: Result<&Response<B>, &Box<dyn StdError + Send + Sync + 'a>>) -> Class {
        self.judge_or_transient(outcome)
    }

    judge_the_response!(B);
}

/// The server's instruction about retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pushback {
    Unsaid,
    After(Duration),
    Never,
}

impl Pushback {
    fn of(headers: &HeaderMap) -> Self {
        headers.get(PUSHBACK).map_or(Self::Unsaid, |value| Self::read(value.as_bytes()))
    }

    fn read(value: &[u8]) -> Self {
        let millis = number(value).and_then(|millis| u64::try_from(millis).ok());
        millis.map_or(Self::Never, |millis| Self::After(Duration::from_millis(millis)))
    }
}

/// Returns the class of the status in these headers or trailers, if they have one.
fn read(headers: &HeaderMap) -> Option<Class> {
    headers.get(STATUS).map(|status| class(read_code(status), || Pushback::of(headers)))
}

/// To gRPC, a call that ends without a status has the status `UNKNOWN`.
fn judge_trailers(trailers: &HeaderMap) -> Class {
    read(trailers).unwrap_or(Class::PERMANENT)
}

/// Classifies a successful response whose body ends without trailers.
fn judge_without_trailers<B>(response: &Response<B>) -> Class {
    let headers = response.headers();
    let is_unsaid = response.status() == StatusCode::OK && !headers.contains_key(STATUS);
    if is_unsaid && Content::of(headers) == Content::Grpc { Class::PERMANENT } else { Class::Success }
}

/// The content type of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Grpc,
    /// gRPC-Web, whose trailers are in the last message of the body.
    Web,
    /// Not gRPC, for example a proxy's error page.
    Other,
}

impl Content {
    fn of(headers: &HeaderMap) -> Self {
        let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        let Some((name, rest)) = kind.split_at_checked(GRPC.len()) else { return Self::Other };
        match rest.first() {
            _ if !name.eq_ignore_ascii_case(GRPC) => Self::Other,
            None | Some(b'+' | b';' | b' ') => Self::Grpc,
            Some(b'-') => Self::Web,
            Some(_) => Self::Other,
        }
    }
}

/// Writes the gRPC status, or the HTTP status if there is none.
fn describe<B>(response: &Response<B>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match response.headers().get(STATUS) {
        Some(status) => write!(f, "{STATUS} {}", read_code(status)),
        None => write!(f, "{}", response.status()),
    }
}

fn read_code(status: &HeaderValue) -> i32 {
    number(status.as_bytes()).unwrap_or(code::UNKNOWN)
}

/// Parses plain digits, without a sign or leading zeros, as tonic reads a status.
fn number(digits: &[u8]) -> Option<i32> {
    let is_plain = digits.iter().all(u8::is_ascii_digit) && (digits == b"0" || !digits.starts_with(b"0"));
    std::str::from_utf8(digits).ok().filter(|_| is_plain)?.parse().ok()
}

fn class(code: i32, pushback: impl FnOnce() -> Pushback) -> Class {
    match code {
        code::UNAVAILABLE => match pushback() {
            Pushback::After(wait) => Class::Failure { transient: true, retry_after: Some(wait) },
            Pushback::Never => Class::PERMANENT,
            Pushback::Unsaid => Class::TRANSIENT,
        },
        code::RESOURCE_EXHAUSTED => match pushback() {
            Pushback::After(wait) => Class::Declined { retry_after: Some(wait) },
            Pushback::Never | Pushback::Unsaid => Class::Ignored,
        },
        code::CANCELLED => Class::Ignored,
        code::DEADLINE_EXCEEDED | code::INTERNAL | code::UNKNOWN | code::DATA_LOSS => Class::PERMANENT,
        code::OK..=code::UNAUTHENTICATED => Class::Success,
        // Not a defined code, which gRPC treats as `UNKNOWN`.
        _ => Class::PERMANENT,
    }
}

#[cfg(test)]
mod tests;
