//! The service at the bottom of a random stack: a script decides its delays, failures and panics, and it counts the
//! services that stay ready.

use std::{
    future::Future,
    io,
    panic::resume_unwind,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response};
use proptest::prelude::*;
use tokio::time::{Sleep, sleep};
use tower::Service;
use ziggurat::Error;

pub(super) type Failed = Error<io::Error>;
pub(super) type Outcome = Result<Response<String>, Failed>;

pub(super) fn failed(why: impl ToString) -> Failed {
    Error::Service(io::Error::other(why.to_string()))
}

/// The behaviour of one call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Act {
    /// The delay until the service is ready.
    readiness: Duration,
    /// The delay until the response is ready.
    response: Duration,
    ends: Ends,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    Answers,
    AnswersUnavailable,
    Fails,
    FailsAtReadiness,
    Panics,
}

impl Act {
    const ANSWER: Self = Self { readiness: Duration::ZERO, response: Duration::ZERO, ends: Ends::Answers };

    /// Replaces the failures after which tower's buffer rejects every later call.
    pub(super) fn in_a_buffer(mut self) -> Self {
        if matches!(self.ends, Ends::FailsAtReadiness | Ends::Panics) {
            self.ends = Ends::Fails;
        }
        self
    }
}

pub(super) fn acts() -> impl Strategy<Value = Vec<Act>> {
    let ends = prop_oneof![
        6 => Just(Ends::Answers),
        2 => Just(Ends::AnswersUnavailable),
        5 => Just(Ends::Fails),
        1 => Just(Ends::FailsAtReadiness),
        1 => Just(Ends::Panics),
    ];
    // The longest delay exceeds every limit of the layers: to them, the call hangs.
    let time = |at_once| prop_oneof![at_once => Just(0), 3 => Just(30), 2 => Just(700), 1 => Just(60_000)];
    let act = (time(9), time(3), ends).prop_map(|(readiness, response, ends)| Act {
        readiness: Duration::from_millis(readiness),
        response: Duration::from_millis(response),
        ends,
    });
    proptest::collection::vec(act, 1..8)
}

/// The state that all clones of the service share.
#[derive(Debug)]
pub(super) struct Script {
    acts: Vec<Act>,
    taken: AtomicUsize,
    is_calm: AtomicBool,
    steps: AtomicUsize,
    ready: AtomicUsize,
    in_flight: AtomicUsize,
}

impl Script {
    pub(super) fn new(acts: Vec<Act>) -> Arc<Self> {
        let (taken, steps, ready, in_flight) = <(AtomicUsize, AtomicUsize, AtomicUsize, AtomicUsize)>::default();
        Arc::new(Self { acts, taken, is_calm: AtomicBool::new(false), steps, ready, in_flight })
    }

    /// Makes the service answer every later call at once.
    pub(super) fn calm_down(&self) {
        self.is_calm.store(true, SeqCst);
    }

    /// Returns the number of times that a service became ready or was called.
    pub(super) fn steps(&self) -> usize {
        self.steps.load(SeqCst)
    }

    /// Returns the number of services that are ready, and the number of calls in flight.
    pub(super) fn in_use(&self) -> (usize, usize) {
        (self.ready.load(SeqCst), self.in_flight.load(SeqCst))
    }

    fn next(&self) -> Act {
        if self.is_calm.load(SeqCst) {
            return Act::ANSWER;
        }
        self.acts[self.taken.fetch_add(1, SeqCst) % self.acts.len()]
    }
}

/// Adds one to a count until it is dropped.
struct Counted(Arc<Script>, fn(&Script) -> &AtomicUsize);

impl Counted {
    fn new(script: &Arc<Script>, count: fn(&Script) -> &AtomicUsize) -> Self {
        count(script).fetch_add(1, SeqCst);
        script.steps.fetch_add(1, SeqCst);
        Self(Arc::clone(script), count)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1(&self.0).fetch_sub(1, SeqCst);
    }
}

/// A service that follows the script. A clone is not ready.
pub(super) struct Bottom {
    script: Arc<Script>,
    begun: Option<(Act, Pin<Box<Sleep>>)>,
    ready: Option<(Act, Counted)>,
}

impl Bottom {
    pub(super) fn new(script: &Arc<Script>) -> Self {
        Self { script: Arc::clone(script), begun: None, ready: None }
    }
}

impl Clone for Bottom {
    fn clone(&self) -> Self {
        Self::new(&self.script)
    }
}

impl Service<Request<String>> for Bottom {
    type Response = Response<String>;
    type Error = Failed;
    type Future = Pin<Box<dyn Future<Output = Outcome> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        if self.ready.is_some() {
            return Poll::Ready(Ok(()));
        }
        let (act, wait) = self.begun.get_or_insert_with(|| {
            let act = self.script.next();
            (act, Box::pin(sleep(act.readiness)))
        });
        let act = *act;
        // A timer of zero may be pending.
        if !act.readiness.is_zero() {
            ready!(wait.as_mut().poll(cx));
        }
        self.begun = None;
        if act.ends == Ends::FailsAtReadiness {
            return Poll::Ready(Err(failed("not ready")));
        }
        self.ready = Some((act, Counted::new(&self.script, |script| &script.ready)));
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<String>) -> Self::Future {
        let (act, ready) = self.ready.take().expect("called without being ready");
        let in_flight = Counted::new(&self.script, |script| &script.in_flight);
        drop(ready);
        Box::pin(async move {
            let _in_flight = in_flight;
            if !act.response.is_zero() {
                sleep(act.response).await;
            }
            match act.ends {
                Ends::Answers => Ok(Response::new("answer".into())),
                Ends::AnswersUnavailable => Ok(Response::builder().status(503).body(String::new()).unwrap()),
                Ends::Fails | Ends::FailsAtReadiness => Err(failed("failed")),
                // Without a message on the terminal.
                Ends::Panics => resume_unwind(Box::new("on purpose")),
            }
        })
    }
}
