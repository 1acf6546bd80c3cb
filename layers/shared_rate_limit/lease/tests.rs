use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);
const TERMS: Terms = Terms { most: 16, keep: Duration::from_millis(100) };

/// Asks for the tokens of a call, gets all of them, and spends the cost.
fn fetch(lease: &mut Lease, now: Instant, cost: u32) -> u32 {
    assert!(!lease.spend(now, cost));
    let ask = lease.ask(now, cost, cost.into(), TERMS);
    lease.granted(now, *ask.end(), 0, TERMS);
    assert!(lease.spend(now, cost));
    *ask.end()
}

/// Shows: Q5
#[test]
fn a_lease_doubles_while_it_is_used_up_fast_and_starts_again_after_a_pause() {
    let (mut lease, mut now) = (Lease::default(), Instant::now());
    let mut sizes = Vec::new();
    for _ in 0..80 {
        if !lease.spend(now, 1) {
            sizes.push(fetch(&mut lease, now, 1));
        }
        now += MILLI;
    }
    assert_eq!(sizes, [1, 2, 4, 8, 16, 16, 16, 16, 16]);
    // The rest is forgotten.
    assert!(lease.tokens(now) > 0);
    now += TERMS.keep;
    assert_eq!((lease.tokens(now), lease.is_idle(now)), (0, true));
    assert_eq!(fetch(&mut lease, now, 1), 1);
    // Between the two, it stays as it is.
    now += 10 * MILLI;
    assert_eq!(fetch(&mut lease, now, 1), 2);
    now += 60 * MILLI;
    assert!(lease.spend(now, 1));
    assert_eq!(fetch(&mut lease, now, 1), 2);
}

#[test]
fn a_call_asks_for_what_it_lacks_and_the_calls_that_wait_up_to_the_bound() {
    let (mut lease, now) = (Lease::default(), Instant::now());
    assert_eq!(lease.ask(now, 3, 3, TERMS), 3..=3);
    assert_eq!(lease.ask(now, 3, 10, TERMS), 3..=10);
    assert_eq!(lease.ask(now, 3, 1_000_000_000_000, TERMS), 3..=16);
    assert_eq!(lease.ask(now, 40, 80, TERMS), 40..=40);
    lease.granted(now, 10, 5, TERMS);
    assert_eq!(lease.ask(now, 12, 30, TERMS), 2..=6);
    // The oldest tokens say how much time has passed.
    lease.granted(now, 6, 9, TERMS);
    assert_eq!(lease.end(now), Some((16, 5)));
    assert_eq!((lease.end(now), lease.tokens(now)), (None, 0));
}

#[test]
fn a_denial_holds_for_calls_that_lack_as_much_until_its_time_is_over() {
    let quota = Quota::new(10, SECOND);
    let (mut lease, now) = (Lease::default(), Instant::now());
    lease.denied(now, 3, SECOND);
    assert!(!lease.is_idle(now));
    assert_eq!(lease.wait(now, 2, &quota), None);
    assert_eq!(lease.wait(now, 3, &quota), Some(SECOND));
    assert_eq!(lease.wait(now + SECOND / 4, 5, &quota), Some(SECOND * 3 / 4 + SECOND / 5));
    assert_eq!(lease.wait(now + SECOND, 5, &quota), None);
    assert!(lease.is_idle(now + SECOND));
    // With the tokens that are held, a call lacks less.
    lease.granted(now, 2, 0, TERMS);
    lease.denied(now, 3, Duration::MAX);
    assert_eq!(lease.wait(now, 4, &quota), None);
    assert!(lease.wait(now, 5, &quota).unwrap() > 365 * 24 * 3600 * SECOND);
}

#[test]
fn tokens_of_a_call_that_was_not_made_come_back_unless_the_lease_is_over() {
    let (mut lease, now) = (Lease::default(), Instant::now());
    lease.take_back(now, 1, 0);
    assert_eq!(lease.tokens(now), 0);
    lease.granted(now, 2, 0, TERMS);
    assert!(lease.spend(now, 2));
    lease.take_back(now, 2, 0);
    assert_eq!(lease.tokens(now), 2);
    lease.take_back(now + TERMS.keep, 2, 0);
    assert_eq!(lease.tokens(now + TERMS.keep), 0);
}

/// Meanwhile the lease was filled again.
///
/// Shows: Q5
#[test]
fn tokens_that_come_back_late_do_not_exceed_the_lease_and_keep_their_age() {
    let (mut lease, now) = (Lease::default(), Instant::now());
    lease.granted(now, 2, 100, TERMS);
    assert!(lease.spend(now, 2));
    lease.granted(now, TERMS.most, 900, TERMS);
    lease.take_back(now, 2, 100);
    assert_eq!(lease.end(now), Some((TERMS.most, 100)));
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Advance(u64),
    Spend(u32),
    /// Asks for this cost and gets a part of the tokens.
    Fetch(u32, f64),
    Return,
}

proptest! {
    /// Shows: Q5
    #[test]
    fn a_lease_is_never_larger_than_its_bound_nor_spent_twice_or_late(
        most in 1u32..20,
        keep in 1u64..100,
        steps in prop::collection::vec(prop_oneof![
            (0u64..60).prop_map(Step::Advance),
            (1u32..9).prop_map(Step::Spend),
            (1u32..9, 0.0..1.0).prop_map(|(cost, part)| Step::Fetch(cost, part)),
            Just(Step::Return),
        ], 1..100),
    ) {
        let terms = Terms { most, keep: Duration::from_millis(keep) };
        let (mut lease, mut now) = (Lease::default(), Instant::now());
        // The model: a token for each entry, with the time until which it may be spent.
        let (mut held, mut spent): (Vec<Instant>, u32) = (Vec::new(), 0);
        let mut room = 0;
        for step in steps {
            held.retain(|until| now < *until);
            prop_assert_eq!(lease.tokens(now) as usize, held.len());
            match step {
                Step::Advance(millis) => now += Duration::from_millis(millis),
                Step::Spend(cost) => {
                    let is_there = held.len() >= cost as usize;
                    prop_assert_eq!(lease.spend(now, cost), is_there);
                    if is_there {
                        held.truncate(held.len() - cost as usize);
                        spent = cost;
                    }
                }
                Step::Fetch(cost, part) if held.len() < cost as usize => {
                    let ask = lease.ask(now, cost, cost.into(), terms);
                    let granted = ask.start() + (f64::from(ask.end() - ask.start()) * part) as u32;
                    lease.granted(now, granted, 0, terms);
                    prop_assert!(lease.tokens(now) >= cost && lease.tokens(now) <= most.max(cost));
                    // All are kept from now on.
                    held = vec![now + terms.keep; held.len() + granted as usize];
                    room = held.len().max(most as usize);
                }
                Step::Fetch(..) => {}
                Step::Return => {
                    lease.take_back(now, spent, 0);
                    // They come back to the tokens that they were part of, if any are kept still.
                    let until = lease.held.map(|held| held.until).filter(|until| now < *until);
                    held.extend(until.into_iter().flat_map(|until| vec![until; spent as usize]));
                    held.truncate(room);
                    spent = 0;
                }
            }
        }
    }
}
