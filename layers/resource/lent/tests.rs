//! The states of a loan.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::{collection::vec, prelude::*};

use super::*;

/// Counts its drops. On drop it also calls into its loan, which would hang the test if a lock were held.
struct Counted {
    drops: Arc<AtomicUsize>,
    lent: Option<Lent<Counted>>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(lent) = &self.lent {
            assert!(lent.get().is_err());
        }
        self.drops.fetch_add(1, Ordering::SeqCst);
    }
}

fn lease(drops: &Arc<AtomicUsize>) -> (Lease, Lent<Counted>) {
    let mut lease = Lease::new(Counted { drops: Arc::clone(drops), lent: None });
    let lent = {
        let _entered = lease.enter();
        current::<Counted>().unwrap()
    };
    (lease, lent)
}

#[test]
fn nothing_of_a_users_is_dropped_under_the_lock() {
    let drops = Arc::new(AtomicUsize::new(0));
    let (first, lent) = lease(&drops);
    lent.get().unwrap().lent = Some(lent.clone());
    drop(first);
    assert_eq!(drops.load(Ordering::SeqCst), 1);

    let (second, lent) = lease(&drops);
    let mut held = lent.get().unwrap();
    held.lent = Some(lent.clone());
    drop(second);
    assert_eq!(drops.load(Ordering::SeqCst), 1);
    drop(held);
    assert_eq!(drops.load(Ordering::SeqCst), 2);
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Get,
    Drop,
    TakeOut,
    End,
}

proptest! {
    /// The model inspects the whole history: whether the resource was taken out or the call ended, and who acquired
    /// it last.
    #[test]
    fn one_at_a_time_has_it_and_it_is_dropped_once(
        steps in vec(prop_oneof![4 => Just(Step::Get), 4 => Just(Step::Drop), 1 => Just(Step::TakeOut), 1 => Just(Step::End)], 0..12),
    ) {
        let drops = Arc::new(AtomicUsize::new(0));
        let (lease, lent) = lease(&drops);
        let (mut lease, mut held, mut out) = (Some(lease), None, Vec::new());
        let mut done: Vec<Step> = Vec::new();
        for step in steps {
            let before = |wanted: fn(&Step) -> bool| done.iter().filter(|step| wanted(step)).count();
            let ended = before(|step| matches!(step, Step::End)) > 0;
            // Only steps that had an effect are recorded.
            let in_use = before(|step| matches!(step, Step::Get)) > before(|step| matches!(step, Step::Drop | Step::TakeOut));
            let taken = before(|step| matches!(step, Step::TakeOut)) > 0;
            let effect = match step {
                Step::Get => {
                    let expected = match (ended, in_use, taken) {
                        (true, ..) => Err(Why::Over),
                        (_, true, _) => Err(Why::InUse),
                        (_, _, true) => Err(Why::Taken),
                        _ => Ok(()),
                    };
                    let got = lent.get();
                    prop_assert_eq!(got.as_ref().map(|_| ()).map_err(Unavailable::why), expected);
                    let effect = got.is_ok();
                    if let Ok(got) = got {
                        held = Some(got);
                    }
                    effect
                }
                Step::Drop => held.take().is_some(),
                Step::TakeOut => held.take().map(|held: Held<_>| out.push(held.into_inner())).is_some(),
                Step::End => lease.take().is_some(),
            };
            if effect {
                done.push(step);
            }
            let ended = lease.is_none();
            let expected = usize::from(ended && held.is_none() && out.is_empty());
            prop_assert_eq!(drops.load(Ordering::SeqCst), expected);
        }
        drop((lease, held, out));
        prop_assert_eq!(drops.load(Ordering::SeqCst), 1);
    }
}
