//! A call in flight: counted from its admission until the end of its response's body.

use std::{
    error::Error as StdError,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http_body::Body;

use super::{
    DrainLayer,
    handle::{Draining, Shared},
};
use crate::{
    ambient::{self, slot},
    body::{Guard, PollFrame},
    clock::Sleep,
    debug::impl_debug,
    outcome::{Reason, Reject, Rejection},
};

/// The layer around the running call. None outside any.
#[derive(Clone, Default)]
pub(super) struct Current(pub(super) Option<Arc<DrainLayer>>);

slot!(Current, Current(None));

/// Completes when the drain of the server begins that the caller runs in. Outside any
/// [`DrainLayer`](super::DrainLayer), it never does.
///
/// It works in the service inside the layer, in every layer between, and in the response's body. A task that was
/// spawned does not see it: create the future first, and pass it on.
///
/// ```
/// use futures_util::{Stream, StreamExt};
/// use ziggurat::drain::draining;
///
/// /// The news, until the server stops.
/// fn news(source: impl Stream<Item = String>) -> impl Stream<Item = String> {
///     source.take_until(draining())
/// }
/// ```
pub fn draining() -> Draining {
    let Current(layer) = ambient::get();
    layer.map_or_else(Draining::never, |layer| layer.handle.draining())
}

/// The wait of a caller for the readiness of the inner service. It ends when the drain begins.
pub(super) struct Readiness {
    pub(super) layer: Arc<DrainLayer>,
    // None: it does not wait.
    place: Option<u32>,
}

impl Readiness {
    pub(super) fn new(layer: Arc<DrainLayer>) -> Self {
        Self { layer, place: None }
    }

    /// Called while the inner service is not ready. Returns whether the caller has to wait.
    pub(super) fn goes_on(&mut self, cx: &mut Context<'_>) -> bool {
        self.layer.handle.shared().end_or_wake(&mut self.place, cx).is_none()
    }

    pub(super) fn is_over(&mut self) {
        if let Some(place) = self.place.take() {
            self.layer.handle.shared().forget_waker(place);
        }
    }
}

/// A clone does not wait.
impl Clone for Readiness {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.layer))
    }
}

impl Drop for Readiness {
    fn drop(&mut self) {
        self.is_over();
    }
}

/// A call in flight. Dropping it counts the call out.
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub struct InFlight {
    // While the call is polled, this holds the layer further out.
    layer: Current,
    // None: it was never pending.
    place: Option<u32>,
    // Boxed, because a call that no drain waits for has none.
    timer: Option<Pin<Box<Sleep>>>,
}

impl InFlight {
    /// Counts a call, unless the drain has begun.
    #[inline]
    pub(super) fn enter(layer: &Arc<DrainLayer>) -> Option<Self> {
        let admitted = layer.handle.shared().enter();
        admitted.then(|| Self { layer: Current(Some(Arc::clone(layer))), place: None, timer: None })
    }

    /// Makes the layer current while `f` calls or polls the inner service.
    #[inline]
    pub(super) fn run<T>(&mut self, f: impl FnOnce() -> T) -> T {
        let _entered = ambient::enter(&mut self.layer);
        f()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.shared().is_some_and(|shared| shared.end().is_some())
    }

    /// Called while the call is pending. Ready with a rejection once the grace period is over.
    #[inline]
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Rejection> {
        let Current(Some(layer)) = &self.layer else { return Poll::Pending };
        let Some(end) = layer.handle.shared().end_or_wake(&mut self.place, cx) else { return Poll::Pending };
        ready!(end.poll(&mut self.timer, cx));
        Poll::Ready(layer.reject(Some(end.grace)))
    }

    /// Called for a frame that is ready and not the last. Returns a rejection once the grace period is over: a body
    /// that is always ready is never pending.
    fn end(&self) -> Option<Rejection> {
        let Current(Some(layer)) = &self.layer else { return None };
        let end = layer.handle.shared().end().filter(|end| end.is_over())?;
        Some(layer.reject(Some(end.grace)))
    }

    fn shared(&self) -> Option<&Shared> {
        self.layer.0.as_ref().map(|layer| layer.handle.shared())
    }
}

impl DrainLayer {
    /// Rejects a call that came during the drain, or that did not end within `grace`.
    #[cold]
    pub(super) fn reject(&self, grace: Option<Duration>) -> Rejection {
        self.info.reject(Reason::Draining { grace })
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let Some(shared) = self.shared() else { return };
        if let Some(place) = self.place {
            shared.forget_waker(place);
        }
        shared.leave();
    }
}

impl<B> Guard<B> for InFlight
where
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Error = Box<dyn StdError + Send + Sync>;

    fn poll_frame(&mut self, mut body: Pin<&mut B>, cx: &mut Context<'_>) -> PollFrame<B::Data, Self::Error> {
        let rejection = match self.run(|| body.as_mut().poll_frame(cx)) {
            Poll::Pending => ready!(self.poll_end(cx)),
            Poll::Ready(frame) => {
                let goes_on = matches!(&frame, Some(Ok(frame)) if frame.is_data()) && !body.is_end_stream();
                match if goes_on { self.end() } else { None } {
                    Some(rejection) => rejection,
                    None => return Poll::Ready(frame.map(|frame| frame.map_err(Into::into))),
                }
            }
        };
        Poll::Ready(Reject::<()>::reject(rejection).err().map(Err))
    }
}

impl_debug!(InFlight { draining = |this| this.is_draining(), .. });
