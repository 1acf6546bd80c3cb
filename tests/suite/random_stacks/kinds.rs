//! The layers of random stacks, with random settings.

use proptest::prelude::*;

/// A layer of a stack. Times are in milliseconds.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    RejectionResponse,
    Batch {
        size: usize,
        delay: u64,
    },
    Breaker {
        failures: u32,
        open_for: u64,
        body: bool,
    },
    BreakerByRate {
        open_for: u64,
    },
    Cache {
        ttl: u64,
        stale: Stale,
    },
    ChaosDelay {
        every: u64,
        delay: u64,
    },
    ChaosError {
        every: u64,
    },
    Client,
    Context,
    /// The drain begins at this time.
    Drain {
        grace: u64,
        at: Option<u64>,
    },
    FallbackService {
        limit: usize,
    },
    FallbackValue,
    Hedge {
        delay: u64,
    },
    RequestId,
    Limit {
        limit: usize,
        max_waiting: Option<usize>,
        max_wait: Option<u64>,
        body: bool,
    },
    Observe {
        body: bool,
    },
    Propagate,
    RateLimit {
        quantity: u32,
        max_wait: Option<u64>,
    },
    ReplayAndRetry,
    Resource {
        size: usize,
        max_wait: Option<u64>,
        body: bool,
    },
    Retry {
        pause: u64,
    },
    Timeout {
        limit: u64,
        body: bool,
    },
    Server,
    /// tower's limit, which reserves in `poll_ready`.
    Towers {
        limit: usize,
    },
    Upload,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Stale {
    Never,
    IfError,
    WhileRevalidate,
}

/// tower's limit, and the layers that can reject or delay a call, are more frequent, because reservations are lost
/// between them.
fn kind() -> impl Strategy<Value = Kind> {
    let size = || 1_usize..3;
    let time = || prop_oneof![Just(0_u64), Just(20), Just(500), Just(5_000)];
    let stale = prop_oneof![Just(Stale::Never), Just(Stale::IfError), Just(Stale::WhileRevalidate)];
    let max_wait = || proptest::option::of(time());
    let limit = (size(), proptest::option::of(0_usize..2), max_wait(), any::<bool>())
        .prop_map(|(limit, max_waiting, max_wait, body)| Kind::Limit { limit, max_waiting, max_wait, body });
    let resource =
        (size(), max_wait(), any::<bool>()).prop_map(|(size, max_wait, body)| Kind::Resource { size, max_wait, body });
    let rate = (1_u32..4, max_wait()).prop_map(|(quantity, max_wait)| Kind::RateLimit { quantity, max_wait });
    let breaker = (1_u32..3, time(), any::<bool>()).prop_map(|(failures, open_for, body)| Kind::Breaker {
        failures,
        open_for,
        body,
    });
    prop_oneof![
        1 => Just(Kind::RejectionResponse),
        1 => (size(), prop_oneof![Just(0_u64), Just(50)]).prop_map(|(size, delay)| Kind::Batch { size, delay }),
        3 => breaker,
        1 => time().prop_map(|open_for| Kind::BreakerByRate { open_for }),
        2 => (time(), stale).prop_map(|(ttl, stale)| Kind::Cache { ttl, stale }),
        1 => (1_u64..4, time()).prop_map(|(every, delay)| Kind::ChaosDelay { every, delay }),
        1 => (1_u64..4).prop_map(|every| Kind::ChaosError { every }),
        1 => Just(Kind::Client),
        1 => Just(Kind::Context),
        2 => (time(), proptest::option::of(time())).prop_map(|(grace, at)| Kind::Drain { grace, at }),
        1 => size().prop_map(|limit| Kind::FallbackService { limit }),
        1 => Just(Kind::FallbackValue),
        2 => time().prop_map(|delay| Kind::Hedge { delay }),
        1 => Just(Kind::RequestId),
        3 => limit,
        1 => any::<bool>().prop_map(|body| Kind::Observe { body }),
        1 => Just(Kind::Propagate),
        2 => rate,
        1 => Just(Kind::ReplayAndRetry),
        2 => resource,
        2 => time().prop_map(|pause| Kind::Retry { pause }),
        2 => (time(), any::<bool>()).prop_map(|(limit, body)| Kind::Timeout { limit, body }),
        1 => Just(Kind::Server),
        6 => size().prop_map(|limit| Kind::Towers { limit }),
        1 => Just(Kind::Upload),
    ]
}

/// Generates the layers of a stack, the outermost first.
pub(super) fn kinds() -> impl Strategy<Value = Vec<Kind>> {
    proptest::collection::vec(kind(), 1..=6)
}
