//! Times many subjects on a machine that does other work too.

use std::{
    mem::MaybeUninit,
    time::{Duration, Instant},
};

use crate::subject::Subject;

/// Returns the nanoseconds of one call of each subject, from the fastest of many rounds in which all take turns: noise
/// on a shared machine only ever adds.
pub fn nanos(subjects: &mut [Subject], rounds: u32, calls: u32) -> Vec<f64> {
    let start = Instant::now();
    nanos_of(move || start.elapsed(), subjects, rounds, calls)
}

/// Returns the nanoseconds that the processor works on one call, on this thread. It counts no time in which the thread
/// waits.
pub fn cpu_nanos(subjects: &mut [Subject], rounds: u32, calls: u32) -> Vec<f64> {
    nanos_of(time_of_this_thread, subjects, rounds, calls)
}

fn nanos_of(clock: impl Fn() -> Duration, subjects: &mut [Subject], rounds: u32, calls: u32) -> Vec<f64> {
    let mut fastest = vec![Duration::MAX; subjects.len()];
    for _ in 0..rounds {
        for (subject, fastest) in subjects.iter_mut().zip(&mut fastest) {
            let start = clock();
            (subject.run)(calls);
            *fastest = (clock() - start).min(*fastest);
        }
    }
    fastest.iter().map(|time| time.as_nanos() as f64 / f64::from(calls)).collect()
}

fn time_of_this_thread() -> Duration {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the function writes the whole struct if it returns 0, and every system with this clock has it.
    let time = unsafe {
        assert_eq!(libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, time.as_mut_ptr()), 0);
        time.assume_init()
    };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
