//! The clock of the operating system, for peers that read it: in a simulation it shows the paused time.
//!
//! A circuit breaker, a budget and an adaptive limit of tower-resilience measure with [`std::time::Instant`], which
//! tokio's paused clock does not move. A comparison that stopped their clocks would be unfair. So the program has its
//! own `clock_gettime`, the function that `Instant` calls.

use std::{cell::Cell, marker::PhantomData, time::Duration};

use tokio::time::Instant;

/// The time on the clock at the start of a simulation. Any positive time would do.
const START: Duration = Duration::from_secs(1_000_000);

thread_local! {
    /// When the simulation of this thread began.
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// While this guard lives, this thread's clock follows that of the runtime.
pub(crate) struct Follows(PhantomData<*const ()>);

pub(crate) fn follow() -> Follows {
    BEGAN.set(Some(Instant::now()));
    Follows(PhantomData)
}

impl Drop for Follows {
    fn drop(&mut self) {
        BEGAN.set(None);
    }
}

/// # Safety
///
/// As that of the system: `time` may be written to.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    // Taken, so that a clock that is not paused asks the system.
    let Some(began) = BEGAN.take() else {
        // SAFETY: the system call of the function that this one replaces, with its arguments.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as libc::c_int };
    };
    let now = START + began.elapsed();
    BEGAN.set(Some(began));
    // SAFETY: the caller says so.
    unsafe {
        (*time).tv_sec = now.as_secs() as libc::time_t;
        (*time).tv_nsec = now.subsec_nanos().into();
    }
    0
}
