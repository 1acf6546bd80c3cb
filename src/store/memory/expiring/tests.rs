use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Recomputes everything from the list of values that were put.
struct Model {
    max_bytes: usize,
    /// In the order in which they were put.
    values: Vec<(String, Vec<u8>, Option<Instant>)>,
}

impl Model {
    fn bytes(&self) -> usize {
        self.values.iter().map(|(key, value, _)| size(key, value)).sum()
    }

    fn get(&self, now: Instant, key: &str) -> Option<&[u8]> {
        let is_fresh = |until: &Option<Instant>| until.is_none_or(|until| now < until);
        self.values.iter().find(|(its, _, until)| its == key && is_fresh(until)).map(|(_, value, _)| &**value)
    }

    fn put(&mut self, now: Instant, key: &str, value: &[u8], ttl: Duration) {
        self.values.retain(|(its, ..)| its != key);
        if size(key, value) > self.max_bytes || ttl.is_zero() {
            return;
        }
        if self.bytes() + size(key, value) > self.max_bytes {
            // Which of those that have expired go is not visible.
            self.values.retain(|(_, _, until)| until.is_none_or(|until| now < until));
        }
        while self.bytes() + size(key, value) > self.max_bytes {
            self.values.remove(0);
        }
        self.values.push((key.to_owned(), value.to_owned(), now.checked_add(ttl)));
    }
}

#[derive(Debug, Clone)]
enum Step {
    Put { key: u8, length: usize, ttl: u64 },
    Remove { key: u8 },
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6_u8, 0..300_usize, 0..5_u64).prop_map(|(key, length, ttl)| Step::Put { key, length, ttl }),
        1 => (0..6_u8).prop_map(|key| Step::Remove { key }),
        2 => (0..4_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Shows: M1
    #[test]
    fn the_values_are_those_of_a_list_that_is_searched(steps in prop::collection::vec(step(), 0..60)) {
        let mut now = Instant::now();
        let max_bytes = 4 * ENTRY;
        let (mut values, mut model) = (Expiring::new(max_bytes), Model { max_bytes, values: Vec::new() });
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Put { key, length, ttl } => {
                    let ttl = if ttl == 4 { Duration::MAX } else { SECOND * ttl as u32 };
                    let (key, value) = (key.to_string(), vec![number as u8; length]);
                    values.put(now, &key, &value, ttl);
                    model.put(now, &key, &value, ttl);
                }
                Step::Remove { key } => {
                    values.remove(&key.to_string());
                    model.values.retain(|(its, ..)| *its != key.to_string());
                }
                Step::Wait(seconds) => now += SECOND * seconds as u32,
            }
            for key in 0..6_u8 {
                let key = key.to_string();
                let value = values.get(now, &key);
                prop_assert_eq!(value.as_deref(), model.get(now, &key));
            }
            prop_assert!(values.bytes() <= max_bytes);
            prop_assert_eq!((values.by_age.len(), values.len()), (values.len(), values.by_age.len()));
            prop_assert!(values.by_expiry.len() <= values.len());
        }
        for key in 0..6_u8 {
            values.remove(&key.to_string());
        }
        prop_assert_eq!((values.bytes(), values.by_age.len(), values.by_expiry.len()), (0, 0, 0));
    }
}

/// Shows: M1
#[test]
fn expired_values_make_room_before_the_oldest_and_a_smaller_bound_holds_at_once() {
    let now = Instant::now();
    let mut values = Expiring::new(3 * (ENTRY + 2));
    for (key, ttl) in [("a", Duration::MAX), ("b", SECOND), ("c", Duration::MAX)] {
        values.put(now, key, b"1", ttl);
    }
    values.put(now + SECOND, "d", b"1", SECOND);
    assert_eq!((values.len(), values.get(now, "b")), (3, None));
    values.put(now + SECOND, "e", b"1", SECOND);
    assert_eq!((values.len(), values.get(now, "a")), (3, None));
    // It takes the place of the earlier one, and is the newest.
    values.put(now + SECOND, "c", b"2", SECOND);
    values.bound(now + SECOND, ENTRY + 2);
    assert_eq!((values.len(), values.get(now + SECOND, "c")), (1, Some("2".into())));
    // Larger than the bound: not even the earlier value remains.
    values.put(now + SECOND, "c", b"22", SECOND);
    assert_eq!((values.len(), values.bytes()), (0, 0));
}

/// Shows: M1
#[test]
fn values_that_expire_leave_the_memory_as_others_come() {
    let mut now = Instant::now();
    let mut values = Expiring::new(usize::MAX);
    for number in 0..10_000_u32 {
        values.put(now, &number.to_string(), b"", SECOND);
        now += SECOND / 100;
        assert!(values.len() <= 101, "{}", values.len());
    }
}
