//! The true cost of a call, which is known at its end only.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Buf;
use http::Response;
use http_body::{Body, Frame};

use super::handle::RateLimitHandle;
use crate::{
    body::{Guard, GuardBody, PollFrame},
    debug::impl_debug,
};

/// When and how the true cost of a call becomes known: [`Estimated`] (never), [`SettleResponse`] after
/// [`.settle(..)`](super::RateLimitLayer::settle), or [`SettleBody`] after
/// [`.settle_body(..)`](super::RateLimitLayer::settle_body).
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot tell the true cost of a response of type `{R}`",
    note = "`.settle(..)` needs a closure that names its argument's type: `|response: &{R}| ..`, returning `u32` or `Option<u32>`",
    note = "`.settle_body(..)` needs an `http::Response`, and a closure `|frame: &http_body::Frame<_>| ..`"
)]
pub trait Settle<R>: Kind {
    /// The layer's response.
    type Response;

    /// Settles the cost of a call, now or at the end of its body.
    #[doc(hidden)]
    fn settle(&self, response: R, reserved: &Self::Reserved) -> Self::Response;
}

/// Sealed, so that methods can be added.
pub trait Kind: Clone {
    /// The record of a call's tokens until its true cost is known.
    type Reserved;

    fn reserve(&self, handle: &RateLimitHandle, cost: u32) -> Self::Reserved;
}

/// The tokens of a call whose true cost is not known yet.
#[derive(Debug)]
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub struct Reserved {
    handle: RateLimitHandle,
    cost: u32,
}

impl Reserved {
    fn new(handle: &RateLimitHandle, cost: u32) -> Self {
        handle.begin_unsettled();
        Self { handle: handle.clone(), cost }
    }

    fn settle(&self, cost: u64) {
        self.handle.settle(self.cost, cost);
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.handle.end_unsettled();
    }
}

/// The cost that a call took its tokens for stands. The default.
#[derive(Debug, Clone, Copy)]
pub struct Estimated;

impl Kind for Estimated {
    type Reserved = ();

    fn reserve(&self, _: &RateLimitHandle, _: u32) {}
}

impl<R> Settle<R> for Estimated {
    type Response = R;

    #[inline]
    fn settle(&self, response: R, (): &()) -> R {
        response
    }
}

/// The true cost is a function of the response.
#[derive(Clone)]
pub struct SettleResponse<F>(pub(super) F);

impl<F: Clone> Kind for SettleResponse<F> {
    type Reserved = Reserved;

    fn reserve(&self, handle: &RateLimitHandle, cost: u32) -> Reserved {
        Reserved::new(handle, cost)
    }
}

impl<R, F, O> Settle<R> for SettleResponse<F>
where
    F: Fn(&R) -> O + Clone,
    O: Into<Option<u32>>,
{
    type Response = R;

    fn settle(&self, response: R, reserved: &Reserved) -> R {
        if let Some(cost) = (self.0)(&response).into() {
            reserved.settle(cost.into());
        }
        response
    }
}

/// The true cost is the sum over the frames of the response's body.
#[derive(Clone)]
pub struct SettleBody<F>(pub(super) F);

impl<F: Clone> Kind for SettleBody<F> {
    type Reserved = Reserved;

    fn reserve(&self, handle: &RateLimitHandle, cost: u32) -> Reserved {
        Reserved::new(handle, cost)
    }
}

impl<B, F> Settle<Response<B>> for SettleBody<F>
where
    B: Body,
    F: FrameCost<B::Data> + Clone,
{
    type Response = Response<GuardBody<B, Meter<F>>>;

    fn settle(&self, response: Response<B>, reserved: &Reserved) -> Self::Response {
        let meter = Meter {
            settle: self.0.clone(),
            known: F::BEFORE,
            reserved: Reserved::new(&reserved.handle, reserved.cost),
        };
        // An empty body ends at once, and with it the meter.
        response.map(|body| GuardBody::new(body, meter))
    }
}

/// The cost of a frame.
pub trait FrameCost<D> {
    /// The known part of the cost before the first frame.
    #[doc(hidden)]
    const BEFORE: Option<u64>;

    /// Returns the cost of this frame, or `None` if it says nothing about the cost.
    fn cost(&self, frame: &Frame<D>) -> Option<u32>;
}

#[diagnostic::do_not_recommend]
impl<D, F, O> FrameCost<D> for F
where
    F: Fn(&Frame<D>) -> O,
    O: Into<Option<u32>>,
{
    const BEFORE: Option<u64> = None;

    fn cost(&self, frame: &Frame<D>) -> Option<u32> {
        self(frame).into()
    }
}

/// One token for each byte of data.
#[derive(Debug, Clone, Copy)]
pub struct CountBytes;

impl<D: Buf> FrameCost<D> for CountBytes {
    const BEFORE: Option<u64> = Some(0);

    fn cost(&self, frame: &Frame<D>) -> Option<u32> {
        let bytes = frame.data_ref().map_or(0, Buf::remaining);
        Some(u32::try_from(bytes).unwrap_or(u32::MAX))
    }
}

/// The guard of a response's body: adds up the cost, and settles it when it is dropped.
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub struct Meter<F> {
    settle: F,
    /// The cost so far. None: no frame has said anything about it.
    known: Option<u64>,
    reserved: Reserved,
}

impl<B: Body, F: FrameCost<B::Data>> Guard<B> for Meter<F> {
    type Error = B::Error;

    fn poll_frame(&mut self, body: Pin<&mut B>, cx: &mut Context<'_>) -> PollFrame<B::Data, B::Error> {
        let polled = body.poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(cost) = self.settle.cost(frame)
        {
            self.known = Some(self.known.unwrap_or(0).saturating_add(cost.into()));
        }
        polled
    }
}

impl<F> Drop for Meter<F> {
    fn drop(&mut self) {
        if let Some(cost) = self.known {
            self.reserved.settle(cost);
        }
    }
}

impl_debug!(SettleResponse<F>(F));
impl_debug!(SettleBody<F>(F));
impl_debug!(Meter<F> { settle: F, known, reserved });
