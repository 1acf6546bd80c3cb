//! Deadlines: one clock for the whole request.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;

use super::{Entered, Limit, enter_with, get, slot};
use crate::clock::{self, Instant};

/// The instant by which the request that is being worked on has to be answered.
///
/// The outermost [`TimeoutLayer`](crate::timeout::TimeoutLayer) sets it, and ends everything inside by it: waiting for a
/// permit, the pause between two attempts, each attempt. Your own code can ask for it, for example to give a query the time
/// that is left.
///
/// It is ambient: in place while a layer's `call` and its response future run. A spawned task loses it; this type is `Copy`,
/// and [`within`](Deadline::within) carries it over:
///
/// ```
/// # use ziggurat::Deadline;
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let deadline = Deadline::after(Duration::from_secs(2));
/// tokio::spawn(deadline.within(async {
///     assert_eq!(Deadline::current().unwrap().remaining(), Duration::from_secs(2));
/// }))
/// .await
/// .unwrap();
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline {
    at: Instant,
}

impl Deadline {
    /// The deadline that surrounds the caller, if there is one.
    ///
    /// A timeout reads the clock only when its service is pending for the first time; asking for the deadline earlier fixes it
    /// then and there, at the cost of one clock read. (Asked in `call`, a limit beside a deadline that runs already answers as if it
    /// began at once; it still begins at its first poll.)
    #[must_use]
    pub fn current() -> Option<Self> {
        let mut limit = get::<Limit>();
        if limit.is_unstarted() {
            limit = limit.started(Limit::at(clock::now()));
            super::set(limit);
        }
        limit.min(get::<Told>().0).instant().map(|at| Self { at })
    }

    /// The deadline that is `limit` from now. A limit beyond what the clock can hold is as far as 30 years.
    #[must_use]
    pub fn after(limit: Duration) -> Self {
        let now = clock::now();
        let far = Duration::from_secs(30 * 365 * 24 * 60 * 60);
        Self { at: now.checked_add(limit).unwrap_or_else(|| now + far) }
    }

    /// How long it is until then; zero if it has passed. Reads the clock.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.at.saturating_duration_since(clock::now())
    }

    /// Whether it has passed. Reads the clock.
    #[must_use]
    pub fn has_passed(&self) -> bool {
        self.at <= clock::now()
    }

    /// Runs `future` with this deadline in place; a surrounding one that is earlier stays.
    ///
    /// The deadline is told to what runs inside, and [`TimeoutLayer`](crate::timeout::TimeoutLayer)s in there end their calls by it.
    /// The future itself is not ended by it, nor is anything in it that no timeout stands around.
    pub fn within<F>(self, future: F) -> WithDeadline<F> {
        WithDeadline { future: Some(future), deadline: self }
    }

    /// What is in place inside of [`within`](Self::within).
    pub(crate) fn told(self) -> Told {
        Told(Limit::at(self.at))
    }

    fn tell<'a>(&self, told: &'a mut Told) -> Entered<'a, Told> {
        enter_with(told, |told, outer| *told = Told(outer.0.min(self.told().0)))
    }
}

pin_project! {
    /// The future of [`Deadline::within`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct WithDeadline<F> {
        // None: it has ended.
        #[pin]
        future: Option<F>,
        deadline: Deadline,
    }

    impl<F> PinnedDrop for WithDeadline<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let mut told = Told::default();
            let _entered = this.deadline.tell(&mut told);
            this.future.set(None);
        }
    }
}

impl<F: Future> Future for WithDeadline<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let mut told = Told::default();
        let _entered = this.deadline.tell(&mut told);
        let Some(future) = this.future.as_mut().as_pin_mut() else { return Poll::Pending };
        let output = ready!(future.poll(cx));
        this.future.set(None);
        Poll::Ready(output)
    }
}

/// Whether a deadline is in place that has passed. One that has not started yet has not.
pub(crate) fn has_passed() -> bool {
    let passed = |limit: Limit| limit.instant().is_some_and(|at| at <= clock::now());
    passed(get::<Limit>()) || passed(get::<Told>().0)
}

/// Whether work that begins now begins too late for `surrounding`, or for a deadline that is only told. Reads the clock only if one of them
/// has started.
///
/// A limit that ends at this very moment is not too late: a limit of zero lets a ready response through.
#[inline]
pub(crate) fn is_too_late(surrounding: Limit) -> bool {
    let told = get::<Told>().0;
    if surrounding.is_pending() && told.is_pending() {
        return false;
    }
    let now = Limit::at(clock::now());
    (!surrounding.is_pending() && surrounding < now) || (!told.is_pending() && told <= now)
}

/// An instant that nobody ends the work by; only timeouts inside do.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Told(pub(crate) Limit);

slot!(Told, Told(Limit::NONE));

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn there_is_none_outside_of_a_layer() {
        assert_eq!(Deadline::current(), None);
        assert!(!has_passed());
    }

    #[tokio::test(start_paused = true)]
    async fn asking_fixes_it() {
        let mut limit = Limit::after(SECOND);
        {
            let _entered = super::super::enter(&mut limit);
            assert!(!has_passed());
            let deadline = Deadline::current().unwrap();
            assert_eq!(deadline.remaining(), SECOND);
            tokio::time::advance(SECOND).await;
            assert_eq!(Deadline::current(), Some(deadline));
            assert!(deadline.has_passed());
            assert!(has_passed());
        }
        assert!(!limit.is_unstarted());
    }

    #[tokio::test(start_paused = true)]
    async fn the_earlier_of_two_counts() {
        let early = Deadline::after(SECOND);
        let late = Deadline::after(2 * SECOND);
        let inside = || async { Deadline::current() };
        assert_eq!(early.within(late.within(inside())).await, Some(early));
        assert_eq!(late.within(early.within(inside())).await, Some(early));
        assert_eq!(Deadline::current(), None);
    }

    #[test]
    fn no_duration_is_too_long() {
        assert!(!Deadline::after(Duration::MAX).has_passed());
        assert_eq!(Limit::after(Duration::MAX), Limit::NONE);
    }
}
