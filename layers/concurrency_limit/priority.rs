//! The importance of a call, and its effects: its rank in the queue, and the permits that it may not use.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::setting::Setting;

/// How important a call is, in ascending order: see [priorities](super#priorities).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Shed first: for example a prefetch, a batch job, or a call that is repeated anyway.
    Low,
    /// The default.
    #[default]
    Normal,
    /// Shed last: for example a payment, or a call for which a person waits.
    High,
    /// Not limited: for example a health check. The call needs no permit, never waits, and is never rejected. It is not
    /// counted as in flight, and an adaptive limit does not measure it.
    Exempt,
}

/// One priority for every request.
impl<Req> Setting<Req, Priority> for Priority {
    fn get(&self, _: &Req) -> Option<Priority> {
        Some(*self)
    }
}

/// The part of a layer that knows the priority of a request.
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub trait Prioritize<Req> {
    /// Whether all requests have the same priority, which has no reserve above it.
    const EQUAL: bool;

    fn priority(&self, request: &Req) -> Priority;
}

/// All requests have the same priority.
#[doc(hidden)] // machinery that is public only because it is part of a public type
#[derive(Debug, Clone, Copy)]
pub struct Equal;

/// The priority is a setting: a value, or a function of the request.
#[doc(hidden)] // machinery that is public only because it is part of a public type
#[derive(Debug, Clone, Copy)]
pub struct ByRequest<F>(pub(super) F);

impl<Req> Prioritize<Req> for Equal {
    const EQUAL: bool = true;

    #[inline]
    fn priority(&self, _: &Req) -> Priority {
        // No permit is reserved for others.
        Priority::High
    }
}

impl<Req, F: Setting<Req, Priority>> Prioritize<Req> for ByRequest<F> {
    const EQUAL: bool = false;

    #[inline]
    fn priority(&self, request: &Req) -> Priority {
        self.0.get(request).unwrap_or_default()
    }
}

/// The place of a call among those that wait, from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// A probe: the calls behind it depend on its result.
    Urgent,
    High,
    Normal,
    Low,
}

impl Rank {
    const ALL: [Self; 4] = [Self::Urgent, Self::High, Self::Normal, Self::Low];

    /// `priority` is not [`Exempt`](Priority::Exempt).
    #[inline]
    pub(super) fn new(priority: Priority) -> Self {
        match priority {
            Priority::Low => Self::Low,
            Priority::Normal => Self::Normal,
            Priority::High | Priority::Exempt => Self::High,
        }
    }
}

/// The number of waiters of each rank. Written under the lock of the queue.
#[derive(Default)]
pub(super) struct Counts([AtomicU32; Rank::ALL.len()]);

impl Counts {
    pub(super) fn add(&self, rank: Rank) {
        let _ = self.0.get(rank as usize).map(|count| count.fetch_add(1, Ordering::Relaxed));
    }

    pub(super) fn remove(&self, rank: Rank) {
        let _ = self.0.get(rank as usize).map(|count| count.fetch_sub(1, Ordering::Relaxed));
    }

    fn each(&self) -> impl Iterator<Item = (Rank, u32)> {
        Rank::ALL.into_iter().zip(&self.0).map(|(rank, count)| (rank, count.load(Ordering::Relaxed)))
    }

    /// Returns the number of waiters that come before a call of this rank that joins the queue.
    pub(super) fn before(&self, rank: Rank) -> u32 {
        self.each().filter(|(other, _)| *other <= rank).map(|(_, count)| count).sum()
    }

    /// Whether a waiter can be shed for a call of this rank.
    pub(super) fn any_below(&self, rank: Rank) -> bool {
        self.each().any(|(other, count)| other > rank && count > 0)
    }

    /// Returns the number of waiters, from the first, that `available` permits suffice for.
    pub(super) fn admitted_by(&self, available: i32, kept: impl Fn(Rank) -> i32) -> u32 {
        // The lower the rank, the more permits are kept from it: none overtakes another.
        self.each().fold(0, |admitted, (rank, count)| {
            let free = available - admitted as i32 - kept(rank);
            admitted + count.min(u32::try_from(free).unwrap_or(0))
        })
    }
}

const WHOLE: u32 = 1_000_000;

/// The shares of the permits that are reserved for each priority and those above it, in parts of [`WHOLE`].
#[derive(Default)]
pub(super) struct Reserves {
    high: AtomicU32,
    normal: AtomicU32,
}

impl Reserves {
    #[track_caller]
    pub(super) fn set(&self, priority: Priority, share: f64) {
        let (own, other, other_priority) = match priority {
            Priority::High => (&self.high, &self.normal, Priority::Normal),
            Priority::Normal => (&self.normal, &self.high, Priority::High),
            Priority::Low => panic!("no call is below `Low`: reserve a share for `Normal` or `High`"),
            Priority::Exempt => panic!("`Exempt` calls need no permit: reserve a share for `Normal` or `High`"),
        };
        assert!((0.0..=1.0).contains(&share), "a reserved `share` must be between 0 and 1, as in 0.2, not {share}");
        let parts = (share * f64::from(WHOLE)).round() as u32;
        let others = other.load(Ordering::Relaxed);
        assert!(
            parts + others <= WHOLE,
            "the shares reserved for `{priority:?}` ({share}) and `{other_priority:?}` ({}) must add up to at most 1",
            f64::from(others) / f64::from(WHOLE),
        );
        own.store(parts, Ordering::Relaxed);
    }

    pub(super) fn share(&self, priority: Priority) -> f64 {
        let parts = match priority {
            Priority::High => self.high.load(Ordering::Relaxed),
            Priority::Normal => self.normal.load(Ordering::Relaxed),
            Priority::Low | Priority::Exempt => 0,
        };
        f64::from(parts) / f64::from(WHOLE)
    }

    /// Returns the number of permits, out of `limit`, that are kept free from a call of this rank: at most all but one.
    #[inline]
    pub(super) fn kept(&self, rank: Rank, limit: impl FnOnce() -> usize) -> i32 {
        let parts = match rank {
            Rank::Urgent | Rank::High => 0,
            Rank::Normal => self.high.load(Ordering::Relaxed),
            Rank::Low => self.high.load(Ordering::Relaxed) + self.normal.load(Ordering::Relaxed),
        };
        if parts == 0 {
            return 0;
        }
        let limit = limit() as u64;
        (limit * u64::from(parts)).div_ceil(u64::from(WHOLE)).min(limit - 1) as i32
    }
}

#[cfg(all(test, not(ziggurat_loom)))]
mod tests;
