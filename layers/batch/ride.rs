//! The task that a batch runs on, which ends with the last of those who wait for it.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    task::{Context, Poll},
};

use tokio::{runtime::Handle, sync::Notify, task::AbortHandle};

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Held by all who wait for a batch. When the last of them lets go, the work is dropped there and then, with its clean-up, and not
/// when the runtime next gets to its task: that one only borrows it for the length of a poll.
pub(super) struct Ride {
    runtime: Handle,
    // None: it is being polled, or has ended.
    work: Mutex<Option<Work>>,
    task: OnceLock<AbortHandle>,
    is_full: Arc<Notify>,
}

impl Ride {
    /// Its work will run on this runtime.
    pub(super) fn new(runtime: Handle) -> Arc<Self> {
        Arc::new(Self { runtime, work: Mutex::default(), task: OnceLock::new(), is_full: Arc::default() })
    }

    /// Runs `work` on a task of its own.
    pub(super) fn start(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        *self.work() = Some(Box::pin(work));
        let task = self.runtime.spawn(Drive(Arc::downgrade(self)));
        // It is started once.
        let _ = self.task.set(task.abort_handle());
    }

    /// Rings when the batch is full.
    pub(super) fn bell(&self) -> Arc<Notify> {
        Arc::clone(&self.is_full)
    }

    pub(super) fn ring(&self) {
        self.is_full.notify_one();
    }

    fn work(&self) -> MutexGuard<'_, Option<Work>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ride {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            // Nothing would ever wake it again.
            task.abort();
        }
    }
}

struct Drive(Weak<Ride>);

impl Drop for Drive {
    fn drop(&mut self) {
        // If there is still work, the runtime has ended before it: then nobody would ever do it.
        let abandoned = self.0.upgrade().and_then(|ride| ride.work().take());
        drop(abandoned);
    }
}

impl Future for Drive {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(ride) = self.0.upgrade() else { return Poll::Ready(()) };
        let taken = ride.work().take();
        let Some(mut work) = taken else { return Poll::Ready(()) };
        let polled = work.as_mut().poll(cx);
        if polled.is_pending() {
            *ride.work() = Some(work);
        }
        // If all let go meanwhile, this is the last, and the work is dropped here.
        polled
    }
}
