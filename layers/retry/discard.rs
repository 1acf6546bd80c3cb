//! What becomes of the response of an attempt that failed, when there is another one.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Buf;
use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;

use crate::clock::{self, Sleep};

/// What becomes of the response of an attempt that failed, when there is another one: [`Dropped`] or [`Drained`].
#[diagnostic::on_unimplemented(
    message = "a retry cannot get rid of a response of type `{R}` by `{Self}`",
    label = "this response has no body to drain",
    note = "`RetryLayer::http()` drains the body of a response that is retried, which has to be an `http_body::Body`",
    note = "for any other response write `.discard(ziggurat::retry::Dropped)`"
)]
pub trait Discard<R> {
    /// What is left of the response.
    #[doc(hidden)]
    type Rest;

    /// Begins to get rid of it, which is to take no longer than `limit`. `None` if nothing is left.
    #[doc(hidden)]
    fn discard(&self, response: R, limit: Duration) -> Option<Self::Rest>;

    /// Goes on; ready once it can be dropped.
    #[doc(hidden)]
    fn poll_gone(rest: &mut Self::Rest, cx: &mut Context<'_>) -> Poll<()>;
}

/// It is dropped at once. The default of [`RetryLayer::new`](super::RetryLayer::new).
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

/// Its body is read to the end, so that an HTTP/1 connection can be used again: one whose response was dropped in the middle has to
/// be closed. The default of [`RetryLayer::http`](super::RetryLayer::http).
///
/// It is read while the pause before the next attempt runs: for at least 100 ms (or a tenth of what is left until the deadline, if
/// that is less), for a second at most, and no more than 64 KiB. Past any of these the body is dropped. The next attempt starts when
/// the pause is over and the body is gone. What is held until the end of the body, a permit say, is held so long.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained;

/// How much of a body is read.
const MOST: usize = 64 * 1024;

/// What a frame counts as at least: a body can also go on for ever without any data.
const LEAST: usize = 64;

#[diagnostic::do_not_recommend]
impl<B: Body> Discard<Response<B>> for Drained {
    // In a box, because few calls ever need the place.
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
    /// A body that is read to be forgotten.
    pub struct Draining<B> {
        #[pin]
        body: B,
        left: usize,
        limit: Duration,
        // None: it was not pending yet.
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

impl<B> fmt::Debug for Draining<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draining").field("left", &self.left).finish()
    }
}

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
