//! The response future: two attempts in place, and the timer of the second.

use std::{
    fmt,
    future::Future,
    mem,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::task::consume_budget;
use tower_service::Service;

use super::{
    HedgeLayer,
    outcome::{Failure, Granted, Refused, asks_to_wait, ends_the_call},
    slot::{Slot, SlotProj, abandon, before, lost},
    when::{HedgeClock, When},
};
use crate::{
    ambient::{self, Attempt, Spare, Unsent},
    budget::{Budget, Counted},
    caught::undisturbed,
    clock::{self, Sleep},
    copy::CopyRequest,
    debug::impl_debug,
    outcome::{Class, Classify, Reject, reason_of},
    telemetry::LayerEvent,
};

/// The minimum time until a hedge that was due too early is due again.
const SOON: Duration = Duration::from_millis(1);

pin_project! {
    /// The response future of [`Hedge`](super::Hedge).
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Req, W, C, P>
    where
        S: Service<Req>,
        W: When<Req>,
    {
        // One for both attempts, because the second starts once the first was called. None: the outcome was returned.
        service: Option<S>,
        layer: Arc<HedgeLayer<W, C, P>>,
        counted: Counted,
        // None: the request is not hedged, or the first attempt has ended.
        clock: Option<W::Clock>,
        // The next request to send. While the first attempt runs, the copy for the second.
        request: Option<Req>,
        // Whether that copy may be sent even if the request was processed.
        may_repeat: bool,
        hedge: Hedging,
        // Whether the first attempt was in a local queue when it was last polled.
        first_waits: bool,
        // Whether the first attempt left the second none of the task's cooperative budget in the last poll.
        starves: bool,
        // The number of the second attempt.
        second_number: Attempt,
        // The second attempt, until it is sent.
        granted: Option<Granted>,
        // How the first of two attempts ended.
        failure: Option<Box<Failure<S::Response, S::Error>>>,
        #[pin]
        first: Slot<S::Future>,
        #[pin]
        second: Slot<S::Future>,
        #[pin]
        timer: Option<Sleep>,
    }

    impl<S, Req, W, C, P> PinnedDrop for ResponseFuture<S, Req, W, C, P>
    where
        S: Service<Req>,
        W: When<Req>,
    {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if !matches!(*this.second, Slot::Empty) {
                let (first, second) = (this.first.as_mut(), this.second.as_mut());
                abandon(first, second, *this.second_number, this.granted.is_some());
            }
        }
    }
}

/// When the second attempt starts.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Hedging {
    /// The first attempt has not been pending yet, or waits in a local queue.
    NotYet,
    After(Duration),
    /// Only if the first attempt fails.
    OnFailure,
    /// It has started.
    Over,
}

impl<S, Req, W, C, P> ResponseFuture<S, Req, W, C, P>
where
    S: Service<Req>,
    W: When<Req>,
{
    pub(super) fn new(service: S, layer: Arc<HedgeLayer<W, C, P>>, request: Req) -> Self {
        Self {
            service: Some(service),
            counted: layer.budget.as_ref().map(Budget::count).unwrap_or_default(),
            clock: layer.when.clock(&request),
            layer,
            request: Some(request),
            may_repeat: false,
            hedge: Hedging::NotYet,
            first_waits: false,
            starves: false,
            second_number: Attempt(0),
            granted: None,
            failure: None,
            first: Slot::Readying,
            second: Slot::Empty,
            timer: None,
        }
    }
}

impl<S, Req, W, C, P> Future for ResponseFuture<S, Req, W, C, P>
where
    S: Service<Req> + Clone,
    S::Error: Reject<S::Response> + fmt::Display,
    W: When<Req>,
    C: Classify<S::Response, S::Error>,
    P: CopyRequest<Req>,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut counted = self.counted;
        let _counted = counted.enter();
        assert!(self.service.is_some(), "hedge::ResponseFuture polled after it was ready");
        let starved = mem::take(self.as_mut().project().starves);
        if starved && let Some(outcome) = self.as_mut().drive_second(cx) {
            return self.returns(outcome);
        }
        if let Poll::Ready((outcome, sent)) = self.as_mut().poll_first(cx)
            && let Some(outcome) = self.as_mut().first_ended(outcome, sent)
        {
            return self.returns(outcome);
        }
        if self.first.is_running() && matches!(self.second, Slot::Empty) {
            ready!(self.as_mut().poll_timer(cx));
        }
        // Usually the first attempt is polled first, and wins if both are ready.
        if !starved
            && !matches!(self.second, Slot::Empty)
            && let Some(outcome) = self.as_mut().drive_second(cx)
        {
            return self.returns(outcome);
        }
        Poll::Pending
    }
}

/// The outcome of an attempt, and whether the service was called.
type Ended<S, Req> = (Result<<S as Service<Req>>::Response, <S as Service<Req>>::Error>, bool);

impl<S, Req, W, C, P> ResponseFuture<S, Req, W, C, P>
where
    S: Service<Req> + Clone,
    S::Error: Reject<S::Response> + fmt::Display,
    W: When<Req>,
    C: Classify<S::Response, S::Error>,
    P: CopyRequest<Req>,
{
    fn poll_first(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended<S, Req>> {
        let mut this = self.project();
        if let (SlotProj::Readying, Some(service)) = (this.first.as_mut().project(), &mut *this.service) {
            if let Err(error) = ready!(service.poll_ready(cx)) {
                this.first.set(Slot::Empty);
                // For the second attempt.
                *service = service.clone();
                return Poll::Ready((Err(error), false));
            }
            let Some(request) = this.request.take() else {
                // Unreachable: the call panicked before.
                return Poll::Pending;
            };
            if this.clock.is_some() {
                let copy = this.layer.copy.copy(&request);
                *this.may_repeat = copy.is_some();
                *this.request = copy.or_else(|| this.layer.copy.copy_unprocessed(&request));
            }
            if !*this.may_repeat {
                // No clock, because it measures only calls that may be hedged.
                (*this.clock, *this.hedge) = (None, Hedging::OnFailure);
            }
            let response = service.call(request);
            this.first.set(Slot::Calling { response });
        }
        let SlotProj::Calling { response } = this.first.as_mut().project() else { return Poll::Pending };
        ambient::set(Unsent(false));
        let polled = response.poll(cx);
        *this.first_waits = polled.is_pending() && ambient::get::<Unsent>().0;
        let outcome = ready!(polled);
        // Drop the call before its outcome is reported.
        this.first.set(Slot::Empty);
        Poll::Ready((outcome, true))
    }

    /// Returns the outcome of the call, if the first attempt decides it.
    fn first_ended(
        self: Pin<&mut Self>,
        outcome: Result<S::Response, S::Error>,
        sent: bool,
    ) -> Option<Result<S::Response, S::Error>> {
        let mut this = self.project();
        let class = Class::of(&outcome, &this.layer.classify);
        this.timer.set(None);
        let clock = this.clock.take();
        if ends_the_call(class, &outcome) {
            if class == Class::Success
                && let Some(clock) = clock
            {
                clock.answered();
            }
            return Some(outcome);
        }
        // A request that was sent has no copy unless the layer applies to it.
        let applies = sent || clock.is_some();
        drop(clock);
        if matches!(*this.second, Slot::Empty) {
            // A request that was not sent needs no copy.
            let may_repeat = *this.may_repeat || !sent;
            let granted = if applies && *this.hedge != Hedging::Over {
                this.layer.grant_after(this.request.as_ref(), may_repeat, class, &outcome)
            } else {
                None
            };
            if granted.is_none() {
                return Some(this.layer.settle(this.failure.take(), class, outcome, sent));
            }
            *this.granted = granted;
            *this.second_number = Attempt(ambient::get::<Attempt>().0.saturating_add(1));
            *this.hedge = Hedging::Over;
            this.second.set(Slot::Readying);
        } else if asks_to_wait(class) && this.granted.is_some() {
            // The second attempt was not sent, and must not be sent now.
            return Some(outcome);
        }
        *this.failure = Some(this.layer.keep(class, outcome, sent));
        None
    }

    /// Pending if there is no second attempt.
    fn poll_timer(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        // Time in a local queue is not the service's.
        if *this.first_waits {
            return Poll::Pending;
        }
        if *this.hedge == Hedging::NotYet {
            let delay = this.clock.as_mut().and_then(HedgeClock::start);
            *this.hedge = delay.map_or(Hedging::OnFailure, Hedging::After);
            this.timer.set(delay.filter(|delay| !delay.is_zero()).map(clock::sleep));
        }
        let Hedging::After(delay) = *this.hedge else { return Poll::Pending };
        if let Some(timer) = this.timer.as_mut().as_pin_mut() {
            ready!(timer.poll(cx));
        }
        let Some(copy) = &*this.request else { return Poll::Pending };
        match this.layer.grant_beside(copy) {
            Ok(granted) => {
                *this.granted = Some(granted);
                *this.second_number = Attempt(ambient::get::<Attempt>().0.saturating_add(1));
                *this.hedge = Hedging::Over;
                if let Some(clock) = this.clock {
                    clock.is_due();
                }
                this.timer.set(None);
                this.second.set(Slot::Readying);
                return Poll::Ready(());
            }
            Err(Refused::ForNow) => {
                // Twice as long each time, so that a long upload is not asked again and again.
                let later = delay.saturating_mul(2).max(SOON);
                *this.hedge = Hedging::After(later);
                this.timer.set(Some(clock::sleep(later)));
                if let Some(timer) = this.timer.as_mut().as_pin_mut()
                    && timer.poll(cx).is_ready()
                {
                    cx.waker().wake_by_ref();
                }
            }
            Err(Refused::ForGood) => {
                *this.hedge = Hedging::OnFailure;
                this.timer.set(None);
            }
        }
        Poll::Pending
    }

    fn poll_second(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended<S, Req>> {
        let mut this = self.project();
        let Some(service) = this.service else { return Poll::Pending };
        let first_runs = this.first.is_running();
        let mut number = *this.second_number;
        let mut spare = Spare(first_runs && this.granted.is_some());
        if let SlotProj::Readying = this.second.as_mut().project() {
            let _entered = (ambient::enter(&mut number), spare.0.then(|| ambient::enter(&mut spare)));
            match service.poll_ready(cx) {
                Poll::Pending => {
                    ambient::set(Unsent(*this.first_waits || !first_runs));
                    return Poll::Pending;
                }
                Poll::Ready(Err(error)) => {
                    this.second.set(Slot::Empty);
                    return Poll::Ready((Err(error), false));
                }
                Poll::Ready(Ok(())) => {}
            }
            let Some(request) = this.request.take() else { return Poll::Pending };
            let response = service.call(request);
            this.second.set(Slot::Calling { response });
        }
        let SlotProj::Calling { response } = this.second.as_mut().project() else { return Poll::Pending };
        let entered = (ambient::enter(&mut number), spare.0.then(|| ambient::enter(&mut spare)));
        ambient::set(Unsent(false));
        let polled = response.poll(cx);
        drop(entered);
        let waits = ambient::get::<Unsent>().0;
        match polled {
            Poll::Ready(outcome) => {
                this.second.set(Slot::Empty);
                Poll::Ready((outcome, true))
            }
            Poll::Pending if !waits => {
                if let Some(granted) = this.granted.take() {
                    this.layer.sent(granted);
                }
                Poll::Pending
            }
            Poll::Pending => {
                ambient::set(Unsent(*this.first_waits || !first_runs));
                // A hedge must not delay the first attempts of other calls.
                if spare.0 {
                    *this.granted = None;
                    lost(this.second.as_mut(), *this.second_number);
                    this.layer.info.emit(LayerEvent::HedgeRefused { reason: "queue" });
                }
                Poll::Pending
            }
        }
    }

    /// Polls the second attempt. Returns the outcome of the call, if it decides it.
    #[cold]
    fn drive_second(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Option<Result<S::Response, S::Error>> {
        if self.first.is_running() {
            *self.as_mut().project().starves = pin!(consume_budget()).poll(cx).is_pending();
        }
        match self.as_mut().poll_second(cx) {
            Poll::Ready((outcome, sent)) => self.second_ended(outcome, sent),
            Poll::Pending => None,
        }
    }

    /// Returns the outcome of the call, if the second attempt decides it.
    fn second_ended(
        self: Pin<&mut Self>,
        outcome: Result<S::Response, S::Error>,
        sent: bool,
    ) -> Option<Result<S::Response, S::Error>> {
        let this = self.project();
        if let Some(granted) = this.granted.take() {
            let is_refused = !sent || S::Error::rejection(&outcome).is_some_and(|rejection| rejection.is_unprocessed());
            if is_refused {
                drop(granted);
                this.layer.info.emit(LayerEvent::HedgeRefused { reason: reason_of(&outcome) });
            } else {
                this.layer.sent(granted);
            }
        }
        let class = Class::of(&outcome, &this.layer.classify);
        if ends_the_call(class, &outcome) {
            if class == Class::Success {
                // Gone before the event is emitted.
                lost(this.first, before(*this.second_number));
                this.layer.info.emit(LayerEvent::HedgeWon);
            }
            return Some(outcome);
        }
        if !this.first.is_running() || (asks_to_wait(class) && *this.first_waits) {
            return Some(this.layer.settle(this.failure.take(), class, outcome, sent));
        }
        *this.failure = Some(this.layer.keep(class, outcome, sent));
        None
    }

    /// Drops everything that is left of the call, and then returns its outcome.
    fn returns(self: Pin<&mut Self>, outcome: Result<S::Response, S::Error>) -> Poll<Result<S::Response, S::Error>> {
        let mut this = self.project();
        if this.first.is_running() {
            lost(this.first, before(*this.second_number));
        }
        if !matches!(*this.second, Slot::Empty) {
            lost(this.second, *this.second_number);
        }
        this.timer.set(None);
        let failure = this.failure.take();
        undisturbed(|| drop(failure));
        (*this.service, *this.request, *this.clock, *this.granted) = (None, None, None, None);
        Poll::Ready(outcome)
    }
}

impl_debug!(ResponseFuture<S, Req, W, C, P> in hedge where [S: Service<Req>, W: When<Req>] {
    state = |this| match (&this.first, &this.second) {
        _ if this.service.is_none() => "done",
        (Slot::Readying, _) => "readying",
        (_, Slot::Empty) => "calling",
        (Slot::Empty, _) => "hedging",
        (Slot::Calling { .. }, _) => "calling and hedging",
    },
});
