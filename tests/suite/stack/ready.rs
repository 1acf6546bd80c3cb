//! The readiness of the innermost service is part of each call.

use std::{
    future::{Ready, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker},
};

use tower::{Layer, Service, limit::ConcurrencyLimit};
use ziggurat::{
    Error,
    stack::ClientStack,
    testing::{Act, Script, TestTask},
};

/// The stack is always ready.
fn start<S: Service<()>>(stack: &mut S) -> S::Future {
    assert!(matches!(stack.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(()))));
    stack.call(())
}

/// A service that waits for its one place in `poll_ready` holds no place while its stack is idle, wakes the task that
/// waits for it, and loses neither a place nor a turn if a call is dropped.
#[tokio::test(start_paused = true)]
async fn a_service_that_reserves_a_place_has_it_for_the_time_of_a_call() {
    let script = Script::new();
    script.always(Act::answer().held());
    let one_at_a_time = ConcurrencyLimit::new(script.service(|number| number), 1);
    let mut stack = ClientStack::new("test").without_retry().layer(one_at_a_time);
    let mut call = || TestTask::new(start(&mut stack));
    let (mut first, mut second, mut third) = (call(), call(), call());
    for call in [&mut third, &mut first, &mut second] {
        assert!(call.poll().is_pending());
    }
    assert_eq!(script.calls(), 1);
    // The turn that a call was given, and did not take, goes to the next one.
    drop(first);
    drop(second);
    assert!(third.times_woken() > 0);
    assert!(third.poll().is_pending());
    assert_eq!(script.calls(), 2);
    script.release();
    assert!(third.poll().is_ready());
    drop(third);
    // Nothing is held by a stack that was called, nor by its clones.
    let mut clone = stack.clone();
    for stack in [&mut clone, &mut stack] {
        let mut call = TestTask::new(start(stack));
        assert!(call.poll().is_pending());
        script.release();
        assert!(call.poll().is_ready());
    }
    assert_eq!(script.calls(), 4);
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    ErrorInPollReady,
    PanicInPollReady,
    PanicInCall,
}
use Fault::{ErrorInPollReady, PanicInCall, PanicInPollReady};

/// A service that is of no use after its fault, like a future that has panicked. Its clones are sound.
#[derive(Debug)]
struct Breaks {
    fault: Fault,
    left: Arc<AtomicU32>,
    is_broken: bool,
}

impl Breaks {
    fn breaks(&mut self, fault: Fault) -> bool {
        assert!(!self.is_broken, "it is broken");
        let left = |n: u32| n.checked_sub(1);
        self.is_broken =
            self.fault == fault && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok();
        self.is_broken
    }
}

impl Clone for Breaks {
    fn clone(&self) -> Self {
        Self { fault: self.fault, left: Arc::clone(&self.left), is_broken: false }
    }
}

impl Service<()> for Breaks {
    type Response = ();
    type Error = Error<&'static str>;
    type Future = Ready<Result<(), Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        assert!(!self.breaks(PanicInPollReady), "on purpose");
        Poll::Ready(if self.breaks(ErrorInPollReady) { Err(Error::Service("on purpose")) } else { Ok(()) })
    }

    fn call(&mut self, (): ()) -> Self::Future {
        assert!(!self.breaks(PanicInCall), "on purpose");
        ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_failed_or_panicked_before_its_call_makes_way_for_a_clone() {
    for fault in [ErrorInPollReady, PanicInPollReady, PanicInCall] {
        let service = Breaks { fault, left: Arc::new(1.into()), is_broken: false };
        let mut stack = ClientStack::new("test").without_retry().layer(service);
        let first = catch_unwind(AssertUnwindSafe(|| TestTask::new(start(&mut stack)).poll()));
        match first {
            Ok(outcome) => assert!(fault == ErrorInPollReady && matches!(outcome, Poll::Ready(Err(_)))),
            Err(_) => assert_ne!(fault, ErrorInPollReady),
        }
        let second = TestTask::new(start(&mut stack)).poll();
        assert!(matches!(second, Poll::Ready(Ok(()))), "{fault:?}");
    }
}
