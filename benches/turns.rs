//! Times many subjects on a machine that does other work too.

use std::time::{Duration, Instant};

use crate::subject::Subject;

/// Returns the nanoseconds of one call of each subject, from the fastest of many rounds in which all take turns: noise
/// on a shared machine only ever adds.
pub fn nanos(subjects: &mut [Subject], rounds: u32, calls: u32) -> Vec<f64> {
    let mut fastest = vec![Duration::MAX; subjects.len()];
    for _ in 0..rounds {
        for (subject, fastest) in subjects.iter_mut().zip(&mut fastest) {
            let start = Instant::now();
            (subject.run)(calls);
            *fastest = start.elapsed().min(*fastest);
        }
    }
    fastest.iter().map(|time| time.as_nanos() as f64 / f64::from(calls)).collect()
}
