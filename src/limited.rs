//! A future that is given up at its limit.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;

use crate::{
    ambient::{self, Entered},
    caller,
    clock::{self, Sleep},
    deadline::{Limit, Told},
};

/// Puts a limit in place for everything inside, as far as it is not later than the surrounding one.
#[inline]
pub(crate) fn enter<'a>(own: &mut Limit, inside: &'a mut Limit) -> Entered<'a, Limit> {
    ambient::enter_with(inside, |inside, outer| *inside = own.earlier(outer))
}

/// When a limit started that was put in place as `before` and now is `inside`: somebody asked for the deadline, which fixed it.
#[inline]
pub(crate) fn started(before: Limit, inside: Limit) -> Option<Limit> {
    (before.is_unstarted() && !inside.is_unstarted()).then(|| inside.since(before))
}

/// Nobody else would end a call by a deadline that it was only told: so the limit does, if it would end later, and nothing outside ends
/// sooner.
pub(crate) fn adopt_told(limit: &mut Limit, own: &mut Limit, outer: Limit) -> bool {
    let Told(told) = ambient::get();
    let adopts = *own != Limit::NONE && told < *own && told < outer;
    if adopts {
        let start = own.since(*limit);
        *limit = told.since(start);
        *own = told;
    }
    adopts
}

pin_project! {
    /// A future that is given up at its limit, which is in place whenever it is polled, and when it is dropped.
    ///
    /// The clock starts when the future is first pending, or when somebody inside asks for the deadline. A limit that would end after
    /// the surrounding one leaves it to that one to end the future.
    #[must_use = "futures do nothing unless polled"]
    pub(crate) struct Limited<F> {
        // None: it has ended, or the limit has passed.
        #[pin]
        future: Option<F>,
        // As it was set; and, once it has started, when it ends.
        limit: Limit,
        own: Limit,
        #[pin]
        timer: Option<Sleep>,
        // How long the call had waited for its caller's bytes when the limit started.
        waited: Duration,
    }

    impl<F> PinnedDrop for Limited<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            // Whatever cleans up can see whether its deadline has passed.
            if this.future.is_some() && !this.own.is_unstarted() {
                let mut inside = Limit::NONE;
                let _entered = enter(this.own, &mut inside);
                this.future.set(None);
            }
        }
    }
}

/// The limit has passed: the future was dropped.
pub(crate) struct Expired(pub(crate) Limit);

impl<F> Limited<F> {
    /// `own` is the limit too, or when it ends if it has started already.
    #[inline]
    pub(crate) fn new(future: F, limit: Limit, own: Limit) -> Self {
        let waited = if own == Limit::NONE || own.is_unstarted() { Duration::ZERO } else { caller::waited() };
        Self { future: Some(future), limit, own, timer: None, waited }
    }

    /// The limit as it was set.
    pub(crate) fn limit(&self) -> Limit {
        self.limit
    }

    /// When it ends, if it has started.
    pub(crate) fn own(&self) -> Limit {
        self.own
    }

    /// The future is pending: starts the clock if it does not run yet. Answers whether this limit is the one to end it.
    fn start(self: Pin<&mut Self>, entered: &mut Entered<'_, Limit>) -> bool {
        let this = self.project();
        let asked = started((*this.own).min(*entered.outer), ambient::get());
        if asked.is_some() || this.own.is_unstarted() {
            let start = asked.unwrap_or_else(|| Limit::at(clock::now()));
            *this.own = this.own.started(start);
            *this.waited = caller::waited();
            *entered.outer = entered.outer.started(start);
            ambient::set((*this.own).min(*entered.outer));
        }
        if adopt_told(this.limit, this.own, *entered.outer) {
            ambient::set(*this.own);
        }
        // Of two that end together the outer one does: its end is the request's.
        *this.own < *entered.outer
    }
}

impl<F: Future> Future for Limited<F> {
    type Output = Result<F::Output, Expired>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.as_mut().project();
        let mut inside = Limit::NONE;
        let mut entered = enter(this.own, &mut inside);
        if let Some(future) = this.future.as_mut().as_pin_mut()
            && let Poll::Ready(output) = future.poll(cx)
        {
            this.future.set(None);
            return Poll::Ready(Ok(output));
        }
        if !self.as_mut().start(&mut entered) {
            return Poll::Pending;
        }
        let mut this = self.project();
        // A limit of zero needs no timer to have passed.
        if *this.limit != Limit::ZERO
            && let Some(end) = this.own.instant()
        {
            if this.timer.is_none() {
                this.timer.set(Some(clock::sleep_until(end)));
            }
            if let Some(mut timer) = this.timer.as_mut().as_pin_mut() {
                // It was told of an earlier deadline meanwhile.
                if timer.deadline() != end {
                    timer.as_mut().reset(end);
                }
                ready!(timer.poll(cx));
                // The time in which the service waited for its caller's bytes is not its own. If it goes on, its end wakes this task.
                let later = match caller::put_off(*this.waited, cx.waker()) {
                    Some(later) => later,
                    None => return Poll::Pending,
                };
                if !later.is_zero() {
                    *this.waited += later;
                    *this.own = end.checked_add(later).map_or(Limit::NONE, Limit::at);
                    // What is inside has to learn that it has more time, too.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        }
        // Dropped while the limit is in place, so that whatever cleans up can see that its deadline has passed.
        this.future.set(None);
        Poll::Ready(Err(Expired(*this.limit)))
    }
}
