//! tonic's `Status` as the error of a stack.

use std::{error::Error as StdError, fmt, sync::Arc};

use http::{HeaderMap, Response};
use tonic::{Code, Status};

use super::{
    GrpcStatus, PUSHBACK, Pushback, class, describe, judge_the_response, judge_trailers, judge_without_trailers,
};
use crate::outcome::{Class, Classify, Reject, Rejection};

/// Converts any error to a status, for `.map_err(ziggurat::grpc::status)` innermost, next to a
/// `tonic::transport::Channel`.
///
/// It is `Status::from_error` with inferred types. A failure to connect is `UNAVAILABLE`, an error that tonic does not
/// know is `UNKNOWN`, and the error becomes the status's source. An error that carries a rejection becomes the
/// rejection's status.
#[cfg_attr(docsrs, doc(cfg(feature = "tonic")))]
pub fn status<E>(error: E) -> Status
where
    E: Into<Box<dyn StdError + Send + Sync>>,
{
    Status::try_from_error(error.into()).unwrap_or_else(|error| match Rejection::find(&*error) {
        Some(rejection) => rejected(rejection.clone()),
        None => Status::from_error(error),
    })
}

fn rejected(rejection: Rejection) -> Status {
    let mut status = Status::new(Code::from_i32(rejection.grpc_code()), rejection.public_message());
    if let Some(millis) = rejection.grpc_pushback() {
        status.metadata_mut().insert(PUSHBACK, millis.into());
    }
    status.set_source(Arc::new(rejection));
    status
}

/// A rejection becomes a status with the code of [`Rejection::grpc_code`], a message that is safe for untrusted
/// clients, and `grpc-retry-pushback-ms` if the layer knows when to come back. The rejection is the source of the
/// status, and is also found in a status that was created from another error.
#[cfg_attr(docsrs, doc(cfg(feature = "tonic")))]
impl<R> Reject<R> for Status {
    fn reject(rejection: Rejection) -> Result<R, Self> {
        Err(rejected(rejection))
    }

    fn rejection(outcome: &Result<R, Self>) -> Option<&Rejection> {
        outcome.as_ref().err().and_then(StdError::source).and_then(Rejection::find)
    }

    fn cause(outcome: &Result<R, Self>) -> Option<&(dyn StdError + 'static)> {
        outcome.as_ref().err().map(|status| status as _)
    }
}

/// Classifies for a stack around a channel.
#[cfg_attr(docsrs, doc(cfg(feature = "tonic")))]
impl<B> Classify<Response<B>, Status> for GrpcStatus {
    fn classify(&self, outcome: Result<&Response<B>, &Status>) -> Class {
        match outcome {
            Ok(response) => self.judge(response),
            Err(status) => class_of(status),
        }
    }

    judge_the_response!(B);
}

/// Classifies for a stack around a generated client.
#[cfg_attr(docsrs, doc(cfg(feature = "tonic")))]
impl<T> Classify<tonic::Response<T>, Status> for GrpcStatus {
    fn classify(&self, outcome: Result<&tonic::Response<T>, &Status>) -> Class {
        outcome.map_or_else(class_of, |_| Class::Success)
    }
}

fn class_of(status: &Status) -> Class {
    match status.code() {
        // A status from a peer has no source, so tonic created this one from a transport error.
        Code::Unknown | Code::Cancelled if status.source().is_some() => Class::TRANSIENT,
        code => class(code.into(), || {
            status.metadata().get(PUSHBACK).map_or(Pushback::Unsaid, |value| Pushback::read(value.as_bytes()))
        }),
    }
}
