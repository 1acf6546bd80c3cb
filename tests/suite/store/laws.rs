//! The laws of a store of values. `tests/suite/store/mod.rs` has them for the memory, on a paused clock, and
//! `tests/redis.rs` for a real server.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{sync::Barrier, task::JoinSet, time::sleep};
use ziggurat::store::ValueStore;

const HOUR: Duration = Duration::from_secs(60 * 60);
const SHORT: Duration = Duration::from_millis(20);

/// Runs each law with a function that makes a store for it.
macro_rules! value_store_laws {
    ($run:path: $($law:ident)*) => {
        $(
            #[test]
            fn $law() {
                $run(async |store| laws::$law(store).await);
            }
        )*
    };
    ($run:path) => {
        laws::value_store_laws!($run:
            a_value_is_there_until_it_is_replaced_or_removed
            any_bytes_are_a_value
            a_value_expires_after_its_time
            no_time_at_all_removes_a_value_and_all_time_keeps_it
            a_new_value_leaves_the_one_that_is_there
            of_many_new_values_at_once_one_wins
            only_the_current_value_is_replaced
            of_many_replacements_at_once_each_builds_on_the_one_before
        );
    };
}
pub(crate) use value_store_laws;

async fn get<S: ValueStore>(store: &S, key: &str) -> Option<Bytes> {
    store.get(key).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn put<S: ValueStore>(store: &S, key: &str, value: &'static [u8], ttl: Duration) {
    store.put(key, value.into(), ttl).await.unwrap_or_else(|error| panic!("{error}"));
}

async fn put_new<S: ValueStore>(store: &S, key: &str, value: impl Into<Bytes>, ttl: Duration) -> Option<Bytes> {
    store.put_new(key, value.into(), ttl).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn replace<S: ValueStore>(store: &S, key: &str, current: &[u8], new: Option<Bytes>, ttl: Duration) -> bool {
    store.replace(key, current, new, ttl).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn remove<S: ValueStore>(store: &S, key: &str) {
    store.remove(key).await.unwrap_or_else(|error| panic!("{error}"));
}

/// Shows: M1
pub(crate) async fn a_value_is_there_until_it_is_replaced_or_removed<S: ValueStore>(store: S) {
    assert_eq!(get(&store, "key").await, None);
    remove(&store, "key").await;
    put(&store, "key", b"first", HOUR).await;
    put(&store, "other", b"other", HOUR).await;
    assert_eq!(get(&store, "key").await, Some("first".into()));
    put(&store, "key", b"second", HOUR).await;
    assert_eq!(get(&store, "key").await, Some("second".into()));
    remove(&store, "key").await;
    assert_eq!(get(&store, "key").await, None);
    assert_eq!(get(&store, "other").await, Some("other".into()));
}

/// Shows: M1
pub(crate) async fn any_bytes_are_a_value<S: ValueStore>(store: S) {
    let bytes = Bytes::from_iter(0..=u8::MAX);
    for (key, value) in [("", Bytes::new()), ("a key: with {all} kinds of \r\n signs, \u{e9}", bytes)] {
        assert_eq!(put_new(&store, key, value.clone(), HOUR).await, None);
        assert_eq!(put_new(&store, key, "other", HOUR).await, Some(value.clone()));
        assert_eq!(get(&store, key).await, Some(value.clone()));
        assert!(replace(&store, key, &value, Some(value.clone()), HOUR).await);
        store.put(key, value.clone(), HOUR).await.unwrap_or_else(|error| panic!("{error}"));
        assert!(replace(&store, key, &value, None, HOUR).await);
        assert_eq!(get(&store, key).await, None);
    }
}

/// Shows: M1
pub(crate) async fn a_value_expires_after_its_time<S: ValueStore>(store: S) {
    put(&store, "put", b"1", SHORT).await;
    assert_eq!(put_new(&store, "new", "1", SHORT).await, None);
    put(&store, "replaced", b"1", HOUR).await;
    assert!(replace(&store, "replaced", b"1", Some("2".into()), SHORT).await);
    put(&store, "extended", b"1", SHORT).await;
    put(&store, "extended", b"2", HOUR).await;
    sleep(SHORT + Duration::from_millis(1)).await;
    for key in ["put", "new", "replaced"] {
        assert_eq!(get(&store, key).await, None, "{key}");
        assert!(!replace(&store, key, b"1", None, HOUR).await && !replace(&store, key, b"2", None, HOUR).await);
        assert_eq!(put_new(&store, key, "3", HOUR).await, None, "{key}");
    }
    assert_eq!(get(&store, "extended").await, Some("2".into()));
}

/// Shows: M1
pub(crate) async fn no_time_at_all_removes_a_value_and_all_time_keeps_it<S: ValueStore>(store: S) {
    for ttl in [Duration::from_nanos(1), Duration::MAX, HOUR * 24 * 365 * 99] {
        put(&store, "key", b"1", ttl).await;
        assert!(replace(&store, "key", b"1", Some("2".into()), ttl).await || ttl < HOUR);
        assert!(get(&store, "key").await == Some("2".into()) || ttl < HOUR);
        assert!(put_new(&store, "key", "3", ttl).await == Some("2".into()) || ttl < HOUR);
        put(&store, "key", b"4", Duration::ZERO).await;
        assert_eq!(get(&store, "key").await, None);
        assert_eq!(put_new(&store, "key", "5", Duration::ZERO).await, None);
        assert_eq!(put_new(&store, "key", "6", Duration::MAX).await, None);
        assert!(replace(&store, "key", b"6", Some("7".into()), Duration::ZERO).await);
        assert_eq!(get(&store, "key").await, None);
    }
}

/// Shows: M1
pub(crate) async fn a_new_value_leaves_the_one_that_is_there<S: ValueStore>(store: S) {
    assert_eq!(put_new(&store, "key", "first", HOUR).await, None);
    for value in ["second", "first"] {
        assert_eq!(put_new(&store, "key", value, SHORT).await, Some("first".into()));
    }
    // Neither did its time change.
    sleep(SHORT + Duration::from_millis(1)).await;
    assert_eq!(get(&store, "key").await, Some("first".into()));
    remove(&store, "key").await;
    assert_eq!(put_new(&store, "key", "second", HOUR).await, None);
}

/// Shows: M1
pub(crate) async fn of_many_new_values_at_once_one_wins<S: ValueStore + Clone>(store: S) {
    for round in 0..10 {
        let (mut callers, start) = (JoinSet::new(), Arc::new(Barrier::new(16)));
        for number in 0..16 {
            let (store, start) = (store.clone(), Arc::clone(&start));
            callers.spawn(async move {
                start.wait().await;
                (number, put_new(&store, &format!("round {round}"), number.to_string(), HOUR).await)
            });
        }
        let results = callers.join_all().await;
        let winners = Vec::from_iter(results.iter().filter(|(_, present)| present.is_none()));
        let [(winner, _)] = winners[..] else { panic!("{results:?}") };
        let value = Some(Bytes::from(winner.to_string()));
        assert!(results.iter().all(|(number, present)| number == winner || *present == value), "{results:?}");
    }
}

/// Shows: M1
pub(crate) async fn only_the_current_value_is_replaced<S: ValueStore>(store: S) {
    assert!(!replace(&store, "key", b"", Some("new".into()), HOUR).await);
    assert!(!replace(&store, "key", b"", None, HOUR).await);
    put(&store, "key", b"first", HOUR).await;
    for other in [&b""[..], b"second", b"firs", b"first "] {
        assert!(!replace(&store, "key", other, Some("second".into()), HOUR).await);
        assert!(!replace(&store, "key", other, Some("first".into()), SHORT).await);
        assert!(!replace(&store, "key", other, None, HOUR).await);
    }
    sleep(SHORT + Duration::from_millis(1)).await;
    assert_eq!(get(&store, "key").await, Some("first".into()));
    assert!(replace(&store, "key", b"first", Some("second".into()), HOUR).await);
    assert!(!replace(&store, "key", b"first", Some("third".into()), HOUR).await);
    assert_eq!(get(&store, "key").await, Some("second".into()));
    assert!(replace(&store, "key", b"second", None, HOUR).await);
    assert_eq!(get(&store, "key").await, None);
}

/// A counter that many change at once loses none of its changes.
///
/// Shows: M1
pub(crate) async fn of_many_replacements_at_once_each_builds_on_the_one_before<S: ValueStore + Clone>(store: S) {
    put(&store, "key", b"0", HOUR).await;
    let mut callers = JoinSet::new();
    for _ in 0..8 {
        let store = store.clone();
        callers.spawn(async move {
            for _ in 0..10 {
                loop {
                    let current = get(&store, "key").await.unwrap();
                    let number: u32 = str::from_utf8(&current).unwrap().parse().unwrap();
                    let next = Some(Bytes::from((number + 1).to_string()));
                    if replace(&store, "key", &current, next, HOUR).await {
                        break;
                    }
                }
            }
        });
    }
    callers.join_all().await;
    assert_eq!(get(&store, "key").await, Some("80".into()));
}
