//! Measures the cost of an item compared with futures-util's `buffer_unordered`: millions of items, in the same run.
//! `cargo bench -p ziggurat-benches --bench processing`
//!
//! All subjects take turns in short rounds, and the fastest round of each counts: noise on a shared machine only ever
//! adds.

use std::{
    future::poll_fn,
    hint::black_box,
    task::Poll,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use ziggurat::concurrent::process_concurrently;

const ITEMS: u64 = 5_000;
const ROUNDS: usize = 400;
const AT_ONCE: usize = 25;
const LIMIT: Duration = Duration::from_secs(30);

/// An item that is pending the given number of times, and wakes itself each time.
async fn item<const PENDING: usize>(item: u64) -> Result<u64, ()> {
    let mut pending = PENDING;
    poll_fn(|cx| {
        if pending == 0 {
            return Poll::Ready(());
        }
        pending -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
    Ok(black_box(item))
}

async fn theirs<const PENDING: usize>() -> u64 {
    let results = futures_util::stream::iter(0..ITEMS).map(item::<PENDING>).buffer_unordered(AT_ONCE);
    results.fold(0, |sum, result| async move { sum + result.unwrap_or(0) }).await
}

/// `buffer_unordered` with tokio's timeout around each item.
async fn theirs_with_a_limit<const PENDING: usize>() -> u64 {
    let item = |number| tokio::time::timeout(LIMIT, item::<PENDING>(number));
    let results = futures_util::stream::iter(0..ITEMS).map(item).buffer_unordered(AT_ONCE);
    results.fold(0, |sum, result| async move { sum + result.map_or(0, Result::unwrap_or_default) }).await
}

async fn ours<const PENDING: usize>(limit: Option<Duration>) -> u64 {
    let process = process_concurrently(0..ITEMS, item::<PENDING>).max_concurrency(AT_ONCE);
    let process = match limit {
        Some(limit) => process.timeout_per_item(limit),
        None => process,
    };
    process.unordered().fold(0, |sum, result| async move { sum + result.unwrap_or(0) }).await
}

async fn ours_in_order<const PENDING: usize>() -> u64 {
    let results = process_concurrently(0..ITEMS, item::<PENDING>).max_concurrency(AT_ONCE).ordered();
    results.fold(0, |sum, result| async move { sum + result.unwrap_or(0) }).await
}

async fn ours_at_once<const PENDING: usize>() -> u64 {
    let results = process_concurrently(0..ITEMS, item::<PENDING>).max_concurrency(AT_ONCE).await;
    results.unwrap_or_default().into_iter().sum()
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    table::<0>(&runtime, "ready at once");
    table::<1>(&runtime, "pending once");
}

fn table<const PENDING: usize>(runtime: &tokio::runtime::Runtime, what: &str) {
    let subjects: [(&str, &dyn Fn() -> u64); 6] = [
        ("futures-util, buffer_unordered", &|| runtime.block_on(theirs::<PENDING>())),
        ("ziggurat, unordered", &|| runtime.block_on(ours::<PENDING>(None))),
        ("futures-util, with tokio's timeout", &|| runtime.block_on(theirs_with_a_limit::<PENDING>())),
        ("ziggurat, unordered, with a limit", &|| runtime.block_on(ours::<PENDING>(Some(LIMIT)))),
        ("ziggurat, ordered", &|| runtime.block_on(ours_in_order::<PENDING>())),
        ("ziggurat, all results", &|| runtime.block_on(ours_at_once::<PENDING>())),
    ];
    let mut quickest = [Duration::MAX; 6];
    for _ in 0..ROUNDS {
        for ((_, run), quickest) in subjects.iter().zip(&mut quickest) {
            let start = Instant::now();
            assert_eq!(run(), ITEMS * (ITEMS - 1) / 2);
            *quickest = start.elapsed().min(*quickest);
        }
    }
    let nanos = quickest.map(|time| time.as_nanos() as f64 / ITEMS as f64);
    println!("\n{what:<36}{:>8}{:>12}", "ns", "above");
    for ((subject, _), nanos_of_one) in subjects.iter().zip(nanos) {
        println!("{subject:<36}{nanos_of_one:>8.1}{:>12.1}", nanos_of_one - nanos[0]);
    }
}
