use proptest::{collection::vec, prelude::*};

use super::*;

#[test]
fn events_come_in_the_order_in_which_they_were_published() {
    let mut queue = Queue::new(3, Lag::Tell);
    for event in 1..=3 {
        assert_eq!(queue.push(event), Pushed::Waits { instead_of: None });
    }
    for event in 1..=3 {
        assert_eq!(queue.pop(), Next::LayerEvent(event));
    }
    assert_eq!(queue.pop(), Next::Nothing);
}

#[test]
fn who_lags_misses_the_oldest_and_is_told_before_the_next() {
    for lag in [Lag::Tell, Lag::Block] {
        let mut queue = Queue::new(2, lag);
        queue.push(1);
        queue.push(2);
        assert_eq!(queue.blocks(), lag == Lag::Block);
        assert_eq!(queue.push(3), Pushed::Waits { instead_of: Some(1) });
        assert_eq!(queue.push(4), Pushed::Waits { instead_of: Some(2) });
        assert_eq!(queue.pop(), Next::Lagged(Lagged::Missed(2)));
        assert_eq!(queue.pop(), Next::LayerEvent(3));
        assert!(!queue.blocks());
    }
}

#[test]
fn who_lags_and_is_dropped_gets_what_waited_is_told_and_ends() {
    let mut queue = Queue::new(1, Lag::Drop);
    queue.push(1);
    assert_eq!(queue.push(2), Pushed::Refused(2));
    assert_eq!(queue.push(3), Pushed::Refused(3));
    queue.close();
    assert_eq!(queue.pop(), Next::LayerEvent(1));
    assert_eq!(queue.pop(), Next::Lagged(Lagged::Dropped));
    assert_eq!(queue.pop(), Next::End);
    assert_eq!(queue.pop(), Next::End);
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Push,
    Pop,
    Close,
}

/// The items that a subscriber has to see, computed from the list of all steps: each pop looks at all earlier steps.
fn expected(steps: &[Step], capacity: usize, lag: Lag) -> Vec<Next<usize>> {
    let mut seen: Vec<Next<usize>> = Vec::new();
    // The numbers of the pushes refused, delivered or missed so far, and how many of the missed are not reported yet.
    let (mut gone, mut untold, mut pushes) = (vec![], 0, 0);
    let (mut dropped_at, mut closed_at) = (None, None);
    for (at, step) in steps.iter().enumerate() {
        let waiting: Vec<usize> = (0..pushes).filter(|push| !gone.contains(push)).collect();
        match step {
            Step::Push => {
                if closed_at.is_some() || dropped_at.is_some() {
                    gone.push(pushes);
                } else if waiting.len() == capacity && lag == Lag::Drop {
                    dropped_at = Some(at);
                    gone.push(pushes);
                } else if waiting.len() == capacity {
                    gone.push(waiting[0]);
                    untold += 1;
                }
                pushes += 1;
            }
            Step::Pop if untold > 0 => {
                seen.push(Next::Lagged(Lagged::Missed(untold)));
                untold = 0;
            }
            Step::Pop => seen.push(match waiting.first() {
                Some(first) => {
                    gone.push(*first);
                    Next::LayerEvent(*first)
                }
                None if dropped_at.is_some() && !seen.contains(&Next::Lagged(Lagged::Dropped)) => {
                    Next::Lagged(Lagged::Dropped)
                }
                None if dropped_at.is_some() || closed_at.is_some() => Next::End,
                None => Next::Nothing,
            }),
            Step::Close => closed_at = closed_at.or(Some(at)),
        }
    }
    seen
}

proptest! {
    #[test]
    fn a_subscriber_sees_what_a_list_of_all_that_happened_says(
        steps in vec(prop_oneof![6 => Just(Step::Push), 4 => Just(Step::Pop), 1 => Just(Step::Close)], 0..60),
        capacity in 1_usize..5,
        lag in prop_oneof![Just(Lag::Tell), Just(Lag::Block), Just(Lag::Drop)],
    ) {
        let mut queue = Queue::new(capacity, lag);
        let (mut seen, mut pushes) = (Vec::new(), 0);
        for step in &steps {
            match step {
                Step::Push => {
                    queue.push(pushes);
                    pushes += 1;
                }
                Step::Pop => seen.push(queue.pop()),
                Step::Close => queue.close(),
            }
            prop_assert!(queue.waiting.len() <= capacity);
        }
        prop_assert_eq!(seen, expected(&steps, capacity, lag));
    }
}
