//! Every interleaving of calls that take tokens at the same time.

use std::time::Duration;

use loom::{sync::Arc, thread};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn takes(bucket: &Arc<Bucket>, now: Instant, cost: u32) -> thread::JoinHandle<u32> {
    let bucket = Arc::clone(bucket);
    thread::spawn(move || if bucket.take(now, cost).is_ok() { cost } else { 0 })
}

#[test]
fn threads_together_take_no_more_than_there_is_and_leave_nothing_that_fits() {
    loom::model(|| {
        let now = Instant::now();
        let bucket = Arc::new(Bucket::new(Rate::new(3, SECOND), now));
        let others = [takes(&bucket, now, 1), takes(&bucket, now, 2)];
        let mut taken = if bucket.take(now, 1).is_ok() { 1 } else { 0 };
        taken += others.into_iter().map(|thread| thread.join().unwrap()).sum::<u32>();
        // 2 and 1, or 1 and 1 if the call of cost 2 came last.
        assert!(taken == 3 || taken == 2, "{taken}");
        assert_eq!(bucket.available(now), 3 - taken);
    });
}

#[test]
fn tokens_that_are_given_back_meanwhile_are_neither_lost_nor_doubled() {
    loom::model(|| {
        let now = Instant::now();
        let bucket = Arc::new(Bucket::new(Rate::new(2, SECOND), now));
        assert_eq!(bucket.take(now, 1), Ok(()));
        let other = takes(&bucket, now, 1);
        bucket.give_back(1, now, now);
        let taken = other.join().unwrap();
        assert_eq!((taken, bucket.available(now)), (1, 1));
    });
}

#[test]
fn a_call_during_a_change_of_the_rate_takes_its_tokens_at_either_rate() {
    let (fast, slow) = (Rate::new(1000, SECOND), Rate::new(10, 10 * SECOND));
    for (before, after, lacking, fits) in
        [(fast, slow, 1000, 0), (fast, slow, 4, 1), (slow, fast, 10, 0), (slow, fast, 4, 1)]
    {
        loom::model(move || {
            let now = Instant::now();
            let bucket = Arc::new(Bucket::new(before, now));
            assert_eq!(bucket.take(now, lacking), Ok(()));
            let other = takes(&bucket, now, 1);
            bucket.set(after, now);
            let taken = other.join().unwrap();
            // Of an empty bucket, it may take one of those that a larger bucket holds.
            assert!(taken == fits || after == fast, "{taken}");
            let left = (after.burst() - taken).saturating_sub(lacking);
            assert_eq!(bucket.time_until(now, u64::from(left)), Duration::ZERO);
            assert_eq!(bucket.time_until(now, u64::from(left + 1)), after.period / after.quantity);
        });
    }
}
