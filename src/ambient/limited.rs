//! A future that is given up at its limit.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;

use super::{
    Entered, HadItsTime, Limit, Told,
    caller::{self, Later},
    enter_with, get, set,
};
use crate::clock::{self, Sleep};

/// Puts a limit in place for everything inside, as far as it is not later than the surrounding one.
#[inline]
pub(crate) fn enter<'a>(own: &mut Limit, inside: &'a mut Limit) -> Entered<'a, Limit> {
    enter_with(inside, |inside, outer| *inside = own.earlier(outer))
}

/// When a limit started that was put in place as `before` and now is `inside`: somebody asked for the deadline, which fixed it.
#[inline]
pub(crate) fn started(before: Limit, inside: Limit) -> Option<Limit> {
    (before.is_unstarted() && !inside.is_unstarted()).then(|| inside.since(before))
}

/// A limit of time on its way: as it was set, when it ends, and whether it ends a call by a deadline that is not its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// As it was set.
    pub(crate) limit: Limit,
    /// The limit too, until it has started; then when the work ends: with the limit, or with an earlier deadline that it was told of.
    pub(crate) own: Limit,
    /// When the limit would end, if the work ends earlier by a deadline that it was told of.
    full: Limit,
}

impl Clock {
    /// `own` is the limit too, or when it ends if it has started already.
    #[inline]
    pub(crate) fn new(limit: Limit, own: Limit) -> Self {
        Self { limit, own, full: Limit::NONE }
    }

    /// Nothing else ends the work by a deadline that it was only told of: so this limit does, if it ends later, and nothing outside ends
    /// sooner.
    pub(crate) fn adopt_told(&mut self, outer: Limit) -> bool {
        let Told(told) = get();
        let adopts = self.own != Limit::NONE && told < self.own && told < outer;
        if adopts {
            self.full = self.full.min(self.own);
            self.own = told;
        }
        adopts
    }

    /// Whether the work ends with the limit itself, and not by an earlier deadline that it was told of.
    fn is_its_own(&self) -> bool {
        self.full == Limit::NONE
    }

    /// How the work ended, if it ends by this clock.
    pub(crate) fn expired(&self) -> Expired {
        if self.is_its_own() {
            return Expired::Limit(self.limit.duration().unwrap_or(Duration::MAX));
        }
        let start = self.full.since(self.limit);
        Expired::Deadline { after: Some(self.own.since(start).duration().unwrap_or_default()) }
    }

    /// While the work is dropped before it ended: notes in the surroundings whether it had all of the limit by then.
    #[cold]
    pub(crate) fn note_whether_it_had_its_time(&self) {
        let end = if self.is_its_own() { self.own } else { self.full };
        if end.instant().is_some_and(|end| end <= clock::now()) {
            set(HadItsTime(true));
        }
    }
}

/// Why a future was given up. It was dropped before this was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expired {
    /// It took longer than its own limit.
    Limit(Duration),
    /// A deadline that surrounds it passed.
    Deadline {
        /// How long the work had until then; `None` if the deadline had passed before the work began.
        after: Option<Duration>,
    },
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
        clock: Clock,
        #[pin]
        timer: Option<Sleep>,
        // How long the call had waited for its caller's bytes when the limit started.
        waited: Duration,
        // It has passed, but for a wait for the caller that goes on.
        put_off: bool,
    }

    impl<F> PinnedDrop for Limited<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            // Whatever cleans up can see whether its deadline has passed.
            if this.future.is_some() && !this.clock.own.is_unstarted() {
                let mut inside = Limit::NONE;
                let entered = enter(&mut this.clock.own, &mut inside);
                this.future.set(None);
                drop(entered);
                this.clock.note_whether_it_had_its_time();
            }
        }
    }
}

impl<F> Limited<F> {
    #[inline]
    pub(crate) fn new(future: F, clock: Clock) -> Self {
        let waited =
            if clock.own == Limit::NONE || clock.own.is_unstarted() { Duration::ZERO } else { caller::waited() };
        Self { future: Some(future), clock, timer: None, waited, put_off: false }
    }

    /// Work that does not begin, because a deadline that surrounds it has passed.
    pub(crate) fn too_late() -> Self {
        Self {
            future: None,
            clock: Clock::new(Limit::NONE, Limit::NONE),
            timer: None,
            waited: Duration::ZERO,
            put_off: false,
        }
    }

    /// Its limit.
    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    /// The future is pending: starts the clock if it does not run yet. Answers whether this limit is the one to end it.
    fn start(self: Pin<&mut Self>, entered: &mut Entered<'_, Limit>) -> bool {
        let this = self.project();
        let own = &mut this.clock.own;
        let asked = started((*own).min(*entered.outer), get());
        if asked.is_some() || own.is_unstarted() {
            let start = asked.unwrap_or_else(|| Limit::at(clock::now()));
            *own = own.started(start);
            *this.waited = caller::waited();
            *entered.outer = entered.outer.started(start);
            set((*own).min(*entered.outer));
        }
        if this.clock.adopt_told(*entered.outer) {
            set(this.clock.own);
        }
        // Of two that end together the outer one does: its end is the request's.
        this.clock.own < *entered.outer
    }
}

impl<F: Future> Future for Limited<F> {
    type Output = Result<F::Output, Expired>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.as_mut().project();
        let mut inside = Limit::NONE;
        let mut entered = enter(&mut this.clock.own, &mut inside);
        let Some(future) = this.future.as_mut().as_pin_mut() else {
            return Poll::Ready(Err(Expired::Deadline { after: None }));
        };
        if let Poll::Ready(output) = future.poll(cx) {
            this.future.set(None);
            return Poll::Ready(Ok(output));
        }
        if !self.as_mut().start(&mut entered) {
            return Poll::Pending;
        }
        let mut this = self.project();
        // A limit of zero needs no timer to have passed.
        if this.clock.limit != Limit::ZERO
            && let Some(end) = this.clock.own.instant()
        {
            if this.timer.is_none() {
                this.timer.set(Some(clock::sleep_until(end)));
            }
            if let Some(mut timer) = this.timer.as_mut().as_pin_mut() {
                if !*this.put_off {
                    // It was told of an earlier deadline meanwhile.
                    if timer.deadline() != end {
                        timer.as_mut().reset(end);
                    }
                    ready!(timer.as_mut().poll(cx));
                }
                // The time in which the service waited for its caller's bytes is not its own, unless it is the caller's deadline that has
                // passed.
                let is_its_own = this.clock.is_its_own();
                let later =
                    if is_its_own { caller::put_off(*this.waited, cx.waker()) } else { Later::By(Duration::ZERO) };
                match later {
                    Later::By(Duration::ZERO) => {}
                    Later::By(later) => {
                        *this.put_off = false;
                        *this.waited += later;
                        this.clock.own = end.checked_add(later).map_or(Limit::NONE, Limit::at);
                        // What is inside has to learn that it has more time, too.
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    Later::NotBefore(time) => {
                        *this.put_off = true;
                        if let Some(time) = time {
                            // A timer that is set back to a time that has passed wakes its task, again and again.
                            if timer.deadline() != time {
                                timer.as_mut().reset(time);
                            }
                            if timer.poll(cx).is_ready() {
                                cx.waker().wake_by_ref();
                            }
                        }
                        return Poll::Pending;
                    }
                }
            }
        }
        // Dropped while the limit is in place, so that whatever cleans up can see that its deadline has passed.
        this.future.set(None);
        Poll::Ready(Err(this.clock.expired()))
    }
}
