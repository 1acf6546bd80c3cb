use std::cell::Cell;

use proptest::prelude::*;

use super::*;

/// An entry. Its key is its hash too.
struct Item {
    key: u64,
    place: u32,
    is_used: Cell<bool>,
}

fn add(eviction: &mut Eviction<Item>, key: u64, weight: u64) -> Vec<u64> {
    let mut gone = Vec::new();
    eviction.make_room(weight, |item| item.is_used.take(), |item| gone.push(item.key));
    eviction.insert(key, weight, |place| Item { key, place, is_used: Cell::new(false) });
    gone
}

fn all(eviction: &Eviction<Item>) -> impl Iterator<Item = &Item> {
    eviction.nodes.iter().filter_map(|node| node.item.as_ref())
}

fn take(eviction: &mut Eviction<Item>, key: u64) -> bool {
    let Some((place, is_used)) =
        all(eviction).find(|item| item.key == key).map(|item| (item.place, item.is_used.get()))
    else {
        return false;
    };
    eviction.remove(place, is_used).unwrap().key == key
}

#[test]
fn what_was_never_used_goes_in_the_order_in_which_it_came() {
    let mut eviction = Eviction::new(3);
    let gone: Vec<_> = (0..6).flat_map(|key| add(&mut eviction, key, 1)).collect();
    assert_eq!(gone, [0, 1, 2]);
}

#[test]
fn what_was_used_stays_and_what_comes_back_soon_does_too() {
    let mut eviction = Eviction::new(20);
    (0..20).for_each(|key| drop(add(&mut eviction, key, 1)));
    all(&eviction).find(|item| item.key == 0).unwrap().is_used.set(true);
    assert_eq!(add(&mut eviction, 20, 1), [1]);
    assert_eq!(add(&mut eviction, 1, 1), [2], "1 was remembered");
    let scan: Vec<_> = (100..1_000).flat_map(|key| add(&mut eviction, key, 1)).collect();
    assert!(!scan.contains(&0) && !scan.contains(&1));
}

#[test]
fn as_many_are_remembered_as_there_are_entries() {
    let mut eviction = Eviction::new(100);
    for key in 0..10_000 {
        drop(add(&mut eviction, key, 1));
        assert!(eviction.remembered.order.len() <= eviction.len() + 1);
        assert!(eviction.remembered.hashes.len() <= eviction.remembered.order.len());
    }
    // Heavier entries, so there are fewer of them.
    for key in 10_000..20_000 {
        drop(add(&mut eviction, key, 10));
    }
    assert_eq!(eviction.len(), 10);
    assert!(eviction.remembered.order.len() <= 11);
}

/// With a thousand entries that are all in use, one must be evicted, without visiting them all.
#[test]
fn where_all_are_used_one_goes_after_a_few_second_chances() {
    let mut eviction = Eviction::new(1_000);
    (0..1_000).for_each(|key| drop(add(&mut eviction, key, 1)));
    all(&eviction).for_each(|item| item.is_used.set(true));
    let asked = Cell::new(0);
    let was_used = |item: &Item| {
        asked.set(asked.get() + 1);
        item.is_used.take()
    };
    let mut gone = Vec::new();
    eviction.make_room(1, was_used, |item| gone.push(item.key));
    assert_eq!((gone, asked.get()), (vec![SECOND_CHANCES as u64], SECOND_CHANCES));
}

proptest! {
    /// After any sequence of insertions, uses and removals, the bound holds, exactly the entries that were not removed
    /// or evicted are there, and the queues agree with the nodes.
    #[test]
    fn it_holds_what_it_was_given_and_did_not_give_back(
        capacity in 1..40_u64,
        steps in prop::collection::vec((0..30_u64, 0..3_u8, 1..6_u64), 0..200),
    ) {
        let mut eviction = Eviction::new(capacity);
        let mut held = Vec::<(u64, u64)>::new();
        for (key, step, weight) in steps {
            let is_there = held.iter().any(|(other, _)| *other == key);
            match step {
                0 => {
                    prop_assert_eq!(take(&mut eviction, key), is_there);
                    held.retain(|(other, _)| *other != key);
                }
                1 => all(&eviction).filter(|item| item.key == key).for_each(|item| item.is_used.set(true)),
                _ if is_there || !eviction.has_room_for(weight) => {}
                _ => {
                    let gone = add(&mut eviction, key, weight);
                    prop_assert!(gone.iter().all(|gone| held.iter().any(|(key, _)| key == gone)));
                    held.retain(|(key, _)| !gone.contains(key));
                    held.push((key, weight));
                }
            }
            prop_assert!(eviction.weight() <= capacity);
            prop_assert_eq!(eviction.weight(), held.iter().map(|(_, weight)| weight).sum::<u64>());
            prop_assert_eq!(eviction.len(), held.len());
            let mut walked = 0;
            for queue in [&eviction.probation, &eviction.kept] {
                let (mut at, mut before, mut weight) = (queue.first, NONE, 0);
                while at != NONE {
                    let node = &eviction.nodes[at as usize];
                    prop_assert_eq!(node.before, before);
                    weight += node.weight;
                    walked += 1;
                    (before, at) = (at, node.next);
                }
                prop_assert_eq!((queue.last, queue.weight), (before, weight));
            }
            prop_assert_eq!(walked, held.len());
        }
    }
}
