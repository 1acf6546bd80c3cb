//! Deadlines: one time limit for the whole request.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;

use super::{Entered, Limit, enter_with, get, slot};
use crate::clock::{self, Instant};

/// The instant by which the current request must be complete.
///
/// The outermost [`TimeoutLayer`](crate::timeout::TimeoutLayer) sets it. It bounds everything inside: waiting for a
/// permit, the pause between two attempts, and each attempt. Your own code can read it, for example to pass the
/// remaining time to a database query.
///
/// The deadline is ambient: it is current while a layer's `call` and its response future run. A spawned task loses it.
/// This type is `Copy`, and [`within`](Deadline::within) carries the deadline over:
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
    /// Returns the deadline of the current call, if there is one.
    ///
    /// A timeout reads the clock only when its service is first pending. Reading the deadline earlier starts the
    /// timeout at once, at the cost of one clock read. There is one exception: in `call`, inside a deadline that has
    /// started, the returned deadline is computed as if the limit started now, but the limit still starts at the first
    /// poll.
    #[must_use]
    pub fn current() -> Option<Self> {
        let mut limit = get::<Limit>();
        if limit.is_unstarted() {
            limit = limit.started(Limit::at(clock::now()));
            super::set(limit);
        }
        limit.min(get::<Told>().0).instant().map(|at| Self { at })
    }

    /// Creates the deadline that is `limit` from now. A limit beyond the clock's range counts as 30 years.
    #[must_use]
    pub fn after(limit: Duration) -> Self {
        let now = clock::now();
        let far = Duration::from_secs(30 * 365 * 24 * 60 * 60);
        Self { at: now.checked_add(limit).unwrap_or_else(|| now + far) }
    }

    pub(crate) fn instant(self) -> Instant {
        self.at
    }

    /// Returns the remaining time, or zero if the deadline has passed. Reads the clock.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.at.saturating_duration_since(clock::now())
    }

    /// Returns whether the deadline has passed. Reads the clock.
    #[must_use]
    pub fn has_passed(&self) -> bool {
        self.at <= clock::now()
    }

    /// Runs `future` with this deadline, or with the surrounding deadline if that is earlier.
    ///
    /// Code inside can read the deadline, and every [`TimeoutLayer`](crate::timeout::TimeoutLayer) inside ends its
    /// calls by it. The deadline does not end the future itself, nor any other code inside that has no timeout.
    pub fn within<F>(self, future: F) -> WithDeadline<F> {
        WithDeadline { future: Some(future), deadline: self }
    }

    /// Returns the value that is current inside [`within`](Self::within).
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
        // None: it has completed.
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

/// Returns whether the current deadline has passed. A limit that has not started has not passed.
pub(crate) fn has_passed() -> bool {
    let passed = |limit: Limit| limit.instant().is_some_and(|at| at <= clock::now());
    passed(get::<Limit>()) || passed(get::<Told>().0)
}

/// Returns whether work that starts now starts too late for `surrounding`, or for an advisory deadline. Reads the clock
/// only if one of them has started.
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

/// An advisory deadline: only timeouts inside it end their work by it.
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
