//! Deadlines: one clock for the whole request.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;

use crate::{
    ambient,
    clock::{self, Instant},
};

/// The instant by which the request that is being worked on has to be answered.
///
/// The outermost [`TimeoutLayer`](crate::timeout::TimeoutLayer) sets it, and everything inside obeys it: waiting for a
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
    /// then and there, at the cost of one clock read.
    #[must_use]
    pub fn current() -> Option<Self> {
        let limit = ambient::get::<Limit>();
        if limit.after.is_some() {
            let fixed = limit.fixed_at(clock::now());
            ambient::set(fixed);
            return fixed.at.map(|at| Self { at });
        }
        limit.at.map(|at| Self { at })
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
    /// The deadline is *told* to what runs inside; the future itself is not ended by it.
    pub fn within<F>(self, future: F) -> WithDeadline<F> {
        WithDeadline { future, deadline: self }
    }
}

pin_project! {
    /// The future of [`Deadline::within`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct WithDeadline<F> {
        #[pin]
        future: F,
        deadline: Deadline,
    }
}

impl<F: Future> Future for WithDeadline<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let mut limit = ambient::get::<Limit>().or_at(this.deadline.at);
        let _entered = ambient::enter(&mut limit);
        this.future.poll(cx)
    }
}

/// Whether a deadline is in place that has passed. Does not fix one that is not fixed: such a one is just starting.
pub(crate) fn has_passed() -> bool {
    ambient::get::<Limit>().at.is_some_and(|at| at <= clock::now())
}

/// What is in place: an instant, or a time from the moment when somebody first needs to know, or both (the earlier counts).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) at: Option<Instant>,
    pub(crate) after: Option<Duration>,
}

impl Limit {
    pub(crate) const NONE: Self = Self { at: None, after: None };

    /// The same, or `at` if that is earlier.
    pub(crate) fn or_at(self, at: Instant) -> Self {
        Self { at: Some(self.at.map_or(at, |own| own.min(at))), ..self }
    }

    /// The same, or `after` from the start if that is earlier.
    pub(crate) fn or_after(self, after: Duration) -> Self {
        Self { after: Some(self.after.map_or(after, |own| own.min(after))), ..self }
    }

    /// The same with its start at `now`. What the clock cannot hold is no limit.
    pub(crate) fn fixed_at(self, now: Instant) -> Self {
        let unstarted = Self { after: None, ..self };
        match self.after.and_then(|after| now.checked_add(after)) {
            Some(at) => unstarted.or_at(at),
            None => unstarted,
        }
    }
}

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
        let mut limit = Limit::NONE.or_after(SECOND);
        {
            let _entered = ambient::enter(&mut limit);
            assert!(!has_passed());
            let deadline = Deadline::current().unwrap();
            assert_eq!(deadline.remaining(), SECOND);
            tokio::time::advance(SECOND).await;
            assert_eq!(Deadline::current(), Some(deadline));
            assert!(deadline.has_passed());
            assert!(has_passed());
        }
        assert_eq!(limit.after, None);
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
        let limit = Limit::NONE.or_after(Duration::MAX).fixed_at(clock::now());
        assert_eq!(limit, Limit::NONE);
    }
}
