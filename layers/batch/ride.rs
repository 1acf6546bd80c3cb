//! The task that a batch runs on. It ends with the last caller that waits for the batch.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, Wake},
};

use tokio::{runtime::Handle, task::AbortHandle};

use crate::{
    caught::undisturbed,
    clock,
    mutex::Mutex,
    pulse::{ABANDONED, Pulse},
};

const STRANDED: &str = "the runtime that the batch was sent on is no longer driven";

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The work of a batch, held by all callers that wait for it.
///
/// When the last of them drops its handle, the work is dropped at once, including its cleanup, and not when the runtime
/// next polls the task: the task borrows the work only for the length of a poll.
///
/// The task may be on a runtime that is no longer driven. Then the work is taken from it and continues in a task of a
/// later generation. Only the task of the current generation has access to the work, to poll it or to drop it.
pub(super) struct Ride {
    state: Mutex<State>,
    pulse: Arc<Pulse>,
}

#[derive(Default)]
struct State {
    // `None` while it is polled, and after its end.
    work: Option<Work>,
    generation: u64,
    task: Option<Running>,
    is_stranded: bool,
}

/// The task of the current generation.
struct Running {
    task: AbortHandle,
    runtime: Handle,
}

/// The work that was taken from an abandoned task.
pub(super) struct Left {
    work: Work,
    from: Option<Running>,
}

impl Ride {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), pulse: Pulse::woken() })
    }

    /// Runs `work` on its own task.
    pub(super) fn start(self: &Arc<Self>, runtime: &Handle, work: impl Future<Output = ()> + Send + 'static) {
        let generation = {
            let mut state = self.state.lock();
            state.work = Some(Box::pin(work));
            state.generation
        };
        let task = runtime.spawn(Drive { ride: Arc::downgrade(self), generation }).abort_handle();
        let mut state = self.state.lock();
        if state.generation == generation {
            state.task = Some(Running { task, runtime: runtime.clone() });
        }
    }

    /// Takes the work from its task if the task is abandoned.
    pub(super) fn seize(&self) -> Option<Left> {
        let left = {
            let mut state = self.state.lock();
            if !self.pulse.is_abandoned() {
                return None;
            }
            let work = state.work.take()?;
            state.generation += 1;
            Left { work, from: state.task.take() }
        };
        self.pulse.restart();
        if let Some(from) = &left.from {
            from.task.abort();
        }
        Some(left)
    }

    /// Continues a call that was sent from an abandoned task, on this runtime.
    ///
    /// The call may need the runtime of its task, for timers or a connection. If that runtime is still not driven after
    /// some time, the call is dropped.
    pub(super) fn carry_on(self: &Arc<Self>, runtime: &Handle, left: Left) {
        let ride = Arc::downgrade(self);
        let Left { mut work, from } = left;
        // The aborted task alone proves nothing: a single worker may be stuck that no other can take it from.
        let probe = from.map(|Running { task, runtime }| (task, runtime.spawn(async {})));
        self.start(runtime, async move {
            let end = clock::now() + ABANDONED;
            if clock::within(end, work.as_mut()).await.is_some() {
                return;
            }
            if probe.is_none_or(|(task, probe)| task.is_finished() || probe.is_finished()) {
                return work.await;
            }
            if let Some(ride) = ride.upgrade() {
                ride.state.lock().is_stranded = true;
            }
            undisturbed(|| drop(work));
        });
    }

    /// Returns why the work ended without a result.
    pub(super) fn end(&self) -> &'static str {
        if self.state.lock().is_stranded { STRANDED } else { "the task of the batch ended without a result" }
    }

    /// Wakes the work, because the batch is full.
    pub(super) fn ring(&self) {
        self.pulse.wake_by_ref();
    }

    pub(super) fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// Takes the work, for the task of this generation.
    fn take(&self, generation: u64) -> Option<Work> {
        let mut state = self.state.lock();
        if state.generation == generation { state.work.take() } else { None }
    }
}

impl Drop for Ride {
    fn drop(&mut self) {
        let running = self.state.lock().task.take();
        if let Some(Running { task, .. }) = running {
            // No waker can wake the task again.
            task.abort();
        }
        self.pulse.forget_waker();
    }
}

struct Drive {
    ride: Weak<Ride>,
    generation: u64,
}

impl Drop for Drive {
    fn drop(&mut self) {
        // If there is work left, the runtime shut down first, and the work would never be done.
        let abandoned = self.ride.upgrade().and_then(|ride| ride.take(self.generation));
        drop(abandoned);
    }
}

impl Future for Drive {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(ride) = self.ride.upgrade() else { return Poll::Ready(()) };
        let Some(mut work) = ride.take(self.generation) else { return Poll::Ready(()) };
        let polled = ride.pulse.poll(cx, |cx| work.as_mut().poll(cx));
        if polled.is_pending() {
            ride.state.lock().work = Some(work);
        }
        // If all callers have dropped their handles meanwhile, `ride` is the last one and drops the work here.
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::atomic::{AtomicU8, Ordering::SeqCst},
    };

    use tokio::{
        runtime::{Builder, Runtime},
        task::yield_now,
    };

    use super::*;
    use crate::pulse::advance;

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
    }

    async fn settle() {
        for _ in 0..5 {
            yield_now().await;
        }
    }

    /// Records the fate of the work: stores 1 when it is polled and 2 when it is dropped.
    struct Work(Arc<AtomicU8>);

    impl Future for Work {
        type Output = ();

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
            self.0.store(1, SeqCst);
            Poll::Pending
        }
    }

    impl Drop for Work {
        fn drop(&mut self) {
            self.0.store(2, SeqCst);
        }
    }

    #[test]
    fn the_task_of_a_generation_that_is_over_touches_nothing() {
        for is_driven in [true, false] {
            let (idle, driven) = (runtime(), runtime());
            let (ride, done) = (Ride::new(), Arc::<AtomicU8>::default());
            ride.start(idle.handle(), pending());
            driven.block_on(async {
                assert!(ride.seize().is_none(), "not abandoned yet");
                advance(100 * ABANDONED).await;
                drop(ride.seize().unwrap());
                ride.start(driven.handle(), Work(Arc::clone(&done)));
                settle().await;
            });
            assert_eq!(done.load(SeqCst), 1);
            if is_driven {
                idle.block_on(settle());
            }
            drop(idle);
            assert_eq!(done.load(SeqCst), 1, "not dropped yet");
            drop(driven);
            assert_eq!(done.load(SeqCst), 2, "its own task has ended");
        }
    }

    #[test]
    fn work_that_is_being_polled_is_not_taken_away() {
        let runtime = runtime();
        let ride = Ride::new();
        let inner = Arc::downgrade(&ride);
        ride.start(runtime.handle(), async move {
            yield_now().await;
            advance(2 * ABANDONED).await;
            assert!(inner.upgrade().unwrap().seize().is_none());
        });
        runtime.block_on(settle());
        assert!(ride.state.lock().work.is_none(), "completed");
        assert!(ride.seize().is_none());
    }

    #[test]
    fn what_goes_on_elsewhere_is_given_up_unless_its_runtime_comes_back() {
        for comes_back in [false, true] {
            let (driven, idle) = (runtime(), runtime());
            let (ride, done) = (Ride::new(), Arc::<AtomicU8>::default());
            ride.start(idle.handle(), Work(Arc::clone(&done)));
            driven.block_on(async {
                advance(100 * ABANDONED).await;
                ride.carry_on(driven.handle(), ride.seize().unwrap());
                settle().await;
            });
            assert_eq!(done.load(SeqCst), 1);
            if comes_back {
                idle.block_on(settle());
            }
            driven.block_on(async {
                advance(ABANDONED).await;
                settle().await;
            });
            assert_eq!(done.load(SeqCst), if comes_back { 1 } else { 2 });
            assert_eq!(ride.end() == STRANDED, !comes_back);
        }
    }

    /// A worker of a runtime may be stuck, with the task in its own queue, while the other workers run.
    #[test]
    fn what_goes_on_elsewhere_is_kept_if_only_its_task_is_stuck() {
        let (driven, stuck) = (runtime(), runtime());
        let (ride, done) = (Ride::new(), Arc::<AtomicU8>::default());
        driven.block_on(async {
            let work = Box::pin(Work(Arc::clone(&done)));
            let task = stuck.spawn(pending::<()>()).abort_handle();
            let from = Some(Running { task, runtime: Handle::current() });
            ride.carry_on(driven.handle(), Left { work, from });
            settle().await;
            advance(ABANDONED).await;
            settle().await;
        });
        assert_eq!(done.load(SeqCst), 1);
        assert_ne!(ride.end(), STRANDED);
    }
}
