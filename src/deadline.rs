//! Deadlines: one clock for the whole request.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;

use crate::{
    ambient,
    clock::{self, Instant},
};

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
        let mut limit = ambient::get::<Limit>();
        if limit.is_unstarted() {
            limit = limit.started(Limit::at(clock::now()));
            ambient::set(limit);
        }
        limit.min(ambient::get::<Told>().0).instant().map(|at| Self { at })
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

    fn tell<'a>(&self, told: &'a mut Told) -> ambient::Entered<'a, Told> {
        ambient::enter_with(told, |told, outer| *told = Told(outer.0.min(self.told().0)))
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
    passed(ambient::get::<Limit>()) || passed(ambient::get::<Told>().0)
}

/// Whether work that begins now begins too late for `surrounding`, or for a deadline that is only told. Reads the clock only if one of them
/// has started.
///
/// A limit that ends at this very moment is not too late: a limit of zero lets a ready response through.
#[inline]
pub(crate) fn is_too_late(surrounding: Limit) -> bool {
    let told = ambient::get::<Told>().0;
    if surrounding.is_pending() && told.is_pending() {
        return false;
    }
    let now = Limit::at(clock::now());
    (!surrounding.is_pending() && surrounding < now) || (!told.is_pending() && told <= now)
}

/// An instant that nobody ends the work by; only timeouts inside do.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Told(pub(crate) Limit);

/// What is in place: nothing, a time that has not started yet, or an instant.
///
/// One word, because it is put in place and taken out at every call and every poll. Of two of the same kind the smaller one is
/// the earlier one, and nothing is later than all.
///
/// | word | what it is |
/// |---|---|
/// | below 2^62 | not started: so many nanoseconds from when it is (146 years) |
/// | 2^62 to 2^63 | an instant: 2^62 + 2^61 is when this process first asked, and it is so many nanoseconds before or after that |
/// | the largest | nothing |
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Limit(u64);

const INSTANTS: u64 = 1 << 62;
const FIRST_ASKED: u64 = INSTANTS + (1 << 61);

impl Default for Limit {
    #[inline]
    fn default() -> Self {
        Self::NONE
    }
}

impl Limit {
    pub(crate) const NONE: Self = Self(u64::MAX);
    pub(crate) const ZERO: Self = Self(0);

    /// A time that has not started. One that is too long for its word is none at all.
    #[inline]
    pub(crate) fn after(time: Duration) -> Self {
        match time.as_secs().checked_mul(1_000_000_000) {
            Some(nanos) if nanos < INSTANTS - 1_000_000_000 => Self(nanos + u64::from(time.subsec_nanos())),
            _ => Self::NONE,
        }
    }

    pub(crate) fn at(instant: Instant) -> Self {
        let origin = clock::first_asked();
        let word = match instant.checked_duration_since(origin) {
            Some(after) => Self::after(after).0.checked_add(FIRST_ASKED),
            None => FIRST_ASKED.checked_sub(Self::after(origin - instant).0),
        };
        Self(word.unwrap_or(u64::MAX)).or_none()
    }

    #[inline]
    pub(crate) fn is_unstarted(self) -> bool {
        self.0 < INSTANTS
    }

    /// Whether it has not started, or is none.
    #[inline]
    fn is_pending(self) -> bool {
        self.is_unstarted() || self == Self::NONE
    }

    /// How long it is, if it has not started.
    pub(crate) fn duration(self) -> Option<Duration> {
        self.is_unstarted().then(|| Duration::from_nanos(self.0))
    }

    /// When it ends, if it has started.
    pub(crate) fn instant(self) -> Option<Instant> {
        if self.is_pending() {
            return None;
        }
        let origin = clock::first_asked();
        match self.0.checked_sub(FIRST_ASKED) {
            Some(after) => origin.checked_add(Duration::from_nanos(after)),
            None => origin.checked_sub(Duration::from_nanos(FIRST_ASKED - self.0)),
        }
    }

    /// When it ends, if it starts at `start`; unchanged if it has started before.
    pub(crate) fn started(self, start: Self) -> Self {
        if self.is_unstarted() { Self(self.0.saturating_add(start.0)).or_none() } else { self }
    }

    /// How long it is from `start` until this; or when a time started that ends then.
    pub(crate) fn since(self, start: Self) -> Self {
        Self(self.0.saturating_sub(start.0))
    }

    /// The earlier one. If one has started and the other has not, that one starts now.
    #[inline]
    pub(crate) fn earlier(&mut self, other: &mut Self) -> Self {
        if *self != Self::NONE && *other != Self::NONE && self.is_unstarted() != other.is_unstarted() {
            let now = Self::at(clock::now());
            *self = self.started(now);
            *other = other.started(now);
        }
        (*self).min(*other)
    }

    /// What is beyond the instants that a word can hold is nothing.
    fn or_none(self) -> Self {
        if self.0 < INSTANTS << 1 { self } else { Self::NONE }
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
        let mut limit = Limit::after(SECOND);
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

    #[test]
    fn a_word_holds_times_and_instants_to_the_nanosecond() {
        let year = Duration::from_secs(365 * 24 * 60 * 60);
        for time in [Duration::ZERO, Duration::from_nanos(1), SECOND, 100 * year] {
            let limit = Limit::after(time);
            assert_eq!((limit.duration(), limit.instant()), (Some(time), None));
        }
        assert_eq!(Limit::after(200 * year), Limit::NONE);
        let now = clock::now();
        for instant in [now, now + Duration::from_nanos(1), now + 50 * year, now - SECOND] {
            let limit = Limit::at(instant);
            assert_eq!((limit.duration(), limit.instant()), (None, Some(instant)));
        }
        assert_eq!(Limit::at(now + 100 * year), Limit::NONE);
        assert_eq!((Limit::NONE.duration(), Limit::NONE.instant()), (None, None));
    }

    #[test]
    fn a_time_that_starts_is_an_instant() {
        let now = clock::now();
        let (start, second) = (Limit::at(now), Limit::after(SECOND));
        assert_eq!(second.started(start), Limit::at(now + SECOND));
        assert_eq!(start.started(start), start);
        assert_eq!(Limit::NONE.started(start), Limit::NONE);
        assert_eq!(second.started(start).since(second), start);
        assert_eq!(
            Limit::after(Duration::from_secs(1 << 31)).started(Limit::at(now + Duration::from_secs(1 << 31))),
            Limit::NONE
        );
    }

    #[test]
    fn the_earlier_one_counts_whatever_has_started() {
        let now = clock::now();
        let (mut hour, mut day) = (Limit::after(3600 * SECOND), Limit::after(86_400 * SECOND));
        assert_eq!(hour.earlier(&mut day), hour);
        assert!(day.is_unstarted());
        assert_eq!(hour.earlier(&mut Limit::NONE.clone()), hour);
        assert_eq!(Limit::NONE.clone().earlier(&mut hour), hour);
        // One has started: so has the other, now.
        let mut soon = Limit::at(now + SECOND);
        assert_eq!(hour.earlier(&mut soon), Limit::at(now + SECOND));
        assert!(!hour.is_unstarted());
    }
}
