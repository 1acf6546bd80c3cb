//! A future with a time limit.

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

/// Makes a limit current for everything inside, unless the surrounding limit is earlier.
#[inline]
pub(crate) fn enter<'a>(own: &mut Limit, inside: &'a mut Limit) -> Entered<'a, Limit> {
    enter_with(inside, |inside, outer| *inside = own.earlier(outer))
}

/// Returns the start of a limit that was set as `before` and is now `inside`, if it has started in between: reading the
/// deadline starts it.
#[inline]
pub(crate) fn started(before: Limit, inside: Limit) -> Option<Limit> {
    (before.is_unstarted() && !inside.is_unstarted()).then(|| inside.since(before))
}

/// A time limit in progress: its value, its end, and whether an earlier advisory deadline replaces that end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// The limit as it was set.
    pub(crate) limit: Limit,
    /// The limit, until it starts. Then the end of the work: the end of the limit, or an earlier advisory deadline.
    pub(crate) own: Limit,
    /// The end of the limit, if the work ends earlier because of an advisory deadline.
    full: Limit,
}

impl Clock {
    /// `own` is the limit too, or its end if it has started.
    #[inline]
    pub(crate) fn new(limit: Limit, own: Limit) -> Self {
        Self { limit, own, full: Limit::NONE }
    }

    /// Adopts the advisory deadline if it is earlier than this limit and than `outer`. Nothing else would enforce it.
    pub(crate) fn adopt_told(&mut self, outer: Limit) -> bool {
        let Told(told) = get();
        let adopts = self.own != Limit::NONE && told < self.own && told < outer;
        if adopts {
            self.full = self.full.min(self.own);
            self.own = told;
        }
        adopts
    }

    /// Returns whether the work ends with the limit itself, and not with an earlier advisory deadline.
    fn is_its_own(&self) -> bool {
        self.full == Limit::NONE
    }

    /// Returns the reason, if the work ends by this clock.
    pub(crate) fn expired(&self) -> Expired {
        if self.is_its_own() {
            return Expired::Limit(self.limit.duration().unwrap_or(Duration::MAX));
        }
        let start = self.full.since(self.limit);
        Expired::Deadline { after: Some(self.own.since(start).duration().unwrap_or_default()) }
    }

    /// Records in the ambient state whether the work had its full limit. Called while unfinished work is dropped.
    #[cold]
    pub(crate) fn note_whether_it_had_its_time(&self) {
        let end = if self.is_its_own() { self.own } else { self.full };
        if end.instant().is_some_and(|end| end <= clock::now()) {
            set(HadItsTime(true));
        }
    }
}

/// Why a future was ended. It has been dropped by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expired {
    /// It exceeded its own limit.
    Limit(Duration),
    /// A surrounding deadline passed.
    Deadline {
        /// How long the work had until then. `None` if the deadline had passed before the work began.
        after: Option<Duration>,
    },
}

pin_project! {
    /// Ends a future at its limit. The limit is current while the future is polled or dropped.
    ///
    /// The clock starts when the future is first pending, or when code inside reads the deadline. If the surrounding
    /// limit ends earlier, this limit leaves it to that one to end the future.
    #[must_use = "futures do nothing unless polled"]
    pub(crate) struct Limited<F> {
        // None: it has completed, or the limit has passed.
        #[pin]
        future: Option<F>,
        clock: Clock,
        #[pin]
        timer: Option<Sleep>,
        // How long the call had waited for its caller's bytes when the limit started.
        waited: Duration,
        // The limit has passed apart from a wait for the caller that is still in progress.
        put_off: bool,
    }

    impl<F> PinnedDrop for Limited<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            // Current during the drop, so that cleanup code can see whether its deadline has passed.
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

    /// Work that does not start, because a surrounding deadline has passed.
    pub(crate) fn too_late() -> Self {
        Self {
            future: None,
            clock: Clock::new(Limit::NONE, Limit::NONE),
            timer: None,
            waited: Duration::ZERO,
            put_off: false,
        }
    }

    /// Returns its clock.
    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    /// Starts the clock of a pending future, if it is not running yet. Returns whether this limit is the one to end the
    /// future.
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
        // If both end together, the outer limit ends the future, because that is the end of the request.
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
        // A limit of zero has passed without a timer.
        if this.clock.limit != Limit::ZERO
            && let Some(end) = this.clock.own.instant()
        {
            if this.timer.is_none() {
                this.timer.set(Some(clock::sleep_until(end)));
            }
            if let Some(mut timer) = this.timer.as_mut().as_pin_mut() {
                if !*this.put_off {
                    // An earlier advisory deadline was adopted in the meantime.
                    if timer.deadline() != end {
                        timer.as_mut().reset(end);
                    }
                    ready!(timer.as_mut().poll(cx));
                }
                // Time that the service spent waiting for its caller's bytes does not count, unless the caller's own
                // deadline has passed.
                let is_its_own = this.clock.is_its_own();
                let later =
                    if is_its_own { caller::put_off(*this.waited, cx.waker()) } else { Later::By(Duration::ZERO) };
                match later {
                    Later::By(Duration::ZERO) => {}
                    Later::By(later) => {
                        *this.put_off = false;
                        *this.waited += later;
                        this.clock.own = end.checked_add(later).map_or(Limit::NONE, Limit::at);
                        // Wakes the task, so that layers inside see the extended limit too.
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    Later::NotBefore(time) => {
                        *this.put_off = true;
                        if let Some(time) = time {
                            // A timer that is reset to a past time wakes its task again and again.
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
        // Dropped while the limit is current, so that cleanup code can see that its deadline has passed.
        this.future.set(None);
        Poll::Ready(Err(this.clock.expired()))
    }
}
