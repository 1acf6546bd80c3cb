use std::task::Waker;

use super::*;

fn state<W>(place: &Place<W>) -> &'static str {
    match place {
        Place::Waiting(_) => "waiting",
        Place::Admitted => "admitted",
        Place::Shed => "shed",
    }
}

/// Shows: A4
#[test]
fn the_first_is_admitted_and_the_last_is_shed_for_one_of_a_higher_rank() {
    let (mut queue, counts) = (Queue::default(), Counts::default());
    let mut push = |rank| queue.push(&counts, rank, Waker::noop().clone());
    let [old_low, new_low, high] = [Rank::Low, Rank::Low, Rank::High].map(&mut push);
    assert_eq!([Rank::High, Rank::Normal, Rank::Low].map(|rank| counts.before(rank)), [1, 1, 3]);
    assert!(queue.shed_below(&counts, Rank::Low).is_none(), "none is lower");
    assert!(queue.shed_below(&counts, Rank::Normal).is_some());
    assert!(queue.pop(&counts).is_some());
    let places = [old_low, new_low, high].map(|ticket| state(&queue.place(ticket)));
    assert_eq!(places, ["waiting", "shed", "admitted"]);

    assert!(counts.any_below(Rank::Normal) && !counts.any_below(Rank::Low));
    assert!(queue.shed_below(&counts, Rank::Urgent).is_some());
    assert!(queue.shed_below(&counts, Rank::Urgent).is_none() && queue.pop(&counts).is_none());
    assert!([Rank::Urgent, Rank::Low].iter().all(|&rank| counts.before(rank) == 0 && !counts.any_below(rank)));

    let removed = [old_low, new_low, high].map(|ticket| state(&queue.remove(&counts, ticket)));
    assert_eq!(removed, ["shed", "shed", "admitted"]);
    assert!(queue.shed.is_empty());
}

/// Shows: A4
#[test]
fn permits_go_to_the_first_and_none_to_those_behind_one_who_finds_none() {
    let (mut queue, counts) = (Queue::default(), Counts::default());
    for rank in [Rank::Low, Rank::High, Rank::Low, Rank::Normal, Rank::Normal, Rank::High] {
        queue.push(&counts, rank, Waker::noop().clone());
    }
    let kept = |rank| [0, 0, 2, 3][rank as usize];
    let admitted = [-1, 0, 1, 2, 4, 5, 6, 7, 8, 9, 99].map(|available| counts.admitted_by(available, kept));
    assert_eq!(admitted, [0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6]);
}
