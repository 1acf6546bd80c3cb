//! How the response of a failed attempt is discarded before the next attempt.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Buf;
use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;

use crate::{
    clock::{self, Sleep},
    debug::impl_debug,
};

/// Discards the response of a failed attempt before the next attempt: [`Dropped`] or [`Drained`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot discard a response of type `{R}`",
    label = "this response has no body to drain",
    note = "`RetryLayer::http()` drains the body of a failed response, which must be an `http_body::Body`; a `reqwest::Response` needs ziggurat's feature `reqwest`",
    note = "for any other response, write `.discard(ziggurat::retry::Dropped)`"
)]
pub trait Discard<R> {
    /// The rest of the response that is still to be discarded.
    #[doc(hidden)]
    type Rest;

    /// Starts to discard the response, which must take no longer than `limit`. Returns `None` if nothing is left.
    #[doc(hidden)]
    fn discard(&self, response: R, limit: Duration) -> Option<Self::Rest>;

    /// Continues to discard the response. Ready once the rest can be dropped.
    #[doc(hidden)]
    fn poll_gone(rest: &mut Self::Rest, cx: &mut Context<'_>) -> Poll<()>;
}

/// Drops the response at once. The default of [`RetryLayer::new`](super::RetryLayer::new).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped;

impl<R> Discard<R> for Dropped {
    type Rest = Infallible;

    fn discard(&self, _: R, _: Duration) -> Option<Infallible> {
        None
    }

    fn poll_gone(rest: &mut Infallible, _: &mut Context<'_>) -> Poll<()> {
        match *rest {}
    }
}

/// Reads the response's body to the end, so that an HTTP/1 connection can be reused. The default of
/// [`RetryLayer::http`](super::RetryLayer::http).
///
/// If a response is dropped in the middle of its body, its connection must be closed.
///
/// The body is read during the pause before the next attempt: for at least 100 ms (or a tenth of the time until the
/// deadline, if that is less), for at most one second, and up to 64 KiB. Beyond these limits it is dropped. The next
/// attempt starts when the pause is over and the body is gone. Everything that is held until the end of the body,
/// such as a permit, is held until then.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained;

/// The maximum number of bytes read from a body.
const MOST: usize = 64 * 1024;

/// The minimum that a frame counts for, because a body may yield empty frames forever.
const LEAST: usize = 64;

#[diagnostic::do_not_recommend]
impl<B: Body> Discard<Response<B>> for Drained {
    // Boxed, because few calls ever need the space.
    type Rest = Pin<Box<Draining<B>>>;

    fn discard(&self, response: Response<B>, limit: Duration) -> Option<Self::Rest> {
        Draining::begin(response.into_body(), limit)
    }

    fn poll_gone(rest: &mut Self::Rest, cx: &mut Context<'_>) -> Poll<()> {
        rest.as_mut().poll(cx)
    }
}

#[cfg(feature = "reqwest")]
#[cfg_attr(docsrs, doc(cfg(feature = "reqwest")))]
impl Discard<reqwest::Response> for Drained {
    type Rest = Pin<Box<Draining<reqwest::Body>>>;

    fn discard(&self, response: reqwest::Response, limit: Duration) -> Option<Self::Rest> {
        Draining::begin(response.into(), limit)
    }

    fn poll_gone(rest: &mut Self::Rest, cx: &mut Context<'_>) -> Poll<()> {
        rest.as_mut().poll(cx)
    }
}

pin_project! {
    /// A body that is read to its end and discarded.
    pub struct Draining<B> {
        #[pin]
        body: B,
        left: usize,
        limit: Duration,
        // None: the body has not been pending yet.
        #[pin]
        timer: Option<Sleep>,
    }
}

impl<B: Body> Draining<B> {
    fn begin(body: B, limit: Duration) -> Option<Pin<Box<Self>>> {
        let worth_it = !body.is_end_stream() && body.size_hint().lower() <= MOST as u64;
        worth_it.then(|| Box::pin(Self { body, left: MOST, limit, timer: None }))
    }
}

impl_debug!(Draining<B> { left });

impl<B: Body> Future for Draining<B> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        while let Poll::Ready(frame) = this.body.as_mut().poll_frame(cx) {
            let Some(Ok(frame)) = frame else { return Poll::Ready(()) };
            let bytes = frame.data_ref().map_or(0, Buf::remaining).max(LEAST);
            let Some(left) = this.left.checked_sub(bytes) else { return Poll::Ready(()) };
            *this.left = left;
        }
        if this.timer.is_none() {
            this.timer.set(Some(clock::sleep(*this.limit)));
        }
        this.timer.as_pin_mut().map_or(Poll::Pending, |timer| timer.poll(cx))
    }
}
