use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::*;

use super::*;

fn kept(reserves: &Reserves, limit: usize) -> [i32; 4] {
    Rank::ALL.map(|rank| reserves.kept(rank, || limit))
}

fn refusal(reserves: &Reserves, priority: Priority, share: f64) -> String {
    let refused = catch_unwind(AssertUnwindSafe(|| reserves.set(priority, share))).unwrap_err();
    refused
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| refused.downcast_ref::<&str>().map(ToString::to_string))
        .unwrap()
}

/// Shows: A4
#[test]
fn reserves_add_up_towards_the_lower_ranks_and_one_permit_is_for_all() {
    let reserves = Reserves::default();
    assert_eq!(kept(&reserves, 100), [0, 0, 0, 0]);
    reserves.set(Priority::High, 0.07);
    reserves.set(Priority::Normal, 0.3);
    // Rounded up, and exact where the product is: 0.07 * 100.0 is more than 7.
    assert_eq!(kept(&reserves, 100), [0, 0, 7, 37]);
    assert_eq!(kept(&reserves, 10), [0, 0, 1, 4]);
    assert_eq!(kept(&reserves, 1), [0, 0, 0, 0]);
    assert_eq!((reserves.share(Priority::High), reserves.share(Priority::Low)), (0.07, 0.0));
    reserves.set(Priority::High, 0.7);
    assert_eq!(kept(&reserves, 10), [0, 0, 7, 9]);
    assert_eq!(kept(&reserves, (1 << 23) - 1)[3], (1 << 23) - 2);
}

#[test]
fn reserves_that_make_no_sense_are_refused_and_change_nothing() {
    let reserves = Reserves::default();
    reserves.set(Priority::Normal, 0.5);
    for share in [f64::NAN, -0.1, 1.1, f64::INFINITY] {
        assert!(refusal(&reserves, Priority::High, share).contains("`share` must be between 0 and 1, as in 0.2"));
    }
    assert_eq!(
        refusal(&reserves, Priority::High, 0.7),
        "the shares reserved for `High` (0.7) and `Normal` (0.5) must add up to at most 1"
    );
    assert!(refusal(&reserves, Priority::Low, 0.1).contains("no call is below `Low`"));
    assert!(refusal(&reserves, Priority::Exempt, 0.1).contains("need no permit"));
    assert_eq!(kept(&reserves, 10), [0, 0, 0, 5]);
}

#[test]
fn a_request_without_a_priority_is_normal_and_without_a_function_all_are_equal() {
    let some = ByRequest(|number: &u8| (*number > 0).then_some(Priority::High));
    assert_eq!([0, 1].map(|number| some.priority(&number)), [Priority::Normal, Priority::High]);
    assert_eq!(ByRequest(Priority::Low).priority(&()), Priority::Low);
    assert_eq!(Reserves { high: 1.into(), normal: 1.into() }.kept(Rank::new(Equal.priority(&())), || 10), 0);
}

proptest! {
    /// A rank does not get back the permits that a lowered limit takes from it: none becomes free.
    #[test]
    fn a_lower_limit_admits_no_rank(limit in 2..1000_usize, by in 1..1000_usize, high in 0.0..0.5, normal in 0.0..0.5) {
        let reserves = Reserves::default();
        reserves.set(Priority::High, high);
        reserves.set(Priority::Normal, normal);
        let lower = limit.saturating_sub(by).max(1);
        for (before, after) in kept(&reserves, limit).into_iter().zip(kept(&reserves, lower)) {
            prop_assert!(before - after <= (limit - lower) as i32);
            prop_assert!((0..lower as i32).contains(&after));
        }
    }
}
