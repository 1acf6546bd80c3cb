use std::collections::{HashMap, HashSet, hash_map::Entry};

use proptest::prelude::*;

use super::*;

/// A hash that many keys share.
fn hash(key: u16) -> u64 {
    u64::from(key % 7) << 61 | u64::from(key % 7)
}

#[derive(Debug, Clone)]
enum Step {
    Use(u16),
    Add(u16),
    Evict,
    /// The key is idle or not.
    Set(u16, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = 0..60_u16;
    let step = prop_oneof![
        key.clone().prop_map(Step::Use),
        key.clone().prop_map(Step::Add),
        Just(Step::Evict),
        (key, any::<bool>()).prop_map(|(key, is_idle)| Step::Set(key, is_idle)),
    ];
    prop::collection::vec(step, 0..400)
}

proptest! {
    /// Shows: K2
    #[test]
    fn they_hold_what_was_added_and_evict_only_what_is_idle(steps in steps()) {
        let mut keys = Keys::new();
        let mut model = HashMap::new();
        let mut used = HashSet::new();
        for step in steps {
            match step {
                Step::Use(key) => {
                    prop_assert_eq!(keys.get(hash(key), &key).copied(), model.get(&key).copied());
                    used.extend(model.get(&key).map(|_| key));
                }
                Step::Add(key) => {
                    if let Entry::Vacant(new) = model.entry(key) {
                        keys.insert(hash(key), key, true);
                        new.insert(true);
                        used.remove(&key);
                    }
                }
                Step::Set(key, is_idle) => {
                    if let Some(value) = model.get_mut(&key) {
                        *value = is_idle;
                        *keys.get(hash(key), &key).unwrap() = is_idle;
                        used.insert(key);
                    }
                }
                Step::Evict => {
                    let mut looks = 0;
                    let mut left = 20;
                    let evicted = keys.evict(&mut left, |is_idle| {
                        looks += 1;
                        *is_idle
                    });
                    prop_assert!(looks <= LOOKS);
                    prop_assert_eq!(20 - left, model.len().min(LOOKS));
                    match evicted {
                        Some((key, is_idle)) => {
                            prop_assert!(is_idle);
                            prop_assert_eq!(model.remove(&key), Some(true));
                        }
                        None if model.len() <= LOOKS => prop_assert!(!model.values().any(|is_idle| *is_idle)),
                        None => {}
                    }
                    if model.len() < LOOKS {
                        // The hand has passed all of them, unless it found one before.
                        if let Some((key, _)) = evicted.filter(|(key, _)| used.contains(key)) {
                            let better = |other: &u16| *other != key && model[other] && !used.contains(other);
                            prop_assert!(!model.keys().any(better), "{} was used, others were not", key);
                        }
                    }
                    used.retain(|key| keys.entries.iter().any(|entry| entry.key == *key && entry.is_used));
                }
            }
            prop_assert_eq!(keys.iter().map(|(key, value)| (*key, *value)).collect::<HashMap<_, _>>(), model.clone());
            prop_assert_eq!(keys.places.len(), model.len());
        }
    }
}

#[test]
fn a_key_that_is_used_outlives_many_that_are_used_once() {
    let mut keys = Keys::new();
    for key in 0..40_u16 {
        keys.insert(hash(key), key, ());
    }
    for key in 40..10_000 {
        assert!(keys.get(hash(0), &0).is_some(), "key 0 is gone after {key}");
        assert!(keys.evict(&mut LOOKS.clone(), |()| true).is_some());
        keys.insert(hash(key), key, ());
    }
    assert_eq!(keys.entries.len(), 40);
}

#[test]
fn a_look_for_room_goes_on_where_the_last_one_ended() {
    let mut keys = Keys::new();
    for key in 0..100_u16 {
        keys.insert(hash(key), key, key == 99);
    }
    let looks = (0..100).take_while(|_| keys.evict(&mut LOOKS.clone(), |is_idle| *is_idle).is_none()).count();
    assert_eq!(looks, 99 / LOOKS);
}
