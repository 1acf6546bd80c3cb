//! Overload, slow-downs and outages on a paused clock: whole stacks of layers between a seeded load and an upstream
//! that goes on working for callers that gave up.
//!
//! Each test asserts on the figures of a few seeds, and `watch` on the invariants of each client after every step.
//! `SEEDS=200 cargo test --release --test simulation` runs more of them, `LONG=1` adds long outages and many clients,
//! and `-- --nocapture` prints the figures. A run is a function of its seed: `SEED=7` runs that one alone.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod adaptive;
mod brownout;
mod budget;
mod circuit;
mod hedge;
mod load;
mod overload;
mod priority;
mod recovery;
mod report;
mod server;
mod upstream;
mod watch;

use std::{env, time::Duration};

use watch::simulate;

/// The seeds of one scenario.
fn seeds(short: u64) -> std::ops::Range<u64> {
    let number = |name| env::var(name).ok().map(|value| value.parse().expect(name));
    match (number("SEED"), number("SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, seeds) => 0..seeds.unwrap_or(short),
    }
}

/// Whether to run the scenarios that take minutes too.
fn is_long() -> bool {
    env::var_os("LONG").is_some()
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}
