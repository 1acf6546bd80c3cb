//! Rejections as gRPC statuses.

use std::{
    error::Error as StdError,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body::{Body, Frame};

use super::Respond;
use crate::{
    body::{Guard, PollFrame},
    outcome::{Rejection, grpc::PUSHBACK},
};

/// Responds with a gRPC status without messages (*trailers-only*), for `B: Default`.
///
/// As gRPC requires, the HTTP status is 200. The headers are
///
/// - `content-type: application/grpc`;
/// - `grpc-status`: [`Rejection::grpc_code`];
/// - `grpc-message`: [`Rejection::public_message`], percent-encoded. It contains neither the names of layers nor
///   messages of errors.
/// - `grpc-retry-pushback-ms`, if the layer knows when a retry is worthwhile (gRPC A6).
///
/// It does not check whether the request is a gRPC request. If the server also receives others, place the layer
/// around the gRPC services only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Grpc;

impl<B: Default> Respond<B> for Grpc {
    type Memory = ();

    fn remember<T>(&self, _: &Request<T>) {}

    fn respond(&self, (): (), rejection: &Rejection) -> Response<B> {
        let mut response = Response::new(B::default());
        *response.headers_mut() = status_of(rejection);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    }
}

/// Ends a body with trailers if a rejection would end it with an error: see
/// [`until_body_end`](super::RejectionResponseLayer::until_body_end).
#[derive(Debug, Default)]
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub struct GrpcTrailers {
    sent: bool,
}

impl<B> Guard<B> for GrpcTrailers
where
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Error = Box<dyn StdError + Send + Sync>;

    fn poll_frame(&mut self, body: Pin<&mut B>, cx: &mut Context<'_>) -> PollFrame<B::Data, Self::Error> {
        if self.sent {
            return Poll::Ready(None);
        }
        let frame = ready!(body.poll_frame(cx)).map(|frame| {
            let error = match frame {
                Ok(frame) => return Ok(frame),
                Err(error) => error.into(),
            };
            let Some(rejection) = Rejection::find(&*error) else { return Err(error) };
            self.sent = true;
            Ok(Frame::trailers(status_of(rejection)))
        });
        Poll::Ready(frame)
    }
}

fn status_of(rejection: &Rejection) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("grpc-status", HeaderValue::from(rejection.grpc_code()));
    if let Ok(message) = HeaderValue::try_from(percent_encoded(&rejection.public_message())) {
        headers.insert("grpc-message", message);
    }
    if let Some(millis) = rejection.grpc_pushback() {
        headers.insert(PUSHBACK, HeaderValue::from(millis));
    }
    headers
}

/// Encodes text for `grpc-message`: `%`, and every byte outside the range from space to tilde, becomes `%` and two
/// hex digits.
///
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>, "Percent-Encoded".
fn percent_encoded(text: &str) -> String {
    let digit = |nibble: u8| char::from(b"0123456789ABCDEF"[usize::from(nibble)]);
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => encoded.extend(['%', digit(byte >> 4), digit(byte & 0xf)]),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::percent_encoded;

    /// Decodes the text one character at a time; `None` if a character is not allowed in a header.
    fn decoded(text: &str) -> Option<String> {
        let (mut bytes, mut rest) = (Vec::new(), text);
        while let Some(char) = rest.chars().next() {
            let taken = if char == '%' { 3 } else { 1 };
            let (part, after) = rest.split_at_checked(taken)?;
            bytes.push(match part.strip_prefix('%') {
                Some(hex) => u8::from_str_radix(hex, 16).ok()?,
                None => u8::try_from(char).ok().filter(|byte| (0x20..0x7f).contains(byte))?,
            });
            rest = after;
        }
        String::from_utf8(bytes).ok()
    }

    #[test]
    fn what_a_header_may_hold_is_not_encoded() {
        assert_eq!(percent_encoded("limit: 99 ~ (busy)"), "limit: 99 ~ (busy)");
        assert_eq!(percent_encoded("100 % größer\n"), "100 %25 gr%C3%B6%C3%9Fer%0A");
    }

    proptest! {
        #[test]
        fn any_text_is_read_back_as_it_was(text in any::<String>()) {
            prop_assert_eq!(decoded(&percent_encoded(&text)), Some(text));
        }
    }
}
