//! Processing items concurrently, on a paused clock.

mod ending;
mod input;
mod model;
mod progress;
mod timing;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Counts the tickets that are alive.
#[derive(Clone, Default)]
struct Alive(Arc<AtomicUsize>);

struct Ticket(Alive);

impl Alive {
    fn ticket(&self) -> Ticket {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ticket(self.clone())
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}
