//! gRPC: what a rejection is there, and what a status says about a service.
//!
//! **A server** puts [`RejectionResponseLayer::grpc`](crate::rejection_response::RejectionResponseLayer::grpc) outside of the layers that reject. A rejection then is the
//! status that clients of any language understand: see [`Rejection::grpc_code`]. With tonic, the whole stack goes into
//! `Server::builder().layer(..)` and needs no feature of this crate: `examples/tonic_server.rs`. Where a timeout inside lasts to the end
//! of the body, [its own end](crate::rejection_response::RejectionResponseLayer::until_body_end) is there too: a stream that is given up after its first
//! message ends with a status.
//!
//! **A client** judges by [`GrpcStatus`], in every layer that takes a classifier: an HTTP status, which is 200 for almost
//! everything, says nothing there. With tonic (feature `tonic`) it puts `.map_err(ziggurat::grpc::status)` innermost, next to the
//! `Channel`: the stack's error is a `tonic::Status`, and the generated client takes the stack in place of the channel. Its caller gets
//! the status of a rejection as if a server had sent it, and [`Rejection::find`] finds the rejection in it. See
//! `examples/tonic_client.rs`. If a timeout lasts to the end of the body, what it ends the body with becomes such a status by
//! `.map_response(|response: http::Response<_>| response.map(|body| body.map_err(ziggurat::grpc::status)))`, outermost (with `BodyExt`
//! of http-body-util).
//!
//! **Retries.** Every gRPC call is a `POST`, so nothing tells which of them may be repeated, and the body is a stream.
//! You have to say it, in one of two places:
//!
//! - around the generated client, where a request is a message, which can be cloned: a `service_fn` that makes the call, with
//!   `RetryLayer::new().classify(GrpcStatus)` around it, for the methods that may be repeated (the example does that);
//! - beneath it, around the channel: `ReplayLayer::new()` outside of `RetryLayer::new().classify(GrpcStatus).copy(CopyIf(..))`, whose
//!   function looks at the path (`/package.Service/Method`), and next to the channel
//!   `.map_request(|request: http::Request<_>| request.map(tonic::body::Body::new))`.
//!
//! `RetryLayer::http()` sends every gRPC call once, for it takes a `POST` for what it is, unless
//! [nobody processed](crate::is_unprocessed) the call: the channel could not connect, or the server refused the stream.

#[cfg(feature = "tonic")]
mod status;

use std::{convert::Infallible, error::Error as StdError, fmt, time::Duration};

use http::{HeaderMap, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};

use crate::outcome::{Class, Classify, Degraded, Error, Reason, Rejection, retry_after};
#[cfg(feature = "tonic")]
#[cfg_attr(docsrs, doc(cfg(feature = "tonic")))]
pub use status::status;

/// The codes of <https://grpc.github.io/grpc/core/md_doc_statuscodes.html> that are named here.
pub(crate) mod code {
    pub(crate) const OK: i32 = 0;
    pub(crate) const CANCELLED: i32 = 1;
    pub(crate) const UNKNOWN: i32 = 2;
    pub(crate) const DEADLINE_EXCEEDED: i32 = 4;
    pub(crate) const PERMISSION_DENIED: i32 = 7;
    pub(crate) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(crate) const UNIMPLEMENTED: i32 = 12;
    pub(crate) const INTERNAL: i32 = 13;
    pub(crate) const UNAVAILABLE: i32 = 14;
    pub(crate) const DATA_LOSS: i32 = 15;
    pub(crate) const UNAUTHENTICATED: i32 = 16;
}

/// How long to wait before a retry, in milliseconds; anything but a number from 0 asks for no retry at all (gRPC A6).
pub(crate) const PUSHBACK: &str = "grpc-retry-pushback-ms";

const STATUS: &str = "grpc-status";

const GRPC: &[u8] = b"application/grpc";

impl Rejection {
    /// The status code that a gRPC server answers with: 4 (`DEADLINE_EXCEEDED`) for a timeout, 8 (`RESOURCE_EXHAUSTED`) for an
    /// overload, a rate or an empty pool, 1 (`CANCELLED`) for a caller that stopped sending, 2 (`UNKNOWN`) for the failure of a
    /// shared call that would be the same the next time, 13 (`INTERNAL`) for a call that would wait for itself, 14
    /// (`UNAVAILABLE`) otherwise.
    #[must_use]
    pub fn grpc_code(&self) -> i32 {
        match self.reason() {
            Reason::TimedOut { .. } | Reason::DeadlineExceeded { .. } => code::DEADLINE_EXCEEDED,
            Reason::Overloaded { .. } | Reason::RateLimited | Reason::Exhausted { .. } => code::RESOURCE_EXHAUSTED,
            // It is the caller who gave the call up.
            Reason::UploadStalled { .. } | Reason::UploadFailed { .. } => code::CANCELLED,
            // A client sends again what it hears to be unavailable.
            Reason::Shared { class, .. } if !matches!(class, Class::Failure { transient: true, .. }) => code::UNKNOWN,
            Reason::Recursive => code::INTERNAL,
            _ => code::UNAVAILABLE,
        }
    }

    /// The value of [`PUSHBACK`], where the layer knows it: whole milliseconds, rounded up, as many as the format can say.
    pub(crate) fn grpc_pushback(&self) -> Option<i32> {
        let wait = self.retry_after()?;
        let millis = wait.as_millis() + u128::from(wait.subsec_nanos() % 1_000_000 > 0);
        Some(i32::try_from(millis).unwrap_or(i32::MAX))
    }
}

/// Judges a gRPC response by its status.
///
/// | status | class |
/// |---|---|
/// | `UNAVAILABLE` | a transient failure |
/// | `RESOURCE_EXHAUSTED` with `grpc-retry-pushback-ms` from 0 up | [declined](Class::Declined): retried, and not held against the service |
/// | `DEADLINE_EXCEEDED`, `INTERNAL`, `UNKNOWN`, `DATA_LOSS` | a failure: it may have done its work, so it is not retried |
/// | `CANCELLED`, any other `RESOURCE_EXHAUSTED` | ignored: this caller hung up, or has used up its quota, or sent too much |
/// | all others | a success: `NOT_FOUND` or `PERMISSION_DENIED` is an answer |
///
/// The failures are those of linkerd2-proxy, without `PERMISSION_DENIED`, which says more about the caller. Of them only `UNAVAILABLE`
/// is retried, as in the policy of gRPC A6: a status should be retried if it says that the service did not process the
/// request. The pushback of a transient failure is how long to leave the service alone; one that is negative or cannot be read makes
/// it a failure that is not retried (A6 again).
///
/// The status is read where the response has no messages, which is where servers put an error that came before the
/// first message (a *trailers-only* response). A response without it is judged by its HTTP status, as [gRPC's
/// table](https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md) says, and `Retry-After` counts as
/// pushback; a 429 is declined. With the status 200 it is `UNKNOWN`, a failure, unless its `content-type` is
/// `application/grpc`: then it counts as a success, because what its trailers will say is not known yet.
///
/// A layer that waits for the end of the body judges the trailers too, such as a circuit breaker with
/// [`until_body_end`](crate::circuit_breaker::CircuitBreakerLayer::until_body_end). There a body that ends without a status is `UNKNOWN`;
/// one that its reader drops before its end is not. The status of gRPC-Web (`application/grpc-web`) lies in the last message, which
/// no layer reads.
///
/// A success that is [`Degraded`](crate::Degraded) is ignored, as with `HttpStatus`.
///
/// An error is a transient failure, as with [`HttpStatus`](crate::HttpStatus): no response came. A `tonic::Status` as the error (feature
/// `tonic`) is judged by its code, or, if tonic made it of an error of the transport that it has no better code for, as such.
///
/// An error type of your own says itself what it is:
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
    /// What this response says about the service.
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
            // Its status comes at its end.
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

// An impl for every error would leave no room for the one that has a code of its own.
impl<B> Classify<Response<B>, Infallible> for GrpcStatus {
    fn classify(&self, outcome: Result<&Response<B>, &Infallible>) -> Class {
        self.judge_or_transient(outcome)
    }

    fn classify_trailers(&self, trailers: &HeaderMap) -> Class {
        judge_trailers(trailers)
    }

    fn classify_without_trailers(&self, response: &Response<B>) -> Class {
        judge_without_trailers(response)
    }

    fn describe(&self, response: &Response<B>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe(response, f)
    }
}

impl<B, E> Classify<Response<B>, Error<E>> for GrpcStatus {
    fn classify(&self, outcome: Result<&Response<B>, &Error<E>>) -> Class {
        self.judge_or_transient(outcome)
    }

    fn classify_trailers(&self, trailers: &HeaderMap) -> Class {
        judge_trailers(trailers)
    }

    fn classify_without_trailers(&self, response: &Response<B>) -> Class {
        judge_without_trailers(response)
    }

    fn describe(&self, response: &Response<B>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe(response, f)
    }
}

impl<'a, B> Classify<Response<B>, Box<dyn StdError + Send + Sync + 'a>> for GrpcStatus {
    fn classify(&self, outcome: Result<&Response<B>, &Box<dyn StdError + Send + Sync + 'a>>) -> Class {
        self.judge_or_transient(outcome)
    }

    fn classify_trailers(&self, trailers: &HeaderMap) -> Class {
        judge_trailers(trailers)
    }

    fn classify_without_trailers(&self, response: &Response<B>) -> Class {
        judge_without_trailers(response)
    }

    fn describe(&self, response: &Response<B>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe(response, f)
    }
}

/// What the server says about a retry.
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

/// What these headers, or trailers, say; if they say it.
fn read(headers: &HeaderMap) -> Option<Class> {
    headers.get(STATUS).map(|status| class(read_code(status), || Pushback::of(headers)))
}

/// gRPC knows no call that ends without a status: to it the status is unknown then.
fn judge_trailers(trailers: &HeaderMap) -> Class {
    read(trailers).unwrap_or(Class::PERMANENT)
}

/// A success so far, whose body ends without trailers.
fn judge_without_trailers<B>(response: &Response<B>) -> Class {
    let headers = response.headers();
    let is_unsaid = response.status() == StatusCode::OK && !headers.contains_key(STATUS);
    if is_unsaid && Content::of(headers) == Content::Grpc { Class::PERMANENT } else { Class::Success }
}

/// What a response says that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Grpc,
    /// gRPC-Web: its trailers are in the last message of its body.
    Web,
    /// Not gRPC: the page of a proxy, say.
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

/// The status of gRPC, or where there is none that of HTTP.
fn describe<B>(response: &Response<B>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match response.headers().get(STATUS) {
        Some(status) => write!(f, "{STATUS} {}", read_code(status)),
        None => write!(f, "{}", response.status()),
    }
}

fn read_code(status: &HeaderValue) -> i32 {
    number(status.as_bytes()).unwrap_or(code::UNKNOWN)
}

/// Digits, as they are written: without a sign, and no zero in front. That is how tonic reads a status.
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
        // Not a code: as gRPC reads it, unknown.
        _ => Class::PERMANENT,
    }
}

#[cfg(test)]
mod tests;
