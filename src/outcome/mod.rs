//! Outcomes: the service's own response or error, or a layer's rejection in its place, and their classification.

mod cause;
mod class;
mod classify;
mod degraded;
pub mod grpc;
mod http_status;
mod reason;
mod reject;
mod rejection;
mod retry_after;
mod unprocessed;

pub(crate) use self::{
    cause::Cause,
    reject::{Ended, judged_as, known, reason_of, was_unprocessed},
    rejection::close_connection,
    retry_after::{retry_after, whole_seconds},
    unprocessed::is_bad_certificate,
};
pub use self::{
    class::Class,
    classify::{Classify, FailOnError, WithRejections, with_rejections},
    degraded::Degraded,
    grpc::GrpcStatus,
    http_status::{HttpStatus, HttpStatusMillis},
    reason::Reason,
    reject::{EmptyBody, Error, Reject, boxed, rejection},
    rejection::Rejection,
    unprocessed::is_unprocessed,
};
