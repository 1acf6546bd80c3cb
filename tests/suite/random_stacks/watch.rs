//! Finds lost wakeups: a pending future that makes progress when it is polled, although nothing woke it.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Wake, Waker},
};

use super::bottom::Script;

/// Watches the future that one caller waits for.
pub(super) struct Watch {
    script: Arc<Script>,
    is_strict: bool,
    waits: Mutex<Option<Arc<Wait>>>,
    lost: Mutex<Option<&'static str>>,
}

/// Stands between a future and its task.
struct Wait {
    woken: AtomicBool,
    task: Mutex<Waker>,
}

impl Wake for Wait {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, SeqCst);
        let task = self.task.lock().unwrap().clone();
        task.wake();
    }
}

impl Watch {
    /// `is_strict`: whether progress without a wakeup is a fault.
    pub(super) fn new(script: &Arc<Script>, is_strict: bool) -> Arc<Self> {
        Arc::new(Self { script: Arc::clone(script), is_strict, waits: Mutex::default(), lost: Mutex::default() })
    }

    /// Polls the future that this caller waits for, although nothing woke it.
    pub(super) fn look(&self) {
        let waits = self.waits.lock().unwrap().clone();
        if let Some(wait) = waits {
            let task = wait.task.lock().unwrap().clone();
            task.wake();
        }
    }

    /// Returns the wait in which a wakeup was lost.
    pub(super) fn lost(&self) -> Option<&'static str> {
        *self.lost.lock().unwrap()
    }

    /// Waits for a future, and watches it meanwhile.
    pub(super) async fn over<F: Future>(&self, what: &'static str, future: F) -> F::Output {
        let mut future = pin!(future);
        let wait = Arc::new(Wait { woken: AtomicBool::new(true), task: Mutex::new(Waker::noop().clone()) });
        let waker = Waker::from(Arc::clone(&wait));
        let _waits = Waits(self);
        *self.waits.lock().unwrap() = Some(Arc::clone(&wait));
        poll_fn(|cx| {
            wait.task.lock().unwrap().clone_from(cx.waker());
            let (woken, before) = (wait.woken.swap(false, SeqCst), self.script.steps());
            let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
            if self.is_strict && !woken && (polled.is_ready() || self.script.steps() != before) {
                *self.lost.lock().unwrap() = Some(what);
            }
            polled
        })
        .await
    }
}

/// Ends a wait when it is dropped.
struct Waits<'a>(&'a Watch);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        *self.0.waits.lock().unwrap() = None;
    }
}
