//! The store in memory. `tests/redis.rs` has the same laws over a real server.

use std::time::Duration;

use tokio::{runtime::Builder, time::advance};
use ziggurat::store::{MemoryStore, Quota, Taken, TokenStore, ValueStore};

pub(crate) mod laws;
pub(crate) mod server;

const SECOND: Duration = Duration::from_secs(1);

mod on_a_paused_clock {
    use super::*;

    fn with_store(law: impl AsyncFnOnce(MemoryStore)) {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(law(MemoryStore::new()));
    }

    laws::value_store_laws!(with_store);
}

mod on_several_threads {
    use super::*;

    fn with_store(law: impl AsyncFnOnce(MemoryStore)) {
        let runtime = Builder::new_multi_thread().worker_threads(4).enable_time().build().unwrap();
        runtime.block_on(law(MemoryStore::new()));
    }

    laws::value_store_laws!(with_store:
        of_many_new_values_at_once_one_wins of_many_replacements_at_once_each_builds_on_the_one_before);
}

/// Shows: M1
#[tokio::test(start_paused = true)]
async fn the_values_of_all_clones_together_have_a_bound() {
    let store = MemoryStore::new().max_bytes(10_000);
    let clone = store.clone();
    for number in 0..1_000 {
        clone.put(&number.to_string(), vec![0; 100].into(), Duration::MAX).await.unwrap();
        assert!(store.bytes() <= 10_000);
    }
    assert_eq!(store.get("0").await.unwrap(), None);
    assert!(store.get("999").await.unwrap().is_some());
    // A setter changes the store that all clones refer to.
    let _smaller = clone.max_bytes(1_000);
    assert!(store.bytes() <= 1_000);
    assert!(store.get("999").await.unwrap().is_some());
}

/// Shows: M1
#[tokio::test(start_paused = true)]
async fn a_value_is_a_copy_and_holds_no_larger_buffer() {
    let store = MemoryStore::new();
    let buffer = bytes::Bytes::from(vec![1; 1 << 20]);
    store.put("key", buffer.slice(..1), SECOND).await.unwrap();
    assert!(buffer.is_unique());
}

/// Shows: M1
#[tokio::test(start_paused = true)]
async fn buckets_that_are_full_again_are_forgotten() {
    let (store, quota) = (MemoryStore::new(), Quota::new(1, SECOND));
    let buckets = || {
        let shown = format!("{store:?}");
        let number = shown.split("buckets: ").nth(1).unwrap().split(',').next().unwrap();
        number.parse::<usize>().unwrap()
    };
    for number in 0..10_000 {
        let taken = store.take(&number.to_string(), 1..=1, &quota).await.unwrap();
        assert!(matches!(taken, Taken::Granted { .. }));
        advance(SECOND / 500).await;
        assert!(buckets() <= 1024, "{}", buckets());
    }
    // The latest are not.
    assert!(matches!(store.take("9999", 1..=1, &quota).await.unwrap(), Taken::Denied { .. }));
    assert!(matches!(store.take("9600", 1..=1, &quota).await.unwrap(), Taken::Denied { .. }));
}
